#include "os/platform.h"
#if SHMP_HAVE_UNIX
#include "backend/unix.h"

#include <stdint.h>
#include <stdio.h>

static int is_read_only(const shmp__mapping *mapping) { return !!(mapping->flags & SHMP_READ_ONLY); }

int shmp__fd_map(shmp__mapping *mapping, int fd, shmp_error *reterr) {
    if (mapping->mapped < mapping->size) mapping->mapped = mapping->size;
    if (!(mapping->flags & SHMP_UNMAPPED)) {
        int result = shmp__os_map(fd, mapping->mapped, is_read_only(mapping), &mapping->data);
        if (result == -EACCES || result == -EPERM)
            return shmp__fail_os(reterr, result, "mmap", "fd %d cannot be written to: attach with read_only", fd);
        if (result < 0) return shmp__fail_os(reterr, result, "mmap", "%zu bytes of fd %d", mapping->size, fd);
    }
    shmp__fd(mapping)->fd = fd;
    return 0;
}

int shmp__check_user(const shmp__mapping *mapping, unsigned long user, const char *call, const char *id,
                     shmp_error *reterr) {
    if (mapping->flags & SHMP_ANY_USER || user == 0 || user == shmp__os_user()) return 0;
    return shmp__fail_os(reterr, EACCES, call,
                         "\"%s\" is user %lu's, who could change or truncate it: if you trust them, attach with "
                         "any_user=True (SHMP_ANY_USER)",
                         id, user);
}

int shmp__fd_map_checked(shmp__mapping *mapping, int fd, const shmp__os_file *file, const char *id,
                         shmp_error *reterr) {
    if (!file->is_regular)
        return shmp__fail(reterr, SHMP_EID, "fstat", "\"%s\" is a pipe, socket, directory or device", id);
    int result = shmp__check_user(mapping, file->user, "fstat", id, reterr);
    if (result < 0) return result;
    if (file->size == 0) return shmp__fail(reterr, SHMP_ESIZE, "fstat", "\"%s\" is empty", id);
    if (file->size < mapping->size)
        return shmp__fail(reterr, SHMP_ESIZE, "fstat", "\"%s\" has %llu bytes, the description says %zu", id,
                          file->size, mapping->size);
    if (mapping->flags & SHMP_WHOLE) {
        if (file->size > PTRDIFF_MAX)
            return shmp__fail(reterr, SHMP_EOVERFLOW, "fstat", "\"%s\" has %llu bytes", id, file->size);
        mapping->size = (size_t)file->size;
    }
    if (file->granule) mapping->mapped = (mapping->size + file->granule - 1) / file->granule * file->granule;
    return shmp__fd_map(mapping, fd, reterr);
}

int shmp__fd_stat(int fd, shmp__os_file *ret_file, shmp_error *reterr) {
    int result = shmp__os_stat(fd, ret_file);
    return result < 0 ? shmp__fail_os(reterr, result, "fstat", "fd %d", fd) : 0;
}

/* Seals before the size: what is sealed then has that size for ever. */
static int check_and_map(shmp__mapping *mapping, int fd, const char *id, shmp_error *reterr) {
    shmp__os_file file;
    int seals = shmp__os_size_is_sealed(fd), result = shmp__fd_stat(fd, &file, reterr);
    if (result < 0) return result;
    if (file.is_regular && seals < 0 && !shmp__os_is_in_shm_place(&file))
        return shmp__fail(reterr, SHMP_EID, "fcntl", "\"%s\" is an ordinary file, no shared memory", id);
    return shmp__fd_map_checked(mapping, fd, &file, id, reterr);
}

int shmp__fd_dup(int fd, shmp_error *reterr) {
    int result = shmp__os_dup(fd);
    if (result == -EBADF)
        return shmp__fail(reterr, SHMP_ENOTFOUND, "fcntl",
                          "this process has no fd %d: a descriptor id must be inherited or sent", fd);
    return result < 0 ? shmp__fail_os(reterr, result, "fcntl", "fd %d", fd) : result;
}

int shmp__fd_attach(shmp__mapping *mapping, int number, const char *id, shmp_error *reterr) {
    char shown[SHMP__ID_SIZE];
    int fd = shmp__fd_dup(number, reterr);
    if (fd < 0) return fd;
    snprintf(shown, sizeof shown, "%d", number);
    int result = check_and_map(mapping, fd, *id ? id : shown, reterr);
    if (result < 0) (void)shmp__os_close(fd);
    return result;
}

int shmp__fd_clone(const shmp__mapping *of, shmp__mapping *mapping, shmp_error *reterr) {
    const shmp__fd_mapping *from = shmp__fd_of(of);
    /* a duplicate could be written to by whoever gets it; without /proc, or with fewer rights by now, there is no other
     */
    int fd = is_read_only(mapping) ? shmp__os_open_seen(from->fd, 1) : -ENOENT;
    if (shmp__os_is_shortage(fd)) return shmp__fail_os(reterr, fd, "open", "fd %d", from->fd);
    if (fd < 0) fd = shmp__os_dup(from->fd);
    if (fd < 0) return shmp__fail_os(reterr, fd, "fcntl", "fd %d", from->fd);
    mapping->mapped = of->mapped;
    int result = shmp__fd_map(mapping, fd, reterr);
    if (result < 0) {
        (void)shmp__os_close(fd);
        return result;
    }
    for (int i = 0; i < SHMP__ID_SIZE; i++) shmp__fd(mapping)->name[i] = from->name[i];
    return 0;
}

int shmp__fd_limit(unsigned long long segments, unsigned long long *ret_segments, shmp_error *reterr) {
    unsigned long long descriptors;
    int result = shmp__os_free_descriptors(&descriptors);
    if (result < 0) return shmp__fail_os(reterr, result, "getrlimit", "RLIMIT_NOFILE");
    *ret_segments = segments < descriptors ? segments : descriptors;
    return 0;
}

int shmp__fd_close(shmp__mapping *mapping, shmp_error *reterr) {
    int fd = shmp__fd(mapping)->fd, result = shmp__os_close(fd);
    return result < 0 ? shmp__fail_os(reterr, result, "close", "fd %d", fd) : 0;
}

int shmp__fd_unmap(shmp__mapping *mapping, shmp_error *reterr) {
    int result = shmp__os_unmap(mapping->data, mapping->mapped);
    return result < 0 ? shmp__fail_os(reterr, result, "munmap", "%zu bytes at %p", mapping->mapped, mapping->data) : 0;
}

int shmp__fd_fileno(const shmp__mapping *mapping) { return shmp__fd_of(mapping)->fd; }

int shmp__fd_persist(shmp__mapping *mapping, shmp_error *reterr) {
    int fd = shmp__fd(mapping)->fd, result = shmp__os_keep_on_exec(fd);
    return result < 0 ? shmp__fail_os(reterr, result, "fcntl", "fd %d", fd) : 0;
}

int shmp__unix_users(const shmp__mapping *mapping, shmp_user_visitor visit, void *context, shmp_error *reterr) {
    int result = shmp__os_each_user(mapping->data, visit, context);
    if (shmp__os_is_unsupported(result))
        return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_users", "this system does not tell who maps what");
    return result < 0 ? shmp__fail_os(reterr, result, "/proc", "/proc/<pid>/maps: who maps %p", mapping->data) : result;
}

unsigned shmp__mode_of(const shmp__mapping *mapping) {
    unsigned mode = (mapping->flags & SHMP__MODE) >> 16;
    return mode ? mode : 0600;
}

int shmp__check_memory(size_t size, const char *call, shmp_error *reterr) {
    unsigned long long available;
    int result = shmp__os_free_memory(&available);
    if (result == -ENOMEM) return shmp__fail_os(reterr, result, shmp__os_memory_call, "%zu bytes for %s", size, call);
    if (result < 0 || available >= size) return 0; /* the kernel decides */
    return shmp__fail_os(reterr, ENOMEM, call, "%zu bytes, %llu are free", size, available);
}

#endif
