/* _binding.ShMem: owns a shmp_shmem, exports its memory, and releases it exactly once, whichever
 * thread does what.
 *
 * One atomic word says it all: whether it is open, how many short accesses are under way ("pins"), how many buffer
 * views are alive, and whether there ever was one. Nothing begins unless it is open, which zeroed memory is not.
 * Closing waits for pins only, and he who takes the last step lets go of name and descriptor. The memory goes with them
 * if it never was exported; else with this object, which outlives all that reads it: views hold it, and so do those who
 * read a buffer, release it at once and keep its exporter (NumPy's ndarray(buffer=...), torch.frombuffer).
 *
 * Between begin(PIN) and end(PIN) no Python code runs, and so no fork by the same thread: the pins that a forked
 * child finds are those of threads that it does not have. They go when it first looks; the word has the low bits of the
 * mark of the process whose pins it counts. */
#include "python/python_types.h"

#include "os/os.h"

#include <string.h>

enum { VIEW_BITS = 28, PIN_BITS = 16, MARK_BITS = 18 };
#define FIELD(bits, first) ((((uint64_t)1 << (bits)) - 1) << (first))
static const uint64_t VIEW = 1, VIEWS = FIELD(VIEW_BITS, 0);
static const uint64_t PIN = (uint64_t)1 << VIEW_BITS, PINS = FIELD(PIN_BITS, VIEW_BITS);
static const uint64_t MARK = FIELD(MARK_BITS, VIEW_BITS + PIN_BITS);
static const uint64_t EXPORTED = (uint64_t)1 << 62, OPEN = (uint64_t)1 << 63;
#undef FIELD

typedef struct ShMemObject {
    PyObject_HEAD
    shmp__atomic_u64 state;
    shmp_shmem *handle;      /* valid while open or pinned; what is left of an exported one, until the end */
    shmp_provider *provider; /* the handle's; it holds a reference, so that its mark can always be read */
    unsigned char *data;     /* valid while pinned or viewed */
    Py_ssize_t size;
    const char *provider_name; /* NULL: it never had a handle */
    int readonly;
    int has_warned;
    PyObject *failure; /* the exception that every use raises: this could not be attached in unpickling */
} ShMemObject;

static unsigned views_of(uint64_t state) { return (unsigned)(state & VIEWS); }

/* For those that cannot raise; `where` is what the message says. */
static void report_unraisable(const shmp_error *error, PyObject *where) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    shmpy_raise(error);
    PyErr_WriteUnraisable(where);
    PyErr_Restore(type, value, traceback);
}

static int close_handle(ShMemObject *self, shmp_error *reterr) {
    shmp_shmem *handle = self->handle;
    int result;
    self->handle = NULL;
    Py_BEGIN_ALLOW_THREADS
    result = shmp_close(handle, reterr);
    Py_END_ALLOW_THREADS
    return result;
}

/* It is closed, and nothing is under way: lets go of all but memory that was exported. */
static int release(ShMemObject *self, shmp_error *reterr) {
    if (!(shmp__atomic_load64(&self->state) & EXPORTED)) return close_handle(self, reterr);
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = shmp__retire(self->handle, reterr);
    Py_END_ALLOW_THREADS
    return result;
}

static void release_quietly(ShMemObject *self) {
    shmp_error error;
    if (release(self, &error) < 0) report_unraisable(&error, (PyObject *)self);
}

/* A failed one raises the same each time, but not the same object, which would gather tracebacks. */
static void raise_closed(const ShMemObject *self) {
    if (!self->failure) {
        PyErr_SetString(PyExc_ValueError, "this ShMem is closed");
        return;
    }
    PyObject *arguments = PyObject_GetAttrString(self->failure, "args");
    if (arguments) PyErr_SetObject((PyObject *)Py_TYPE(self->failure), arguments);
    Py_XDECREF(arguments);
}

static uint64_t mark_of(shmp_provider *provider) {
    return (uint64_t)shmp__process_mark(provider) << (VIEW_BITS + PIN_BITS) & MARK;
}

/* The state of one that is open without the pins that came over fork. */
static uint64_t without_inherited(const ShMemObject *self, uint64_t state) {
    uint64_t mark = mark_of(self->provider);
    return (state & MARK) == mark ? state : (state & ~(PINS | MARK)) | mark;
}

/* Adds a pin or a view; -1 with an exception when it is closed. */
static int begin(ShMemObject *self, uint64_t what) {
    uint64_t state = shmp__atomic_load64(&self->state), next;
    do {
        if (!(state & OPEN)) {
            raise_closed(self);
            return -1;
        }
        next = without_inherited(self, state) + what;
        if (what == VIEW) next |= EXPORTED;
    } while (!shmp__atomic_swap_if64(&self->state, &state, next));
    return 0;
}

static void end(ShMemObject *self, uint64_t what) {
    uint64_t before = shmp__atomic_sub64(&self->state, what);
    if (what == PIN && (before & (OPEN | PINS)) == PIN) release_quietly(self);
}

/* For what needs no memory but is refused on a closed one; -1 with an exception. */
static int check_open(ShMemObject *self) {
    if (begin(self, PIN) < 0) return -1;
    end(self, PIN);
    return 0;
}

shmp_shmem *shmpy_shmem_pin(PyObject *self) {
    return begin((ShMemObject *)self, PIN) < 0 ? NULL : ((ShMemObject *)self)->handle;
}

void shmpy_shmem_unpin(PyObject *self) { end((ShMemObject *)self, PIN); }

/* Marks it closed; gives the state before, without OPEN when there was nothing to do. With
 * `unless_viewed` a viewed segment is left alone. */
static uint64_t mark_closed(ShMemObject *self, int unless_viewed) {
    uint64_t state = shmp__atomic_load64(&self->state), cleaned;
    do {
        if (!(state & OPEN)) return state;
        cleaned = without_inherited(self, state);
        if (unless_viewed && views_of(cleaned)) return cleaned;
    } while (!shmp__atomic_swap_if64(&self->state, &state, cleaned & ~OPEN));
    return cleaned;
}

PyObject *shmpy_shmem_own(PyTypeObject *type, shmp_shmem *handle) {
    ShMemObject *self = (ShMemObject *)PyType_GenericAlloc(type, 0);
    if (!self) {
        (void)shmp_close(handle, NULL);
        return NULL;
    }
    self->handle = handle;
    self->provider = shmp_provider_ref(handle->mapping->provider);
    self->data = shmp_data(handle);
    self->size = (Py_ssize_t)shmp_size(handle);
    self->readonly = !!(handle->flags & SHMP_READ_ONLY);
    self->provider_name = shmp_backend(handle);
    uint64_t none = 0; /* last, as without the GIL a thread that asks gc for all objects may have it by now */
    while (!shmp__atomic_swap_if64(&self->state, &none, OPEN | mark_of(self->provider))) continue;
    return (PyObject *)self;
}

static PyObject *shmem_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    (void)type, (void)arguments, (void)keywords;
    PyErr_SetString(PyExc_TypeError, "a ShMem is made by a provider: StdShMemProvider().new_shmem(size)");
    return NULL;
}

/* _failed(exception): stands for a segment that could not be attached. */
static PyObject *failed(PyObject *type, PyObject *exception) {
    PyObject *self = PyType_GenericAlloc((PyTypeObject *)type, 0);
    if (!self) return NULL;
    Py_INCREF(exception);
    ((ShMemObject *)self)->failure = exception;
    return self;
}

static void shmem_finalize(PyObject *object) {
    ShMemObject *self = (ShMemObject *)object;
    if (!(shmp__atomic_load64(&self->state) & OPEN) || self->has_warned) return;
    if (!shmp__is_made_here(self->handle)) return; /* inherited by fork: its parent's to close */
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    self->has_warned = 1;
    if (PyErr_ResourceWarning(object, 1, "unclosed %R", object) < 0) PyErr_WriteUnraisable(object);
    PyErr_Restore(type, value, traceback);
}

/* Whoever uses it has a reference: nobody does. */
static void shmem_dealloc(PyObject *object) {
    ShMemObject *self = (ShMemObject *)object;
    PyTypeObject *type = Py_TYPE(object);
    shmp_error error;
    if (self->handle && close_handle(self, &error) < 0) report_unraisable(&error, (PyObject *)type);
    shmpy_release_provider(self->provider);
    Py_XDECREF(self->failure);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

/* Not by comparing with the type, which each interpreter has its own of. */
int shmpy_is_shmem_type(PyTypeObject *type) {
    while (type && PyType_GetSlot(type, Py_tp_dealloc) != (void *)shmem_dealloc)
        type = PyType_GetSlot(type, Py_tp_base);
    return !!type;
}

static PyObject *shmem_close(PyObject *object, PyObject *unused) {
    ShMemObject *self = (ShMemObject *)object;
    (void)unused;
    uint64_t state = mark_closed(self, 1);
    if (!(state & OPEN)) Py_RETURN_NONE;
    if (views_of(state))
        return PyErr_Format(PyExc_BufferError,
                            "close: %u views of this segment are alive (memoryview, NumPy, ctypes): release them "
                            "first, or leave a with block, which closes all the same. In Jupyter and at a prompt Out, "
                            "_ and the last traceback keep some",
                            views_of(state));
    shmp_error error;
    if (!(state & PINS) && release(self, &error) < 0) return shmpy_raise(&error);
    shmpy_look();
    Py_RETURN_NONE;
}

static PyObject *shmem_enter(PyObject *object, PyObject *unused) {
    (void)unused;
    if (check_open((ShMemObject *)object) < 0) return NULL;
    Py_INCREF(object);
    return object;
}

/* Live views do not make it fail, for that would hide the exception of the block. */
static PyObject *shmem_exit(PyObject *object, PyObject *arguments) {
    ShMemObject *self = (ShMemObject *)object;
    (void)arguments;
    if ((mark_closed(self, 0) & (OPEN | PINS)) == OPEN) release_quietly(self);
    Py_RETURN_NONE;
}

static int shmem_getbuffer(PyObject *object, Py_buffer *view, int flags) {
    ShMemObject *self = (ShMemObject *)object;
    view->obj = NULL;
    if (begin(self, VIEW) < 0) return -1;
    int result = PyBuffer_FillInfo(view, object, self->data, self->size, self->readonly, flags);
    if (result < 0) end(self, VIEW);
    return result;
}

static void shmem_releasebuffer(PyObject *object, Py_buffer *view) {
    (void)view;
    end((ShMemObject *)object, VIEW);
}

static Py_ssize_t shmem_length(PyObject *object) {
    ShMemObject *self = (ShMemObject *)object;
    return check_open(self) < 0 ? -1 : self->size;
}

static int is_inside(const ShMemObject *self, Py_ssize_t index) {
    if (index >= 0 && index < self->size) return 1;
    PyErr_SetString(PyExc_IndexError, "ShMem index out of range");
    return 0;
}

/* The position that a key means, which may be beyond the end; -1 with an exception may be one too. */
static Py_ssize_t to_index(const ShMemObject *self, PyObject *key) {
    Py_ssize_t index = PyNumber_AsSsize_t(key, PyExc_IndexError);
    return index < 0 && !PyErr_Occurred() ? index + self->size : index;
}

static PyObject *shmem_item(PyObject *object, Py_ssize_t index) {
    ShMemObject *self = (ShMemObject *)object;
    if (begin(self, PIN) < 0) return NULL;
    int value = is_inside(self, index) ? self->data[index] : -1;
    end(self, PIN);
    return value < 0 ? NULL : PyLong_FromLong(value);
}

/* Whether the bytes are there, one after the other. Most places are ruled out by their first and last byte. */
static int find(const unsigned char *in, size_t size, const unsigned char *what, size_t length) {
    if (length == 0) return 1;
    while (size >= length) {
        const unsigned char *at = memchr(in, what[0], size - length + 1);
        if (!at) return 0;
        if (at[length - 1] == what[length - 1] && memcmp(at, what, length) == 0) return 1;
        size -= (size_t)(at - in) + 1;
        in = at + 1;
    }
    return 0;
}

/* As for bytes: of a number, whether it is one of the bytes; else whether the bytes of a buffer are there. */
static int shmem_contains(PyObject *object, PyObject *what) {
    ShMemObject *self = (ShMemObject *)object;
    Py_buffer buffer = {.obj = NULL};
    unsigned char byte;
    int result = -1;
    if (PyIndex_Check(what)) {
        Py_ssize_t number = PyNumber_AsSsize_t(what, NULL);
        if (number == -1 && PyErr_Occurred()) return -1;
        if (number < 0 || number > 255) {
            PyErr_SetString(PyExc_ValueError, "a ShMem has bytes: an int from 0 to 255, or a bytes-like object");
            return -1;
        }
        byte = (unsigned char)number;
        buffer.buf = &byte;
        buffer.len = 1;
    } else if (PyObject_GetBuffer(what, &buffer, PyBUF_SIMPLE) < 0) {
        return -1;
    }
    if (begin(self, PIN) == 0) {
        Py_BEGIN_ALLOW_THREADS
        result = find(self->data, (size_t)self->size, buffer.buf, (size_t)buffer.len);
        Py_END_ALLOW_THREADS
        end(self, PIN);
    }
    if (buffer.obj) PyBuffer_Release(&buffer);
    return result;
}

static int wrong_key(PyObject *key) {
    PyErr_Format(PyExc_TypeError, "ShMem indices are integers or slices, not %R", key);
    return -1;
}

static PyObject *shmem_subscript(PyObject *object, PyObject *key) {
    ShMemObject *self = (ShMemObject *)object;
    if (PyIndex_Check(key)) {
        Py_ssize_t index = to_index(self, key);
        return index == -1 && PyErr_Occurred() ? NULL : shmem_item(object, index);
    }
    Py_ssize_t start, stop, step;
    if (!PySlice_Check(key)) return wrong_key(key), NULL;
    if (PySlice_Unpack(key, &start, &stop, &step) < 0) return NULL;
    Py_ssize_t count = PySlice_AdjustIndices(self->size, &start, &stop, step);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, count);
    if (!bytes || begin(self, PIN) < 0) {
        Py_XDECREF(bytes);
        return NULL;
    }
    unsigned char *to = (unsigned char *)PyBytes_AsString(bytes);
    if (step == 1)
        memcpy(to, self->data + start, (size_t)count);
    else
        for (Py_ssize_t i = 0; i < count; i++) to[i] = self->data[start + i * step];
    end(self, PIN);
    return bytes;
}

static int set_item(ShMemObject *self, PyObject *key, PyObject *value) {
    Py_ssize_t index = to_index(self, key);
    if (index == -1 && PyErr_Occurred()) return -1;
    if (!PyIndex_Check(value)) {
        PyErr_Format(PyExc_TypeError, "a ShMem item is an int from 0 to 255, not %R", value);
        return -1;
    }
    Py_ssize_t byte = PyNumber_AsSsize_t(value, PyExc_ValueError);
    if (byte == -1 && PyErr_Occurred()) return -1;
    if (byte < 0 || byte > 255) {
        PyErr_Format(PyExc_ValueError, "a ShMem item is an int from 0 to 255, not %zd", byte);
        return -1;
    }
    if (begin(self, PIN) < 0) return -1;
    int inside = is_inside(self, index);
    if (inside) self->data[index] = (unsigned char)byte;
    end(self, PIN);
    return inside ? 0 : -1;
}

/* memmove for any step: `from` may be a view of this very segment. */
static int copy_in(unsigned char *to, Py_ssize_t step, const unsigned char *from, Py_ssize_t count) {
    if (step == 1) {
        memmove(to, from, (size_t)count);
        return 0;
    }
    unsigned char *copy = PyMem_Malloc((size_t)count);
    if (!copy) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(copy, from, (size_t)count);
    for (Py_ssize_t i = 0; i < count; i++) to[i * step] = copy[i];
    PyMem_Free(copy);
    return 0;
}

static int set_slice(ShMemObject *self, PyObject *key, PyObject *value) {
    Py_ssize_t start, stop, step;
    if (PySlice_Unpack(key, &start, &stop, &step) < 0) return -1;
    Py_ssize_t count = PySlice_AdjustIndices(self->size, &start, &stop, step);
    Py_buffer source;
    if (PyObject_GetBuffer(value, &source, PyBUF_SIMPLE) < 0) return -1;
    int result = -1;
    if (source.len != count)
        PyErr_Format(PyExc_IndexError, "ShMem slice assignment: %zd bytes do not fit a slice of %zd", source.len,
                     count);
    else
        result = begin(self, PIN);
    if (result == 0) {
        result = copy_in(self->data + start, step, source.buf, count);
        end(self, PIN);
    }
    PyBuffer_Release(&source);
    return result;
}

static int shmem_ass_subscript(PyObject *object, PyObject *key, PyObject *value) {
    ShMemObject *self = (ShMemObject *)object;
    if (!value || self->readonly) {
        if (check_open(self) < 0) return -1;
        PyErr_SetString(PyExc_TypeError, value ? "this ShMem is read-only: attach without read_only to write"
                                               : "the size of a ShMem cannot change: assign, do not delete");
        return -1;
    }
    if (PyIndex_Check(key)) return set_item(self, key, value);
    return PySlice_Check(key) ? set_slice(self, key, value) : wrong_key(key);
}

static PyObject *shmem_fileno(PyObject *object, PyObject *unused) {
    ShMemObject *self = (ShMemObject *)object;
    (void)unused;
    if (begin(self, PIN) < 0) return NULL;
    int fd = shmp_fileno(self->handle);
    end(self, PIN);
    if (fd >= 0) return PyLong_FromLong(fd);
    shmp_error error;
    shmp__fail(&error, SHMP_EUNSUPPORTED, "fileno", "%s segments have no file descriptor: open memfd or posix",
               self->provider_name);
    return shmpy_raise(&error);
}

/* Gives a duplicate of the descriptor: the number itself may be another file's once a thread closes this. */
static PyObject *dup_descriptor(PyObject *object, PyObject *unused) {
    ShMemObject *self = (ShMemObject *)object;
    shmp_error error;
    (void)unused;
    if (begin(self, PIN) < 0) return NULL;
    int source = shmp_fileno(self->handle), fd = shmp__os_dup(source);
    end(self, PIN);
    if (fd >= 0) return PyLong_FromLong(fd);
    shmp__fail_os(&error, fd, "dup", "fd %d", source);
    return shmpy_raise(&error);
}

static PyObject *shmem_persist(PyObject *object, PyObject *unused) {
    ShMemObject *self = (ShMemObject *)object;
    shmp_error error;
    (void)unused;
    if (begin(self, PIN) < 0) return NULL;
    int result = shmp_persist(self->handle, &error);
    end(self, PIN);
    if (result < 0) return shmpy_raise(&error);
    Py_RETURN_NONE;
}

/* Gives (id, size). */
static PyObject *describe(PyObject *object, PyObject *unused) {
    ShMemObject *self = (ShMemObject *)object;
    shmp_description description;
    shmp_error error;
    int result;
    (void)unused;
    if (begin(self, PIN) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = shmp_describe(self->handle, &description, &error);
    Py_END_ALLOW_THREADS
    end(self, PIN);
    if (result < 0) return shmpy_raise(&error);
    return Py_BuildValue("sn", description.id, self->size);
}

/* What the environment should say: (id, size, AFL++'s own variable for the size or None), after checking that it may
 * say so under this name. */
static PyObject *env_description(PyObject *object, PyObject *arguments) {
    ShMemObject *self = (ShMemObject *)object;
    const char *name;
    shmp_description description;
    shmp_error error;
    int posix_names = 0, afl = 0, result;
    if (!PyArg_ParseTuple(arguments, "s|pp", &name, &posix_names, &afl) || begin(self, PIN) < 0) return NULL;
    unsigned flags = (posix_names ? SHMP_POSIX_NAMES : 0) | (afl ? SHMP_AFL_SIZE : 0);
    Py_BEGIN_ALLOW_THREADS
    result = shmp__env_description(self->handle, name, flags, &description, &error);
    Py_END_ALLOW_THREADS
    end(self, PIN);
    if (result < 0) return shmpy_raise(&error);
    return Py_BuildValue("snz", description.id, self->size, shmp__env_size_name(name, flags));
}

static int collect_user(void *pids, long pid) { return shmpy_collect(pids, &pid); }

static PyObject *to_number(const void *pid) { return PyLong_FromLong(*(const long *)pid); }

/* Gives the pids that have it mapped. */
static PyObject *users(PyObject *object, PyObject *unused) {
    ShMemObject *self = (ShMemObject *)object;
    shmpy_collection pids = {.item_size = sizeof(long)};
    shmp_error error;
    int result;
    (void)unused;
    if (begin(self, PIN) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = shmp_users(self->handle, collect_user, &pids, &error);
    Py_END_ALLOW_THREADS
    end(self, PIN);
    return shmpy_collected(&pids, result, to_number, &error);
}

/* ---- Handing over: _handover.py says what for ---- */

/* Gives (locator, size). */
static PyObject *locate(PyObject *object, PyObject *unused) {
    ShMemObject *self = (ShMemObject *)object;
    shmp_description description;
    shmp_error error;
    (void)unused;
    if (begin(self, PIN) < 0) return NULL;
    int result = shmp_locate(self->handle, &description, &error);
    end(self, PIN);
    if (result < 0) return shmpy_raise(&error);
    return Py_BuildValue("sn", description.id, self->size);
}

/* Gives (provider, address), by which other processes ask the service that has it; None: none has. */
static PyObject *service(PyObject *object, PyObject *unused) {
    ShMemObject *self = (ShMemObject *)object;
    (void)unused;
    if (begin(self, PIN) < 0) return NULL;
    const char *name = shmp_provider_name(shmp__meant(self->provider)), *address = shmp__service_of(self->provider);
    PyObject *source = *address ? Py_BuildValue("sN", name, PyUnicode_DecodeFSDefault(address)) : Py_NewRef(Py_None);
    end(self, PIN);
    return source;
}

/* _keep(shm): a handle on it, for the outbox, that nobody is warned about when it is not closed. */
static PyObject *keep(PyObject *type, PyObject *origin) {
    shmp_error error;
    if (!shmpy_is_shmem_type(Py_TYPE(origin))) return PyErr_Format(PyExc_TypeError, "_keep: %R is no ShMem", origin);
    shmp_shmem *handle = shmpy_shmem_pin(origin), *kept;
    if (!handle) return NULL;
    int result = shmp__keep(handle, &kept, &error);
    shmpy_shmem_unpin(origin);
    if (result < 0) return shmpy_raise(&error);
    PyObject *made = shmpy_shmem_own((PyTypeObject *)type, kept);
    if (made) ((ShMemObject *)made)->has_warned = 1;
    return made;
}

/* Whether closing this handle is to remove a name. */
static PyObject *has_name(PyObject *object, PyObject *unused) {
    ShMemObject *self = (ShMemObject *)object;
    (void)unused;
    if (begin(self, PIN) < 0) return NULL;
    int result = shmp__is_owner(self->handle) && !(self->handle->mapping->flags & SHMP_KEEP);
    end(self, PIN);
    return PyBool_FromLong(result);
}

/* It is never closed: it ends with the process. */
static PyObject *abandon(PyObject *self, PyObject *unused) {
    (void)unused;
    Py_INCREF(self);
    Py_RETURN_NONE;
}

/* _say_when_closed(exception): what a use is to raise once this has been closed. For who has just made it. */
static PyObject *say_when_closed(PyObject *object, PyObject *exception) {
    Py_INCREF(exception);
    ((ShMemObject *)object)->failure = exception;
    Py_RETURN_NONE;
}

static shmp__atomic_uint has_sent; /* something that may not have been read yet */

/* _watch(whether): look whether it has been at each call from now on. */
static PyObject *watch(PyObject *type, PyObject *whether) {
    int truth = PyObject_IsTrue(whether);
    (void)type;
    if (truth < 0) return NULL;
    unsigned other = !truth;
    (void)shmp__atomic_swap_if(&has_sent, &other, (unsigned)truth);
    Py_RETURN_NONE;
}

void shmpy_look(void) {
    if (!shmp__atomic_load(&has_sent)) return;
    PyObject *module = PyImport_ImportModule("shmem_providers._handover");
    PyObject *result = module ? PyObject_CallMethod(module, "look", NULL) : NULL;
    if (!result) PyErr_WriteUnraisable(NULL);
    Py_XDECREF(result);
    Py_XDECREF(module);
}

static PyObject *get_is_owner(PyObject *object, void *unused) {
    ShMemObject *self = (ShMemObject *)object;
    (void)unused;
    if (begin(self, PIN) < 0) return NULL;
    int is_owner = shmp__is_owner(self->handle);
    end(self, PIN);
    return PyBool_FromLong(is_owner);
}

static PyObject *get_closed(PyObject *object, void *unused) {
    (void)unused;
    return PyBool_FromLong(!(shmp__atomic_load64(&((ShMemObject *)object)->state) & OPEN));
}

static PyObject *get_size(PyObject *object, void *unused) {
    (void)unused;
    return PyLong_FromSsize_t(((ShMemObject *)object)->size);
}

static PyObject *get_readonly(PyObject *object, void *unused) {
    (void)unused;
    return PyBool_FromLong(((ShMemObject *)object)->readonly);
}

static PyObject *get_provider_name(PyObject *object, void *unused) {
    (void)unused;
    const char *name = ((ShMemObject *)object)->provider_name;
    return PyUnicode_FromString(name ? name : "");
}

static PyMethodDef methods[] = {
    {"close", shmem_close, METH_NOARGS,
     "close($self, /)\n--\n\nRelease it; a second call does nothing. The owner's destroys the segment.\n\nName, "
     "descriptor and use end at once. So does the memory if it never was exported (memoryview, NumPy,\n`as_ptr_of`), "
     "else with this object, which NumPy and others may hold without a view.\n\nBufferError: views of it are alive; "
     "it stays usable. Leaving a with block closes all the same."},
    {"fileno", shmem_fileno, METH_NOARGS,
     "fileno($self, /)\n--\n\nGive the file descriptor, which stays this object's.\n\nio.UnsupportedOperation: sysv "
     "and nop have none."},
    {"persist", shmem_persist, METH_NOARGS,
     "persist($self, /)\n--\n\nLet the descriptor survive exec, so that the next program can attach by the same "
     "id.\n\nio.UnsupportedOperation: exec ends such a segment (sysv, nop)."},
    {"__enter__", shmem_enter, METH_NOARGS, NULL},
    {"__exit__", shmem_exit, METH_VARARGS, NULL},
    {"_describe", describe, METH_NOARGS, NULL},
    {"_env_description", env_description, METH_VARARGS, NULL},
    {"_dup", dup_descriptor, METH_NOARGS, NULL},
    {"_users", users, METH_NOARGS, NULL},
    {"_failed", failed, METH_O | METH_CLASS, NULL},
    {"_locate", locate, METH_NOARGS, NULL},
    {"_service", service, METH_NOARGS, NULL},
    {"_keep", keep, METH_O | METH_CLASS, NULL},
    {"_has_name", has_name, METH_NOARGS, NULL},
    {"_abandon", abandon, METH_NOARGS, NULL},
    {"_say_when_closed", say_when_closed, METH_O, NULL},
    {"_watch", watch, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef properties[] = {
    {"closed", get_closed, NULL, "Whether it was closed. Its memory stays for whoever it was exported to.", NULL},
    {"is_owner", get_is_owner, NULL,
     "Whether this handle created the segment, in this process: a forked child's never did.", NULL},
    {"provider_name", get_provider_name, NULL, "The mechanism that holds it, such as memfd.", NULL},
    {"readonly", get_readonly, NULL, "Whether it was attached read-only.", NULL},
    {"size", get_size, NULL, "Bytes, exactly as asked for.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, (void *)shmem_new},
    {Py_tp_dealloc, (void *)shmem_dealloc},
    {Py_tp_finalize, (void *)shmem_finalize},
    {Py_tp_methods, methods},
    {Py_tp_getset, properties},
    {Py_tp_iter, (void *)PySeqIter_New},
    {Py_bf_getbuffer, (void *)shmem_getbuffer},
    {Py_bf_releasebuffer, (void *)shmem_releasebuffer},
    {Py_mp_length, (void *)shmem_length},
    {Py_mp_subscript, (void *)shmem_subscript},
    {Py_mp_ass_subscript, (void *)shmem_ass_subscript},
    {Py_sq_length, (void *)shmem_length},
    {Py_sq_item, (void *)shmem_item},
    {Py_sq_contains, (void *)shmem_contains},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "shmem_providers._binding.ShMem",
    .basicsize = sizeof(ShMemObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = slots,
};

int shmpy_add_shmem_type(PyObject *module) {
    PyObject *type = PyType_FromSpec(&spec);
    int result = type ? PyModule_AddType(module, (PyTypeObject *)type) : -1;
    Py_XDECREF(type);
    return result;
}
