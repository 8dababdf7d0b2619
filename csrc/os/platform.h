/* Which mechanisms this platform has: the one list of platforms. Each backend and each os_*.c is one file,
 * wholly inside `#if SHMP_HAVE_...`; core/provider.c has one row for each backend. */
#ifndef SHMP_PLATFORM_H
#define SHMP_PLATFORM_H

#if defined(__APPLE__)
#include <TargetConditionals.h>
#endif

#if defined(_WIN32)
#define SHMP_HAVE_WIN32 1
#elif defined(__ANDROID__) /* its libc has neither shm_open nor shmget */
#define SHMP_HAVE_LINUX 1
#define SHMP_HAVE_MEMFD 1
#elif defined(__linux__)
#define SHMP_HAVE_LINUX 1
#define SHMP_HAVE_MEMFD 1
#define SHMP_HAVE_POSIX 1
#define SHMP_HAVE_SYSV 1
#elif defined(__APPLE__) || defined(__FreeBSD__) || defined(__DragonFly__) || defined(__NetBSD__) ||                   \
    defined(__OpenBSD__)
#define SHMP_HAVE_BSD 1
#define SHMP_HAVE_POSIX 1
#if !defined(__APPLE__) || TARGET_OS_OSX /* iOS kills who calls shmget */
#define SHMP_HAVE_SYSV 1
#endif
#else
#error "shmem_providers does not know this operating system: csrc/os/platform.h is where to add it"
#endif

/* 0 for what was not said above, so that the table can paste it. */
#if !defined(SHMP_HAVE_WIN32)
#define SHMP_HAVE_WIN32 0
#endif
#if !defined(SHMP_HAVE_LINUX)
#define SHMP_HAVE_LINUX 0
#endif
#if !defined(SHMP_HAVE_BSD)
#define SHMP_HAVE_BSD 0
#endif
#if !defined(SHMP_HAVE_MEMFD)
#define SHMP_HAVE_MEMFD 0
#endif
#if !defined(SHMP_HAVE_POSIX)
#define SHMP_HAVE_POSIX 0
#endif
#if !defined(SHMP_HAVE_SYSV)
#define SHMP_HAVE_SYSV 0
#endif
#if SHMP_HAVE_LINUX || SHMP_HAVE_BSD
#define SHMP_HAVE_UNIX 1
#else
#define SHMP_HAVE_UNIX 0
#endif

/* Where no mechanism by itself does what "std" promises: it is rc(served(...)), as with SHMP_SERVE. */
#if defined(SHMP_STD_IS_SERVED) /* a test of it elsewhere */
#elif defined(__APPLE__) || defined(__ANDROID__)
#define SHMP_STD_IS_SERVED 1
#else
#define SHMP_STD_IS_SERVED 0
#endif

typedef int shmp__not_empty; /* C wants at least one declaration in the files that this platform leaves out */

#endif
