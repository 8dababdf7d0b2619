/* The few atomics that the core and the binding need, in one place: MSVC has no C11 atomics without a switch that
 * setuptools does not know. */
#ifndef SHMP_ATOMIC_H
#define SHMP_ATOMIC_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)

#include <intrin.h>

typedef long shmp__atomic_uint;

static inline void shmp__atomic_set(shmp__atomic_uint *word, unsigned value) { *word = (long)value; }

static inline unsigned shmp__atomic_load(shmp__atomic_uint *word) {
    return (unsigned)_InterlockedCompareExchange(word, 0, 0);
}

/* Non-zero when `word` was *expected and is now `value`; else *expected is what it is. */
static inline int shmp__atomic_swap_if(shmp__atomic_uint *word, unsigned *expected, unsigned value) {
    unsigned found = (unsigned)_InterlockedCompareExchange(word, (long)value, (long)*expected);
    int is_swapped = found == *expected;
    *expected = found;
    return is_swapped;
}

/* Both give the value before. */
static inline unsigned shmp__atomic_add(shmp__atomic_uint *word, unsigned value) {
    return (unsigned)_InterlockedExchangeAdd(word, (long)value);
}
static inline unsigned shmp__atomic_sub(shmp__atomic_uint *word, unsigned value) {
    return (unsigned)_InterlockedExchangeAdd(word, -(long)value);
}

typedef void *volatile shmp__atomic_pointer;

static inline void *shmp__atomic_load_pointer(shmp__atomic_pointer *word) {
    return _InterlockedCompareExchangePointer(word, NULL, NULL);
}

static inline int shmp__atomic_swap_pointer_if(shmp__atomic_pointer *word, void **expected, void *value) {
    void *found = _InterlockedCompareExchangePointer(word, value, *expected);
    int is_swapped = found == *expected;
    *expected = found;
    return is_swapped;
}

typedef __int64 shmp__atomic_u64;

/* A swap, as 32-bit machines have no other access of 64 bits at once. */
static inline uint64_t shmp__atomic_load64(shmp__atomic_u64 *word) {
    return (uint64_t)_InterlockedCompareExchange64(word, 0, 0);
}

/* Non-zero when `word` was *expected and is now `value`; else *expected is what it is. May fail without reason. */
static inline int shmp__atomic_swap_if64(shmp__atomic_u64 *word, uint64_t *expected, uint64_t value) {
    uint64_t found = (uint64_t)_InterlockedCompareExchange64(word, (__int64)value, (__int64)*expected);
    int is_swapped = found == *expected;
    *expected = found;
    return is_swapped;
}

/* Gives the value before. */
static inline uint64_t shmp__atomic_sub64(shmp__atomic_u64 *word, uint64_t value) {
    uint64_t before = shmp__atomic_load64(word);
    while (!shmp__atomic_swap_if64(word, &before, before - value)) continue;
    return before;
}

#else

#include <stdatomic.h>

typedef atomic_uint shmp__atomic_uint;

static inline void shmp__atomic_set(shmp__atomic_uint *word, unsigned value) { atomic_init(word, value); }

static inline unsigned shmp__atomic_load(shmp__atomic_uint *word) {
    return atomic_load_explicit(word, memory_order_acquire);
}

static inline int shmp__atomic_swap_if(shmp__atomic_uint *word, unsigned *expected, unsigned value) {
    return atomic_compare_exchange_strong_explicit(word, expected, value, memory_order_acq_rel, memory_order_acquire);
}

static inline unsigned shmp__atomic_add(shmp__atomic_uint *word, unsigned value) {
    return atomic_fetch_add_explicit(word, value, memory_order_acq_rel);
}
static inline unsigned shmp__atomic_sub(shmp__atomic_uint *word, unsigned value) {
    return atomic_fetch_sub_explicit(word, value, memory_order_acq_rel);
}

typedef _Atomic(void *) shmp__atomic_pointer;

static inline void *shmp__atomic_load_pointer(shmp__atomic_pointer *word) {
    return atomic_load_explicit(word, memory_order_acquire);
}

static inline int shmp__atomic_swap_pointer_if(shmp__atomic_pointer *word, void **expected, void *value) {
    return atomic_compare_exchange_strong_explicit(word, expected, value, memory_order_acq_rel, memory_order_acquire);
}

typedef _Atomic uint64_t shmp__atomic_u64;

static inline uint64_t shmp__atomic_load64(shmp__atomic_u64 *word) {
    return atomic_load_explicit(word, memory_order_acquire);
}

static inline int shmp__atomic_swap_if64(shmp__atomic_u64 *word, uint64_t *expected, uint64_t value) {
    return atomic_compare_exchange_weak_explicit(word, expected, value, memory_order_acq_rel, memory_order_acquire);
}

static inline uint64_t shmp__atomic_sub64(shmp__atomic_u64 *word, uint64_t value) {
    return atomic_fetch_sub_explicit(word, value, memory_order_acq_rel);
}

#endif

#endif
