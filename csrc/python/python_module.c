/* The extension module shmem_providers._binding: cffi's generated `ffi` and `lib`, and our types. */
#include "python/python_types.h"

#include "os/platform.h"

/* The generated file's own init function becomes a private one that ours calls. */
#undef PyMODINIT_FUNC
#define PyMODINIT_FUNC static PyObject *
#define PyInit__binding init_cffi
#include "python/_binding.c"
#undef PyInit__binding

#include <stdlib.h>
#include <string.h>

Py_EXPORTED_SYMBOL PyObject *PyInit__binding(void);

Py_EXPORTED_SYMBOL PyObject *PyInit__binding(void) {
    PyObject *module = init_cffi();
    if (!module) return NULL;
    if (shmpy_add_provider_type(module) < 0 || shmpy_add_shmem_type(module) < 0 || shmpy_add_service_type(module) < 0 ||
        shmpy_add_fork_functions(module) < 0 ||
        PyModule_AddIntConstant(module, "std_is_served", SHMP_STD_IS_SERVED) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}

PyObject *shmpy_raise(const shmp_error *error) {
    PyObject *errors = PyImport_ImportModule("shmem_providers._errors");
    /* a message can quote half a character of the caller's text */
    PyObject *message = PyUnicode_DecodeUTF8(error->message, (Py_ssize_t)strlen(error->message), "replace");
    PyObject *exception = NULL;
    if (errors && message)
        exception =
            PyObject_CallMethod(errors, "error_from", "iisO", error->code, error->os_error, error->call, message);
    if (exception) PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    Py_XDECREF(exception);
    Py_XDECREF(message);
    Py_XDECREF(errors);
    return NULL;
}

int shmpy_arguments(const char *method, const char *const *names, Py_ssize_t required, Py_ssize_t positional,
                    PyObject *const *arguments, Py_ssize_t count, PyObject *keywords, PyObject **ret_values) {
    Py_ssize_t known = 0;
    for (; names[known]; known++) ret_values[known] = known < count ? arguments[known] : NULL;
    if (count > positional) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most %zd positional arguments, %zd were given", method, positional,
                     count);
        return -1;
    }
    Py_ssize_t extra = keywords ? PyTuple_Size(keywords) : 0;
    for (Py_ssize_t i = 0; i < extra; i++) {
        PyObject *name = PyTuple_GetItem(keywords, i);
        Py_ssize_t at = 0;
        while (names[at] && PyUnicode_CompareWithASCIIString(name, names[at]) != 0) at++;
        if (!names[at] || ret_values[at]) {
            PyErr_Format(PyExc_TypeError, "%s() got an unexpected or repeated argument %R", method, name);
            return -1;
        }
        ret_values[at] = arguments[count + i];
    }
    for (Py_ssize_t i = 0; i < required; i++) {
        if (ret_values[i]) continue;
        PyErr_Format(PyExc_TypeError, "%s() needs the argument '%s'", method, names[i]);
        return -1;
    }
    return 0;
}

int shmpy_collect(shmpy_collection *collection, const void *item) {
    if (collection->count == collection->room) {
        size_t room = collection->room ? 2 * collection->room : 64;
        void *items = realloc(collection->items, room * collection->item_size);
        if (!items) return 1;
        collection->items = items;
        collection->room = room;
    }
    memcpy(collection->items + collection->count++ * collection->item_size, item, collection->item_size);
    return 0;
}

static PyObject *list_of(const shmpy_collection *collection, PyObject *(*convert)(const void *item)) {
    PyObject *list = PyList_New((Py_ssize_t)collection->count);
    for (size_t i = 0; list && i < collection->count; i++) {
        PyObject *item = convert(collection->items + i * collection->item_size);
        if (!item || PyList_SetItem(list, (Py_ssize_t)i, item) < 0) Py_CLEAR(list);
    }
    return list;
}

PyObject *shmpy_collected(shmpy_collection *collection, int result, PyObject *(*convert)(const void *item),
                          const shmp_error *error) {
    PyObject *list = NULL;
    if (result == 0)
        list = list_of(collection, convert);
    else if (result < 0)
        shmpy_raise(error);
    else
        PyErr_NoMemory();
    free(collection->items);
    return list;
}
