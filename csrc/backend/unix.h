/* What the mechanisms of Unix share; fd: those whose segments are file descriptors. */
#ifndef SHMP_UNIX_H
#define SHMP_UNIX_H

#include "core/core.h"
#include "os/os_unix.h"

typedef struct shmp__fd_mapping {
    shmp__mapping base;
    int fd;
    char name[SHMP__ID_SIZE];  /* posix: "" has none */
    shmp__atomic_uint is_told; /* its permissions are set, as somebody else may have heard of it */
} shmp__fd_mapping;

static inline shmp__fd_mapping *shmp__fd(shmp__mapping *mapping) { return (shmp__fd_mapping *)mapping; }
static inline const shmp__fd_mapping *shmp__fd_of(const shmp__mapping *mapping) {
    return (const shmp__fd_mapping *)mapping;
}

/* Maps `fd`, unless SHMP_UNMAPPED, and makes it the mapping's; on failure it stays the caller's. */
int shmp__fd_map(shmp__mapping *mapping, int fd, shmp_error *reterr);

/* The same for a descriptor that somebody else filled, after checking it: a regular file of somebody to be trusted, as
 * large as the description says. `file` is what fstat says of it. */
int shmp__fd_map_checked(shmp__mapping *mapping, int fd, const shmp__os_file *file, const char *id, shmp_error *reterr);

/* A duplicate of somebody's descriptor. */
int shmp__fd_dup(int fd, shmp_error *reterr);

/* Attaches to a descriptor of this process, by a duplicate. `id` is for messages; "" stands for the number. */
int shmp__fd_attach(shmp__mapping *mapping, int number, const char *id, shmp_error *reterr);

int shmp__fd_stat(int fd, shmp__os_file *ret_file, shmp_error *reterr);

/* The smaller of `segments` and the descriptors this process may still have. */
int shmp__fd_limit(unsigned long long segments, unsigned long long *ret_segments, shmp_error *reterr);

/* Operations of both. */
int shmp__fd_clone(const shmp__mapping *of, shmp__mapping *mapping, shmp_error *reterr);
int shmp__fd_close(shmp__mapping *mapping, shmp_error *reterr);
int shmp__fd_unmap(shmp__mapping *mapping, shmp_error *reterr);
int shmp__fd_fileno(const shmp__mapping *mapping);
int shmp__fd_persist(shmp__mapping *mapping, shmp_error *reterr);

int shmp__unix_users(const shmp__mapping *mapping, shmp_user_visitor visit, void *context, shmp_error *reterr);

/* Refuses what belongs to a user who is neither this one nor root, unless SHMP_ANY_USER. */
int shmp__check_user(const shmp__mapping *mapping, unsigned long user, const char *call, const char *id,
                     shmp_error *reterr);

/* The permissions of a new segment: SHMP_MODE, or 0600. */
unsigned shmp__mode_of(const shmp__mapping *mapping);

/* Whether `size` bytes can be reserved: the kernel would rather kill a process than refuse them.
 * `call` is the one that is about to do it. */
int shmp__check_memory(size_t size, const char *call, shmp_error *reterr);

#endif
