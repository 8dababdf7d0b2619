/* The names that this library makes by itself, and the walk through them. */
#ifndef SHMP_POSIX_SWEEP_H
#define SHMP_POSIX_SWEEP_H

#include "core/core.h"
#include "os/os_unix.h"

#define SHMP__POSIX_PREFIX "/shmp_"

/* What a file is, said in it where memory has no use for it (shmp__os_mark). Others' files bear no mark. */
enum {
    SHMP__POSIX_CHOSEN = 2,  /* this library made it under a name of the caller's choice, with a lock as sign of life */
    SHMP__POSIX_LINGERS = 3, /* SHMP_LINGER */
    SHMP__POSIX_FOUND = 4,   /* the same, and it was found without a holder when its mode was last set */
    SHMP__POSIX_KEPT = 5     /* SHMP_KEEP */
};

/* Whether what has lost its last holder is a leftover by now: unless it lingers or is kept, at once. */
int shmp__posix_is_over(unsigned mark, const shmp__os_file *file);

/* A new name. */
int shmp__posix_random_name(char ret_name[SHMP__ID_SIZE], shmp_error *reterr);

/* Whether shmp__posix_random_name could have made it. */
int shmp__posix_is_random_name(const char *name);

/* Operations of posix. */
int shmp__posix_list(shmp_provider *provider, shmp_visitor visit, void *context, shmp_error *reterr);
int shmp__posix_reap(shmp_provider *provider, unsigned flags, shmp_visitor visit, void *context, shmp_error *reterr);

/* 1: the name is that of the file, or the system does not tell; 0: it is another's, or gone; negative: a failure. */
int shmp__posix_is_name_of(const char *name, const shmp__os_file *file);

/* Removes leftovers on the way; that it could not be done is no failure. */
void shmp__posix_reap_quietly(void);

#endif
