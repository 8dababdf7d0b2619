/* A provider that lets one thread in at a time, also across fork.
 *
 * The lock is known by the process that holds it: what a forked child inherits from another thread of its parent is
 * nobody's. It is held from a pre_fork to the first post_fork; meanwhile it lets the thread in that forks. More than
 * one caller may see to the same fork, such as the program itself and a hook of its language: the first call counts. */
#ifndef SHMP_TURN_H
#define SHMP_TURN_H

#include "core/core.h"

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
