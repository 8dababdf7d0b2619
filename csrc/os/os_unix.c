/* System calls that every Unix has. */
#include "os/platform.h"
#if SHMP_HAVE_UNIX
#define _GNU_SOURCE /* Linux: environment and flags beyond POSIX */
#define _FILE_OFFSET_BITS 64

#include "os/os_unix.h"
#include "os/fault.h"

#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>
#if SHMP_HAVE_LINUX
#include <sys/auxv.h>
#include <sys/vfs.h>
#endif
#if SHMP_HAVE_SYSV
#include <sys/ipc.h>
#include <sys/shm.h>
#endif

long shmp__os_pid(void) { return (long)getpid(); }

void *shmp__os_allocate(size_t size) { return SYS_OR(NULL, calloc, (1, size)); }

void *shmp__os_enlarge(void *memory, size_t size) { return SYS_OR(NULL, realloc, (memory, size)); }

long long shmp__os_now(void) { return (long long)time(NULL); }

void shmp__os_pause(void) { (void)nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL); }

void shmp__os_yield(void) { (void)sched_yield(); }

void *shmp__os_thread(void) { return (void *)(uintptr_t)pthread_self(); }

int shmp__os_has_ended(long pid) { return kill((pid_t)pid, 0) < 0 && errno == ESRCH; }

const char *shmp__os_getenv(const char *name, char room[SHMP__ENV_ROOM]) {
    (void)room;
    return getenv(name);
}

int shmp__os_is_privileged(void) {
#if SHMP_HAVE_LINUX
    return getauxval(AT_SECURE) != 0;
#else
    return issetugid();
#endif
}

void shmp__os_unsetenv(const char *name) { (void)unsetenv(name); }

int shmp__os_setenv(const char *name, const char *value) { return result_of(SYS(setenv, (name, value, 1))); }

int shmp__os_keep_on_exec(int fd) { return result_of(SYS(fcntl, (fd, F_SETFD, 0))); }

int shmp__os_is_unsupported(int error) {
    /* two of them are one number on some systems */
    return error == -EINVAL || error == -ENOSYS || error == -EOPNOTSUPP || error == -ENOTSUP;
}

int shmp__os_is_untold(int error) { return error == -ENOENT || error == -EACCES || error == -EPERM; }

int shmp__os_is_shortage(int error) { return error == -EMFILE || error == -ENFILE || error == -ENOMEM; }

static int is_one_of(const char *call, const char *const *calls) {
    while (*calls && strcmp(call, *calls) != 0) calls++;
    return *calls != NULL;
}

const char *shmp__os_remedy(const char *call, int os_error) {
    static const char *const mapping[] = {"mmap", "shmat", NULL};
    static const char *const creating[] = {"memfd_create", "fcntl", "shm_open", "shmget", "shmat", NULL};
    switch (os_error) {
    case EAGAIN: return is_one_of(call, mapping) ? "; memory is locked (mlockall): raise ulimit -l" : "";
    case EPERM:
        return is_one_of(call, creating) ? "; a sandbox may deny it (seccomp, AppArmor, SELinux): allow it there" : "";
    case EMFILE: return "; this process has too many open files: close some, or raise ulimit -n";
    case ENFILE: return "; this machine has too many open files: raise the system's limit (Linux: sysctl fs.file-max)";
    case ENOMEM: return "; free memory, or raise ulimit -v, vm.max_map_count or the container's limit";
    case EFBIG: return "; larger than a file may be: see ulimit -f";
    default: return "";
    }
}

int shmp__os_map(int fd, size_t size, int read_only, void **ret_data) {
    void *data =
        SYS_OR(MAP_FAILED, mmap, (NULL, size, read_only ? PROT_READ : PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    if (data == MAP_FAILED) return -errno;
    *ret_data = data;
    return 0;
}

int shmp__os_unmap(void *data, size_t size) { return result_of(SYS_RELEASE(munmap, (data, size))); }

/* Never retried: after EINTR the descriptor is closed (Linux), and may be somebody else's by now. */
int shmp__os_close(int fd) { return SYS_RELEASE(close, (fd)) < 0 && errno != EINTR ? -errno : 0; }

enum { FIRST = STDERR_FILENO + 1 };

int shmp__os_dup(int fd) { return result_of(SYS(fcntl, (fd, F_DUPFD_CLOEXEC, FIRST))); }

int shmp__os_above_stdio(int fd) {
    if (fd < 0 || fd >= FIRST) return result_of(fd);
    int moved = shmp__os_dup(fd);
    (void)close(fd);
    return moved;
}

int shmp__os_truncate(int fd, size_t size) {
    int result;
    RETRIED(result, SYS(ftruncate, (fd, (off_t)size)));
    return result_of(result);
}

/* Of hugetlb files, such as another program's memfd: they are mapped and unmapped in whole huge pages. */
static unsigned long granule_of(int fd, const struct stat *file) {
#if SHMP_HAVE_LINUX
    enum { SMALLEST_HUGE = 65536 };
    const unsigned hugetlb = 0x958458f6u;
    struct statfs system;
    if (file->st_blksize >= SMALLEST_HUGE && SYS(fstatfs, (fd, &system)) == 0 && (unsigned)system.f_type == hugetlb)
        return (unsigned long)file->st_blksize;
#endif
    (void)fd, (void)file;
    return 0;
}

static void to_file(struct stat file, int fd, shmp__os_file *ret_file) {
#if defined(__APPLE__) /* its shared memory has no type, no links and no inode, and a size of whole pages */
    if (!(file.st_mode & S_IFMT)) {
        file.st_mode |= S_IFREG;
        file.st_nlink = 1;
    }
#endif
    *ret_file = (shmp__os_file){.size = (unsigned long long)file.st_size,
                                .inode = file.st_ino,
                                .device = (unsigned long long)file.st_dev,
                                .links = file.st_nlink,
                                .user = (unsigned long)file.st_uid,
                                .mode = (unsigned long)file.st_mode & 0777,
                                .granule = granule_of(fd, &file),
                                .changed = file.st_ctime,
                                .is_regular = S_ISREG(file.st_mode)};
}

int shmp__os_stat(int fd, shmp__os_file *ret_file) {
    struct stat file;
    if (SYS(fstat, (fd, &file)) < 0) return -errno;
    to_file(file, fd, ret_file);
    return 0;
}

int shmp__os_chmod(int fd, unsigned mode) { return result_of(SYS(fchmod, (fd, (mode_t)mode))); }

int shmp__os_free_space(int fd, unsigned long long *ret_bytes, unsigned long long *ret_files) {
    struct statvfs system;
    int result;
    RETRIED(result, SYS(fstatvfs, (fd, &system)));
    if (result < 0) return -errno;
    /* tmpfs mounted with size=0 or nr_inodes=0, and ramfs, have no limit and give no totals */
    *ret_bytes = system.f_blocks ? (unsigned long long)system.f_bavail * system.f_frsize : LLONG_MAX;
    *ret_files = system.f_files ? system.f_favail : LLONG_MAX;
    return 0;
}

int shmp__os_free_descriptors(unsigned long long *ret_count) {
    enum { MOST = 65536 }; /* what is open beyond is not counted: this takes 4 ms */
    struct rlimit limit;
    if (SYS(getrlimit, (RLIMIT_NOFILE, &limit)) < 0) return -errno;
    unsigned long long all = (unsigned long long)limit.rlim_cur, open = 0;
    for (int fd = 0; fd < MOST && (unsigned long long)fd < all; fd++) open += fcntl(fd, F_GETFD) >= 0;
    *ret_count = all - open;
    return 0;
}

unsigned long shmp__os_user(void) { return (unsigned long)geteuid(); }

int shmp__os_lock_shared(int fd) {
    int result;
    RETRIED(result, SYS(flock, (fd, LOCK_SH | LOCK_NB)));
    return result_of(result);
}

int shmp__os_lock_alone(int fd) {
    int result;
    RETRIED(result, SYS(flock, (fd, LOCK_EX | LOCK_NB)));
    return result_of(result);
}

#if SHMP_HAVE_POSIX

#if SHMP_HAVE_LINUX
/* Somebody may have put a pipe or a link under a name: neither is waited for nor followed. */
enum { MORE_FLAGS = O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW };
#else
/* FreeBSD and OpenBSD refuse flags that POSIX has not; OpenBSD and NetBSD follow no link. All close on exec. */
enum { MORE_FLAGS = 0 };
#endif

int shmp__os_shm_open(const char *name, unsigned mode, int read_only) {
    int result, flags = (read_only ? O_RDONLY : O_RDWR) | MORE_FLAGS;
    if (mode) flags |= O_CREAT | O_EXCL;
    RETRIED(result, SYS(shm_open, (name, flags, (mode_t)mode)));
    return shmp__os_above_stdio(result);
}

#if SHMP_HAVE_LINUX

int shmp__os_shm_look(const char *name, shmp__os_file *ret_file) {
    enum { LONGEST = 300 };
    struct stat file;
    char path[LONGEST];
    if ((size_t)snprintf(path, sizeof path, "%s%s", shmp__os_shm_place, name) >= sizeof path) return -ENAMETOOLONG;
    if (SYS(lstat, (path, &file)) < 0) return -errno;
    to_file(file, -1, ret_file);
    return 0;
}

#else

int shmp__os_shm_look(const char *name, shmp__os_file *ret_file) {
    int fd = shmp__os_shm_open(name, 0, 1);
    if (fd < 0) return fd;
    int result = shmp__os_stat(fd, ret_file);
    (void)shmp__os_close(fd);
    return result;
}

#endif

int shmp__os_shm_unlink(const char *name) { return result_of(SYS(shm_unlink, (name))); }

#endif
#if SHMP_HAVE_SYSV

int shmp__os_shmget(int key, size_t size, unsigned mode) {
    return result_of(SYS(shmget, ((key_t)key, size, IPC_CREAT | IPC_EXCL | (int)mode)));
}

int shmp__os_shmat(int id, int read_only, void **ret_data) {
    void *data = SYS_OR((void *)-1, shmat, (id, NULL, read_only ? SHM_RDONLY : 0));
    if (data == (void *)-1) return -errno;
    *ret_data = data;
    return 0;
}

int shmp__os_shmdt(void *data) { return result_of(SYS_RELEASE(shmdt, (data))); }

int shmp__os_shm_remove(int id) { return result_of(SYS(shmctl, (id, IPC_RMID, NULL))); }

#endif
#endif
