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
    case -ENAMETOOLONG: /* this and the next: anybody can open a folder that deep, or take a lease on a memfd */
    case -EWOULDBLOCK:
    case -ENODEV: /* this and the next: a cgroup is gone, or the descriptor is something else by now */
    case -ENXIO: return 0;
    default: return error;
    }
}

enum { DONE = INT_MAX }; /* no visitor gives that: the visit ends, and all is well */

/* ret_folder: gets the open folder, for as long as the visit takes; may be NULL. */
static int each_entry(const char *path, int *ret_folder, int (*visit)(void *context, const char *name), void *context) {
    DIR *directory;
    do directory = SYS_OR(NULL, opendir, (path));
    while (!directory && errno == EINTR);
    if (!directory) return -errno;
    if (ret_folder) *ret_folder = dirfd(directory);
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
    return each_entry(shmp__os_shm_place, NULL, visit, context);
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
    return each_entry("/proc", NULL, visit_number, &inner);
}

typedef struct thread_visit {
    long pid;
    int (*visit)(void *context, const char *folder);
    void *context;
} thread_visit;

static int visit_thread(void *context, long thread) {
    const thread_visit *outer = context;
    char folder[64];
    snprintf(folder, sizeof folder, "/proc/%ld/task/%ld/", outer->pid, thread);
    return outer->visit(outer->context, folder);
}

int shmp__os_each_thread(long pid, int (*visit)(void *context, const char *folder), void *context) {
    char path[32];
    thread_visit outer = {pid, visit, context};
    number_visit inner = {visit_thread, &outer};
    snprintf(path, sizeof path, "/proc/%ld/task", pid);
    return each_entry(path, NULL, visit_number, &inner);
}

typedef struct fd_visit {
    int (*visit)(void *context, int folder, long fd);
    void *context;
    int folder, count;
} fd_visit;

static int visit_one_fd(void *context, long fd) {
    fd_visit *outer = context;
    outer->count++;
    return outer->visit(outer->context, outer->folder, fd);
}

/* Those of the first thread that has any: threads share them. */
static int visit_fds_in(void *context, const char *folder) {
    fd_visit *outer = context;
    number_visit inner = {visit_one_fd, outer};
    char path[80];
    snprintf(path, sizeof path, "%sfd", folder);
    int result = shmp__os_passed_over(each_entry(path, &outer->folder, visit_number, &inner));
    return result == 0 && outer->count ? DONE : result;
}

int shmp__os_each_fd(long pid, int (*visit)(void *context, int folder, long fd), void *context) {
    fd_visit outer = {.visit = visit, .context = context};
    char folder[32];
    snprintf(folder, sizeof folder, "/proc/%ld/", pid);
    int result = visit_fds_in(&outer, folder);
    if (result == 0) result = shmp__os_passed_over(shmp__os_each_thread(pid, visit_fds_in, &outer));
    return result == DONE ? 0 : result;
}

/* 1: what the descriptor is called begins with `text` or, with `is_all`, is that. */
static int fd_is_called(int folder, long fd, const char *text, int is_all) {
    char name[24], target[64];
    size_t wanted = strlen(text);
    snprintf(name, sizeof name, "%ld", fd);
    ssize_t length = SYS(readlinkat, (folder, name, target, sizeof target));
    if (length < 0) return shmp__os_passed_over(-errno);
    return (is_all ? (size_t)length == wanted : (size_t)length >= wanted) && memcmp(target, text, wanted) == 0;
}

int shmp__os_is_our_memfd(int folder, long fd) {
    return fd_is_called(folder, fd, "/memfd:shmem_providers (deleted)", 1);
}

#if SHMP_HAVE_ASHMEM
int shmp__os_may_be_ashmem(int folder, long fd) {
    int result = fd_is_called(folder, fd, "/dev/ashmem", 0);
    return result ? result : fd_is_called(folder, fd, "/memfd:shmp_", 0); /* of newer libandroid.so */
}
#endif

#if SHMP_HAVE_POSIX
int shmp__os_fd_is_in_shm_place(int folder, long fd) { return fd_is_called(folder, fd, shmp__os_shm_place, 0); }
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

#if SHMP_HAVE_ASHMEM
static int visit_user(void *context, const char *line) {
    return sscanf(line, "Uid: %*u %lu", (unsigned long *)context) == 1;
}

int shmp__os_user_of(long pid, unsigned long *ret_user) {
    char path[40];
    snprintf(path, sizeof path, "/proc/%ld/status", pid);
    int result = each_line(path, visit_user, ret_user);
    return result == 1 ? 0 : result < 0 && result != -ESRCH ? result : -ENOENT;
}
#endif

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

/* `path` is a folder, and has room for the name of a file in it. */
static int each_line_of(char *path, const char *file, int (*visit)(void *context, const char *line), void *context) {
    size_t length = strlen(path);
    path[length] = '/';
    strcpy(path + length + 1, file);
    int result = shmp__os_passed_over(each_line(path, visit, context));
    path[length] = 0;
    return result;
}

/* `at` is the process's cgroup. Every one above it has its limit too, and in a container `at` may be a
 * path of the host, of which only the root is to be seen. */
static int limit_to_cgroup(const cgroup_kind *kind, const char *at, unsigned long long *bytes) {
    enum { LONGEST_FILE = 32 };
    size_t root = strlen(kind->root);
    char *path = shmp__os_allocate(root + strlen(at) + LONGEST_FILE); /* not on the stack: some are small */
    if (!path) return -ENOMEM;
    strcpy(path, kind->root);
    strcpy(path + root, at);
    path[strcspn(path, "\n")] = 0;
    int found;
    for (char *end = path;; *end = 0) {
        unsigned long long limit, used, cache = 0;
        found = each_line_of(path, kind->limit, visit_limit, &limit);
        if (found == 1) found = each_line_of(path, kind->used, visit_limit, &used);
        if (found == 1) {
            found = each_line_of(path, "memory.stat", visit_stat, &cache);
            unsigned long long available = (limit > used ? limit - used : 0) + cache;
            if (available < *bytes) *bytes = available;
        }
        end = strrchr(path + root, '/');
        if (found < 0 || !end) break;
    }
    free(path);
    return found < 0 ? found : 0;
}

/* Of a line "number:controllers:path": v2 has number 0 and no controllers. */
static int visit_cgroup(void *context, const char *line) {
    static const cgroup_kind v1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"},
                             v2 = {"/sys/fs/cgroup", "memory.max", "memory.current"};
    const char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!path) return 0;
    if (strncmp(line, "0::", 3) == 0) return limit_to_cgroup(&v2, path + 1, context);
    if (strncmp(controllers, ":memory:", 8) != 0) return 0;
    return limit_to_cgroup(&v1, path + 1, context);
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

/* Of a line of /proc/<pid>/maps: where it begins, and what is mapped there, as text. The ids of System V segments are
 * in the place of inode numbers, which they can equal. */
static int parse_mapping(const char *line, unsigned long long *ret_start, char ret_object[64]) {
    char device[24], path[8] = "";
    unsigned long long inode;
    if (sscanf(line, "%llx-%*x %*s %*s %23s %llu %7s", ret_start, device, &inode, path) < 3) return 0;
    snprintf(ret_object, 64, "%s %llu%s", device, inode, strncmp(path, "/SYSV", 5) == 0 ? " sysv" : "");
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

static int visit_maps_in(void *context, const char *folder) {
    char path[80];
    snprintf(path, sizeof path, "%smaps", folder);
    return each_line(path, visit_mapping, context);
}

/* 1: the process has the object mapped; 0: it has not; negative: that cannot be read. */
static int has_mapped(long pid, char *object) {
    char folder[32];
    snprintf(folder, sizeof folder, "/proc/%ld/", pid);
    int result = visit_maps_in(object, folder);
    return result == 0 ? shmp__os_each_thread(pid, visit_maps_in, object) : result;
}

static int visit_lease(void *context, const char *line) {
    unsigned long long inode;
    if (sscanf(line, "%*s LEASE %*s %*s %*s %*x:%*x:%llu", &inode) != 1 || inode == 0) return 0;
    return shmp__table_put(context, inode, 0) < 0 ? -ENOMEM : 0;
}

int shmp__os_find_leased(shmp__table *inodes) {
    int result = each_line("/proc/locks", visit_lease, inodes);
    return shmp__os_is_untold(result) ? 0 : result;
}

typedef struct holder_search {
    shmp__os_holder *holders;
    size_t count;
    shmp__table by_inode; /* where a holder is */
    long pid;             /* whose mappings are looked at */
} holder_search;

static int compare_devices(const shmp__os_holder *holder, unsigned major_, unsigned minor_) {
    return major((dev_t)holder->device) == major_ && minor((dev_t)holder->device) == minor_;
}

/* The holder of that file; NULL: it is none of those. */
static shmp__os_holder *holder_of(const holder_search *search, unsigned major_, unsigned minor_,
                                  unsigned long long inode) {
    size_t at;
    if (!inode || !shmp__table_get(&search->by_inode, inode, &at)) return NULL;
    return compare_devices(&search->holders[at], major_, minor_) ? &search->holders[at] : NULL;
}

static int visit_lock(void *context, const char *line) {
    long pid;
    unsigned device[2];
    unsigned long long inode;
    if (sscanf(line, "%*s FLOCK %*s %*s %ld %x:%x:%llu", &pid, &device[0], &device[1], &inode) != 4) return 0;
    shmp__os_holder *holder = holder_of(context, device[0], device[1], inode);
    if (holder && pid > 0 && !holder->pid) holder->pid = -pid; /* until its mappings were looked at */
    return 0;
}

static int visit_held(void *context, const char *line) {
    holder_search *search = context;
    unsigned device[2];
    unsigned long long inode;
    if (sscanf(line, "%*x-%*x %*s %*s %x:%x %llu", &device[0], &device[1], &inode) != 3) return 0;
    shmp__os_holder *holder = holder_of(search, device[0], device[1], inode);
    if (holder && holder->pid == -search->pid) holder->pid = search->pid;
    return 0;
}

/* /proc/locks names who took the lock, who may have ended since and left it to a forked child: who has the file mapped
 * is its holder. Each list is read once, however many files there are. */
int shmp__os_find_holders(shmp__os_holder *holders, size_t count) {
    holder_search search = {.holders = holders, .count = count};
    int result = 0;
    for (size_t i = 0; i < count && result == 0; i++)
        if (shmp__table_put(&search.by_inode, holders[i].inode, i) < 0) result = -ENOMEM;
    if (result == 0) (void)each_line("/proc/locks", visit_lock, &search);
    for (size_t i = 0; i < count && result == 0; i++) {
        if (holders[i].pid >= 0) continue;
        char path[32];
        search.pid = -holders[i].pid;
        snprintf(path, sizeof path, "/proc/%ld/maps", search.pid);
        (void)each_line(path, visit_held, &search);
        for (size_t j = i; j < count; j++)
            if (holders[j].pid == -search.pid) holders[j].pid = 0; /* it has not: whoever has is not known */
    }
    shmp__table_free(&search.by_inode);
    return result;
}

static int visit_command(void *context, const char *line) {
    snprintf(context, SHMP__OS_COMMAND_ROOM, "%.*s", (int)strcspn(line, "\n"), line);
    return 1;
}

void shmp__os_command_of(long pid, char ret_command[SHMP__OS_COMMAND_ROOM]) {
    char path[32];
    ret_command[0] = 0;
    if (pid <= 0) return;
    snprintf(path, sizeof path, "/proc/%ld/comm", pid);
    (void)each_line(path, visit_command, ret_command);
    /* a process names itself: nothing that a terminal would obey */
    for (char *at = ret_command; *at; at++)
        if (*at < ' ' || *at > '~') *at = '?';
}

static int visit_process(void *context, long pid) {
    user_search *search = context;
    int found = has_mapped(pid, search->object);
    return found > 0 ? search->visit(search->context, pid) : shmp__os_passed_over(found);
}

int shmp__os_each_user(const void *data, int (*visit)(void *context, long pid), void *context) {
    own_mapping own = {.start = (unsigned long long)(size_t)data};
    int found = each_line("/proc/self/maps", visit_own_mapping, &own);
    if (found == 0)
        found = each_line("/proc/thread-self/maps", visit_own_mapping, &own); /* the main thread has ended */
    if (found < 0) return found;
    if (found == 0) return -ENOENT;
    user_search search = {own.object, visit, context};
    return shmp__os_each_process(visit_process, &search);
}

#endif
