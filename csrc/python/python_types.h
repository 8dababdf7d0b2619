/* The C types of Python's binding. They own the core's handles, so that no handle is ever in the
 * hands of Python code that could use it after another thread closed it. Limited API of 3.11. */
#ifndef SHMP_PYTHON_TYPES_H
#define SHMP_PYTHON_TYPES_H

#include <Python.h>

#include "core/core.h"

/* Add the types to the module; -1: an exception is set. */
int shmpy_add_provider_type(PyObject *module);
int shmpy_add_shmem_type(PyObject *module);
int shmpy_add_service_type(PyObject *module);
int shmpy_add_fork_functions(PyObject *module);

/* Raises what shmem_providers._errors makes of it; returns NULL. */
PyObject *shmpy_raise(const shmp_error *error);

/* Fills values[] (NULL where not given) from the arguments of a METH_FASTCALL | METH_KEYWORDS
 * method: `names` ends with NULL, the first `required` must be given, the first `positional` may
 * be given by position. */
int shmpy_arguments(const char *method, const char *const *names, Py_ssize_t required, Py_ssize_t positional,
                    PyObject *const *arguments, Py_ssize_t count, PyObject *keywords, PyObject **ret_values);

/* What a visitor finds without the GIL, in C memory, to be converted when all is there. */
typedef struct shmpy_collection {
    unsigned char *items;
    size_t item_size, count, room;
} shmpy_collection;

/* Adds a copy of an item; 1, which ends the visit, when memory is short. */
int shmpy_collect(shmpy_collection *collection, const void *item);

/* Frees the collection, and gives a list of what `convert` makes of its items; or raises what `result` of the visit
 * says. */
PyObject *shmpy_collected(shmpy_collection *collection, int result, PyObject *(*convert)(const void *item),
                          const shmp_error *error);

/* A new object of `type`, which shmpy_is_shmem_type, and that owns the handle; which is closed when NULL is given. */
PyObject *shmpy_shmem_own(PyTypeObject *type, shmp_shmem *handle);

/* Whether its objects are laid out as a _binding.ShMem. */
int shmpy_is_shmem_type(PyTypeObject *type);

/* The handle of an object that is laid out as a _binding.Provider; NULL with a TypeError that names `method`. */
shmp_provider *shmpy_provider_handle(PyObject *object, const char *method);

/* Keeps the handle from being released; NULL with an exception when it is closed. No Python code may run until it is
 * unpinned. */
shmp_shmem *shmpy_shmem_pin(PyObject *self);
void shmpy_shmem_unpin(PyObject *self);

/* Lets go of what was sent to other processes and has been read, if anything was sent. */
void shmpy_look(void);

/* Held while this process forks, and by what a child must not find half done. A thread can take it more than once. */
void shmpy_fork_lock(void);
void shmpy_fork_unlock(void);

/* Has os.fork() tell a provider, if it wants to hear of forks, as long as anything but this has a reference. */
void shmpy_watch(shmp_provider *provider);
int shmpy_hears_of_forks(const shmp_provider *provider);

/* shmp_provider_close, of whatever may be watched; NULL is fine. */
void shmpy_release_provider(shmp_provider *provider);

/* The same for all services that run. The caller has the lock. */
void shmpy_services_pre_fork(void);
void shmpy_services_post_fork(int is_child);

#endif
