# cython: language_level=3, cdivision=True
# cython: freethreading_compatible=True
"""The binding: checks every argument once, fills an ``af_problem``, releases the GIL.

Legality is decided here and nowhere else. A call goes through ``Call``: operands first (dtype, shapes, broadcasting),
then each option in the order of the signature, then memory for the results. Nothing is written before the last check.
"""

from libc.math cimport isfinite, log, sqrt
from libc.stdint cimport int64_t, uint8_t
cimport numpy as cnp

import numbers
import os

import numpy as np

from ._misread import (
    as_array, check_axes, spelled, wrong_bias, wrong_dtype, wrong_integers, wrong_mask, wrong_operand,
)
from .block_mask import BlockMask

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
    ctypedef struct af_operands:
        size_t size
        af_tensor query, key, value
    ctypedef struct af_visible:
        size_t size
        int64_t left, right
        bint causal
        const int64_t *q_offset
        const int64_t *q_length
        const int64_t *kv_length
        const int64_t *dilation
        const uint8_t *global_tokens "global"
        af_tensor center, mask, blocks
        int64_t block_q, block_k
    ctypedef struct af_score:
        size_t size
        double scale, softcap
        bint additive
        af_tensor score_weight, score_bias, bias
        const double *alibi
        int64_t alibi_b
        const double *sink
        double gaussian
    ctypedef struct af_results:
        size_t size
        af_tensor output, lse, weights
        af_stage stage
        int64_t topk
        af_tensor top_index, top_weight
        void *importance
    ctypedef struct af_problem:
        size_t size
        af_dtype dtype
        int64_t B, H, Hk, Lq, Lk, D, Dv
        const af_operands *operands
        const af_visible *visible
        const af_score *score
        const af_results *results
    ctypedef struct af_run:
        int threads
        int (*interrupted)() noexcept nogil
    ctypedef struct af_report:
        int64_t visible_pairs, visited_pairs, tasks
        double flops, bytes
        int threads
        const char *isa
        const char *kernel
        int64_t rectangles
    ctypedef struct af_rectangle:
        int64_t b, hk, first_query, end_query, first_key, end_key, step
    af_status af_attention(const af_problem *, const af_run *)
    af_status af_attention_packed(const af_problem *, int64_t, const int64_t *, const int64_t *, const af_run *)
    af_status af_describe(const af_problem *, const af_run *, af_report *, af_rectangle *, int64_t)
    af_status af_describe_packed(const af_problem *, int64_t, const int64_t *, const int64_t *, const af_run *,
                                 af_report *, af_rectangle *, int64_t)
    int af_threads()
    void af_set_threads(int)
    int af_set_own_threads(int)
    const char *af_isa(int)
    bint af_cap_isa(const char *)
    const char *af_isa_in_use(af_dtype)

cdef enum:
    MAX_DIMS = 64

cdef char wanted = 0
cdef void *WANTED = &wanted  # in place of memory for a result of a call that is only described

DTYPES = ("float32", "float64", "float16", "bfloat16")
STAGES = ("scores", "capped", "biased", "weights")

cdef int bfloat16_number = -1  # NumPy's number for ml_dtypes.bfloat16, once it has been seen

include "_arrays.pxi"
include "_operands.pxi"
include "_call.pxi"
include "_local.pxi"
include "_additive.pxi"
include "_explain.pxi"
include "_varlen.pxi"
include "_probe.pxi"


# Each of the following functions computes; or, where `return_blocks` is True or False, says what it would do, with or
# without the blocks of pairs that it would visit: the values of a Plan.

def attention(
    query, key, value, mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap,
    alibi_slopes, sink_logits, return_lse, return_weights, out, num_threads, return_blocks=None,
):
    """Output, lse, weights; the latter two None where they are not wanted."""
    cdef Call call = Call.__new__(Call)
    call.set_operands(query, key, value, True)
    call.set_options(mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap,
                     alibi_slopes, sink_logits)
    return call.attend(query, return_lse, return_weights, out, num_threads, return_blocks)


def attention_weights(
    query, key, stage, mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap,
    alibi_slopes, sink_logits, num_threads, return_blocks=None,
):
    cdef Call call = Call.__new__(Call)
    cdef cnp.ndarray weights
    cdef int threads
    if not isinstance(stage, str) or stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")
    call.set_operands(query, key, None, False)
    call.set_options(mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap,
                     alibi_slopes, sink_logits)
    call.results.stage = <af_stage><int>STAGES.index(stage)
    if call.results.stage == AF_SCORES:
        call.score.softcap = 0
    threads = thread_count(num_threads)
    if return_blocks is not None:
        call.results.weights.data = WANTED
        return call.describe(threads, return_blocks)
    weights = call.new_array(call.p.Lk)
    call.set_strides(&call.results.weights, weights)
    call.run(threads)
    return weights


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
