/* System calls of Unix, for the backends: one function a call, which deals with EINTR and gives
 * the result, or -errno. Descriptors are close-on-exec. */
#ifndef SHMP_OS_UNIX_H
#define SHMP_OS_UNIX_H

#include "core/table.h"
#include "os/os.h"

#include <errno.h> /* the backends judge some errors */

/* realloc; NULL: there is none, and `memory` is as it was. */
void *shmp__os_enlarge(void *memory, size_t size);

long long shmp__os_now(void); /* seconds */
void shmp__os_pause(void);    /* for a millisecond */
void shmp__os_yield(void);    /* lets another thread go on */
void *shmp__os_thread(void);  /* stands for this thread, also in a child that it forks */

/* What a call that opens gave, or -errno; moved out of the way of who closed stdin, stdout or stderr, as others write
 * there. */
int shmp__os_above_stdio(int fd);

/* Lets a descriptor survive exec. */
int shmp__os_keep_on_exec(int fd);

/* Calls visit for each process that maps what this one has mapped at `data`; stops when it gives
 * non-zero, and gives that. */
int shmp__os_each_user(const void *data, int (*visit)(void *context, long pid), void *context);

/* Whether an error says that the system has no such thing for this kind of file. */
int shmp__os_is_unsupported(int error);

/* Whether an error says that this process or machine is out of something, and so nothing of what was opened. */
int shmp__os_is_shortage(int error);

typedef struct shmp__os_file {
    unsigned long long size, inode, device, links;
    unsigned long user, mode; /* mode: the permissions alone */
    unsigned long granule;    /* mappings come in multiples of it; 0: in pages */
    long long changed;        /* shmp__os_now() when its size, name or mode last changed */
    int is_regular;
} shmp__os_file;

int shmp__os_map(int fd, size_t size, int read_only, void **ret_data);
int shmp__os_close(int fd);
int shmp__os_truncate(int fd, size_t size);
int shmp__os_reserve(int fd, size_t size);
int shmp__os_chmod(int fd, unsigned mode);
int shmp__os_stat(int fd, shmp__os_file *ret_file);

/* Bytes and files that the file system of `fd` has room for. */
int shmp__os_free_space(int fd, unsigned long long *ret_bytes, unsigned long long *ret_files);

/* How many more descriptors this process may have. */
int shmp__os_free_descriptors(unsigned long long *ret_count);

unsigned long shmp__os_user(void); /* whose rights this process has */

extern const char shmp__os_shm_place[]; /* where names are, for messages: "/dev/shm" */

/* Whether a file is of the file system where names are, whatever kind that is. */
int shmp__os_is_in_shm_place(const shmp__os_file *file);

/* Holds a shared lock for as long as this open file, its duplicates and its mappings live; -EWOULDBLOCK when somebody
 * has it alone. */
int shmp__os_lock_shared(int fd);

/* Takes the lock for itself alone, until close: 0; -EWOULDBLOCK when somebody holds it. */
int shmp__os_lock_alone(int fd);

/* Whether names can be listed, so that leftovers are removed, and the lock is needed to tell them. */
extern const int shmp__os_shm_is_listed;

/* mode: of a new one, narrowed by the umask; 0: open what is there. */
int shmp__os_shm_open(const char *name, unsigned mode, int read_only);
/* 1: somebody has the file open for writing, in whatever pid namespace; 0: nobody but `fd`; negative: this file system,
 * or this user, cannot tell. */
int shmp__os_is_open_elsewhere(int fd);
/* A number of 2 to 5 that stays with the file. 0: it bears none. */
int shmp__os_mark(int fd, unsigned mark);
unsigned shmp__os_mark_of(int fd);
int shmp__os_shm_unlink(const char *name);
/* Where names are listed. Gives a file another name, in one step; -EEXIST: that is taken. */
int shmp__os_shm_rename(const char *name, const char *new_name);
/* What is under a name, without opening it. */
int shmp__os_shm_look(const char *name, shmp__os_file *ret_file);
/* The same as a descriptor, for fstat, close and shmp__os_open_seen. */
int shmp__os_shm_look_at(const char *name);

typedef struct shmp__os_segment {
    int id, key;
    size_t size;
    unsigned long user, creator; /* users */
    unsigned mode;               /* the permissions alone */
    int is_removed;              /* it is marked for removal */
    unsigned long attached;      /* how often */
    long creator_pid, last_pid;  /* 0: none, or of another pid namespace */
    long long changed;           /* shmp__os_now() when it was last made, attached to, given away or changed */
} shmp__os_segment;

/* A new one. */
int shmp__os_shmget(int key, size_t size, unsigned mode);
int shmp__os_shmat(int id, int read_only, void **ret_data);
int shmp__os_shmdt(void *data);
int shmp__os_shm_remove(int id);
int shmp__os_shm_segment(int id, shmp__os_segment *ret_segment);
extern const char shmp__os_sysctl[]; /* what the names of the limits begin with, for messages */
/* Others can still attach to a segment that is marked for removal. */
extern const int shmp__os_shm_attaches_removed;
/* Visits all segments of this machine that this user may see. */
int shmp__os_each_segment(int (*visit)(void *context, const shmp__os_segment *segment), void *context);
int shmp__os_shm_limits(unsigned long long *ret_bytes, unsigned long long *ret_segments);

/* Takes the memory of a mapping now, instead of at each page's first use; unsupported by most. */
int shmp__os_populate(void *data, size_t size);

/* 1: the size can never change; 0: it can; negative: no shared memory, as far as that can be told. */
int shmp__os_size_is_sealed(int fd);

/* A visitor that gives non-zero ends the visit, which then gives that: a positive number as it likes, or -errno. */
int shmp__os_each_shm_name(int (*visit)(void *context, const char *name), void *context);
/* Puts in the inodes of all files that somebody has a lease on; negative: memory is short. */
int shmp__os_find_leased(shmp__table *inodes);

typedef struct shmp__os_holder {
    unsigned long long device, inode; /* of a file */
    long pid;                         /* who holds a flock on it and has it mapped; 0: nobody that can be seen */
} shmp__os_holder;
/* Fills in the pids, which are 0 before. */
int shmp__os_find_holders(shmp__os_holder *holders, size_t count);

enum { SHMP__OS_COMMAND_ROOM = 24 };
/* Printable; "": it cannot be seen. */
void shmp__os_command_of(long pid, char ret_command[SHMP__OS_COMMAND_ROOM]);
/* Whether a process certainly has ended. */
int shmp__os_has_ended(long pid);

/* Linux only. */
int shmp__os_memfd_create(int noexec);
int shmp__os_seal_size(int fd);
/* This process's pid as /proc has it: getpid() lies in a pid namespace newer than /proc. */
long shmp__os_proc_pid(void);
/* Calls visit with the folder of each thread of a process ("/proc/<pid>/task/<tid>/"): when its main thread has ended,
 * its own folder is empty. */
int shmp__os_each_thread(long pid, int (*visit)(void *context, const char *folder), void *context);
/* Looks at another process's descriptor, without opening what it is: that can be anything. For fstat, close and: */
int shmp__os_look_at_fd_of(long pid, int fd);
/* Opens anew what such a look, or another descriptor, is. */
int shmp__os_open_seen(int seen, int read_only);

/* Linux only, os_proc.c. */

/* 0 for the error of a look at what has just gone, or is another user's; else the error. */
int shmp__os_passed_over(int error);
int shmp__os_each_process(int (*visit)(void *context, long pid), void *context);
/* folder: where its descriptors are, open for as long as the visit takes: what follows is cheaper so than by path. */
int shmp__os_each_fd(long pid, int (*visit)(void *context, int folder, long fd), void *context);
int shmp__os_is_our_memfd(int folder, long fd);
int shmp__os_fd_is_in_shm_place(int folder, long fd);
int shmp__os_may_be_ashmem(int folder, long fd);
/* As shmp__os_look_at_fd_of and shmp__os_open_seen, to read. */
int shmp__os_look_at_fd_in(int folder, long fd);
int shmp__os_open_seen_in(int own_folder, int seen);
int shmp__os_open_own_folder(void); /* where this thread's descriptors are */
/* Who runs a process, also one that nobody may look at; -ENOENT: it has ended. */
int shmp__os_user_of(long pid, unsigned long *ret_user);
/* 1: it runs as this process's user; root's may also be one that nobody may look at. 0: it does not, or has ended. */
int shmp__os_is_users_process(long pid);

#endif
