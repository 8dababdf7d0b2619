/* A hash table of numbers other than 0, such as inodes. Zeroed it is empty. */
#ifndef SHMP_TABLE_H
#define SHMP_TABLE_H

#include <stddef.h>

typedef struct shmp__table {
    unsigned long long *keys;
    size_t *values;
    size_t count, room;
} shmp__table;

/* 1: it is new there; 0: it was there, and keeps its value; -1: memory is short. */
int shmp__table_put(shmp__table *table, unsigned long long key, size_t value);

/* Whether the key is there. */
int shmp__table_get(const shmp__table *table, unsigned long long key, size_t *ret_value);

void shmp__table_free(shmp__table *table);

#endif
