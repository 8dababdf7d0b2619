#include "os/platform.h"
#if SHMP_HAVE_UNIX
#include "service/registry.h"
#include "os/os_unix.h"

#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    FEWEST_BUCKETS = 64,
    MOST_REFERENCES = 1 << 20 /* of all holders: 64 MB, and the most steps that a request can take */
};

struct shmp__reference {
    shmp__holder *holder;
    shmp__segment *segment;
    size_t count;
    shmp__reference *next, **at;                       /* of the holder's; what points to this one */
    shmp__reference *next_of_segment, **at_of_segment; /* of the segment's */
};

struct shmp__segment {
    int number, fd;
    shmp_shmem *shmem;
    size_t size, count;     /* count: of references, by all */
    shmp__reference *first; /* one for each holder */
    shmp__segment *next_in_bucket;
    long long due; /* when it goes, as it lingers; 0: it does not */
    shmp__segment *sooner, *later;
};

/* What a client held at its PreFork, until its child asks for it. */
struct shmp__announced {
    shmp__holder held;
    int client;
    shmp__holder *by; /* NULL: it has left */
    long long due;
    shmp__announced *sooner, *later;
};

/* ---- Segments by number ---- */

static shmp__segment **bucket_of(const shmp__registry *registry, int number) {
    return &registry->buckets[(size_t)number & (registry->room - 1)];
}

static shmp__segment *find_segment(const shmp__registry *registry, int number) {
    shmp__segment *found = *bucket_of(registry, number);
    while (found && found->number != number) found = found->next_in_bucket;
    return found;
}

static void put_segment(const shmp__registry *registry, shmp__segment *segment) {
    shmp__segment **bucket = bucket_of(registry, segment->number);
    segment->next_in_bucket = *bucket;
    *bucket = segment;
}

/* Where memory is short, it stays as large as it is, and is slower. */
static void resize(shmp__registry *registry, size_t room) {
    const shmp__registry old = *registry;
    shmp__segment **buckets = shmp__os_allocate(room * sizeof(shmp__segment *));
    if (!buckets) return;
    registry->buckets = buckets;
    registry->room = room;
    for (size_t i = 0; i < old.room; i++)
        for (shmp__segment *segment = old.buckets[i], *next; segment; segment = next) {
            next = segment->next_in_bucket;
            put_segment(registry, segment);
        }
    free(old.buckets);
}

/* Whether nobody but this user can open it anew, with more rights than he was given. */
static int is_private(int fd) {
    shmp__os_file file;
    return shmp__os_stat(fd, &file) == 0 && !(file.is_regular && file.mode & 077);
}

static int make_segment(shmp__registry *registry, size_t size, shmp__segment **ret_segment) {
    shmp__segment *segment = shmp__os_allocate(sizeof *segment);
    if (!segment) return -SHMP_ENOMEM;
    int result = shmp_create(registry->inner, size, SHMP_UNMAPPED, &segment->shmem, NULL);
    if (result == 0) {
        segment->fd = shmp_fileno(segment->shmem);
        if (!is_private(segment->fd)) {
            (void)shmp_close(segment->shmem, NULL);
            result = -SHMP_EOS;
        }
    }
    if (result < 0) {
        free(segment);
        return result;
    }
    segment->number = ++registry->last_segment;
    segment->size = size;
    if (registry->segments >= registry->room) resize(registry, 2 * registry->room);
    put_segment(registry, segment);
    registry->segments++;
    registry->bytes += size;
    *ret_segment = segment;
    return 0;
}

static void end_segment(shmp__registry *registry, shmp__segment *segment) {
    shmp__segment **at = bucket_of(registry, segment->number);
    while (*at != segment) at = &(*at)->next_in_bucket;
    *at = segment->next_in_bucket;
    registry->segments--;
    registry->bytes -= segment->size;
    (void)shmp_close(segment->shmem, NULL);
    free(segment);
    if (registry->room > FEWEST_BUCKETS && registry->segments < registry->room / 8)
        resize(registry, registry->room / 2);
}

/* ---- Lingering ---- */

static void stop_lingering(shmp__registry *registry, shmp__segment *segment) {
    *(segment->sooner ? &segment->sooner->later : &registry->lingers_first) = segment->later;
    *(segment->later ? &segment->later->sooner : &registry->lingers_last) = segment->sooner;
    registry->lingering--;
    registry->lingering_bytes -= segment->size;
    segment->due = 0;
}

/* The one that would go next. */
static void end_lingering(shmp__registry *registry) {
    shmp__segment *segment = registry->lingers_first;
    stop_lingering(registry, segment);
    end_segment(registry, segment);
}

/* Nobody holds it any more. What lingers is limited as if a client held it. */
static void let_linger(shmp__registry *registry, shmp__segment *segment, long long now) {
    segment->due = now + registry->linger_ms;
    segment->later = NULL;
    segment->sooner = registry->lingers_last;
    *(segment->sooner ? &segment->sooner->later : &registry->lingers_first) = segment;
    registry->lingers_last = segment;
    registry->lingering++;
    registry->lingering_bytes += segment->size;
    while (registry->lingering > registry->max_segments || registry->lingering_bytes > registry->max_bytes)
        end_lingering(registry);
}

/* ---- References ---- */

static shmp__reference *find_reference(const shmp__segment *segment, const shmp__holder *holder) {
    shmp__reference *found = segment->first;
    while (found && found->holder != holder) found = found->next_of_segment;
    return found;
}

static void give_to(shmp__reference *reference, shmp__holder *holder) {
    reference->holder = holder;
    reference->next = holder->first;
    reference->at = &holder->first;
    if (reference->next) reference->next->at = &reference->next;
    holder->first = reference;
    holder->bytes += reference->segment->size;
    holder->references += reference->count;
}

static void take_from_holder(shmp__reference *reference) {
    *reference->at = reference->next;
    if (reference->next) reference->next->at = reference->at;
    reference->holder->bytes -= reference->segment->size;
    reference->holder->references -= reference->count;
}

static int add_reference(shmp__registry *registry, shmp__holder *holder, shmp__segment *segment, size_t count) {
    if (registry->references >= MOST_REFERENCES) return -SHMP_ESERVICE;
    shmp__reference *reference = shmp__os_allocate(sizeof *reference);
    if (!reference) return -SHMP_ENOMEM;
    if (segment->due) stop_lingering(registry, segment);
    reference->segment = segment;
    reference->count = count;
    reference->next_of_segment = segment->first;
    reference->at_of_segment = &segment->first;
    if (reference->next_of_segment) reference->next_of_segment->at_of_segment = &reference->next_of_segment;
    segment->first = reference;
    segment->count += count;
    registry->references++;
    give_to(reference, holder);
    return 0;
}

/* Both of the lists; the segment's count is the caller's. */
static void end_reference(shmp__registry *registry, shmp__reference *reference) {
    take_from_holder(reference);
    *reference->at_of_segment = reference->next_of_segment;
    if (reference->next_of_segment) reference->next_of_segment->at_of_segment = reference->at_of_segment;
    registry->references--;
    free(reference);
}

static void lower_count(shmp__registry *registry, shmp__segment *segment, size_t by, long long now) {
    segment->count -= by;
    if (segment->count > 0) return;
    if (registry->linger_ms > 0)
        let_linger(registry, segment, now);
    else
        end_segment(registry, segment);
}

/* One more of a segment; the limits are the caller's. */
static int hold(shmp__registry *registry, shmp__holder *holder, shmp__segment *segment) {
    shmp__reference *reference = find_reference(segment, holder);
    if (!reference) return add_reference(registry, holder, segment, 1);
    reference->count++;
    holder->references++;
    segment->count++;
    return 0;
}

int shmp__registry_release(shmp__registry *registry, shmp__holder *holder, int number, long long now) {
    shmp__segment *segment = find_segment(registry, number);
    shmp__reference *reference = segment ? find_reference(segment, holder) : NULL;
    if (!reference) return 0;
    int before = segment->count > INT_MAX ? INT_MAX : (int)segment->count;
    if (reference->count == 1) {
        end_reference(registry, reference);
    } else {
        reference->count--;
        holder->references--;
    }
    lower_count(registry, segment, 1, now);
    return before;
}

static void release_all(shmp__registry *registry, shmp__holder *holder, long long now) {
    while (holder->first) {
        shmp__segment *segment = holder->first->segment;
        size_t count = holder->first->count;
        end_reference(registry, holder->first);
        lower_count(registry, segment, count, now);
    }
}

/* ---- Across a fork ---- */

static void end_announced(shmp__registry *registry, shmp__announced *announced, long long now) {
    *(announced->sooner ? &announced->sooner->later : &registry->announced_first) = announced->later;
    *(announced->later ? &announced->later->sooner : &registry->announced_last) = announced->sooner;
    registry->announced--;
    if (announced->by) announced->by->announced = NULL;
    release_all(registry, &announced->held, now);
    free(announced);
}

/* Where living clients have as many as there may be, each has one: and then nobody needs another. */
static void make_place(shmp__registry *registry, long long now) {
    shmp__announced *oldest = registry->announced_first;
    if (registry->announced < registry->max_announced) return;
    while (oldest && oldest->by) oldest = oldest->later;
    if (oldest) end_announced(registry, oldest, now);
}

static int announce(shmp__registry *registry, shmp__holder *asker, long long now) {
    shmp__announced *announced = shmp__os_allocate(sizeof *announced);
    if (!announced) return -SHMP_ENOMEM;
    if (asker->announced) end_announced(registry, asker->announced, now);
    make_place(registry, now);
    int result = 0;
    for (shmp__reference *at = asker->first; at && result == 0; at = at->next)
        result = add_reference(registry, &announced->held, at->segment, at->count);
    if (result < 0) {
        release_all(registry, &announced->held, now);
        free(announced);
        return result;
    }
    announced->client = asker->number;
    announced->by = asker;
    announced->due = now + registry->fork_timeout_ms;
    announced->sooner = registry->announced_last;
    *(announced->sooner ? &announced->sooner->later : &registry->announced_first) = announced;
    registry->announced_last = announced;
    registry->announced++;
    asker->announced = announced;
    return 0;
}

/* Gives the child what its parent announced. */
static int inherit(shmp__registry *registry, shmp__holder *asker, int parent, long long now) {
    shmp__announced *announced = registry->announced_first;
    while (announced && announced->client != parent) announced = announced->later;
    if (!announced) return -SHMP_ENOTFOUND;
    if (asker->references + announced->held.references > registry->max_segments) return -SHMP_ESERVICE;
    for (shmp__reference *reference = announced->held.first, *next; reference; reference = next) {
        next = reference->next;
        shmp__reference *own = asker->first ? find_reference(reference->segment, asker) : NULL;
        if (own) {
            own->count += reference->count;
            asker->references += reference->count;
            end_reference(registry, reference);
        } else {
            take_from_holder(reference);
            give_to(reference, asker);
        }
    }
    end_announced(registry, announced, now);
    return 0;
}

/* ---- Requests ---- */

static int number_of(shmp__registry *registry, shmp__holder *holder) {
    if (holder->number == 0 && registry->last_client < INT_MAX) holder->number = ++registry->last_client;
    return holder->number ? holder->number : -SHMP_ESERVICE;
}

static int is_allowed(const shmp__registry *registry, const shmp__holder *holder, unsigned long long bytes) {
    return holder->references < registry->max_segments && bytes <= registry->max_bytes &&
           holder->bytes <= registry->max_bytes - bytes;
}

static int new_map(shmp__registry *registry, shmp__holder *asker, uint64_t size, int *ret_fd) {
    shmp__segment *segment;
    if (size > PTRDIFF_MAX) return -SHMP_EOVERFLOW;
    if (!is_allowed(registry, asker, size) || registry->last_segment == INT_MAX) return -SHMP_ESERVICE;
    int result = make_segment(registry, (size_t)size, &segment);
    while (result == -SHMP_EOS && registry->lingers_first) { /* perhaps of too many open files */
        end_lingering(registry);
        result = make_segment(registry, (size_t)size, &segment);
    }
    if (result < 0) return result;
    result = hold(registry, asker, segment);
    if (result < 0) {
        end_segment(registry, segment);
        return result;
    }
    *ret_fd = segment->fd;
    return segment->number;
}

static int existing_map(shmp__registry *registry, shmp__holder *asker, const char wire_id[SHMP__WIRE_ID_SIZE],
                        int *ret_fd) {
    char id[SHMP__WIRE_ID_SIZE + 1] = "";
    memcpy(id, wire_id, SHMP__WIRE_ID_SIZE);
    int number = shmp__decimal_id(id);
    if (number < 0) return -SHMP_EID;
    shmp__segment *segment = find_segment(registry, number);
    if (!segment) return -SHMP_ENOTFOUND;
    if (!is_allowed(registry, asker, find_reference(segment, asker) ? 0 : segment->size)) return -SHMP_ESERVICE;
    int result = hold(registry, asker, segment);
    if (result < 0) return result;
    *ret_fd = segment->fd;
    return segment->number;
}

int shmp__registry_answer(shmp__registry *registry, shmp__holder *asker, const shmp__request *request, long long now,
                          int *ret_fd) {
    int result;
    *ret_fd = -1;
    switch (request->kind) {
    case SHMP__NEW_MAP: return new_map(registry, asker, request->size, ret_fd);
    case SHMP__EXISTING_MAP: return existing_map(registry, asker, request->id, ret_fd);
    case SHMP__DEREGISTER: return shmp__registry_release(registry, asker, request->number, now);
    case SHMP__HELLO: return number_of(registry, asker);
    case SHMP__PRE_FORK:
        result = number_of(registry, asker);
        if (result > 0) result = announce(registry, asker, now);
        return result < 0 ? result : asker->number;
    case SHMP__POST_FORK_CHILD_HELLO:
        result = number_of(registry, asker);
        if (result > 0) result = inherit(registry, asker, request->number, now);
        return result < 0 ? result : asker->number;
    case SHMP__EXIT: break;
    }
    return -SHMP_EUNSUPPORTED;
}

/* ---- The whole ---- */

int shmp__registry_open(shmp__registry *registry) {
    registry->buckets = shmp__os_allocate(FEWEST_BUCKETS * sizeof(shmp__segment *));
    if (!registry->buckets) return -SHMP_ENOMEM;
    registry->room = FEWEST_BUCKETS;
    return 0;
}

void shmp__registry_leave(shmp__registry *registry, shmp__holder *holder, long long now) {
    if (holder->announced) holder->announced->by = NULL;
    holder->announced = NULL;
    release_all(registry, holder, now);
}

long long shmp__registry_expire(shmp__registry *registry, long long now) {
    while (registry->lingers_first && registry->lingers_first->due <= now) end_lingering(registry);
    while (registry->announced_first && registry->announced_first->due <= now)
        end_announced(registry, registry->announced_first, now);
    long long lingers = registry->lingers_first ? registry->lingers_first->due : LLONG_MAX;
    long long announced = registry->announced_first ? registry->announced_first->due : LLONG_MAX;
    long long due = lingers < announced ? lingers : announced;
    return due == LLONG_MAX ? -1 : due;
}

/* Its holders have left. */
void shmp__registry_close(shmp__registry *registry) {
    registry->linger_ms = 0;
    while (registry->announced_first) end_announced(registry, registry->announced_first, 0);
    while (registry->lingers_first) end_lingering(registry);
    free(registry->buckets);
    registry->buckets = NULL;
    registry->room = 0;
}

#endif
