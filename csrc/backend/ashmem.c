/* ashmem: Android's shared memory, by the driver of /dev/ashmem or by libandroid.so's ASharedMemory_... (API 26). The
 * driver is in Linux until 5.18, and open to nobody but it in Android 10 and later: libandroid.so is looked for first.
 *
 * Lifetime: with the last descriptor and mapping; nothing survives SIGKILL. The size is fixed by the first mapping,
 * which also counts all of it against memory: so the segment is mapped once when it is made, even when nobody wants it
 * (SHMP_UNMAPPED), and never unpinned, as what another process still uses could be purged then.
 * The id `<pid>-<fd>-<check>`, in base 36, is that descriptor in a process that inherited it or to which it was sent
 * under its number and, from Linux 5.6 on, in any of the same user that may ptrace its process. All regions have one
 * inode, and opening one through /proc makes another: `check` is a hash of the random name that each is given, and
 * descriptors are duplicated (pidfd_getfd), of processes whose users are trusted. Cannot: tell whose an inherited
 * region is; a descriptor that only reads. */
#include "os/platform.h"
#if SHMP_HAVE_ASHMEM
#include "backend/proc_id.h"
#include "backend/unix.h"
#include "os/os_ashmem.h"

#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef struct ashmem_provider {
    shmp_provider base;
    shmp__os_ashmem system;
    uint64_t salt;          /* of names, by chance */
    shmp__atomic_uint made; /* regions so far, by this process and those it was forked from */
} ashmem_provider;

static const shmp__os_ashmem *system_of(const shmp__mapping *mapping) {
    return &((const ashmem_provider *)mapping->provider)->system;
}

static int ashmem_open(shmp_provider *provider, const shmp_provider_options *options, shmp_error *reterr) {
    ashmem_provider *self = (ashmem_provider *)provider;
    shmp__os_ashmem *system = &self->system;
    (void)options;
    int result = shmp__os_random(&self->salt, sizeof self->salt);
    if (result < 0)
        return shmp__fail_os(reterr, result, shmp__os_random_call, "%zu bytes for names", sizeof self->salt);
    result = shmp__os_ashmem_open(system);
    switch (result) {
    case 0: return 0;
    case -ENOENT:
    case -ENODEV:
    case -ENXIO:
        return shmp__fail(reterr, SHMP_EUNAVAILABLE, "open",
                          "%s is not there: this kernel has no ashmem, which Android's and some before Linux 5.18 have",
                          system->path);
    case -ENOTTY: return shmp__fail(reterr, SHMP_EUNAVAILABLE, "ioctl", "%s is no ashmem driver", system->path);
    case -EACCES:
    case -EPERM:
        return shmp__fail_os(reterr, result, "open", "%s: Android 10 and later have closed it to apps", system->path);
    default: return shmp__fail_os(reterr, result, "open", "%s", system->path);
    }
}

static void ashmem_end(shmp_provider *provider) { shmp__os_ashmem_end(&((ashmem_provider *)provider)->system); }

/* ---- Making ---- */

static int fail_ioctl(int error, const char *request, const shmp__mapping *mapping, shmp_error *reterr) {
    return shmp__fail_os(reterr, error, "ioctl", "%s of %zu bytes", request, mapping->size);
}

/* As good as by chance, and of no other region. To ask the kernel for each name would make creation a fifth slower. */
static void give_name(shmp_provider *provider, char ret_name[SHMP__OS_ASHMEM_NAME]) {
    ashmem_provider *self = (ashmem_provider *)provider;
    uint64_t value = self->salt + ((uint64_t)shmp__os_pid() << 32) + shmp__atomic_add(&self->made, 1);
    memset(ret_name, 0, SHMP__OS_ASHMEM_NAME);
    memcpy(ret_name, "shmp_", 5);
    for (char *at = ret_name + 5; value; value /= 32) *at++ = "abcdefghijklmnopqrstuvwxyz234567"[value % 32];
}

/* A region with a name and a size. */
static int new_region(const shmp__mapping *mapping, shmp_error *reterr) {
    char name[SHMP__OS_ASHMEM_NAME];
    const shmp__os_ashmem *system = system_of(mapping);
    give_name(mapping->provider, name);
    if (system->library) {
        int fd = shmp__os_ashmem_create(system, name, mapping->size);
        if (fd >= 0) return fd;
        return shmp__fail_os(reterr, fd, "ASharedMemory_create", "%zu bytes", mapping->size);
    }
    int fd = shmp__os_ashmem_new(system);
    if (fd < 0) return shmp__fail_os(reterr, fd, "open", "%s", system->path);
    int result = shmp__os_ashmem_set_name(fd, name);
    if (result == 0) result = shmp__os_ashmem_set_size(fd, mapping->size);
    if (result == 0) return fd;
    (void)shmp__os_close(fd);
    return fail_ioctl(result, "ASHMEM_SET_NAME or SET_SIZE", mapping, reterr);
}

/* The first mapping is what fixes the size and takes the memory. */
static int map_for_a_moment(int fd, size_t size, shmp_error *reterr) {
    void *data;
    int result = shmp__os_map(fd, 1, 1, &data);
    if (result < 0) return shmp__fail_os(reterr, result, "mmap", "a page of a region of %zu bytes", size);
    result = shmp__os_unmap(data, 1);
    return result < 0 ? shmp__fail_os(reterr, result, "munmap", "1 byte at %p", data) : 0;
}

static int ashmem_create(shmp__mapping *mapping, shmp_error *reterr) {
    int fd = new_region(mapping, reterr), result = 0;
    if (fd < 0) return fd;
    if (mapping->flags & SHMP_UNMAPPED) result = map_for_a_moment(fd, mapping->size, reterr);
    if (result == 0) result = shmp__fd_map(mapping, fd, reterr);
    if (result == 0 && mapping->flags & SHMP__MODE) {
        result = shmp__os_ashmem_protect(system_of(mapping), fd);
        if (result < 0) result = fail_ioctl(result, "ASHMEM_SET_PROT_MASK", mapping, reterr);
        if (result < 0 && mapping->data) (void)shmp__os_unmap(mapping->data, mapping->mapped);
    }
    if (result < 0) (void)shmp__os_close(fd);
    return result;
}

/* ---- Attaching ---- */

static int find_size(const shmp__os_ashmem *system, int fd, const char *id, unsigned long long *ret_size,
                     shmp_error *reterr) {
    int result = shmp__os_ashmem_size(system, fd, ret_size);
    if (result == -EBADF) {
        result = map_for_a_moment(fd, 1, reterr);
        if (result < 0) return result;
        result = shmp__os_ashmem_size(system, fd, ret_size);
    }
    if (result == -EINVAL) return shmp__fail(reterr, SHMP_ESIZE, "lseek", "\"%s\" was given no size", id);
    return result < 0 ? shmp__fail_os(reterr, result, "lseek", "\"%s\"", id) : 0;
}

static int check_kind(const shmp__os_ashmem *system, int fd, const char *id, shmp_error *reterr) {
    int result = shmp__os_is_ashmem(system, fd);
    if (result < 0) return shmp__fail_os(reterr, result, "fstat", "\"%s\"", id);
    return result ? 0 : shmp__fail(reterr, SHMP_EID, "fstat", "\"%s\" is no ashmem region", id);
}

/* On failure `fd` stays the caller's. */
static int map_region(shmp__mapping *mapping, int fd, const char *id, shmp_error *reterr) {
    unsigned long long size;
    int result = find_size(system_of(mapping), fd, id, &size, reterr);
    if (result < 0) return result;
    if (size < mapping->size)
        return shmp__fail(reterr, SHMP_ESIZE, "lseek", "\"%s\" has %llu bytes, the description says %zu", id, size,
                          mapping->size);
    if (mapping->flags & SHMP_WHOLE) {
        if (size > PTRDIFF_MAX) return shmp__fail(reterr, SHMP_EOVERFLOW, "lseek", "\"%s\" has %llu bytes", id, size);
        mapping->size = (size_t)size;
    }
    return shmp__fd_map(mapping, fd, reterr);
}

/* 0: it is the region that the id means. */
static int check_meant(const shmp__mapping *mapping, int fd, const shmp__proc_id *meant, const char *id,
                       shmp_error *reterr) {
    unsigned mark;
    int result = shmp__os_is_ashmem(system_of(mapping), fd);
    if (result < 0) return shmp__fail_os(reterr, result, "fstat", "\"%s\"", id);
    if (!result) return shmp__proc_fail_gone(meant, id, reterr);
    result = shmp__os_ashmem_mark(system_of(mapping), fd, &mark);
    if (result < 0) return shmp__fail_os(reterr, result, "ioctl", "ASHMEM_GET_NAME of \"%s\"", id);
    return mark == meant->check ? 0 : shmp__proc_fail_gone(meant, id, reterr);
}

/* Its process tells whose it is, as far as that can be told. */
static int take(const shmp__mapping *mapping, long pid, int fd, const shmp__proc_id *meant, const char *id,
                shmp_error *reterr) {
    unsigned long user;
    int taken = shmp__os_take_fd_of(pid, fd, &user);
    if (taken < 0) return shmp__proc_fail_open(taken, meant, id, reterr);
    int result = check_meant(mapping, taken, meant, id, reterr);
    if (result == 0) result = shmp__check_user(mapping, user, "pidfd_getfd", id, reterr);
    if (result == 0) return taken;
    (void)shmp__os_close(taken);
    return result;
}

static const shmp__proc_kind of_ashmem = {.may_be = shmp__os_may_be_ashmem, .take = take};

/* As memfd's, but for the hyphens, by which "std" knows whose they are. Gives whether there was nothing else. */
static int exchange(char id[SHMP__ID_SIZE], char from, char to) {
    int found = 0;
    for (char *at = id; *at; at++) {
        if (*at == to) return 0;
        if (*at == from) *at = to, found = 1;
    }
    return found;
}

static int is_parsed(const char *id, shmp__proc_id *ret_meant) {
    char text[SHMP__ID_SIZE];
    snprintf(text, sizeof text, "%s", id);
    return exchange(text, '-', '.') && shmp__proc_id_parse(text, ret_meant);
}

static int ashmem_accepts(const char *id) {
    shmp__proc_id parsed;
    return is_parsed(id, &parsed);
}

static int parse(const char *id, const char *call, shmp__proc_id *ret_meant, shmp_error *reterr) {
    if (is_parsed(id, ret_meant)) return 0;
    return shmp__fail(reterr, SHMP_EID, call, "\"%s\": an ashmem id is <pid>-<fd>-<check> in base 36, or a descriptor",
                      id);
}

/* A duplicate of this process's own descriptor of that number, if it is what is meant. */
static int take_own(const shmp__mapping *mapping, const shmp__proc_id *meant, const char *id) {
    int fd = shmp__os_dup((int)meant->fd);
    if (fd < 0 || check_meant(mapping, fd, meant, id, NULL) == 0) return fd;
    (void)shmp__os_close(fd);
    return -ENOENT;
}

static int ashmem_open_fd(const shmp__mapping *mapping, const char *id, shmp_error *reterr) {
    shmp__proc_id meant;
    int fd = parse(id, "shmp_open_fd", &meant, reterr);
    if (fd < 0) return fd;
    fd = take_own(mapping, &meant, id);
    if (shmp__os_is_shortage(fd)) return shmp__fail_os(reterr, fd, "fcntl", "fd %d", (int)meant.fd);
    return fd >= 0 ? fd : shmp__proc_open(&of_ashmem, mapping, &meant, id, reterr);
}

/* `fd` is this mapping's, or closed. */
static int map_or_close(shmp__mapping *mapping, int fd, const char *id, shmp_error *reterr) {
    int result = map_region(mapping, fd, id, reterr);
    if (result < 0) (void)shmp__os_close(fd);
    return result;
}

static int attach_number(shmp__mapping *mapping, int number, const char *id, shmp_error *reterr) {
    char shown[SHMP__ID_SIZE];
    int fd = shmp__fd_dup(number, reterr);
    if (fd < 0) return fd;
    snprintf(shown, sizeof shown, "%d", number);
    if (!*id) id = shown;
    int result = check_kind(system_of(mapping), fd, id, reterr);
    if (result == 0) return map_or_close(mapping, fd, id, reterr);
    (void)shmp__os_close(fd);
    return result;
}

static int ashmem_attach(shmp__mapping *mapping, const char *id, shmp_error *reterr) {
    int number = shmp__decimal_id(id);
    if (number >= 0) return attach_number(mapping, number, id, reterr);
    int fd = ashmem_open_fd(mapping, id, reterr);
    return fd < 0 ? fd : map_or_close(mapping, fd, id, reterr);
}

static int ashmem_attach_fd(shmp__mapping *mapping, int fd, const char *id, shmp_error *reterr) {
    shmp__proc_id meant;
    if (!*id || shmp__decimal_id(id) >= 0) return attach_number(mapping, fd, id, reterr);
    int result = parse(id, "shmp_attach_fd", &meant, reterr);
    if (result < 0) return result;
    int own = shmp__fd_dup(fd, reterr);
    if (own < 0) return own;
    result = check_meant(mapping, own, &meant, id, reterr);
    if (result == 0) return map_or_close(mapping, own, id, reterr);
    (void)shmp__os_close(own);
    return result;
}

static int ashmem_clone(const shmp__mapping *of, shmp__mapping *mapping, shmp_error *reterr) {
    int from = shmp__fd_of(of)->fd, fd = shmp__os_dup(from);
    if (fd < 0) return shmp__fail_os(reterr, fd, "fcntl", "fd %d", from);
    int result = shmp__fd_map(mapping, fd, reterr);
    if (result < 0) (void)shmp__os_close(fd);
    return result;
}

/* ---- Handing out ---- */

static int ashmem_locate(shmp__mapping *mapping, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    int fd = shmp__fd(mapping)->fd;
    unsigned mark;
    int result = shmp__os_ashmem_mark(system_of(mapping), fd, &mark);
    if (result < 0) return shmp__fail_os(reterr, result, "ioctl", "ASHMEM_GET_NAME of fd %d", fd);
    result = shmp__proc_id_of(fd, mark, ret_id, reterr);
    if (result == 0) (void)exchange(ret_id, '.', '-');
    return result;
}

static int ashmem_describe(shmp__mapping *mapping, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    if (!(mapping->provider->flags & SHMP_FD_IDS)) return ashmem_locate(mapping, ret_id, reterr);
    snprintf(ret_id, SHMP__ID_SIZE, "%d", shmp__fd(mapping)->fd);
    return 0;
}

static int ashmem_limits(shmp_provider *provider, shmp_limits *ret_limits, shmp_error *reterr) {
    (void)provider;
    ret_limits->bytes = LLONG_MAX;
    snprintf(ret_limits->advice, sizeof ret_limits->advice, "free memory; ulimit -n for more segments");
    int result = shmp__limit_to_memory(ret_limits, reterr);
    return result < 0 ? result : shmp__fd_limit(ULLONG_MAX, &ret_limits->segments, reterr);
}

const shmp__ops shmp__ashmem_ops = {
    .name = "ashmem",
    .provider_flags = SHMP_FD_IDS,
    .create_flags = SHMP_INHERIT | SHMP_UNMAPPED | 0444 << 16, /* SHMP_MODE() without any w: the rest is to be read */
    .can = SHMP__CAN_SHARE,
    .provider_size = sizeof(ashmem_provider),
    .mapping_size = sizeof(shmp__fd_mapping),
    .open = ashmem_open,
    .end = ashmem_end,
    .accepts = ashmem_accepts,
    .create = ashmem_create,
    .attach = ashmem_attach,
    .attach_fd = ashmem_attach_fd,
    .clone = ashmem_clone,
    .close = shmp__fd_close,
    .unmap = shmp__fd_unmap,
    .fileno = shmp__fd_fileno,
    .persist = shmp__fd_persist,
    .describe = ashmem_describe,
    .locate = ashmem_locate,
    .open_fd = ashmem_open_fd,
    .users = shmp__unix_users,
    .limits = ashmem_limits,
};

#endif
