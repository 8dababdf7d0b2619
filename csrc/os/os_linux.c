/* What Linux has, or has in its own way: memfd, seals, /proc, limits. */
#include "os/platform.h"
#if SHMP_HAVE_LINUX
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64

#include "os/fault.h"
#include "os/os_unix.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#if SHMP_HAVE_SYSV
#include <sys/shm.h>
#endif
#if defined(__ANDROID__) /* its libc has these only from API 28 and 30 */
#include <linux/memfd.h>
#include <sys/syscall.h>
#define getrandom(bytes, length, flags) syscall(SYS_getrandom, bytes, length, flags)
#define memfd_create(name, flags) (int)syscall(SYS_memfd_create, name, flags)
#else
#include <sys/random.h>
#endif

enum { SHM_PATH_ROOM = 300 /* "/dev/shm", and a name of up to 255 */ };

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U /* Linux 6.3 */
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

/* qemu-user (7.2, say) takes every advice and follows none: it is given one that no kernel knows, too. */
static int advise(void *data, size_t size, int advice) {
    int result;
    RETRIED(result, SYS(madvise, (data, size, -1)));
    if (result == 0) return -EINVAL;
    if (errno != EINVAL) return -errno;
    RETRIED(result, SYS(madvise, (data, size, advice)));
    return result_of(result);
}

int shmp__os_map_wiped_on_fork(void **ret_data) {
    enum { LENGTH = 4 };
    void *data = SYS_OR(MAP_FAILED, mmap, (NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (data == MAP_FAILED) return -errno;
    *ret_data = data;
    if (advise(data, LENGTH, MADV_WIPEONFORK) < 0) { /* before Linux 4.14 */
        (void)shmp__os_unmap(data, LENGTH);
        *ret_data = NULL;
    }
    return 0;
}

const char shmp__os_random_call[] = "getrandom";

int shmp__os_random(void *ret_bytes, size_t length) {
    ssize_t got; /* the whole: fewer than 256 bytes are never cut short */
    RETRIED(got, SYS(getrandom, (ret_bytes, length, 0)));
    return got < 0 ? -errno : 0;
}

int shmp__os_reserve(int fd, size_t size) {
    int result;
    RETRIED(result, SYS(fallocate, (fd, 0, 0, (off_t)size)));
    return result_of(result);
}

int shmp__os_populate(void *data, size_t size) { return advise(data, size, MADV_POPULATE_WRITE); }

int shmp__os_memfd_create(int noexec) {
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | (noexec ? MFD_NOEXEC_SEAL : 0);
    return result_of(SYS(memfd_create, ("shmem_providers", flags)));
}

int shmp__os_seal_size(int fd) {
    return result_of(SYS(fcntl, (fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)));
}

int shmp__os_size_is_sealed(int fd) {
    int seals = SYS(fcntl, (fd, F_GET_SEALS));
    if (seals < 0) return -errno;
    return (seals & (F_SEAL_SHRINK | F_SEAL_GROW)) == (F_SEAL_SHRINK | F_SEAL_GROW);
}

long shmp__os_proc_pid(void) {
    char link[24];
    ssize_t length = SYS(readlink, ("/proc/self", link, sizeof link - 1));
    if (length < 0) return -errno;
    link[length] = 0;
    return atol(link);
}

/* O_PATH: whoever else's descriptor it is, nothing is opened with this process's rights. */
int shmp__os_look_at_fd_of(long pid, int fd) {
    char path[48];
    int result;
    snprintf(path, sizeof path, "/proc/%ld/fd/%d", pid, fd);
    RETRIED(result, SYS(open, (path, O_PATH | O_CLOEXEC)));
    return result_of(result);
}

int shmp__os_open_seen(int seen, int read_only) {
    /* /proc/self is empty when the main thread has ended; /proc/thread-self is as old as memfd */
    static const char *const folders[] = {"/proc/thread-self/fd/", "/proc/self/fd/"};
    int result = -1;
    for (int i = 0; i < 2; i++) {
        char path[48];
        snprintf(path, sizeof path, "%s%d", folders[i], seen);
        /* no waiting for who holds a lease, no terminal taken */
        RETRIED(result, SYS(open, (path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)));
        if (result >= 0 || errno != ENOENT) break;
    }
    return result_of(result);
}

#if SHMP_HAVE_POSIX
const char shmp__os_shm_place[] = "/dev/shm";
const int shmp__os_shm_is_listed = 1;

int shmp__os_is_in_shm_place(const shmp__os_file *file) {
    struct stat place;
    return SYS(stat, (shmp__os_shm_place, &place)) == 0 && (unsigned long long)place.st_dev == file->device;
}

int shmp__os_shm_is(const char *name, const shmp__os_file *file) {
    char path[SHM_PATH_ROOM];
    struct stat found;
    if ((size_t)snprintf(path, sizeof path, "%s%s", shmp__os_shm_place, name) >= sizeof path) return -ENAMETOOLONG;
    if (SYS(lstat, (path, &found)) < 0) return errno == ENOENT ? 0 : -errno;
    return found.st_ino == file->inode && (unsigned long long)found.st_dev == file->device;
}
#endif

#if SHMP_HAVE_SYSV
const char shmp__os_sysctl[] = "kernel.";
const int shmp__os_shm_attaches_removed = 1;

int shmp__os_shm_limits(unsigned long long *ret_bytes, unsigned long long *ret_segments) {
    struct shminfo allowed;
    struct shm_info used;
    if (SYS(shmctl, (0, IPC_INFO, (struct shmid_ds *)(void *)&allowed)) < 0) return -errno;
    if (SYS(shmctl, (0, SHM_INFO, (struct shmid_ds *)(void *)&used)) < 0) return -errno;
    unsigned long long page = (unsigned long long)sysconf(_SC_PAGESIZE);
    unsigned long long pages = allowed.shmall > used.shm_tot ? allowed.shmall - used.shm_tot : 0;
    unsigned long long bytes = pages > ULLONG_MAX / page ? ULLONG_MAX : pages * page;
    *ret_bytes = bytes < allowed.shmmax ? bytes : allowed.shmmax;
    *ret_segments = allowed.shmmni > (unsigned long)used.used_ids ? allowed.shmmni - (unsigned long)used.used_ids : 0;
    return 0;
}

#endif

#endif
