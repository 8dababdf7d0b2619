/* _binding.Service: owns a running shmp_service. Python's ShMemService has one from start() to stop().
 *
 * One atomic word says whether it runs, and how many calls are inside. Who takes the last step after stop() began stops
 * it: a thread in wait() does not keep it from that for longer than a slice. */
#include "python/python_types.h"

enum { SLICE_MS = 200 }; /* how long a signal, or stop(), may wait for a thread in wait() */

static const unsigned OPEN = 1u << 31;

typedef struct ServiceObject {
    PyObject_HEAD
    shmp_service *handle;
    shmp__atomic_uint state;    /* OPEN, and the number of calls that are inside */
    PyThread_type_lock ended;   /* held until the handle is gone */
    struct ServiceObject *next; /* of those that hear of forks */
    int is_held;                /* by a fork that is under way */
} ServiceObject;

static ServiceObject *all; /* under the fork lock */

static int try_begin(ServiceObject *self) {
    unsigned state = shmp__atomic_load(&self->state);
    do {
        if (!(state & OPEN)) return 0;
    } while (!shmp__atomic_swap_if(&self->state, &state, state + 1));
    return 1;
}

static int begin(ServiceObject *self) {
    if (try_begin(self)) return 0;
    PyErr_SetString(PyExc_ValueError, "this service has been stopped");
    return -1;
}

/* It was told to stop, and nobody is inside. */
static int finish(ServiceObject *self, shmp_error *reterr) {
    shmp_service *handle = self->handle;
    int result;
    self->handle = NULL;
    Py_BEGIN_ALLOW_THREADS
    result = shmp_service_stop(handle, reterr);
    Py_END_ALLOW_THREADS
    PyThread_release_lock(self->ended);
    return result;
}

static void end(ServiceObject *self) {
    if (shmp__atomic_sub(&self->state, 1) == 1) (void)finish(self, NULL);
}

static PyObject *service_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"inner",       "address",   "flags",        "linger_ms", "idle_ms", "fork_timeout_ms",
                            "max_clients", "max_frame", "max_segments", "max_bytes", NULL};
    PyObject *inner;
    shmp_service_options options = {.struct_size = sizeof options};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "Oz|IIIIIIIK", names, &inner, &options.address,
                                     &options.flags, &options.linger_ms, &options.idle_ms, &options.fork_timeout_ms,
                                     &options.max_clients, &options.max_frame, &options.max_segments,
                                     &options.max_bytes))
        return NULL;
    shmp_provider *provider = NULL;
    if (inner != Py_None && !(provider = shmpy_provider_handle(inner, "ShMemService"))) return NULL;
    PyThread_type_lock ended = PyThread_allocate_lock();
    ServiceObject *self = ended ? (ServiceObject *)PyType_GenericAlloc(type, 0) : NULL;
    if (!self) {
        if (ended) PyThread_free_lock(ended);
        return ended ? NULL : PyErr_NoMemory();
    }
    PyThread_acquire_lock(ended, WAIT_LOCK);
    self->ended = ended;
    shmp_error error;
    int result;
    shmpy_fork_lock(); /* no child gets what is half made */
    Py_BEGIN_ALLOW_THREADS
    result = shmp_service_start(provider, &options, &self->handle, &error);
    Py_END_ALLOW_THREADS
    if (result == 0) {
        self->next = all;
        all = self;
        unsigned none = 0;
        while (!shmp__atomic_swap_if(&self->state, &none, OPEN)) continue;
    }
    shmpy_fork_unlock();
    if (result == 0) return (PyObject *)self;
    PyThread_release_lock(ended);
    Py_DECREF((PyObject *)self);
    return shmpy_raise(&error);
}

static void service_dealloc(PyObject *object) {
    ServiceObject *self = (ServiceObject *)object;
    PyTypeObject *type = Py_TYPE(object);
    shmpy_fork_lock();
    for (ServiceObject **at = &all; *at; at = &(*at)->next) {
        if (*at != self) continue;
        *at = self->next;
        break;
    }
    shmpy_fork_unlock();
    if (self->handle) (void)finish(self, NULL);
    PyThread_free_lock(self->ended);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyObject *stop(PyObject *object, PyObject *unused) {
    ServiceObject *self = (ServiceObject *)object;
    (void)unused;
    unsigned state = shmp__atomic_load(&self->state);
    while (state & OPEN && !shmp__atomic_swap_if(&self->state, &state, state & ~OPEN)) continue;
    if (state == OPEN) {
        shmp_error error;
        if (finish(self, &error) < 0) return shmpy_raise(&error);
        Py_RETURN_NONE;
    }
    for (;;) { /* another thread is inside, or stops it */
        PyLockStatus status;
        Py_BEGIN_ALLOW_THREADS
        status = PyThread_acquire_lock_timed(self->ended, SLICE_MS * 1000, 0);
        Py_END_ALLOW_THREADS
        if (status == PY_LOCK_ACQUIRED) break;
        if (PyErr_CheckSignals() < 0) return NULL;
    }
    PyThread_release_lock(self->ended);
    Py_RETURN_NONE;
}

/* _wait(milliseconds): whether it has ended; a negative number is for ever. */
static PyObject *service_wait(PyObject *object, PyObject *milliseconds) {
    ServiceObject *self = (ServiceObject *)object;
    long long left = PyLong_AsLongLong(milliseconds);
    if (left == -1 && PyErr_Occurred()) return NULL;
    int is_endless = left < 0, has_ended;
    do {
        if (!try_begin(self)) Py_RETURN_TRUE;
        unsigned slice = is_endless || left > SLICE_MS ? SLICE_MS : (unsigned)left;
        Py_BEGIN_ALLOW_THREADS
        has_ended = shmp_service_wait(self->handle, slice);
        Py_END_ALLOW_THREADS
        end(self);
        if (PyErr_CheckSignals() < 0) return NULL;
        left -= is_endless ? 0 : slice;
    } while (!has_ended && (is_endless || left > 0));
    return PyBool_FromLong(has_ended);
}

/* Gives (clients, segments, bytes, accepted, requests, refused). */
static PyObject *stats(PyObject *object, PyObject *unused) {
    ServiceObject *self = (ServiceObject *)object;
    shmp_service_stats stats = {.struct_size = sizeof stats};
    shmp_error error;
    int result;
    (void)unused;
    if (begin(self) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = shmp_service_get_stats(self->handle, &stats, &error);
    Py_END_ALLOW_THREADS
    end(self);
    if (result < 0) return shmpy_raise(&error);
    return Py_BuildValue("KKKKKK", stats.clients, stats.segments, stats.bytes, stats.accepted, stats.requests,
                         stats.refused);
}

static PyObject *get_address(PyObject *object, void *unused) {
    ServiceObject *self = (ServiceObject *)object;
    (void)unused;
    if (begin(self) < 0) return NULL;
    PyObject *address = PyUnicode_DecodeFSDefault(shmp_service_address(self->handle));
    end(self);
    return address;
}

void shmpy_services_pre_fork(void) {
    for (ServiceObject *self = all; self; self = self->next) {
        if (!try_begin(self)) continue;
        int result;
        Py_BEGIN_ALLOW_THREADS
        result = shmp_service_pre_fork(self->handle, NULL);
        Py_END_ALLOW_THREADS
        self->is_held = result == 0;
        if (!self->is_held) end(self);
    }
}

/* In a child no other thread is inside any more. */
static void begin_anew(ServiceObject *self) {
    unsigned state = shmp__atomic_load(&self->state);
    while (!shmp__atomic_swap_if(&self->state, &state, state & OPEN)) continue;
    if (!(state & OPEN) && self->handle) (void)finish(self, NULL);
}

void shmpy_services_post_fork(int is_child) {
    for (ServiceObject *self = all; self; self = self->next) {
        if (self->is_held) {
            self->is_held = 0;
            Py_BEGIN_ALLOW_THREADS(void)
            shmp_service_post_fork(self->handle, is_child, NULL);
            Py_END_ALLOW_THREADS
            if (!is_child) end(self);
        }
        if (is_child) begin_anew(self);
    }
}

static PyMethodDef methods[] = {
    {"stop", stop, METH_NOARGS, "stop($self, /)\n--\n\nStop it, and wait until it has ended."},
    {"wait", service_wait, METH_O,
     "wait($self, milliseconds, /)\n--\n\nWait until it has ended, for ever if the number is negative; tell whether it "
     "has."},
    {"stats", stats, METH_NOARGS,
     "stats($self, /)\n--\n\nGive clients, segments, bytes, connections so far, requests and refused ones."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef properties[] = {
    {"address", get_address, NULL, "Where it is.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, (void *)service_new},
    {Py_tp_dealloc, (void *)service_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, properties},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "shmem_providers._binding.Service",
    .basicsize = sizeof(ServiceObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

int shmpy_add_service_type(PyObject *module) {
    PyObject *type = PyType_FromSpec(&spec);
    int result = type ? PyModule_AddType(module, (PyTypeObject *)type) : -1;
    Py_XDECREF(type);
    return result;
}
