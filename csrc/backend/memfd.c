/* memfd: memfd_create, sealed so that its size can never change. Linux 3.17; no-exec from 6.3.
 *
 * Lifetime: with the last descriptor and mapping; nothing survives SIGKILL, there is no name.
 * The id `<pid>.<fd>.<check>`, in base 36, is opened through /proc/<pid>/fd/<fd>, so any process of the same
 * user (and pid namespace) can attach with no service between them. `check`, the low 32 bits of the inode
 * number, refuses a number that has been reused; any other descriptor of that inode is looked for then. What /proc
 * shows is looked at before it is opened: it can be anything, of anybody. Cannot: attach to a process that is not
 * dumpable (it changed its user), or without /proc. */
#include "os/platform.h"
#if SHMP_HAVE_MEMFD
#include "backend/proc_id.h"
#include "backend/unix.h"

#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef struct memfd_provider {
    shmp_provider base;
    int is_noexec;             /* the kernel knows MFD_NOEXEC_SEAL */
    unsigned long long device; /* of the kernel's own file system of memfds, but for those of huge pages */
} memfd_provider;

static int memfd_open(shmp_provider *provider, const shmp_provider_options *options, shmp_error *reterr) {
    memfd_provider *self = (memfd_provider *)provider;
    (void)options;
    int fd = shmp__os_memfd_create(1);
    self->is_noexec = fd != -EINVAL;
    if (!self->is_noexec) fd = shmp__os_memfd_create(0);
    if (fd == -ENOSYS) return shmp__fail(reterr, SHMP_EUNAVAILABLE, "memfd_create", "needs Linux 3.17: open posix");
    if (fd < 0) return shmp__fail_os(reterr, fd, "memfd_create", "1 byte on trial");
    shmp__os_file file;
    int result = shmp__fd_stat(fd, &file, reterr);
    self->device = file.device;
    (void)shmp__os_close(fd);
    return result;
}

static int set_up(shmp__mapping *mapping, int fd, shmp_error *reterr) {
    int result = shmp__os_truncate(fd, mapping->size);
    if (result < 0) return shmp__fail_os(reterr, result, "ftruncate", "%zu bytes", mapping->size);
    if (mapping->flags & SHMP_RESERVE) {
        result = shmp__check_memory(mapping->size, "fallocate", reterr);
        if (result < 0) return result;
        result = shmp__os_reserve(fd, mapping->size);
        if (result < 0) return shmp__fail_os(reterr, result, "fallocate", "%zu bytes", mapping->size);
    }
    result = shmp__os_seal_size(fd);
    if (result < 0) return shmp__fail_os(reterr, result, "fcntl", "F_ADD_SEALS on fd %d", fd);
    return shmp__fd_map(mapping, fd, reterr);
}

static int memfd_create_segment(shmp__mapping *mapping, shmp_error *reterr) {
    int fd = shmp__os_memfd_create(((memfd_provider *)mapping->provider)->is_noexec);
    if (fd < 0) return shmp__fail_os(reterr, fd, "memfd_create", "%zu bytes", mapping->size);
    int result = set_up(mapping, fd, reterr);
    if (result < 0) (void)shmp__os_close(fd);
    return result;
}

/* ---- Ids ---- */

static int memfd_accepts(const char *id) {
    shmp__proc_id parsed;
    return shmp__proc_id_parse(id, &parsed);
}

/* ---- Attaching ---- */

static int is_meant(const shmp__proc_id *meant, const shmp__os_file *file) {
    return (file->inode & UINT32_MAX) == meant->check;
}

/* Maps `fd` if it is the segment that the id means; on failure it stays the caller's. Seals come first: what is
 * sealed when its size is read has that size for ever. */
static int map_meant(shmp__mapping *mapping, int fd, const shmp__proc_id *meant, const char *id, shmp_error *reterr) {
    shmp__os_file file;
    int is_sealed = shmp__os_size_is_sealed(fd), result = shmp__fd_stat(fd, &file, reterr);
    if (result < 0) return result;
    if (!is_meant(meant, &file)) return shmp__proc_fail_gone(meant, id, reterr);
    if (is_sealed != 1) return shmp__fail(reterr, SHMP_EID, "fcntl", "\"%s\" is no memfd of a sealed size", id);
    return shmp__fd_map_checked(mapping, fd, &file, id, reterr);
}

/* Whether opening it does nothing but open it: not so with pipes, devices, files of /proc and /sys, and those that
 * somebody watches. */
static int is_of_memfds(const shmp_provider *provider, const shmp__os_file *file) {
    return file->is_regular && (file->device == ((const memfd_provider *)provider)->device || file->granule);
}

/* Whether that is worth opening: it may be anything. */
static int look_at(const shmp__mapping *mapping, int seen, const shmp__proc_id *meant, const char *id,
                   shmp_error *reterr) {
    shmp__os_file file;
    int result = shmp__fd_stat(seen, &file, reterr);
    if (result < 0) return result;
    if (!is_meant(meant, &file)) return shmp__proc_fail_gone(meant, id, reterr);
    if (!is_of_memfds(mapping->provider, &file))
        return shmp__fail(reterr, SHMP_EID, "fstat", "\"%s\" is no shared memory", id);
    return shmp__check_user(mapping, file.user, "fstat", id, reterr);
}

static const shmp__proc_kind of_memfd = {.may_be = shmp__os_is_our_memfd, .check = look_at};

static int memfd_open_fd(const shmp__mapping *mapping, const char *id, shmp_error *reterr) {
    shmp__proc_id meant;
    if (!shmp__proc_id_parse(id, &meant))
        return shmp__fail(reterr, SHMP_EID, "shmp_open_fd", "\"%s\": a memfd id is <pid>.<fd>.<check> in base 36", id);
    int fd = shmp__proc_open(&of_memfd, mapping, &meant, id, reterr);
    if (fd < 0 || shmp__os_size_is_sealed(fd) == 1) return fd;
    (void)shmp__os_close(fd);
    return shmp__fail(reterr, SHMP_EID, "fcntl", "\"%s\" is no memfd of a sealed size", id);
}

static int memfd_attach(shmp__mapping *mapping, const char *id, shmp_error *reterr) {
    shmp__proc_id meant;
    int number = shmp__decimal_id(id);
    if (number >= 0) return shmp__fd_attach(mapping, number, id, reterr);
    if (!shmp__proc_id_parse(id, &meant))
        return shmp__fail(reterr, SHMP_EID, "shmp_attach",
                          "\"%s\": a memfd id is <pid>.<fd>.<check> in base 36, or a descriptor", id);
    /* Our own: duplicate it, 8 times cheaper than /proc, but as writable as it is. In a pid namespace the pid may be
     * another's, so what does not fit is tried again below. */
    int is_writable = !(mapping->flags & SHMP_READ_ONLY);
    if (is_writable && (meant.pid == (uint64_t)mapping->provider->pid || meant.pid == (uint64_t)shmp__os_pid())) {
        shmp_error ignored;
        int fd = shmp__os_dup((int)meant.fd);
        int result = fd < 0 ? fd : map_meant(mapping, fd, &meant, id, &ignored);
        if (result == 0) return 0;
        if (fd >= 0) (void)shmp__os_close(fd);
    }
    int fd = shmp__proc_open(&of_memfd, mapping, &meant, id, reterr);
    if (fd < 0) return fd;
    int result = map_meant(mapping, fd, &meant, id, reterr);
    if (result < 0) (void)shmp__os_close(fd);
    return result;
}

static int memfd_attach_fd(shmp__mapping *mapping, int fd, const char *id, shmp_error *reterr) {
    shmp__proc_id meant;
    if (!*id || shmp__decimal_id(id) >= 0) return shmp__fd_attach(mapping, fd, id, reterr);
    if (!shmp__proc_id_parse(id, &meant))
        return shmp__fail(reterr, SHMP_EID, "shmp_attach_fd", "\"%s\": a memfd id is <pid>.<fd>.<check>", id);
    int own = shmp__fd_dup(fd, reterr);
    if (own < 0) return own;
    int result = map_meant(mapping, own, &meant, id, reterr);
    if (result < 0) (void)shmp__os_close(own);
    return result;
}

/* ---- Handing out ---- */

/* memfd_create lets everybody in, where it is reopened by who has only a read-only descriptor. That goes when the
 * descriptor first can get to somebody else, and not at creation, which this would make a twentieth slower. */
static void narrow(shmp__mapping *mapping) {
    shmp__fd_mapping *self = shmp__fd(mapping);
    if (!(mapping->flags & SHMP_OWNER) || shmp__atomic_load(&self->is_told)) return;
    (void)shmp__os_chmod(self->fd, 0600); /* who has changed his user since cannot, and is not dumpable either */
    shmp__atomic_add(&self->is_told, 1);
}

static int memfd_fileno(const shmp__mapping *mapping) {
    narrow((shmp__mapping *)(uintptr_t)mapping);
    return shmp__fd_fileno(mapping);
}

static int memfd_persist(shmp__mapping *mapping, shmp_error *reterr) {
    narrow(mapping);
    return shmp__fd_persist(mapping, reterr);
}

/* A copy is not the owner's, and may be handed out as well. */
static int memfd_clone(const shmp__mapping *of, shmp__mapping *mapping, shmp_error *reterr) {
    narrow((shmp__mapping *)(uintptr_t)of);
    return shmp__fd_clone(of, mapping, reterr);
}

static int memfd_locate(shmp__mapping *mapping, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    int fd = shmp__fd(mapping)->fd;
    shmp__os_file file;
    narrow(mapping);
    int result = shmp__fd_stat(fd, &file, reterr);
    return result < 0 ? result : shmp__proc_id_of(fd, file.inode, ret_id, reterr);
}

static int memfd_describe(shmp__mapping *mapping, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    if (!(mapping->provider->flags & SHMP_FD_IDS)) return memfd_locate(mapping, ret_id, reterr);
    narrow(mapping);
    snprintf(ret_id, SHMP__ID_SIZE, "%d", shmp__fd(mapping)->fd);
    return 0;
}

/* ---- Listing ---- */

typedef struct listing {
    const shmp_provider *provider;
    shmp_visitor visit;
    void *context;
    long pid;
    char command[SHMP__OS_COMMAND_ROOM]; /* of that process, once it is known */
    shmp__table seen;                    /* inodes: a segment has many descriptors */
    int own_folder;                      /* of this thread's descriptors; -1: not open yet */
} listing;

static int open_seen(listing *list, int seen) {
    if (list->own_folder < 0) list->own_folder = shmp__os_open_own_folder();
    return list->own_folder < 0 ? list->own_folder : shmp__os_open_seen_in(list->own_folder, seen);
}

/* 1: it is a sealed memfd, not noted before; 0: it is not, or cannot be looked at. */
static int look_over(listing *list, int folder, long fd, shmp__os_file *ret_file) {
    int seen = shmp__os_look_at_fd_in(folder, fd);
    if (seen < 0) return shmp__os_passed_over(seen);
    int result = shmp__os_stat(seen, ret_file), opened = -1;
    /* those of huge pages are none of ours, and have inodes of their own */
    if (result == 0 && is_of_memfds(list->provider, ret_file) && !ret_file->granule) {
        result = shmp__table_put(&list->seen, ret_file->inode, 0);
        if (result < 0) result = -ENOMEM;
    }
    if (result == 1) {
        opened = open_seen(list, seen);
        result = opened < 0 ? shmp__os_passed_over(opened) : shmp__os_size_is_sealed(opened) == 1;
    }
    if (result == 1) { /* its size now is its size for ever */
        int failed = shmp__os_stat(opened, ret_file);
        if (failed < 0) result = failed;
    }
    if (opened >= 0) (void)shmp__os_close(opened);
    (void)shmp__os_close(seen);
    return result;
}

static int visit_fd(void *context, int folder, long fd) {
    listing *list = context;
    shmp__os_file file;
    int result = shmp__os_is_our_memfd(folder, fd);
    if (result == 1) result = look_over(list, folder, fd, &file);
    if (result <= 0) return result;
    shmp_listed segment = {.struct_size = sizeof segment, .provider = "memfd", .size = file.size};
    if (!list->command[0]) shmp__os_command_of(list->pid, list->command);
    segment.command = list->command;
    segment.holder = list->pid;
    segment.user = (long long)file.user;
    segment.age = shmp__os_now() - file.changed;
    segment.is_alive = segment.is_ours = 1;
    if (!shmp__proc_id_write(list->pid, (int)fd, file.inode, segment.id)) segment.id[0] = 0;
    return list->visit(list->context, &segment);
}

static int visit_process(void *context, long pid) {
    listing *list = context;
    list->pid = pid;
    list->command[0] = 0;
    return shmp__os_each_fd(pid, visit_fd, list);
}

static int memfd_list(shmp_provider *provider, shmp_visitor visit, void *context, shmp_error *reterr) {
    listing list = {.provider = provider, .visit = visit, .context = context, .own_folder = -1};
    long pid = shmp__os_proc_pid(); /* a folder without processes is no /proc */
    if (pid < 0)
        return shmp__fail_os(reterr, (int)pid, "readlink", "/proc/self: memfd segments are seen in /proc only");
    int result = shmp__os_each_process(visit_process, &list);
    if (list.own_folder >= 0) (void)shmp__os_close(list.own_folder);
    shmp__table_free(&list.seen);
    return result < 0 ? shmp__fail_os(reterr, result, "/proc", "/proc/<pid>/fd of all processes") : result;
}

static int memfd_limits(shmp_provider *provider, shmp_limits *ret_limits, shmp_error *reterr) {
    (void)provider;
    ret_limits->bytes = LLONG_MAX;
    snprintf(ret_limits->advice, sizeof ret_limits->advice,
             "free memory or raise the container's limit; ulimit -n for more segments");
    int result = shmp__limit_to_memory(ret_limits, reterr);
    return result < 0 ? result : shmp__fd_limit(ULLONG_MAX, &ret_limits->segments, reterr);
}

const shmp__ops shmp__memfd_ops = {
    .name = "memfd",
    .provider_flags = SHMP_FD_IDS,
    .create_flags = SHMP_RESERVE | SHMP_INHERIT | SHMP_UNMAPPED,
    .can = SHMP__CAN_SHARE,
    .provider_size = sizeof(memfd_provider),
    .mapping_size = sizeof(shmp__fd_mapping),
    .open = memfd_open,
    .accepts = memfd_accepts,
    .create = memfd_create_segment,
    .attach = memfd_attach,
    .attach_fd = memfd_attach_fd,
    .clone = memfd_clone,
    .close = shmp__fd_close,
    .unmap = shmp__fd_unmap,
    .fileno = memfd_fileno,
    .persist = memfd_persist,
    .describe = memfd_describe,
    .locate = memfd_locate,
    .open_fd = memfd_open_fd,
    .list = memfd_list,
    .users = shmp__unix_users,
    .limits = memfd_limits,
};

#endif
