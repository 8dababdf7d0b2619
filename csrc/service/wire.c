#include "service/wire.h"

#include <string.h>

enum { HEADER = 4, LOW_BITS = 0x7f, MORE = 0x80 };

static uint32_t to_zigzag(int32_t number) { return (uint32_t)number << 1 ^ (number < 0 ? UINT32_MAX : 0); }
static int32_t from_zigzag(uint32_t number) { return (int32_t)(number >> 1) ^ -(int32_t)(number & 1); }

/* ---- Writing ---- */

static unsigned char *put_varint(unsigned char *at, uint64_t value) {
    for (; value > LOW_BITS; value >>= 7) *at++ = (unsigned char)(value | MORE);
    *at++ = (unsigned char)value;
    return at;
}

size_t shmp__request_write(const shmp__request *request, unsigned char ret_bytes[SHMP__REQUEST_ROOM]) {
    unsigned char *at = put_varint(ret_bytes + HEADER, request->kind);
    switch (request->kind) {
    case SHMP__NEW_MAP: at = put_varint(at, request->size); break;
    case SHMP__EXISTING_MAP:
        at = put_varint(at, request->size);
        memcpy(at, request->id, sizeof request->id);
        at += sizeof request->id;
        break;
    case SHMP__DEREGISTER:
    case SHMP__POST_FORK_CHILD_HELLO: at = put_varint(at, to_zigzag(request->number)); break;
    case SHMP__HELLO:
    case SHMP__PRE_FORK:
    case SHMP__EXIT: break;
    }
    size_t length = (size_t)(at - ret_bytes);
    const unsigned char header[HEADER] = {0, 0, 0, (unsigned char)(length - HEADER)};
    memcpy(ret_bytes, header, HEADER);
    return length;
}

/* ---- Reading ---- */

typedef struct reader {
    const unsigned char *at, *end; /* what has come */
    size_t body;                   /* what the frame has from `at` on */
} reader;

/* The first `length` bytes. 1; 0: they are still to come; -1: the frame is shorter. */
static int look(const reader *from, size_t length) {
    if (length > from->body) return -1;
    return length <= (size_t)(from->end - from->at);
}

static void skip(reader *from, size_t length) {
    from->at += length;
    from->body -= length;
}

/* A number of at most `bits` bits. Like postcard's, it may have zeros at its end that it need not have. */
static int take_varint(reader *from, unsigned bits, uint64_t *ret_value) {
    uint64_t value = 0;
    size_t length = 0;
    for (unsigned shift = 0; shift < bits; shift += 7) {
        int result = look(from, ++length);
        if (result <= 0) return result;
        unsigned byte = from->at[length - 1], room = bits - shift;
        if (room < 8 && byte >> room) return -1;
        value |= (uint64_t)(byte & LOW_BITS) << shift;
        if (byte & MORE) continue;
        skip(from, length);
        *ret_value = value;
        return 1;
    }
    return -1;
}

static int take_number(reader *from, int32_t *ret_number) {
    uint64_t value;
    int result = take_varint(from, 32, &value);
    if (result == 1) *ret_number = from_zigzag((uint32_t)value);
    return result;
}

static int take_id(reader *from, char ret_id[SHMP__WIRE_ID_SIZE]) {
    int result = look(from, SHMP__WIRE_ID_SIZE);
    if (result == 1) memcpy(ret_id, from->at, SHMP__WIRE_ID_SIZE);
    return result;
}

static int take_request(reader *from, shmp__request *ret_request) {
    uint64_t kind;
    int result = take_varint(from, 32, &kind);
    if (result <= 0) return result;
    if (kind > SHMP__EXIT) return -1;
    ret_request->kind = (shmp__request_kind)kind;
    switch (ret_request->kind) {
    case SHMP__NEW_MAP: return take_varint(from, 64, &ret_request->size);
    case SHMP__EXISTING_MAP:
        result = take_varint(from, 64, &ret_request->size);
        return result == 1 ? take_id(from, ret_request->id) : result;
    case SHMP__DEREGISTER:
    case SHMP__POST_FORK_CHILD_HELLO: return take_number(from, &ret_request->number);
    case SHMP__HELLO:
    case SHMP__PRE_FORK:
    case SHMP__EXIT: break;
    }
    return 1;
}

int shmp__request_read(const unsigned char *bytes, size_t length, size_t max_frame, shmp__request *ret_request,
                       size_t *ret_frame) {
    if (length < HEADER) return 0;
    size_t body = (size_t)bytes[0] << 24 | (size_t)bytes[1] << 16 | (size_t)bytes[2] << 8 | bytes[3];
    if (body > max_frame) return -1;
    shmp__request request = {.kind = SHMP__HELLO};
    reader from = {.at = bytes + HEADER, .end = bytes + length, .body = body};
    int result = take_request(&from, &request);
    if (result != 1) return result;
    *ret_request = request;
    *ret_frame = HEADER + body;
    return 1;
}

/* ---- Replies ---- */

size_t shmp__reply_write(int32_t number, char ret_text[SHMP__REPLY_ROOM]) {
    char reversed[SHMP__REPLY_ROOM];
    size_t digits = 0, length = 0;
    uint32_t value = number < 0 ? 0u - (uint32_t)number : (uint32_t)number;
    do reversed[digits++] = (char)('0' + value % 10);
    while (value /= 10);
    if (number < 0) ret_text[length++] = '-';
    while (digits > 0) ret_text[length++] = reversed[--digits];
    return length;
}

int shmp__reply_read(const char *text, size_t length, int32_t *ret_number) {
    const char *end = memchr(text, 0, length);
    if (end) length = (size_t)(end - text);
    int is_negative = length > 0 && *text == '-';
    int64_t value = 0;
    size_t first = (size_t)is_negative;
    if (length == first) return 0;
    for (size_t i = first; i < length; i++) {
        if (text[i] < '0' || text[i] > '9') return 0;
        value = value * 10 + (text[i] - '0');
        if (value > (int64_t)INT32_MAX + is_negative) return 0;
    }
    *ret_number = (int32_t)(is_negative ? -value : value);
    return 1;
}
