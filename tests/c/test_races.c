/* What others do between two calls of the system: each test lets an operation run again and again, with somebody
 * else's deed before its first call, its second, and so on.
 *
 *   test_races [NAME]    all tests, or those whose name contains NAME
 *
 * The core is compiled with -DSHMP_FAULTS (csrc/os/fault.h); nothing fails here, but shmp__fault does the deed. */
#define _GNU_SOURCE /* Linux: memfd_create, clone, namespaces */
#include "alone.h"
#include "check.h"
#include "core/core.h"
#include "os/fault.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))

enum { SIZE = 3 * 4096, MOST_STEPS = 2000, PATIENCE = 20 /* seconds */, THREADS = 8, ROUNDS = 200 };

static const unsigned seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

/* ---- The seam ---------------------------------------------------------------------------- */

typedef void (*deed)(void);

static struct {
    deed act;
    const char *call; /* before its (at + 1)th call; NULL: of any calls */
    int at, seen;     /* at -1: before every one */
} plan;

static void (*watch)(const char *call); /* from many threads */

static void step(const char *call) {
    if (watch) watch(call);
    deed act = plan.act;
    if (!act || (plan.call && strcmp(plan.call, call) != 0)) return;
    if (plan.seen++ != plan.at && plan.at >= 0) return;
    plan.act = NULL; /* what it calls itself is not counted */
    int error = errno;
    act();
    errno = error;
    plan.act = act;
}

int shmp__fault(const char *call) {
    step(call);
    return 0;
}

int shmp__fault_after(const char *call, int result) {
    step(call);
    return result;
}

static void before(const char *call, int at, deed act) {
    plan.call = call;
    plan.at = at;
    plan.seen = 0;
    plan.act = act;
}

/* Whether the deed was done. */
static int is_done(void) {
    plan.act = NULL;
    return plan.seen > plan.at;
}

/* ---- Help ---------------------------------------------------------------------------------- */

static int succeeds(int result, const shmp_error *error, const char *what) {
    return result == 0 || check_failed(__FILE__, __LINE__, "%s: %s: %.200s", what, error->call, error->message);
}

static shmp_provider *open_provider(const char *name) {
    shmp_provider *provider = NULL;
    shmp_provider_options options = {.struct_size = sizeof options, .flags = SHMP_KEEP_LEFTOVERS};
    if (shmp_provider_open(name, &options, &provider, NULL) < 0) give_up("a provider cannot be opened");
    return provider;
}

static int count_descriptors(void) {
    int count = 0;
    DIR *directory = opendir("/proc/self/fd");
    if (!directory) give_up("/proc/self/fd cannot be read");
    while (readdir(directory)) count++;
    closedir(directory);
    return count;
}

/* Names that begin so; ret_name gets the last. */
static int count_names(const char *prefix, char ret_name[40]) {
    int count = 0;
    DIR *directory = opendir("/dev/shm");
    if (!directory) give_up("/dev/shm cannot be read");
    for (struct dirent *entry; (entry = readdir(directory));) {
        if (strncmp(entry->d_name, prefix, strlen(prefix)) != 0) continue;
        count++;
        if (ret_name) snprintf(ret_name, 40, "/%.30s", entry->d_name);
    }
    closedir(directory);
    return count;
}

/* The library's clock (run.sh links with --wrap=time). */
static long minutes_later;
time_t __real_time(time_t *ret_time);
time_t __wrap_time(time_t *ret_time);
time_t __wrap_time(time_t *ret_time) { return __real_time(ret_time) + 61 * minutes_later; }

static char new_name[40]; /* of the segment that is being made */

static int open_new_name(void) {
    if (count_names("shmp_", new_name) == 0) give_up("there is no new name");
    return shm_open(new_name, O_RDWR | O_CLOEXEC, 0);
}

/* It can be attached to, and its name goes with it. */
static void use_and_close(shmp_provider *provider, shmp_shmem *shmem) {
    shmp_description description;
    shmp_shmem *attached = NULL;
    shmp_error error = {.call = ""};
    if (succeeds(shmp_describe(shmem, &description, &error), &error, "describe") &&
        succeeds(shmp_attach(provider, &description, 0, &attached, &error), &error, "attach")) {
        ((unsigned char *)shmp_data(shmem))[SIZE - 1] = 7;
        CHECK_EQUAL(((unsigned char *)shmp_data(attached))[SIZE - 1], 7);
    }
    succeeds(shmp_close(attached, &error), &error, "close");
    succeeds(shmp_close(shmem, &error), &error, "close");
}

static pid_t child_that(int (*run)(void)) {
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        _exit(run());
    }
    return pid;
}

static int pause_for_ever(void) {
    while (pause() < 0) continue;
    return 1;
}

static void kill_child(pid_t pid) {
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, NULL, 0) == pid);
}

/* ---- posix: creating -------------------------------------------------------------------------- */

static pid_t reaper;

/* It holds the lock for the moment that it takes to look at the file, and is stopped in it. */
static int stop_with_lock(void) {
    int fd = shm_open(new_name, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0) return 1;
    raise(SIGSTOP);
    return 0;
}

static void stop_a_reaper(void) {
    int status;
    close(open_new_name());
    reaper = child_that(stop_with_lock);
    CHECK(waitpid(reaper, &status, WUNTRACED) == reaper && WIFSTOPPED(status));
}

static void test_create_with_a_stopped_reaper(void) {
    shmp_provider *provider = open_provider("posix");
    shmp_shmem *shmem;
    shmp_description description;
    shmp_error error = {.call = ""};
    before("flock", 0, stop_a_reaper);
    REQUIRE(succeeds(shmp_create(provider, SIZE, 0, &shmem, &error), &error, "create"));
    CHECK(is_done());
    CHECK(shmp_describe(shmem, &description, NULL) == 0);
    CHECK(strcmp(description.id, new_name) != 0);
    use_and_close(provider, shmem);
    kill_child(reaper);
    CHECK_EQUAL(count_names("shmp_", NULL), 0);
    shmp_provider_close(provider);
}

static int locked[500], locked_count;

static void lock_new_name(void) {
    int fd = open_new_name();
    CHECK(flock(fd, LOCK_EX | LOCK_NB) == 0);
    if (locked_count < (int)LENGTH(locked)) locked[locked_count++] = fd;
}

static void test_create_when_every_name_is_locked(void) {
    shmp_provider *provider = open_provider("posix");
    shmp_shmem *shmem;
    shmp_error error = {.call = ""};
    before("flock", -1, lock_new_name);
    CHECK_EQUAL(shmp_create(provider, SIZE, 0, &shmem, &error), -SHMP_EOS);
    is_done();
    CHECK_TEXT(error.call, "flock");
    CHECK_EQUAL(error.os_error, EWOULDBLOCK);
    CHECK_EQUAL(count_names("shmp_", NULL), 0);
    while (locked_count > 0) close(locked[--locked_count]);
    shmp_provider_close(provider);
}

static shmp_provider *sweeper;

/* The clock was set while it was made, say, and another process opens the provider or reaps. */
static void reap_a_minute_later(void) {
    plan.act = NULL;
    minutes_later = 2;
    CHECK(shmp_reap(sweeper, 0, NULL, NULL, NULL) == 0);
    minutes_later = 0;
}

static void test_create_when_the_new_name_is_reaped(void) {
    static const char *const calls[] = {"flock", "fstatvfs", "ftruncate", "mmap"};
    shmp_shmem *shmem;
    shmp_limits limits = {.struct_size = sizeof limits};
    shmp_error error = {.call = ""};
    shmp_provider *provider = open_provider("posix");
    sweeper = open_provider("posix");
    for (size_t i = 0; i < LENGTH(calls); i++) {
        check_subject("before %s", calls[i]);
        before(calls[i], 0, reap_a_minute_later);
        REQUIRE(succeeds(shmp_create(provider, SIZE, 0, &shmem, &error), &error, "create"));
        CHECK(is_done());
        use_and_close(provider, shmem);
    }
    check_subject("");
    before("flock", 0, reap_a_minute_later);
    succeeds(shmp_provider_limits(provider, &limits, &error), &error, "limits");
    CHECK(is_done());
    CHECK_EQUAL(count_names("shmp_", NULL), 0);
    shmp_provider_close(sweeper);
    shmp_provider_close(provider);
}

static void make_chosen_name(void) { close(shm_open("/race_chosen", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)); }

/* Somebody clears up, and somebody else takes the name. */
static void make_chosen_name_anew(void) {
    CHECK(shm_unlink("/race_chosen") == 0);
    make_chosen_name();
}

/* Until it is ready, a segment has another name: whoever else makes the chosen one meanwhile keeps it. */
static void test_create_named_leaves_another_file(void) {
    static const char *const calls[] = {"flock", "fstatvfs", "ftruncate", "fchmod", "mmap", "syscall"};
    shmp_provider *provider = open_provider("posix");
    shmp_shmem *shmem;
    shmp_error error = {.call = ""};
    for (size_t i = 0; i < LENGTH(calls); i++) {
        check_subject("before %s", calls[i]);
        before(calls[i], 0, make_chosen_name);
        CHECK_EQUAL(shmp_create_named(provider, "/race_chosen", SIZE, 0, &shmem, &error), -SHMP_EOS);
        CHECK(is_done());
        CHECK_EQUAL(error.os_error, EEXIST);
        CHECK_EQUAL(count_names("shmp_", NULL), 0);
        CHECK(shm_unlink("/race_chosen") == 0);
    }
    check_subject("before fcntl");
    before("fcntl", 1, make_chosen_name_anew); /* the first marks it */
    CHECK_EQUAL(shmp_create_named(provider, "/race_chosen", SIZE, SHMP_INHERIT, &shmem, NULL), 0);
    CHECK(is_done());
    CHECK(shmp_close(shmem, NULL) == 0);
    CHECK(shm_unlink("/race_chosen") == 0);
    check_subject("");
    shmp_provider_close(provider);
}

static void reap(void) { CHECK(shmp_reap(sweeper, 0, NULL, NULL, NULL) == 0); }

static void test_reap_at_each_step_of_create(void) {
    int is_over = 0;
    sweeper = open_provider("posix");
    for (int at = 0; !is_over && at < MOST_STEPS; at++) {
        shmp_shmem *shmem;
        shmp_error error = {.call = ""};
        check_subject("step %d", at);
        before(NULL, at, reap);
        REQUIRE(succeeds(shmp_create(sweeper, SIZE, 0, &shmem, &error), &error, "create"));
        is_over = !is_done();
        use_and_close(sweeper, shmem);
    }
    check_subject("");
    CHECK(is_over);
    shmp_provider_close(sweeper);
}

/* ---- posix: listing and reaping ------------------------------------------------------------------- */

static char left[40], left_path[60], precious[40], precious_path[60];

static void leave(const char *name, char ret_path[60]) {
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && ftruncate(fd, SIZE) == 0);
    close(fd);
    snprintf(ret_path, 60, "/dev/shm%s", name);
}

static void vanish(void) { (void)!remove(left_path); }
static void become_fifo(void) {
    vanish();
    CHECK(mkfifo(left_path, 0600) == 0);
}
static void become_symlink(void) {
    vanish();
    CHECK(symlink(precious_path, left_path) == 0);
}
static void become_folder(void) {
    vanish();
    CHECK(mkdir(left_path, 0700) == 0);
}
static void become_empty(void) {
    vanish();
    close(open(left_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
}

static int ignore_segment(void *context, const shmp_listed *segment) {
    (void)context, (void)segment;
    return 0;
}

static int list(shmp_provider *provider, shmp_error *reterr) {
    return shmp_list(provider, ignore_segment, NULL, reterr);
}
static int reap_all(shmp_provider *provider, shmp_error *reterr) { return shmp_reap(provider, 0, NULL, NULL, reterr); }
static int reap_dry(shmp_provider *provider, shmp_error *reterr) {
    return shmp_reap(provider, SHMP_DRY_RUN, ignore_segment, NULL, reterr);
}

static void test_names_change_at_each_step(void) {
    static const deed deeds[] = {vanish, become_fifo, become_symlink, become_folder, become_empty};
    static int (*const walks[])(shmp_provider *, shmp_error *) = {list, reap_all, reap_dry};
    shmp_provider *provider = open_provider("posix");
    shmp_shmem *live;
    REQUIRE(shmp_create(provider, SIZE, 0, &live, NULL) == 0);
    snprintf(left, sizeof left, "/shmp_%s", "leftleftleft2");
    snprintf(precious, sizeof precious, "/race_precious");
    leave(precious, precious_path);
    for (size_t i = 0; i < LENGTH(deeds) * LENGTH(walks); i++) {
        int is_over = 0;
        for (int at = 0; !is_over && at < MOST_STEPS; at++) {
            shmp_error error = {.call = ""};
            check_subject("deed %zu of walk %zu, step %d", i % LENGTH(deeds), i / LENGTH(deeds), at);
            leave(left, left_path);
            int descriptors = count_descriptors();
            before(NULL, at, deeds[i % LENGTH(deeds)]);
            succeeds(walks[i / LENGTH(deeds)](provider, &error), &error, "walk");
            is_over = !is_done();
            CHECK_EQUAL(count_descriptors(), descriptors);
            CHECK_EQUAL(count_names("race_precious", NULL), 1);
            vanish();
        }
        CHECK(is_over);
    }
    check_subject("");
    use_and_close(provider, live);
    CHECK(shm_unlink(precious) == 0);
    shmp_provider_close(provider);
}

/* ---- memfd: attaching --------------------------------------------------------------------------- */

static char *write_36(char *at, unsigned long long value) {
    if (value >= 36) at = write_36(at, value / 36);
    *at = "0123456789abcdefghijklmnopqrstuvwxyz"[value % 36];
    return at + 1;
}

/* The id of a descriptor, as a process that holds it under this number would give it. */
static shmp_description describe_by_hand(pid_t pid, int number, int fd) {
    shmp_description description = {.size = SIZE};
    struct stat file;
    CHECK(fstat(fd, &file) == 0);
    char *at = write_36(description.id, (unsigned long long)pid);
    *at++ = '.';
    at = write_36(at, (unsigned long long)number);
    *at++ = '.';
    (void)write_36(at, (unsigned long long)file.st_ino & 0xffffffffu);
    return description;
}

static int given;

static void truncate_given(void) { (void)!ftruncate(given, 0); }
static void seal_given(void) { (void)fcntl(given, F_ADD_SEALS, seals); }
static void truncate_and_seal(void) {
    truncate_given();
    seal_given();
}

typedef int (*attaching)(shmp_provider *, const shmp_description *, unsigned, shmp_shmem **, shmp_error *);

static int by_fd(shmp_provider *provider, const shmp_description *description, unsigned flags, shmp_shmem **ret_shmem,
                 shmp_error *reterr) {
    return shmp_attach_fd(provider, given, description, flags, ret_shmem, reterr);
}

/* The giver has left it unsealed; 0: the deed's step was not reached. */
static int attach_ambushed(shmp_provider *provider, attaching attach, pid_t pid, unsigned flags, deed act, int at) {
    shmp_shmem *shmem = NULL;
    struct stat file;
    pid_t holder = 0;
    given = memfd_create("shmem_providers", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (given < 0 || ftruncate(given, SIZE) < 0) give_up("there is no memfd");
    if (!pid) pid = holder = child_that(pause_for_ever);
    shmp_description description = describe_by_hand(pid, given, given);
    before(NULL, at, act);
    int result = attach(provider, &description, flags, &shmem, NULL);
    int done = is_done();
    seal_given();
    CHECK(result == 0 || result == -SHMP_EID || result == -SHMP_ESIZE);
    if (result == 0 && CHECK(fstat(given, &file) == 0) && CHECK((size_t)file.st_size >= shmp_size(shmem)))
        CHECK_EQUAL(((volatile unsigned char *)shmp_data(shmem))[shmp_size(shmem) - 1], 0);
    CHECK(shmp_close(shmem, NULL) == 0);
    if (holder) kill_child(holder);
    close(given);
    return done;
}

static void test_giver_truncates_and_seals(void) {
    static const deed deeds[] = {truncate_and_seal, truncate_given, seal_given};
    shmp_provider *provider = open_provider("memfd");
    for (unsigned way = 0; way < 6 * LENGTH(deeds); way++) {
        int at = 0;
        for (int done = 1; done && at < MOST_STEPS; at++) {
            check_subject("way %u, step %d", way, at);
            done = attach_ambushed(provider, way % 3 == 2 ? by_fd : shmp_attach, way % 3 == 1 ? 0 : getpid(),
                                   way % 6 < 3 ? 0 : SHMP_WHOLE | SHMP_READ_ONLY, deeds[way / 6], at);
        }
        CHECK(at > 4 && at < MOST_STEPS);
    }
    check_subject("");
    shmp_provider_close(provider);
}

static int trap, number;

static void replace_number(void) { CHECK(dup3(trap, number, O_CLOEXEC) == number); }

static int run_paused(void *context) {
    (void)context;
    return pause_for_ever();
}

/* A process with the same descriptors as this one. */
static pid_t start_sharing_descriptors(void) {
    static char stack[1 << 16] __attribute__((aligned(64)));
    return clone(run_paused, stack + sizeof stack, CLONE_FILES | SIGCHLD, NULL);
}

static int events; /* inotify's */

/* How often the trap was opened since the last look. */
static int count_opened(void) {
    char room[4096];
    ssize_t length = read(events, room, sizeof room);
    return length > 0 ? (int)((size_t)length / sizeof(struct inotify_event)) : 0;
}

/* A fifo, as opening one can be told by who has the other end; a look by O_PATH cannot. */
static void set_trap(const char *path) {
    (void)!unlink(path);
    CHECK(mkfifo(path, 0600) == 0);
    trap = open(path, O_RDWR | O_CLOEXEC);
    events = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    CHECK(trap >= 0 && inotify_add_watch(events, path, IN_OPEN) >= 0);
    close(open(path, O_PATH | O_CLOEXEC));
    CHECK_EQUAL(count_opened(), 0);
    close(open(path, O_RDWR | O_CLOEXEC));
    CHECK_EQUAL(count_opened(), 1);
}

static void clear_trap(const char *path) {
    close(trap);
    close(events);
    CHECK(unlink(path) == 0);
}

static int attach_it(shmp_provider *provider, const shmp_description *description, unsigned long long inode) {
    shmp_shmem *shmem = NULL;
    struct stat file;
    int result = shmp_attach(provider, description, 0, &shmem, NULL);
    if (result == 0) CHECK(fstat(shmp_fileno(shmem), &file) == 0 && file.st_ino == inode);
    CHECK(shmp_close(shmem, NULL) == 0);
    return result;
}

static void test_descriptor_is_replaced(void) {
    static const char path[] = "/dev/shm/race_trap";
    shmp_provider *provider = open_provider("memfd");
    shmp_shmem *owner;
    struct stat file;
    int is_over = 0;
    REQUIRE(shmp_create(provider, SIZE, 0, &owner, NULL) == 0);
    CHECK(fstat(shmp_fileno(owner), &file) == 0);
    number = fcntl(shmp_fileno(owner), F_DUPFD_CLOEXEC, 100);
    set_trap(path);
    pid_t holder = start_sharing_descriptors();
    shmp_description description = describe_by_hand(holder, number, shmp_fileno(owner));

    before("open", 1, replace_number); /* the first was the look */
    CHECK_EQUAL(attach_it(provider, &description, file.st_ino), 0);
    CHECK(is_done());
    for (int at = 0; !is_over && at < MOST_STEPS; at++) {
        check_subject("step %d", at);
        CHECK(dup3(shmp_fileno(owner), number, O_CLOEXEC) == number);
        int descriptors = count_descriptors();
        before(NULL, at, replace_number);
        int result = attach_it(provider, &description, file.st_ino);
        is_over = !is_done();
        CHECK(result == 0 || result == -SHMP_ENOTFOUND);
        CHECK_EQUAL(count_descriptors(), descriptors);
        CHECK_EQUAL(count_opened(), 0);
    }
    CHECK(is_over);
    is_over = 0;
    for (int at = 0; !is_over && at < MOST_STEPS; at++) {
        shmp_error error = {.call = ""};
        check_subject("list, step %d", at);
        CHECK(dup3(shmp_fileno(owner), number, O_CLOEXEC) == number);
        int descriptors = count_descriptors();
        before(NULL, at, replace_number);
        succeeds(list(provider, &error), &error, "list");
        is_over = !is_done();
        CHECK_EQUAL(count_descriptors(), descriptors);
        CHECK_EQUAL(count_opened(), 0);
    }
    CHECK(is_over);
    check_subject("");
    kill_child(holder);
    close(number);
    clear_trap(path);
    CHECK(shmp_close(owner, NULL) == 0);
    shmp_provider_close(provider);
}

/* ---- memfd: listing, and who uses what -------------------------------------------------------------- */

static pid_t mortal;

static void kill_mortal(void) {
    if (mortal) kill_child(mortal);
    mortal = 0;
}

static int ignore_user(void *context, long pid) {
    (void)context, (void)pid;
    return 0;
}

static shmp_shmem *used;

static int users(shmp_provider *provider, shmp_error *reterr) {
    (void)provider;
    return shmp_users(used, ignore_user, NULL, reterr);
}

static void test_a_process_ends_at_each_step(void) {
    static int (*const walks[])(shmp_provider *, shmp_error *) = {list, users};
    shmp_provider *provider = open_provider("memfd");
    REQUIRE(shmp_create(provider, SIZE, 0, &used, NULL) == 0);
    for (size_t i = 0; i < LENGTH(walks); i++) {
        int is_over = 0;
        for (int at = 0; !is_over && at < MOST_STEPS; at++) {
            shmp_error error = {.call = ""};
            check_subject("walk %zu, step %d", i, at);
            int descriptors = count_descriptors();
            mortal = child_that(pause_for_ever);
            before(NULL, at, kill_mortal);
            succeeds(walks[i](provider, &error), &error, "walk");
            is_over = !is_done();
            kill_mortal();
            CHECK_EQUAL(count_descriptors(), descriptors);
        }
        CHECK(is_over);
    }
    check_subject("");
    CHECK(shmp_close(used, NULL) == 0);
    shmp_provider_close(provider);
}

static int note_size(void *context, const shmp_listed *segment) {
    *(int *)context += segment->size == SIZE;
    return 0;
}

static void count_listed(shmp_provider *provider, int expected) {
    shmp_error error = {.call = ""};
    int count = 0;
    succeeds(shmp_list(provider, note_size, &count, &error), &error, "list");
    CHECK_EQUAL(count, expected);
}

/* What others can name, open and hold ends no list of root's. */
static void test_list_among_impostors(void) {
    shmp_provider *provider = open_provider("memfd");
    char path[64], deep[252];
    struct stat before_all;
    int impostor = memfd_create("shmem_providers", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(ftruncate(impostor, SIZE) == 0);
    count_listed(provider, 0);
    CHECK(fcntl(impostor, F_ADD_SEALS, F_SEAL_GROW) == 0);
    count_listed(provider, 0);
    CHECK(fcntl(impostor, F_ADD_SEALS, seals) == 0);
    count_listed(provider, 1);

    snprintf(path, sizeof path, "/proc/self/fd/%d", impostor);
    int leased = open(path, O_RDWR | O_CLOEXEC);
    close(impostor);
    signal(SIGIO, SIG_IGN);
    CHECK(fcntl(leased, F_SETLEASE, F_WRLCK) == 0);
    count_listed(provider, 0);
    close(leased);

    memset(deep, 'x', sizeof deep - 1);
    deep[sizeof deep - 1] = 0;
    int top = open("/dev/shm", O_RDONLY | O_DIRECTORY | O_CLOEXEC), at = dup(top), depth = 0;
    CHECK(fstat(at, &before_all) == 0);
    for (; depth < 18; depth++) {
        CHECK(mkdirat(at, deep, 0700) == 0);
        int next = openat(at, deep, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        close(at);
        at = next;
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", at);
    CHECK(readlink(path, deep, 1) < 0 && errno == ENAMETOOLONG);
    count_listed(provider, 0);
    for (; depth > 0; depth--) {
        int up = openat(at, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        CHECK(unlinkat(up, deep, AT_REMOVEDIR) == 0);
        close(at);
        at = up;
    }
    close(at);
    close(top);
    shmp_provider_close(provider);
}

/* ---- Threads ------------------------------------------------------------------------------------------ */

static pthread_barrier_t start;
static shmp__atomic_uint closes, munmaps, mmaps;

static void count_releases(const char *call) {
    if (strcmp(call, "close") == 0) shmp__atomic_add(&closes, 1);
    if (strcmp(call, "munmap") == 0) shmp__atomic_add(&munmaps, 1);
}

static void in_threads(void *(*run)(void *), void *contexts[THREADS]) {
    pthread_t threads[THREADS];
    pthread_barrier_init(&start, NULL, THREADS);
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, run, contexts[i])) give_up("there is no thread");
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&start);
}

static void *close_one(void *context) {
    shmp_shmem *shmem = context, *clone = NULL;
    pthread_barrier_wait(&start);
    CHECK(shmp_clone(shmem, 0, &clone, NULL) == 0);
    CHECK(shmp__retire(shmem, NULL) == 0);
    CHECK(shmp_close(clone, NULL) == 0);
    CHECK_EQUAL(((volatile unsigned char *)shmp_data(shmem))[SIZE - 1], 7);
    CHECK(shmp_close(shmem, NULL) == 0);
    return NULL;
}

static void test_clones_are_closed_by_threads(void) {
    shmp_provider *provider = open_provider("memfd");
    for (int round = 0; round < ROUNDS; round++) {
        shmp_shmem *clones[THREADS];
        void *contexts[THREADS];
        REQUIRE(shmp_create(provider, SIZE, 0, &clones[0], NULL) == 0);
        ((unsigned char *)shmp_data(clones[0]))[SIZE - 1] = 7;
        for (int i = 1; i < THREADS; i++) REQUIRE(shmp_clone(clones[0], 0, &clones[i], NULL) == 0);
        for (int i = 0; i < THREADS; i++) contexts[i] = clones[i];
        shmp__atomic_set(&closes, 0);
        shmp__atomic_set(&munmaps, 0);
        watch = count_releases;
        in_threads(close_one, contexts);
        watch = NULL;
        CHECK_EQUAL(shmp__atomic_load(&closes), 1);
        CHECK_EQUAL(shmp__atomic_load(&munmaps), 1);
    }
    shmp_provider_close(provider);
}

static void *clone_and_close(void *context) {
    shmp_shmem *clone;
    pthread_barrier_wait(&start);
    for (int i = 0; i < 500 * ROUNDS; i++)
        CHECK(shmp_clone(context, 0, &clone, NULL) == 0 && shmp_close(clone, NULL) == 0);
    return NULL;
}

static void test_clones_are_counted_by_threads(void) {
    shmp_provider *provider = open_provider("nop");
    shmp_shmem *owner;
    void *contexts[THREADS];
    REQUIRE(shmp_create(provider, SIZE, 0, &owner, NULL) == 0);
    for (int i = 0; i < THREADS; i++) contexts[i] = owner;
    in_threads(clone_and_close, contexts);
    CHECK_EQUAL(shmp__atomic_load(&owner->mapping->open), 1);
    CHECK_EQUAL(shmp__atomic_load(&owner->mapping->held), 1);
    CHECK(shmp_close(owner, NULL) == 0);
    shmp_provider_close(provider);
}

static shmp_provider *standard;
static shmp_description of_other;
static pthread_barrier_t inside;

/* Each thread waits with its provider half opened until all have got so far. */
static void meet_inside(const char *call) {
    count_releases(call);
    if (strcmp(call, "mmap") != 0) return;
    shmp__atomic_add(&mmaps, 1);
    pthread_barrier_wait(&inside);
}

static void *attach_to_other(void *context) {
    shmp_error error = {.call = ""};
    succeeds(shmp_attach(standard, &of_other, 0, context, &error), &error, "attach");
    return NULL;
}

static void test_threads_make_std_open_another(void) {
    shmp_provider *provider = open_provider("sysv");
    shmp_shmem *owner, *attached[THREADS] = {NULL};
    void *contexts[THREADS];
    standard = open_provider("std");
    REQUIRE(strcmp(shmp_provider_name(standard), "sysv") != 0);
    REQUIRE(shmp_create(provider, SIZE, 0, &owner, NULL) == 0);
    CHECK(shmp_describe(owner, &of_other, NULL) == 0);
    for (int i = 0; i < THREADS; i++) contexts[i] = &attached[i];
    pthread_barrier_init(&inside, NULL, THREADS);
    shmp__atomic_set(&mmaps, 0);
    shmp__atomic_set(&munmaps, 0);
    watch = meet_inside;
    in_threads(attach_to_other, contexts);
    watch = count_releases;
    CHECK_EQUAL(shmp__atomic_load(&mmaps), THREADS);
    CHECK_EQUAL(shmp__atomic_load(&munmaps), THREADS - 1); /* the losers' */
    for (int i = 0; i < THREADS; i++) {
        REQUIRE(attached[i]);
        CHECK_TEXT(shmp_backend(attached[i]), "sysv");
        CHECK(attached[i]->mapping->provider == attached[0]->mapping->provider);
    }
    shmp_provider_close(standard);
    CHECK_EQUAL(shmp__atomic_load(&munmaps), THREADS); /* the chosen one's */
    for (int i = 0; i < THREADS; i++) CHECK(shmp_close(attached[i], NULL) == 0);
    CHECK_EQUAL(shmp__atomic_load(&munmaps), THREADS + 1); /* the winner's */
    watch = NULL;
    pthread_barrier_destroy(&inside);
    CHECK(shmp_close(owner, NULL) == 0);
    shmp_provider_close(provider);
}

static void *own_one(void *context) {
    pthread_barrier_wait(&start);
    CHECK(shmp_create(standard, SIZE, 0, context, NULL) == 0);
    return NULL;
}

/* In a forked child, whose threads give the process its mark: all their handles are owners. */
static int own_in_threads(void) {
    shmp_shmem *owners[THREADS] = {NULL};
    void *contexts[THREADS];
    int owned = 0;
    for (int i = 0; i < THREADS; i++) contexts[i] = &owners[i];
    in_threads(own_one, contexts);
    for (int i = 0; i < THREADS; i++) owned += owners[i] && shmp_flags(owners[i]) & SHMP_OWNER;
    return owned != THREADS;
}

static void test_threads_mark_a_forked_child(void) {
    standard = open_provider("nop");
    int failed = 0;
    for (int round = 0; round < ROUNDS; round++) failed += wait_for(child_that(own_in_threads)) != 0;
    CHECK_EQUAL(failed, 0);
    shmp_provider_close(standard);
}

/* ---- Running --------------------------------------------------------------------------------------------- */

#define TEST(name)                                                                                                     \
    { #name, test_##name }

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    TEST(create_with_a_stopped_reaper),       TEST(create_when_every_name_is_locked),
    TEST(create_when_the_new_name_is_reaped), TEST(create_named_leaves_another_file),

    TEST(reap_at_each_step_of_create),        TEST(names_change_at_each_step),
    TEST(giver_truncates_and_seals),          TEST(descriptor_is_replaced),
    TEST(a_process_ends_at_each_step),        TEST(list_among_impostors),
    TEST(clones_are_counted_by_threads),      TEST(clones_are_closed_by_threads),
    TEST(threads_make_std_open_another),      TEST(threads_mark_a_forked_child),
};

static int run_all(const char *wanted) {
    if (!is_alone) {
        printf("skip races: they need namespaces of their own: run as root\n");
        return 0;
    }
    int passed = 0;
    for (size_t i = 0; i < LENGTH(tests); i++) {
        if (!strstr(tests[i].name, wanted)) continue;
        unsigned failures = shmp__atomic_load(&check_failures);
        check_subject("");
        alarm(PATIENCE);
        tests[i].run();
        int failed = shmp__atomic_load(&check_failures) != failures;
        if (failed) printf("FAIL %s\n", tests[i].name);
        passed += !failed;
    }
    printf("%d passed, %u checks failed\n", passed, shmp__atomic_load(&check_failures));
    fflush(stdout);
    return shmp__atomic_load(&check_failures) > 0;
}

int main(int argc, char **argv) {
    unsetenv("SHMEM_PROVIDER");
    return run_isolated(run_all, argc > 1 ? argv[1] : "");
}
