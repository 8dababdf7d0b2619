/* A look at the machine: what there is, what was left over, who uses it. */
#include "core/core.h"

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
    if (!shmem->ops->users)
        return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_users", "this system does not tell who maps what");
    return shmem->ops->users(shmem, visit, context, reterr);
}
