/* memfd: memfd_create, sealed so that its size can never change. Linux 3.17; no-exec from 6.3.
 *
 * Lifetime: with the last descriptor and mapping; nothing survives SIGKILL, there is no name.
 * The id `<pid>.<fd>.<check>`, in base 36, is opened through /proc/<pid>/fd/<fd>, so any process of the same
 * user (and pid namespace) can attach with no service between them. `check`, the low 32 bits of the inode
 * number, refuses a number that has been reused. What /proc shows is looked at before it is opened: it can be
 * anything, of anybody. Cannot: attach to a process that is not dumpable (it changed its user), or without /proc. */
#include "os/platform.h"
#if SHMP_HAVE_MEMFD
#include "backend/unix.h"
#include "core/table.h"

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

typedef struct memfd_id {
    uint64_t pid, fd, check;
} memfd_id;

/* As shmp__decimal: no sign, no leading zero, no capitals. */
static const char *parse_36(const char *text, uint64_t max, uint64_t *ret_value) {
    uint64_t value = 0;
    const char *at = text;
    for (;; at++) {
        unsigned digit = (unsigned)*at - '0';
        if (digit > 9) digit = (unsigned)*at - 'a' < 26 ? (unsigned)*at - 'a' + 10 : 36;
        if (digit == 36) break;
        value = value * 36 + digit;
        if (value > max) return NULL;
    }
    if (at == text || (*text == '0' && at - text > 1)) return NULL;
    *ret_value = value;
    return at;
}

static int parse(const char *id, memfd_id *ret_id) {
    const char *at = parse_36(id, INT_MAX, &ret_id->pid);
    if (!at || *at != '.') return 0;
    at = parse_36(at + 1, INT_MAX, &ret_id->fd);
    if (!at || *at != '.') return 0;
    at = parse_36(at + 1, UINT32_MAX, &ret_id->check);
    return at && !*at;
}

static int memfd_accepts(const char *id) {
    memfd_id parsed;
    return parse(id, &parsed);
}

static char *write_36(char *at, uint64_t value) {
    char digits[16];
    int count = 0;
    do digits[count++] = "0123456789abcdefghijklmnopqrstuvwxyz"[value % 36];
    while (value /= 36);
    while (count > 0) *at++ = digits[--count];
    return at;
}

/* 0: it does not fit, as no pid and no check have more than 5 and 7 digits, but some descriptors have 6. */
static int write_id(long pid, int fd, unsigned long long inode, char ret_id[SHMP__ID_SIZE]) {
    char text[64];
    char *at = write_36(text, (uint64_t)pid);
    *at++ = '.';
    at = write_36(at, (uint64_t)fd);
    *at++ = '.';
    at = write_36(at, inode & UINT32_MAX);
    if (at - text >= SHMP__ID_SIZE) return 0;
    memset(ret_id, 0, SHMP__ID_SIZE);
    memcpy(ret_id, text, (size_t)(at - text));
    return 1;
}

/* ---- Attaching ---- */

static int is_meant(const memfd_id *meant, const shmp__os_file *file) {
    return (file->inode & UINT32_MAX) == meant->check;
}

static int fail_gone(const memfd_id *meant, const char *id, shmp_error *reterr) {
    if (shmp__os_proc_pid() < 0)
        return shmp__fail(reterr, SHMP_ENOTFOUND, "open", "\"%s\": memfd ids need /proc: mount it, or open posix", id);
    return shmp__fail(reterr, SHMP_ENOTFOUND, "open",
                      "\"%s\": process %llu has closed fd %llu or ended, or is hidden: another pid namespace (--pid), "
                      "another user's under hidepid",
                      id, (unsigned long long)meant->pid, (unsigned long long)meant->fd);
}

/* Maps `fd` if it is the segment that the id means; on failure it stays the caller's. Seals come first: what is
 * sealed when its size is read has that size for ever. */
static int map_meant(shmp__mapping *mapping, int fd, const memfd_id *meant, const char *id, shmp_error *reterr) {
    shmp__os_file file;
    int is_sealed = shmp__os_size_is_sealed(fd), result = shmp__fd_stat(fd, &file, reterr);
    if (result < 0) return result;
    if (!is_meant(meant, &file)) return fail_gone(meant, id, reterr);
    if (is_sealed != 1) return shmp__fail(reterr, SHMP_EID, "fcntl", "\"%s\" is no memfd of a sealed size", id);
    return shmp__fd_map_checked(mapping, fd, &file, id, reterr);
}

static int fail_open(int error, const memfd_id *meant, const char *id, shmp_error *reterr) {
    switch (error) {
    case -ENOENT: return fail_gone(meant, id, reterr);
    case -EACCES:
    case -EPERM:
        return shmp__fail_os(
            reterr, error, "open",
            "\"%s\": process %llu is another user's, is not dumpable as it changed its user, or has more "
            "rights or another user namespace; send the descriptor, or open posix",
            id, (unsigned long long)meant->pid);
    default:
        if (shmp__os_is_shortage(error)) return shmp__fail_os(reterr, error, "open", "\"%s\"", id);
        /* ENXIO of a socket, EISDIR, ETXTBSY of a running program, ... */
        return shmp__fail(reterr, SHMP_EID, "open", "\"%s\" is no shared memory", id);
    }
}

/* Whether opening it does nothing but open it: not so with pipes, devices, files of /proc and /sys, and those that
 * somebody watches. */
static int is_of_memfds(const shmp_provider *provider, const shmp__os_file *file) {
    return file->is_regular && (file->device == ((const memfd_provider *)provider)->device || file->granule);
}

/* Whether that is worth opening: it may be anything. */
static int look_at(const shmp__mapping *mapping, int seen, const memfd_id *meant, const char *id, shmp_error *reterr) {
    shmp__os_file file;
    int result = shmp__fd_stat(seen, &file, reterr);
    if (result < 0) return result;
    if (!is_meant(meant, &file)) return fail_gone(meant, id, reterr);
    if (!is_of_memfds(mapping->provider, &file))
        return shmp__fail(reterr, SHMP_EID, "fstat", "\"%s\" is no shared memory", id);
    return shmp__check_user(mapping, file.user, "fstat", id, reterr);
}

static int open_of_process(const shmp__mapping *mapping, const memfd_id *meant, const char *id, shmp_error *reterr) {
    int seen = shmp__os_look_at_fd_of((long)meant->pid, (int)meant->fd);
    if (seen < 0) return fail_open(seen, meant, id, reterr);
    int fd = look_at(mapping, seen, meant, id, reterr);
    if (fd == 0) {
        fd = shmp__os_open_seen(seen, !!(mapping->flags & SHMP_READ_ONLY));
        if (fd < 0) fd = fail_open(fd, meant, id, reterr);
    }
    (void)shmp__os_close(seen);
    return fd;
}

static int memfd_attach(shmp__mapping *mapping, const char *id, shmp_error *reterr) {
    memfd_id meant;
    int number = shmp__decimal_id(id);
    if (number >= 0) return shmp__fd_attach(mapping, number, id, reterr);
    if (!parse(id, &meant))
        return shmp__fail(reterr, SHMP_EID, "shmp_attach",
                          "\"%s\": a memfd id is <pid>.<fd>.<check> in base 36, or a descriptor", id);
    /* Our own: duplicate it, 8 times cheaper than /proc. In a pid namespace the pid may be
     * another's, so what does not fit is tried again below. */
    if (meant.pid == (uint64_t)mapping->provider->pid || meant.pid == (uint64_t)shmp__os_pid()) {
        shmp_error ignored;
        int fd = shmp__os_dup((int)meant.fd);
        int result = fd < 0 ? fd : map_meant(mapping, fd, &meant, id, &ignored);
        if (result == 0) return 0;
        if (fd >= 0) (void)shmp__os_close(fd);
    }
    int fd = open_of_process(mapping, &meant, id, reterr);
    if (fd < 0) return fd;
    int result = map_meant(mapping, fd, &meant, id, reterr);
    if (result < 0) (void)shmp__os_close(fd);
    return result;
}

static int memfd_attach_fd(shmp__mapping *mapping, int fd, const char *id, shmp_error *reterr) {
    memfd_id meant;
    if (!*id || shmp__decimal_id(id) >= 0) return shmp__fd_attach(mapping, fd, id, reterr);
    if (!parse(id, &meant))
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

static int memfd_describe(shmp__mapping *mapping, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    int fd = shmp__fd(mapping)->fd;
    narrow(mapping);
    if (mapping->provider->flags & SHMP_FD_IDS) {
        snprintf(ret_id, SHMP__ID_SIZE, "%d", fd);
        return 0;
    }
    shmp__os_file file;
    int result = shmp__fd_stat(fd, &file, reterr);
    if (result < 0) return result;
    long pid = shmp__os_proc_pid();
    if (pid < 0) return shmp__fail_os(reterr, (int)pid, "readlink", "/proc/self: memfd ids need /proc: open posix");
    if (!write_id(pid, fd, file.inode, ret_id))
        return shmp__fail_os(reterr, EMFILE, "shmp_describe", "pid %ld and fd %d leave no room in an id", pid, fd);
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
} listing;

/* 1: it is a sealed memfd, not noted before; 0: it is not, or cannot be looked at. */
static int look_over(listing *list, long fd, shmp__os_file *ret_file) {
    int seen = shmp__os_look_at_fd_of(list->pid, (int)fd);
    if (seen < 0) return shmp__os_passed_over(seen);
    int result = shmp__os_stat(seen, ret_file), opened = -1;
    /* those of huge pages are none of ours, and have inodes of their own */
    if (result == 0 && is_of_memfds(list->provider, ret_file) && !ret_file->granule) {
        result = shmp__table_put(&list->seen, ret_file->inode, 0);
        if (result < 0) result = -ENOMEM;
    }
    if (result == 1) {
        opened = shmp__os_open_seen(seen, 1);
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

static int visit_fd(void *context, long fd) {
    listing *list = context;
    shmp__os_file file;
    int result = shmp__os_is_our_memfd(list->pid, fd);
    if (result == 1) result = look_over(list, fd, &file);
    if (result <= 0) return result;
    shmp_listed segment = {.struct_size = sizeof segment, .provider = "memfd", .size = file.size};
    if (!list->command[0]) shmp__os_command_of(list->pid, list->command);
    segment.command = list->command;
    segment.holder = list->pid;
    segment.user = (long long)file.user;
    segment.age = shmp__os_now() - file.changed;
    segment.is_alive = segment.is_ours = 1;
    if (!write_id(list->pid, (int)fd, file.inode, segment.id)) segment.id[0] = 0;
    return list->visit(list->context, &segment);
}

static int visit_process(void *context, long pid) {
    listing *list = context;
    list->pid = pid;
    list->command[0] = 0;
    return shmp__os_each_fd(pid, visit_fd, list);
}

static int memfd_list(shmp_provider *provider, shmp_visitor visit, void *context, shmp_error *reterr) {
    listing list = {.provider = provider, .visit = visit, .context = context};
    long pid = shmp__os_proc_pid(); /* a folder without processes is no /proc */
    if (pid < 0)
        return shmp__fail_os(reterr, (int)pid, "readlink", "/proc/self: memfd segments are seen in /proc only");
    int result = shmp__os_each_process(visit_process, &list);
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
    .list = memfd_list,
    .users = shmp__unix_users,
    .limits = memfd_limits,
};

#endif
