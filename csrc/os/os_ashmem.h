/* Android's shared memory: regions of the driver of /dev/ashmem, or what libandroid.so makes. Linux only. */
#ifndef SHMP_OS_ASHMEM_H
#define SHMP_OS_ASHMEM_H

#include "os/os_unix.h"

enum { SHMP__OS_ASHMEM_NAME = 256 /* bytes of a region's name, its end included */ };

typedef struct shmp__os_ashmem {
    char path[64];             /* of the driver's node; "": by libandroid.so */
    unsigned long long device; /* its number */
    void *library;             /* libandroid.so; NULL: by the driver */
    int (*create)(const char *name, size_t size);
    size_t (*size_of)(int fd);
    int (*protect)(int fd, int allowed);
} shmp__os_ashmem;

/* Finds out how regions are made here; -ENOENT, -ENOTTY: they are not. What it filled in by then tells where. */
int shmp__os_ashmem_open(shmp__os_ashmem *ret_ashmem);
void shmp__os_ashmem_end(shmp__os_ashmem *ashmem);

/* A new region of the driver, for the next two. */
int shmp__os_ashmem_new(const shmp__os_ashmem *ashmem);
int shmp__os_ashmem_set_name(int fd, const char name[SHMP__OS_ASHMEM_NAME]); /* all of it is read */
int shmp__os_ashmem_set_size(int fd, size_t size);

/* The same by libandroid.so. */
int shmp__os_ashmem_create(const shmp__os_ashmem *ashmem, const char *name, size_t size);

/* Whether a descriptor is a region: 1, 0, or -errno. */
int shmp__os_is_ashmem(const shmp__os_ashmem *ashmem, int fd);

/* -EBADF: nobody has mapped it yet, and its size can change until then; -EINVAL: it has none. */
int shmp__os_ashmem_size(const shmp__os_ashmem *ashmem, int fd, unsigned long long *ret_size);

/* What was mapped stays as it is, what is mapped from now on is read-only, whoever does it. */
int shmp__os_ashmem_protect(const shmp__os_ashmem *ashmem, int fd);

/* A number by which a region is known: a hash of its name, or the inode of the memfd that a newer libandroid.so makes.
 */
int shmp__os_ashmem_mark(const shmp__os_ashmem *ashmem, int fd, unsigned *ret_mark);

/* A duplicate of another process's descriptor, and who runs that process; Linux 5.6. */
int shmp__os_take_fd_of(long pid, int fd, unsigned long *ret_user);

#endif
