/* sysv: shmget, shmat. What AFL++ targets and the Rust crate's default on Linux take.
 *
 * Lifetime: on Linux the segment is marked for removal right after it was attached. Others can still
 * attach by id while anyone is attached, so nothing survives SIGKILL but for one killed between
 * shmget and that mark, a few microseconds. Elsewhere nobody could attach any more, so the owner
 * marks it at close, and after SIGKILL it stays: ipcs, ipcrm. Cannot: a descriptor, survive exec of
 * its last user. */
#include "core/platform.h"
#if SHMP_HAVE_SYSV
#include "backend/unix.h"

#include <stdio.h>

static int sysv_open(shmp_provider *provider, shmp_error *reterr) {
    (void)provider;
    if (shmp__os_shmget(0) != -ENOSYS) return 0; /* a size of 0 is EINVAL where there is SysV */
    return shmp__fail(reterr, SHMP_EUNAVAILABLE, "shmget", "this kernel is built without System V IPC: open posix");
}

static int fail_shmget(const shmp_shmem *shmem, int error, shmp_error *reterr) {
    switch (error) {
    case -ENOSPC:
        return shmp__fail_os(reterr, error, "shmget",
                             "%zu bytes: sysctl %sshmall (pages) or %sshmmni (segments; see ipcs -m) is used up",
                             shmem->size, shmp__os_sysctl, shmp__os_sysctl);
    case -EINVAL:
        return shmp__fail_os(reterr, error, "shmget", "%zu bytes: raise sysctl %sshmmax", shmem->size, shmp__os_sysctl);
    default: return shmp__fail_os(reterr, error, "shmget", "%zu bytes", shmem->size);
    }
}

/* Whoever holds a handle is attached, so the id cannot be reused before close. */
static int map(shmp_shmem *shmem, int id) {
    shmem->key = id;
    return shmp__os_shmat(id, !!(shmem->flags & SHMP_READ_ONLY), &shmem->data);
}

static int reserve(shmp_shmem *shmem, shmp_error *reterr) {
    int result = shmp__check_memory(shmem->size, "madvise", reterr);
    if (result < 0) return result;
    result = shmp__os_populate(shmem->data, shmem->size);
    if (result == -EINVAL || result == -EOPNOTSUPP)
        return shmp__fail(reterr, SHMP_EUNSUPPORTED, "madvise", "reserving sysv memory needs Linux 5.14: open memfd");
    return result < 0 ? shmp__fail_os(reterr, result, "madvise", "%zu bytes", shmem->size) : 0;
}

static int remove_segment(int id, shmp_error *reterr) {
    int failed = shmp__os_shm_remove(id);
    if (failed < 0) failed = shmp__os_shm_remove(id); /* once more: what stays, stays until a reboot */
    return failed < 0 ? shmp__fail_os(reterr, failed, "shmctl", "IPC_RMID of %d: ipcrm -m %d", id, id) : 0;
}

static int sysv_create(shmp_shmem *shmem, const char *name, shmp_error *reterr) {
    (void)name;
    int id = shmp__os_shmget(shmem->size);
    if (id < 0) return fail_shmget(shmem, id, reterr);
    int failed = map(shmem, id), result = 0, is_removed = 0;
    if (failed < 0 || shmp__os_shm_attaches_removed) {
        result = remove_segment(id, reterr);
        is_removed = 1;
    }
    if (failed < 0) return shmp__fail_os(reterr, failed, "shmat", "%d", id);
    if (result == 0 && shmem->flags & SHMP_RESERVE) result = reserve(shmem, reterr);
    if (result < 0) {
        (void)shmp__os_shmdt(shmem->data);
        if (!is_removed) (void)remove_segment(id, NULL);
    }
    return result;
}

static int sysv_attach(shmp_shmem *shmem, const char *id, shmp_error *reterr) {
    int number = shmp__decimal_id(id);
    if (number < 0) return shmp__fail(reterr, SHMP_EID, "shmp_attach", "\"%s\": a sysv id is a decimal shmid", id);
    int result = 0, failed = map(shmem, number);
    if (failed == -EINVAL || failed == -EIDRM)
        return shmp__fail(reterr, SHMP_ENOTFOUND, "shmat",
                          "%d: its last user let go, or it is not of this IPC namespace", number);
    if (failed < 0)
        return shmp__fail_os(reterr, failed, "shmat", "%d%s", number, failed == -EACCES ? " is another user's" : "");
    size_t size = 0;
    failed = shmp__os_shm_size(number, &size);
    if (failed < 0)
        result = shmp__fail_os(reterr, failed, "shmctl", "IPC_STAT of %d", number);
    else if (size < shmem->size)
        result = shmp__fail(reterr, SHMP_ESIZE, "shmctl", "%d has %zu bytes, the description says %zu", number, size,
                            shmem->size);
    if (result < 0) (void)shmp__os_shmdt(shmem->data);
    if (shmem->flags & SHMP_WHOLE) shmem->size = size;
    return result;
}

static int sysv_close(shmp_shmem *shmem, shmp_error *reterr) {
    int result = 0, failed = shmp__os_shmdt(shmem->data);
    if (failed < 0) result = shmp__fail_os(reterr, failed, "shmdt", "%d", shmem->key);
    if (shmp__os_shm_attaches_removed || !shmp__is_owner(shmem)) return result;
    failed = remove_segment(shmem->key, result < 0 ? NULL : reterr);
    return result < 0 ? result : failed;
}

static int sysv_describe(const shmp_shmem *shmem, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    (void)reterr;
    snprintf(ret_id, SHMP__ID_SIZE, "%d", shmem->key);
    return 0;
}

static int sysv_accepts(const char *id) { return shmp__decimal_id(id) >= 0; }

static int sysv_list(shmp_provider *provider, shmp_visitor visit, void *context, shmp_error *reterr) {
    (void)provider, (void)visit, (void)context;
    return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_list",
                      "sysv segments bear no mark of who made them: ipcs -m shows everybody's");
}

static int sysv_limits(shmp_provider *provider, shmp_limits *ret_limits, shmp_error *reterr) {
    (void)provider;
    int result = shmp__os_shm_limits(&ret_limits->bytes, &ret_limits->segments);
    if (result < 0) return shmp__fail_os(reterr, result, "shmctl", "IPC_INFO");
    snprintf(ret_limits->advice, sizeof ret_limits->advice,
             "sysctl -w %sshmmax=<bytes of one> %sshmall=<pages of all> %sshmmni=<segments>; memory", shmp__os_sysctl,
             shmp__os_sysctl, shmp__os_sysctl);
    return shmp__limit_to_memory(ret_limits, reterr);
}

const shmp__ops shmp__sysv_ops = {
    .name = "sysv",
    .provider_flags = 0,
    .create_flags = SHMP_RESERVE,
    .can = SHMP__CAN_FAVOUR,
    .open = sysv_open,
    .accepts = sysv_accepts,
    .create = sysv_create,
    .attach = sysv_attach,
    .close = sysv_close,
    .persist = NULL,
    .describe = sysv_describe,
    .list = sysv_list,
    .reap = NULL,
    .users = shmp__unix_users,
    .limits = sysv_limits,
};

#endif
