/* What macOS, iOS and the BSDs have in their own way. They have no memfd and no list of names, and do not tell
 * who maps what. */
#include "os/platform.h"
#if SHMP_HAVE_BSD
#define _DARWIN_C_SOURCE
#define _NETBSD_SOURCE

#include "os/fault.h"
#include "os/os_unix.h"

#include <sys/types.h>

#include <limits.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/sysctl.h>
#include <sys/shm.h>
#include <unistd.h>

/* FreeBSD calls it INHERIT_ZERO, NetBSD and OpenBSD MAP_INHERIT_ZERO; macOS has none. */
#if defined(INHERIT_ZERO) && !defined(MAP_INHERIT_ZERO)
#define MAP_INHERIT_ZERO INHERIT_ZERO
#endif

int shmp__os_map_wiped_on_fork(void **ret_data) {
    *ret_data = NULL;
#if defined(MAP_INHERIT_ZERO)
    enum { LENGTH = 4 };
    void *data = SYS_OR(MAP_FAILED, mmap, (NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0));
    if (data == MAP_FAILED) return -errno;
    if (SYS(minherit, (data, LENGTH, MAP_INHERIT_ZERO)) == 0)
        *ret_data = data;
    else
        (void)shmp__os_unmap(data, LENGTH);
#endif
    return 0;
}

const char shmp__os_random_call[] = "arc4random_buf";

int shmp__os_random(void *ret_bytes, size_t length) {
    arc4random_buf(ret_bytes, length);
    return 0;
}

int shmp__os_reserve(int fd, size_t size) {
    (void)fd, (void)size;
    return -EOPNOTSUPP;
}

int shmp__os_populate(void *data, size_t size) {
    (void)data, (void)size;
    return -EOPNOTSUPP;
}

/* Nothing here tells shared memory from another file. */
int shmp__os_size_is_sealed(int fd) {
    (void)fd;
    return 0;
}

const char shmp__os_memory_call[] = "sysconf";

/* All that the machine has: what is free of it, no two of these systems tell alike. */
int shmp__os_free_memory(unsigned long long *ret_bytes) {
    long pages = SYS(sysconf, (_SC_PHYS_PAGES)), page = SYS(sysconf, (_SC_PAGESIZE));
    if (pages < 0 || page < 0) return -errno;
    *ret_bytes = (unsigned long long)pages * (unsigned long long)page;
    return 0;
}

int shmp__os_each_user(const void *data, int (*visit)(void *context, long pid), void *context) {
    (void)data, (void)visit, (void)context;
    return -EOPNOTSUPP;
}

#if defined(__NetBSD__)
const char shmp__os_shm_place[] = "/var/shm";
#elif defined(__OpenBSD__)
const char shmp__os_shm_place[] = "/tmp";
#else
const char shmp__os_shm_place[] = "shared memory";
#endif

const int shmp__os_shm_is_listed = 0;

int shmp__os_is_in_shm_place(const shmp__os_file *file) {
    (void)file;
    return 1; /* it cannot be told */
}

int shmp__os_is_open_elsewhere(int fd) {
    (void)fd;
    return -EOPNOTSUPP;
}

int shmp__os_mark(int fd, unsigned mark) {
    (void)fd, (void)mark;
    return -EOPNOTSUPP;
}

unsigned shmp__os_mark_of(int fd) {
    (void)fd;
    return 0;
}

int shmp__os_shm_rename(const char *name, const char *new_name) {
    (void)name, (void)new_name;
    return -EOPNOTSUPP;
}

int shmp__os_each_shm_name(int (*visit)(void *context, const char *name), void *context) {
    (void)visit, (void)context;
    return -EOPNOTSUPP;
}

int shmp__os_find_holders(shmp__os_holder *holders, size_t count) {
    (void)holders, (void)count;
    return 0;
}

void shmp__os_command_of(long pid, char ret_command[SHMP__OS_COMMAND_ROOM]) {
    (void)pid;
    ret_command[0] = 0;
}

#if SHMP_HAVE_SYSV
const int shmp__os_shm_attaches_removed = 0;

int shmp__os_shm_segment(int id, shmp__os_segment *ret_segment) {
    struct shmid_ds segment;
    if (SYS(shmctl, (id, IPC_STAT, &segment)) < 0) return -errno;
    *ret_segment = (shmp__os_segment){.id = id,
                                      .size = (size_t)segment.shm_segsz,
                                      .user = (unsigned long)segment.shm_perm.uid,
                                      .creator = (unsigned long)segment.shm_perm.cuid};
    return 0;
}

int shmp__os_each_segment(int (*visit)(void *context, const shmp__os_segment *segment), void *context) {
    (void)visit, (void)context;
    return -EOPNOTSUPP;
}

#if defined(__OpenBSD__)
const char shmp__os_sysctl[] = "kern.shminfo.";

static int limit(int which, unsigned long long *ret_value) {
    int value, name[] = {CTL_KERN, KERN_SHMINFO, which};
    size_t size = sizeof value;
    if (SYS(sysctl, (name, 3, &value, &size, NULL, 0)) < 0) return -errno;
    *ret_value = (unsigned long long)value;
    return 0;
}

#define LIMIT(upper, lower) KERN_SHMINFO_##upper
#else
#if defined(__APPLE__)
#define PREFIX "kern.sysv."
#else
#define PREFIX "kern.ipc."
#endif
const char shmp__os_sysctl[] = PREFIX;

/* Their types differ: int here, unsigned long or int64_t there. */
static int limit(const char *name, unsigned long long *ret_value) {
    union {
        unsigned int small;
        unsigned long long large;
    } value;
    size_t size = sizeof value;
    if (SYS(sysctlbyname, (name, &value, &size, NULL, 0)) < 0) return -errno;
    *ret_value = size == sizeof value.small ? value.small : value.large;
    return 0;
}

#define LIMIT(upper, lower) PREFIX #lower
#endif

/* shmseg, of one process, is 8 on macOS: the shmat after that is EMFILE. */
int shmp__os_shm_limits(unsigned long long *ret_bytes, unsigned long long *ret_segments) {
    unsigned long long of_all, of_process;
    int result = limit(LIMIT(SHMMAX, shmmax), ret_bytes);
    if (result == 0) result = limit(LIMIT(SHMMNI, shmmni), &of_all);
    if (result == 0) result = limit(LIMIT(SHMSEG, shmseg), &of_process);
    if (result == 0) *ret_segments = of_all < of_process ? of_all : of_process;
    return result;
}
#endif

#endif
