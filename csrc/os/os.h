/* What every platform's os_*.c gives the portable core. Calls that fail give a negative error
 * number of the system (errno, GetLastError). */
#ifndef SHMP_OS_H
#define SHMP_OS_H

#include <stddef.h>

/* realloc; NULL: there is none, and `memory` is as it was. */
void *shmp__os_enlarge(void *memory, size_t size);

long shmp__os_pid(void);

/* Zeroed memory of its own pages; -EINVAL of wipe_on_fork: this system cannot zero it in a forked child. */
int shmp__os_map_private(size_t size, void **ret_data);
int shmp__os_wipe_on_fork(void *data, size_t size);
int shmp__os_unmap(void *data, size_t size);

long long shmp__os_now(void); /* seconds */

/* Zeroed memory, for free(); NULL: there is none. */
void *shmp__os_allocate(size_t size);

const char *shmp__os_getenv(const char *name);
int shmp__os_setenv(const char *name, const char *value);
void shmp__os_unsetenv(const char *name);

/* Another descriptor of the same open file, which does not survive exec. */
int shmp__os_dup(int fd);

/* Lets a descriptor survive exec. */
int shmp__os_keep_on_exec(int fd);

/* Bytes of memory that programs can still get. */
int shmp__os_free_memory(unsigned long long *ret_bytes);

/* Calls visit for each process that maps what this one has mapped at `data`; stops when it gives
 * non-zero, and gives that. */
int shmp__os_each_user(const void *data, int (*visit)(void *context, long pid), void *context);

/* What a user can do about an error, whichever call gave it: "; ..." or "". */
const char *shmp__os_remedy(int os_error);

#endif
