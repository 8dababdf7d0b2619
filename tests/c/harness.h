/* What the test programs of the C ABI share: calls that must succeed or be refused, other processes, what is held, and
 * running each test over every provider that works here, and over "std".
 *
 *   test_... [NAME]      all tests, or those whose name contains NAME
 *   test_... --child     the other side of a hand-off, which the tests start themselves
 *
 * One line a test on stdout, `ok|FAIL|skip name [provider]`; what a failed one expected is on
 * stderr. After each test the process must hold what it held before: descriptors, shared mappings,
 * names in /dev/shm, System V segments. */
#ifndef HARNESS_H
#define HARNESS_H

#include "check.h"
#include "shmem_providers.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- What a provider can do ---------------------------------------------------------------- */

typedef struct capabilities {
    const char *name;
    int shares;          /* handles on one segment see the same memory */
    int is_file;         /* fileno, persist, SHMP_INHERIT */
    int has_numbers;     /* ids that are descriptors, SHMP_FD_IDS, SHMP_UNMAPPED, the limits of files */
    int has_names;       /* shmp_create_named; a name outlives its killed owner */
    int reserves;        /* SHMP_RESERVE */
    int has_modes;       /* SHMP_MODE() */
    int is_read_by_afl;  /* AFL++ understands its ids */
    int is_listed;       /* by shmp_list */
    int is_told_apart;   /* ... from other programs' segments */
    int wraps;           /* another provider: "std" does not choose it */
    const char *gone_id; /* well-formed, and no living segment's; NULL: there is no such id */
} capabilities;

#define CODE(code) (1u << (code))
#define GARBAGE CODE(SHMP_EID)
#define GONE CODE(SHMP_ENOTFOUND)

#if defined(__linux__)
enum { LISTS_SYSV = 1 };
#else
enum { LISTS_SYSV = 0 };
#endif

static const capabilities known_providers[] = {
    {"memfd", .shares = 1, .is_file = 1, .has_numbers = 1, .reserves = 1, .is_listed = 1, .is_told_apart = 1,
     .gone_id = "zik0zj.3.abcd"},
    {"posix", .shares = 1, .is_file = 1, .has_numbers = 1, .has_names = 1, .reserves = 1, .has_modes = 1,
     .is_read_by_afl = 1, .is_listed = 1, .is_told_apart = 1, .gone_id = "/no_such_segment"},
    {"sysv", .shares = 1, .reserves = 1, .has_modes = 1, .is_read_by_afl = 1, .is_listed = LISTS_SYSV,
     .gone_id = "2147483647"},
    {"served", .shares = 1, .is_file = 1, .wraps = 1, .gone_id = "2147483647:3"},
    {"rc", .shares = 1, .wraps = 1}, /* for the rest see what it wraps */
    {"nop", .shares = 0},
};
enum { KNOWN_PROVIDERS = sizeof known_providers / sizeof *known_providers };

/* Also of what is called "rc(...)" and "served(...)". */
static inline const capabilities *capabilities_of(const char *name) {
    while (strncmp(name, "rc(", 3) == 0) name += 3;
    if (strncmp(name, "served(", 7) == 0) return capabilities_of("served");
    char room[64];
    snprintf(room, sizeof room, "%.*s", (int)strcspn(name, ")"), name);
    name = room;
    for (int i = 0; i < KNOWN_PROVIDERS; i++)
        if (strcmp(known_providers[i].name, name) == 0) return &known_providers[i];
    return NULL;
}

typedef struct test_context {
    const char *label; /* what it was opened by, such as "memfd" or "rc(served)" */
    int is_std;
    int wraps; /* another provider */
    const capabilities *can;
    shmp_provider *provider;
    const char *skipped; /* why; set by the test */
} test_context;

#define SKIP_UNLESS(condition, reason)                                                                                 \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            context->skipped = (reason);                                                                               \
            return;                                                                                                    \
        }                                                                                                              \
    } while (0)

#define LENGTH(array) (sizeof(array) / sizeof *(array))

static const unsigned PAGE_SIZES = 0x3fu << 26; /* in flags: known, and of no mechanism yet */
enum { SMALL = 4096, FROM_PARENT = 0x5a, FROM_CHILD = 0xa5, PATIENCE = 20 /* seconds */ };

static const char *self_path;

/* ---- Calls that must succeed, or must not -------------------------------------------------- */

static max_align_t untouched;
#define UNTOUCHED ((void *)&untouched)

static inline shmp_error poisoned_error(void) {
    shmp_error error;
    memset(&error, 0x5a, sizeof error);
    return error;
}

static inline int check_success(int result, const shmp_error *error, const char *file, int line, const char *call) {
    const shmp_error poisoned = poisoned_error();
    if (result < 0)
        return check_failed(file, line, "%s: %s: %s: %.200s (os_error %d)", call, shmp_error_text(result), error->call,
                            error->message, error->os_error);
    if (result > 0) return check_failed(file, line, "%s: expected 0, got %d", call, result);
    if (memcmp(error, &poisoned, sizeof poisoned) != 0) return check_failed(file, line, "%s touched reterr", call);
    return 1;
}

static inline int check_refusal(int result, unsigned allowed, const shmp_error *error, const char *file, int line,
                                const char *call) {
    const unsigned without_os = CODE(SHMP_EINVAL) | CODE(SHMP_EOVERFLOW) | CODE(SHMP_ENOENV) | CODE(SHMP_EUNSUPPORTED);
    if (result >= 0 || result < -SHMP_ESERVICE || !(allowed & CODE(-result)))
        return check_failed(file, line, "%s: expected a code of mask %#x, got %d (%s; os_error %d)", call, allowed,
                            result, result < 0 ? error->message : "success", result < 0 ? error->os_error : 0);
    if (error->code != result) return check_failed(file, line, "%s: %d, but reterr says %d", call, result, error->code);
    if (!error->call || !*error->call) return check_failed(file, line, "%s: reterr names no call", call);
    if (!memchr(error->message, 0, sizeof error->message) || !*error->message)
        return check_failed(file, line, "%s: reterr has no message", call);
    if (result == -SHMP_EOS && error->os_error <= 0) return check_failed(file, line, "%s: no os_error", call);
    if (CODE(-result) & without_os && error->os_error != 0)
        return check_failed(file, line, "%s: os_error %d with code %d", call, error->os_error, result);
    return 1;
}

static inline void check_no_output(shmp_shmem *output, const char *file, int line, const char *call) {
    if (output == UNTOUCHED) return;
    check_failed(file, line, "%s touched its output", call);
    shmp_close(output, NULL);
}

/* function(..., &ret_shmem, &error) fails with one of the codes, with and without reterr. */
#define CHECK_REFUSED(allowed, function, ...)                                                                          \
    do {                                                                                                               \
        shmp_shmem *loud_ = UNTOUCHED, *silent_ = UNTOUCHED;                                                           \
        shmp_error error_ = poisoned_error();                                                                          \
        int result_ = function(__VA_ARGS__, &loud_, &error_);                                                          \
        check_refusal(result_, (allowed), &error_, __FILE__, __LINE__, #function);                                     \
        CHECK_EQUAL(function(__VA_ARGS__, &silent_, NULL), result_);                                                   \
        check_no_output(loud_, __FILE__, __LINE__, #function);                                                         \
        check_no_output(silent_, __FILE__, __LINE__, #function);                                                       \
    } while (0)

/* The same for function(..., &error). */
#define CHECK_FAILS(allowed, function, ...)                                                                            \
    do {                                                                                                               \
        shmp_error error_ = poisoned_error();                                                                          \
        int result_ = function(__VA_ARGS__, &error_);                                                                  \
        check_refusal(result_, (allowed), &error_, __FILE__, __LINE__, #function);                                     \
        CHECK_EQUAL(function(__VA_ARGS__, NULL), result_);                                                             \
    } while (0)

/* function(..., &error) succeeds and leaves reterr alone; an expression. */
#define SUCCEEDS(function, ...)                                                                                        \
    (error = poisoned_error(), check_success(function(__VA_ARGS__, &error), &error, __FILE__, __LINE__, #function))

static inline void check_open_refused(unsigned allowed, const char *name, const shmp_provider_options *options) {
    shmp_error error = poisoned_error();
    shmp_provider *loud = UNTOUCHED, *silent = UNTOUCHED;
    check_subject("provider \"%s\"", name ? name : "(null)");
    int result = shmp_provider_open(name, options, &loud, &error);
    check_refusal(result, allowed, &error, __FILE__, __LINE__, "shmp_provider_open");
    CHECK_EQUAL(shmp_provider_open(name, options, &silent, NULL), result);
    if (!CHECK(loud == UNTOUCHED)) shmp_provider_close(loud);
    if (!CHECK(silent == UNTOUCHED)) shmp_provider_close(silent);
    check_subject("");
}

/* "name", or "name(inner)", of which the innermost has the flags. */
static inline shmp_provider *opened(const char *label, unsigned flags) {
    shmp_error error;
    shmp_provider *provider;
    shmp_provider_options options = {.struct_size = sizeof options};
    char name[64];
    snprintf(name, sizeof name, "%s", label);
    char *inner = strchr(name, '(');
    if (inner) {
        *inner++ = 0;
        inner[strlen(inner) - 1] = 0;
        options.inner = opened(inner, flags);
        if (!options.inner) return NULL;
    } else {
        options.flags = flags;
    }
    int is_opened = SUCCEEDS(shmp_provider_open, name, &options, &provider);
    shmp_provider_close(options.inner);
    return is_opened ? provider : NULL;
}

static inline shmp_shmem *created_by(shmp_provider *provider, size_t size, unsigned flags) {
    shmp_error error;
    shmp_shmem *shmem;
    return SUCCEEDS(shmp_create, provider, size, flags, &shmem) ? shmem : NULL;
}

static inline shmp_shmem *created(const test_context *context, size_t size, unsigned flags) {
    return created_by(context->provider, size, flags);
}

static inline shmp_shmem *created_named(const test_context *context, const char *name) {
    shmp_error error;
    shmp_shmem *shmem;
    return SUCCEEDS(shmp_create_named, context->provider, name, SMALL, 0, &shmem) ? shmem : NULL;
}

static inline shmp_description described(const shmp_shmem *shmem) {
    shmp_error error;
    shmp_description description;
    memset(&description, 0x5a, sizeof description);
    if (!SUCCEEDS(shmp_describe, shmem, &description)) memset(&description, 0, sizeof description);
    return description;
}

static inline shmp_shmem *attached_by(shmp_provider *provider, const shmp_description *description, unsigned flags) {
    shmp_error error;
    shmp_shmem *shmem;
    return SUCCEEDS(shmp_attach, provider, description, flags, &shmem) ? shmem : NULL;
}

static inline shmp_shmem *attached(const test_context *context, const shmp_description *description, unsigned flags) {
    return attached_by(context->provider, description, flags);
}

static inline shmp_shmem *twin(const test_context *context, const shmp_shmem *shmem, unsigned flags) {
    shmp_description description = described(shmem);
    return attached(context, &description, flags);
}

static inline void closed(shmp_shmem *shmem) {
    shmp_error error;
    (void)SUCCEEDS(shmp_close, shmem);
}

static inline volatile unsigned char *bytes_of(const shmp_shmem *shmem) { return shmp_data(shmem); }

static inline int all_bytes_are(const shmp_shmem *shmem, unsigned char value) {
    const unsigned char *bytes = shmp_data(shmem);
    size_t size = shmp_size(shmem);
    return bytes[0] == value && (size == 1 || memcmp(bytes, bytes + 1, size - 1) == 0);
}

/* An id longer than 19 characters stays without an end, cut off at 20. */
static inline shmp_description description_of(const char *id, size_t size) {
    shmp_description description = {.size = size};
    size_t length = strlen(id);
    memcpy(description.id, id, length < sizeof description.id ? length : sizeof description.id);
    return description;
}

/* The memfd id of a descriptor of process `pid`, whatever that is. */
static inline shmp_description memfd_description(pid_t pid, int fd, size_t size) {
    struct stat file;
    char text[64], *at = text + sizeof text;
    memset(&file, 0, sizeof file);
    fstat(fd, &file);
    unsigned long long parts[] = {(unsigned long long)file.st_ino & UINT32_MAX, (unsigned)fd, (unsigned)pid};
    *--at = 0;
    for (size_t i = 0; i < LENGTH(parts); i++) {
        if (i > 0) *--at = '.';
        do *--at = "0123456789abcdefghijklmnopqrstuvwxyz"[parts[i] % 36];
        while (parts[i] /= 36);
    }
    return description_of(at, size);
}

/* Of 18 characters at most, and of no other process that runs this program now. */
static inline const char *own_name(void) {
    static char name[19];
    snprintf(name, sizeof name, "/conf_%ld", (long)getpid());
    return name;
}

/* ---- Other processes ----------------------------------------------------------------------- */

static inline int status_of(pid_t child) {
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return -1;
    return status;
}

/* Runs the function in a forked child, where failed checks make the exit status 1. */
static inline int status_in_child(void (*function)(void *), void *argument) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        shmp__atomic_set(&check_failures, 0);
        alarm(PATIENCE);
        function(argument);
        fflush(NULL);
        _exit(shmp__atomic_load(&check_failures) > 0);
    }
    return child < 0 ? -1 : status_of(child);
}

#define CHECK_IN_CHILD(function, argument) CHECK_EQUAL(status_in_child(function, argument), 0)

static inline void execute(const char *role, const char *provider, const char *first, const char *second) {
    char *arguments[] = {(char *)(uintptr_t)self_path,
                         (char *)(uintptr_t) "--child",
                         (char *)(uintptr_t)role,
                         (char *)(uintptr_t)provider,
                         (char *)(uintptr_t)first,
                         (char *)(uintptr_t)second,
                         NULL};
    execv(self_path, arguments);
    check_failed(__FILE__, __LINE__, "execv %s: %s", self_path, strerror(errno));
}

typedef struct command {
    const char *role, *provider, *first, *second;
} command;

static inline void run_command(void *argument) {
    const command *run = argument;
    execute(run->role, run->provider, run->first, run->second);
}

static inline void check_spawned(const char *role, const char *provider, const char *first, const char *second) {
    command run = {role, provider, first, second};
    CHECK_IN_CHILD(run_command, &run);
}

/* ---- What is held -------------------------------------------------------------------------- */

typedef struct holdings {
    long descriptors, mappings, names, segments;
} holdings;

static inline long count_descriptors(void) {
    long count = 0;
    for (int fd = 0; fd < 1024; fd++) count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static inline long count_lines(const char *path, int (*counts)(const char *line)) {
    char line[512];
    long count = 0;
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) count += counts(line);
    fclose(file);
    return count;
}

static inline int is_shared_mapping(const char *line) {
    char mode[5] = "";
    return sscanf(line, "%*s %4s", mode) == 1 && mode[3] == 's';
}

static inline int is_own_segment(const char *line) {
    long creator;
    return sscanf(line, "%*s %*s %*s %*s %ld", &creator) == 1 && creator == (long)getpid();
}

/* The owner of a living segment holds a lock on it: what can be locked is left over. */
static inline int is_left_over(const char *name) {
    char path[300];
    if (strncmp(name, "shmp_", 5) != 0) return 0;
    snprintf(path, sizeof path, "/%s", name);
    int fd = shm_open(path, O_RDONLY, 0);
    if (fd < 0) return 0;
    int locked = flock(fd, LOCK_EX | LOCK_NB) == 0;
    close(fd);
    return locked;
}

static inline long count_names(void) {
    long count = 0;
    DIR *directory = opendir("/dev/shm");
    if (!directory) return 0;
    for (struct dirent *entry; (entry = readdir(directory));)
        count += is_left_over(entry->d_name) ||
                 (strncmp(entry->d_name, "conf", 4) == 0 && strstr(entry->d_name, own_name() + sizeof "/conf_" - 1));
    closedir(directory);
    return count;
}

static inline holdings count_holdings(void) {
    return (holdings){
        .descriptors = count_descriptors(),
        .mappings = count_lines("/proc/self/maps", is_shared_mapping),
        .names = count_names(),
        .segments = count_lines("/proc/sysvipc/shm", is_own_segment),
    };
}

static inline void check_holdings(const holdings *before) {
    holdings now = count_holdings();
    check_subject("held afterwards");
    /* A service in a thread of this process lets go a moment later. */
    for (int tries = 0; now.descriptors > before->descriptors && tries < 20; tries++) {
        usleep(10000);
        now = count_holdings();
    }
    CHECK_EQUAL(now.descriptors, before->descriptors);
    CHECK_EQUAL(now.mappings, before->mappings);
    CHECK_EQUAL(now.segments, before->segments);
    /* Another process that is about to lock or to remove its name has that behind it soon. */
    for (int tries = 0; now.names > before->names && tries < 20; tries++) {
        usleep(10000);
        now.names = count_names();
    }
    if (now.names > before->names) CHECK_EQUAL(now.names, before->names);
}

/* ---- Running ------------------------------------------------------------------------------- */

typedef struct test {
    const char *name;
    void (*function)(test_context *context);
} test;

#define TEST(name)                                                                                                     \
    { #name, test_##name }

/* What the process `test --child ROLE PROVIDER FIRST SECOND` does. */
typedef struct role {
    const char *name;
    void (*function)(shmp_provider *provider, const char *first, const char *second);
} role;

/* A test program; a row without a name ends each table. */
typedef struct suite {
    const test *of_library, *of_provider;
    const role *roles;
} suite;

static inline int play_role(const role *roles, const char *name, const char *provider_name, const char *first,
                            const char *second) {
    shmp_provider *provider = opened(provider_name, 0);
    if (!provider) return 1;
    for (size_t i = 0; roles[i].name; i++)
        if (strcmp(roles[i].name, name) == 0) roles[i].function(provider, first, second);
    shmp_provider_close(provider);
    return shmp__atomic_load(&check_failures) > 0;
}

typedef struct test_tally {
    const char *wanted; /* part of a test's name */
    int passed, failed, skipped;
} test_tally;

static inline void finish_test(test_tally *tally, const char *name, const test_context *context) {
    int failed = shmp__atomic_load(&check_failures) > 0;
    if (failed) {
        tally->failed++;
        printf("FAIL %s [%s]\n", name, context->label);
    } else if (context->skipped) {
        tally->skipped++;
        printf("skip %s [%s]: %s\n", name, context->label, context->skipped);
    } else {
        tally->passed++;
        printf("ok %s [%s]\n", name, context->label);
    }
    fflush(stdout);
    shmp__atomic_set(&check_failures, 0);
    check_subject("");
}

static inline void run_tests(test_tally *tally, const test *tests, test_context *context) {
    for (size_t i = 0; tests[i].name; i++) {
        if (!strstr(tests[i].name, tally->wanted)) continue;
        holdings before = count_holdings();
        context->skipped = NULL;
        alarm(10 * PATIENCE);
        tests[i].function(context);
        alarm(0);
        check_holdings(&before);
        finish_test(tally, tests[i].name, context);
    }
}

static inline void run_over(test_tally *tally, const test *tests, const char *label) {
    shmp_provider *provider = opened(label, 0);
    test_context context = {.label = label,
                            .is_std = strcmp(label, "std") == 0,
                            .wraps = strchr(label, '(') || strcmp(label, "served") == 0,
                            .provider = provider};
    if (provider) context.can = capabilities_of(shmp_provider_name(provider));
    CHECK(provider && context.can);
    if (strstr("open", tally->wanted) || shmp__atomic_load(&check_failures) > 0) finish_test(tally, "open", &context);
    if (context.can) run_tests(tally, tests, &context);
    shmp_provider_close(provider);
}

static inline void run_over_available(test_tally *tally, const test *tests) {
    for (unsigned i = 0;; i++) {
        const char *name;
        shmp_error error;
        int result = shmp_available(i, &name, &error);
        if (result == -SHMP_EINVAL) return;
        const capabilities *can = capabilities_of(name);
        if (can && can->wraps) continue; /* see run_over_wrappers */
        if (result == 0) {
            run_over(tally, tests, name);
            continue;
        }
        test_context missing = {.label = name, .skipped = error.message};
        finish_test(tally, "open", &missing);
    }
}

/* ---- The service of those that ask one ---- */

typedef struct test_service {
    pid_t process;
    int stop; /* it runs until this end of a pipe is closed */
} test_service;

/* Where a service of this test alone is: others are tested at the same time. */
static inline void set_service_address(void) {
    char address[64];
    snprintf(address, sizeof address, "%s%ld", LISTS_SYSV ? "@shmp_test_" : "/tmp/shmp_test_", (long)getpid());
    setenv("SHMEM_SERVICE", address, 1);
}

static inline void run_service(int ready, int stop) {
    char byte = 0;
    shmp_service *service;
    shmp_error error;
    shmp_service_options options = {.struct_size = sizeof options, .address = getenv("SHMEM_SERVICE")};
    int result = shmp_service_start(NULL, &options, &service, &error);
    if (result < 0) fprintf(stderr, "service: %s: %s\n", error.call, error.message);
    if (result == 0 && write(ready, &byte, 1) == 1) (void)!read(stop, &byte, 1);
    if (result == 0) shmp_service_stop(service, NULL);
    _exit(result < 0);
}

static inline int open_pipe(int ret_ends[2]) {
    if (pipe(ret_ends) < 0) return 0;
    for (int i = 0; i < 2; i++) fcntl(ret_ends[i], F_SETFD, FD_CLOEXEC);
    return 1;
}

/* In a process of its own. */
static inline int start_service(test_service *ret_service) {
    int ready[2], stop[2];
    char byte;
    if (!open_pipe(ready) || !open_pipe(stop)) return 0;
    fflush(NULL);
    pid_t process = fork();
    if (process == 0) {
        close(ready[0]);
        close(stop[1]);
        run_service(ready[1], stop[0]);
    }
    close(ready[1]);
    close(stop[0]);
    int is_ready = process > 0 && read(ready[0], &byte, 1) == 1;
    close(ready[0]);
    *ret_service = (test_service){.process = process, .stop = stop[1]};
    return CHECK(is_ready);
}

static inline void stop_service(const test_service *service) {
    close(service->stop);
    if (service->process > 0) CHECK_EQUAL(status_of(service->process), 0);
}

static inline void run_over_wrappers(test_tally *tally, const test *tests) {
    static const char *const labels[] = {"served", "rc(memfd)", "rc(posix)", "rc(sysv)", "rc(served)"};
    test_service service = {.process = -1, .stop = -1};
    if (getenv("SHMP_PLAIN")) return; /* what is slow runs over the rest alone */
    if (start_service(&service))
        for (size_t i = 0; i < LENGTH(labels); i++) run_over(tally, tests, labels[i]);
    stop_service(&service);
}

static inline int run_all(const suite *all, const char *wanted) {
    test_tally tally = {.wanted = wanted};
    holdings at_start = count_holdings();
    test_context library = {.label = "library"};
    run_tests(&tally, all->of_library, &library);
    run_over_available(&tally, all->of_provider);
    run_over(&tally, all->of_provider, "std");
    run_over_wrappers(&tally, all->of_provider);
    check_holdings(&at_start);
    finish_test(&tally, "nothing_is_left", &library);
    printf("%d passed, %d failed, %d skipped\n", tally.passed, tally.failed, tally.skipped);
    return tally.failed > 0;
}

/* main() of a test program. */
static inline int run_suite(const suite *all, int argc, char **argv) {
    self_path = argv[0];
    if (argc == 6 && strcmp(argv[1], "--child") == 0) return play_role(all->roles, argv[2], argv[3], argv[4], argv[5]);
    unsetenv("SHMEM_PROVIDER");
    set_service_address();
    signal(SIGPIPE, SIG_IGN);
    return run_all(all, argc > 1 ? argv[1] : "");
}

#endif
