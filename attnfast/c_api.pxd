# cython: language_level=3
"""The C API for Cython: the types of attnfast.h, and af_import() of attnfast_python.h, which returns its functions.

Only declarations; what they mean is in attnfast.h. `global` of af_visible is `global_tokens` here, and `from` of
af_rotation is `source`: in Cython they are statements.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

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
    ctypedef enum af_storage:
        AF_AS_QUERY, AF_INT8, AF_UINT8, AF_FLOAT8_E4M3FN, AF_FLOAT8_E5M2
    ctypedef struct af_groups:
        af_tensor at
        int64_t rows, columns
    ctypedef struct af_operands:
        size_t size
        af_tensor query, key, value
        const int64_t *block_table
        int64_t blocks, page_size
        af_storage storage
        af_groups key_scale, value_scale, key_zero, value_zero
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
        const int64_t *kv_start
    ctypedef struct af_score:
        size_t size
        double scale, softcap
        bint additive
        af_tensor score_weight, score_bias, bias
        const double *alibi
        int64_t alibi_b
        const double *sink
        double gaussian
        double dropout
        uint64_t dropout_seed
    ctypedef struct af_results:
        size_t size
        af_tensor output, lse, weights
        af_stage stage
        int64_t topk
        af_tensor top_index, top_weight
        void *importance
    ctypedef struct af_gradients:
        size_t size
        af_tensor output, lse, grad_output, grad_lse, grad_weights, query, key, value, bias
        double *alibi
        double *sink
        double *score_weight
        double *score_bias
        af_tensor center
    ctypedef struct af_problem:
        size_t size
        af_dtype dtype
        int64_t B, H, Hk, Lq, Lk, D, Dv
        const af_operands *operands
        const af_visible *visible
        const af_score *score
        const af_results *results
    ctypedef struct af_packing:
        int64_t sequences
        const int64_t *first_query
        const int64_t *first_key
    ctypedef struct af_run:
        int threads
        int (*interrupted)() noexcept nogil
    ctypedef struct af_report:
        int64_t visible_pairs, visited_pairs, tasks
        double flops, bytes, memory
        int threads
        const char *isa
        const char *kernel
        int64_t rectangles
    ctypedef struct af_rectangle:
        int64_t b, hk, first_query, end_query, first_key, end_key, step
    ctypedef struct af_rotation:
        size_t size
        af_dtype dtype
        int64_t B, H, L, D, pairs
        bint interleaved
        af_tensor source "from"
        af_tensor to, position
        double base
        af_tensor cosine, sine
    int AF_API_VERSION
    ctypedef struct af_api:
        size_t size
        int version
        af_status (*attention)(const af_problem *, const af_run *) noexcept nogil
        af_status (*attention_packed)(const af_problem *, const af_packing *, const af_run *) noexcept nogil
        af_status (*attention_backward)(const af_problem *, const af_gradients *, const af_run *) noexcept nogil
        af_status (*attention_packed_backward)(const af_problem *, const af_packing *, const af_gradients *,
                                               const af_run *) noexcept nogil
        af_status (*describe)(const af_problem *, const af_run *, af_report *, af_rectangle *, int64_t) noexcept nogil
        af_status (*describe_packed)(const af_problem *, const af_packing *, const af_run *, af_report *,
                                     af_rectangle *, int64_t) noexcept nogil
        af_status (*describe_backward)(const af_problem *, const af_gradients *, const af_run *, af_report *,
                                       af_rectangle *, int64_t) noexcept nogil
        af_status (*describe_packed_backward)(const af_problem *, const af_packing *, const af_gradients *,
                                              const af_run *, af_report *, af_rectangle *, int64_t) noexcept nogil
        int (*threads)() noexcept nogil
        void (*set_threads)(int) noexcept nogil
        int (*set_own_threads)(int) noexcept nogil
        const char *(*isa)(int) noexcept nogil
        bint (*cap_isa)(const char *) noexcept nogil
        const char *(*isa_in_use)(af_dtype) noexcept nogil
        af_status (*rotate)(const af_rotation *, const af_run *) noexcept nogil

cdef extern from "attnfast_python.h":
    const af_api *af_import() except NULL
