/* A small coverage-guided fuzzer that shares its memory with the target through shmem_providers.
 *
 *   ./host [-s SEED] [-n RUNS] [-t MILLISECONDS] [-o FILE] TARGET
 *
 * Ends with 1 at the first input that crashes the target or takes longer than MILLISECONDS (1000), having written it
 * to FILE ("crash"); with 0 after RUNS, or at SIGINT or SIGTERM; with 2 when something is wrong. The same SEED gives
 * the same runs. TARGET is linked with runtime.c, where is said what the two tell each other. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <limits.h>
#include <shmem_providers.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAP_SIZE = 65536, MOST_BYTES = 1024, MOST_INPUTS = 4096 };

struct input {
    uint32_t length;
    unsigned char bytes[MOST_BYTES];
};

static unsigned char *map;   /* shared: the target counts here how often it passes each edge */
static struct input *shared; /* shared: what the target runs on; it cannot write here */

static struct input corpus[MOST_INPUTS]; /* inputs that reached something new; the oldest is replaced */
static unsigned char seen[MAP_SIZE];     /* a bit for each bucket of hits */
static size_t inputs, edges;

static int wire = -1;
static pid_t target;
static volatile sig_atomic_t interrupted;
static void interrupt(int signal) { interrupted = signal; }

static int fail(const char *call) {
    fprintf(stderr, "host: %s: %s\n", call, strerror(errno));
    return -1;
}

static int share(shmp_provider *provider, size_t size, const char *name, shmp_shmem **ret_shmem, shmp_error *reterr) {
    /* Reserved: were there no memory later, the target would die of SIGBUS, which looks like a bug of its own. */
    int result = shmp_create(provider, size, SHMP_RESERVE, ret_shmem, reterr);
    return result < 0 ? result : shmp_to_env(*ret_shmem, name, reterr);
}

enum outcome { RAN, CRASHED, HUNG };

static enum outcome wait_for_target(void) {
    char byte;
    ssize_t got;
    do got = recv(wire, &byte, 1, 0);
    while (got < 0 && errno == EINTR && !interrupted);
    if (got == 1 || (got < 0 && errno == EINTR)) return RAN; /* or still runs, and is not waited for any longer */
    return got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? HUNG : CRASHED;
}

static int start_target(char **command, long long timeout) {
    int ends[2];
    struct timeval patience = {.tv_sec = (time_t)(timeout / 1000), .tv_usec = (suseconds_t)(timeout % 1000 * 1000)};
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0) return fail("socketpair");
    wire = ends[0];
    target = fork();
    if (target == 0) {
        (void)setpgid(0, 0); /* a terminal's ^C is for the host alone */
        (void)close(wire);   /* or it would never see the host's end */
        if (dup2(ends[1], 0) == 0) execv(command[0], command);
        (void)fail(command[0]);
        _exit(2);
    }
    (void)close(ends[1]);
    if (target < 0) return fail("fork");
    if (setsockopt(wire, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) < 0) return fail("setsockopt");
    if (wait_for_target() == RAN) return 0;
    fprintf(stderr, "host: %s is not ready: is it linked with runtime.c?\n", command[0]);
    return -1;
}

static enum outcome run_target(void) {
    memset(map, 0, MAP_SIZE);
    return send(wire, "", 1, MSG_NOSIGNAL) == 1 ? wait_for_target() : CRASHED;
}

/* Gives what ended it. One that has ended already cannot be killed any more. */
static int stop_target(void) {
    int status = 0;
    if (target <= 0) return 0;
    (void)kill(target, SIGKILL);
    while (waitpid(target, &status, 0) < 0 && errno == EINTR) continue;
    target = 0;
    return status;
}

/* AFL's: one bit for how often an edge was passed, so that not every turn of a loop is news. */
static unsigned char bucket(unsigned char hits) {
    if (hits <= 2) return hits;
    return hits == 3 ? 4 : hits < 8 ? 8 : hits < 16 ? 16 : hits < 32 ? 32 : hits < 128 ? 64 : 128;
}

static int is_new(void) {
    int found = 0;
    for (size_t word = 0; word < MAP_SIZE; word += sizeof(uint64_t)) {
        uint64_t any;
        memcpy(&any, map + word, sizeof any);
        if (!any) continue; /* most of the map */
        for (size_t edge = word; edge < word + sizeof any; edge++) {
            unsigned char bit = bucket(map[edge]);
            edges += bit && !seen[edge];
            found |= bit & ~seen[edge];
            seen[edge] |= bit;
        }
    }
    return found;
}

static uint64_t random_state;
static size_t below(size_t limit) { /* splitmix64 */
    uint64_t x = random_state += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (size_t)((x ^ x >> 31) % limit);
}
static size_t least(size_t a, size_t b) { return a < b ? a : b; }

static const struct input *choose(void) { /* a new one rather than an old one */
    return &corpus[least(inputs, MOST_INPUTS) - 1 - below(below(least(inputs, MOST_INPUTS)) + 1)];
}

/* Puts `added` bytes in place of `removed` ones. */
static void splice(struct input *input, size_t at, size_t removed, const unsigned char *bytes, size_t added) {
    added = least(added, MOST_BYTES - (input->length - removed));
    memmove(input->bytes + at + added, input->bytes + at + removed, input->length - at - removed);
    memcpy(input->bytes + at, bytes, added);
    input->length = (uint32_t)(input->length - removed + added);
}

static void mutate(struct input *input) {
    const struct input *piece;
    *input = *choose();
    for (size_t left = 1 + below(3); left > 0; left--) {
        size_t at = below(input->length + 1u), rest = input->length - at;
        unsigned char byte = (unsigned char)below(below(2) ? 256 : 17); /* lengths and counts are small */
        switch (below(5)) {
        case 0: splice(input, at, 0, &byte, 1); break;
        case 1: splice(input, at, least(rest, byte % 8u), &byte, 0); break;
        case 2: /* a piece of another input */
            piece = choose();
            size_t from = below(piece->length + 1u), length = below(least(piece->length - from, 32) + 1);
            splice(input, at, below(2) ? least(rest, length) : 0, piece->bytes + from, length);
            break;
        default: splice(input, at, least(rest, 1), &byte, 1);
        }
    }
}

static int save(const char *path) {
    FILE *file = fopen(path, "wb");
    size_t written = file ? fwrite(shared->bytes, 1, shared->length, file) : 0;
    return !file || fclose(file) != 0 || written != shared->length ? fail(path) : 0;
}

static double now(void) {
    struct timespec time;
    (void)clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static int fuzz(long long most, const char *path) {
    enum outcome outcome = RAN;
    long long runs = 0;
    double start = now();
    while (outcome == RAN && !interrupted && runs < most) {
        if (inputs) mutate(shared); /* the first is the empty one */
        outcome = run_target();
        runs++;
        size_t before = edges;
        if (outcome == RAN && (is_new() || !inputs)) corpus[inputs++ % MOST_INPUTS] = *shared;
        if (edges > before) printf("%lld runs, %zu edges, %zu inputs\n", runs, edges, inputs);
        if (outcome == RAN && !edges && runs == 1)
            fprintf(stderr, "host: no coverage: compile with -fsanitize-coverage\n");
    }
    double seconds = now() - start;
    int status = stop_target();
    printf("%lld runs, %zu edges, %zu inputs in %.1f s: %.0f runs a second\n", runs, edges, inputs, seconds,
           (double)runs / seconds);
    if (outcome != CRASHED && outcome != HUNG) return 0;
    if (save(path) < 0) return 2;
    const char *what = outcome == HUNG ? "hang" : WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "exit";
    printf("%s, on the %u bytes in %s\n", what, (unsigned)shared->length, path);
    return 1;
}

static long long number(const char *text) { /* -1 when it is none */
    char *end;
    long long value = strtoll(text, &end, 10);
    return end == text || *end ? -1 : value;
}

int main(int count, char **arguments) {
    long long seed = (long long)time(NULL), runs = LLONG_MAX, timeout = 1000;
    const char *path = "crash";
    int result = 2;
    for (int option; (option = getopt(count, arguments, "s:n:t:o:")) != -1;) {
        switch (option) {
        case 's': seed = number(optarg); break;
        case 'n': runs = number(optarg); break;
        case 't': timeout = number(optarg); break;
        case 'o': path = optarg; break;
        default: optind = count;
        }
    }
    if (seed < 0 || runs < 0 || timeout < 1 || optind >= count) {
        fprintf(stderr, "usage: %s [-s SEED] [-n RUNS] [-t MILLISECONDS] [-o FILE] TARGET\n", arguments[0]);
        return 2;
    }
    (void)setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    printf("seed %lld\n", seed);
    random_state = (uint64_t)seed;

    struct sigaction action = {.sa_handler = interrupt};
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);

    shmp_provider *provider = NULL;
    shmp_shmem *coverage = NULL, *input = NULL;
    shmp_error error;
    if (shmp_check_abi(&error) < 0 || shmp_provider_open("std", NULL, &provider, &error) < 0 ||
        share(provider, MAP_SIZE, "FUZZ_MAP", &coverage, &error) < 0 ||
        share(provider, sizeof *shared, "FUZZ_INPUT", &input, &error) < 0) {
        fprintf(stderr, "host: %s: %s: %s\n", error.call, shmp_error_text(error.code), error.message);
    } else if (start_target(arguments + optind, timeout) == 0) {
        map = shmp_data(coverage);
        shared = shmp_data(input);
        result = fuzz(runs, path);
    }
    (void)stop_target();
    if (wire >= 0) (void)close(wire);
    (void)shmp_close(input, NULL);
    (void)shmp_close(coverage, NULL);
    shmp_provider_close(provider);
    return result;
}
