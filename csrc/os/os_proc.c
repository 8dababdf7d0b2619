/* What Linux's /proc and /dev/shm tell of the machine and its processes. A process may end between two looks, and
 * other users' are closed to all but root: these are passed over. Any other failure ends the look. */
#include "os/platform.h"
#if SHMP_HAVE_LINUX
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64

#include "os/fault.h"
#include "os/os_unix.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <unistd.h>

int shmp__os_passed_over(int error) {
    switch (error) {
    case -ENOENT:
    case -ESRCH:
    case -EACCES:
    case -EPERM:
    case -ENODEV: /* this and the next: the descriptor is something else by now */
    case -ENXIO: return 0;
    default: return error;
    }
}

static int each_entry(const char *path, int (*visit)(void *context, const char *name), void *context) {
    DIR *directory;
    do directory = SYS_OR(NULL, opendir, (path));
    while (!directory && errno == EINTR);
    if (!directory) return -errno;
    int result = 0;
    while (result == 0) {
        errno = 0; /* NULL is the end, too */
        const struct dirent *entry = SYS_OR(NULL, readdir, (directory));
        if (!entry) {
            result = -errno;
            break;
        }
        if (entry->d_name[0] != '.') result = visit(context, entry->d_name);
    }
    (void)closedir(directory);
    return result;
}

#if SHMP_HAVE_POSIX
int shmp__os_each_shm_name(int (*visit)(void *context, const char *name), void *context) {
    return each_entry(shmp__os_shm_place, visit, context);
}
#endif

typedef struct number_visit {
    int (*visit)(void *context, long number);
    void *context;
} number_visit;

static int visit_number(void *context, const char *name) {
    const number_visit *inner = context;
    char *end;
    long number = strtol(name, &end, 10);
    return *end ? 0 : inner->visit(inner->context, number);
}

int shmp__os_each_process(int (*visit)(void *context, long pid), void *context) {
    number_visit inner = {visit, context};
    return each_entry("/proc", visit_number, &inner);
}

int shmp__os_each_fd(long pid, int (*visit)(void *context, long fd), void *context) {
    char path[32];
    number_visit inner = {visit, context};
    snprintf(path, sizeof path, "/proc/%ld/fd", pid);
    return shmp__os_passed_over(each_entry(path, visit_number, &inner));
}

/* 1: what the descriptor is called begins with `text` or, with `is_all`, is that. */
static int fd_is_called(long pid, long fd, const char *text, int is_all) {
    char path[48], target[64];
    size_t wanted = strlen(text);
    snprintf(path, sizeof path, "/proc/%ld/fd/%ld", pid, fd);
    ssize_t length = SYS(readlink, (path, target, sizeof target));
    if (length < 0) return shmp__os_passed_over(-errno);
    return (is_all ? (size_t)length == wanted : (size_t)length > wanted) && memcmp(target, text, wanted) == 0;
}

int shmp__os_is_our_memfd(long pid, long fd) { return fd_is_called(pid, fd, "/memfd:shmem_providers (deleted)", 1); }

#if SHMP_HAVE_POSIX
int shmp__os_fd_is_in_shm_place(long pid, long fd) { return fd_is_called(pid, fd, shmp__os_shm_place, 0); }
#endif

int shmp__os_is_users_process(long pid) {
    char path[32];
    struct stat process;
    snprintf(path, sizeof path, "/proc/%ld", pid);
    if (SYS(stat, (path, &process)) < 0) return shmp__os_passed_over(-errno);
    return (unsigned long)process.st_uid == shmp__os_user();
}

/* Calls visit for each line; stops when it gives non-zero, which is returned. */
static int each_line(const char *path, int (*visit)(void *context, const char *line), void *context) {
    FILE *file;
    do file = SYS_OR(NULL, fopen, (path, "re"));
    while (!file && errno == EINTR);
    if (!file) return -errno;
    char *line = NULL;
    size_t room = 0;
    int result = 0;
    while (result == 0) {
        if (SYS(getline, (&line, &room, file)) >= 0)
            result = visit(context, line);
        else if (feof(file))
            break;
        else if (errno == EINTR)
            clearerr(file);
        else
            result = -errno;
    }
    free(line);
    (void)fclose(file);
    return result;
}

/* Of a file of one number; of "max", which is no limit, it gives 2. */
static int visit_limit(void *context, const char *line) {
    return sscanf(line, "%llu", (unsigned long long *)context) == 1 ? 1 : 2;
}

/* Page cache, which the kernel gives up before it kills. */
static int visit_stat(void *context, const char *line) {
    unsigned long long bytes, *sum = context;
    if (sscanf(line, "inactive_file %llu", &bytes) == 1 || sscanf(line, "active_file %llu", &bytes) == 1) *sum += bytes;
    return 0;
}

typedef struct cgroup_kind {
    const char *root, *limit, *used;
} cgroup_kind;

static int each_line_of(const char *folder, const char *file, int (*visit)(void *context, const char *line),
                        void *context) {
    char path[PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/%s", folder, file);
    return shmp__os_passed_over(each_line(path, visit, context));
}

/* `at` is the process's cgroup. Every one above it has its limit too, and in a container `at` may be a
 * path of the host, of which only the root is to be seen. */
static int limit_to_cgroup(const cgroup_kind *kind, char *at, unsigned long long *bytes) {
    for (char *end = at;; *end = 0) {
        char folder[PATH_MAX];
        unsigned long long limit, used, cache = 0;
        snprintf(folder, sizeof folder, "%s%s", kind->root, at);
        int found = each_line_of(folder, kind->limit, visit_limit, &limit);
        if (found == 1) found = each_line_of(folder, kind->used, visit_limit, &used);
        if (found == 1) {
            found = each_line_of(folder, "memory.stat", visit_stat, &cache);
            unsigned long long available = (limit > used ? limit - used : 0) + cache;
            if (available < *bytes) *bytes = available;
        }
        if (found < 0) return found;
        end = strrchr(at, '/');
        if (!end) return 0;
    }
}

static int visit_cgroup(void *context, const char *line) {
    static const cgroup_kind v1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"},
                             v2 = {"/sys/fs/cgroup", "memory.max", "memory.current"};
    char controllers[128], path[PATH_MAX];
    if (sscanf(line, "0::%4095[^\n]", path) == 1) return limit_to_cgroup(&v2, path, context);
    if (sscanf(line, "%*d:%127[^:]:%4095[^\n]", controllers, path) != 2 || strcmp(controllers, "memory") != 0) return 0;
    return limit_to_cgroup(&v1, path, context);
}

static int visit_available(void *context, const char *line) {
    unsigned long long *kibibytes = context;
    return sscanf(line, "MemAvailable: %llu", kibibytes) == 1;
}

const char shmp__os_memory_call[] = "/proc/meminfo";

int shmp__os_free_memory(unsigned long long *ret_bytes) {
    unsigned long long kibibytes;
    int found = each_line(shmp__os_memory_call, visit_available, &kibibytes);
    if (found < 0) return found;
    if (!found) return -ENOENT; /* before Linux 3.14 */
    unsigned long long bytes = kibibytes * 1024;
    /* the memory cgroups of this process, such as its container's, may let it have less */
    int failed = shmp__os_passed_over(each_line("/proc/self/cgroup", visit_cgroup, &bytes));
    if (failed < 0) return failed;
    *ret_bytes = bytes;
    return 0;
}

typedef struct lock_search {
    char file[64]; /* as /proc/locks writes it */
    long owner;
} lock_search;

static int visit_lock(void *context, const char *line) {
    lock_search *search = context;
    long pid;
    char file[64];
    if (sscanf(line, "%*s FLOCK %*s %*s %ld %63s", &pid, file) != 2 || strcmp(file, search->file) != 0) return 0;
    search->owner = pid > 0 ? pid : 0;
    return 1;
}

/* Of a line of /proc/<pid>/maps: where it begins, and "device inode" of what is mapped there. */
static int parse_mapping(const char *line, unsigned long long *ret_start, char ret_object[64]) {
    char device[24];
    unsigned long long inode;
    if (sscanf(line, "%llx-%*x %*s %*s %23s %llu", ret_start, device, &inode) != 3) return 0;
    snprintf(ret_object, 64, "%s %llu", device, inode);
    return 1;
}

typedef struct own_mapping {
    unsigned long long start;
    char object[64];
} own_mapping;

static int visit_own_mapping(void *context, const char *line) {
    own_mapping *wanted = context;
    unsigned long long start;
    return parse_mapping(line, &start, wanted->object) && start == wanted->start;
}

typedef struct user_search {
    char *object; /* of a mapping, as parse_mapping gives it */
    int (*visit)(void *context, long pid);
    void *context;
} user_search;

static int visit_mapping(void *context, const char *line) {
    unsigned long long start;
    char object[64];
    return parse_mapping(line, &start, object) && strcmp(object, context) == 0;
}

/* 1: the process has the object mapped; 0: it has not; negative: that cannot be read. */
static int has_mapped(long pid, char *object) {
    char path[32];
    snprintf(path, sizeof path, "/proc/%ld/maps", pid);
    return each_line(path, visit_mapping, object);
}

long shmp__os_lock_owner(const shmp__os_file *file) {
    lock_search search = {.owner = 0};
    dev_t device = (dev_t)file->device;
    char object[64];
    snprintf(search.file, sizeof search.file, "%02x:%02x:%llu", major(device), minor(device), file->inode);
    (void)each_line("/proc/locks", visit_lock, &search);
    /* It names who took the lock, who may have ended since and left it to a forked child. */
    snprintf(object, sizeof object, "%02x:%02x %llu", major(device), minor(device), file->inode);
    return search.owner && has_mapped(search.owner, object) > 0 ? search.owner : 0;
}

static int visit_process(void *context, long pid) {
    user_search *search = context;
    int found = has_mapped(pid, search->object);
    return found > 0 ? search->visit(search->context, pid) : shmp__os_passed_over(found);
}

int shmp__os_each_user(const void *data, int (*visit)(void *context, long pid), void *context) {
    own_mapping own = {.start = (unsigned long long)(size_t)data};
    int found = each_line("/proc/self/maps", visit_own_mapping, &own);
    if (found < 0) return found;
    if (found == 0) return -ENOENT;
    user_search search = {own.object, visit, context};
    return shmp__os_each_process(visit_process, &search);
}

#endif
