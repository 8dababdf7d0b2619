/* shmem_providers: shared memory through one interface.
 *
 *   #include <shmem_providers.h>
 *
 *   shmp_provider *provider;  shmp_shmem *map;  shmp_error error;
 *   if (shmp_check_abi(&error) < 0)                             return report(&error);
 *   if (shmp_provider_open("std", NULL, &provider, &error) < 0) return report(&error);
 *   if (shmp_create(provider, 65536, 0, &map, &error) < 0)      return report(&error);
 *   shmp_to_env(map, "MY_MAP", NULL);           // a child process calls shmp_from_env
 *   ((unsigned char *)shmp_data(map))[0] = 1;   // plain memory from here on
 *   shmp_close(map, NULL);
 *   shmp_provider_close(provider);
 *
 * Words. A *provider* is a way to get shared memory (memfd, posix, sysv, ...). A *shmem* is a
 * handle on one mapped segment; clones of it share the mapping. An *id* is at most 19 bytes of text by which another
 * process can attach; id and size together are the *description*. The *owner* is the handle that created the segment:
 * only it destroys the operating system's object, and only in the process that created it (a forked child is never the
 * owner).
 *
 * How long an id works. memfd, sysv, win32: as long as any handle on the segment is open anywhere. posix: until its
 * owner closes it and, after an owner that ended without closing, as long as any handle is open anywhere. A bare
 * descriptor number (SHMP_FD_IDS): where the descriptor was inherited or sent. served: as long as its service runs and
 * any of that one's clients has it. rc: as what it wraps.
 *
 * Rules that hold for every function, unless it says otherwise:
 * - Sizes are bytes. Text is NUL-terminated; ids are printable ASCII.
 * - A function that returns int gives 0, or a negative SHMP_E... code, the same number on every
 *   platform. `reterr` (it may be NULL) then says which call failed, with what value, and what to
 *   do; on success it is not touched. Outputs are named ret_..., and are not touched on failure.
 * - Threads: any function may be called from any thread, at the same time, also on one handle.
 *   The exceptions are the two closing functions, which exclude every other use of that handle,
 *   and shmp_to_env and shmp_from_env, which exclude other users of the environment as setenv
 *   and getenv do.
 * - Fork: handles work in the child. Closing one there releases the child's mapping and nothing
 *   of its parent's. What shmp_pre_fork() is for, see there.
 * - Cancellation: do not pthread_cancel() a thread that may be inside: what it holds there would be lost.
 * - Signals: not to be called from a signal handler. EINTR is dealt with inside. Nothing here
 *   raises a signal of its own, but the kernel sends SIGXFSZ to a process whose RLIMIT_FSIZE is
 *   smaller than a memfd or posix segment it creates (ignore that signal and it is an error).
 * - Nothing is logged, nothing aborts, errno is not part of the contract, and there is no global
 *   state.
 * - Undefined, as everywhere in C: a pointer that is no live handle, memory used after
 *   shmp_close, an access beyond shmp_size.
 */
#ifndef SHMEM_PROVIDERS_H
#define SHMEM_PROVIDERS_H

#include <stddef.h>
#include <stdio.h> /* snprintf, for shmp_check_abi */

#define SHMP_VERSION "0.2.0"
/* Raised when a function or struct changes its meaning; shmp_check_abi() compares it with the library's. Growth does
 * not raise it: new functions, flags and options, and structs that have a struct_size, at their end. */
#define SHMP_ABI_VERSION 2u

#ifndef SHMP_API
#if defined(SHMP_STATIC)
#if defined(__GNUC__) && !defined(_WIN32)
#define SHMP_API __attribute__((visibility("hidden")))
#else
#define SHMP_API
#endif
#elif defined(_WIN32)
#if defined(SHMP_BUILD)
#define SHMP_API __declspec(dllexport)
#else
#define SHMP_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define SHMP_API __attribute__((visibility("default")))
#else
#define SHMP_API
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* cffi: begin (Python's binding is generated from here to the end mark: plain declarations only) */

/* ---- Errors ------------------------------------------------------------------------------ */

/** Error codes. Functions return them negated; shmp_error.code holds them as returned. */
enum {
    SHMP_EINVAL = 1,       /* an argument, flag, option or variable is malformed */
    SHMP_EID = 2,          /* the id is garbage, or what it names is no shared memory */
    SHMP_ESIZE = 3,        /* the object is smaller than the description says */
    SHMP_EOVERFLOW = 4,    /* the size is beyond the address space */
    SHMP_ENOTFOUND = 5,    /* the id is well-formed, but the segment is gone */
    SHMP_ENOENV = 6,       /* the environment variable is not set */
    SHMP_EUNAVAILABLE = 7, /* this platform lacks the mechanism */
    SHMP_EUNSUPPORTED = 8, /* this mechanism cannot do that */
    SHMP_ENOMEM = 9,       /* no memory for the handle itself */
    SHMP_EOS = 10,         /* a call of the operating system failed: see os_error */
    SHMP_ESERVICE = 11     /* no service answers, or it refused; os_error may say more */
};

/** What went wrong. Final: never grows. */
typedef struct shmp_error {
    int code;          /* -SHMP_E... */
    int os_error;      /* errno or GetLastError() for -SHMP_EOS; else 0 */
    const char *call;  /* the call or argument at fault; a literal, never NULL */
    char message[200]; /* the value, and what to do about it */
} shmp_error;

/** A sentence in English for a code, negated or not; never NULL. */
SHMP_API const char *shmp_error_text(int code);

/* ---- Providers --------------------------------------------------------------------------- */

typedef struct shmp_provider shmp_provider;
typedef struct shmp_shmem shmp_shmem;

/** Option: ids are bare file descriptor numbers, as the Rust crate's (memfd, posix). Such an id
 *  works in a process that got the descriptor under that number: inherited, or sent. */
#define SHMP_FD_IDS 0x1
/** Option: leave leftovers of killed processes alone at opening (posix; see shmp_reap). */
#define SHMP_KEEP_LEFTOVERS 0x2
/** Option: where no service answers, run one in a thread of this process, until the provider's end (served, and "std",
 *  which then is rc(served(...)) and not a mechanism by itself; on macOS, iOS and Android it is so without the option,
 *  if that works). Of two processes that start one at a time, the second uses the first one's. */
#define SHMP_SERVE 0x4

/** Zero it, then set struct_size = sizeof(shmp_provider_options). It may grow at its end: an older library refuses
 *  what it does not know, if it is not zero; a newer one takes what is not there for zero. */
typedef struct shmp_provider_options {
    size_t struct_size;
    unsigned flags;       /* SHMP_FD_IDS, SHMP_KEEP_LEFTOVERS, SHMP_SERVE */
    unsigned timeout_ms;  /* for providers that ask a service; 0 is the default */
    shmp_provider *inner; /* for providers that wrap another, which they keep open; NULL for the rest */
    const char *address;  /* for providers that ask a service; NULL for the rest */
} shmp_provider_options;

/** Open a provider by name.
 *  @param name  "memfd", "posix", "sysv", "win32", "nop" (private memory), or "std": the best one that
 *               works here, found by trying each; the environment's SHMEM_PROVIDER=<name>
 *               overrides the choice, but for nop, served and rc, and in a program with more rights than its user
 *               (setuid). A "std" provider attaches to every provider's ids, by their shape. A bare descriptor number
 *               (SHMP_FD_IDS) looks like a sysv id and is taken for one: open memfd or posix for those.
 *               Unix: "served" asks a service for segments and maps them by options.inner, which has descriptors
 *               (memfd, posix; NULL: the best of those). It is found at options.address; NULL: where the environment's
 *               SHMEM_SERVICE says, which setuid programs do not obey, or at this user's own address. A service of
 *               another user than this one and root is refused. Each round trip takes options.timeout_ms at most (0:
 *               5,000). A lost service is an error of the call that finds it out; what is mapped stays, and the next
 *               call asks the service that is there then.
 *               "rc" wraps any provider (options.inner; NULL: "std") and adds nothing: the Rust crate's counts
 * references and forks so, which here all do.
 *  @param options  NULL for the defaults.
 *  Owns: the caller; release with shmp_provider_close().
 *  @return 0; -SHMP_EINVAL unknown name or option; -SHMP_EUNAVAILABLE not on this platform;
 *          -SHMP_EUNSUPPORTED options.inner cannot be wrapped so; -SHMP_ESERVICE no service, or one that is not to be
 *          trusted (os_error may say more); -SHMP_ENOMEM; -SHMP_EOS. Since 0.1; served and rc since 0.2. */
SHMP_API int shmp_provider_open(const char *name, const shmp_provider_options *options, shmp_provider **ret_provider,
                                shmp_error *reterr);

/** Release a provider; NULL is fine. Its segments hold a reference: any order of closing is fine. */
SHMP_API void shmp_provider_close(shmp_provider *provider);

/** The provider's name; for "std" the chosen one's; with what it wraps: "rc(served(memfd))". Valid as long as the
 *  provider. */
SHMP_API const char *shmp_provider_name(const shmp_provider *provider);

/** Enumerate the providers of this platform, best first, trying each.
 *  @param index  0, 1, 2, ...
 *  "served" works where a service can be reached; none is started.
 *  @return 0 it works; -SHMP_EUNAVAILABLE, -SHMP_ESERVICE, -SHMP_EOS or -SHMP_ENOMEM it does not, and reterr says why:
 *          *ret_name is set in all these cases. -SHMP_EINVAL there is no such index: the end. */
SHMP_API int shmp_available(unsigned index, const char **ret_name, shmp_error *reterr);

/** What this machine allows now. Set struct_size = sizeof(shmp_limits) before each call; after it, it is what was
 *  filled in: less with an older library. It may grow at its end. */
typedef struct shmp_limits {
    size_t struct_size;
    unsigned long long bytes;    /* the largest segment that can be created and filled */
    unsigned long long segments; /* how many more this process can hold, beside what it holds */
    char advice[200];            /* how to raise them */
} shmp_limits;

/** Ask what a provider could give now; others may take it in the meantime.
 *  @return 0; -SHMP_EINVAL; -SHMP_EOS. Since 0.1. */
SHMP_API int shmp_provider_limits(shmp_provider *provider, shmp_limits *ret_limits, shmp_error *reterr);

/** Tell a provider that this process is about to fork, and afterwards that it did, in the parent
 *  (is_child 0) and in the child (1). Both call shmp_post_fork() as soon as they can, the parent also when fork()
 *  failed, if and only if shmp_pre_fork() succeeded, and from the thread that forks. In between the provider lets no
 *  other thread in. served: the child gets a connection of its own, and keeps what it inherited at the service, too,
 *  for which both wait for each other, options.timeout_ms at most; without these calls that is its parent's alone, and
 *  the child's connection is made when it first needs one. rc: what the inner provider does. memfd, posix, sysv, win32,
 *  nop: nothing.
 *  Of several providers, shmp_pre_fork() is called in the reverse order of their opening, and shmp_post_fork() in that
 *  order: the service that one of them runs (SHMP_SERVE) answers nobody in between.
 *  Calls may be nested, such as explicit ones round a hook of the language: the first shmp_pre_fork() and the first
 *  shmp_post_fork() do it all.
 *  @return 0; -SHMP_EINVAL no shmp_pre_fork() before; -SHMP_ESERVICE another thread had the provider for too long, or
 *          the child could not keep what it inherited; -SHMP_EOS, such as os_error ETIMEDOUT of a child that is
 *          stopped. After an error of shmp_post_fork() everything can still be used. */
SHMP_API int shmp_pre_fork(shmp_provider *provider, shmp_error *reterr);
SHMP_API int shmp_post_fork(shmp_provider *provider, int is_child, shmp_error *reterr);

/* ---- Segments ---------------------------------------------------------------------------- */

#define SHMP_READ_ONLY 0x1  /* attach: map it read-only (a guard against mistakes, not enemies) */
#define SHMP_RESERVE 0x2    /* create: take all memory now, as dear as touching every page */
#define SHMP_INHERIT 0x4    /* create, attach: as shmp_persist() */
#define SHMP_WHOLE 0x8      /* attach: map all that the segment has; the description's size is not looked at */
#define SHMP_ANY_USER 0x10  /* attach: also to a segment that is neither this user's nor root's */
#define SHMP_UNMAPPED 0x20  /* create: do not map it; for who hands out descriptors (memfd, posix, win32) */
#define SHMP_LINGER 0x40    /* create: if the creator is killed, leave it a minute to be attached to (posix, sysv) */
#define SHMP_KEEP 0x80      /* create, named: it stays until shmp_unlink(), whoever closes or ends */
#define SHMP_OWNER 0x100    /* shmp_flags() only: this handle created it, in this process */
#define SHMP_EXIST_OK 0x200 /* create, named: attach to it if it is there; shmp_flags() tells who made it */
/* The upper half of the flags has numbers: SHMP_MODE(), and above it the log2 of a page size, as MFD_HUGE_... have
 * it, which no provider takes yet. */

/** What another process needs to attach. Final: never grows. */
typedef struct shmp_description {
    size_t size;
    char id[20]; /* NUL-terminated text; empty for nop */
} shmp_description;

/** Create a segment and map it read-write. Its memory is zero.
 *  @param size   bytes, at least 1; the mapping is rounded up to pages, shmp_size() is not.
 *  @param flags  SHMP_RESERVE, SHMP_INHERIT, SHMP_UNMAPPED, SHMP_LINGER, SHMP_MODE().
 *  Owns: the caller; release with shmp_close(), which destroys the segment for good when the
 *  last process that attached to it has let go.
 *  Full memory: win32 takes all of it here. memfd and sysv draw on memory, posix on its file system
 *  (/dev/shm), whose free space is checked here. Only SHMP_RESERVE, which macOS and the BSDs lack,
 *  promises that touching it never raises SIGBUS.
 *  Leftovers: after SIGKILL of the owner, memfd, win32 and (on Linux) sysv segments are gone with their
 *  last user; a posix name stays until a posix provider is next opened, or shmp_reap() is called. On
 *  macOS and the BSDs, where names cannot be listed, both stay until they are removed by hand.
 *  @return 0; -SHMP_EINVAL size 0, unknown flag; -SHMP_EOVERFLOW; -SHMP_EUNSUPPORTED the
 *          mechanism lacks a flag; -SHMP_ENOMEM; -SHMP_ESERVICE; -SHMP_EOS. Since 0.1. */
SHMP_API int shmp_create(shmp_provider *provider, size_t size, unsigned flags, shmp_shmem **ret_shmem,
                         shmp_error *reterr);

/** Create a segment under a name of the caller's choice (posix only). Others see the name when the segment has its
 *  size, its permissions and its memory, and not before (macOS, BSD: it is there a moment before its size is, for which
 *  shmp_attach() waits a second).
 *  @param name   '/' and 1 to 18 printable ASCII characters without another '/'; "/shmp_..." is
 *                kept for shmp_create. No other process ever removes such a name for you after SIGKILL.
 *  @param flags  as shmp_create(); SHMP_EXIST_OK: make it, or attach to it if it is there, whoever is first. What is
 *                there must have that size, and be this user's or root's. A leftover, which this library made, whose
 *                users have all ended and which is not kept, is made anew. SHMP_KEEP: it outlives its creator.
 *  @return as shmp_create(); -SHMP_EOS with os_error EEXIST: it is taken; -SHMP_EID a name that cannot be, or something
 *          else has it; -SHMP_ESIZE it is there with another size; -SHMP_EUNSUPPORTED. Since 0.1. */
SHMP_API int shmp_create_named(shmp_provider *provider, const char *name, size_t size, unsigned flags,
                               shmp_shmem **ret_shmem, shmp_error *reterr);

/** Attach to a segment that some process created, this one included. This always maps it anew; shmp_clone() does not.
 *  @param description  its id, and how many bytes of it to map: no more than it has.
 *  @param flags        SHMP_READ_ONLY, SHMP_INHERIT, SHMP_WHOLE, SHMP_ANY_USER.
 *  Owns: the caller, who gets a mapping and (memfd, posix) a descriptor of its own; release with
 *  shmp_close(). Attaching with nop gives fresh private memory.
 *  Others can change and truncate what is theirs: a memfd, posix or sysv segment is taken only if it is this
 *  user's (the effective one) or root's, unless SHMP_ANY_USER says that its user is trusted. win32 cannot tell.
 *  Inside a user namespace all users that it does not map are 65534: who runs as that cannot tell them from himself.
 *  Others' win32 segments, and on macOS posix ones, are as large as their whole pages.
 *  An id that is a bare descriptor number (SHMP_FD_IDS) is only as good as its giver: that
 *  nobody truncates it later is not checked and can raise SIGBUS. All other memfd ids are sealed.
 *  @return 0; -SHMP_EID garbage, or no shared memory; -SHMP_ESIZE it is smaller;
 *          -SHMP_ENOTFOUND it is gone; -SHMP_EINVAL; -SHMP_EOVERFLOW; -SHMP_EUNSUPPORTED;
 *          -SHMP_EUNAVAILABLE "std", and an id of a mechanism that this system lacks; -SHMP_ESERVICE;
 *          -SHMP_ENOMEM; -SHMP_EOS, such as os_error EACCES of another user's. Since 0.1. */
SHMP_API int shmp_attach(shmp_provider *provider, const shmp_description *description, unsigned flags,
                         shmp_shmem **ret_shmem, shmp_error *reterr);

/** Open a descriptor of a segment that shmp_locate() found (memfd, posix; Linux), for shmp_attach_fd() or to send.
 *  It is opened through /proc/<pid>/fd. When that one is gone, or is something else by now, any other of the same
 * segment is looked for among the processes of this user (root: its own only), which takes some 5 us for each of their
 *  descriptors. So it works as long as any process has the segment open; shmp_attach() of a memfd id does the same.
 *  @param provider  of the segment's mechanism; "std" opens what it creates.
 *  @param flags     SHMP_READ_ONLY, SHMP_ANY_USER.
 *  Owns: the caller, who closes *ret_fd. It is closed on exec.
 *  @return 0; -SHMP_ENOTFOUND no process that this one may look at has it; -SHMP_EID; -SHMP_EINVAL;
 *          -SHMP_EUNSUPPORTED; -SHMP_EOS, such as os_error EACCES. Since 0.2. */
SHMP_API int shmp_open_fd(shmp_provider *provider, const char *id, unsigned flags, int *ret_fd, shmp_error *reterr);

/** Attach to the segment that an open descriptor is, such as one that was inherited or sent (memfd, posix).
 *  @param fd           stays the caller's: the handle has a duplicate.
 *  @param description  how many bytes to map, and the segment's id. A memfd id must be that of this descriptor,
 * whatever process and number it names. A posix name becomes the handle's id; it need not be there any more, and "/"
 * says that there never was one. "" is not known: the id is then the duplicate's, as with shmp_attach by number.
 *  @param flags        as shmp_attach().
 *  @return as shmp_attach(). Since 0.2. */
SHMP_API int shmp_attach_fd(shmp_provider *provider, int fd, const shmp_description *description, unsigned flags,
                            shmp_shmem **ret_shmem, shmp_error *reterr);

/** Attach to a name of any length that the system takes (posix), such as another library's. A name that is too long for
 *  an id leaves the handle without one.
 *  @param size  bytes to map; SHMP_WHOLE does not look at it.
 *  @return as shmp_attach(). Since 0.2. */
SHMP_API int shmp_attach_name(shmp_provider *provider, const char *name, size_t size, unsigned flags,
                              shmp_shmem **ret_shmem, shmp_error *reterr);

/** Remove a name, whoever made it and whether or not it is used (posix). Who is attached keeps the memory.
 *  @return 0; -SHMP_ENOTFOUND; -SHMP_EID it cannot be a name, or is no shared memory; -SHMP_EUNSUPPORTED;
 *          -SHMP_EINVAL; -SHMP_EOS, such as os_error EPERM of another user's. Since 0.2. */
SHMP_API int shmp_unlink(shmp_provider *provider, const char *name, shmp_error *reterr);

/** Make another handle on a segment, with the same rights: it shares the mapping, the descriptor and the id, which stay
 *  until the last such handle is closed, and takes no call of the system. It is never the owner.
 *  @param flags  SHMP_READ_ONLY (of a handle that is not), SHMP_INHERIT: each makes a mapping and a descriptor of its
 *                own, where the provider has such. A read-only handle's clones are read-only.
 *  @return as shmp_attach(). Since 0.1; shares since 0.2. */
SHMP_API int shmp_clone(const shmp_shmem *shmem, unsigned flags, shmp_shmem **ret_shmem, shmp_error *reterr);

/** Release a handle; NULL is fine. The last of those that are clones of each other unmaps the memory and closes the
 *  descriptor. The owner's destroys the segment, whatever clones there are: its posix name goes.
 *  The handle is gone whatever is returned: an error says that the system refused a step, after
 *  which all others were still taken.
 *  @return 0; -SHMP_EOS. Since 0.1. */
SHMP_API int shmp_close(shmp_shmem *shmem, shmp_error *reterr);

/** The first byte, aligned to a page (nop: as malloc), or NULL (SHMP_UNMAPPED). Valid until shmp_close(). */
SHMP_API void *shmp_data(const shmp_shmem *shmem);
/** Bytes, exactly as asked for. */
SHMP_API size_t shmp_size(const shmp_shmem *shmem);
/** The descriptor, owned by the handle and its clones, or -1 where the mechanism has none (sysv, win32, nop). Its flock
 *  tells the living posix segment from a leftover: do not unlock it. */
SHMP_API int shmp_fileno(const shmp_shmem *shmem);
/** SHMP_READ_ONLY, SHMP_OWNER. */
SHMP_API unsigned shmp_flags(const shmp_shmem *shmem);
/** The name of the mechanism that holds it, whose id it has, such as "memfd"; never "rc" or "std". A literal. */
SHMP_API const char *shmp_backend(const shmp_shmem *shmem);

/** Get what another process needs to attach. A memfd id names the descriptor in this process: it differs between
 *  handles that do not share one, and works as long as any process has the segment's descriptor open. A posix segment
 *  that has lost its name, as its owner has closed it, has no id: shmp_fileno() and shmp_locate() still work.
 *  @return 0; -SHMP_ENOTFOUND it has no name any more; -SHMP_EOS. Since 0.1. */
SHMP_API int shmp_describe(const shmp_shmem *shmem, shmp_description *ret_description, shmp_error *reterr);

/** Get an id of the descriptor, for shmp_open_fd() (memfd, posix; Linux). That of memfd is the one that shmp_describe()
 *  gives without SHMP_FD_IDS.
 *  @return 0; -SHMP_EUNSUPPORTED; -SHMP_EINVAL; -SHMP_EOS. Since 0.2. */
SHMP_API int shmp_locate(const shmp_shmem *shmem, shmp_description *ret_description, shmp_error *reterr);

/** Let the descriptor survive exec(), so that the program which replaces this one can attach. Clones share it. win32:
 * let child processes that inherit handles have this one, which keeps the segment alive.
 *  @return 0; -SHMP_EUNSUPPORTED where exec ends the segment (sysv, nop); -SHMP_EOS. Since 0.1. */
SHMP_API int shmp_persist(shmp_shmem *shmem, shmp_error *reterr);

/* ---- Hand-off through the environment ---------------------------------------------------- */

/** Set <name> to the id and <name>_SIZE to the decimal size, for processes started from now on.
 *  A name that begins with "__AFL_" takes a decimal sysv id only, since AFL++ would read any other id as somebody
 *  else's sysv segment. A target that was built for posix names (USEMMAP) wants shmp_env_pairs().
 *  @return 0; -SHMP_EINVAL the name is empty or has '=', or __AFL_ with such an id; -SHMP_EOS,
 *          after which <name> is not set. Since 0.1. */
SHMP_API int shmp_to_env(const shmp_shmem *shmem, const char *name, shmp_error *reterr);

#define SHMP_POSIX_NAMES 0x1 /* env_pairs: the target was built for posix names, "__AFL_..." takes them, too */

/** Get what shmp_to_env would set as text, for the envp of one new process, or for putenv().
 *  @param flags     SHMP_POSIX_NAMES.
 *  @param ret_id    "<name>=<id>"; ret_size: "<name>_SIZE=<size>".
 *  @param room      bytes that each of the two has: the length of the name and 32 are enough.
 *  @return as shmp_to_env(); -SHMP_EINVAL also if there is not that much room. Since 0.2. */
SHMP_API int shmp_env_pairs(const shmp_shmem *shmem, const char *name, unsigned flags, char *ret_id, char *ret_size,
                            size_t room, shmp_error *reterr);

/** Attach to what <name> and <name>_SIZE say; flags as shmp_attach().
 *  @return as shmp_attach(); -SHMP_ENOENV a variable is not set; -SHMP_EINVAL the size is not a
 *          plain decimal number. Since 0.1. */
SHMP_API int shmp_from_env(shmp_provider *provider, const char *name, unsigned flags, shmp_shmem **ret_shmem,
                           shmp_error *reterr);

/** Unset <name> and <name>_SIZE.
 *  @return 0; -SHMP_EINVAL. Since 0.2. */
SHMP_API int shmp_unset_env(const char *name, shmp_error *reterr);

/* ---- A look at the machine ---------------------------------------------------------------- */

/** A segment of this library, of any process. It may grow at its end: look at struct_size before what came later. */
typedef struct shmp_listed {
    size_t struct_size;
    const char *provider; /* "memfd", "posix", "sysv" */
    const char *command;  /* the holder's; "" is unknown */
    unsigned long long size;
    long long holder; /* a pid that holds it, as this process sees pids; 0 is unknown */
    long long user;   /* whose it is */
    long long age;    /* seconds since it was made or last given away; -1 is unknown */
    int is_alive;     /* 0: nobody holds it */
    int is_kept;      /* SHMP_KEEP */
    int is_ours;      /* 0: it cannot be told whether this library made it */
    char id[20];
} shmp_listed;

/** Called for each one; `segment` is valid during the call. Returns 0, or a positive number that
 *  ends the visit. */
typedef int (*shmp_visitor)(void *context, const shmp_listed *segment);

/** Visit the segments that a provider's mechanism holds on this machine. Other users' are visible
 *  to root only.
 *  memfd: all that are open anywhere. posix: those with a name, also of the caller's choice. sysv: those that linger or
 *  were left over, and all that are marked for removal, as this library's are while they live (is_ours is 0).
 *  @return 0; what the visitor returned; -SHMP_EUNSUPPORTED systems that do not list them; -SHMP_EINVAL;
 *          -SHMP_EOS. Since 0.1. */
SHMP_API int shmp_list(shmp_provider *provider, shmp_visitor visit, void *context, shmp_error *reterr);

#define SHMP_DRY_RUN 0x1 /* reap: visit what would be removed, and remove nothing */

/** Remove what killed processes left over: posix names that shmp_create made and that no process holds any more,
 *  which opening a posix provider does as well; and sysv segments of this user that this library made, nobody is
 *  attached to and whose last users have ended a minute ago. What lives is never removed, nor are names a caller chose.
 *  A name without a size, of a process killed between two calls, is a leftover after a minute, and so is what lingers,
 *  from when it was first found without a holder.
 *  @param visit  called for each one; may be NULL.
 *  @return 0; what the visitor returned; -SHMP_EINVAL; -SHMP_EUNSUPPORTED as shmp_list(); -SHMP_EOS,
 *          such as a file system without flock. Since 0.1. */
SHMP_API int shmp_reap(shmp_provider *provider, unsigned flags, shmp_visitor visit, void *context, shmp_error *reterr);

/** Called for each process. Returns 0, or a positive number that ends the visit. */
typedef int (*shmp_user_visitor)(void *context, long pid);

/** Visit the processes that have a segment mapped, this one included. Other users' are visible to
 *  root only.
 *  @return 0; what the visitor returned; -SHMP_EINVAL; -SHMP_EUNSUPPORTED on Windows, macOS and the
 *          BSDs; -SHMP_EOS. Since 0.1. */
SHMP_API int shmp_users(const shmp_shmem *shmem, shmp_user_visitor visit, void *context, shmp_error *reterr);

/* ---- A service: segments that no kernel manages ------------------------------------------- */

/** Creates segments for clients ("served" providers, and those of the Rust crate) and hands out their descriptors. It
 *  runs in a thread of its own, which no signal is delivered to, and keeps descriptors, of its clients and of their
 *  segments, and no mappings. What a client held it drops when that one ends. No client can hold up another one.
 *  A request that cannot be met is answered with a negative number, -SHMP_E...: -SHMP_EOS: the process has no
 *  descriptor left (ulimit -n), or the segment cannot be made; -SHMP_ESERVICE: a limit below, or
 *  a million references in all. Who sends what is no request is disconnected. */
typedef struct shmp_service shmp_service;

/** Zero it, then set struct_size = sizeof(shmp_service_options); 0 is a default everywhere. It may grow at its end. */
typedef struct shmp_service_options {
    size_t struct_size;
    unsigned flags;           /* SHMP_ANY_USER: serve every user, not this one and root alone */
    unsigned linger_ms;       /* a segment stays that long after its last client let go of it, unless descriptors run
                                 short; 0: it does not */
    unsigned idle_ms;         /* the service ends when it had no client, and nothing that lingers, for so long;
                                 0: never */
    unsigned fork_timeout_ms; /* what a client announced for its child (PreFork) is kept that long; 60,000 */
    unsigned max_clients;     /* connections at once; 4,096. One more takes the place of the one that asked for
                                 nothing for the longest time since it came; if all have asked, it is refused */
    unsigned max_frame;       /* bytes of a request; 4,096. All that there are have fewer than 40 */
    unsigned max_segments;    /* references that one client may hold, and segments that linger; 65,536 */
    unsigned reserved;        /* 0 */
    unsigned long long max_bytes; /* in all segments that one client holds, and in those that linger; 2^40 */
    const char *address;          /* a path, or "@name" of an abstract socket (Linux): at most 103 bytes; NULL: this
                                     user's own (Linux: "@shmem_providers_<uid>"; others: in a folder of his) */
} shmp_service_options;

/** Start a service. Each client takes a descriptor of this process, and so does each segment.
 *  A path is made with the permissions 0600, or 0666 with SHMP_ANY_USER. The socket of a service that has ended is
 *  replaced, which nothing else of that name ever is.
 *  @param inner  makes the segments: memfd, posix (ashmem); NULL: the best that has descriptors. The service keeps it
 *                open, or one like it that gives its segments no names.
 *  @return 0; -SHMP_ESERVICE, os_error EADDRINUSE: a living one has that address, which clients then use;
 *          -SHMP_EUNSUPPORTED `inner` has no descriptors, or Windows; -SHMP_EUNAVAILABLE nothing here has;
 *          -SHMP_EINVAL; -SHMP_ENOMEM; -SHMP_EOS. Since 0.2. */
SHMP_API int shmp_service_start(shmp_provider *inner, const shmp_service_options *options, shmp_service **ret_service,
                                shmp_error *reterr);

/** Stop it and free the handle; NULL is fine. Its clients keep what they mapped. In a forked child this closes the
 *  child's copies alone; of one that was forked without shmp_service_pre_fork() some may stay open. Excludes every
 *  other use of the handle.
 *  @return 0. Since 0.2. */
SHMP_API int shmp_service_stop(shmp_service *service, shmp_error *reterr);

/** Where it is, as options.address takes it. Valid until shmp_service_stop(). */
SHMP_API const char *shmp_service_address(const shmp_service *service);

/** Wait until it ended by itself: idle, or told so (Exit) by a client of the process that started it.
 *  @return 1 it has, or runs in another process: this one is a child of it; 0 it still runs after
 *          timeout_ms. Since 0.2. */
SHMP_API int shmp_service_wait(shmp_service *service, unsigned timeout_ms);

/** Hold the service still around fork(), so that the child has no descriptor of it: call them as shmp_pre_fork() and
 *  shmp_post_fork(), in one thread and in the child; the second also when the fork has failed. Another thread that
 *  forks waits meanwhile. A child that keeps the descriptors keeps the address taken, and clients waiting, when its
 *  parent is killed.
 *  @return 0; -SHMP_EINVAL; -SHMP_EUNSUPPORTED Windows. Since 0.2. */
SHMP_API int shmp_service_pre_fork(shmp_service *service, shmp_error *reterr);
SHMP_API int shmp_service_post_fork(shmp_service *service, int is_child, shmp_error *reterr);

/** Zero it, then set struct_size. It may grow at its end. */
typedef struct shmp_service_stats {
    size_t struct_size;
    unsigned long long clients, segments, bytes;    /* now; those that linger among them */
    unsigned long long accepted, requests, refused; /* since it started: connections, requests, those of both that were
                                                       not met */
} shmp_service_stats;

/** @return 0; -SHMP_EINVAL. Since 0.2. */
SHMP_API int shmp_service_get_stats(shmp_service *service, shmp_service_stats *ret_stats, shmp_error *reterr);

/* ---- The library ------------------------------------------------------------------------- */

/** SHMP_ABI_VERSION of the library in use: see shmp_check_abi(). */
SHMP_API unsigned shmp_abi_version(void);
/** SHMP_VERSION of the library in use. */
SHMP_API const char *shmp_version(void);

/* cffi: end */

/** Where the Rust crate has its service, but on macOS and iOS: "./libafl_unix_shmem_server". */
#define SHMP_LIBAFL_ADDRESS "@libafl_unix_shmem_server"

/** Create, in flags: the permissions of the segment, such as 0660, where the provider can (posix, sysv); the
 *  umask is not looked at. Without it, and on the rest, it is 0600. Other users attach with SHMP_ANY_USER. Who may
 * write to a posix segment may truncate it, too, and what is then touched beyond its end raises SIGBUS. */
#define SHMP_MODE(mode) (((unsigned)(mode)&0777u) << 16)

/** Refuse a library of another ABI than that of the header a program was compiled with. For programs that link
 *  the shared library: call it before anything else. It is compiled into the caller.
 *  @return 0; -SHMP_EUNAVAILABLE. Since 0.1. */
static inline int shmp_check_abi(shmp_error *reterr) {
    unsigned library = shmp_abi_version();
    if (library == SHMP_ABI_VERSION) return 0;
    if (reterr) {
        reterr->code = -SHMP_EUNAVAILABLE;
        reterr->os_error = 0;
        reterr->call = "shmp_check_abi";
        snprintf(reterr->message, sizeof reterr->message,
                 "the shmem_providers library in use has ABI %u, and this program was compiled for ABI %u: compile it "
                 "again with the library's header, or let it find the library it was compiled for",
                 library, SHMP_ABI_VERSION);
    }
    return -SHMP_EUNAVAILABLE;
}

#ifdef __cplusplus
}
#endif

#endif
