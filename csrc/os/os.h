/* What every platform's os_*.c gives the portable core. Calls that fail give a negative error
 * number of the system (errno, GetLastError). */
#ifndef SHMP_OS_H
#define SHMP_OS_H

#include <stddef.h>

long shmp__os_pid(void);

const char *shmp__os_getenv(const char *name);
int shmp__os_setenv(const char *name, const char *value);

/* Lets a descriptor survive exec. */
int shmp__os_keep_on_exec(int fd);

/* Bytes of memory that programs can still get. */
int shmp__os_free_memory(unsigned long long *ret_bytes);

/* What a user can do about an error, whichever call gave it: "; ..." or "". */
const char *shmp__os_remedy(int os_error);

#endif
