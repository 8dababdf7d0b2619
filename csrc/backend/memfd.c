/* memfd: memfd_create, sealed so that its size can never change. Linux 3.17; no-exec from 6.3.
 *
 * Lifetime: with the last descriptor and mapping; nothing survives SIGKILL, there is no name.
 * The id `<pid>.<fd>.<check>` is opened through /proc/<pid>/fd/<fd>, so any process of the same
 * user (and pid namespace) can attach with no service between them. `check`, the last hex digits
 * of the inode number, refuses a number that has been reused. Cannot: attach to a process that is
 * not dumpable (it changed its user), or without /proc. */
#include "core/platform.h"
#if SHMP_HAVE_MEMFD
#include "backend/unix.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NOEXEC = 1 /* shmp_provider.state: the kernel knows MFD_NOEXEC_SEAL */, CHECK_LEAST = 4, CHECK_MOST = 16 };

static int memfd_open(shmp_provider *provider, shmp_error *reterr) {
    provider->state = NOEXEC;
    int fd = shmp__os_memfd_create(1);
    if (fd == -EINVAL) {
        provider->state = 0;
        fd = shmp__os_memfd_create(0);
    }
    if (fd == -ENOSYS) return shmp__fail(reterr, SHMP_EUNAVAILABLE, "memfd_create", "needs Linux 3.17: open posix");
    if (fd < 0) return shmp__fail_os(reterr, fd, "memfd_create", "1 byte on trial");
    (void)shmp__os_close(fd);
    return 0;
}

static int set_up(shmp_shmem *shmem, int fd, shmp_error *reterr) {
    int result = shmp__os_truncate(fd, shmem->size);
    if (result < 0) return shmp__fail_os(reterr, result, "ftruncate", "%zu bytes", shmem->size);
    if (shmem->flags & SHMP_RESERVE) {
        result = shmp__check_memory(shmem->size, "fallocate", reterr);
        if (result < 0) return result;
        result = shmp__os_reserve(fd, shmem->size);
        if (result < 0) return shmp__fail_os(reterr, result, "fallocate", "%zu bytes", shmem->size);
    }
    result = shmp__os_seal_size(fd);
    if (result < 0) return shmp__fail_os(reterr, result, "fcntl", "F_ADD_SEALS on fd %d", fd);
    return shmp__fd_map(shmem, fd, reterr);
}

static int memfd_create_segment(shmp_shmem *shmem, const char *name, shmp_error *reterr) {
    (void)name;
    int fd = shmp__os_memfd_create(shmem->provider->state == NOEXEC);
    if (fd < 0) return shmp__fail_os(reterr, fd, "memfd_create", "%zu bytes", shmem->size);
    int result = set_up(shmem, fd, reterr);
    if (result < 0) (void)shmp__os_close(fd);
    return result;
}

typedef struct memfd_id {
    unsigned long long pid, fd, check;
    unsigned check_digits;
} memfd_id;

static unsigned long long tail(unsigned long long inode, unsigned digits) {
    return digits >= 16 ? inode : inode & ((1ull << 4 * digits) - 1);
}

static int parse(const char *id, memfd_id *ret_id) {
    memfd_id parsed = {0};
    const char *at = shmp__decimal(id, LONG_MAX, &parsed.pid);
    if (!at || *at != '.') return 0;
    at = shmp__decimal(at + 1, INT_MAX, &parsed.fd);
    if (!at || *at != '.') return 0;
    for (at++; *at; at++, parsed.check_digits++) {
        unsigned digit = (unsigned)*at - '0';
        if (digit > 9) {
            if ((unsigned)*at - 'a' > 5) return 0;
            digit = (unsigned)*at - 'a' + 10;
        }
        if (parsed.check_digits == CHECK_MOST) return 0;
        parsed.check = parsed.check * 16 + digit;
    }
    if (parsed.check_digits < CHECK_LEAST) return 0;
    *ret_id = parsed;
    return 1;
}

static int memfd_accepts(const char *id) {
    memfd_id parsed;
    return parse(id, &parsed);
}

/* Maps `fd` if it is the segment that the id means; on failure it stays the caller's. */
static int map_meant(shmp_shmem *shmem, int fd, const memfd_id *meant, const char *id, shmp_error *reterr) {
    shmp__os_file file;
    int result = shmp__fd_stat(fd, &file, reterr);
    if (result < 0) return result;
    if (tail(file.inode, meant->check_digits) != meant->check || shmp__os_size_is_sealed(fd) != 1)
        return shmp__fail(reterr, SHMP_EID, "fstat", "\"%s\": that descriptor is something else by now", id);
    return shmp__fd_map_checked(shmem, fd, &file, id, reterr);
}

static int open_of_process(const memfd_id *meant, const char *id, int read_only, shmp_error *reterr) {
    int fd = shmp__os_open_fd_of((long)meant->pid, (int)meant->fd, read_only);
    switch (fd) {
    case -ENOENT:
        return shmp__fail(reterr, SHMP_ENOTFOUND, "open", "\"%s\": process %llu has no fd %llu, or has ended", id,
                          meant->pid, meant->fd);
    case -EACCES:
    case -EPERM:
        return shmp__fail_os(reterr, fd, "open",
                             "\"%s\": process %llu is another user's, or changed its user and is not dumpable; "
                             "send the descriptor, or open posix",
                             id, meant->pid);
    default:
        if (shmp__os_is_shortage(fd)) return shmp__fail_os(reterr, fd, "open", "\"%s\"", id);
        /* ENXIO of a socket, EISDIR, ETXTBSY of a running program, ... */
        return fd < 0 ? shmp__fail(reterr, SHMP_EID, "open", "\"%s\" is no shared memory", id) : fd;
    }
}

static int memfd_attach(shmp_shmem *shmem, const char *id, shmp_error *reterr) {
    memfd_id meant;
    int number = shmp__decimal_id(id);
    if (number >= 0) return shmp__fd_attach_number(shmem, number, reterr);
    if (!parse(id, &meant))
        return shmp__fail(reterr, SHMP_EID, "shmp_attach", "\"%s\": a memfd id is <pid>.<fd>.<check>, or a descriptor",
                          id);
    /* Our own: duplicate it, 8 times cheaper than /proc. In a pid namespace the pid may be
     * another's, so what does not fit is tried again below. */
    if (meant.pid == (unsigned long long)shmem->provider->pid || meant.pid == (unsigned long long)shmp__os_pid()) {
        shmp_error ignored;
        int fd = shmp__os_dup((int)meant.fd);
        int result = fd < 0 ? fd : map_meant(shmem, fd, &meant, id, &ignored);
        if (result == 0) return 0;
        if (fd >= 0) (void)shmp__os_close(fd);
    }
    int fd = open_of_process(&meant, id, !!(shmem->flags & SHMP_READ_ONLY), reterr);
    if (fd < 0) return fd;
    int result = map_meant(shmem, fd, &meant, id, reterr);
    if (result < 0) (void)shmp__os_close(fd);
    return result;
}

/* 0: it does not fit. */
static int write_id(long pid, int fd, unsigned long long inode, char ret_id[SHMP__ID_SIZE]) {
    char text[64];
    int used = snprintf(text, sizeof text, "%ld.%d.", pid, fd);
    int room = SHMP__ID_SIZE - 1 - used;
    if (room < CHECK_LEAST) return 0;
    unsigned digits = room > CHECK_MOST ? CHECK_MOST : (unsigned)room;
    snprintf(text + used, sizeof text - (size_t)used, "%0*llx", (int)digits, tail(inode, digits));
    memcpy(ret_id, text, SHMP__ID_SIZE);
    return 1;
}

static int memfd_describe(const shmp_shmem *shmem, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    if (shmem->provider->flags & SHMP_FD_IDS) {
        snprintf(ret_id, SHMP__ID_SIZE, "%d", shmem->fd);
        return 0;
    }
    shmp__os_file file;
    int result = shmp__fd_stat(shmem->fd, &file, reterr);
    if (result < 0) return result;
    long pid = shmp__os_proc_pid();
    if (pid < 0) return shmp__fail_os(reterr, (int)pid, "readlink", "/proc/self: memfd ids need /proc: open posix");
    if (!write_id(pid, shmem->fd, file.inode, ret_id))
        return shmp__fail_os(reterr, EMFILE, "shmp_describe", "pid %ld and fd %d leave no room in an id", pid,
                             shmem->fd);
    return 0;
}

typedef struct listing {
    shmp_visitor visit;
    void *context;
    long pid;
    unsigned long long *seen; /* inodes: a segment has many descriptors */
    size_t count, room;
} listing;

/* 1: noted; 0: it was noted before; negative: memory is short. */
static int note(listing *list, unsigned long long inode) {
    for (size_t i = 0; i < list->count; i++)
        if (list->seen[i] == inode) return 0;
    if (list->count == list->room) {
        size_t room = list->room ? 2 * list->room : 64;
        unsigned long long *seen = shmp__os_enlarge(list->seen, room * sizeof *seen);
        if (!seen) return -ENOMEM;
        list->seen = seen;
        list->room = room;
    }
    list->seen[list->count++] = inode;
    return 1;
}

static int visit_fd(void *context, long fd) {
    listing *list = context;
    shmp__os_file file;
    int result = shmp__os_is_our_memfd(list->pid, fd);
    if (result <= 0) return result;
    int opened = shmp__os_open_fd_of(list->pid, (int)fd, 1);
    if (opened == -ELOOP) return 0; /* a link, by now */
    if (opened < 0) return shmp__os_passed_over(opened);
    result = shmp__os_stat(opened, &file);
    (void)shmp__os_close(opened);
    if (result == 0) result = note(list, file.inode);
    if (result <= 0) return result;
    shmp_listed segment = {.struct_size = sizeof segment, .provider = "memfd", .size = file.size};
    segment.owner = list->pid;
    segment.is_alive = 1;
    if (!write_id(list->pid, (int)fd, file.inode, segment.id)) segment.id[0] = 0;
    return list->visit(list->context, &segment);
}

static int visit_process(void *context, long pid) {
    listing *list = context;
    list->pid = pid;
    return shmp__os_each_fd(pid, visit_fd, list);
}

static int memfd_list(shmp_provider *provider, shmp_visitor visit, void *context, shmp_error *reterr) {
    (void)provider;
    listing list = {.visit = visit, .context = context};
    int result = shmp__os_each_process(visit_process, &list);
    free(list.seen);
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
    .create_flags = SHMP_RESERVE | SHMP_INHERIT,
    .can = SHMP__CAN_FAVOUR,
    .open = memfd_open,
    .accepts = memfd_accepts,
    .create = memfd_create_segment,
    .attach = memfd_attach,
    .close = shmp__fd_close,
    .persist = shmp__fd_persist,
    .describe = memfd_describe,
    .list = memfd_list,
    .reap = NULL,
    .users = shmp__unix_users,
    .limits = memfd_limits,
};

#endif
