# cython: language_level=3, cdivision=True
# cython: freethreading_compatible=True
"""The binding: checks every argument once, fills an ``af_problem``, releases the GIL.

Legality is decided here and nowhere else. A call is a ``Call``: operands first (dtype, shapes, broadcasting), then each
option that is there, then memory for the results. Nothing is written before the last check.
"""

from libc.math cimport isfinite, isinf, log, sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t
cimport cython
cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_New

from attnfast.c_api cimport (
    AF_AS_QUERY, AF_BF16, AF_F16, AF_F32, AF_F64, AF_FAR, AF_FLOAT8_E4M3FN, AF_FLOAT8_E5M2, AF_INT8,
    AF_INTERRUPTED, AF_MAX_POSITION, AF_NO_MEMORY, AF_SCORES, AF_UINT8,
    AF_WEIGHTS, af_api, af_dtype, af_gradients, af_groups, af_operands, af_packing, af_problem, af_rectangle, af_report,
    af_results, af_rotation, af_run, af_score, af_stage, af_status, af_storage, af_tensor, af_visible,
)

import math
import numbers

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ._misread import (
    as_array, check_axes, check_global_tokens, check_query, check_sigma, missing_offset, spelled, wrong_bias,
    wrong_dtype, wrong_integers, wrong_mask, wrong_operand, wrong_rows, wrong_window,
)
from .block_mask import BlockMask
from .result import AttentionResult, AttentionTopK

cnp.import_array()

cdef extern from "Python.h":
    int PyErr_CheckSignals()  # Cython's own declaration turns the exception into a warning here

cdef extern from "attnfast.h" nogil:
    af_status af_attention(const af_problem *, const af_run *)
    af_status af_attention_packed(const af_problem *, const af_packing *, const af_run *)
    af_status af_attention_backward(const af_problem *, const af_gradients *, const af_run *)
    af_status af_attention_packed_backward(const af_problem *, const af_packing *, const af_gradients *, const af_run *)
    af_status af_describe(const af_problem *, const af_run *, af_report *, af_rectangle *, int64_t)
    af_status af_describe_packed(const af_problem *, const af_packing *, const af_run *, af_report *, af_rectangle *,
                                 int64_t)
    af_status af_describe_backward(const af_problem *, const af_gradients *, const af_run *, af_report *,
                                   af_rectangle *, int64_t)
    af_status af_describe_packed_backward(const af_problem *, const af_packing *, const af_gradients *, const af_run *,
                                          af_report *, af_rectangle *, int64_t)
    af_status af_rotate(const af_rotation *, const af_run *)
    int af_threads()
    void af_set_threads(int)
    int af_set_own_threads(int)
    const char *af_isa(int)
    bint af_cap_isa(const char *)
    const char *af_isa_in_use(af_dtype)

cdef extern from "runtime/cpu.h" nogil:
    void af_cpu_choose(unsigned, int)


cdef extern from "api.h" nogil:
    const af_api af_public_functions

cdef enum:
    MAX_DIMS = 64

cdef char wanted = 0
cdef void *WANTED = &wanted  # in place of memory for a result of a call that is only described

_C_API = PyCapsule_New(<void *>&af_public_functions, "attnfast._core._C_API", NULL)  # see csrc/attnfast_python.h
DTYPES = ("float32", "float64", "float16", "bfloat16")
STAGES = ("scores", "capped", "biased", "weights")

cdef int bfloat16_number = -1  # NumPy's number for ml_dtypes.bfloat16, once it has been seen

include "_arrays.pxi"
include "_numbers.pxi"
include "_operands.pxi"
include "_stored.pxi"
include "_visible.pxi"
include "_score.pxi"
include "_call.pxi"
include "_gradient.pxi"
include "_rotate.pxi"
include "_probe.pxi"
include "_xla.pxi"


# What each public function computes. `options` are its keywords; those that are left out have their defaults. With
# "return_blocks" among them, True or False, it computes nothing, and returns the values of a Plan, with or without the
# blocks of pairs that it would visit.

def attention(query, key, value, dict options):
    cdef Call call = new_call(options)
    call.stores = True
    call.set_table(call.option("block_table"))
    call.columns = call.block_table is None
    call.set_operands(query, key, value, True)
    return call.attend()


def local_attention(query, key, value, window_size, dict options):
    cdef Call call = new_call({**options, "window_size": window_size})
    call.local = True
    call.set_operands(query, key, value, True)
    return call.attend()


def additive_attention(query, key, value, score_weight, dict options):
    cdef Call call = new_call(options)
    call.set_operands(query, key, value, True)
    call.set_additive(score_weight, call.option("score_bias"))
    return call.attend()


def attention_varlen(query, key, value, cu_q, cu_k, dict options):
    cdef Call call = new_call(options)
    call.packed = call.stores = True
    call.set_table(call.option("block_table"))
    call.set_operands(query, key, value, True)
    call.set_bounds(cu_q, cu_k)
    return call.attend()


def attention_backward(grad_output, query, key, value, output, lse, dict options):
    """The gradients of an AttentionGradients, in its order."""
    cdef Backward backward = new_backward(options)
    backward.call.set_operands(query, key, value, True)
    return backward.differentiate(grad_output, output, lse)


def local_attention_backward(grad_output, query, key, value, output, lse, window_size, dict options):
    """The gradients of a LocalGradients, in its order."""
    cdef Backward backward = new_backward({**options, "window_size": window_size})
    backward.call.local = True
    backward.call.set_operands(query, key, value, True)
    return backward.differentiate(grad_output, output, lse)


def additive_attention_backward(grad_output, query, key, value, output, lse, score_weight, dict options):
    """The gradients of an AdditiveGradients, in its order."""
    cdef Backward backward = new_backward({**options, "score_weight": score_weight})
    backward.call.set_operands(query, key, value, True)
    backward.call.set_additive(score_weight, backward.call.option("score_bias"))
    return backward.differentiate(grad_output, output, lse)


def attention_varlen_backward(grad_output, query, key, value, output, lse, cu_q, cu_k, dict options):
    """The same; there is no bias."""
    cdef Backward backward = new_backward(options)
    backward.call.packed = True
    backward.call.set_operands(query, key, value, True)
    backward.call.set_bounds(cu_q, cu_k)
    return backward.differentiate(grad_output, output, lse)


def attention_weights(query, key, dict options):
    cdef Call call = new_call(options)
    call.set_keys(query, key)
    call.set_options()
    call.set_stage(call.option("stage", "weights"))
    call.results.weights.data = WANTED
    return call.weights if call.has_run() else call.plan


def attention_topk(query, key, k, dict options):
    cdef Call call = new_call(options)
    call.set_keys(query, key)
    call.set_topk(k)
    call.set_options()
    return AttentionTopK(call.top_index, call.top_weight) if call.has_run() else call.plan


def key_importance(query, key, dict options):
    cdef Call call = new_call(options)
    cdef cnp.ndarray total
    call.set_keys(query, key)
    grouped = flag(call.option("per_kv_head", False), "per_kv_head")
    call.set_options()
    call.results.importance = WANTED
    if not call.has_run():
        return call.plan
    total = call.importance
    if grouped:
        total = total.reshape(call.batch_shape() + (call.p.Hk, call.p.H // max(call.p.Hk, 1), call.p.Lk)).sum(axis=-2)
        total = total[0] if call.ndim == 2 else total
    return total


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


def cap_isa(str name):
    """Use no instruction set better than this; None: the best. False if there is none of that name."""
    return af_cap_isa(NULL) if name is None else af_cap_isa(name.encode())
