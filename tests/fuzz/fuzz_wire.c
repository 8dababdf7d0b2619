/* Fuzzes what a service reads from anybody, without a socket: the first byte says what is done with the rest.
 *
 * Requests are read as they come, a byte at a time, and must mean the same as when they come at once; what they mean is
 * written and read again. They are then put to a registry, by one of three clients, with few limits; every number that
 * it gives must be right by the count of references that is kept here, and nothing may be left in the end. */
#include "holds.h"
#include "service/registry.h"

#include <stdint.h>
#include <string.h>

enum { CLIENTS = 3, MOST_FRAME = 64, MOST_NUMBERS = 256, SEGMENTS = 24 };

static unsigned references[CLIENTS][MOST_NUMBERS]; /* by number of the segment */

static void check_reply(int32_t number) {
    char text[SHMP__REPLY_ROOM];
    int32_t again;
    size_t length = shmp__reply_write(number, text);
    HOLDS(length > 0 && length <= SHMP__REPLY_ROOM && shmp__reply_read(text, length, &again) && again == number);
}

static void check_any_reply(const char *text, size_t length) {
    char again[SHMP__REPLY_ROOM];
    int32_t number;
    if (shmp__reply_read(text, length, &number)) HOLDS(shmp__reply_write(number, again) <= sizeof again);
}

static void check_again(const shmp__request *request) {
    unsigned char bytes[SHMP__REQUEST_ROOM];
    shmp__request again;
    size_t frame, length = shmp__request_write(request, bytes);
    HOLDS(length <= sizeof bytes && shmp__request_read(bytes, length, MOST_FRAME, &again, &frame) == 1);
    HOLDS(frame == length && again.kind == request->kind && again.size == request->size);
    HOLDS(again.number == request->number && memcmp(again.id, request->id, sizeof again.id) == 0);
}

/* As shmp__request_read, of all that there is; nothing shorter may have said anything else. */
static int read_request(const uint8_t *bytes, size_t length, shmp__request *ret_request, size_t *ret_frame) {
    shmp__request early;
    size_t frame, at = 0;
    int found = 0, result = shmp__request_read(bytes, length, MOST_FRAME, ret_request, ret_frame);
    for (; at <= length && found == 0; at++) found = shmp__request_read(bytes, at, MOST_FRAME, &early, &frame);
    HOLDS(found == result);
    HOLDS(result != 0 || length < SHMP__REQUEST_ROOM);
    if (result != 1) return result;
    HOLDS(at - 1 <= SHMP__REQUEST_ROOM && frame == *ret_frame && frame >= at - 1);
    HOLDS(memcmp(&early, ret_request, sizeof early) == 0);
    check_again(ret_request);
    return 1;
}

/* ---- The registry ---- */

static unsigned count_of(int number) {
    unsigned count = 0;
    for (int i = 0; i < CLIENTS; i++) count += references[i][number];
    return count;
}

static size_t held_by(int who) {
    size_t count = 0;
    for (int i = 0; i < MOST_NUMBERS; i++) count += references[who][i];
    return count;
}

/* What is announced for a child is in no client's hands, so that counts are at least those that are kept here. */
static void check_answer(const shmp__registry *registry, const shmp__holder *clients, int who,
                         const shmp__request *request, int answer, int fd) {
    check_reply(answer);
    switch (request->kind) {
    case SHMP__NEW_MAP:
    case SHMP__EXISTING_MAP:
        HOLDS((answer > 0) == (fd >= 0));
        if (answer > 0) references[who][answer]++;
        break;
    case SHMP__DEREGISTER:
        HOLDS(fd < 0 && answer >= 0);
        if (answer == 0) {
            HOLDS(request->number <= 0 || request->number >= MOST_NUMBERS || references[who][request->number] == 0);
        } else {
            HOLDS(references[who][request->number] > 0);
            HOLDS((unsigned)answer >= count_of(request->number));
            references[who][request->number]--;
        }
        break;
    case SHMP__HELLO:
    case SHMP__PRE_FORK: HOLDS(fd < 0 && answer == clients[who].number); break;
    case SHMP__POST_FORK_CHILD_HELLO:
    case SHMP__EXIT: HOLDS(fd < 0); break;
    }
    HOLDS(registry->segments <= CLIENTS * 2 * SEGMENTS);
}

static void put_to_registry(shmp__registry *registry, const uint8_t *data, size_t length) {
    shmp__holder clients[CLIENTS] = {{.references = 0}};
    shmp__request request;
    long long now = 1;
    size_t frame;
    int fd, is_exact = 1;
    memset(references, 0, sizeof references);
    while (length > 1 && registry->last_segment < MOST_NUMBERS - 1) {
        int who = data[0] % CLIENTS;
        now += data[0] / CLIENTS % 8;
        if (data[0] >> 7 && data[0] >> 6 & 1) { /* it ends */
            shmp__registry_leave(registry, &clients[who], now);
            clients[who] = (shmp__holder){.references = 0};
            memset(references[who], 0, sizeof references[who]);
        }
        (void)shmp__registry_expire(registry, now);
        data++, length--;
        if (read_request(data, length, &request, &frame) != 1 || frame > length) break;
        int answer = shmp__registry_answer(registry, &clients[who], &request, now, &fd);
        if (request.kind == SHMP__POST_FORK_CHILD_HELLO && answer > 0) is_exact = 0; /* from now on it holds more */
        if (is_exact) {
            check_answer(registry, clients, who, &request, answer, fd);
            HOLDS(clients[who].references == held_by(who));
        }
        HOLDS(clients[who].references <= SEGMENTS && clients[who].bytes <= registry->max_bytes * 2);
        data += frame, length -= frame;
    }
    for (int i = 0; i < CLIENTS; i++) shmp__registry_leave(registry, &clients[i], now);
    (void)shmp__registry_expire(registry, now += 1000); /* what was announced goes, and may linger */
    HOLDS(shmp__registry_expire(registry, now + 1000) == -1);
    HOLDS(registry->segments == 0 && registry->bytes == 0 && registry->references == 0);
    HOLDS(registry->lingering == 0 && registry->lingering_bytes == 0 && registry->announced == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length) {
    static shmp_provider *inner; /* opening one takes longer than the rest */
    shmp__request request;
    size_t frame;
    if (length < 1) return -1;
    (void)read_request(data + 1, length - 1, &request, &frame);
    check_any_reply((const char *)data + 1, length - 1);
    if (data[0] % 4 == 0) return 0; /* the parser alone is a hundred times as fast */
    if (!inner) HOLDS(shmp_provider_open("memfd", NULL, &inner, NULL) == 0);
    shmp__registry registry = {.inner = inner,
                               .linger_ms = data[0] % 4 == 1 ? 0 : 5,
                               .fork_timeout_ms = 20,
                               .max_segments = SEGMENTS,
                               .max_announced = CLIENTS,
                               .max_bytes = 1 << 20};
    HOLDS(shmp__registry_open(&registry) == 0);
    put_to_registry(&registry, data + 1, length - 1);
    shmp__registry_close(&registry);
    return 0;
}
