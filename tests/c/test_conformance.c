/* Conformance of the C ABI: every test runs over every provider that works here, and over "std" (harness.h). */
#define _GNU_SOURCE /* Linux: memfd_create, seals, mincore */
#include "harness.h"

#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>

static const char variable[] = "SHMP_CONFORMANCE";
static const char variable_size[] = "SHMP_CONFORMANCE_SIZE";

/* ---- What the other process does ------------------------------------------------------------ */

static void greet(const shmp_shmem *shmem) {
    volatile unsigned char *bytes = bytes_of(shmem);
    size_t last = shmp_size(shmem) - 1;
    CHECK_EQUAL(bytes[0], FROM_PARENT);
    CHECK_EQUAL(bytes[last], FROM_PARENT);
    CHECK_EQUAL(shmp_flags(shmem), 0);
    bytes[0] = bytes[last] = FROM_CHILD;
}

static void mark_for_child(const shmp_shmem *shmem) {
    volatile unsigned char *bytes = bytes_of(shmem);
    bytes[0] = bytes[shmp_size(shmem) - 1] = FROM_PARENT;
}

static void check_marked_by_child(const shmp_shmem *shmem) {
    volatile unsigned char *bytes = bytes_of(shmem);
    CHECK_EQUAL(bytes[0], FROM_CHILD);
    CHECK_EQUAL(bytes[shmp_size(shmem) - 1], FROM_CHILD);
}

static void child_attaches(shmp_provider *provider, const char *id, const char *size) {
    shmp_description description = description_of(id, (size_t)strtoull(size, NULL, 10));
    shmp_shmem *shmem = attached_by(provider, &description, 0);
    REQUIRE(shmem);
    greet(shmem);
    closed(shmem);
}

static void child_takes_environment(shmp_provider *provider, const char *name, const char *unused) {
    shmp_error error;
    shmp_shmem *shmem;
    (void)unused;
    if (!SUCCEEDS(shmp_from_env, provider, name, 0, &shmem)) return;
    greet(shmem);
    closed(shmem);
}

static void child_inherits_the_last(shmp_provider *provider, const char *name, const char *unused) {
    const char *id = getenv(name);
    child_takes_environment(provider, name, unused);
    if (id && *id == '/') CHECK_EQUAL(shm_unlink(id), 0);
}

static void child_finds_nothing(shmp_provider *provider, const char *id, const char *size) {
    shmp_description description = description_of(id, (size_t)strtoull(size, NULL, 10));
    CHECK_REFUSED(GONE, shmp_attach, provider, &description, 0u);
}

static const role roles[] = {
    {"attach", child_attaches},
    {"environment", child_takes_environment},
    {"environment-last", child_inherits_the_last},
    {"nothing", child_finds_nothing},
    {NULL, NULL},
};

/* ---- The library --------------------------------------------------------------------------- */

static void test_versions(test_context *context) {
    (void)context;
    CHECK_EQUAL(shmp_abi_version(), SHMP_ABI_VERSION);
    CHECK_TEXT(shmp_version(), SHMP_VERSION);
}

static void test_error_texts(test_context *context) {
    (void)context;
    for (int code = SHMP_EINVAL; code <= SHMP_EOS; code++) {
        check_subject("code %d", code);
        const char *text = shmp_error_text(code);
        REQUIRE(text && *text);
        CHECK_TEXT(shmp_error_text(-code), text);
        for (int other = SHMP_EINVAL; other < code; other++) CHECK(strcmp(shmp_error_text(other), text) != 0);
    }
    static const int unknown[] = {0, SHMP_EOS + 1, -SHMP_EOS - 1, INT_MAX, INT_MIN};
    for (size_t i = 0; i < LENGTH(unknown); i++) CHECK(shmp_error_text(unknown[i]));
}

static void test_available(test_context *context) {
    unsigned count = 0, usable = 0;
    (void)context;
    for (;; count++) {
        const char *name = NULL;
        shmp_error error = poisoned_error();
        int result = shmp_available(count, &name, &error);
        if (result == -SHMP_EINVAL) break;
        check_subject("index %u, %s", count, name ? name : "(null)");
        REQUIRE(name && capabilities_of(name) && count < KNOWN_PROVIDERS);
        if (result < 0)
            check_refusal(result, CODE(SHMP_EUNAVAILABLE) | CODE(SHMP_EOS) | CODE(SHMP_ESERVICE), &error, __FILE__,
                          __LINE__, "shmp_available");
        else
            usable += (unsigned)check_success(result, &error, __FILE__, __LINE__, "shmp_available");
        for (unsigned other = 0; other < count; other++) {
            const char *earlier = NULL;
            shmp_available(other, &earlier, NULL);
            CHECK(earlier && strcmp(earlier, name) != 0);
        }
    }
    CHECK(usable >= 1);
    const char *name = UNTOUCHED;
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_available, count, &name);
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_available, UINT_MAX, &name);
    CHECK(name == UNTOUCHED);
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_available, 0u, NULL);
}

static void test_unknown_providers(test_context *context) {
    static const char *const names[] = {"", "nope", "MEMFD", "memfd ", " std", "memfd,posix"};
    (void)context;
    for (size_t i = 0; i < LENGTH(names); i++) check_open_refused(CODE(SHMP_EINVAL), names[i], NULL);
    check_open_refused(CODE(SHMP_EINVAL), NULL, NULL);
    CHECK_EQUAL(shmp_provider_open("nop", NULL, NULL, NULL), -SHMP_EINVAL);
}

static void test_null_handles(test_context *context) {
    shmp_error error;
    (void)context;
    CHECK(SUCCEEDS(shmp_close, NULL));
    CHECK_EQUAL(shmp_close(NULL, NULL), 0);
    shmp_provider_close(NULL);
}

/* The name "std" takes when SHMEM_PROVIDER says `wanted`. */
static void check_overridden(const char *wanted, const char *expected) {
    check_subject("SHMEM_PROVIDER=%s", wanted);
    setenv("SHMEM_PROVIDER", wanted, 1);
    shmp_provider *provider = opened("std", 0);
    if (provider && expected) CHECK_TEXT(shmp_provider_name(provider), expected);
    shmp_provider_close(provider);
    unsetenv("SHMEM_PROVIDER");
}

static void test_environment_overrides_std(test_context *context) {
    const char *name;
    (void)context;
    for (unsigned i = 0; shmp_available(i, &name, NULL) != -SHMP_EINVAL; i++)
        if (shmp_available(i, &name, NULL) == 0 && capabilities_of(name)->shares && !capabilities_of(name)->wraps)
            check_overridden(name, name);
    check_overridden("", NULL);
    check_overridden("std", NULL);
    static const char *const refused[] = {"nope", "nop", "rc", "served", "MEMFD", "memfd,posix"};
    for (size_t i = 0; i < LENGTH(refused); i++) {
        setenv("SHMEM_PROVIDER", refused[i], 1);
        check_open_refused(CODE(SHMP_EINVAL), "std", NULL);
    }
    shmp_provider *provider = opened("nop", 0);
    if (provider) CHECK_TEXT(shmp_provider_name(provider), "nop");
    shmp_provider_close(provider);
    unsetenv("SHMEM_PROVIDER");
}

static void check_taken_by_std(shmp_provider *std, const char *name) {
    check_subject("a segment of %s", name);
    shmp_provider *provider = opened(name, 0);
    shmp_shmem *segment = provider ? created_by(provider, SMALL, 0) : NULL;
    shmp_provider_close(provider);
    REQUIRE(segment);
    bytes_of(segment)[0] = FROM_PARENT;
    shmp_description description = described(segment);
    shmp_shmem *taken = attached_by(std, &description, 0);
    if (taken) {
        CHECK_TEXT(shmp_backend(taken), name);
        CHECK_EQUAL(bytes_of(taken)[0], FROM_PARENT);
    }
    closed(taken);
    closed(segment);
}

static void test_std_takes_everybodys_ids(test_context *context) {
    const char *name;
    (void)context;
    shmp_provider *std = opened("std", 0);
    REQUIRE(std);
    for (unsigned i = 0; shmp_available(i, &name, NULL) != -SHMP_EINVAL; i++)
        if (capabilities_of(name)->shares && !capabilities_of(name)->wraps && shmp_available(i, &name, NULL) == 0)
            check_taken_by_std(std, name);
    shmp_provider_close(std);
}

/* ---- Opening ------------------------------------------------------------------------------- */

static void test_provider_name(test_context *context) {
    const char *name = shmp_provider_name(context->provider);
    if (context->wraps) {
        size_t length = strcspn(context->label, ")");
        CHECK(strncmp(name, context->label, length) == 0 && (name[length] == '(' || name[length] == ')'));
        return;
    }
    if (!context->is_std) CHECK_TEXT(name, context->label);
    CHECK(!context->is_std || (context->can->shares && strncmp(name, "std", 3) != 0));
}

static void test_options(test_context *context) {
    struct {
        shmp_provider_options options;
        char grown[64];
    } newer;
    shmp_provider_options options = {.struct_size = sizeof options};
    SKIP_UNLESS(!context->wraps, "its own are tested apart");
    shmp_provider *provider = opened(context->label, 0);
    shmp_provider_close(provider);

    memset(&newer, 0, sizeof newer);
    newer.options.struct_size = sizeof newer;
    if (CHECK_EQUAL(shmp_provider_open(context->label, &newer.options, &provider, NULL), 0))
        shmp_provider_close(provider);

    static const size_t too_small[] = {0, 1, sizeof(size_t), sizeof options - 1};
    for (size_t i = 0; i < LENGTH(too_small); i++) {
        options.struct_size = too_small[i];
        check_open_refused(CODE(SHMP_EINVAL), context->label, &options);
    }
}

static void test_options_of_others(test_context *context) {
    const size_t size = sizeof(shmp_provider_options);
    SKIP_UNLESS(!context->wraps, "its own are tested apart");
    const shmp_provider_options refused[] = {
        {.struct_size = size, .inner = context->provider},
        {.struct_size = size, .address = "@nobody"},
        {.struct_size = size, .timeout_ms = 1},
        {.struct_size = size, .flags = 1u << 16},
        {.struct_size = size, .flags = 1u << 31},
    };
    for (size_t i = 0; i < LENGTH(refused); i++) check_open_refused(CODE(SHMP_EINVAL), context->label, &refused[i]);
    shmp_provider_options fd_ids = {.struct_size = size, .flags = SHMP_FD_IDS};
    if (context->is_std || !context->can->has_numbers) check_open_refused(CODE(SHMP_EINVAL), context->label, &fd_ids);
}

static void test_limits(test_context *context) {
    shmp_error error;
    shmp_limits limits = {.struct_size = sizeof limits - 1, .bytes = 7};
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_provider_limits, context->provider, &limits);
    CHECK_EQUAL(limits.bytes, 7);
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_provider_limits, context->provider, NULL);
    limits.struct_size = sizeof limits;
    if (!SUCCEEDS(shmp_provider_limits, context->provider, &limits)) return;
    CHECK_EQUAL(limits.struct_size, sizeof limits);
    CHECK(limits.bytes >= SMALL && limits.bytes <= PTRDIFF_MAX);
    CHECK(limits.segments > 0);
    CHECK(*limits.advice && memchr(limits.advice, 0, sizeof limits.advice));
}

static void test_fork_hooks(test_context *context) {
    shmp_error error;
    CHECK(SUCCEEDS(shmp_pre_fork, context->provider));
    CHECK(SUCCEEDS(shmp_post_fork, context->provider, 0));
    CHECK(SUCCEEDS(shmp_pre_fork, context->provider));
    CHECK(SUCCEEDS(shmp_post_fork, context->provider, 1));
}

/* ---- Creating ------------------------------------------------------------------------------ */

static void test_create(test_context *context) {
    shmp_shmem *shmem = created(context, SMALL, 0);
    REQUIRE(shmem);
    CHECK_EQUAL(shmp_flags(shmem), SHMP_OWNER);
    CHECK_TEXT(shmp_backend(shmem), context->can->name);
    size_t alignment = context->can->shares ? (size_t)sysconf(_SC_PAGESIZE) : _Alignof(max_align_t);
    CHECK_EQUAL((uintptr_t)shmp_data(shmem) % alignment, 0);
    closed(shmem);
}

static void check_size(const test_context *context, size_t size) {
    check_subject("%zu bytes", size);
    shmp_shmem *shmem = created(context, size, 0);
    REQUIRE(shmem);
    CHECK_EQUAL(shmp_size(shmem), size);
    CHECK(all_bytes_are(shmem, 0));
    memset(shmp_data(shmem), 0xff, size);
    shmp_shmem *other = twin(context, shmem, 0);
    if (other) {
        CHECK_EQUAL(shmp_size(other), size);
        CHECK(all_bytes_are(other, context->can->shares ? 0xff : 0));
    }
    closed(other);
    closed(shmem);
}

static void test_sizes_are_exact_and_zeroed(test_context *context) {
    static const size_t sizes[] = {1, 2, 4095, 4096, 4097, 65536, 1048577, 4095, 1};
    for (size_t i = 0; i < LENGTH(sizes); i++) check_size(context, sizes[i]);
}

static int lacks_memory(int result, const shmp_error *error) {
    return result == -SHMP_ENOMEM || (result == -SHMP_EOS && (error->os_error == ENOSPC || error->os_error == ENOMEM));
}

static void test_sparse_beyond_2_gib(test_context *context) {
    const uint64_t size = (UINT64_C(1) << 31) + 1;
    SKIP_UNLESS(size <= PTRDIFF_MAX, "needs 64 bits");
    shmp_error error = poisoned_error();
    shmp_shmem *shmem;
    int result = shmp_create(context->provider, (size_t)size, 0, &shmem, &error);
    SKIP_UNLESS(!lacks_memory(result, &error), "2 GiB do not fit: give the machine more memory or a larger /dev/shm");
    if (!check_success(result, &error, __FILE__, __LINE__, "shmp_create")) return;
    CHECK(shmp_size(shmem) == size);
    bytes_of(shmem)[size - 1] = FROM_PARENT;
    CHECK_EQUAL(bytes_of(shmem)[size / 2], 0);
    shmp_shmem *other = twin(context, shmem, 0);
    if (other) CHECK_EQUAL(bytes_of(other)[size - 1], context->can->shares ? FROM_PARENT : 0);
    closed(other);
    closed(shmem);
}

/* More than any machine has: an error, or a sparse segment, but no crash. */
static void test_monstrous_sizes(test_context *context) {
    static const uint64_t sizes[] = {UINT64_C(1) << 40,   UINT64_C(1) << 46, UINT64_C(1) << 47,    UINT64_C(1) << 62,
                                     PTRDIFF_MAX - 4096u, PTRDIFF_MAX - 1u,  (uint64_t)PTRDIFF_MAX};
    for (size_t i = 0; i < LENGTH(sizes); i++) {
        if (sizes[i] > PTRDIFF_MAX) continue;
        check_subject("%#llx bytes", (unsigned long long)sizes[i]);
        shmp_error error = poisoned_error();
        shmp_shmem *shmem = UNTOUCHED;
        int result = shmp_create(context->provider, (size_t)sizes[i], 0, &shmem, &error);
        if (result == 0) {
            bytes_of(shmem)[sizes[i] - 1] = 1;
            closed(shmem);
            continue;
        }
        const unsigned by_service = context->can->wraps ? CODE(SHMP_ESERVICE) : 0u;
        check_refusal(result, CODE(SHMP_EOS) | CODE(SHMP_ENOMEM) | CODE(SHMP_EOVERFLOW) | by_service, &error, __FILE__,
                      __LINE__, "shmp_create");
        CHECK(shmem == UNTOUCHED);
    }
}

static void test_impossible_sizes(test_context *context) {
    static const struct {
        size_t size;
        unsigned codes;
    } rows[] = {
        {0, CODE(SHMP_EINVAL)},
        {(size_t)PTRDIFF_MAX + 1, CODE(SHMP_EOVERFLOW)},
        {SIZE_MAX - 4095, CODE(SHMP_EOVERFLOW)},
        {SIZE_MAX, CODE(SHMP_EOVERFLOW)},
    };
    shmp_shmem *shmem = created(context, SMALL, 0);
    REQUIRE(shmem);
    shmp_description description = described(shmem);
    for (size_t i = 0; i < LENGTH(rows); i++) {
        check_subject("%zu bytes", rows[i].size);
        CHECK_REFUSED(rows[i].codes, shmp_create, context->provider, rows[i].size, 0u);
        description.size = rows[i].size;
        CHECK_REFUSED(rows[i].codes, shmp_attach, context->provider, &description, 0u);
    }
    closed(shmem);
}

/* Each flag is legal by the call, and possible by the mechanism. */
static void test_unknown_flags(test_context *context) {
    const capabilities *can = context->can;
    const unsigned of_create = SHMP_RESERVE | SHMP_INHERIT | SHMP_UNMAPPED | SHMP_LINGER | SHMP_MODE(0777) | PAGE_SIZES,
                   of_naming = of_create | SHMP_KEEP | SHMP_EXIST_OK,
                   of_attach = SHMP_READ_ONLY | SHMP_INHERIT | SHMP_WHOLE | SHMP_ANY_USER;
    const unsigned possible = (can->reserves ? SHMP_RESERVE : 0u) |
                              (can->has_modes ? SHMP_LINGER | SHMP_MODE(0777) : 0u) |
                              (can->is_file ? SHMP_INHERIT : 0u) | (can->has_numbers ? SHMP_UNMAPPED : 0u),
                   possible_names = possible | (can->has_names ? SHMP_KEEP | SHMP_EXIST_OK : 0u);
    shmp_shmem *shmem = created(context, SMALL, 0);
    REQUIRE(shmem);
    shmp_description description = described(shmem);
    for (unsigned bit = 1; bit; bit <<= 1) {
        unsigned code = CODE(bit & of_create ? SHMP_EUNSUPPORTED : SHMP_EINVAL),
                 name_code = CODE(bit & of_naming ? SHMP_EUNSUPPORTED : SHMP_EINVAL);
        check_subject("flag %#x", bit);
        if (!(bit & of_create & possible)) CHECK_REFUSED(code, shmp_create, context->provider, (size_t)SMALL, bit);
        if (!can->has_names || !(bit & of_naming & possible_names))
            CHECK_REFUSED(name_code, shmp_create_named, context->provider, own_name(), (size_t)SMALL, bit);
        if (!(bit & of_attach)) CHECK_REFUSED(CODE(SHMP_EINVAL), shmp_attach, context->provider, &description, bit);
        if (!(bit & of_attach))
            CHECK_REFUSED(CODE(SHMP_EINVAL), shmp_attach_fd, context->provider, 0, &description, bit);
        if (!(bit & (SHMP_READ_ONLY | SHMP_INHERIT))) CHECK_REFUSED(CODE(SHMP_EINVAL), shmp_clone, shmem, bit);
    }
    closed(shmem);
}

static void test_null_arguments(test_context *context) {
    shmp_shmem *shmem = created(context, SMALL, 0);
    REQUIRE(shmem);
    shmp_description description = described(shmem);
    CHECK_REFUSED(CODE(SHMP_EINVAL), shmp_create_named, context->provider, NULL, (size_t)SMALL, 0u);
    CHECK_REFUSED(CODE(SHMP_EINVAL), shmp_attach, context->provider, NULL, 0u);
    CHECK_REFUSED(CODE(SHMP_EINVAL), shmp_from_env, context->provider, NULL, 0u);
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_create, context->provider, (size_t)SMALL, 0u, NULL);
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_create_named, context->provider, own_name(), (size_t)SMALL, 0u, NULL);
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_attach, context->provider, &description, 0u, NULL);
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_to_env, shmem, NULL);
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_describe, shmem, NULL);
    closed(shmem);
}

/* mincore does not count a file's pages before their first use, st_blocks does. */
static size_t allocated_bytes(const shmp_shmem *shmem, size_t pages) {
    struct stat file;
    unsigned char resident[64];
    size_t count = 0;
    if (shmp_fileno(shmem) >= 0) return fstat(shmp_fileno(shmem), &file) == 0 ? (size_t)file.st_blocks * 512 : 0;
    if (pages > sizeof resident || mincore(shmp_data(shmem), shmp_size(shmem), (void *)resident) < 0) return 0;
    for (size_t i = 0; i < pages; i++) count += resident[i] & 1;
    return count * (size_t)sysconf(_SC_PAGESIZE);
}

static void test_reserve(test_context *context) {
    enum { PAGES = 16 };
    static _Alignas(4096) char page;
    size_t size = PAGES * (size_t)sysconf(_SC_PAGESIZE);
    /* qemu-user follows no advice to the kernel, which is how what is no file is reserved, and refuses none */
    int emulated = madvise(&page, 1, -1) == 0;
    if (!context->can->reserves || (emulated && !context->can->is_file)) {
        CHECK_REFUSED(CODE(SHMP_EUNSUPPORTED), shmp_create, context->provider, size, (unsigned)SHMP_RESERVE);
        return;
    }
    shmp_shmem *shmem = created(context, size, SHMP_RESERVE);
    REQUIRE(shmem);
    CHECK(allocated_bytes(shmem, PAGES) >= size);
    CHECK(all_bytes_are(shmem, 0));
    CHECK_EQUAL(shmp_size(shmem), size);
    CHECK_EQUAL(shmp_flags(shmem), SHMP_OWNER);
    closed(shmem);
    if (UINT64_C(1) << 46 <= PTRDIFF_MAX)
        CHECK_REFUSED(CODE(SHMP_EOS), shmp_create, context->provider, (size_t)(UINT64_C(1) << 46),
                      (unsigned)SHMP_RESERVE);
}

/* ---- Sharing ------------------------------------------------------------------------------- */

static void test_handles_share_memory(test_context *context) {
    shmp_shmem *owner = created(context, SMALL, 0);
    REQUIRE(owner);
    shmp_shmem *other = twin(context, owner, 0);
    REQUIRE(other);
    CHECK_EQUAL(shmp_flags(other), 0);
    CHECK_TEXT(shmp_backend(other), context->can->name);
    CHECK(shmp_data(other) != shmp_data(owner));
    bytes_of(owner)[0] = FROM_PARENT;
    bytes_of(other)[SMALL - 1] = FROM_CHILD;
    CHECK_EQUAL(bytes_of(other)[0], context->can->shares ? FROM_PARENT : 0);
    CHECK_EQUAL(bytes_of(owner)[SMALL - 1], context->can->shares ? FROM_CHILD : 0);
    closed(other);
    closed(owner);
}

static void test_attach_to_a_part(test_context *context) {
    shmp_shmem *owner = created(context, 2 * SMALL, 0);
    REQUIRE(owner);
    memset(shmp_data(owner), FROM_PARENT, 2 * SMALL);
    shmp_description description = described(owner);
    description.size = 1;
    shmp_shmem *part = attached(context, &description, 0);
    REQUIRE(part);
    CHECK_EQUAL(shmp_size(part), 1);
    CHECK_EQUAL(described(part).size, 1);
    CHECK_EQUAL(bytes_of(part)[0], context->can->shares ? FROM_PARENT : 0);
    closed(part);
    closed(owner);
}

static void test_attach_to_the_whole(test_context *context) {
    SKIP_UNLESS(context->can->shares, "attaching is a fresh segment of any size");
    static const size_t sizes[] = {0, 1, SIZE_MAX};
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    shmp_shmem *owner = created(context, SMALL + 1, 0);
    REQUIRE(owner);
    bytes_of(owner)[SMALL] = FROM_PARENT;
    shmp_description description = described(owner);
    for (size_t i = 0; i < LENGTH(sizes); i++) {
        check_subject("description of %zu bytes", sizes[i]);
        description.size = sizes[i];
        shmp_shmem *whole = attached(context, &description, SHMP_WHOLE | SHMP_READ_ONLY);
        if (!whole) continue;
        CHECK(shmp_size(whole) >= SMALL + 1 && shmp_size(whole) < SMALL + 1 + page);
        CHECK_EQUAL(described(whole).size, shmp_size(whole));
        CHECK_EQUAL(shmp_flags(whole), SHMP_READ_ONLY);
        CHECK_EQUAL(bytes_of(whole)[SMALL], FROM_PARENT);
        closed(whole);
    }
    description = description_of(context->can->gone_id, 0);
    CHECK_REFUSED(GONE, shmp_attach, context->provider, &description, (unsigned)SHMP_WHOLE);
    description = description_of("-1", 0);
    CHECK_REFUSED(GARBAGE, shmp_attach, context->provider, &description, (unsigned)SHMP_WHOLE);
    closed(owner);
}

static void test_description_larger_than_segment(test_context *context) {
    SKIP_UNLESS(context->can->shares, "attaching is a fresh segment of any size");
    static const size_t sizes[] = {SMALL + 1, 2 * SMALL, (size_t)1 << 30, PTRDIFF_MAX - 1, PTRDIFF_MAX};
    shmp_shmem *owner = created(context, SMALL, 0);
    REQUIRE(owner);
    shmp_description description = described(owner);
    for (size_t i = 0; i < LENGTH(sizes); i++) {
        description.size = sizes[i];
        check_subject("%zu bytes", sizes[i]);
        CHECK_REFUSED(CODE(SHMP_ESIZE), shmp_attach, context->provider, &description, 0u);
        CHECK_REFUSED(CODE(SHMP_ESIZE), shmp_attach, context->provider, &description, (unsigned)SHMP_READ_ONLY);
    }
    closed(owner);
}

static void test_descriptions(test_context *context) {
    shmp_shmem *owner = created(context, SMALL + 1, 0);
    REQUIRE(owner);
    shmp_description first = described(owner), again = described(owner);
    CHECK_EQUAL(first.size, SMALL + 1);
    REQUIRE(memchr(first.id, 0, sizeof first.id));
    CHECK_TEXT(again.id, first.id);
    CHECK_EQUAL(*first.id != 0, context->can->shares);
    for (const char *at = first.id; *at; at++) CHECK(*at > ' ' && *at <= '~');
    shmp_shmem *second_owner = created(context, SMALL, 0);
    if (second_owner && context->can->shares) CHECK(strcmp(described(second_owner).id, first.id) != 0);
    closed(second_owner);
    closed(owner);
}

static void test_bytes_after_the_end_of_an_id(test_context *context) {
    shmp_shmem *owner = created(context, SMALL, 0);
    REQUIRE(owner);
    shmp_description description = described(owner);
    size_t used = strlen(description.id) + 1;
    memset(description.id + used, 0xff, sizeof description.id - used);
    shmp_shmem *other = attached(context, &description, 0);
    closed(other);
    closed(owner);
}

static void write_first_byte(void *shmem) {
    const struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    signal(SIGSEGV, SIG_DFL);
    signal(SIGBUS, SIG_DFL);
    bytes_of(shmem)[0] = 1;
}

static void test_read_only(test_context *context) {
    shmp_shmem *owner = created(context, SMALL, 0);
    REQUIRE(owner);
    bytes_of(owner)[0] = FROM_PARENT;
    shmp_shmem *reader = twin(context, owner, SHMP_READ_ONLY);
    REQUIRE(reader);
    CHECK_EQUAL(shmp_flags(reader), SHMP_READ_ONLY);
    CHECK_EQUAL(bytes_of(reader)[0], context->can->shares ? FROM_PARENT : 0);
    shmp_shmem *second = twin(context, reader, SHMP_READ_ONLY);
    if (second) CHECK_EQUAL(bytes_of(second)[0], context->can->shares ? FROM_PARENT : 0);
    closed(second);
    closed(reader);
    closed(owner);
}

static void test_writing_read_only_memory_kills(test_context *context) {
    SKIP_UNLESS(context->can->shares, "heap memory cannot be protected");
    shmp_shmem *owner = created(context, SMALL, 0);
    REQUIRE(owner);
    shmp_shmem *reader = twin(context, owner, SHMP_READ_ONLY);
    REQUIRE(reader);
    int status = status_in_child(write_first_byte, reader);
#if defined(__APPLE__)
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
#else
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
#endif
    CHECK_EQUAL(bytes_of(owner)[0], 0);
    closed(reader);
    closed(owner);
}

/* ---- Closing ------------------------------------------------------------------------------- */

static void test_provider_closed_before_segments(test_context *context) {
    shmp_provider *provider = opened(context->label, 0);
    REQUIRE(provider);
    shmp_shmem *owner = created_by(provider, SMALL, 0);
    REQUIRE(owner);
    shmp_description description = described(owner);
    shmp_shmem *other = attached_by(provider, &description, 0);
    shmp_provider_close(provider);
    REQUIRE(other);
    bytes_of(owner)[0] = FROM_PARENT;
    CHECK_EQUAL(bytes_of(other)[0], context->can->shares ? FROM_PARENT : 0);
    CHECK_TEXT(described(owner).id, description.id);
    closed(owner);
    bytes_of(other)[1] = FROM_CHILD;
    closed(other);
}

static void check_closing_order(const test_context *context, const int order[3]) {
    shmp_shmem *handles[3] = {created(context, SMALL, 0), NULL, NULL};
    check_subject("closing %d %d %d", order[0], order[1], order[2]);
    REQUIRE(handles[0]);
    for (int i = 1; i < 3; i++) handles[i] = twin(context, handles[i - 1], 0);
    REQUIRE(handles[1] && handles[2]);
    for (int i = 0; i < 3; i++) {
        closed(handles[order[i]]);
        handles[order[i]] = NULL;
        unsigned char value = (unsigned char)(i + 1);
        for (int at = 0; at < 3; at++)
            if (handles[at]) bytes_of(handles[at])[SMALL - 1] = value;
        for (int at = 0; at < 3; at++)
            if (handles[at]) CHECK_EQUAL(bytes_of(handles[at])[SMALL - 1], value);
    }
}

static void test_closing_in_any_order(test_context *context) {
    static const int orders[][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    for (size_t i = 0; i < LENGTH(orders); i++) check_closing_order(context, orders[i]);
}

static void test_gone_after_the_last_close(test_context *context) {
    SKIP_UNLESS(context->can->shares, "attaching never finds a segment");
    char size[24];
    shmp_shmem *owner = created(context, SMALL, 0);
    REQUIRE(owner);
    shmp_shmem *other = twin(context, owner, 0);
    REQUIRE(other);
    shmp_description of_owner = described(owner), of_other = described(other);
    closed(owner);
    closed(other);
    CHECK_REFUSED(GONE, shmp_attach, context->provider, &of_owner, 0u);
    CHECK_REFUSED(GONE, shmp_attach, context->provider, &of_other, (unsigned)SHMP_READ_ONLY);
    snprintf(size, sizeof size, "%zu", of_owner.size);
    check_spawned("nothing", context->label, of_owner.id, size);
}

typedef struct deathbed {
    const test_context *context;
    int to_parent;
    const char *name; /* NULL: shmp_create */
    int lived_in;     /* the descriptor whose end a forked grandchild waits for; -1: none is forked */
} deathbed;

static void outlive_parent(const deathbed *last) {
    char byte;
    close(last->to_parent);
    (void)!read(last->lived_in, &byte, 1);
    _exit(0);
}

static void create_and_die(void *argument) {
    const deathbed *last = argument;
    shmp_shmem *shmem = last->name ? created_named(last->context, last->name) : created(last->context, SMALL, 0);
    REQUIRE(shmem);
    shmp_description description = described(shmem);
    if (last->lived_in >= 0 && fork() == 0) outlive_parent(last);
    if (write(last->to_parent, &description, sizeof description) == (ssize_t)sizeof description)
        kill(getpid(), SIGKILL);
}

/* What a process that was killed had created; its id is empty when that failed. */
static shmp_description killed_owner(const test_context *context, const char *name, int lived_in) {
    int ends[2];
    shmp_description description = {.size = 0};
    if (!CHECK(pipe(ends) == 0)) return description;
    deathbed last = {context, ends[1], name, lived_in};
    int status = status_in_child(create_and_die, &last);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    close(ends[1]);
    CHECK_EQUAL(read(ends[0], &description, sizeof description), sizeof description);
    close(ends[0]);
    return description;
}

static int is_there(const test_context *context, const shmp_description *description) {
    shmp_shmem *shmem = NULL;
    int result = shmp_attach(context->provider, description, SHMP_READ_ONLY, &shmem, NULL);
    closed(shmem);
    CHECK(result == 0 || result == -SHMP_ENOTFOUND);
    return result == 0;
}

static void test_owner_killed(test_context *context) {
    SKIP_UNLESS(context->can->shares, "private memory");
    shmp_description description = killed_owner(context, NULL, -1);
    REQUIRE(*description.id);
    if (context->can->has_names) shm_unlink(description.id); /* or somebody reaped it already */
    CHECK_REFUSED(GONE, shmp_attach, context->provider, &description, 0u);
}

/* ---- Other processes ----------------------------------------------------------------------- */

static void test_another_process_by_description(test_context *context) {
    SKIP_UNLESS(context->can->shares, "private memory");
    char size[24];
    shmp_shmem *owner = created(context, SMALL + 1, 0);
    REQUIRE(owner);
    mark_for_child(owner);
    shmp_description description = described(owner);
    snprintf(size, sizeof size, "%zu", description.size);
    check_spawned("attach", context->label, description.id, size);
    check_marked_by_child(owner);
    mark_for_child(owner);
    check_spawned("attach", "std", description.id, size);
    check_marked_by_child(owner);
    closed(owner);
}

static void test_another_process_by_environment(test_context *context) {
    SKIP_UNLESS(context->can->shares, "private memory");
    shmp_error error;
    shmp_shmem *owner = created(context, SMALL + 1, 0);
    REQUIRE(owner);
    mark_for_child(owner);
    CHECK(SUCCEEDS(shmp_to_env, owner, variable));
    check_spawned("environment", context->label, variable, "");
    check_marked_by_child(owner);
    unsetenv(variable);
    unsetenv(variable_size);
    closed(owner);
}

typedef struct fork_family {
    const test_context *context;
    shmp_shmem *owner, *other;
} fork_family;

static void use_inherited_handles(void *argument) {
    const fork_family *family = argument;
    CHECK_EQUAL(shmp_flags(family->owner), 0);
    CHECK_EQUAL(bytes_of(family->owner)[0], FROM_PARENT);
    bytes_of(family->owner)[1] = FROM_CHILD;
    CHECK_EQUAL(described(family->owner).size, SMALL);
    shmp_shmem *own = twin(family->context, family->owner, 0);
    if (own && family->context->can->shares) CHECK_EQUAL(bytes_of(own)[1], FROM_CHILD);
    closed(own);
    shmp_shmem *fresh = created(family->context, SMALL, 0);
    if (fresh) CHECK_EQUAL(shmp_flags(fresh), SHMP_OWNER);
    closed(fresh);
    closed(family->owner);
    closed(family->other);
    shmp_provider_close(family->context->provider);
}

static void test_fork(test_context *context) {
    fork_family family = {context, created(context, SMALL, 0), NULL};
    REQUIRE(family.owner);
    family.other = twin(context, family.owner, 0);
    REQUIRE(family.other);
    shmp_description description = described(family.owner);
    bytes_of(family.owner)[0] = FROM_PARENT;
    CHECK_IN_CHILD(use_inherited_handles, &family);
    CHECK_EQUAL(shmp_flags(family.owner), SHMP_OWNER);
    CHECK_EQUAL(bytes_of(family.owner)[1], context->can->shares ? FROM_CHILD : 0);
    shmp_shmem *late = attached(context, &description, 0);
    if (late) CHECK_EQUAL(bytes_of(late)[0], context->can->shares ? FROM_PARENT : 0);
    closed(late);
    closed(family.other);
    closed(family.owner);
}

/* ---- Garbage ------------------------------------------------------------------------------- */

static const char *const garbage_ids[] = {
    "12345678901234567890",
    "/aaaaaaaaaaaaaaaaaaa",
    "1.1.aaaaaaaaaaaaaaaa",
    "\xff\xfe",
    "/caf\xc3\xa9",
    "\x01",
    "/a\tb",
    "/a\n",
    "/a b",
    "-1",
    "+1",
    "1 ",
    " 1",
    "007",
    "0x10",
    "1e3",
    "99999999999",
    "2147483648",
    "4294967296",
    "18446744073709551616",
    "/../etc/passwd",
    "/",
    "//",
    "//a",
    "/a/",
    "/.",
    "/..",
    ".",
    "..",
    "...",
    "a",
    "1:",
    ":1",
    "1:2:3",
    "01:2",
    "1:-2",
    "1:2147483648",
    "2147483648:1",
    "libafl_0123456789ab",
    "1.2",
    "1.2.",
    "1.2.ABC",
    "1.2.3.4",
    "1..abcd",
    ".1.abcd",
    "-1.2.abcd",
    "1.-2.abcd",
    "1.2.-abcd",
    "1.2.1z141z4", /* 2 ** 32 in base 36, as the next two are 2 ** 31 */
    "zik0zk.1.abcd",
    "1.zik0zk.abcd",
    "1.1.0x10",
    "01.1.abcd",
    "99999999999.1.abcd",
    "1.99999999999.abcd",
    "1,2,abcd",
};

static void check_garbage(const test_context *context, const char *id, unsigned codes) {
    shmp_description description = description_of(id, 1);
    check_subject("id \"%s\"", id);
    CHECK_REFUSED(codes, shmp_attach, context->provider, &description, 0u);
    CHECK_REFUSED(codes, shmp_attach, context->provider, &description, (unsigned)SHMP_READ_ONLY);
}

/* Whatever process 1 has there: it may be closed to us, and be root's. */
static void check_well_formed(const test_context *context, const char *id) {
    int is_memfd = context->is_std || strcmp(context->can->name, "memfd") == 0;
    check_garbage(context, id, is_memfd ? GONE | CODE(SHMP_EOS) : GARBAGE);
}

/* There need be no service that "std" could ask. */
static unsigned codes_of_gone(const test_context *context, const capabilities *can) {
    if (!context->is_std && can != context->can) return GARBAGE;
    return context->is_std && can->wraps && !context->can->wraps ? CODE(SHMP_ESERVICE) : GONE;
}

static void test_garbage_ids(test_context *context) {
    for (size_t i = 0; i < LENGTH(garbage_ids); i++) check_garbage(context, garbage_ids[i], GARBAGE);
    check_well_formed(context, "1.2.3");
    check_well_formed(context, "1.2.abc");
    check_well_formed(context, "1.1.zzzz");
    if (context->is_std || context->can->shares) check_garbage(context, "", GARBAGE);
}

static void test_gone_ids(test_context *context) {
    for (int i = 0; i < KNOWN_PROVIDERS; i++) {
        const capabilities *other = &known_providers[i];
        if (!other->gone_id) continue;
        unsigned codes = codes_of_gone(context, other);
        /* A number is a descriptor to those who take descriptors. */
        if (!context->is_std && context->can->has_numbers && strcmp(other->name, "sysv") == 0) codes |= GONE;
        check_garbage(context, other->gone_id, codes);
    }
}

static void check_mutation(const test_context *context, const shmp_description *description) {
    shmp_shmem *shmem = UNTOUCHED;
    shmp_error error = poisoned_error();
    int result = shmp_attach(context->provider, description, SHMP_READ_ONLY, &shmem, &error);
    if (result == 0) {
        closed(shmem);
        return;
    }
    check_refusal(result, GARBAGE | GONE | CODE(SHMP_ESIZE) | CODE(SHMP_EOS), &error, __FILE__, __LINE__,
                  "shmp_attach");
    CHECK(shmem == UNTOUCHED);
}

static void test_mutated_ids(test_context *context) {
    shmp_shmem *owner = created(context, SMALL, 0);
    REQUIRE(owner);
    shmp_description description = described(owner);
    for (size_t at = 0; at < sizeof description.id; at++) {
        char original = description.id[at];
        for (int value = 0; value < 256; value++) {
            description.id[at] = (char)value;
            check_subject("byte %zu of \"%s\" is %#x", at, described(owner).id, (unsigned)value);
            check_mutation(context, &description);
        }
        description.id[at] = original;
    }
    closed(owner);
}

/* ---- Descriptors and names that are no shared memory --------------------------------------- */

enum { SOCKET, PIPE_READ, PIPE_WRITE, NAMED_PIPE, DIRECTORY, NULL_DEVICE, DISK_FILE, FOREIGN };
static const char *const foreign_names[FOREIGN] = {"socket",    "pipe (read)", "pipe (write)", "named pipe",
                                                   "directory", "/dev/null",   "disk file"};

/* A file on a disk; -1: every place for one is in memory. */
static int open_disk_file(void) {
    static const char *const templates[] = {"/var/tmp/shmp_XXXXXX", "/tmp/shmp_XXXXXX", "./shmp_XXXXXX"};
    for (size_t i = 0; i < LENGTH(templates); i++) {
        char path[32];
        strcpy(path, templates[i]);
        int fd = mkstemp(path);
        if (fd < 0) continue;
        unlink(path);
#if defined(F_GET_SEALS)
        int is_in_memory = fcntl(fd, F_GET_SEALS) >= 0;
#else
        int is_in_memory = 0;
#endif
        if (!is_in_memory && ftruncate(fd, SMALL) == 0) return fd;
        close(fd);
    }
    return -1;
}

/* Without a writer: to open it once more waits for one. */
static int open_named_pipe(void) {
    char path[48];
    snprintf(path, sizeof path, "/tmp/shmp_conf_%ld", (long)getpid());
    if (mkfifo(path, 0600) < 0) return -1;
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    unlink(path);
    return fd;
}

static void open_foreign(int fds[FOREIGN]) {
    int ends[2];
    for (int i = 0; i < FOREIGN; i++) fds[i] = -1;
    fds[SOCKET] = socket(AF_UNIX, SOCK_STREAM, 0);
    if (pipe(ends) == 0) fds[PIPE_READ] = ends[0], fds[PIPE_WRITE] = ends[1];
    fds[NAMED_PIPE] = open_named_pipe();
    fds[DIRECTORY] = open("/", O_RDONLY);
    fds[NULL_DEVICE] = open("/dev/null", O_RDWR);
    fds[DISK_FILE] = open_disk_file();
    for (int i = 0; i < DISK_FILE; i++) CHECK(fds[i] >= 0);
}

static void close_foreign(const int fds[FOREIGN]) {
    for (int i = 0; i < FOREIGN; i++)
        if (fds[i] >= 0) close(fds[i]);
}

static void test_foreign_descriptors(test_context *context) {
    SKIP_UNLESS(context->can->has_numbers && !context->is_std, "a number is no descriptor here");
    int fds[FOREIGN];
    char id[24];
    open_foreign(fds);
    for (int i = 0; i < FOREIGN; i++) {
        if (fds[i] < 0) continue;
        snprintf(id, sizeof id, "%d", fds[i]);
        shmp_description description = description_of(id, 1);
        check_subject("%s", foreign_names[i]);
        CHECK_REFUSED(GARBAGE, shmp_attach, context->provider, &description, 0u);
        CHECK_REFUSED(GARBAGE, shmp_attach, context->provider, &description, (unsigned)SHMP_READ_ONLY);
    }
    close_foreign(fds);
}

#if defined(__linux__)

typedef struct foreign_set {
    const test_context *context;
    pid_t pid;
    int fds[FOREIGN];
} foreign_set;

static void attach_to_foreigners(void *argument) {
    const foreign_set *foreign = argument;
    for (int i = 0; i < FOREIGN; i++) {
        if (foreign->fds[i] < 0) continue;
        shmp_description description = memfd_description(foreign->pid, foreign->fds[i], 1);
        check_subject("%s, id \"%s\"", foreign_names[i], description.id);
        CHECK_REFUSED(GARBAGE, shmp_attach, foreign->context->provider, &description, 0u);
        CHECK_REFUSED(GARBAGE, shmp_attach, foreign->context->provider, &description, (unsigned)SHMP_READ_ONLY);
    }
}

static void test_foreign_descriptors_by_memfd_id(test_context *context) {
    SKIP_UNLESS(strcmp(context->can->name, "memfd") == 0, "has no such ids");
    foreign_set foreign = {.context = context, .pid = getpid()};
    open_foreign(foreign.fds);
    if (CHECK_IN_CHILD(attach_to_foreigners, &foreign)) attach_to_foreigners(&foreign);
    close_foreign(foreign.fds);
}

static void check_memfd(const test_context *context, int seals, int accepted) {
    int fd = memfd_create("conformance", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    REQUIRE(fd >= 0);
    CHECK_EQUAL(ftruncate(fd, SMALL), 0);
    CHECK_EQUAL(fcntl(fd, F_ADD_SEALS, seals), 0);
    shmp_description description = memfd_description(getpid(), fd, SMALL);
    check_subject("seals %#x, id \"%s\"", (unsigned)seals, description.id);
    if (accepted)
        closed(attached(context, &description, 0));
    else
        CHECK_REFUSED(GARBAGE, shmp_attach, context->provider, &description, 0u);
    close(fd);
}

static void test_memfd_must_be_sealed(test_context *context) {
    SKIP_UNLESS(strcmp(context->can->name, "memfd") == 0, "no memfd");
    check_memfd(context, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL, 1);
    check_memfd(context, F_SEAL_SHRINK | F_SEAL_GROW, 1);
    check_memfd(context, 0, 0);
    check_memfd(context, F_SEAL_SHRINK, 0);
    check_memfd(context, F_SEAL_GROW, 0);
}

static void test_memfd_inode_must_match(test_context *context) {
    SKIP_UNLESS(strcmp(context->can->name, "memfd") == 0, "no memfd");
    shmp_shmem *owner = created(context, SMALL, 0);
    REQUIRE(owner);
    shmp_description valid = described(owner), changed = valid;
    size_t last = strlen(valid.id) - 1, tail = (size_t)(strrchr(valid.id, '.') - valid.id) + 1;
    check_subject("\"%s\" with another tail", valid.id);
    size_t high = last > tail ? tail + 1 : tail; /* far off: another process can have the next inode */
    changed.id[high] = valid.id[high] == '1' ? '2' : '1';
    CHECK_REFUSED(GONE, shmp_attach, context->provider, &changed, 0u);
    changed = valid;
    changed.id[last] = 0;
    CHECK_REFUSED(last > tail ? GONE : GARBAGE, shmp_attach, context->provider, &changed, 0u);
    changed.id[tail] = 0;
    CHECK_REFUSED(GARBAGE, shmp_attach, context->provider, &changed, 0u);
    closed(owner);
}

static void test_memfd_size_is_sealed(test_context *context) {
    SKIP_UNLESS(strcmp(context->can->name, "memfd") == 0, "no memfd");
    shmp_shmem *owner = created(context, SMALL, 0);
    REQUIRE(owner);
    CHECK(ftruncate(shmp_fileno(owner), 1) < 0);
    CHECK(ftruncate(shmp_fileno(owner), 2 * SMALL) < 0);
    closed(owner);
}

static void attach_to_names(void *argument) {
    const test_context *context = ((void **)argument)[0];
    const char *prefix = ((void **)argument)[1];
    static const char *const suffixes[] = {"d", "f", "l"};
    for (size_t i = 0; i < LENGTH(suffixes); i++) {
        char id[20];
        snprintf(id, sizeof id, "%.17s%s", prefix, suffixes[i]);
        check_garbage(context, id, GARBAGE);
    }
}

static void test_foreign_names(test_context *context) {
    SKIP_UNLESS(context->can->has_names || context->is_std, "has no names");
    SKIP_UNLESS(access("/dev/shm", W_OK) == 0, "/dev/shm is not writable");
    char prefix[20], paths[3][32];
    snprintf(prefix, sizeof prefix, "/conf%ld", (long)getpid());
    snprintf(paths[0], sizeof paths[0], "/dev/shm%sd", prefix);
    snprintf(paths[1], sizeof paths[1], "/dev/shm%sf", prefix);
    snprintf(paths[2], sizeof paths[2], "/dev/shm%sl", prefix);
    CHECK_EQUAL(mkdir(paths[0], 0700), 0);
    CHECK_EQUAL(mkfifo(paths[1], 0600), 0);
    CHECK_EQUAL(symlink("/etc/passwd", paths[2]), 0);
    void *arguments[] = {context, prefix};
    CHECK_IN_CHILD(attach_to_names, arguments);
    rmdir(paths[0]);
    unlink(paths[1]);
    unlink(paths[2]);
}

#endif

/* ---- Environment --------------------------------------------------------------------------- */

static void forget_environment(void) {
    unsetenv(variable);
    unsetenv(variable_size);
}

static void test_environment_round_trip(test_context *context) {
    char size[24];
    shmp_error error;
    shmp_shmem *owner = created(context, SMALL + 1, 0), *other;
    REQUIRE(owner);
    setenv(variable, "overwritten", 1);
    CHECK(SUCCEEDS(shmp_to_env, owner, variable));
    snprintf(size, sizeof size, "%zu", shmp_size(owner));
    CHECK_TEXT(getenv(variable), described(owner).id);
    CHECK_TEXT(getenv(variable_size), size);
    bytes_of(owner)[SMALL] = FROM_PARENT;
    if (*described(owner).id || !context->is_std)
        if (SUCCEEDS(shmp_from_env, context->provider, variable, SHMP_READ_ONLY, &other)) {
            CHECK_EQUAL(shmp_flags(other), SHMP_READ_ONLY);
            CHECK_EQUAL(shmp_size(other), SMALL + 1);
            CHECK_EQUAL(bytes_of(other)[SMALL], context->can->shares ? FROM_PARENT : 0);
            closed(other);
        }
    CHECK_REFUSED(CODE(SHMP_EINVAL), shmp_from_env, context->provider, variable, 1u << 31);
    forget_environment();
    closed(owner);
}

static void check_env_missing(const test_context *context, const char *missing) {
    shmp_error error = poisoned_error();
    shmp_shmem *shmem = UNTOUCHED;
    CHECK_REFUSED(CODE(SHMP_ENOENV), shmp_from_env, context->provider, variable, 0u);
    shmp_from_env(context->provider, variable, 0, &shmem, &error);
    CHECK(strstr(error.message, missing));
}

static void test_environment_missing(test_context *context) {
    shmp_error error;
    shmp_shmem *owner = created(context, SMALL, 0);
    REQUIRE(owner);
    forget_environment();
    check_env_missing(context, variable);
    CHECK(SUCCEEDS(shmp_to_env, owner, variable));
    unsetenv(variable_size);
    check_env_missing(context, variable_size);
    CHECK(SUCCEEDS(shmp_to_env, owner, variable));
    unsetenv(variable);
    check_env_missing(context, variable);
    forget_environment();
    closed(owner);
}

static void test_environment_sizes(test_context *context) {
    static const struct {
        const char *text;
        unsigned codes;
    } rows[] = {
        {"", CODE(SHMP_EINVAL)},
        {" ", CODE(SHMP_EINVAL)},
        {" 1", CODE(SHMP_EINVAL)},
        {"1 ", CODE(SHMP_EINVAL)},
        {"1\n", CODE(SHMP_EINVAL)},
        {"1e6", CODE(SHMP_EINVAL)},
        {"+1", CODE(SHMP_EINVAL)},
        {"-1", CODE(SHMP_EINVAL)},
        {"0x10", CODE(SHMP_EINVAL)},
        {"1.0", CODE(SHMP_EINVAL)},
        {"1,000", CODE(SHMP_EINVAL)},
        {"4k", CODE(SHMP_EINVAL)},
        {"size", CODE(SHMP_EINVAL)},
        {"0", CODE(SHMP_EINVAL)},
        {"99999999999999999999999999", CODE(SHMP_EINVAL) | CODE(SHMP_EOVERFLOW)},
        {"18446744073709551616", CODE(SHMP_EINVAL) | CODE(SHMP_EOVERFLOW)},
        {"18446744073709551615", CODE(SHMP_EINVAL) | CODE(SHMP_EOVERFLOW)},
    };
    shmp_error error;
    char text[512];
    shmp_shmem *owner = created(context, SMALL, 0);
    REQUIRE(owner);
    CHECK(SUCCEEDS(shmp_to_env, owner, variable));
    for (size_t i = 0; i < LENGTH(rows); i++) {
        setenv(variable_size, rows[i].text, 1);
        check_subject("size \"%s\"", rows[i].text);
        CHECK_REFUSED(rows[i].codes, shmp_from_env, context->provider, variable, 0u);
    }
    memset(text, '1', sizeof text - 1);
    text[sizeof text - 1] = 0;
    setenv(variable_size, text, 1);
    check_subject("a size of %zu digits", sizeof text - 1);
    CHECK_REFUSED(CODE(SHMP_EINVAL) | CODE(SHMP_EOVERFLOW), shmp_from_env, context->provider, variable, 0u);
    snprintf(text, sizeof text, "%zu", (size_t)SIZE_MAX);
    setenv(variable_size, text, 1);
    check_subject("size %s", text);
    CHECK_REFUSED(CODE(SHMP_EOVERFLOW), shmp_from_env, context->provider, variable, 0u);
    forget_environment();
    closed(owner);
}

static void test_environment_ids(test_context *context) {
    char overlong[300];
    setenv(variable_size, "1", 1);
    for (size_t i = 0; i < LENGTH(garbage_ids); i++) {
        setenv(variable, garbage_ids[i], 1);
        check_subject("id \"%s\"", garbage_ids[i]);
        CHECK_REFUSED(GARBAGE, shmp_from_env, context->provider, variable, 0u);
    }
    memset(overlong, 'a', sizeof overlong - 1);
    overlong[sizeof overlong - 1] = 0;
    setenv(variable, overlong, 1);
    CHECK_REFUSED(GARBAGE, shmp_from_env, context->provider, variable, 0u);
    setenv(variable, "", 1);
    if (context->is_std || context->can->shares) CHECK_REFUSED(GARBAGE, shmp_from_env, context->provider, variable, 0u);
    forget_environment();
}

static void test_environment_names(test_context *context) {
    shmp_shmem *owner = created(context, SMALL, 0);
    REQUIRE(owner);
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_to_env, owner, "");
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_to_env, owner, "A=B");
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_to_env, owner, "=");
    closed(owner);
}

static int is_shareable_with_afl(const capabilities *can) {
    return can->is_read_by_afl && strcmp(can->name, "sysv") == 0;
}

/* With SHMP_POSIX_NAMES also a posix name. */
static void check_pairs_for_afl(const shmp_shmem *shmem, int allowed) {
    enum { ROOM = sizeof "__AFL_SHM_ID" - 1 + 32 };
    char id[ROOM] = "before", size[ROOM] = "before", expected[2 * ROOM];
    shmp_error error;
    int is_name = described(shmem).id[0] == '/';
    if (!allowed) {
        CHECK_FAILS(CODE(SHMP_EINVAL), shmp_env_pairs, shmem, "__AFL_SHM_ID", 0, id, size, ROOM);
        if (!is_name)
            CHECK_FAILS(CODE(SHMP_EINVAL), shmp_env_pairs, shmem, "__AFL_SHM_ID", SHMP_POSIX_NAMES, id, size, ROOM);
        CHECK_TEXT(id, "before");
        CHECK_TEXT(size, "before");
    }
    if (!allowed && !is_name) return;
    CHECK(SUCCEEDS(shmp_env_pairs, shmem, "__AFL_SHM_ID", SHMP_POSIX_NAMES, id, size, ROOM));
    snprintf(expected, sizeof expected, "__AFL_SHM_ID=%s", described(shmem).id);
    CHECK_TEXT(id, expected);
    snprintf(expected, sizeof expected, "__AFL_SHM_ID_SIZE=%zu", shmp_size(shmem));
    CHECK_TEXT(size, expected);
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_env_pairs, shmem, "X", 2, id, size, ROOM);
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_env_pairs, shmem, "X", 0, id, size, 20);
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_env_pairs, shmem, "A=B", 0, id, size, ROOM);
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_env_pairs, shmem, "X", 0, NULL, size, ROOM);
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_env_pairs, NULL, "X", 0, id, size, ROOM);
}

static void check_given_to_afl(const shmp_shmem *shmem, int allowed) {
    static const char name[] = "__AFL_SHM_ID", name_of_size[] = "__AFL_SHM_ID_SIZE";
    shmp_error error;
    check_pairs_for_afl(shmem, allowed);
    setenv(name, "before", 1);
    setenv(name_of_size, "before", 1);
    if (allowed) {
        CHECK(SUCCEEDS(shmp_to_env, shmem, name));
        CHECK_TEXT(getenv(name), described(shmem).id);
    } else {
        CHECK_FAILS(CODE(SHMP_EINVAL), shmp_to_env, shmem, name);
        CHECK_TEXT(getenv(name), "before");
        CHECK_TEXT(getenv(name_of_size), "before");
    }
    unsetenv(name);
    unsetenv(name_of_size);
    CHECK(SUCCEEDS(shmp_to_env, shmem, "__AFLX"));
    unsetenv("__AFLX");
    unsetenv("__AFLX_SIZE");
}

static void test_environment_of_afl(test_context *context) {
    shmp_shmem *owner = created(context, SMALL, 0);
    REQUIRE(owner);
    check_given_to_afl(owner, is_shareable_with_afl(context->can));
    closed(owner);
    if (!context->can->has_numbers || context->is_std) return;
    shmp_provider *provider = opened(context->label, SHMP_FD_IDS);
    shmp_shmem *numbered = provider ? created_by(provider, SMALL, 0) : NULL;
    shmp_provider_close(provider);
    REQUIRE(numbered);
    check_subject("SHMP_FD_IDS");
    check_given_to_afl(numbered, 0);
    closed(numbered);
}

/* ---- Descriptors --------------------------------------------------------------------------- */

static int is_kept_on_exec(int fd) {
    int flags = fcntl(fd, F_GETFD);
    return flags >= 0 && !(flags & FD_CLOEXEC);
}

static void test_fileno(test_context *context) {
    shmp_shmem *owner = created(context, SMALL, 0);
    REQUIRE(owner);
    shmp_shmem *other = twin(context, owner, 0);
    REQUIRE(other);
    if (context->can->is_file) {
        CHECK(shmp_fileno(owner) > 2 && shmp_fileno(other) > 2);
        CHECK(shmp_fileno(owner) != shmp_fileno(other));
        CHECK(!is_kept_on_exec(shmp_fileno(owner)) && !is_kept_on_exec(shmp_fileno(other)));
    } else {
        CHECK_EQUAL(shmp_fileno(owner), -1);
        CHECK_EQUAL(shmp_fileno(other), -1);
    }
    closed(other);
    closed(owner);
}

static void test_inherit(test_context *context) {
    shmp_shmem *plain = created(context, SMALL, 0);
    REQUIRE(plain);
    shmp_description description = described(plain);
    if (context->can->is_file) {
        shmp_shmem *owner = created(context, SMALL, SHMP_INHERIT);
        shmp_shmem *other = attached(context, &description, SHMP_INHERIT);
        CHECK(owner && is_kept_on_exec(shmp_fileno(owner)));
        CHECK(other && is_kept_on_exec(shmp_fileno(other)));
        CHECK(!is_kept_on_exec(shmp_fileno(plain)));
        if (other) CHECK_EQUAL(shmp_flags(other), 0);
        closed(other);
        closed(owner);
    } else {
        CHECK_REFUSED(CODE(SHMP_EUNSUPPORTED), shmp_create, context->provider, (size_t)SMALL, (unsigned)SHMP_INHERIT);
        CHECK_REFUSED(CODE(SHMP_EUNSUPPORTED), shmp_attach, context->provider, &description, (unsigned)SHMP_INHERIT);
    }
    closed(plain);
}

static void test_persist(test_context *context) {
    shmp_error error;
    shmp_shmem *shmem = created(context, SMALL, 0);
    REQUIRE(shmem);
    if (context->can->is_file) {
        CHECK(SUCCEEDS(shmp_persist, shmem));
        CHECK(is_kept_on_exec(shmp_fileno(shmem)));
        CHECK(SUCCEEDS(shmp_persist, shmem));
    } else {
        CHECK_FAILS(CODE(SHMP_EUNSUPPORTED), shmp_persist, shmem);
    }
    closed(shmem);
}

static void persist_and_execute(void *argument) {
    const test_context *context = argument;
    shmp_error error;
    shmp_shmem *shmem = created(context, SMALL, 0);
    REQUIRE(shmem);
    mark_for_child(shmem);
    if (!SUCCEEDS(shmp_persist, shmem) || !SUCCEEDS(shmp_to_env, shmem, variable)) return;
    execute("environment-last", context->label, variable, "");
}

static void test_persist_survives_exec(test_context *context) {
    SKIP_UNLESS(context->can->is_file, "exec ends the segment");
    CHECK_IN_CHILD(persist_and_execute, context);
}

static void test_inherited_descriptor_by_number(test_context *context) {
    SKIP_UNLESS(context->can->has_numbers && !context->is_std, "a number is no descriptor here");
    char id[24], size[24];
    shmp_shmem *owner = created(context, SMALL, SHMP_INHERIT);
    REQUIRE(owner);
    mark_for_child(owner);
    snprintf(id, sizeof id, "%d", shmp_fileno(owner));
    snprintf(size, sizeof size, "%d", SMALL);
    check_spawned("attach", context->label, id, size);
    check_marked_by_child(owner);
    closed(owner);
}

static void test_fd_ids(test_context *context) {
    SKIP_UNLESS(context->can->has_numbers && !context->is_std, "has no SHMP_FD_IDS");
    char number[24];
    shmp_provider *provider = opened(context->label, SHMP_FD_IDS);
    REQUIRE(provider);
    shmp_shmem *owner = created_by(provider, SMALL, 0);
    REQUIRE(owner);
    snprintf(number, sizeof number, "%d", shmp_fileno(owner));
    shmp_description description = described(owner);
    CHECK_TEXT(description.id, number);
    struct stat file;
    CHECK_EQUAL(fstat(shmp_fileno(owner), &file), 0);
    CHECK_EQUAL(file.st_nlink, 0);

    shmp_shmem *other = attached_by(provider, &description, 0);
    shmp_shmem *by_plain_provider = attached(context, &description, SHMP_READ_ONLY);
    REQUIRE(other && by_plain_provider);
    CHECK(shmp_fileno(other) != shmp_fileno(owner) && shmp_fileno(by_plain_provider) != shmp_fileno(owner));
    CHECK(shmp_fileno(other) != shmp_fileno(by_plain_provider));
    snprintf(number, sizeof number, "%d", shmp_fileno(other));
    CHECK_TEXT(described(other).id, number);
    CHECK(!is_kept_on_exec(shmp_fileno(other)));
    description.size = SMALL + 1;
    CHECK_REFUSED(CODE(SHMP_ESIZE), shmp_attach, provider, &description, 0u);

    shmp_provider_close(provider);
    closed(owner);
    bytes_of(other)[0] = FROM_PARENT;
    CHECK_EQUAL(bytes_of(by_plain_provider)[0], FROM_PARENT);
    closed(by_plain_provider);
    closed(other);
}

static void test_closed_descriptor_by_number(test_context *context) {
    SKIP_UNLESS(context->can->has_numbers && !context->is_std, "a number is no descriptor here");
    char id[24];
    int fd = dup(STDERR_FILENO);
    REQUIRE(fd >= 0);
    close(fd);
    snprintf(id, sizeof id, "%d", fd);
    check_garbage(context, id, GONE);
}

static void fill_descriptors(void) {
    const struct rlimit few = {64, 64};
    CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &few), 0);
    while (open("/dev/null", O_RDONLY) >= 0) continue;
    CHECK_EQUAL(errno, EMFILE);
}

static void use_without_descriptors(void *argument) {
    const fork_family *family = argument;
    shmp_error error = poisoned_error();
    shmp_shmem *shmem = UNTOUCHED;
    shmp_description description = described(family->owner);
    fill_descriptors();
    if (!family->context->can->is_file) {
        closed(created(family->context, SMALL, 0));
        closed(attached(family->context, &description, 0));
        return;
    }
    CHECK_REFUSED(CODE(SHMP_EOS), shmp_create, family->context->provider, (size_t)SMALL, 0u);
    CHECK_REFUSED(CODE(SHMP_EOS), shmp_attach, family->context->provider, &description, 0u);
    shmp_create(family->context->provider, SMALL, 0, &shmem, &error);
    CHECK_EQUAL(error.os_error, EMFILE);
    shmp_attach(family->context->provider, &description, 0, &shmem, &error);
    CHECK_EQUAL(error.os_error, EMFILE);
}

static void test_no_descriptors_left(test_context *context) {
    SKIP_UNLESS(!context->is_std || !context->can->wraps, "a child that runs no service has descriptors to let go of");
    SKIP_UNLESS(!getenv("SHMP_VALGRIND"), "valgrind has descriptors of its own and refuses a lower limit");
    fork_family family = {context, created(context, SMALL, 0), NULL};
    REQUIRE(family.owner);
    CHECK_IN_CHILD(use_without_descriptors, &family);
    closed(family.owner);
}

static void create_beyond_file_limit(void *argument) {
    const test_context *context = argument;
    const struct rlimit small = {SMALL, SMALL};
    signal(SIGXFSZ, SIG_IGN);
    CHECK_EQUAL(setrlimit(RLIMIT_FSIZE, &small), 0);
    closed(created(context, SMALL, 0));
    if (context->can->has_numbers)
        CHECK_REFUSED(CODE(SHMP_EOS), shmp_create, context->provider, (size_t)SMALL + 1, 0u);
    else
        closed(created(context, SMALL + 1, 0));
}

static void test_file_size_limit(test_context *context) { CHECK_IN_CHILD(create_beyond_file_limit, context); }

/* ---- Names --------------------------------------------------------------------------------- */

static void test_names_unsupported(test_context *context) {
    SKIP_UNLESS(!context->can->has_names, "has names");
    CHECK_REFUSED(CODE(SHMP_EUNSUPPORTED), shmp_create_named, context->provider, own_name(), (size_t)SMALL, 0u);
}

static void test_named(test_context *context) {
    SKIP_UNLESS(context->can->has_names, "has no names");
    shmp_shmem *owner = created_named(context, own_name());
    REQUIRE(owner);
    shmp_description description = described(owner);
    CHECK_TEXT(description.id, own_name());
    CHECK_EQUAL(shmp_flags(owner), SHMP_OWNER);
    CHECK_EQUAL(shmp_size(owner), SMALL);
    CHECK(all_bytes_are(owner, 0));
    shmp_shmem *other = attached(context, &description, 0);
    REQUIRE(other);
    bytes_of(owner)[0] = FROM_PARENT;
    CHECK_EQUAL(bytes_of(other)[0], FROM_PARENT);
    closed(owner);
    CHECK_REFUSED(GONE, shmp_attach, context->provider, &description, 0u);
    bytes_of(other)[0] = FROM_CHILD;
    closed(other);
}

static void test_named_closed_by_another_first(test_context *context) {
    SKIP_UNLESS(context->can->has_names, "has no names");
    shmp_shmem *owner = created_named(context, own_name());
    REQUIRE(owner);
    shmp_description description = described(owner);
    closed(attached(context, &description, 0));
    shmp_shmem *late = attached(context, &description, 0);
    closed(late);
    closed(owner);
}

static void test_name_taken(test_context *context) {
    SKIP_UNLESS(context->can->has_names, "has no names");
    shmp_shmem *owner = created_named(context, own_name()), *shmem = UNTOUCHED;
    REQUIRE(owner);
    bytes_of(owner)[0] = FROM_PARENT;
    CHECK_REFUSED(CODE(SHMP_EOS), shmp_create_named, context->provider, own_name(), (size_t)SMALL, 0u);
    shmp_error error = poisoned_error();
    shmp_create_named(context->provider, own_name(), SMALL, 0, &shmem, &error);
    CHECK_EQUAL(error.os_error, EEXIST);
    shmp_shmem *other = twin(context, owner, 0);
    if (other) CHECK_EQUAL(bytes_of(other)[0], FROM_PARENT);
    closed(other);
    closed(owner);
}

static void test_name_made_anew_by_another(test_context *context) {
    SKIP_UNLESS(context->can->has_names, "has no names");
    shmp_shmem *first = created_named(context, own_name());
    REQUIRE(first);
    CHECK_EQUAL(shm_unlink(own_name()), 0);
    shmp_shmem *second = created_named(context, own_name());
    REQUIRE(second);
    bytes_of(second)[0] = FROM_CHILD;
    closed(first);
    shmp_description description = described(second);
    shmp_shmem *other = attached(context, &description, 0);
    if (other) CHECK_EQUAL(bytes_of(other)[0], FROM_CHILD);
    closed(other);
    closed(second);
    CHECK_REFUSED(GONE, shmp_attach, context->provider, &description, 0u);
}

static void test_name_already_removed(test_context *context) {
    SKIP_UNLESS(context->can->has_names, "has no names");
    shmp_shmem *owner = created_named(context, own_name());
    REQUIRE(owner);
    CHECK_EQUAL(shm_unlink(own_name()), 0);
    closed(owner);
}

static void test_impossible_names(test_context *context) {
    SKIP_UNLESS(context->can->has_names, "has no names");
    static const char *const names[] = {
        "",    "/",    "//",           "noslash", "/a/b",      "/../a", "/.",
        "/..", "/a b", "/caf\xc3\xa9", "/shmp_",  "/shmp_abc", "/\n",   "/abcdefghijklmnopqrs"};
    for (size_t i = 0; i < LENGTH(names); i++) {
        check_subject("name \"%s\"", names[i]);
        CHECK_REFUSED(GARBAGE, shmp_create_named, context->provider, names[i], (size_t)SMALL, 0u);
    }
    char longest[] = "/xxxxxxxxxxxxxxxxxx";
    memcpy(longest, own_name(), strlen(own_name()));
    check_subject("name \"%s\"", longest);
    shmp_shmem *shmem = created_named(context, longest);
    if (shmem) CHECK_TEXT(described(shmem).id, longest);
    closed(shmem);
}

static unsigned mode_of(const shmp_shmem *shmem) {
    struct stat file;
    return fstat(shmp_fileno(shmem), &file) == 0 ? file.st_mode & 0777 : 0777;
}

/* Nobody else at any time; and its user from when the name is known. */
static void check_mode_under(const test_context *context, mode_t mask) {
    mode_t before = umask(mask);
    shmp_shmem *shmem = created(context, SMALL, 0), *named = created_named(context, own_name());
    umask(before);
    check_subject("umask %03o", (unsigned)mask);
    REQUIRE(shmem && named);
    CHECK_EQUAL(mode_of(shmem) & 077, 0);
    CHECK_EQUAL(mode_of(named), 0600);
    (void)described(shmem);
    CHECK_EQUAL(mode_of(shmem), 0600);
    closed(named);
    closed(shmem);
}

static void test_name_is_for_its_user_alone(test_context *context) {
    SKIP_UNLESS(context->can->has_names, "has no names");
    check_mode_under(context, 0);
    check_mode_under(context, 077);
    check_mode_under(context, 0777);
}

/* ---- A look at the machine ------------------------------------------------------------------ */

typedef struct sighting {
    const char *id; /* to look for; NULL: go by owner and size */
    size_t size;
    int count, visits, answer;
    shmp_listed last;
} sighting;

static int look(void *argument, const shmp_listed *segment) {
    sighting *seen = argument;
    seen->visits++;
    CHECK(segment->struct_size >= sizeof *segment);
    CHECK(memchr(segment->id, 0, sizeof segment->id));
    int is_meant = seen->id ? strcmp(segment->id, seen->id) == 0
                            : segment->holder == (long long)getpid() && segment->size == seen->size;
    if (is_meant) {
        seen->count++;
        seen->last = *segment;
    }
    return seen->answer;
}

static void check_listed(const test_context *context, const shmp_shmem *owner) {
    shmp_error error;
    sighting seen = {.size = shmp_size(owner)};
    CHECK(SUCCEEDS(shmp_list, context->provider, look, &seen));
    CHECK_EQUAL(seen.count, 1);
    REQUIRE(seen.count);
    CHECK_TEXT(seen.last.provider, context->can->name);
    CHECK_EQUAL(seen.last.is_alive, 1);
    CHECK_EQUAL(seen.last.is_ours, context->can->is_told_apart);
    shmp_description description = description_of(seen.last.id, SMALL);
    shmp_shmem *other = attached(context, &description, SHMP_READ_ONLY);
    if (other) CHECK_EQUAL(bytes_of(other)[0], FROM_PARENT);
    closed(other);
}

/* Memory of as many bytes that is not of this library; -1: the platform has none. */
static int open_foreign_memory(size_t size) {
#if defined(__linux__)
    int fd = memfd_create("conformance", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
    return fd;
#else
    (void)size;
    return -1;
#endif
}

static void test_list(test_context *context) {
    SKIP_UNLESS(strcmp(context->can->name, "sysv") != 0 || !getenv("QEMU_LD_PREFIX"),
                "qemu loses that a segment is marked for removal");
    const size_t size = SMALL + 1234567; /* no other segment of this process */
    sighting seen = {.size = size, .answer = 7};
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_list, context->provider, NULL, NULL);
    if (context->can->shares && !context->can->is_listed) {
        CHECK_FAILS(CODE(SHMP_EUNSUPPORTED), shmp_list, context->provider, look, &seen);
        CHECK_EQUAL(seen.visits, 0);
        return;
    }
    shmp_shmem *owner = created(context, size, 0);
    REQUIRE(owner);
    shmp_shmem *other = twin(context, owner, 0);
    bytes_of(owner)[0] = FROM_PARENT;
    int foreign = open_foreign_memory(size);
    if (context->can->is_listed) check_listed(context, owner);
    if (foreign >= 0) close(foreign);
    CHECK_EQUAL(shmp_list(context->provider, look, &seen, NULL), context->can->is_listed ? 7 : 0);
    CHECK_EQUAL(seen.visits, context->can->is_listed);
    closed(other);
    closed(owner);
    seen = (sighting){.size = size};
    CHECK_EQUAL(shmp_list(context->provider, look, &seen, NULL), 0);
    CHECK_EQUAL(seen.count, 0);
}

static void test_reap_arguments(test_context *context) {
    shmp_error error;
    CHECK(SUCCEEDS(shmp_reap, context->provider, 0, NULL, NULL));
    CHECK(SUCCEEDS(shmp_reap, context->provider, SHMP_DRY_RUN, NULL, NULL));
    for (unsigned bit = SHMP_DRY_RUN << 1; bit; bit <<= 1)
        CHECK_FAILS(CODE(SHMP_EINVAL), shmp_reap, context->provider, bit, NULL, NULL);
}

static void close_inherited(void *shmem) { closed(shmem); }

static void test_reap_spares_the_living(test_context *context) {
    SKIP_UNLESS(context->can->shares, "private memory");
    shmp_shmem *owner = created(context, SMALL, 0);
    REQUIRE(owner);
    shmp_description description = described(owner);
    sighting seen = {.id = description.id};
    closed(attached(context, &description, 0));
    CHECK_IN_CHILD(close_inherited, owner);
    CHECK_EQUAL(shmp_reap(context->provider, 0, look, &seen, NULL), 0);
    CHECK_EQUAL(seen.count, 0);
    shmp_provider_close(opened(context->label, 0));
    CHECK(is_there(context, &description));
    closed(owner);
}

/* Keeps, shows and removes a leftover; 0 when it did not go like that, as when another process of
 * this machine reaps at the same time. */
static int reaps_a_leftover(const test_context *context) {
    shmp_description description = killed_owner(context, NULL, -1);
    sighting listed = {.id = description.id}, dry = listed, reaped = listed, again = listed;
    shmp_provider_close(opened(context->label, SHMP_KEEP_LEFTOVERS));
    CHECK_EQUAL(shmp_list(context->provider, look, &listed, NULL), 0);
    CHECK_EQUAL(shmp_reap(context->provider, SHMP_DRY_RUN, look, &dry, NULL), 0);
    int was_there = is_there(context, &description);
    CHECK_EQUAL(shmp_reap(context->provider, 0, look, &reaped, NULL), 0);
    int is_left = is_there(context, &description);
    CHECK_EQUAL(shmp_reap(context->provider, 0, look, &again, NULL), 0);
    check_subject("seen by list %d, dry run %d, reap %d, a second %d; there before %d, after %d", listed.count,
                  dry.count, reaped.count, again.count, was_there, is_left);
    return listed.count == 1 && dry.count == 1 && reaped.count == 1 && again.count == 0 && was_there && !is_left &&
           !listed.last.is_alive && !dry.last.is_alive && dry.last.size == SMALL;
}

static void test_reap_leftovers(test_context *context) {
    SKIP_UNLESS(context->can->has_names, "leaves nothing over");
    int done = 0;
    for (int tries = 0; !done && tries < 20; tries++) done = reaps_a_leftover(context);
    CHECK(done);
}

static int vanishes(const test_context *context, const shmp_description *description) {
    for (int tries = 0; tries < 100; tries++) {
        if (!is_there(context, description)) return 1;
        usleep(10000);
    }
    return 0;
}

static void test_opening_reaps_leftovers(test_context *context) {
    SKIP_UNLESS(context->can->has_names, "leaves nothing over");
    shmp_description description = killed_owner(context, NULL, -1);
    REQUIRE(*description.id);
    shmp_provider_close(opened(context->label, 0));
    CHECK(vanishes(context, &description));
}

static void test_reap_waits_for_forked_children(test_context *context) {
    SKIP_UNLESS(context->can->has_names, "leaves nothing over");
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    shmp_description description = killed_owner(context, NULL, ends[0]);
    CHECK_EQUAL(shmp_reap(context->provider, 0, NULL, NULL, NULL), 0);
    CHECK(*description.id && is_there(context, &description));
    CHECK_EQUAL(write(ends[1], "", 1), 1);
    close(ends[0]);
    close(ends[1]);
    for (int tries = 0; tries < 500 && is_there(context, &description); tries++) {
        usleep(10000);
        CHECK_EQUAL(shmp_reap(context->provider, 0, NULL, NULL, NULL), 0);
    }
    CHECK(!is_there(context, &description));
}

static void test_reap_spares_chosen_names(test_context *context) {
    SKIP_UNLESS(context->can->has_names, "has no names");
    shmp_description description = killed_owner(context, own_name(), -1);
    REQUIRE(*description.id);
    CHECK_EQUAL(shmp_reap(context->provider, 0, NULL, NULL, NULL), 0);
    shmp_provider_close(opened(context->label, 0));
    CHECK(is_there(context, &description));
    CHECK_EQUAL(shm_unlink(description.id), 0);
}

typedef struct crowd {
    pid_t child;
    int parents, children, visits, answer;
} crowd;

static int meet(void *argument, long pid) {
    crowd *met = argument;
    met->visits++;
    met->parents += pid == (long)getpid();
    met->children += pid == (long)met->child;
    return met->answer;
}

static void test_users(test_context *context) {
    char byte;
    int ends[2];
    shmp_error error;
    shmp_shmem *owner = created(context, SMALL, 0);
    REQUIRE(owner && pipe(ends) == 0);
    shmp_shmem *other = twin(context, owner, SHMP_READ_ONLY);
    crowd met = {.child = fork()}, first = {.answer = 7};
    if (met.child == 0) {
        close(ends[1]);
        _exit(read(ends[0], &byte, 1) != 0);
    }
    CHECK(SUCCEEDS(shmp_users, owner, meet, &met));
    CHECK_EQUAL(met.parents, 1);
    CHECK_EQUAL(met.children, context->can->shares);
    CHECK_EQUAL(met.visits, met.parents + met.children);
    CHECK_EQUAL(shmp_users(other, meet, &first, NULL), 7);
    CHECK_EQUAL(first.visits, 1);
    CHECK_FAILS(CODE(SHMP_EINVAL), shmp_users, owner, NULL, NULL);
    close(ends[0]);
    close(ends[1]);
    CHECK_EQUAL(status_of(met.child), 0);
    closed(other);
    closed(owner);
}

/* ---- Threads ------------------------------------------------------------------------------- */

enum { THREADS = 8, ROUNDS = 1000 };

typedef struct thread_worker {
    const test_context *context;
    const shmp_shmem *common;
    pthread_t thread;
    unsigned char number;
} thread_worker;

static void play_round(const thread_worker *worker) {
    shmp_shmem *owner = created(worker->context, SMALL, 0);
    if (!owner) return;
    bytes_of(owner)[0] = worker->number;
    shmp_shmem *other = twin(worker->context, owner, 0);
    shmp_shmem *common = twin(worker->context, worker->common, 0);
    if (other) CHECK_EQUAL(bytes_of(other)[0], worker->context->can->shares ? worker->number : 0);
    if (common) CHECK_EQUAL(bytes_of(common)[0], worker->context->can->shares ? FROM_PARENT : 0);
    closed(worker->number & 1 ? owner : other);
    closed(common);
    closed(worker->number & 1 ? other : owner);
}

static void *work(void *argument) {
    const thread_worker *worker = argument;
    for (int round = 0; round < ROUNDS && shmp__atomic_load(&check_failures) == 0; round++) play_round(worker);
    return NULL;
}

static void test_threads(test_context *context) {
    thread_worker workers[THREADS];
    shmp_shmem *common = created(context, SMALL, 0);
    REQUIRE(common);
    bytes_of(common)[0] = FROM_PARENT;
    for (unsigned char i = 0; i < THREADS; i++) {
        workers[i] = (thread_worker){.context = context, .common = common, .number = (unsigned char)(i + 1)};
        if (!CHECK_EQUAL(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0)) abort();
    }
    for (int i = 0; i < THREADS; i++) pthread_join(workers[i].thread, NULL);
    closed(common);
}

static void *open_and_close(void *label) {
    for (int round = 0; round < ROUNDS && shmp__atomic_load(&check_failures) == 0; round++)
        shmp_provider_close(opened(label, 0));
    return NULL;
}

static void test_threads_opening(test_context *context) {
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        if (!CHECK_EQUAL(pthread_create(&threads[i], NULL, open_and_close, (void *)(uintptr_t)context->label), 0))
            abort();
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
}

static const test library_tests[] = {
    TEST(versions),
    TEST(error_texts),
    TEST(available),
    TEST(unknown_providers),
    TEST(null_handles),
    TEST(environment_overrides_std),
    TEST(std_takes_everybodys_ids),
    {NULL, NULL},
};

static const test provider_tests[] = {
    TEST(provider_name),
    TEST(options),
    TEST(options_of_others),
    TEST(limits),
    TEST(fork_hooks),
    TEST(create),
    TEST(sizes_are_exact_and_zeroed),
    TEST(sparse_beyond_2_gib),
    TEST(monstrous_sizes),
    TEST(impossible_sizes),
    TEST(unknown_flags),
    TEST(null_arguments),
    TEST(reserve),
    TEST(handles_share_memory),
    TEST(attach_to_a_part),
    TEST(attach_to_the_whole),
    TEST(description_larger_than_segment),
    TEST(descriptions),
    TEST(bytes_after_the_end_of_an_id),
    TEST(read_only),
    TEST(writing_read_only_memory_kills),
    TEST(provider_closed_before_segments),
    TEST(closing_in_any_order),
    TEST(gone_after_the_last_close),
    TEST(owner_killed),
    TEST(another_process_by_description),
    TEST(another_process_by_environment),
    TEST(fork),
    TEST(garbage_ids),
    TEST(gone_ids),
    TEST(mutated_ids),
    TEST(foreign_descriptors),
#if defined(__linux__)
    TEST(foreign_descriptors_by_memfd_id),
    TEST(memfd_must_be_sealed),
    TEST(memfd_inode_must_match),
    TEST(memfd_size_is_sealed),
    TEST(foreign_names),
#endif
    TEST(environment_round_trip),
    TEST(environment_missing),
    TEST(environment_sizes),
    TEST(environment_ids),
    TEST(environment_names),
    TEST(environment_of_afl),
    TEST(fileno),
    TEST(inherit),
    TEST(persist),
    TEST(persist_survives_exec),
    TEST(inherited_descriptor_by_number),
    TEST(fd_ids),
    TEST(closed_descriptor_by_number),
    TEST(no_descriptors_left),
    TEST(file_size_limit),
    TEST(names_unsupported),
    TEST(named),
    TEST(named_closed_by_another_first),
    TEST(name_taken),
    TEST(name_made_anew_by_another),
    TEST(name_already_removed),
    TEST(impossible_names),
    TEST(name_is_for_its_user_alone),
    TEST(list),
    TEST(reap_arguments),
    TEST(reap_spares_the_living),
    TEST(reap_leftovers),
    TEST(opening_reaps_leftovers),
    TEST(reap_waits_for_forked_children),
    TEST(reap_spares_chosen_names),
    TEST(users),
    TEST(threads),
    TEST(threads_opening),
    {NULL, NULL},
};

int main(int argc, char **argv) { return run_suite(&(suite){library_tests, provider_tests, roles}, argc, argv); }
