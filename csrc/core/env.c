/* The hand-off of id and size through the environment. */
#include "core/core.h"
#include "os/os.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { PAIR_FLAGS = SHMP_POSIX_NAMES | SHMP_AFL_SIZE };

static const struct {
    const char *name, *size_name; /* NULL: the size of such a segment is fixed, and AFL++ reads it nowhere */
} afl_variables[] = {
    {"__AFL_SHM_ID", "AFL_MAP_SIZE"},
    {"__AFL_SHM_FUZZ_ID", "__AFL_SHM_FUZZ_MAP_SIZE"},
    {"__AFL_CMPLOG_SHM_ID", NULL},
};
enum { AFL_VARIABLES = sizeof afl_variables / sizeof *afl_variables };

static unsigned afl_row(const char *name) {
    unsigned row = 0;
    while (row < AFL_VARIABLES && strcmp(name, afl_variables[row].name) != 0) row++;
    return row;
}

const char *shmp__env_size_name(const char *name, unsigned flags) {
    unsigned row = flags & SHMP_AFL_SIZE ? afl_row(name) : AFL_VARIABLES;
    return row < AFL_VARIABLES ? afl_variables[row].size_name : NULL;
}

/* Whether an AFL++ target would take the id for what it is. */
static int is_for_afl(const shmp_shmem *shmem, const char *id, unsigned flags) {
    return shmp__meant(shmem->mapping->provider)->ops->can & SHMP__CAN_AFL ||
           (flags & SHMP_POSIX_NAMES && id[0] == '/');
}

int shmp__env_description(const shmp_shmem *shmem, const char *name, unsigned flags, shmp_description *ret_description,
                          shmp_error *reterr) {
    shmp_description description;
    if (!shmem || !name) return shmp__fail(reterr, SHMP_EINVAL, "shmp_to_env", "NULL argument");
    if (flags & ~(unsigned)PAIR_FLAGS)
        return shmp__fail(reterr, SHMP_EINVAL, "shmp_env_pairs", "flags %#x: only %#x are known", flags, PAIR_FLAGS);
    if (!*name || strchr(name, '='))
        return shmp__fail(reterr, SHMP_EINVAL, "shmp_to_env", "\"%.40s\" cannot name an environment variable", name);
    if (flags & SHMP_AFL_SIZE && afl_row(name) == AFL_VARIABLES)
        return shmp__fail(reterr, SHMP_EINVAL, "shmp_env_pairs",
                          "\"%.40s\" is none of %s, %s and %s, for which AFL++ knows a size", name,
                          afl_variables[0].name, afl_variables[1].name, afl_variables[2].name);
    int result = shmp_describe(shmem, &description, reterr);
    if (result < 0) return result;
    if (strncmp(name, "__AFL_", 6) == 0 && !is_for_afl(shmem, description.id, flags))
        return shmp__fail(reterr, SHMP_EINVAL, "shmp_to_env",
                          "%.40s: AFL++ would take the %s id \"%s\" for somebody else's segment: open sysv%s", name,
                          shmp_backend(shmem), description.id,
                          description.id[0] == '/' ? ", or say that the target was built for it: posix_names=True "
                                                     "(SHMP_POSIX_NAMES)"
                                                   : "");
    *ret_description = description;
    return 0;
}

int shmp__env_parse(const char *name, const char *id, const char *size, shmp_description *ret_description,
                    shmp_error *reterr) {
    unsigned long long bytes;
    if (!id) return shmp__fail(reterr, SHMP_ENOENV, "shmp_from_env", "%.80s", name);
    if (!size) return shmp__fail(reterr, SHMP_ENOENV, "shmp_from_env", "%.80s_SIZE", name);
    const char *end = shmp__decimal(size, SIZE_MAX, &bytes);
    if (!end && *size >= '1' && *size <= '9' && !size[strspn(size, "0123456789")])
        return shmp__fail(reterr, SHMP_EOVERFLOW, "shmp_from_env", "%.80s_SIZE is %.40s", name, size);
    if (!end || *end)
        return shmp__fail(reterr, SHMP_EINVAL, "shmp_from_env",
                          "%.80s_SIZE is \"%.40s\": not a decimal number of bytes", name, size);
    ret_description->size = (size_t)bytes;
    return shmp__copy_id(ret_description->id, id, strlen(id), reterr);
}

enum { PAIR_ROOM = sizeof "_SIZE=18446744073709551615" }; /* beside the name; AFL++'s own are no longer */

static int size_name(char *ret_text, size_t room, const char *name, shmp_error *reterr) {
    if (!name) return shmp__fail(reterr, SHMP_EINVAL, "environment", "NULL argument");
    if ((size_t)snprintf(ret_text, room, "%s_SIZE", name) < room) return 0;
    return shmp__fail(reterr, SHMP_EINVAL, "environment", "\"%.40s...\": a shorter name, please", name);
}

int shmp_to_env(const shmp_shmem *shmem, const char *name, shmp_error *reterr) {
    char name_of_size[256], size[24];
    shmp_description description;
    int result = size_name(name_of_size, sizeof name_of_size, name, reterr);
    if (result == 0) result = shmp__env_description(shmem, name, 0, &description, reterr);
    if (result < 0) return result;
    snprintf(size, sizeof size, "%zu", description.size);
    int failed = shmp__os_setenv(name, description.id);
    if (!failed) failed = shmp__os_setenv(name_of_size, size);
    if (failed) shmp__os_unsetenv(name); /* one without the other would mislead */
    return failed ? shmp__fail_os(reterr, failed, "setenv", "%.80s", name) : 0;
}

int shmp_env_pairs(const shmp_shmem *shmem, const char *name, unsigned flags, char *ret_id, char *ret_size, size_t room,
                   shmp_error *reterr) {
    shmp_description description;
    if (!ret_id || !ret_size) return shmp__fail(reterr, SHMP_EINVAL, "shmp_env_pairs", "NULL argument");
    int result = shmp__env_description(shmem, name, flags, &description, reterr);
    if (result < 0) return result;
    if (room < PAIR_ROOM || strlen(name) > room - PAIR_ROOM)
        return shmp__fail(reterr, SHMP_EINVAL, "shmp_env_pairs", "room %zu: \"%.40s\" wants %zu", room, name,
                          strlen(name) + PAIR_ROOM);
    const char *size_name = shmp__env_size_name(name, flags);
    snprintf(ret_id, room, "%s=%s", name, description.id);
    snprintf(ret_size, room, "%s%s=%zu", size_name ? size_name : name, size_name ? "" : "_SIZE", description.size);
    return 0;
}

int shmp_from_env(shmp_provider *provider, const char *name, unsigned flags, shmp_shmem **ret_shmem,
                  shmp_error *reterr) {
    char name_of_size[256], id[SHMP__ENV_ROOM], size[SHMP__ENV_ROOM];
    int result = size_name(name_of_size, sizeof name_of_size, name, reterr);
    if (result < 0) return result;
    shmp_description description;
    result =
        shmp__env_parse(name, shmp__os_getenv(name, id), shmp__os_getenv(name_of_size, size), &description, reterr);
    return result < 0 ? result : shmp_attach(provider, &description, flags, ret_shmem, reterr);
}

int shmp_unset_env(const char *name, shmp_error *reterr) {
    char name_of_size[256];
    int result = size_name(name_of_size, sizeof name_of_size, name, reterr);
    if (result < 0) return result;
    shmp__os_unsetenv(name);
    shmp__os_unsetenv(name_of_size);
    return 0;
}
