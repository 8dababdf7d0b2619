/* Fuzzes what reads ids and variables, without a call of the system: "<id>\n<size>". An accepted text
 * is read once more here, in another way. */
#include "core/core.h"
#include "holds.h"

#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Gives what follows a decimal number of at most `max` as printf writes it. */
static const char *after_decimal(const char *text, unsigned long long max) {
    char again[24];
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    int length = snprintf(again, sizeof again, "%llu", value);
    HOLDS(errno == 0 && value <= max && end - text == length && memcmp(text, again, (size_t)length) == 0);
    return end;
}

/* Gives what follows a number of base 36 without signs, capitals and zeros in front. */
static const char *after_36(const char *text, unsigned long long max) {
    size_t digits = strspn(text, "0123456789abcdefghijklmnopqrstuvwxyz");
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 36);
    HOLDS(errno == 0 && value <= max && end == text + digits && (*text != '0' || digits == 1));
    return end;
}

static void check_memfd_id(const char *id) {
    const char *at = after_36(id, INT_MAX);
    HOLDS(*at == '.');
    at = after_36(at + 1, INT_MAX);
    HOLDS(*at == '.');
    at = after_36(at + 1, UINT32_MAX);
    HOLDS(*at == 0);
}

static void check_error(int result, const shmp_error *error) {
    HOLDS(result == error->code && error->call && *error->message);
    HOLDS(memchr(error->message, 0, sizeof error->message));
}

static void check_id(const char *id) {
    int number = shmp__decimal_id(id), accepting = 0;
    HOLDS(!!shmp__posix_ops.accepts(id) ==
          (id[0] == '/' && id[1] && !strchr(id + 1, '/') && strcmp(id, "/.") != 0 && strcmp(id, "/..") != 0));
    HOLDS(!!shmp__sysv_ops.accepts(id) == (number >= 0));
    for (unsigned i = 0; i < SHMP__MECHANISM_COUNT; i++) {
        const shmp__ops *ops = shmp__mechanism(i);
        accepting += ops && ops->accepts && ops->accepts(id);
    }
    HOLDS(accepting <= 1);
    if (number >= 0) HOLDS(*after_decimal(id, INT_MAX) == 0);
    if (shmp__memfd_ops.accepts(id)) check_memfd_id(id);
}

static void check_copy(const char *text, size_t length) {
    char id[SHMP__ID_SIZE];
    shmp_error error;
    int result = shmp__copy_id(id, text, length, &error);
    int fits = length < sizeof id;
    for (size_t i = 0; fits && i < length; i++) fits = text[i] > ' ' && text[i] <= '~';
    HOLDS((result == 0) == fits);
    if (result < 0) return check_error(result, &error);
    HOLDS(strlen(id) == length && memcmp(id, text, length) == 0);
    check_id(id);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length) {
    char text[80];
    shmp_description description;
    shmp_error error;
    if (length >= sizeof text) return -1;
    memcpy(text, data, length);
    text[length] = 0;
    check_copy(text, length);
    char *size = strchr(text, '\n');
    if (size) *size++ = 0;
    int result = shmp__env_parse("NAME", text, size, &description, &error);
    if (result < 0) {
        check_error(result, &error);
        return 0;
    }
    HOLDS(*after_decimal(size, SIZE_MAX) == 0 && description.size == strtoull(size, NULL, 10));
    HOLDS(strcmp(description.id, text) == 0);
    return 0;
}
