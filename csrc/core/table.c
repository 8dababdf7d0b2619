#include "core/table.h"
#include "os/os.h"

#include <stdlib.h>

/* Where the key is, or a free place for it. */
static size_t place_of(const shmp__table *table, unsigned long long key) {
    size_t at = (size_t)(key * 0x9e3779b97f4a7c15ull >> 32) & (table->room - 1);
    while (table->keys[at] && table->keys[at] != key) at = (at + 1) & (table->room - 1);
    return at;
}

static int grow(shmp__table *table) {
    shmp__table larger = {.count = table->count, .room = table->room ? 2 * table->room : 256};
    larger.keys = shmp__os_allocate(larger.room * sizeof *larger.keys);
    larger.values = larger.keys ? shmp__os_allocate(larger.room * sizeof *larger.values) : NULL;
    if (!larger.values) {
        free(larger.keys);
        return -1;
    }
    for (size_t i = 0; i < table->room; i++) {
        if (!table->keys[i]) continue;
        size_t at = place_of(&larger, table->keys[i]);
        larger.keys[at] = table->keys[i];
        larger.values[at] = table->values[i];
    }
    shmp__table_free(table);
    *table = larger;
    return 0;
}

int shmp__table_put(shmp__table *table, unsigned long long key, size_t value) {
    if (table->count >= table->room / 2 && grow(table) < 0) return -1;
    size_t at = place_of(table, key);
    if (table->keys[at]) return 0;
    table->keys[at] = key;
    table->values[at] = value;
    table->count++;
    return 1;
}

int shmp__table_get(const shmp__table *table, unsigned long long key, size_t *ret_value) {
    if (!table->room) return 0;
    size_t at = place_of(table, key);
    if (!table->keys[at]) return 0;
    *ret_value = table->values[at];
    return 1;
}

void shmp__table_free(shmp__table *table) {
    free(table->keys);
    free(table->values);
    *table = (shmp__table){.count = 0};
}
