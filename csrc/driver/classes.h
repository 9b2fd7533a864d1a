/* Residue classes of the queries and keys of a call, as batch rows of another. */
#ifndef AF_CLASSES_H
#define AF_CLASSES_H

#include "driver/arena.h"
#include "driver/sink.h"

/* Classes [first, first + count): class c has the queries first + c, first + c + step ... and the keys whose residue is
 * that of the positions of these queries. */
typedef struct af_classes {
    const af_call *whole;
    int64_t step, first, count;
    int64_t Lq, Lk;       /* of each class */
    int64_t *own, *other; /* first query and first key, [B][count] */
    af_sink *sink;        /* for which the call is */
    af_arena *arena;
    double copied; /* bytes of columns that are copied */
    af_status status;
} af_classes;

/* The classes as one call, unless the status says otherwise. */
void af_split_call(af_classes *classes, af_call *call);

/* The same for what belongs to gradients, which af_split_call leaves as they are. Copies of what is added to begin with
 * zeros. */
void af_split_gradients(af_classes *classes, af_call *call);

/* Adds these copies to the gradients of the whole, when the call is done. */
void af_join_gradients(af_classes *classes, const af_call *call);

/* Of a tensor that has a column for every key: the bytes that are copied for one class of one batch row ... */
double af_copied_bytes(const af_classes *classes, const af_call *call, const af_tensor *t, int64_t size);

/* ... and whether all batch rows share them. */
bool af_rows_share_copies(const af_call *call, const af_tensor *t, int64_t step);

/* What af_split_call is made of. */

static inline int64_t af_floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }

/* Memory; NULL and a status if there is none. */
void *af_take_of_classes(af_classes *classes, int64_t count, size_t size);

static inline int64_t af_class_rows(const af_classes *c) { return c->whole->B * c->count; }

/* Every step-th row of a tensor from a residue on: a batch row for each class. */
void af_split_rows(af_classes *classes, af_tensor *t, const int64_t *residue, int64_t rows);

/* Columns of a tensor that are copied, one line after the other. */
typedef struct af_columns {
    const af_classes *classes;
    af_tensor from, to;
    int64_t copies, heads, rows, size; /* bytes of an element, 1, 4 or 8 */
} af_columns;

/* Memory for the columns of the keys of each class, because kernels want them side by side. */
bool af_take_columns(af_classes *classes, const af_tensor *t, int64_t size, af_columns *columns);

/* The same with what is in these columns of `t`, which then points to it. */
void af_gather_columns(af_classes *classes, af_tensor *t, int64_t size);

/* Where line (n, h, i) of columns comes from. */
static inline int64_t af_line_of_whole(const af_columns *g, int64_t n, int64_t h, int64_t i)
{
    const af_classes *c = g->classes;
    const int64_t row = g->from.i ? c->own[n] + i * c->step : 0;
    return (g->from.batch ? g->from.batch[n / c->count] : n / c->count * g->from.b) + h * g->from.h + row * g->from.i;
}

#endif
