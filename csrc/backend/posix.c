/* posix: shm_open, mmap. Every Unix; on Linux the segments are files in /dev/shm.
 *
 * Lifetime: until the owner closes it, which unlinks the name; who is attached keeps the memory.
 * After SIGKILL the name stays. So that a leftover can be told from a live segment (posix_sweep.c), the owner
 * holds a shared lock on it for as long as its descriptor, a forked child's, or a mapping lives;
 * the kernel drops it then. Attachers hold it too, if they can at once: what an owner lost who ended without closing
 * can be attached to for as long as anyone has it. Names that a caller chose are removed by the caller. Only Linux can
 * list names: elsewhere a leftover stays until it is removed by name, or the machine restarts. macOS knows sizes in
 * whole pages only, and does not tell whether a name is still that of the file. With SHMP_FD_IDS the name goes at once,
 * and the id is the descriptor. */
#include "os/platform.h"
#if SHMP_HAVE_POSIX
#include "backend/posix_proc.h"
#include "backend/posix_sweep.h"
#include "backend/unix.h"

#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum {
    NAME_TRIES = 100,
    PATIENCE = 1000,        /* milliseconds for what another process is about to do */
    CHOSEN = SHMP__OWN_FLAG /* in a mapping's flags: it was made under a name of the caller's choice */
};

static int is_name(const char *id) {
    return id[0] == '/' && id[1] && !strchr(id + 1, '/') && strcmp(id, "/.") != 0 && strcmp(id, "/..") != 0;
}

static int fail_open(int error, const char *name, shmp_error *reterr) {
    switch (error) {
    case -ENOENT:
        return shmp__fail(reterr, SHMP_ENOTFOUND, "shm_open", "\"%s\": its owner closed it, or has another %s", name,
                          shmp__os_shm_place);
    case -EACCES:
    case -EPERM: /* OpenBSD, to root */
        return shmp__fail_os(reterr, error, "shm_open",
                             "\"%s\" is another user's, or a sandbox denies it: created with mode=0o660 (SHMP_MODE) "
                             "others can attach",
                             name);
    case -EROFS:
        return shmp__fail_os(reterr, error, "shm_open", "\"%s\": %s is mounted read-only: attach with read_only", name,
                             shmp__os_shm_place);
    case -ENAMETOOLONG:
        return shmp__fail(reterr, SHMP_EID, "shm_open", "\"%.40s...\" is longer than a name can be", name);
    default:
        if (shmp__os_is_shortage(error)) return shmp__fail_os(reterr, error, "shm_open", "\"%s\"", name);
        /* EINVAL of a directory, ENXIO of a socket, ELOOP of a link, ... */
        return shmp__fail(reterr, SHMP_EID, "shm_open", "\"%s\" is no shared memory", name);
    }
}

/* ---- Creating ---- */

/* Removes the name; of a file, if it still is its name. */
static int remove_name(const char *name, const shmp__os_file *file, shmp_error *reterr) {
    int result = file ? shmp__posix_is_name_of(name, file) : 1;
    if (result < 0) return shmp__fail_os(reterr, result, "lstat", "\"%s\"", name);
    if (result == 0) return 0;
    result = shmp__os_shm_unlink(name);
    return result < 0 && result != -ENOENT ? shmp__fail_os(reterr, result, "shm_unlink", "\"%s\"", name) : 0;
}

/* Removes the name of the file `fd`. One of the caller's choice may have been removed, renamed or made anew by
 * somebody else: then it is not ours. */
static int destroy_name(const shmp__mapping *mapping, int fd, shmp_error *reterr) {
    const shmp__fd_mapping *self = shmp__fd_of(mapping);
    if (!self->name[0]) return 0;
    if (shmp__posix_is_random_name(self->name)) return remove_name(self->name, NULL, reterr);
    shmp__os_file ours = {.device = self->device, .inode = self->inode, .links = 1};
    int result = self->inode ? 0 : shmp__fd_stat(fd, &ours, reterr);
    return result < 0 || ours.links == 0 ? result : remove_name(self->name, &ours, reterr);
}

/* 0; 1: a reaper has the lock, for a moment or as he is stopped. */
static int lock(int fd, const char *name, shmp_error *reterr) {
    int result = shmp__os_lock_shared(fd); /* before it has a size: without one nobody takes it for a leftover */
    if (result == -EWOULDBLOCK) return 1;
    if (result == 0 || (shmp__os_is_unsupported(result) && !shmp__os_shm_is_listed)) return 0;
    return shmp__fail_os(reterr, result, "flock",
                         "\"%s\": without locks it would be taken for a leftover: allow flock, or open memfd", name);
}

/* Says in the file what it is. Systems without marks have no leftovers of chosen names: those are attached to. */
static int mark(const shmp__mapping *mapping, int fd, shmp_error *reterr) {
    unsigned flags = mapping->flags, wanted = flags & CHOSEN ? SHMP__POSIX_CHOSEN : 0;
    if (flags & SHMP_LINGER) wanted = SHMP__POSIX_LINGERS;
    if (flags & SHMP_KEEP) wanted = SHMP__POSIX_KEPT;
    int result = wanted ? shmp__os_mark(fd, wanted) : 0;
    if (result == 0 || wanted == SHMP__POSIX_CHOSEN) return 0;
    if (shmp__os_is_unsupported(result))
        return shmp__fail(reterr, SHMP_EUNSUPPORTED, "fcntl", "to keep a segment or let it linger needs Linux 4.13");
    return shmp__fail_os(reterr, result, "fcntl", "F_SET_RW_HINT of \"%s\"", shmp__fd_of(mapping)->name);
}

/* Opens and locks a new file. 0; 1: the name is taken, or a reaper has it: another one may do. */
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
    (void)destroy_name(mapping, fd, NULL); /* a reaper that is stopped with the lock in its hands does not */
    (void)shmp__os_close(fd);
    if (result < 0) return result;
    return shmp__fail_os(reterr, EWOULDBLOCK, "flock", "\"%s\" was taken for a leftover: try again", name), 1;
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
 * others first hear of the name, and not at creation, which this would make a twentieth slower. Later the user's own
 * are seen to, and whatever somebody changed is left alone. */
static int open_to_user(shmp__mapping *mapping, unsigned long now, shmp_error *reterr) {
    shmp__fd_mapping *self = shmp__fd(mapping);
    unsigned mode = shmp__atomic_load(&self->is_told) ? 0600 : shmp__mode_of(mapping);
    int result = (now & mode) == mode ? 0 : shmp__os_chmod(self->fd, (unsigned)now | mode);
    if (result < 0 && !shmp__os_is_unsupported(result))
        return shmp__fail_os(reterr, result, "fchmod", "\"%s\"", self->name);
    shmp__atomic_add(&self->is_told, 1);
    return 0;
}

/* Nobody needs to ask for the id of a name of the caller's choice: what shmp_describe would do is done now. */
static int prepare_chosen(shmp__mapping *mapping, int fd, shmp_error *reterr) {
    shmp__fd_mapping *self = shmp__fd(mapping);
    shmp__os_file file;
    int result = shmp__fd_stat(fd, &file, reterr);
    if (result < 0) return result;
    self->fd = fd;
    self->device = file.device;
    self->inode = file.inode;
    return open_to_user(mapping, file.mode, reterr);
}

static int set_up(shmp__mapping *mapping, int fd, shmp_error *reterr) {
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
    result = mark(mapping, fd, reterr);
    if (result == 0 && mapping->flags & CHOSEN) result = prepare_chosen(mapping, fd, reterr);
    return result < 0 ? result : shmp__fd_map(mapping, fd, reterr);
}

/* Gives the file the name of the caller's choice, if it has another. 0; 1: that is taken. */
static int publish(shmp__mapping *mapping, const char *name, shmp_error *reterr) {
    char *own = shmp__fd(mapping)->name;
    if (!name || strcmp(own, name) == 0) return 0;
    int result = shmp__os_shm_rename(own, name);
    if (result < 0) {
        shmp__fail_os(reterr, result, "renameat2", result == -EEXIST ? "\"%s\" is taken: take another name" : "\"%s\"",
                      name);
        return result == -EEXIST ? 1 : -SHMP_EOS;
    }
    memcpy(own, name, SHMP__ID_SIZE);
    return 0;
}

static int forget_name(shmp__mapping *mapping, shmp_error *reterr) {
    char *name = shmp__fd(mapping)->name;
    int result = shmp__os_shm_unlink(name);
    if (result < 0) return shmp__fail_os(reterr, result, "shm_unlink", "\"%s\"", name);
    name[0] = 0;
    return 0;
}

/* Of the new file `fd`. 0; 1: the name of the caller's choice is taken. */
static int finish(shmp__mapping *mapping, int fd, const char *name, shmp_error *reterr) {
    int result = set_up(mapping, fd, reterr);
    if (result == 0) {
        result = publish(mapping, name, reterr);
        if (result == 0 && mapping->provider->flags & SHMP_FD_IDS) result = forget_name(mapping, reterr);
        if (result == 0) return 0;
        if (mapping->data) (void)shmp__fd_unmap(mapping, NULL);
        mapping->data = NULL;
    }
    (void)destroy_name(mapping, fd, NULL);
    (void)shmp__os_close(fd);
    return result;
}

static int posix_create(shmp__mapping *mapping, shmp_error *reterr) {
    int fd, result = create_file(mapping, &fd, reterr);
    return result < 0 ? result : finish(mapping, fd, NULL, reterr);
}

/* 0; 1: the name is taken. */
static int make(shmp__mapping *mapping, const char *name, shmp_error *reterr) {
    int fd, result;
    mapping->flags |= CHOSEN | SHMP_OWNER;
    if (shmp__os_shm_is_listed) { /* under a name of our shape, which a reaper knows, until it is ready */
        result = create_file(mapping, &fd, reterr);
    } else {
        memcpy(shmp__fd(mapping)->name, name, SHMP__ID_SIZE);
        result = open_new(mapping, &fd, reterr);
    }
    return result == 0 ? finish(mapping, fd, name, reterr) : result;
}

/* 0: it is in use, or kept, and locked so that it stays; 1: it is, or will soon be, no more. */
static int hold(int fd, unsigned mark, const char *name, const shmp__os_file *file, shmp_error *reterr) {
    int result, is_unused = shmp__os_lock_alone(fd) == 0;
    if (is_unused && shmp__posix_is_over(mark, file)) {
        result = remove_name(name, file, reterr); /* a leftover */
        return result < 0 ? result : 1;
    }
    if (is_unused && mark == SHMP__POSIX_LINGERS) (void)shmp__posix_set_found(fd, file, 0);
    /* whoever removes a leftover has it locked alone, and then it has no name */
    if (shmp__os_lock_shared(fd) == -EWOULDBLOCK) return 1;
    result = shmp__posix_is_name_of(name, file);
    return result < 0 ? shmp__fail_os(reterr, result, "lstat", "\"%s\"", name) : result == 0;
}

/* Takes what has the name, open as `fd`. 0; 1: it is gone, or will be: once more. */
static int take(shmp__mapping *mapping, const char *name, int fd, shmp_error *reterr) {
    shmp__os_file file;
    int result = shmp__fd_stat(fd, &file, reterr);
    if (result == 0 && file.is_regular) result = shmp__check_user(mapping, file.user, "fstat", name, reterr);
    if (result < 0) return result;
    unsigned mark = shmp__os_mark_of(fd);
    if (mark) result = hold(fd, mark, name, &file, reterr);
    if (result != 0) return result;
    if (file.is_regular && file.size == 0) return 1; /* another program is about to give it a size */
    if (shmp__os_shm_is_listed && file.is_regular && file.size != mapping->size)
        return shmp__fail(reterr, SHMP_ESIZE, "fstat", "\"%s\" is there with %llu bytes, not %zu", name, file.size,
                          mapping->size);
    mapping->flags &= ~(unsigned)(SHMP_OWNER | CHOSEN);
    result = shmp__fd_map_checked(mapping, fd, &file, name, reterr);
    if (result == 0) memcpy(shmp__fd(mapping)->name, name, SHMP__ID_SIZE);
    return result;
}

static int make_or_take(shmp__mapping *mapping, const char *name, shmp_error *reterr) {
    int result = 1;
    for (int tries = 0; result == 1 && tries < PATIENCE; tries++) {
        if (tries > 1) shmp__os_pause();
        int fd = shmp__os_shm_open(name, 0, 0);
        if (fd == -ENOENT) {
            result = make(mapping, name, reterr);
            continue;
        }
        if (fd < 0) return fail_open(fd, name, reterr);
        result = take(mapping, name, fd, reterr);
        if (result != 0) (void)shmp__os_close(fd);
    }
    return result == 1 ? shmp__fail_os(reterr, EAGAIN, "shm_open", "\"%s\" comes and goes, or gets no size", name)
                       : result;
}

static int posix_create_named(shmp__mapping *mapping, const char *name, shmp_error *reterr) {
    shmp_error why;
    if (!is_name(name) || strncmp(name, SHMP__POSIX_PREFIX, strlen(SHMP__POSIX_PREFIX)) == 0)
        return shmp__fail(reterr, SHMP_EID, "shmp_create_named",
                          "\"%s\": a name is '/' and up to 18 characters without '/', and does not begin with %s", name,
                          SHMP__POSIX_PREFIX);
    int result = mapping->flags & SHMP_EXIST_OK ? make_or_take(mapping, name, &why) : make(mapping, name, &why);
    if (result == 0) return 0;
    if (reterr) *reterr = why;
    return why.code;
}

/* ---- Attaching ---- */

/* Opens a name and looks at it. On systems where a new one has no size for a moment, that is waited for. */
static int open_name(const char *name, int read_only, shmp__os_file *ret_file, shmp_error *reterr) {
    int fd = shmp__os_shm_open(name, 0, read_only);
    if (fd < 0) return fail_open(fd, name, reterr);
    int result = shmp__fd_stat(fd, ret_file, reterr);
    for (int tries = 0; result == 0 && !shmp__os_shm_is_listed && !ret_file->size && tries < PATIENCE; tries++) {
        shmp__os_pause();
        result = shmp__fd_stat(fd, ret_file, reterr);
    }
    if (result == 0) return fd;
    (void)shmp__os_close(fd);
    return result;
}

/* `name` may be too long for an id. */
static int attach_name(shmp__mapping *mapping, const char *name, shmp_error *reterr) {
    static const char none[SHMP__ID_SIZE] = "/";
    char id[SHMP__ID_SIZE];
    shmp__os_file file;
    int fd = open_name(name, !!(mapping->flags & SHMP_READ_ONLY), &file, reterr);
    if (fd < 0) return fd;
    if (shmp__posix_is_random_name(name) || shmp__os_mark_of(fd))
        (void)shmp__os_lock_shared(fd); /* the sign of life, if a reaper has not just the lock in his hands */
    int result = shmp__fd_map_checked(mapping, fd, &file, name, reterr);
    int is_id =
        shmp__copy_id(id, name, strlen(name), NULL) == 0; /* it may be too long, or have letters of another script */
    if (result < 0)
        (void)shmp__os_close(fd);
    else
        memcpy(shmp__fd(mapping)->name, is_id ? id : none, SHMP__ID_SIZE);
    return result;
}

static int posix_attach(shmp__mapping *mapping, const char *id, shmp_error *reterr) {
    int number = shmp__decimal_id(id);
    if (number >= 0) return shmp__fd_attach(mapping, number, id, reterr);
    if (!is_name(id))
        return shmp__fail(reterr, SHMP_EID, "shmp_attach", "\"%s\": posix names begin with / and have no other", id);
    return attach_name(mapping, id, reterr);
}

static int posix_attach_name(shmp__mapping *mapping, const char *name, shmp_error *reterr) {
    if (!is_name(name))
        return shmp__fail(reterr, SHMP_EID, "shmp_attach_name", "\"%.40s\": a name is / and characters without /",
                          name);
    return attach_name(mapping, name, reterr);
}

static int posix_unlink(shmp_provider *provider, const char *name, shmp_error *reterr) {
    shmp__os_file file;
    (void)provider;
    int result = is_name(name) ? shmp__os_shm_look(name, &file) : -EINVAL;
    if (result == -EINVAL || result == -ENAMETOOLONG || (result == 0 && !file.is_regular))
        return shmp__fail(reterr, SHMP_EID, "shmp_unlink", "\"%.40s\" names no shared memory", name);
    if (result == 0) result = shmp__os_shm_unlink(name);
    if (result == -ENOENT)
        return shmp__fail(reterr, SHMP_ENOTFOUND, "shm_unlink", "\"%s\": there is no such name", name);
    return result < 0 ? shmp__fail_os(reterr, result, "shm_unlink", "\"%s\"", name) : 0;
}

/* The descriptor is the segment. Its name may be gone by now; "/" says that it never had one. */
static int posix_attach_fd(shmp__mapping *mapping, int fd, const char *id, shmp_error *reterr) {
    int result = shmp__fd_attach(mapping, fd, id, reterr);
    if (result == 0 && id[0] == '/') memcpy(shmp__fd(mapping)->name, id, SHMP__ID_SIZE);
    return result;
}

/* ---- Handles ---- */

static int posix_destroy(shmp__mapping *mapping, shmp_error *reterr) {
    return mapping->flags & SHMP_KEEP ? 0 : destroy_name(mapping, shmp__fd(mapping)->fd, reterr);
}

/* Others attach by the name only while it is that of this file. */
static int check_name(const char *name, const shmp__os_file *file, shmp_error *reterr) {
    int result = shmp__posix_is_name_of(name, file);
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
    shmp__os_file file;
    int is_owner = !!(mapping->flags & SHMP_OWNER);
    int result = is_owner || self->name[0] ? shmp__fd_stat(self->fd, &file, reterr) : 0;
    if (result == 0 && is_owner) result = open_to_user(mapping, file.mode, reterr);
    if (result < 0) return result;
    if (!self->name[0]) {
        snprintf(ret_id, SHMP__ID_SIZE, "%d", self->fd);
        return 0;
    }
    result = check_name(self->name, &file, reterr);
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
    result = destroy_name(&trial.base, fd, reterr);
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
    .create_flags = SHMP_RESERVE | SHMP_INHERIT | SHMP_UNMAPPED | SHMP_LINGER | SHMP_KEEP | SHMP_EXIST_OK | SHMP__MODE,
    .can = SHMP__CAN_SHARE,
    .provider_size = sizeof(shmp_provider),
    .mapping_size = sizeof(shmp__fd_mapping),
    .open = posix_open,
    .accepts = is_name,
    .create = posix_create,
    .create_named = posix_create_named,
    .attach = posix_attach,
    .attach_fd = posix_attach_fd,
    .attach_name = posix_attach_name,
    .unlink = posix_unlink,
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
