/* What the core and the mechanisms share. Nothing here names a system call.
 *
 * A shmp_provider is an opened mechanism. A shmp_shmem is a handle: small, one for each that a program holds. Handles
 * that are clones of each other share one shmp__mapping, which has what is mapped and whatever keeps it open. What is
 * particular to a mechanism lies in a struct of its own file that begins with shmp_provider or shmp__mapping. */
#ifndef SHMP_CORE_H
#define SHMP_CORE_H

#include "os/atomic.h"
#include "os/os.h"
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
    const shmp__ops *ops;
    shmp__atomic_uint references;
    unsigned flags;          /* SHMP_FD_IDS, SHMP_KEEP_LEFTOVERS */
    long pid;                /* in which it was opened */
    shmp__atomic_uint *mark; /* tells this process from its forked children, where it is 0; NULL: pids do */
    shmp__atomic_uint marks; /* used so far, by this process and those it was forked from */
    shmp_provider *inner;    /* which it wraps; it holds a reference */
    char *label;             /* of one that wraps, such as "rc(memfd)" */
};

typedef struct shmp__mapping shmp__mapping;

struct shmp_shmem {
    shmp__mapping *mapping;
    void *data;
    size_t size;
    unsigned flags;   /* SHMP_READ_ONLY, SHMP_OWNER as it was in the creating process, SHMP__RETIRED, SHMP__KEEPS */
    unsigned creator; /* shmp__process_mark() of the process in which this handle was made */
};

struct shmp__mapping {
    shmp_provider *provider; /* it holds a reference */
    shmp__atomic_uint open;  /* handles that are not closed: the descriptor goes with the last */
    shmp__atomic_uint held;  /* those, and closed ones whose memory is still viewed: the mapping goes with the last */
    shmp__atomic_uint kept;  /* see shmp__keep: 2 for each handle that keeps the name, 1 when the owner's is closed */
    void *data;              /* NULL: SHMP_UNMAPPED */
    size_t size, mapped;     /* mapped: size, or what the system needs to hear to unmap it */
    unsigned flags;          /* as create or attach were told */
    shmp_shmem first;        /* the handle that came with it: clones are allocated */
};

enum {
    SHMP__RETIRED = 0x8000, /* in a handle's flags: closed, but for the memory */
    SHMP__KEEPS = 0x4000,   /* the same: see shmp__keep */
    SHMP__OWN_FLAG = 0x8000 /* in a mapping's: the mechanism's own */
};

/* One mechanism. A function returns 0 or what shmp__fail returned; what it took before failing it has released.
 * NULL is what a mechanism cannot do, or has no need of; those marked * must be there. A new mapping comes zeroed,
 * with provider, size and flags filled in. */
struct shmp__ops {
    const char *name;                   /* * */
    unsigned create_flags;              /* SHMP_... flags that create accepts, SHMP__MODE among them */
    unsigned provider_flags;            /* likewise for opening */
    unsigned can;                       /* SHMP__CAN_... */
    size_t provider_size, mapping_size; /* * of structs that begin with shmp_provider and shmp__mapping */

    /* One that wraps finds its inner one here, if the options have none. */
    int (*open)(shmp_provider *provider, const shmp_provider_options *options, shmp_error *reterr);
    void (*end)(shmp_provider *provider); /* the last reference is gone; also after an open that failed */
    int (*pre_fork)(shmp_provider *provider, shmp_error *reterr);
    int (*post_fork)(shmp_provider *provider, int is_child, shmp_error *reterr);
    /* The provider that does it instead: to create (id NULL), or to attach to that id. */
    shmp_provider *(*route)(shmp_provider *provider, const char *id, shmp_error *reterr);
    /* Has the shape of its ids. NULL: they are those of what it wraps, or "std" attaches to none of them. */
    int (*accepts)(const char *id);
    const char *(*address)(const shmp_provider *provider); /* of its service; NULL: it asks none */
    int (*hosts)(shmp_provider *provider);                 /* whether it runs that itself, in this process */

    int (*create)(shmp__mapping *mapping, shmp_error *reterr); /* * but for one that routes; so are the others */
    int (*create_named)(shmp__mapping *mapping, const char *name, shmp_error *reterr);
    int (*attach)(shmp__mapping *mapping, const char *id, shmp_error *reterr);            /* * */
    int (*attach_name)(shmp__mapping *mapping, const char *name, shmp_error *reterr);     /* of any length */
    int (*attach_fd)(shmp__mapping *mapping, int fd, const char *id, shmp_error *reterr); /* id: "" is not known */
    int (*clone)(const shmp__mapping *of, shmp__mapping *mapping, shmp_error *reterr); /* NULL: clones always share */
    int (*destroy)(shmp__mapping *mapping, shmp_error *reterr); /* the owner closes; NULL: it goes with its users */
    int (*close)(shmp__mapping *mapping, shmp_error *reterr);   /* all but the memory */
    int (*unmap)(shmp__mapping *mapping, shmp_error *reterr);   /* * */
    int (*fileno)(const shmp__mapping *mapping);
    int (*persist)(shmp__mapping *mapping, shmp_error *reterr); /* NULL: exec of its last user ends it */
    int (*describe)(shmp__mapping *mapping, char ret_id[SHMP__ID_SIZE], shmp_error *reterr); /* * */
    /* By what shmp_open_fd finds a descriptor of it, and what that does: `mapping` has the flags. */
    int (*locate)(shmp__mapping *mapping, char ret_id[SHMP__ID_SIZE], shmp_error *reterr);
    int (*open_fd)(const shmp__mapping *mapping, const char *id, shmp_error *reterr);
    int (*list)(shmp_provider *provider, shmp_visitor visit, void *context, shmp_error *reterr);
    int (*unlink)(shmp_provider *provider, const char *name, shmp_error *reterr);
    int (*reap)(shmp_provider *provider, unsigned flags, shmp_visitor visit, void *context,
                shmp_error *reterr); /* NULL: its segments never outlive their users */
    int (*users)(const shmp__mapping *mapping, shmp_user_visitor visit, void *context, shmp_error *reterr);
    int (*limits)(shmp_provider *provider, shmp_limits *ret_limits,
                  shmp_error *reterr); /* * struct_size is the core's */
};

enum {
    SHMP__CAN_SHARE = 1,     /* really shares memory: "std" may choose it */
    SHMP__CAN_AFL = 2,       /* its ids are what an AFL++ target reads */
    SHMP__CAN_WRAP = 4,      /* takes options.inner */
    SHMP__CAN_ADDRESS = 8,   /* takes options.address and timeout_ms */
    SHMP__MODE = 0777 << 16, /* in flags: SHMP_MODE() */
};

/* The mechanisms, best first: name, and whether this platform has it (os/platform.h). To add one, write
 * backend/<name>.c, which defines shmp__<name>_ops, and a row here. */
#define SHMP__MECHANISMS(ROW)                                                                                          \
    ROW(memfd, SHMP_HAVE_MEMFD)                                                                                        \
    ROW(posix, SHMP_HAVE_POSIX)                                                                                        \
    ROW(sysv, SHMP_HAVE_SYSV)                                                                                          \
    ROW(win32, SHMP_HAVE_WIN32)                                                                                        \
    ROW(ashmem, SHMP_HAVE_ASHMEM)                                                                                      \
    ROW(served, SHMP_HAVE_UNIX)                                                                                        \
    ROW(rc, SHMP_HAVE_UNIX)                                                                                            \
    ROW(nop, 1)

#define SHMP__DECLARE(name, have) extern const shmp__ops shmp__##name##_ops;
SHMP__MECHANISMS(SHMP__DECLARE)
#undef SHMP__DECLARE
extern const shmp__ops shmp__std_ops;

#define SHMP__COUNT(name, have) +1
enum { SHMP__MECHANISM_COUNT = 0 SHMP__MECHANISMS(SHMP__COUNT) };

/* The mechanism in that row; NULL: it is one of other platforms. */
const shmp__ops *shmp__mechanism(unsigned row);

/* By name; `said_by`: whose name that is, for messages. */
int shmp__find_mechanism(const char *name, const char *said_by, const shmp__ops **ret_ops, shmp_error *reterr);

int shmp__provider_open(const shmp__ops *ops, const shmp_provider_options *options, shmp_provider **ret_provider,
                        shmp_error *reterr);

/* The one whose ids a provider's segments have: of "std" the chosen one, of "rc" what that wraps. */
const shmp_provider *shmp__meant(const shmp_provider *provider);

/* Where the service is that has its segments; "": none has. */
const char *shmp__service_of(const shmp_provider *provider);

/* Whether it runs that service itself: then it is the last for shmp_pre_fork(), and the first for shmp_post_fork(). */
int shmp__hosts_service(shmp_provider *provider);

/* Opens the first that works of the mechanisms whose segments are descriptors. */
int shmp__open_descriptors(unsigned flags, shmp_provider **ret_provider, shmp_error *reterr);

/* Structs grow at their end, in both directions: callers have an older header, whose later members are taken for zero
 * and not filled in, or a newer one. This is the size since 0.2, by the member that was the last then. */
#define SHMP__LEAST_SIZE(type, last) (offsetof(type, last) + sizeof(((type *)0)->last))

/* Copies the options that a caller gave, whose first member is struct_size: as many bytes as both know. */
int shmp__take_options(const void *given, size_t least, void *ret_options, size_t known, const char *type,
                       shmp_error *reterr);

/* shmp_provider_open with the name that the environment wants in place of "std"; NULL: none. For Python, which
 * opens without the lock that makes reading the environment safe. */
int shmp__provider_open_wanted(const char *name, const char *wanted, const shmp_provider_options *options,
                               shmp_provider **ret_provider, shmp_error *reterr);
enum { SHMP__WANTED_SIZE = 64 };
const char *shmp__wanted_provider(char room[SHMP__WANTED_SIZE]);
/* Likewise for options.address, where "" is the user's own: what NULL there stands for. */
const char *shmp__wanted_address(char room[SHMP__ENV_ROOM]);

/* Fills in *reterr (may be NULL) and returns -code. */
int shmp__fail(shmp_error *reterr, int code, const char *call, const char *format, ...) SHMP__PRINTF(4, 5);

/* The same for a call of the operating system. `os_error` may be negated, as the os layer gives
 * it. What a process can do about EMFILE and the like is added here; the mechanism's own
 * remedies are the caller's. */
int shmp__fail_os(shmp_error *reterr, int os_error, const char *call, const char *format, ...) SHMP__PRINTF(4, 5);

/* For the limits of a mechanism that draws on memory: lowers `bytes` to what is free. */
int shmp__limit_to_memory(shmp_limits *limits, shmp_error *reterr);

/* Destroys the segment, if that is for this handle to do. It is the owner no more. */
int shmp__disown(shmp_shmem *shmem, shmp_error *reterr);

/* Closes a handle but for its memory, which stays mapped until shmp_close(): name, descriptor and ownership go. */
int shmp__retire(shmp_shmem *shmem, shmp_error *reterr);

/* A clone that keeps the segment as it is: when the owner's handle is closed before it, the name goes with the last of
 * such clones. For what was sent to another process, which is to find it. */
int shmp__keep(const shmp_shmem *shmem, shmp_shmem **ret_shmem, shmp_error *reterr);

/* Whether this process made the handle; 0 in a forked child, also when it has the same pid in a
 * namespace of its own, or one that was used before. */
int shmp__is_made_here(const shmp_shmem *shmem);
int shmp__is_owner(const shmp_shmem *shmem);

/* A number that none of the processes has that this one was forked from. Never 0. */
unsigned shmp__process_mark(shmp_provider *provider);

/* `count` letters of an alphabet of 16 or 32, from the kernel: a generator's state would repeat after fork. */
int shmp__random_letters(char *ret_letters, unsigned count, const char *alphabet, shmp_error *reterr);

/* A decimal number as this library writes them: at most 19 digits, no sign, no leading zero, at most
 * `max`. Gives the first character after it, or NULL. */
const char *shmp__decimal(const char *text, unsigned long long max, unsigned long long *ret_value);

/* A whole id that is one decimal number of at most INT_MAX, such as a descriptor; -1: it is not. */
int shmp__decimal_id(const char *id);

/* Copies an id or name of `length` bytes, checking what all ids have in common; `text` is not in ret_id. */
int shmp__copy_id(char ret_id[SHMP__ID_SIZE], const char *text, size_t length, shmp_error *reterr);

/* The two halves of the hand-off by environment that do not touch the environment, for Python,
 * which has one of its own. */
int shmp__env_description(const shmp_shmem *shmem, const char *name, unsigned flags, shmp_description *ret_description,
                          shmp_error *reterr); /* flags: as shmp_env_pairs */
/* AFL++'s own variable for the size; NULL: "<name>_SIZE". */
const char *shmp__env_size_name(const char *name, unsigned flags);
int shmp__env_parse(const char *name, const char *id, const char *size, shmp_description *ret_description,
                    shmp_error *reterr); /* id, size: NULL when not set */

#endif
