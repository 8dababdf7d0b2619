/* A program under test: reads sprites, a made-up picture format, and has one bug.
 *
 * A sprite is the letters SPRT and then chunks: a kind (1 byte), a length (1 byte) and so many bytes.
 *   H  width and height, each 1 to 16
 *   D  pixels, run-length coded: pairs of a count and a colour
 *   T  a keyword, NUL, and a text; after some pixels
 *
 * It knows nothing of the fuzzer: runtime.c calls it, and so would libFuzzer. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SIDE = 16 };

struct sprite {
    size_t pixels, filled;
    uint8_t pixel[SIDE * SIDE];
    char *text;
};

static int read_header(struct sprite *sprite, const uint8_t *data, size_t length) {
    if (sprite->pixels || length != 2) return -1;
    if (data[0] < 1 || data[0] > SIDE || data[1] < 1 || data[1] > SIDE) return -1;
    sprite->pixels = (size_t)data[0] * data[1];
    return 0;
}

static int read_pixels(struct sprite *sprite, const uint8_t *data, size_t length) {
    if (!sprite->pixels || length % 2) return -1;
    for (size_t at = 0; at < length; at += 2) {
        size_t count = data[at];
        if (count > sprite->pixels - sprite->filled) return -1;
        memset(sprite->pixel + sprite->filled, data[at + 1], count);
        sprite->filled += count;
    }
    return 0;
}

static int read_text(struct sprite *sprite, const uint8_t *data, size_t length) {
    if (!sprite->filled || sprite->text) return -1;
    sprite->text = malloc(length + 1);
    if (!sprite->text) return -1;
    memcpy(sprite->text, data, length);
    if (!memchr(data, 0, length)) {
        free(sprite->text); /* the planted bug: whoever calls read_sprite frees it again */
        return -1;
    }
    sprite->text[length] = 0;
    return 0;
}

static int read_sprite(struct sprite *sprite, const uint8_t *data, size_t size) {
    static const char signature[] = "SPRT";
    for (size_t at = 0; at < 4; at++)
        if (at >= size || data[at] != signature[at]) return -1;
    int result = 0;
    for (size_t at = 4; result == 0 && size - at >= 2;) {
        const uint8_t *chunk = data + at + 2;
        size_t length = data[at + 1];
        if (length > size - at - 2) return -1; /* cut short */
        switch (data[at]) {
        case 'H': result = read_header(sprite, chunk, length); break;
        case 'D': result = read_pixels(sprite, chunk, length); break;
        case 'T': result = read_text(sprite, chunk, length); break;
        default: break; /* of a later version */
        }
        at += 2 + length;
    }
    return result;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct sprite sprite = {0};
    (void)read_sprite(&sprite, data, size);
    free(sprite.text);
    return 0;
}
