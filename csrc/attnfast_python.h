/* attnfast.h for extension modules of Python: they take its functions from the installed package when they are
 * imported, and link nothing.
 *
 *     const af_api *af = af_import();            with the GIL, once
 *     if (!af) return NULL;                      an exception is set
 *     af->attention(&problem, NULL);             with or without the GIL, from any thread
 *
 * Works under the limited API and in free-threaded builds. */
#ifndef ATTNFAST_PYTHON_H
#define ATTNFAST_PYTHON_H

#include <Python.h>

#include "attnfast.h"

/* The table of functions, which stays where it is until the process ends. NULL with an ImportError if attnfast is not
 * installed, or is not what this was compiled for: older, or one whose functions have changed. */
static inline const af_api *af_import(void)
{
    const af_api *api = (const af_api *)PyCapsule_Import("attnfast._core._C_API", 0);
    if (!api) {
        if (PyErr_ExceptionMatches(PyExc_AttributeError))
            PyErr_SetString(PyExc_ImportError, "the installed attnfast has no C API: upgrade it");
        return NULL;
    }
    if (api->size >= sizeof(af_api) && api->version == AF_API_VERSION) return api;
    PyErr_Format(PyExc_ImportError,
                 "this module was compiled for version %d of the C API of attnfast with a table of %zu bytes, got "
                 "version %d with %zu bytes: %s",
                 AF_API_VERSION, sizeof(af_api), api->version, api->size,
                 api->version > AF_API_VERSION ? "compile it again" : "upgrade attnfast");
    return NULL;
}

#endif
