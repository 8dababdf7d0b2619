/* _binding.Provider: owns a shmp_provider. Python's provider classes are its subclasses. */
#include "python/python_types.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

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

/* Whether it is a name that can be no id, as it is too long or not ASCII, of a provider that may take names. */
static int is_long_name(const ProviderObject *self, const char *text, Py_ssize_t length) {
    char id[SHMP__ID_SIZE];
    const shmp__ops *ops = self->handle ? self->handle->ops : NULL;
    return ops && (ops->attach_name || ops->route) && text[0] == '/' && strlen(text) == (size_t)length &&
           shmp__copy_id(id, text, (size_t)length, NULL) < 0;
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
static int add_flag(PyObject *value, unsigned flag, unsigned *flags) {
    int truth = value ? PyObject_IsTrue(value) : 0;
    if (truth > 0) *flags |= flag;
    return truth < 0 ? -1 : 0;
}

/* A number from `least` to `most`, which `kind` describes. */
static int to_unsigned(const char *method, const char *name, PyObject *value, unsigned least, unsigned most,
                       const char *kind, unsigned *ret_number) {
    if (PyBool_Check(value) || !PyIndex_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s: %s %R: %s", method, name, value, kind);
        return -1;
    }
    PyObject *index = PyNumber_Index(value);
    if (!index) return -1;
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(index, &overflow);
    int is_good = overflow == 0 && number >= (long long)least && number <= (long long)most;
    PyObject *text = is_good ? NULL : shown(index);
    if (is_good) *ret_number = (unsigned)number;
    if (text) PyErr_Format(PyExc_ValueError, "%s: %s %U: %s", method, name, text, kind);
    Py_XDECREF(text);
    Py_DECREF(index);
    return is_good ? 0 : -1;
}

/* `value`: NULL or None when the argument was not given. */
static int add_mode(const char *method, PyObject *value, unsigned *flags) {
    unsigned mode;
    if (!value || value == Py_None) return 0;
    if (to_unsigned(method, "mode", value, 1, 0666, "permissions are an int from 1 to 0o666, such as 0o660", &mode) < 0)
        return -1;
    *flags |= SHMP_MODE(mode);
    return 0;
}

static PyTypeObject *shmem_type_of(PyTypeObject *type) {
    PyObject *shmem_type = PyObject_GetAttrString((PyObject *)type, "_shmem_type");
    if (!shmem_type || (PyType_Check(shmem_type) && shmpy_is_shmem_type((PyTypeObject *)shmem_type)))
        return (PyTypeObject *)shmem_type;
    PyErr_Format(PyExc_TypeError, "%R: _shmem_type is %R: it is to be ShMem or a subclass", type, shmem_type);
    Py_DECREF(shmem_type);
    return NULL;
}

/* Of an object that has its handle already; not by comparing with the type, which each interpreter has its own of. */
static int is_provider_type(PyTypeObject *type);

shmp_provider *shmpy_provider_handle(PyObject *object, const char *method) {
    shmp_provider *handle = is_provider_type(Py_TYPE(object)) ? ((ProviderObject *)object)->handle : NULL;
    if (!handle) PyErr_Format(PyExc_TypeError, "%s: inner %R: it is to be a ShMemProvider", method, object);
    return handle;
}

static int asks_a_service(const char *name) {
    const shmp__ops *ops;
    return shmp__find_mechanism(name, "", &ops, NULL) == 0 && ops->can & SHMP__CAN_ADDRESS;
}

static const char *wanted_address(char room[SHMP__ENV_ROOM]) {
    char of_environment[SHMP__ENV_ROOM];
    snprintf(room, SHMP__ENV_ROOM, "%s", shmp__wanted_address(of_environment));
    return room;
}

static PyObject *provider_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"name", "flags", "inner", "address", "timeout_ms", NULL};
    const char *name;
    PyObject *flags = NULL, *inner = Py_None;
    shmp_provider_options options = {.struct_size = sizeof options};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "s|OOzI", names, &name, &flags, &inner, &options.address,
                                     &options.timeout_ms) ||
        (flags && to_unsigned("ShMemProvider", "flags", flags, 0, UINT_MAX, "SHMP_... flags are an unsigned int",
                              &options.flags) < 0) ||
        (inner != Py_None && !(options.inner = shmpy_provider_handle(inner, name))))
        return NULL;
    PyTypeObject *shmem_type = shmem_type_of(type);
    if (!shmem_type) return NULL;
    /* with the GIL: another thread may be changing the environment by os.environ */
    char room[SHMP__WANTED_SIZE], address[SHMP__ENV_ROOM];
    const char *wanted = strcmp(name, "std") == 0 ? shmp__wanted_provider(room) : NULL;
    if (!options.address && asks_a_service(name)) options.address = wanted_address(address);
    shmp_provider *handle;
    shmp_error error;
    int result;
    Py_BEGIN_ALLOW_THREADS
    if (options.inner && strcmp(name, "std") == 0) /* which creates with what Python has found */
        result = shmp__provider_open(&shmp__std_ops, &options, &handle, &error);
    else
        result = shmp__provider_open_wanted(name, wanted, &options, &handle, &error);
    Py_END_ALLOW_THREADS
    ProviderObject *self = result == 0 ? (ProviderObject *)PyType_GenericAlloc(type, 0) : NULL;
    if (self) {
        self->handle = handle;
        self->shmem_type = shmem_type;
        shmpy_watch(handle);
        return (PyObject *)self;
    }
    if (result < 0)
        shmpy_raise(&error);
    else
        shmpy_release_provider(handle);
    Py_DECREF((PyObject *)shmem_type);
    return NULL;
}

static void provider_dealloc(PyObject *object) {
    ProviderObject *self = (ProviderObject *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    shmpy_release_provider(self->handle);
    Py_XDECREF((PyObject *)self->shmem_type);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static int is_provider_type(PyTypeObject *type) {
    while (type && PyType_GetSlot(type, Py_tp_dealloc) != (void *)provider_dealloc)
        type = PyType_GetSlot(type, Py_tp_base);
    return !!type;
}

/* A class can have its provider. There is nothing to clear: the class clears its attributes. */
static int provider_traverse(PyObject *object, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(object));
    Py_VISIT((PyObject *)((ProviderObject *)object)->shmem_type);
    return 0;
}

/* Creates or attaches. */
typedef int (*maker)(shmp_provider *, const shmp_description *, unsigned flags, shmp_shmem **, shmp_error *);

static int make_unnamed(shmp_provider *provider, const shmp_description *what, unsigned flags, shmp_shmem **ret_shmem,
                        shmp_error *reterr) {
    return shmp_create(provider, what->size, flags, ret_shmem, reterr);
}

static int make_named(shmp_provider *provider, const shmp_description *what, unsigned flags, shmp_shmem **ret_shmem,
                      shmp_error *reterr) {
    return shmp_create_named(provider, what->id, what->size, flags, ret_shmem, reterr);
}

/* Whether a subclass has found a service in the place of one that is lost: what failed is then tried again. */
static int find_service(PyObject *self) {
    if (!PyObject_HasAttrString(self, "_find_service")) return 0;
    PyObject *found = PyObject_CallMethod(self, "_find_service", NULL);
    int result = found ? PyObject_IsTrue(found) : -1;
    Py_XDECREF(found);
    return result;
}

static PyObject *make(PyObject *object, maker maker, const shmp_description *what, unsigned flags) {
    ProviderObject *self = (ProviderObject *)object;
    shmp_shmem *handle;
    shmp_error error;
    int result, found;
    shmpy_look();
    for (int is_again = 0;; is_again = 1) {
        Py_BEGIN_ALLOW_THREADS
        result = maker(self->handle, what, flags, &handle, &error);
        Py_END_ALLOW_THREADS
        if (result != -SHMP_ESERVICE || is_again || maker == shmp_attach) break;
        found = find_service(object);
        if (found < 0) return NULL;
        if (found == 0) break;
    }
    return result < 0 ? shmpy_raise(&error) : shmpy_shmem_own(self->shmem_type, handle);
}

static PyObject *new_shmem(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *keywords) {
    static const char *const names[] = {"size", "reserve", "mode", "linger", NULL};
    PyObject *values[4];
    shmp_description what;
    unsigned flags = 0;
    if (shmpy_arguments("new_shmem", names, 1, 1, arguments, count, keywords, values) < 0 ||
        to_size("new_shmem", values[0], &what.size) < 0 || add_flag(values[1], SHMP_RESERVE, &flags) < 0 ||
        add_mode("new_shmem", values[2], &flags) < 0 || add_flag(values[3], SHMP_LINGER, &flags) < 0)
        return NULL;
    return make(self, make_unnamed, &what, flags);
}

static PyObject *new_named(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *keywords) {
    static const char *const names[] = {"size", "name", "reserve", "mode", "exist_ok", "keep", "linger", NULL};
    PyObject *values[7];
    shmp_description what;
    unsigned flags = 0;
    if (shmpy_arguments("new_shmem_with_id", names, 2, 2, arguments, count, keywords, values) < 0 ||
        to_size("new_shmem_with_id", values[0], &what.size) < 0 || to_id("new_shmem_with_id", values[1], what.id) < 0 ||
        add_flag(values[2], SHMP_RESERVE, &flags) < 0 || add_mode("new_shmem_with_id", values[3], &flags) < 0 ||
        add_flag(values[4], SHMP_EXIST_OK, &flags) < 0 || add_flag(values[5], SHMP_KEEP, &flags) < 0 ||
        add_flag(values[6], SHMP_LINGER, &flags) < 0)
        return NULL;
    return make(self, make_named, &what, flags);
}

/* Of read_only and any_user. */
static int to_attach_flags(PyObject *const values[2], unsigned *ret_flags) {
    *ret_flags = 0;
    if (add_flag(values[0], SHMP_READ_ONLY, ret_flags) < 0) return -1;
    return add_flag(values[1], SHMP_ANY_USER, ret_flags);
}

static PyObject *from_id_and_size(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *keywords) {
    static const char *const names[] = {"id", "size", "read_only", "any_user", NULL};
    static const char method[] = "shmem_from_id_and_size";
    PyObject *values[4];
    shmp_description what;
    unsigned flags;
    if (shmpy_arguments(method, names, 2, 2, arguments, count, keywords, values) < 0 ||
        to_id(method, values[0], what.id) < 0 || to_size(method, values[1], &what.size) < 0 ||
        to_attach_flags(values + 2, &flags) < 0)
        return NULL;
    return make(self, shmp_attach, &what, flags);
}

static PyObject *attach_name(PyObject *object, const char *name, unsigned flags) {
    ProviderObject *self = (ProviderObject *)object;
    shmp_shmem *handle;
    shmp_error error;
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = shmp_attach_name(self->handle, name, 0, flags, &handle, &error);
    Py_END_ALLOW_THREADS
    return result < 0 ? shmpy_raise(&error) : shmpy_shmem_own(self->shmem_type, handle);
}

/* To all that a segment has. */
static PyObject *attach(PyObject *object, PyObject *const *arguments, Py_ssize_t count, PyObject *keywords) {
    static const char *const names[] = {"id", "read_only", "any_user", NULL};
    PyObject *values[3];
    shmp_description what = {.size = 0};
    unsigned flags;
    Py_ssize_t length;
    if (shmpy_arguments("attach", names, 1, 1, arguments, count, keywords, values) < 0 ||
        to_attach_flags(values + 1, &flags) < 0)
        return NULL;
    flags |= SHMP_WHOLE;
    const char *text = PyUnicode_Check(values[0]) ? to_text(values[0], &length) : NULL;
    if (text && is_long_name((ProviderObject *)object, text, length)) return attach_name(object, text, flags);
    return to_id("attach", values[0], what.id) < 0 ? NULL : make(object, shmp_attach, &what, flags);
}

/* Removes a name, whoever has it. */
static PyObject *unlink_name(PyObject *self, PyObject *name) {
    const char *text;
    Py_ssize_t length;
    shmp_error error;
    int result;
    if (!PyUnicode_Check(name)) return PyErr_Format(PyExc_TypeError, "unlink: name %R: a name is a str", name);
    text = to_text(name, &length);
    if (strlen(text) != (size_t)length) text = ""; /* one with a NUL, which names nothing */
    Py_BEGIN_ALLOW_THREADS
    result = shmp_unlink(((ProviderObject *)self)->handle, text, &error);
    Py_END_ALLOW_THREADS
    if (result < 0) return shmpy_raise(&error);
    Py_RETURN_NONE;
}

/* With the GIL: a handle that shares takes no call of the system, and a child that is forked has it whole or not. */
static PyObject *clone_ref(PyObject *object, PyObject *origin) {
    ProviderObject *self = (ProviderObject *)object;
    if (!PyObject_TypeCheck(origin, self->shmem_type) && !shmpy_is_shmem_type(Py_TYPE(origin)))
        return PyErr_Format(PyExc_TypeError, "clone_ref: %R is no ShMem", origin);
    shmp_shmem *handle = shmpy_shmem_pin(origin), *clone;
    if (!handle) return NULL;
    shmp_error error;
    int result = shmp_clone(handle, 0, &clone, &error);
    shmpy_shmem_unpin(origin);
    return result < 0 ? shmpy_raise(&error) : shmpy_shmem_own(self->shmem_type, clone);
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
    shmp_shmem *handle;
    shmp_error error;
    if (!PyArg_ParseTuple(arguments, "iOnp", &fd, &id, &size, &read_only) || to_id("_attach_fd", id, what.id) < 0)
        return NULL;
    what.size = (size_t)size;
    Py_BEGIN_ALLOW_THREADS
    result = shmp_attach_fd(self->handle, fd, &what, read_only ? SHMP_READ_ONLY : 0, &handle, &error);
    Py_END_ALLOW_THREADS
    return result < 0 ? shmpy_raise(&error) : shmpy_shmem_own(self->shmem_type, handle);
}

/* The values come from os.environ, which is safe to read while other threads set it; getenv is not. */
static PyObject *from_env(PyObject *self, PyObject *arguments) {
    const char *name;
    PyObject *id, *size;
    int read_only, any_user;
    Py_ssize_t length;
    shmp_description what;
    shmp_error error;
    if (!PyArg_ParseTuple(arguments, "sOOpp", &name, &id, &size, &read_only, &any_user)) return NULL;
    const char *id_text = id == Py_None ? NULL : to_text(id, &length);
    const char *size_text = size == Py_None ? NULL : to_text(size, &length);
    if (shmp__env_parse(name, id_text, size_text, &what, &error) < 0) return shmpy_raise(&error);
    unsigned flags = (read_only ? SHMP_READ_ONLY : 0u) | (any_user ? SHMP_ANY_USER : 0u);
    return make(self, shmp_attach, &what, flags);
}

/* Gives (bytes, segments, advice). */
static PyObject *limits(PyObject *self, PyObject *unused) {
    shmp_limits limits = {.struct_size = sizeof limits};
    shmp_error error;
    int result;
    (void)unused;
    Py_BEGIN_ALLOW_THREADS
    result = shmp_provider_limits(((ProviderObject *)self)->handle, &limits, &error);
    Py_END_ALLOW_THREADS
    if (result < 0) return shmpy_raise(&error);
    return Py_BuildValue("KKs", limits.bytes, limits.segments, limits.advice);
}

/* What was visited; its text is valid during the visit only. */
typedef struct listed {
    shmp_listed segment;
    char command[24]; /* as long as the system keeps it */
} listed;

static int collect_segment(void *segments, const shmp_listed *segment) {
    listed item = {.segment = *segment};
    snprintf(item.command, sizeof item.command, "%s", segment->command);
    return shmpy_collect(segments, &item);
}

static PyObject *to_tuple(const void *item) {
    const listed *found = item;
    const shmp_listed *segment = &found->segment;
    return Py_BuildValue("sKLLOsLOO", segment->id, segment->size, segment->holder, segment->user,
                         segment->is_alive ? Py_True : Py_False, found->command, segment->age,
                         segment->is_kept ? Py_True : Py_False, segment->is_ours ? Py_True : Py_False);
}

/* Gives a list of (id, size, holder, user, is_alive, command, age, is_kept, is_ours). */
static PyObject *list(PyObject *self, PyObject *unused) {
    shmpy_collection segments = {.item_size = sizeof(listed)};
    shmp_error error;
    int result;
    (void)unused;
    Py_BEGIN_ALLOW_THREADS
    result = shmp_list(((ProviderObject *)self)->handle, collect_segment, &segments, &error);
    Py_END_ALLOW_THREADS
    return shmpy_collected(&segments, result, to_tuple, &error);
}

/* The same of what was removed, or with dry_run would be. */
static PyObject *reap(PyObject *self, PyObject *dry_run) {
    shmpy_collection segments = {.item_size = sizeof(listed)};
    shmp_error error;
    unsigned flags = 0;
    int result;
    if (add_flag(dry_run, SHMP_DRY_RUN, &flags) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = shmp_reap(((ProviderObject *)self)->handle, flags, collect_segment, &segments, &error);
    Py_END_ALLOW_THREADS
    return shmpy_collected(&segments, result, to_tuple, &error);
}

/* Until its post_fork(), other threads' forks wait, as they do for those of this one that os.fork() announces. */
static PyObject *pre_fork(PyObject *self, PyObject *unused) {
    shmp_provider *handle = ((ProviderObject *)self)->handle;
    shmp_error error;
    int result;
    (void)unused;
    if (!shmpy_hears_of_forks(handle)) Py_RETURN_NONE;
    shmpy_fork_lock();
    Py_BEGIN_ALLOW_THREADS
    result = shmp_pre_fork(handle, &error);
    Py_END_ALLOW_THREADS
    if (result == 0) Py_RETURN_NONE;
    shmpy_fork_unlock();
    return shmpy_raise(&error);
}

static PyObject *post_fork(PyObject *self, PyObject *is_child) {
    shmp_provider *handle = ((ProviderObject *)self)->handle;
    shmp_error error;
    int truth = PyObject_IsTrue(is_child), result;
    if (truth < 0) return NULL;
    if (!shmpy_hears_of_forks(handle)) Py_RETURN_NONE;
    Py_BEGIN_ALLOW_THREADS
    result = shmp_post_fork(handle, truth, &error);
    Py_END_ALLOW_THREADS
    shmpy_fork_unlock();
    if (result < 0) return shmpy_raise(&error);
    Py_RETURN_NONE;
}

/* Without the GIL, a thread that asks gc for all objects may have one that has no handle yet. */

static PyObject *get_name(PyObject *self, void *unused) {
    const shmp_provider *handle = ((ProviderObject *)self)->handle;
    (void)unused;
    return PyUnicode_FromString(handle ? shmp_provider_name(handle) : "");
}

static PyObject *get_fd_ids(PyObject *self, void *unused) {
    const shmp_provider *handle = ((ProviderObject *)self)->handle;
    (void)unused;
    return PyBool_FromLong(handle && handle->flags & SHMP_FD_IDS);
}

/* Provider[...] is for type checkers. */
static PyObject *class_getitem(PyObject *type, PyObject *unused) {
    (void)unused;
    Py_INCREF(type);
    return type;
}

static PyMethodDef methods[] = {
    {"new_shmem", METHOD(new_shmem), METH_FASTCALL | METH_KEYWORDS,
     "new_shmem($self, size, *, reserve=False, mode=None, linger=False)\n--\n\nCreate a segment of `size` bytes, all "
     "zero.\n\n"
     "reserve=True takes all of its memory now, as dear as touching every page, and promises that\ntouching it later "
     "is never a SIGBUS. mode=0o660 and the like (posix, sysv) let other users attach,\nwho say any_user=True; without "
     "it the segment is this user's alone. linger=True (posix, sysv): if its\ncreator is killed, it "
     "stays for a minute to be attached to.\n\nio.UnsupportedOperation: the mechanism has no such thing. "
     "ValueError: "
     "size 0 or less, a mode\nbeyond 0o666. OverflowError: beyond the address space. OSError: a call of the system "
     "failed."},
    {"_new_named", METHOD(new_named), METH_FASTCALL | METH_KEYWORDS, NULL},
    {"attach", METHOD(attach), METH_FASTCALL | METH_KEYWORDS,
     "attach($self, id, *, read_only=False, any_user=False)\n--\n\nAttach to all bytes of a segment whose size is not "
     "known.\n\nA posix name may be of any length that the system takes, such as another library's.\nArguments and "
     "errors are those of shmem_from_id_and_size."},
    {"shmem_from_id_and_size", METHOD(from_id_and_size), METH_FASTCALL | METH_KEYWORDS,
     "shmem_from_id_and_size($self, id, size, *, read_only=False, any_user=False)\n--\n\nAttach to a segment and map "
     "`size` bytes of it: no more than it has.\n\nread_only=True protects from mistakes, not from an enemy, who could "
     "reopen it. any_user=True takes\none that is neither this user's nor root's, who can change and truncate it.\n\n"
     "InvalidIdError: garbage, or no shared memory. FileNotFoundError: it is gone. SizeMismatchError: it\nis smaller. "
     "PermissionError: it is another user's."},
    {"_unlink", unlink_name, METH_O, NULL},
    {"clone_ref", clone_ref, METH_O,
     "clone_ref($self, shm, /)\n--\n\nMake another handle on a segment, read-only if that one is.\n\nIt shares memory, "
     "descriptor and id, which stay until the last of them is closed. It is never the\nowner. ValueError: `shm` is "
     "closed."},
    {"_from_env", from_env, METH_VARARGS, NULL},
    {"_list", list, METH_NOARGS, NULL},
    {"_reap", reap, METH_O, NULL},
    {"_limits", limits, METH_NOARGS, NULL},
    {"pre_fork", pre_fork, METH_NOARGS,
     "pre_fork($self, /)\n--\n\nAnnounce a fork, as os.fork() does by itself: both together count as one.\n\nUntil "
     "`post_fork`, other threads wait that fork or use the provider. The plain ones need no announcement."},
    {"_open_fd", open_located, METH_VARARGS, NULL},
    {"_attach_fd", from_fd, METH_VARARGS, NULL},
    {"post_fork", post_fork, METH_O,
     "post_fork($self, is_child, /)\n--\n\nTell that this process has forked, in the parent and in the child; "
     "os.fork() "
     "does so by itself."},
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
    {Py_tp_traverse, (void *)provider_traverse},
    {Py_tp_methods, methods},
    {Py_tp_getset, properties},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "shmem_providers._binding.Provider",
    .basicsize = sizeof(ProviderObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};

int shmpy_add_provider_type(PyObject *module) {
    PyObject *type = PyType_FromSpec(&spec);
    int result = type ? PyModule_AddType(module, (PyTypeObject *)type) : -1;
    Py_XDECREF(type);
    return result;
}
