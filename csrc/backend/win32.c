/* win32: CreateFileMappingA, MapViewOfFile. Windows; sections of the page file, in the session's namespace.
 *
 * Lifetime: with the last handle and view; nothing survives a killed process. The id is the section's
 * name, as the Rust crate makes it, and any name can be attached to. Windows commits the memory at
 * creation, so that a full page file is an error there and never later. Only this user may open it.
 * Sizes of others' sections are known in whole pages. Cannot: a descriptor, a list of what there is. */
#include "core/platform.h"
#if SHMP_HAVE_WIN32
#include "core/core.h"
#include "os/os_win32.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { RANDOM_BYTES = 6, NAME_TRIES = 100, MOST_HANDLES = 1 << 24 /* of one process */ };

static int win32_open(shmp_provider *provider, shmp_error *reterr) {
    provider->memory = shmp__os_allocate(shmp__os_security_size);
    if (!provider->memory) return shmp__fail(reterr, SHMP_ENOMEM, "malloc", "%zu bytes", shmp__os_security_size);
    int result = shmp__os_only_this_user(provider->memory);
    return result < 0 ? shmp__fail_os(reterr, result, "GetTokenInformation", "TokenUser of this process") : 0;
}

static int random_name(char ret_name[SHMP__ID_SIZE], shmp_error *reterr) {
    unsigned char bytes[RANDOM_BYTES];
    int result = shmp__os_random(bytes, sizeof bytes);
    if (result < 0) return shmp__fail_os(reterr, result, "rand_s", "%zu bytes for a name", sizeof bytes);
    int used = snprintf(ret_name, SHMP__ID_SIZE, "libafl_");
    for (int i = 0; i < RANDOM_BYTES; i++)
        used += snprintf(ret_name + used, (size_t)(SHMP__ID_SIZE - used), "%02x", bytes[i]);
    return 0;
}

static int create_section(shmp_shmem *shmem, shmp_error *reterr) {
    int result = -SHMP__WIN_ALREADY_EXISTS;
    /* INVALID_HANDLE: something that is no section has that name */
    for (int tries = 0;
         (result == -SHMP__WIN_ALREADY_EXISTS || result == -SHMP__WIN_INVALID_HANDLE) && tries < NAME_TRIES; tries++) {
        int failed = random_name(shmem->name, reterr);
        if (failed < 0) return failed;
        result = shmp__os_section_create(shmem->name, shmem->size, shmem->provider->memory, &shmem->section);
    }
    return result < 0
               ? shmp__fail_os(reterr, result, "CreateFileMappingA", "%zu bytes as \"%s\"", shmem->size, shmem->name)
               : 0;
}

static int map(shmp_shmem *shmem, shmp_error *reterr) {
    int result = shmp__os_section_map(shmem->section, !!(shmem->flags & SHMP_READ_ONLY), &shmem->data);
    return result < 0 ? shmp__fail_os(reterr, result, "MapViewOfFile", "%zu bytes of \"%s\"", shmem->size, shmem->name)
                      : 0;
}

static int win32_create(shmp_shmem *shmem, const char *name, shmp_error *reterr) {
    (void)name;
    int result = create_section(shmem, reterr);
    if (result < 0) return result;
    result = map(shmem, reterr);
    if (result < 0) (void)shmp__os_handle_close(shmem->section);
    return result;
}

/* A backslash names another namespace, such as Global\, which takes rights. */
static int is_name(const char *id) { return *id && !strchr(id, '\\'); }

static int open_section(shmp_shmem *shmem, const char *id, shmp_error *reterr) {
    int result = shmp__os_section_open(id, !!(shmem->flags & SHMP_READ_ONLY), &shmem->section);
    switch (-result) {
    case 0: return 0;
    case SHMP__WIN_FILE_NOT_FOUND:
        return shmp__fail(reterr, SHMP_ENOTFOUND, "OpenFileMappingA",
                          "\"%s\": its last user let go, or it is of another session", id);
    case SHMP__WIN_PATH_NOT_FOUND:
    case SHMP__WIN_INVALID_NAME:
    case SHMP__WIN_INVALID_HANDLE:
        return shmp__fail(reterr, SHMP_EID, "OpenFileMappingA", "\"%s\" is no shared memory", id);
    case SHMP__WIN_ACCESS_DENIED:
        return shmp__fail_os(reterr, result, "OpenFileMappingA", "\"%s\" is another user's, or read-only", id);
    default: return shmp__fail_os(reterr, result, "OpenFileMappingA", "\"%s\"", id);
    }
}

static int map_checked(shmp_shmem *shmem, shmp_error *reterr) {
    size_t size;
    int result = map(shmem, reterr);
    if (result < 0) return result;
    int failed = shmp__os_section_size(shmem->data, &size);
    if (failed < 0)
        result = shmp__fail_os(reterr, failed, "VirtualQuery", "\"%s\"", shmem->name);
    else if (size < shmem->size)
        result = shmp__fail(reterr, SHMP_ESIZE, "VirtualQuery", "\"%s\" has %zu bytes, the description says %zu",
                            shmem->name, size, shmem->size);
    if (result < 0)
        (void)shmp__os_unmap(shmem->data, shmem->size);
    else if (shmem->flags & SHMP_WHOLE)
        shmem->size = size;
    return result;
}

static int win32_attach(shmp_shmem *shmem, const char *id, shmp_error *reterr) {
    if (!is_name(id))
        return shmp__fail(reterr, SHMP_EID, "shmp_attach", "\"%s\": a win32 id is a name without a backslash", id);
    memcpy(shmem->name, id, SHMP__ID_SIZE);
    int result = open_section(shmem, id, reterr);
    if (result < 0) return result;
    result = map_checked(shmem, reterr);
    if (result < 0) (void)shmp__os_handle_close(shmem->section);
    return result;
}

static int win32_close(shmp_shmem *shmem, shmp_error *reterr) {
    int result = 0, failed = shmp__os_unmap(shmem->data, shmem->size);
    if (failed < 0) result = shmp__fail_os(reterr, failed, "UnmapViewOfFile", "\"%s\"", shmem->name);
    failed = shmp__os_handle_close(shmem->section);
    if (failed < 0 && result == 0) result = shmp__fail_os(reterr, failed, "CloseHandle", "\"%s\"", shmem->name);
    return result;
}

static int win32_persist(shmp_shmem *shmem, shmp_error *reterr) {
    int result = shmp__os_handle_inherit(shmem->section);
    return result < 0 ? shmp__fail_os(reterr, result, "SetHandleInformation", "\"%s\"", shmem->name) : 0;
}

static int win32_describe(const shmp_shmem *shmem, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    (void)reterr;
    memcpy(ret_id, shmem->name, SHMP__ID_SIZE);
    return 0;
}

static int win32_list(shmp_provider *provider, shmp_visitor visit, void *context, shmp_error *reterr) {
    (void)provider, (void)visit, (void)context;
    return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_list", "Windows does not list sections");
}

static int win32_limits(shmp_provider *provider, shmp_limits *ret_limits, shmp_error *reterr) {
    (void)provider;
    ret_limits->bytes = PTRDIFF_MAX;
    ret_limits->segments = MOST_HANDLES;
    snprintf(ret_limits->advice, sizeof ret_limits->advice, "free memory, or enlarge the page file");
    return shmp__limit_to_memory(ret_limits, reterr);
}

const shmp__ops shmp__win32_ops = {
    .name = "win32",
    .provider_flags = 0,
    .create_flags = SHMP_RESERVE | SHMP_INHERIT,
    .can = SHMP__CAN_FAVOUR,
    .open = win32_open,
    .accepts = is_name,
    .create = win32_create,
    .attach = win32_attach,
    .close = win32_close,
    .persist = win32_persist,
    .describe = win32_describe,
    .list = win32_list,
    .reap = NULL,
    .users = NULL,
    .limits = win32_limits,
};

#endif
