/* Segments: arguments are checked here, once for all mechanisms. */
#include "core/core.h"
#include "os/os.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    CREATE_FLAGS = SHMP_RESERVE | SHMP_INHERIT | SHMP_UNMAPPED | SHMP_LINGER | SHMP__MODE,
    NAMED_FLAGS = CREATE_FLAGS | SHMP_KEEP | SHMP_EXIST_OK,
    ATTACH_FLAGS = SHMP_READ_ONLY | SHMP_INHERIT | SHMP_WHOLE | SHMP_ANY_USER,
    CLONE_FLAGS = SHMP_READ_ONLY | SHMP_INHERIT
};

/* Known, but of no mechanism yet. */
static const unsigned page_size_flags = 0x3fu << 26;

static int check_flags(unsigned flags, unsigned known, const char *call, shmp_error *reterr) {
    return flags & ~known ? shmp__fail(reterr, SHMP_EINVAL, call, "flags %#x: only %#x are known", flags, known) : 0;
}

static int check(const shmp_provider *provider, size_t size, unsigned flags, unsigned known,
                 shmp_shmem *const *ret_shmem, const char *call, shmp_error *reterr) {
    if (!provider || !ret_shmem) return shmp__fail(reterr, SHMP_EINVAL, call, "NULL argument");
    int result = check_flags(flags, known, call, reterr);
    if (result < 0) return result;
    if (size == 0) return shmp__fail(reterr, SHMP_EINVAL, call, "size 0: a segment has at least 1 byte");
    if (size > PTRDIFF_MAX) return shmp__fail(reterr, SHMP_EOVERFLOW, call, "size %zu", size);
    return 0;
}

static const shmp__ops *ops_of(const shmp_shmem *shmem) { return shmem->mapping->provider->ops; }

/* A mapping that a mechanism is to fill in, and its first handle. */
static shmp_shmem *new_mapping(shmp_provider *provider, size_t size, unsigned flags, shmp_error *reterr) {
    shmp__mapping *mapping = shmp__os_allocate(provider->ops->mapping_size);
    if (!mapping) {
        shmp__fail(reterr, SHMP_ENOMEM, "malloc", "%zu bytes", provider->ops->mapping_size);
        return NULL;
    }
    mapping->provider = provider;
    mapping->size = size;
    mapping->flags = flags;
    shmp__atomic_set(&mapping->open, 1);
    shmp__atomic_set(&mapping->held, 1);
    mapping->first.mapping = mapping;
    mapping->first.creator = shmp__process_mark(provider);
    return &mapping->first;
}

/* Closes and unmaps what nobody else uses; the first error is returned. */
static int undo(shmp__mapping *mapping, shmp_error *reterr) {
    const shmp__ops *ops = mapping->provider->ops;
    int result = ops->close ? ops->close(mapping, reterr) : 0;
    int failed = mapping->data ? ops->unmap(mapping, result < 0 ? NULL : reterr) : 0;
    return result < 0 ? result : failed;
}

/* The last step of whatever makes a mapping: `result` is the mechanism's. */
static int finish(shmp_shmem *shmem, int result, shmp_shmem **ret_shmem, shmp_error *reterr) {
    shmp__mapping *mapping = shmem->mapping;
    shmem->flags = mapping->flags & (SHMP_READ_ONLY | SHMP_OWNER); /* SHMP_EXIST_OK may have found one */
    if (result == 0 && mapping->flags & SHMP_INHERIT) {
        result = shmp_persist(shmem, reterr);
        if (result < 0) {
            mapping->flags &= ~(unsigned)SHMP_KEEP;
            if (shmem->flags & SHMP_OWNER && ops_of(shmem)->destroy) (void)ops_of(shmem)->destroy(mapping, NULL);
            (void)undo(mapping, NULL);
        }
    }
    if (result < 0) {
        free(mapping);
        return result;
    }
    (void)shmp_provider_ref(mapping->provider);
    shmem->data = mapping->data;
    shmem->size = mapping->size;
    *ret_shmem = shmem;
    return 0;
}

/* Why a mechanism lacks what these flags ask for. */
static const char *why_missing(unsigned flags) {
    if (flags & SHMP_LINGER) return ": its segments go with their users; posix and sysv can linger";
    if (flags & SHMP__MODE) return ": its segments have no permissions for other users; those of posix and sysv have";
    if (flags & SHMP_UNMAPPED) return ": it has no descriptors to hand out; memfd and posix have";
    return "";
}

/* `name`: NULL for none. */
static int create(shmp_provider *provider, const char *name, size_t size, unsigned flags, shmp_shmem **ret_shmem,
                  shmp_error *reterr) {
    const shmp__ops *ops = provider->ops;
    unsigned missing = flags & ~ops->create_flags;
    if (missing)
        return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_create", "flags %#x: %s cannot do that%s", missing,
                          ops->name, why_missing(missing));
    shmp_shmem *shmem = new_mapping(provider, size, flags | SHMP_OWNER, reterr);
    if (!shmem) return -SHMP_ENOMEM;
    int result = name ? ops->create_named(shmem->mapping, name, reterr) : ops->create(shmem->mapping, reterr);
    return finish(shmem, result, ret_shmem, reterr);
}

static shmp_provider *route(shmp_provider *provider, const char *id, shmp_error *reterr) {
    return provider->ops->route ? provider->ops->route(provider, id, reterr) : provider;
}

/* To whichever attaches to that id. */
static int route_to(shmp_provider **provider, const char *id, shmp_error *reterr) {
    shmp_error why;
    shmp_provider *found = route(*provider, id, &why);
    if (found) {
        *provider = found;
        return 0;
    }
    if (reterr) *reterr = why;
    return why.code;
}

int shmp_create(shmp_provider *provider, size_t size, unsigned flags, shmp_shmem **ret_shmem, shmp_error *reterr) {
    int result = check(provider, size, flags, CREATE_FLAGS | page_size_flags, ret_shmem, "shmp_create", reterr);
    return result < 0 ? result : create(route(provider, NULL, NULL), NULL, size, flags, ret_shmem, reterr);
}

int shmp_create_named(shmp_provider *provider, const char *name, size_t size, unsigned flags, shmp_shmem **ret_shmem,
                      shmp_error *reterr) {
    char id[SHMP__ID_SIZE];
    int result = check(provider, size, flags, NAMED_FLAGS | page_size_flags, ret_shmem, "shmp_create_named", reterr);
    if (result < 0) return result;
    if (!name) return shmp__fail(reterr, SHMP_EINVAL, "shmp_create_named", "NULL argument");
    provider = route(provider, NULL, NULL);
    if (!provider->ops->create_named)
        return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_create_named", "%s has no names: open posix",
                          provider->ops->name);
    result = shmp__copy_id(id, name, strlen(name), reterr);
    return result < 0 ? result : create(provider, id, size, flags, ret_shmem, reterr);
}

/* What shmp_attach and shmp_attach_fd check alike: gives the id, and the least size. */
static int check_attach(shmp_provider *provider, const shmp_description *description, unsigned flags,
                        shmp_shmem *const *ret_shmem, const char *call, char ret_id[SHMP__ID_SIZE], size_t *ret_size,
                        shmp_error *reterr) {
    if (!description) return shmp__fail(reterr, SHMP_EINVAL, call, "NULL argument");
    *ret_size = flags & SHMP_WHOLE ? 1 : description->size; /* the least; the mechanism puts in what there is */
    int result = check(provider, *ret_size, flags, ATTACH_FLAGS, ret_shmem, call, reterr);
    if (result < 0) return result;
    const char *end = memchr(description->id, 0, sizeof description->id);
    if (!end) return shmp__fail(reterr, SHMP_EID, call, "the id has no end: 19 bytes is the most");
    return shmp__copy_id(ret_id, description->id, (size_t)(end - description->id), reterr);
}

int shmp_attach(shmp_provider *provider, const shmp_description *description, unsigned flags, shmp_shmem **ret_shmem,
                shmp_error *reterr) {
    char id[SHMP__ID_SIZE];
    size_t size;
    int result = check_attach(provider, description, flags, ret_shmem, "shmp_attach", id, &size, reterr);
    if (result < 0) return result;
    result = route_to(&provider, id, reterr);
    if (result < 0) return result;
    shmp_shmem *shmem = new_mapping(provider, size, flags, reterr);
    if (!shmem) return -SHMP_ENOMEM;
    return finish(shmem, provider->ops->attach(shmem->mapping, id, reterr), ret_shmem, reterr);
}

/* By the id, as shmp_attach; what has no descriptors, such as sysv for a number, is not meant. */
static shmp_provider *route_fd(shmp_provider *provider, const char *id) {
    shmp_provider *meant = *id ? route(provider, id, NULL) : NULL;
    return meant && meant->ops->attach_fd ? meant : route(provider, NULL, NULL);
}

int shmp_attach_fd(shmp_provider *provider, int fd, const shmp_description *description, unsigned flags,
                   shmp_shmem **ret_shmem, shmp_error *reterr) {
    char id[SHMP__ID_SIZE];
    size_t size;
    int result = check_attach(provider, description, flags, ret_shmem, "shmp_attach_fd", id, &size, reterr);
    if (result < 0) return result;
    provider = route_fd(provider, id);
    if (fd < 0) return shmp__fail(reterr, SHMP_EINVAL, "shmp_attach_fd", "fd %d", fd);
    if (!provider->ops->attach_fd)
        return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_attach_fd", "%s segments are no descriptors",
                          provider->ops->name);
    shmp_shmem *shmem = new_mapping(provider, size, flags, reterr);
    if (!shmem) return -SHMP_ENOMEM;
    return finish(shmem, provider->ops->attach_fd(shmem->mapping, fd, id, reterr), ret_shmem, reterr);
}

int shmp_attach_name(shmp_provider *provider, const char *name, size_t size, unsigned flags, shmp_shmem **ret_shmem,
                     shmp_error *reterr) {
    if (flags & SHMP_WHOLE) size = 1;
    int result = check(provider, size, flags, ATTACH_FLAGS, ret_shmem, "shmp_attach_name", reterr);
    if (result < 0) return result;
    if (!name) return shmp__fail(reterr, SHMP_EINVAL, "shmp_attach_name", "NULL argument");
    result = route_to(&provider, name, reterr);
    if (result < 0) return result;
    if (!provider->ops->attach_name)
        return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_attach_name", "%s has no names: open posix",
                          provider->ops->name);
    shmp_shmem *shmem = new_mapping(provider, size, flags, reterr);
    if (!shmem) return -SHMP_ENOMEM;
    return finish(shmem, provider->ops->attach_name(shmem->mapping, name, reterr), ret_shmem, reterr);
}

int shmp_unlink(shmp_provider *provider, const char *name, shmp_error *reterr) {
    if (!provider || !name) return shmp__fail(reterr, SHMP_EINVAL, "shmp_unlink", "NULL argument");
    int result = route_to(&provider, name, reterr);
    if (result < 0) return result;
    if (provider->ops->unlink) return provider->ops->unlink(provider, name, reterr);
    return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_unlink", "%s has no names: open posix", provider->ops->name);
}

static int share(const shmp_shmem *of, unsigned flags, shmp_shmem **ret_shmem, shmp_error *reterr) {
    shmp_shmem *shmem = shmp__os_allocate(sizeof *shmem);
    if (!shmem) return shmp__fail(reterr, SHMP_ENOMEM, "malloc", "%zu bytes", sizeof *shmem);
    *shmem = *of;
    shmem->flags = flags;
    shmem->creator = shmp__process_mark(of->mapping->provider);
    shmp__atomic_add(&of->mapping->open, 1);
    shmp__atomic_add(&of->mapping->held, 1);
    *ret_shmem = shmem;
    return 0;
}

int shmp_clone(const shmp_shmem *of, unsigned flags, shmp_shmem **ret_shmem, shmp_error *reterr) {
    if (!of || !ret_shmem) return shmp__fail(reterr, SHMP_EINVAL, "shmp_clone", "NULL argument");
    int result = check_flags(flags, CLONE_FLAGS, "shmp_clone", reterr);
    if (result < 0) return result;
    shmp_provider *provider = of->mapping->provider;
    flags |= of->flags & SHMP_READ_ONLY; /* rights are not regained */
    if (flags & SHMP_INHERIT && !provider->ops->persist)
        return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_clone", "flags %#x: %s cannot do that", SHMP_INHERIT,
                          provider->ops->name);
    if (flags == (of->flags & SHMP_READ_ONLY) || !provider->ops->clone) return share(of, flags, ret_shmem, reterr);
    shmp_shmem *shmem = new_mapping(provider, of->size, flags, reterr);
    if (!shmem) return -SHMP_ENOMEM;
    return finish(shmem, provider->ops->clone(of->mapping, shmem->mapping, reterr), ret_shmem, reterr);
}

int shmp__keep(const shmp_shmem *of, shmp_shmem **ret_shmem, shmp_error *reterr) {
    int result = share(of, of->flags & SHMP_READ_ONLY, ret_shmem, reterr);
    if (result < 0) return result;
    (*ret_shmem)->flags |= SHMP__KEEPS;
    shmp__atomic_add(&of->mapping->kept, 2);
    return 0;
}

/* ---- Closing: all steps are taken, and the first error is returned ---- */

/* Whether closing this handle is what destroys the segment. */
static int is_last_owner(shmp_shmem *shmem) {
    shmp__atomic_uint *kept = &shmem->mapping->kept;
    if (!shmp__is_made_here(shmem)) return 0;
    if (shmem->flags & SHMP__KEEPS) return shmp__atomic_sub(kept, 2) == 3;
    return shmem->flags & SHMP_OWNER && shmp__atomic_add(kept, 1) == 0;
}

static int destroy(shmp_shmem *shmem, shmp_error *reterr) {
    const shmp__ops *ops = ops_of(shmem);
    return is_last_owner(shmem) && ops->destroy ? ops->destroy(shmem->mapping, reterr) : 0;
}

static int close_mapping(shmp__mapping *mapping, shmp_error *reterr) {
    const shmp__ops *ops = mapping->provider->ops;
    return shmp__atomic_sub(&mapping->open, 1) == 1 && ops->close ? ops->close(mapping, reterr) : 0;
}

static int unmap(shmp__mapping *mapping, shmp_error *reterr) {
    int result = mapping->data ? mapping->provider->ops->unmap(mapping, reterr) : 0;
    mapping->data = NULL;
    return result;
}

int shmp__disown(shmp_shmem *shmem, shmp_error *reterr) {
    int result = destroy(shmem, reterr);
    shmem->flags &= ~(unsigned)SHMP_OWNER;
    return result;
}

int shmp__retire(shmp_shmem *shmem, shmp_error *reterr) {
    int result = shmp__disown(shmem, reterr);
    shmem->flags |= SHMP__RETIRED;
    int failed = close_mapping(shmem->mapping, result < 0 ? NULL : reterr);
    return result < 0 ? result : failed;
}

int shmp_close(shmp_shmem *shmem, shmp_error *reterr) {
    if (!shmem) return 0;
    shmp__mapping *mapping = shmem->mapping;
    int is_clone = shmem != &mapping->first, is_open = !(shmem->flags & SHMP__RETIRED);
    int result = is_open ? destroy(shmem, reterr) : 0, failed = 0;
    if (shmp__atomic_load(&mapping->held) == 1)
        failed = unmap(mapping, result < 0 ? NULL : reterr); /* nobody shares it */
    if (result == 0) result = failed;
    failed = is_open ? close_mapping(mapping, result < 0 ? NULL : reterr) : 0;
    if (result == 0) result = failed;
    if (shmp__atomic_sub(&mapping->held, 1) == 1) {
        failed = unmap(mapping, result < 0 ? NULL : reterr);
        if (result == 0) result = failed;
        shmp_provider_close(mapping->provider);
        free(mapping);
    }
    if (is_clone) free(shmem);
    return result;
}

int shmp__is_made_here(const shmp_shmem *shmem) {
    const shmp_provider *provider = shmem->mapping->provider;
    return shmem->creator == (provider->mark ? shmp__atomic_load(provider->mark) : (unsigned)shmp__os_pid());
}

int shmp__is_owner(const shmp_shmem *shmem) { return shmem->flags & SHMP_OWNER && shmp__is_made_here(shmem); }

void *shmp_data(const shmp_shmem *shmem) { return shmem->data; }
size_t shmp_size(const shmp_shmem *shmem) { return shmem->size; }
const char *shmp_backend(const shmp_shmem *shmem) { return shmp__meant(shmem->mapping->provider)->ops->name; }

int shmp_fileno(const shmp_shmem *shmem) {
    return ops_of(shmem)->fileno ? (ops_of(shmem)->fileno)(shmem->mapping) : -1;
}

unsigned shmp_flags(const shmp_shmem *shmem) {
    return (shmem->flags & SHMP_READ_ONLY) | (shmp__is_owner(shmem) ? SHMP_OWNER : 0u);
}

int shmp_describe(const shmp_shmem *shmem, shmp_description *ret_description, shmp_error *reterr) {
    if (!shmem || !ret_description) return shmp__fail(reterr, SHMP_EINVAL, "shmp_describe", "NULL argument");
    shmp_description description = {.size = shmem->size};
    int result = ops_of(shmem)->describe(shmem->mapping, description.id, reterr);
    if (result == 0) *ret_description = description;
    return result;
}

int shmp_locate(const shmp_shmem *shmem, shmp_description *ret_description, shmp_error *reterr) {
    if (!shmem || !ret_description) return shmp__fail(reterr, SHMP_EINVAL, "shmp_locate", "NULL argument");
    if (!ops_of(shmem)->locate)
        return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_locate", "%s segments are no descriptors of /proc",
                          ops_of(shmem)->name);
    shmp_description description = {.size = shmem->size};
    int result = ops_of(shmem)->locate(shmem->mapping, description.id, reterr);
    if (result == 0) *ret_description = description;
    return result;
}

int shmp_open_fd(shmp_provider *provider, const char *id, unsigned flags, int *ret_fd, shmp_error *reterr) {
    char copy[SHMP__ID_SIZE];
    if (!provider || !id || !ret_fd) return shmp__fail(reterr, SHMP_EINVAL, "shmp_open_fd", "NULL argument");
    int result = check_flags(flags, SHMP_READ_ONLY | SHMP_ANY_USER, "shmp_open_fd", reterr);
    if (result == 0) result = shmp__copy_id(copy, id, strlen(id), reterr);
    if (result < 0) return result;
    provider = route(provider, NULL, NULL);
    if (!provider->ops->open_fd)
        return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_open_fd", "%s segments are no descriptors of /proc",
                          provider->ops->name);
    const shmp__mapping asked = {.provider = provider, .flags = flags};
    result = provider->ops->open_fd(&asked, copy, reterr);
    if (result < 0) return result;
    *ret_fd = result;
    return 0;
}

int shmp_persist(shmp_shmem *shmem, shmp_error *reterr) {
    if (!shmem) return shmp__fail(reterr, SHMP_EINVAL, "shmp_persist", "NULL argument");
    if (ops_of(shmem)->persist) return ops_of(shmem)->persist(shmem->mapping, reterr);
    return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_persist", "exec ends a segment of %s: open memfd or posix",
                      ops_of(shmem)->name);
}

int shmp_users(const shmp_shmem *shmem, shmp_user_visitor visit, void *context, shmp_error *reterr) {
    if (!shmem || !visit) return shmp__fail(reterr, SHMP_EINVAL, "shmp_users", "NULL argument");
    if (ops_of(shmem)->users && !shmem->data)
        return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_users", "it is not mapped (SHMP_UNMAPPED)");
    if (!ops_of(shmem)->users)
        return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_users", "this system does not tell who maps what");
    return ops_of(shmem)->users(shmem->mapping, visit, context, reterr);
}
