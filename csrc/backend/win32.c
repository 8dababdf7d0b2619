/* win32: CreateFileMappingA, MapViewOfFile. Windows; sections of the page file, in the session's namespace.
 *
 * Lifetime: with the last handle and view; nothing survives a killed process. The id is the section's
 * name, as the Rust crate makes it, and any name can be attached to. Windows commits the memory at
 * creation, so that a full page file is an error there and never later. Only this user may open it; whose a section is
 * that one attaches to is not checked: its name is all that there is. Sizes of others' sections are known in whole
 * pages. Cannot: a descriptor, a list of what there is. */
#include "os/platform.h"
#if SHMP_HAVE_WIN32
#include "core/core.h"
#include "os/os_win32.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RANDOM_DIGITS = 12, NAME_TRIES = 100, MOST_HANDLES = 1 << 24 /* of one process */ };

typedef struct win32_provider {
    shmp_provider base;
    void *security; /* who may open what it creates */
} win32_provider;

typedef struct win32_mapping {
    shmp__mapping base;
    void *section; /* HANDLE */
    char name[SHMP__ID_SIZE];
} win32_mapping;

static win32_mapping *of(shmp__mapping *mapping) { return (win32_mapping *)mapping; }

static int win32_open(shmp_provider *provider, const shmp_provider_options *options, shmp_error *reterr) {
    win32_provider *self = (win32_provider *)provider;
    (void)options;
    self->security = shmp__os_allocate(shmp__os_security_size);
    if (!self->security) return shmp__fail(reterr, SHMP_ENOMEM, "malloc", "%zu bytes", shmp__os_security_size);
    int result = shmp__os_only_this_user(self->security);
    return result < 0 ? shmp__fail_os(reterr, result, "GetTokenInformation", "TokenUser of this process") : 0;
}

static void win32_end(shmp_provider *provider) { free(((win32_provider *)provider)->security); }

static int create_section(shmp__mapping *mapping, shmp_error *reterr) {
    static const char prefix[] = "libafl_";
    win32_mapping *self = of(mapping);
    void *security = ((win32_provider *)mapping->provider)->security;
    int result = -SHMP__WIN_ALREADY_EXISTS;
    memcpy(self->name, prefix, sizeof prefix);
    /* INVALID_HANDLE: something that is no section has that name */
    for (int tries = 0;
         (result == -SHMP__WIN_ALREADY_EXISTS || result == -SHMP__WIN_INVALID_HANDLE) && tries < NAME_TRIES; tries++) {
        int failed = shmp__random_letters(self->name + sizeof prefix - 1, RANDOM_DIGITS, "0123456789abcdef", reterr);
        if (failed < 0) return failed;
        result = shmp__os_section_create(self->name, mapping->size, security, &self->section);
    }
    return result < 0
               ? shmp__fail_os(reterr, result, "CreateFileMappingA", "%zu bytes as \"%s\"", mapping->size, self->name)
               : 0;
}

static int map(shmp__mapping *mapping, shmp_error *reterr) {
    if (mapping->flags & SHMP_UNMAPPED) return 0;
    win32_mapping *self = of(mapping);
    int result = shmp__os_section_map(self->section, !!(mapping->flags & SHMP_READ_ONLY), &mapping->data);
    return result < 0 ? shmp__fail_os(reterr, result, "MapViewOfFile", "%zu bytes of \"%s\"", mapping->size, self->name)
                      : 0;
}

/* The last step, once the section is open: maps it in that way. */
static int map_or_close(shmp__mapping *mapping, int (*how)(shmp__mapping *, shmp_error *), shmp_error *reterr) {
    int result = how(mapping, reterr);
    if (result < 0) (void)shmp__os_handle_close(of(mapping)->section);
    return result;
}

static int win32_create(shmp__mapping *mapping, shmp_error *reterr) {
    int result = create_section(mapping, reterr);
    return result < 0 ? result : map_or_close(mapping, map, reterr);
}

/* A backslash names another namespace, such as Global\, which takes rights. */
static int is_name(const char *id) { return *id && !strchr(id, '\\'); }

static int open_section(shmp__mapping *mapping, const char *id, shmp_error *reterr) {
    int result = shmp__os_section_open(id, !!(mapping->flags & SHMP_READ_ONLY), &of(mapping)->section);
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

static int map_checked(shmp__mapping *mapping, shmp_error *reterr) {
    size_t size;
    int result = map(mapping, reterr);
    if (result < 0) return result;
    int failed = shmp__os_section_size(mapping->data, &size);
    if (failed < 0)
        result = shmp__fail_os(reterr, failed, "VirtualQuery", "\"%s\"", of(mapping)->name);
    else if (size < mapping->size)
        result = shmp__fail(reterr, SHMP_ESIZE, "VirtualQuery", "\"%s\" has %zu bytes, the description says %zu",
                            of(mapping)->name, size, mapping->size);
    if (result < 0)
        (void)shmp__os_unmap(mapping->data, mapping->size);
    else if (mapping->flags & SHMP_WHOLE)
        mapping->size = size;
    return result;
}

static int win32_attach(shmp__mapping *mapping, const char *id, shmp_error *reterr) {
    if (!is_name(id))
        return shmp__fail(reterr, SHMP_EID, "shmp_attach", "\"%s\": a win32 id is a name without a backslash", id);
    memcpy(of(mapping)->name, id, SHMP__ID_SIZE);
    int result = open_section(mapping, id, reterr);
    return result < 0 ? result : map_or_close(mapping, map_checked, reterr);
}

/* Not by name: that takes rights, which this thread may have laid down since (ImpersonateLoggedOnUser). */
static int win32_clone(const shmp__mapping *from, shmp__mapping *mapping, shmp_error *reterr) {
    const win32_mapping *other = (const win32_mapping *)from;
    win32_mapping *self = of(mapping);
    memcpy(self->name, other->name, SHMP__ID_SIZE);
    int result = shmp__os_section_duplicate(other->section, !!(mapping->flags & SHMP_READ_ONLY), &self->section);
    if (result < 0) return shmp__fail_os(reterr, result, "DuplicateHandle", "\"%s\"", self->name);
    return map_or_close(mapping, map, reterr);
}

static int win32_close(shmp__mapping *mapping, shmp_error *reterr) {
    int result = shmp__os_handle_close(of(mapping)->section);
    return result < 0 ? shmp__fail_os(reterr, result, "CloseHandle", "\"%s\"", of(mapping)->name) : 0;
}

static int win32_unmap(shmp__mapping *mapping, shmp_error *reterr) {
    int result = shmp__os_unmap(mapping->data, mapping->size);
    return result < 0 ? shmp__fail_os(reterr, result, "UnmapViewOfFile", "\"%s\"", of(mapping)->name) : 0;
}

static int win32_persist(shmp__mapping *mapping, shmp_error *reterr) {
    int result = shmp__os_handle_inherit(of(mapping)->section);
    return result < 0 ? shmp__fail_os(reterr, result, "SetHandleInformation", "\"%s\"", of(mapping)->name) : 0;
}

static int win32_describe(shmp__mapping *mapping, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    (void)reterr;
    memcpy(ret_id, of(mapping)->name, SHMP__ID_SIZE);
    return 0;
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
    .create_flags = SHMP_RESERVE | SHMP_INHERIT | SHMP_UNMAPPED,
    .can = SHMP__CAN_SHARE,
    .provider_size = sizeof(win32_provider),
    .mapping_size = sizeof(win32_mapping),
    .open = win32_open,
    .end = win32_end,
    .accepts = is_name,
    .create = win32_create,
    .attach = win32_attach,
    .clone = win32_clone,
    .close = win32_close,
    .unmap = win32_unmap,
    .persist = win32_persist,
    .describe = win32_describe,
    .limits = win32_limits,
};

#endif
