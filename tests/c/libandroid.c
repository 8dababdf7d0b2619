/* Stands in for Android's libandroid.so, where that is not: ASharedMemory_... over memfd, as newer Androids have them.
 * What it tests is how the library is found and called, and nothing of Android. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x10 /* Linux 5.1 */
#endif

int ASharedMemory_create(const char *name, size_t size);
size_t ASharedMemory_getSize(int fd);
int ASharedMemory_setProt(int fd, int prot);

int ASharedMemory_create(const char *name, size_t size) {
    if (size == 0) return -EINVAL;
    int fd = memfd_create(name, MFD_ALLOW_SEALING);
    if (fd < 0) return -1;
    if (ftruncate(fd, (off_t)size) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) == 0) return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

size_t ASharedMemory_getSize(int fd) {
    struct stat file;
    int seals = fcntl(fd, F_GET_SEALS), wanted = F_SEAL_GROW | F_SEAL_SHRINK;
    if (seals < 0 || (seals & wanted) != wanted || fstat(fd, &file) < 0) return 0;
    return (size_t)file.st_size;
}

int ASharedMemory_setProt(int fd, int prot) {
    if (prot & PROT_WRITE) return 0;
    return fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE);
}
