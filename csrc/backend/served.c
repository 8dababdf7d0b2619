/* served: segments that a service makes, which hands out their descriptors. Unix.
 *
 * Lifetime: the service counts who holds a segment, and lets it go after the last; nothing survives the service and its
 * clients. The id is `<number>:<fd>`: the service's number of the segment, and the descriptor here, which only the Rust
 * crate looks at. Any client of the same service attaches by it. Cannot: outlive a lost service as something that
 * others can attach to; what is mapped stays.
 *
 * A provider has one connection, on which it takes turns. Replies have no frames, so that two requests are never under
 * way; the reply to a Deregister is read before the next request, and not waited for. A reference belongs to the
 * connection on which it was got, its session: no other one, such as that to the service's successor, or a forked
 * child's, ever takes it back. */
#include "os/platform.h"
#if SHMP_HAVE_UNIX
#include "backend/turn.h"
#include "backend/wrap.h"
#include "os/os_service.h"
#include "service/patience.h"
#include "service/wire.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    DEFAULT_TIMEOUT = 5000, /* milliseconds */
    LONGEST_NUMBER = 11,    /* "-2147483648" */
    LOOKS = 100             /* for a reply, before sleeping: 30 us */
};

typedef struct served_provider {
    shmp_provider base;
    char address[SHMP__ADDRESS_ROOM];
    unsigned timeout_ms;
    shmp__turn turn;         /* of all that follows */
    unsigned mark;           /* the process that it is of */
    int socket;              /* -1: not connected */
    unsigned session;        /* counts connections, from 1 */
    unsigned held;           /* references */
    int32_t client;          /* the service's number of the connection */
    int is_owed;             /* the reply to a Deregister has not been read */
    shmp__patience patience; /* for replies */
    int is_announced;        /* the service keeps the references for a child, too */
    int to_child, to_parent; /* a connection between both, while that is so; -1: none */
    shmp_service *service;   /* SHMP_SERVE: ours; NULL: another process's */
} served_provider;

/* What the service holds for a mapping and its clones. */
typedef struct reference {
    shmp__atomic_uint users;
    unsigned session; /* 0: it holds nothing for it */
    int32_t number;   /* -1: unknown */
} reference;

typedef struct served_mapping {
    shmp__wrapped base;
    reference *held;
} served_mapping;

static served_provider *served(shmp_provider *provider) { return (served_provider *)provider; }
static served_mapping *mapped(shmp__mapping *mapping) { return (served_mapping *)mapping; }

static int take_turn(served_provider *self, shmp_error *reterr) {
    return shmp__turn_take(&self->base, &self->turn, self->timeout_ms, reterr);
}

static void end_turn(served_provider *self, int taken) {
    if (taken == 0) shmp__turn_end(&self->turn);
}

/* ---- The connection ---- */

static int fail_service(const served_provider *self, int os_error, const char *what, shmp_error *reterr) {
    int result = shmp__fail(reterr, SHMP_ESERVICE, "service", "\"%s\" %s", self->address, what);
    if (reterr) reterr->os_error = -os_error;
    return result;
}

/* Closes the connection. What it held is forgotten. */
static void forget(served_provider *self) {
    if (self->socket >= 0) (void)shmp__os_close(self->socket);
    self->socket = -1;
    self->is_owed = self->is_announced = 0;
    self->held = 0;
    self->session++;
}

static int lose(served_provider *self, int os_error, shmp_error *reterr) {
    const char *what = "has ended: start one (shmem-providers serve); the next call asks that";
    if (os_error == -ETIMEDOUT) what = "does not answer: see whether it hangs, or set a longer timeout_ms";
    if (os_error == -EPROTO) what = "gave an answer that makes no sense: is it another program's? Take another address";
    forget(self);
    return fail_service(self, os_error, what, reterr);
}

/* Waits for the socket. 0; negative: it failed, or there was no time left. */
static int wait_for(const served_provider *self, short events, long long until) {
    struct pollfd polled = {.fd = self->socket, .events = events};
    const long long left = until - shmp__os_ticks();
    int result = left > 0 ? shmp__os_poll(&polled, 1, left) : 0;
    return result > 0 ? 0 : result < 0 ? result : -ETIMEDOUT;
}

static int send_request(const served_provider *self, const shmp__request *request, long long until) {
    unsigned char bytes[SHMP__REQUEST_ROOM];
    size_t length = shmp__request_write(request, bytes);
    int result = shmp__os_send(self->socket, bytes, length, -1);
    while (result == -EAGAIN) {
        result = wait_for(self, POLLOUT, until);
        if (result == 0) result = shmp__os_send(self->socket, bytes, length, -1);
    }
    return result;
}

/* Gives -EAGAIN if there is none yet. */
static int look_for_reply(served_provider *self, char ret_text[SHMP__REPLY_ROOM], int *ret_fd) {
    int got = shmp__os_receive(self->socket, ret_text, SHMP__REPLY_ROOM, ret_fd);
    if (got != -EAGAIN || !shmp__patience_lasts(&self->patience)) return got;
    for (int looks = 0; got == -EAGAIN && looks < LOOKS; looks++)
        got = shmp__os_receive(self->socket, ret_text, SHMP__REPLY_ROOM, ret_fd);
    shmp__patience_learn(&self->patience, got != -EAGAIN);
    return got;
}

/* *ret_fd is as shmp__os_receive gives it. */
static int receive_reply(served_provider *self, long long until, int32_t *ret_number, int *ret_fd) {
    char text[SHMP__REPLY_ROOM];
    int fd = -1, got = look_for_reply(self, text, &fd);
    while (got == -EAGAIN) {
        int result = wait_for(self, POLLIN, until);
        if (result < 0) return result;
        got = shmp__os_receive(self->socket, text, sizeof text, &fd);
    }
    if (got < 0) return got;
    if (got == 0) return -ECONNRESET;
    if (got > LONGEST_NUMBER || !shmp__reply_read(text, (size_t)got, ret_number)) {
        if (fd >= 0) (void)shmp__os_close(fd);
        return -EPROTO;
    }
    *ret_fd = fd;
    return 0;
}

/* Of a request that no descriptor answers. */
static int receive_number(served_provider *self, long long until, int32_t *ret_number) {
    int fd, result = receive_reply(self, until, ret_number, &fd);
    if (result < 0 || fd == -1) return result;
    if (fd >= 0) (void)shmp__os_close(fd);
    return -EPROTO;
}

static int collect(served_provider *self, long long until) {
    int32_t count;
    int result = self->is_owed ? receive_number(self, until, &count) : 0;
    self->is_owed = 0;
    return result;
}

/* A request that a number answers: ret_fd NULL, or a number and a descriptor. An error has closed the connection. */
static int ask(served_provider *self, const shmp__request *request, int32_t *ret_number, int *ret_fd,
               shmp_error *reterr) {
    const long long until = shmp__os_ticks() + self->timeout_ms;
    int result = collect(self, until);
    if (result == 0) result = send_request(self, request, until);
    if (result == 0)
        result = ret_fd ? receive_reply(self, until, ret_number, ret_fd) : receive_number(self, until, ret_number);
    return result < 0 ? lose(self, result, reterr) : 0;
}

static void take_back(served_provider *self, int32_t number) {
    const shmp__request request = {.kind = SHMP__DEREGISTER, .number = number};
    const long long until = shmp__os_ticks() + self->timeout_ms;
    int result = collect(self, until);
    if (result == 0) result = send_request(self, &request, until);
    if (result < 0) {
        forget(self);
        return;
    }
    self->is_owed = 1;
    self->held--;
}

/* Connects to a service of this user or root: anybody may have taken the address. */
static int connect_to_trusted(const served_provider *self, int *ret_socket, shmp_error *reterr) {
    shmp__os_peer peer;
    int fd = shmp__os_connect(self->address, self->timeout_ms);
    if (fd == -ECONNREFUSED || fd == -ENOENT)
        return fail_service(self, fd, "is no service: start one (shmem-providers serve), or give another address",
                            reterr);
    if (fd == -ETIMEDOUT) return fail_service(self, fd, "lets nobody in: see whether the service hangs", reterr);
    if (shmp__os_is_shortage(fd)) return shmp__fail_os(reterr, fd, "connect", "\"%s\"", self->address);
    if (fd < 0) return fail_service(self, fd, "cannot be connected to: give another address", reterr);
    int result = shmp__os_peer_of(fd, &peer);
    if (result == 0 && (peer.user == 0 || peer.user == shmp__os_user())) {
        *ret_socket = fd;
        return 0;
    }
    (void)shmp__os_close(fd);
    if (result < 0) return fail_service(self, result, "does not tell whose service it is", reterr);
    return fail_service(self, -EACCES, "is another user's service, and not trusted: give another address", reterr);
}

/* Whether nobody is there. */
static int is_free(const shmp_error *why) { return why->os_error == ECONNREFUSED || why->os_error == ENOENT; }

/* 0: ours runs, or somebody else's does by now. */
static int serve(served_provider *self, shmp_error *reterr) {
    const shmp_service_options options = {.struct_size = sizeof options, .address = self->address};
    (void)shmp_service_stop(self->service, NULL); /* it has ended by itself */
    self->service = NULL;
    int result = shmp_service_start(self->base.inner, &options, &self->service, reterr);
    return result == -SHMP_ESERVICE && reterr->os_error == EADDRINUSE ? 0 : result;
}

static int connect_or_serve(served_provider *self, shmp_error *reterr) {
    const long long until = shmp__os_ticks() + self->timeout_ms;
    shmp_error why = {.os_error = 0};
    int result = connect_to_trusted(self, &self->socket, &why);
    while (result < 0 && self->base.flags & SHMP_SERVE && is_free(&why) && shmp__os_ticks() < until) {
        result = serve(self, &why);
        if (result < 0) break;
        result = connect_to_trusted(self, &self->socket, &why);
        if (result < 0) shmp__os_pause(); /* another process has the address, and does not listen yet */
    }
    if (result < 0 && reterr) *reterr = why;
    return result;
}

/* The first request of a connection, which gives the client's number, or a negative one. */
static int introduce(served_provider *self, const shmp__request *request, shmp_error *reterr) {
    shmp_error why;
    int result = ask(self, request, &self->client, NULL, &why);
    if (result == 0) return 0;
    if (why.os_error == EPIPE || why.os_error == ECONNRESET)
        return fail_service(self, -EACCES, "lets nobody more in, or not this user: see whose service it is", reterr);
    if (reterr) *reterr = why;
    return result;
}

static int greet(served_provider *self, shmp_error *reterr) {
    const shmp__request request = {.kind = SHMP__HELLO};
    int result = introduce(self, &request, reterr);
    return result == 0 && self->client < 0 ? lose(self, -EPROTO, reterr) : result;
}

/* Closes what is a parent's. */
static void settle(served_provider *self) {
    unsigned mark = shmp__process_mark(&self->base);
    if (self->mark == mark) return;
    forget(self);
    (void)shmp_service_stop(self->service, NULL);
    self->service = NULL;
    self->mark = mark;
}

static int prepare(served_provider *self, shmp_error *reterr) {
    shmp_error why;
    settle(self);
    if (self->socket >= 0) return 0;
    int result = connect_or_serve(self, &why);
    if (result == 0) result = greet(self, &why);
    if (result < 0 && why.os_error == EACCES) { /* it may have been about to end: who is there now? */
        result = connect_or_serve(self, &why);
        if (result == 0) result = greet(self, &why);
    }
    if (result < 0 && reterr) *reterr = why;
    return result;
}

/* ---- Opening ---- */

static int set_address(served_provider *self, const char *given, shmp_error *reterr) {
    char room[SHMP__ENV_ROOM];
    const char *from = given ? "options.address" : "SHMEM_SERVICE", *address = given;
    if (!address) address = shmp__wanted_address(room);
    if (!*address) {
        int result = shmp__os_service_address(self->address);
        return result < 0 ? shmp__fail_os(reterr, result, "mkdir", "the folder for this user's service") : 0;
    }
    if ((size_t)snprintf(self->address, sizeof self->address, "%s", address) < sizeof self->address) return 0;
    return shmp__fail(reterr, SHMP_EINVAL, from, "\"%.40s...\" has more than %zu bytes", address,
                      sizeof self->address - 1);
}

static int set_inner(shmp_provider *provider, shmp_error *reterr) {
    if (!provider->inner)
        return shmp__open_descriptors(provider->flags & SHMP_KEEP_LEFTOVERS, &provider->inner, reterr);
    const shmp__ops *ops = shmp__meant(provider->inner)->ops;
    if (ops->attach_fd && !(ops->can & SHMP__CAN_ADDRESS)) return 0;
    return shmp__fail(reterr, SHMP_EUNSUPPORTED, "options.inner",
                      "%s has no descriptors that a service could hand out: take memfd, posix or ashmem", ops->name);
}

static int served_open(shmp_provider *provider, const shmp_provider_options *options, shmp_error *reterr) {
    served_provider *self = served(provider);
    self->socket = self->to_child = self->to_parent = -1;
    self->timeout_ms = options->timeout_ms ? options->timeout_ms : DEFAULT_TIMEOUT;
    int result = set_address(self, options->address, reterr);
    if (result == 0) result = set_inner(provider, reterr);
    return result < 0 ? result : prepare(self, reterr);
}

static void close_end(int *end) {
    if (*end >= 0) (void)shmp__os_close(*end);
    *end = -1;
}

static void close_ends(served_provider *self) {
    close_end(&self->to_child);
    close_end(&self->to_parent);
}

static void served_end(shmp_provider *provider) {
    forget(served(provider));
    close_ends(served(provider));
    (void)shmp_service_stop(served(provider)->service, NULL);
}

static const char *served_address(const shmp_provider *provider) {
    return ((const served_provider *)provider)->address;
}

static int served_hosts(shmp_provider *provider) {
    served_provider *self = served(provider);
    int taken = take_turn(self, NULL),
        result = taken >= 0 && self->service && self->mark == shmp__process_mark(provider);
    end_turn(self, taken);
    return result;
}

/* ---- Fork ---- */

/* The service keeps one announcement of a client, until the child it is for has come: parent and child wait for each
 * other, in the order of the Rust crate, but never for long. */

static const char greeting[4];

static void wave(int end) { (void)shmp__os_send(end, greeting, sizeof greeting, -1); }

/* 0: the other side has waved, or has ended; -ETIMEDOUT: neither. */
static int await(const served_provider *self, int end) {
    const long long until = shmp__os_ticks() + self->timeout_ms;
    size_t room = sizeof greeting;
    while (room > 0) {
        char bytes[sizeof greeting];
        int got = shmp__os_receive(end, bytes, room, NULL);
        if (got > 0) room -= (size_t)got;
        if (got > 0) continue;
        if (got != -EAGAIN) return 0;
        long long left = until - shmp__os_ticks();
        struct pollfd polled = {.fd = end, .events = POLLIN};
        if (left <= 0 || shmp__os_poll(&polled, 1, left) < 0) return -ETIMEDOUT;
    }
    return 0;
}

/* A service that is lost has nothing to keep for the child. */
static int announce(served_provider *self, shmp_error *reterr) {
    const shmp__request request = {.kind = SHMP__PRE_FORK};
    int32_t client;
    int ends[2];
    close_ends(self); /* of a fork that had no end */
    if (self->socket < 0 || self->held == 0) return 0;
    int result = shmp__os_socket_pair(ends);
    if (result < 0) return shmp__fail_os(reterr, result, "socketpair", "for parent and child to wait for each other");
    self->to_child = ends[0];
    self->to_parent = ends[1];
    if (ask(self, &request, &client, NULL, NULL) == 0) self->is_announced = client >= 0;
    if (!self->is_announced) close_ends(self);
    return 0;
}

static int served_pre_fork(shmp_provider *provider, shmp_error *reterr) {
    served_provider *self = served(provider);
    int result = shmp__turn_begin_fork(provider, &self->turn, self->timeout_ms, reterr);
    if (result <= 0) return result;
    settle(self);
    result = announce(self, reterr);
    if (result == 0 && self->service) result = shmp_service_pre_fork(self->service, reterr);
    if (result == 0) return 0;
    close_ends(self);
    shmp__turn_undo_fork(&self->turn);
    return result;
}

static int in_parent(served_provider *self, shmp_error *reterr) {
    close_end(&self->to_parent);
    int result = self->service ? shmp_service_post_fork(self->service, 0, reterr) : 0;
    if (self->to_child < 0) return result;
    wave(self->to_child);
    int failed = await(self, self->to_child);
    close_end(&self->to_child);
    if (result < 0 || failed == 0) return result;
    return shmp__fail_os(reterr, failed, "shmp_post_fork",
                         "the child has not called it for %u ms, and may keep nothing of what it inherited",
                         self->timeout_ms);
}

/* What was announced becomes ours, on a connection of our own. */
static int take_over(served_provider *self, int32_t parent, shmp_error *reterr) {
    const shmp__request request = {.kind = SHMP__POST_FORK_CHILD_HELLO, .number = parent};
    int result = connect_to_trusted(self, &self->socket, reterr);
    if (result == 0) result = introduce(self, &request, reterr);
    if (result < 0) return result;
    if (self->client >= 0) return 0;
    forget(self);
    return fail_service(self, 0, "has not kept what was announced for this child, which holds nothing of it there",
                        reterr);
}

static int in_child(served_provider *self, shmp_error *reterr) {
    const int is_announced = self->is_announced;
    const int32_t parent = self->client;
    const unsigned session = self->session, held = self->held;
    if (self->service) (void)shmp_service_post_fork(self->service, 1, NULL);
    close_end(&self->to_child);
    settle(self);
    if (!is_announced) return 0;
    (void)await(self, self->to_parent); /* the service may be the parent's own */
    int result = take_over(self, parent, reterr);
    wave(self->to_parent);
    close_end(&self->to_parent);
    if (result < 0) return result;
    self->session = session;
    self->held = held;
    return 0;
}

static int served_post_fork(shmp_provider *provider, int is_child, shmp_error *reterr) {
    served_provider *self = served(provider);
    int result = shmp__turn_after_fork(provider, &self->turn, is_child, self->timeout_ms, reterr);
    if (result <= 0) return result;
    result = self->mark == shmp__process_mark(provider) ? in_parent(self, reterr) : in_child(self, reterr);
    self->is_announced = 0;
    shmp__turn_end_fork(&self->turn);
    return result;
}

/* ---- Ids ---- */

/* Of "<number>:<fd>"; -1: it is something else. */
static int32_t number_of(const char *id) {
    unsigned long long number, fd;
    const char *end = shmp__decimal(id, INT32_MAX, &number);
    end = end && *end == ':' ? shmp__decimal(end + 1, INT32_MAX, &fd) : NULL;
    return end && !*end ? (int32_t)number : -1;
}

static int fail_id(const char *call, const char *id, shmp_error *reterr) {
    return shmp__fail(reterr, SHMP_EID, call, "\"%s\": a service's id is <number>:<descriptor>", id);
}

static int served_accepts(const char *id) { return number_of(id) >= 0; }

static int served_describe(shmp__mapping *mapping, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    int32_t number = mapped(mapping)->held->number;
    if (number < 0)
        return shmp__fail(reterr, SHMP_ENOTFOUND, "shmp_describe",
                          "it has no id, as it came as a descriptor: send that, or create it by this provider");
    snprintf(ret_id, SHMP__ID_SIZE, "%ld:%d", (long)number, shmp__wrap_fileno(mapping));
    return 0;
}

/* ---- Segments ---- */

/* Of which the service holds nothing yet. */
static int hold(served_mapping *self, int32_t number, shmp_error *reterr) {
    reference *held = shmp__os_allocate(sizeof *held);
    if (!held) return shmp__fail(reterr, SHMP_ENOMEM, "malloc", "%zu bytes", sizeof *held);
    shmp__atomic_set(&held->users, 1);
    held->number = number;
    self->held = held;
    return 0;
}

/* Whether the service holds it for the connection that there is. */
static int is_current(const served_provider *self, const reference *held) {
    return held->session == self->session && self->socket >= 0;
}

static void let_go(shmp_provider *provider, reference *held) {
    served_provider *self = served(provider);
    if (shmp__atomic_sub(&held->users, 1) != 1) return;
    int taken = held->session ? take_turn(self, NULL) : -1;
    if (taken >= 0) {
        settle(self);
        if (is_current(self, held)) take_back(self, held->number);
        end_turn(self, taken);
    }
    free(held);
}

static int attach_inner(shmp__mapping *mapping, int fd, shmp_error *reterr) {
    const shmp_description unnamed = {.size = mapping->size};
    shmp_shmem *inner = NULL;
    unsigned flags = mapping->flags & ~(unsigned)SHMP_OWNER;
    int result = shmp_attach_fd(mapping->provider->inner, fd, &unnamed, flags, &inner, reterr);
    return shmp__wrap_finish(mapping, result, inner);
}

/* Why the service has none. */
static int fail_refused(const served_provider *self, int32_t reply, const char *id, shmp_error *reterr) {
    int code = reply > -SHMP_EOS && reply != -SHMP_EINVAL ? -(int)reply : SHMP_ESERVICE;
    const char *why = code == SHMP_ESERVICE ? "it is short of descriptors or memory, or this client has had its share"
                                            : shmp_error_text(code);
    return shmp__fail(reterr, code, "service", "\"%s\" gives no segment%s%s: %s", self->address, *id ? " " : "", id,
                      why);
}

/* Gives the descriptor, and fills in what is then held. The turn is taken. */
static int fetch(served_provider *self, const shmp__request *request, const char *id, reference *held,
                 shmp_error *reterr) {
    int32_t number;
    int fd, result = prepare(self, reterr);
    if (result == 0) result = ask(self, request, &number, &fd, reterr);
    if (result < 0) return result;
    if (number < 0) {
        if (fd >= 0) (void)shmp__os_close(fd);
        return fd == -1 ? fail_refused(self, number, id, reterr) : lose(self, -EPROTO, reterr);
    }
    if (fd == -1 || fd == -EPROTO) return lose(self, -EPROTO, reterr);
    self->held++;
    if (fd >= 0) {
        held->number = number;
        held->session = self->session;
        return fd;
    }
    take_back(self, number);
    return shmp__fail_os(reterr, fd, "recvmsg", "the descriptor of a segment from \"%s\"", self->address);
}

static int get(shmp__mapping *mapping, const shmp__request *request, const char *id, shmp_error *reterr) {
    served_provider *self = served(mapping->provider);
    int result = hold(mapped(mapping), -1, reterr);
    if (result < 0) return result;
    int taken = take_turn(self, reterr);
    int fd = taken < 0 ? taken : fetch(self, request, id, mapped(mapping)->held, reterr);
    end_turn(self, taken);
    result = fd < 0 ? fd : attach_inner(mapping, fd, reterr);
    if (fd >= 0) (void)shmp__os_close(fd);
    if (result < 0) let_go(mapping->provider, mapped(mapping)->held);
    return result;
}

static int served_create(shmp__mapping *mapping, shmp_error *reterr) {
    const shmp__request request = {.kind = SHMP__NEW_MAP, .size = mapping->size};
    return get(mapping, &request, "", reterr);
}

static int served_attach(shmp__mapping *mapping, const char *id, shmp_error *reterr) {
    shmp__request request = {.kind = SHMP__EXISTING_MAP, .size = mapping->size};
    if (number_of(id) < 0) return fail_id("shmp_attach", id, reterr);
    memcpy(request.id, id, strcspn(id, ":"));
    return get(mapping, &request, id, reterr);
}

/* The descriptor is the segment, for which the service holds nothing more. */
static int served_attach_fd(shmp__mapping *mapping, int fd, const char *id, shmp_error *reterr) {
    int32_t number = number_of(id);
    if (*id && number < 0) return fail_id("shmp_attach_fd", id, reterr);
    int result = hold(mapped(mapping), number, reterr);
    if (result < 0) return result;
    result = attach_inner(mapping, fd, reterr);
    if (result < 0) let_go(mapping->provider, mapped(mapping)->held);
    return result;
}

static int served_clone(const shmp__mapping *of, shmp__mapping *mapping, shmp_error *reterr) {
    int result = shmp__wrap_clone(of, mapping, reterr);
    if (result < 0) return result;
    mapped(mapping)->held = ((const served_mapping *)of)->held;
    shmp__atomic_add(&mapped(mapping)->held->users, 1);
    return 0;
}

/* With the descriptor the connection stays, as with it the service would let go of the segment. */
static int served_persist(shmp__mapping *mapping, shmp_error *reterr) {
    served_provider *self = served(mapping->provider);
    int result = shmp__wrap_persist(mapping, reterr);
    if (result < 0) return result;
    int taken = take_turn(self, reterr);
    if (taken < 0) return taken;
    settle(self);
    if (is_current(self, mapped(mapping)->held)) {
        result = shmp__os_keep_on_exec(self->socket);
        if (result < 0) shmp__fail_os(reterr, result, "fcntl", "the connection to \"%s\"", self->address);
    }
    end_turn(self, taken);
    return result < 0 ? -SHMP_EOS : 0;
}

/* The service's trouble is not the caller's here: with it goes what it held. */
static int served_close(shmp__mapping *mapping, shmp_error *reterr) {
    int result = shmp__wrap_close(mapping, reterr);
    let_go(mapping->provider, mapped(mapping)->held);
    return result;
}

const shmp__ops shmp__served_ops = {
    .name = "served",
    .create_flags = SHMP_INHERIT,
    .provider_flags = SHMP_SERVE,
    .can = SHMP__CAN_WRAP | SHMP__CAN_ADDRESS,
    .provider_size = sizeof(served_provider),
    .mapping_size = sizeof(served_mapping),
    .open = served_open,
    .end = served_end,
    .pre_fork = served_pre_fork,
    .post_fork = served_post_fork,
    .accepts = served_accepts,
    .address = served_address,
    .hosts = served_hosts,
    .create = served_create,
    .attach = served_attach,
    .attach_fd = served_attach_fd,
    .clone = served_clone,
    .close = served_close,
    .unmap = shmp__wrap_unmap,
    .fileno = shmp__wrap_fileno,
    .persist = served_persist,
    .describe = served_describe,
    .locate = shmp__wrap_locate,
    .open_fd = shmp__wrap_open_fd,
    .users = shmp__wrap_users,
    .limits = shmp__wrap_limits,
};

#endif
