/* The C ABI on Windows: what segments are there, what another process sees of them, and every call of the system
 * failing, one after the other, in every operation.
 *
 *   test_win32 [NAME]        all tests, or those whose name contains NAME
 *   test_win32 --child ...   the other process, which the tests start themselves
 *
 * The core is compiled with -DSHMP_FAULTS (csrc/os/fault.h). After each test and each fault the process must hold what
 * it held before: handles, mapped views, blocks of the heap. Compiles with MSVC, too: no extension of C11. */
#define WIN32_LEAN_AND_MEAN
#define _CRT_SECURE_NO_WARNINGS
#include "check.h"
#include "core/core.h"
#include "os/fault.h"
#include "os/os_win32.h"
#include "shmem_providers.h"

#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <windows.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))

enum { BYTES = 3 * 4096 + 5, WHOLE = 4 * 4096, NAME_TRIES = 100, PATIENCE = 20000 /* ms */ };

static const char variable[] = "SHMP_WIN32", variable_size[] = "SHMP_WIN32_SIZE";
static const char *const labels[] = {"win32", "std"};

/* ---- Which errors a call has ------------------------------------------------------------------- */

static const struct {
    const char *call;
    int errors[10];
} pages[] = {
    {"AddAccessAllowedAce", {ERROR_ALLOTTED_SPACE_EXCEEDED, ERROR_INVALID_ACL, ERROR_INVALID_SID}},
    {"CloseHandle", {ERROR_INVALID_HANDLE}},
    {"CreateFileMappingA",
     {ERROR_ALREADY_EXISTS, ERROR_INVALID_HANDLE, ERROR_ACCESS_DENIED, ERROR_COMMITMENT_LIMIT, ERROR_NOT_ENOUGH_MEMORY,
      ERROR_NO_SYSTEM_RESOURCES, ERROR_INVALID_PARAMETER, ERROR_DISK_FULL}},
    {"DuplicateHandle", {ERROR_INVALID_HANDLE, ERROR_ACCESS_DENIED, ERROR_NO_SYSTEM_RESOURCES}},
    {"GetTokenInformation", {ERROR_INSUFFICIENT_BUFFER, ERROR_INVALID_HANDLE, ERROR_ACCESS_DENIED}},
    {"GlobalMemoryStatusEx", {ERROR_INVALID_PARAMETER}},
    {"InitializeAcl", {ERROR_INSUFFICIENT_BUFFER, ERROR_INVALID_PARAMETER}},
    {"InitializeSecurityDescriptor", {ERROR_UNKNOWN_REVISION}},
    {"MapViewOfFile",
     {ERROR_ACCESS_DENIED, ERROR_NOT_ENOUGH_MEMORY, ERROR_COMMITMENT_LIMIT, ERROR_NO_SYSTEM_RESOURCES,
      ERROR_INVALID_ADDRESS, ERROR_INVALID_PARAMETER, ERROR_INVALID_HANDLE}},
    {"OpenFileMappingA",
     {ERROR_FILE_NOT_FOUND, ERROR_PATH_NOT_FOUND, ERROR_INVALID_NAME, ERROR_INVALID_HANDLE, ERROR_ACCESS_DENIED,
      ERROR_NOT_ENOUGH_MEMORY, ERROR_NO_SYSTEM_RESOURCES}},
    {"OpenProcessToken", {ERROR_ACCESS_DENIED, ERROR_INVALID_HANDLE, ERROR_NO_SYSTEM_RESOURCES}},
    {"SetEnvironmentVariableA", {ERROR_INVALID_PARAMETER, ERROR_NOT_ENOUGH_MEMORY, ERROR_NO_SYSTEM_RESOURCES}},
    {"SetHandleInformation", {ERROR_INVALID_HANDLE, ERROR_INVALID_PARAMETER}},
    {"SetSecurityDescriptorDacl", {ERROR_INVALID_SECURITY_DESCR}},
    {"UnmapViewOfFile", {ERROR_INVALID_ADDRESS, ERROR_INVALID_PARAMETER}},
    {"VirtualQuery", {ERROR_INVALID_PARAMETER, ERROR_NOACCESS}},
    {"calloc", {ERROR_NOT_ENOUGH_MEMORY}},
    {"rand_s", {ERROR_GEN_FAILURE}}, /* its own errno says nothing */
};

/* ---- The seam ---------------------------------------------------------------------------------- */

enum { TRACE_ROOM = 64 };

static struct {
    const char *call; /* its (occurrence + 1)th call fails with `error`; NULL: none does */
    int occurrence, error, is_lasting /* as do all that follow */, seen, count;
    int is_recording, length;
    const char *trace[TRACE_ROOM];
} fault;

int shmp__fault(const char *call) {
    if (fault.is_recording && CHECK(fault.length < TRACE_ROOM)) fault.trace[fault.length++] = call;
    if (!fault.call || strcmp(call, fault.call) != 0) return 0;
    fault.seen++;
    if (fault.seen <= fault.occurrence || (!fault.is_lasting && fault.seen > fault.occurrence + 1)) return 0;
    fault.count++;
    SetLastError((DWORD)fault.error);
    return 1;
}

int shmp__fault_after(const char *call, int result) { return shmp__fault(call) ? FALSE : result; }

static void arm(const char *call, int occurrence, int error, int is_lasting) {
    fault.call = call;
    fault.occurrence = occurrence;
    fault.error = error;
    fault.is_lasting = is_lasting;
    fault.seen = fault.count = 0;
}

/* ---- What a process holds ------------------------------------------------------------------------ */

enum { GAP = 64 /* numbers of no handle, after which there is none any more: the lowest are taken first */ };

typedef struct holdings {
    long handles, views, blocks;
} holdings;

static holdings held(void) {
    holdings all = {0, 0, 0};
    MEMORY_BASIC_INFORMATION region;
    PROCESS_HEAP_ENTRY block;
    DWORD flags;
    /* GetProcessHandleCount always says 0 under Wine 8 */
    uintptr_t last = 0;
    for (uintptr_t at = 4; at <= last + 4 * GAP; at += 4) {
        if (!GetHandleInformation((HANDLE)at, &flags)) continue;
        all.handles++;
        last = at;
    }
    for (char *at = NULL; VirtualQuery(at, &region, sizeof region) != 0; at += region.RegionSize)
        all.views += region.Type == MEM_MAPPED && region.BaseAddress == region.AllocationBase;
    block.lpData = NULL;
    HANDLE heap = (HANDLE)_get_heap_handle();
    while (HeapWalk(heap, &block)) all.blocks += !!(block.wFlags & PROCESS_HEAP_ENTRY_BUSY);
    return all;
}

static void check_held(const holdings *before) {
    holdings now = held();
    CHECK_EQUAL(now.handles, before->handles);
    CHECK_EQUAL(now.views, before->views);
    CHECK_EQUAL(now.blocks, before->blocks);
}

/* ---- Calls that must succeed, or must not -------------------------------------------------------- */

static shmp_error error; /* the threads have their own */

static int succeeds(int result, const char *what) {
    return result == 0 || check_failed(__FILE__, __LINE__, "%s: %s: %s", what, error.call, error.message);
}
#define SUCCEEDS(call) succeeds((call), #call)

/* One of those codes, with all that belongs to it. */
static int refuses(int result, int code, int os_error, const char *value, const char *what) {
    if (result != -code) return check_failed(__FILE__, __LINE__, "%s: expected -%d, got %d", what, code, result);
    CHECK_EQUAL(error.code, result);
    CHECK_EQUAL(error.os_error, os_error);
    if (!strstr(error.message, value)) check_failed(__FILE__, __LINE__, "%s: no %s: %s", what, value, error.message);
    return *error.call && strlen(error.message) < sizeof error.message - 1;
}
#define REFUSES(call, code, value) CHECK(refuses((call), (code), 0, (value), #call))

static shmp_provider *opened(const char *name) {
    shmp_provider *provider = NULL;
    return SUCCEEDS(shmp_provider_open(name, NULL, &provider, &error)) ? provider : NULL;
}

static shmp_description description_of(const char *id, size_t size) {
    shmp_description description;
    memset(&description, 0, sizeof description);
    description.size = size;
    strncpy(description.id, id, sizeof description.id - 1);
    return description;
}

/* Writes by the one, reads by the other. */
static void use(shmp_shmem *shmem, const shmp_shmem *other) {
    static unsigned char mark;
    mark++;
    memset(shmp_data(shmem), mark, shmp_size(shmem));
    CHECK_EQUAL(((unsigned char *)shmp_data(other))[0], mark);
    CHECK_EQUAL(((unsigned char *)shmp_data(other))[BYTES - 1], mark);
}

static DWORD protection_of(const void *data) {
    MEMORY_BASIC_INFORMATION region;
    return VirtualQuery(data, &region, sizeof region) ? region.Protect : 0;
}

/* ---- Faults ---------------------------------------------------------------------------------------- */

typedef struct outputs {
    shmp_provider *provider;
    shmp_shmem *shmem;
    shmp_description description;
    shmp_limits limits;
} outputs;

static struct {
    const char *label;
    shmp_provider *provider;
    shmp_shmem *owner, *attached, *clone; /* the last shares the owner's mapping */
    outputs out, untouched;
} scene;

static int run_open(unsigned flags) {
    (void)flags;
    return shmp_provider_open(scene.label, NULL, &scene.out.provider, &error);
}
static int run_available(unsigned flags) {
    const char *name = NULL;
    int result = shmp_available(flags, &name, &error);
    CHECK_TEXT(name, "win32");
    return result;
}
static int run_create(unsigned flags) { return shmp_create(scene.provider, BYTES, flags, &scene.out.shmem, &error); }
static int run_attach(unsigned flags) {
    shmp_description description;
    CHECK(shmp_describe(scene.owner, &description, NULL) == 0);
    return shmp_attach(scene.provider, &description, flags, &scene.out.shmem, &error);
}
static int run_clone(unsigned flags) { return shmp_clone(scene.owner, flags, &scene.out.shmem, &error); }
static int run_describe(unsigned flags) {
    (void)flags;
    return shmp_describe(scene.owner, &scene.out.description, &error);
}
static int run_persist(unsigned flags) {
    (void)flags;
    return shmp_persist(scene.owner, &error);
}
static int run_to_env(unsigned flags) {
    (void)flags;
    return shmp_to_env(scene.owner, variable, &error);
}
static int run_from_env(unsigned flags) {
    return shmp_from_env(scene.provider, variable, flags, &scene.out.shmem, &error);
}
static int run_limits(unsigned flags) {
    (void)flags;
    return shmp_provider_limits(scene.provider, &scene.out.limits, &error);
}
static int run_retire(unsigned flags) {
    (void)flags;
    return shmp__retire(scene.attached, &error);
}
enum { OWNER, ATTACHED, CLONE };
static int run_close(unsigned which) {
    shmp_shmem **const all[] = {&scene.owner, &scene.attached, &scene.clone};
    shmp_shmem **closed = all[which], *shmem = *closed;
    *closed = NULL;
    return shmp_close(shmem, &error);
}

static const struct operation {
    const char *name;
    int (*run)(unsigned flags);
    unsigned flags;
    const char *calls; /* all that it makes */
} operations[] = {
    {"open", run_open, 0, NULL},
    {"available", run_available, 0, NULL},
    {"create", run_create, 0, "calloc rand_s rand_s rand_s CreateFileMappingA MapViewOfFile"},
    {"create_reserve", run_create, SHMP_RESERVE, "calloc rand_s rand_s rand_s CreateFileMappingA MapViewOfFile"},
    {"create_unmapped", run_create, SHMP_UNMAPPED, "calloc rand_s rand_s rand_s CreateFileMappingA"},
    {"create_inherit", run_create, SHMP_INHERIT,
     "calloc rand_s rand_s rand_s CreateFileMappingA MapViewOfFile SetHandleInformation"},
    {"attach", run_attach, 0, "calloc OpenFileMappingA MapViewOfFile VirtualQuery"},
    {"attach_read_only", run_attach, SHMP_READ_ONLY, "calloc OpenFileMappingA MapViewOfFile VirtualQuery"},
    {"attach_whole", run_attach, SHMP_WHOLE, "calloc OpenFileMappingA MapViewOfFile VirtualQuery"},
    {"attach_inherit", run_attach, SHMP_INHERIT,
     "calloc OpenFileMappingA MapViewOfFile VirtualQuery SetHandleInformation"},
    {"clone", run_clone, 0, "calloc"},
    {"clone_read_only", run_clone, SHMP_READ_ONLY, "calloc DuplicateHandle MapViewOfFile"},
    {"clone_inherit", run_clone, SHMP_INHERIT, "calloc DuplicateHandle MapViewOfFile SetHandleInformation"},
    {"describe", run_describe, 0, ""},
    {"persist", run_persist, 0, "SetHandleInformation"},
    {"to_env", run_to_env, 0, "SetEnvironmentVariableA SetEnvironmentVariableA"},
    {"from_env", run_from_env, 0, "calloc OpenFileMappingA MapViewOfFile VirtualQuery"},
    {"limits", run_limits, 0, "GlobalMemoryStatusEx"},
    {"retire", run_retire, 0, "CloseHandle"},
    {"close", run_close, OWNER, ""}, /* the clone has it all */
    {"close_clone", run_close, CLONE, ""},
    {"close_attached", run_close, ATTACHED, "UnmapViewOfFile CloseHandle"},
};

static void set_stage(void) {
    SUCCEEDS(shmp_create(scene.provider, BYTES, 0, &scene.owner, &error));
    SUCCEEDS(shmp_clone(scene.owner, 0, &scene.clone, &error));
    shmp_description description;
    SUCCEEDS(shmp_describe(scene.owner, &description, &error));
    SUCCEEDS(shmp_attach(scene.provider, &description, 0, &scene.attached, &error));
    SUCCEEDS(shmp_to_env(scene.owner, variable, &error));
    memset(&scene.untouched, 0x5a, sizeof scene.untouched);
    scene.untouched.limits.struct_size = sizeof(shmp_limits);
    scene.out = scene.untouched;
    memset(&error, 0x5a, sizeof error);
}

static void clear_stage(void) {
    SUCCEEDS(shmp_close(scene.attached, &error));
    SUCCEEDS(shmp_close(scene.owner, &error));
    SUCCEEDS(shmp_close(scene.clone, &error));
    scene.owner = scene.attached = scene.clone = NULL;
    (void)SetEnvironmentVariableA(variable, NULL);
    (void)SetEnvironmentVariableA(variable_size, NULL);
}

/* Uses what a successful operation gave, and releases it. */
static void use_outputs(const struct operation *operation) {
    shmp_shmem *shmem = NULL;
    if (scene.out.provider != scene.untouched.provider) {
        SUCCEEDS(shmp_create(scene.out.provider, BYTES, 0, &shmem, &error));
        use(shmem, shmem);
        SUCCEEDS(shmp_close(shmem, &error));
        shmp_provider_close(scene.out.provider);
    }
    if (scene.out.shmem != scene.untouched.shmem) {
        int is_created = operation->run == run_create, is_read = operation->flags == SHMP_READ_ONLY;
        if (shmp_data(scene.out.shmem))
            use(is_read ? scene.owner : scene.out.shmem, is_created || is_read ? scene.out.shmem : scene.owner);
        CHECK_EQUAL(shmp_size(scene.out.shmem), operation->flags == SHMP_WHOLE ? WHOLE : BYTES);
        SUCCEEDS(shmp_close(scene.out.shmem, &error));
    }
    if (operation->run == run_limits) CHECK(scene.out.limits.bytes > 0 && scene.out.limits.segments > 0);
    if (operation->run == run_describe) CHECK_EQUAL(scene.out.description.size, BYTES);
}

/* What the error is to be; 0: none, the call is made again with another name. */
static int code_of(const struct operation *operation) {
    int is_taken = fault.error == ERROR_ALREADY_EXISTS || fault.error == ERROR_INVALID_HANDLE;
    if (strcmp(fault.call, "calloc") == 0) return SHMP_ENOMEM;
    if (strcmp(fault.call, "CreateFileMappingA") == 0 && is_taken && !fault.is_lasting) return 0;
    if (operation->run == run_open && strcmp(scene.label, "std") == 0) return SHMP_EUNAVAILABLE;
    if (strcmp(fault.call, "OpenFileMappingA") == 0) switch (fault.error) {
        case ERROR_FILE_NOT_FOUND: return SHMP_ENOTFOUND;
        case ERROR_PATH_NOT_FOUND:
        case ERROR_INVALID_NAME:
        case ERROR_INVALID_HANDLE: return SHMP_EID;
        default: break;
        }
    return SHMP_EOS;
}

static const char *blamed_of(int code) {
    static const char security[] = "AddAccessAllowedAce InitializeAcl InitializeSecurityDescriptor OpenProcessToken "
                                   "SetSecurityDescriptorDacl";
    if (code == SHMP_EUNAVAILABLE) return "std";
    if (code == SHMP_ENOMEM) return "malloc";
    if (strstr(security, fault.call)) return "GetTokenInformation";
    return strcmp(fault.call, "SetEnvironmentVariableA") == 0 ? "setenv" : fault.call;
}

static void judge(const struct operation *operation, int result) {
    int code = code_of(operation);
    shmp_error poisoned;
    memset(&poisoned, 0x5a, sizeof poisoned);
    if (result == 0) {
        CHECK_EQUAL(code, 0);
        CHECK(memcmp(&error, &poisoned, sizeof error) == 0);
        use_outputs(operation);
        return;
    }
    if (memcmp(&error, &poisoned, sizeof error) == 0) {
        check_failed(__FILE__, __LINE__, "reterr is not filled");
        return;
    }
    const char *blamed = blamed_of(code);
    refuses(result, code, code == SHMP_EOS ? fault.error : 0, strcmp(blamed, "GetTokenInformation") ? "" : "TokenUser",
            operation->name);
    CHECK_TEXT(error.call, blamed);
    if (code == SHMP_EOS && fault.error == ERROR_COMMITMENT_LIMIT)
        CHECK(strstr(error.message, "; free memory, or enlarge the page file"));
    if (code != SHMP_EUNAVAILABLE && strcmp(blamed, "GetTokenInformation") != 0)
        CHECK(strpbrk(error.message, "0123456789\"_")); /* the value */
    CHECK(memcmp(&scene.out, &scene.untouched, sizeof scene.out) == 0);
    if (operation->run == run_to_env) CHECK_EQUAL(GetEnvironmentVariableA(variable, NULL, 0), 0);
}

/* Runs the operation with a fault, and then without. */
static void try_fault(const struct operation *operation, const char *call, int occurrence, int number, int is_lasting,
                      const holdings *before) {
    check_subject("%s %s: %s #%d, %d%s", scene.label, operation->name, call, occurrence + 1, number,
                  is_lasting ? ", lasting" : "");
    set_stage();
    arm(call, occurrence, number, is_lasting);
    int result = operation->run(operation->flags);
    CHECK(fault.count > 0);
    judge(operation, result);
    fault.call = NULL;
    clear_stage();
    set_stage();
    if (SUCCEEDS(operation->run(operation->flags))) use_outputs(operation);
    clear_stage();
    check_held(before);
    check_subject("");
}

static long try_operation(const struct operation *operation) {
    const char *trace[TRACE_ROOM];
    char made[600] = "";
    long count = 0;
    check_subject("%s %s", scene.label, operation->name);
    set_stage();
    fault.length = 0;
    fault.is_recording = 1;
    int result = operation->run(operation->flags);
    fault.is_recording = 0;
    if (succeeds(result, operation->name)) use_outputs(operation);
    clear_stage();
    const holdings before = held();
    int length = fault.length;
    memcpy(trace, fault.trace, sizeof trace);
    for (int i = 0; i < length; i++) snprintf(made + strlen(made), sizeof made - strlen(made), " %s", trace[i]);
    if (operation->calls) CHECK_TEXT(made + !!*made, operation->calls);
    for (int i = 0; i < length; i++) {
        int occurrence = 0;
        size_t page = 0;
        for (int j = 0; j < i; j++) occurrence += strcmp(trace[j], trace[i]) == 0;
        while (page < LENGTH(pages) && strcmp(pages[page].call, trace[i]) != 0) page++;
        if (!CHECK(page < LENGTH(pages))) continue; /* a call has no row */
        for (const int *number = pages[page].errors; *number; number++, count += 2) {
            try_fault(operation, trace[i], occurrence, *number, 0, &before);
            try_fault(operation, trace[i], occurrence, *number, 1, &before);
        }
    }
    return count;
}

static void test_faults(void) {
    long count = 0;
    for (size_t i = 0; i < LENGTH(labels); i++) {
        scene.label = labels[i];
        scene.provider = opened(labels[i]);
        for (size_t j = 0; j < LENGTH(operations); j++) count += try_operation(&operations[j]);
        shmp_provider_close(scene.provider);
    }
    printf("# %ld faults\n", count);
    CHECK(count > 500);
}

/* ---- Segments --------------------------------------------------------------------------------------- */

static void test_versions(void) {
    CHECK_EQUAL(shmp_check_abi(&error), 0);
    CHECK_TEXT(shmp_version(), SHMP_VERSION);
}

static void test_providers(void) {
    static const char *const others[] = {"memfd", "posix", "sysv", "ashmem"};
    const char *name = NULL;
    shmp_provider *provider = NULL;
    const shmp_provider_options options = {.struct_size = sizeof options, .flags = SHMP_FD_IDS};
    CHECK_EQUAL(shmp_available(0, &name, &error), 0);
    CHECK_TEXT(name, "win32");
    CHECK_EQUAL(shmp_available(1, &name, &error), 0);
    CHECK_TEXT(name, "nop");
    CHECK_EQUAL(shmp_available(2, &name, &error), -SHMP_EINVAL);
    for (size_t i = 0; i < LENGTH(others); i++)
        REFUSES(shmp_provider_open(others[i], NULL, &provider, &error), SHMP_EUNAVAILABLE, others[i]);
    REFUSES(shmp_provider_open("shm", NULL, &provider, &error), SHMP_EINVAL, "std, win32, nop");
    REFUSES(shmp_provider_open("win32", &options, &provider, &error), SHMP_EINVAL, "0x1");
    CHECK(SetEnvironmentVariableA("SHMEM_PROVIDER", "nop"));
    REFUSES(shmp_provider_open("std", NULL, &provider, &error), SHMP_EINVAL, "nop is opened by name only");
    (void)SetEnvironmentVariableA("SHMEM_PROVIDER", NULL);
    CHECK(!provider);
}

/* A later program: what this library does not know is refused if it is set, and not filled in. */
static void test_growth(void) {
    struct {
        shmp_provider_options known;
        size_t later;
    } options = {.known = {.struct_size = sizeof options}};
    struct {
        shmp_limits known;
        size_t later;
    } limits = {.known = {.struct_size = sizeof limits}, .later = 7};
    shmp_provider *provider = NULL;
    options.later = 1;
    REFUSES(shmp_provider_open("win32", &options.known, &provider, &error), SHMP_EINVAL, "does not know");
    options.known.struct_size = 8;
    REFUSES(shmp_provider_open("win32", &options.known, &provider, &error), SHMP_EINVAL, "8");
    options.known.struct_size = sizeof options;
    options.later = 0;
    REQUIRE(SUCCEEDS(shmp_provider_open("win32", &options.known, &provider, &error)));
    SUCCEEDS(shmp_provider_limits(provider, &limits.known, &error));
    CHECK_EQUAL(limits.known.struct_size, sizeof limits.known);
    CHECK_EQUAL(limits.later, 7);
    CHECK(limits.known.bytes > 0);
    limits.known.struct_size = 8;
    REFUSES(shmp_provider_limits(provider, &limits.known, &error), SHMP_EINVAL, "8");
    shmp_provider_close(provider);
}

static void test_create(void) {
    shmp_provider *provider = opened("std");
    shmp_shmem *shmem = NULL;
    shmp_description description;
    CHECK_TEXT(shmp_provider_name(provider), "win32");
    REQUIRE(SUCCEEDS(shmp_create(provider, BYTES, SHMP_RESERVE, &shmem, &error)));
    CHECK_EQUAL(shmp_size(shmem), BYTES);
    CHECK_EQUAL(shmp_fileno(shmem), -1);
    CHECK_EQUAL(shmp_flags(shmem), SHMP_OWNER);
    CHECK_TEXT(shmp_backend(shmem), "win32");
    for (size_t i = 0; i < BYTES; i++)
        if (!CHECK_EQUAL(((char *)shmp_data(shmem))[i], 0)) break;
    SUCCEEDS(shmp_describe(shmem, &description, &error)); /* as the Rust crate names them */
    CHECK(strncmp(description.id, "libafl_", 7) == 0 && strspn(description.id + 7, "0123456789abcdef") == 12);
    CHECK_EQUAL(strlen(description.id), 19);
    REFUSES(shmp_create(provider, 0, 0, &shmem, &error), SHMP_EINVAL, "size 0");
    REFUSES(shmp_create(provider, SIZE_MAX, 0, &shmem, &error), SHMP_EOVERFLOW, "size");
    REFUSES(shmp_create(provider, 1, SHMP_READ_ONLY, &shmem, &error), SHMP_EINVAL, "flags 0x1");
    REFUSES(shmp_create(provider, 1, SHMP_LINGER, &shmem, &error), SHMP_EUNSUPPORTED, "win32");
    REFUSES(shmp_create_named(provider, "/mine", 1, 0, &shmem, &error), SHMP_EUNSUPPORTED, "win32");
    SUCCEEDS(shmp_close(shmem, &error));
    shmp_provider_close(provider);
}

static void test_attach(void) {
    shmp_provider *provider = opened("std");
    shmp_shmem *shmem, *other, *third = NULL;
    shmp_description description;
    REQUIRE(SUCCEEDS(shmp_create(provider, BYTES, 0, &shmem, &error)));
    SUCCEEDS(shmp_describe(shmem, &description, &error));
    SUCCEEDS(shmp_attach(provider, &description, SHMP_READ_ONLY, &other, &error));
    CHECK_EQUAL(shmp_flags(other), SHMP_READ_ONLY);
    CHECK_EQUAL(protection_of(shmp_data(other)), PAGE_READONLY);
    CHECK_EQUAL(protection_of(shmp_data(shmem)), PAGE_READWRITE);
    use(shmem, other);
    description.size = WHOLE + 1; /* whole pages are known */
    CHECK_EQUAL(shmp_attach(provider, &description, 0, &third, &error), -SHMP_ESIZE);
    CHECK_EQUAL(shmp_attach(provider, &description, SHMP_WHOLE, &third, &error), 0);
    CHECK_EQUAL(shmp_size(third), WHOLE);
    SUCCEEDS(shmp_close(shmem, &error)); /* it lives on, and by its name, too */
    SUCCEEDS(shmp_close(third, &error));
    description.size = 1;
    SUCCEEDS(shmp_attach(provider, &description, 0, &third, &error));
    CHECK_EQUAL(*(char *)shmp_data(third), *(char *)shmp_data(other));
    SUCCEEDS(shmp_close(third, &error));
    SUCCEEDS(shmp_close(other, &error));
    REFUSES(shmp_attach(provider, &description, 0, &third, &error), SHMP_ENOTFOUND, description.id);
    shmp_provider_close(provider);
}

/* Handles on one mapping, or with other rights on one of their own. */
static void test_clones(void) {
    shmp_provider *provider = opened("std");
    shmp_shmem *shmem, *shared, *read, *again, *inherited;
    shmp_description description, other;
    REQUIRE(SUCCEEDS(shmp_create(provider, BYTES, 0, &shmem, &error)));
    SUCCEEDS(shmp_describe(shmem, &description, &error));
    /* the name is not asked: the rights that it takes may be gone */
    arm("OpenFileMappingA", 0, ERROR_ACCESS_DENIED, 1);
    REQUIRE(SUCCEEDS(shmp_clone(shmem, 0, &shared, &error)));
    REQUIRE(SUCCEEDS(shmp_clone(shared, SHMP_READ_ONLY, &read, &error)));
    REQUIRE(SUCCEEDS(shmp_clone(read, 0, &again, &error)));
    REQUIRE(SUCCEEDS(shmp_clone(shmem, SHMP_INHERIT, &inherited, &error)));
    CHECK_EQUAL(fault.seen, 0);
    fault.call = NULL;
    REFUSES(shmp_clone(shmem, SHMP_WHOLE, &again, &error), SHMP_EINVAL, "0x8");
    CHECK(shmp_data(shared) == shmp_data(shmem) && shmp_data(again) == shmp_data(read));
    CHECK(shmp_data(read) != shmp_data(shmem) && shmp_data(inherited) != shmp_data(shmem));
    CHECK_EQUAL(shmp_flags(shared), 0);
    CHECK_EQUAL(shmp_flags(again), SHMP_READ_ONLY);
    CHECK_EQUAL(protection_of(shmp_data(read)), PAGE_READONLY);
    CHECK_EQUAL(protection_of(shmp_data(inherited)), PAGE_READWRITE);
    use(shmem, read);
    use(inherited, shared);
    shmp_shmem *const all[] = {shmem, shared, read, inherited, again};
    for (size_t i = 0; i < LENGTH(all); i++) { /* each keeps it, its name and its size */
        SUCCEEDS(shmp_describe(all[i], &other, &error));
        CHECK_TEXT(other.id, description.id);
        CHECK_EQUAL(other.size, BYTES);
        shmp_shmem *attached = NULL;
        SUCCEEDS(shmp_attach(provider, &description, 0, &attached, &error));
        use(attached, all[i]);
        SUCCEEDS(shmp_close(attached, &error));
        SUCCEEDS(shmp_close(all[i], &error));
    }
    REFUSES(shmp_attach(provider, &description, 0, &again, &error), SHMP_ENOTFOUND, description.id);
    shmp_provider_close(provider);
}

static void test_unmapped(void) {
    shmp_provider *provider = opened("std");
    shmp_shmem *shmem, *shared, *read, *attached;
    shmp_description description;
    REQUIRE(SUCCEEDS(shmp_create(provider, BYTES, SHMP_UNMAPPED, &shmem, &error)));
    REQUIRE(SUCCEEDS(shmp_clone(shmem, 0, &shared, &error)));
    REQUIRE(SUCCEEDS(shmp_clone(shmem, SHMP_READ_ONLY, &read, &error)));
    CHECK(!shmp_data(shmem) && !shmp_data(shared) && shmp_data(read));
    CHECK_EQUAL(shmp_size(shmem), BYTES);
    SUCCEEDS(shmp_describe(shmem, &description, &error));
    REQUIRE(SUCCEEDS(shmp_attach(provider, &description, 0, &attached, &error)));
    use(attached, read);
    shmp_shmem *const all[] = {attached, read, shmem};
    for (size_t i = 0; i < LENGTH(all); i++) SUCCEEDS(shmp_close(all[i], &error));
    SUCCEEDS(shmp_attach(provider, &description, 0, &attached, &error)); /* by the handle of the one that shares */
    SUCCEEDS(shmp_close(shared, &error));
    SUCCEEDS(shmp_close(attached, &error));
    shmp_provider_close(provider);
}

/* Closed, but for the memory: the name goes with the last handle, the bytes with the view. */
static void test_memory_that_outlives(void) {
    shmp_provider *provider = opened("std");
    shmp_shmem *shmem, *clone, *other = NULL;
    shmp_description description;
    REQUIRE(SUCCEEDS(shmp_create(provider, BYTES, 0, &shmem, &error)));
    REQUIRE(SUCCEEDS(shmp_clone(shmem, 0, &clone, &error)));
    SUCCEEDS(shmp_describe(shmem, &description, &error));
    CHECK_EQUAL(shmp__retire(shmem, &error), 0);
    CHECK_EQUAL(shmp_flags(shmem), 0);
    SUCCEEDS(shmp_attach(provider, &description, 0, &other, &error)); /* the clone is open */
    use(shmem, other);
    SUCCEEDS(shmp_close(other, &error));
    CHECK_EQUAL(shmp__retire(clone, &error), 0);
    REFUSES(shmp_attach(provider, &description, 0, &other, &error), SHMP_ENOTFOUND, description.id);
    use(shmem, clone);
    SUCCEEDS(shmp_close(shmem, &error));
    use(clone, clone);
    SUCCEEDS(shmp_close(clone, &error));
    shmp_provider_close(provider);
}

static void test_descriptors_are_refused(void) {
    for (size_t i = 0; i < LENGTH(labels); i++) {
        shmp_provider *provider = opened(labels[i]);
        shmp_shmem *shmem = NULL;
        shmp_description description = description_of("", BYTES);
        REFUSES(shmp_attach_fd(provider, 0, &description, 0, &shmem, &error), SHMP_EUNSUPPORTED, "no descriptors");
        REFUSES(shmp_attach_fd(provider, -1, &description, 0, &shmem, &error), SHMP_EINVAL, "-1");
        CHECK(!shmem);
        shmp_provider_close(provider);
    }
}

static void test_garbage(void) {
    static const struct {
        const char *id;
        int code;
    } rows[] = {
        {"", SHMP_EID},
        {"a b", SHMP_EID},
        {"\x7f", SHMP_EID},
        {"Global\\x", SHMP_EID},
        {"\\", SHMP_EID},
        {"libafl_", SHMP_ENOTFOUND},
        {"12", SHMP_ENOTFOUND},
        {"/shmp_x", SHMP_ENOTFOUND},
        {"shmp_t_mutex", SHMP_EID},
    };
    shmp_shmem *shmem = NULL;
    HANDLE mutex = CreateMutexA(NULL, FALSE, "shmp_t_mutex");
    for (size_t i = 0; i < 2 * LENGTH(rows); i++) {
        shmp_provider *provider = opened(labels[i % 2]);
        shmp_description description = description_of(rows[i / 2].id, 1);
        check_subject("%s \"%s\"", labels[i % 2], rows[i / 2].id);
        CHECK_EQUAL(shmp_attach(provider, &description, 0, &shmem, &error), -rows[i / 2].code);
        memset(description.id, 'x', sizeof description.id);
        REFUSES(shmp_attach(provider, &description, 0, &shmem, &error), SHMP_EID, "no end");
        shmp_provider_close(provider);
    }
    check_subject("");
    CHECK(!shmem && CloseHandle(mutex));
}

/* Whose name it is, is never opened, mapped or kept; faults say that another name is then taken. */
static void test_taken_name(void) {
    static const char section_name[] = "shmp_t_section", mutex_name[] = "shmp_t_mutex";
    HANDLE theirs = CreateFileMappingA(INVALID_HANDLE_VALUE, NULL, PAGE_READWRITE, 0, BYTES, section_name);
    HANDLE mutex = CreateMutexA(NULL, FALSE, mutex_name);
    char *view = MapViewOfFile(theirs, FILE_MAP_WRITE, 0, 0, 0);
    REQUIRE(theirs && mutex && view);
    *view = 7;
    holdings before = held();
    void *section = NULL;
    CHECK_EQUAL(shmp__os_section_create(section_name, BYTES, NULL, &section), -SHMP__WIN_ALREADY_EXISTS);
    CHECK_EQUAL(shmp__os_section_create(mutex_name, BYTES, NULL, &section), -SHMP__WIN_INVALID_HANDLE);
    CHECK(!section);
    CHECK_EQUAL(*view, 7);
    check_held(&before);
    CHECK(UnmapViewOfFile(view) && CloseHandle(theirs) && CloseHandle(mutex));

    shmp_provider *provider = opened("win32");
    shmp_shmem *shmem = NULL;
    arm("CreateFileMappingA", 0, ERROR_ALREADY_EXISTS, 1);
    CHECK_EQUAL(shmp_create(provider, BYTES, 0, &shmem, &error), -SHMP_EOS);
    CHECK_EQUAL(fault.count, NAME_TRIES);
    fault.call = NULL;
    shmp_provider_close(provider);
}

static void test_what_windows_does_not_tell(void) {
    shmp_provider *provider = opened("std");
    shmp_shmem *shmem;
    int visited = 0;
    REQUIRE(SUCCEEDS(shmp_create(provider, BYTES, 0, &shmem, &error)));
    REFUSES(shmp_list(provider, (shmp_visitor)(void (*)(void))abort, &visited, &error), SHMP_EUNSUPPORTED, "win32");
    REFUSES(shmp_users(shmem, (shmp_user_visitor)(void (*)(void))abort, NULL, &error), SHMP_EUNSUPPORTED, "system");
    CHECK_EQUAL(shmp_reap(provider, 0, NULL, NULL, &error), 0);
    SUCCEEDS(shmp_close(shmem, &error));
    shmp_provider_close(provider);
}

/* Its list has one entry, and that is this user's. */
static void test_only_this_user(void) {
    shmp_provider *provider = opened("win32");
    shmp_shmem *shmem;
    shmp_description description;
    union {
        SECURITY_DESCRIPTOR descriptor;
        TOKEN_USER user;
        unsigned char room[512];
    } security, token;
    DWORD length;
    BOOL is_present, is_default;
    ACL *list = NULL;
    void *entry = NULL;
    HANDLE process = NULL;
    REQUIRE(SUCCEEDS(shmp_create(provider, BYTES, 0, &shmem, &error)));
    SUCCEEDS(shmp_describe(shmem, &description, &error));
    HANDLE section = OpenFileMappingA(READ_CONTROL, FALSE, description.id);
    REQUIRE(section && OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &process));
    CHECK(GetTokenInformation(process, TokenUser, &token, sizeof token, &length));
    CHECK(GetKernelObjectSecurity(section, DACL_SECURITY_INFORMATION, &security, sizeof security, &length));
    REQUIRE(GetSecurityDescriptorDacl(&security, &is_present, &list, &is_default) && is_present && list);
    CHECK_EQUAL(list->AceCount, 1);
    CHECK(GetAce(list, 0, &entry) && EqualSid(&((ACCESS_ALLOWED_ACE *)entry)->SidStart, token.user.User.Sid));
    CHECK(CloseHandle(section) && CloseHandle(process));
    SUCCEEDS(shmp_close(shmem, &error));
    shmp_provider_close(provider);
}

/* Both halves of a 64-bit size count. A page file that is too small is an error, here and not at first use. */
static void test_more_than_4_gib(void) {
#if SIZE_MAX > 0xffffffffu
    const size_t size = ((size_t)1 << 32) + BYTES;
    shmp_provider *provider = opened("win32");
    shmp_shmem *shmem, *other;
    shmp_description description;
    int result = shmp_create(provider, size, 0, &shmem, &error);
    if (result < 0) {
        printf("# 4 GiB: %s: %s\n", error.call, error.message);
        CHECK(refuses(result, SHMP_EOS, ERROR_COMMITMENT_LIMIT, "enlarge the page file", "shmp_create"));
    } else {
        SUCCEEDS(shmp_describe(shmem, &description, &error));
        CHECK_EQUAL(description.size, size);
        REQUIRE(SUCCEEDS(shmp_attach(provider, &description, 0, &other, &error)));
        ((char *)shmp_data(shmem))[size - 1] = 7;
        CHECK_EQUAL(((char *)shmp_data(other))[size - 1], 7);
        CHECK_EQUAL(*(char *)shmp_data(other), 0);
        SUCCEEDS(shmp_close(other, &error));
        SUCCEEDS(shmp_close(shmem, &error));
    }
    shmp_provider_close(provider);
#endif
}

enum { THREADS = 4, ROUNDS = 200 };

static DWORD WINAPI play(void *argument) {
    shmp_shmem *shmem = argument, *other;
    shmp_description description;
    for (int round = 0; round < ROUNDS; round++) {
        unsigned flags = round % 2 ? SHMP_INHERIT : 0u; /* a mapping of its own, or the same */
        if (shmp_describe(shmem, &description, NULL) < 0 || shmp_clone(shmem, flags, &other, NULL) < 0) return 1;
        InterlockedIncrement(shmp_data(other));
        if (shmp_size(other) != description.size || shmp_close(other, NULL) < 0) return 1;
    }
    return 0;
}

static void test_threads(void) {
    shmp_provider *provider = opened("std");
    shmp_shmem *shmem;
    HANDLE threads[THREADS];
    REQUIRE(SUCCEEDS(shmp_create(provider, BYTES, 0, &shmem, &error)));
    for (int i = 0; i < THREADS; i++) threads[i] = CreateThread(NULL, 0, play, shmem, 0, NULL);
    CHECK_EQUAL(WaitForMultipleObjects(THREADS, threads, TRUE, PATIENCE), WAIT_OBJECT_0);
    for (int i = 0; i < THREADS; i++) {
        DWORD code = 99;
        CHECK(GetExitCodeThread(threads[i], &code) && code == 0 && CloseHandle(threads[i]));
    }
    CHECK_EQUAL(*(long *)shmp_data(shmem), THREADS * ROUNDS);
    SUCCEEDS(shmp_close(shmem, &error));
    shmp_provider_close(provider);
}

/* ---- Another process -------------------------------------------------------------------------------- */

typedef struct peer_process {
    PROCESS_INFORMATION process;
    HANDLE to, from;
} peer_process;

static int start(peer_process *ret_peer, const char *arguments) {
    SECURITY_ATTRIBUTES inherited = {sizeof inherited, NULL, TRUE};
    STARTUPINFOA startup;
    char self[MAX_PATH], command[2 * MAX_PATH];
    memset(&startup, 0, sizeof startup);
    startup.cb = sizeof startup;
    startup.dwFlags = STARTF_USESTDHANDLES;
    startup.hStdError = GetStdHandle(STD_ERROR_HANDLE);
    CHECK(CreatePipe(&startup.hStdInput, &ret_peer->to, &inherited, 0));
    CHECK(CreatePipe(&ret_peer->from, &startup.hStdOutput, &inherited, 0));
    CHECK(SetHandleInformation(ret_peer->to, HANDLE_FLAG_INHERIT, 0)); /* or its input never ends */
    CHECK(SetHandleInformation(ret_peer->from, HANDLE_FLAG_INHERIT, 0));
    GetModuleFileNameA(NULL, self, sizeof self);
    snprintf(command, sizeof command, "\"%s\" --child %s", self, arguments);
    int is_started = CreateProcessA(NULL, command, NULL, NULL, TRUE, 0, NULL, NULL, &startup, &ret_peer->process);
    CloseHandle(startup.hStdInput);
    CloseHandle(startup.hStdOutput);
    return CHECK(is_started);
}

/* Its next answer. */
static const char *heard(const peer_process *peer) {
    static char line[100];
    DWORD got, used = 0;
    while (used < sizeof line - 1 && ReadFile(peer->from, line + used, 1, &got, NULL) && got && line[used] != '\n')
        used++;
    line[used] = 0;
    return line;
}

static void end(peer_process *peer, DWORD expected) {
    DWORD code = 99;
    CloseHandle(peer->to);
    CHECK_EQUAL(WaitForSingleObject(peer->process.hProcess, PATIENCE), WAIT_OBJECT_0);
    CHECK(GetExitCodeProcess(peer->process.hProcess, &code));
    CHECK_EQUAL(code, expected);
    CloseHandle(peer->from);
    CloseHandle(peer->process.hThread);
    CloseHandle(peer->process.hProcess);
}

static void say(const char *text) {
    printf("%s\n", text);
    fflush(stdout);
}

/* Lives until its input ends. */
static int be_child(const char *role, const char *id, size_t size) {
    shmp_provider *provider = opened("std");
    shmp_description description = description_of(id, size);
    shmp_shmem *shmem = NULL;
    if (strcmp(role, "idle") == 0) {
        say("here");
    } else if (strcmp(role, "own") == 0) {
        SUCCEEDS(shmp_create(provider, BYTES, 0, &shmem, &error));
        SUCCEEDS(shmp_describe(shmem, &description, &error));
        *(char *)shmp_data(shmem) = 9;
        say(description.id);
    } else {
        if (strcmp(role, "environment") == 0)
            SUCCEEDS(shmp_from_env(provider, variable, 0, &shmem, &error));
        else
            SUCCEEDS(shmp_attach(provider, &description, 0, &shmem, &error));
        char *data = shmp_data(shmem);
        CHECK_EQUAL(shmp_size(shmem), BYTES);
        CHECK_EQUAL(data[BYTES - 1], 5);
        CHECK_EQUAL(shmp_flags(shmem), 0);
        data[BYTES - 1] = 6;
        say("attached");
    }
    while (getchar() != EOF) continue;
    SUCCEEDS(shmp_close(shmem, &error));
    shmp_provider_close(provider);
    return shmp__atomic_load(&check_failures) != 0;
}

static void exchange(const char *role) {
    shmp_provider *provider = opened("win32");
    shmp_shmem *shmem;
    shmp_description description;
    peer_process other;
    char arguments[100];
    REQUIRE(SUCCEEDS(shmp_create(provider, BYTES, 0, &shmem, &error)));
    SUCCEEDS(shmp_describe(shmem, &description, &error));
    SUCCEEDS(shmp_to_env(shmem, variable, &error));
    ((char *)shmp_data(shmem))[BYTES - 1] = 5;
    snprintf(arguments, sizeof arguments, "%s %s %d", role, description.id, BYTES);
    REQUIRE(start(&other, arguments));
    CHECK_TEXT(heard(&other), "attached\r");
    CHECK_EQUAL(((char *)shmp_data(shmem))[BYTES - 1], 6);
    SUCCEEDS(shmp_close(shmem, &error));
    SUCCEEDS(shmp_attach(provider, &description, 0, &shmem, &error)); /* it lives by the other process */
    CHECK_EQUAL(((char *)shmp_data(shmem))[BYTES - 1], 6);
    SUCCEEDS(shmp_close(shmem, &error));
    end(&other, 0);
    REFUSES(shmp_attach(provider, &description, 0, &shmem, &error), SHMP_ENOTFOUND, description.id);
    (void)SetEnvironmentVariableA(variable, NULL);
    (void)SetEnvironmentVariableA(variable_size, NULL);
    shmp_provider_close(provider);
}

static void test_another_process_attaches(void) { exchange("attach"); }

static void test_another_process_takes_the_environment(void) { exchange("environment"); }

/* What a killed owner leaves goes with its last user. */
static void test_killed_owner(void) {
    shmp_provider *provider = opened("std");
    shmp_shmem *shmem = NULL;
    peer_process owner;
    REQUIRE(start(&owner, "own x 1"));
    const char *id = heard(&owner);
    shmp_description description = description_of("", BYTES);
    memcpy(description.id, id, strcspn(id, "\r"));
    REQUIRE(SUCCEEDS(shmp_attach(provider, &description, 0, &shmem, &error)));
    CHECK(TerminateProcess(owner.process.hProcess, 44));
    end(&owner, 44);
    CHECK_EQUAL(*(char *)shmp_data(shmem), 9);
    SUCCEEDS(shmp_close(shmem, &error));
    REFUSES(shmp_attach(provider, &description, 0, &shmem, &error), SHMP_ENOTFOUND, description.id);
    shmp_provider_close(provider);
}

/* A child that knows nothing of it keeps a segment whose handle it inherits, and no other. */
static void test_inherited_handles(void) {
    shmp_provider *provider = opened("std");
    shmp_shmem *shmem[3];
    shmp_description description[3];
    peer_process other;
    for (int i = 0; i < 3; i++) {
        REQUIRE(SUCCEEDS(shmp_create(provider, BYTES, i == 1 ? SHMP_INHERIT : 0, &shmem[i], &error)));
        SUCCEEDS(shmp_describe(shmem[i], &description[i], &error));
    }
    SUCCEEDS(shmp_persist(shmem[2], &error));
    REQUIRE(start(&other, "idle x 1"));
    CHECK_TEXT(heard(&other), "here\r");
    for (int i = 0; i < 3; i++) SUCCEEDS(shmp_close(shmem[i], &error));
    for (int i = 0; i < 3; i++) {
        check_subject("segment %d", i);
        shmem[i] = NULL;
        CHECK_EQUAL(shmp_attach(provider, &description[i], 0, &shmem[i], &error), i == 0 ? -SHMP_ENOTFOUND : 0);
        SUCCEEDS(shmp_close(shmem[i], &error));
    }
    check_subject("");
    end(&other, 0);
    REFUSES(shmp_attach(provider, &description[1], 0, &shmem[1], &error), SHMP_ENOTFOUND, description[1].id);
    shmp_provider_close(provider);
}

/* ---- Running --------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    {"versions", test_versions},
    {"providers", test_providers},
    {"create", test_create},
    {"attach", test_attach},
    {"growth", test_growth},
    {"clones", test_clones},
    {"unmapped", test_unmapped},
    {"memory_that_outlives", test_memory_that_outlives},
    {"descriptors_are_refused", test_descriptors_are_refused},
    {"garbage", test_garbage},
    {"taken_name", test_taken_name},
    {"what_windows_does_not_tell", test_what_windows_does_not_tell},
    {"only_this_user", test_only_this_user},
    {"more_than_4_gib", test_more_than_4_gib},
    {"threads", test_threads},
    {"another_process_attaches", test_another_process_attaches},
    {"another_process_takes_the_environment", test_another_process_takes_the_environment},
    {"killed_owner", test_killed_owner},
    {"inherited_handles", test_inherited_handles},
    {"faults", test_faults},
};

int main(int argc, char **argv) {
    if (argc == 5 && strcmp(argv[1], "--child") == 0) return be_child(argv[2], argv[3], (size_t)atoi(argv[4]));
    (void)SetEnvironmentVariableA("SHMEM_PROVIDER", NULL);
    int failed = 0;
    for (size_t i = 0; i < LENGTH(tests); i++) {
        if (argc > 1 && !strstr(tests[i].name, argv[1])) continue;
        if (tests[i].run != test_faults) tests[i].run(); /* what is loaded at first use stays */
        holdings before = held();
        unsigned failures = shmp__atomic_load(&check_failures);
        tests[i].run();
        check_held(&before);
        int is_failed = shmp__atomic_load(&check_failures) != failures;
        failed += is_failed;
        printf("%s %s\n", is_failed ? "FAIL" : "ok", tests[i].name);
        fflush(stdout);
    }
    return failed > 0 || shmp__atomic_load(&check_failures) > 0;
}
