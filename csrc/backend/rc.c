/* rc: any provider, as the Rust crate's RcShMemProvider. Unix.
 *
 * Lifetime, ids and all that its segments can do are those of the inner provider. What that crate has it for, this
 * library has everywhere: clones share a mapping and are counted, and fork is seen to by the mechanism that has to
 * (served.c). */
#include "os/platform.h"
#if SHMP_HAVE_UNIX
#include "backend/wrap.h"

#include <string.h>

static int rc_open(shmp_provider *provider, const shmp_provider_options *options, shmp_error *reterr) {
    (void)options;
    return provider->inner ? 0 : shmp_provider_open("std", NULL, &provider->inner, reterr);
}

static int rc_pre_fork(shmp_provider *provider, shmp_error *reterr) { return shmp_pre_fork(provider->inner, reterr); }

static int rc_post_fork(shmp_provider *provider, int is_child, shmp_error *reterr) {
    return shmp_post_fork(provider->inner, is_child, reterr);
}

static unsigned flags_to_create(const shmp__mapping *mapping) { return mapping->flags & ~(unsigned)SHMP_OWNER; }

static shmp_description description_of(const shmp__mapping *mapping, const char *id) {
    shmp_description description = {.size = mapping->size};
    memcpy(description.id, id, strlen(id)); /* the core has checked it */
    return description;
}

static int rc_create(shmp__mapping *mapping, shmp_error *reterr) {
    shmp_shmem *inner = NULL;
    int result = shmp_create(mapping->provider->inner, mapping->size, flags_to_create(mapping), &inner, reterr);
    return shmp__wrap_finish(mapping, result, inner);
}

static int rc_create_named(shmp__mapping *mapping, const char *name, shmp_error *reterr) {
    shmp_shmem *inner = NULL;
    int result =
        shmp_create_named(mapping->provider->inner, name, mapping->size, flags_to_create(mapping), &inner, reterr);
    if (result == 0 && !(inner->flags & SHMP_OWNER)) mapping->flags &= ~(unsigned)SHMP_OWNER; /* it was there */
    return shmp__wrap_finish(mapping, result, inner);
}

static int rc_attach(shmp__mapping *mapping, const char *id, shmp_error *reterr) {
    shmp_description description = description_of(mapping, id);
    shmp_shmem *inner = NULL;
    int result = shmp_attach(mapping->provider->inner, &description, mapping->flags, &inner, reterr);
    return shmp__wrap_finish(mapping, result, inner);
}

static int rc_attach_name(shmp__mapping *mapping, const char *name, shmp_error *reterr) {
    shmp_shmem *inner = NULL;
    int result = shmp_attach_name(mapping->provider->inner, name, mapping->size, mapping->flags, &inner, reterr);
    return shmp__wrap_finish(mapping, result, inner);
}

static int rc_attach_fd(shmp__mapping *mapping, int fd, const char *id, shmp_error *reterr) {
    shmp_description description = description_of(mapping, id);
    shmp_shmem *inner = NULL;
    int result = shmp_attach_fd(mapping->provider->inner, fd, &description, mapping->flags, &inner, reterr);
    return shmp__wrap_finish(mapping, result, inner);
}

static int rc_describe(shmp__mapping *mapping, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    shmp_description description;
    int result = shmp_describe(shmp__wrap(mapping)->inner, &description, reterr);
    if (result == 0) memcpy(ret_id, description.id, SHMP__ID_SIZE);
    return result;
}

static int rc_list(shmp_provider *provider, shmp_visitor visit, void *context, shmp_error *reterr) {
    return shmp_list(provider->inner, visit, context, reterr);
}

static int rc_unlink(shmp_provider *provider, const char *name, shmp_error *reterr) {
    return shmp_unlink(provider->inner, name, reterr);
}

static int rc_reap(shmp_provider *provider, unsigned flags, shmp_visitor visit, void *context, shmp_error *reterr) {
    return shmp_reap(provider->inner, flags, visit, context, reterr);
}

const shmp__ops shmp__rc_ops = {
    .name = "rc",
    /* what the inner one lacks it refuses itself */
    .create_flags = SHMP_RESERVE | SHMP_INHERIT | SHMP_UNMAPPED | SHMP_LINGER | SHMP_KEEP | SHMP_EXIST_OK | SHMP__MODE,
    .can = SHMP__CAN_WRAP,
    .provider_size = sizeof(shmp_provider),
    .mapping_size = sizeof(shmp__wrapped),
    .open = rc_open,
    .pre_fork = rc_pre_fork,
    .post_fork = rc_post_fork,
    .create = rc_create,
    .create_named = rc_create_named,
    .attach = rc_attach,
    .attach_name = rc_attach_name,
    .attach_fd = rc_attach_fd,
    .unlink = rc_unlink,
    .clone = shmp__wrap_clone,
    .destroy = shmp__wrap_destroy,
    .close = shmp__wrap_close,
    .unmap = shmp__wrap_unmap,
    .fileno = shmp__wrap_fileno,
    .persist = shmp__wrap_persist,
    .describe = rc_describe,
    .locate = shmp__wrap_locate,
    .open_fd = shmp__wrap_open_fd,
    .list = rc_list,
    .reap = rc_reap,
    .users = shmp__wrap_users,
    .limits = shmp__wrap_limits,
};

#endif
