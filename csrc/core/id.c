/* Ids as text. */
#include "core/core.h"
#include "os/os.h"

#include <limits.h>
#include <string.h>

const char *shmp__decimal(const char *text, unsigned long long max, unsigned long long *ret_value) {
    unsigned long long value = 0;
    const char *at = text;
    for (unsigned digit; (digit = (unsigned)*at - '0') <= 9; at++) {
        if (at - text == 19) return NULL; /* as many never overflow */
        value = value * 10 + digit;
    }
    if (at == text || value > max || (*text == '0' && at - text > 1)) return NULL;
    *ret_value = value;
    return at;
}

int shmp__decimal_id(const char *id) {
    unsigned long long value;
    const char *end = shmp__decimal(id, INT_MAX, &value);
    return end && !*end ? (int)value : -1;
}

int shmp__copy_id(char ret_id[SHMP__ID_SIZE], const char *text, size_t length, shmp_error *reterr) {
    if (length >= SHMP__ID_SIZE)
        return shmp__fail(reterr, SHMP_EID, "id", "\"%.40s\" has %zu bytes: 19 is the most", text, length);
    for (size_t i = 0; i < length; i++)
        if (text[i] <= ' ' || text[i] > '~')
            return shmp__fail(reterr, SHMP_EID, "id", "\"%.19s\": byte %zu is %#x: ids are printable ASCII", text, i,
                              (unsigned)(unsigned char)text[i]);
    memset(ret_id, 0, SHMP__ID_SIZE);
    memcpy(ret_id, text, length);
    return 0;
}

int shmp__random_letters(char *ret_letters, unsigned count, const char *alphabet, shmp_error *reterr) {
    unsigned char bytes[SHMP__ID_SIZE];
    size_t size = strlen(alphabet);
    int result = shmp__os_random(bytes, count);
    if (result < 0) return shmp__fail_os(reterr, result, shmp__os_random_call, "%u bytes for a name", count);
    for (unsigned i = 0; i < count; i++) ret_letters[i] = alphabet[bytes[i] % size]; /* 16 or 32: no bias */
    ret_letters[count] = 0;
    return 0;
}
