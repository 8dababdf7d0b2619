/* nop: private memory of this process, for tests and single-process use. Shares nothing: its id
 * is empty, and attaching gives fresh zeroed memory. Every platform. */
#include "core/core.h"
#include "os/os.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static int take(shmp_shmem *shmem, shmp_error *reterr) {
    shmem->data = shmp__os_allocate(shmem->size);
    return shmem->data ? 0 : shmp__fail(reterr, SHMP_ENOMEM, "malloc", "%zu bytes", shmem->size);
}

static int nop_create(shmp_shmem *shmem, const char *name, shmp_error *reterr) {
    (void)name;
    return take(shmem, reterr);
}

static int nop_attach(shmp_shmem *shmem, const char *id, shmp_error *reterr) {
    if (*id) return shmp__fail(reterr, SHMP_EID, "shmp_attach", "\"%s\": nop's id is empty", id);
    return take(shmem, reterr);
}

static int nop_close(shmp_shmem *shmem, shmp_error *reterr) {
    (void)reterr;
    free(shmem->data);
    return 0;
}

static int nop_describe(const shmp_shmem *shmem, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    (void)shmem, (void)reterr;
    ret_id[0] = 0;
    return 0;
}

static int nop_accepts(const char *id) {
    (void)id; /* "std" must not take a lost id for private memory */
    return 0;
}

static int nop_list(shmp_provider *provider, shmp_visitor visit, void *context, shmp_error *reterr) {
    (void)provider, (void)visit, (void)context, (void)reterr;
    return 0; /* private memory is no segment */
}

static int nop_users(const shmp_shmem *shmem, shmp_user_visitor visit, void *context, shmp_error *reterr) {
    (void)shmem, (void)reterr;
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
    .provider_flags = 0,
    .create_flags = 0,
    .can = 0,
    .open = NULL,
    .accepts = nop_accepts,
    .create = nop_create,
    .attach = nop_attach,
    .close = nop_close,
    .persist = NULL,
    .describe = nop_describe,
    .list = nop_list,
    .reap = NULL,
    .users = nop_users,
    .limits = nop_limits,
};
