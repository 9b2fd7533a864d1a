# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""The binding: checks every argument once, fills an ``af_problem``, releases the GIL.

Legality is decided here and nowhere else. A call goes through ``Call``: operands first (dtype, shapes, broadcasting),
then each option in the order of the signature, then memory for the results. Nothing is written before the last check.
"""

from libc.math cimport isfinite, sqrt
from libc.stdint cimport int64_t
cimport numpy as cnp

import numbers
import os

import numpy as np

cnp.import_array()

cdef extern from "Python.h":
    int PyErr_CheckSignals()  # Cython's own declaration turns the exception into a warning here

cdef extern from "attnfast.h" nogil:
    ctypedef enum af_dtype:
        AF_F32, AF_F64, AF_F16, AF_BF16
    ctypedef enum af_status:
        AF_OK, AF_NO_MEMORY, AF_INTERRUPTED
    ctypedef enum af_stage:
        AF_SCORES, AF_CAPPED, AF_BIASED, AF_WEIGHTS
    int64_t AF_FAR, AF_MAX_POSITION
    ctypedef struct af_tensor:
        void *data
        const int64_t *batch
        int64_t b, h, i, j
    ctypedef struct af_problem:
        af_dtype dtype
        int64_t B, H, Hk, Lq, Lk, D, Dv
        af_tensor query, key, value, output
        void *lse
        af_tensor weights
        af_stage stage
        double scale, softcap
        af_tensor bias, mask
        const double *alibi
        int64_t alibi_b
        const double *sink
        int64_t left, right
        const int64_t *q_offset
        const int64_t *q_length
        const int64_t *kv_length
    ctypedef struct af_run:
        int threads
        int (*interrupted)() noexcept nogil
    ctypedef struct af_report:
        int64_t visible_pairs, visited_pairs, tasks
        double flops, bytes
        int threads
        const char *isa
        const char *kernel
    af_status af_attention(const af_problem *, const af_run *)
    void af_describe(const af_problem *, int threads, af_report *)
    int af_threads()
    void af_set_threads(int)
    int af_set_own_threads(int)
    const char *af_isa(int)
    bint af_cap_isa(const char *)
    const char *af_isa_in_use(af_dtype)

cdef enum:
    MAX_DIMS = 64

DTYPES = ("float32", "float64", "float16", "bfloat16")
STAGES = ("scores", "capped", "biased", "weights")

cdef int bfloat16_number = -1  # NumPy's number for ml_dtypes.bfloat16, once it has been seen

include "_arrays.pxi"
include "_call.pxi"
include "_probe.pxi"


def attention(
    query, key, value, mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap,
    alibi_slopes, sink_logits, return_lse, return_weights, out, num_threads,
):
    """Output, lse, weights; the latter two None where they are not wanted."""
    cdef Call call = Call.__new__(Call)
    cdef cnp.ndarray result = None, target, lse = None, weights = None
    cdef bint want_lse, want_weights
    cdef int threads
    call.set_operands(query, key, value, True)
    call.set_options(mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap,
                     alibi_slopes, sink_logits)
    want_lse, want_weights = flag(return_lse, "return_lse"), flag(return_weights, "return_weights")
    threads = thread_count(num_threads)
    if out is not None:
        result = call.checked_out(out)
    target = result if result is not None and call.can_write(result) else call.new_output(query)
    call.set_strides(&call.p.output, target)
    if want_lse:
        lse = np.empty(call.outer_shape(), np.float64 if call.p.dtype == AF_F64 else np.float32)
        call.p.lse = cnp.PyArray_DATA(lse)
    if want_weights:
        weights = call.new_array(call.p.Lk)
        call.set_strides(&call.p.weights, weights)
    call.run(threads)
    if result is not None and target is not result:
        np.copyto(result, target)
    return (target if result is None else out), lse, weights


def attention_weights(
    query, key, str stage, mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap,
    alibi_slopes, sink_logits, num_threads,
):
    cdef Call call = Call.__new__(Call)
    cdef cnp.ndarray weights
    cdef int threads
    call.set_operands(query, key, None, False)
    call.set_options(mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap,
                     alibi_slopes, sink_logits)
    call.p.stage = <af_stage><int>STAGES.index(stage)
    if call.p.stage == AF_SCORES:
        call.p.softcap = 0
    threads = thread_count(num_threads)
    weights = call.new_array(call.p.Lk)
    call.set_strides(&call.p.weights, weights)
    call.run(threads)
    return weights


def describe(
    query, key, value, mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap,
    alibi_slopes, sink_logits, return_lse, return_weights, out, num_threads,
):
    cdef Call call = Call.__new__(Call)
    cdef af_report report
    cdef bint want_weights
    cdef int threads
    call.set_operands(query, key, value, True)
    call.set_options(mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap,
                     alibi_slopes, sink_logits)
    flag(return_lse, "return_lse")
    want_weights = flag(return_weights, "return_weights")
    if out is not None:
        call.checked_out(out)
    if want_weights:
        call.p.weights.data = &call.p  # wanted; not touched
    threads = thread_count(num_threads)
    with nogil:
        af_describe(&call.p, threads, &report)
    return (report.visible_pairs, report.visited_pairs, int(report.flops), int(report.bytes), report.tasks,
            report.threads, report.isa.decode(), report.kernel.decode())


def set_threads(num_threads):
    """For the whole process; None: back to the default."""
    af_set_threads(0 if num_threads is None else thread_count(num_threads))


def set_own_threads(int num_threads):
    """For the calling thread, 0: none; returns what it was."""
    return af_set_own_threads(num_threads)


def check_threads(num_threads):
    return thread_count(num_threads)


def get_threads():
    return af_threads()


def available_isas():
    names = []
    while af_isa(len(names)) != NULL:
        names.append(af_isa(len(names)).decode())
    return tuple(names)


def isa_in_use(str dtype):
    return af_isa_in_use(<af_dtype><int>DTYPES.index(dtype)).decode()


def use_isa(name):
    """Caps the instruction set of this process; None: what ATTNFAST_ISA says, else the best."""
    origin = "isa"
    if name is None:
        name, origin = os.environ.get("ATTNFAST_ISA") or None, "ATTNFAST_ISA"
    if name is None:
        af_cap_isa(NULL)
        return
    if not isinstance(name, str):
        raise TypeError(f"{origin} must be a str, got {type(name).__name__}")
    encoded = name.encode()
    if not af_cap_isa(encoded):
        raise ValueError(f"{origin} is {name!r}; this CPU and build have {', '.join(available_isas())}")


def _threads_from_environment():
    text = os.environ.get("ATTNFAST_NUM_THREADS")
    if not text:
        return
    try:
        set_threads(int(text))
    except ValueError:
        raise ValueError(f"ATTNFAST_NUM_THREADS is {text!r}; it must be a whole number, at least 1") from None


use_isa(None)
_threads_from_environment()
