/* What the mechanisms of Unix share; fd: those whose segments are file descriptors. */
#ifndef SHMP_UNIX_H
#define SHMP_UNIX_H

#include "core/core.h"
#include "os/os_unix.h"

/* Maps `fd` and makes it the segment's; on failure it stays the caller's. */
int shmp__fd_map(shmp_shmem *shmem, int fd, shmp_error *reterr);

/* The same for a descriptor that somebody else filled, after checking it: a regular file, as
 * large as the description says. `file` is what fstat says of it. */
int shmp__fd_map_checked(shmp_shmem *shmem, int fd, const shmp__os_file *file, const char *id, shmp_error *reterr);

/* Attaches to a bare descriptor number of this process, by a duplicate. */
int shmp__fd_attach_number(shmp_shmem *shmem, int number, shmp_error *reterr);

int shmp__fd_stat(int fd, shmp__os_file *ret_file, shmp_error *reterr);

/* The smaller of `segments` and the descriptors this process may have. */
int shmp__fd_limit(unsigned long long segments, unsigned long long *ret_segments, shmp_error *reterr);

/* Unmaps and closes; the first error is returned. */
int shmp__fd_close(shmp_shmem *shmem, shmp_error *reterr);

int shmp__fd_persist(shmp_shmem *shmem, shmp_error *reterr);

int shmp__unix_users(const shmp_shmem *shmem, shmp_user_visitor visit, void *context, shmp_error *reterr);

/* Whether `size` bytes can be reserved: the kernel would rather kill a process than refuse them.
 * `call` is the one that is about to do it. */
int shmp__check_memory(size_t size, const char *call, shmp_error *reterr);

#endif
