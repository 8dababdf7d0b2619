/* rc: any provider, made ready for fork. Unix.
 *
 * Lifetime, ids and all that its segments can do are those of the inner provider; clones share a mapping and are
 * counted, as everywhere in this library. What it adds is the hand-shake of the Rust crate's RcShMemProvider: where the
 * inner provider has to do something at a fork, parent and child wait for each other, so that the parent does not go on
 * before the child holds what it inherited. A child that ends or says nothing is not waited for longer than a time. */
#include "os/platform.h"
#if SHMP_HAVE_UNIX
#include "backend/wrap.h"
#include "os/os_service.h"

#include <stdlib.h>
#include <string.h>

enum { PATIENCE = 5000 /* milliseconds */ };

typedef struct rc_provider {
    shmp_provider base;
    shmp__turn turn;
    int parent, child; /* sockets from one to the other, while a fork is prepared; -1: none */
} rc_provider;

static rc_provider *rc(shmp_provider *provider) { return (rc_provider *)provider; }

static int rc_open(shmp_provider *provider, const shmp_provider_options *options, shmp_error *reterr) {
    (void)options;
    rc(provider)->parent = rc(provider)->child = -1;
    return provider->inner ? 0 : shmp_provider_open("std", NULL, &provider->inner, reterr);
}

static void close_end(int *end) {
    if (*end >= 0) (void)shmp__os_close(*end);
    *end = -1;
}

static void rc_end(shmp_provider *provider) {
    close_end(&rc(provider)->parent);
    close_end(&rc(provider)->child);
}

/* ---- Fork ---- */

static int needs_hands(const shmp_provider *inner) { return !!shmp__meant(inner)->ops->post_fork; }

static int rc_pre_fork(shmp_provider *provider, shmp_error *reterr) {
    rc_provider *self = rc(provider);
    int result = shmp__turn_begin_fork(provider, &self->turn, PATIENCE, reterr), ends[2];
    if (result <= 0) return result;
    result = 0;
    if (needs_hands(provider->inner)) {
        rc_end(provider); /* of a parent that has not called post_fork for this process */
        result = shmp__os_socket_pair(ends);
        if (result < 0) {
            shmp__fail_os(reterr, result, "socketpair", "for the hand-shake of parent and child");
            result = -SHMP_EOS;
        } else {
            self->parent = ends[0];
            self->child = ends[1];
        }
    }
    if (result == 0) result = shmp_pre_fork(provider->inner, reterr);
    if (result == 0) return 0;
    rc_end(provider);
    shmp__turn_undo_fork(&self->turn);
    return result;
}

static const char greeting[4]; /* zeros, as the Rust crate's */

static void greet(int end) { (void)shmp__os_send(end, greeting, sizeof greeting, -1); }

/* 0; -ETIMEDOUT: the other side has said nothing, and lives. */
static int await(int end) {
    const long long until = shmp__os_ticks() + PATIENCE;
    size_t room = sizeof greeting;
    while (room > 0) {
        char bytes[sizeof greeting];
        int got = shmp__os_receive(end, bytes, room, NULL);
        if (got > 0) room -= (size_t)got;
        if (got > 0) continue;
        if (got != -EAGAIN) return 0; /* it has ended */
        long long left = until - shmp__os_ticks();
        struct pollfd polled = {.fd = end, .events = POLLIN};
        if (left <= 0 || shmp__os_poll(&polled, 1, left) < 0) return -ETIMEDOUT;
    }
    return 0;
}

static int in_parent(rc_provider *self, shmp_error *reterr) {
    close_end(&self->child);
    int result = shmp_post_fork(self->base.inner, 0, reterr);
    if (self->parent < 0) return result;
    greet(self->parent);
    int failed = await(self->parent);
    close_end(&self->parent);
    if (result < 0 || failed == 0) return result;
    return shmp__fail_os(reterr, failed, "shmp_post_fork",
                         "the child has not called shmp_post_fork for %d ms: it will hold nothing of what it inherited",
                         PATIENCE);
}

static int in_child(rc_provider *self, shmp_error *reterr) {
    close_end(&self->parent);
    if (self->child >= 0) (void)await(self->child); /* what is waited for is the service, if it runs in the parent */
    int result = shmp_post_fork(self->base.inner, 1, reterr);
    if (self->child >= 0) greet(self->child);
    close_end(&self->child);
    return result;
}

static int rc_post_fork(shmp_provider *provider, int is_child, shmp_error *reterr) {
    rc_provider *self = rc(provider);
    int result = shmp__turn_after_fork(provider, &self->turn, is_child, PATIENCE, reterr);
    if (result <= 0) return result;
    result = is_child ? in_child(self, reterr) : in_parent(self, reterr);
    shmp__turn_end_fork(&self->turn);
    return result;
}

/* ---- The inner provider's segments ---- */

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
    .provider_size = sizeof(rc_provider),
    .mapping_size = sizeof(shmp__wrapped),
    .open = rc_open,
    .end = rc_end,
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
