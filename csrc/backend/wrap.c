#include "os/platform.h"
#if SHMP_HAVE_UNIX
#include "backend/wrap.h"
#include "os/os_unix.h"

#include <string.h>

/* ---- Mappings ---- */

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

/* ---- Turns ---- */

static int try_to_take(shmp__turn *turn, unsigned mark) {
    unsigned holder = 0;
    if (shmp__atomic_swap_if(&turn->holder, &holder, mark)) return 1;
    return holder != mark && shmp__atomic_swap_if(&turn->holder, &holder, mark); /* a thread's of a parent */
}

static void set_holder(shmp__turn *turn, unsigned mark) {
    unsigned now = shmp__atomic_load(&turn->holder);
    while (!shmp__atomic_swap_if(&turn->holder, &now, mark)) continue;
}

static void set_forking(shmp__turn *turn, void *thread) {
    void *now = shmp__atomic_load_pointer(&turn->forking);
    while (!shmp__atomic_swap_pointer_if(&turn->forking, &now, thread)) continue;
}

/* Also in its forked child. */
static int is_forking(shmp__turn *turn) { return shmp__atomic_load_pointer(&turn->forking) == shmp__os_thread(); }

int shmp__turn_take(shmp_provider *provider, shmp__turn *turn, unsigned patience_ms, shmp_error *reterr) {
    enum { YIELDS = 100 };
    unsigned mark = shmp__process_mark(provider);
    if (is_forking(turn) && shmp__atomic_load(&turn->holder) == mark) return 1;
    for (unsigned tries = 0; tries < patience_ms || tries - patience_ms < YIELDS; tries++) {
        if (try_to_take(turn, mark)) {
            set_forking(turn, NULL);
            return 0;
        }
        if (tries < YIELDS)
            shmp__os_yield();
        else
            shmp__os_pause();
    }
    return shmp__fail(reterr, SHMP_ESERVICE, provider->ops->name,
                      "another thread has had the provider for %u ms: it waits for the service, or is between "
                      "shmp_pre_fork and shmp_post_fork",
                      patience_ms);
}

void shmp__turn_end(shmp__turn *turn) { set_holder(turn, 0); }

int shmp__turn_begin_fork(shmp_provider *provider, shmp__turn *turn, unsigned patience_ms, shmp_error *reterr) {
    int result = shmp__turn_take(provider, turn, patience_ms, reterr);
    if (result < 0) return result;
    turn->depth = result == 1 ? turn->depth + 1 : 1;
    set_forking(turn, shmp__os_thread());
    return result == 0;
}

static int fail_unannounced(const shmp_provider *provider, shmp_error *reterr) {
    return shmp__fail(reterr, SHMP_EINVAL, "shmp_post_fork", "%s: shmp_pre_fork was not called before",
                      provider->ops->name);
}

int shmp__turn_after_fork(shmp_provider *provider, shmp__turn *turn, int is_child, unsigned patience_ms,
                          shmp_error *reterr) {
    unsigned mark = shmp__process_mark(provider), holder = shmp__atomic_load(&turn->holder);
    if (is_forking(turn) && (is_child || holder == mark)) {
        set_holder(turn, mark);
        turn->depth--;
        return 1;
    }
    if (holder == mark && shmp__atomic_load_pointer(&turn->forking)) return 0; /* the next fork is another thread's */
    int result = shmp__turn_take(provider, turn, patience_ms, reterr);
    if (result < 0) return result;
    result = turn->depth > 0 ? 0 : fail_unannounced(provider, reterr);
    if (result == 0) turn->depth--;
    shmp__turn_end(turn);
    return result;
}

void shmp__turn_end_fork(shmp__turn *turn) {
    set_forking(turn, NULL);
    shmp__turn_end(turn);
}

void shmp__turn_undo_fork(shmp__turn *turn) {
    turn->depth--;
    shmp__turn_end_fork(turn);
}

#endif
