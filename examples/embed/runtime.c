/* The half of the fuzzer that is linked with a target: makes a program of LLVMFuzzerTestOneInput.
 *
 *   ./target FILE    runs it on one input
 *   ./target         started by a host: runs it on the input in FUZZ_INPUT whenever the host says so
 *
 * With a host, standard input is a socket. A byte from here says "ready", a byte from there "run". FUZZ_INPUT
 * is shared memory: the length, as a uint32_t, and the bytes. FUZZ_MAP is shared memory too: one byte for each
 * edge of the target, how often it was passed, which the host sets to 0 before each run.
 *
 * Compile this file without -fsanitize-coverage: gcc would have these callbacks call themselves. */
#define _POSIX_C_SOURCE 200809L
#include <shmem_providers.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
void __sanitizer_cov_trace_pc_guard_init(uint32_t *guard, uint32_t *end);
void __sanitizer_cov_trace_pc_guard(const uint32_t *guard);
void __sanitizer_cov_trace_pc(void);

static unsigned char *map; /* NULL without a host */
static size_t map_size;

static void hit(size_t edge) {
    if (!map) return;
    unsigned char *hits = &map[edge % map_size];
    if (*hits < 255) ++*hits; /* beginning again at 0 would hide the edge */
}

/* clang's -fsanitize-coverage=trace-pc-guard: a guard for each edge, to be numbered by us. */
void __sanitizer_cov_trace_pc_guard_init(uint32_t *guard, uint32_t *end) {
    static uint32_t edges;
    if (guard == end || *guard) return; /* some modules call twice */
    while (guard < end) *guard++ = ++edges;
}

void __sanitizer_cov_trace_pc_guard(const uint32_t *guard) { hit(*guard); }

/* gcc's -fsanitize-coverage=trace-pc. The distance is the same in every process, the address is not. */
void __sanitizer_cov_trace_pc(void) { hit((uintptr_t)__builtin_return_address(0) - (uintptr_t)LLVMFuzzerTestOneInput); }

static int fail(const shmp_error *error) {
    fprintf(stderr, "target: %s: %s: %s\n", error->call, shmp_error_text(error->code), error->message);
    return 2;
}

static int serve(void) {
    shmp_provider *provider;
    shmp_shmem *coverage, *input; /* open until the process ends, however it does */
    shmp_error error;
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* the host may die while an input hangs; at all other times read() tells */
#endif
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}); /* writing one takes longer than the host waits */
    if (shmp_check_abi(&error) < 0) return fail(&error);
    if (shmp_provider_open("std", NULL, &provider, &error) < 0) return fail(&error);
    if (shmp_from_env(provider, "FUZZ_MAP", 0, &coverage, &error) < 0) return fail(&error);
    if (shmp_from_env(provider, "FUZZ_INPUT", SHMP_READ_ONLY, &input, &error) < 0) return fail(&error);
    map_size = shmp_size(coverage);
    map = shmp_data(coverage);
    const unsigned char *data = shmp_data(input);
    for (char byte = 0; write(STDIN_FILENO, &byte, 1) == 1 && read(STDIN_FILENO, &byte, 1) == 1;) {
        uint32_t length;
        memcpy(&length, data, sizeof length);
        if (length > shmp_size(input) - sizeof length) return 2;
        LLVMFuzzerTestOneInput(data + sizeof length, length);
    }
    return 0;
}

static int run_file(const char *path) {
    static uint8_t bytes[1 << 20];
    FILE *file = fopen(path, "rb");
    size_t length = file ? fread(bytes, 1, sizeof bytes, file) : 0;
    if (!file || ferror(file) || fclose(file) != 0) {
        perror(path);
        return 2;
    }
    /* a copy of just this length, so that AddressSanitizer sees reads beyond it */
    uint8_t *data = malloc(length ? length : 1);
    if (!data) return 2;
    memcpy(data, bytes, length);
    LLVMFuzzerTestOneInput(data, length);
    free(data);
    return 0;
}

int main(int count, char **arguments) { return count > 1 ? run_file(arguments[1]) : serve(); }
