#include "core/platform.h"
#if SHMP_HAVE_UNIX
#include "backend/unix.h"

#include <stdio.h>

int shmp__fd_map(shmp_shmem *shmem, int fd, shmp_error *reterr) {
    int result = shmp__os_map(fd, shmem->size, !!(shmem->flags & SHMP_READ_ONLY), &shmem->data);
    if (result == -EACCES || result == -EPERM)
        return shmp__fail_os(reterr, result, "mmap", "fd %d is not open for writing: attach with read_only", fd);
    if (result < 0) return shmp__fail_os(reterr, result, "mmap", "%zu bytes of fd %d", shmem->size, fd);
    shmem->fd = fd;
    return 0;
}

int shmp__fd_map_checked(shmp_shmem *shmem, int fd, const shmp__os_file *file, const char *id, shmp_error *reterr) {
    if (!file->is_regular)
        return shmp__fail(reterr, SHMP_EID, "fstat", "\"%s\" is a pipe, socket, directory or device", id);
    if (file->size < shmem->size)
        return shmp__fail(reterr, SHMP_ESIZE, "fstat", "\"%s\" has %llu bytes, the description says %zu", id,
                          file->size, shmem->size);
    if (shmem->flags & SHMP_WHOLE) shmem->size = (size_t)file->size;
    return shmp__fd_map(shmem, fd, reterr);
}

int shmp__fd_stat(int fd, shmp__os_file *ret_file, shmp_error *reterr) {
    int result = shmp__os_stat(fd, ret_file);
    return result < 0 ? shmp__fail_os(reterr, result, "fstat", "fd %d", fd) : 0;
}

static int check_and_map(shmp_shmem *shmem, int fd, int number, shmp_error *reterr) {
    shmp__os_file file;
    char id[SHMP__ID_SIZE];
    snprintf(id, sizeof id, "%d", number);
    int result = shmp__fd_stat(fd, &file, reterr);
    if (result < 0) return result;
    if (file.is_regular && shmp__os_size_is_sealed(fd) < 0)
        return shmp__fail(reterr, SHMP_EID, "fcntl", "fd %d is an ordinary file, no shared memory", number);
    return shmp__fd_map_checked(shmem, fd, &file, id, reterr);
}

int shmp__fd_attach_number(shmp_shmem *shmem, int number, shmp_error *reterr) {
    int fd = shmp__os_dup(number);
    if (fd == -EBADF)
        return shmp__fail(reterr, SHMP_ENOTFOUND, "fcntl",
                          "this process has no fd %d: a descriptor id must be inherited or sent", number);
    if (fd < 0) return shmp__fail_os(reterr, fd, "fcntl", "fd %d", number);
    int result = check_and_map(shmem, fd, number, reterr);
    if (result < 0) (void)shmp__os_close(fd);
    return result;
}

int shmp__fd_limit(unsigned long long segments, unsigned long long *ret_segments, shmp_error *reterr) {
    unsigned long long descriptors;
    int result = shmp__os_descriptor_limit(&descriptors);
    if (result < 0) return shmp__fail_os(reterr, result, "getrlimit", "RLIMIT_NOFILE");
    *ret_segments = segments < descriptors ? segments : descriptors;
    return 0;
}

int shmp__fd_close(shmp_shmem *shmem, shmp_error *reterr) {
    int result = 0, failed = shmp__os_unmap(shmem->data, shmem->size);
    if (failed < 0) result = shmp__fail_os(reterr, failed, "munmap", "%zu bytes at %p", shmem->size, shmem->data);
    failed = shmp__os_close(shmem->fd);
    if (failed < 0 && result == 0) result = shmp__fail_os(reterr, failed, "close", "fd %d", shmem->fd);
    return result;
}

int shmp__fd_persist(shmp_shmem *shmem, shmp_error *reterr) {
    int result = shmp__os_keep_on_exec(shmem->fd);
    return result < 0 ? shmp__fail_os(reterr, result, "fcntl", "fd %d", shmem->fd) : 0;
}

int shmp__unix_users(const shmp_shmem *shmem, shmp_user_visitor visit, void *context, shmp_error *reterr) {
    int result = shmp__os_each_user(shmem->data, visit, context);
    if (shmp__os_is_unsupported(result))
        return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_users", "this system does not tell who maps what");
    return result < 0 ? shmp__fail_os(reterr, result, "/proc", "/proc/<pid>/maps: who maps %p", shmem->data) : result;
}

int shmp__check_memory(size_t size, const char *call, shmp_error *reterr) {
    unsigned long long available;
    if (shmp__os_free_memory(&available) < 0 || available >= size) return 0;
    return shmp__fail_os(reterr, ENOMEM, call, "%zu bytes, %llu are free", size, available);
}

#endif
