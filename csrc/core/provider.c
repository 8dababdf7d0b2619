/* Providers: the table of mechanisms, and opening one. */
#include "core/core.h"
#include "os/os.h"
#include "os/platform.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WHERE_1(ops) (ops)
#define WHERE_0(ops) NULL
#define WHERE_(have, ops) WHERE_##have(ops)
#define WHERE(have, ops) WHERE_(have, ops)
#define ROW(name, have) {#name, WHERE(have, &shmp__##name##_ops)},

static const struct {
    const char *name;
    const shmp__ops *ops;
} table[] = {SHMP__MECHANISMS(ROW)};

const shmp__ops *shmp__mechanism(unsigned row) { return table[row].ops; }

static void dispose(shmp_provider *provider) {
    if (provider->mark) (void)shmp__os_unmap(provider->mark, sizeof *provider->mark);
    shmp_provider_close(provider->inner);
    free(provider->label);
    free(provider);
}

static void release(shmp_provider *provider) {
    if (provider->ops->end) provider->ops->end(provider);
    dispose(provider);
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

static int check_options(const shmp__ops *ops, const shmp_provider_options *options, shmp_error *reterr) {
    unsigned known = ops->provider_flags | SHMP_KEEP_LEFTOVERS;
    if (options->flags & ~known)
        return shmp__fail(reterr, SHMP_EINVAL, "options.flags", "%#x: %s knows %#x only", options->flags, ops->name,
                          known);
    if (options->inner && !(ops->can & SHMP__CAN_WRAP))
        return shmp__fail(reterr, SHMP_EINVAL, "options.inner", "%s wraps no other provider", ops->name);
    if ((options->address || options->timeout_ms) && !(ops->can & SHMP__CAN_ADDRESS))
        return shmp__fail(reterr, SHMP_EINVAL, "options.address", "%s asks no service: no address, no timeout_ms",
                          ops->name);
    return 0;
}

static int set_label(shmp_provider *provider, shmp_error *reterr) {
    const char *inner = shmp_provider_name(provider->inner);
    size_t room = strlen(provider->ops->name) + strlen(inner) + sizeof "()";
    provider->label = shmp__os_allocate(room);
    if (!provider->label) return shmp__fail(reterr, SHMP_ENOMEM, "malloc", "%zu bytes", room);
    snprintf(provider->label, room, "%s(%s)", provider->ops->name, inner);
    return 0;
}

int shmp__provider_open(const shmp__ops *ops, const shmp_provider_options *options, shmp_provider **ret_provider,
                        shmp_error *reterr) {
    int result = check_options(ops, options, reterr);
    if (result < 0) return result;
    shmp_provider *provider = shmp__os_allocate(ops->provider_size);
    if (!provider) return shmp__fail(reterr, SHMP_ENOMEM, "malloc", "%zu bytes", ops->provider_size);
    provider->ops = ops;
    provider->flags = options->flags;
    provider->pid = shmp__os_pid();
    shmp__atomic_set(&provider->references, 1);
    provider->inner = shmp_provider_ref(options->inner);
    result = ops->route ? 0 : mark_process(provider, reterr); /* handles are of those it routes to */
    if (result < 0) {
        dispose(provider);
        return result;
    }
    if (ops->open) result = ops->open(provider, options, reterr);
    if (result == 0 && provider->inner && !ops->route) result = set_label(provider, reterr);
    if (result < 0)
        release(provider);
    else
        *ret_provider = provider;
    return result;
}

int shmp__find_mechanism(const char *name, const char *said_by, const shmp__ops **ret_ops, shmp_error *reterr) {
    char names[100] = "std";
    for (unsigned i = 0; i < SHMP__MECHANISM_COUNT; i++) {
        size_t used = strlen(names);
        if (table[i].ops) snprintf(names + used, sizeof names - used, ", %s", table[i].name);
        if (strcmp(name, table[i].name) != 0) continue;
        if (!table[i].ops)
            return shmp__fail(reterr, SHMP_EUNAVAILABLE, said_by, "%s is a mechanism of other platforms: open \"std\"",
                              name);
        *ret_ops = table[i].ops;
        return 0;
    }
    return shmp__fail(reterr, SHMP_EINVAL, said_by, "no provider is called \"%.40s\": take one of %s", name, names);
}

/* "std" creates with the one that the environment wants: it is opened first, so that a wrong name is told. */
static int open_std(const char *wanted, const shmp_provider_options *options, shmp_provider **ret_provider,
                    shmp_error *reterr) {
    if (!wanted || !*wanted || strcmp(wanted, "std") == 0)
        return shmp__provider_open(&shmp__std_ops, options, ret_provider, reterr);
    const shmp__ops *ops;
    int result = check_options(&shmp__std_ops, options, reterr);
    if (result == 0) result = shmp__find_mechanism(wanted, "SHMEM_PROVIDER", &ops, reterr);
    if (result < 0) return result;
    if (!(ops->can & SHMP__CAN_SHARE))
        return shmp__fail(reterr, SHMP_EINVAL, "SHMEM_PROVIDER", "%s is opened by name only: take another one", wanted);
    shmp_provider_options with_chosen = *options, of_chosen = *options;
    of_chosen.flags &= SHMP_KEEP_LEFTOVERS; /* it has no service */
    of_chosen.timeout_ms = 0;
    of_chosen.address = NULL;
    result = shmp__provider_open(ops, &of_chosen, &with_chosen.inner, reterr);
    if (result < 0) return result;
    result = shmp__provider_open(&shmp__std_ops, &with_chosen, ret_provider, reterr);
    shmp_provider_close(with_chosen.inner);
    return result;
}

int shmp__take_options(const void *given, size_t least, void *ret_options, size_t known, const char *type,
                       shmp_error *reterr) {
    size_t size;
    memcpy(&size, given, sizeof size);
    if (size < least)
        return shmp__fail(reterr, SHMP_EINVAL, "options.struct_size", "%zu: set it to sizeof(%s)", size, type);
    for (size_t i = known; i < size; i++)
        if (((const unsigned char *)given)[i])
            return shmp__fail(reterr, SHMP_EINVAL, "options", "byte %zu is set: library %s does not know that option",
                              i, SHMP_VERSION);
    memcpy(ret_options, given, size < known ? size : known);
    return 0;
}

int shmp__provider_open_wanted(const char *name, const char *wanted, const shmp_provider_options *given,
                               shmp_provider **ret_provider, shmp_error *reterr) {
    shmp_provider_options options = {.struct_size = sizeof options};
    if (!name || !ret_provider) return shmp__fail(reterr, SHMP_EINVAL, "shmp_provider_open", "NULL argument");
    int result = given ? shmp__take_options(given, SHMP__LEAST_SIZE(shmp_provider_options, address), &options,
                                            sizeof options, "shmp_provider_options", reterr)
                       : 0;
    if (result < 0) return result;
    if (strcmp(name, "std") != 0) {
        const shmp__ops *ops;
        result = shmp__find_mechanism(name, "shmp_provider_open", &ops, reterr);
        return result < 0 ? result : shmp__provider_open(ops, &options, ret_provider, reterr);
    }
    if (options.inner) return shmp__fail(reterr, SHMP_EINVAL, "options.inner", "std wraps no other provider");
    return open_std(wanted, &options, ret_provider, reterr);
}

const char *shmp__wanted_provider(char room[SHMP__WANTED_SIZE]) {
    char value_room[SHMP__ENV_ROOM];
    const char *value = shmp__os_is_privileged() ? NULL : shmp__os_getenv("SHMEM_PROVIDER", value_room);
    if (!value) return NULL;
    snprintf(room, SHMP__WANTED_SIZE, "%s", value);
    return room;
}

const char *shmp__wanted_address(char room[SHMP__ENV_ROOM]) {
    const char *value = shmp__os_is_privileged() ? NULL : shmp__os_getenv("SHMEM_SERVICE", room);
    return value ? value : "";
}

int shmp_provider_open(const char *name, const shmp_provider_options *options, shmp_provider **ret_provider,
                       shmp_error *reterr) {
    char room[SHMP__WANTED_SIZE];
    const char *wanted = name && strcmp(name, "std") == 0 ? shmp__wanted_provider(room) : NULL;
    return shmp__provider_open_wanted(name, wanted, options, ret_provider, reterr);
}

shmp_provider *shmp_provider_ref(shmp_provider *provider) {
    if (provider) shmp__atomic_add(&provider->references, 1);
    return provider;
}

void shmp_provider_close(shmp_provider *provider) {
    if (provider && shmp__atomic_sub(&provider->references, 1) == 1) release(provider);
}

/* Of "std", the one it has chosen. That never fails. */
static shmp_provider *chosen(const shmp_provider *provider) {
    shmp_provider *own = (shmp_provider *)(uintptr_t)provider;
    return own->ops->route ? own->ops->route(own, NULL, NULL) : own;
}

const char *shmp_provider_name(const shmp_provider *provider) {
    provider = chosen(provider);
    return provider->label ? provider->label : provider->ops->name;
}

const shmp_provider *shmp__meant(const shmp_provider *provider) {
    while (provider->inner && !provider->ops->accepts) provider = provider->inner;
    return provider;
}

const char *shmp__service_of(const shmp_provider *provider) {
    provider = shmp__meant(provider);
    return provider->ops->address ? provider->ops->address(provider) : "";
}

int shmp__hosts_service(shmp_provider *provider) {
    while (provider->inner && !provider->ops->accepts) provider = provider->inner;
    return provider->ops->hosts ? provider->ops->hosts(provider) : 0;
}

int shmp__limit_to_memory(shmp_limits *limits, shmp_error *reterr) {
    unsigned long long bytes;
    int result = shmp__os_free_memory(&bytes);
    if (shmp__os_is_untold(result)) return 0; /* such as a /proc that has processes only */
    if (result < 0)
        return shmp__fail_os(reterr, result, shmp__os_memory_call, "\"%s\": free memory", shmp__os_memory_call);
    if (bytes < limits->bytes) limits->bytes = bytes;
    return 0;
}

int shmp_provider_limits(shmp_provider *provider, shmp_limits *ret_limits, shmp_error *reterr) {
    if (!provider || !ret_limits) return shmp__fail(reterr, SHMP_EINVAL, "shmp_provider_limits", "NULL argument");
    size_t room = ret_limits->struct_size;
    if (room < SHMP__LEAST_SIZE(shmp_limits, advice))
        return shmp__fail(reterr, SHMP_EINVAL, "limits.struct_size", "%zu: set it to sizeof(shmp_limits)", room);
    shmp_limits limits = {.struct_size = room < sizeof limits ? room : sizeof limits};
    provider = chosen(provider);
    int result = provider->ops->limits(provider, &limits, reterr);
    if (limits.bytes > PTRDIFF_MAX) limits.bytes = PTRDIFF_MAX; /* a 32-bit process on a larger machine */
    if (result == 0) memcpy(ret_limits, &limits, limits.struct_size);
    return result;
}

int shmp_pre_fork(shmp_provider *provider, shmp_error *reterr) {
    if (!provider) return shmp__fail(reterr, SHMP_EINVAL, "shmp_pre_fork", "NULL argument");
    provider = chosen(provider);
    return provider->ops->pre_fork ? provider->ops->pre_fork(provider, reterr) : 0;
}

int shmp_post_fork(shmp_provider *provider, int is_child, shmp_error *reterr) {
    if (!provider) return shmp__fail(reterr, SHMP_EINVAL, "shmp_post_fork", "NULL argument");
    provider = chosen(provider);
    return provider->ops->post_fork ? provider->ops->post_fork(provider, is_child, reterr) : 0;
}

/* ---- A look at the machine: what there is, what was left over ---- */

int shmp_list(shmp_provider *provider, shmp_visitor visit, void *context, shmp_error *reterr) {
    if (!provider || !visit) return shmp__fail(reterr, SHMP_EINVAL, "shmp_list", "NULL argument");
    provider = chosen(provider);
    if (provider->ops->list) return provider->ops->list(provider, visit, context, reterr);
    return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_list", "the system does not tell which %s segments are whose",
                      provider->ops->name);
}

int shmp_reap(shmp_provider *provider, unsigned flags, shmp_visitor visit, void *context, shmp_error *reterr) {
    if (!provider) return shmp__fail(reterr, SHMP_EINVAL, "shmp_reap", "NULL argument");
    if (flags & ~(unsigned)SHMP_DRY_RUN)
        return shmp__fail(reterr, SHMP_EINVAL, "shmp_reap", "flags %#x: only %#x are known", flags, SHMP_DRY_RUN);
    provider = chosen(provider);
    return provider->ops->reap ? provider->ops->reap(provider, flags, visit, context, reterr) : 0;
}

unsigned shmp_abi_version(void) { return SHMP_ABI_VERSION; }
const char *shmp_version(void) { return SHMP_VERSION; }
