/* posix: shm_open, mmap. Every Unix; on Linux the segments are files in /dev/shm.
 *
 * Lifetime: until the owner closes it, which unlinks the name; who is attached keeps the memory.
 * After SIGKILL the name stays. So that a leftover can be told from a live segment, the owner
 * holds a shared lock on it for as long as its descriptor, a forked child's, or a mapping lives;
 * the kernel drops it then. Names that a caller chose never are leftovers. Only Linux can list
 * names: elsewhere a leftover stays until it is removed by name, or the machine restarts. macOS knows
 * sizes in whole pages only, and macOS and FreeBSD do not tell whether a name is still that of the file.
 * With SHMP_FD_IDS the name goes at once, and the id is the descriptor. */
#include "core/platform.h"
#if SHMP_HAVE_POSIX
#include "backend/unix.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

static const char prefix[] = "/shmp_";
enum { RANDOM_LETTERS = 13 /* of 5 bits each */, NAME_TRIES = 100, STILLBORN_SECONDS = 60 };

static int has_prefix(const char *name) { return strncmp(name, prefix, sizeof prefix - 1) == 0; }

static int is_name(const char *id) {
    return id[0] == '/' && id[1] && !strchr(id + 1, '/') && strcmp(id, "/.") != 0 && strcmp(id, "/..") != 0;
}

static int random_name(char ret_name[SHMP__ID_SIZE], shmp_error *reterr) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz234567";
    unsigned char bytes[RANDOM_LETTERS];
    /* fresh for each segment: a generator's state would repeat after fork */
    int result = shmp__os_random(bytes, sizeof bytes);
    if (result < 0) return shmp__fail_os(reterr, result, "getrandom", "%zu bytes for a name", sizeof bytes);
    char *at = ret_name + sizeof prefix - 1;
    memcpy(ret_name, prefix, sizeof prefix - 1);
    for (int i = 0; i < RANDOM_LETTERS; i++) *at++ = letters[bytes[i] & 31];
    *at = 0;
    return 0;
}

/* Gives the descriptor of a new file, its name in shmem->name. */
static int create_file(shmp_shmem *shmem, const char *name, shmp_error *reterr) {
    int fd = -EEXIST;
    if (name) {
        memcpy(shmem->name, name, SHMP__ID_SIZE);
        fd = shmp__os_shm_open(name, 1, 0);
    }
    for (int tries = 0; !name && fd == -EEXIST && tries < NAME_TRIES; tries++) {
        int result = random_name(shmem->name, reterr);
        if (result < 0) return result;
        fd = shmp__os_shm_open(shmem->name, 1, 0);
    }
    switch (fd) {
    case -EEXIST: return shmp__fail_os(reterr, fd, "shm_open", "\"%s\" is taken: take another name", shmem->name);
    case -EACCES:
    case -ENOENT:
    case -EROFS:
    case -ENOTSUP: /* NetBSD: it is no tmpfs, or not everybody's */
        return shmp__fail_os(reterr, fd, "shm_open", "\"%s\": mount a tmpfs at %s, writable for this user", shmem->name,
                             shmp__os_shm_place);
    case -ENOSPC:
        return shmp__fail_os(reterr, fd, "shm_open", "\"%s\": %s has no inode left", shmem->name, shmp__os_shm_place);
    default: return fd < 0 ? shmp__fail_os(reterr, fd, "shm_open", "\"%s\"", shmem->name) : fd;
    }
}

static int check_space(const shmp_shmem *shmem, int fd, shmp_error *reterr) {
    unsigned long long available, files;
    if (shmp__os_free_space(fd, &available, &files) < 0 || available >= shmem->size) return 0; /* some cannot say */
    return shmp__fail_os(reterr, ENOSPC, "ftruncate",
                         "%zu bytes, %s has %llu free: remount it larger (a container: --shm-size), or open memfd",
                         shmem->size, shmp__os_shm_place, available);
}

static int set_up(shmp_shmem *shmem, int fd, shmp_error *reterr) {
    int result = shmp__os_lock_shared(fd); /* before it has a size: without one nobody takes it for a leftover */
    if (result < 0 && !shmp__os_is_unsupported(result))
        return shmp__fail_os(reterr, result, "flock", "\"%s\"", shmem->name);
    result = check_space(shmem, fd, reterr);
    if (result < 0) return result;
    result = shmp__os_truncate(fd, shmem->size);
    if (result < 0) return shmp__fail_os(reterr, result, "ftruncate", "%zu bytes of \"%s\"", shmem->size, shmem->name);
    if (shmem->flags & SHMP_RESERVE) {
        result = shmp__check_memory(shmem->size, "fallocate", reterr);
        if (result < 0) return result;
        result = shmp__os_reserve(fd, shmem->size);
        if (result == -EOPNOTSUPP)
            return shmp__fail(reterr, SHMP_EUNSUPPORTED, "fallocate", "this system cannot reserve posix memory");
        if (result < 0)
            return shmp__fail_os(reterr, result, "fallocate", "%zu bytes of \"%s\": enlarge %s", shmem->size,
                                 shmem->name, shmp__os_shm_place);
    }
    if (shmem->provider->flags & SHMP_FD_IDS) {
        result = shmp__os_shm_unlink(shmem->name);
        if (result < 0) return shmp__fail_os(reterr, result, "shm_unlink", "\"%s\"", shmem->name);
        shmem->name[0] = 0;
    }
    return shmp__fd_map(shmem, fd, reterr);
}

/* The umask may have taken rights from the user too. They are given back here, where others first hear
 * of the name, and not at creation, which this would make a twentieth slower. */
static int open_to_user(const shmp_shmem *shmem, shmp_error *reterr) {
    if (!(shmem->flags & SHMP_OWNER) || !shmem->name[0]) return 0;
    int result = shmp__os_chmod(shmem->fd, 0600);
    return result < 0 && !shmp__os_is_unsupported(result)
               ? shmp__fail_os(reterr, result, "fchmod", "\"%s\"", shmem->name)
               : 0;
}

static int posix_create(shmp_shmem *shmem, const char *name, shmp_error *reterr) {
    if (name && (!is_name(name) || has_prefix(name)))
        return shmp__fail(reterr, SHMP_EID, "shmp_create_named",
                          "\"%s\": a name is '/' and up to 18 characters without '/', and does not begin with %s", name,
                          prefix);
    int fd = create_file(shmem, name, reterr);
    if (fd < 0) return fd;
    int result = set_up(shmem, fd, reterr);
    if (result == 0 && name) {
        result = open_to_user(shmem, reterr); /* others know it already */
        if (result < 0) (void)shmp__os_unmap(shmem->data, shmem->size);
    }
    if (result < 0) {
        if (shmem->name[0]) (void)shmp__os_shm_unlink(shmem->name);
        (void)shmp__os_close(fd);
    }
    return result;
}

static int posix_attach(shmp_shmem *shmem, const char *id, shmp_error *reterr) {
    int number = shmp__decimal_id(id);
    if (number >= 0) return shmp__fd_attach_number(shmem, number, reterr);
    if (!is_name(id))
        return shmp__fail(reterr, SHMP_EID, "shmp_attach", "\"%s\": a posix id is /<name>, or a descriptor", id);
    int fd = shmp__os_shm_open(id, 0, !!(shmem->flags & SHMP_READ_ONLY));
    switch (fd) {
    case -ENOENT:
        return shmp__fail(reterr, SHMP_ENOTFOUND, "shm_open", "\"%s\": its owner closed it, or has another %s", id,
                          shmp__os_shm_place);
    case -EACCES:
    case -EPERM: /* OpenBSD, to root */ return shmp__fail_os(reterr, fd, "shm_open", "\"%s\" is another user's", id);
    case -EROFS:
        return shmp__fail_os(reterr, fd, "shm_open", "\"%s\": %s is mounted read-only: attach with read_only", id,
                             shmp__os_shm_place);
    default:
        if (shmp__os_is_shortage(fd)) return shmp__fail_os(reterr, fd, "shm_open", "\"%s\"", id);
        /* EINVAL of a directory, ENXIO of a socket, ELOOP of a link, ... */
        if (fd < 0) return shmp__fail(reterr, SHMP_EID, "shm_open", "\"%s\" is no shared memory", id);
    }
    shmp__os_file file;
    int result = shmp__fd_stat(fd, &file, reterr);
    if (result == 0) result = shmp__fd_map_checked(shmem, fd, &file, id, reterr);
    if (result < 0)
        (void)shmp__os_close(fd);
    else
        memcpy(shmem->name, id, SHMP__ID_SIZE);
    return result;
}

/* Removes the owner's name. One of the caller's choice may have been removed, and made anew, by somebody
 * else: then our file has no name any more. */
static int unlink_name(const shmp_shmem *shmem, shmp_error *reterr) {
    if (!has_prefix(shmem->name)) {
        shmp__os_file ours;
        int result = shmp__fd_stat(shmem->fd, &ours, reterr);
        if (result < 0 || ours.links == 0) return result;
    }
    int failed = shmp__os_shm_unlink(shmem->name);
    return failed < 0 && failed != -ENOENT ? shmp__fail_os(reterr, failed, "shm_unlink", "\"%s\"", shmem->name) : 0;
}

static int posix_close(shmp_shmem *shmem, shmp_error *reterr) {
    int result = shmem->name[0] && shmp__is_owner(shmem) ? unlink_name(shmem, reterr) : 0;
    int closed = shmp__fd_close(shmem, result < 0 ? NULL : reterr);
    return result < 0 ? result : closed;
}

static int posix_describe(const shmp_shmem *shmem, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    int result = open_to_user(shmem, reterr);
    if (result < 0) return result;
    if (shmem->name[0])
        memcpy(ret_id, shmem->name, SHMP__ID_SIZE);
    else
        snprintf(ret_id, SHMP__ID_SIZE, "%d", shmem->fd);
    return 0;
}

/* One walk through the names; `visit` may be NULL. */
typedef struct sweep {
    shmp_visitor visit;
    void *context;
    enum { LIST, REAP, DRY_RUN, ON_OPEN } purpose;
    int failure; /* ended the walk */
    shmp_error *reterr;
} sweep_state;

/* Ends the walk. */
static int give_up(sweep_state *sweep, int error, const char *call, const char *name) {
    sweep->failure = shmp__fail_os(sweep->reterr, error, call, "\"%s\"", name);
    return 1;
}

/* The name is open as `fd`. A name with a size that can be locked alone lost its owner, who took the
 * lock before giving it the size; one without a size may be between the two. */
static int sweep_file(sweep_state *sweep, int fd, const char *name) {
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
        if (result == -ENOENT || result == -EACCES || result == -EPERM) return 0; /* gone, or another user's */
        if (result < 0) return give_up(sweep, result, "shm_unlink", name);
    }
    if (!sweep->visit) return 0;
    shmp_listed segment = {.struct_size = sizeof segment, .provider = "posix", .size = file.size};
    segment.owner = lock == 0 ? 0 : shmp__os_lock_owner(&file); /* not this lock of ours */
    segment.is_alive = lock != 0;
    snprintf(segment.id, sizeof segment.id, "%s", name);
    return sweep->visit(sweep->context, &segment);
}

static int sweep_name(void *context, const char *entry) {
    char name[SHMP__ID_SIZE];
    if ((size_t)snprintf(name, sizeof name, "/%s", entry) >= sizeof name || !has_prefix(name)) return 0;
    int fd = shmp__os_shm_open(name, 0, 1);
    if (shmp__os_is_shortage(fd)) return give_up(context, fd, "shm_open", name);
    if (fd < 0) return 0; /* gone, another user's, or no file */
    int result = sweep_file(context, fd, name);
    (void)shmp__os_close(fd);
    return result;
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

static int posix_list(shmp_provider *provider, shmp_visitor visit, void *context, shmp_error *reterr) {
    (void)provider;
    return walk(&(sweep_state){.visit = visit, .context = context, .purpose = LIST, .reterr = reterr});
}

static int posix_reap(shmp_provider *provider, unsigned flags, shmp_visitor visit, void *context, shmp_error *reterr) {
    (void)provider;
    return walk(&(sweep_state){
        .visit = visit, .context = context, .purpose = flags & SHMP_DRY_RUN ? DRY_RUN : REAP, .reterr = reterr});
}

static int posix_open(shmp_provider *provider, shmp_error *reterr) {
    (void)reterr;
    if (!(provider->flags & SHMP_KEEP_LEFTOVERS))
        (void)walk(&(sweep_state){.purpose = ON_OPEN}); /* a favour: that it could not be done is no failure */
    return 0;
}

static int posix_limits(shmp_provider *provider, shmp_limits *ret_limits, shmp_error *reterr) {
    unsigned long long files;
    shmp_shmem trial = {.provider = provider, .fd = -1};
    int fd = create_file(&trial, NULL, reterr);
    if (fd < 0) return fd;
    int result = unlink_name(&trial, reterr);
    if (result == 0) {
        int failed = shmp__os_free_space(fd, &ret_limits->bytes, &files);
        if (shmp__os_is_unsupported(failed)) { /* no file system, but memory of the kernel */
            ret_limits->bytes = files = LLONG_MAX;
            result = shmp__limit_to_memory(ret_limits, reterr);
        } else if (failed < 0) {
            result = shmp__fail_os(reterr, failed, "fstatvfs", "\"%s\"", shmp__os_shm_place);
        }
    }
    (void)shmp__os_close(fd);
    if (result < 0) return result;
    snprintf(ret_limits->advice, sizeof ret_limits->advice,
             "mount -o remount,size=2g %s; a container: start it with --shm-size=2g, or --ipc=host",
             shmp__os_shm_place);
    return shmp__fd_limit(files, &ret_limits->segments, reterr);
}

const shmp__ops shmp__posix_ops = {
    .name = "posix",
    .provider_flags = SHMP_FD_IDS,
    .create_flags = SHMP_RESERVE | SHMP_INHERIT,
    .can = SHMP__CAN_FAVOUR | SHMP__CAN_NAME,
    .open = posix_open,
    .accepts = is_name,
    .create = posix_create,
    .attach = posix_attach,
    .close = posix_close,
    .persist = shmp__fd_persist,
    .describe = posix_describe,
    .list = posix_list,
    .reap = posix_reap,
    .users = shmp__unix_users,
    .limits = posix_limits,
};

#endif
