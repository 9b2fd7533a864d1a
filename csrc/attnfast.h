/* attnfast: the C API. A problem says what to compute, in parts: the operands, who sees whom, what the scores are, and
 * which results are wanted. It must be legal, see af_results; builds without NDEBUG assert it.
 *
 *   B batch rows, H query heads, Hk key/value heads (H % Hk == 0), Lq queries, Lk keys, D and Dv head sizes.
 *   b h i j count batch rows, heads, queries and keys. Strides and offsets count elements, never bytes.
 *
 * Each struct of a problem begins with its size, sizeof of the struct as the caller knows it. Fields beyond that size,
 * which a caller with an older header does not know, have their defaults, and so have all fields of a part that is
 * NULL: no window, scale 1, and else zero, which is "none". */
#ifndef ATTNFAST_H
#define ATTNFAST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum af_dtype { AF_F32, AF_F64, AF_F16, AF_BF16 } af_dtype;
typedef enum af_status { AF_OK, AF_NO_MEMORY, AF_INTERRUPTED } af_status;

/* What the `weights` array receives: the scores at one of the stages of the computation, or the softmax weights. */
typedef enum af_stage { AF_SCORES, AF_CAPPED, AF_BIASED, AF_WEIGHTS } af_stage;

/* A window bound of AF_FAR is no bound. Positions stay below AF_MAX_POSITION, so that position - AF_FAR is before every
 * key and sums fit in 64 bits. */
#define AF_FAR ((int64_t)1 << 60)
#define AF_MAX_POSITION ((int64_t)1 << 58)

/* Element (b, h, i, j) is data[(batch ? batch[b] : b * stride_b) + h * stride_h + i * stride_i + j * stride_j]. */
typedef struct af_tensor {
    void *data;           /* NULL: absent */
    const int64_t *batch; /* offset of each batch row, when the batch axes do not collapse into one stride */
    int64_t b, h, i, j;
} af_tensor;

/* What keys and values are stored in: elements as in query, or bytes. Of bytes the real number is (stored - zero) *
 * scale, and query is not of AF_F64. */
typedef enum af_storage { AF_AS_QUERY, AF_INT8, AF_UINT8, AF_FLOAT8_E4M3FN, AF_FLOAT8_E5M2 } af_storage;

/* A float for groups of neighbours: row i, element j has that at row i / rows, element j / columns. */
typedef struct af_groups {
    af_tensor at; /* absent: 1 as a scale, 0 as a zero */
    int64_t rows, columns;
} af_groups;

/* Rows of D, D and Dv elements, whose stride j is 1; of key and value it may be any in af_attention, unless they are in
 * pages or bytes or there are global tokens or importance. */
typedef struct af_operands {
    size_t size;
    af_tensor query, key;
    af_tensor value; /* read only where the output is wanted */
    /* Keys and values in pages: row j of batch row b, or of packed sequence b, is row j % page_size of page
     * block_table[b * blocks + j / page_size]. Stride b of key and value is then the distance of pages, and `batch` is
     * NULL. An entry without a key from kv_start to kv_length may be any number. */
    const int64_t *block_table; /* [B][blocks], or [sequences][blocks], or NULL: no pages */
    int64_t blocks, page_size;
    af_storage storage; /* of key and value; where these are in pages, so are scales and zeros */
    af_groups key_scale, value_scale, key_zero, value_zero;
} af_operands;

/* Who sees whom. Query i is at position p = i + q_offset[b] of the key axis. It sees the keys of its window,
 * j = c + t * dilation[h] with -left <= t <= right, where the window's center c is p or center[b, h, i]; the global
 * tokens; and every key if it is at the position of a global token itself. Of these it does not see keys that causality
 * (j > p), a length, a mask or a block mask hides. Centers go with neither dilation nor global tokens. */
typedef struct af_visible {
    size_t size;
    int64_t left, right; /* at least 0; AF_FAR: unbounded */
    bool causal;
    const int64_t *q_offset;  /* [B], or NULL: 0 */
    const int64_t *q_length;  /* [B]: queries from here on are padding, or NULL: Lq */
    const int64_t *kv_length; /* [B]: keys from here on are padding, or NULL: Lk */
    const int64_t *dilation;  /* [H], from 1 to AF_FAR, or NULL: 1 */
    const uint8_t *global;    /* [B][Lk], non-zero: a global token, or NULL */
    af_tensor center;         /* double, no j */
    af_tensor mask;           /* one byte each, non-zero: may attend; j stride 0 or 1 */
    af_tensor blocks;         /* one byte for each block of block_q queries and block_k keys, non-zero: may attend */
    int64_t block_q, block_k;
    const int64_t *kv_start; /* [B]: keys before it are padding too, or NULL: 0 */
} af_visible;

/* Scores: scale * q . k, or of the additive kind sum_d weight_d tanh(q_d + k_d + bias_d); then the softcap; then bias
 * and ALiBi. `real` is double for AF_F64 and float for the other dtypes. */
typedef struct af_score {
    size_t size;
    double scale, softcap; /* softcap 0: none */
    bool additive;
    af_tensor score_weight, score_bias; /* real; over (h, j) */
    af_tensor bias;                     /* real; j stride 0 or 1; -inf hides a key */
    const double *alibi;                /* slopes, [b * alibi_b + h], or NULL */
    int64_t alibi_b;
    const double *sink; /* [H], or NULL */
    double gaussian; /* above 0, beside centers: weights are multiplied by 2^-(gaussian (j - center))^2 after softmax */
    double dropout;  /* in [0, 1): the output has weights times 0, so many of them, or 1 / (1 - dropout) */
    uint64_t dropout_seed; /* which ones is a function of it and of the places of weights, see plan/dropout.h */
} af_score;

/* Where results go; those that are absent are not wanted, and if none is wanted nothing is computed. What can be wanted
 * of a call:
 *
 *                                  output, lse   weights       top_*   importance
 *   plain windows                  yes           every stage   yes     yes
 *   windows about centers          yes           every stage   yes     no
 *   the same with a gaussian       yes           every stage   no      no
 *   dilation or global tokens      yes           AF_WEIGHTS    no      no    (scores must not be additive)
 *   packed sequences               yes           every stage   yes     no    (there must be no block mask)
 *
 * Keys in pages or bytes go with plain windows, and with scores that are not additive. Keys of pages that are padding
 * do not exist: at the stages AF_SCORES and AF_CAPPED, which have every pair, theirs are -inf.
 *
 * Only one of weights, top_* and importance can be wanted, and no output or lse beside weights of another stage than
 * AF_WEIGHTS. Except for AF_F64, top_* needs fewer than 2^32 keys. */
typedef struct af_results {
    size_t size;
    af_tensor output;  /* rows of Dv elements, j stride 1 */
    af_tensor lse;     /* real; no j */
    af_tensor weights; /* [B][H][Lq][Lk], what `stage` says */
    af_stage stage;
    int64_t topk;                    /* entries of a row of both of these, heaviest first, equal ones by key: */
    af_tensor top_index, top_weight; /* int64_t, -1 past the visible keys; and elements as in query, 0 there */
    void *importance;                /* real [B][H][Lk]: total weight of each key */
} af_results;

/* A loss by what a call returned, and where its gradients go. All but the first five are added to, and wanted unless
 * absent: callers begin with zeros. Of the last six there are only those of what the call has. Where batch rows repeat
 * their elements in the call (stride 0, or equal offsets in `batch`) they may do so here, and receive the sum; heads
 * and queries of a bias too. */
typedef struct af_gradients {
    size_t size;
    af_tensor output, lse;             /* what the call returned; as in af_results */
    af_tensor grad_output, grad_lse;   /* derivatives by them, of the same types; grad_lse may be absent */
    af_tensor grad_weights;            /* elements as in query, j stride 1; or absent */
    af_tensor query, key, value;       /* real, j stride 1 */
    af_tensor bias;                    /* real; j stride 0 or 1 */
    double *alibi;                     /* [b * alibi_b + h] */
    double *sink;                      /* [H] */
    double *score_weight, *score_bias; /* [h * s + d], s being the stride h of the tensor of that name in af_score */
    af_tensor center;                  /* double, no j; 0 without a gaussian */
} af_gradients;

typedef struct af_problem {
    size_t size;
    af_dtype dtype; /* of query, key, value, output, weights */
    int64_t B, H, Hk, Lq, Lk, D, Dv;
    const af_operands *operands;
    const af_visible *visible;
    const af_score *score;
    const af_results *results;
} af_problem;

/* Sequences packed one after the other: sequence s has the queries first_query[s] .. first_query[s + 1] and the keys
 * first_key[s] .. first_key[s + 1]. */
typedef struct af_packing {
    int64_t sequences;
    const int64_t *first_query, *first_key; /* [sequences + 1] */
} af_packing;

/* How to run: at most `threads` threads, 0: af_threads(); `interrupted` (or NULL) is asked about every 50 ms, and a
 * non-zero answer ends the call with AF_INTERRUPTED. Where functions take an af_run, NULL is one of zeros. */
typedef struct af_run {
    int threads;
    int (*interrupted)(void);
} af_run;

/* What a call would do. Pairs are (query, key) pairs over all batch rows and heads; visited pairs are those whose
 * score is computed, visible ones those that may attend. */
typedef struct af_report {
    int64_t visible_pairs, visited_pairs, tasks;
    double flops, bytes;
    double memory; /* bytes that passes and threads work in, without copies of operands that a driver makes */
    int threads;
    const char *isa, *kernel;
    int64_t rectangles;
} af_report;

/* Pairs that are visited together: queries first_query, first_query + step ... below end_query of all heads of
 * key/value head hk, and keys likewise. The step is the dilation of windows, else 1. b counts sequences where they are
 * packed. */
typedef struct af_rectangle {
    int64_t b, hk, first_query, end_query, first_key, end_key, step;
} af_rectangle;

/* If it returns AF_NO_MEMORY, nothing was written; with dilations, global tokens or topk above 64, part of the results
 * may have been. If B, H or Lq is 0, nothing is written, not even importance. */
af_status af_attention(const af_problem *problem, const af_run *run);

/* Several sequences: each has its rows of what has queries (query, center, mask, bias, results), and its rows, or
 * columns, of what has keys (key, value, global, mask, bias, weights). Positions, keys of centers and in top_index
 * count from the beginning of the sequence. `whole` is a problem with B = 1; its q_offset, q_length, kv_length,
 * kv_start and alibi have one entry, or row, for each sequence, and lengths and starts are at most its length. The bits
 * are those of each sequence alone. Nothing is written to weights outside of the sequences. Results of some sequences
 * may be there when it returns AF_NO_MEMORY. */
af_status af_attention_packed(const af_problem *whole, const af_packing *packing, const af_run *run);

/* Gradients of a call of AF_F32 or AF_F64; its results need not be given. Callers widen 16-bit operands, and round
 * their gradients once. If it returns AF_NO_MEMORY, nothing was written, or with dilations or global tokens some of it;
 * if AF_INTERRUPTED, some sums are incomplete. */
af_status af_attention_backward(const af_problem *problem, const af_gradients *gradients, const af_run *run);

/* The same for packed sequences; what is wanted has its rows, or columns, as in the call. Gradients of some sequences
 * may be there when it returns AF_NO_MEMORY. */
af_status af_attention_packed_backward(const af_problem *whole, const af_packing *packing,
                                       const af_gradients *gradients, const af_run *run);

/* Without doing it: what a call would do. `rectangles` (or NULL) receives what it visits, at most `room` of them. There
 * must be fewer than 2^62 (query, key) pairs. */
af_status af_describe(const af_problem *problem, const af_run *run, af_report *report, af_rectangle *rectangles,
                      int64_t room);
af_status af_describe_packed(const af_problem *whole, const af_packing *packing, const af_run *run, af_report *report,
                             af_rectangle *rectangles, int64_t room);
/* Of gradients only which are wanted and their strides matter; none is read or written. */
af_status af_describe_backward(const af_problem *problem, const af_gradients *gradients, const af_run *run,
                               af_report *report, af_rectangle *rectangles, int64_t room);
af_status af_describe_packed_backward(const af_problem *whole, const af_packing *packing, const af_gradients *gradients,
                                      const af_run *run, af_report *report, af_rectangle *rectangles, int64_t room);

/* Number of threads that a call from this thread uses by default: what was set for the calling thread, else for the
 * process, else the least of what OpenMP allows the calling thread, the CPUs the process may run on and the CPU quota
 * of its control group. Setting 0 takes a setting back; the one for the calling thread returns what it was. */
int af_threads(void);
void af_set_threads(int threads);
int af_set_own_threads(int threads);

/* Instruction sets this CPU can run, best first; NULL at the end of the list. */
const char *af_isa(int index);
/* Use no instruction set better than `name`; NULL: the best. Returns false if the name is not in the list. */
bool af_cap_isa(const char *name);
/* The instruction set in use for a dtype. */
const char *af_isa_in_use(af_dtype dtype);

/* Rotary embedding. The elements x and y of a pair become x cos - y sin and y cos + x sin, with the cosine and sine of
 * the pair's angle, which is position * base^(-d / pairs) for pair d; or with those of tables. Pair d is the elements d
 * and d + pairs, or where pairs are interleaved, 2 d and 2 d + 1; elements from 2 * pairs on are copied. */
typedef struct af_rotation {
    size_t size;
    af_dtype dtype;            /* of the elements */
    int64_t B, H, L, D, pairs; /* pairs <= D / 2 */
    bool interleaved;
    af_tensor from, to;     /* rows of D elements, j stride 1; `to` is `from`, or shares no memory with it */
    af_tensor position;     /* int64_t, over (b, i) */
    double base;            /* finite, above 0; not read beside tables */
    af_tensor cosine, sine; /* tables: real, over (i, j) = (position, pair); both or neither */
} af_rotation;

/* If it returns AF_NO_MEMORY, nothing was written. */
af_status af_rotate(const af_rotation *rotation, const af_run *run);

/* The functions above as a table, for programs that do not link this library: the capsule attnfast._core._C_API of the
 * Python package holds one, and attnfast_python.h imports it. Later releases append to it. `version` changes if an
 * older function does, or a struct that does not begin with its size. */
#define AF_API_VERSION 1
typedef struct af_api {
    size_t size;
    int version;
    af_status (*attention)(const af_problem *, const af_run *);
    af_status (*attention_packed)(const af_problem *, const af_packing *, const af_run *);
    af_status (*attention_backward)(const af_problem *, const af_gradients *, const af_run *);
    af_status (*attention_packed_backward)(const af_problem *, const af_packing *, const af_gradients *,
                                           const af_run *);
    af_status (*describe)(const af_problem *, const af_run *, af_report *, af_rectangle *, int64_t room);
    af_status (*describe_packed)(const af_problem *, const af_packing *, const af_run *, af_report *, af_rectangle *,
                                 int64_t room);
    af_status (*describe_backward)(const af_problem *, const af_gradients *, const af_run *, af_report *,
                                   af_rectangle *, int64_t room);
    af_status (*describe_packed_backward)(const af_problem *, const af_packing *, const af_gradients *, const af_run *,
                                          af_report *, af_rectangle *, int64_t room);
    int (*threads)(void);
    void (*set_threads)(int threads);
    int (*set_own_threads)(int threads);
    const char *(*isa)(int index);
    bool (*cap_isa)(const char *name);
    const char *(*isa_in_use)(af_dtype dtype);
    af_status (*rotate)(const af_rotation *, const af_run *);
} af_api;

#endif
