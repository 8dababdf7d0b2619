/* What a service remembers: segments by number, who holds how many references on each, what was announced for children
 * that are to be forked, and what lingers. It answers requests; who asks, and how, is not its business. */
#ifndef SHMP_REGISTRY_H
#define SHMP_REGISTRY_H

#include "core/core.h"
#include "service/wire.h"

typedef struct shmp__segment shmp__segment;
typedef struct shmp__reference shmp__reference;
typedef struct shmp__announced shmp__announced;

/* A client. Zeroed it holds nothing. */
typedef struct shmp__holder {
    shmp__reference *first; /* one for each segment that it holds */
    size_t references;
    unsigned long long bytes;   /* of those segments */
    int number;                 /* by which it is known; 0: it was not asked for yet */
    shmp__announced *announced; /* by its PreFork, and still there */
} shmp__holder;

typedef struct shmp__registry {
    shmp_provider *inner;
    long long linger_ms, fork_timeout_ms;
    size_t max_segments, max_announced;
    unsigned long long max_bytes;
    shmp__segment **buckets; /* by number; `room` of them, a power of 2 */
    size_t room, segments, references;
    unsigned long long bytes;
    int last_segment, last_client;                     /* numbers, which are never given twice */
    shmp__segment *lingers_first, *lingers_last;       /* by time */
    size_t lingering;                                  /* how many, and how much */
    unsigned long long lingering_bytes;                /* ... */
    shmp__announced *announced_first, *announced_last; /* by time */
    size_t announced;
} shmp__registry;

/* Sets what was not set before: the limits and `inner`, which it does not own, are the caller's. */
int shmp__registry_open(shmp__registry *registry);
void shmp__registry_close(shmp__registry *registry);

/* Does what is asked, but for SHMP__EXIT.
 * @param now     milliseconds of some clock.
 * @param ret_fd  to be sent along, and kept open as long as the asker holds the segment; -1: none.
 * @return the number to reply; negative, it is -SHMP_E... */
int shmp__registry_answer(shmp__registry *registry, shmp__holder *asker, const shmp__request *request, long long now,
                          int *ret_fd);

/* Takes back one reference. Gives how many there were on the segment, or 0: the holder had none. */
int shmp__registry_release(shmp__registry *registry, shmp__holder *holder, int number, long long now);

/* Takes back all that the holder has. What it announced stays for the child. */
void shmp__registry_leave(shmp__registry *registry, shmp__holder *holder, long long now);

/* Drops what has had its time. Gives when there will be more to drop; -1: never. */
long long shmp__registry_expire(shmp__registry *registry, long long now);

#endif
