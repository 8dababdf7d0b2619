/* Runs a test program where nobody else's processes, names and System V ids come and go: as root, in namespaces of its
 * own. Include it with _GNU_SOURCE. */
#ifndef ALONE_H
#define ALONE_H

#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static int is_alone; /* nobody else has names here */

static inline _Noreturn void give_up(const char *why) {
    (void)!write(2, why, strlen(why));
    (void)!write(2, "\n", 1);
    _exit(1);
}

static inline void hang(int signal_number) {
    (void)signal_number;
    give_up("an operation hangs");
}

enum { NOT_ALONE = 99 };

/* The first process of its own namespaces. */
static inline int run_alone(int (*run)(const char *wanted), const char *wanted) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 || mount("proc", "/proc", "proc", 0, NULL) < 0 ||
        mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777") < 0)
        return NOT_ALONE;
    is_alone = 1;
    return run(wanted);
}

static inline int wait_for(pid_t child) {
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child) return NOT_ALONE;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

/* Who is not root runs among the others. alarm() ends a hang. */
static inline int run_isolated(int (*run)(const char *wanted), const char *wanted) {
    signal(SIGALRM, hang);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWPID) < 0) _exit(NOT_ALONE);
        child = fork();
        if (child == 0) exit(run_alone(run, wanted));
        _exit(wait_for(child));
    }
    int result = wait_for(child);
    return result == NOT_ALONE ? run(wanted) : result;
}

#endif
