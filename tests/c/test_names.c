/* Names that a caller chose, what lingers and what is reaped: with real processes that are killed.
 *
 * The clock of the library is this program's (run.sh links with --wrap=time), so that a minute passes at once. As root
 * all happens in namespaces of its own; else among others' names and segments, which are not touched. */
#define _GNU_SOURCE /* Linux: namespaces */
#include "check.h"
#include "shmem_providers.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 5000, STRANGER = 1000 };

static long minutes_later;
time_t __real_time(time_t *ret_time);
time_t __wrap_time(time_t *ret_time);
time_t __wrap_time(time_t *ret_time) { return __real_time(ret_time) + 61 * minutes_later; }

static shmp_provider *posix, *sysv;
static shmp_error error;
static char name[20];

static int is_ok(int result, const char *file, int line, const char *call) {
    return result == 0 || check_failed(file, line, "%s: %d, %s: %.200s", call, result, error.call, error.message);
}
#define OK(call) is_ok(call, __FILE__, __LINE__, #call)

static shmp_shmem *make(size_t size, unsigned flags) {
    shmp_shmem *shmem = NULL;
    OK(shmp_create_named(posix, name, size, flags, &shmem, &error));
    return shmem;
}

static int is_owner(const shmp_shmem *shmem) { return shmem && shmp_flags(shmem) & SHMP_OWNER; }

static int is_there(void) {
    int fd = shm_open(name, O_RDONLY | O_CLOEXEC, 0);
    if (fd >= 0) close(fd);
    return fd >= 0;
}

/* Runs it in a process of its own, which is killed when it returns. */
static void in_killed_process(void (*run)(void)) {
    pid_t pid = fork();
    if (pid == 0) {
        run();
        raise(SIGKILL);
    }
    int status = 0;
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void make_and_die(void) { make(SIZE, 0); }
static void make_kept_and_die(void) { make(SIZE, SHMP_KEEP); }
static void make_lingering_and_die(void) { make(SIZE, SHMP_LINGER); }

/* ---- Chosen names ---- */

static void a_name_is_made_or_attached_to(void) {
    shmp_shmem *first = make(SIZE, SHMP_EXIST_OK), *second = make(SIZE, SHMP_EXIST_OK);
    REQUIRE(first && second);
    CHECK(is_owner(first) && !is_owner(second));
    ((char *)shmp_data(first))[SIZE - 1] = 7;
    CHECK_EQUAL(((char *)shmp_data(second))[SIZE - 1], 7);
    shmp_shmem *other = NULL;
    CHECK_EQUAL(shmp_create_named(posix, name, SIZE + 1, SHMP_EXIST_OK, &other, NULL), -SHMP_ESIZE);
    CHECK_EQUAL(shmp_create_named(posix, name, SIZE - 1, SHMP_EXIST_OK, &other, NULL), -SHMP_ESIZE);
    CHECK_EQUAL(shmp_create_named(posix, name, SIZE, 0, &other, &error), -SHMP_EOS);
    CHECK_EQUAL(error.os_error, EEXIST);
    OK(shmp_close(second, &error));
    CHECK(is_there());
    OK(shmp_close(first, &error));
    CHECK(!is_there());
}

static void what_has_the_name_is_judged(void) {
    shmp_shmem *shmem = NULL;
    char path[40];
    snprintf(path, sizeof path, "/dev/shm%s", name);
    CHECK(mkdir(path, 0700) == 0);
    CHECK_EQUAL(shmp_create_named(posix, name, SIZE, SHMP_EXIST_OK, &shmem, NULL), -SHMP_EID);
    CHECK_EQUAL(shmp_unlink(posix, name, NULL), -SHMP_EID);
    CHECK(rmdir(path) == 0);
    CHECK(mkfifo(path, 0600) == 0);
    CHECK_EQUAL(shmp_create_named(posix, name, SIZE, SHMP_EXIST_OK, &shmem, NULL), -SHMP_EID);
    CHECK_EQUAL(shmp_unlink(posix, name, NULL), -SHMP_EID);
    CHECK(unlink(path) == 0);
    CHECK(symlink("/dev/null", path) == 0);
    CHECK_EQUAL(shmp_create_named(posix, name, SIZE, SHMP_EXIST_OK, &shmem, NULL), -SHMP_EID);
    CHECK(unlink(path) == 0);
    CHECK(open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600) >= 0); /* and no size, ever */
    CHECK_EQUAL(shmp_create_named(posix, name, SIZE, SHMP_EXIST_OK, &shmem, &error), -SHMP_EOS);
    CHECK(is_there());
    OK(shmp_unlink(posix, name, &error));
    CHECK_EQUAL(shmp_unlink(posix, name, NULL), -SHMP_ENOTFOUND);
    CHECK_EQUAL(shmp_unlink(posix, "/", NULL), -SHMP_EID);
    CHECK_EQUAL(shmp_unlink(posix, "/..", NULL), -SHMP_EID);
    CHECK_EQUAL(shmp_unlink(posix, "/../shm", NULL), -SHMP_EID);
    CHECK_EQUAL(shmp_unlink(posix, "", NULL), -SHMP_EID);
}

static void another_programs_segment_is_attached_to(void) {
    int fd = shm_open(name, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    CHECK(ftruncate(fd, SIZE) == 0);
    close(fd); /* nobody holds it, and yet it is no leftover: its program has no locks */
    shmp_shmem *shmem = make(SIZE, SHMP_EXIST_OK);
    CHECK(shmem && !is_owner(shmem));
    OK(shmp_close(shmem, &error));
    CHECK(is_there());
    CHECK(shm_unlink(name) == 0);
}

static void a_strangers_is_refused(void) {
    if (geteuid() != 0) return;
    shmp_shmem *shmem = make(SIZE, SHMP_MODE(0666));
    REQUIRE(shmem);
    CHECK(fchown(shmp_fileno(shmem), STRANGER, STRANGER) == 0);
    shmp_shmem *other = NULL;
    CHECK_EQUAL(shmp_create_named(posix, name, SIZE, SHMP_EXIST_OK, &other, &error), -SHMP_EOS);
    CHECK_EQUAL(error.os_error, EACCES);
    CHECK(strstr(error.message, "user 1000") != NULL);
    OK(shmp_close(shmem, &error));
}

static void a_leftover_is_made_anew(void) {
    in_killed_process(make_and_die);
    CHECK(is_there());
    OK(shmp_reap(posix, 0, NULL, NULL, &error));
    CHECK(is_there()); /* a name that a caller chose is not reaped */
    shmp_shmem *shmem = make(2 * SIZE, SHMP_EXIST_OK);
    CHECK(is_owner(shmem));
    OK(shmp_close(shmem, &error));
    CHECK(!is_there());
}

static void a_kept_one_stays(void) {
    in_killed_process(make_kept_and_die);
    shmp_shmem *shmem = make(SIZE, SHMP_EXIST_OK);
    CHECK(shmem && !is_owner(shmem));
    OK(shmp_close(shmem, &error));
    OK(shmp_reap(posix, 0, NULL, NULL, &error));
    CHECK(is_there());
    OK(shmp_unlink(posix, name, &error));
    shmem = make(SIZE, SHMP_KEEP);
    OK(shmp_close(shmem, &error));
    CHECK(is_there());
    OK(shmp_unlink(posix, name, &error));
}

/* Each of many processes makes or attaches, adds one, and lets go when all have. */
static void count_in(int together, int answer) {
    char byte;
    (void)!read(together, &byte, 1); /* until the pipe is closed */
    shmp_shmem *shmem = make(SIZE, SHMP_EXIST_OK);
    if (shmem) shmp__atomic_add((shmp__atomic_uint *)shmp_data(shmem), 1);
    byte = is_owner(shmem) ? 'o' : shmem ? 'a' : 'f';
    (void)!write(answer, &byte, 1);
    pause();
}

static void race(int is_left_over) {
    enum { RACERS = 8 };
    int start[2], answers[2], owners = 0, failures = 0;
    pid_t racers[RACERS];
    if (is_left_over) in_killed_process(make_and_die);
    CHECK(pipe2(start, O_CLOEXEC) == 0 && pipe2(answers, O_CLOEXEC) == 0);
    for (int i = 0; i < RACERS; i++) {
        racers[i] = fork();
        if (racers[i] != 0) continue;
        close(start[1]);
        count_in(start[0], answers[1]);
        _exit(1);
    }
    close(start[0]);
    close(start[1]);
    for (int i = 0; i < RACERS; i++) {
        char byte = 'f';
        CHECK(read(answers[0], &byte, 1) == 1);
        owners += byte == 'o';
        failures += byte == 'f';
    }
    CHECK_EQUAL(owners, 1);
    CHECK_EQUAL(failures, 0);
    shmp_shmem *shmem = make(SIZE, SHMP_EXIST_OK);
    if (shmem) CHECK_EQUAL(*(unsigned *)shmp_data(shmem), RACERS);
    OK(shmp_close(shmem, &error));
    for (int i = 0; i < RACERS; i++) kill(racers[i], SIGKILL), waitpid(racers[i], NULL, 0);
    close(answers[0]);
    close(answers[1]);
    OK(shmp_unlink(posix, name, &error));
}

static void of_many_one_is_the_owner(void) {
    for (int i = 0; i < 50; i++) race(i % 2);
}

/* Looks at the name as another program would, until it is killed; 1: it saw something half-made. */
static void look_for_ever(int answer) {
    for (;;) {
        struct stat file;
        int fd = shm_open(name, O_RDONLY | O_CLOEXEC, 0);
        if (fd < 0) continue;
        if (fstat(fd, &file) == 0 && (file.st_size != SIZE || (file.st_mode & 07777) != 0640))
            (void)!write(answer, "x", 1);
        close(fd);
    }
}

static void a_name_is_never_seen_half_made(void) {
    int answers[2];
    char byte;
    CHECK(pipe2(answers, O_CLOEXEC | O_NONBLOCK) == 0);
    pid_t looker = fork();
    if (looker == 0) look_for_ever(answers[1]);
    for (int i = 0; i < 1500; i++) OK(shmp_close(make(SIZE, SHMP_MODE(0640)), &error));
    kill(looker, SIGKILL);
    waitpid(looker, NULL, 0);
    CHECK(read(answers[0], &byte, 1) < 0 && errno == EAGAIN);
    close(answers[0]);
    close(answers[1]);
}

static void a_long_name_is_attached_to(void) {
    char longest[257];
    shmp_shmem *shmem = NULL;
    shmp_description description;
    memset(longest, 'n', sizeof longest);
    longest[0] = '/';
    longest[256] = 0;
    CHECK_EQUAL(shmp_attach_name(posix, longest, SIZE, 0, &shmem, NULL), -SHMP_ENOTFOUND);
    int fd = shm_open(longest, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && ftruncate(fd, SIZE) == 0);
    close(fd);
    OK(shmp_attach_name(posix, longest, 0, SHMP_WHOLE, &shmem, &error));
    if (shmem) CHECK_EQUAL(shmp_size(shmem), SIZE);
    if (shmem) CHECK_EQUAL(shmp_describe(shmem, &description, NULL), -SHMP_ENOTFOUND);
    OK(shmp_close(shmem, &error));
    OK(shmp_unlink(posix, longest, &error));
    CHECK_EQUAL(shmp_attach_name(posix, "/a/b", SIZE, 0, &shmem, NULL), -SHMP_EID);
    CHECK_EQUAL(shmp_attach_name(sysv, name, SIZE, 0, &shmem, NULL), -SHMP_EUNSUPPORTED);
    CHECK_EQUAL(shmp_unlink(sysv, name, NULL), -SHMP_EUNSUPPORTED);
}

/* ---- What lingers ---- */

static int exists(int id) {
    struct shmid_ds segment;
    return shmctl(id, IPC_STAT, &segment) == 0;
}

static shmp_description told; /* shared with the processes that are killed */
static shmp_description *shared;

static int can_attach(shmp_provider *provider, const shmp_description *description) {
    shmp_shmem *shmem = NULL;
    int result = shmp_attach(provider, description, 0, &shmem, NULL);
    shmp_close(shmem, NULL);
    return result == 0;
}

static void create_lingering_and_die(void) {
    shmp_shmem *shmem = NULL;
    if (OK(shmp_create(told.size ? sysv : posix, SIZE, SHMP_LINGER, &shmem, &error)))
        shmp_describe(shmem, shared, NULL);
}

/* The id is said once more when somebody has come and gone, as LLMP does with a page. */
static void create_lingering_for_several_and_die(void) {
    create_lingering_and_die();
    CHECK(can_attach(told.size ? sysv : posix, shared));
}

static void reap(shmp_provider *provider) { OK(shmp_reap(provider, 0, NULL, NULL, &error)); }

static void posix_lingers_for_a_minute(void) {
    told.size = 0;
    in_killed_process(create_lingering_for_several_and_die);
    minutes_later = 5; /* however old it is: the minute begins when it is found */
    CHECK(can_attach(posix, shared));
    minutes_later = 0;
    reap(posix);
    CHECK(can_attach(posix, shared));
    reap(posix);
    CHECK(can_attach(posix, shared));
    minutes_later = 1;
    shmp_shmem *held = NULL;
    OK(shmp_attach(posix, shared, 0, &held, &error));
    reap(posix); /* held: it is alive, and the minute will begin again */
    OK(shmp_close(held, &error));
    minutes_later = 2;
    reap(posix);
    CHECK(can_attach(posix, shared));
    minutes_later = 4;
    reap(posix);
    CHECK(!can_attach(posix, shared));
    minutes_later = 0;
}

static void a_lingering_name_is_attached_to_for_a_minute(void) {
    in_killed_process(make_lingering_and_die);
    shmp_shmem *shmem = make(SIZE, SHMP_EXIST_OK);
    CHECK(shmem && !is_owner(shmem));
    OK(shmp_close(shmem, &error));
    reap(posix);
    minutes_later = 2;
    shmem = make(SIZE, SHMP_EXIST_OK);
    CHECK(is_owner(shmem));
    OK(shmp_close(shmem, &error));
    minutes_later = 0;
}

static void sysv_lingers_until_somebody_attached(void) {
    told.size = 1;
    in_killed_process(create_lingering_for_several_and_die);
    reap(sysv);
    shmp_shmem *held = NULL;
    OK(shmp_attach(sysv, shared, 0, &held, &error));
    CHECK(can_attach(sysv, shared));
    OK(shmp_close(held, &error));
    CHECK(!can_attach(sysv, shared)); /* gone with its last user */
    in_killed_process(create_lingering_and_die);
    minutes_later = 2;
    OK(shmp_reap(sysv, SHMP_DRY_RUN, NULL, NULL, &error));
    CHECK(exists(atoi(shared->id)));
    reap(sysv);
    minutes_later = 0;
    CHECK(!can_attach(sysv, shared));
}

/* Whether it still has its id when an attacher has come and gone. */
static int stays_after_attach(int key) {
    shmp_shmem *shmem = NULL;
    shmp_description description = {.size = 1};
    int id = shmget((key_t)key, 4096, IPC_CREAT | IPC_EXCL | 0600);
    if (!CHECK(id >= 0)) return 0;
    snprintf(description.id, sizeof description.id, "%d", id);
    if (OK(shmp_attach(sysv, &description, 0, &shmem, &error))) OK(shmp_close(shmem, &error));
    int stays = exists(id);
    shmctl(id, IPC_RMID, NULL);
    return stays;
}

/* What another program made is no lingering segment, even if its key begins like ours: at most one of these two has
 * the right end. */
static void others_segments_are_not_marked(void) {
    enum { LIKE_OURS = 0x15 << 26 | 5 << 12 };
    CHECK(stays_after_attach(IPC_PRIVATE));
    CHECK(stays_after_attach(0x1234));
    CHECK(stays_after_attach(LIKE_OURS | 1) || stays_after_attach(LIKE_OURS | 2));
}

static void a_normal_close_ends_what_lingers(void) {
    shmp_provider *both[] = {posix, sysv};
    for (int i = 0; i < 2; i++) {
        shmp_shmem *shmem = NULL;
        shmp_description description;
        OK(shmp_create(both[i], SIZE, SHMP_LINGER, &shmem, &error));
        OK(shmp_describe(shmem, &description, &error));
        OK(shmp_close(shmem, &error));
        CHECK(!can_attach(both[i], &description));
    }
}

/* ---- The reaper of System V segments ---- */

static void others_segments_are_not_reaped(void) {
    int ids[20];
    minutes_later = 10;
    for (int i = 0; i < 20; i++) {
        ids[i] =
            shmget((key_t)(0x54000000 + i * 4099), SIZE, IPC_CREAT | IPC_EXCL | 0600); /* like ours but for the hash */
        CHECK(ids[i] >= 0);
    }
    int unkeyed = shmget(IPC_PRIVATE, SIZE, 0600);
    reap(sysv);
    for (int i = 0; i < 20; i++) CHECK(exists(ids[i]) && shmctl(ids[i], IPC_RMID, NULL) == 0);
    CHECK(exists(unkeyed) && shmctl(unkeyed, IPC_RMID, NULL) == 0);
    minutes_later = 0;
}

static void a_living_creators_segment_is_not_reaped(void) {
    shmp_shmem *shmem = NULL;
    OK(shmp_create(sysv, SIZE, SHMP_LINGER, &shmem, &error));
    shmp_description description;
    OK(shmp_describe(shmem, &description, &error));
    int id = atoi(description.id);
    CHECK(shmdt(shmp_data(shmem)) == 0); /* nobody is attached, but this process lives */
    minutes_later = 10;
    reap(sysv);
    CHECK(exists(id));
    minutes_later = 0;
    CHECK(shmat(id, shmp_data(shmem), 0) == shmp_data(shmem));
    OK(shmp_close(shmem, &error));
    CHECK(!exists(id));
}

/* ---- Running ---- */

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
#define TEST(name)                                                                                                     \
    { #name, name }
    TEST(a_name_is_made_or_attached_to),
    TEST(what_has_the_name_is_judged),
    TEST(another_programs_segment_is_attached_to),
    TEST(a_strangers_is_refused),
    TEST(a_leftover_is_made_anew),
    TEST(a_kept_one_stays),
    TEST(of_many_one_is_the_owner),
    TEST(a_name_is_never_seen_half_made),
    TEST(a_long_name_is_attached_to),
    TEST(posix_lingers_for_a_minute),
    TEST(a_lingering_name_is_attached_to_for_a_minute),
    TEST(sysv_lingers_until_somebody_attached),
    TEST(others_segments_are_not_marked),
    TEST(a_normal_close_ends_what_lingers),
    TEST(others_segments_are_not_reaped),
    TEST(a_living_creators_segment_is_not_reaped),
};

static int run_all(void) {
    unsigned failed = 0, count = sizeof tests / sizeof *tests;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    snprintf(name, sizeof name, "/names_%ld", (long)getpid());
    if (!OK(shmp_provider_open("posix", NULL, &posix, &error)) || !OK(shmp_provider_open("sysv", NULL, &sysv, &error)))
        return 1;
    for (unsigned i = 0; i < count; i++) {
        unsigned before = shmp__atomic_load(&check_failures);
        tests[i].run();
        int is_failed = shmp__atomic_load(&check_failures) != before;
        failed += (unsigned)is_failed;
        printf("%s %s\n", is_failed ? "FAIL" : "ok", tests[i].name);
        fflush(stdout);
        shm_unlink(name);
    }
    shmp_provider_close(posix);
    shmp_provider_close(sysv);
    printf("%u passed, %u failed\n", count - failed, failed);
    return failed > 0;
}

int main(void) {
    if (unshare(CLONE_NEWNS | CLONE_NEWIPC) == 0 && (mount("", "/", "", MS_REC | MS_PRIVATE, NULL) < 0 ||
                                                     mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777,size=64m") < 0))
        printf("skip a tmpfs of its own: %s\n", strerror(errno));
    return run_all();
}
