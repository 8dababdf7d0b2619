/* Providers: the table of mechanisms, and the choice of the best. */
#include "core/core.h"
#include "core/platform.h"
#include "os/os.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WHERE_1(ops) (ops)
#define WHERE_0(ops) NULL
#define WHERE_(have, ops) WHERE_##have(ops)
#define WHERE(have, ops) WHERE_(have, ops)

/* Best first. A row without operations is a mechanism of other platforms. */
static const struct {
    const char *name;
    const shmp__ops *ops;
} table[] = {
    {"memfd", WHERE(SHMP_HAVE_MEMFD, &shmp__memfd_ops)},
    {"posix", WHERE(SHMP_HAVE_POSIX, &shmp__posix_ops)},
    {"sysv", WHERE(SHMP_HAVE_SYSV, &shmp__sysv_ops)},
    {"win32", WHERE(SHMP_HAVE_WIN32, &shmp__win32_ops)},
    {"nop", &shmp__nop_ops},
    {"ashmem", NULL},
};
enum { TABLE_SIZE = sizeof table / sizeof *table };

const shmp__ops *shmp__ops_for_id(const char *id) {
    for (unsigned i = 0; i < TABLE_SIZE; i++)
        if (table[i].ops && table[i].ops->accepts(id)) return table[i].ops;
    return NULL;
}

static void release(shmp_provider *provider) {
    if (provider->mark) (void)shmp__os_unmap(provider->mark, sizeof *provider->mark);
    free(provider->memory);
    free(provider);
}

static int mark_process(shmp_provider *provider, shmp_error *reterr) {
    void *word;
    int result = shmp__os_map_wiped_on_fork(&word);
    if (result < 0) return shmp__fail_os(reterr, result, "mmap", "%zu bytes that fork wipes", sizeof *provider->mark);
    provider->mark = word;
    return 0;
}

unsigned shmp__process_mark(shmp_provider *provider) {
    unsigned mark = 0;
    if (!provider->mark) return (unsigned)shmp__os_pid();
    unsigned fresh = shmp__atomic_load(provider->mark);
    if (fresh) return fresh;
    fresh = shmp__atomic_add(&provider->marks, 1) + 1;
    return shmp__atomic_swap_if(provider->mark, &mark, fresh) ? fresh : mark;
}

static int open_backend(const shmp__ops *ops, unsigned flags, shmp_provider **ret_provider, shmp_error *reterr) {
    unsigned known = ops->provider_flags | SHMP_KEEP_LEFTOVERS;
    if (flags & ~known)
        return shmp__fail(reterr, SHMP_EINVAL, "options.flags", "%#x: %s knows %#x only", flags, ops->name, known);
    shmp_provider *provider = shmp__os_allocate(sizeof *provider);
    if (!provider) return shmp__fail(reterr, SHMP_ENOMEM, "malloc", "%zu bytes", sizeof *provider);
    provider->ops = ops;
    provider->flags = flags;
    provider->pid = shmp__os_pid();
    shmp__atomic_set(&provider->references, 1);
    int result = mark_process(provider, reterr);
    if (result == 0 && ops->open) result = ops->open(provider, reterr);
    if (result < 0)
        release(provider);
    else
        *ret_provider = provider;
    return result;
}

/* Opens a provider that is known to work: a segment was made. */
static int open_tried(const shmp__ops *ops, unsigned flags, shmp_provider **ret_provider, shmp_error *reterr) {
    shmp_provider *provider;
    shmp_shmem *trial;
    int result = open_backend(ops, flags, &provider, reterr);
    if (result < 0) return result;
    result = shmp_create(provider, 1, 0, &trial, reterr);
    if (result == 0) result = shmp_close(trial, reterr);
    if (result < 0)
        shmp_provider_close(provider);
    else
        *ret_provider = provider;
    return result;
}

static int open_named(const char *name, const char *said_by, unsigned flags, shmp_provider **ret_provider,
                      shmp_error *reterr) {
    for (unsigned i = 0; i < TABLE_SIZE; i++) {
        if (strcmp(name, table[i].name) != 0) continue;
        if (table[i].ops) return open_backend(table[i].ops, flags, ret_provider, reterr);
        return shmp__fail(reterr, SHMP_EUNAVAILABLE, said_by, "%s is a mechanism of other platforms: open \"std\"",
                          name);
    }
    char names[100] = "std";
    for (unsigned i = 0; i < TABLE_SIZE; i++) {
        size_t used = strlen(names);
        if (table[i].ops) snprintf(names + used, sizeof names - used, ", %s", table[i].name);
    }
    return shmp__fail(reterr, SHMP_EINVAL, said_by, "no provider is called \"%.40s\": take one of %s", name, names);
}

static int open_best(unsigned flags, shmp_provider **ret_provider, shmp_error *reterr) {
    char room[SHMP__ENV_ROOM];
    const char *wanted = shmp__os_getenv("SHMEM_PROVIDER", room);
    if (wanted && *wanted && strcmp(wanted, "std") != 0)
        return open_named(wanted, "SHMEM_PROVIDER", flags, ret_provider, reterr);
    shmp_error why = {.call = ""};
    for (unsigned i = 0; i < TABLE_SIZE; i++) {
        if (!table[i].ops || !(table[i].ops->can & SHMP__CAN_FAVOUR)) continue;
        int result = open_tried(table[i].ops, flags, ret_provider, &why);
        if (result == 0) return 0;
        if (result == -SHMP_ENOMEM) return shmp__fail(reterr, SHMP_ENOMEM, why.call, "%s", why.message);
    }
    return shmp__fail(reterr, SHMP_EUNAVAILABLE, "std", "no mechanism works here; the last one, %s: %.120s", why.call,
                      why.message);
}

int shmp_provider_open(const char *name, const shmp_provider_options *options, shmp_provider **ret_provider,
                       shmp_error *reterr) {
    unsigned flags = 0;
    if (!name || !ret_provider) return shmp__fail(reterr, SHMP_EINVAL, "shmp_provider_open", "NULL argument");
    if (options) {
        if (options->struct_size < sizeof *options)
            return shmp__fail(reterr, SHMP_EINVAL, "options.struct_size",
                              "%zu: set it to sizeof(shmp_provider_options)", options->struct_size);
        if (options->inner || options->address || options->timeout_ms)
            return shmp__fail(reterr, SHMP_EINVAL, "options", "%.40s takes no inner, address or timeout", name);
        flags = options->flags;
    }
    if (strcmp(name, "std") != 0) return open_named(name, "shmp_provider_open", flags, ret_provider, reterr);
    if (flags & ~(unsigned)SHMP_KEEP_LEFTOVERS)
        return shmp__fail(reterr, SHMP_EINVAL, "options.flags", "%#x: std has no descriptor ids: open memfd or posix",
                          flags);
    shmp_provider *provider;
    int result = open_best(flags, &provider, reterr);
    if (result < 0) return result;
    provider->attaches_by_id = 1;
    *ret_provider = provider;
    return 0;
}

void shmp_provider_close(shmp_provider *provider) {
    if (provider && shmp__atomic_sub(&provider->references, 1) == 1) release(provider);
}

const char *shmp_provider_name(const shmp_provider *provider) { return provider->ops->name; }

int shmp_available(unsigned index, const char **ret_name, shmp_error *reterr) {
    if (!ret_name) return shmp__fail(reterr, SHMP_EINVAL, "shmp_available", "NULL argument");
    for (unsigned i = 0; i < TABLE_SIZE; i++) {
        if (!table[i].ops || index-- > 0) continue;
        *ret_name = table[i].name;
        shmp_provider *provider = NULL;
        int result = open_tried(table[i].ops, SHMP_KEEP_LEFTOVERS, &provider, reterr);
        if (result == 0) shmp_provider_close(provider);
        return result;
    }
    return shmp__fail(reterr, SHMP_EINVAL, "shmp_available", "no more providers");
}

int shmp__limit_to_memory(shmp_limits *limits, shmp_error *reterr) {
    unsigned long long bytes;
    int result = shmp__os_free_memory(&bytes);
    if (result < 0)
        return shmp__fail_os(reterr, result, shmp__os_memory_call, "\"%s\": free memory", shmp__os_memory_call);
    if (bytes < limits->bytes) limits->bytes = bytes;
    return 0;
}

int shmp_provider_limits(shmp_provider *provider, shmp_limits *ret_limits, shmp_error *reterr) {
    if (!provider || !ret_limits) return shmp__fail(reterr, SHMP_EINVAL, "shmp_provider_limits", "NULL argument");
    if (ret_limits->struct_size < sizeof *ret_limits)
        return shmp__fail(reterr, SHMP_EINVAL, "limits.struct_size", "%zu: set it to sizeof(shmp_limits)",
                          ret_limits->struct_size);
    shmp_limits limits = {.struct_size = ret_limits->struct_size};
    int result = provider->ops->limits(provider, &limits, reterr);
    if (limits.bytes > PTRDIFF_MAX) limits.bytes = PTRDIFF_MAX; /* a 32-bit process on a larger machine */
    if (result == 0) *ret_limits = limits;
    return result;
}

int shmp_pre_fork(shmp_provider *provider, shmp_error *reterr) {
    return provider ? 0 : shmp__fail(reterr, SHMP_EINVAL, "shmp_pre_fork", "NULL argument");
}

int shmp_post_fork(shmp_provider *provider, int is_child, shmp_error *reterr) {
    (void)is_child;
    return provider ? 0 : shmp__fail(reterr, SHMP_EINVAL, "shmp_post_fork", "NULL argument");
}

unsigned shmp_abi_version(void) { return SHMP_ABI_VERSION; }
const char *shmp_version(void) { return SHMP_VERSION; }
