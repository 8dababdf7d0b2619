#include "os/platform.h"
#if SHMP_HAVE_ASHMEM
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64

#include "os/fault.h"
#include "os/os_ashmem.h"

#include <fcntl.h>
#include <linux/ioctl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Few systems have linux/ashmem.h. A process of 32 bits has other numbers for SET_SIZE and SET_PROT_MASK. */
#define SET_NAME _IOW(0x77, 1, char[SHMP__OS_ASHMEM_NAME])
#define GET_NAME _IOR(0x77, 2, char[SHMP__OS_ASHMEM_NAME])
#define SET_SIZE _IOW(0x77, 3, size_t)
#define GET_SIZE _IO(0x77, 4)
#define SET_PROT_MASK _IOW(0x77, 5, unsigned long)

/* The type of a request is another in each libc. */
#define ioctl(fd, request, argument) (int)syscall(SYS_ioctl, fd, request, argument)

/* Android 8 has the functions, Android 10 has closed the driver to apps. A test names a stand-in. */
#if defined(__ANDROID__) && !defined(SHMP_ASHMEM_LIBRARY)
#define SHMP_ASHMEM_LIBRARY "libandroid.so"
#endif

#if defined(SHMP_ASHMEM_LIBRARY)
#include <dlfcn.h>

/* ISO C knows no way from an object's address to a function's. */
static int find(void *library, const char *name, void *ret_function) {
    void *found = dlsym(library, name);
    memcpy(ret_function, &found, sizeof found);
    return found != NULL;
}

static int open_library(shmp__os_ashmem *ashmem) {
    void *library = dlopen(SHMP_ASHMEM_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library) return 0;
    if (find(library, "ASharedMemory_create", &ashmem->create) &&
        find(library, "ASharedMemory_getSize", &ashmem->size_of) &&
        find(library, "ASharedMemory_setProt", &ashmem->protect)) {
        ashmem->library = library;
        return 1;
    }
    (void)dlclose(library);
    return 0;
}

void shmp__os_ashmem_end(shmp__os_ashmem *ashmem) {
    if (ashmem->library) (void)dlclose(ashmem->library);
}

#else

static int open_library(shmp__os_ashmem *ashmem) {
    (void)ashmem;
    return 0;
}

void shmp__os_ashmem_end(shmp__os_ashmem *ashmem) { (void)ashmem; }

#endif

static const char node[] = "/dev/ashmem";

/* Since Android 10 the node that is open to some is called after the boot. */
static void name_of_this_boot(shmp__os_ashmem *ashmem) {
    enum { LENGTH = 36 };
    char id[LENGTH + 1] = "";
    int fd;
    RETRIED(fd, SYS(open, ("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC)));
    if (fd < 0) return;
    ssize_t got;
    RETRIED(got, SYS(read, (fd, id, LENGTH)));
    (void)shmp__os_close(fd);
    if (got == LENGTH) snprintf(ashmem->path, sizeof ashmem->path, "%s%s", node, id);
}

int shmp__os_ashmem_new(const shmp__os_ashmem *ashmem) {
    int result;
    RETRIED(result, SYS(open, (ashmem->path, O_RDWR | O_CLOEXEC | O_NOCTTY)));
    return shmp__os_above_stdio(result);
}

static int look_at_node(shmp__os_ashmem *ashmem) {
    struct stat file;
    int fd = shmp__os_ashmem_new(ashmem);
    if (fd < 0) return fd;
    int result = result_of(SYS(fstat, (fd, &file)));
    if (result == 0 && (!S_ISCHR(file.st_mode) || SYS(ioctl, (fd, GET_SIZE, 0)) < 0)) result = -ENOTTY;
    if (result == 0) ashmem->device = (unsigned long long)file.st_rdev;
    (void)shmp__os_close(fd);
    return result;
}

int shmp__os_ashmem_open(shmp__os_ashmem *ret_ashmem) {
    if (open_library(ret_ashmem)) return 0;
    name_of_this_boot(ret_ashmem);
    if (ret_ashmem->path[0] && look_at_node(ret_ashmem) == 0) return 0;
    snprintf(ret_ashmem->path, sizeof ret_ashmem->path, "%s", node);
    return look_at_node(ret_ashmem);
}

int shmp__os_ashmem_set_name(int fd, const char name[SHMP__OS_ASHMEM_NAME]) {
    return result_of(SYS(ioctl, (fd, SET_NAME, name)));
}

int shmp__os_ashmem_set_size(int fd, size_t size) { return result_of(SYS(ioctl, (fd, SET_SIZE, size))); }

int shmp__os_ashmem_create(const shmp__os_ashmem *ashmem, const char *name, size_t size) {
    int fd = ashmem->create(name, size);
    if (fd < 0 && fd != -1) return fd; /* newer ones give the error */
    fd = shmp__os_above_stdio(fd);
    if (fd < 0) return fd;
    int result = result_of(SYS(fcntl, (fd, F_SETFD, FD_CLOEXEC)));
    if (result == 0) return fd;
    (void)shmp__os_close(fd);
    return result;
}

int shmp__os_is_ashmem(const shmp__os_ashmem *ashmem, int fd) {
    struct stat file;
    if (ashmem->library) return ashmem->size_of(fd) > 0;
    if (SYS(fstat, (fd, &file)) < 0) return -errno;
    return S_ISCHR(file.st_mode) && (unsigned long long)file.st_rdev == ashmem->device;
}

/* GET_SIZE is an int: 2 GiB are negative, 4 GiB are 0. The place where reading goes on is moved for all who share the
 * region, and so goes back to the beginning. */
int shmp__os_ashmem_size(const shmp__os_ashmem *ashmem, int fd, unsigned long long *ret_size) {
    if (ashmem->library) {
        *ret_size = ashmem->size_of(fd);
        return *ret_size > 0 ? 0 : -EINVAL;
    }
    off_t size = SYS(lseek, (fd, 0, SEEK_END));
    if (size < 0) return -errno;
    (void)lseek(fd, 0, SEEK_SET);
    *ret_size = (unsigned long long)size;
    return 0;
}

int shmp__os_ashmem_protect(const shmp__os_ashmem *ashmem, int fd) {
    if (ashmem->library) return result_of(ashmem->protect(fd, PROT_READ));
    return result_of(SYS(ioctl, (fd, SET_PROT_MASK, (unsigned long)PROT_READ)));
}

/* FNV-1a */
static unsigned hash_of(const char *text) {
    uint32_t hash = 2166136261u;
    for (; *text; text++) hash = (hash ^ (unsigned char)*text) * 16777619u;
    return hash;
}

int shmp__os_ashmem_mark(const shmp__os_ashmem *ashmem, int fd, unsigned *ret_mark) {
    char name[SHMP__OS_ASHMEM_NAME] = "";
    struct stat file;
    if (SYS(ioctl, (fd, GET_NAME, name)) == 0) {
        name[sizeof name - 1] = 0;
        *ret_mark = hash_of(name);
        return 0;
    }
    if (!ashmem->library) return -errno;
    if (SYS(fstat, (fd, &file)) < 0) return -errno;
    *ret_mark = (uint32_t)file.st_ino;
    return 0;
}

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif
#define pidfd_open(pid) (int)syscall(SYS_pidfd_open, pid, 0)
#define pidfd_getfd(process, fd) (int)syscall(SYS_pidfd_getfd, process, fd, 0)

/* Opening it through /proc would make another region. What is found of a process is its own as long as it lives. */
int shmp__os_take_fd_of(long pid, int fd, unsigned long *ret_user) {
    int process = SYS(pidfd_open, ((int)pid));
    if (process < 0) return errno == ESRCH || errno == EINVAL ? -ENOENT : -errno;
    int taken = shmp__os_user_of(pid, ret_user);
    if (taken == 0) {
        taken = SYS(pidfd_getfd, (process, fd));
        if (taken < 0 && (errno == EBADF || errno == ESRCH)) errno = ENOENT;
        taken = shmp__os_above_stdio(taken);
    }
    (void)shmp__os_close(process);
    return taken;
}

#endif
