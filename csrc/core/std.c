/* Which mechanisms work here, and std: the best of them, or rc(served(...)) where those need a service. It creates with
 * that one, and attaches with whichever has ids of the shape that it is given. A bare descriptor number (SHMP_FD_IDS)
 * has the shape of a sysv id, and is taken for one. */
#include "core/core.h"
#include "os/platform.h"

#include <stdio.h>
#include <string.h>

typedef struct std_provider {
    shmp_provider base;                                 /* base.inner: the chosen one */
    shmp__atomic_pointer others[SHMP__MECHANISM_COUNT]; /* shmp_provider *, opened at the first attach to such an id */
} std_provider;

/* Whether a provider works: a segment is made. */
static int try_out(shmp_provider *provider, shmp_error *reterr) {
    shmp_shmem *trial;
    shmp_description description;
    int result = shmp_create(provider, 1, 0, &trial, reterr);
    if (result < 0) return result;
    result = shmp_describe(trial, &description, reterr); /* memfd without /proc can be made, but not shared */
    if (result == -SHMP_ENOTFOUND)
        result = shmp__fail(reterr, SHMP_EUNAVAILABLE, "shmp_describe", "somebody removes names that are in use");
    int closed = shmp_close(trial, result < 0 ? NULL : reterr);
    return result < 0 ? result : closed;
}

/* Opens a provider that is known to work. */
static int open_tried(const shmp__ops *ops, const shmp_provider_options *options, shmp_provider **ret_provider,
                      shmp_error *reterr) {
    shmp_provider *provider;
    int result = shmp__provider_open(ops, options, &provider, reterr);
    if (result < 0) return result;
    result = try_out(provider, reterr);
    if (result < 0)
        shmp_provider_close(provider);
    else
        *ret_provider = provider;
    return result;
}

static int can_share(const shmp__ops *ops) { return !!(ops->can & SHMP__CAN_SHARE); }
static int is_ashmem(const shmp__ops *ops) { return strcmp(ops->name, "ashmem") == 0; }
static int has_descriptors(const shmp__ops *ops) { return ops->attach_fd && ops->provider_flags & SHMP_FD_IDS; }

/* The first that works, of those which are wanted. */
static int open_best(int (*is_wanted)(const shmp__ops *ops), unsigned flags, shmp_provider **ret_provider,
                     shmp_error *reterr) {
    const shmp_provider_options options = {.struct_size = sizeof options, .flags = flags};
    shmp_error why = {.call = ""};
    char tried[160] = "";
    for (unsigned i = 0; i < SHMP__MECHANISM_COUNT; i++) {
        const shmp__ops *ops = shmp__mechanism(i);
        if (!ops || !is_wanted(ops)) continue;
        int result = open_tried(ops, &options, ret_provider, &why);
        if (result == 0) return 0;
        if (result == -SHMP_ENOMEM) return shmp__fail(reterr, SHMP_ENOMEM, why.call, "%s", why.message);
        size_t used = strlen(tried);
        snprintf(tried + used, sizeof tried - used, "; %s: %s, error %d", ops->name, why.call, why.os_error);
    }
    return shmp__fail(reterr, SHMP_EUNAVAILABLE, "std", "no mechanism works here%s (shmp_available tells more)", tried);
}

/* Where "std" is served, ashmem is what its services hand out, if it is there: the Rust crate's do so on Android. */
int shmp__open_descriptors(unsigned flags, shmp_provider **ret_provider, shmp_error *reterr) {
    shmp_error why = {.call = ""};
    int result = -SHMP_EUNAVAILABLE;
    flags |= SHMP_FD_IDS;
    if (SHMP_STD_IS_SERVED) result = open_best(is_ashmem, flags, ret_provider, &why);
    if (result == -SHMP_EUNAVAILABLE) return open_best(has_descriptors, flags, ret_provider, reterr);
    if (result < 0 && reterr) *reterr = why;
    return result;
}

/* rc(served(...)). */
static int open_served(const shmp_provider_options *given, shmp_provider **ret_provider, shmp_error *reterr) {
    shmp_provider_options of_served = *given, of_rc = {.struct_size = sizeof of_rc};
    const shmp__ops *served, *rc;
    int result = shmp__find_mechanism("served", "SHMP_SERVE", &served, reterr);
    if (result == 0) result = shmp__find_mechanism("rc", "SHMP_SERVE", &rc, reterr);
    of_served.flags |= SHMP_SERVE;
    if (result == 0) result = shmp__provider_open(served, &of_served, &of_rc.inner, reterr);
    if (result < 0) return result;
    result = open_tried(rc, &of_rc, ret_provider, reterr);
    shmp_provider_close(of_rc.inner);
    return result;
}

static int choose(shmp_provider *provider, const shmp_provider_options *options, shmp_error *reterr) {
    int is_told_to = !!(options->flags & SHMP_SERVE);
    if (is_told_to || SHMP_STD_IS_SERVED) {
        int result = open_served(options, &provider->inner, reterr);
        if (result == 0 || is_told_to) return result;
    }
    return open_best(can_share, options->flags, &provider->inner, reterr);
}

int shmp_available(unsigned index, const char **ret_name, shmp_error *reterr) {
    if (!ret_name) return shmp__fail(reterr, SHMP_EINVAL, "shmp_available", "NULL argument");
    for (unsigned i = 0; i < SHMP__MECHANISM_COUNT; i++) {
        const shmp__ops *ops = shmp__mechanism(i);
        if (!ops || index-- > 0) continue;
        *ret_name = ops->name;
        const shmp_provider_options options = {.struct_size = sizeof options, .flags = SHMP_KEEP_LEFTOVERS};
        shmp_provider *provider = NULL;
        int result = open_tried(ops, &options, &provider, reterr);
        if (result == 0) shmp_provider_close(provider);
        return result;
    }
    return shmp__fail(reterr, SHMP_EINVAL, "shmp_available", "no more providers");
}

/* An inner one that came with the options is the environment's choice. */
static int std_open(shmp_provider *provider, const shmp_provider_options *options, shmp_error *reterr) {
    if ((options->address || options->timeout_ms) && !(options->flags & SHMP_SERVE))
        return shmp__fail(reterr, SHMP_EINVAL, "options.address",
                          "std asks a service with SHMP_SERVE only: no address, no timeout_ms without it");
    return options->inner ? 0 : choose(provider, options, reterr);
}

static void std_end(shmp_provider *provider) {
    std_provider *self = (std_provider *)provider;
    for (unsigned i = 0; i < SHMP__MECHANISM_COUNT; i++)
        shmp_provider_close(shmp__atomic_load_pointer(&self->others[i]));
}

static shmp_provider *open_other(std_provider *self, unsigned row, shmp_error *reterr) {
    shmp_provider *opened = shmp__atomic_load_pointer(&self->others[row]);
    shmp_provider_options options = {.struct_size = sizeof options, .flags = SHMP_KEEP_LEFTOVERS};
    if (opened || shmp__provider_open(shmp__mechanism(row), &options, &opened, reterr) < 0) return opened;
    void *first = NULL;
    if (shmp__atomic_swap_pointer_if(&self->others[row], &first, opened)) return opened;
    shmp_provider_close(opened); /* another thread was faster */
    return first;
}

static shmp_provider *std_route(shmp_provider *provider, const char *id, shmp_error *reterr) {
    if (!id) return provider->inner;
    for (unsigned i = 0; i < SHMP__MECHANISM_COUNT; i++) {
        const shmp__ops *ops = shmp__mechanism(i);
        if (!ops || !ops->accepts || !ops->accepts(id)) continue;
        return ops == shmp__meant(provider->inner)->ops ? provider->inner
                                                        : open_other((std_provider *)provider, i, reterr);
    }
    shmp__fail(reterr, SHMP_EID, "shmp_attach", "\"%s\" has the shape of no provider's id%s", id,
               *id && *id != '/' ? ": posix names begin with /" : "");
    return NULL;
}

const shmp__ops shmp__std_ops = {
    .name = "std",
    .provider_flags = SHMP_SERVE,
    .can = SHMP__CAN_WRAP | SHMP__CAN_ADDRESS,
    .provider_size = sizeof(std_provider),
    .open = std_open,
    .end = std_end,
    .route = std_route,
};
