/* The walk through posix names, which lists them or removes what killed processes left.
 *
 * Only names of the exact shape that this library makes are looked at. The owner of a name holds a shared lock on it,
 * taken before it has a size: a name with a size that can be locked alone lost its owner. One without a size may be
 * between the two calls, and is a leftover after a minute. */
#include "os/platform.h"
#if SHMP_HAVE_POSIX
#include "backend/posix_sweep.h"
#include "backend/unix.h"

#include <stdio.h>
#include <string.h>

static const char letters[] = "abcdefghijklmnopqrstuvwxyz234567";
enum { PREFIX = sizeof SHMP__POSIX_PREFIX - 1, RANDOM_LETTERS = 13 /* of 5 bits each */, STILLBORN_SECONDS = 60 };

int shmp__posix_random_name(char ret_name[SHMP__ID_SIZE], shmp_error *reterr) {
    memcpy(ret_name, SHMP__POSIX_PREFIX, PREFIX);
    return shmp__random_letters(ret_name + PREFIX, RANDOM_LETTERS, letters, reterr);
}

int shmp__posix_is_random_name(const char *name) {
    return strncmp(name, SHMP__POSIX_PREFIX, PREFIX) == 0 && strlen(name) == PREFIX + RANDOM_LETTERS &&
           strspn(name + PREFIX, letters) == RANDOM_LETTERS;
}

/* One walk; `visit` may be NULL. */
typedef struct sweep_state {
    shmp_visitor visit;
    void *context;
    enum { LIST, REAP, DRY_RUN, ON_OPEN } purpose;
    int failure; /* ended the walk */
    shmp_error *reterr;
} sweep_state;

/* Ends the walk. */
static int give_up(sweep_state *sweep, int error, const char *call, const char *name) {
    sweep->failure = shmp__fail_os(sweep->reterr, error, call, "\"%s\"", name);
    return -1;
}

/* The name is open as `fd`. 1: it is to be visited; 0: it is not; negative: the walk ends. */
static int judge(sweep_state *sweep, int fd, const char *name, shmp_listed *ret_segment) {
    shmp__os_file file;
    int lock = shmp__os_lock_alone(fd);
    if (lock < 0 && lock != -EWOULDBLOCK && sweep->purpose != LIST) return give_up(sweep, lock, "flock", name);
    int result = shmp__os_stat(fd, &file);
    if (result < 0) return give_up(sweep, result, "fstat", name);
    if (!file.is_regular || file.links == 0) return 0;
    int is_old = sweep->purpose != ON_OPEN && shmp__os_now() - file.changed > STILLBORN_SECONDS;
    int is_leftover = lock == 0 && (file.size > 0 || is_old);
    if (!is_leftover && sweep->purpose != LIST) return 0;
    if (sweep->purpose == REAP || sweep->purpose == ON_OPEN) {
        result = shmp__os_shm_unlink(name);
        /* gone, or another user's, who may have put a folder there */
        if (result == -ENOENT || result == -EACCES || result == -EPERM || result == -EISDIR) return 0;
        if (result < 0) return give_up(sweep, result, "shm_unlink", name);
    }
    ret_segment->size = file.size;
    ret_segment->user = (long long)file.user;
    ret_segment->holder = lock == 0 ? 0 : shmp__os_lock_owner(&file); /* not this lock of ours */
    ret_segment->is_alive = lock != 0;
    return sweep->visit != NULL;
}

static int sweep_name(void *context, const char *entry) {
    sweep_state *sweep = context;
    shmp_listed segment = {.struct_size = sizeof segment, .provider = "posix"};
    if ((size_t)snprintf(segment.id, sizeof segment.id, "/%s", entry) >= sizeof segment.id ||
        !shmp__posix_is_random_name(segment.id))
        return 0;
    int fd = shmp__os_shm_open(segment.id, 0, 1);
    if (shmp__os_is_shortage(fd)) return give_up(context, fd, "shm_open", segment.id);
    if (fd < 0) return 0; /* gone, another user's, or no file */
    int result = judge(sweep, fd, segment.id, &segment);
    (void)shmp__os_close(fd); /* and the lock with it, before a visitor takes his time */
    return result == 1 ? sweep->visit(sweep->context, &segment) : result;
}

static int walk(sweep_state *sweep) {
    int result = shmp__os_each_shm_name(sweep_name, sweep);
    if (sweep->failure) return sweep->failure;
    if (result == -EOPNOTSUPP)
        return shmp__fail(sweep->reterr, SHMP_EUNSUPPORTED, "shmp_list", "this system does not list posix names");
    return result < 0
               ? shmp__fail_os(sweep->reterr, result, shmp__os_shm_place, "the names in \"%s\"", shmp__os_shm_place)
               : result;
}

int shmp__posix_list(shmp_provider *provider, shmp_visitor visit, void *context, shmp_error *reterr) {
    (void)provider;
    return walk(&(sweep_state){.visit = visit, .context = context, .purpose = LIST, .reterr = reterr});
}

int shmp__posix_reap(shmp_provider *provider, unsigned flags, shmp_visitor visit, void *context, shmp_error *reterr) {
    (void)provider;
    return walk(&(sweep_state){
        .visit = visit, .context = context, .purpose = flags & SHMP_DRY_RUN ? DRY_RUN : REAP, .reterr = reterr});
}

void shmp__posix_reap_quietly(void) { (void)walk(&(sweep_state){.purpose = ON_OPEN}); }

#endif
