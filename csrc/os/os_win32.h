/* System calls of Windows, for its backend: one function a call, which gives 0, or -GetLastError(). */
#ifndef SHMP_OS_WIN32_H
#define SHMP_OS_WIN32_H

#include "os/os.h"

/* The errors that the backend judges; the rest of windows.h stays in os_win32.c. */
enum {
    SHMP__WIN_FILE_NOT_FOUND = 2,
    SHMP__WIN_PATH_NOT_FOUND = 3,
    SHMP__WIN_ACCESS_DENIED = 5,
    SHMP__WIN_INVALID_HANDLE = 6,
    SHMP__WIN_INVALID_NAME = 123,
    SHMP__WIN_ALREADY_EXISTS = 183
};

/* Bytes for what shmp__os_only_this_user fills in: who may open what is created with it. */
extern const size_t shmp__os_security_size;
int shmp__os_only_this_user(void *ret_security);

/* -SHMP__WIN_ALREADY_EXISTS: somebody's section has that name, and nothing was opened. */
int shmp__os_section_create(const char *name, size_t size, void *security, void **ret_section);
int shmp__os_section_open(const char *name, int read_only, void **ret_section);
/* Another handle on an open section, which the name is not asked for. */
int shmp__os_section_duplicate(void *section, int read_only, void **ret_section);
int shmp__os_section_map(void *section, int read_only, void **ret_data);
/* Bytes that are mapped at `data`, whole pages. */
int shmp__os_section_size(void *data, size_t *ret_size);
int shmp__os_handle_close(void *handle);
/* Lets the child processes that inherit handles have this one. */
int shmp__os_handle_inherit(void *handle);

#endif
