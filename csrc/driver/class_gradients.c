/* Gradients of residue classes. Most are rows or columns of those of the whole; where kernels want the columns of a
 * class side by side, or slopes go by steps, they are sums of their own, which are added when the call is done. */
#include <string.h>

#include "driver/classes.h"
#include "plan/intervals.h"

/* A copy of zeros of the columns of a bias. */
static void split_bias(af_classes *c, af_tensor *t, int64_t size)
{
    af_columns g;
    if (!t->data || c->status != AF_OK) return;
    if (t->j == 0) {
        af_split_rows(c, t, c->own, c->Lq);
        return;
    }
    if (!af_take_columns(c, t, size, &g)) return;
    memset(g.to.data, 0, (size_t)(g.copies * g.heads * g.rows * c->Lk * size));
    *t = g.to;
}

void af_split_gradients(af_classes *c, af_call *call)
{
    af_gradients *g = &call->gradients;
    af_tensor *of_queries[] = {&g->output, &g->lse, &g->grad_output, &g->grad_lse, &g->query, &call->subset.collected};
    const int64_t real = af_real_bytes(call->dtype), slopes = af_class_rows(c) * call->H;
    for (size_t n = 0; n < sizeof of_queries / sizeof *of_queries; n++) af_split_rows(c, of_queries[n], c->own, c->Lq);
    af_split_rows(c, &g->key, c->other, c->Lk);
    af_split_rows(c, &g->value, c->other, c->Lk);
    if (g->grad_weights.data && c->status == AF_OK) af_gather_columns(c, &g->grad_weights, real);
    split_bias(c, &g->bias, real);
    if (!g->alibi) return;
    g->alibi = af_take_of_classes(c, slopes, sizeof(double));
    if (g->alibi) memset(g->alibi, 0, (size_t)slopes * sizeof(double));
}

/* to[key] += from[j]. */
static void add_line(const af_classes *c, const af_columns *g, int64_t n, int64_t h, int64_t i)
{
    const int64_t at = af_line_of_whole(g, n, h, i), own = af_offset(&g->to, n, h, i);
    for (int64_t j = 0, key = c->other[n]; j < c->Lk && key < c->whole->Lk; j++, key += c->step)
        if (g->size == sizeof(double)) ((double *)g->from.data)[at + key] += ((const double *)g->to.data)[own + j];
        else ((float *)g->from.data)[at + key] += ((const float *)g->to.data)[own + j];
}

static void join_bias(af_classes *c, const af_call *call)
{
    const af_tensor *t = &c->whole->gradients.bias;
    if (!t->data || t->j == 0) return;
    af_columns g = {.classes = c, .from = *t, .to = call->gradients.bias, .size = af_real_bytes(call->dtype)};
    g.copies = af_rows_share_copies(c->whole, t, c->step) ? c->count : af_class_rows(c);
    g.heads = t->h ? call->H : 1;
    g.rows = t->i ? c->Lq : 1;
    for (int64_t n = 0; n < g.copies && c->status == AF_OK; n++) {
        c->status = af_check_signals(c->sink->watch);
        for (int64_t h = 0; h < g.heads; h++)
            for (int64_t i = 0; i < g.rows; i++) add_line(c, &g, n, h, i);
    }
}

void af_join_gradients(af_classes *c, const af_call *call)
{
    const af_call *whole = c->whole;
    join_bias(c, call);
    double *slopes = whole->gradients.alibi;
    for (int64_t n = 0; slopes && n < af_class_rows(c); n++)
        for (int64_t h = 0; h < call->H; h++)
            slopes[n / c->count * whole->score.alibi_b + h] += (double)c->step * call->gradients.alibi[n * call->H + h];
}
