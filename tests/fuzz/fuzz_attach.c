/* Fuzzes shmp_attach: 1 byte for the provider, 1 for what the id begins as (a live segment's, or
 * nothing), flags, 8 bytes of size, and what is written over the id. Everything is attached
 * read-only, for it may be any process's; nothing but the fuzzer's own segments is ever made. */
#define _GNU_SOURCE
#include "holds.h"
#include "shmem_providers.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const names[] = {"std", "memfd", "posix", "sysv"};
enum { PROVIDERS = sizeof names / sizeof *names, SIZE = 5000, HEAD = 11 };

static shmp_provider *providers[PROVIDERS];
static shmp_shmem *segments[PROVIDERS];

static void close_segments(void) {
    for (int i = 0; i < PROVIDERS; i++) HOLDS(shmp_close(segments[i], NULL) == 0);
}

static int next_fd(void) {
    int fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);
    close(fd);
    return fd;
}

int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    shmp_provider_options options = {.struct_size = sizeof options, .flags = SHMP_KEEP_LEFTOVERS};
    (void)argc, (void)argv;
    for (int i = 0; i < PROVIDERS; i++) {
        HOLDS(shmp_provider_open(names[i], &options, &providers[i], NULL) == 0);
        HOLDS(shmp_create(providers[i], SIZE, 0, &segments[i], NULL) == 0);
    }
    return atexit(close_segments);
}

static void check_attached(shmp_shmem *shmem, const shmp_description *what, unsigned flags) {
    const volatile unsigned char *bytes = shmp_data(shmem);
    HOLDS(shmp_flags(shmem) == SHMP_READ_ONLY);
    HOLDS(shmp_size(shmem) == what->size || flags & SHMP_WHOLE);
    (void)(bytes[0] + bytes[shmp_size(shmem) - 1]);
    HOLDS(shmp_close(shmem, NULL) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length) {
    shmp_description what = {.size = SIZE};
    shmp_shmem *const untouched = (shmp_shmem *)(void *)&what;
    shmp_shmem *shmem = untouched;
    shmp_error error;
    if (length < HEAD || length > HEAD + sizeof what.id) return -1;
    shmp_provider *provider = providers[data[0] % PROVIDERS];
    unsigned base = data[1] % (PROVIDERS + 1), flags = data[2] | SHMP_READ_ONLY;
    if (base < PROVIDERS) HOLDS(shmp_describe(segments[base], &what, NULL) == 0);
    if (data[3] || base == PROVIDERS) memcpy(&what.size, data + 3, sizeof what.size);
    for (size_t i = HEAD; i < length; i++)
        if (data[i] != '*' || base == PROVIDERS) what.id[i - HEAD] = (char)data[i]; /* '*': leave it */
    int free_fd = next_fd();
    int result = shmp_attach(provider, &what, flags, &shmem, &error);
    if (result == 0) {
        check_attached(shmem, &what, flags);
    } else {
        HOLDS(result == error.code && error.call && shmem == untouched);
        HOLDS(memchr(error.message, 0, sizeof error.message));
    }
    HOLDS(next_fd() == free_fd);
    return 0;
}
