#include "os/platform.h"
#if SHMP_HAVE_UNIX
#include "backend/turn.h"
#include "os/os_unix.h"

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
