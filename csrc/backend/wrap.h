/* What the mechanisms share that wrap another one: a mapping is a handle of the inner provider. */
#ifndef SHMP_WRAP_H
#define SHMP_WRAP_H

#include "core/core.h"

typedef struct shmp__wrapped {
    shmp__mapping base;
    shmp_shmem *inner; /* NULL: closed for good */
} shmp__wrapped;

static inline shmp__wrapped *shmp__wrap(shmp__mapping *mapping) { return (shmp__wrapped *)mapping; }
static inline const shmp__wrapped *shmp__wrap_of(const shmp__mapping *mapping) {
    return (const shmp__wrapped *)mapping;
}

/* The last step of whatever makes a mapping: takes over `inner`, if `result` is 0, and gives `result`. */
int shmp__wrap_finish(shmp__mapping *mapping, int result, shmp_shmem *inner);

/* Operations. */
int shmp__wrap_clone(const shmp__mapping *of, shmp__mapping *mapping, shmp_error *reterr);
int shmp__wrap_destroy(shmp__mapping *mapping, shmp_error *reterr);
int shmp__wrap_close(shmp__mapping *mapping, shmp_error *reterr);
int shmp__wrap_unmap(shmp__mapping *mapping, shmp_error *reterr);
int shmp__wrap_fileno(const shmp__mapping *mapping);
int shmp__wrap_persist(shmp__mapping *mapping, shmp_error *reterr);
int shmp__wrap_locate(shmp__mapping *mapping, char ret_id[SHMP__ID_SIZE], shmp_error *reterr);
int shmp__wrap_open_fd(const shmp__mapping *mapping, const char *id, shmp_error *reterr);
int shmp__wrap_users(const shmp__mapping *mapping, shmp_user_visitor visit, void *context, shmp_error *reterr);
int shmp__wrap_limits(shmp_provider *provider, shmp_limits *ret_limits, shmp_error *reterr);

#endif
