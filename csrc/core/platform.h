/* Which mechanisms this platform has: the one list of platforms. Each backend is one file, wholly
 * inside `#if SHMP_HAVE_...`; core/provider.c has one row for each. */
#ifndef SHMP_PLATFORM_H
#define SHMP_PLATFORM_H

#if defined(__linux__) && !defined(__ANDROID__)
#define SHMP_HAVE_LINUX 1
#define SHMP_HAVE_MEMFD 1
#define SHMP_HAVE_POSIX 1
#define SHMP_HAVE_SYSV 1
#else
#error "shmem_providers does not support this operating system yet: csrc/core/platform.h is where to add it"
#endif

#endif
