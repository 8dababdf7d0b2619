/* What calls.c times, and the contenders of a platform: calls_linux.c, calls_win32.c. */
#ifndef CALLS_H
#define CALLS_H

#include "shmem_providers.h"

#include <string.h>

typedef struct segment {
    size_t size;
    void *data, *section; /* section: win32's HANDLE */
    int fd, id;
    char name[20]; /* posix, win32; as given when bare */
    shmp_shmem *shmem;
    shmp_description description;
    long other; /* memfd: a process that has the same descriptors */
    shmp_description other_description;
} segment;

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        if ((call) < 0) return -1;                                                                                     \
    } while (0)

typedef struct contender {
    const char *mechanism, *name;
    int (*create)(segment *);
    int (*destroy)(segment *);
    int (*attach)(segment *, const segment *of);
    int (*detach)(segment *);
    int (*attach_other)(segment *, const segment *of); /* of another process; NULL: as attach */
} contender;

/* The platform's; the last row has no mechanism. */
extern const contender contenders[];

/* The same for every mechanism: this library. */
int core_create(segment *s);
int core_attach(segment *s, const segment *of);
int core_attach_other(segment *s, const segment *of);
int core_close(segment *s);

/* Starts a process that has what this one has, and calls tell() there for what it gives; NULL: not here. */
extern long (*const start_other)(void (*tell)(shmp_description *ret_description), shmp_description *ret_description);
int stop_other(long pid);

long long now(void); /* nanoseconds */

#endif
