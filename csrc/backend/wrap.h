/* What the mechanisms share that wrap another one: mappings that hold a handle of the inner provider, and taking
 * turns, also across fork. */
#ifndef SHMP_WRAP_H
#define SHMP_WRAP_H

#include "core/core.h"

/* ---- Mappings ---- */

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

/* ---- Turns ---- */

/* A lock that is known by the process that holds it: what a forked child inherits from another thread of its parent is
 * nobody's. It is held from a pre_fork to the first post_fork; meanwhile it lets the thread that forks in. Any of these
 * calls counts more than one fork hook for one: an explicit one, and that of the language. */
typedef struct shmp__turn {
    shmp__atomic_uint holder;     /* shmp__process_mark(); 0: nobody */
    shmp__atomic_pointer forking; /* the thread between pre_fork and post_fork */
    unsigned depth;               /* of pre_forks that have had no post_fork yet */
} shmp__turn;

/* 0: it is ours, until shmp__turn_end; 1: it was this thread's, which is about to fork, already, and shall not be
 * ended. */
int shmp__turn_take(shmp_provider *provider, shmp__turn *turn, unsigned patience_ms, shmp_error *reterr);
void shmp__turn_end(shmp__turn *turn);

/* 1: there is something to do before the fork; if that fails, shmp__turn_undo_fork. 0: an earlier call did it. */
int shmp__turn_begin_fork(shmp_provider *provider, shmp__turn *turn, unsigned patience_ms, shmp_error *reterr);
void shmp__turn_undo_fork(shmp__turn *turn);

/* 1: there is something to do after the fork, and then shmp__turn_end_fork. 0: an earlier call did it. */
int shmp__turn_after_fork(shmp_provider *provider, shmp__turn *turn, int is_child, unsigned patience_ms,
                          shmp_error *reterr);
void shmp__turn_end_fork(shmp__turn *turn);

#endif
