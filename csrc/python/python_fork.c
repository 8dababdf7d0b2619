/* Forks of this process, for the providers and services that have to hear of them: whichever interpreter forks, so that
 * what is known of them is the process's. os.fork() calls the two functions that are added here.
 *
 * One lock is held from before a fork until after it, and from an explicit pre_fork() to its post_fork(): two threads
 * that fork go one after the other, and a child finds all of this whole. A thread can take it more than once. */
#include "python/python_types.h"

#include <stdlib.h>

static PyThread_type_lock lock;
static shmp__atomic_u64 holder; /* the thread, plus 1; 0: none */
static unsigned depth;          /* how often it has taken the lock */

/* Those that hear of forks, with a reference each; they go when it is the only one. */
static shmp_provider **watched;
static size_t room;
static shmp__atomic_uint count;

/* Those that were told of the fork under way, with a reference each. */
static shmp_provider **told;
static size_t told_count;

static uint64_t this_thread(void) { return (uint64_t)PyThread_get_thread_ident() + 1; }

static void set_holder(uint64_t thread) {
    uint64_t before = shmp__atomic_load64(&holder);
    while (!shmp__atomic_swap_if64(&holder, &before, thread)) continue;
}

void shmpy_fork_lock(void) {
    if (shmp__atomic_load64(&holder) != this_thread()) {
        if (!PyThread_acquire_lock(lock, NOWAIT_LOCK)) {
            Py_BEGIN_ALLOW_THREADS
            PyThread_acquire_lock(lock, WAIT_LOCK);
            Py_END_ALLOW_THREADS
        }
        set_holder(this_thread());
    }
    depth++;
}

void shmpy_fork_unlock(void) {
    if (shmp__atomic_load64(&holder) != this_thread()) return; /* such as a post_fork() that no pre_fork() was before */
    if (--depth > 0) return;
    set_holder(0);
    PyThread_release_lock(lock);
}

static void add(shmp_provider *provider) {
    unsigned used = shmp__atomic_load(&count);
    for (unsigned i = 0; i < used; i++)
        if (watched[i] == provider) return;
    if (used == room) {
        shmp_provider **larger = realloc(watched, (room + 16) * sizeof *watched);
        if (!larger) return; /* its children will have segments that nobody counts */
        watched = larger;
        room += 16;
    }
    watched[used] = shmp_provider_ref(provider);
    shmp__atomic_add(&count, 1);
}

int shmpy_hears_of_forks(const shmp_provider *provider) {
    if (provider->ops->route) provider = provider->inner; /* of "std" the chosen one */
    return provider && provider->ops->pre_fork;
}

void shmpy_watch(shmp_provider *provider) {
    if (!shmpy_hears_of_forks(provider)) return;
    shmpy_fork_lock();
    add(provider->ops->route ? provider->inner : provider);
    shmpy_fork_unlock();
}

/* One that nobody else has any more; the caller has the lock. */
static shmp_provider *take_unused(void) {
    unsigned used = shmp__atomic_load(&count);
    for (unsigned i = 0; i < used; i++) {
        shmp_provider *provider = watched[i];
        if (shmp__atomic_load(&provider->references) != 1) continue;
        watched[i] = watched[used - 1];
        shmp__atomic_sub(&count, 1);
        return provider;
    }
    return NULL;
}

void shmpy_release_provider(shmp_provider *provider) {
    if (!provider) return;
    if (shmp__atomic_load(&count) == 0) {
        shmp_provider_close(provider);
        return;
    }
    shmp_provider *unused = provider; /* what one wraps can become the next */
    while (unused) {
        Py_BEGIN_ALLOW_THREADS
        shmp_provider_close(unused);
        Py_END_ALLOW_THREADS
        shmpy_fork_lock();
        unused = take_unused();
        shmpy_fork_unlock();
    }
}

static void tell_provider(shmp_provider *provider, int of_hosts) {
    int result = -1;
    for (size_t i = 0; i < told_count; i++)
        if (told[i] == provider) return;
    (void)shmp_provider_ref(provider);
    Py_BEGIN_ALLOW_THREADS
    if (of_hosts || !shmp__hosts_service(provider)) result = shmp_pre_fork(provider, NULL);
    if (result < 0) shmp_provider_close(provider);
    Py_END_ALLOW_THREADS
    if (result == 0) told[told_count++] = provider;
}

/* Announces a fork to all that shall hear of it. What cannot be told does not keep the process from forking: a provider
 * whose service is lost says so at its next use. */
static PyObject *before_fork(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    shmpy_fork_lock();
    unsigned used = shmp__atomic_load(&count);
    told = used ? malloc(used * sizeof(shmp_provider *)) : NULL;
    for (int of_hosts = 0; told && of_hosts < 2; of_hosts++) /* whose services answer nobody from then on */
        for (unsigned i = 0; i < used; i++) tell_provider(watched[i], of_hosts);
    shmpy_services_pre_fork(); /* after the providers, which ask them */
    Py_RETURN_NONE;
}

/* _after_fork(is_child): also when the fork failed, in the parent that would have been. */
static PyObject *after_fork(PyObject *self, PyObject *is_child) {
    int truth = PyObject_IsTrue(is_child);
    (void)self;
    if (truth < 0) return NULL;
    if (shmp__atomic_load64(&holder) != this_thread()) Py_RETURN_NONE; /* nobody said that it would fork */
    shmpy_services_post_fork(truth);
    shmp_provider **providers = told;
    size_t all = told_count;
    told = NULL;
    told_count = 0;
    Py_BEGIN_ALLOW_THREADS
    for (size_t i = all; i > 0; i--) (void)shmp_post_fork(providers[i - 1], truth, NULL); /* hosts first */
    Py_END_ALLOW_THREADS
    for (size_t i = 0; i < all; i++) shmpy_release_provider(providers[i]);
    free(providers);
    shmpy_fork_unlock();
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"_before_fork", before_fork, METH_NOARGS, NULL},
    {"_after_fork", after_fork, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

int shmpy_add_fork_functions(PyObject *module) {
    static shmp__atomic_pointer made; /* by whichever interpreter is first */
    PyThread_type_lock fresh = PyThread_allocate_lock();
    void *none = NULL;
    if (!fresh) {
        PyErr_NoMemory();
        return -1;
    }
    if (shmp__atomic_swap_pointer_if(&made, &none, fresh))
        lock = fresh;
    else
        PyThread_free_lock(fresh);
    return PyModule_AddFunctions(module, functions);
}
