/* Creating and closing a segment of ashmem against the same calls without this library, at 4 KiB. Compiled with
 * -DSHMP_STATIC -Icsrc/include -Icsrc and all of csrc/core, csrc/backend and csrc/os, it is run by
 *
 *   VM_CLOCK=instructions tools/ashmem_vm.sh ./ratio
 *
 * Exits with 1 when the median of the ratios is above the one that is promised. */
#define _GNU_SOURCE
#include "shmem_providers.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 4096, ROUNDS = 61, TIMES = 300 };
static const double promised = 1.25;

static double now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static void bare(void) {
    char name[256] = "bare";
    int fd = open("/dev/ashmem", O_RDWR | O_CLOEXEC);
    if (ioctl(fd, _IOW(0x77, 1, char[256]), name) < 0 || ioctl(fd, _IOW(0x77, 3, size_t), (size_t)SIZE) < 0) abort();
    void *data = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED || munmap(data, SIZE) < 0 || close(fd) < 0) abort();
}

static void ours(shmp_provider *provider) {
    shmp_shmem *shmem;
    if (shmp_create(provider, SIZE, 0, &shmem, NULL) < 0 || shmp_close(shmem, NULL) < 0) abort();
}

static int by_value(const void *left, const void *right) {
    double one = *(const double *)left, other = *(const double *)right;
    return (one > other) - (one < other);
}

int main(void) {
    static double of_bare[ROUNDS], of_ours[ROUNDS], ratios[ROUNDS];
    shmp_provider *provider;
    shmp_error error;
    if (shmp_provider_open("ashmem", NULL, &provider, &error) < 0) {
        fprintf(stderr, "%s: %s\n", error.call, error.message);
        return 1;
    }
    for (int round = 0; round < ROUNDS; round++) {
        double start = now_us();
        for (int i = 0; i < TIMES; i++) bare();
        double middle = now_us();
        for (int i = 0; i < TIMES; i++) ours(provider);
        of_bare[round] = (middle - start) / TIMES;
        of_ours[round] = (now_us() - middle) / TIMES;
        ratios[round] = of_ours[round] / of_bare[round];
    }
    shmp_provider_close(provider);
    qsort(of_bare, ROUNDS, sizeof *of_bare, by_value);
    qsort(of_ours, ROUNDS, sizeof *of_ours, by_value);
    qsort(ratios, ROUNDS, sizeof *ratios, by_value);
    printf("bare %.1f us, shmem_providers %.1f us: %.2f times\n", of_bare[ROUNDS / 2], of_ours[ROUNDS / 2],
           ratios[ROUNDS / 2]);
    return ratios[ROUNDS / 2] > promised;
}
