/* Ids `<pid>.<fd>.<check>`, in base 36, of descriptors that are opened through /proc, or taken by pidfd_getfd. `check`
 * is 32 bits by which a number that has been used again is refused. */
#ifndef SHMP_PROC_ID_H
#define SHMP_PROC_ID_H

#include "core/core.h"
#include "os/os_unix.h"

#include <stdint.h>

typedef struct shmp__proc_id {
    uint64_t pid, fd, check;
} shmp__proc_id;

/* Whether a text is one. */
int shmp__proc_id_parse(const char *id, shmp__proc_id *ret_id);

/* 0: it does not fit, as no pid and no check have more than 5 and 7 digits, but some descriptors have 6. */
int shmp__proc_id_write(long pid, int fd, unsigned long long check, char ret_id[SHMP__ID_SIZE]);

/* The same for a descriptor of this process, with the error. */
int shmp__proc_id_of(int fd, unsigned long long check, char ret_id[SHMP__ID_SIZE], shmp_error *reterr);

/* What a mechanism knows of its descriptors. */
typedef struct shmp__proc_kind {
    /* Whether one may be of this kind, by its name alone: 1, 0, or -errno. */
    int (*may_be)(int folder, long fd);
    /* 0: what was looked at, and not opened yet, is what the id means; it can be anything. */
    int (*check)(const shmp__mapping *mapping, int seen, const shmp__proc_id *meant, const char *id,
                 shmp_error *reterr);
    /* In place of both, where opening it makes something else: gives a duplicate of what the id means. */
    int (*take)(const shmp__mapping *mapping, long pid, int fd, const shmp__proc_id *meant, const char *id,
                shmp_error *reterr);
} shmp__proc_kind;

/* Opens what an id means: the descriptor it names or, when that is gone or something else, another one of the same
 * segment that some process of this user has. That takes a look at each of their descriptors, some 5 us. */
int shmp__proc_open(const shmp__proc_kind *kind, const shmp__mapping *mapping, const shmp__proc_id *meant,
                    const char *id, shmp_error *reterr);

/* A look at what an id means, or its opening, gave that error. */
int shmp__proc_fail_open(int error, const shmp__proc_id *meant, const char *id, shmp_error *reterr);

/* The descriptor is gone, or is something else. */
int shmp__proc_fail_gone(const shmp__proc_id *meant, const char *id, shmp_error *reterr);

#endif
