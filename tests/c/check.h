/* Checks for tests in C. A failed one prints file:line, what was expected, and the subject at
 * hand to stderr, is counted, and lets the test go on; REQUIRE leaves the test function. */
#ifndef CHECK_H
#define CHECK_H

#include "os/atomic.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static shmp__atomic_uint check_failures;
static char check_subject_text[160];

/* The row of a table that is being tested; "" for none. */
static inline void check_subject(const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(check_subject_text, sizeof check_subject_text, format, values);
    va_end(values);
}

static inline int check_failed(const char *file, int line, const char *format, ...) {
    char text[512];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    shmp__atomic_add(&check_failures, 1);
    fprintf(stderr, "%s:%d: %s%s%s\n", file, line, text, *check_subject_text ? " -- " : "", check_subject_text);
    return 0;
}

static inline int check_equal(long long got, long long expected, const char *file, int line, const char *expression) {
    return got == expected || check_failed(file, line, "%s: expected %lld, got %lld", expression, expected, got);
}

static inline int check_text(const char *got, const char *expected, const char *file, int line,
                             const char *expression) {
    if (got && strcmp(got, expected) == 0) return 1;
    return check_failed(file, line, "%s: expected \"%s\", got \"%s\"", expression, expected, got ? got : "(null)");
}

#define CHECK(expression) ((expression) ? 1 : check_failed(__FILE__, __LINE__, "%s", #expression))
#define CHECK_EQUAL(got, expected) check_equal((long long)(got), (long long)(expected), __FILE__, __LINE__, #got)
#define CHECK_TEXT(got, expected) check_text((got), (expected), __FILE__, __LINE__, #got)
#define REQUIRE(expression)                                                                                            \
    do {                                                                                                               \
        if (!CHECK(expression)) return;                                                                                \
    } while (0)

#endif
