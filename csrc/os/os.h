/* What every platform's os_*.c gives the portable core. Calls that fail give a negative error
 * number of the system (errno, GetLastError). */
#ifndef SHMP_OS_H
#define SHMP_OS_H

#include <stddef.h>

long shmp__os_pid(void);

/* Zeroed memory of at least 4 bytes that is zero again in a forked child, for shmp__os_unmap; NULL: this
 * system has no such thing. */
int shmp__os_map_wiped_on_fork(void **ret_data);
int shmp__os_unmap(void *data, size_t size);

/* Zeroed memory, for free(); NULL: there is none. */
void *shmp__os_allocate(size_t size);

enum { SHMP__ENV_ROOM = 256 };
/* The value, perhaps in `room`; NULL: it is not set. What is too long for `room` may be cut. */
const char *shmp__os_getenv(const char *name, char room[SHMP__ENV_ROOM]);
/* Whether this process runs with rights that whoever started it lacks: its environment is not to be obeyed. */
int shmp__os_is_privileged(void);
int shmp__os_setenv(const char *name, const char *value);
void shmp__os_unsetenv(const char *name);

int shmp__os_random(void *ret_bytes, size_t length);
extern const char shmp__os_random_call[]; /* what gives them, for messages */

/* Another descriptor of the same open file, which does not survive exec. */
int shmp__os_dup(int fd);

/* Bytes of memory that programs can still get. */
int shmp__os_free_memory(unsigned long long *ret_bytes);
/* Whether such an error says that this machine does not tell. */
int shmp__os_is_untold(int error);
extern const char shmp__os_memory_call[]; /* what tells it, for messages */

/* What a user can do about an error of that call: "; ..." or "". */
const char *shmp__os_remedy(const char *call, int os_error);

#endif
