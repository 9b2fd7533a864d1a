/* The kernel table: what one instruction set offers for one dtype. kernels.c is compiled once per pair and exports
 * exactly one table; everything else in it is static. */
#ifndef AF_KERNELS_H
#define AF_KERNELS_H

#include "plan/backward.h"
#include "plan/plan.h"

#define AF_PASTE_(a, b, c) a##_##b##_##c
#define AF_PASTE(a, b, c) AF_PASTE_(a, b, c)
#define AF_TABLE(dtype, isa) AF_PASTE(af_kernels, dtype, isa)

/* CPU features a table needs (see cpu.c). */
enum {
    AF_CPU_AVX2 = 1,
    AF_CPU_AVX512 = 2,
    AF_CPU_REQUESTS = 4, /* memory is read faster where decoding requests each line: see plan.h */
    AF_CPU_LOOKS_UP = 8, /* 64 bytes are looked up in a table of 128 in registers: AVX-512 VBMI */
};

/* Keys or values of one head that are stored in bytes, see kernel/bytes.h. */
typedef struct af_byte_rows {
    af_storage storage;
    const uint8_t *first;          /* row 0, or that of page 0 */
    int64_t stride, width, before; /* groups of rows begin so many rows before row 0 */
    const int64_t *pages;          /* as in kernel/rows.h */
    int64_t page_size, page_stride;
    af_groups scale, zero; /* `data` is that of the head and batch row, or of page 0; at.b is the distance of pages */
    float *copy;           /* near rows as floats, and two rows more */
    int64_t room;
} af_byte_rows;

/* Few queries against n rows of bytes from row j on: products as those of kernel/decode_products.h, of `count` query
 * rows. `words` (or NULL): [..][words_ld], the rows that enter for each query row, as bits; row j is bit `first`. */
typedef struct af_byte_product {
    int64_t j;
    int n, count;
    float *s; /* [count][lds] */
    int64_t lds;
    const uint64_t *words;
    int words_ld, first;
    int64_t ahead; /* where lines are prefetched, in bytes from those that are read; 0: further on */
    bool near;     /* into the first-level cache, not the second */
} af_byte_product;

/* What float32, float16 and bfloat16 share for keys and values in bytes. In the table of AF_F32 alone. */
typedef struct af_byte_kernels {
    void (*widen)(const af_byte_rows *, int64_t j, int64_t n, float *to);
    void (*scores)(const af_byte_rows *, af_byte_product, const float *query); /* s = q . K */
    void (*output)(const af_byte_rows *, af_byte_product, float *acc);         /* acc += s V */
} af_byte_kernels;

/* Kernels compute and touch the buffers they are given: no allocation, no threads, no globals. */
struct af_kernels {
    const char *isa;
    af_dtype dtype;
    unsigned needs;
    int real_size, vl, nr; /* bytes of a real; reals in a vector; query rows in a block */
    int64_t cache_bytes;   /* of the second-level cache that processors with this instruction set have at least */
    int decode_rows;       /* the most rows that `decode` takes */
    size_t (*scratch_bytes)(const af_call *, const af_plan *);
    /* Attention of one unit. Without splits the result is final, else it is stored in `partial`. */
    void (*forward)(const af_call *, const af_plan *, af_unit, void *scratch, void *partial);
    void (*decode)(const af_call *, const af_plan *, af_unit, void *scratch, void *partial);
    /* Merges the partial results of all splits of a block, stored one after the other. */
    void (*merge)(const af_call *, const af_plan *, af_unit, void *scratch, const void *partials);
    /* Writes the scores or weights of one block of rows against one chunk of all keys. */
    void (*weights)(const af_call *, const af_plan *, af_unit, void *scratch);
    /* Adds up the weights of one chunk of keys, which is the unit's split, over some queries of one head. */
    void (*importance)(const af_call *, const af_plan *, af_unit, void *scratch);
    /* The passes of gradients, of reals only, see plan/backward.h. The unit of the first and the last is one block of
     * rows; that of the second all rows of a panel against the range of keys that is the unit's split. `next` is the
     * unit that this thread will probably take next, without rows if there is none. */
    size_t (*backward_bytes)(const af_backward *);
    size_t (*panel_bytes)(const af_backward *);
    void (*backward_open)(const af_backward *, af_unit, void *panel, void *scratch);
    void (*backward)(const af_backward *, af_unit, af_unit next, void *panel, void *part, void *scratch);
    void (*backward_finish)(const af_backward *, af_unit, void *parts);
    /* Rotary embedding of a row, see kernel/rotate.h. */
    void (*rotate_halves)(const void *from, void *to, const void *cosine, const void *sine, int64_t pairs);
    void (*rotate_neighbours)(const void *from, void *to, const void *cosine, const void *sine, int64_t elements);
    /* to[j * ld + d] = from[d * apart + j]. */
    void (*copy_columns)(const void *from, int64_t apart, void *to, int64_t ld, int64_t rows, int64_t width);
    /* n elements as reals, and reals rounded to elements. */
    void (*widen)(const void *elems, void *reals, int64_t n);
    void (*narrow)(const void *reals, void *elems, int64_t n);
    const af_byte_kernels *bytes, *bytes_by_table; /* NULL: see above; the latter are for AF_CPU_LOOKS_UP */
    const struct af_probe *probe;
};

/* The pieces one by one, for tests and benchmarks. Reals are passed as void *. */
typedef struct af_probe {
    void (*exp2)(const void *x, void *y, int64_t n);
    void (*tanh)(const void *x, void *y, int64_t n);
    void (*log2)(const void *x, void *y, int64_t n);
    void (*exp_twice)(const void *x, void *y, int64_t n);
    void (*exp_twice_fast)(const void *x, void *y, int64_t n);
    /* c[rows][nr] = a[rows][k] * b[k][nr], or += if accumulate; a's rows are lda apart. */
    void (*tile)(bool accumulate, int64_t rows, int64_t k, const void *a, int64_t lda, const void *b, void *c);
    /* One online softmax step over n keys by nr queries, in place. */
    void (*softmax)(void *s, int n, void *m, void *l);
    /* Floating-point operations done by a loop of independent FMAs in registers. */
    double (*fma_peak)(int64_t iterations);
    /* Reads n bytes in order. */
    double (*read)(const void *data, int64_t n);
} af_probe;

#endif
