/* Segments: arguments are checked here, once for all mechanisms. */
#include "core/core.h"
#include "os/os.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int check(const shmp_provider *provider, size_t size, unsigned flags, unsigned known,
                 shmp_shmem *const *ret_shmem, const char *call, shmp_error *reterr) {
    if (!provider || !ret_shmem) return shmp__fail(reterr, SHMP_EINVAL, call, "NULL argument");
    if (flags & ~known) return shmp__fail(reterr, SHMP_EINVAL, call, "flags %#x: only %#x are known", flags, known);
    if (size == 0) return shmp__fail(reterr, SHMP_EINVAL, call, "size 0: a segment has at least 1 byte");
    if (size > PTRDIFF_MAX) return shmp__fail(reterr, SHMP_EOVERFLOW, call, "size %zu", size);
    return 0;
}

static shmp_shmem *new_handle(shmp_provider *provider, const shmp__ops *ops, size_t size, unsigned flags,
                              shmp_error *reterr) {
    shmp_shmem *shmem = shmp__os_allocate(sizeof *shmem);
    if (!shmem) {
        shmp__fail(reterr, SHMP_ENOMEM, "malloc", "%zu bytes", sizeof *shmem);
        return NULL;
    }
    shmem->provider = provider;
    shmem->ops = ops;
    shmem->size = size;
    shmem->flags = flags;
    shmem->fd = -1;
    shmem->creator = shmp__process_mark(provider);
    return shmem;
}

/* The last step of create and attach: `result` is the backend's. */
static int finish(shmp_shmem *shmem, int result, shmp_shmem **ret_shmem, shmp_error *reterr) {
    if (result == 0 && shmem->flags & SHMP_INHERIT) {
        result = shmp_persist(shmem, reterr);
        if (result < 0) (void)shmem->ops->close(shmem, NULL);
    }
    if (result < 0) {
        free(shmem);
        return result;
    }
    shmp__atomic_add(&shmem->provider->references, 1);
    *ret_shmem = shmem;
    return 0;
}

static int create(shmp_provider *provider, const char *name, size_t size, unsigned flags, shmp_shmem **ret_shmem,
                  shmp_error *reterr) {
    unsigned missing = flags & ~provider->ops->create_flags;
    if (missing)
        return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_create", "flags %#x: %s cannot do that", missing,
                          provider->ops->name);
    shmp_shmem *shmem = new_handle(provider, provider->ops, size, flags | SHMP_OWNER, reterr);
    if (!shmem) return -SHMP_ENOMEM;
    return finish(shmem, provider->ops->create(shmem, name, reterr), ret_shmem, reterr);
}

int shmp_create(shmp_provider *provider, size_t size, unsigned flags, shmp_shmem **ret_shmem, shmp_error *reterr) {
    int result = check(provider, size, flags, SHMP_RESERVE | SHMP_INHERIT, ret_shmem, "shmp_create", reterr);
    return result < 0 ? result : create(provider, NULL, size, flags, ret_shmem, reterr);
}

int shmp_create_named(shmp_provider *provider, const char *name, size_t size, unsigned flags, shmp_shmem **ret_shmem,
                      shmp_error *reterr) {
    char id[SHMP__ID_SIZE];
    int result = check(provider, size, flags, SHMP_RESERVE | SHMP_INHERIT, ret_shmem, "shmp_create_named", reterr);
    if (result < 0) return result;
    if (!name) return shmp__fail(reterr, SHMP_EINVAL, "shmp_create_named", "NULL argument");
    if (!(provider->ops->can & SHMP__CAN_NAME))
        return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_create_named", "%s has no names: open posix",
                          provider->ops->name);
    result = shmp__copy_id(id, name, strlen(name), reterr);
    return result < 0 ? result : create(provider, id, size, flags, ret_shmem, reterr);
}

int shmp_attach(shmp_provider *provider, const shmp_description *description, unsigned flags, shmp_shmem **ret_shmem,
                shmp_error *reterr) {
    char id[SHMP__ID_SIZE];
    if (!description) return shmp__fail(reterr, SHMP_EINVAL, "shmp_attach", "NULL argument");
    size_t size = description->size;
    if (flags & SHMP_WHOLE) size = 1; /* the least; the backend puts in what there is */
    int result =
        check(provider, size, flags, SHMP_READ_ONLY | SHMP_INHERIT | SHMP_WHOLE, ret_shmem, "shmp_attach", reterr);
    if (result < 0) return result;
    const char *end = memchr(description->id, 0, sizeof description->id);
    if (!end) return shmp__fail(reterr, SHMP_EID, "shmp_attach", "the id has no end: 19 bytes is the most");
    result = shmp__copy_id(id, description->id, (size_t)(end - description->id), reterr);
    if (result < 0) return result;
    const shmp__ops *ops = provider->attaches_by_id ? shmp__ops_for_id(id) : provider->ops;
    if (!ops) return shmp__fail(reterr, SHMP_EID, "shmp_attach", "\"%s\" has the shape of no provider's id", id);
    shmp_shmem *shmem = new_handle(provider, ops, size, flags, reterr);
    if (!shmem) return -SHMP_ENOMEM;
    return finish(shmem, ops->attach(shmem, id, reterr), ret_shmem, reterr);
}

int shmp_clone(const shmp_shmem *shmem, unsigned flags, shmp_shmem **ret_shmem, shmp_error *reterr) {
    shmp_description description;
    int result = shmp_describe(shmem, &description, reterr);
    if (result < 0) return result;
    result =
        check(shmem->provider, description.size, flags, SHMP_READ_ONLY | SHMP_INHERIT, ret_shmem, "shmp_clone", reterr);
    if (result < 0) return result;
    /* the segment's own mechanism: the bare descriptor of one may be the valid id of another */
    shmp_shmem *clone = new_handle(shmem->provider, shmem->ops, description.size, flags, reterr);
    if (!clone) return -SHMP_ENOMEM;
    return finish(clone, shmem->ops->attach(clone, description.id, reterr), ret_shmem, reterr);
}

int shmp_close(shmp_shmem *shmem, shmp_error *reterr) {
    if (!shmem) return 0;
    int result = shmem->ops->close(shmem, reterr);
    shmp_provider_close(shmem->provider);
    free(shmem);
    return result;
}

int shmp__is_made_here(const shmp_shmem *shmem) {
    const shmp_provider *provider = shmem->provider;
    return shmem->creator == (provider->mark ? shmp__atomic_load(provider->mark) : (unsigned)shmp__os_pid());
}

int shmp__is_owner(const shmp_shmem *shmem) { return shmem->flags & SHMP_OWNER && shmp__is_made_here(shmem); }

void *shmp_data(const shmp_shmem *shmem) { return shmem->data; }
size_t shmp_size(const shmp_shmem *shmem) { return shmem->size; }
int shmp_fileno(const shmp_shmem *shmem) { return shmem->fd; }
const char *shmp_backend(const shmp_shmem *shmem) { return shmem->ops->name; }

unsigned shmp_flags(const shmp_shmem *shmem) {
    return (shmem->flags & SHMP_READ_ONLY) | (shmp__is_owner(shmem) ? SHMP_OWNER : 0u);
}

int shmp_describe(const shmp_shmem *shmem, shmp_description *ret_description, shmp_error *reterr) {
    if (!shmem || !ret_description) return shmp__fail(reterr, SHMP_EINVAL, "shmp_describe", "NULL argument");
    shmp_description description = {.size = shmem->size};
    int result = shmem->ops->describe(shmem, description.id, reterr);
    if (result == 0) *ret_description = description;
    return result;
}

int shmp_persist(shmp_shmem *shmem, shmp_error *reterr) {
    if (!shmem) return shmp__fail(reterr, SHMP_EINVAL, "shmp_persist", "NULL argument");
    if (shmem->ops->persist) return shmem->ops->persist(shmem, reterr);
    return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_persist", "exec ends a segment of %s: open memfd or posix",
                      shmem->ops->name);
}
