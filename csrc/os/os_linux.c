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
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#if SHMP_HAVE_SYSV
#include <sys/shm.h>
#endif
#if defined(__ANDROID__) /* its libc has these only from API 28 and 30 */
#include <linux/memfd.h>
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
    return shmp__os_above_stdio(SYS(memfd_create, ("shmem_providers", flags)));
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
static int look_in(const char *folder, int fd) {
    char path[80];
    int result;
    snprintf(path, sizeof path, "%sfd/%d", folder, fd);
    RETRIED(result, SYS(open, (path, O_PATH | O_CLOEXEC)));
    result = shmp__os_above_stdio(result);
    return result == -ESRCH ? -ENOENT : result; /* the former of one that is just ending */
}

static int look_in_thread(void *context, const char *folder) {
    int *fd = context, seen = look_in(folder, *fd);
    if (seen < 0) return seen == -ENOENT ? 0 : seen;
    *fd = seen;
    return 1;
}

int shmp__os_look_at_fd_of(long pid, int fd) {
    char folder[32];
    snprintf(folder, sizeof folder, "/proc/%ld/", pid);
    int seen = look_in(folder, fd);
    if (seen != -ENOENT) return seen;
    int found = shmp__os_each_thread(pid, look_in_thread, &fd);
    return found > 0 ? fd : found < 0 && found != -ESRCH ? found : -ENOENT;
}

int shmp__os_look_at_fd_in(int folder, long fd) {
    char name[24];
    int result;
    snprintf(name, sizeof name, "%ld", fd);
    RETRIED(result, SYS(openat, (folder, name, O_PATH | O_CLOEXEC)));
    return shmp__os_above_stdio(result);
}

/* No waiting for who holds a lease, no terminal taken. */
enum { SEEN_FLAGS = O_CLOEXEC | O_NONBLOCK | O_NOCTTY };

/* Opens what is in the folder of this thread's descriptors; "": the folder. /proc/self is empty when the main thread
 * has ended; /proc/thread-self is as old as memfd. */
static int open_own(const char *name, int flags) {
    static const char *const folders[] = {"/proc/thread-self/fd/", "/proc/self/fd/"};
    int result = -1;
    for (int i = 0; i < 2; i++) {
        char path[48];
        snprintf(path, sizeof path, "%s%s", folders[i], name);
        RETRIED(result, SYS(open, (path, flags)));
        if (result >= 0 || errno != ENOENT) break;
    }
    return shmp__os_above_stdio(result);
}

int shmp__os_open_seen(int seen, int read_only) {
    char name[24];
    snprintf(name, sizeof name, "%d", seen);
    return open_own(name, (read_only ? O_RDONLY : O_RDWR) | SEEN_FLAGS);
}

int shmp__os_open_own_folder(void) { return open_own("", O_PATH | O_DIRECTORY | O_CLOEXEC); }

int shmp__os_open_seen_in(int own_folder, int seen) {
    char name[24];
    int result;
    snprintf(name, sizeof name, "%d", seen);
    RETRIED(result, SYS(openat, (own_folder, name, O_RDONLY | SEEN_FLAGS)));
    return shmp__os_above_stdio(result);
}

const char shmp__os_shm_place[] = "/dev/shm"; /* Android has none */

int shmp__os_is_in_shm_place(const shmp__os_file *file) {
    struct stat place;
    return SYS(stat, (shmp__os_shm_place, &place)) == 0 && (unsigned long long)place.st_dev == file->device;
}

#if SHMP_HAVE_POSIX
const int shmp__os_shm_is_listed = 1;

/* A lease is given to the only opener. Who opens the file in these moments is told to try again, or waits for them; the
 * signal that tells the holder is one that nobody minds. */
int shmp__os_is_open_elsewhere(int fd) {
    if (SYS(fcntl, (fd, F_SETSIG, SIGURG)) < 0) return -errno;
    if (SYS(fcntl, (fd, F_SETLEASE, F_WRLCK)) < 0) return errno == EAGAIN ? 1 : -errno;
    (void)fcntl(fd, F_SETLEASE, F_UNLCK);
    return 0;
}

#ifndef F_SET_RW_HINT
#define F_GET_RW_HINT 1035 /* Linux 4.13 */
#define F_SET_RW_HINT 1036
#endif

/* The hint to a disk how long what is written will live. Memory has no use for it, and its file systems keep it. */
int shmp__os_mark(int fd, unsigned mark) {
    uint64_t hint = mark;
    return result_of(SYS(fcntl, (fd, F_SET_RW_HINT, &hint)));
}

unsigned shmp__os_mark_of(int fd) {
    enum { NONE = 1 };
    uint64_t hint = 0;
    return fcntl(fd, F_GET_RW_HINT, &hint) == 0 && hint > NONE ? (unsigned)hint : 0;
}

/* "/dev/shm" and a name; 0: no system has such a long one. */
static int path_of(const char *name, char ret_path[SHM_PATH_ROOM]) {
    return (size_t)snprintf(ret_path, SHM_PATH_ROOM, "%s%s", shmp__os_shm_place, name) < SHM_PATH_ROOM;
}

int shmp__os_shm_look_at(const char *name) {
    char path[SHM_PATH_ROOM];
    int result;
    if (!path_of(name, path)) return -ENAMETOOLONG;
    RETRIED(result, SYS(open, (path, O_PATH | O_NOFOLLOW | O_CLOEXEC)));
    return shmp__os_above_stdio(result);
}

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1u
#endif
#define renameat2(...) (int)syscall(SYS_renameat2, __VA_ARGS__) /* glibc has it from 2.28 */

/* Some file systems cannot rename without replacing what has the new name: there it has two for a moment, and who is
 * killed then leaves the old one over. */
int shmp__os_shm_rename(const char *name, const char *new_name) {
    char path[SHM_PATH_ROOM], new_path[SHM_PATH_ROOM];
    if (!path_of(name, path) || !path_of(new_name, new_path)) return -ENAMETOOLONG;
    if (SYS(renameat2, (AT_FDCWD, path, AT_FDCWD, new_path, RENAME_NOREPLACE)) == 0) return 0;
    if (errno != EINVAL && errno != ENOSYS) return -errno;
    if (SYS(link, (path, new_path)) < 0) return -errno;
    int result = result_of(SYS(unlink, (path)));
    if (result < 0) (void)unlink(new_path);
    return result;
}
#endif

#if SHMP_HAVE_SYSV
const char shmp__os_sysctl[] = "kernel.";
const int shmp__os_shm_attaches_removed = 1;

static void to_segment(int id, const struct shmid_ds *segment, shmp__os_segment *ret_segment) {
    const struct ipc_perm *rights = &segment->shm_perm;
    long long changed = segment->shm_ctime;
    if (segment->shm_atime > changed) changed = segment->shm_atime;
    if (segment->shm_dtime > changed) changed = segment->shm_dtime;
    *ret_segment = (shmp__os_segment){.id = id,
                                      .key = (int)rights->__key,
                                      .size = segment->shm_segsz,
                                      .user = rights->uid,
                                      .creator = rights->cuid,
                                      .mode = rights->mode & 0777u,
                                      .is_removed = !!(rights->mode & SHM_DEST),
                                      .attached = (unsigned long)segment->shm_nattch,
                                      .creator_pid = segment->shm_cpid,
                                      .last_pid = segment->shm_lpid,
                                      .changed = changed};
}

int shmp__os_shm_segment(int id, shmp__os_segment *ret_segment) {
    struct shmid_ds segment;
    if (SYS(shmctl, (id, IPC_STAT, &segment)) < 0) return -errno;
    to_segment(id, &segment, ret_segment);
    return 0;
}

int shmp__os_each_segment(int (*visit)(void *context, const shmp__os_segment *segment), void *context) {
    struct shm_info used;
    int last = SYS(shmctl, (0, SHM_INFO, (struct shmid_ds *)(void *)&used)), result = 0;
    if (last < 0) return -errno;
    for (int i = 0; i <= last && result == 0; i++) {
        struct shmid_ds found;
        shmp__os_segment segment;
        int id = SYS(shmctl, (i, SHM_STAT, &found));
        if (id < 0) continue; /* a free place, or another user's */
        to_segment(id, &found, &segment);
        result = visit(context, &segment);
    }
    return result;
}

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
