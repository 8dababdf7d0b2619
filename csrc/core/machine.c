/* A look at the machine: what there is, what was left over, who uses it. */
#include "core/core.h"
#include "os/os.h"

int shmp_list(shmp_provider *provider, shmp_visitor visit, void *context, shmp_error *reterr) {
    if (!provider || !visit) return shmp__fail(reterr, SHMP_EINVAL, "shmp_list", "NULL argument");
    return provider->ops->list(provider, visit, context, reterr);
}

int shmp_reap(shmp_provider *provider, unsigned flags, shmp_visitor visit, void *context, shmp_error *reterr) {
    if (!provider) return shmp__fail(reterr, SHMP_EINVAL, "shmp_reap", "NULL argument");
    if (flags & ~(unsigned)SHMP_DRY_RUN)
        return shmp__fail(reterr, SHMP_EINVAL, "shmp_reap", "flags %#x: only %#x are known", flags, SHMP_DRY_RUN);
    return provider->ops->reap ? provider->ops->reap(provider, flags, visit, context, reterr) : 0;
}

int shmp_users(const shmp_shmem *shmem, shmp_user_visitor visit, void *context, shmp_error *reterr) {
    if (!shmem || !visit) return shmp__fail(reterr, SHMP_EINVAL, "shmp_users", "NULL argument");
    if (!(shmem->ops->can & SHMP__CAN_FAVOUR)) return visit(context, shmp__os_pid());
    int result = shmp__os_each_user(shmem->data, visit, context);
    return result < 0 ? shmp__fail_os(reterr, result, "/proc", "/proc/<pid>/maps: who maps %p", shmem->data) : result;
}
