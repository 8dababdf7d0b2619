/* The few atomics that the core and the binding need, in one place for compilers without C11's. */
#ifndef SHMP_ATOMIC_H
#define SHMP_ATOMIC_H

#include <stdatomic.h>
#include <stdint.h>

typedef atomic_uint shmp__atomic_uint;

static inline void shmp__atomic_set(shmp__atomic_uint *word, unsigned value) { atomic_init(word, value); }

static inline unsigned shmp__atomic_load(shmp__atomic_uint *word) {
    return atomic_load_explicit(word, memory_order_acquire);
}

/* Non-zero when `word` was *expected and is now `value`; else *expected is what it is. */
static inline int shmp__atomic_swap_if(shmp__atomic_uint *word, unsigned *expected, unsigned value) {
    return atomic_compare_exchange_strong_explicit(word, expected, value, memory_order_acq_rel, memory_order_acquire);
}

/* Both give the value before. */
static inline unsigned shmp__atomic_add(shmp__atomic_uint *word, unsigned value) {
    return atomic_fetch_add_explicit(word, value, memory_order_acq_rel);
}
static inline unsigned shmp__atomic_sub(shmp__atomic_uint *word, unsigned value) {
    return atomic_fetch_sub_explicit(word, value, memory_order_acq_rel);
}

typedef _Atomic uint64_t shmp__atomic_u64;

static inline uint64_t shmp__atomic_load64(shmp__atomic_u64 *word) {
    return atomic_load_explicit(word, memory_order_acquire);
}

/* Gives the value before. */
static inline uint64_t shmp__atomic_sub64(shmp__atomic_u64 *word, uint64_t value) {
    return atomic_fetch_sub_explicit(word, value, memory_order_acq_rel);
}

/* Non-zero when `word` was *expected and is now `value`; else *expected is what it is. May fail without reason. */
static inline int shmp__atomic_swap_if64(shmp__atomic_u64 *word, uint64_t *expected, uint64_t value) {
    return atomic_compare_exchange_weak_explicit(word, expected, value, memory_order_acq_rel, memory_order_acquire);
}

#endif
