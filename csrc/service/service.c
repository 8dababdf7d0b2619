/* A service: one thread, which polls its sockets and answers what the registry knows. No connection is waited for: what
 * has come of a request is kept, and a reply that finds no room waits, with its connection. Replies have no frames: the
 * next one is made when the last one was read.
 *
 * The lock is the thread's but while it polls; who forks holds it from before to after. */
#include "os/platform.h"
#if SHMP_HAVE_UNIX
#include "os/os_service.h"
#include "service/patience.h"
#include "service/registry.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CLIENTS = 4096, /* the defaults */
    FRAME = 4096,
    SEGMENTS = 65536,
    FORK_TIMEOUT_MS = 60000,
    LOOKS = 400, /* at a client, before sleeping: 50 us */

    BUFFER = 2 * SHMP__REQUEST_ROOM,
    ACCEPTS = 64,   /* at once */
    UNREAD_MS = 10, /* until it is looked again whether a client has read its reply; no system tells of it */
    PAUSE_MS = 100, /* until connections are taken again, after the system could not give one */

    WAKE = 0, /* in `polled` */
    LISTENER,
    FIRST
};
static const unsigned long long bytes_of_one = 1ull << 40; /* the default of max_bytes */

typedef struct client client;

struct client {
    shmp__holder holder;
    size_t index;          /* in `polled` */
    long pid;              /* 0: it is not known */
    client *older, *newer; /* of those that have not asked for anything yet */
    int has_asked;
    int is_unread; /* it has to read a reply before it gets another */
    int is_whole;  /* all of `request` has come but for `missing` bytes, which mean nothing */
    shmp__request request;
    size_t missing, have;
    unsigned char bytes[BUFFER]; /* the first `have` came after that */
    int unsent_fd;
    size_t unsent; /* length of a reply that found no room */
    char reply[SHMP__REPLY_ROOM];
};

struct shmp_service {
    char address[SHMP__ADDRESS_ROOM];
    unsigned flags, max_clients, max_frame, idle_ms;
    unsigned mark; /* of the process that started it */
    long pid;
    pthread_t thread;
    pthread_mutex_t lock;
    int is_asked_to_stop, is_over;
    int wake[2], ended[2];
    int spare; /* a descriptor to give up for refusing a connection when there is no other; -1: it is gone */
    shmp__os_listener listener;
    struct pollfd *polled; /* FIRST + room; those that are used come first */
    client **clients;      /* room */
    size_t count, room;
    client *oldest_silent, *newest_silent;
    size_t unread;                      /* clients that have to read a reply */
    shmp__patience patience;            /* for requests */
    long long idle_since, accepts_from; /* accepts_from 0: at once */
    shmp__registry registry;
    unsigned long long accepted, requests, refused;
};

/* ---- Clients ---- */

static struct pollfd *polled_of(const shmp_service *service, const client *one) {
    return &service->polled[FIRST + one->index];
}

static int socket_of(const shmp_service *service, const client *one) { return polled_of(service, one)->fd; }

static void put_silent(shmp_service *service, client *one) {
    one->older = service->newest_silent;
    *(one->older ? &one->older->newer : &service->oldest_silent) = one;
    service->newest_silent = one;
}

static void take_silent(shmp_service *service, client *one) {
    *(one->older ? &one->older->newer : &service->oldest_silent) = one->newer;
    *(one->newer ? &one->newer->older : &service->newest_silent) = one->older;
    one->older = one->newer = NULL;
}

/* 0: memory is short, and what was there is as it was. */
static int enlarge(shmp_service *service) {
    size_t room = service->room ? 2 * service->room : 64;
    struct pollfd *polled = shmp__os_enlarge(service->polled, (FIRST + room) * sizeof *polled);
    if (polled) service->polled = polled;
    client **clients = polled ? shmp__os_enlarge(service->clients, room * sizeof(client *)) : NULL;
    if (!clients) return 0;
    service->clients = clients;
    service->room = room;
    return 1;
}

/* NULL: memory is short. */
static client *add_client(shmp_service *service, int socket, long pid) {
    client *one = shmp__os_allocate(sizeof *one);
    if (!one) return NULL;
    if (service->count == service->room && !enlarge(service)) {
        free(one);
        return NULL;
    }
    one->index = service->count;
    one->pid = pid;
    service->clients[one->index] = one;
    service->count++;
    *polled_of(service, one) = (struct pollfd){.fd = socket, .events = POLLIN};
    put_silent(service, one);
    return one;
}

static void set_unread(shmp_service *service, client *one, int is_unread) {
    service->unread += (size_t)is_unread - (size_t)one->is_unread;
    one->is_unread = is_unread;
    polled_of(service, one)->events = is_unread ? 0 : POLLIN;
}

/* The last one takes its place. */
static void drop_client(shmp_service *service, client *one, long long now) {
    if (!one->has_asked) take_silent(service, one);
    set_unread(service, one, 0);
    (void)shmp__os_close(socket_of(service, one));
    shmp__registry_leave(&service->registry, &one->holder, now);
    client *last = service->clients[--service->count];
    *polled_of(service, one) = *polled_of(service, last);
    service->clients[one->index] = last;
    last->index = one->index;
    free(one);
    if (service->count == 0) service->idle_since = now;
}

/* ---- Requests ---- */

/* 1: sent, or kept until there is room; 0: the client has gone; -1: the system does not send that descriptor. */
static int send_reply(shmp_service *service, client *one, const char *text, size_t length, int fd) {
    int result = shmp__os_send(socket_of(service, one), text, length, fd);
    if (result == 0) return 1;
    if (result != -EAGAIN) return fd >= 0 && result != -EPIPE && result != -ECONNRESET ? -1 : 0;
    memcpy(one->reply, text, length);
    one->unsent = length;
    one->unsent_fd = fd;
    polled_of(service, one)->events = POLLOUT;
    return 1;
}

static int send_unsent(shmp_service *service, client *one) {
    int result = shmp__os_send(socket_of(service, one), one->reply, one->unsent, one->unsent_fd);
    if (result == -EAGAIN) return 1;
    if (result < 0) return 0;
    one->unsent = 0;
    polled_of(service, one)->events = POLLIN;
    return 1;
}

/* 0: the client is to be dropped. */
static int answer(shmp_service *service, client *one, long long now) {
    const shmp__request *request = &one->request;
    char text[SHMP__REPLY_ROOM];
    int fd, is_first = !one->has_asked;
    service->requests++;
    if (is_first) take_silent(service, one);
    one->has_asked = 1;
    if (request->kind == SHMP__EXIT) { /* it has no reply */
        if (is_first && one->pid == service->pid) service->is_over = 1;
        service->refused += !service->is_over;
        return 0;
    }
    int number = shmp__registry_answer(&service->registry, &one->holder, request, now, &fd);
    int result = send_reply(service, one, text, shmp__reply_write(number, text), fd);
    if (result < 0) {
        (void)shmp__registry_release(&service->registry, &one->holder, number, now);
        number = -SHMP_EOS;
        result = send_reply(service, one, text, shmp__reply_write(number, text), -1);
    }
    service->refused += number < 0;
    return result;
}

static void consume(client *one, size_t length) {
    one->have -= length;
    memmove(one->bytes, one->bytes + length, one->have);
}

/* 1: there is a request; 0: not yet; -1: there never will be. */
static int next_request(const shmp_service *service, client *one) {
    if (!one->is_whole) {
        int result = shmp__request_read(one->bytes, one->have, service->max_frame, &one->request, &one->missing);
        if (result != 1) return result;
        one->is_whole = 1;
    }
    size_t there = one->missing < one->have ? one->missing : one->have;
    consume(one, there);
    one->missing -= there;
    return one->missing == 0;
}

/* Answers what has come. 0: the client is to be dropped. */
static int answer_all(shmp_service *service, client *one, long long now) {
    for (;;) {
        int result = next_request(service, one);
        if (result <= 0) {
            service->refused += result < 0;
            return result == 0;
        }
        if (one->has_asked && shmp__os_unread(socket_of(service, one)) > 0) {
            set_unread(service, one, 1);
            return 1;
        }
        one->is_whole = 0;
        if (!answer(service, one, now)) return 0;
        if (one->unsent > 0) return 1;
    }
}

/* 0: the client is to be dropped. */
static int receive(shmp_service *service, client *one, long long now) {
    int got = shmp__os_receive(socket_of(service, one), one->bytes + one->have, sizeof one->bytes - one->have, NULL);
    if (got == -EAGAIN) return 1;
    if (got <= 0) return 0;
    one->have += (size_t)got;
    return answer_all(service, one, now);
}

/* Does what can be done for a client; returns 0 when it was dropped. */
static int serve(shmp_service *service, client *one, int events, long long now) {
    int is_alive = 1;
    if (one->unsent > 0) {
        if (events) is_alive = send_unsent(service, one);
        if (is_alive && one->unsent == 0) is_alive = answer_all(service, one, now);
    } else if (one->is_unread) {
        is_alive = !(events & (POLLERR | POLLHUP | POLLNVAL));
        if (is_alive && shmp__os_unread(socket_of(service, one)) == 0) {
            set_unread(service, one, 0);
            is_alive = answer_all(service, one, now);
        }
    } else if (events) {
        is_alive = receive(service, one, now);
    }
    if (!is_alive) drop_client(service, one, now);
    return is_alive;
}

/* ---- Connections ---- */

/* Makes place for another one, at the cost of who has been silent for the longest time. 0: all have asked. */
static int drop_silent(shmp_service *service, long long now) {
    const size_t before = service->count;
    while (service->oldest_silent && service->count == before) {
        client *one = service->oldest_silent;
        if (serve(service, one, POLLIN, now) && one == service->oldest_silent) {
            service->refused++;
            drop_client(service, one, now);
        }
    }
    return service->count < before;
}

/* Takes a connection and ends it, so that nobody waits for nothing. 0: not even that can be done. */
static int refuse_one(shmp_service *service) {
    if (service->spare < 0) return 0;
    (void)shmp__os_close(service->spare);
    int socket = shmp__os_accept(service->listener.socket);
    if (socket >= 0) (void)shmp__os_close(socket);
    service->spare = shmp__os_dup(service->wake[0]);
    service->refused++;
    return socket >= 0;
}

static int is_welcome(const shmp_service *service, int socket, long *ret_pid) {
    shmp__os_peer peer;
    if (shmp__os_peer_of(socket, &peer) < 0) return 0;
    *ret_pid = peer.pid;
    return service->flags & SHMP_ANY_USER || peer.user == 0 || peer.user == shmp__os_user();
}

static void take_connection(shmp_service *service, int socket, long long now) {
    long pid = 0;
    if (service->spare < 0) service->spare = shmp__os_dup(service->wake[0]);
    int has_place = service->count < service->max_clients || drop_silent(service, now);
    client *one = has_place && is_welcome(service, socket, &pid) ? add_client(service, socket, pid) : NULL;
    if (!one) {
        service->refused++;
        (void)shmp__os_close(socket);
        return;
    }
    service->accepted++;
    (void)serve(service, one, POLLIN, now); /* most have asked by now */
}

static void take_connections(shmp_service *service, long long now) {
    for (int i = 0; i < ACCEPTS && !service->is_over; i++) {
        int socket = shmp__os_accept(service->listener.socket);
        if (socket == -EAGAIN) return;
        if (socket >= 0) {
            take_connection(service, socket, now);
        } else if (!shmp__os_is_shortage(socket) || !(drop_silent(service, now) || refuse_one(service))) {
            service->accepts_from = now + PAUSE_MS;
            service->polled[LISTENER].fd = -1;
            return;
        }
    }
}

/* ---- The thread ---- */

static long long sooner(long long due, long long other) { return due < 0 || (other >= 0 && other < due) ? other : due; }

/* When there is something to do even if nobody asks; -1: never. Ends what has had its time. */
static long long next_due(shmp_service *service, long long now) {
    long long due = shmp__registry_expire(&service->registry, now);
    if (service->unread > 0) due = sooner(due, now + UNREAD_MS);
    if (service->accepts_from > 0) {
        if (service->accepts_from <= now) {
            service->accepts_from = 0;
            service->polled[LISTENER].fd = service->listener.socket;
        } else {
            due = sooner(due, service->accepts_from);
        }
    }
    if (service->idle_ms > 0 && service->count == 0 && due < 0) { /* nothing lingers, and nobody is awaited */
        due = service->idle_since + service->idle_ms;
        service->is_over = due <= now;
    }
    return due;
}

/* Whether something has come. */
static int look_for_events(shmp_service *service, size_t count) {
    int has_come = 0;
    if (!shmp__patience_lasts(&service->patience)) return 0;
    for (size_t looks = LOOKS / count; looks > 0 && !has_come; looks--)
        has_come = shmp__os_poll(service->polled, count, 0) > 0;
    shmp__patience_learn(&service->patience, has_come);
    return has_come;
}

/* A system that does not poll so many, as the limit of open files is lower by now, is asked one by one. */
static void wait_for_events(shmp_service *service, long long timeout_ms) {
    const size_t count = FIRST + service->count;
    if (timeout_ms != 0 && service->count > 0 && look_for_events(service, count)) return;
    if (shmp__os_poll(service->polled, count, timeout_ms) >= 0) return;
    for (size_t i = 0; i < count; i++) service->polled[i].revents = service->polled[i].events;
    for (int i = 0; i < UNREAD_MS; i++) shmp__os_pause();
}

static void handle_events(shmp_service *service, long long now) {
    char byte;
    if (service->polled[WAKE].revents) (void)shmp__os_read(service->wake[0], &byte, sizeof byte);
    for (size_t i = service->count; i-- > 0 && !service->is_over;) { /* who is dropped is replaced by a later one */
        client *one = service->clients[i];
        const int events = polled_of(service, one)->revents;
        if (events || one->is_unread) (void)serve(service, one, events, now);
    }
    if (service->polled[LISTENER].revents && !service->is_over) take_connections(service, now);
}

/* All descriptors but those of shmp_service_wait. A forked child has copies, and ends nothing for its parent. */
static void close_all(shmp_service *service, int is_child) {
    const long long now = shmp__os_ticks();
    if (!is_child) shmp__os_shut_down(service->listener.socket);
    shmp__os_unlisten(&service->listener, !is_child);
    while (service->count > 0) {
        client *last = service->clients[service->count - 1];
        if (!is_child) shmp__os_shut_down(socket_of(service, last));
        drop_client(service, last, now);
    }
    shmp__registry_close(&service->registry);
    if (service->spare >= 0) (void)shmp__os_close(service->spare);
    (void)shmp__os_close(service->wake[0]);
    (void)shmp__os_close(service->wake[1]);
    service->spare = service->wake[0] = service->wake[1] = -1;
}

static void *run(void *context) {
    shmp_service *service = context;
    (void)pthread_mutex_lock(&service->lock);
    service->idle_since = shmp__os_ticks();
    for (;;) {
        long long now = shmp__os_ticks(), due = next_due(service, now);
        if (service->is_over || service->is_asked_to_stop) break;
        (void)pthread_mutex_unlock(&service->lock);
        wait_for_events(service, due < 0 ? -1 : due - now);
        (void)pthread_mutex_lock(&service->lock);
        handle_events(service, shmp__os_ticks());
    }
    service->is_over = 1;
    close_all(service, 0);
    (void)shmp__os_write(service->ended[1], "", 1);
    (void)pthread_mutex_unlock(&service->lock);
    return NULL;
}

/* ---- Starting ---- */

static int take_options(const shmp_service_options *given, shmp_service_options *ret_options, shmp_error *reterr) {
    int result = shmp__take_options(given, SHMP__LEAST_SIZE(shmp_service_options, address), ret_options,
                                    sizeof *ret_options, "shmp_service_options", reterr);
    if (result < 0) return result;
    if (ret_options->flags & ~(unsigned)SHMP_ANY_USER)
        return shmp__fail(reterr, SHMP_EINVAL, "options.flags", "%#x: a service knows %#x only", ret_options->flags,
                          SHMP_ANY_USER);
    if (ret_options->reserved)
        return shmp__fail(reterr, SHMP_EINVAL, "options.reserved", "%u: it is 0", ret_options->reserved);
    return 0;
}

static int can_serve(const shmp_provider *inner) {
    return inner->ops->create_flags & SHMP_UNMAPPED && inner->ops->fileno;
}

/* The given one, or one like it whose segments bear no names: those of a service that was killed would stay. */
static int open_inner(shmp_provider *given, shmp_provider **ret_inner, shmp_error *reterr) {
    if (!given) return shmp__open_descriptors(0, ret_inner, reterr);
    if (given->ops->route) given = given->ops->route(given, NULL, NULL);
    if (!can_serve(given))
        return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_service_start",
                          "%s has no descriptors to hand out: memfd and posix have", given->ops->name);
    const shmp_provider_options options = {.struct_size = sizeof options, .flags = given->flags | SHMP_FD_IDS};
    if (given->ops->provider_flags & SHMP_FD_IDS && !(given->flags & SHMP_FD_IDS))
        return shmp__provider_open(given->ops, &options, ret_inner, reterr);
    *ret_inner = shmp_provider_ref(given);
    return 0;
}

static int fail_start(shmp_error *reterr, int os_error, const char *call, const char *address) {
    const char *remedy = "";
    switch (-os_error) {
    case EADDRINUSE: remedy = ": a service is there already: clients use that one"; break;
    case EEXIST: remedy = ": something is there that is no socket: take another address"; break;
    case ENOENT: remedy = ": there is no such folder"; break;
    case ENAMETOOLONG: remedy = ": an address has at most 103 bytes"; break;
    case EAFNOSUPPORT: remedy = ": only Linux has abstract sockets: take a path"; break;
    case EPERM: remedy = ": others may write there, or it is another user's"; break;
    }
    shmp__fail_os(reterr, os_error, call, "\"%.80s\"%s", address, remedy);
    if (os_error != -EADDRINUSE) return -SHMP_EOS;
    if (reterr) reterr->code = -SHMP_ESERVICE;
    return -SHMP_ESERVICE;
}

static int open_sockets(shmp_service *service, const char *address, shmp_error *reterr) {
    const char *call = "mkdir";
    int result = 0;
    if (!address)
        result = shmp__os_service_address(service->address);
    else if (strlen(address) < sizeof service->address)
        memcpy(service->address, address, strlen(address) + 1);
    else
        result = -ENAMETOOLONG;
    if (result == 0)
        result = shmp__os_listen(service->address, service->flags & SHMP_ANY_USER, &service->listener, &call);
    if (result < 0) return fail_start(reterr, result, call, address ? address : "(this user's own)");
    result = shmp__os_pipe(service->wake);
    if (result == 0) result = shmp__os_pipe(service->ended);
    if (result < 0) return shmp__fail_os(reterr, result, "pipe", "to wake the service");
    service->spare = shmp__os_dup(service->wake[0]);
    if (service->spare < 0) return shmp__fail_os(reterr, service->spare, "fcntl", "a spare descriptor");
    service->polled[WAKE] = (struct pollfd){.fd = service->wake[0], .events = POLLIN};
    service->polled[LISTENER] = (struct pollfd){.fd = service->listener.socket, .events = POLLIN};
    return 0;
}

static void set_limits(shmp_service *service, const shmp_service_options *options) {
    service->flags = options->flags;
    service->idle_ms = options->idle_ms;
    service->max_clients = options->max_clients ? options->max_clients : CLIENTS;
    service->max_frame = options->max_frame ? options->max_frame : FRAME;
    service->registry.linger_ms = options->linger_ms;
    service->registry.fork_timeout_ms = options->fork_timeout_ms ? options->fork_timeout_ms : FORK_TIMEOUT_MS;
    service->registry.max_segments = options->max_segments ? options->max_segments : SEGMENTS;
    service->registry.max_announced = service->max_clients;
    service->registry.max_bytes = options->max_bytes ? options->max_bytes : bytes_of_one;
}

static void close_if_open(int fd) {
    if (fd >= 0) (void)shmp__os_close(fd);
}

/* What is there of one that does not run. */
static void release(shmp_service *service) {
    if (service->listener.socket >= 0) shmp__os_unlisten(&service->listener, 1);
    close_if_open(service->wake[0]);
    close_if_open(service->wake[1]);
    close_if_open(service->ended[0]);
    close_if_open(service->ended[1]);
    close_if_open(service->spare);
    if (service->registry.buckets) shmp__registry_close(&service->registry);
    shmp_provider_close(service->registry.inner);
    free(service->polled);
    free(service->clients);
    free(service);
}

static int start(shmp_service *service, const char *address, shmp_error *reterr) {
    if (!enlarge(service) || shmp__registry_open(&service->registry) < 0)
        return shmp__fail(reterr, SHMP_ENOMEM, "malloc", "for a service");
    int result = open_sockets(service, address, reterr);
    if (result < 0) return result;
    result = shmp__os_lock_make(&service->lock);
    if (result < 0) return shmp__fail_os(reterr, result, "pthread_mutex_init", "for a service");
    result = shmp__os_thread_start(run, service, &service->thread);
    if (result == 0) return 0;
    (void)pthread_mutex_destroy(&service->lock);
    return shmp__fail_os(reterr, result, "pthread_create", "for a service: raise ulimit -u or the container's limit");
}

int shmp_service_start(shmp_provider *inner, const shmp_service_options *given, shmp_service **ret_service,
                       shmp_error *reterr) {
    shmp_service_options options = {.struct_size = sizeof options};
    if (!ret_service) return shmp__fail(reterr, SHMP_EINVAL, "shmp_service_start", "NULL argument");
    int result = given ? take_options(given, &options, reterr) : 0;
    if (result < 0) return result;
    shmp_service *service = shmp__os_allocate(sizeof *service);
    if (!service) return shmp__fail(reterr, SHMP_ENOMEM, "malloc", "%zu bytes", sizeof *service);
    service->listener.socket = service->wake[0] = service->wake[1] = service->ended[0] = service->ended[1] = -1;
    service->spare = -1;
    set_limits(service, &options);
    result = open_inner(inner, &service->registry.inner, reterr);
    if (result == 0) {
        service->mark = shmp__process_mark(service->registry.inner);
        service->pid = shmp__os_pid();
        result = start(service, options.address, reterr);
    }
    if (result < 0)
        release(service);
    else
        *ret_service = service;
    return result;
}

/* ---- The handle ---- */

static int is_here(const shmp_service *service) { return service->mark == shmp__process_mark(service->registry.inner); }

/* In a forked child, whose parent may have been in the middle of something, if it did not hold the service still. */
static void leave_to_parent(shmp_service *service) {
    if (service->listener.socket >= 0) close_all(service, 1);
    service->is_over = 1;
}

int shmp_service_stop(shmp_service *service, shmp_error *reterr) {
    (void)reterr;
    if (!service) return 0;
    if (is_here(service)) {
        (void)pthread_mutex_lock(&service->lock);
        service->is_asked_to_stop = 1;
        if (!service->is_over) (void)shmp__os_write(service->wake[1], "", 1);
        (void)pthread_mutex_unlock(&service->lock);
        (void)shmp__os_thread_join(service->thread);
        (void)pthread_mutex_destroy(&service->lock);
    } else if (pthread_mutex_trylock(&service->lock) == 0) {
        leave_to_parent(service);
        (void)pthread_mutex_unlock(&service->lock);
    } else { /* what the parent was doing is unfinished for ever here: it is left as it is, and nobody is kept waiting
              */
        shmp__os_unlisten(&service->listener, 0);
        return 0;
    }
    release(service);
    return 0;
}

const char *shmp_service_address(const shmp_service *service) { return service->address; }

int shmp_service_wait(shmp_service *service, unsigned timeout_ms) {
    struct pollfd ended = {.fd = service->ended[0], .events = POLLIN};
    return !is_here(service) || shmp__os_poll(&ended, 1, timeout_ms) > 0;
}

int shmp_service_pre_fork(shmp_service *service, shmp_error *reterr) {
    if (!service) return shmp__fail(reterr, SHMP_EINVAL, "shmp_service_pre_fork", "NULL argument");
    (void)pthread_mutex_lock(&service->lock);
    return 0;
}

int shmp_service_post_fork(shmp_service *service, int is_child, shmp_error *reterr) {
    if (!service) return shmp__fail(reterr, SHMP_EINVAL, "shmp_service_post_fork", "NULL argument");
    if (is_child) leave_to_parent(service);
    (void)pthread_mutex_unlock(&service->lock);
    return 0;
}

int shmp_service_get_stats(shmp_service *service, shmp_service_stats *ret_stats, shmp_error *reterr) {
    if (!service || !ret_stats) return shmp__fail(reterr, SHMP_EINVAL, "shmp_service_get_stats", "NULL argument");
    const size_t room = ret_stats->struct_size;
    if (room < SHMP__LEAST_SIZE(shmp_service_stats, refused))
        return shmp__fail(reterr, SHMP_EINVAL, "stats.struct_size", "%zu: set it to sizeof(shmp_service_stats)", room);
    (void)pthread_mutex_lock(&service->lock);
    const shmp_service_stats stats = {.struct_size = room < sizeof stats ? room : sizeof stats,
                                      .clients = service->count,
                                      .segments = service->registry.segments,
                                      .bytes = service->registry.bytes,
                                      .accepted = service->accepted,
                                      .requests = service->requests,
                                      .refused = service->refused};
    (void)pthread_mutex_unlock(&service->lock);
    memcpy(ret_stats, &stats, stats.struct_size);
    return 0;
}

#endif
