/* Handles, as the C ABI has them since 0.2, over every provider that works here, and over "std" (harness.h): clones,
 * given descriptors, what is not mapped, permissions, structs that grow, users and their rights, and what the core does
 * between the calls. Some tests see the core from inside; some need root, who can be somebody else. */
#define _GNU_SOURCE /* Linux: memfd_create, seals, namespaces */
#include "backend/unix.h"
#include "backend/wrap.h"
#include "harness.h"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <time.h>
#if defined(__linux__)
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/auxv.h>
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#endif

enum { NOBODY = 65534, SOMEBODY = 65533 };

static shmp_shmem *cloned(const shmp_shmem *shmem, unsigned flags) {
    shmp_error error;
    shmp_shmem *clone;
    return SUCCEEDS(shmp_clone, shmem, flags, &clone) ? clone : NULL;
}

static shmp_shmem *attached_fd(const test_context *context, int fd, const shmp_description *description,
                               unsigned flags) {
    shmp_error error;
    shmp_shmem *shmem;
    return SUCCEEDS(shmp_attach_fd, context->provider, fd, description, flags, &shmem) ? shmem : NULL;
}

/* Whether what one handle writes is seen by the other. */
static void check_shared(const shmp_shmem *one, const shmp_shmem *other) {
    static unsigned char value;
    REQUIRE(one && other && shmp_data(one) && shmp_data(other));
    bytes_of(one)[shmp_size(one) - 1] = ++value;
    CHECK_EQUAL(bytes_of(other)[shmp_size(one) - 1], value);
}

static int is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }

static int os_error_of(shmp_provider *provider, const shmp_description *description, unsigned flags) {
    shmp_error error = {.os_error = 0};
    shmp_shmem *shmem;
    if (shmp_attach(provider, description, flags, &shmem, &error) == 0) closed(shmem);
    return error.os_error;
}

/* ---- References ----------------------------------------------------------------------------- */

static void test_provider_references(test_context *context) {
    shmp_provider *provider = opened(context->label, 0);
    REQUIRE(provider);
    CHECK(shmp_provider_ref(NULL) == NULL);
    for (int i = 0; i < 3; i++) CHECK(shmp_provider_ref(provider) == provider);
    CHECK_EQUAL(shmp__atomic_load(&provider->references), 4);
    for (int i = 0; i < 3; i++) {
        shmp_provider_close(provider);
        closed(created_by(provider, SMALL, 0));
        CHECK_TEXT(shmp_provider_name(provider), shmp_provider_name(context->provider));
    }
    CHECK_EQUAL(shmp__atomic_load(&provider->references), 1);
    shmp_provider_close(provider);
}

/* ---- Clones --------------------------------------------------------------------------------- */

static void test_clone(test_context *context) {
    shmp_shmem *owner = created(context, SMALL + 1, 0);
    REQUIRE(owner);
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_clone, owner, 0u, NULL);
    CHECK_REFUSED(CODE(SHMP_EINVAL), shmp_clone, NULL, 0u);
    shmp_shmem *clone = cloned(owner, 0), *second = clone ? cloned(clone, 0) : NULL;
    REQUIRE(clone && second);
    const shmp_shmem *const both[] = {clone, second};
    for (size_t i = 0; i < LENGTH(both); i++) {
        CHECK_EQUAL(shmp_size(both[i]), SMALL + 1);
        CHECK_EQUAL(shmp_flags(both[i]), 0);
        CHECK_TEXT(shmp_backend(both[i]), context->can->name);
        CHECK(shmp_data(both[i]) == shmp_data(owner));
        CHECK_EQUAL(shmp_fileno(both[i]), shmp_fileno(owner));
        CHECK_TEXT(described(both[i]).id, described(owner).id);
        CHECK_EQUAL(described(both[i]).size, SMALL + 1);
    }
    CHECK_EQUAL(shmp_flags(owner), SHMP_OWNER);
    closed(second);
    closed(clone);
    closed(owner);
}

static void check_clones_closed(const test_context *context, const int order[3]) {
    shmp_shmem *handles[3] = {created(context, SMALL, 0)};
    check_subject("closing %d %d %d", order[0], order[1], order[2]);
    REQUIRE(handles[0]);
    for (int i = 1; i < 3; i++) REQUIRE((handles[i] = cloned(handles[i - 1], 0)));
    volatile unsigned char *bytes = bytes_of(handles[0]);
    int fd = shmp_fileno(handles[0]);
    for (int i = 0; i < 3; i++) {
        if (fd >= 0) CHECK(is_open(fd));
        bytes[SMALL - 1] = (unsigned char)(i + 1);
        closed(handles[order[i]]);
        if (i < 2) CHECK_EQUAL(bytes[SMALL - 1], i + 1);
    }
    if (fd >= 0) CHECK(!is_open(fd));
}

static void test_clones_closed_in_any_order(test_context *context) {
    static const int orders[][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    for (size_t i = 0; i < LENGTH(orders); i++) check_clones_closed(context, orders[i]);
}

/* What differs in its rights has a mapping and a descriptor of its own; private memory cannot. */
static void test_clones_of_their_own(test_context *context) {
    shmp_shmem *owner = created(context, SMALL, 0);
    REQUIRE(owner);
    shmp_shmem *reader = cloned(owner, SHMP_READ_ONLY);
    REQUIRE(reader);
    CHECK_EQUAL(shmp_flags(reader), SHMP_READ_ONLY);
    CHECK_EQUAL(shmp_data(reader) != shmp_data(owner), context->can->shares);
    CHECK_EQUAL(shmp_fileno(reader) != shmp_fileno(owner), context->can->is_file);
    check_shared(owner, reader);
    shmp_shmem *second = cloned(reader, 0), *third = cloned(reader, SHMP_READ_ONLY);
    REQUIRE(second && third);
    CHECK_EQUAL(shmp_flags(second), SHMP_READ_ONLY);
    CHECK(shmp_data(second) == shmp_data(reader) && shmp_data(third) == shmp_data(reader));
    if (context->can->is_file) {
        shmp_shmem *heir = cloned(owner, SHMP_INHERIT), *reading_heir = cloned(reader, SHMP_INHERIT);
        REQUIRE(heir && reading_heir);
        CHECK_EQUAL(shmp_flags(heir), 0);
        CHECK_EQUAL(shmp_flags(reading_heir), SHMP_READ_ONLY);
        CHECK(shmp_data(heir) != shmp_data(owner) && shmp_fileno(heir) != shmp_fileno(owner));
        CHECK_EQUAL(fcntl(shmp_fileno(heir), F_GETFD), 0);
        CHECK_EQUAL(fcntl(shmp_fileno(reading_heir), F_GETFD), 0);
        CHECK_EQUAL(fcntl(shmp_fileno(owner), F_GETFD), FD_CLOEXEC);
        check_shared(heir, reader);
        closed(heir);
        closed(reading_heir);
    } else {
        CHECK_REFUSED(CODE(SHMP_EUNSUPPORTED), shmp_clone, owner, (unsigned)SHMP_INHERIT);
    }
    closed(owner);
    CHECK_EQUAL(bytes_of(reader)[0], 0);
    closed(reader);
    CHECK_EQUAL(bytes_of(second)[0], 0);
    closed(second);
    closed(third);
}

static void write_first_byte(void *shmem) {
    const struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    signal(SIGSEGV, SIG_DFL);
    signal(SIGBUS, SIG_DFL);
    bytes_of(shmem)[0] = 1;
}

static void test_clones_of_readers_cannot_write(test_context *context) {
    SKIP_UNLESS(context->can->shares, "heap memory cannot be protected");
    shmp_shmem *owner = created(context, SMALL, 0), *reader = owner ? cloned(owner, SHMP_READ_ONLY) : NULL;
    shmp_shmem *clone = reader ? cloned(reader, 0) : NULL;
    REQUIRE(clone);
    CHECK(WIFSIGNALED(status_in_child(write_first_byte, reader)));
    CHECK(WIFSIGNALED(status_in_child(write_first_byte, clone)));
    closed(clone);
    closed(reader);
    closed(owner);
}

static void test_clones_persist_together(test_context *context) {
    SKIP_UNLESS(context->can->is_file, "exec ends the segment");
    shmp_error error;
    shmp_shmem *owner = created(context, SMALL, 0), *clone = owner ? cloned(owner, 0) : NULL;
    REQUIRE(clone);
    CHECK(SUCCEEDS(shmp_persist, clone));
    CHECK_EQUAL(fcntl(shmp_fileno(owner), F_GETFD), 0);
    closed(owner);
    CHECK_EQUAL(fcntl(shmp_fileno(clone), F_GETFD), 0);
    closed(clone);
}

/* All kinds of clones of `shmem` are the same segment, whatever has become of its name. */
static void check_clones_of(const test_context *context, const shmp_shmem *shmem) {
    const unsigned kinds[] = {0, SHMP_READ_ONLY, SHMP_INHERIT};
    for (size_t i = 0; i < LENGTH(kinds); i++) {
        if (kinds[i] & SHMP_INHERIT && !context->can->is_file) continue;
        shmp_shmem *clone = cloned(shmem, kinds[i]);
        check_shared(shmem, clone);
        closed(clone);
    }
}

static void test_clone_after_the_owner_closed(test_context *context) {
    shmp_shmem *owner = created(context, SMALL, 0), *clone = owner ? cloned(owner, 0) : NULL;
    REQUIRE(clone);
    shmp_shmem *other = twin(context, owner, 0);
    closed(owner);
    check_clones_of(context, clone);
    if (other) check_clones_of(context, other);
    if (context->can->shares) check_shared(clone, other);
    closed(other);
    closed(clone);
}

static void test_clone_when_the_name_is_anothers(test_context *context) {
    SKIP_UNLESS(context->can->has_names, "has no names");
    shmp_shmem *first = created_named(context, own_name());
    REQUIRE(first);
    CHECK_EQUAL(shm_unlink(own_name()), 0);
    check_clones_of(context, first);
    shmp_shmem *second = created_named(context, own_name());
    REQUIRE(second);
    check_clones_of(context, first);
    CHECK_EQUAL(bytes_of(second)[SMALL - 1], 0);
    closed(first);
    closed(second);
}

static void clone_inherited(void *argument) {
    shmp_shmem *owner = argument;
    shmp_shmem *clone = cloned(owner, 0), *reader = cloned(owner, SHMP_READ_ONLY);
    REQUIRE(clone && reader);
    CHECK_EQUAL(shmp_flags(owner), 0);
    CHECK_EQUAL(shmp_flags(clone), 0);
    bytes_of(clone)[0] = FROM_CHILD;
    CHECK_EQUAL(bytes_of(reader)[0], FROM_CHILD);
    closed(owner);
    bytes_of(clone)[1] = FROM_CHILD;
    closed(clone);
    closed(reader);
}

static void test_clone_in_a_forked_child(test_context *context) {
    shmp_shmem *owner = created(context, SMALL, 0), *clone = owner ? cloned(owner, 0) : NULL;
    REQUIRE(clone);
    CHECK_IN_CHILD(clone_inherited, owner);
    CHECK_EQUAL(shmp_flags(owner), SHMP_OWNER);
    CHECK_EQUAL(bytes_of(clone)[0], context->can->shares ? FROM_CHILD : 0);
    CHECK_EQUAL(bytes_of(clone)[1], context->can->shares ? FROM_CHILD : 0);
    shmp_shmem *late = twin(context, owner, 0); /* the child took no name away */
    closed(late);
    closed(clone);
    closed(owner);
}

typedef struct herd {
    pthread_t thread;
    const shmp_shmem *common;
} herd;

static void *clone_and_close(void *argument) {
    const herd *self = argument;
    for (int i = 0; i < 2000; i++) {
        shmp_shmem *clone = cloned(self->common, 0), *second = clone ? cloned(clone, 0) : NULL;
        closed(clone);
        if (second) CHECK_EQUAL(bytes_of(second)[0], FROM_PARENT);
        closed(second);
    }
    return NULL;
}

static void test_clones_in_threads(test_context *context) {
    herd threads[4];
    shmp_shmem *owner = created(context, SMALL, 0), *common = owner ? cloned(owner, 0) : NULL;
    REQUIRE(common);
    bytes_of(common)[0] = FROM_PARENT;
    closed(owner);
    for (size_t i = 0; i < LENGTH(threads); i++) {
        threads[i].common = common;
        if (!CHECK_EQUAL(pthread_create(&threads[i].thread, NULL, clone_and_close, &threads[i]), 0)) abort();
    }
    for (size_t i = 0; i < LENGTH(threads); i++) pthread_join(threads[i].thread, NULL);
    CHECK_EQUAL(bytes_of(common)[0], FROM_PARENT);
    closed(common);
}

/* ---- Retired handles -------------------------------------------------------------------------- */

static void check_retired(const test_context *context, int clones) {
    shmp_error error;
    shmp_shmem *owner = created(context, SMALL, 0), *clone = NULL;
    REQUIRE(owner);
    check_subject("with%s a clone", clones ? "" : "out");
    if (clones) REQUIRE((clone = cloned(owner, 0)));
    shmp_description description = described(owner);
    int fd = shmp_fileno(owner);
    CHECK(SUCCEEDS(shmp__retire, owner));
    CHECK_EQUAL(shmp_flags(owner), 0);
    if (fd >= 0) CHECK_EQUAL(is_open(fd), clones);
    /* a posix name goes with its owner, all else with the last handle; sysv's with the memory */
    int is_gone = context->can->has_names || (context->can->is_file && !clones);
    if (is_gone) CHECK_REFUSED(GONE, shmp_attach, context->provider, &description, 0u);
    bytes_of(owner)[SMALL - 1] = FROM_PARENT;
    if (clone) CHECK_EQUAL(bytes_of(clone)[SMALL - 1], FROM_PARENT);
    closed(clone);
    CHECK_EQUAL(bytes_of(owner)[SMALL - 1], FROM_PARENT);
    if (fd >= 0) CHECK(!is_open(fd));
    closed(owner);
    if (context->can->shares) CHECK_REFUSED(GONE, shmp_attach, context->provider, &description, 0u);
}

static void test_retire(test_context *context) {
    check_retired(context, 0);
    check_retired(context, 1);
}

/* ---- Descriptors that are given --------------------------------------------------------------- */

/* The handle on the given descriptor has one of its own, and the memory of `shmem`. The id it has: NULL is that of the
 * descriptor, "" none, as a posix name that is gone is not replaced. */
static void check_attached_fd(const test_context *context, const shmp_shmem *shmem, const shmp_description *description,
                              const char *expected_id) {
    char number[24];
    int fd = shmp_fileno(shmem);
    shmp_shmem *other = attached_fd(context, fd, description, 0);
    REQUIRE(other);
    CHECK(shmp_fileno(other) != fd && is_open(fd));
    CHECK_EQUAL(fcntl(shmp_fileno(other), F_GETFD), FD_CLOEXEC);
    CHECK(shmp_data(other) != shmp_data(shmem));
    CHECK_EQUAL(shmp_flags(other), 0);
    check_shared(shmem, other);
    snprintf(number, sizeof number, "%d", shmp_fileno(other));
    shmp_description unset;
    if (expected_id && !*expected_id)
        CHECK_FAILS(CODE(SHMP_ENOTFOUND), shmp_describe, other, &unset);
    else if (expected_id || context->can->has_names)
        CHECK_TEXT(described(other).id, expected_id ? expected_id : number);
    closed(other);
    CHECK(is_open(fd));
}

static void test_attach_fd(test_context *context) {
    SKIP_UNLESS(context->can->is_file, "segments are no descriptors");
    shmp_shmem *owner = created(context, SMALL, 0);
    REQUIRE(owner);
    shmp_description right = described(owner), unknown = description_of("", SMALL);
    check_subject("the right id");
    check_attached_fd(context, owner, &right, context->can->has_names ? right.id : NULL);
    check_subject("no id");
    check_attached_fd(context, owner, &unknown, NULL);
    shmp_description larger = description_of("", SMALL + 1), whole = description_of("", 0);
    CHECK_REFUSED(CODE(SHMP_ESIZE), shmp_attach_fd, context->provider, shmp_fileno(owner), &larger, 0u);
    CHECK_REFUSED(CODE(SHMP_EINVAL), shmp_attach_fd, context->provider, shmp_fileno(owner), &whole, 0u);
    CHECK_REFUSED(CODE(SHMP_EINVAL), shmp_attach_fd, context->provider, shmp_fileno(owner), NULL, 0u);
    CHECK_REFUSED(CODE(SHMP_EINVAL), shmp_attach_fd, context->provider, -1, &right, 0u);
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_attach_fd, context->provider, shmp_fileno(owner), &right, 0u, NULL);
    shmp_shmem *reader =
        attached_fd(context, shmp_fileno(owner), &whole, SHMP_WHOLE | SHMP_READ_ONLY | SHMP_INHERIT | SHMP_ANY_USER);
    REQUIRE(reader);
    CHECK_EQUAL(shmp_size(reader), SMALL);
    CHECK_EQUAL(shmp_flags(reader), SHMP_READ_ONLY);
    CHECK_EQUAL(fcntl(shmp_fileno(reader), F_GETFD), 0);
    check_shared(owner, reader);
    closed(owner);
    CHECK_EQUAL(bytes_of(reader)[0], 0);
    closed(reader);
}

static void test_attach_fd_of_none(test_context *context) {
    SKIP_UNLESS(!context->can->is_file, "segments are descriptors");
    shmp_description description = description_of("", SMALL);
    CHECK_REFUSED(CODE(SHMP_EUNSUPPORTED), shmp_attach_fd, context->provider, STDERR_FILENO, &description, 0u);
}

static void test_attach_fd_when_it_is_closed(test_context *context) {
    SKIP_UNLESS(context->can->is_file, "segments are no descriptors");
    shmp_shmem *owner = created(context, SMALL, 0);
    REQUIRE(owner);
    shmp_description right = described(owner), unknown = description_of("", SMALL);
    int fd = dup(STDERR_FILENO);
    close(fd);
    CHECK_REFUSED(GONE, shmp_attach_fd, context->provider, fd, &right, 0u);
    CHECK_REFUSED(GONE, shmp_attach_fd, context->provider, fd, &unknown, 0u);
    closed(owner);
}

static void test_attach_fd_by_posix_name(test_context *context) {
    SKIP_UNLESS(context->can->has_names, "has no names");
    shmp_shmem *first = created_named(context, own_name());
    REQUIRE(first);
    shmp_description named = described(first), wrong = description_of("/no_such_segment", SMALL);
    check_attached_fd(context, first, &named, own_name());
    check_subject("another's name");
    check_attached_fd(context, first, &wrong, "");
    check_subject("a name that was removed");
    CHECK_EQUAL(shm_unlink(own_name()), 0);
    check_attached_fd(context, first, &named, "");
    check_subject("a name that was made anew");
    shmp_shmem *second = created_named(context, own_name());
    REQUIRE(second);
    check_attached_fd(context, first, &named, "");
    shmp_provider *std = opened("std", 0);
    shmp_shmem *by_std = NULL;
    check_subject("by std");
    if (CHECK(std && shmp_attach_fd(std, shmp_fileno(second), &named, 0, &by_std, NULL) == 0))
        CHECK_TEXT(shmp_backend(by_std), "posix");
    closed(by_std);
    shmp_provider_close(std);
    closed(first);
    closed(second);
}

#if defined(__linux__)

static int memfd_of(size_t size, int seals) {
    int fd = memfd_create("conformance", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
    CHECK_EQUAL(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static void test_attach_fd_by_memfd_id(test_context *context) {
    SKIP_UNLESS(strcmp(context->can->name, "memfd") == 0, "no memfd");
    int sealed = memfd_of(SMALL, F_SEAL_SHRINK | F_SEAL_GROW), open_ended = memfd_of(SMALL, 0);
    shmp_description of_sealed = memfd_description(getpid(), sealed, SMALL);
    shmp_description of_open = memfd_description(getpid(), open_ended, SMALL);
    closed(attached_fd(context, sealed, &of_sealed, 0));
    char elsewhere[40]; /* as of a process that sent the descriptor: the inode is what counts */
    snprintf(elsewhere, sizeof elsewhere, "1.zz.%s", strrchr(of_sealed.id, '.') + 1);
    shmp_description renumbered = description_of(elsewhere, SMALL);
    closed(attached_fd(context, sealed, &renumbered, 0));
    CHECK_REFUSED(GONE, shmp_attach_fd, context->provider, open_ended, &of_sealed, 0u);
    CHECK_REFUSED(GARBAGE, shmp_attach_fd, context->provider, open_ended, &of_open, 0u);
    shmp_description nonsense = description_of("nonsense", SMALL);
    CHECK_REFUSED(GARBAGE, shmp_attach_fd, context->provider, sealed, &nonsense, 0u);
    close(sealed);
    close(open_ended);
}

static void test_attach_fd_of_no_memory(test_context *context) {
    SKIP_UNLESS(context->can->is_file, "segments are no descriptors");
    int ends[2], fds[4] = {open("/", O_RDONLY), open("/dev/null", O_RDWR)};
    REQUIRE(pipe(ends) == 0);
    fds[2] = ends[0], fds[3] = ends[1];
    for (size_t i = 0; i < LENGTH(fds); i++) {
        check_subject("descriptor %zu", i);
        shmp_description unknown = description_of("", 1), named = description_of("/no_such_segment", 1);
        if (strcmp(context->can->name, "memfd") == 0) named = memfd_description(getpid(), fds[i], 1);
        CHECK_REFUSED(GARBAGE, shmp_attach_fd, context->provider, fds[i], &unknown, 0u);
        CHECK_REFUSED(GARBAGE, shmp_attach_fd, context->provider, fds[i], &named, 0u);
    }
    for (size_t i = 0; i < LENGTH(fds); i++) close(fds[i]);
}

/* A number that is a descriptor and a System V segment is the latter to "std". */
static void test_std_takes_no_descriptor_numbers(test_context *context) {
    (void)context;
    shmp_provider *std = opened("std", 0), *sysv = opened("sysv", 0), *memfd = opened("memfd", 0);
    shmp_shmem *segment = created_by(sysv, SMALL, 0), *file = created_by(memfd, SMALL, 0);
    REQUIRE(std && segment && file);
    bytes_of(segment)[0] = FROM_PARENT;
    shmp_description description = described(segment);
    int number = atoi(description.id);
    int is_possible = number > 2 && !is_open(number) && dup2(shmp_fileno(file), number) == number;
    shmp_shmem *taken = attached_by(std, &description, 0);
    if (taken) {
        CHECK_TEXT(shmp_backend(taken), "sysv");
        CHECK_EQUAL(bytes_of(taken)[0], FROM_PARENT);
    }
    if (is_possible) close(number);
    snprintf(description.id, sizeof description.id, "%d", shmp_fileno(file));
    shmp_shmem *other = NULL;
    if (shmp_attach(std, &description, SHMP_READ_ONLY, &other, NULL) == 0) CHECK_TEXT(shmp_backend(other), "sysv");
    closed(other);
    closed(taken);
    closed(segment);
    closed(file);
    shmp_provider_close(memfd);
    shmp_provider_close(sysv);
    shmp_provider_close(std);
}

#endif

/* ---- Not mapped -------------------------------------------------------------------------------- */

static int count_one(void *context, long pid) {
    (void)pid;
    return ++*(int *)context, 0;
}

static void check_unmapped(const test_context *context, unsigned flags) {
    shmp_error error;
    struct stat file;
    int count = 0;
    shmp_shmem *owner = created(context, SMALL + 1, SHMP_UNMAPPED | flags);
    REQUIRE(owner);
    CHECK(shmp_data(owner) == NULL);
    CHECK_EQUAL(shmp_size(owner), SMALL + 1);
    CHECK_EQUAL(shmp_flags(owner), SHMP_OWNER);
    CHECK_EQUAL(fstat(shmp_fileno(owner), &file), 0);
    CHECK_EQUAL(file.st_size, SMALL + 1);
    CHECK_EQUAL((size_t)file.st_blocks * 512 >= SMALL + 1, !!(flags & SHMP_RESERVE));
    CHECK_EQUAL(fcntl(shmp_fileno(owner), F_GETFD), flags & SHMP_INHERIT ? 0 : FD_CLOEXEC);
    CHECK(SUCCEEDS(shmp_persist, owner));
    CHECK_EQUAL(fcntl(shmp_fileno(owner), F_GETFD), 0);
    CHECK_FAILS(CODE(SHMP_EUNSUPPORTED), shmp_users, owner, count_one, &count);
    shmp_shmem *one = twin(context, owner, 0), *clone = cloned(owner, 0);
    shmp_description unknown = description_of("", SMALL + 1);
    shmp_shmem *other = attached_fd(context, shmp_fileno(owner), &unknown, 0), *reader = cloned(owner, SHMP_READ_ONLY);
    REQUIRE(one && clone && other && reader);
    CHECK(shmp_data(clone) == NULL);
    check_shared(one, other);
    if (shmp_data(reader)) check_shared(one, reader); /* a mapping of its own */
    closed(owner);
    closed(clone);
    check_shared(one, other);
    closed(one);
    closed(other);
    closed(reader);
}

static void test_unmapped(test_context *context) {
    if (!context->can->has_numbers) {
        CHECK_REFUSED(CODE(SHMP_EUNSUPPORTED), shmp_create, context->provider, (size_t)SMALL, (unsigned)SHMP_UNMAPPED);
        return;
    }
    check_unmapped(context, 0);
    check_unmapped(context, SHMP_RESERVE);
    check_unmapped(context, SHMP_INHERIT);
}

static void create_without_address_space(void *context) {
    const unsigned long long far_less = 1ull << 38; /* than the segment; enough for the program */
    const struct rlimit limit = {(rlim_t)far_less, (rlim_t)far_less};
    if (setrlimit(RLIMIT_AS, &limit) < 0) return;
    CHECK_REFUSED(CODE(SHMP_EOS), shmp_create, ((test_context *)context)->provider, (size_t)far_less * 4, 0u);
    closed(created(context, (size_t)far_less * 4, SHMP_UNMAPPED));
}

/* It is not mapped for a moment either. */
static void test_unmapped_needs_no_address_space(test_context *context) {
    SKIP_UNLESS(context->can->has_numbers && !context->can->has_names, "needs descriptors, and no free space");
    SKIP_UNLESS(sizeof(size_t) > 4 && !getenv("SHMP_VALGRIND"), "needs 64 bits, and a real address space");
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    SKIP_UNLESS(0, "the sanitizer has taken the address space");
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
    SKIP_UNLESS(0, "the sanitizer has taken the address space");
#endif
#endif
    CHECK_IN_CHILD(create_without_address_space, context);
}

/* ---- Permissions ------------------------------------------------------------------------------- */

static unsigned mode_of(const shmp_shmem *shmem) {
    struct stat file;
#if defined(__linux__)
    struct shmid_ds segment;
    if (shmp_fileno(shmem) < 0)
        return shmctl(atoi(described(shmem).id), IPC_STAT, &segment) == 0 ? segment.shm_perm.mode & 0777 : 01000;
#endif
    return fstat(shmp_fileno(shmem), &file) == 0 ? file.st_mode & 0777 : 01000;
}

static void check_mode(const test_context *context, unsigned mode, mode_t mask) {
    shmp_error error;
    shmp_shmem *named = NULL;
    check_subject("mode %03o, umask %03o", mode, (unsigned)mask);
    mode_t before = umask(mask);
    shmp_shmem *shmem = created(context, SMALL, SHMP_MODE(mode));
    if (context->can->has_names)
        CHECK(SUCCEEDS(shmp_create_named, context->provider, own_name(), SMALL, SHMP_MODE(mode), &named));
    umask(before);
    REQUIRE(shmem);
    (void)described(shmem); /* others hear of it */
    CHECK_EQUAL(mode_of(shmem), mode);
    if (named) CHECK_EQUAL(mode_of(named), mode);
    closed(named);
    closed(shmem);
}

static void test_modes(test_context *context) {
    static const unsigned modes[] = {0600, 0660, 0640, 0666, 0604};
    for (size_t i = 0; i < LENGTH(modes); i++) {
        if (context->can->has_modes) {
            check_mode(context, modes[i], 0);
            check_mode(context, modes[i], 022);
            check_mode(context, modes[i], 0777);
        } else {
            check_subject("mode %03o", modes[i]);
            CHECK_REFUSED(CODE(SHMP_EUNSUPPORTED), shmp_create, context->provider, (size_t)SMALL, SHMP_MODE(modes[i]));
        }
    }
    CHECK_EQUAL(SHMP_MODE(07777), SHMP_MODE(0777));
}

/* Whoever gets the descriptor of a read-only clone cannot write by it. */
static void test_a_read_only_clone_cannot_write(test_context *context) {
    SKIP_UNLESS(context->can->is_file, "segments are no descriptors");
    shmp_error error;
    shmp_shmem *owner = created(context, SMALL, 0), *clone = NULL;
    REQUIRE(owner);
    if (CHECK(SUCCEEDS(shmp_clone, owner, SHMP_READ_ONLY, &clone)))
        CHECK_EQUAL(fcntl(shmp_fileno(clone), F_GETFL) & O_ACCMODE, O_RDONLY);
    closed(clone);
    closed(owner);
}

static void check_own_mode(const test_context *context, unsigned flags) {
    shmp_shmem *shmem = created(context, SMALL, flags);
    REQUIRE(shmem);
    (void)described(shmem); /* from here on others know it */
    static const unsigned kept[][2] = {{0660, 0660}, {0644, 0644}, {0600, 0600}, {0400, 0600}, {0040, 0640}};
    for (size_t i = 0; i < LENGTH(kept); i++) {
        check_subject("flags %#x, mode %03o", flags, kept[i][0]);
        CHECK_EQUAL(fchmod(shmp_fileno(shmem), kept[i][0]), 0);
        (void)described(shmem);
        CHECK_EQUAL(mode_of(shmem), kept[i][1]);
    }
    closed(shmem);
}

/* What a user gave others, or took from them, stays; what he needs himself is there. */
static void test_a_users_own_mode_stays(test_context *context) {
    SKIP_UNLESS(context->can->has_names, "has no modes that can be changed");
    check_own_mode(context, 0);
    check_own_mode(context, SHMP_MODE(0666));
}

/* What holds the descriptor. */
static const shmp__fd_mapping *innermost(const shmp_shmem *shmem) {
    while (shmem->mapping->provider->inner) shmem = shmp__wrap_of(shmem->mapping)->inner;
    return shmp__fd_of(shmem->mapping);
}

/* Whoever gets a descriptor that can only read cannot reopen it for writing: nobody else has rights on the inode. */
static void check_narrow_by(const test_context *context, const char *how) {
    shmp_error error;
    shmp_description description;
    shmp_shmem *owner = created(context, SMALL, 0), *clone = NULL;
    REQUIRE(owner);
    check_subject("%s", how);
    int fd = innermost(owner)->fd; /* without asking, which narrows it */
    if (strcmp(how, "describe") == 0) CHECK(SUCCEEDS(shmp_describe, owner, &description));
    if (strcmp(how, "fileno") == 0) fd = shmp_fileno(owner);
    if (strcmp(how, "persist") == 0) CHECK(SUCCEEDS(shmp_persist, owner));
    if (strcmp(how, "clone") == 0) fd = shmp_fileno(clone = cloned(owner, 0));
    if (strcmp(how, "reader") == 0) fd = shmp_fileno(clone = cloned(owner, SHMP_READ_ONLY));
    if (strcmp(how, "heir") == 0) fd = shmp_fileno(clone = cloned(owner, SHMP_INHERIT));
    struct stat file;
    CHECK_EQUAL(fstat(fd, &file), 0);
    CHECK_EQUAL(file.st_mode & 0177, 0);
    closed(clone);
    closed(owner);
}

static void test_descriptors_are_handed_out_narrow(test_context *context) {
    SKIP_UNLESS(context->can->is_file, "segments are no descriptors");
    static const char *const ways[] = {"describe", "fileno", "persist", "clone", "reader", "heir"};
    for (size_t i = 0; i < LENGTH(ways); i++) check_narrow_by(context, ways[i]);
}

/* ---- Structs that grow ------------------------------------------------------------------------- */

static void test_newer_options(test_context *context) {
    struct {
        shmp_provider_options options;
        unsigned char grown[24];
    } newer;
    SKIP_UNLESS(!context->wraps, "tested over what is wrapped");
    memset(&newer, 0, sizeof newer);
    newer.options.struct_size = sizeof newer;
    shmp_error error = poisoned_error();
    shmp_provider *provider = UNTOUCHED;
    if (SUCCEEDS(shmp_provider_open, context->label, &newer.options, &provider)) shmp_provider_close(provider);
    for (size_t i = 0; i < sizeof newer.grown; i++) {
        char named[24];
        newer.grown[i] = 1;
        check_open_refused(CODE(SHMP_EINVAL), context->label, &newer.options);
        error = poisoned_error();
        shmp_provider_open(context->label, &newer.options, &provider, &error);
        snprintf(named, sizeof named, "byte %zu ", offsetof(__typeof__(newer), grown) + i);
        check_subject("%.100s", error.message);
        CHECK(strstr(error.message, named));
        newer.options.struct_size = sizeof newer.options + i; /* beyond what is given: not looked at */
        if (SUCCEEDS(shmp_provider_open, context->label, &newer.options, &provider)) shmp_provider_close(provider);
        newer.options.struct_size = sizeof newer;
        newer.grown[i] = 0;
    }
}

static void test_newer_limits(test_context *context) {
    shmp_error error;
    struct {
        shmp_limits limits;
        unsigned char grown[24];
    } newer;
    memset(&newer, 0x5a, sizeof newer);
    newer.limits.struct_size = sizeof newer;
    CHECK(SUCCEEDS(shmp_provider_limits, context->provider, &newer.limits));
    CHECK_EQUAL(newer.limits.struct_size, sizeof newer.limits);
    for (size_t i = 0; i < sizeof newer.grown; i++) CHECK_EQUAL(newer.grown[i], 0x5a);
    static const size_t too_small[] = {0, sizeof(size_t), sizeof newer.limits - 1};
    for (size_t i = 0; i < LENGTH(too_small); i++) {
        newer.limits.struct_size = too_small[i];
        CHECK_FAILS(CODE(SHMP_EINVAL), shmp_provider_limits, context->provider, &newer.limits);
        CHECK_EQUAL(newer.limits.struct_size, too_small[i]);
    }
}

static unsigned long long segments_left(const test_context *context) {
    shmp_error error;
    shmp_limits limits = {.struct_size = sizeof limits};
    return SUCCEEDS(shmp_provider_limits, context->provider, &limits) ? limits.segments : 0;
}

static void test_limits_count_what_is_open(test_context *context) {
    SKIP_UNLESS(context->can->is_file, "segments are no descriptors");
    enum { HELD = 20 };
    shmp_shmem *held[HELD];
    unsigned long long before = segments_left(context);
    for (int i = 0; i < HELD; i++) REQUIRE((held[i] = created(context, SMALL, 0)));
    CHECK_EQUAL(segments_left(context), before - HELD);
    for (int i = 0; i < HELD; i++) closed(held[i]);
    CHECK_EQUAL(segments_left(context), before);
}

/* ---- "std" ------------------------------------------------------------------------------------- */

static void test_std_attaches_with_each_mechanisms_own(test_context *context) {
    (void)context;
    shmp_provider *std = opened("std", 0);
    REQUIRE(std);
    for (int i = 0; i < KNOWN_PROVIDERS; i++) {
        const char *name = known_providers[i].name;
        shmp_provider *maker = known_providers[i].shares && !known_providers[i].wraps ? opened(name, 0) : NULL;
        if (!maker) continue;
        check_subject("%s", name);
        shmp_shmem *owner = created_by(maker, SMALL, 0);
        shmp_provider_close(maker);
        REQUIRE(owner);
        shmp_description description = described(owner);
        shmp_shmem *one = attached_by(std, &description, 0), *other = attached_by(std, &description, 0);
        REQUIRE(one && other);
        CHECK_TEXT(one->mapping->provider->ops->name, name);
        CHECK(one->mapping->provider == other->mapping->provider);
        CHECK(one->mapping->provider != std && one->mapping->provider != owner->mapping->provider);
        closed(owner);
        closed(other);
        closed(one);
    }
    shmp_provider_close(std);
}

/* ---- Other users, and users who change --------------------------------------------------------- */

#define SKIP_UNLESS_ROOT() SKIP_UNLESS(geteuid() == 0, "needs root, who can be somebody else")

static void drop_rights_and_use(void *argument) {
    shmp_error error;
    const test_context *context = ((void **)argument)[0];
    const shmp_shmem *shmem = ((void **)argument)[1];
    REQUIRE(seteuid(NOBODY) == 0);
    CHECK_EQUAL(described(shmem).size, SMALL);
    CHECK(SUCCEEDS(shmp_to_env, shmem, "SHMP_HANDLES"));
    shmp_shmem *clone = cloned(shmem, 0);
    check_shared(shmem, clone);
    closed(clone);
    if (!context->can->is_file) return; /* System V has a segment of another user opened by nobody */
    check_clones_of(context, shmem);
}

static void test_handles_outlive_their_users_rights(test_context *context) {
    SKIP_UNLESS_ROOT();
    shmp_shmem *shmem = created(context, SMALL, 0);
    REQUIRE(shmem);
    void *arguments[] = {context, shmem};
    CHECK_IN_CHILD(drop_rights_and_use, arguments);
    (void)described(shmem);
    CHECK_IN_CHILD(drop_rights_and_use, arguments);
    closed(shmem);
}

typedef struct visit_by {
    const test_context *context;
    uid_t user;
    const shmp_description *description;
    int plain, any; /* errno expected without and with SHMP_ANY_USER */
    int inherited;  /* the segment's descriptor, which would be an own one; -1: there is none */
} visit_by;

static void attach_as(void *argument) {
    const visit_by *visit = argument;
    REQUIRE(setgid(NOBODY) == 0 && setuid(visit->user) == 0);
    if (visit->inherited >= 0) close(visit->inherited);
#if defined(__linux__)
    CHECK_EQUAL(prctl(PR_SET_DUMPABLE, 1), 0);
#endif
    CHECK_EQUAL(os_error_of(visit->context->provider, visit->description, 0), visit->plain);
    CHECK_EQUAL(os_error_of(visit->context->provider, visit->description, SHMP_ANY_USER), visit->any);
}

static void check_visit(const test_context *context, uid_t user, const shmp_shmem *shmem, int plain, int any) {
    shmp_description description = described(shmem);
    visit_by visit = {context, user, &description, plain, any, shmp_fileno(shmem)};
    check_subject("\"%s\", by user %u", description.id, (unsigned)user);
    CHECK_IN_CHILD(attach_as, &visit);
}

static void test_closed_to_other_users(test_context *context) {
    SKIP_UNLESS_ROOT();
    SKIP_UNLESS(context->can->shares, "private memory");
    SKIP_UNLESS(context->can->is_file || !getenv("SHMP_VALGRIND"), "valgrind's shmat has EINVAL for EACCES");
    shmp_shmem *shmem = created(context, SMALL, 0);
    REQUIRE(shmem);
    check_visit(context, NOBODY, shmem, EACCES, EACCES);
    closed(shmem);
}

typedef struct opening {
    const test_context *context;
    int to_parent, until;
} opening;

/* Somebody's segment that everybody may open, until the pipe closes. */
static void create_as_somebody(void *argument) {
    const opening *self = argument;
    char byte;
    REQUIRE(setgid(NOBODY) == 0 && setuid(SOMEBODY) == 0);
    shmp_shmem *shmem = created(self->context, SMALL, SHMP_MODE(0666));
    REQUIRE(shmem);
    shmp_description description = described(shmem);
    CHECK_EQUAL(write(self->to_parent, &description, sizeof description), sizeof description);
    close(self->to_parent);
    (void)!read(self->until, &byte, 1);
    closed(shmem);
}

static void test_segments_of_other_users_are_refused(test_context *context) {
    SKIP_UNLESS_ROOT();
    SKIP_UNLESS(context->can->has_modes, "others cannot open it at all");
    int there[2], back[2];
    shmp_description description = {.size = 0};
    REQUIRE(pipe(there) == 0 && pipe(back) == 0);
    pid_t child = fork();
    if (child == 0) {
        close(there[0]);
        close(back[1]);
        create_as_somebody(&(opening){context, there[1], back[0]});
        _exit(shmp__atomic_load(&check_failures) > 0);
    }
    close(there[1]);
    close(back[0]);
    CHECK_EQUAL(read(there[0], &description, sizeof description), sizeof description);
    visit_by visits[] = {{context, NOBODY, &description, EACCES, 0, -1}, {context, SOMEBODY, &description, 0, 0, -1}};
    for (size_t i = 0; i < LENGTH(visits); i++) CHECK_IN_CHILD(attach_as, &visits[i]);
    CHECK_EQUAL(os_error_of(context->provider, &description, 0), EACCES); /* root, who could open it */
    CHECK_EQUAL(os_error_of(context->provider, &description, SHMP_ANY_USER), 0);
    close(there[0]);
    close(back[1]);
    CHECK_EQUAL(status_of(child), 0);
}

static void test_roots_segments_are_taken(test_context *context) {
    SKIP_UNLESS_ROOT();
    SKIP_UNLESS(context->can->has_modes, "others cannot open it at all");
    shmp_shmem *shmem = created(context, SMALL, SHMP_MODE(0666));
    REQUIRE(shmem);
    check_visit(context, NOBODY, shmem, 0, 0);
    closed(shmem);
}

#if defined(__linux__)

/* ---- Programs with more rights than their user -------------------------------------------------- */

/* `expected` of itself, or what SHMEM_PROVIDER says. */
static void child_has_std(shmp_provider *std, const char *expected, const char *is_privileged) {
    CHECK_EQUAL(getauxval(AT_SECURE) != 0, *is_privileged == '1');
    CHECK_TEXT(shmp_provider_name(std), expected);
}

typedef struct setuid_run {
    const char *program, *expected, *is_privileged;
} setuid_run;

static void run_as_nobody(void *argument) {
    const setuid_run *run = argument;
    REQUIRE(setgid(NOBODY) == 0 && setuid(NOBODY) == 0);
    unsetenv("TSAN_OPTIONS"); /* it may name a file that is closed to nobody */
    setenv("SHMEM_PROVIDER", "sysv", 1);
    self_path = run->program;
    execute("std-is", "std", run->expected, run->is_privileged);
}

static int copy_file(const char *from, const char *to, mode_t mode) {
    char block[65536];
    ssize_t length;
    int in = open(from, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0700);
    int is_done = in >= 0 && out >= 0;
    while (is_done && (length = read(in, block, sizeof block)) > 0)
        is_done = write(out, block, (size_t)length) == length;
    is_done = is_done && fchmod(out, mode) == 0;
    close(in);
    close(out);
    return is_done;
}

static void test_the_environment_of_a_setuid_program(test_context *context) {
    (void)context;
    SKIP_UNLESS_ROOT();
    SKIP_UNLESS(!getenv("SHMP_VALGRIND"), "valgrind runs no setuid program");
    char folder[] = "/tmp/shmp_XXXXXX", plain[40], privileged[40];
    shmp_provider *std = opened("std", 0);
    REQUIRE(std && mkdtemp(folder) && chmod(folder, 0755) == 0);
    snprintf(plain, sizeof plain, "%s/plain", folder);
    snprintf(privileged, sizeof privileged, "%s/privileged", folder);
    CHECK(copy_file("/proc/self/exe", plain, 0755) && copy_file("/proc/self/exe", privileged, 04755));
    setuid_run obeys = {plain, "sysv", "0"}, ignores = {privileged, shmp_provider_name(std), "1"};
    CHECK_IN_CHILD(run_as_nobody, &obeys);
    CHECK_IN_CHILD(run_as_nobody, &ignores);
    unlink(plain);
    unlink(privileged);
    rmdir(folder);
    shmp_provider_close(std);
}

/* ---- Names that became another's ---------------------------------------------------------------- */

static void shm_path(char path[40], const char *name) { snprintf(path, 40, "/dev/shm%s", name); }

static void test_names_of_others_stay(test_context *context) {
    SKIP_UNLESS(context->can->has_names, "has no names");
    static const char *const ways[] = {"renamed", "linked"};
    char path[40], other_name[24], other[40];
    snprintf(other_name, sizeof other_name, "/conf2_%ld", (long)getpid());
    shm_path(path, own_name());
    shm_path(other, other_name);
    for (size_t i = 0; i < LENGTH(ways); i++) {
        check_subject("%s", ways[i]);
        shmp_shmem *owner = created_named(context, own_name());
        REQUIRE(owner);
        CHECK_EQUAL(i == 0 ? rename(path, other) : link(path, other) + unlink(path), 0);
        int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        CHECK(fd >= 0);
        close(fd);
        closed(owner);
        CHECK_EQUAL(unlink(path), 0); /* of another */
        CHECK_EQUAL(unlink(other), 0);
    }
}

/* ---- A System V segment with the number of a memfd's inode -------------------------------------- */

typedef struct same_number {
    pid_t child;
    int is_tried, users;
} same_number;

static int write_text(const char *path, unsigned long long number) {
    char text[24];
    int length = snprintf(text, sizeof text, "%llu", number);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    int is_done = fd >= 0 && write(fd, text, (size_t)length) == length;
    if (fd >= 0) close(fd);
    return is_done;
}

static int count_users(void *context, long pid) {
    ((same_number *)context)->users += pid != (long)getpid();
    return 0;
}

/* The child holds a memfd, this process a segment of its number: neither uses the other. */
static void count_users_of_the_same_number(void *argument) {
    same_number *result = argument;
    char byte;
    int until[2];
    struct stat file;
    shmp_provider *memfd = opened("memfd", 0), *sysv = opened("sysv", 0);
    shmp_shmem *one = memfd ? created_by(memfd, SMALL, 0) : NULL, *other = NULL;
    REQUIRE(one && sysv && unshare(CLONE_NEWIPC) == 0 && fstat(shmp_fileno(one), &file) == 0 && pipe(until) == 0);
    pid_t child = fork();
    if (child == 0) {
        close(until[1]);
        _exit(read(until[0], &byte, 1) != 0);
    }
    if (file.st_ino <= INT_MAX && write_text("/proc/sys/kernel/shm_next_id", file.st_ino))
        other = created_by(sysv, SMALL, 0);
    if (other && (unsigned long long)atoi(described(other).id) == file.st_ino) {
        same_number found = {.child = child};
        CHECK_EQUAL(shmp_users(other, count_users, &found, NULL), 0);
        CHECK_EQUAL(found.users, 0);
        CHECK_EQUAL(shmp_users(one, count_users, &found, NULL), 0);
        CHECK_EQUAL(found.users, 1);
        result->is_tried = 1;
    }
    closed(other);
    close(until[1]);
    CHECK_EQUAL(status_of(child), 0);
}

static void test_users_of_the_same_number(test_context *context) {
    SKIP_UNLESS_ROOT();
    same_number *result = mmap(NULL, sizeof *result, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(result != MAP_FAILED);
    int status = status_in_child(count_users_of_the_same_number, result), is_tried = result->is_tried;
    munmap(result, sizeof *result);
    CHECK_EQUAL(status, 0);
    SKIP_UNLESS(is_tried, "this kernel does not let a number be chosen (CONFIG_CHECKPOINT_RESTORE)");
}

/* ---- Where locks are forbidden ------------------------------------------------------------------ */

static int forbid_flock(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_flock, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = LENGTH(filter), .filter = filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0 &&
           flock(STDERR_FILENO, LOCK_SH | LOCK_NB) < 0 && errno == ENOSYS;
}

static long names_of_ours(void) {
    long count = 0;
    DIR *directory = opendir("/dev/shm");
    for (struct dirent *entry; directory && (entry = readdir(directory));)
        count += strcmp(entry->d_name, own_name() + 1) == 0;
    if (directory) closedir(directory);
    return count;
}

static void create_without_locks(void *argument) {
    const test_context *context = argument;
    shmp_error error = poisoned_error();
    shmp_shmem *shmem = UNTOUCHED;
    if (!forbid_flock()) return;
    CHECK_REFUSED(CODE(SHMP_EOS), shmp_create, context->provider, (size_t)SMALL, 0u);
    CHECK_REFUSED(CODE(SHMP_EOS), shmp_create_named, context->provider, own_name(), (size_t)SMALL, 0u);
    CHECK_EQUAL(names_of_ours(), 0);
    shmp_create(context->provider, SMALL, 0, &shmem, &error);
    CHECK_TEXT(error.call, "flock");
    CHECK_EQUAL(error.os_error, ENOSYS);
    CHECK(strstr(error.message, "memfd"));
}

/* A segment that cannot be told from a leftover would be lost while it is used. */
static void test_without_locks(test_context *context) {
    SKIP_UNLESS(context->can->has_names, "takes no lock");
    CHECK_IN_CHILD(create_without_locks, context);
}

/* ---- What the clock and the kernel say ----------------------------------------------------------- */

/* These two take the place of libc's, for the core as well. */
static int seconds_ahead, advice_is_lost;

time_t time(time_t *ret_now) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (ret_now) *ret_now = now.tv_sec + seconds_ahead;
    return now.tv_sec + seconds_ahead;
}

/* As in qemu-user: every advice is taken, and none is followed. */
int madvise(void *data, size_t size, int advice) {
    return advice_is_lost ? 0 : (int)syscall(SYS_madvise, data, size, advice);
}

static int is_shown(void *context, const shmp_listed *segment) { return strcmp(segment->id, context) == 0; }

static int would_be_reaped(const test_context *context, const char *name, int after_seconds) {
    seconds_ahead = after_seconds;
    int result = shmp_reap(context->provider, SHMP_DRY_RUN, is_shown, (void *)(uintptr_t)name, NULL);
    seconds_ahead = 0;
    return result;
}

/* A name without a size is one that is just being made, for a minute, and as long as somebody has it open. */
static void test_nascent_names(test_context *context) {
    SKIP_UNLESS(context->can->has_names, "leaves nothing over");
    static const char name[] = "/shmp_conformancete"; /* of the shape of ours */
    CHECK_EQUAL(sizeof name - 1, 19);
    shm_unlink(name);
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    REQUIRE(fd >= 0);
    CHECK_EQUAL(would_be_reaped(context, name, 0), 0);
    CHECK_EQUAL(would_be_reaped(context, name, 58), 0);
    CHECK_EQUAL(would_be_reaped(context, name, 62), 0); /* whoever makes it takes his time */
    CHECK_EQUAL(flock(fd, LOCK_SH | LOCK_NB), 0);
    CHECK_EQUAL(would_be_reaped(context, name, 62), 0);
    close(fd);
    CHECK_EQUAL(would_be_reaped(context, name, 58), 0);
    CHECK_EQUAL(would_be_reaped(context, name, 62), 1);
    shm_unlink(name);
}

static void is_no_owner(void *shmem) { CHECK_EQUAL(shmp_flags(shmem), 0); }

/* Where a word that fork wipes is promised and not given, pids tell a process from its children. */
static void test_advice_that_is_not_followed(test_context *context) {
    advice_is_lost = 1;
    shmp_provider *provider = opened(context->label, 0);
    shmp_shmem *shmem = provider ? created_by(provider, SMALL, 0) : NULL;
    advice_is_lost = 0;
    shmp_provider_close(provider);
    REQUIRE(shmem);
    CHECK_EQUAL(shmp_flags(shmem), SHMP_OWNER);
    CHECK_IN_CHILD(is_no_owner, shmem);
    closed(shmem);
}

/* ---- The process's mark -------------------------------------------------------------------------- */

enum { RACERS = 2, RACES = 20000 };

typedef struct race {
    shmp_provider *provider;
    shmp__atomic_uint ready; /* both count up to each race, and from it */
    unsigned marks[RACERS];
} race;

typedef struct racer {
    pthread_t thread;
    race *of;
    unsigned number;
} racer;

static void meet(race *self, unsigned count) {
    shmp__atomic_add(&self->ready, 1);
    for (unsigned spins = 0; shmp__atomic_load(&self->ready) < count; spins++)
        if (spins % 64 == 63) sched_yield();
}

static void *run_races(void *argument) {
    const racer *self = argument;
    race *of = self->of;
    for (unsigned i = 0; i < RACES; i++) {
        if (self->number == 0) shmp__atomic_set(of->provider->mark, 0); /* as in a child */
        meet(of, RACERS * (3 * i + 1));
        of->marks[self->number] = shmp__process_mark(of->provider);
        meet(of, RACERS * (3 * i + 2));
        if (self->number == 0) CHECK_EQUAL(of->marks[0], of->marks[1]);
        meet(of, RACERS * (3 * i + 3));
    }
    return NULL;
}

/* Whoever comes second to a new process's mark has the number of the first. */
static void test_one_mark_a_process(test_context *context) {
    racer racers[RACERS];
    race self = {.provider = opened("nop", 0)};
    REQUIRE(self.provider);
    shmp__atomic_set(&self.ready, 0);
    if (!self.provider->mark) {
        shmp_provider_close(self.provider);
        context->skipped = "fork wipes nothing here: pids tell";
        return;
    }
    for (unsigned i = 0; i < RACERS; i++) {
        racers[i] = (racer){.of = &self, .number = i};
        if (!CHECK_EQUAL(pthread_create(&racers[i].thread, NULL, run_races, &racers[i]), 0)) abort();
    }
    for (unsigned i = 0; i < RACERS; i++) pthread_join(racers[i].thread, NULL);
    shmp_provider_close(self.provider);
}

#endif

static const test library_tests[] = {
    TEST(std_attaches_with_each_mechanisms_own),
#if defined(__linux__)
    TEST(std_takes_no_descriptor_numbers),
    TEST(the_environment_of_a_setuid_program),
    TEST(users_of_the_same_number),
    TEST(one_mark_a_process),
#endif
    {NULL, NULL},
};

static const test provider_tests[] = {
    TEST(provider_references),
    TEST(clone),
    TEST(clones_closed_in_any_order),
    TEST(clones_of_their_own),
    TEST(clones_of_readers_cannot_write),
    TEST(clones_persist_together),
    TEST(clone_after_the_owner_closed),
    TEST(clone_when_the_name_is_anothers),
    TEST(clone_in_a_forked_child),
    TEST(clones_in_threads),
    TEST(retire),
    TEST(attach_fd),
    TEST(attach_fd_of_none),
    TEST(attach_fd_when_it_is_closed),
    TEST(attach_fd_by_posix_name),
#if defined(__linux__)
    TEST(attach_fd_by_memfd_id),
    TEST(attach_fd_of_no_memory),
#endif
    TEST(unmapped),
    TEST(unmapped_needs_no_address_space),
    TEST(modes),
    TEST(a_read_only_clone_cannot_write),
    TEST(a_users_own_mode_stays),
    TEST(descriptors_are_handed_out_narrow),
    TEST(newer_options),
    TEST(newer_limits),
    TEST(limits_count_what_is_open),
    TEST(handles_outlive_their_users_rights),
    TEST(closed_to_other_users),
    TEST(segments_of_other_users_are_refused),
    TEST(roots_segments_are_taken),
#if defined(__linux__)
    TEST(names_of_others_stay),
    TEST(without_locks),
    TEST(nascent_names),
    TEST(advice_that_is_not_followed),
#endif
    {NULL, NULL},
};

static const role roles[] = {
#if defined(__linux__)
    {"std-is", child_has_std},
#endif
    {NULL, NULL},
};

int main(int argc, char **argv) { return run_suite(&(suite){library_tests, provider_tests, roles}, argc, argv); }
