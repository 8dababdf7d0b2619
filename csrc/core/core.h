/* What the core and the backends share. Nothing here names a system call. */
#ifndef SHMP_CORE_H
#define SHMP_CORE_H

#include "os/atomic.h"
#include "shmem_providers.h"

enum { SHMP__ID_SIZE = sizeof(((shmp_description *)0)->id) };

#if defined(__MINGW_PRINTF_FORMAT) /* gcc's `printf` is there that of an old C runtime, without %zu */
#define SHMP__PRINTF(format_at, values_at) __attribute__((format(__MINGW_PRINTF_FORMAT, format_at, values_at)))
#elif defined(__GNUC__)
#define SHMP__PRINTF(format_at, values_at) __attribute__((format(printf, format_at, values_at)))
#else
#define SHMP__PRINTF(format_at, values_at)
#endif

typedef struct shmp__ops shmp__ops;

struct shmp_provider {
    const shmp__ops *ops; /* of the mechanism that creates */
    shmp__atomic_uint references;
    unsigned flags;          /* SHMP_FD_IDS, SHMP_KEEP_LEFTOVERS */
    long pid;                /* in which it was opened */
    int attaches_by_id;      /* "std": the shape of an id decides the mechanism */
    shmp__atomic_uint *mark; /* tells this process from its forked children, where it is 0; NULL: pids do */
    shmp__atomic_uint marks; /* used so far, by this process and those it was forked from */
    unsigned state;          /* these two are the backend's own, set by its open and constant afterwards */
    void *memory;            /* from shmp__os_allocate, freed with the provider */
};

struct shmp_shmem {
    shmp_provider *provider;
    const shmp__ops *ops;
    void *data;
    size_t size;
    unsigned flags;           /* SHMP_READ_ONLY, and SHMP_OWNER as it was in the creating process */
    int fd;                   /* -1: none */
    int key;                  /* sysv: shmid */
    void *section;            /* win32: HANDLE */
    unsigned creator;         /* shmp__process_mark() of the process in which this handle was made */
    char name[SHMP__ID_SIZE]; /* posix, win32; "": posix unlinked it at once */
};

/* One mechanism. A function returns 0 or what shmp__fail returned; what it took before failing
 * it has released. `shmem` comes zeroed with provider, size, flags and fd = -1 filled in. */
struct shmp__ops {
    const char *name;
    unsigned create_flags;                                    /* SHMP_... flags that create accepts */
    unsigned provider_flags;                                  /* likewise for opening */
    unsigned can;                                             /* SHMP__CAN_... */
    int (*open)(shmp_provider *provider, shmp_error *reterr); /* NULL: nothing to find out */
    int (*accepts)(const char *id);                           /* has the shape of this mechanism's ids: for "std" */
    int (*create)(shmp_shmem *shmem, const char *name, shmp_error *reterr); /* name: may be NULL */
    int (*attach)(shmp_shmem *shmem, const char *id, shmp_error *reterr);
    int (*close)(shmp_shmem *shmem, shmp_error *reterr);
    int (*persist)(shmp_shmem *shmem, shmp_error *reterr); /* NULL: exec of its last user ends it */
    int (*describe)(const shmp_shmem *shmem, char ret_id[SHMP__ID_SIZE], shmp_error *reterr);
    int (*list)(shmp_provider *provider, shmp_visitor visit, void *context, shmp_error *reterr);
    int (*reap)(shmp_provider *provider, unsigned flags, shmp_visitor visit, void *context,
                shmp_error *reterr); /* NULL: its segments never outlive their users */
    int (*users)(const shmp_shmem *shmem, shmp_user_visitor visit, void *context,
                 shmp_error *reterr); /* NULL: the system does not tell */
    int (*limits)(shmp_provider *provider, shmp_limits *ret_limits, shmp_error *reterr); /* struct_size is the core's */
};

enum {
    SHMP__CAN_NAME = 1,  /* create takes a name */
    SHMP__CAN_FAVOUR = 2 /* really shares memory: "std" may choose it */
};

extern const shmp__ops shmp__memfd_ops, shmp__posix_ops, shmp__sysv_ops, shmp__win32_ops, shmp__nop_ops;

/* The mechanism whose ids look like that; NULL: none. */
const shmp__ops *shmp__ops_for_id(const char *id);

/* Fills in *reterr (may be NULL) and returns -code. */
int shmp__fail(shmp_error *reterr, int code, const char *call, const char *format, ...) SHMP__PRINTF(4, 5);

/* The same for a call of the operating system. `os_error` may be negated, as the os layer gives
 * it. What a process can do about EMFILE and the like is added here; the mechanism's own
 * remedies are the caller's. */
int shmp__fail_os(shmp_error *reterr, int os_error, const char *call, const char *format, ...) SHMP__PRINTF(4, 5);

/* For the limits of a mechanism that draws on memory: lowers `bytes` to what is free. */
int shmp__limit_to_memory(shmp_limits *limits, shmp_error *reterr);

/* Whether this process made the handle; 0 in a forked child, also when it has the same pid in a
 * namespace of its own, or one that was used before. */
int shmp__is_made_here(const shmp_shmem *shmem);
int shmp__is_owner(const shmp_shmem *shmem);

/* A number that none of the processes has that this one was forked from. Never 0. */
unsigned shmp__process_mark(shmp_provider *provider);

/* A decimal number as this library writes them: at most 19 digits, no sign, no leading zero, at most
 * `max`. Gives the first character after it, or NULL. */
const char *shmp__decimal(const char *text, unsigned long long max, unsigned long long *ret_value);

/* A whole id that is one decimal number of at most INT_MAX, such as a descriptor; -1: it is not. */
int shmp__decimal_id(const char *id);

/* Copies an id or name of `length` bytes, checking what all ids have in common; `text` is not in ret_id. */
int shmp__copy_id(char ret_id[SHMP__ID_SIZE], const char *text, size_t length, shmp_error *reterr);

/* The two halves of the hand-off by environment that do not touch the environment, for Python,
 * which has one of its own. */
int shmp__env_description(const shmp_shmem *shmem, const char *name, shmp_description *ret_description,
                          shmp_error *reterr);
int shmp__env_parse(const char *name, const char *id, const char *size, shmp_description *ret_description,
                    shmp_error *reterr); /* id, size: NULL when not set */

#endif
