/* _binding.Provider: owns a shmp_provider. Python's provider classes are its subclasses. */
#include "python/python_types.h"

typedef struct ProviderObject {
    PyObject_HEAD
    shmp_provider *handle;
    PyTypeObject *shmem_type; /* what new segments are: the subclass's _shmem_type */
} ProviderObject;

#define METHOD(function) (PyCFunction)(void (*)(void))(function)

/* The value for a message; the repr of a very large int is refused. */
static PyObject *shown(PyObject *value) {
    PyObject *text = PyObject_Repr(value);
    if (text) return text;
    PyErr_Clear();
    return PyUnicode_FromString("(thousands of digits)");
}

static int to_size(const char *method, PyObject *value, size_t *ret_size) {
    if (PyBool_Check(value) || !PyIndex_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s: size %R: a number of bytes is an int", method, value);
        return -1;
    }
    PyObject *number = PyNumber_Index(value);
    if (!number) return -1;
    int overflow;
    long long size = PyLong_AsLongLongAndOverflow(number, &overflow);
    int too_large = overflow > 0 || (overflow == 0 && size > PY_SSIZE_T_MAX);
    if (!too_large && overflow == 0 && size > 0) {
        *ret_size = (size_t)size;
        Py_DECREF(number);
        return 0;
    }
    PyObject *text = shown(number);
    if (text && too_large)
        PyErr_Format(PyExc_OverflowError, "%s: size %U is beyond the address space", method, text);
    else if (text)
        PyErr_Format(PyExc_ValueError, "%s: size %U: a segment has at least 1 byte", method, text);
    Py_XDECREF(text);
    Py_DECREF(number);
    return -1;
}

/* The text of a str; of one with a lone surrogate, a byte that no id has. */
static const char *to_text(PyObject *value, Py_ssize_t *ret_length) {
    const char *text = PyUnicode_AsUTF8AndSize(value, ret_length);
    if (text) return text;
    PyErr_Clear();
    *ret_length = 1;
    return "\xff";
}

static int to_id(const char *method, PyObject *value, char ret_id[SHMP__ID_SIZE]) {
    shmp_error error;
    Py_ssize_t length;
    if (!PyUnicode_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s: id %R: an id is a ShMemId or a str", method, value);
        return -1;
    }
    const char *text = to_text(value, &length);
    if (shmp__copy_id(ret_id, text, (size_t)length, &error) == 0) return 0;
    shmpy_raise(&error);
    return -1;
}

/* `value`: NULL when the argument was not given. */
static int to_flag(PyObject *value, unsigned flag, unsigned *ret_flags) {
    int truth = value ? PyObject_IsTrue(value) : 0;
    *ret_flags = truth > 0 ? flag : 0;
    return truth < 0 ? -1 : 0;
}

static PyObject *provider_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"name", "flags", NULL};
    const char *name;
    shmp_provider_options options = {.struct_size = sizeof options};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "s|I", names, &name, &options.flags)) return NULL;
    PyObject *shmem_type = PyObject_GetAttrString((PyObject *)type, "_shmem_type");
    if (!shmem_type) return NULL;
    ProviderObject *self = (ProviderObject *)PyType_GenericAlloc(type, 0);
    if (!self) {
        Py_DECREF(shmem_type);
        return NULL;
    }
    self->shmem_type = (PyTypeObject *)shmem_type;
    shmp_error error;
    /* with the GIL: it reads the environment, which another thread may be changing by os.environ */
    if (shmp_provider_open(name, &options, &self->handle, &error) < 0) {
        Py_DECREF(self);
        return shmpy_raise(&error);
    }
    return (PyObject *)self;
}

static void provider_dealloc(PyObject *object) {
    ProviderObject *self = (ProviderObject *)object;
    PyTypeObject *type = Py_TYPE(object);
    shmp_provider_close(self->handle);
    Py_XDECREF((PyObject *)self->shmem_type);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

/* Creates (id NULL: without a name) or attaches, and wraps the handle. */
typedef int (*maker)(shmp_provider *, const shmp_description *, unsigned flags, shmp_shmem **, shmp_error *);

static int make_unnamed(shmp_provider *provider, const shmp_description *what, unsigned flags, shmp_shmem **ret_shmem,
                        shmp_error *reterr) {
    return shmp_create(provider, what->size, flags, ret_shmem, reterr);
}

static int make_named(shmp_provider *provider, const shmp_description *what, unsigned flags, shmp_shmem **ret_shmem,
                      shmp_error *reterr) {
    return shmp_create_named(provider, what->id, what->size, flags, ret_shmem, reterr);
}

/* Gives `made` its handle; on failure, drops it and raises. */
static PyObject *wrap(PyObject *made, int result, shmp_shmem *handle, const shmp_error *error) {
    if (result < 0) {
        Py_DECREF(made);
        return shmpy_raise(error);
    }
    shmpy_shmem_own(made, handle);
    return made;
}

static PyObject *make(PyObject *object, maker maker, const shmp_description *what, unsigned flags) {
    ProviderObject *self = (ProviderObject *)object;
    shmpy_look();
    PyObject *made = shmpy_shmem_new(self->shmem_type);
    if (!made) return NULL;
    shmp_shmem *handle = NULL;
    shmp_error error;
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = maker(self->handle, what, flags, &handle, &error);
    Py_END_ALLOW_THREADS
    return wrap(made, result, handle, &error);
}

static PyObject *new_shmem(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *keywords) {
    static const char *const names[] = {"size", "reserve", NULL};
    PyObject *values[2];
    shmp_description what;
    unsigned flags;
    if (shmpy_arguments("new_shmem", names, 1, 1, arguments, count, keywords, values) < 0 ||
        to_size("new_shmem", values[0], &what.size) < 0 || to_flag(values[1], SHMP_RESERVE, &flags) < 0)
        return NULL;
    return make(self, make_unnamed, &what, flags);
}

static PyObject *new_named(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *keywords) {
    static const char *const names[] = {"size", "name", "reserve", NULL};
    PyObject *values[3];
    shmp_description what;
    unsigned flags;
    if (shmpy_arguments("new_shmem_with_id", names, 2, 2, arguments, count, keywords, values) < 0 ||
        to_size("new_shmem_with_id", values[0], &what.size) < 0 || to_id("new_shmem_with_id", values[1], what.id) < 0 ||
        to_flag(values[2], SHMP_RESERVE, &flags) < 0)
        return NULL;
    return make(self, make_named, &what, flags);
}

static PyObject *from_id_and_size(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *keywords) {
    static const char *const names[] = {"id", "size", "read_only", NULL};
    static const char method[] = "shmem_from_id_and_size";
    PyObject *values[3];
    shmp_description what;
    unsigned flags;
    if (shmpy_arguments(method, names, 2, 2, arguments, count, keywords, values) < 0 ||
        to_id(method, values[0], what.id) < 0 || to_size(method, values[1], &what.size) < 0 ||
        to_flag(values[2], SHMP_READ_ONLY, &flags) < 0)
        return NULL;
    return make(self, shmp_attach, &what, flags);
}

static PyObject *clone_ref(PyObject *object, PyObject *origin) {
    ProviderObject *self = (ProviderObject *)object;
    if (!PyObject_TypeCheck(origin, self->shmem_type))
        return PyErr_Format(PyExc_TypeError, "clone_ref: %R is no ShMem", origin);
    PyObject *made = shmpy_shmem_new(self->shmem_type);
    shmp_shmem *handle = made ? shmpy_shmem_pin(origin) : NULL, *clone = NULL;
    if (!handle) {
        Py_XDECREF(made);
        return NULL;
    }
    shmp_error error;
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = shmp_clone(handle, handle->flags & SHMP_READ_ONLY, &clone, &error);
    Py_END_ALLOW_THREADS
    shmpy_shmem_unpin(origin);
    return wrap(made, result, clone, &error);
}

/* Attaches read-only to all that a segment has. */
static PyObject *attach_whole(PyObject *self, PyObject *id) {
    shmp_description what = {.size = 0};
    return to_id("attach", id, what.id) < 0 ? NULL : make(self, shmp_attach, &what, SHMP_WHOLE | SHMP_READ_ONLY);
}

/* _open_fd(locator, read_only): a descriptor of the segment that ShMem._locate() found. */
static PyObject *open_located(PyObject *object, PyObject *arguments) {
    const char *locator;
    int read_only, fd, result;
    shmp_error error;
    if (!PyArg_ParseTuple(arguments, "sp", &locator, &read_only)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = shmp_open_fd(((ProviderObject *)object)->handle, locator, read_only ? SHMP_READ_ONLY : 0, &fd, &error);
    Py_END_ALLOW_THREADS
    return result < 0 ? shmpy_raise(&error) : PyLong_FromLong(fd);
}

/* _attach_fd(fd, id, size, read_only) */
static PyObject *from_fd(PyObject *object, PyObject *arguments) {
    ProviderObject *self = (ProviderObject *)object;
    PyObject *id;
    Py_ssize_t size;
    int fd, read_only, result;
    shmp_description what;
    shmp_shmem *handle = NULL;
    shmp_error error;
    if (!PyArg_ParseTuple(arguments, "iOnp", &fd, &id, &size, &read_only) || to_id("_attach_fd", id, what.id) < 0)
        return NULL;
    what.size = (size_t)size;
    PyObject *made = shmpy_shmem_new(self->shmem_type);
    if (!made) return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = shmp_attach_fd(self->handle, fd, &what, read_only ? SHMP_READ_ONLY : 0, &handle, &error);
    Py_END_ALLOW_THREADS
    return wrap(made, result, handle, &error);
}

/* The values come from os.environ, which is safe to read while other threads set it; getenv is not. */
static PyObject *from_env(PyObject *self, PyObject *arguments) {
    const char *name;
    PyObject *id, *size;
    int read_only;
    Py_ssize_t length;
    shmp_description what;
    shmp_error error;
    if (!PyArg_ParseTuple(arguments, "sOOp", &name, &id, &size, &read_only)) return NULL;
    const char *id_text = id == Py_None ? NULL : to_text(id, &length);
    const char *size_text = size == Py_None ? NULL : to_text(size, &length);
    if (shmp__env_parse(name, id_text, size_text, &what, &error) < 0) return shmpy_raise(&error);
    return make(self, shmp_attach, &what, read_only ? SHMP_READ_ONLY : 0);
}

/* Gives (bytes, segments, advice). */
static PyObject *limits(PyObject *self, PyObject *unused) {
    shmp_limits limits = {.struct_size = sizeof limits};
    shmp_error error;
    (void)unused;
    if (shmp_provider_limits(((ProviderObject *)self)->handle, &limits, &error) < 0) return shmpy_raise(&error);
    return Py_BuildValue("KKs", limits.bytes, limits.segments, limits.advice);
}

static int append_segment(void *list, const shmp_listed *segment) {
    PyObject *item =
        Py_BuildValue("sKLO", segment->id, segment->size, segment->holder, segment->is_alive ? Py_True : Py_False);
    int failed = item ? PyList_Append(list, item) : -1;
    Py_XDECREF(item);
    return failed < 0;
}

/* Gives a list of (id, size, owner, is_alive). */
static PyObject *list(PyObject *self, PyObject *unused) {
    shmp_error error;
    (void)unused;
    PyObject *segments = PyList_New(0);
    if (!segments) return NULL;
    int result = shmp_list(((ProviderObject *)self)->handle, append_segment, segments, &error);
    if (result == 0) return segments;
    Py_DECREF(segments);
    return result < 0 ? shmpy_raise(&error) : NULL;
}

/* The same of what was removed, or with dry_run would be. */
static PyObject *reap(PyObject *self, PyObject *dry_run) {
    shmp_error error;
    unsigned flags;
    PyObject *segments = PyList_New(0);
    if (!segments) return NULL;
    int result = to_flag(dry_run, SHMP_DRY_RUN, &flags);
    if (result == 0) {
        result = shmp_reap(((ProviderObject *)self)->handle, flags, append_segment, segments, &error);
        if (result == 0) return segments;
        if (result < 0) shmpy_raise(&error);
    }
    Py_DECREF(segments);
    return NULL;
}

static PyObject *pre_fork(PyObject *self, PyObject *unused) {
    shmp_error error;
    (void)unused;
    if (shmp_pre_fork(((ProviderObject *)self)->handle, &error) < 0) return shmpy_raise(&error);
    Py_RETURN_NONE;
}

static PyObject *post_fork(PyObject *self, PyObject *is_child) {
    shmp_error error;
    int truth = PyObject_IsTrue(is_child);
    if (truth < 0) return NULL;
    if (shmp_post_fork(((ProviderObject *)self)->handle, truth, &error) < 0) return shmpy_raise(&error);
    Py_RETURN_NONE;
}

static PyObject *get_name(PyObject *self, void *unused) {
    (void)unused;
    return PyUnicode_FromString(shmp_provider_name(((ProviderObject *)self)->handle));
}

static PyObject *get_fd_ids(PyObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(!!(((ProviderObject *)self)->handle->flags & SHMP_FD_IDS));
}

/* Provider[...] is for type checkers. */
static PyObject *class_getitem(PyObject *type, PyObject *unused) {
    (void)unused;
    Py_INCREF(type);
    return type;
}

static PyMethodDef methods[] = {
    {"new_shmem", METHOD(new_shmem), METH_FASTCALL | METH_KEYWORDS,
     "new_shmem($self, size, *, reserve=False)\n--\n\nCreate a segment of `size` bytes, all zero.\n\nreserve=True "
     "takes all of its memory now, as dear as touching every page, and promises that\ntouching it later is never a "
     "SIGBUS."},
    {"_new_named", METHOD(new_named), METH_FASTCALL | METH_KEYWORDS, NULL},
    {"shmem_from_id_and_size", METHOD(from_id_and_size), METH_FASTCALL | METH_KEYWORDS,
     "shmem_from_id_and_size($self, id, size, *, read_only=False)\n--\n\nAttach to a segment and map `size` bytes of "
     "it: no more than it has.\n\nread_only=True protects from mistakes, not from an enemy, who could reopen it."},
    {"clone_ref", clone_ref, METH_O,
     "clone_ref($self, shm, /)\n--\n\nMake another handle on a segment, read-only if that one is."},
    {"_attach_whole", attach_whole, METH_O, NULL},
    {"_from_env", from_env, METH_VARARGS, NULL},
    {"_list", list, METH_NOARGS, NULL},
    {"_reap", reap, METH_O, NULL},
    {"_limits", limits, METH_NOARGS, NULL},
    {"pre_fork", pre_fork, METH_NOARGS,
     "pre_fork($self, /)\n--\n\nAnnounce a fork. The plain providers need no announcement."},
    {"_open_fd", open_located, METH_VARARGS, NULL},
    {"_attach_fd", from_fd, METH_VARARGS, NULL},
    {"post_fork", post_fork, METH_O,
     "post_fork($self, is_child, /)\n--\n\nTell that this process has forked, in the parent and in the child."},
    {"__class_getitem__", class_getitem, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef properties[] = {
    {"fd_ids", get_fd_ids, NULL, "Whether ids are bare descriptor numbers.", NULL},
    {"name", get_name, NULL, "The mechanism; for std the chosen one.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, (void *)provider_new},
    {Py_tp_dealloc, (void *)provider_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, properties},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "shmem_providers._binding.Provider",
    .basicsize = sizeof(ProviderObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = slots,
};

int shmpy_add_provider_type(PyObject *module) {
    PyObject *type = PyType_FromSpec(&spec);
    int result = type ? PyModule_AddType(module, (PyTypeObject *)type) : -1;
    Py_XDECREF(type);
    return result;
}
