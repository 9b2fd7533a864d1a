/* The plan: how a problem is cut into units of work. Pure arithmetic on the problem and the geometry of a kernel
 * table. Nothing that shapes the arithmetic depends on the thread count, the batch or the number of key/value heads,
 * so that the same inputs give the same bits however they are computed. */
#ifndef AF_PLAN_H
#define AF_PLAN_H

#include <stdatomic.h>

#include "plan/call.h"

typedef struct af_kernels af_kernels;

/* What an element of an additive score costs, in elements of a product: 5 to 6 by the times of 4 x 100 x 100 x 128 (Zen
 * 4, AVX-512 and AVX2), and more without a vector header. It decides on threads and sizes of units only. */
enum { AF_TANH_WORK = 8 };

/* The most keys of a score tile. */
enum { AF_TILE_KEYS = 256 };

/* Keys in columns, (B, H, D, L), of which one query row has the scores made together. Columns are read fastest whole:
 * of 8192 keys whole, 1024 or 512 at a time with 28, 22 and 23 GB/s (Zen 5, AVX-512, beside other work). */
enum { AF_COLUMN_KEYS = 8192 };

/* One unit of work: some blocks of query rows of one (batch row, head group) against one split, or chunk, of their
 * keys. */
typedef struct af_unit {
    int64_t b, hg;
    int64_t row; /* first row; the rows of a head group are r = i * G + g for query i and head hg * G + g */
    int rows;
    int64_t split; /* which split of the keys that these rows see, or which chunk of all keys */
    int more;      /* splits that follow it in the same unit of work */
    bool goes_on;  /* the split before it was in the same unit of work */
} af_unit;

typedef struct af_plan {
    const af_kernels *kernels;
    const struct af_byte_kernels *bytes; /* for keys and values in bytes, else NULL */
    bool decode;                         /* few rows: the kernel that keeps D in the lanes */
    int64_t group;              /* G query heads that are computed together: those that share a key/value head, or 1 */
    int64_t head_groups;        /* H / G */
    int64_t rows, blocks;       /* G * Lq rows for each (batch row, head group), in that many blocks */
    int block_rows;             /* as many rows as the registers take side by side */
    int unit_blocks;            /* blocks that go through the keys together in the attend pass: of rows, in decode of
                                 * successive head groups */
    bool in_turn;               /* in decode these are of one batch row and read the keys in turn: decode_pages.h */
    int unit_lots;              /* a unit of decode has so many times as many, one lot after the other ... */
    bool lots_alike;            /* ... which see the same keys, and whose rows are where they are stored */
    int key_block;              /* keys per score tile, a multiple of 64 */
    int64_t split_keys, splits; /* keys per split, splits per block of rows */
    int unit_splits;            /* so many of them, one after the other, are in a unit */
    int64_t chunk_keys, chunks; /* the same for the pass that writes weights */
    size_t partial_bytes;       /* the partial result of one block of rows and one split */
    size_t block_partials;      /* of all splits of a block of rows */
    double query_scale;         /* folded into the query when it is packed */
    int64_t request_bytes;      /* decode requests each line this far ahead; 0: hardware that does better alone */
    bool alone;                 /* one thread runs all units, so that they need not be many */
    bool base2;                 /* scores are in units of log 2 (plain problems), else of the natural log */
    bool softmax;               /* output or lse are to be computed */
    _Atomic int *met_infinity; /* set once a value that is not finite has cost a second run, so that others begin in the
                                * NaN-safe way, which gives the same bits; or NULL */
    double pairs;              /* an upper estimate of the pairs to visit */
} af_plan;

/* request_bytes, alone: as in af_plan. */
void af_make_plan(af_plan *plan, const af_call *call, const af_kernels *kernels, int64_t request_bytes, bool alone);

/* Whether all passes over keys and values take them in columns: decoding does. */
bool af_reads_columns(const af_call *call, const af_kernels *kernels);

/* Units of so many blocks of rows in each head group. In decode there is one block of rows, and units of several blocks
 * have those of several head groups. */
static inline int64_t af_units_of_rows(const af_plan *plan, int blocks)
{
    return plan->decode ? 1 : (plan->blocks + blocks - 1) / blocks;
}

/* Units for the splits of a block of rows. */
static inline int64_t af_split_units(const af_plan *plan)
{
    return (plan->splits + plan->unit_splits - 1) / plan->unit_splits;
}

/* The unit of a number, where units have so many blocks and rows so many splits. The last rows come first: under a
 * causal mask they cost most. In decode a unit is named by the first of its head groups. */
af_unit af_plan_unit(const af_plan *plan, int64_t index, int blocks, int64_t splits);

/* Moves on to the rows that the attend pass takes next; false after the last ones. */
static inline bool af_next_unit(const af_plan *plan, const af_call *call, af_unit *unit)
{
    const int64_t rows = (int64_t)plan->unit_blocks * plan->block_rows;
    if (unit->row > 0) {
        unit->row -= rows;
        unit->rows = (int)rows;
        return true;
    }
    unit->row = (af_units_of_rows(plan, plan->unit_blocks) - 1) * rows;
    unit->rows = (int)(plan->rows - unit->row);
    if (++unit->hg < plan->head_groups) return true;
    unit->hg = 0;
    return ++unit->b < call->B;
}

#endif
