/* The contenders of Linux. */
#define _GNU_SOURCE
#include "calls.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int map(segment *s) {
    s->data = mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
    return s->data == MAP_FAILED ? -1 : 0;
}

static int unmap_and_close(segment *s) {
    TRY(munmap(s->data, s->size));
    return close(s->fd);
}

static int at(segment *s) {
    s->data = shmat(s->id, NULL, 0);
    return s->data == (void *)-1 ? -1 : 0;
}

static int dt(segment *s) { return shmdt(s->data); }

static int memfd_bare_create(segment *s) {
    TRY(s->fd = memfd_create("bench", MFD_CLOEXEC));
    TRY(ftruncate(s->fd, (off_t)s->size));
    return map(s);
}

static int memfd_bare_attach(segment *s, const segment *of) {
    TRY(s->fd = fcntl(of->fd, F_DUPFD_CLOEXEC, 0));
    return map(s);
}

static int memfd_careful_create(segment *s) {
    TRY(s->fd = memfd_create("bench", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL));
    TRY(ftruncate(s->fd, (off_t)s->size));
    TRY(fcntl(s->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
    return map(s);
}

static int memfd_careful_attach(segment *s, const segment *of) {
    struct stat file;
    TRY(s->fd = fcntl(of->fd, F_DUPFD_CLOEXEC, 0));
    TRY(fstat(s->fd, &file));
    if (file.st_size < (off_t)s->size || !(fcntl(s->fd, F_GET_SEALS) & F_SEAL_SHRINK)) return -1;
    return map(s);
}

static int memfd_bare_attach_other(segment *s, const segment *of) {
    char path[48];
    snprintf(path, sizeof path, "/proc/%ld/fd/%d", of->other, of->fd);
    TRY(s->fd = open(path, O_RDWR | O_CLOEXEC));
    return map(s);
}

/* It can be anything: it is looked at before it is opened, and its seals before its size. */
static int memfd_careful_attach_other(segment *s, const segment *of) {
    char path[48];
    struct stat file;
    snprintf(path, sizeof path, "/proc/%ld/fd/%d", of->other, of->fd);
    int seen = open(path, O_PATH | O_CLOEXEC);
    TRY(seen);
    TRY(fstat(seen, &file));
    if (!S_ISREG(file.st_mode) || file.st_uid != geteuid()) return -1;
    snprintf(path, sizeof path, "/proc/thread-self/fd/%d", seen);
    TRY(s->fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
    TRY(close(seen));
    if (!(fcntl(s->fd, F_GET_SEALS) & F_SEAL_SHRINK)) return -1;
    TRY(fstat(s->fd, &file));
    if (file.st_size < (off_t)s->size) return -1;
    return map(s);
}

static int posix_bare_create(segment *s) {
    TRY(s->fd = shm_open(s->name, O_RDWR | O_CREAT, 0600));
    TRY(ftruncate(s->fd, (off_t)s->size));
    return map(s);
}

static int posix_bare_attach(segment *s, const segment *of) {
    TRY(s->fd = shm_open(of->name, O_RDWR, 0));
    return map(s);
}

static int posix_careful_create(segment *s) {
    struct statvfs system;
    unsigned long long bits;
    TRY(getrandom(&bits, sizeof bits, 0));
    strcpy(s->name, "/bench_");
    for (size_t i = 7; i < sizeof s->name - 1; i++, bits >>= 5)
        s->name[i] = "abcdefghijklmnopqrstuvwxyz234567"[bits & 31];
    TRY(s->fd = shm_open(s->name, O_RDWR | O_CREAT | O_EXCL, 0600));
    TRY(flock(s->fd, LOCK_SH | LOCK_NB));
    TRY(fstatvfs(s->fd, &system));
    if (system.f_bavail * system.f_frsize < s->size) return -1;
    TRY(ftruncate(s->fd, (off_t)s->size));
    return map(s);
}

static int posix_careful_attach(segment *s, const segment *of) {
    struct stat file;
    TRY(s->fd = shm_open(of->name, O_RDWR, 0));
    TRY(fstat(s->fd, &file));
    (void)flock(s->fd, LOCK_SH | LOCK_NB); /* who is attached is a sign of life, too */
    if (file.st_size < (off_t)s->size || file.st_uid != geteuid()) return -1;
    return map(s);
}

static int posix_destroy(segment *s) {
    TRY(munmap(s->data, s->size));
    TRY(shm_unlink(s->name));
    return close(s->fd);
}

static int sysv_bare_create(segment *s) {
    TRY(s->id = shmget(IPC_PRIVATE, s->size, IPC_CREAT | 0600));
    return at(s);
}

static int sysv_bare_attach(segment *s, const segment *of) {
    s->id = of->id;
    return at(s);
}

static int sysv_bare_destroy(segment *s) {
    TRY(dt(s));
    return shmctl(s->id, IPC_RMID, NULL);
}

static int sysv_careful_create(segment *s) {
    TRY(sysv_bare_create(s));
    return shmctl(s->id, IPC_RMID, NULL);
}

static int sysv_careful_attach(segment *s, const segment *of) {
    struct shmid_ds found;
    TRY(shmctl(of->id, IPC_STAT, &found));
    if (found.shm_segsz < s->size) return -1;
    return sysv_bare_attach(s, of);
}

static long fork_other(void (*tell)(shmp_description *), shmp_description *ret_description) {
    int ends[2];
    TRY(pipe2(ends, O_CLOEXEC));
    long pid = fork();
    if (pid == 0) {
        shmp_description description;
        tell(&description);
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (write(ends[1], &description, sizeof description) != sizeof description) _exit(1);
        for (;;) pause();
    }
    TRY(close(ends[1]));
    ssize_t got = pid < 0 ? -1 : read(ends[0], ret_description, sizeof *ret_description);
    TRY(close(ends[0]));
    return got == sizeof *ret_description ? pid : -1;
}

long (*const start_other)(void (*)(shmp_description *), shmp_description *) = fork_other;

int stop_other(long pid) {
    TRY(kill((pid_t)pid, SIGKILL));
    return waitpid((pid_t)pid, NULL, 0) < 0 ? -1 : 0;
}

const contender contenders[] = {
    {"memfd", "bare", memfd_bare_create, unmap_and_close, memfd_bare_attach, unmap_and_close, memfd_bare_attach_other},
    {"memfd", "careful", memfd_careful_create, unmap_and_close, memfd_careful_attach, unmap_and_close,
     memfd_careful_attach_other},
    {"memfd", "core", core_create, core_close, core_attach, core_close, core_attach_other},
    {"posix", "bare", posix_bare_create, posix_destroy, posix_bare_attach, unmap_and_close, NULL},
    {"posix", "careful", posix_careful_create, posix_destroy, posix_careful_attach, unmap_and_close, NULL},
    {"posix", "core", core_create, core_close, core_attach, core_close, NULL},
    {"sysv", "bare", sysv_bare_create, sysv_bare_destroy, sysv_bare_attach, dt, NULL},
    {"sysv", "careful", sysv_careful_create, dt, sysv_careful_attach, dt, NULL},
    {"sysv", "core", core_create, core_close, core_attach, core_close, NULL},
    {NULL, NULL, NULL, NULL, NULL, NULL, NULL},
};
