/* A fuzzer for what AFL++'s afl-cc made.
 *
 *   ./host [-s SEED] [-n RUNS] [-t MILLISECONDS] TARGET [ARGUMENT...]
 *
 * An argument "@@" is the file with the input, for a target that reads one. Ends with 1 at the first input that crashes
 * the target, having written it to "crash"; with 0 after RUNS; with 2 when something is wrong. What takes longer than
 * MILLISECONDS (1000) is written to "hang". AFL++ calls what answers us the fork server: it is in the target. */
#define _GNU_SOURCE /* memfd_create, pipe2 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <shmem_providers.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAP_SIZE = 8 << 20, SHARED_SIZE = 4 + (1 << 20) }; /* as afl-fuzz; only what is touched becomes memory */
enum { MOST_BYTES = 1024, MOST_INPUTS = 4096, MOST_TOKENS = 1024 };
enum { HEAR = 198, ANSWER = 199 }; /* the descriptors of the fork server */

struct bytes {
    uint32_t length;
    unsigned char bytes[MOST_BYTES];
};

static unsigned char *map; /* shared: the target counts here how often it passes each edge */
static uint32_t map_size;  /* what it uses of it */
static void *shared;       /* a length and so many bytes: the input, if the target takes it from here */
static int takes_shared, file, say_to, hear_from;
static int patience; /* milliseconds */
static pid_t keeper;

static struct bytes corpus[MOST_INPUTS], tokens[MOST_TOKENS]; /* the oldest input is replaced */
static unsigned char seen[MAP_SIZE];                          /* a bit for each bucket of hits */
static size_t inputs, edges, token_count;

static int fail(const char *call) {
    fprintf(stderr, "host: %s: %s\n", call, strerror(errno));
    return -1;
}

static int refuse(const char *why, uint32_t word) {
    fprintf(stderr, "host: %s (0x%08x)\n", why, (unsigned)word);
    return -1;
}

/* AFL++ marks a target that does many runs in a process, and one that says itself when to start. */
static int mark_to_env(const char *path, const char *mark, const char *name) {
    FILE *program = fopen(path, "rb");
    if (!program) return fail(path);
    size_t matched = 0;
    for (int c; mark[matched] && (c = getc_unlocked(program)) != EOF;)
        matched = c == mark[matched] ? matched + 1 : c != '#' ? 0 : matched == 2 ? 2 : 1; /* it begins with ## */
    (void)fclose(program);
    return mark[matched] ? unsetenv(name) : setenv(name, "1", 1);
}

/* The keeper: the target's parent, which dies with us, and with it all its group: also a process that is stopped
 * between two runs, and would stay for ever. */
static void end_all(int signal) {
    (void)signal;
    (void)kill(0, SIGKILL);
}

static int start_target(char **command) {
    int to[2], from[2];
    pid_t host = getpid();
    if ((file = memfd_create("input", MFD_CLOEXEC)) < 0) return fail("memfd_create");
    if (pipe2(to, O_CLOEXEC) < 0 || pipe2(from, O_CLOEXEC) < 0) return fail("pipe2");
    say_to = to[1];
    hear_from = from[0];
    if ((keeper = fork()) < 0) return fail("fork");
    if (keeper == 0) {
        (void)setpgid(0, 0); /* a terminal's ^C is for the host alone */
        (void)signal(SIGTERM, end_all);
        (void)signal(SIGCHLD, end_all); /* the fork server's processes would not end with it either */
        if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0 || getppid() != host) _exit(2);
        pid_t target = fork();
        if (target == 0) {
            struct rlimit none = {0, 0};
            (void)setrlimit(RLIMIT_CORE, &none);
            (void)signal(SIGPIPE, SIG_DFL);
            if (dup2(file, 0) == 0 && dup2(to[0], HEAR) == HEAR && dup2(from[1], ANSWER) == ANSWER)
                execv(command[0], command);
            (void)fail(command[0]);
            _exit(2);
        }
        for (int end = 0; end < 2; end++) { /* or the host would not see the target's end */
            (void)close(to[end]);
            (void)close(from[end]);
        }
        while (target > 0) pause();
        _exit(2);
    }
    (void)setpgid(keeper, keeper); /* whoever is first */
    (void)close(to[0]);
    (void)close(from[1]);
    return 0;
}

static void stop_target(void) {
    if (keeper <= 0) return;
    (void)kill(-keeper, SIGKILL);
    while (waitpid(keeper, NULL, 0) < 0 && errno == EINTR) continue;
    keeper = 0;
}

static int hear(void *bytes, size_t size) {
    size_t had = 0;
    for (ssize_t got; had < size; had += (size_t)got) {
        got = read(hear_from, (char *)bytes + had, size - had);
        if (got < 0 && errno == EINTR)
            got = 0;
        else if (got <= 0)
            return 0;
    }
    return 1;
}
static int say(uint32_t word) { return write(say_to, &word, sizeof word) == sizeof word; }

static int answers_within(int milliseconds) {
    struct pollfd answer = {.fd = hear_from, .events = POLLIN};
    return poll(&answer, 1, milliseconds) == 1;
}

static int read_dictionary(void) { /* a length, so many bytes, and so on */
    uint32_t left;
    unsigned char length;
    if (!hear(&left, sizeof left)) return 0;
    while (left > 0) {
        struct bytes *token = &tokens[token_count % MOST_TOKENS];
        if (!hear(&length, 1) || length >= left || !hear(token->bytes, length)) return 0;
        token->length = length;
        token_count++;
        left -= 1u + length;
    }
    return 1;
}

static int shake_hands(void) {
    uint32_t hello = 0, offers[2], word;
    int longer = patience > INT_MAX / 10 ? INT_MAX : patience * 10; /* a start takes longer than a run */
    if (!answers_within(longer) || !hear(&hello, sizeof hello))
        return refuse("the target does not answer: was it made by afl-cc, and does it start by hand?", hello);
    if (hello >> 16 == 0xeffe || (hello & 0xf80000ff) == 0xf800008f) {
        uint32_t code = hello >> 16 == 0xeffe ? hello & 0xffff : hello >> 8 & 0xffff;
        return refuse(code == 1   ? "the target's map does not fit into AFL_MAP_SIZE"
                      : code == 8 ? "the target cannot attach to the segments"
                                  : "the target cannot start",
                      hello);
    }
    if (hello >> 8 == 0x41464c) { /* AFL++ 4.20 and later */
        if (hello != 0x41464c01) return refuse("the target speaks a later version of the protocol", hello);
        if (!say(hello ^ 0xffffffff) || !hear(offers, sizeof offers)) return refuse("the target has ended", hello);
        map_size = offers[1];
        takes_shared = (offers[0] & 0x2) != 0;
        if (((offers[0] & 0x800) && !read_dictionary()) || !hear(&word, sizeof word) || word != hello)
            return refuse("the target breaks off the hand-shake", offers[0]);
    } else { /* all is in the hello, which is answered only if it offers something */
        map_size = hello & 0x40000000 ? (hello >> 1 & 0x7fffff) + 1 : 65536;
        takes_shared = (hello & 0x01000000) != 0;
        if ((hello & 0x11000000) && !say(0x80000001 | (hello & 0x11000000)))
            return refuse("the target has ended", hello);
        if ((hello & 0x10000000) && !read_dictionary()) return refuse("the target breaks off the hand-shake", hello);
    }
    if (map_size > MAP_SIZE) return refuse("the target's map is larger than MAP_SIZE", map_size); /* nor does it look */
    map_size = (map_size + 7) / 8 * 8;
    return 0;
}

enum outcome { RAN, CRASHED, HUNG, FAILED };

static enum outcome run_target(const struct bytes *input, int *ret_status) {
    static uint32_t was_killed;
    int32_t pid = 0, status = 0;
    if (takes_shared) {
        memcpy(shared, input, sizeof input->length + input->length);
    } else if (pwrite(file, input->bytes, input->length, 0) != (ssize_t)input->length ||
               ftruncate(file, (off_t)input->length) < 0 || lseek(file, 0, SEEK_SET) < 0) {
        (void)fail("input");
        return FAILED;
    }
    memset(map, 0, map_size);
    if (!say(was_killed) || !hear(&pid, sizeof pid) || pid <= 0) {
        (void)refuse("the target has ended, or can fork no more", (uint32_t)pid);
        return FAILED;
    }
    was_killed = !answers_within(patience);
    if (was_killed) (void)kill((pid_t)pid, SIGKILL);
    if (!hear(&status, sizeof status)) return FAILED;
    *ret_status = status;
    return was_killed            ? HUNG
           : WIFSIGNALED(status) ? CRASHED
                                 : RAN; /* one that is stopped goes on with the next input */
}

/* AFL's: one bit for how often an edge was passed, so that not every turn of a loop is news. */
static unsigned char bucket(unsigned char hits) {
    if (hits <= 2) return hits;
    return hits == 3 ? 4 : hits < 8 ? 8 : hits < 16 ? 16 : hits < 32 ? 32 : hits < 128 ? 64 : 128;
}

static int is_new(void) {
    int found = 0;
    for (size_t word = 0; word < map_size; word += sizeof(uint64_t)) {
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

static const struct bytes *choose(void) { /* a new one rather than an old one */
    return &corpus[least(inputs, MOST_INPUTS) - 1 - below(below(least(inputs, MOST_INPUTS)) + 1)];
}

/* Puts `added` bytes in place of `removed` ones. */
static void replace(struct bytes *input, size_t at, size_t removed, const unsigned char *bytes, size_t added) {
    added = least(added, MOST_BYTES - (input->length - removed));
    memmove(input->bytes + at + added, input->bytes + at + removed, input->length - at - removed);
    memcpy(input->bytes + at, bytes, added);
    input->length = (uint32_t)(input->length - removed + added);
}

static void mutate(struct bytes *input) {
    const struct bytes *piece;
    *input = *choose();
    for (size_t left = 1 + below(3); left > 0; left--) {
        size_t at = below(input->length + 1u), rest = input->length - at;
        unsigned char byte = (unsigned char)below(256);
        switch (below(5)) {
        case 0: replace(input, at, 0, &byte, 1); break;
        case 1: replace(input, at, least(rest, byte % 8u), &byte, 0); break;
        case 2: /* a word of the target's dictionary, or the beginning of another input */
            piece = token_count ? &tokens[below(least(token_count, MOST_TOKENS))] : choose();
            replace(input, at, 0, piece->bytes, token_count ? piece->length : below(least(piece->length, 32) + 1));
            break;
        default: replace(input, at, least(rest, 1), &byte, 1);
        }
    }
}

static int save(const char *path, const struct bytes *input) {
    FILE *saved = fopen(path, "wb");
    size_t written = saved ? fwrite(input->bytes, 1, input->length, saved) : 0;
    return !saved || fclose(saved) != 0 || written != input->length ? fail(path) : 0;
}

static double now(void) {
    struct timespec time;
    (void)clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static int fuzz(long long most) {
    static struct bytes input = {.length = 1, .bytes = "\n"};
    enum outcome outcome = RAN;
    int status = 0;
    long long runs = 0;
    double start = now();
    while (runs < most && outcome != CRASHED) {
        if (inputs) mutate(&input);
        outcome = run_target(&input, &status);
        runs++;
        size_t before = edges;
        if (outcome == RAN && (is_new() || !inputs)) corpus[inputs++ % MOST_INPUTS] = input;
        if (edges > before) printf("%lld runs, %zu edges, %zu inputs\n", runs, edges, inputs);
        if (outcome == FAILED || (outcome == HUNG && save("hang", &input) < 0)) return 2;
    }
    double seconds = now() - start;
    printf("%lld runs, %zu edges, %zu inputs in %.1f s: %.0f runs a second\n", runs, edges, inputs, seconds,
           (double)runs / seconds);
    if (outcome != CRASHED) return 0;
    if (save("crash", &input) < 0) return 2;
    printf("%s, on the %u bytes in crash\n", strsignal(WTERMSIG(status)), (unsigned)input.length);
    return 1;
}

static long long number(const char *text) { /* -1 when it is none */
    char *end;
    long long value = strtoll(text, &end, 10);
    return end == text || *end ? -1 : value;
}

/* `pairs` becomes part of the environment. */
static int share(shmp_provider *provider, size_t size, const char *name, char pairs[2][64], shmp_shmem **ret_shmem,
                 shmp_error *reterr) {
    int result = shmp_create(provider, size, 0, ret_shmem, reterr);
    if (result == 0) result = shmp_env_pairs(*ret_shmem, name, SHMP_AFL_SIZE, pairs[0], pairs[1], 64, reterr);
    for (int i = 0; i < 2 && result == 0; i++) (void)putenv(pairs[i]);
    return result;
}

int main(int count, char **arguments) {
    static char pairs[2][2][64];
    long long seed = (long long)time(NULL), runs = LLONG_MAX, timeout = 1000;
    int result = 2;
    for (int option; (option = getopt(count, arguments, "+s:n:t:")) != -1;) {
        switch (option) {
        case 's': seed = number(optarg); break;
        case 'n': runs = number(optarg); break;
        case 't': timeout = number(optarg); break;
        default: optind = count;
        }
    }
    if (seed < 0 || runs < 0 || timeout < 1 || timeout > INT_MAX || optind >= count) {
        fprintf(stderr, "usage: %s [-s SEED] [-n RUNS] [-t MILLISECONDS] TARGET [ARGUMENT...]\n", arguments[0]);
        return 2;
    }
    char **command = arguments + optind;
    for (char **argument = command; *argument; argument++)
        if (strcmp(*argument, "@@") == 0) *argument = "/dev/stdin"; /* which is the input */
    (void)setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    printf("seed %lld\n", seed);
    random_state = (uint64_t)seed;
    patience = (int)timeout;
    (void)signal(SIGPIPE, SIG_IGN);

    (void)setenv("LD_BIND_NOW", "1", 1);                                            /* not in each fork */
    (void)setenv("ASAN_OPTIONS", "abort_on_error=1:detect_leaks=0:symbolize=0", 1); /* its errors are to be crashes */
    (void)unsetenv("AFL_OLD_FORKSERVER");
    shmp_provider *provider = NULL;
    shmp_shmem *coverage = NULL, *input = NULL;
    shmp_error error;
    if (shmp_check_abi(&error) < 0 || shmp_provider_open("sysv", NULL, &provider, &error) < 0 ||
        share(provider, MAP_SIZE, "__AFL_SHM_ID", pairs[0], &coverage, &error) < 0 ||
        share(provider, SHARED_SIZE, "__AFL_SHM_FUZZ_ID", pairs[1], &input, &error) < 0) {
        fprintf(stderr, "host: %s: %s: %s\n", error.call, shmp_error_text(error.code), error.message);
    } else if (mark_to_env(command[0], "##SIG_AFL_PERSISTENT##", "__AFL_PERSISTENT") == 0 &&
               mark_to_env(command[0], "##SIG_AFL_DEFER_FORKSRV##", "__AFL_DEFER_FORKSRV") == 0 &&
               start_target(command) == 0 && shake_hands() == 0) {
        map = shmp_data(coverage);
        shared = shmp_data(input);
        result = fuzz(runs);
    }
    stop_target();
    (void)shmp_close(input, NULL);
    (void)shmp_close(coverage, NULL);
    shmp_provider_close(provider);
    return result;
}
