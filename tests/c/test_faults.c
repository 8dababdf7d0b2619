/* Every call of the system fails, one after the other, in every operation of every provider.
 *
 *   test_faults [NAME]    all operations, or those whose "provider operation" contains NAME
 *
 * The core is compiled with -DSHMP_FAULTS (csrc/os/fault.h). Each operation is first run to see
 * which calls it makes. Then, for each of them and each errno of its manual page, it is run with
 * that call failing ("one"), with all calls failing so from there on ("lasting"), and once with
 * every interruptible call interrupted three times ("storm"). Each time: the error is a good one,
 * or success is right by the table `rules`; no output was written; descriptors, mappings, names,
 * System V segments and the environment are what they were; and the operation then works. Memory
 * is counted by a build with AddressSanitizer. */
#define _GNU_SOURCE /* Linux: namespaces */
#include "alone.h"
#include "check.h"
#include "core/core.h"
#include "os/fault.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))
#define CODE(code) (1u << (code))

enum { SIZE = 3 * 4096, LEFTOVER_SIZE = 5 * 4096, PEER_SIZE = 7 * 4096, FROM_PEER = 0xa5, PATIENCE = 60 /* seconds */ };

/* The library's clock (run.sh links with --wrap=time). */
static long seconds_ahead;
time_t __real_time(time_t *ret_time);
time_t __wrap_time(time_t *ret_time);
time_t __wrap_time(time_t *ret_time) { return __real_time(ret_time) + seconds_ahead; }

static const char variable[] = "SHMP_FAULTS", variable_size[] = "SHMP_FAULTS_SIZE";
static char own_name[20], leased_name[20];

/* Is `word` one of the space-separated words of `list`? NULL lists everything. */
static int lists(const char *list, const char *word) {
    if (!list) return 1;
    size_t length = strlen(word);
    for (const char *at = list; (at = strstr(at, word)); at += length)
        if ((at == list || at[-1] == ' ') && (at[length] == ' ' || !at[length])) return 1;
    return 0;
}

/* ---- Which errors a call has: its manual page's, without those of arguments never given ------ */

static const struct {
    const char *call;
    int errors[24];
} pages[] = {
    {"calloc", {ENOMEM}},
    {"close", {EBADF, EINTR, EIO, ENOSPC, EDQUOT}},
    {"fallocate", {EBADF, EFBIG, EINTR, EINVAL, EIO, ENODEV, ENOMEM, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, ETXTBSY}},
    {"fchmod", {EBADF, EIO, EPERM, EROFS}},
    {"fcntl", {EACCES, EAGAIN, EBADF, EBUSY, EINVAL, EMFILE, EPERM}},
    {"flock", {EBADF, EINTR, EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP, EWOULDBLOCK}},
    {"fopen", {EACCES, EINTR, EMFILE, ENFILE, ENOENT, ENOMEM, EPERM}},
    {"fstat", {EBADF, EIO, ENOMEM, EOVERFLOW}},
    {"fstatvfs", {EBADF, EINTR, EIO, ENOMEM, ENOSYS, EOVERFLOW}},
    {"ftruncate", {EACCES, EBADF, EFBIG, EINTR, EINVAL, EIO, EPERM, EROFS, ETXTBSY}},
    {"getline", {EINTR, EIO, ENOMEM, ESRCH}},
    {"getrandom", {EAGAIN, EINTR, EINVAL, ENOSYS}},
    {"getrlimit", {EINVAL, EPERM}},
    {"ioctl", {EBADF, EFAULT, EINVAL, ENOTTY}},
    {"link", {EACCES, EDQUOT, EEXIST, EIO, ELOOP, EMLINK, ENAMETOOLONG, ENOENT, ENOMEM, ENOSPC, EPERM, EROFS}},
    {"lseek", {EBADF, EINVAL, EOVERFLOW, ESPIPE}},
    {"lstat", {EACCES, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, ENOTDIR, EOVERFLOW}},
    {"madvise", {EACCES, EAGAIN, EBADF, EBUSY, EHWPOISON, EINTR, EINVAL, EIO, ENOMEM, EPERM}},
    {"memfd_create", {EACCES, EINVAL, EMFILE, ENFILE, ENOMEM, ENOSYS, EPERM}},
    {"mmap", {EACCES, EAGAIN, EBADF, EEXIST, EINVAL, ENFILE, ENODEV, ENOMEM, EOVERFLOW, EPERM, ETXTBSY}},
    {"munmap", {EINVAL, ENOMEM}},
    {"open",
     {EACCES, EINTR, EISDIR, ELOOP, EMFILE, ENAMETOOLONG, ENFILE, ENODEV, ENOENT, ENOMEM, ENOTDIR, ENXIO, EOVERFLOW,
      EPERM, EROFS, ETXTBSY, EWOULDBLOCK}},
    {"openat",
     {EACCES, EINTR, ELOOP, EMFILE, ENAMETOOLONG, ENFILE, ENODEV, ENOENT, ENOMEM, ENXIO, EOVERFLOW, EPERM,
      EWOULDBLOCK}},
    {"opendir", {EACCES, EINTR, EMFILE, ENFILE, ENOENT, ENOMEM, ENOTDIR}},
    {"pidfd_getfd", {EBADF, EINVAL, EMFILE, ENFILE, ENOSYS, EPERM, ESRCH}},
    {"pidfd_open", {EINVAL, EMFILE, ENFILE, ENODEV, ENOMEM, ENOSYS, ESRCH}},
    {"read", {EBADF, EINTR, EINVAL, EIO}},
    {"readdir", {EBADF, ENOENT}},
    {"readlink", {EACCES, EINVAL, EIO, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, ENOTDIR}},
    {"readlinkat", {EACCES, EINVAL, EIO, ENAMETOOLONG, ENOENT, ENOMEM}},
    {"realloc", {ENOMEM}},
    {"renameat2",
     {EACCES, EBUSY, EDQUOT, EEXIST, EINVAL, EIO, ELOOP, EMLINK, ENAMETOOLONG, ENOENT, ENOMEM, ENOSPC, ENOSYS, EPERM,
      EROFS}},
    {"setenv", {EINVAL, ENOMEM}},
    {"shm_open",
     {EACCES, EEXIST, EINTR, EINVAL, EISDIR, ELOOP, EMFILE, ENAMETOOLONG, ENFILE, ENOENT, ENOMEM, ENOSPC, ENXIO, EPERM,
      EROFS}},
    {"shm_unlink", {EACCES, EBUSY, EIO, ENAMETOOLONG, ENOENT, ENOMEM, EPERM, EROFS}},
    {"shmat", {EACCES, EIDRM, EINVAL, ENOMEM}},
    {"shmctl", {EACCES, EIDRM, EINVAL, ENOMEM, EOVERFLOW, EPERM}},
    {"shmdt", {EINVAL}},
    {"shmget", {EACCES, EEXIST, EINVAL, ENFILE, ENOENT, ENOMEM, ENOSPC, ENOSYS, EPERM}},
    {"stat", {EACCES, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, ENOTDIR, EOVERFLOW}},
    {"unlink", {EACCES, EBUSY, EIO, ENOENT, ENOMEM, EPERM, EROFS}},
};

static int is_page_used[LENGTH(pages)];

static const int *errors_of(const char *call) {
    static const int none[1];
    for (size_t i = 0; i < LENGTH(pages); i++)
        if (strcmp(pages[i].call, call) == 0) return is_page_used[i] = 1, pages[i].errors;
    check_failed(__FILE__, __LINE__, "%s has no row in `pages`", call);
    return none;
}

static int has_error(const char *call, int error) {
    const int *at = errors_of(call);
    while (*at && *at != error) at++;
    return *at != 0;
}

/* ---- The seam ---------------------------------------------------------------------------- */

typedef enum { OFF, RECORD, ONE, LASTING, STORM } fault_mode;
static const char *const mode_names[] = {"off", "record", "one", "lasting", "storm"};

enum { TRACE_ROOM = 8192, INTERRUPTIONS = 3 };

static struct {
    fault_mode mode;
    const char *call;    /* its (occurrence + 1)th call fails with `error` */
    const char *missing; /* a call that this kernel does not have */
    int occurrence, error;
    int seen, interrupted, count; /* count: of failures */
    char hits[320];               /* the calls that failed, as words */
    const char *trace[TRACE_ROOM];
    int length;
} fault;

static int is_due(const char *call) {
    int is_it = fault.call && strcmp(call, fault.call) == 0 && fault.seen++ == fault.occurrence;
    switch (fault.mode) {
    case RECORD:
        if (fault.length < TRACE_ROOM) fault.trace[fault.length++] = call;
        return 0;
    case ONE: return is_it;
    case LASTING: return is_it || (fault.count > 0 && has_error(call, fault.error));
    case STORM:
        if (!has_error(call, EINTR)) return 0;
        fault.interrupted = (fault.interrupted + 1) % (INTERRUPTIONS + 1);
        return fault.interrupted != 0;
    default: return 0;
    }
}

static int fails(const char *call) {
    if (fault.mode != OFF && fault.missing && strcmp(call, fault.missing) == 0) {
        errno = ENOSYS;
        return 1;
    }
    if (!is_due(call)) return 0;
    fault.count++;
    if (!lists(fault.hits, call)) {
        size_t used = strlen(fault.hits);
        snprintf(fault.hits + used, sizeof fault.hits - used, "%s%s", used ? " " : "", call);
    }
    errno = fault.error;
    return 1;
}

int shmp__fault(const char *call) { return fails(call); }
int shmp__fault_after(const char *call, int result) { return fails(call) ? -1 : result; }

static void arm(fault_mode mode, const char *call, int occurrence, int error) {
    fault.call = call;
    fault.occurrence = occurrence;
    fault.error = error;
    fault.seen = fault.interrupted = fault.count = 0;
    fault.hits[0] = 0;
    if (mode == RECORD) fault.length = 0;
    fault.mode = mode;
}

static void disarm(void) { fault.mode = OFF; }

/* ---- What a process holds, one thing a line ------------------------------------------------ */

typedef struct holdings {
    char text[65536]; /* "\n" and lines */
    size_t used;
} holdings;

static void hold(holdings *all, const char *kind, const char *what) {
    int length = snprintf(all->text + all->used, sizeof all->text - all->used, "%s %s\n", kind, what);
    all->used += (size_t)length;
    if (all->used >= sizeof all->text) give_up("this process holds too much");
}

static void hold_descriptors(holdings *all) {
    DIR *directory = opendir("/proc/self/fd");
    if (!directory) give_up("/proc/self/fd cannot be read");
    for (struct dirent *entry; (entry = readdir(directory));) {
        char target[200], line[300];
        ssize_t length = readlinkat(dirfd(directory), entry->d_name, target, sizeof target - 1);
        if (length < 0 || atoi(entry->d_name) == dirfd(directory)) continue;
        target[length] = 0;
        snprintf(line, sizeof line, "%.20s %s", entry->d_name, target);
        hold(all, "fd", line);
    }
    closedir(directory);
}

static void hold_names(holdings *all) {
    DIR *directory = opendir("/dev/shm");
    if (!directory) return;
    for (struct dirent *entry; (entry = readdir(directory));)
        if (strncmp(entry->d_name, "shmp_", 5) == 0 || strcmp(entry->d_name, own_name + 1) == 0)
            hold(all, "name", entry->d_name);
    closedir(directory);
}

static void hold_lines(holdings *all, const char *path, const char *kind) {
    char line[512], number[24], mode[24];
    long creator;
    FILE *file = fopen(path, "re");
    if (!file) return;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (strcmp(kind, "map") == 0 && sscanf(line, "%*s %23s", mode) == 1 && mode[3] == 's') hold(all, kind, line);
        if (strcmp(kind, "sysv") == 0 && sscanf(line, "%*s %23s %*s %*s %ld", number, &creator) == 2 &&
            creator == (long)getpid())
            hold(all, kind, number);
    }
    fclose(file);
}

/* kB of private mappings like the one by which a provider knows a forked process. */
static long wiped_on_fork(void) {
    char line[512];
    long size = 0, all = 0;
    FILE *file = fopen("/proc/self/smaps", "re");
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) {
        (void)sscanf(line, "Size: %ld", &size);
        if (strncmp(line, "VmFlags:", 8) == 0 && strstr(line, " wf")) all += size;
    }
    fclose(file);
    return all;
}

static void hold_variable(holdings *all, const char *name) {
    const char *value = getenv(name);
    if (value) hold(all, name, value);
}

static void look(holdings *ret_all) {
    ret_all->used = 1;
    strcpy(ret_all->text, "\n");
    hold_descriptors(ret_all);
    hold_lines(ret_all, "/proc/self/maps", "map");
    hold_lines(ret_all, "/proc/sysvipc/shm", "sysv");
    hold_names(ret_all);
    hold_variable(ret_all, variable);
    hold_variable(ret_all, variable_size);
}

/* The next line, from *at on, that `others` lacks; "\n" before and after it. */
static const char *next_extra(const char **at, const holdings *others) {
    static char line[600];
    while ((*at)[1]) {
        size_t length = strcspn(*at + 1, "\n") + 2;
        snprintf(line, sizeof line, "%.*s", (int)length, *at);
        *at += length - 1;
        if (!strstr(others->text, line)) return line;
    }
    return NULL;
}

/* Another process's live segment holds a lock, but for the moment when it is made. Ours would hold a
 * descriptor too. */
static int is_left_over(const char *name) {
    for (int looks = 0; looks < 2 && !is_alone; looks++) {
        if (looks > 0) usleep(20000);
        int fd = shm_open(name, O_RDONLY | O_CLOEXEC, 0);
        if (fd < 0) return 0;
        int result = flock(fd, LOCK_EX | LOCK_NB);
        close(fd);
        if (result < 0) return 0;
    }
    return 1;
}

/* Removes a name or a System V segment that stayed; 0: it is something else; -1: it is others'. */
static int remove_extra(const char *line) {
    char name[64];
    int id;
    if (sscanf(line, "\nname %62s", name + 1) == 1) {
        name[0] = '/';
        return is_left_over(name) && shm_unlink(name) == 0 ? 1 : -1;
    }
    return sscanf(line, "\nsysv %d", &id) == 1 && shmctl(id, IPC_RMID, NULL) == 0;
}

/* ---- Providers and operations ---------------------------------------------------------------- */

enum {
    SHARES = 1,
    FILES = 2,
    NAMES = 4,
    RESERVES = 8,
    PROC_IDS = 16,
    LISTS = 32,
    LEFTOVERS = 64,
    INDEXED = 128,
    NUMBERS = 256,
    MODES = 512,
    OF_STD = 1024, /* "std" attaches to its ids by a provider that it opens then */
    NAMES_STAY = 2048,
    LINGERS = 4096,
    IDS_STAY = 8192, /* a leftover can be attached to by its id */
    READ_REGIONS = 16384
};

typedef struct provider_kind {
    const char *label, *name;
    unsigned flags, can;
    int listed;     /* by shmp_list: SEEN_... */
    unsigned index; /* INDEXED: shmp_available's */
} provider_kind;

enum { SEEN_OWNER = 1, SEEN_LEFTOVER = 2, SEEN_NASCENT = 4, SEEN_CHOSEN = 8 };

#define ALL_FILES (SHARES | FILES | RESERVES | LISTS | NUMBERS)

static const provider_kind kinds[] = {
    {"memfd", "memfd", 0, ALL_FILES | PROC_IDS | INDEXED, SEEN_OWNER, 0},
    {"memfd/fd_ids", "memfd", SHMP_FD_IDS, ALL_FILES, SEEN_OWNER, 0},
    {"posix", "posix", 0, ALL_FILES | NAMES | NAMES_STAY | LEFTOVERS | INDEXED | MODES | OF_STD | LINGERS,
     SEEN_OWNER | SEEN_LEFTOVER | SEEN_NASCENT | SEEN_CHOSEN, 1},
    {"posix/fd_ids", "posix", SHMP_FD_IDS, ALL_FILES | NAMES | LEFTOVERS | MODES,
     SEEN_LEFTOVER | SEEN_NASCENT | SEEN_CHOSEN, 0},
    {"sysv", "sysv", 0, SHARES | RESERVES | LISTS | LEFTOVERS | INDEXED | MODES | OF_STD | LINGERS | IDS_STAY,
     SEEN_OWNER | SEEN_LEFTOVER, 2},
    {"ashmem", "ashmem", 0, SHARES | FILES | NUMBERS | PROC_IDS | INDEXED | OF_STD | READ_REGIONS, 0, 3},
    {"ashmem/fd_ids", "ashmem", SHMP_FD_IDS, SHARES | FILES | NUMBERS, 0, 0},
    {"nop", "nop", 0, LISTS | INDEXED, 0, 6},
    {"std", "std", 0, (ALL_FILES & ~NUMBERS) | PROC_IDS, SEEN_OWNER, 0},
};

typedef struct outputs {
    shmp_provider *provider;
    shmp_shmem *shmem;
    shmp_description description;
    shmp_limits limits;
} outputs;

typedef struct scene_state {
    const provider_kind *kind;
    shmp_provider *provider, *std;
    shmp_shmem *owner, *attached;
    shmp_description description, of_peer;
    int left_id; /* of a System V segment that is left over; -1: none */
    int has_leftover;
    int leased; /* a descriptor of a file with a lease; -1: none */
    int seen;
    outputs out, untouched;
} scene_state;

/* What an operation needs to be there. */
enum {
    OWNER = 1,
    ATTACHED = 2,
    NAMED = 4,
    LEFTOVER = 8,
    VARIABLES = 16,
    PEER = 32,
    NUMBER = 64,
    ENDS = 128,
    STD = 256,
    LINGERING = 512,
    CHOSEN_LEFTOVER = 1024,
    NO_RENAME = 2048,
    FOREIGN = 4096
};

typedef struct operation_case {
    const char *name;
    int (*run)(scene_state *scene, unsigned flags, shmp_error *reterr);
    unsigned flags, needs /* of the provider */, stage /* OWNER ... */, codes /* the manual's */;
} operation_case;

static shmp_provider_options options_of(const provider_kind *kind) {
    return (shmp_provider_options){.struct_size = sizeof(shmp_provider_options), .flags = kind->flags};
}

static int run_open(scene_state *scene, unsigned flags, shmp_error *reterr) {
    shmp_provider_options options = options_of(scene->kind);
    options.flags |= flags;
    return shmp_provider_open(scene->kind->name, &options, &scene->out.provider, reterr);
}

static int run_available(scene_state *scene, unsigned flags, shmp_error *reterr) {
    const char *name = NULL;
    (void)flags;
    int result = shmp_available(scene->kind->index, &name, reterr);
    CHECK_TEXT(name, scene->kind->name);
    return result;
}

static int run_create(scene_state *scene, unsigned flags, shmp_error *reterr) {
    return shmp_create(scene->provider, SIZE, flags, &scene->out.shmem, reterr);
}

static int run_create_named(scene_state *scene, unsigned flags, shmp_error *reterr) {
    return shmp_create_named(scene->provider, own_name, SIZE, flags, &scene->out.shmem, reterr);
}

static int run_attach_name(scene_state *scene, unsigned flags, shmp_error *reterr) {
    return shmp_attach_name(scene->provider, own_name, SIZE, flags, &scene->out.shmem, reterr);
}

static int run_unlink(scene_state *scene, unsigned flags, shmp_error *reterr) {
    (void)flags;
    return shmp_unlink(scene->provider, own_name, reterr);
}

static int run_attach(scene_state *scene, unsigned flags, shmp_error *reterr) {
    return shmp_attach(scene->provider, &scene->description, flags, &scene->out.shmem, reterr);
}

static int run_attach_leftover(scene_state *scene, unsigned flags, shmp_error *reterr) {
    shmp_description left = {.size = SIZE};
    snprintf(left.id, sizeof left.id, "%d", scene->left_id);
    return shmp_attach(scene->provider, &left, flags, &scene->out.shmem, reterr);
}

static int run_clone(scene_state *scene, unsigned flags, shmp_error *reterr) {
    return shmp_clone(scene->owner, flags, &scene->out.shmem, reterr);
}

static int run_attach_by_std(scene_state *scene, unsigned flags, shmp_error *reterr) {
    return shmp_attach(scene->std, &scene->description, flags, &scene->out.shmem, reterr);
}

static int run_attach_fd(scene_state *scene, unsigned flags, shmp_error *reterr) {
    return shmp_attach_fd(scene->provider, shmp_fileno(scene->owner), &scene->description, flags, &scene->out.shmem,
                          reterr);
}

static int run_attach_fd_unknown(scene_state *scene, unsigned flags, shmp_error *reterr) {
    shmp_description unknown = {.size = scene->description.size};
    return shmp_attach_fd(scene->provider, shmp_fileno(scene->owner), &unknown, flags, &scene->out.shmem, reterr);
}

/* The descriptor that the id names was closed, and the segment is still open by another. */
static int run_attach_gone(scene_state *scene, unsigned flags, shmp_error *reterr) {
    shmp_description gone = scene->description;
    char *number = strpbrk(gone.id, ".-"), check[sizeof gone.id], dot = *number;
    snprintf(check, sizeof check, "%s", strrchr(gone.id, dot));
    snprintf(number, sizeof gone.id - (size_t)(number - gone.id), "%czz%s", dot, check);
    return shmp_attach(scene->provider, &gone, flags, &scene->out.shmem, reterr);
}

static int run_locate(scene_state *scene, unsigned flags, shmp_error *reterr) {
    shmp_description located;
    (void)flags;
    return shmp_locate(scene->owner, &located, reterr);
}

static int run_open_fd(scene_state *scene, unsigned flags, shmp_error *reterr) {
    shmp_description located;
    int fd;
    fault_mode mode = fault.mode;
    fault.mode = OFF; /* run_locate has those */
    int result = shmp_locate(scene->owner, &located, reterr);
    fault.mode = mode;
    if (result == 0) result = shmp_open_fd(scene->provider, located.id, flags, &fd, reterr);
    if (result == 0) close(fd);
    return result;
}

static int run_describe(scene_state *scene, unsigned flags, shmp_error *reterr) {
    (void)flags;
    return shmp_describe(scene->owner, &scene->out.description, reterr);
}

static int run_persist(scene_state *scene, unsigned flags, shmp_error *reterr) {
    (void)flags;
    return shmp_persist(scene->owner, reterr);
}

static int run_env_pairs(scene_state *scene, unsigned flags, shmp_error *reterr) {
    char id[64], size[64];
    (void)flags;
    return shmp_env_pairs(scene->owner, variable, SHMP_POSIX_NAMES, id, size, sizeof id, reterr);
}

static int run_to_env(scene_state *scene, unsigned flags, shmp_error *reterr) {
    (void)flags;
    return shmp_to_env(scene->owner, variable, reterr);
}

static int run_from_env(scene_state *scene, unsigned flags, shmp_error *reterr) {
    return shmp_from_env(scene->provider, variable, flags, &scene->out.shmem, reterr);
}

static int run_limits(scene_state *scene, unsigned flags, shmp_error *reterr) {
    (void)flags;
    return shmp_provider_limits(scene->provider, &scene->out.limits, reterr);
}

static int see_segment(void *context, const shmp_listed *segment) {
    scene_state *scene = context;
    scene->seen |= strcmp(segment->id, own_name) == 0 ? SEEN_CHOSEN
                   : segment->size == SIZE            ? SEEN_OWNER
                   : segment->size == LEFTOVER_SIZE   ? SEEN_LEFTOVER
                   : segment->size == 0               ? SEEN_NASCENT
                                                      : 0;
    return 0;
}

static int run_list(scene_state *scene, unsigned flags, shmp_error *reterr) {
    (void)flags;
    return shmp_list(scene->provider, see_segment, scene, reterr);
}

static int run_reap(scene_state *scene, unsigned flags, shmp_error *reterr) {
    return shmp_reap(scene->provider, flags, see_segment, scene, reterr);
}

static int see_user(void *context, long pid) {
    scene_state *scene = context;
    scene->seen |= pid == (long)getpid();
    return 0;
}

static int run_users(scene_state *scene, unsigned flags, shmp_error *reterr) {
    (void)flags;
    return shmp_users(scene->owner, see_user, scene, reterr);
}

static int run_close(scene_state *scene, unsigned flags, shmp_error *reterr) {
    shmp_shmem *closed = scene->owner;
    (void)flags;
    scene->owner = NULL;
    return shmp_close(closed, reterr);
}

static int run_close_attached(scene_state *scene, unsigned flags, shmp_error *reterr) {
    shmp_shmem *closed = scene->attached;
    (void)flags;
    scene->attached = NULL;
    return shmp_close(closed, reterr);
}

/* The memory outlives the rest, which Python's views need. */
static int run_retire(scene_state *scene, unsigned flags, shmp_error *reterr) {
    shmp_shmem *retired = scene->owner;
    (void)flags;
    scene->owner = NULL;
    int result = shmp__retire(retired, reterr);
    CHECK_EQUAL(shmp_flags(retired), 0);
    memset(shmp_data(retired), 1, SIZE);
    int failed = shmp_close(retired, result < 0 ? NULL : reterr);
    return result < 0 ? result : failed;
}

/* The last of two handles on one mapping is a clone. */
static int run_close_shared(scene_state *scene, unsigned flags, shmp_error *reterr) {
    shmp_shmem *clone = NULL;
    int result = shmp_clone(scene->owner, flags, &clone, reterr);
    int failed = shmp_close(scene->owner, result < 0 ? NULL : reterr);
    scene->owner = NULL;
    if (result == 0) result = failed;
    if (clone) memset(shmp_data(clone), 1, SIZE);
    failed = shmp_close(clone, result < 0 ? NULL : reterr);
    return result < 0 ? result : failed;
}

#define OS CODE(SHMP_EOS)
#define OPENING (OS | CODE(SHMP_EUNAVAILABLE) | CODE(SHMP_ENOMEM))
#define CREATING (OS | CODE(SHMP_EUNSUPPORTED) | CODE(SHMP_ENOMEM))
#define ATTACHING (CREATING | CODE(SHMP_EID) | CODE(SHMP_ESIZE) | CODE(SHMP_ENOTFOUND))

static const operation_case operations[] = {
    {"open", run_open, 0, 0, LEFTOVER, OPENING},
    {"open_keeping", run_open, SHMP_KEEP_LEFTOVERS, 0, LEFTOVER, OPENING},
    {"available", run_available, 0, INDEXED, 0, OPENING},
    {"create", run_create, 0, 0, 0, CREATING},
    {"create_reserve", run_create, SHMP_RESERVE, RESERVES, 0, CREATING},
    {"create_inherit", run_create, SHMP_INHERIT, FILES, 0, CREATING},
    {"create_unmapped", run_create, SHMP_UNMAPPED, FILES, 0, CREATING},
    {"create_mode", run_create, SHMP_MODE(0666), MODES, 0, CREATING},
    {"create_read", run_create, SHMP_MODE(0444), READ_REGIONS, 0, CREATING},
    {"create_named", run_create_named, SHMP_RESERVE | SHMP_INHERIT, NAMES, 0, CREATING},
    {"create_linger", run_create, SHMP_LINGER | SHMP_RESERVE, LINGERS, 0, CREATING},
    {"create_exist_ok", run_create_named, SHMP_EXIST_OK | SHMP_INHERIT, NAMES, 0, CREATING | CODE(SHMP_EID)},
    {"create_by_link", run_create_named, SHMP_EXIST_OK, NAMES, NO_RENAME, CREATING | CODE(SHMP_EID)},
    {"create_kept", run_create_named, SHMP_KEEP | SHMP_INHERIT, NAMES, 0, CREATING},
    {"create_anew", run_create_named, SHMP_EXIST_OK, NAMES_STAY, CHOSEN_LEFTOVER, ATTACHING},
    {"take", run_create_named, SHMP_EXIST_OK | SHMP_INHERIT, NAMES_STAY, OWNER | NAMED, ATTACHING},
    {"attach_name", run_attach_name, SHMP_INHERIT, NAMES_STAY, OWNER | NAMED, ATTACHING},
    {"attach_lingering", run_attach, 0, LINGERS, OWNER | LINGERING, ATTACHING},
    {"attach_leftover", run_attach_leftover, 0, IDS_STAY, LEFTOVER, ATTACHING},
    {"unlink", run_unlink, 0, NAMES_STAY, CHOSEN_LEFTOVER, OS | CODE(SHMP_ENOTFOUND) | CODE(SHMP_EID)},
    {"attach", run_attach, 0, 0, OWNER, ATTACHING},
    {"attach_read_only", run_attach, SHMP_READ_ONLY, SHARES, OWNER, ATTACHING},
    {"attach_whole", run_attach, SHMP_WHOLE, SHARES, OWNER, ATTACHING},
    {"attach_inherit", run_attach, SHMP_INHERIT, FILES, OWNER, ATTACHING},
    {"attach_other", run_attach, 0, PROC_IDS, PEER, ATTACHING},
    {"attach_other_whole", run_attach, SHMP_READ_ONLY | SHMP_WHOLE, PROC_IDS, PEER, ATTACHING},
    {"attach_number", run_attach, 0, NUMBERS, OWNER | NUMBER, ATTACHING},
    {"attach_by_std", run_attach_by_std, 0, OF_STD, OWNER | STD, ATTACHING | CODE(SHMP_EUNAVAILABLE)},
    {"attach_fd", run_attach_fd, 0, FILES, OWNER, ATTACHING},
    {"attach_fd_whole", run_attach_fd, SHMP_READ_ONLY | SHMP_WHOLE | SHMP_INHERIT, FILES, OWNER, ATTACHING},
    {"attach_fd_unknown", run_attach_fd_unknown, 0, FILES, OWNER, ATTACHING},
    {"clone", run_clone, 0, 0, OWNER, ATTACHING},
    {"clone_read_only", run_clone, SHMP_READ_ONLY, SHARES, OWNER, ATTACHING},
    {"clone_inherit", run_clone, SHMP_INHERIT, FILES, OWNER, ATTACHING},
    {"describe", run_describe, 0, 0, OWNER, OS | CODE(SHMP_ENOTFOUND)},
    {"persist", run_persist, 0, FILES, OWNER, OS},
    {"to_env", run_to_env, 0, 0, OWNER, OS | CODE(SHMP_ENOTFOUND)},
    {"env_pairs", run_env_pairs, 0, 0, OWNER, OS | CODE(SHMP_ENOTFOUND)},
    {"from_env", run_from_env, 0, 0, OWNER | VARIABLES, ATTACHING},
    {"limits", run_limits, 0, 0, 0, OS},
    {"list", run_list, 0, LISTS, OWNER | LEFTOVER | FOREIGN, OS},
    {"reap", run_reap, 0, LEFTOVERS, LEFTOVER, OS},
    {"reap_dry", run_reap, SHMP_DRY_RUN, LEFTOVERS, LEFTOVER, OS},
    {"users", run_users, 0, 0, OWNER, OS},
    {"close", run_close, 0, 0, OWNER | ENDS, OS},
    {"close_named", run_close, 0, NAMES, OWNER | NAMED | ENDS, OS},
    {"close_lingering", run_close, 0, LINGERS, OWNER | LINGERING | ENDS, OS},
    {"close_attached", run_close_attached, 0, 0, OWNER | ATTACHED | ENDS, OS},
    {"close_shared", run_close_shared, 0, 0, OWNER | ENDS, OS | CODE(SHMP_ENOMEM)},
    {"retire", run_retire, 0, 0, OWNER | ENDS, OS},
    {"retire_named", run_retire, 0, NAMES, OWNER | NAMED | ENDS, OS},
    {"attach_gone", run_attach_gone, 0, PROC_IDS, PEER, ATTACHING},
    {"locate", run_locate, 0, FILES, OWNER, OS},
    {"open_fd", run_open_fd, SHMP_READ_ONLY, FILES, OWNER, ATTACHING},
};

/* ---- What an injected error may become ------------------------------------------------------- */

#define OPEN "open open_keeping"
#define CREATE_RESERVE "create_reserve create_named create_linger"
#define CREATE_NEW "create create_inherit create_unmapped create_mode create_read create_kept " CREATE_RESERVE
#define CREATE_IF_NEW "create_exist_ok create_by_link create_anew"
#define CREATE CREATE_NEW " " CREATE_IF_NEW
#define CREATE_NAMED "create_named create_kept " CREATE_IF_NEW
#define CLONE "clone_read_only clone_inherit"
#define ATTACH_FD "attach_fd attach_fd_whole attach_fd_unknown"
#define ATTACH                                                                                                         \
    "attach attach_name attach_lingering attach_leftover attach_read_only attach_whole attach_inherit attach_by_std "  \
    "from_env"
#define ATTACH_OTHER "attach_other attach_other_whole"
#define BY_ID "open_fd " ATTACH " " ATTACH_OTHER
#define CLOSE "close close_lingering close_named close_shared retire retire_named"
#define OPEN_FILE                                                                                                      \
    OPEN " available limits list reap reap_dry attach_number take " CREATE " " CLONE " " ATTACH " " ATTACH_OTHER       \
         " " ATTACH_FD
#define MEMFD "memfd std"
#define POSIX "posix posix/fd_ids"
#define ASHMEM "ashmem ashmem/fd_ids"
#define NOT_CALLOC                                                                                                     \
    "close fchmod fcntl flock fstat fstatvfs ftruncate getrandom lstat madvise memfd_create mmap munmap opendir "      \
    "readdir readlink shm_open shm_unlink shmat shmget"
/* SUCCESS may follow (the same call may also be made where it must not fail), LATER when it is not the first such call;
 * SURVIVED must, but for "lasting". Other codes are errors. */
enum { SUCCESS = 0, SURVIVED = 100, LATER };

/* NULL, and no errors, are all. `word` is the error's call, where that is another. */
static const struct rule {
    const char *kinds, *operations, *calls;
    int code;
    const char *word;
    int errors[16];
} rules[] = {
    {NULL, NULL, "calloc", SHMP_ENOMEM, "malloc", {0}},
    /* nothing was written through the descriptor */
    {NULL, OPEN_FILE, "close", SUCCESS, NULL, {0}},

    /* before Linux 4.14 pids tell processes apart; closing a provider tells nothing */
    {NULL, OPEN " available attach_by_std", "madvise", SURVIVED, NULL, {0}},
    {NULL, OPEN " available attach_by_std", "munmap", SUCCESS, NULL, {0}},

    /* before Linux 6.3 there is no MFD_NOEXEC_SEAL */
    {"memfd memfd/fd_ids", OPEN, "memfd_create", SURVIVED, NULL, {EINVAL}},
    {"memfd", "available", "memfd_create", SUCCESS, NULL, {EINVAL}},
    {NULL, OPEN " available attach_by_std", "memfd_create shmget", SHMP_EUNAVAILABLE, NULL, {ENOSYS}},
    /* it asks for a size that is refused, to see how */
    {"sysv", OPEN " available attach_by_std", "shmget", SUCCESS, NULL, {0}},
    /* the next mechanism is taken */
    {"std", OPEN, NOT_CALLOC, SURVIVED, NULL, {0}},
    {"std", OPEN, NULL, SHMP_EUNAVAILABLE, "std", {0}},
    /* a favour */
    {POSIX, "open", "opendir readdir shm_open flock fstat shm_unlink", SURVIVED, NULL, {0}},

    /* another random name is tried */
    {POSIX, CREATE_NEW " available limits", "shm_open", SURVIVED, NULL, {EEXIST}},
    {POSIX, CREATE_IF_NEW " take", "shm_open", SUCCESS, NULL, {EEXIST, ENOENT}},
    {"posix", "create_anew", "flock", SUCCESS, NULL, {EWOULDBLOCK}},
    {POSIX, CREATE_NEW " create_exist_ok create_by_link available limits", "flock", SURVIVED, NULL, {EWOULDBLOCK}},
    {"sysv", CREATE " available", "shmget", SURVIVED, NULL, {EEXIST}},
    /* what was there is looked for once more */
    {POSIX, CREATE_IF_NEW, "renameat2 link", SURVIVED, NULL, {EEXIST}},
    /* not all file systems can rename without replacing; the call that fails is then another */
    {POSIX, CREATE_NAMED, "renameat2", SURVIVED, NULL, {EINVAL, ENOSYS}},
    {POSIX, CREATE_NAMED, "link unlink", SHMP_EOS, "renameat2", {0}},
    /* some file systems cannot say how much is free */
    {POSIX, CREATE " available", "fstatvfs", SURVIVED, NULL, {0}},
    /* without /proc/meminfo the kernel decides, unless there is no memory to read it */
    {NULL, CREATE_RESERVE, "fopen getline", SURVIVED, NULL, {EACCES, EIO, EMFILE, ENFILE, ENOENT, EPERM, ESRCH}},
    {NULL, CREATE_RESERVE, "calloc fopen getline", SHMP_EOS, "/proc/meminfo", {ENOMEM}},
    /* a chosen name without a mark is attached to, and never a leftover; it may also be that of SHMP_INHERIT, which is
     * looked at */
    {POSIX, "create_named " CREATE_IF_NEW, "fcntl", SUCCESS, NULL, {0}},
    {POSIX, "create_kept create_linger", "fcntl", SHMP_EUNSUPPORTED, NULL, {EINVAL}},
    /* macOS and the BSDs cannot reserve, and tell the room of what is no file system as EINVAL */
    {POSIX, CREATE_RESERVE, "fallocate", SHMP_EUNSUPPORTED, NULL, {EOPNOTSUPP}},
    {POSIX, "limits", "fstatvfs", SURVIVED, NULL, {ENOSYS}},
    {"sysv", CREATE_RESERVE, "madvise", SHMP_EUNSUPPORTED, NULL, {EINVAL}},
    /* IPC_RMID is tried twice */
    {"sysv", CREATE " available close_lingering", "shmctl", SURVIVED, NULL, {0}},
    /* whoever attaches next marks it, or a reaper removes it */
    {"sysv", "attach_leftover", "shmctl", SUCCESS, NULL, {0}},

    /* a guard against others, which the segment can do without */
    {NULL, "available create_inherit describe persist to_env env_pairs", "fchmod", SUCCESS, NULL, {0}},

    /* what cannot be duplicated is opened through /proc */
    {MEMFD, "attach attach_whole from_env", "fcntl fstat mmap", SURVIVED, NULL, {0}},
    {MEMFD, "attach_inherit", "fcntl fstat mmap", SUCCESS, NULL, {0}},
    {MEMFD, ATTACH " " ATTACH_OTHER, "fcntl", SHMP_EID, "fstat", {0}},
    {MEMFD, ATTACH " " ATTACH_OTHER, "open", SHMP_ENOTFOUND, NULL, {ENOENT}},
    {MEMFD,
     ATTACH " " ATTACH_OTHER,
     "open",
     SHMP_EID,
     NULL,
     {EISDIR, ELOOP, ENAMETOOLONG, ENODEV, ENOTDIR, ENXIO, EOVERFLOW, EROFS, ETXTBSY, EWOULDBLOCK}},
    /* /proc/self is tried where there is no /proc/thread-self */
    {MEMFD, ATTACH " " ATTACH_OTHER, "open", SUCCESS, NULL, {ENOENT}},
    /* ... or, where a descriptor of fewer rights is wanted and cannot be had, duplicated */
    {NULL,
     "clone_read_only",
     "open",
     SURVIVED,
     NULL,
     {EACCES, EISDIR, ELOOP, ENAMETOOLONG, ENODEV, ENOENT, ENOTDIR, ENXIO, EOVERFLOW, EPERM, EROFS, ETXTBSY,
      EWOULDBLOCK}},
    /* what has no seals may still be a posix segment */
    {POSIX, ATTACH " attach_number " ATTACH_FD, "fcntl", SUCCESS, NULL, {0}},
    {NULL, ATTACH " attach_number " ATTACH_FD, "fcntl", SHMP_ENOTFOUND, NULL, {EBADF}},
    {NULL, ATTACH " attach_number " ATTACH_FD, "fcntl", SHMP_EID, NULL, {0}},
    /* the owner's lock is what counts; without one it cannot be told that a name is left over */
    {"posix", ATTACH " take", "flock", SURVIVED, NULL, {0}},
    {"posix", "create_anew", "flock", SHMP_ESIZE, "fstat", {0}},
    {"posix", "create_anew take", "flock", SHMP_EOS, "shm_open", {EWOULDBLOCK}},
    /* ... and is looked at once more when it changes meanwhile */
    {"posix", "create_anew", "lstat shm_unlink", SURVIVED, NULL, {ENOENT}},
    {"posix", "take", "lstat", SURVIVED, NULL, {ENOENT}},
    {"posix", ATTACH, "shm_open", SHMP_ENOTFOUND, NULL, {ENOENT}},
    {POSIX,
     ATTACH " take " CREATE_IF_NEW,
     "shm_open",
     SHMP_EID,
     NULL,
     {EEXIST, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOSPC, ENXIO}},
    {"sysv", ATTACH, "shmat", SHMP_ENOTFOUND, NULL, {EINVAL, EIDRM}},

    /* processes and names come and go, some are other users', and some are no shared memory */
    {NULL,
     "list users",
     "fopen getline open openat opendir readdir readlinkat",
     SUCCESS,
     NULL,
     {EACCES, ENOENT, EPERM, ESRCH}},
    {NULL, "list", "open openat readlinkat", SURVIVED, NULL, {ENAMETOOLONG, ENODEV, ENXIO, EWOULDBLOCK}},
    {NULL, "list", "fcntl", SURVIVED, NULL, {0}},
    {POSIX,
     "list reap reap_dry",
     "shm_open",
     SURVIVED,
     NULL,
     {EACCES, EEXIST, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOSPC, ENXIO, EPERM, EROFS}},
    {POSIX, "reap", "shm_unlink", SURVIVED, NULL, {EACCES, ENOENT, EPERM}},
    {POSIX, "reap reap_dry", "flock", SURVIVED, NULL, {EWOULDBLOCK}},
    /* whether it lives, and who holds it, is then unknown */
    {POSIX, "list", "flock", SURVIVED, NULL, {0}},
    {"sysv " MEMFD " memfd/fd_ids", "list reap reap_dry", "fopen getline", SURVIVED, NULL, {0}},
    {POSIX, "list", "fopen getline", LATER, NULL, {0}},
    /* but who has leases is to be known */
    {POSIX, "list", "calloc fopen getline", SHMP_EOS, "/proc/locks", {0}},
    /* a name of another shape may be anything */
    {POSIX, "list", "open", SURVIVED, NULL, {EISDIR, ELOOP, ENOTDIR, EOVERFLOW, EROFS, ETXTBSY}},
    {POSIX, "list", "fstat", SUCCESS, NULL, {0}},
    {POSIX, "list", "fstat", SHMP_EOS, "open", {ENOMEM}},
    /* it is then judged by its age alone */
    {POSIX, "list reap reap_dry", "fcntl", SURVIVED, NULL, {0}},
    /* a place without a segment, or one that somebody else was about to remove */
    {"sysv", "list reap reap_dry", "shmctl", SUCCESS, NULL, {0}},
    /* it takes several calls */
    {NULL, "limits", "calloc fopen getline", SHMP_EOS, "/proc/meminfo", {0}},
    /* a memory cgroup is not there, or not to be seen from a container */
    {NULL, "limits", "fopen getline", SUCCESS, NULL, {EACCES, ENODEV, ENOENT, ENXIO, EPERM, ESRCH}},
    {NULL, "users", "fopen getline opendir readdir", SHMP_EOS, "/proc", {0}},
    {"memfd memfd/fd_ids std", "list", "opendir readdir readlinkat open openat fstat calloc", SHMP_EOS, "/proc", {0}},
    {POSIX, "list reap reap_dry", "opendir readdir", SHMP_EOS, "/dev/shm", {0}},
    {"posix", "unlink", "lstat shm_unlink", SHMP_ENOTFOUND, "shm_unlink", {ENOENT}},
    {"posix", "unlink", "lstat", SHMP_EID, "shmp_unlink", {ENAMETOOLONG}},
    {"posix", "unlink", "lstat", SHMP_EOS, "shm_unlink", {0}},

    /* the name is gone */
    {"posix", "close_named retire_named", "lstat", SURVIVED, NULL, {ENOENT}},
    {POSIX, CLOSE " available limits", "shm_unlink", SURVIVED, NULL, {ENOENT}},
    {"posix", "available", "lstat", SHMP_EUNAVAILABLE, "shmp_describe", {ENOENT}},

    /* a name that is not there is no id */
    {"posix", "describe to_env env_pairs", "lstat", SHMP_ENOTFOUND, "shmp_describe", {ENOENT}},
    /* the node that is called after the boot is tried first */
    {ASHMEM, OPEN, "open read fstat ioctl", SURVIVED, NULL, {0}},
    {ASHMEM, "available attach_by_std", "open read fstat ioctl", SUCCESS, NULL, {0}},
    {ASHMEM, OPEN " available attach_by_std", "open", SHMP_EUNAVAILABLE, NULL, {ENOENT, ENODEV, ENXIO}},
    {ASHMEM, OPEN " available attach_by_std", "ioctl", SHMP_EUNAVAILABLE, NULL, {0}},
    {ASHMEM, OPEN " available attach_by_std", "fstat", SHMP_EOS, "open", {0}},
    /* so say regions without a size, and those that nobody has mapped, which are mapped then */
    {ASHMEM, ATTACH " attach_number " ATTACH_FD " " ATTACH_OTHER " attach_gone", "lseek", SHMP_ESIZE, NULL, {EINVAL}},
    {ASHMEM, ATTACH " attach_number " ATTACH_FD " " ATTACH_OTHER " attach_gone", "lseek", SUCCESS, NULL, {EBADF}},
    /* what is not there under its number is taken from its process, or from any other */
    {ASHMEM, BY_ID, NULL, SUCCESS, NULL, {0}},
    {ASHMEM, BY_ID, NULL, SHMP_ENOTFOUND, "open", {0}},
    {ASHMEM, BY_ID, NULL, SHMP_EOS, "open", {0}},
    {ASHMEM, BY_ID " attach_gone", "pidfd_open pidfd_getfd", SHMP_EID, "open", {EINVAL, ENODEV}},
    {ASHMEM, BY_ID " attach_gone", "pidfd_open pidfd_getfd", SHMP_EUNSUPPORTED, "pidfd_getfd", {ENOSYS}},

    /* what cannot be opened is looked for, among processes that come and go, and found by another number, or the same
     */
    {NULL, ATTACH_OTHER " attach_read_only open_fd", "open", SUCCESS, NULL, {EACCES, ENOENT, EPERM}},
    {NULL, "attach_gone open_fd", NULL, SUCCESS, NULL, {0}},
    {NULL, "attach_gone", NULL, SHMP_ENOTFOUND, "open", {0}},
    {NULL, "attach_gone", NULL, SHMP_EOS, "open", {0}},
    {NULL, "open_fd", "open", SHMP_ENOTFOUND, NULL, {0}},
    {NULL, "attach_gone open_fd", "fcntl", SHMP_EID, NULL, {0}},
    {NULL, "attach_gone open_fd", "open opendir readdir", SHMP_EID, "open", {0}},
};
static int is_rule_used[LENGTH(rules)];

/* Where the failing call is the one that would remove the object, or say whether it is gone, it stays. With
 * "lasting" the second try fails as well. */
static const struct {
    fault_mode mode;
    const char *kinds, *operations, *calls;
} staying[] = {
    {ONE, POSIX, CLOSE " available limits", "shm_unlink"},
    {ONE, "posix", "close_named retire_named", "fstat lstat"},
    {LASTING, NULL, NULL, "shm_unlink shmctl"},
    {LASTING, POSIX, "close_named retire_named " CREATE_NAMED, "fstat lstat"},
};
static int is_staying_used[LENGTH(staying)];

static int have_common(const char *list, const char *words) {
    char copy[sizeof fault.hits], *rest = copy;
    snprintf(copy, sizeof copy, "%s", words);
    for (char *word; (word = strtok_r(rest, " ", &rest));)
        if (lists(list, word)) return 1;
    return 0;
}

static const struct rule *rule_for(const scene_state *scene, const operation_case *operation, const char *call,
                                   int code) {
    for (size_t i = 0; i < LENGTH(rules); i++) {
        const struct rule *rule = &rules[i];
        int is_listed = rule->errors[0] == 0;
        for (size_t j = 0; j < LENGTH(rule->errors); j++) is_listed |= rule->errors[j] == fault.error;
        if (rule->code != code || !is_listed || !lists(rule->kinds, scene->kind->label) ||
            !lists(rule->operations, operation->name) || !lists(rule->calls, call))
            continue;
        is_rule_used[i] = 1;
        return rule;
    }
    return NULL;
}

static int may_stay(const scene_state *scene, const operation_case *operation, fault_mode mode) {
    for (size_t i = 0; i < LENGTH(staying); i++)
        if (staying[i].mode == mode && lists(staying[i].kinds, scene->kind->label) &&
            lists(staying[i].operations, operation->name) && have_common(staying[i].calls, fault.hits))
            return is_staying_used[i] = 1;
    return 0;
}

/* ---- One run ----------------------------------------------------------------------------------- */

static void poison(scene_state *scene) {
    memset(&scene->untouched, 0x5a, sizeof scene->untouched);
    scene->untouched.limits.struct_size = sizeof scene->untouched.limits;
    scene->out = scene->untouched;
    scene->seen = 0;
}

static int succeeds(int result, const shmp_error *error, const char *what) {
    return result == 0 ||
           check_failed(__FILE__, __LINE__, "%s without a fault: %s: %.200s", what, error->call, error->message);
}

/* What a killed owner leaves, without the killing: a second name outlives the owner's close, which
 * drops the lock. */
static void leave_name_behind(const char *name) {
    shmp_provider *provider;
    shmp_shmem *shmem;
    shmp_description description;
    shmp_provider_options options = {.struct_size = sizeof options, .flags = SHMP_KEEP_LEFTOVERS};
    char path[40], left[40];
    REQUIRE(shmp_provider_open("posix", &options, &provider, NULL) == 0);
    REQUIRE((name ? shmp_create_named(provider, name, LEFTOVER_SIZE, 0, &shmem, NULL)
                  : shmp_create(provider, LEFTOVER_SIZE, 0, &shmem, NULL)) == 0);
    REQUIRE(shmp_describe(shmem, &description, NULL) == 0);
    snprintf(path, sizeof path, "/dev/shm%s", description.id);
    snprintf(left, sizeof left, "%.*sleft", (int)strlen(path) - 4, path);
    CHECK(link(path, left) == 0);
    CHECK(shmp_close(shmem, NULL) == 0);
    if (name) CHECK(rename(left, path) == 0);
    shmp_provider_close(provider);
}

/* And what one leaves who is killed before it has a size. */
static void leave_nascent_behind(void) {
    static unsigned long long count;
    char name[] = "/shmp_nascentaaaaaa";
    unsigned long long rest = ++count;
    for (char *at = name + sizeof name - 2; rest; rest /= 26) *at-- = (char)('a' + rest % 26);
    int fd = shm_open(name, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    close(fd);
}

/* The id of a segment whose creator has ended before anybody else attached. */
static int leave_segment_behind(void) {
    int answer[2];
    shmp_description description = {.size = 0};
    if (pipe2(answer, O_CLOEXEC) < 0) give_up("pipe2 failed");
    pid_t pid = fork();
    if (pid == 0) {
        shmp_provider *provider;
        shmp_shmem *shmem;
        if (shmp_provider_open("sysv", NULL, &provider, NULL) == 0 &&
            shmp_create(provider, LEFTOVER_SIZE, SHMP_LINGER, &shmem, NULL) == 0 &&
            shmp_describe(shmem, &description, NULL) == 0)
            (void)!write(answer[1], &description, sizeof description);
        _exit(0);
    }
    close(answer[1]);
    CHECK(read(answer[0], &description, sizeof description) == sizeof description);
    close(answer[0]);
    CHECK(waitpid(pid, NULL, 0) == pid);
    return atoi(description.id);
}

static int is_left(int id) {
    struct shmid_ds segment;
    return shmctl(id, IPC_STAT, &segment) == 0;
}

static void leave_behind(scene_state *scene) {
    if (strcmp(scene->kind->name, "sysv") != 0) {
        leave_name_behind(NULL);
        leave_nascent_behind();
    } else if (!is_left(scene->left_id)) {
        scene->left_id = leave_segment_behind();
    }
    scene->has_leftover = 1;
}

static int has_chosen_name(void) {
    struct stat file;
    char path[40];
    snprintf(path, sizeof path, "/dev/shm%s", own_name);
    return lstat(path, &file) == 0;
}

/* A chosen name that was left over, and a file that somebody has a lease on. What breaks that tells by a signal that
 * nobody minds. */
static void show_foreign(scene_state *scene) {
    if (!has_chosen_name()) leave_name_behind(own_name);
    if (scene->leased < 0) scene->leased = shm_open(leased_name, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    CHECK(fcntl(scene->leased, F_SETSIG, SIGURG) == 0);
    CHECK(fcntl(scene->leased, F_SETLEASE, F_UNLCK) == 0 || errno == EAGAIN);
    CHECK(fcntl(scene->leased, F_SETLEASE, F_WRLCK) == 0);
}

/* Makes what the operation needs and is not there; *ret_expected is what shall be held after it. */
static int set_stage(scene_state *scene, const operation_case *operation, holdings *ret_expected) {
    shmp_error error = {.call = "", .message = ""};
    unsigned stage = operation->stage;
    int ok = 1;
    fault.missing = stage & NO_RENAME ? "renameat2" : NULL;
    seconds_ahead = 0; /* what is made now is old when the operation looks at it */
    if (stage & ENDS) look(ret_expected);
    if (stage & OWNER && !scene->owner) {
        ok = succeeds(stage & NAMED ? shmp_create_named(scene->provider, own_name, SIZE, 0, &scene->owner, &error)
                                    : shmp_create(scene->provider, SIZE, stage & LINGERING ? SHMP_LINGER : 0,
                                                  &scene->owner, &error),
                      &error, "create");
        ok = ok && succeeds(shmp_describe(scene->owner, &scene->description, &error), &error, "describe");
    }
    if (ok && stage & ATTACHED && stage & ENDS) look(ret_expected);
    if (ok && stage & ATTACHED && !scene->attached)
        ok = succeeds(shmp_attach(scene->provider, &scene->description, 0, &scene->attached, &error), &error, "attach");
    if (ok && stage & VARIABLES) ok = succeeds(shmp_to_env(scene->owner, variable, &error), &error, "to_env");
    if (ok && stage & STD && !scene->std)
        ok = succeeds(shmp_provider_open("std", NULL, &scene->std, &error), &error, "open");
    if (stage & PEER) scene->description = scene->of_peer;
    if (stage & NUMBER) snprintf(scene->description.id, sizeof scene->description.id, "%d", shmp_fileno(scene->owner));
    if (operation->flags & SHMP_WHOLE) scene->description.size = 1;
    int is_there = scene->has_leftover && (scene->left_id < 0 || is_left(scene->left_id));
    if (stage & LEFTOVER && scene->kind->can & LEFTOVERS && !is_there) leave_behind(scene);
    if (stage & CHOSEN_LEFTOVER && !has_chosen_name()) leave_name_behind(own_name);
    if (stage & FOREIGN && scene->kind->can & NAMES) show_foreign(scene);
    if (stage & LEFTOVER) seconds_ahead = 120;
    poison(scene);
    if (!(stage & ENDS)) look(ret_expected);
    return ok;
}

static void clear_stage(scene_state *scene) {
    shmp_error error = {.call = "", .message = ""};
    succeeds(shmp_close(scene->attached, &error), &error, "close");
    succeeds(shmp_close(scene->owner, &error), &error, "close");
    if (scene->has_leftover) succeeds(shmp_reap(scene->provider, 0, NULL, NULL, &error), &error, "reap");
    if (scene->left_id >= 0) CHECK(!is_left(scene->left_id));
    shm_unlink(own_name);
    shm_unlink(leased_name);
    if (scene->leased >= 0) close(scene->leased);
    seconds_ahead = 0;
    scene->left_id = scene->leased = -1;
    unsetenv(variable);
    unsetenv(variable_size);
    shmp_provider_close(scene->std);
    scene->std = NULL;
    scene->owner = scene->attached = NULL;
    scene->has_leftover = 0;
}

/* Writes by one handle and reads by the other. */
static void use(shmp_shmem *shmem, shmp_shmem *other) {
    static unsigned char mark;
    unsigned char *data = shmp_data(shmem), *seen = other ? shmp_data(other) : data;
    mark++;
    if (!CHECK_EQUAL(shmp_size(shmem), SIZE)) return;
    if (shmp_flags(shmem) & SHMP_READ_ONLY) {
        unsigned char *swapped = data;
        data = seen;
        seen = swapped;
        if (!other) return;
    }
    memset(data, mark, SIZE);
    CHECK_EQUAL(seen[0], mark);
    CHECK_EQUAL(seen[SIZE - 1], mark);
}

static void use_peers(const shmp_shmem *shmem) {
    const unsigned char *data = shmp_data(shmem);
    if (CHECK_EQUAL(shmp_size(shmem), PEER_SIZE)) CHECK_EQUAL(data[PEER_SIZE - 1], FROM_PEER);
}

/* The permissions of a new segment, whatever the umask. */
static unsigned mode_of(const shmp_shmem *shmem) {
    shmp_description description;
    struct stat file;
    struct shmid_ds segment;
    if (!CHECK(shmp_describe(shmem, &description, NULL) == 0)) return 0;
    if (shmp_fileno(shmem) >= 0) return fstat(shmp_fileno(shmem), &file) == 0 ? file.st_mode & 0777 : 0;
    return shmctl(atoi(description.id), IPC_STAT, &segment) == 0 ? segment.shm_perm.mode & 0777 : 0;
}

/* By a descriptor of it, it can be used. */
static void use_unmapped(const scene_state *scene, const shmp_shmem *shmem) {
    shmp_description description = {.size = shmp_size(shmem)};
    shmp_shmem *mapped = NULL;
    shmp_error error = {.call = ""};
    CHECK(!shmp_data(shmem));
    if (!succeeds(shmp_attach_fd(scene->provider, shmp_fileno(shmem), &description, 0, &mapped, &error), &error,
                  "attach_fd"))
        return;
    use(mapped, NULL);
    succeeds(shmp_close(mapped, &error), &error, "close");
}

/* Uses what a successful operation gave, and releases it. */
static void use_outputs(scene_state *scene, const operation_case *operation) {
    shmp_error error = {.call = "", .message = ""};
    outputs *out = &scene->out, *untouched = &scene->untouched;
    shmp_shmem *shmem = NULL, *peer = scene->kind->can & SHARES ? scene->owner : NULL;
    if (out->provider != untouched->provider) {
        if (succeeds(shmp_create(out->provider, SIZE, 0, &shmem, &error), &error, "create")) use(shmem, NULL);
        succeeds(shmp_close(shmem, &error), &error, "close");
        shmp_provider_close(out->provider);
    }
    if (out->shmem != untouched->shmem) {
        if (operation->stage & PEER)
            use_peers(out->shmem);
        else if (operation->flags & SHMP_UNMAPPED)
            use_unmapped(scene, out->shmem);
        else
            use(out->shmem, peer);
        if (operation->flags & SHMP_INHERIT) CHECK_EQUAL(fcntl(shmp_fileno(out->shmem), F_GETFD), 0);
        if (operation->flags & SHMP__MODE && scene->kind->can & MODES)
            CHECK_EQUAL(mode_of(out->shmem), operation->flags >> 16);
        succeeds(shmp_close(out->shmem, &error), &error, "close");
        if (operation->flags & SHMP_KEEP && !(scene->kind->flags & SHMP_FD_IDS))
            succeeds(shmp_unlink(scene->provider, own_name, &error), &error, "unlink");
    }
    if (operation->run == run_unlink) CHECK(!has_chosen_name());
    if (memcmp(&out->description, &untouched->description, sizeof out->description) != 0 &&
        succeeds(shmp_attach(scene->provider, &out->description, 0, &shmem, &error), &error, "attach")) {
        use(shmem, peer);
        succeeds(shmp_close(shmem, &error), &error, "close");
    }
    if (operation->run == run_limits) CHECK(out->limits.bytes > 0 && out->limits.segments > 0 && *out->limits.advice);
    if (operation->run == run_persist) CHECK_EQUAL(fcntl(shmp_fileno(scene->owner), F_GETFD), 0);
    if (operation->run == run_to_env) {
        if (succeeds(shmp_from_env(scene->provider, variable, 0, &shmem, &error), &error, "from_env")) {
            use(shmem, peer);
            succeeds(shmp_close(shmem, &error), &error, "close");
        }
        unsetenv(variable);
        unsetenv(variable_size);
    }
}

static void judge_success(const scene_state *scene, const operation_case *operation, fault_mode mode) {
    char hits[sizeof fault.hits], *rest = hits;
    if (mode != ONE && mode != LASTING) return;
    if (fault.error == EINTR) return;
    memcpy(hits, fault.hits, sizeof hits);
    for (char *call; (call = strtok_r(rest, " ", &rest));)
        if (!rule_for(scene, operation, call, SUCCESS) && !rule_for(scene, operation, call, SURVIVED) &&
            !(fault.occurrence > 0 && rule_for(scene, operation, call, LATER)))
            check_failed(__FILE__, __LINE__, "the failure of %s is swallowed", call);
}

static void judge_error(const scene_state *scene, const operation_case *operation, fault_mode mode, int result,
                        const shmp_error *error) {
    char hits[sizeof fault.hits], *rest = hits;
    int is_expected = result == -SHMP_EOS;
    const char *word = NULL;
    if (fault.error == EINTR) check_failed(__FILE__, __LINE__, "EINTR is not dealt with");
    if (result > 0 || result < -SHMP_EOS || !(operation->codes & CODE(-result)))
        check_failed(__FILE__, __LINE__, "the manual does not have its result %d (%s)", result,
                     shmp_error_text(result));
    memcpy(hits, fault.hits, sizeof hits);
    for (char *call; (call = strtok_r(rest, " ", &rest));) {
        const struct rule *rule = rule_for(scene, operation, call, -result);
        if (rule) is_expected = 1;
        if (rule && rule->word && strcmp(error->call, rule->word) == 0) word = rule->word;
        if (strcmp(error->call, call) == 0) word = call;
    }
    if (mode == ONE && rule_for(scene, operation, fault.hits, SURVIVED))
        check_failed(__FILE__, __LINE__, "%s is to be survived: %s", fault.hits, error->message);
    if (!is_expected) check_failed(__FILE__, __LINE__, "it became %s: %s", shmp_error_text(result), error->message);
    if (!word) check_failed(__FILE__, __LINE__, "the error blames \"%s\": %s", error->call, error->message);
    CHECK_EQUAL(error->code, result);
    if (result == -SHMP_EOS || error->os_error != 0) CHECK_EQUAL(error->os_error, fault.error);
    if (strlen(error->message) >= sizeof error->message - 1)
        check_failed(__FILE__, __LINE__, "the message is cut off: %s", error->message);
    if (result == -SHMP_EOS && !strpbrk(error->message, "0123456789\"/_"))
        check_failed(__FILE__, __LINE__, "%s: the message has no value: %s", error->call, error->message);
}

/* Compares what is held with what should be; what stayed is removed. A name that went is another's,
 * unless it is the owner's. */
static void check_held(const scene_state *scene, const operation_case *operation, fault_mode mode,
                       const holdings *expected) {
    static holdings now;
    int stayed = 0;
    look(&now);
    const char *at = now.text;
    for (const char *line; (line = next_extra(&at, expected));) {
        int removed = remove_extra(line);
        stayed += removed > 0;
        if (removed == 0 || (removed > 0 && !may_stay(scene, operation, mode)))
            check_failed(__FILE__, __LINE__, "left: %.*s", (int)strcspn(line + 1, "\n"), line + 1);
    }
    at = expected->text;
    for (const char *line; (line = next_extra(&at, &now));) {
        int is_owners = scene->owner && strncmp(line + 6, scene->description.id + 1, strcspn(line + 6, "\n")) == 0;
        if (is_owners || strncmp(line, "\nname ", 6) != 0)
            check_failed(__FILE__, __LINE__, "gone: %.*s", (int)strcspn(line + 1, "\n"), line + 1);
    }
    if (stayed > 1) check_failed(__FILE__, __LINE__, "%d objects stayed", stayed);
}

#if defined(__SANITIZE_ADDRESS__)
#define COUNTS_MEMORY 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define COUNTS_MEMORY 1
#endif
#endif
#if defined(COUNTS_MEMORY)
#include <sanitizer/lsan_interface.h>
/* Non-zero once: what has leaked stays leaked. */
static int leaks(void) {
    static int is_known;
    return !is_known && (is_known = __lsan_do_recoverable_leak_check()) != 0;
}
#else
static int leaks(void) { return 0; }
#endif

typedef struct test_tally {
    const char *wanted; /* part of "provider operation" */
    long passed, failed;
    long operations, calls, triples, lasting, storms; /* of this provider */
} test_tally;

/* Runs the operation with a fault, and then without. 0: the faulty call was not reached. */
static int try_once(scene_state *scene, const operation_case *operation, fault_mode mode, const char *call,
                    int occurrence, int error_number) {
    static holdings empty, expected;
    shmp_error error, poisoned;
    memset(&poisoned, 0x5a, sizeof poisoned);
    error = poisoned;
    look(&empty);
    if (!set_stage(scene, operation, &expected)) return 1;

    arm(mode, call, occurrence, error_number);
    int result = operation->run(scene, operation->flags, &error);
    disarm();
    int is_filled = memcmp(&error, &poisoned, sizeof error) != 0;
    if (result == 0) {
        if (is_filled) check_failed(__FILE__, __LINE__, "success touched reterr: %s: %s", error.call, error.message);
        judge_success(scene, operation, mode);
        use_outputs(scene, operation);
    } else {
        if (mode == STORM || mode == RECORD)
            check_failed(__FILE__, __LINE__, "%s", is_filled ? error.message : shmp_error_text(result));
        else if (!is_filled)
            check_failed(__FILE__, __LINE__, "reterr is not filled: %s", shmp_error_text(result));
        else
            judge_error(scene, operation, mode, result, &error);
        if (memcmp(&scene->out, &scene->untouched, sizeof scene->out) != 0)
            check_failed(__FILE__, __LINE__, "failure touched an output");
    }
    check_held(scene, operation, mode, &expected);

    if (set_stage(scene, operation, &expected)) {
        error = poisoned;
        if (succeeds(operation->run(scene, operation->flags, &error), &error, operation->name)) {
            if (operation->run == run_list) CHECK_EQUAL(scene->seen, scene->kind->listed);
            if (scene->leased >= 0) CHECK_EQUAL(fcntl(scene->leased, F_GETLEASE), F_WRLCK);
            if (operation->run == run_users) CHECK(scene->seen);
            if (operation->flags & SHMP_DRY_RUN && operation->run == run_reap)
                CHECK_EQUAL(scene->seen, scene->kind->listed & ~(SEEN_OWNER | SEEN_CHOSEN));
            use_outputs(scene, operation);
        }
        check_held(scene, operation, OFF, &expected);
        if (scene->owner) use(scene->owner, scene->attached);
    }
    clear_stage(scene);
    check_held(scene, operation, OFF, &empty);
    return fault.count > 0;
}

enum { ENOUGH = 200 /* failures: what leaked may be in the way by now */ };

static void try_counted(test_tally *tally, scene_state *scene, const operation_case *operation, fault_mode mode,
                        const char *call, int occurrence, int error, long *count) {
    if (tally->failed >= ENOUGH) return;
    check_subject("%s %s, %s: %s #%d: %s", scene->kind->label, operation->name, mode_names[mode],
                  call ? call : "every call", occurrence + 1, error ? strerror(error) : "none");
    unsigned before = shmp__atomic_load(&check_failures);
    int is_reached = try_once(scene, operation, mode, call, occurrence, error);
    int failed = shmp__atomic_load(&check_failures) != before;
    check_subject("");
    if (!is_reached && mode != RECORD && !failed) return;
    *count += 1;
    tally->passed += !failed;
    tally->failed += failed;
}

/* All calls of a short trace; of a long one (the processes of a busy machine) those after which the
 * next step follows, a dozen of each. */
enum { SHORT_TRACE = 60, SAMPLES = 12 };

static int is_worth_it(const char *const *trace, int length, int at, int samples) {
    if (length <= SHORT_TRACE) return 1;
    return samples < SAMPLES && (at + 1 == length || strcmp(trace[at], trace[at + 1]) != 0);
}

static void try_operation(test_tally *tally, scene_state *scene, const operation_case *operation) {
    static const char *trace[TRACE_ROOM];
    long recordings = 0, wiped = wiped_on_fork();
    alarm(PATIENCE);
    try_counted(tally, scene, operation, RECORD, NULL, 0, 0, &recordings);
    int length = fault.length;
    memcpy(trace, fault.trace, sizeof trace);
    tally->operations++;
    tally->calls += length;
    check_subject("%s %s", scene->kind->label, operation->name);
    if (recordings > 0 && operation->run == run_clone && (operation->flags == 0 || !(scene->kind->can & SHARES)))
        tally->failed += !CHECK_EQUAL(length, 1); /* the memory for the handle */
    for (int i = 0; i < length; i++) {
        int occurrence = 0, samples = 0;
        for (int j = 0; j < i; j++) {
            if (strcmp(trace[j], trace[i]) != 0) continue;
            occurrence++;
            samples += is_worth_it(trace, length, j, samples);
        }
        if (!is_worth_it(trace, length, i, samples)) continue;
        for (const int *error = errors_of(trace[i]); *error; error++) {
            try_counted(tally, scene, operation, ONE, trace[i], occurrence, *error, &tally->triples);
            if (*error != EINTR)
                try_counted(tally, scene, operation, LASTING, trace[i], occurrence, *error, &tally->lasting);
        }
    }
    try_counted(tally, scene, operation, STORM, NULL, 0, EINTR, &tally->storms);
    check_subject("%s %s", scene->kind->label, operation->name);
    tally->failed += !CHECK(!leaks()) + !CHECK_EQUAL(wiped_on_fork(), wiped);
    check_subject("");
}

/* ---- Another process's segment ------------------------------------------------------------------- */

typedef struct peer_process {
    pid_t pid;
    int hold; /* it lives until this is closed */
} peer_process;

static int live_as_peer(const provider_kind *kind, int answer, int end) {
    shmp_provider *provider;
    shmp_shmem *shmem;
    shmp_description description;
    shmp_provider_options options = options_of(kind);
    char byte;
    if (shmp_provider_open(kind->name, &options, &provider, NULL) < 0) return 1;
    if (shmp_create(provider, PEER_SIZE, 0, &shmem, NULL) < 0) return 1;
    memset(shmp_data(shmem), FROM_PEER, PEER_SIZE);
    if (shmp_describe(shmem, &description, NULL) < 0) return 1;
    if (write(answer, &description, sizeof description) != sizeof description) return 1;
    return read(end, &byte, 1) != 0;
}

static peer_process start_peer(const provider_kind *kind, shmp_description *ret_description) {
    int answer[2], end[2];
    if (pipe2(answer, O_CLOEXEC) < 0 || pipe2(end, O_CLOEXEC) < 0) give_up("pipe2 failed");
    pid_t pid = fork();
    if (pid == 0) {
        close(end[1]);
        _exit(live_as_peer(kind, answer[1], end[0]));
    }
    close(answer[1]);
    close(end[0]);
    CHECK(read(answer[0], ret_description, sizeof *ret_description) == sizeof *ret_description);
    close(answer[0]);
    return (peer_process){pid, end[1]};
}

static void end_peer(const peer_process *peer) {
    int status = -1;
    close(peer->hold);
    CHECK(waitpid(peer->pid, &status, 0) == peer->pid && status == 0);
}

/* ---- Running --------------------------------------------------------------------------------------- */

static int lacks_ashmem;

static void try_provider(test_tally *tally, const provider_kind *kind) {
    shmp_error error = {.call = ""};
    scene_state scene = {.kind = kind, .left_id = -1, .leased = -1};
    shmp_provider_options options = options_of(kind);
    if (shmp_provider_open(kind->name, &options, &scene.provider, &error) < 0) {
        if (strcmp(kind->name, "ashmem") == 0) lacks_ashmem = 1;
        printf("skip %s: %s: %s\n", kind->label, error.call, error.message);
        return;
    }
    peer_process peer = {0, -1};
    if (kind->can & PROC_IDS) peer = start_peer(kind, &scene.of_peer);
    tally->operations = tally->calls = tally->triples = tally->lasting = tally->storms = 0;
    for (size_t i = 0; i < LENGTH(operations); i++) {
        char name[64];
        snprintf(name, sizeof name, "%s %s", kind->label, operations[i].name);
        if ((operations[i].needs & kind->can) == operations[i].needs && strstr(name, tally->wanted))
            try_operation(tally, &scene, &operations[i]);
    }
    if (kind->can & PROC_IDS) end_peer(&peer);
    shmp_provider_close(scene.provider);
    if (tally->operations > 0)
        printf("%s: %ld operations, %ld calls; %ld one, %ld lasting, %ld storms\n", kind->label, tally->operations,
               tally->calls, tally->triples, tally->lasting, tally->storms);
    fflush(stdout);
}

/* A row that excuses nothing any more is to go. */
static void check_tables(void) {
    for (size_t i = 0; i < LENGTH(pages); i++) {
        check_subject("page of %s", pages[i].call);
        if (lacks_ashmem && lists("ioctl lseek pidfd_getfd pidfd_open read", pages[i].call)) continue;
        CHECK(is_page_used[i]);
    }
    for (size_t i = 0; i < LENGTH(rules); i++) {
        check_subject("rule %zu, of %s", i + 1, rules[i].calls ? rules[i].calls : "all calls");
        if (lacks_ashmem && rules[i].kinds && strncmp(rules[i].kinds, "ashmem", 6) == 0) continue;
        CHECK(is_rule_used[i]);
    }
    for (size_t i = 0; i < LENGTH(staying); i++) {
        check_subject("staying %zu", i + 1);
        CHECK(is_staying_used[i]);
    }
}

static int run_all(const char *wanted) {
    test_tally tally = {.wanted = wanted};
    snprintf(own_name, sizeof own_name, "/fault_%ld", (long)getpid());
    snprintf(leased_name, sizeof leased_name, "/lease_%ld", (long)getpid());
    for (size_t i = 0; i < LENGTH(kinds); i++) try_provider(&tally, &kinds[i]);
    unsigned before = shmp__atomic_load(&check_failures);
    if (!*wanted && tally.failed == 0) check_tables();
    tally.failed += shmp__atomic_load(&check_failures) - before;
    if (tally.failed >= ENOUGH) printf("given up after %ld failures\n", tally.failed);
    printf("%ld passed, %ld failed\n", tally.passed, tally.failed);
    fflush(stdout);
    return shmp__atomic_load(&check_failures) > 0;
}

int main(int argc, char **argv) {
    const char *wanted = argc > 1 ? argv[1] : "";
    unsetenv("SHMEM_PROVIDER");
    return run_isolated(run_all, wanted);
}
