/* The names that this library makes by itself, and the walk through them. */
#ifndef SHMP_POSIX_SWEEP_H
#define SHMP_POSIX_SWEEP_H

#include "core/core.h"

#define SHMP__POSIX_PREFIX "/shmp_"

/* A new name. */
int shmp__posix_random_name(char ret_name[SHMP__ID_SIZE], shmp_error *reterr);

/* Whether shmp__posix_random_name could have made it. */
int shmp__posix_is_random_name(const char *name);

/* Operations of posix. */
int shmp__posix_list(shmp_provider *provider, shmp_visitor visit, void *context, shmp_error *reterr);
int shmp__posix_reap(shmp_provider *provider, unsigned flags, shmp_visitor visit, void *context, shmp_error *reterr);

/* Removes leftovers on the way; that it could not be done is no failure. */
void shmp__posix_reap_quietly(void);

#endif
