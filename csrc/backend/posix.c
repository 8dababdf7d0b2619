/* posix: shm_open, mmap. Every Unix; on Linux the segments are files in /dev/shm.
 *
 * Lifetime: until the owner closes it, which unlinks the name; who is attached keeps the memory.
 * After SIGKILL the name stays. So that a leftover can be told from a live segment (posix_sweep.c), the owner
 * holds a shared lock on it for as long as its descriptor, a forked child's, or a mapping lives;
 * the kernel drops it then. Names that a caller chose never are leftovers. Only Linux can list
 * names: elsewhere a leftover stays until it is removed by name, or the machine restarts. macOS knows
 * sizes in whole pages only, and does not tell whether a name is still that of the file.
 * With SHMP_FD_IDS the name goes at once, and the id is the descriptor. */
#include "os/platform.h"
#if SHMP_HAVE_POSIX
#include "backend/posix_proc.h"
#include "backend/posix_sweep.h"
#include "backend/unix.h"

#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { NAME_TRIES = 100 };

static int is_name(const char *id) {
    return id[0] == '/' && id[1] && !strchr(id + 1, '/') && strcmp(id, "/.") != 0 && strcmp(id, "/..") != 0;
}

/* ---- Creating ---- */

/* 0; 1: a reaper has taken the new name for a leftover, as it is old by now or is locked for a moment. */
static int lock(int fd, const char *name, shmp_error *reterr) {
    shmp__os_file file;
    int result = shmp__os_lock_shared(fd); /* before it has a size: without one nobody takes it for a leftover */
    if (result == -EWOULDBLOCK) return 1;
    if (result < 0 && !(shmp__os_is_unsupported(result) && !shmp__os_shm_is_listed))
        return shmp__fail_os(reterr, result, "flock",
                             "\"%s\": without locks it would be taken for a leftover: allow flock, or open memfd",
                             name);
    result = shmp__fd_stat(fd, &file, reterr);
    return result < 0 ? result : file.links == 0;
}

/* Opens and locks a new file. 0; 1: the name was taken, at once or by a reaper: another one may do. */
static int open_new(shmp__mapping *mapping, int *ret_fd, shmp_error *reterr) {
    const char *name = shmp__fd(mapping)->name;
    int fd = shmp__os_shm_open(name, shmp__mode_of(mapping), 0);
    switch (fd) {
    case -EEXIST: return shmp__fail_os(reterr, fd, "shm_open", "\"%s\" is taken: take another name", name), 1;
    case -EACCES:
    case -ENOENT:
    case -EROFS:
    case -ENOTSUP: /* NetBSD: it is no tmpfs, or not everybody's */
        return shmp__fail_os(reterr, fd, "shm_open", "\"%s\": mount a tmpfs at %s, writable for this user", name,
                             shmp__os_shm_place);
    case -ENOSPC:
        return shmp__fail_os(reterr, fd, "shm_open", "\"%s\": %s has no inode left", name, shmp__os_shm_place);
    default:
        if (fd < 0) return shmp__fail_os(reterr, fd, "shm_open", "\"%s\"", name);
    }
    int result = lock(fd, name, reterr);
    if (result == 0) {
        *ret_fd = fd;
        return 0;
    }
    (void)shmp__os_shm_unlink(name); /* a reaper that is stopped with the lock in its hands does not */
    (void)shmp__os_close(fd);
    if (result == 1) shmp__fail_os(reterr, EWOULDBLOCK, "flock", "\"%s\" was taken for a leftover: try again", name);
    return result;
}

/* Gives the locked descriptor of a new file, its name in the mapping. */
static int create_file(shmp__mapping *mapping, int *ret_fd, shmp_error *reterr) {
    shmp_error why = {.call = ""};
    int result = 1;
    for (int tries = 0; result == 1 && tries < NAME_TRIES; tries++) {
        result = shmp__posix_random_name(shmp__fd(mapping)->name, &why);
        if (result == 0) result = open_new(mapping, ret_fd, &why);
    }
    if (result == 0) return 0;
    if (reterr) *reterr = why;
    return why.code;
}

static int check_space(const shmp__mapping *mapping, int fd, shmp_error *reterr) {
    unsigned long long available, files;
    if (shmp__os_free_space(fd, &available, &files) < 0 || available >= mapping->size) return 0; /* some cannot say */
    return shmp__fail_os(reterr, ENOSPC, "ftruncate",
                         "%zu bytes, %s has %llu free: remount it larger (a container: --shm-size), or open memfd",
                         mapping->size, shmp__os_shm_place, available);
}

/* The umask may have taken rights from the user too, and from those that SHMP_MODE names. They are given back where
 * others first hear of the name, and not at creation, which this would make a twentieth slower. Rights that somebody
 * added are left alone. */
static int open_to_user(const shmp__mapping *mapping, int fd, shmp_error *reterr) {
    shmp__os_file file;
    unsigned mode = shmp__mode_of(mapping);
    int result = shmp__fd_stat(fd, &file, reterr);
    if (result < 0 || (file.mode & mode) == mode) return result;
    result = shmp__os_chmod(fd, (unsigned)file.mode | mode);
    return result < 0 && !shmp__os_is_unsupported(result)
               ? shmp__fail_os(reterr, result, "fchmod", "\"%s\"", shmp__fd_of(mapping)->name)
               : 0;
}

static int set_up(shmp__mapping *mapping, int fd, int is_chosen, shmp_error *reterr) {
    shmp__fd_mapping *self = shmp__fd(mapping);
    int result = check_space(mapping, fd, reterr);
    if (result < 0) return result;
    result = shmp__os_truncate(fd, mapping->size);
    if (result < 0) return shmp__fail_os(reterr, result, "ftruncate", "%zu bytes of \"%s\"", mapping->size, self->name);
    if (mapping->flags & SHMP_RESERVE) {
        result = shmp__check_memory(mapping->size, "fallocate", reterr);
        if (result < 0) return result;
        result = shmp__os_reserve(fd, mapping->size);
        if (result == -EOPNOTSUPP)
            return shmp__fail(reterr, SHMP_EUNSUPPORTED, "fallocate", "this system cannot reserve posix memory");
        if (result < 0)
            return shmp__fail_os(reterr, result, "fallocate", "%zu bytes of \"%s\": enlarge %s", mapping->size,
                                 self->name, shmp__os_shm_place);
    }
    if (is_chosen) result = open_to_user(mapping, fd, reterr); /* others know it already */
    if (result < 0) return result;
    if (mapping->provider->flags & SHMP_FD_IDS) {
        result = shmp__os_shm_unlink(self->name);
        if (result < 0) return shmp__fail_os(reterr, result, "shm_unlink", "\"%s\"", self->name);
        self->name[0] = 0;
    }
    return shmp__fd_map(mapping, fd, reterr);
}

/* Of the new file `fd`. */
static int finish(shmp__mapping *mapping, int fd, int is_chosen, shmp_error *reterr) {
    int result = set_up(mapping, fd, is_chosen, reterr);
    if (result == 0) return 0;
    if (shmp__fd(mapping)->name[0]) (void)shmp__os_shm_unlink(shmp__fd(mapping)->name);
    (void)shmp__os_close(fd);
    return result;
}

static int posix_create(shmp__mapping *mapping, shmp_error *reterr) {
    int fd, result = create_file(mapping, &fd, reterr);
    return result < 0 ? result : finish(mapping, fd, 0, reterr);
}

static int posix_create_named(shmp__mapping *mapping, const char *name, shmp_error *reterr) {
    shmp_error why;
    if (!is_name(name) || strncmp(name, SHMP__POSIX_PREFIX, strlen(SHMP__POSIX_PREFIX)) == 0)
        return shmp__fail(reterr, SHMP_EID, "shmp_create_named",
                          "\"%s\": a name is '/' and up to 18 characters without '/', and does not begin with %s", name,
                          SHMP__POSIX_PREFIX);
    memcpy(shmp__fd(mapping)->name, name, SHMP__ID_SIZE);
    int fd, result = open_new(mapping, &fd, &why);
    if (result == 0) return finish(mapping, fd, 1, reterr);
    if (reterr) *reterr = why;
    return why.code;
}

/* ---- Attaching ---- */

static int open_name(const char *id, int read_only, shmp_error *reterr) {
    int fd = shmp__os_shm_open(id, 0, read_only);
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
        return fd;
    }
}

static int posix_attach(shmp__mapping *mapping, const char *id, shmp_error *reterr) {
    int number = shmp__decimal_id(id);
    if (number >= 0) return shmp__fd_attach(mapping, number, id, reterr);
    if (!is_name(id))
        return shmp__fail(reterr, SHMP_EID, "shmp_attach", "\"%s\": a posix id is /<name>, or a descriptor", id);
    int fd = open_name(id, !!(mapping->flags & SHMP_READ_ONLY), reterr);
    if (fd < 0) return fd;
    shmp__os_file file;
    int result = shmp__fd_stat(fd, &file, reterr);
    if (result == 0) result = shmp__fd_map_checked(mapping, fd, &file, id, reterr);
    if (result < 0)
        (void)shmp__os_close(fd);
    else
        memcpy(shmp__fd(mapping)->name, id, SHMP__ID_SIZE);
    return result;
}

/* The descriptor is the segment. Its name may be gone by now; "/" says that it never had one. */
static int posix_attach_fd(shmp__mapping *mapping, int fd, const char *id, shmp_error *reterr) {
    int result = shmp__fd_attach(mapping, fd, id, reterr);
    if (result == 0 && id[0] == '/') memcpy(shmp__fd(mapping)->name, id, SHMP__ID_SIZE);
    return result;
}

/* ---- Handles ---- */

/* Removes the owner's name. One of the caller's choice may have been removed, renamed or made anew by
 * somebody else: then it is not ours. */
static int posix_destroy(shmp__mapping *mapping, shmp_error *reterr) {
    const shmp__fd_mapping *self = shmp__fd_of(mapping);
    if (!self->name[0]) return 0;
    if (!shmp__posix_is_random_name(self->name)) {
        shmp__os_file ours;
        int result = shmp__fd_stat(self->fd, &ours, reterr);
        if (result < 0 || ours.links == 0) return result;
        result = shmp__os_shm_is(self->name, &ours);
        if (result < 0) return shmp__fail_os(reterr, result, "lstat", "\"%s\"", self->name);
        if (result == 0) return 0;
    }
    int failed = shmp__os_shm_unlink(self->name);
    return failed < 0 && failed != -ENOENT ? shmp__fail_os(reterr, failed, "shm_unlink", "\"%s\"", self->name) : 0;
}

/* Others attach by the name only while it is that of this file. */
static int check_name(const char *name, int fd, shmp_error *reterr) {
    shmp__os_file file;
    int result = shmp__fd_stat(fd, &file, reterr);
    if (result < 0) return result;
    result = shmp__os_shm_is(name, &file);
    if (result < 0) return shmp__fail_os(reterr, result, "lstat", "\"%s\"", name);
    if (result > 0) return 0;
    if (!name[1])
        return shmp__fail(reterr, SHMP_ENOTFOUND, "shmp_describe",
                          "it has no id, as it was made without a name: send it by multiprocessing, or its descriptor");
    return shmp__fail(reterr, SHMP_ENOTFOUND, "shmp_describe",
                      "it has no id any more, as its owner closed it and \"%s\" is gone: send it by multiprocessing, "
                      "or its descriptor",
                      name);
}

static int posix_describe(shmp__mapping *mapping, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    const shmp__fd_mapping *self = shmp__fd_of(mapping);
    if (!self->name[0]) {
        snprintf(ret_id, SHMP__ID_SIZE, "%d", self->fd);
        return 0;
    }
    int result = mapping->flags & SHMP_OWNER ? open_to_user(mapping, self->fd, reterr) : 0;
    if (result == 0) result = check_name(self->name, self->fd, reterr);
    if (result == 0) memcpy(ret_id, self->name, SHMP__ID_SIZE);
    return result;
}

static int posix_open(shmp_provider *provider, const shmp_provider_options *options, shmp_error *reterr) {
    (void)options, (void)reterr;
    if (!(provider->flags & SHMP_KEEP_LEFTOVERS)) shmp__posix_reap_quietly();
    return 0;
}

static int posix_limits(shmp_provider *provider, shmp_limits *ret_limits, shmp_error *reterr) {
    unsigned long long files;
    shmp__fd_mapping trial = {.base = {.provider = provider}};
    int fd, result = create_file(&trial.base, &fd, reterr);
    if (result < 0) return result;
    result = posix_destroy(&trial.base, reterr);
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
    .create_flags = SHMP_RESERVE | SHMP_INHERIT | SHMP_UNMAPPED | SHMP__MODE,
    .can = SHMP__CAN_SHARE,
    .provider_size = sizeof(shmp_provider),
    .mapping_size = sizeof(shmp__fd_mapping),
    .open = posix_open,
    .accepts = is_name,
    .create = posix_create,
    .create_named = posix_create_named,
    .attach = posix_attach,
    .attach_fd = posix_attach_fd,
    .clone = shmp__fd_clone,
    .destroy = posix_destroy,
    .close = shmp__fd_close,
    .unmap = shmp__fd_unmap,
    .fileno = shmp__fd_fileno,
    .persist = shmp__fd_persist,
    .describe = posix_describe,
    .locate = shmp__posix_locate,
    .open_fd = shmp__posix_open_fd,
    .list = shmp__posix_list,
    .reap = shmp__posix_reap,
    .users = shmp__unix_users,
    .limits = posix_limits,
};

#endif
