/* Every call of the system goes through SYS(name, (arguments)), so that a test build can make it fail:
 * compiled with SHMP_FAULTS, each asks shmp__fault, which the test program defines, whether to. A
 * release build has nothing of it. */
#ifndef SHMP_FAULT_H
#define SHMP_FAULT_H

#include <errno.h>

#if defined(SHMP_FAULTS)
/* Non-zero: this call shall fail; errno, on Windows GetLastError(), is set. */
int shmp__fault(const char *call);
/* The same for a call that gives something back: it is made, and then said to have failed: -1, on Windows FALSE. */
int shmp__fault_after(const char *call, int result);
#define SYS_OR(failure, name, arguments) (shmp__fault(#name) ? (failure) : (name arguments))
#define SYS_RELEASE(name, arguments) shmp__fault_after(#name, name arguments)
#else
#define SYS_OR(failure, name, arguments) (name arguments)
#define SYS_RELEASE(name, arguments) (name arguments)
#endif

#define SYS(name, arguments) SYS_OR(-1, name, arguments)

/* What SYS gave, as the os layer gives it on. */
static inline int result_of(int value) { return value < 0 ? -errno : value; }

#define RETRIED(result, call)                                                                                          \
    do {                                                                                                               \
        (result) = (call);                                                                                             \
    } while ((result) < 0 && errno == EINTR)

#endif
