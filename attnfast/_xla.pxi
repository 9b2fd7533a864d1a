# What XLA calls, for attnfast.jax. Included by _core.pyx.

cdef extern from "xla/handlers.h" nogil:
    ctypedef struct xla_frame
    ctypedef struct xla_error
    int XLA_MAJOR, XLA_OLDEST_MINOR, XLA_NEWEST_MINOR
    void xla_speak(int)
    xla_error *xla_attention(const xla_frame *)
    xla_error *xla_attention_backward(const xla_frame *)

XLA_VERSIONS = tuple([(XLA_MAJOR, minor) for minor in range(XLA_OLDEST_MINOR, XLA_NEWEST_MINOR + 1)])


def xla_handlers(tuple version):
    """Capsules as jax.ffi.register_ffi_target takes them, by the names to register them under. `version` of the
    interface is one of XLA_VERSIONS."""
    xla_speak(version[1])
    return {
        "attnfast_attention": PyCapsule_New(<void *>xla_attention, NULL, NULL),
        "attnfast_attention_backward": PyCapsule_New(<void *>xla_attention_backward, NULL, NULL),
    }
