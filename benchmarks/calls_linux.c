/* The contenders of Linux. */
#define _GNU_SOURCE
#include "calls.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
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
    TRY(flock(s->fd, LOCK_SH));
    TRY(fstatvfs(s->fd, &system));
    if (system.f_bavail * system.f_frsize < s->size) return -1;
    TRY(ftruncate(s->fd, (off_t)s->size));
    return map(s);
}

static int posix_careful_attach(segment *s, const segment *of) {
    struct stat file;
    TRY(s->fd = shm_open(of->name, O_RDWR, 0));
    TRY(fstat(s->fd, &file));
    if (file.st_size < (off_t)s->size) return -1;
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

const contender contenders[] = {
    {"memfd", "bare", memfd_bare_create, unmap_and_close, memfd_bare_attach, unmap_and_close},
    {"memfd", "careful", memfd_careful_create, unmap_and_close, memfd_careful_attach, unmap_and_close},
    {"memfd", "core", core_create, core_close, core_attach, core_close},
    {"posix", "bare", posix_bare_create, posix_destroy, posix_bare_attach, unmap_and_close},
    {"posix", "careful", posix_careful_create, posix_destroy, posix_careful_attach, unmap_and_close},
    {"posix", "core", core_create, core_close, core_attach, core_close},
    {"sysv", "bare", sysv_bare_create, sysv_bare_destroy, sysv_bare_attach, dt},
    {"sysv", "careful", sysv_careful_create, dt, sysv_careful_attach, dt},
    {"sysv", "core", core_create, core_close, core_attach, core_close},
    {NULL, NULL, NULL, NULL, NULL, NULL},
};
