/* The walk through posix names, which lists them or removes what killed processes left.
 *
 * Only names of the exact shape that this library makes are removed. The owner of a name holds a shared lock on it,
 * taken before it has a size: a name with a size that can be locked alone lost its owner. One without a size may be
 * between the two calls, and is a leftover after a minute, if nobody has it open. So is one that lingers (SHMP_LINGER),
 * from when it is first found without a holder. Names of the caller's choice bear a mark, are listed, and never removed
 * here. */
#include "os/platform.h"
#if SHMP_HAVE_POSIX
#include "backend/posix_sweep.h"
#include "backend/unix.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char letters[] = "abcdefghijklmnopqrstuvwxyz234567";
enum { PREFIX = sizeof SHMP__POSIX_PREFIX - 1, RANDOM_LETTERS = 13 /* of 5 bits each */, MINUTE = 60 /* seconds */ };

int shmp__posix_random_name(char ret_name[SHMP__ID_SIZE], shmp_error *reterr) {
    memcpy(ret_name, SHMP__POSIX_PREFIX, PREFIX);
    return shmp__random_letters(ret_name + PREFIX, RANDOM_LETTERS, letters, reterr);
}

int shmp__posix_is_random_name(const char *name) {
    return strncmp(name, SHMP__POSIX_PREFIX, PREFIX) == 0 && strlen(name) == PREFIX + RANDOM_LETTERS &&
           strspn(name + PREFIX, letters) == RANDOM_LETTERS;
}

int shmp__posix_is_name_of(const char *name, const shmp__os_file *file) {
    shmp__os_file found;
    if (file->inode == 0) return 1; /* macOS */
    int result = shmp__os_shm_look(name, &found);
    if (result < 0) return result == -ENOENT ? 0 : result;
    return found.inode == file->inode && found.device == file->device;
}

static int is_older_than_a_minute(const shmp__os_file *file) { return shmp__os_now() - file->changed > MINUTE; }

int shmp__posix_is_over(unsigned mark, const shmp__os_file *file) {
    switch (mark) {
    case SHMP__POSIX_KEPT:
    case SHMP__POSIX_LINGERS: return 0;
    case SHMP__POSIX_FOUND: return is_older_than_a_minute(file);
    default: return 1;
    }
}

typedef enum sweep_purpose { LIST, REAP, DRY_RUN, ON_OPEN } sweep_purpose;

/* One walk. */
typedef struct sweep_state {
    sweep_purpose purpose;
    shmp_listed *found; /* what is to be visited, and who may hold it */
    shmp__os_holder *holders;
    size_t count, room;
    shmp__table leased; /* LIST: inodes of files that somebody has a lease on */
    int failure;        /* ended the walk */
    shmp_error *reterr;
} sweep_state;

/* Ends the walk. */
static int give_up(sweep_state *sweep, int error, const char *call, const char *name) {
    sweep->failure = shmp__fail_os(sweep->reterr, error, call, "\"%s\"", name);
    return -1;
}

static int note(sweep_state *sweep, const char *name, const shmp__os_file *file, unsigned mark, int is_alive) {
    if (sweep->purpose == ON_OPEN) return 0;
    if (sweep->count == sweep->room) {
        size_t room = sweep->room ? 2 * sweep->room : 64;
        shmp_listed *found = shmp__os_enlarge(sweep->found, room * sizeof *found);
        if (found) sweep->found = found;
        shmp__os_holder *holders = found ? shmp__os_enlarge(sweep->holders, room * sizeof *holders) : NULL;
        if (!holders) return give_up(sweep, ENOMEM, "realloc", name);
        sweep->holders = holders;
        sweep->room = room;
    }
    shmp_listed segment = {.struct_size = sizeof segment, .provider = "posix", .command = "", .size = file->size};
    segment.user = (long long)file->user;
    segment.age = shmp__os_now() - file->changed;
    segment.is_alive = is_alive;
    segment.is_kept = mark == SHMP__POSIX_KEPT;
    segment.is_ours = 1;
    snprintf(segment.id, sizeof segment.id, "%s", name);
    sweep->found[sweep->count] = segment;
    sweep->holders[sweep->count] = (shmp__os_holder){.device = file->device, .inode = file->inode};
    sweep->count++;
    return 0;
}

int shmp__posix_set_found(int fd, const shmp__os_file *file, int is_held) {
    int result = shmp__os_mark(fd, is_held ? SHMP__POSIX_LINGERS : SHMP__POSIX_FOUND);
    return result < 0 ? result : shmp__os_chmod(fd, (unsigned)file->mode); /* which is as it was: for the time alone */
}

/* A minute begins for what lingers when it is first found without a holder, and ends when it has one again. */
static int mark_found(sweep_state *sweep, int fd, const char *name, const shmp__os_file *file, unsigned mark,
                      int is_held) {
    if (mark != (is_held ? SHMP__POSIX_FOUND : SHMP__POSIX_LINGERS)) return 0;
    int result = shmp__posix_set_found(fd, file, is_held);
    return result < 0 && result != -EPERM /* another user's */ ? give_up(sweep, result, "fchmod", name) : 0;
}

/* The name is open as `fd`: removes or notes it. */
static int judge(sweep_state *sweep, int fd, const char *name) {
    shmp__os_file file;
    int may_remove = sweep->purpose == REAP || sweep->purpose == ON_OPEN;
    int lock = shmp__os_lock_alone(fd);
    if (lock < 0 && lock != -EWOULDBLOCK && sweep->purpose != LIST) return give_up(sweep, lock, "flock", name);
    int result = shmp__os_stat(fd, &file);
    if (result < 0) return give_up(sweep, result, "fstat", name);
    if (!file.is_regular || file.links == 0) return 0;
    int is_chosen = !shmp__posix_is_random_name(name);
    unsigned mark = shmp__os_mark_of(fd);
    if (is_chosen && !mark) return 0;
    int is_old = sweep->purpose != ON_OPEN && is_older_than_a_minute(&file);
    int is_leftover = lock == 0 && !is_chosen && (file.size > 0 ? shmp__posix_is_over(mark, &file) : is_old);
    if (is_leftover && file.size == 0 && shmp__os_is_open_elsewhere(fd) == 1) return 0; /* however long that takes */
    if (may_remove && !is_leftover) return mark_found(sweep, fd, name, &file, mark, lock != 0);
    if (!is_leftover && sweep->purpose == DRY_RUN) return 0;
    if (may_remove) {
        result = shmp__os_shm_unlink(name);
        if (result == -ENOENT || result == -EACCES || result == -EPERM || result == -EISDIR)
            return 0; /* gone, another user's, or a folder by now */
        if (result < 0) return give_up(sweep, result, "shm_unlink", name);
    }
    return note(sweep, name, &file, mark, lock != 0);
}

/* Opens a name that is not of our shape, and so may be anybody's: it is looked at first. Who has a lease on it is not
 * disturbed. Negative: it is none of ours, as far as that can be told. */
static int open_foreign(const sweep_state *sweep, const char *name) {
    shmp__os_file file;
    size_t unused;
    int seen = shmp__os_shm_look_at(name);
    if (seen < 0) return seen;
    int result = shmp__os_stat(seen, &file);
    if (result == 0 && (!file.is_regular || shmp__table_get(&sweep->leased, file.inode, &unused))) result = -EINVAL;
    if (result == 0) result = shmp__os_open_seen(seen, 1);
    (void)shmp__os_close(seen);
    return result;
}

static int sweep_name(void *context, const char *entry) {
    sweep_state *sweep = context;
    char name[SHMP__ID_SIZE];
    if ((size_t)snprintf(name, sizeof name, "/%s", entry) >= sizeof name) return 0;
    int is_random = shmp__posix_is_random_name(name);
    if (!is_random && sweep->purpose != LIST) return 0;
    for (const char *at = name; *at; at++)
        if (*at <= ' ' || *at > '~') return 0; /* no id, and nothing for a terminal */
    int fd = is_random ? shmp__os_shm_open(name, 0, 1) : open_foreign(sweep, name);
    if (shmp__os_is_shortage(fd)) return give_up(sweep, fd, is_random ? "shm_open" : "open", name);
    if (fd < 0) return 0; /* gone, another user's, or no file */
    int result = judge(sweep, fd, name);
    (void)shmp__os_close(fd); /* and the lock with it */
    return result;
}

/* With no lock held, as a visitor takes his time. */
static int visit_all(sweep_state *sweep, shmp_visitor visit, void *context) {
    int result = 0;
    if (sweep->purpose == LIST && shmp__os_find_holders(sweep->holders, sweep->count) < 0)
        return shmp__fail_os(sweep->reterr, ENOMEM, "calloc", "the holders of %zu names", sweep->count);
    char command[SHMP__OS_COMMAND_ROOM] = "";
    long known = 0; /* whose command that is: one process holds many */
    for (size_t i = 0; i < sweep->count && result == 0; i++) {
        shmp_listed *segment = &sweep->found[i];
        long holder = segment->is_alive ? sweep->holders[i].pid : 0;
        if (holder != known) shmp__os_command_of(holder, command);
        segment->holder = known = holder;
        segment->command = command;
        result = visit(context, segment);
    }
    return result;
}

static int walk(sweep_purpose purpose, shmp_visitor visit, void *context, shmp_error *reterr) {
    sweep_state sweep = {.purpose = purpose, .reterr = reterr};
    int result = purpose == LIST ? shmp__os_find_leased(&sweep.leased) : 0;
    if (result < 0)
        sweep.failure = shmp__fail_os(reterr, result, "/proc/locks", "\"/proc/locks\": who has leases");
    else
        result = shmp__os_each_shm_name(sweep_name, &sweep);
    if (sweep.failure)
        result = sweep.failure;
    else if (result == -EOPNOTSUPP)
        result = shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_list", "this system does not list posix names");
    else if (result < 0)
        result = shmp__fail_os(reterr, result, shmp__os_shm_place, "the names in \"%s\"", shmp__os_shm_place);
    else if (visit)
        result = visit_all(&sweep, visit, context);
    shmp__table_free(&sweep.leased);
    free(sweep.found);
    free(sweep.holders);
    return result;
}

int shmp__posix_list(shmp_provider *provider, shmp_visitor visit, void *context, shmp_error *reterr) {
    (void)provider;
    return walk(LIST, visit, context, reterr);
}

int shmp__posix_reap(shmp_provider *provider, unsigned flags, shmp_visitor visit, void *context, shmp_error *reterr) {
    (void)provider;
    return walk(flags & SHMP_DRY_RUN ? DRY_RUN : REAP, visit, context, reterr);
}

void shmp__posix_reap_quietly(void) { (void)walk(ON_OPEN, NULL, NULL, NULL); }

#endif
