/* sysv: shmget, shmat. What AFL++ targets and the Rust crate's default on Linux take.
 *
 * Lifetime: on Linux the segment is marked for removal right after it was attached. Others can still
 * attach by id while anyone is attached, so nothing survives SIGKILL but for one killed between
 * shmget and that mark, a few microseconds. Elsewhere nobody could attach any more, so the owner
 * marks it at close, and after SIGKILL it stays: ipcs, ipcrm. One that lingers (SHMP_LINGER) is marked by the
 * first who attaches after its creator has ended, or by the owner's close. Until it is marked it has a key by which a
 * reaper knows it. Cannot: a descriptor, survive exec of its last user. */
#include "os/platform.h"
#if SHMP_HAVE_SYSV
#include "backend/unix.h"

#include <stdint.h>
#include <stdio.h>

typedef struct sysv_mapping {
    shmp__mapping base;
    int id;
} sysv_mapping;

static int id_of(const shmp__mapping *mapping) { return ((const sysv_mapping *)mapping)->id; }

typedef struct sysv_provider {
    shmp_provider base;
    shmp__atomic_uint salt; /* of the keys */
} sysv_provider;

/* ---- Keys: 6 bits that all of them have, 14 bits by chance, and 12 of a hash, so that nobody else's is taken for
 * one of ours ---- */

enum { OURS = 0x15, CHANCE_BITS = 14, HASH_BITS = 12, KEY_TRIES = 1000, MINUTE = 60 };

static uint64_t mix(uint64_t hash, uint64_t value) {
    hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
    return hash ^ hash >> 32;
}

static int key_of(unsigned chance, size_t size, unsigned long creator, unsigned mode) {
    chance &= (1u << CHANCE_BITS) - 1;
    uint64_t hash = mix(mix(mix(chance, size), creator), mode);
    return (int)((unsigned)OURS << (CHANCE_BITS + HASH_BITS) | chance << HASH_BITS |
                 (unsigned)(hash >> (64 - HASH_BITS)));
}

static int has_our_key(const shmp__os_segment *segment) {
    unsigned chance = (unsigned)segment->key >> HASH_BITS;
    return segment->key && segment->key == key_of(chance, segment->size, segment->creator, segment->mode);
}

static int sysv_open(shmp_provider *provider, const shmp_provider_options *options, shmp_error *reterr) {
    unsigned salt;
    (void)options;
    int result = shmp__os_random(&salt, sizeof salt);
    if (result < 0) return shmp__fail_os(reterr, result, shmp__os_random_call, "%zu bytes for keys", sizeof salt);
    shmp__atomic_set(&((sysv_provider *)provider)->salt, salt);
    if (shmp__os_shmget(0, 0, 0600) != -ENOSYS) return 0; /* a size of 0 is EINVAL where there is SysV */
    return shmp__fail(reterr, SHMP_EUNAVAILABLE, "shmget", "this kernel is built without System V IPC: open posix");
}

static int fail_shmget(size_t size, int error, shmp_error *reterr) {
    switch (error) {
    case -ENOSPC:
        return shmp__fail_os(reterr, error, "shmget",
                             "%zu bytes: sysctl %sshmall (pages) or %sshmmni (segments; see ipcs -m) is used up", size,
                             shmp__os_sysctl, shmp__os_sysctl);
    case -EINVAL:
        return shmp__fail_os(reterr, error, "shmget", "%zu bytes: raise sysctl %sshmmax", size, shmp__os_sysctl);
    default: return shmp__fail_os(reterr, error, "shmget", "%zu bytes", size);
    }
}

/* Whoever holds a handle is attached, so the id cannot be reused before close. */
static int map(shmp__mapping *mapping, int id) {
    ((sysv_mapping *)mapping)->id = id;
    return shmp__os_shmat(id, !!(mapping->flags & SHMP_READ_ONLY), &mapping->data);
}

static int reserve(const shmp__mapping *mapping, shmp_error *reterr) {
    int result = shmp__check_memory(mapping->size, "madvise", reterr);
    if (result < 0) return result;
    result = shmp__os_populate(mapping->data, mapping->size);
    if (result == -EINVAL || result == -EOPNOTSUPP)
        return shmp__fail(reterr, SHMP_EUNSUPPORTED, "madvise", "reserving sysv memory needs Linux 5.14: open memfd");
    return result < 0 ? shmp__fail_os(reterr, result, "madvise", "%zu bytes", mapping->size) : 0;
}

static int remove_segment(int id, shmp_error *reterr) {
    int failed = shmp__os_shm_remove(id);
    if (failed < 0) failed = shmp__os_shm_remove(id); /* once more: what stays, stays until a reboot */
    return failed < 0 ? shmp__fail_os(reterr, failed, "shmctl", "IPC_RMID of %d: ipcrm -m %d", id, id) : 0;
}

/* A forked child has its parent's salt, and so finds keys that are taken: the next one is tried. */
static int get_new(const shmp__mapping *mapping) {
    sysv_provider *provider = (sysv_provider *)mapping->provider;
    unsigned mode = shmp__mode_of(mapping);
    int id = -EEXIST;
    for (int tries = 0; id == -EEXIST && tries < KEY_TRIES; tries++) {
        unsigned chance = shmp__atomic_add(&provider->salt, 1);
        id = shmp__os_shmget(key_of(chance, mapping->size, shmp__os_user(), mode), mapping->size, mode);
    }
    return id;
}

static int sysv_create(shmp__mapping *mapping, shmp_error *reterr) {
    int id = get_new(mapping);
    if (id < 0) return fail_shmget(mapping->size, id, reterr);
    int failed = map(mapping, id), result = 0, is_removed = 0;
    if (failed < 0 || (shmp__os_shm_attaches_removed && !(mapping->flags & SHMP_LINGER))) {
        result = remove_segment(id, reterr);
        is_removed = 1;
    }
    if (failed < 0) return shmp__fail_os(reterr, failed, "shmat", "%d", id);
    if (result == 0 && mapping->flags & SHMP_RESERVE) result = reserve(mapping, reterr);
    if (result < 0) {
        (void)shmp__os_shmdt(mapping->data);
        if (!is_removed) (void)remove_segment(id, NULL);
    }
    return result;
}

/* Of what is attached. The creator can be another user who gave it to this one (IPC_SET): both are looked at. */
static int check(shmp__mapping *mapping, const char *text, shmp_error *reterr) {
    shmp__os_segment segment;
    int id = id_of(mapping), result = shmp__os_shm_segment(id, &segment);
    if (result < 0) return shmp__fail_os(reterr, result, "shmctl", "IPC_STAT of %d", id);
    result = shmp__check_user(mapping, segment.creator, "shmctl", text, reterr);
    if (result == 0) result = shmp__check_user(mapping, segment.user, "shmctl", text, reterr);
    if (result < 0) return result;
    if (segment.size < mapping->size)
        return shmp__fail(reterr, SHMP_ESIZE, "shmctl", "%d has %zu bytes, the description says %zu", id, segment.size,
                          mapping->size);
    if (mapping->flags & SHMP_WHOLE) mapping->size = segment.size;
    /* it lingered, and has been attached to now: from here on it goes with its users. While its creator lives, who
     * may say the id to others or once more to the same, it is to linger still */
    if (shmp__os_shm_attaches_removed && has_our_key(&segment) && shmp__os_has_ended(segment.creator_pid))
        (void)shmp__os_shm_remove(id);
    return 0;
}

static int sysv_attach(shmp__mapping *mapping, const char *id, shmp_error *reterr) {
    int number = shmp__decimal_id(id);
    if (number < 0) return shmp__fail(reterr, SHMP_EID, "shmp_attach", "\"%s\": a sysv id is a decimal shmid", id);
    int failed = map(mapping, number);
    if (failed == -EINVAL || failed == -EIDRM)
        return shmp__fail(reterr, SHMP_ENOTFOUND, "shmat",
                          "%d: its last user let go, or it is not of this IPC namespace", number);
    if (failed < 0)
        return shmp__fail_os(
            reterr, failed, "shmat", "%d%s", number,
            failed == -EACCES ? " is another user's: created with mode=0o660 (SHMP_MODE) others can attach" : "");
    int result = check(mapping, id, reterr);
    if (result < 0) (void)shmp__os_shmdt(mapping->data);
    return result;
}

static int sysv_clone(const shmp__mapping *of, shmp__mapping *mapping, shmp_error *reterr) {
    int id = id_of(of), failed = map(mapping, id);
    return failed < 0 ? shmp__fail_os(reterr, failed, "shmat", "%d", id) : 0;
}

static int sysv_destroy(shmp__mapping *mapping, shmp_error *reterr) {
    int is_removed = shmp__os_shm_attaches_removed && !(mapping->flags & SHMP_LINGER);
    return is_removed ? 0 : remove_segment(id_of(mapping), reterr);
}

static int sysv_unmap(shmp__mapping *mapping, shmp_error *reterr) {
    int failed = shmp__os_shmdt(mapping->data);
    return failed < 0 ? shmp__fail_os(reterr, failed, "shmdt", "%d", id_of(mapping)) : 0;
}

static int sysv_describe(shmp__mapping *mapping, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    (void)reterr;
    snprintf(ret_id, SHMP__ID_SIZE, "%d", id_of(mapping));
    return 0;
}

static int sysv_accepts(const char *id) { return shmp__decimal_id(id) >= 0; }

/* ---- A look at the machine ---- */

typedef struct sysv_walk {
    shmp_visitor visit; /* may be NULL in a reap */
    void *context;
    int failure;
    shmp_error *reterr;
} sysv_walk;

static int show(const sysv_walk *walk, const shmp__os_segment *segment, int is_ours) {
    char command[SHMP__OS_COMMAND_ROOM];
    shmp_listed listed = {.struct_size = sizeof listed, .provider = "sysv", .size = segment->size};
    long holder = segment->attached && !shmp__os_has_ended(segment->creator_pid) ? segment->creator_pid : 0;
    shmp__os_command_of(holder, command);
    listed.command = command;
    listed.holder = holder;
    listed.user = (long long)segment->creator;
    listed.age = shmp__os_now() - segment->changed;
    listed.is_alive = segment->attached > 0;
    listed.is_ours = is_ours;
    snprintf(listed.id, sizeof listed.id, "%d", segment->id);
    return walk->visit(walk->context, &listed);
}

static int list_one(void *context, const shmp__os_segment *segment) {
    int is_ours = has_our_key(segment);
    return is_ours || segment->is_removed ? show(context, segment, is_ours) : 0;
}

/* Whoever made it is between two calls for microseconds, or it lingers for a minute. */
static int is_leftover(const shmp__os_segment *segment) {
    unsigned long user = shmp__os_user();
    return has_our_key(segment) && segment->user == user && segment->creator == user && segment->attached == 0 &&
           shmp__os_has_ended(segment->creator_pid) &&
           (segment->last_pid == 0 || shmp__os_has_ended(segment->last_pid)) &&
           shmp__os_now() - segment->changed > MINUTE;
}

static int dry_reap_one(void *context, const shmp__os_segment *segment) {
    const sysv_walk *walk = context;
    return is_leftover(segment) && walk->visit ? show(walk, segment, 1) : 0;
}

static int reap_one(void *context, const shmp__os_segment *segment) {
    sysv_walk *walk = context;
    if (!is_leftover(segment)) return 0;
    int result = shmp__os_shm_remove(segment->id);
    if (result == -EINVAL || result == -EIDRM) return 0; /* gone */
    if (result < 0) return walk->failure = shmp__fail_os(walk->reterr, result, "shmctl", "IPC_RMID of %d", segment->id);
    return walk->visit ? show(walk, segment, 1) : 0;
}

static int walk_all(sysv_walk *walk, int (*visit)(void *context, const shmp__os_segment *segment)) {
    int result = shmp__os_each_segment(visit, walk);
    if (walk->failure) return walk->failure;
    if (result == -EOPNOTSUPP)
        return shmp__fail(walk->reterr, SHMP_EUNSUPPORTED, "shmp_list", "this system does not list sysv segments");
    return result < 0 ? shmp__fail_os(walk->reterr, result, "shmctl", "SHM_INFO") : result;
}

static int sysv_list(shmp_provider *provider, shmp_visitor visit, void *context, shmp_error *reterr) {
    (void)provider;
    return walk_all(&(sysv_walk){.visit = visit, .context = context, .reterr = reterr}, list_one);
}

static int sysv_reap(shmp_provider *provider, unsigned flags, shmp_visitor visit, void *context, shmp_error *reterr) {
    (void)provider;
    return walk_all(&(sysv_walk){.visit = visit, .context = context, .reterr = reterr},
                    flags & SHMP_DRY_RUN ? dry_reap_one : reap_one);
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
    .create_flags = SHMP_RESERVE | SHMP_LINGER | SHMP__MODE,
    .can = SHMP__CAN_SHARE | SHMP__CAN_AFL,
    .provider_size = sizeof(sysv_provider),
    .mapping_size = sizeof(sysv_mapping),
    .open = sysv_open,
    .accepts = sysv_accepts,
    .create = sysv_create,
    .attach = sysv_attach,
    .clone = sysv_clone,
    .destroy = sysv_destroy,
    .unmap = sysv_unmap,
    .describe = sysv_describe,
    .list = sysv_list,
    .reap = sysv_reap,
    .users = shmp__unix_users,
    .limits = sysv_limits,
};

#endif
