/* What the handlers need of XLA's foreign-function interface, whose binary layout XLA keeps: versions 0.1 to 0.3, with
 * the same layout of everything here. Each struct begins with its size and a list of extensions. */
#ifndef AF_XLA_FFI_H
#define AF_XLA_FFI_H

#include <stddef.h>
#include <stdint.h>

enum { XLA_MAJOR = 0, XLA_OLDEST_MINOR = 1, XLA_NEWEST_MINOR = 3 };
enum { XLA_INVALID_ARGUMENT = 3, XLA_RESOURCE_EXHAUSTED = 8, XLA_UNIMPLEMENTED = 12 };
enum { XLA_BOOL = 1, XLA_S32 = 4, XLA_U32 = 8, XLA_S64 = 5, XLA_F16 = 10, XLA_F32 = 11, XLA_F64 = 12, XLA_BF16 = 16 };
enum { XLA_METADATA = 1 }; /* an extension: the call asks what the handler is */
enum { XLA_SCALAR = 3 };   /* a kind of attribute */

typedef struct xla_error xla_error;
typedef struct xla_context xla_context;

typedef struct xla_extension {
    size_t size;
    int kind;
    struct xla_extension *next;
} xla_extension;

typedef struct xla_version {
    size_t size;
    xla_extension *extensions;
    int major, minor;
} xla_version;

typedef struct xla_metadata {
    size_t size;
    xla_version version;
} xla_metadata;

typedef struct xla_metadata_extension {
    xla_extension extension;
    xla_metadata *metadata;
} xla_metadata_extension;

typedef struct xla_error_args {
    size_t size;
    xla_extension *extensions;
    const char *message; /* copied */
    int code;
} xla_error_args;

typedef struct xla_destroy_args {
    size_t size;
    xla_extension *extensions;
    xla_error *error;
} xla_destroy_args;

typedef struct xla_schedule_args {
    size_t size;
    xla_extension *extensions;
    xla_context *context;
    void (*task)(void *argument);
    void *argument;
} xla_schedule_args;

typedef struct xla_threads_args {
    size_t size;
    xla_extension *extensions;
    xla_context *context;
    int64_t *threads;
} xla_threads_args;

typedef struct xla_api {
    size_t size;
    xla_extension *extensions;
    xla_version version;
    const void *internal;
    xla_error *(*create_error)(xla_error_args *);
    void (*get_message)(void);
    void (*destroy_error)(xla_destroy_args *);
    void (*others[8])(void);
    xla_error *(*schedule)(xla_schedule_args *);
    xla_error *(*count_threads)(xla_threads_args *);
} xla_api;

/* A dense array in row-major order. */
typedef struct xla_buffer {
    size_t size;
    xla_extension *extensions;
    int dtype;
    void *data;
    int64_t rank;
    int64_t *dims;
} xla_buffer;

typedef struct xla_buffers {
    size_t size;
    xla_extension *extensions;
    int64_t count;
    int *kinds;
    xla_buffer **buffers;
} xla_buffers;

typedef struct xla_name {
    const char *text; /* not terminated */
    size_t length;
} xla_name;

typedef struct xla_scalar {
    int dtype;
    const void *value;
} xla_scalar;

typedef struct xla_attributes {
    size_t size;
    xla_extension *extensions;
    int64_t count;
    int *kinds;
    xla_name **names;
    xla_scalar **values; /* where the kind is XLA_SCALAR */
} xla_attributes;

typedef struct xla_frame {
    size_t size;
    xla_extension *extensions;
    const xla_api *api;
    xla_context *context;
    int stage;
    xla_buffers arguments, results;
    xla_attributes attributes;
} xla_frame;

#endif
