/* The wire of the service, which is that of the Rust crate: requests are frames (a length of four bytes, big-endian,
 * then what postcard makes of the request), replies are decimal numbers without a frame or an end. No system calls. */
#ifndef SHMP_WIRE_H
#define SHMP_WIRE_H

#include <stddef.h>
#include <stdint.h>

/* What a frame's first byte says. */
typedef enum shmp__request_kind {
    SHMP__NEW_MAP,               /* size */
    SHMP__EXISTING_MAP,          /* size, id */
    SHMP__DEREGISTER,            /* number: the segment */
    SHMP__HELLO,                 /* */
    SHMP__PRE_FORK,              /* */
    SHMP__POST_FORK_CHILD_HELLO, /* number: the parent's client number */
    SHMP__EXIT                   /* has no reply */
} shmp__request_kind;

enum {
    SHMP__WIRE_ID_SIZE = 20,
    SHMP__REQUEST_ROOM = 4 + 5 + 10 + SHMP__WIRE_ID_SIZE, /* header, kind, size and id: each as long as it may be */
    SHMP__REPLY_ROOM = 20                                 /* what the Rust crate receives at most */
};

typedef struct shmp__request {
    shmp__request_kind kind;
    uint64_t size;
    int32_t number;
    char id[SHMP__WIRE_ID_SIZE]; /* padded with zeros; from others it is anything */
} shmp__request;

/* Gives the length. */
size_t shmp__request_write(const shmp__request *request, unsigned char ret_bytes[SHMP__REQUEST_ROOM]);

/* Reads the request at the beginning of what has come so far.
 * @param max_frame  the longest body that is waited for.
 * @param ret_frame  the length of the whole frame. What follows the request in it means nothing, and need not have come
 *                   yet.
 * @return 1; 0 more has to come, of at most SHMP__REQUEST_ROOM bytes; -1 it is no request, whatever follows. */
int shmp__request_read(const unsigned char *bytes, size_t length, size_t max_frame, shmp__request *ret_request,
                       size_t *ret_frame);

/* Gives the length; there is no NUL. */
size_t shmp__reply_write(int32_t number, char ret_text[SHMP__REPLY_ROOM]);

/* Non-zero: it is a decimal number, to its end or the first NUL. */
int shmp__reply_read(const char *text, size_t length, int32_t *ret_number);

#endif
