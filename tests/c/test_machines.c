/* Odd machines and odd processes of Linux, over every provider that works here, and over "std" (harness.h): small
 * stacks, no stdio, a main thread that has ended, no /proc, a /dev/shm of another kind, huge pages, and a process that
 * has fewer bits. Some tests need root, who can make a machine odd. Link with -z now: else the first call of each
 * function of the C library takes more stack than the library does. */
#define _GNU_SOURCE /* memfd_create, namespaces */
#include "harness.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>

#if defined(__SANITIZE_ADDRESS__)
#define IS_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define IS_SANITIZED 1
#endif
#endif
#if !defined(IS_SANITIZED)
#define IS_SANITIZED 0
#endif

#define SKIP_UNLESS_ROOT() SKIP_UNLESS(geteuid() == 0, "needs root, who can mount")

static const char variable[] = "SHMP_MACHINES";

/* ---- A small stack ---------------------------------------------------------------------------- */

enum { STACK = 16384, GUARD = 65536 };

static int see_segment(void *context, const shmp_listed *segment) {
    (void)context;
    return segment->struct_size == 0;
}

static int see_user(void *context, long pid) {
    (void)context;
    return pid == 0;
}

/* Every function of the header. What a provider cannot do it refuses, on the same stack. */
static void *call_all(void *argument) {
    const test_context *context = argument;
    shmp_error error;
    shmp_provider *provider = opened(context->label, 0);
    shmp_shmem *shmem = provider ? created_by(provider, SMALL, 0) : NULL, *other = NULL;
    const char *name;
    if (!CHECK(shmem)) return NULL;
    shmp_limits limits = {.struct_size = sizeof limits};
    shmp_description description = described(shmem), none = description_of(context->can->gone_id, SMALL);
    CHECK(*shmp_provider_name(provider) && *shmp_backend(shmem) && shmp_data(shmem));
    CHECK(shmp_size(shmem) == SMALL && shmp_flags(shmem) == SHMP_OWNER && shmp_fileno(shmem) >= -1);
    CHECK(shmp_check_abi(NULL) == 0 && shmp_abi_version() && *shmp_version() && *shmp_error_text(1));
    for (unsigned i = 0; shmp_available(i, &name, &error) != -SHMP_EINVAL;) i++;
    CHECK(SUCCEEDS(shmp_provider_limits, provider, &limits));
    CHECK(SUCCEEDS(shmp_pre_fork, provider));
    CHECK(SUCCEEDS(shmp_post_fork, provider, 0));
    closed(created_by(provider, SMALL, context->can->reserves ? SHMP_RESERVE : 0));
    closed(attached_by(provider, &description, 0));
    CHECK(shmp_attach(provider, &none, 0, &other, &error) < 0);
    if (shmp_attach_fd(provider, shmp_fileno(shmem), &description, 0, &other, &error) == 0) closed(other);
    if (shmp_create_named(provider, own_name(), SMALL, SHMP_EXIST_OK | SHMP_RESERVE, &other, &error) == 0) {
        shmp_shmem *by_name = NULL;
        CHECK(SUCCEEDS(shmp_attach_name, provider, own_name(), 1, SHMP_WHOLE, &by_name));
        closed(by_name);
        CHECK(SUCCEEDS(shmp_unlink, provider, own_name()));
        closed(other);
    }
    CHECK(SUCCEEDS(shmp_clone, shmem, SHMP_READ_ONLY, &other));
    closed(other);
    (void)shmp_persist(shmem, &error);
    CHECK(SUCCEEDS(shmp_to_env, shmem, variable));
    CHECK(SUCCEEDS(shmp_from_env, provider, variable, 0, &other));
    closed(other);
    CHECK(SUCCEEDS(shmp_unset_env, variable));
    CHECK(shmp_list(provider, see_segment, NULL, &error) == 0 || strcmp(context->can->name, "served") == 0);
    CHECK(SUCCEEDS(shmp_reap, provider, SHMP_DRY_RUN, see_segment, NULL));
    CHECK(SUCCEEDS(shmp_users, shmem, see_user, NULL));
    closed(shmem);
    shmp_provider_close(provider);
    return NULL;
}

/* What it needs beyond its stack it would take from the guard, which kills. */
static void call_all_on_small_stack(void *context) {
    pthread_t thread;
    pthread_attr_t attributes;
    char *stack = mmap(NULL, GUARD + STACK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(stack != MAP_FAILED && mprotect(stack + GUARD, STACK, PROT_READ | PROT_WRITE) == 0);
    pthread_attr_init(&attributes);
    REQUIRE(pthread_attr_setstack(&attributes, stack + GUARD, STACK) == 0);
    REQUIRE(pthread_create(&thread, &attributes, call_all, context) == 0);
    pthread_join(thread, NULL);
}

static void test_small_stack(test_context *context) {
    SKIP_UNLESS(!IS_SANITIZED, "a sanitizer's stack frames are larger");
    SKIP_UNLESS(context->can->gone_id, "attaching never fails");
    SKIP_UNLESS(sysconf(_SC_THREAD_STACK_MIN) <= STACK, "no thread of this machine has such a small stack");
    CHECK_IN_CHILD(call_all_on_small_stack, context);
}

/* ---- Without stdio ---------------------------------------------------------------------------- */

enum { STDERR_APART = 20 };

typedef struct handles {
    shmp_shmem *all[16];
    size_t count;
} handles;

static void note(handles *seen, shmp_shmem *shmem) { seen->all[seen->count++] = shmem; }

/* Closes nothing: a number that comes free would be taken again. */
static void note_all(handles *seen, shmp_provider *provider, const shmp_description *of_parent, int is_file) {
    shmp_shmem *made = NULL, *other = NULL;
    shmp_description description = {.size = 0}, unknown = {.size = SMALL};
    if (shmp_create(provider, SMALL, 0, &made, NULL) == 0) shmp_describe(made, &description, NULL);
    if (!made) return;
    note(seen, made);
    if (shmp_attach(provider, &description, 0, &other, NULL) == 0) note(seen, other);
    if (shmp_attach(provider, of_parent, is_file ? SHMP_INHERIT : 0, &other, NULL) == 0) note(seen, other);
    if (shmp_attach_fd(provider, shmp_fileno(made), &description, 0, &other, NULL) == 0) note(seen, other);
    if (shmp_attach_fd(provider, shmp_fileno(made), &unknown, 0, &other, NULL) == 0) note(seen, other);
    if (shmp_clone(made, SHMP_READ_ONLY, &other, NULL) == 0) note(seen, other);
    if (shmp_create_named(provider, own_name(), SMALL, 0, &other, NULL) == 0) {
        note(seen, other);
        if (shmp_attach_name(provider, own_name(), SMALL, 0, &other, NULL) == 0) note(seen, other);
        shmp_unlink(provider, own_name(), NULL);
    }
}

static void child_has_no_stdio(shmp_provider *provider, const char *id, const char *kind) {
    handles seen = {.count = 0};
    shmp_description of_parent = description_of(id, SMALL);
    int stdio = 0, is_file = strcmp(kind, "file") == 0;
    shmp_provider *numbered = NULL;
    note_all(&seen, provider, &of_parent, is_file);
    const int has_numbers = is_file && !strchr(shmp_provider_name(provider), '(');
    if (has_numbers) {
        shmp_provider_options options = {.struct_size = sizeof options, .flags = SHMP_FD_IDS};
        shmp_shmem *shmem = NULL;
        if (shmp_provider_open(shmp_provider_name(provider), &options, &numbered, NULL) == 0 &&
            shmp_create(numbered, SMALL, 0, &shmem, NULL) == 0)
            note(&seen, shmem);
    }
    for (int fd = 0; fd <= STDERR_FILENO; fd++) stdio += fcntl(fd, F_GETFD) >= 0;
    dup2(STDERR_APART, STDERR_FILENO);
    CHECK_EQUAL(stdio, 0);
    CHECK(seen.count >= (size_t)(is_file ? 6 + has_numbers : 4));
    for (size_t i = 0; i < seen.count; i++) {
        int fd = shmp_fileno(seen.all[i]);
        CHECK(is_file ? fd > STDERR_FILENO : fd == -1);
        closed(seen.all[i]);
    }
    shmp_provider_close(numbered);
}

static void execute_without_stdio(void *argument) {
    const command *run = argument;
    dup2(STDERR_FILENO, STDERR_APART);
    for (int fd = 0; fd <= STDERR_FILENO; fd++) close(fd);
    run_command((void *)(uintptr_t)run);
}

/* What others write to stdout must not get into a segment. */
static void test_closed_stdio(test_context *context) {
    SKIP_UNLESS(context->can->shares, "has no descriptors");
    shmp_shmem *owner = created(context, SMALL, 0);
    shmp_description description = described(owner);
    command run = {"no-stdio", context->label, description.id, context->can->is_file ? "file" : "no-file"};
    CHECK_IN_CHILD(execute_without_stdio, &run);
    closed(owner);
}

/* ---- A process whose main thread has ended ------------------------------------------------------- */

typedef struct headless {
    shmp_provider *provider;
    shmp_shmem *shmem;
    int answer, end; /* of pipes: it lives until `end` is closed */
} headless;

typedef struct search {
    const char *id;
    long pid;
    int count;
} search;

static int find_segment(void *context, const shmp_listed *segment) {
    search *wanted = context;
    wanted->count += strcmp(segment->id, wanted->id) == 0 && segment->holder == wanted->pid;
    return 0;
}

static int find_user(void *context, long pid) {
    search *wanted = context;
    wanted->count += pid == wanted->pid;
    return 0;
}

static int is_main_thread_over(pid_t pid) {
    char path[32], line[256] = "";
    snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    int is_read = fgets(line, sizeof line, file) != NULL;
    fclose(file);
    return is_read && strstr(line, ") Z");
}

static void check_listed(shmp_provider *provider, const shmp_description *description, pid_t pid) {
    shmp_error error;
    search wanted = {description->id, (long)pid, 0};
    CHECK(SUCCEEDS(shmp_list, provider, find_segment, &wanted));
    CHECK_EQUAL(wanted.count, 1);
}

static void check_user(const shmp_shmem *shmem, pid_t pid) {
    shmp_error error;
    search wanted = {NULL, (long)pid, 0};
    CHECK(SUCCEEDS(shmp_users, shmem, find_user, &wanted));
    CHECK_EQUAL(wanted.count, 1);
}

/* It finds itself, makes and attaches as others do. */
static void *live_on(void *argument) {
    const headless *self = argument;
    char byte;
    for (int tries = 0; tries < 1000 && !is_main_thread_over(getpid()); tries++) usleep(1000);
    shmp_description description = described(self->shmem);
    check_listed(self->provider, &description, getpid());
    check_user(self->shmem, getpid());
    shmp_shmem *other = attached_by(self->provider, &description, 0), *fresh = created_by(self->provider, SMALL, 0);
    CHECK(other && fresh && bytes_of(other)[0] == FROM_CHILD);
    closed(other);
    closed(fresh);
    CHECK(write(self->answer, &description, sizeof description) == sizeof description);
    (void)!read(self->end, &byte, 1);
    _exit(shmp__atomic_load(&check_failures) > 0);
}

static void lose_main_thread(int answer, int end) {
    static headless self;
    pthread_t thread;
    self = (headless){.provider = opened("memfd", 0), .answer = answer, .end = end};
    self.shmem = self.provider ? created_by(self.provider, SMALL, 0) : NULL;
    if (!self.shmem) _exit(1);
    bytes_of(self.shmem)[0] = FROM_CHILD;
    if (pthread_create(&thread, NULL, live_on, &self) != 0) _exit(1);
    pthread_exit(NULL);
}

static void test_a_main_thread_that_has_ended(test_context *context) {
    int answer[2], end[2];
    (void)context;
    shmp_description description = {.size = 0};
    shmp_provider *provider = opened("memfd", 0);
    REQUIRE(provider && pipe2(answer, O_CLOEXEC) == 0 && pipe2(end, O_CLOEXEC) == 0);
    pid_t child = fork();
    if (child == 0) {
        close(end[1]);
        shmp__atomic_set(&check_failures, 0);
        alarm(PATIENCE);
        lose_main_thread(answer[1], end[0]);
    }
    close(answer[1]);
    CHECK(read(answer[0], &description, sizeof description) == sizeof description);
    CHECK(is_main_thread_over(child));
    check_listed(provider, &description, child);
    shmp_shmem *shmem = attached_by(provider, &description, 0);
    if (shmem) {
        CHECK_EQUAL(bytes_of(shmem)[0], FROM_CHILD);
        check_user(shmem, child);
    }
    closed(shmem);
    close(answer[0]);
    close(end[0]);
    close(end[1]);
    CHECK_EQUAL(status_of(child), 0);
    shmp_provider_close(provider);
}

/* ---- Other file systems at /proc and /dev/shm ------------------------------------------------------ */

static int mount_over(const char *type, const char *where) {
    return unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
           mount(type, where, type, 0, NULL) == 0;
}

static void use_without_proc(void *argument) {
    shmp_error error;
    const char *name;
    shmp_description description;
    (void)argument;
    REQUIRE(mount_over("tmpfs", "/proc"));
    shmp_provider *std = opened("std", 0), *memfd = opened("memfd", 0);
    REQUIRE(std && memfd);
    CHECK_TEXT(shmp_provider_name(std), "posix");
    shmp_shmem *shmem = created_by(std, SMALL, 0), *one = created_by(memfd, SMALL, 0), *other;
    REQUIRE(shmem && one);
    description = described(shmem);
    other = attached_by(std, &description, 0);
    CHECK(other && (bytes_of(shmem)[0] = FROM_PARENT) == bytes_of(other)[0]);
    closed(other);
    closed(shmem);
    CHECK_EQUAL(shmp_describe(one, &description, &error), -SHMP_EOS);
    CHECK(strstr(error.message, "/proc") && strstr(error.message, "posix"));
    CHECK_EQUAL(shmp_available(0, &name, &error), -SHMP_EOS);
    CHECK_TEXT(name, "memfd");
    CHECK(strstr(error.message, "/proc"));
    closed(one);
    shmp_provider_close(memfd);
    shmp_provider_close(std);
}

static void test_no_proc(test_context *context) {
    SKIP_UNLESS_ROOT();
    CHECK_IN_CHILD(use_without_proc, NULL);
}

static void use_ramfs(void *argument) {
    shmp_error error;
    (void)argument;
    REQUIRE(mount_over("ramfs", "/dev/shm"));
    shmp_provider *provider = opened("posix", SHMP_FD_IDS);
    shmp_shmem *shmem = provider ? created_by(provider, SMALL, 0) : NULL, *other;
    REQUIRE(shmem);
    shmp_description description = described(shmem), unknown = {.size = SMALL};
    bytes_of(shmem)[0] = FROM_PARENT;
    other = attached_by(provider, &description, 0);
    CHECK(other && bytes_of(other)[0] == FROM_PARENT);
    closed(other);
    CHECK(SUCCEEDS(shmp_attach_fd, provider, shmp_fileno(shmem), &unknown, 0, &other) &&
          bytes_of(other)[0] == FROM_PARENT);
    closed(other);
    closed(shmem);
    shmp_provider_close(provider);
}

static void test_ramfs(test_context *context) {
    SKIP_UNLESS_ROOT();
    CHECK_IN_CHILD(use_ramfs, NULL);
}

/* ---- Huge pages -------------------------------------------------------------------------------------- */

static const char huge_pages[] = "/proc/sys/vm/nr_hugepages";

static int read_number(const char *path, long *ret_number) {
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    int is_read = fscanf(file, "%ld", ret_number) == 1;
    fclose(file);
    return is_read;
}

static int write_number(const char *path, long number) {
    FILE *file = fopen(path, "we");
    if (!file) return 0;
    int is_written = fprintf(file, "%ld", number) > 0;
    return fclose(file) == 0 && is_written;
}

static int open_huge_memfd(size_t *ret_size) {
    struct stat file;
    int fd = memfd_create("others", MFD_CLOEXEC | MFD_HUGETLB);
    if (fd < 0) return -1;
    *ret_size = fstat(fd, &file) == 0 ? (size_t)file.st_blksize : 0;
    void *page = ftruncate(fd, (off_t)*ret_size) < 0 ? MAP_FAILED
                                                     : mmap(NULL, *ret_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED && munmap(page, *ret_size) == 0) return fd;
    close(fd); /* the machine had none left */
    return -1;
}

static void use_huge(const test_context *context, int fd, size_t whole) {
    char id[16];
    snprintf(id, sizeof id, "%d", fd);
    shmp_description description = description_of(id, SMALL);
    shmp_shmem *part = attached(context, &description, 0), *all = attached(context, &description, SHMP_WHOLE);
    REQUIRE(part && all);
    CHECK_EQUAL(shmp_size(part), SMALL);
    CHECK_EQUAL(shmp_size(all), whole);
    bytes_of(part)[SMALL - 1] = FROM_PARENT;
    CHECK_EQUAL(bytes_of(all)[SMALL - 1], FROM_PARENT);
    closed(part); /* what munmap refuses stays mapped, which the harness sees */
    closed(all);
}

static void test_huge_pages_of_others(test_context *context) {
    long before;
    size_t whole;
    SKIP_UNLESS(!context->is_std && context->can->has_numbers, "attaches to no descriptors by number");
    SKIP_UNLESS(read_number(huge_pages, &before), "this kernel has no huge pages");
    int is_set = write_number(huge_pages, before + 2), fd = open_huge_memfd(&whole);
    if (fd >= 0) use_huge(context, fd, whole);
    if (fd >= 0) close(fd);
    if (is_set) CHECK(write_number(huge_pages, before));
    SKIP_UNLESS(fd >= 0, "there is no huge page to be had");
}

/* ---- A process of 32 bits (run.sh names the program, this one compiled for it) ------------------------- */

static void child_has_32_bits(shmp_provider *provider, const char *id, const char *size) {
    shmp_description description = description_of(id, SMALL);
    (void)size;
    CHECK_EQUAL(sizeof(void *), 4);
    CHECK_REFUSED(CODE(SHMP_EOVERFLOW), shmp_attach, provider, &description, (unsigned)SHMP_WHOLE);
    shmp_shmem *part = attached_by(provider, &description, SHMP_READ_ONLY);
    if (part) CHECK_EQUAL(bytes_of(part)[SMALL - 1], FROM_PARENT);
    closed(part);
}

static void test_more_than_32_bits(test_context *context) {
    SKIP_UNLESS(sizeof(size_t) > 4, "needs a process of 64 bits, which this one is not");
    const char *program = getenv("SHMP_32_BITS"), *own_path = self_path;
    SKIP_UNLESS(context->can->is_file, "shmctl tells such a process another size");
    SKIP_UNLESS(program && *program, "no program of 32 bits: install gcc-multilib");
    shmp_error error;
    shmp_shmem *shmem;
    int result = shmp_create(context->provider, (size_t)(5ull << 30), 0, &shmem, &error);
    SKIP_UNLESS(result == 0, "5 GiB are more than there is");
    bytes_of(shmem)[SMALL - 1] = FROM_PARENT;
    shmp_description description = described(shmem);
    self_path = program;
    check_spawned("32-bits", context->label, description.id, "");
    self_path = own_path;
    closed(shmem);
}

/* ---- All ---------------------------------------------------------------------------------------------- */

static const test library_tests[] = {
    TEST(a_main_thread_that_has_ended),
    TEST(no_proc),
    TEST(ramfs),
    {NULL, NULL},
};

static const test provider_tests[] = {
    TEST(small_stack), TEST(closed_stdio), TEST(huge_pages_of_others), TEST(more_than_32_bits), {NULL, NULL},
};

static const role roles[] = {
    {"no-stdio", child_has_no_stdio},
    {"32-bits", child_has_32_bits},
    {NULL, NULL},
};

int main(int argc, char **argv) { return run_suite(&(suite){library_tests, provider_tests, roles}, argc, argv); }
