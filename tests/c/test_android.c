/* The ashmem provider by libandroid.so, for which tests/c/libandroid.c stands in. */
#define _GNU_SOURCE
#include "harness.h"

static volatile unsigned char *fresh(const test_context *context, unsigned flags, shmp_shmem **ret_shmem) {
    *ret_shmem = created(context, SMALL + 1, flags);
    return *ret_shmem ? bytes_of(*ret_shmem) : NULL;
}

static void take(shmp_provider *provider, const char *id, const char *size) {
    shmp_description description = description_of(id, (size_t)strtoull(size, NULL, 10));
    shmp_shmem *shmem = attached_by(provider, &description, 0);
    REQUIRE(shmem);
    CHECK_EQUAL(bytes_of(shmem)[0], FROM_PARENT);
    bytes_of(shmem)[SMALL] = FROM_CHILD;
    closed(shmem);
}

static const role roles[] = {{"take", take}, {NULL, NULL}};

static void test_exchange(test_context *context) {
    shmp_shmem *owner;
    volatile unsigned char *bytes = fresh(context, SHMP_INHERIT, &owner);
    REQUIRE(bytes);
    CHECK_TEXT(shmp_backend(owner), "ashmem");
    CHECK_EQUAL(fcntl(shmp_fileno(owner), F_GETFD), 0);
    bytes[0] = FROM_PARENT;
    shmp_description description = described(owner);
    check_spawned("take", "ashmem", description.id, "4097");
    CHECK_EQUAL(bytes[SMALL], FROM_CHILD);
    snprintf(description.id, sizeof description.id, "%d", shmp_fileno(owner));
    bytes[SMALL] = 0;
    check_spawned("take", "ashmem", description.id, "4097");
    CHECK_EQUAL(bytes[SMALL], FROM_CHILD);
    closed(owner);
}

static void test_not_inherited(test_context *context) {
    shmp_shmem *owner;
    volatile unsigned char *bytes = fresh(context, 0, &owner);
    REQUIRE(bytes);
    CHECK_EQUAL(fcntl(shmp_fileno(owner), F_GETFD), FD_CLOEXEC);
    bytes[0] = FROM_PARENT;
    check_spawned("take", "std", described(owner).id, "4097"); /* taken from this process */
    CHECK_EQUAL(bytes[SMALL], FROM_CHILD);
    closed(owner);
}

static void test_sizes(test_context *context) {
    shmp_shmem *owner = created(context, SMALL + 1, SHMP_UNMAPPED);
    REQUIRE(owner);
    shmp_description description = described(owner);
    shmp_shmem *whole = attached(context, &description, SHMP_WHOLE);
    REQUIRE(whole);
    CHECK_EQUAL(shmp_size(whole), SMALL + 1);
    CHECK(all_bytes_are(whole, 0));
    description.size = SMALL + 2;
    CHECK_REFUSED(CODE(SHMP_ESIZE), shmp_attach, context->provider, &description, 0u);
    if (sizeof(size_t) > 4) /* half of 32 bits is there */
        CHECK_REFUSED(CODE(SHMP_EOS), shmp_create, context->provider, (size_t)PTRDIFF_MAX, 0u);
    closed(whole);
    closed(owner);
    description.size = SMALL;
    CHECK_REFUSED(GONE, shmp_attach, context->provider, &description, 0u);
}

static void test_read_only(test_context *context) {
    shmp_shmem *owner;
    volatile unsigned char *bytes = fresh(context, SHMP_MODE(0444), &owner);
    REQUIRE(bytes);
    shmp_description description = described(owner);
    CHECK_REFUSED(CODE(SHMP_EOS), shmp_attach, context->provider, &description, 0u);
    shmp_shmem *reader = attached(context, &description, SHMP_READ_ONLY);
    REQUIRE(reader);
    bytes[0] = FROM_PARENT;
    CHECK_EQUAL(bytes_of(reader)[0], FROM_PARENT);
    closed(reader);
    closed(owner);
}

static void test_what_is_no_region(test_context *context) {
    int fds[] = {open("/dev/null", O_RDWR), open("/", O_RDONLY), memfd_create("others", MFD_ALLOW_SEALING)};
    shmp_description unknown = description_of("", 1);
    for (size_t i = 0; i < LENGTH(fds); i++) {
        check_subject("descriptor %zu", i);
        CHECK_REFUSED(GARBAGE, shmp_attach_fd, context->provider, fds[i], &unknown, 0u);
        close(fds[i]);
    }
}

static const test of_library[] = {{NULL, NULL}};
static const test of_provider[] = {TEST(exchange),  TEST(not_inherited),     TEST(sizes),
                                   TEST(read_only), TEST(what_is_no_region), {NULL, NULL}};

int main(int argc, char **argv) {
    const suite all = {of_library, of_provider, roles};
    if (argc > 1) return run_suite(&all, argc, argv);
    char *arguments[] = {argv[0], (char[]){""}, (char[]){"ashmem"}, NULL};
    return run_suite(&all, 3, arguments);
}
