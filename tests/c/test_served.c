/* The client of the service and "rc": references, fork, lost and hostile services. test_conformance and test_handles
 * run over both as well. */
#define _GNU_SOURCE /* Linux: memfd_create, pipe2 */
#include "core/core.h"
#include "harness.h"
#include "service/wire.h"

#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

enum { NOBODY = 65534, SHORT = 300 /* milliseconds */, FIRST_NUMBER = 41 };

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* ---- Providers ------------------------------------------------------------------------------- */

static const char *own_address(void) { return getenv("SHMEM_SERVICE"); }

static shmp_provider *served_with(shmp_provider *inner, const char *address, unsigned flags, unsigned timeout_ms) {
    shmp_error error;
    shmp_provider *provider;
    const shmp_provider_options options = {
        .struct_size = sizeof options, .flags = flags, .timeout_ms = timeout_ms, .inner = inner, .address = address};
    return SUCCEEDS(shmp_provider_open, "served", &options, &provider) ? provider : NULL;
}

static shmp_provider *hasty(void) { return served_with(NULL, NULL, 0, SHORT); }

/* Whether somebody else can attach to it. */
static int is_held(const shmp_description *description) {
    shmp_provider *other = opened("served", 0);
    if (!other) return -1;
    shmp_shmem *shmem = NULL;
    int result = shmp_attach(other, description, 0, &shmem, NULL);
    shmp_close(shmem, NULL);
    shmp_provider_close(other);
    CHECK(result == 0 || result == -SHMP_ENOTFOUND);
    return result == 0;
}

/* The service hears of an end a moment later. */
static int is_let_go(const shmp_description *description) {
    for (int tries = 0; tries < 200; tries++) {
        if (is_held(description) == 0) return 1;
        usleep(10000);
    }
    return 0;
}

#define WITH_SERVICE(service)                                                                                          \
    test_service service = {.process = -1, .stop = -1};                                                                \
    REQUIRE(start_service(NULL, &service))

static void check_no_service(int result, const shmp_error *error, int os_error) {
    CHECK_EQUAL(result, -SHMP_ESERVICE);
    CHECK_EQUAL(error->code, result);
    CHECK_TEXT(error->call, "service");
    if (os_error) CHECK_EQUAL(error->os_error, os_error);
    check_subject("%.150s", error->message);
    CHECK(strstr(error->message, own_address()));
    check_subject("");
}

static void check_create_fails(shmp_provider *provider, int os_error) {
    shmp_error error = poisoned_error();
    shmp_shmem *shmem = UNTOUCHED;
    check_no_service(shmp_create(provider, SMALL, 0, &shmem, &error), &error, os_error);
    CHECK(shmem == UNTOUCHED);
}

/* ---- Opening --------------------------------------------------------------------------------- */

static void test_nobody_is_there(test_context *context) {
    (void)context;
    shmp_error error = poisoned_error();
    shmp_provider *provider = UNTOUCHED;
    check_no_service(shmp_provider_open("served", NULL, &provider, &error), &error, ECONNREFUSED);
    CHECK(strstr(error.message, "shmem-providers serve"));
    CHECK(provider == UNTOUCHED);
    CHECK_EQUAL(shmp_provider_open("served", NULL, &provider, NULL), -SHMP_ESERVICE);
}

static int availability_of(const char *wanted) {
    const char *name;
    for (unsigned i = 0;; i++) {
        int result = shmp_available(i, &name, NULL);
        if (result == -SHMP_EINVAL || strcmp(name, wanted) == 0) return result;
    }
}

static void test_available(test_context *context) {
    (void)context;
    CHECK_EQUAL(availability_of("served"), -SHMP_ESERVICE);
    CHECK_EQUAL(availability_of("rc"), 0);
    WITH_SERVICE(service);
    CHECK_EQUAL(availability_of("served"), 0);
    stop_service(&service);
    CHECK_EQUAL(availability_of("served"), -SHMP_ESERVICE);
}

static void check_inner_refused(const char *label) {
    shmp_provider *inner = opened(label, 0);
    const shmp_provider_options options = {.struct_size = sizeof options, .inner = inner};
    REQUIRE(inner);
    check_open_refused(CODE(SHMP_EUNSUPPORTED), "served", &options);
    shmp_provider_close(inner);
}

static void test_options(test_context *context) {
    const size_t size = sizeof(shmp_provider_options);
    char too_long[200];
    memset(too_long, 'a', sizeof too_long - 1);
    too_long[sizeof too_long - 1] = 0;
    (void)context;
    WITH_SERVICE(service);
    check_inner_refused("sysv");
    check_inner_refused("nop");
    check_inner_refused("served");
    check_inner_refused("rc(served)");
    const shmp_provider_options refused[] = {
        {.struct_size = size, .address = too_long},
        {.struct_size = size, .flags = SHMP_FD_IDS},
        {.struct_size = size, .flags = 1u << 16},
    };
    for (size_t i = 0; i < LENGTH(refused); i++) check_open_refused(CODE(SHMP_EINVAL), "served", &refused[i]);
    const shmp_provider_options of_std = {.struct_size = size, .address = own_address()};
    check_open_refused(CODE(SHMP_EINVAL), "std", &of_std);
    check_open_refused(CODE(SHMP_EINVAL), "rc", &of_std);
    setenv("SHMEM_PROVIDER", "served", 1);
    check_open_refused(CODE(SHMP_EINVAL), "std", NULL);
    setenv("SHMEM_PROVIDER", "rc", 1);
    check_open_refused(CODE(SHMP_EINVAL), "std", NULL);
    check_open_refused(CODE(SHMP_EINVAL), "rc", NULL);
    unsetenv("SHMEM_PROVIDER");
    stop_service(&service);
}

static void check_name(const char *label, const char *name) {
    shmp_provider *provider = opened(label, 0);
    REQUIRE(provider);
    CHECK_TEXT(shmp_provider_name(provider), name);
    shmp_provider_close(provider);
}

static void test_names(test_context *context) {
    (void)context;
    WITH_SERVICE(service);
    check_name("rc(posix)", "rc(posix)");
    check_name("rc(rc(sysv))", "rc(rc(sysv))");
    check_name("served(posix)", "served(posix)");
    check_name("rc(served(memfd))", "rc(served(memfd))");
    check_name("rc(std)", "rc(memfd)");
    stop_service(&service);
}

static void test_backends(test_context *context) {
    static const char *const rows[][2] = {
        {"rc(memfd)", "memfd"}, {"rc(rc(posix))", "posix"}, {"rc(std)", "memfd"}, {"rc(served)", "served"}};
    (void)context;
    WITH_SERVICE(service);
    for (size_t i = 0; i < LENGTH(rows); i++) {
        shmp_provider *provider = opened(rows[i][0], 0);
        shmp_shmem *shmem = provider ? created_by(provider, SMALL, 0) : NULL;
        if (shmem) CHECK_TEXT(shmp_backend(shmem), rows[i][1]);
        closed(shmem);
        shmp_provider_close(provider);
    }
    stop_service(&service);
}

static void test_std_attaches_by_id(test_context *context) {
    (void)context;
    WITH_SERVICE(service);
    shmp_provider *provider = opened("served", 0), *std = opened("std", 0);
    shmp_shmem *owner = provider ? created_by(provider, SMALL, 0) : NULL;
    REQUIRE(std && owner);
    shmp_description description = described(owner);
    bytes_of(owner)[0] = FROM_PARENT;
    CHECK(strchr(description.id, ':'));
    shmp_shmem *taken = attached_by(std, &description, 0);
    if (taken) {
        CHECK_TEXT(shmp_backend(taken), "served");
        CHECK_EQUAL(bytes_of(taken)[0], FROM_PARENT);
    }
    closed(taken);
    closed(owner);
    shmp_provider_close(std);
    shmp_provider_close(provider);
    stop_service(&service);
}

/* AFL++ would take the number for a sysv id. */
static void test_rights_of_what_is_wrapped(test_context *context) {
    shmp_error error;
    (void)context;
    WITH_SERVICE(service);
    shmp_provider *sysv = opened("rc(sysv)", 0), *served = opened("rc(served)", 0);
    shmp_shmem *one = sysv ? created_by(sysv, SMALL, 0) : NULL, *other = served ? created_by(served, SMALL, 0) : NULL;
    REQUIRE(one && other);
    CHECK(SUCCEEDS(shmp_to_env, one, "__AFL_SHM_ID"));
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_to_env, other, "__AFL_SHM_ID");
    unsetenv("__AFL_SHM_ID");
    unsetenv("__AFL_SHM_ID_SIZE");
    closed(one);
    closed(other);
    shmp_provider_close(sysv);
    shmp_provider_close(served);
    stop_service(&service);
}

/* ---- References ------------------------------------------------------------------------------ */

static void test_clones_share_a_reference(test_context *context) {
    shmp_error error;
    (void)context;
    WITH_SERVICE(service);
    shmp_provider *provider = opened("served", 0);
    shmp_shmem *owner = provider ? created_by(provider, SMALL, 0) : NULL, *shared, *reader;
    REQUIRE(owner);
    shmp_description description = described(owner);
    REQUIRE(SUCCEEDS(shmp_clone, owner, 0, &shared));
    REQUIRE(SUCCEEDS(shmp_clone, owner, SHMP_READ_ONLY, &reader));
    CHECK(shmp_data(shared) == shmp_data(owner) && shmp_data(reader) != shmp_data(owner));
    bytes_of(owner)[1] = FROM_PARENT;
    closed(owner);
    CHECK(is_held(&description));
    closed(shared);
    CHECK(is_held(&description));
    CHECK_EQUAL(bytes_of(reader)[1], FROM_PARENT);
    CHECK_EQUAL(atoi(described(reader).id), atoi(description.id));
    closed(reader);
    CHECK(is_let_go(&description));
    shmp_provider_close(provider);
    stop_service(&service);
}

static void test_attached_by_descriptor(test_context *context) {
    shmp_error error;
    (void)context;
    WITH_SERVICE(service);
    shmp_provider *provider = opened("served", 0);
    shmp_shmem *owner = provider ? created_by(provider, SMALL, 0) : NULL, *named, *nameless;
    REQUIRE(owner);
    shmp_description description = described(owner), unknown = {.size = SMALL};
    REQUIRE(SUCCEEDS(shmp_attach_fd, provider, shmp_fileno(owner), &description, 0, &named));
    REQUIRE(SUCCEEDS(shmp_attach_fd, provider, shmp_fileno(owner), &unknown, 0, &nameless));
    CHECK_EQUAL(atoi(described(named).id), atoi(description.id));
    CHECK_FAILS(GONE, shmp_describe, nameless, &unknown);
    shmp_description foreign = description_of("1.2.3", SMALL);
    CHECK_REFUSED(GARBAGE, shmp_attach_fd, provider, shmp_fileno(owner), &foreign, 0u);
    closed(named);
    closed(nameless);
    CHECK(is_held(&description)); /* they had nothing to let go of */
    closed(owner);
    CHECK(is_let_go(&description));
    shmp_provider_close(provider);
    stop_service(&service);
}

static void test_a_killed_client_lets_go(test_context *context) {
    int pipe_ends[2];
    shmp_description description;
    (void)context;
    WITH_SERVICE(service);
    REQUIRE(pipe2(pipe_ends, O_CLOEXEC) == 0);
    pid_t child = fork();
    if (child == 0) {
        shmp_provider *provider = opened("served", 0);
        shmp_shmem *owner = created_by(provider, SMALL, 0);
        description = described(owner);
        (void)!write(pipe_ends[1], &description, sizeof description);
        pause();
    }
    CHECK_EQUAL(read(pipe_ends[0], &description, sizeof description), sizeof description);
    CHECK(is_held(&description));
    kill(child, SIGKILL);
    status_of(child);
    CHECK(is_let_go(&description));
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    stop_service(&service);
}

/* ---- Fork ------------------------------------------------------------------------------------ */

static const char *const forking[] = {"served", "rc(served)"};

/* Forks as a program does that calls the hooks. */
static pid_t hooked_fork(shmp_provider *provider) {
    shmp_error error;
    if (!SUCCEEDS(shmp_pre_fork, provider)) return -1;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        alarm(PATIENCE);
        shmp__atomic_set(&check_failures, 0);
    }
    CHECK(SUCCEEDS(shmp_post_fork, provider, child == 0));
    return child;
}

static _Noreturn void end_child(void) {
    fflush(NULL);
    _exit(shmp__atomic_load(&check_failures) > 0);
}

typedef struct family {
    shmp_provider *provider;
    shmp_shmem *shmem;
    shmp_description description;
} family;

static int make_family(const char *label, family *ret_family) {
    ret_family->provider = opened(label, 0);
    ret_family->shmem = ret_family->provider ? created_by(ret_family->provider, SMALL, 0) : NULL;
    if (!ret_family->shmem) return 0;
    ret_family->description = described(ret_family->shmem);
    check_subject("%s", label);
    return 1;
}

static void end_family(family *all) {
    closed(all->shmem);
    shmp_provider_close(all->provider);
}

/* Creates, and attaches, by whatever connection there is. */
static void check_usable(shmp_provider *provider) {
    shmp_shmem *owner = created_by(provider, SMALL, 0);
    REQUIRE(owner);
    shmp_description description = described(owner);
    shmp_shmem *other = attached_by(provider, &description, 0);
    bytes_of(owner)[5] = FROM_CHILD;
    if (other) CHECK_EQUAL(bytes_of(other)[5], FROM_CHILD);
    closed(other);
    closed(owner);
}

static void check_child_keeps(const char *label) {
    family all;
    int go[2];
    char byte;
    REQUIRE(make_family(label, &all) && pipe2(go, O_CLOEXEC) == 0);
    const long descriptors = count_descriptors();
    pid_t child = hooked_fork(all.provider);
    CHECK_EQUAL(count_descriptors(), descriptors);
    if (child == 0) {
        close(go[1]);
        bytes_of(all.shmem)[0] = FROM_CHILD;
        check_usable(all.provider);
        (void)!read(go[0], &byte, 1); /* the parent has let go of it */
        CHECK(is_held(&all.description));
        check_usable(all.provider);
        closed(all.shmem);
        CHECK(is_let_go(&all.description));
        shmp_provider_close(all.provider);
        end_child();
    }
    close(go[0]);
    closed(all.shmem);
    check_usable(all.provider);
    CHECK(is_held(&all.description));
    close(go[1]);
    CHECK_EQUAL(status_of(child), 0);
    shmp_provider_close(all.provider);
}

static void test_a_child_keeps_what_it_inherits(test_context *context) {
    (void)context;
    WITH_SERVICE(service);
    for (size_t i = 0; i < LENGTH(forking); i++) check_child_keeps(forking[i]);
    stop_service(&service);
}

static void check_parent_keeps(const char *label) {
    family all;
    REQUIRE(make_family(label, &all));
    for (int i = 0; i < 3; i++) {
        pid_t child = hooked_fork(all.provider);
        if (child == 0) {
            end_family(&all);
            end_child();
        }
        CHECK_EQUAL(status_of(child), 0);
        CHECK(is_held(&all.description));
    }
    closed(all.shmem);
    CHECK(is_let_go(&all.description));
    shmp_provider_close(all.provider);
}

static void test_a_parent_keeps_what_its_child_closes(test_context *context) {
    (void)context;
    WITH_SERVICE(service);
    for (size_t i = 0; i < LENGTH(forking); i++) check_parent_keeps(forking[i]);
    stop_service(&service);
}

/* It has its parent's connection, which it may not touch. */
static void use_without_hooks(void *argument) {
    family *all = argument;
    CHECK_EQUAL(bytes_of(all->shmem)[0], FROM_PARENT);
    check_usable(all->provider);
    end_family(all);
}

static void test_a_child_forked_without_hooks(test_context *context) {
    (void)context;
    WITH_SERVICE(service);
    for (size_t i = 0; i < LENGTH(forking); i++) {
        family all;
        REQUIRE(make_family(forking[i], &all));
        bytes_of(all.shmem)[0] = FROM_PARENT;
        closed(created_by(all.provider, SMALL, 0)); /* a reply is under way */
        CHECK_IN_CHILD(use_without_hooks, &all);
        CHECK(is_held(&all.description));
        check_usable(all.provider);
        end_family(&all);
        CHECK(is_let_go(&all.description));
    }
    stop_service(&service);
}

static void check_nested(const char *label) {
    shmp_error error;
    family all;
    REQUIRE(make_family(label, &all));
    CHECK(SUCCEEDS(shmp_pre_fork, all.provider)); /* the program's own */
    pid_t child = hooked_fork(all.provider);
    CHECK(SUCCEEDS(shmp_post_fork, all.provider, child == 0));
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_post_fork, all.provider, child == 0);
    check_usable(all.provider);
    if (child == 0) {
        end_family(&all);
        end_child();
    }
    CHECK_EQUAL(status_of(child), 0);
    CHECK(is_held(&all.description));
    end_family(&all);
}

static void test_nested_calls_are_one(test_context *context) {
    (void)context;
    WITH_SERVICE(service);
    check_nested("served");
    check_nested("rc(served)");
    check_nested("rc(rc(served))");
    stop_service(&service);
}

/* A program may call them before, and leave the rest to the hooks. */
static void test_a_call_too_few_afterwards(test_context *context) {
    shmp_error error;
    (void)context;
    WITH_SERVICE(service);
    for (size_t i = 0; i < LENGTH(forking); i++) {
        family all;
        REQUIRE(make_family(forking[i], &all));
        for (int round = 0; round < 2; round++) {
            CHECK(SUCCEEDS(shmp_pre_fork, all.provider));
            pid_t child = hooked_fork(all.provider);
            check_usable(all.provider);
            if (child == 0) {
                end_family(&all);
                end_child();
            }
            CHECK_EQUAL(status_of(child), 0);
        }
        end_family(&all);
    }
    stop_service(&service);
}

static void test_post_fork_alone(test_context *context) {
    static const char *const labels[] = {"served", "rc(served)"};
    (void)context;
    WITH_SERVICE(service);
    for (size_t i = 0; i < LENGTH(labels); i++) {
        shmp_provider *provider = opened(labels[i], 0);
        REQUIRE(provider);
        CHECK_FAILS(CODE(SHMP_EINVAL), shmp_post_fork, provider, 0);
        CHECK_FAILS(CODE(SHMP_EINVAL), shmp_post_fork, provider, 1);
        shmp_provider_close(provider);
    }
    stop_service(&service);
}

static void test_grandchildren(test_context *context) {
    (void)context;
    WITH_SERVICE(service);
    for (size_t i = 0; i < LENGTH(forking); i++) {
        family all;
        REQUIRE(make_family(forking[i], &all));
        pid_t child = hooked_fork(all.provider);
        if (child == 0) {
            pid_t grandchild = hooked_fork(all.provider);
            if (grandchild > 0) CHECK_EQUAL(status_of(grandchild), 0);
            CHECK(is_held(&all.description));
            check_usable(all.provider);
            end_family(&all);
            end_child();
        }
        CHECK_EQUAL(status_of(child), 0);
        CHECK(is_held(&all.description));
        end_family(&all);
        CHECK(is_let_go(&all.description));
    }
    stop_service(&service);
}

/* The parent calls shmp_post_fork() as it must, and there is no child. */
static void test_a_fork_that_fails(test_context *context) {
    shmp_error error;
    (void)context;
    WITH_SERVICE(service);
    for (size_t i = 0; i < LENGTH(forking); i++) {
        family all;
        REQUIRE(make_family(forking[i], &all));
        double begun = now();
        for (int round = 0; round < 3; round++) {
            CHECK(SUCCEEDS(shmp_pre_fork, all.provider));
            CHECK(SUCCEEDS(shmp_post_fork, all.provider, 0));
        }
        CHECK(now() - begun < 3);
        check_usable(all.provider);
        end_family(&all);
    }
    stop_service(&service);
}

static void check_lost_child(const char *label, int signal_number) {
    shmp_error error;
    family all;
    REQUIRE(make_family(label, &all) && SUCCEEDS(shmp_pre_fork, all.provider));
    double begun = now();
    pid_t child = fork();
    if (child == 0) {
        if (signal_number) kill(getpid(), signal_number);
        _exit(0);
    }
    CHECK(SUCCEEDS(shmp_post_fork, all.provider, 0));
    CHECK(now() - begun < 3);
    status_of(child);
    check_usable(all.provider);
    CHECK(is_held(&all.description));
    end_family(&all);
}

static void test_a_child_that_dies_before_it_answers(test_context *context) {
    (void)context;
    WITH_SERVICE(service);
    for (size_t i = 0; i < LENGTH(forking); i++) {
        check_lost_child(forking[i], 0);
        check_lost_child(forking[i], SIGKILL);
    }
    stop_service(&service);
}

static void test_a_child_that_stops(test_context *context) {
    shmp_error error = poisoned_error();
    family all;
    (void)context;
    WITH_SERVICE(service);
    REQUIRE(make_family("rc(served)", &all) && CHECK_EQUAL(shmp_pre_fork(all.provider, NULL), 0));
    pid_t child = fork();
    if (child == 0) {
        raise(SIGSTOP);
        _exit(shmp_post_fork(all.provider, 1, NULL) < 0);
    }
    double begun = now();
    CHECK_EQUAL(shmp_post_fork(all.provider, 0, &error), -SHMP_EOS);
    CHECK_EQUAL(error.os_error, ETIMEDOUT);
    CHECK(now() - begun > 4 && now() - begun < 15);
    check_usable(all.provider);
    kill(child, SIGCONT);
    CHECK_EQUAL(status_of(child), 0); /* the service still has what was announced for it */
    end_family(&all);
    stop_service(&service);
}

/* The child goes on without its parent. */
static void check_orphan(const char *label) {
    int report[2];
    char byte = 1;
    REQUIRE(pipe2(report, O_CLOEXEC) == 0);
    pid_t parent = fork();
    if (parent == 0) {
        family all;
        if (!make_family(label, &all) || shmp_pre_fork(all.provider, NULL) < 0) _exit(1);
        pid_t child = fork();
        if (child > 0) _exit(0);
        alarm(PATIENCE);
        for (pid_t first = getppid(); getppid() == first && first != 1;) usleep(1000);
        CHECK_EQUAL(shmp_post_fork(all.provider, 1, NULL), 0);
        CHECK(is_held(&all.description));
        check_usable(all.provider);
        byte = shmp__atomic_load(&check_failures) > 0;
        end_family(&all);
        (void)!write(report[1], &byte, 1);
        _exit(0);
    }
    close(report[1]);
    CHECK_EQUAL(status_of(parent), 0);
    CHECK_EQUAL(read(report[0], &byte, 1), 1);
    CHECK_EQUAL(byte, 0);
    close(report[0]);
}

static void test_a_parent_that_dies_before_it_answers(test_context *context) {
    (void)context;
    WITH_SERVICE(service);
    for (size_t i = 0; i < LENGTH(forking); i++) check_orphan(forking[i]);
    stop_service(&service);
}

static shmp__atomic_uint has_ended;

static void *keep_busy(void *provider) {
    while (!shmp__atomic_load(&has_ended)) {
        shmp_shmem *shmem = created_by(provider, SMALL, 0);
        if (!shmem) break;
        bytes_of(shmem)[0] = 1;
        closed(shmem);
    }
    return NULL;
}

static void *fork_often(void *provider) {
    for (int i = 0; i < 15; i++) {
        pid_t child = hooked_fork(provider);
        if (child == 0) {
            check_usable(provider);
            _exit(shmp__atomic_load(&check_failures) > 0);
        }
        CHECK_EQUAL(status_of(child), 0);
    }
    return NULL;
}

static void check_threads(const char *label) {
    enum { BUSY = 2, FORKING = 2 };
    pthread_t threads[BUSY + FORKING];
    family all;
    REQUIRE(make_family(label, &all));
    shmp__atomic_set(&has_ended, 0);
    for (int i = 0; i < BUSY + FORKING; i++)
        REQUIRE(pthread_create(&threads[i], NULL, i < BUSY ? keep_busy : fork_often, all.provider) == 0);
    for (int i = BUSY; i < BUSY + FORKING; i++) pthread_join(threads[i], NULL);
    shmp__atomic_add(&has_ended, 1);
    for (int i = 0; i < BUSY; i++) pthread_join(threads[i], NULL);
    CHECK(is_held(&all.description));
    end_family(&all);
}

static void test_threads_that_fork_and_work(test_context *context) {
    (void)context;
    WITH_SERVICE(service);
    for (size_t i = 0; i < LENGTH(forking); i++) check_threads(forking[i]);
    stop_service(&service);
}

static void *create_once(void *provider) {
    closed(created_by(provider, SMALL, 0));
    shmp__atomic_add(&has_ended, 1);
    return NULL;
}

/* ... while the one that forks may go on. */
static void test_others_wait_between_the_calls(test_context *context) {
    shmp_error error;
    pthread_t thread;
    (void)context;
    WITH_SERVICE(service);
    shmp_provider *provider = opened("served", 0);
    REQUIRE(provider && SUCCEEDS(shmp_pre_fork, provider));
    shmp__atomic_set(&has_ended, 0);
    REQUIRE(pthread_create(&thread, NULL, create_once, provider) == 0);
    check_usable(provider);
    usleep(50000);
    CHECK_EQUAL(shmp__atomic_load(&has_ended), 0);
    CHECK(SUCCEEDS(shmp_post_fork, provider, 0));
    pthread_join(thread, NULL);
    CHECK_EQUAL(shmp__atomic_load(&has_ended), 1);
    shmp_provider_close(provider);
    stop_service(&service);
}

static void *create_too_late(void *provider) {
    shmp_error error = poisoned_error();
    shmp_shmem *shmem = UNTOUCHED;
    CHECK_EQUAL(shmp_create(provider, SMALL, 0, &shmem, &error), -SHMP_ESERVICE);
    CHECK(strstr(error.message, "shmp_post_fork"));
    return NULL;
}

static void test_nobody_waits_for_ever(test_context *context) {
    pthread_t thread;
    (void)context;
    WITH_SERVICE(service);
    shmp_provider *provider = hasty();
    REQUIRE(provider && shmp_pre_fork(provider, NULL) == 0);
    REQUIRE(pthread_create(&thread, NULL, create_too_late, provider) == 0);
    pthread_join(thread, NULL);
    CHECK_EQUAL(shmp_post_fork(provider, 0, NULL), 0);
    check_usable(provider);
    shmp_provider_close(provider);
    stop_service(&service);
}

/* ---- A lost service -------------------------------------------------------------------------- */

static void kill_service(test_service *service) {
    kill(service->process, SIGKILL);
    status_of(service->process);
    close(service->stop);
}

static void test_a_lost_service(test_context *context) {
    shmp_error error;
    (void)context;
    WITH_SERVICE(service);
    shmp_provider *provider = opened("rc(served)", 0);
    shmp_shmem *old = provider ? created_by(provider, SMALL, 0) : NULL, *clone;
    REQUIRE(old);
    bytes_of(old)[7] = FROM_PARENT;
    kill_service(&service);
    check_create_fails(provider, 0);
    check_create_fails(provider, ECONNREFUSED);
    CHECK_EQUAL(bytes_of(old)[7], FROM_PARENT);
    CHECK(SUCCEEDS(shmp_clone, old, SHMP_READ_ONLY, &clone));
    CHECK(SUCCEEDS(shmp_pre_fork, provider)); /* there is nothing to keep */
    CHECK(SUCCEEDS(shmp_post_fork, provider, 0));
    REQUIRE(start_service(NULL, &service));
    check_usable(provider);
    shmp_shmem *young = created_by(provider, SMALL, 0);
    REQUIRE(young);
    shmp_description description = described(young);
    CHECK_EQUAL(bytes_of(old)[7], FROM_PARENT);
    closed(clone);
    closed(old); /* whose number may be the young one's here */
    CHECK(is_held(&description));
    closed(young);
    CHECK(is_let_go(&description));
    shmp_provider_close(provider);
    stop_service(&service);
}

static void test_a_service_that_hangs(test_context *context) {
    (void)context;
    WITH_SERVICE(service);
    shmp_provider *provider = hasty();
    shmp_shmem *one = created_by(provider, SMALL, 0), *other = created_by(provider, SMALL, 0);
    REQUIRE(one && other);
    shmp_description description = described(one);
    int status;
    kill(service.process, SIGSTOP);
    CHECK(waitpid(service.process, &status, WUNTRACED) == service.process && WIFSTOPPED(status));
    double begun = now();
    closed(other); /* its reply is not waited for */
    CHECK(now() - begun < 0.25);
    check_create_fails(provider, ETIMEDOUT);
    check_create_fails(provider, ETIMEDOUT);
    closed(one);
    CHECK(now() - begun < 3);
    kill(service.process, SIGCONT);
    check_usable(provider);
    CHECK(is_let_go(&description));
    shmp_provider_close(provider);
    stop_service(&service);
}

static void serve_as_nobody(void *ready) {
    shmp_service *service;
    const shmp_service_options options = {
        .struct_size = sizeof options, .flags = SHMP_ANY_USER, .address = own_address()};
    REQUIRE(setgid(NOBODY) == 0 && setuid(NOBODY) == 0);
    REQUIRE(shmp_service_start(NULL, &options, &service, NULL) == 0);
    (void)!write(((int *)ready)[1], "", 1);
    (void)!read(((int *)ready)[2], ready, 1);
    shmp_service_stop(service, NULL);
}

static void test_another_users_service(test_context *context) {
    SKIP_UNLESS(geteuid() == 0, "needs root, who can be somebody else");
    int ends[4];
    char byte;
    shmp_error error = poisoned_error();
    shmp_provider *provider = UNTOUCHED;
    REQUIRE(pipe2(ends, O_CLOEXEC) == 0 && pipe2(ends + 2, O_CLOEXEC) == 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        shmp__atomic_set(&check_failures, 0);
        close(ends[3]);
        serve_as_nobody(ends);
        end_child();
    }
    CHECK_EQUAL(read(ends[0], &byte, 1), 1);
    check_no_service(shmp_provider_open("served", NULL, &provider, &error), &error, EACCES);
    for (int i = 0; i < 4; i++) close(ends[i]);
    CHECK_EQUAL(status_of(child), 0);
}

/* ---- A stand-in for a service, which does what it is told ------------------------------------ */

typedef enum manners {
    HONEST,
    GARBAGE_DIGITS,
    EMPTY_TEXT,
    HANGS_UP,
    SILENT,
    NO_DESCRIPTOR,
    TWO_DESCRIPTORS,
    MANY_DESCRIPTORS,
    REFUSES_WITH_DESCRIPTOR,
    TOO_LARGE_A_NUMBER,
    LONG_TEXT,
    A_PIPE,
    TOO_SMALL,
    REFUSES,
    REFUSES_AS_GONE,
    FORGETFUL, /* it knows no client that announced something */
    MANNERS
} manners;

enum { CLIENTS = 16, RECORDED = 64 };

static struct stand_in {
    int listener;
    shmp__atomic_uint manners, of_hello, has_ended, hasty_requests;
    pthread_t thread;
    int clients[CLIENTS];
    pthread_mutex_t lock;
    shmp__request recorded[RECORDED];
    int count;
} fake = {.lock = PTHREAD_MUTEX_INITIALIZER};

static int new_memory(size_t size) {
    int fd = memfd_create("fake", MFD_CLOEXEC);
    CHECK_EQUAL(ftruncate(fd, (off_t)size), 0);
    return fd;
}

static void reply(int client, const char *text, const int *fds, size_t count) {
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(64 * sizeof(int))];
    } control;
    struct iovec part = {.iov_base = (void *)(uintptr_t)text, .iov_len = strlen(text)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    memset(&control, 0, sizeof control);
    if (count > 0) {
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = (socklen_t)CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(&control.header), fds, count * sizeof(int));
        message.msg_control = &control;
        message.msg_controllen = (socklen_t)CMSG_SPACE(count * sizeof(int));
    }
    (void)!sendmsg(client, &message, MSG_NOSIGNAL);
}

/* Gives whether to go on with the client. */
static int give_segment(int client, const shmp__request *request, manners how) {
    static const size_t of_descriptors[MANNERS] = {[HONEST] = 1,
                                                   [GARBAGE_DIGITS] = 1,
                                                   [EMPTY_TEXT] = 1,
                                                   [TWO_DESCRIPTORS] = 2,
                                                   [MANY_DESCRIPTORS] = 60,
                                                   [REFUSES_WITH_DESCRIPTOR] = 1,
                                                   [TOO_LARGE_A_NUMBER] = 1,
                                                   [LONG_TEXT] = 1,
                                                   [A_PIPE] = 1,
                                                   [TOO_SMALL] = 1,
                                                   [FORGETFUL] = 1};
    static const char *const texts[MANNERS] = {[GARBAGE_DIGITS] = "4x1",
                                               [EMPTY_TEXT] = "-",
                                               [REFUSES_WITH_DESCRIPTOR] = "-5",
                                               [TOO_LARGE_A_NUMBER] = "99999999999",
                                               [LONG_TEXT] = "0000000000000000000000000000001",
                                               [REFUSES] = "-11",
                                               [REFUSES_AS_GONE] = "-5"};
    static int number = FIRST_NUMBER;
    char digits[24];
    int fds[64], ends[2] = {-1, -1};
    if (how == HANGS_UP) return 0;
    if (how == SILENT) return 1;
    size_t count = of_descriptors[how];
    if (how == A_PIPE) CHECK_EQUAL(pipe2(ends, O_CLOEXEC), 0);
    int memory = how == A_PIPE ? ends[0] : new_memory(how == TOO_SMALL ? 1 : (size_t)request->size);
    for (size_t i = 0; i < count; i++) fds[i] = memory;
    snprintf(digits, sizeof digits, "%d", request->kind == SHMP__EXISTING_MAP ? atoi(request->id) : number++);
    reply(client, texts[how] ? texts[how] : digits, fds, count);
    close(memory);
    if (ends[1] >= 0) close(ends[1]);
    return 1;
}

static int answer(int client, const shmp__request *request) {
    manners how = (manners)shmp__atomic_load(&fake.manners);
    struct pollfd polled = {.fd = client, .events = POLLIN};
    switch (request->kind) {
    case SHMP__NEW_MAP:
    case SHMP__EXISTING_MAP: return give_segment(client, request, how);
    case SHMP__DEREGISTER: /* who sends the next request now has not read this one's reply */
        shmp__atomic_add(&fake.hasty_requests, poll(&polled, 1, 30) > 0 && !(polled.revents & POLLHUP));
        reply(client, how == GARBAGE_DIGITS ? "one" : "1", NULL, 0);
        return 1;
    case SHMP__POST_FORK_CHILD_HELLO: reply(client, how == FORGETFUL ? "-5" : "8", NULL, 0); return 1;
    case SHMP__HELLO:
        if (shmp__atomic_load(&fake.of_hello) == HANGS_UP) return 0;
        if (shmp__atomic_load(&fake.of_hello) == SILENT) return 1;
        reply(client, shmp__atomic_load(&fake.of_hello) == REFUSES ? "-1" : "7", NULL, 0);
        return 1;
    case SHMP__PRE_FORK: reply(client, "7", NULL, 0); return 1;
    default: return 0;
    }
}

static int hear(int client) {
    unsigned char bytes[SHMP__REQUEST_ROOM];
    shmp__request request;
    size_t frame;
    ssize_t got = read(client, bytes, sizeof bytes);
    if (got <= 0 || !CHECK_EQUAL(shmp__request_read(bytes, (size_t)got, 1000, &request, &frame), 1)) return 0;
    CHECK_EQUAL(got, frame); /* one request at a time */
    pthread_mutex_lock(&fake.lock);
    if (fake.count < RECORDED) fake.recorded[fake.count++] = request;
    pthread_mutex_unlock(&fake.lock);
    return answer(client, &request);
}

static void *stand_in(void *unused) {
    (void)unused;
    while (!shmp__atomic_load(&fake.has_ended)) {
        struct pollfd polled[CLIENTS + 1] = {{.fd = fake.listener, .events = POLLIN}};
        for (int i = 0; i < CLIENTS; i++) polled[i + 1] = (struct pollfd){.fd = fake.clients[i], .events = POLLIN};
        if (poll(polled, CLIENTS + 1, 10) <= 0) continue;
        for (int i = 0; i < CLIENTS; i++) {
            if (polled[i + 1].fd < 0 || !polled[i + 1].revents || hear(fake.clients[i])) continue;
            close(fake.clients[i]);
            fake.clients[i] = -1;
        }
        for (int i = 0; i < CLIENTS && polled[0].revents; i++)
            if (fake.clients[i] < 0) {
                fake.clients[i] = accept4(fake.listener, NULL, NULL, SOCK_CLOEXEC);
                break;
            }
    }
    for (int i = 0; i < CLIENTS; i++)
        if (fake.clients[i] >= 0) close(fake.clients[i]);
    close(fake.listener);
    return NULL;
}

static int start_stand_in(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *text = own_address();
    memcpy(address.sun_path + 1, text + 1, strlen(text) - 1);
    shmp__atomic_set(&fake.manners, HONEST);
    shmp__atomic_set(&fake.of_hello, HONEST);
    shmp__atomic_set(&fake.has_ended, 0);
    shmp__atomic_set(&fake.hasty_requests, 0);
    fake.count = 0;
    for (int i = 0; i < CLIENTS; i++) fake.clients[i] = -1;
    fake.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(text));
    return CHECK_EQUAL(bind(fake.listener, (struct sockaddr *)&address, length), 0) &&
           CHECK_EQUAL(listen(fake.listener, 10), 0) &&
           CHECK_EQUAL(pthread_create(&fake.thread, NULL, stand_in, NULL), 0);
}

static void stop_stand_in(void) {
    shmp__atomic_add(&fake.has_ended, 1);
    pthread_join(fake.thread, NULL);
}

static void behave(manners how) {
    unsigned before = shmp__atomic_load(&fake.manners);
    while (!shmp__atomic_swap_if(&fake.manners, &before, how)) continue;
}

static void behave_at_hello(manners how) {
    unsigned before = shmp__atomic_load(&fake.of_hello);
    while (!shmp__atomic_swap_if(&fake.of_hello, &before, how)) continue;
}

/* How many of the requests so far were such; the last one in *ret_request. */
static int heard(shmp__request_kind kind, shmp__request *ret_request) {
    int count = 0;
    pthread_mutex_lock(&fake.lock);
    for (int i = 0; i < fake.count; i++)
        if (fake.recorded[i].kind == kind) {
            count++;
            *ret_request = fake.recorded[i];
        }
    pthread_mutex_unlock(&fake.lock);
    return count;
}

static int hears(shmp__request_kind kind, int count, shmp__request *ret_request) {
    for (int tries = 0; tries < 200 && heard(kind, ret_request) < count; tries++) usleep(10000);
    return CHECK_EQUAL(heard(kind, ret_request), count);
}

static void test_what_is_sent(test_context *context) {
    shmp_error error;
    shmp__request request;
    (void)context;
    REQUIRE(start_stand_in());
    shmp_provider *provider = opened("served", 0);
    REQUIRE(provider);
    hears(SHMP__HELLO, 1, &request);
    shmp_shmem *owner = created_by(provider, SMALL + 1, 0);
    REQUIRE(owner);
    CHECK(hears(SHMP__NEW_MAP, 1, &request) && CHECK_EQUAL(request.size, SMALL + 1));
    shmp_description description = described(owner), whole = description_of("1234567:8", 0);
    char expected[20];
    snprintf(expected, sizeof expected, "%d:%d", atoi(description.id), shmp_fileno(owner));
    CHECK_TEXT(description.id, expected);
    shmp_shmem *other;
    CHECK(SUCCEEDS(shmp_attach, provider, &whole, SHMP_WHOLE, &other));
    hears(SHMP__EXISTING_MAP, 1, &request);
    CHECK_TEXT(request.id, "1234567");
    for (size_t i = strlen(request.id); i < sizeof request.id; i++) CHECK_EQUAL(request.id[i], 0);
    CHECK_EQUAL(atoi(described(other).id), 1234567);
    closed(other);
    CHECK(hears(SHMP__DEREGISTER, 1, &request) && CHECK_EQUAL(request.number, 1234567));
    CHECK(SUCCEEDS(shmp_pre_fork, provider));
    hears(SHMP__PRE_FORK, 1, &request);
    fflush(NULL);
    pid_t child = fork();
    CHECK(SUCCEEDS(shmp_post_fork, provider, child == 0));
    if (child == 0) {
        closed(owner);
        shmp_provider_close(provider);
        end_child();
    }
    CHECK_EQUAL(status_of(child), 0);
    CHECK(hears(SHMP__POST_FORK_CHILD_HELLO, 1, &request) && CHECK_EQUAL(request.number, 7));
    CHECK(hears(SHMP__DEREGISTER, 2, &request) && CHECK_EQUAL(request.number, atoi(description.id)));
    CHECK_EQUAL(heard(SHMP__HELLO, &request), 1);
    closed(owner);
    CHECK(hears(SHMP__DEREGISTER, 3, &request) && CHECK_EQUAL(request.number, atoi(description.id)));
    shmp_provider_close(provider);
    CHECK_EQUAL(shmp__atomic_load(&fake.hasty_requests), 0);
    stop_stand_in();
}

/* Replies have no end: two of them would be one. */
static void test_one_request_at_a_time(test_context *context) {
    shmp__request request;
    (void)context;
    REQUIRE(start_stand_in());
    shmp_provider *provider = opened("served", 0);
    REQUIRE(provider);
    for (int i = 0; i < 3; i++) {
        shmp_shmem *one = created_by(provider, SMALL, 0), *other = created_by(provider, SMALL, 0);
        closed(one);
        closed(other);
    }
    shmp_provider_close(provider);
    hears(SHMP__DEREGISTER, 6, &request);
    CHECK_EQUAL(shmp__atomic_load(&fake.hasty_requests), 0);
    stop_stand_in();
}

static void test_nothing_of_a_lost_service_is_taken_back(test_context *context) {
    shmp__request request;
    (void)context;
    REQUIRE(start_stand_in());
    shmp_provider *provider = opened("served", 0);
    shmp_shmem *old = provider ? created_by(provider, SMALL, 0) : NULL;
    REQUIRE(old);
    stop_stand_in();
    check_create_fails(provider, 0);
    REQUIRE(start_stand_in());
    shmp_shmem *young = created_by(provider, SMALL, 0);
    closed(old);
    closed(young);
    shmp_provider_close(provider);
    CHECK(hears(SHMP__DEREGISTER, 1, &request));
    stop_stand_in();
}

/* Its segments are new ones each time. */
static void check_answers(shmp_provider *provider) {
    shmp_shmem *owner = created_by(provider, SMALL, 0);
    REQUIRE(owner);
    closed(twin(&(test_context){.provider = provider}, owner, 0));
    closed(owner);
}

static void use_stand_in(void *provider) {
    check_answers(provider);
    shmp_provider_close(provider);
}

static void *create_in_vain(void *provider) {
    check_create_fails(provider, ETIMEDOUT);
    return NULL;
}

static const struct {
    manners how;
    int code, is_lost;
    int is_taken_back;
} impolite[] = {
    {GARBAGE_DIGITS, SHMP_ESERVICE, 1, 0},
    {EMPTY_TEXT, SHMP_ESERVICE, 1, 0},
    {HANGS_UP, SHMP_ESERVICE, 1, 0},
    {SILENT, SHMP_ESERVICE, 1, 0},
    {NO_DESCRIPTOR, SHMP_ESERVICE, 1, 0},
    {TWO_DESCRIPTORS, SHMP_ESERVICE, 1, 0},
    {MANY_DESCRIPTORS, SHMP_ESERVICE, 1, 0},
    {REFUSES_WITH_DESCRIPTOR, SHMP_ESERVICE, 1, 0},
    {TOO_LARGE_A_NUMBER, SHMP_ESERVICE, 1, 0},
    {LONG_TEXT, SHMP_ESERVICE, 1, 0},
    {A_PIPE, SHMP_EID, 0, 1},
    {TOO_SMALL, SHMP_ESIZE, 0, 1},
    {REFUSES, SHMP_ESERVICE, 0, 0},
    {REFUSES_AS_GONE, SHMP_ENOTFOUND, 0, 0},
};

static void check_impolite(size_t row, shmp_provider *provider) {
    shmp_error error;
    shmp_description description = description_of("41:3", SMALL);
    shmp__request request;
    const holdings before = count_holdings();
    int hellos = heard(SHMP__HELLO, &request), taken_back = heard(SHMP__DEREGISTER, &request);
    check_subject("manners %d", impolite[row].how);
    behave(impolite[row].how);
    shmp_shmem *shmem = UNTOUCHED;
    error = poisoned_error();
    CHECK_EQUAL(shmp_create(provider, SMALL, 0, &shmem, &error), -impolite[row].code);
    CHECK(error.code == -impolite[row].code && strlen(error.message) > 20);
    CHECK_EQUAL(shmp_attach(provider, &description, 0, &shmem, NULL), -impolite[row].code);
    CHECK(shmem == UNTOUCHED);
    behave(HONEST);
    check_answers(provider);
    CHECK_EQUAL(heard(SHMP__HELLO, &request) - hellos, impolite[row].is_lost ? 2 : 0);
    hears(SHMP__DEREGISTER, taken_back + 2 + (impolite[row].is_taken_back ? 2 : 0), &request);
    CHECK_EQUAL(count_descriptors() <= before.descriptors + 2, 1); /* the stand-in's ends may be open for a moment */
    check_subject("");
}

static void test_impolite_services(test_context *context) {
    (void)context;
    REQUIRE(start_stand_in());
    for (size_t row = 0; row < LENGTH(impolite); row++) {
        shmp_provider *provider = hasty();
        REQUIRE(provider);
        pthread_mutex_lock(&fake.lock);
        fake.count = 0;
        pthread_mutex_unlock(&fake.lock);
        check_impolite(row, provider);
        shmp_provider_close(provider);
    }
    stop_stand_in();
}

static void check_hello_fails(manners how, int os_error) {
    shmp_error error = poisoned_error();
    shmp_provider *provider = UNTOUCHED;
    const shmp_provider_options options = {.struct_size = sizeof options, .timeout_ms = SHORT};
    behave_at_hello(how);
    check_no_service(shmp_provider_open("served", &options, &provider, &error), &error, os_error);
    CHECK(provider == UNTOUCHED);
}

static void test_impolite_greetings(test_context *context) {
    (void)context;
    REQUIRE(start_stand_in());
    check_hello_fails(HANGS_UP, EACCES);
    check_hello_fails(SILENT, ETIMEDOUT);
    check_hello_fails(REFUSES, EPROTO);
    stop_stand_in();
}

/* The reply to a Deregister is read late. */
static void test_garbage_is_found_late(test_context *context) {
    (void)context;
    REQUIRE(start_stand_in());
    shmp_provider *provider = hasty();
    shmp_shmem *shmem = provider ? created_by(provider, SMALL, 0) : NULL;
    REQUIRE(shmem);
    behave(GARBAGE_DIGITS);
    closed(shmem);
    usleep(100000);
    behave(HONEST);
    check_create_fails(provider, EPROTO);
    check_answers(provider);
    shmp_provider_close(provider);
    stop_stand_in();
}

/* What another thread of the parent had begun is not waited for. */
static void test_a_fork_while_another_thread_asks(test_context *context) {
    pthread_t thread;
    shmp__request request;
    (void)context;
    REQUIRE(start_stand_in());
    shmp_provider *provider = hasty();
    REQUIRE(provider);
    behave(SILENT);
    REQUIRE(pthread_create(&thread, NULL, create_in_vain, provider) == 0);
    hears(SHMP__NEW_MAP, 1, &request);
    behave(HONEST);
    CHECK_IN_CHILD(use_stand_in, provider);
    pthread_join(thread, NULL);
    check_answers(provider);
    shmp_provider_close(provider);
    stop_stand_in();
}

static void test_a_service_that_forgets_a_fork(test_context *context) {
    shmp_error error;
    (void)context;
    REQUIRE(start_stand_in());
    family all;
    REQUIRE(make_family("rc(served)", &all) && SUCCEEDS(shmp_pre_fork, all.provider));
    behave(FORGETFUL);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        shmp__atomic_set(&check_failures, 0);
        CHECK_EQUAL(shmp_post_fork(all.provider, 1, NULL), -SHMP_ESERVICE);
        bytes_of(all.shmem)[0] = FROM_CHILD;
        check_answers(all.provider);
        end_family(&all);
        end_child();
    }
    CHECK(SUCCEEDS(shmp_post_fork, all.provider, 0));
    CHECK_EQUAL(status_of(child), 0);
    CHECK_EQUAL(bytes_of(all.shmem)[0], FROM_CHILD);
    end_family(&all);
    stop_stand_in();
}

/* ---- SHMP_SERVE ------------------------------------------------------------------------------ */

static shmp_provider *serving(const char *name) {
    shmp_error error;
    shmp_provider *provider;
    const shmp_provider_options options = {.struct_size = sizeof options, .flags = SHMP_SERVE};
    return SUCCEEDS(shmp_provider_open, name, &options, &provider) ? provider : NULL;
}

static void test_serve(test_context *context) {
    (void)context;
    shmp_provider *one = serving("served"), *other = serving("served");
    shmp_shmem *owner = one ? created_by(one, SMALL, 0) : NULL;
    REQUIRE(owner && other);
    shmp_description description = described(owner);
    CHECK(is_held(&description));
    shmp_provider_close(other); /* that one's is not its own */
    CHECK(is_held(&description));
    closed(owner);
    shmp_provider_close(one);
    test_nobody_is_there(context);
}

static void test_std_that_serves(test_context *context) {
    (void)context;
    shmp_provider *std = serving("std");
    shmp_shmem *owner = std ? created_by(std, SMALL, 0) : NULL;
    REQUIRE(owner);
    CHECK_TEXT(shmp_provider_name(std), "rc(served(memfd))");
    shmp_description description = described(owner);
    shmp_shmem *other = attached_by(std, &description, 0);
    CHECK(other && other->mapping->provider == owner->mapping->provider);
    closed(other);
    shmp_provider *posix = opened("posix", 0);
    shmp_shmem *foreign = posix ? created_by(posix, SMALL, 0) : NULL;
    REQUIRE(foreign);
    description = described(foreign);
    other = attached_by(std, &description, 0);
    if (other) CHECK_TEXT(shmp_backend(other), "posix");
    closed(other);
    closed(foreign);
    closed(owner);
    shmp_provider_close(posix);
    shmp_provider_close(std);
}

/* The environment's choice is a mechanism: no service is started. */
static void test_std_that_is_told_otherwise(test_context *context) {
    (void)context;
    setenv("SHMEM_PROVIDER", "sysv", 1);
    shmp_provider *std = serving("std");
    unsetenv("SHMEM_PROVIDER");
    REQUIRE(std);
    CHECK_TEXT(shmp_provider_name(std), "sysv");
    shmp_provider_close(std);
    test_nobody_is_there(context);
}

static void check_fork_of_host(const char *name) {
    family all;
    int go[2];
    char byte;
    all.provider = serving(name);
    all.shmem = all.provider ? created_by(all.provider, SMALL, 0) : NULL;
    REQUIRE(all.shmem && pipe2(go, O_CLOEXEC) == 0);
    all.description = described(all.shmem);
    pid_t child = hooked_fork(all.provider);
    if (child == 0) {
        close(go[1]);
        (void)!read(go[0], &byte, 1);
        CHECK(is_held(&all.description));
        check_usable(all.provider);
        end_family(&all);
        end_child();
    }
    close(go[0]);
    closed(all.shmem);
    check_usable(all.provider);
    close(go[1]);
    CHECK_EQUAL(status_of(child), 0);
    CHECK(is_let_go(&all.description));
    shmp_provider_close(all.provider);
}

static void test_fork_of_a_host(test_context *context) {
    check_fork_of_host("served");
    check_fork_of_host("std");
    test_nobody_is_there(context);
}

/* The second one's service is the first one's. */
static void test_fork_of_a_host_with_another_provider(test_context *context) {
    shmp_error error;
    (void)context;
    shmp_provider *host = serving("std"), *guest = serving("std");
    shmp_shmem *shmem = guest ? created_by(guest, SMALL, 0) : NULL;
    REQUIRE(host && shmem);
    CHECK(shmp__hosts_service(host) && !shmp__hosts_service(guest));
    shmp_description description = described(shmem);
    double begun = now();
    REQUIRE(SUCCEEDS(shmp_pre_fork, guest) && SUCCEEDS(shmp_pre_fork, host));
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) shmp__atomic_set(&check_failures, 0);
    CHECK(SUCCEEDS(shmp_post_fork, host, child == 0) && SUCCEEDS(shmp_post_fork, guest, child == 0));
    CHECK(now() - begun < 3);
    if (child > 0) closed(shmem);
    if (child == 0) {
        CHECK(!shmp__hosts_service(host));
        check_usable(guest);
        CHECK(is_held(&description));
        closed(shmem);
        end_child();
    }
    CHECK_EQUAL(status_of(child), 0);
    shmp_provider_close(guest);
    shmp_provider_close(host);
}

/* ... does not keep its parent's service, of which it has no descriptor; without the hooks, none after it first used
 * the provider. */
static void check_longer_life(test_context *context, int is_hooked) {
    int go[2], ready[2];
    char byte;
    REQUIRE(pipe2(go, O_CLOEXEC) == 0 && pipe2(ready, O_CLOEXEC) == 0);
    shmp_provider *provider = serving("std");
    shmp_shmem *shmem = provider ? created_by(provider, SMALL, 0) : NULL;
    REQUIRE(shmem);
    fflush(NULL);
    pid_t child = is_hooked ? hooked_fork(provider) : fork();
    if (child == 0) {
        close(go[1]);
        if (!is_hooked) shmp__atomic_set(&check_failures, 0);
        if (!is_hooked) check_usable(provider);
        close(ready[1]);
        (void)!read(go[0], &byte, 1);
        bytes_of(shmem)[0] = FROM_CHILD;
        closed(shmem);
        shmem = NULL;
        (void)shmp_create(provider, SMALL, 0, &shmem, NULL); /* may find out that the service has ended */
        shmp_close(shmem, NULL);
        check_usable(provider); /* by a service of its own */
        shmp_provider_close(provider);
        end_child();
    }
    close(go[0]);
    close(ready[1]);
    (void)!read(ready[0], &byte, 1);
    close(ready[0]);
    closed(shmem);
    shmp_provider_close(provider);
    test_nobody_is_there(context);
    close(go[1]);
    CHECK_EQUAL(status_of(child), 0);
    test_nobody_is_there(context);
}

static void test_a_hosts_child_that_lives_longer(test_context *context) {
#if defined(__SANITIZE_THREAD__)
    SKIP_UNLESS(0, "the sanitizer forbids a forked process of several threads a new one");
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
    SKIP_UNLESS(0, "the sanitizer forbids a forked process of several threads a new one");
#endif
#endif
    check_longer_life(context, 1);
    check_longer_life(context, 0);
}

/* Both use the first one's. */
static void test_a_race_of_two_starters(test_context *context) {
    enum { ROUNDS = 20, STARTERS = 3 };
    (void)context;
    for (int round = 0; round < ROUNDS; round++) {
        pid_t starters[STARTERS];
        int go[2], made[2];
        char byte;
        REQUIRE(pipe2(go, O_CLOEXEC) == 0 && pipe2(made, O_CLOEXEC) == 0);
        fflush(NULL);
        for (int i = 0; i < STARTERS; i++) {
            starters[i] = fork();
            if (starters[i] > 0) continue;
            alarm(PATIENCE);
            close(go[1]);
            shmp__atomic_set(&check_failures, 0);
            (void)!read(go[0], &byte, 1);
            shmp_provider *provider = serving("std");
            shmp_shmem *shmem = provider ? created_by(provider, SMALL, 0) : NULL;
            shmp_description description = {.size = 0};
            if (shmem) description = described(shmem);
            (void)!write(made[1], &description, sizeof description);
            close(made[1]);
            usleep(200000); /* the others' segments are used */
            closed(shmem);
            shmp_provider_close(provider);
            end_child();
        }
        close(go[0]);
        close(go[1]);
        shmp_provider *visitor = NULL;
        for (int i = 0; i < STARTERS; i++) {
            shmp_description description;
            REQUIRE(read(made[0], &description, sizeof description) == (ssize_t)sizeof description);
            if (!visitor) visitor = opened("served", 0);
            if (visitor) closed(attached_by(visitor, &description, 0));
        }
        shmp_provider_close(visitor);
        close(made[0]);
        close(made[1]);
        for (int i = 0; i < STARTERS; i++) CHECK_EQUAL(status_of(starters[i]), 0);
    }
}

/* ---- Every call of the system fails ---------------------------------------------------------- */

static struct {
    shmp__atomic_uint is_armed;
    int seen, failing, error, is_lasting, count;
} fault;

static int is_due(void) {
    if (!shmp__atomic_load(&fault.is_armed)) return 0;
    int at = fault.seen++;
    if (at != fault.failing && !(fault.is_lasting && at > fault.failing)) return 0;
    fault.count++;
    errno = fault.error;
    return 1;
}

int shmp__fault(const char *call);
int shmp__fault(const char *call) {
    (void)call;
    return is_due();
}

int shmp__fault_after(const char *call, int result);
int shmp__fault_after(const char *call, int result) {
    (void)call;
    return is_due() ? -1 : result;
}

typedef struct scene {
    shmp_provider *provider, *opened;
    shmp_shmem *owner, *made;
    shmp_description description;
} scene;

static int faulty_open(scene *all, shmp_error *reterr) {
    const shmp_provider_options options = {.struct_size = sizeof options, .timeout_ms = SHORT};
    return shmp_provider_open("served", &options, &all->opened, reterr);
}

static int faulty_open_rc(scene *all, shmp_error *reterr) {
    const shmp_provider_options options = {.struct_size = sizeof options, .inner = all->provider};
    return shmp_provider_open("rc", &options, &all->opened, reterr);
}

static int faulty_available(scene *all, shmp_error *reterr) {
    const char *name;
    unsigned served = 0;
    (void)all;
    while (strcmp(known_providers[served].name, "served") != 0) served++;
    return shmp_available(served, &name, reterr);
}

static int faulty_create(scene *all, shmp_error *reterr) {
    return shmp_create(all->provider, SMALL, SHMP_INHERIT, &all->made, reterr);
}

static int faulty_attach(scene *all, shmp_error *reterr) {
    return shmp_attach(all->provider, &all->description, 0, &all->made, reterr);
}

static int faulty_clone(scene *all, shmp_error *reterr) {
    return shmp_clone(all->owner, SHMP_READ_ONLY, &all->made, reterr);
}

static int faulty_describe(scene *all, shmp_error *reterr) {
    shmp_description description;
    return shmp_describe(all->owner, &description, reterr);
}

static int faulty_close(scene *all, shmp_error *reterr) {
    shmp_shmem *owner = all->owner;
    all->owner = NULL;
    return shmp_close(owner, reterr);
}

static int faulty_retire(scene *all, shmp_error *reterr) {
    shmp_shmem *owner = all->owner;
    all->owner = NULL;
    int result = shmp__retire(owner, reterr);
    int failed = shmp_close(owner, result < 0 ? NULL : reterr);
    return result < 0 ? result : failed;
}

static int faulty_fork(scene *all, shmp_error *reterr) {
    int result = shmp_pre_fork(all->provider, reterr);
    return result < 0 ? result : shmp_post_fork(all->provider, 0, reterr);
}

static int faulty_child(scene *all, shmp_error *reterr) {
    int result = shmp_pre_fork(all->provider, reterr);
    if (result < 0) return result;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        shmp_error error = {.code = 0};
        result = shmp_post_fork(all->provider, 1, &error);
        shmp__atomic_sub(&fault.is_armed, shmp__atomic_load(&fault.is_armed));
        _exit(result != error.code || bytes_of(all->owner)[0] != FROM_PARENT);
    }
    result = shmp_post_fork(all->provider, 0, reterr);
    CHECK_EQUAL(status_of(child), 0);
    return result;
}

static const struct faulty {
    const char *name;
    int (*run)(scene *all, shmp_error *reterr);
} faulty[] = {
    {"open", faulty_open},     {"open_rc", faulty_open_rc}, {"available", faulty_available}, {"create", faulty_create},
    {"attach", faulty_attach}, {"clone", faulty_clone},     {"describe", faulty_describe},   {"close", faulty_close},
    {"retire", faulty_retire}, {"fork", faulty_fork},       {"child", faulty_child},
};

/* Gives whether the faulty call was reached. */
static int run_faulty(const struct faulty *operation, const char *label, int failing, int error_number,
                      int is_lasting) {
    const holdings before = count_holdings();
    shmp_error error = poisoned_error();
    scene all = {.provider = NULL};
    shmp_provider *served = served_with(NULL, NULL, 0, SHORT);
    const shmp_provider_options options = {.struct_size = sizeof options, .inner = served};
    if (!served || !CHECK(shmp_provider_open("rc", &options, &all.provider, NULL) == 0)) return 0;
    if (strcmp(label, "served") == 0) {
        shmp_provider_close(all.provider);
        all.provider = served;
    } else {
        shmp_provider_close(served);
    }
    all.owner = created_by(all.provider, SMALL, 0);
    if (!all.owner) return 0;
    bytes_of(all.owner)[0] = FROM_PARENT;
    all.description = described(all.owner);
    closed(created_by(all.provider, SMALL, 0)); /* a reply is under way */

    check_subject("%s %s, call %d: %s%s", label, operation->name, failing + 1, strerror(error_number),
                  is_lasting ? " from there on" : "");
    fault.seen = fault.count = 0;
    fault.failing = failing;
    fault.error = error_number;
    fault.is_lasting = is_lasting;
    shmp__atomic_add(&fault.is_armed, 1);
    int result = operation->run(&all, &error);
    shmp__atomic_sub(&fault.is_armed, 1);
    int is_reached = fault.count > 0;

    if (result == 0) {
        if (all.made) CHECK_EQUAL(shmp_size(all.made), SMALL);
    } else {
        CHECK((is_reached || operation->run == faulty_child) && result < 0 && result >= -SHMP_ESERVICE);
        CHECK_EQUAL(error.code, result);
        CHECK(error.call && *error.call && memchr(error.message, 0, sizeof error.message) && *error.message);
        CHECK(!all.made && !all.opened);
    }
    shmp_close(all.made, NULL);
    if (all.owner) CHECK_EQUAL(bytes_of(all.owner)[0], FROM_PARENT);
    check_usable(all.provider);
    closed(all.owner);
    if (all.opened) check_usable(all.opened);
    shmp_provider_close(all.opened);
    shmp_provider_close(all.provider);
    check_holdings(&before);
    check_subject("");
    return is_reached;
}

/* What failed is told, nothing stays behind, and what comes next works. */
static void test_faults(test_context *context) {
    static const int errors[] = {ENOMEM, EMFILE, EINVAL, ECONNRESET, EACCES, EAGAIN};
    static const char *const labels[] = {"served", "rc(served)"};
    int calls = 0;
    (void)context;
    WITH_SERVICE(service);
    for (size_t i = 0; i < LENGTH(faulty) * LENGTH(errors) * LENGTH(labels); i++) {
        const struct faulty *operation = &faulty[i / LENGTH(errors) / LENGTH(labels)];
        const char *label = labels[i / LENGTH(errors) % LENGTH(labels)];
        const int error = errors[i % LENGTH(errors)], is_slow = error == EAGAIN && operation->run != faulty_create;
        for (int is_lasting = 0; is_lasting < 2 - is_slow; is_lasting++)
            for (int at = 0; run_faulty(operation, label, at, error, is_lasting); at++) calls++;
        alarm(10 * PATIENCE);
    }
    CHECK(calls > 1000);
    stop_service(&service);
}

/* ---- All ------------------------------------------------------------------------------------- */

static const test of_library[] = {
    TEST(nobody_is_there),
    TEST(available),
    TEST(options),
    TEST(names),
    TEST(backends),
    TEST(std_attaches_by_id),
    TEST(rights_of_what_is_wrapped),
    TEST(clones_share_a_reference),
    TEST(attached_by_descriptor),
    TEST(a_killed_client_lets_go),
    TEST(a_child_keeps_what_it_inherits),
    TEST(a_parent_keeps_what_its_child_closes),
    TEST(a_child_forked_without_hooks),
    TEST(nested_calls_are_one),
    TEST(a_call_too_few_afterwards),
    TEST(post_fork_alone),
    TEST(grandchildren),
    TEST(a_fork_that_fails),
    TEST(a_child_that_dies_before_it_answers),
    TEST(a_child_that_stops),
    TEST(a_parent_that_dies_before_it_answers),
    TEST(threads_that_fork_and_work),
    TEST(others_wait_between_the_calls),
    TEST(nobody_waits_for_ever),
    TEST(a_lost_service),
    TEST(a_service_that_hangs),
    TEST(another_users_service),
    TEST(what_is_sent),
    TEST(one_request_at_a_time),
    TEST(nothing_of_a_lost_service_is_taken_back),
    TEST(impolite_services),
    TEST(impolite_greetings),
    TEST(garbage_is_found_late),
    TEST(a_service_that_forgets_a_fork),
    TEST(a_fork_while_another_thread_asks),
    TEST(serve),
    TEST(std_that_serves),
    TEST(std_that_is_told_otherwise),
    TEST(fork_of_a_host),
    TEST(fork_of_a_host_with_another_provider),
    TEST(a_hosts_child_that_lives_longer),
    TEST(a_race_of_two_starters),
    TEST(faults),
    {NULL, NULL},
};

static const test of_provider[] = {{NULL, NULL}};
static const role roles[] = {{NULL, NULL}};

int main(int argc, char **argv) {
    static const suite all = {of_library, of_provider, roles};
    return run_suite(&all, argc, argv);
}
