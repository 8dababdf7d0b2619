/* nop: private memory of this process, for tests and single-process use. Shares nothing: its id
 * is empty, and attaching gives fresh zeroed memory. Every platform. */
#include "core/core.h"
#include "os/os.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static int nop_create(shmp__mapping *mapping, shmp_error *reterr) {
    mapping->data = shmp__os_allocate(mapping->size);
    return mapping->data ? 0 : shmp__fail(reterr, SHMP_ENOMEM, "malloc", "%zu bytes", mapping->size);
}

static int nop_attach(shmp__mapping *mapping, const char *id, shmp_error *reterr) {
    if (*id) return shmp__fail(reterr, SHMP_EID, "shmp_attach", "\"%s\": nop's id is empty", id);
    return nop_create(mapping, reterr);
}

static int nop_unmap(shmp__mapping *mapping, shmp_error *reterr) {
    (void)reterr;
    free(mapping->data);
    return 0;
}

static int nop_describe(shmp__mapping *mapping, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    (void)mapping, (void)reterr;
    ret_id[0] = 0;
    return 0;
}

static int nop_list(shmp_provider *provider, shmp_visitor visit, void *context, shmp_error *reterr) {
    (void)provider, (void)visit, (void)context, (void)reterr;
    return 0; /* private memory is no segment */
}

static int nop_users(const shmp__mapping *mapping, shmp_user_visitor visit, void *context, shmp_error *reterr) {
    (void)mapping, (void)reterr;
    return visit(context, shmp__os_pid());
}

static int nop_limits(shmp_provider *provider, shmp_limits *ret_limits, shmp_error *reterr) {
    (void)provider;
    ret_limits->bytes = ret_limits->segments = PTRDIFF_MAX;
    snprintf(ret_limits->advice, sizeof ret_limits->advice, "free memory");
    return shmp__limit_to_memory(ret_limits, reterr);
}

const shmp__ops shmp__nop_ops = {
    .name = "nop",
    .provider_size = sizeof(shmp_provider),
    .mapping_size = sizeof(shmp__mapping),
    .create = nop_create,
    .attach = nop_attach,
    .unmap = nop_unmap,
    .describe = nop_describe,
    .list = nop_list,
    .users = nop_users,
    .limits = nop_limits,
};
