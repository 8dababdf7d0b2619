/* The service, from outside: a client that knows the bytes of the wire alone, and from within the same process, so that
 * what the service holds is seen in it.
 *
 *   test_service [NAME]      all tests, or those whose name contains NAME
 *
 * One line a test on stdout, `ok|FAIL|skip name`. After each one the process has the descriptors that it had before. A
 * service that shall be killed runs in a child. */
#define _GNU_SOURCE
#include "check.h"
#include "core/core.h"
#include "os/fault.h"
#include "os/os_service.h"
#include "os/platform.h"
#include "service/wire.h"

#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#if !defined(SHMP_HAVE_ABSTRACT)
#define SHMP_HAVE_ABSTRACT SHMP_HAVE_LINUX
#endif
#if !defined(__has_feature)
#define __has_feature(what) 0
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__) || __has_feature(thread_sanitizer) ||                \
    __has_feature(address_sanitizer)
enum { IS_SANITIZED = 1 };
#else
enum { IS_SANITIZED = 0 };
#endif

#define LENGTH(array) (sizeof(array) / sizeof *(array))

enum { PATIENCE = 20 /* seconds */, SIZE = 4096, NO_FD = -1, CLOSED = INT_MIN };

static char folder[] = "/tmp/shmp_test_XXXXXX";
static const char *skipped; /* why; set by a test */

static void hang(int signal_number) {
    static const char text[] = "a test hangs\n";
    (void)signal_number;
    (void)!write(2, text, sizeof text - 1);
    _exit(1);
}

static unsigned held(void) {
    unsigned count = 0;
    DIR *directory = opendir("/dev/fd");
    while (directory && readdir(directory)) count++;
    if (directory) closedir(directory);
    return count;
}

static void pause_ms(unsigned time) { (void)usleep(time * 1000); }

/* ---- Calls of the system that fail ---- */

static struct {
    shmp__atomic_uint mode, count;
    unsigned at;
    int error;
    pthread_t tester;
} fault;
enum { NONE_FAILS, ONE_OF_TESTER_FAILS, SOME_OF_OTHERS_FAIL };

static int fails(void) {
    static const int errors[] = {EINTR, EAGAIN, ENOMEM, EMFILE, EINVAL, EPIPE};
    unsigned mode = shmp__atomic_load(&fault.mode);
    if (mode == NONE_FAILS) return 0;
    if (!pthread_equal(pthread_self(), fault.tester) == (mode == ONE_OF_TESTER_FAILS)) return 0;
    unsigned count = shmp__atomic_add(&fault.count, 1), mixed = count * 2654435761u >> 16;
    if (mode == ONE_OF_TESTER_FAILS ? count != fault.at : mixed % 16 != 0) return 0;
    errno = mode == ONE_OF_TESTER_FAILS ? fault.error : errors[mixed / 16 % LENGTH(errors)];
    return 1;
}

int shmp__fault(const char *call) {
    (void)call;
    return fails();
}

int shmp__fault_after(const char *call, int result) {
    (void)call;
    return fails() ? -1 : result;
}

static void let_fail(unsigned mode) {
    unsigned before = shmp__atomic_load(&fault.mode);
    while (!shmp__atomic_swap_if(&fault.mode, &before, mode)) continue;
}

/* ---- A service ---- */

static char address[SHMP__ADDRESS_ROOM];

/* Another one for each service: of a path, or an abstract one. */
static const char *new_address(int is_path) {
    static unsigned count;
    if (is_path || !SHMP_HAVE_ABSTRACT)
        snprintf(address, sizeof address, "%s/%u", folder, ++count);
    else
        snprintf(address, sizeof address, "@shmp_test_%ld_%u", (long)getpid(), ++count);
    return address;
}

static shmp_service_options defaults(void) {
    return (shmp_service_options){.struct_size = sizeof(shmp_service_options), .address = address};
}

static shmp_service *started_with(const shmp_service_options *options) {
    shmp_error error = {.call = ""};
    shmp_service *service = NULL;
    if (shmp_service_start(NULL, options, &service, &error) == 0) return service;
    check_failed(__FILE__, __LINE__, "shmp_service_start: %s: %s (%d)", error.call, error.message, error.os_error);
    return NULL;
}

static shmp_service *started(void) {
    new_address(0);
    shmp_service_options options = defaults();
    return started_with(&options);
}

static void stop(shmp_service *service) { CHECK_EQUAL(shmp_service_stop(service, NULL), 0); }

static shmp_service_stats stats_of(shmp_service *service) {
    shmp_service_stats stats = {.struct_size = sizeof stats};
    CHECK_EQUAL(shmp_service_get_stats(service, &stats, NULL), 0);
    return stats;
}

/* The service notices by itself what its clients do. */
static void check_becomes(shmp_service *service, unsigned long long clients, unsigned long long segments, int line) {
    shmp_service_stats stats = {.clients = 0};
    for (int i = 0; i < PATIENCE * 1000; i++) {
        stats = stats_of(service);
        if (stats.clients == clients && stats.segments == segments) return;
        pause_ms(1);
    }
    check_failed(__FILE__, line, "%llu clients and %llu segments: expected %llu and %llu", stats.clients,
                 stats.segments, clients, segments);
}
#define CHECK_BECOMES(service, clients, segments) check_becomes(service, clients, segments, __LINE__)

/* ---- A client ---- */

static int connected_to(const char *where) {
    int fd = shmp__os_connect(where, PATIENCE * 1000);
    if (fd < 0) return check_failed(__FILE__, __LINE__, "connect to %s: %s", where, strerror(-fd)), -1;
    CHECK_EQUAL(fcntl(fd, F_SETFL, 0), 0);
    const struct timeval limit = {.tv_sec = PATIENCE};
    CHECK_EQUAL(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), 0);
    return fd;
}

static int connected(void) { return connected_to(address); }

static void send_bytes(int fd, const void *bytes, size_t length) {
    (void)shmp__os_send(fd, bytes, length, NO_FD); /* who was refused finds out when he reads */
}

/* The text of a reply, and how many descriptors came along; the first is kept. -1: the connection has ended. */
static int received(int fd, char ret_text[SHMP__REPLY_ROOM + 1], int *ret_fd) {
    memset(ret_text, 0, SHMP__REPLY_ROOM + 1);
    int got = shmp__os_receive(fd, ret_text, SHMP__REPLY_ROOM, ret_fd);
    if (got == -EAGAIN) check_failed(__FILE__, __LINE__, "no reply in %d s", PATIENCE);
    return got > 0 ? 0 : -1;
}

/* The number; CLOSED: the connection has ended. *ret_fd: what came along, or NO_FD; NULL: nothing may. */
static int reply_of(int fd, int *ret_fd) {
    char text[SHMP__REPLY_ROOM + 1], again[SHMP__REPLY_ROOM + 1];
    int got_fd = NO_FD;
    if (received(fd, text, &got_fd) < 0) return CLOSED;
    int number = atoi(text);
    snprintf(again, sizeof again, "%d", number);
    CHECK_TEXT(text, again);
    if (ret_fd)
        *ret_fd = got_fd;
    else if (!CHECK_EQUAL(got_fd, NO_FD))
        (void)close(got_fd);
    return number;
}

static void ask(int fd, shmp__request request) {
    unsigned char bytes[SHMP__REQUEST_ROOM];
    send_bytes(fd, bytes, shmp__request_write(&request, bytes));
}

static int asked(int fd, shmp__request request) {
    ask(fd, request);
    return reply_of(fd, NULL);
}

static int hello(int fd) { return asked(fd, (shmp__request){.kind = SHMP__HELLO}); }
static int pre_fork(int fd) { return asked(fd, (shmp__request){.kind = SHMP__PRE_FORK}); }
static int child_hello(int fd, int parent) {
    return asked(fd, (shmp__request){.kind = SHMP__POST_FORK_CHILD_HELLO, .number = parent});
}
static int deregister(int fd, int number) {
    return asked(fd, (shmp__request){.kind = SHMP__DEREGISTER, .number = number});
}

/* The number of the segment, whose descriptor is closed at once; negative: refused, and then without a descriptor. */
static int asked_for_map(int fd, const shmp__request *request, size_t size) {
    struct stat file;
    int segment = NO_FD;
    ask(fd, *request);
    int number = reply_of(fd, &segment);
    if (number <= 0) {
        if (!CHECK_EQUAL(segment, NO_FD)) (void)close(segment);
        return number;
    }
    if (!CHECK(segment >= 0)) return number;
    if (CHECK_EQUAL(fstat(segment, &file), 0)) {
        if (size) CHECK_EQUAL(file.st_size, size);
        CHECK_EQUAL(file.st_mode & 0777, 0600);
    }
    (void)close(segment);
    return number;
}

static int new_map(int fd, uint64_t size) {
    const shmp__request request = {.kind = SHMP__NEW_MAP, .size = size};
    return asked_for_map(fd, &request, (size_t)size);
}

static int existing_map(int fd, const char *id) {
    shmp__request request = {.kind = SHMP__EXISTING_MAP, .size = 1};
    memcpy(request.id, id, strlen(id));
    return asked_for_map(fd, &request, 0);
}

static int existing_number(int fd, int number) {
    char id[SHMP__ID_SIZE];
    snprintf(id, sizeof id, "%d", number);
    return existing_map(fd, id);
}

/* A new connection is answered: the service lives. */
static void check_answers(int line) {
    int fd = connected();
    if (hello(fd) <= 0) check_failed(__FILE__, line, "a new client is not answered");
    (void)close(fd);
}
#define CHECK_ANSWERS() check_answers(__LINE__)

/* ---- A process that ends with the number of its failed checks ---- */

static int is_child_fine(pid_t child) {
    int status;
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static _Noreturn void end_child(void) { _exit(shmp__atomic_load(&check_failures) != 0); }

static pid_t forked(void) {
    pid_t child = fork();
    if (child == 0) {
        shmp__atomic_set(&check_failures, 0);
        alarm(2 * PATIENCE);
    }
    return child;
}

/* ---- The wire ---- */

typedef struct exchange {
    const char *what, *bytes;
    size_t length;
    const char *reply;
    int comes_with_fd;
} exchange;

#define BYTES(text) text, sizeof(text) - 1
#define ZEROS_19 "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"

/* As the Rust crate writes them, to one connection of a new service. */
static const exchange exchanges[] = {
    {"Hello", BYTES("\0\0\0\1\3"), "1", 0},
    {"NewMap(1024)", BYTES("\0\0\0\3\0\x80\x08"), "1", 1},
    {"NewMap(65536)", BYTES("\0\0\0\4\0\x80\x80\4"), "2", 1},
    {"ExistingMap(1, 1024)", BYTES("\0\0\0\x17\1\x80\x08\x31" ZEROS_19), "1", 1},
    {"Deregister(1)", BYTES("\0\0\0\2\2\2"), "2", 0},
    {"Deregister(1)", BYTES("\0\0\0\2\2\2"), "1", 0},
    {"Deregister(1)", BYTES("\0\0\0\2\2\2"), "0", 0},
    {"Deregister(-1)", BYTES("\0\0\0\2\2\1"), "0", 0},
    {"Deregister(100)", BYTES("\0\0\0\3\2\xc8\1"), "0", 0},
    {"PreFork", BYTES("\0\0\0\1\4"), "1", 0},
    {"PostForkChildHello(1)", BYTES("\0\0\0\2\5\2"), "1", 0},
    {"PostForkChildHello(8)", BYTES("\0\0\0\2\5\x10"), "-5", 0},
    {"ExistingMap(1, 1024), gone", BYTES("\0\0\0\x17\1\x80\x08\x31" ZEROS_19), "-5", 0},
    {"NewMap(0)", BYTES("\0\0\0\2\0\0"), "-1", 0},
    {"NewMap(2^64 - 1)", BYTES("\0\0\0\x0b\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\1"), "-4", 0},
    {"ExistingMap, no number", BYTES("\0\0\0\x17\1\x80\x08/" ZEROS_19), "-2", 0},
    {"Hello, and bytes that mean nothing", BYTES("\0\0\0\x10\3---------------"), "1", 0},
    {"NewMap(1024), with zeros that it need not have", BYTES("\0\0\0\5\0\x80\x88\x80\0"), "3", 1},
};

static void check_exchange(int fd, const exchange *row) {
    char text[SHMP__REPLY_ROOM + 1];
    int got_fd = NO_FD;
    check_subject("%s", row->what);
    if (CHECK_EQUAL(received(fd, text, &got_fd), 0)) CHECK_TEXT(text, row->reply);
    CHECK_EQUAL(got_fd >= 0, row->comes_with_fd);
    if (got_fd >= 0) (void)close(got_fd);
    check_subject("");
}

/* step: how many bytes are sent at once. */
static void check_exchanges(size_t step) {
    shmp_service *service = started();
    REQUIRE(service);
    int fd = connected();
    for (size_t i = 0; i < LENGTH(exchanges); i++) {
        const exchange *row = &exchanges[i];
        for (size_t at = 0; at < row->length; at += step) {
            if (at > 0) pause_ms(1);
            send_bytes(fd, row->bytes + at, row->length - at < step ? row->length - at : step);
        }
        check_exchange(fd, row);
    }
    (void)close(fd);
    stop(service);
}

static void test_every_request_and_reply(void) { check_exchanges(SIZE); }
static void test_requests_that_come_in_pieces(void) {
    check_exchanges(1);
    check_exchanges(3);
}

static void test_requests_that_come_at_once(void) {
    char all[LENGTH(exchanges) * 64];
    size_t length = 0;
    shmp_service *service = started();
    REQUIRE(service);
    int fd = connected();
    for (size_t i = 0; i < LENGTH(exchanges); i++) {
        memcpy(all + length, exchanges[i].bytes, exchanges[i].length);
        length += exchanges[i].length;
    }
    send_bytes(fd, all, length);
    for (size_t i = 0; i < LENGTH(exchanges); i++) check_exchange(fd, &exchanges[i]);
    (void)close(fd);
    stop(service);
}

static void test_what_is_no_request_ends_the_connection(void) {
    static const exchange rows[] = {
        {"an empty frame", BYTES("\0\0\0\0"), NULL, 0},
        {"an unknown request", BYTES("\0\0\0\1\7"), NULL, 0},
        {"a frame of 4 GB", BYTES("\xff\xff\xff\xff"), NULL, 0},
        {"a frame of 4097 bytes", BYTES("\0\0\x10\1"), NULL, 0},
        {"NewMap without a size", BYTES("\0\0\0\1\0"), NULL, 0},
        {"a size that has no end in its frame", BYTES("\0\0\0\2\0\x80"), NULL, 0},
        {"a size of 65 bits", BYTES("\0\0\0\x0b\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\2"), NULL, 0},
        {"a number of 33 bits", BYTES("\0\0\0\6\2\xff\xff\xff\xff\x1f"), NULL, 0},
        {"a kind of 33 bits", BYTES("\0\0\0\6\x83\x80\x80\x80\x10-"), NULL, 0},
        {"an id of 19 bytes", BYTES("\0\0\0\x15\1\1" ZEROS_19), NULL, 0},
        {"text", BYTES("GET / HTTP/1.1\r\n\r\n"), NULL, 0},
        {"a good request, and then a bad one", BYTES("\0\0\0\2\2\2\0\0\0\0"), "0", 0},
    };
    char text[SHMP__REPLY_ROOM + 1];
    shmp_service *service = started();
    REQUIRE(service);
    for (size_t i = 0; i < LENGTH(rows); i++) {
        check_subject("%s", rows[i].what);
        int fd = connected();
        send_bytes(fd, rows[i].bytes, rows[i].length);
        if (rows[i].reply) check_exchange(fd, &rows[i]);
        CHECK_EQUAL(received(fd, text, NULL), -1);
        (void)close(fd);
        CHECK_ANSWERS();
    }
    check_subject("");
    CHECK_EQUAL(stats_of(service).refused, LENGTH(rows));
    stop(service);
}

static void test_ids_that_are_none(void) {
    static const char *const ids[] = {
        "",
        "1",
        "0",
        "-1",
        "01",
        "+1",
        " 1",
        "1 ",
        "2147483648",
        "99999999999999999999",
        "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"};
    shmp_service *service = started();
    REQUIRE(service);
    int fd = connected();
    for (size_t i = 0; i < LENGTH(ids); i++) {
        check_subject("\"%s\"", ids[i]);
        int number = existing_map(fd, ids[i]);
        CHECK(number == -SHMP_EID || number == -SHMP_ENOTFOUND);
    }
    check_subject("");
    (void)close(fd);
    stop(service);
}

static void test_descriptors_that_come_with_requests_are_dropped(void) {
    shmp_service *service = started();
    REQUIRE(service);
    int fd = connected();
    CHECK_EQUAL(hello(fd), 1);
    unsigned before = held();
    for (int i = 0; i < 100; i++) {
        CHECK_EQUAL(shmp__os_send(fd, "\0\0\0\1\3", 5, 0), 0);
        CHECK_EQUAL(reply_of(fd, NULL), 1);
    }
    CHECK_EQUAL(held(), before);
    (void)close(fd);
    stop(service);
}

/* ---- References ---- */

static void test_references_are_counted(void) {
    shmp_service *service = started();
    REQUIRE(service);
    int first = connected(), second = connected();
    int number = new_map(first, SIZE);
    CHECK_EQUAL(number, 1);
    CHECK_EQUAL(existing_number(second, number), number);
    CHECK_EQUAL(existing_number(second, number), number);
    CHECK_EQUAL(deregister(second, number), 3);
    CHECK_EQUAL(deregister(first, number), 2);
    CHECK_EQUAL(deregister(first, number), 0);
    CHECK_EQUAL(existing_number(first, number), number);
    (void)close(second);
    CHECK_BECOMES(service, 1, 1);
    CHECK_EQUAL(deregister(first, number), 1);
    CHECK_EQUAL(stats_of(service).bytes, 0);
    CHECK_EQUAL(existing_number(first, number), -SHMP_ENOTFOUND);
    CHECK_EQUAL(new_map(first, SIZE), 2); /* and not 1 again */
    (void)close(first);
    CHECK_BECOMES(service, 0, 0);
    stop(service);
}

static void test_many_segments(void) {
    enum { COUNT = 300 };
    shmp_service *service = started();
    REQUIRE(service);
    int first = connected(), second = connected();
    for (int i = 1; i <= COUNT; i++) CHECK_EQUAL(new_map(first, (size_t)i), i);
    for (int i = COUNT; i >= 1; i -= 2) CHECK_EQUAL(existing_number(second, i), i);
    for (int i = 1; i <= COUNT; i += 3) CHECK_EQUAL(deregister(first, i), i % 2 ? 1 : 2);
    CHECK_EQUAL(stats_of(service).segments, COUNT - COUNT / 6);
    for (int i = 1; i <= COUNT; i++) CHECK_EQUAL(existing_number(second, i), i % 6 == 1 ? -SHMP_ENOTFOUND : i);
    (void)close(first);
    (void)close(second);
    CHECK_BECOMES(service, 0, 0);
    stop(service);
}

static void test_a_child_gets_what_its_parent_announced(void) {
    shmp_service *service = started();
    REQUIRE(service);
    int parent = connected(), child = connected(), other = connected();
    int id = hello(parent), number = new_map(parent, SIZE), late = new_map(parent, SIZE);
    CHECK_EQUAL(existing_number(parent, number), number);
    CHECK_EQUAL(deregister(parent, late), 1);
    CHECK_EQUAL(pre_fork(parent), id);
    late = new_map(parent, SIZE);
    CHECK_EQUAL(pre_fork(parent), id); /* this one counts */
    int after = new_map(parent, SIZE);
    int child_id = child_hello(child, id);
    CHECK(child_id > 0 && child_id != id);
    CHECK_EQUAL(child_hello(other, id), -SHMP_ENOTFOUND); /* it was moved */
    CHECK_EQUAL(deregister(child, after), 0);
    CHECK_EQUAL(deregister(child, late), 2);
    CHECK_EQUAL(deregister(child, number), 4);
    CHECK_EQUAL(deregister(child, number), 3);
    CHECK_EQUAL(deregister(child, number), 0);
    CHECK_EQUAL(hello(child), child_id);
    CHECK_EQUAL(pre_fork(parent), id);
    (void)close(parent); /* and the child still gets it */
    CHECK_BECOMES(service, 2, 3);
    CHECK_EQUAL(existing_number(child, number), number);
    CHECK_EQUAL(child_hello(child, id), child_id); /* added to what it has */
    CHECK_EQUAL(deregister(child, number), 3);
    (void)close(child);
    (void)close(other);
    CHECK_BECOMES(service, 0, 0);
    stop(service);
}

static void test_what_no_child_asks_for_is_dropped(void) {
    new_address(0);
    shmp_service_options options = defaults();
    options.fork_timeout_ms = 100;
    options.max_clients = 3;
    shmp_service *service = started_with(&options);
    REQUIRE(service);
    for (int i = 1; i <= 10; i++) { /* of those that have left, as many are kept as there may be clients */
        int fd = connected();
        CHECK_EQUAL(new_map(fd, SIZE), i);
        CHECK_EQUAL(pre_fork(fd), i);
        (void)close(fd);
        CHECK_BECOMES(service, 0, stats_of(service).segments);
        CHECK(stats_of(service).segments <= 3);
    }
    CHECK_BECOMES(service, 0, 0);
    stop(service);
}

static void test_segments_linger(void) {
    new_address(0);
    shmp_service_options options = defaults();
    options.linger_ms = 300;
    shmp_service *service = started_with(&options);
    REQUIRE(service);
    int first = connected(), second = connected();
    int number = new_map(first, SIZE);
    (void)close(first);
    CHECK_BECOMES(service, 1, 1);
    CHECK_EQUAL(existing_number(second, number), number); /* in time */
    pause_ms(500);
    CHECK_EQUAL(stats_of(service).segments, 1); /* it is held */
    CHECK_EQUAL(deregister(second, number), 1);
    CHECK_EQUAL(stats_of(service).segments, 1);
    CHECK_BECOMES(service, 1, 0);
    CHECK_EQUAL(existing_number(second, number), -SHMP_ENOTFOUND);
    number = new_map(second, SIZE);
    CHECK(number > 0);
    CHECK_EQUAL(deregister(second, number), 1);
    (void)close(second);
    stop(service); /* with one that lingers */
}

/* ---- Limits ---- */

static void test_limits_of_one_client(void) {
    new_address(0);
    shmp_service_options options = defaults();
    options.max_segments = 3;
    options.max_bytes = 10 * SIZE;
    options.max_frame = 23;
    shmp_service *service = started_with(&options);
    REQUIRE(service);
    int fd = connected(), other = connected();
    CHECK_EQUAL(new_map(fd, 10 * SIZE + 1), -SHMP_ESERVICE);
    CHECK_EQUAL(new_map(fd, INT64_MAX), sizeof(size_t) > 4 ? -SHMP_ESERVICE : -SHMP_EOVERFLOW);
    CHECK_EQUAL(new_map(fd, 10 * SIZE), 1);
    CHECK_EQUAL(new_map(fd, 1), -SHMP_ESERVICE);
    CHECK_EQUAL(existing_number(fd, 1), 1); /* no bytes more */
    CHECK_EQUAL(existing_number(fd, 1), 1);
    CHECK_EQUAL(existing_number(fd, 1), -SHMP_ESERVICE);
    CHECK_EQUAL(new_map(other, 1), 2);
    CHECK_EQUAL(existing_number(other, 1), -SHMP_ESERVICE); /* they would be too many */
    for (int i = 3; i >= 1; i--) CHECK_EQUAL(deregister(fd, 1), i);
    CHECK_EQUAL(new_map(fd, 10 * SIZE), 3);
    send_bytes(fd, "\0\0\0\x18\3", 5);
    CHECK_EQUAL(reply_of(fd, NULL), CLOSED);
    (void)close(fd);
    (void)close(other);
    stop(service);
}

static void test_silent_connections_make_place(void) {
    enum { MOST = 8 };
    int silent[3 * MOST], honest[MOST];
    new_address(0);
    shmp_service_options options = defaults();
    options.max_clients = MOST;
    shmp_service *service = started_with(&options);
    REQUIRE(service);
    int early = connected();
    CHECK_EQUAL(hello(early), 1);
    for (size_t i = 0; i < LENGTH(silent); i++) {
        silent[i] = connected();
        if (i % 2) send_bytes(silent[i], "\0\0\0\1", 4); /* a half request is none */
    }
    for (int i = 0; i < MOST - 1; i++) {
        honest[i] = connected();
        CHECK_EQUAL(hello(honest[i]), i + 2);
    }
    CHECK_EQUAL(hello(early), 1);
    CHECK_EQUAL(stats_of(service).clients, MOST);
    for (size_t i = 0; i < LENGTH(silent); i++) {
        CHECK_EQUAL(reply_of(silent[i], NULL), CLOSED);
        (void)close(silent[i]);
    }
    honest[MOST - 1] = connected(); /* all have asked: it is refused, and told so */
    CHECK_EQUAL(hello(honest[MOST - 1]), CLOSED);
    (void)close(early);
    CHECK_BECOMES(service, MOST - 1, 0);
    CHECK_ANSWERS();
    for (int i = 0; i < MOST; i++) (void)close(honest[i]);
    stop(service);
}

/* Each reply is read before there is another: or descriptors that nobody takes would pile up. */
static void test_who_does_not_read_gets_one_reply(void) {
    shmp_service *service = started();
    REQUIRE(service);
    int deaf = connected(), fd = connected();
    const shmp__request request = {.kind = SHMP__NEW_MAP, .size = SIZE};
    for (int i = 0; i < 100; i++) ask(deaf, request);
    for (int i = 0; i < 20; i++) {
        CHECK_EQUAL(hello(fd), 1);
        pause_ms(2);
    }
    if (SHMP_HAVE_LINUX) CHECK_EQUAL(stats_of(service).segments, 1);
    for (int i = 1; i <= 3; i++) { /* when it reads, it goes on */
        int segment = NO_FD;
        CHECK_EQUAL(reply_of(deaf, &segment), i);
        (void)close(segment);
    }
    (void)close(deaf);
    CHECK_BECOMES(service, 1, 0);
    (void)close(fd);
    stop(service);
}

/* Descriptors are the service's alone: its clients are this process. */
static void serve_with_few(int ready) {
    const struct rlimit limit = {.rlim_cur = 40, .rlim_max = 40};
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0) _exit(2);
    shmp_service_options options = defaults();
    options.linger_ms = 1000 * PATIENCE;
    shmp_service *service = started_with(&options);
    if (!service) _exit(2);
    (void)!write(ready, "", 1);
    for (;;) (void)shmp_service_wait(service, 1000);
}

/* Runs that in a child that is to be killed, and waits until it listens. */
static pid_t started_child(void (*serve)(int ready)) {
    char byte;
    int ends[2];
    if (pipe(ends) < 0) return -1;
    pid_t child = forked();
    if (child == 0) {
        (void)close(ends[0]);
        serve(ends[1]);
    }
    (void)close(ends[1]);
    CHECK_EQUAL(read(ends[0], &byte, 1), 1);
    (void)close(ends[0]);
    return child;
}

static void kill_child(pid_t child) {
    int status;
    CHECK_EQUAL(kill(child, SIGKILL), 0);
    CHECK_EQUAL(waitpid(child, &status, 0), child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void test_more_connections_than_descriptors(void) {
    enum { COUNT = 200 };
    int silent[COUNT], asking[COUNT], refused = 0;
    new_address(0);
    pid_t child = started_child(serve_with_few);
    int fd = connected(), number = new_map(fd, SIZE);
    CHECK_EQUAL(number, 1);
    for (int i = 0; i < COUNT; i++) silent[i] = connected();
    CHECK_ANSWERS(); /* at the cost of a silent one */
    for (int i = 0; i < COUNT; i++) {
        asking[i] = connected();
        refused += hello(asking[i]) == CLOSED;
    }
    CHECK(refused > 0 && refused < COUNT); /* and nobody waits */
    CHECK_EQUAL(new_map(fd, SIZE), -SHMP_EOS);
    CHECK_EQUAL(existing_number(fd, number), number); /* which takes none */
    for (int i = 0; i < COUNT; i++) {
        (void)close(silent[i]);
        (void)close(asking[i]);
    }
    pause_ms(10);
    CHECK_ANSWERS();
    CHECK_EQUAL(new_map(fd, SIZE), 2);
    (void)close(fd);
    kill_child(child);
    if (*address != '@') CHECK_EQUAL(unlink(address), 0);
}

static void test_more_segments_than_descriptors(void) {
    enum { MOST = 40 };
    int number, count = 0, last = 0;
    new_address(0);
    pid_t child = started_child(serve_with_few);
    int fd = connected(), other = connected();
    for (int i = 1; i <= 2 * MOST; i++) { /* what lingers goes when there is nothing else to give up */
        CHECK_EQUAL(new_map(fd, SIZE), i);
        CHECK_EQUAL(deregister(fd, i), 1);
    }
    CHECK_EQUAL(existing_number(other, 2 * MOST), 2 * MOST);
    for (number = 1; number > 0; count++) {
        number = new_map(fd, SIZE);
        if (number > 0) last = number;
    }
    CHECK_EQUAL(number, -SHMP_EOS);
    CHECK(count > MOST / 2 && count < MOST);
    CHECK_EQUAL(hello(fd), 1);
    CHECK_EQUAL(existing_number(other, last), last);
    CHECK_EQUAL(deregister(other, 2 * MOST), 1);
    CHECK(new_map(other, SIZE) > 0);
    (void)close(fd);
    (void)close(other);
    kill_child(child);
    if (*address != '@') CHECK_EQUAL(unlink(address), 0);
}

/* ---- Addresses ---- */

static void check_in_use(const char *where) {
    shmp_error error = {.call = ""};
    shmp_service *service;
    shmp_service_options options = defaults();
    options.address = where;
    CHECK_EQUAL(shmp_service_start(NULL, &options, &service, &error), -SHMP_ESERVICE);
    CHECK_EQUAL(error.code, -SHMP_ESERVICE);
    CHECK_EQUAL(error.os_error, EADDRINUSE);
    CHECK(strstr(error.message, where));
}

static void test_two_services_at_one_address(void) {
    for (int is_path = 0; is_path < 2; is_path++) {
        new_address(is_path);
        shmp_service_options options = defaults();
        shmp_service *service = started_with(&options);
        REQUIRE(service);
        CHECK_TEXT(shmp_service_address(service), address);
        int fd = connected();
        CHECK_EQUAL(hello(fd), 1);
        check_in_use(address);
        CHECK_EQUAL(hello(fd), 1);
        CHECK_ANSWERS();
        (void)close(fd);
        stop(service);
        service = started_with(&options); /* and then it is free */
        REQUIRE(service);
        stop(service);
        if (is_path) CHECK_EQUAL(access(address, F_OK), -1);
    }
}

static void serve(int ready) {
    shmp_service_options options = defaults();
    shmp_service *service = started_with(&options);
    if (!service) _exit(2);
    (void)!write(ready, "", 1);
    for (;;) (void)shmp_service_wait(service, 1000);
}

static void test_the_socket_of_a_killed_service_is_replaced(void) {
    struct stat file;
    new_address(1);
    kill_child(started_child(serve));
    REQUIRE(stat(address, &file) == 0);
    CHECK_EQUAL(file.st_mode & 0777, 0600);
    shmp_service_options options = defaults();
    shmp_service *service = started_with(&options);
    REQUIRE(service);
    CHECK_ANSWERS();
    check_in_use(address);
    stop(service);
    CHECK_EQUAL(access(address, F_OK), -1);
}

/* Of many that start at once where a stale socket is, one does. */
static void test_one_of_many_replaces_it(void) {
    enum { COUNT = 8 };
    pid_t children[COUNT];
    int go[2], winners = 0;
    new_address(1);
    kill_child(started_child(serve));
    REQUIRE(pipe(go) == 0);
    for (int i = 0; i < COUNT; i++) {
        children[i] = forked();
        if (children[i] > 0) continue;
        shmp_service *service;
        shmp_service_options options = defaults();
        (void)close(go[1]);
        (void)!read(go[0], &options.reserved, 1);
        int result = shmp_service_start(NULL, &options, &service, NULL);
        if (result < 0) _exit(result == -SHMP_ESERVICE ? 1 : 2);
        pause_ms(1500);
        shmp_service_stop(service, NULL);
        _exit(0);
    }
    (void)close(go[0]);
    (void)close(go[1]);
    pause_ms(1000);
    CHECK_ANSWERS();
    for (int i = 0; i < COUNT; i++) {
        int status;
        CHECK_EQUAL(waitpid(children[i], &status, 0), children[i]);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) < 2);
        winners += WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }
    CHECK_EQUAL(winners, 1);
}

static void test_what_is_no_socket_is_left_alone(void) {
    shmp_error error = {.call = ""};
    shmp_service *service;
    new_address(1);
    shmp_service_options options = defaults();
    int fd = open(address, O_CREAT | O_EXCL | O_RDWR, 0600);
    REQUIRE(fd >= 0 && write(fd, "mine", 4) == 4);
    (void)close(fd);
    CHECK_EQUAL(shmp_service_start(NULL, &options, &service, &error), -SHMP_EOS);
    CHECK_EQUAL(error.os_error, EEXIST);
    CHECK_EQUAL(access(address, F_OK), 0);
    CHECK_EQUAL(unlink(address), 0);
}

static void test_a_socket_that_is_not_its_own_is_left_alone(void) {
    new_address(1);
    shmp_service_options options = defaults();
    shmp_service *first = started_with(&options);
    REQUIRE(first);
    CHECK_EQUAL(unlink(address), 0);
    shmp_service *second = started_with(&options);
    REQUIRE(second);
    stop(first);
    CHECK_ANSWERS();
    stop(second);
}

static void test_a_relative_path(void) {
    char before[PATH_MAX];
    REQUIRE(getcwd(before, sizeof before) && chdir(folder) == 0);
    snprintf(address, sizeof address, "./relative");
    shmp_service_options options = defaults();
    shmp_service *service = started_with(&options);
    REQUIRE(service);
    CHECK_ANSWERS();
    CHECK_EQUAL(chdir("/"), 0);
    stop(service);
    CHECK_EQUAL(chdir(folder), 0);
    CHECK_EQUAL(access("relative", F_OK), -1); /* it went, although this process had moved */
    CHECK_EQUAL(chdir(before), 0);
}

static void check_start_refused(const shmp_service_options *options, shmp_provider *inner, int code, int os_error,
                                int line) {
    shmp_error error = {.call = ""};
    shmp_service *untouched = (void *)folder, *service = untouched;
    unsigned before = held();
    int result = shmp_service_start(inner, options, &service, &error);
    if (result != -code || error.code != result || error.os_error != os_error || !*error.message)
        check_failed(__FILE__, line, "%d and os_error %d: expected %d and %d: %s: %s", result, error.os_error, -code,
                     os_error, error.call, error.message);
    CHECK_EQUAL(shmp_service_start(inner, options, &service, NULL), result);
    CHECK(service == untouched);
    CHECK_EQUAL(held(), before);
}
#define CHECK_START_REFUSED(options, inner, code, os_error)                                                            \
    check_start_refused(options, inner, code, os_error, __LINE__)

static void test_addresses_that_cannot_be(void) {
    static char far[PATH_MAX];
    shmp_service_options options = defaults();
    memset(far, 'x', sizeof far - 1);
    options.address = far;
    CHECK_START_REFUSED(&options, NULL, SHMP_EOS, ENAMETOOLONG);
    far[SHMP__ADDRESS_ROOM] = 0;
    CHECK_START_REFUSED(&options, NULL, SHMP_EOS, ENAMETOOLONG);
    options.address = "/no/such/folder/socket";
    CHECK_START_REFUSED(&options, NULL, SHMP_EOS, ENOENT);
    options.address = "/tmp/";
    CHECK_START_REFUSED(&options, NULL, SHMP_EOS, EISDIR);
    options.address = "";
    CHECK_START_REFUSED(&options, NULL, SHMP_EOS, ENOENT);
    if (!SHMP_HAVE_ABSTRACT) {
        options.address = SHMP_LIBAFL_ADDRESS;
        CHECK_START_REFUSED(&options, NULL, SHMP_EOS, EAFNOSUPPORT);
    }
}

static void test_options_that_cannot_be(void) {
    static const char *const without[] = {"nop", "sysv"};
    struct {
        shmp_service_options known;
        char newer[8];
    } larger = {.known = {.struct_size = sizeof larger}, .newer = {1}};
    shmp_service_options options = defaults();
    shmp_provider *inner;
    CHECK_START_REFUSED(&larger.known, NULL, SHMP_EINVAL, 0);
    options.struct_size = 8;
    CHECK_START_REFUSED(&options, NULL, SHMP_EINVAL, 0);
    options = defaults();
    options.flags = SHMP_READ_ONLY;
    CHECK_START_REFUSED(&options, NULL, SHMP_EINVAL, 0);
    options = defaults();
    options.reserved = 1;
    CHECK_START_REFUSED(&options, NULL, SHMP_EINVAL, 0);
    CHECK_EQUAL(shmp_service_start(NULL, NULL, NULL, NULL), -SHMP_EINVAL);
    CHECK_EQUAL(shmp_service_stop(NULL, NULL), 0);
    CHECK_EQUAL(shmp_service_pre_fork(NULL, NULL), -SHMP_EINVAL);
    CHECK_EQUAL(shmp_service_post_fork(NULL, 0, NULL), -SHMP_EINVAL);
    CHECK_EQUAL(shmp_service_get_stats(NULL, NULL, NULL), -SHMP_EINVAL);
    options = defaults();
    for (size_t i = 0; i < LENGTH(without); i++) {
        if (shmp_provider_open(without[i], NULL, &inner, NULL) < 0) continue;
        CHECK_START_REFUSED(&options, inner, SHMP_EUNSUPPORTED, 0);
        shmp_provider_close(inner);
    }
    larger.newer[0] = 0;
    larger.known.address = new_address(0);
    shmp_service *service = started_with(&larger.known);
    REQUIRE(service);
    shmp_service_stats stats = {.struct_size = 8};
    CHECK_EQUAL(shmp_service_get_stats(service, &stats, NULL), -SHMP_EINVAL);
    stop(service);
}

static void test_the_users_own_address(void) {
    shmp_service *service;
    struct stat file;
    if (!SHMP_HAVE_ABSTRACT) CHECK_EQUAL(setenv("TMPDIR", folder, 1), 0);
    int result = shmp_service_start(NULL, NULL, &service, NULL);
    if (result == -SHMP_ESERVICE) {
        skipped = "this user has a service: end it";
        return;
    }
    REQUIRE(result == 0);
    snprintf(address, sizeof address, "%s", shmp_service_address(service));
    CHECK_ANSWERS();
    stop(service);
    if (SHMP_HAVE_ABSTRACT) return;
    *strrchr(address, '/') = 0;
    CHECK_EQUAL(strncmp(address, folder, strlen(folder)), 0);
    CHECK_EQUAL(stat(address, &file), 0);
    CHECK_EQUAL(file.st_mode & 0777, 0700);
    CHECK_EQUAL(chmod(address, 0770), 0); /* others might have made it */
    CHECK_START_REFUSED(NULL, NULL, SHMP_EOS, EPERM);
    CHECK_EQUAL(rmdir(address), 0);
    CHECK_EQUAL(symlink("/tmp", address), 0);
    CHECK_START_REFUSED(NULL, NULL, SHMP_EOS, EPERM);
    CHECK_EQUAL(unlink(address), 0);
}

/* ---- Mechanisms ---- */

static unsigned count_names(void) {
    unsigned count = 0;
    DIR *directory = opendir("/dev/shm");
    const struct dirent *entry;
    while (directory && (entry = readdir(directory))) count += strncmp(entry->d_name, "shmp_", 5) == 0;
    if (directory) closedir(directory);
    return count;
}

static void test_mechanisms(void) {
    static const char *const names[] = {"memfd", "posix", "std"};
    for (size_t i = 0; i < LENGTH(names); i++)
        for (unsigned flags = 0; flags <= SHMP_FD_IDS; flags++) {
            shmp_provider *inner;
            shmp_service *service;
            const shmp_provider_options which = {.struct_size = sizeof which, .flags = flags};
            if (shmp_provider_open(names[i], &which, &inner, NULL) < 0) continue;
            check_subject("%s, flags %#x", names[i], flags);
            new_address(0);
            const shmp_service_options options = defaults();
            CHECK_EQUAL(shmp_service_start(inner, &options, &service, NULL), 0);
            shmp_provider_close(inner); /* the service has its own */
            unsigned before = count_names();
            int fd = connected();
            CHECK_EQUAL(new_map(fd, SIZE), 1);
            CHECK_EQUAL(existing_number(fd, 1), 1);
            CHECK_EQUAL(count_names(), before); /* none that a killed service would leave */
            (void)close(fd);
            stop(service);
        }
    check_subject("");
}

/* ---- Ending ---- */

static void test_idle(void) {
    new_address(0);
    shmp_service_options options = defaults();
    options.idle_ms = 100;
    options.linger_ms = 300;
    shmp_service *service = started_with(&options);
    REQUIRE(service);
    int fd = connected();
    CHECK_EQUAL(hello(fd), 1);
    CHECK_EQUAL(shmp_service_wait(service, 300), 0); /* it has a client */
    CHECK_EQUAL(new_map(fd, SIZE), 1);
    (void)close(fd);
    CHECK_EQUAL(shmp_service_wait(service, 200), 0); /* it has something that lingers */
    CHECK_EQUAL(shmp_service_wait(service, PATIENCE * 1000), 1);
    CHECK_EQUAL(shmp_service_wait(service, 0), 1);
    CHECK_EQUAL(shmp__os_connect(address, 0), SHMP_HAVE_ABSTRACT ? -ECONNREFUSED : -ENOENT);
    CHECK_EQUAL(stats_of(service).requests, 2);
    stop(service);
}

static void test_exit(void) {
    char text[SHMP__REPLY_ROOM + 1];
    const shmp__request request = {.kind = SHMP__EXIT};
    shmp_service *service = started();
    REQUIRE(service);
    pid_t child = forked();
    if (child == 0) { /* a stranger */
        int fd = connected();
        ask(fd, request);
        CHECK_EQUAL(received(fd, text, NULL), -1);
        end_child();
    }
    CHECK(is_child_fine(child));
    int fd = connected(), asking = connected();
    CHECK_EQUAL(hello(asking), 1);
    ask(asking, request); /* it is no new connection's first */
    CHECK_EQUAL(received(asking, text, NULL), -1);
    CHECK_EQUAL(shmp_service_wait(service, 0), 0);
    CHECK_ANSWERS();
    ask(fd, request);
    CHECK_EQUAL(received(fd, text, NULL), -1);
    CHECK_EQUAL(shmp_service_wait(service, PATIENCE * 1000), 1);
    stop(service);
    (void)close(fd);
    (void)close(asking);
}

static void test_clients_are_told_of_the_end(void) {
    shmp_service *service = started();
    REQUIRE(service);
    int fd = connected(), silent = connected();
    CHECK_EQUAL(new_map(fd, SIZE), 1);
    stop(service);
    CHECK_EQUAL(reply_of(fd, NULL), CLOSED);
    CHECK_EQUAL(reply_of(silent, NULL), CLOSED);
    (void)close(fd);
    (void)close(silent);
}

/* ---- Fork ---- */

static pid_t forked_by_host(shmp_service *service) {
    CHECK_EQUAL(shmp_service_pre_fork(service, NULL), 0);
    pid_t child = forked();
    CHECK_EQUAL(shmp_service_post_fork(service, child == 0, NULL), 0);
    return child;
}

static void test_a_forked_child_holds_nothing_of_it(void) {
    unsigned before = held();
    shmp_service *service = started();
    REQUIRE(service);
    int fd = connected();
    CHECK_EQUAL(new_map(fd, SIZE), 1);
    pid_t child = forked_by_host(service);
    if (child == 0) {
        (void)close(fd);
        CHECK_EQUAL(held(), before + 2); /* those of shmp_service_wait */
        CHECK_EQUAL(shmp_service_wait(service, PATIENCE * 1000), 1);
        CHECK_EQUAL(stats_of(service).clients, 0);
        fd = connected(); /* as any other process */
        CHECK_EQUAL(existing_number(fd, 1), 1);
        (void)close(fd);
        stop(service);
        CHECK_EQUAL(held(), before);
        end_child();
    }
    CHECK(is_child_fine(child));
    CHECK_EQUAL(shmp_service_wait(service, 0), 0);
    CHECK_EQUAL(new_map(fd, SIZE), 2);
    (void)close(fd);
    stop(service);
}

static void test_a_child_that_was_forked_without_notice_stops_its_copy(void) {
    for (int is_path = 0; is_path < 2; is_path++) {
        new_address(is_path);
        shmp_service_options options = defaults();
        shmp_service *service = started_with(&options);
        REQUIRE(service);
        int fd = connected();
        CHECK_EQUAL(new_map(fd, SIZE), 1);
        pid_t child = forked();
        if (child == 0) {
            stop(service);
            end_child();
        }
        CHECK(is_child_fine(child));
        CHECK_EQUAL(new_map(fd, SIZE), 2);
        CHECK_ANSWERS();
        (void)close(fd);
        stop(service);
    }
}

static void serve_and_fork(int ready) {
    shmp_service_options options = defaults();
    shmp_service *service = started_with(&options);
    int fd = connected();
    if (!service || new_map(fd, SIZE) != 1) _exit(2);
    (void)close(fd);
    pid_t child = forked_by_host(service);
    const pid_t own = getpid();
    if (child == 0) (void)!write(ready, &own, sizeof own); /* by now it has closed what it got */
    (void)close(ready);
    for (;;) pause_ms(1000);
}

/* What a child had of it would keep the address taken, and clients waiting. */
static void test_a_killed_service_whose_child_lives_on(void) {
    for (int is_path = 0; is_path < 2; is_path++) {
        int ends[2];
        pid_t child = -1;
        new_address(is_path);
        REQUIRE(pipe(ends) == 0);
        pid_t host = forked();
        if (host == 0) serve_and_fork(ends[1]);
        (void)close(ends[1]);
        CHECK_EQUAL(read(ends[0], &child, sizeof child), sizeof child);
        (void)close(ends[0]);
        int fd = connected();
        CHECK(hello(fd) > 0);
        kill_child(host);
        CHECK_EQUAL(reply_of(fd, NULL), CLOSED);
        (void)close(fd);
        shmp_service_options options = defaults();
        shmp_service *service = started_with(&options);
        if (service) CHECK_ANSWERS();
        stop(service);
        if (CHECK(child > 0)) CHECK_EQUAL(kill(child, SIGKILL), 0);
    }
}

static void *make_and_drop(void *context) {
    shmp__atomic_uint *is_over = context;
    int fd = connected();
    while (!shmp__atomic_load(is_over)) {
        int number = new_map(fd, SIZE);
        CHECK(number > 0);
        CHECK_EQUAL(deregister(fd, number), 1);
    }
    (void)close(fd);
    return NULL;
}

static void test_forks_while_it_works(void) {
    enum { THREADS = 3, FORKS = 50 };
    pthread_t threads[THREADS];
    shmp__atomic_uint is_over;
    shmp__atomic_set(&is_over, 0);
    shmp_service *service = started();
    REQUIRE(service);
    for (int i = 0; i < THREADS; i++) CHECK_EQUAL(pthread_create(&threads[i], NULL, make_and_drop, &is_over), 0);
    for (int i = 0; i < FORKS; i++) {
        pid_t child = i % 2 ? forked_by_host(service) : forked();
        if (child == 0) {
            shmp_service_stop(service, NULL);
            _exit(0);
        }
        CHECK(is_child_fine(child));
    }
    shmp__atomic_add(&is_over, 1);
    for (int i = 0; i < THREADS; i++) CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
    CHECK_BECOMES(service, 0, 0);
    stop(service);
}

/* ---- Users ---- */

enum { IGNORED, ANSWERED, SHUT_OUT, BROKEN };

static int answer_to_another_user(void) {
    int status;
    pid_t child = forked();
    if (child == 0) {
        if (setgroups(0, NULL) < 0 || setgid(65534) < 0 || setuid(65534) < 0) _exit(BROKEN);
        int fd = shmp__os_connect(address, 1000);
        if (fd == -EACCES) _exit(SHUT_OUT);
        if (fd < 0 || fcntl(fd, F_SETFL, 0) < 0) _exit(BROKEN);
        _exit(hello(fd) > 0 ? ANSWERED : IGNORED);
    }
    return waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : BROKEN;
}

static void test_other_users(void) {
    if (geteuid() != 0) {
        skipped = "it takes the part of another user: run it as root";
        return;
    }
    CHECK_EQUAL(chmod(folder, 0755), 0);
    for (int is_path = 0; is_path < 2; is_path++)
        for (unsigned flags = 0; flags <= SHMP_ANY_USER; flags += SHMP_ANY_USER) {
            new_address(is_path);
            shmp_service_options options = defaults();
            options.flags = flags;
            shmp_service *service = started_with(&options);
            REQUIRE(service);
            check_subject("path %d, flags %#x", is_path, flags);
            CHECK_EQUAL(answer_to_another_user(), flags ? ANSWERED : *address == '@' ? IGNORED : SHUT_OUT);
            if (!flags && *address != '@') { /* who gets at the socket is still looked at */
                CHECK_EQUAL(chmod(address, 0777), 0);
                CHECK_EQUAL(answer_to_another_user(), IGNORED);
            }
            CHECK_ANSWERS();
            stop(service);
        }
    check_subject("");
}

/* ---- Calls of the system that fail ---- */

/* 1: a call was made to fail. */
static int check_start_that_fails(unsigned at, int error_number) {
    shmp_error error = {.call = ""};
    shmp_service *service;
    shmp_service_options options = defaults();
    unsigned before = held();
    fault.at = at;
    fault.error = error_number;
    shmp__atomic_set(&fault.count, 0);
    let_fail(ONE_OF_TESTER_FAILS);
    int result = shmp_service_start(NULL, &options, &service, &error);
    let_fail(NONE_FAILS);
    check_subject("call %u fails: %s", at, strerror(error_number));
    if (result == 0) {
        CHECK_ANSWERS();
        stop(service);
    } else {
        CHECK(error.code == result && *error.call && *error.message);
        CHECK(result == -SHMP_EOS || result == -SHMP_ENOMEM || result == -SHMP_EUNAVAILABLE);
    }
    CHECK_EQUAL(held(), before);
    CHECK(*address == '@' || access(address, F_OK) < 0);
    check_subject("");
    return shmp__atomic_load(&fault.count) > at;
}

static void test_starting_where_calls_fail(void) {
    static const int errors[] = {ENOMEM, EMFILE, EINTR, EACCES};
    for (int is_path = 0; is_path < 2; is_path++)
        for (size_t i = 0; i < LENGTH(errors); i++) {
            new_address(is_path);
            for (unsigned at = 0; check_start_that_fails(at, errors[i]); at++) continue;
        }
}

/* It may refuse, and drop clients; it answers again when its calls do. */
static void test_working_where_calls_fail(void) {
    enum { ROUNDS = 3000 };
    int fd = -1, answered = 0;
    shmp_service *service = started();
    REQUIRE(service);
    let_fail(SOME_OF_OTHERS_FAIL);
    for (int i = 0; i < ROUNDS; i++) {
        if (fd < 0) fd = connected();
        int number = i % 8 ? new_map(fd, SIZE) : pre_fork(fd);
        if (number > 0 && i % 2) number = deregister(fd, number);
        answered += number > 0;
        if (number == CLOSED) {
            (void)close(fd);
            fd = -1;
        }
    }
    let_fail(NONE_FAILS);
    CHECK(answered > ROUNDS / 4);
    if (fd >= 0) (void)close(fd);
    CHECK_ANSWERS();
    CHECK_BECOMES(service, 0, stats_of(service).segments);
    stop(service);
}

/* ---- In the long run ---- */

static long resident_kb(void) {
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%*d %ld", &pages) != 1) pages = 0;
    if (file) fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static void test_memory_stays_flat(void) {
    enum { WARM = 2000, ROUNDS = IS_SANITIZED ? 2000 : 30000, SLACK_KB = 512 };
    long before = 0;
    shmp_service *service = started();
    REQUIRE(service);
    int fd = connected(), parent = hello(fd);
    for (int i = 0; i < WARM + ROUNDS; i++) {
        if (i == WARM) before = resident_kb();
        int number = new_map(fd, SIZE);
        if (!CHECK(number > 0)) break;
        if (i % 16 == 0) {
            int child = connected();
            CHECK_EQUAL(pre_fork(fd), parent);
            CHECK(child_hello(child, parent) > 0);
            CHECK_EQUAL(existing_number(child, number), number);
            (void)close(child);
        }
        CHECK(deregister(fd, number) > 0);
    }
    if (!IS_SANITIZED) CHECK(resident_kb() - before < SLACK_KB);
    (void)close(fd);
    CHECK_BECOMES(service, 0, 0);
    stop(service);
}

static void test_a_thousand_clients(void) {
    enum { COUNT = 1000, ROOM = 4 * COUNT };
    static int clients[COUNT];
    struct rlimit limit;
    REQUIRE(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    const struct rlimit raised = {.rlim_cur = ROOM, .rlim_max = limit.rlim_max};
    if (limit.rlim_cur < ROOM && setrlimit(RLIMIT_NOFILE, &raised) < 0) {
        skipped = "it takes 4000 descriptors: raise ulimit -Hn";
        return;
    }
    shmp_service *service = started();
    REQUIRE(service);
    for (int i = 0; i < COUNT; i++) clients[i] = connected();
    for (int i = 0; i < COUNT; i++) ask(clients[i], (shmp__request){.kind = SHMP__NEW_MAP, .size = SIZE});
    for (int i = 0; i < COUNT; i++) {
        int segment = NO_FD;
        CHECK(reply_of(clients[i], &segment) > 0);
        (void)close(segment);
    }
    for (int i = 0; i < COUNT; i++) CHECK_EQUAL(existing_number(clients[i], 1), 1);
    CHECK_BECOMES(service, COUNT, COUNT);
    for (int i = 0; i < COUNT; i++) (void)close(clients[i]);
    CHECK_BECOMES(service, 0, 0);
    stop(service);
}

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
#define TEST(name)                                                                                                     \
    { #name, test_##name }
    TEST(every_request_and_reply),
    TEST(requests_that_come_in_pieces),
    TEST(requests_that_come_at_once),
    TEST(what_is_no_request_ends_the_connection),
    TEST(ids_that_are_none),
    TEST(descriptors_that_come_with_requests_are_dropped),
    TEST(references_are_counted),
    TEST(many_segments),
    TEST(a_child_gets_what_its_parent_announced),
    TEST(what_no_child_asks_for_is_dropped),
    TEST(segments_linger),
    TEST(limits_of_one_client),
    TEST(silent_connections_make_place),
    TEST(who_does_not_read_gets_one_reply),
    TEST(more_connections_than_descriptors),
    TEST(more_segments_than_descriptors),
    TEST(two_services_at_one_address),
    TEST(the_socket_of_a_killed_service_is_replaced),
    TEST(one_of_many_replaces_it),
    TEST(what_is_no_socket_is_left_alone),
    TEST(a_socket_that_is_not_its_own_is_left_alone),
    TEST(a_relative_path),
    TEST(addresses_that_cannot_be),
    TEST(options_that_cannot_be),
    TEST(the_users_own_address),
    TEST(mechanisms),
    TEST(idle),
    TEST(exit),
    TEST(clients_are_told_of_the_end),
    TEST(a_forked_child_holds_nothing_of_it),
    TEST(a_child_that_was_forked_without_notice_stops_its_copy),
    TEST(a_killed_service_whose_child_lives_on),
    TEST(forks_while_it_works),
    TEST(other_users),
    TEST(starting_where_calls_fail),
    TEST(working_where_calls_fail),
    TEST(memory_stays_flat),
    TEST(a_thousand_clients),
};

static void run_test(size_t i) {
    unsigned failed = shmp__atomic_load(&check_failures), before = held();
    skipped = NULL;
    alarm(6 * PATIENCE);
    tests[i].run();
    alarm(0);
    CHECK_EQUAL(held(), before);
    if (shmp__atomic_load(&check_failures) != failed)
        printf("FAIL %s\n", tests[i].name);
    else if (skipped)
        printf("skip %s (%s)\n", tests[i].name, skipped);
    else
        printf("ok   %s\n", tests[i].name);
    fflush(stdout);
}

int main(int count, char **arguments) {
    signal(SIGALRM, hang);
    fault.tester = pthread_self();
    if (!mkdtemp(folder)) return 1;
    for (size_t i = 0; i < LENGTH(tests); i++)
        if (count < 2 || strstr(tests[i].name, arguments[1])) run_test(i);
    CHECK_EQUAL(rmdir(folder), 0);
    return shmp__atomic_load(&check_failures) != 0;
}
