/* System calls of Unix for the service and its clients: sockets, a thread, a lock. As in os_unix.h, they give the
 * result, or -errno, and descriptors are close-on-exec. These here never block, but for those with a time limit. */
#ifndef SHMP_OS_SERVICE_H
#define SHMP_OS_SERVICE_H

#include "os/os_unix.h"

#include <poll.h>
#include <pthread.h>

enum { SHMP__ADDRESS_ROOM = 104 }; /* what the systems have in common */

/* Where this user's own service is. Makes the folder that it is in; one that others may have made is refused. */
int shmp__os_service_address(char ret_address[SHMP__ADDRESS_ROOM]);

typedef struct shmp__os_listener {
    int socket, folder;               /* folder: -1: an abstract one */
    unsigned long long device, inode; /* of the socket's file */
    char file[SHMP__ADDRESS_ROOM];    /* in the folder */
} shmp__os_listener;

/* Takes connections at an address: a path, or "@name" (Linux). The file that a service left there which has ended is
 * replaced. -EADDRINUSE: a living one is there. any_user: others than this one may connect.
 * Gives what failed, for messages, in *ret_call. */
int shmp__os_listen(const char *address, int any_user, shmp__os_listener *ret_listener, const char **ret_call);

/* Ends that, and removes the file if it is still this socket's; `remove` 0: a parent's is left alone. */
void shmp__os_unlisten(shmp__os_listener *listener, int remove);

/* -EAGAIN: there is none. */
int shmp__os_accept(int listener);

/* Waits while the service has its hands full; -ECONNREFUSED, -ENOENT: there is none. */
int shmp__os_connect(const char *address, unsigned timeout_ms);

typedef struct shmp__os_peer {
    unsigned long user;
    long pid; /* 0: this system does not tell; of a listener, who made it listen */
} shmp__os_peer;
int shmp__os_peer_of(int socket, shmp__os_peer *ret_peer);

/* All of it, or -errno: -EAGAIN: there is no room. `fd`: sent along; -1: none. */
int shmp__os_send(int socket, const void *bytes, size_t length, int fd);

/* One recvmsg. 0: the other side has closed. ret_fd NULL: descriptors that come along are dropped; *ret_fd: the one
 * that came; -1: none did; -EPROTO: several did, and are closed; another error: there was no room for it. */
int shmp__os_receive(int socket, void *ret_bytes, size_t room, int *ret_fd);

/* Ends a connection, or listening, for all processes that have a descriptor of it, such as forked ones. */
void shmp__os_shut_down(int socket);

/* How much of what was sent the other side has not read yet; 0 also where the system does not tell. */
int shmp__os_unread(int socket);

/* As poll(); timeout_ms -1: none. Interrupted, it begins anew. */
int shmp__os_poll(struct pollfd *polled, size_t count, long long timeout_ms);

/* Two sockets that are connected with each other. */
int shmp__os_socket_pair(int ret_ends[2]);

/* Both ends never block. */
int shmp__os_pipe(int ret_ends[2]);
int shmp__os_read(int fd, void *ret_bytes, size_t room);
int shmp__os_write(int fd, const void *bytes, size_t length);

/* Milliseconds of a clock that nobody sets. */
long long shmp__os_ticks(void);

/* A thread that no signal of the process is delivered to. */
int shmp__os_thread_start(void *(*run)(void *context), void *context, pthread_t *ret_thread);
int shmp__os_thread_join(pthread_t thread);

int shmp__os_lock_make(pthread_mutex_t *ret_lock);

#endif
