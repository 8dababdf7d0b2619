#include "os/platform.h"
#if SHMP_HAVE_UNIX
#define _GNU_SOURCE      /* Linux: accept4, struct ucred */
#define _DARWIN_C_SOURCE /* macOS: LOCAL_PEERPID */
#define _NETBSD_SOURCE

#include "os/os_service.h"
#include "os/fault.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#if SHMP_HAVE_LINUX
#include <linux/sockios.h>
#else
#include <sys/ucred.h>
#endif

#if !defined(SHMP_HAVE_ABSTRACT) /* 0 lets a test take the others' ways on Linux */
#define SHMP_HAVE_ABSTRACT SHMP_HAVE_LINUX
#endif

/* ---- Sockets ---- */

static int end_with(int fd, int result) {
    (void)close(fd);
    return result;
}

#if defined(SOCK_CLOEXEC) && defined(SOCK_NONBLOCK)

static int new_socket(void) { return SYS(socket, (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)); }
static int accept_one(int listener) { return SYS(accept4, (listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)); }
static int set_up(int fd) { return fd; }

#else

static int new_socket(void) { return SYS(socket, (AF_UNIX, SOCK_STREAM, 0)); }
static int accept_one(int listener) { return SYS(accept, (listener, NULL, NULL)); }

/* Of one that is close-on-exec by now. */
static int set_up(int fd) {
    const int yes = 1;
    if (SYS(fcntl, (fd, F_SETFD, FD_CLOEXEC)) < 0 || SYS(fcntl, (fd, F_SETFL, O_NONBLOCK)) < 0)
        return end_with(fd, -errno);
#if defined(SO_NOSIGPIPE)
    if (setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &yes, sizeof yes) < 0 && errno != EINVAL) return end_with(fd, -errno);
#endif
    (void)yes;
    return fd;
}

#endif

static int open_socket(void) {
    int fd = shmp__os_above_stdio(new_socket());
    return fd < 0 ? fd : set_up(fd);
}

int shmp__os_accept(int listener) {
    int fd;
    RETRIED(fd, accept_one(listener));
    if (fd < 0 && (errno == EWOULDBLOCK || errno == ECONNABORTED)) return -EAGAIN;
    fd = shmp__os_above_stdio(fd);
    return fd < 0 ? fd : set_up(fd);
}

int shmp__os_poll(struct pollfd *polled, size_t count, long long timeout_ms) {
    int result, time = timeout_ms < 0 ? -1 : timeout_ms > INT_MAX ? INT_MAX : (int)timeout_ms;
    RETRIED(result, SYS(poll, (polled, (nfds_t)count, time)));
    return result_of(result);
}

/* ---- Addresses ---- */

typedef union address_of {
    struct sockaddr_un local;
    struct sockaddr any;
} address_of;

static int to_address(const char *text, address_of *ret_address, socklen_t *ret_length) {
    size_t length = strlen(text);
    memset(ret_address, 0, sizeof *ret_address);
    ret_address->local.sun_family = AF_UNIX;
    if (length == 0) return -ENOENT;
    if (length >= SHMP__ADDRESS_ROOM) return -ENAMETOOLONG;
    *ret_length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    if (*text != '@') {
        memcpy(ret_address->local.sun_path, text, length);
        ++*ret_length; /* with its NUL */
        return 0;
    }
    if (!SHMP_HAVE_ABSTRACT) return -EAFNOSUPPORT;
    memcpy(ret_address->local.sun_path + 1, text + 1, length - 1);
    return 0;
}

static int connect_to(const char *text) {
    address_of address;
    socklen_t length;
    int result = to_address(text, &address, &length);
    if (result < 0) return result;
    int fd = open_socket();
    if (fd < 0) return fd;
    RETRIED(result, SYS(connect, (fd, &address.any, length)));
    return result < 0 ? end_with(fd, -errno) : fd;
}

int shmp__os_connect(const char *address, unsigned timeout_ms) {
    const long long end = shmp__os_ticks() + timeout_ms;
    int result = connect_to(address);
    while (result == -EAGAIN && shmp__os_ticks() < end) {
        shmp__os_pause();
        result = connect_to(address);
    }
    return result == -EAGAIN ? -ETIMEDOUT : result;
}

#if SHMP_HAVE_ABSTRACT

int shmp__os_service_address(char ret_address[SHMP__ADDRESS_ROOM]) {
    snprintf(ret_address, SHMP__ADDRESS_ROOM, "@shmem_providers_%lu", shmp__os_user());
    return 0;
}

#else

enum { FILE_ROOM = 48 }; /* "/shmem_providers_<user>/service" */

/* Where this user has his temporary files, without a "/" at its end; what is too long is not taken. */
static void temporary_folder(char ret_path[SHMP__ADDRESS_ROOM - FILE_ROOM]) {
    enum { ROOM = SHMP__ADDRESS_ROOM - FILE_ROOM };
    const char *named = shmp__os_is_privileged() ? NULL : getenv("TMPDIR");
    size_t length = 0;
#if defined(_CS_DARWIN_USER_TEMP_DIR) /* it is the same in all of his processes */
    length = confstr(_CS_DARWIN_USER_TEMP_DIR, ret_path, ROOM);
    length = length > 0 && length <= ROOM ? length - 1 : 0;
#endif
    if (length == 0 && named && *named == '/' && strlen(named) < ROOM) {
        length = strlen(named);
        memcpy(ret_path, named, length);
    }
    while (length > 0 && ret_path[length - 1] == '/') length--;
    ret_path[length] = 0;
    if (length == 0) memcpy(ret_path, "/tmp", sizeof "/tmp");
}

int shmp__os_service_address(char ret_address[SHMP__ADDRESS_ROOM]) {
    struct stat folder;
    char path[SHMP__ADDRESS_ROOM], *end = path;
    temporary_folder(path);
    end += strlen(path);
    snprintf(end, FILE_ROOM, "/shmem_providers_%lu", shmp__os_user());
    if (SYS(mkdir, (path, 0700)) < 0 && errno != EEXIST) return -errno;
    if (SYS(lstat, (path, &folder)) < 0) return -errno;
    if (!S_ISDIR(folder.st_mode) || folder.st_uid != geteuid() || folder.st_mode & 077) return -EPERM;
    snprintf(ret_address, SHMP__ADDRESS_ROOM, "%s/service", path);
    return 0;
}

#endif

/* ---- Listening ---- */

/* Whether somebody listens there. A full queue looks on some systems as if nobody did, and so does a service that is
 * about to listen: it is asked for a while. */
static int is_alive(const char *address) {
    enum { TRIES = 200 }; /* milliseconds */
    for (int tries = 0; tries < TRIES; tries++) {
        int fd = connect_to(address);
        if (fd >= 0) (void)close(fd);
        if (fd != -ECONNREFUSED) return fd >= 0 || fd == -EAGAIN || fd == -EACCES || fd == -EPERM ? 1 : fd;
        shmp__os_pause();
    }
    return 0;
}

static int look_at_file(const shmp__os_listener *listener, struct stat *ret_file) {
    return result_of(SYS(fstatat, (listener->folder, listener->file, ret_file, AT_SYMLINK_NOFOLLOW)));
}

/* Removes the socket that nobody listens at. */
static int remove_stale(const char *address, const shmp__os_listener *listener) {
    struct stat file;
    int result = look_at_file(listener, &file);
    if (result < 0) return result == -ENOENT ? 0 : result;
    if (!S_ISSOCK(file.st_mode)) return -EEXIST;
    result = is_alive(address);
    if (result != 0) return result == 1 ? -EADDRINUSE : result == -ENOENT ? 0 : result;
    result = result_of(SYS(unlinkat, (listener->folder, listener->file, 0)));
    return result == -ENOENT ? 0 : result;
}

/* Two services that find the same stale file take turns: else the second would remove the first one's. */
static int lock_folder(int folder) {
    enum { TRIES = 5000 }; /* milliseconds: anybody who can read the folder can hold its lock */
    int result = shmp__os_lock_alone(folder);
    for (int tries = 0; result == -EWOULDBLOCK && tries < TRIES; tries++) {
        shmp__os_pause();
        result = shmp__os_lock_alone(folder);
    }
    return result;
}

static void unlock(int folder) { (void)flock(folder, LOCK_UN); }

static int bind_and_listen(const char *text, int any_user, shmp__os_listener *listener, const char **ret_call) {
    enum { WAITING = 1024 }; /* the system takes what it has for it */
    address_of address;
    socklen_t length;
    struct stat file;
    *ret_call = "bind";
    int result = to_address(text, &address, &length);
    if (result == 0) result = result_of(SYS(bind, (listener->socket, &address.any, length)));
    if (result < 0) return result;
    if (listener->folder >= 0) {
        *ret_call = "chmod";
        result = result_of(SYS(fchmodat, (listener->folder, listener->file, any_user ? 0666 : 0600, 0)));
        if (result == 0) result = look_at_file(listener, &file);
        if (result == 0) {
            listener->device = (unsigned long long)file.st_dev;
            listener->inode = file.st_ino;
        }
    }
    if (result == 0) {
        *ret_call = "listen";
        result = result_of(SYS(listen, (listener->socket, WAITING)));
    }
    if (result < 0 && listener->folder >= 0) (void)unlinkat(listener->folder, listener->file, 0);
    return result;
}

/* Opens the folder of a path, and gives the rest of it. */
static int open_folder(const char *path, shmp__os_listener *listener) {
    char folder[SHMP__ADDRESS_ROOM] = ".";
    const char *slash = strrchr(path, '/'), *file = slash ? slash + 1 : path;
    if (strlen(path) >= SHMP__ADDRESS_ROOM) return -ENAMETOOLONG;
    if (!*file) return *path ? -EISDIR : -ENOENT;
    if (slash) snprintf(folder, sizeof folder, "%.*s/", (int)(slash - path), path);
    snprintf(listener->file, sizeof listener->file, "%s", file);
    int fd;
    RETRIED(fd, SYS(open, (folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC)));
    return shmp__os_above_stdio(fd);
}

static int listen_at_path(const char *path, int any_user, shmp__os_listener *listener, const char **ret_call) {
    *ret_call = "open";
    listener->folder = open_folder(path, listener);
    if (listener->folder < 0) return listener->folder;
    *ret_call = "flock";
    int locked = lock_folder(listener->folder), result = locked;
    if (locked != -EWOULDBLOCK) result = bind_and_listen(path, any_user, listener, ret_call);
    if (locked == 0 && result == -EADDRINUSE) {
        result = remove_stale(path, listener);
        if (result == 0) result = bind_and_listen(path, any_user, listener, ret_call);
    }
    unlock(listener->folder);
    return result;
}

int shmp__os_listen(const char *address, int any_user, shmp__os_listener *ret_listener, const char **ret_call) {
    shmp__os_listener listener = {.folder = -1};
    *ret_call = "socket";
    listener.socket = open_socket();
    if (listener.socket < 0) return listener.socket;
    int result = *address == '@' ? bind_and_listen(address, any_user, &listener, ret_call)
                                 : listen_at_path(address, any_user, &listener, ret_call);
    if (result == 0) {
        *ret_listener = listener;
        return 0;
    }
    if (listener.folder >= 0) (void)shmp__os_close(listener.folder);
    (void)shmp__os_close(listener.socket);
    return result;
}

/* As long as it listens, no service takes the file for a stale one. */
void shmp__os_unlisten(shmp__os_listener *listener, int remove) {
    struct stat file;
    if (listener->folder >= 0) {
        if (remove && look_at_file(listener, &file) == 0 && (unsigned long long)file.st_dev == listener->device &&
            file.st_ino == listener->inode)
            (void)unlinkat(listener->folder, listener->file, 0);
        (void)shmp__os_close(listener->folder);
    }
    (void)shmp__os_close(listener->socket);
    listener->folder = listener->socket = -1;
}

/* ---- The other side ---- */

#if SHMP_HAVE_LINUX

int shmp__os_peer_of(int socket, shmp__os_peer *ret_peer) {
    struct ucred peer;
    socklen_t length = sizeof peer;
    if (SYS(getsockopt, (socket, SOL_SOCKET, SO_PEERCRED, &peer, &length)) < 0) return -errno;
    *ret_peer = (shmp__os_peer){.user = (unsigned long)peer.uid, .pid = (long)peer.pid};
    return 0;
}

#else

static long pid_of_peer(int socket) {
#if defined(LOCAL_PEERPID)   /* macOS */
    pid_t pid;
    socklen_t length = sizeof pid;
    return getsockopt(socket, SOL_LOCAL, LOCAL_PEERPID, &pid, &length) < 0 ? 0 : (long)pid;
#elif defined(LOCAL_PEEREID) /* NetBSD */
    struct unpcbid peer;
    socklen_t length = sizeof peer;
    return getsockopt(socket, 0, LOCAL_PEEREID, &peer, &length) < 0 ? 0 : (long)peer.unp_pid;
#elif defined(__OpenBSD__)
    struct sockpeercred peer;
    socklen_t length = sizeof peer;
    return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0 ? 0 : (long)peer.pid;
#elif defined(__FreeBSD__) /* since 13 */
    struct xucred peer;
    socklen_t length = sizeof peer;
    return getsockopt(socket, 0, LOCAL_PEERCRED, &peer, &length) < 0 ? 0 : (long)peer.cr_pid;
#else
    (void)socket;
    return 0;
#endif
}

int shmp__os_peer_of(int socket, shmp__os_peer *ret_peer) {
    uid_t user;
    gid_t group;
    if (SYS(getpeereid, (socket, &user, &group)) < 0) return -errno;
    *ret_peer = (shmp__os_peer){.user = (unsigned long)user, .pid = pid_of_peer(socket)};
    return 0;
}

#endif

enum { MOST_FDS = 16 }; /* more than that, none of the systems would give: they close what finds no room */

typedef union control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(MOST_FDS * sizeof(int))];
} control;

#if defined(MSG_NOSIGNAL)
enum { SEND_FLAGS = MSG_NOSIGNAL };
#else
enum { SEND_FLAGS = 0 }; /* SO_NOSIGPIPE */
#endif
#if defined(MSG_CMSG_CLOEXEC)
enum { RECEIVE_FLAGS = MSG_CMSG_CLOEXEC };
#else
enum { RECEIVE_FLAGS = 0 };
#endif

int shmp__os_send(int socket, const void *bytes, size_t length, int fd) {
    control room;
    struct iovec part = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        memset(&room, 0, sizeof room);
        room.header.cmsg_level = SOL_SOCKET;
        room.header.cmsg_type = SCM_RIGHTS;
        room.header.cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(&room.header), &fd, sizeof fd);
        message.msg_control = &room;
        message.msg_controllen = CMSG_SPACE(sizeof fd);
    }
    ssize_t sent;
    RETRIED(sent, SYS(sendmsg, (socket, &message, SEND_FLAGS)));
    if (sent < 0) return errno == EWOULDBLOCK ? -EAGAIN : -errno;
    return (size_t)sent == length ? 0 : -EMSGSIZE; /* so short a message is never cut */
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-compare" /* in musl's CMSG_NXTHDR */

/* Gives the only descriptor; see shmp__os_receive. */
static int take_fd(struct msghdr *message) {
    int fd = message->msg_flags & MSG_CTRUNC ? -EMFILE : -1;
    for (struct cmsghdr *at = CMSG_FIRSTHDR(message); at; at = CMSG_NXTHDR(message, at)) {
        if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS) continue;
        size_t bytes = at->cmsg_len - CMSG_LEN(0);
        for (size_t i = 0; i + sizeof(int) <= bytes; i += sizeof(int)) {
            int got;
            memcpy(&got, CMSG_DATA(at) + i, sizeof got);
            int is_first = fd == -1 || fd == -EMFILE;
            if (!is_first) (void)close(got);
            if (!is_first && fd >= 0) (void)close(fd);
            fd = is_first ? got : -EPROTO;
        }
    }
    return fd;
}

#pragma GCC diagnostic pop

int shmp__os_receive(int socket, void *ret_bytes, size_t room, int *ret_fd) {
    control rights;
    struct iovec part = {.iov_base = ret_bytes, .iov_len = room};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (ret_fd) {
        message.msg_control = &rights;
        message.msg_controllen = sizeof rights;
    }
    ssize_t got;
    RETRIED(got, SYS(recvmsg, (socket, &message, RECEIVE_FLAGS)));
    if (got < 0) return errno == EWOULDBLOCK ? -EAGAIN : -errno;
    if (!ret_fd) return (int)got;
    int fd = take_fd(&message);
    if (fd >= 0) {
        if (!RECEIVE_FLAGS) (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
        fd = shmp__os_above_stdio(fd);
    }
    *ret_fd = fd;
    return (int)got;
}

#if defined(SOCK_CLOEXEC) && defined(SOCK_NONBLOCK)
static int open_pair(int ret_ends[2]) {
    return SYS(socketpair, (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ret_ends));
}
#else
static int open_pair(int ret_ends[2]) { return SYS(socketpair, (AF_UNIX, SOCK_STREAM, 0, ret_ends)); }
#endif

int shmp__os_socket_pair(int ret_ends[2]) {
    int ends[2];
    if (open_pair(ends) < 0) return -errno;
    for (int i = 0; i < 2; i++) {
        ends[i] = shmp__os_above_stdio(ends[i]);
        if (ends[i] >= 0) ends[i] = set_up(ends[i]);
    }
    int failed = ends[0] < 0 ? ends[0] : ends[1] < 0 ? ends[1] : 0;
    for (int i = 0; i < 2 && failed; i++)
        if (ends[i] >= 0) (void)close(ends[i]);
    if (failed) return failed;
    ret_ends[0] = ends[0];
    ret_ends[1] = ends[1];
    return 0;
}

void shmp__os_shut_down(int socket) { (void)shutdown(socket, SHUT_RDWR); }

int shmp__os_unread(int socket) {
    int bytes = 0;
#if SHMP_HAVE_LINUX
    if (SYS(ioctl, (socket, SIOCOUTQ, &bytes)) < 0) return 0;
#elif defined(SO_NWRITE) /* macOS */
    socklen_t length = sizeof bytes;
    if (getsockopt(socket, SOL_SOCKET, SO_NWRITE, &bytes, &length) < 0) return 0;
#elif defined(FIONWRITE)
    if (ioctl(socket, FIONWRITE, &bytes) < 0) return 0;
#else
    (void)socket;
#endif
    return bytes;
}

/* ---- Pipes, a clock, a thread, a lock ---- */

#if defined(__APPLE__)

static int open_pipe(int ret_ends[2]) {
    if (SYS(pipe, (ret_ends)) < 0) return -1;
    for (int i = 0; i < 2; i++)
        (void)fcntl(ret_ends[i], F_SETFD, FD_CLOEXEC), (void)fcntl(ret_ends[i], F_SETFL, O_NONBLOCK);
    return 0;
}

#else

static int open_pipe(int ret_ends[2]) { return SYS(pipe2, (ret_ends, O_CLOEXEC | O_NONBLOCK)); }

#endif

int shmp__os_pipe(int ret_ends[2]) {
    int ends[2];
    if (open_pipe(ends) < 0) return -errno;
    int first = shmp__os_above_stdio(ends[0]), second = shmp__os_above_stdio(ends[1]);
    if (first < 0 || second < 0) {
        if (first >= 0) (void)close(first);
        if (second >= 0) (void)close(second);
        return first < 0 ? first : second;
    }
    ret_ends[0] = first;
    ret_ends[1] = second;
    return 0;
}

int shmp__os_read(int fd, void *ret_bytes, size_t room) {
    ssize_t got;
    RETRIED(got, SYS(read, (fd, ret_bytes, room)));
    return got < 0 ? -errno : (int)got;
}

int shmp__os_write(int fd, const void *bytes, size_t length) {
    ssize_t put;
    RETRIED(put, SYS(write, (fd, bytes, length)));
    return put < 0 ? -errno : (int)put;
}

long long shmp__os_ticks(void) {
    struct timespec now = {.tv_sec = 0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int shmp__os_thread_start(void *(*run)(void *context), void *context, pthread_t *ret_thread) {
    sigset_t all, before;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = SYS_OR(errno, pthread_create, (ret_thread, NULL, run, context));
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -error;
}

int shmp__os_thread_join(pthread_t thread) { return -pthread_join(thread, NULL); }

int shmp__os_lock_make(pthread_mutex_t *ret_lock) { return -SYS_OR(errno, pthread_mutex_init, (ret_lock, NULL)); }

#endif
