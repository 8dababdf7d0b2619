#include "os/platform.h"
#if SHMP_HAVE_LINUX
#include "backend/proc_id.h"

#include <limits.h>
#include <string.h>

/* ---- Text ---- */

/* As shmp__decimal: no sign, no leading zero, no capitals. */
static const char *parse_36(const char *text, uint64_t max, uint64_t *ret_value) {
    uint64_t value = 0;
    const char *at = text;
    for (;; at++) {
        unsigned digit = (unsigned)*at - '0';
        if (digit > 9) digit = (unsigned)*at - 'a' < 26 ? (unsigned)*at - 'a' + 10 : 36;
        if (digit == 36) break;
        value = value * 36 + digit;
        if (value > max) return NULL;
    }
    if (at == text || (*text == '0' && at - text > 1)) return NULL;
    *ret_value = value;
    return at;
}

int shmp__proc_id_parse(const char *id, shmp__proc_id *ret_id) {
    const char *at = parse_36(id, INT_MAX, &ret_id->pid);
    if (!at || *at != '.') return 0;
    at = parse_36(at + 1, INT_MAX, &ret_id->fd);
    if (!at || *at != '.') return 0;
    at = parse_36(at + 1, UINT32_MAX, &ret_id->check);
    return at && !*at;
}

static char *write_36(char *at, uint64_t value) {
    char digits[16];
    int count = 0;
    do digits[count++] = "0123456789abcdefghijklmnopqrstuvwxyz"[value % 36];
    while (value /= 36);
    while (count > 0) *at++ = digits[--count];
    return at;
}

int shmp__proc_id_write(long pid, int fd, unsigned long long check, char ret_id[SHMP__ID_SIZE]) {
    char text[64];
    char *at = write_36(text, (uint64_t)pid);
    *at++ = '.';
    at = write_36(at, (uint64_t)fd);
    *at++ = '.';
    at = write_36(at, check & UINT32_MAX);
    if (at - text >= SHMP__ID_SIZE) return 0;
    memset(ret_id, 0, SHMP__ID_SIZE);
    memcpy(ret_id, text, (size_t)(at - text));
    return 1;
}

int shmp__proc_id_of(int fd, unsigned long long check, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    long pid = shmp__os_proc_pid();
    if (pid < 0) return shmp__fail_os(reterr, (int)pid, "readlink", "/proc/self: such ids need /proc: open posix");
    if (!shmp__proc_id_write(pid, fd, check, ret_id))
        return shmp__fail_os(reterr, EMFILE, "shmp_describe", "pid %ld and fd %d leave no room in an id", pid, fd);
    return 0;
}

/* ---- Opening ---- */

int shmp__proc_fail_gone(const shmp__proc_id *meant, const char *id, shmp_error *reterr) {
    if (shmp__os_proc_pid() < 0)
        return shmp__fail(reterr, SHMP_ENOTFOUND, "open", "\"%s\": such ids need /proc: mount it, or open posix", id);
    return shmp__fail(reterr, SHMP_ENOTFOUND, "open",
                      "\"%s\": process %llu has closed fd %llu or ended, and who else has it, if anyone, is hidden: "
                      "another pid namespace (--pid), another user's under hidepid",
                      id, (unsigned long long)meant->pid, (unsigned long long)meant->fd);
}

int shmp__proc_fail_open(int error, const shmp__proc_id *meant, const char *id, shmp_error *reterr) {
    switch (error) {
    case -ENOENT: return shmp__proc_fail_gone(meant, id, reterr);
    case -EACCES:
    case -EPERM:
        return shmp__fail_os(
            reterr, error, "open",
            "\"%s\": process %llu is another user's, is not dumpable as it changed its user, or has more "
            "rights or another user namespace; send the descriptor, or open posix",
            id, (unsigned long long)meant->pid);
    case -ENOSYS:
        return shmp__fail(reterr, SHMP_EUNSUPPORTED, "pidfd_getfd",
                          "\"%s\" is another process's, which takes Linux 5.6 (or a sandbox denies it): send the "
                          "descriptor, or let it be inherited under its number",
                          id);
    default:
        if (shmp__os_is_shortage(error) || error == -EIO) return shmp__fail_os(reterr, error, "open", "\"%s\"", id);
        /* ENXIO of a socket, EISDIR, ETXTBSY of a running program, ... */
        return shmp__fail(reterr, SHMP_EID, "open", "\"%s\" is no shared memory", id);
    }
}

/* `seen` is a look at what may be meant, or its error. */
static int open_meant(const shmp__proc_kind *kind, const shmp__mapping *mapping, int seen, const shmp__proc_id *meant,
                      const char *id, shmp_error *reterr) {
    if (seen < 0) return shmp__proc_fail_open(seen, meant, id, reterr);
    int fd = kind->check(mapping, seen, meant, id, reterr);
    if (fd == 0) {
        fd = shmp__os_open_seen(seen, !!(mapping->flags & SHMP_READ_ONLY));
        if (fd < 0) fd = shmp__proc_fail_open(fd, meant, id, reterr);
    }
    (void)shmp__os_close(seen);
    return fd;
}

typedef struct fd_search {
    const shmp__proc_kind *kind;
    const shmp__mapping *mapping;
    const shmp__proc_id *meant;
    const char *id;
    long pid; /* that is looked through */
    int found;
    shmp_error shortage;
} fd_search;

enum { FOUND = 1, SHORT = 2 };

static int visit_fd(void *context, int folder, long fd) {
    fd_search *search = context;
    shmp_error why;
    int result = search->kind->may_be(folder, fd);
    if (result <= 0) return result;
    const shmp__proc_kind *kind = search->kind;
    result = kind->take ? kind->take(search->mapping, search->pid, (int)fd, search->meant, search->id, &why)
                        : open_meant(kind, search->mapping, shmp__os_look_at_fd_in(folder, fd), search->meant,
                                     search->id, &why);
    if (result >= 0) {
        search->found = result;
        return FOUND;
    }
    if (!shmp__os_is_shortage(-why.os_error)) return 0;
    search->shortage = why;
    return SHORT;
}

static int visit_process(void *context, long pid) {
    int result = shmp__os_is_users_process(pid);
    ((fd_search *)context)->pid = pid;
    return result <= 0 ? result : shmp__os_each_fd(pid, visit_fd, context);
}

int shmp__proc_open(const shmp__proc_kind *kind, const shmp__mapping *mapping, const shmp__proc_id *meant,
                    const char *id, shmp_error *reterr) {
    shmp_error why;
    long pid = (long)meant->pid;
    int number = (int)meant->fd;
    int fd = kind->take ? kind->take(mapping, pid, number, meant, id, &why)
                        : open_meant(kind, mapping, shmp__os_look_at_fd_of(pid, number), meant, id, &why);
    if (fd >= 0) return fd;
    int is_elsewhere = why.code == -SHMP_ENOTFOUND || why.os_error == EACCES || why.os_error == EPERM;
    if (is_elsewhere) {
        fd_search search = {.kind = kind, .mapping = mapping, .meant = meant, .id = id};
        int result = shmp__os_each_process(visit_process, &search);
        if (result == FOUND) return search.found;
        if (result == SHORT) why = search.shortage;
        if (shmp__os_is_shortage(result)) shmp__fail_os(&why, result, "open", "\"%s\"", id);
    }
    if (reterr) *reterr = why;
    return why.code;
}

#endif
