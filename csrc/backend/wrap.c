#include "os/platform.h"
#if SHMP_HAVE_UNIX
#include "backend/wrap.h"

#include <string.h>

int shmp__wrap_finish(shmp__mapping *mapping, int result, shmp_shmem *inner) {
    if (result < 0) return result;
    shmp__wrap(mapping)->inner = inner;
    mapping->data = inner->data;
    mapping->size = inner->size;
    mapping->mapped = inner->mapping->mapped;
    return 0;
}

int shmp__wrap_clone(const shmp__mapping *of, shmp__mapping *mapping, shmp_error *reterr) {
    shmp_shmem *inner = NULL;
    int result = shmp_clone(shmp__wrap_of(of)->inner, mapping->flags, &inner, reterr);
    return shmp__wrap_finish(mapping, result, inner);
}

int shmp__wrap_destroy(shmp__mapping *mapping, shmp_error *reterr) {
    return shmp__disown(shmp__wrap(mapping)->inner, reterr);
}

static int close_inner(shmp__mapping *mapping, shmp_error *reterr) {
    shmp_shmem *inner = shmp__wrap(mapping)->inner;
    shmp__wrap(mapping)->inner = NULL;
    return shmp_close(inner, reterr);
}

/* The core closes and unmaps in either order, and does not unmap what is not mapped: the later one ends the inner
 * handle. */
int shmp__wrap_close(shmp__mapping *mapping, shmp_error *reterr) {
    return mapping->data ? shmp__retire(shmp__wrap(mapping)->inner, reterr) : close_inner(mapping, reterr);
}

int shmp__wrap_unmap(shmp__mapping *mapping, shmp_error *reterr) {
    return shmp__wrap(mapping)->inner->flags & SHMP__RETIRED ? close_inner(mapping, reterr) : 0;
}

int shmp__wrap_fileno(const shmp__mapping *mapping) { return shmp_fileno(shmp__wrap_of(mapping)->inner); }

int shmp__wrap_persist(shmp__mapping *mapping, shmp_error *reterr) {
    return shmp_persist(shmp__wrap(mapping)->inner, reterr);
}

int shmp__wrap_locate(shmp__mapping *mapping, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    shmp_description description;
    int result = shmp_locate(shmp__wrap(mapping)->inner, &description, reterr);
    if (result == 0) memcpy(ret_id, description.id, SHMP__ID_SIZE);
    return result;
}

int shmp__wrap_open_fd(const shmp__mapping *mapping, const char *id, shmp_error *reterr) {
    int fd, result = shmp_open_fd(mapping->provider->inner, id, mapping->flags, &fd, reterr);
    return result < 0 ? result : fd;
}

int shmp__wrap_users(const shmp__mapping *mapping, shmp_user_visitor visit, void *context, shmp_error *reterr) {
    return shmp_users(shmp__wrap_of(mapping)->inner, visit, context, reterr);
}

int shmp__wrap_limits(shmp_provider *provider, shmp_limits *ret_limits, shmp_error *reterr) {
    return shmp_provider_limits(provider->inner, ret_limits, reterr);
}

#endif
