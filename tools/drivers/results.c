/* Memory for the results of calls, and whether two runs of one call wrote the same. */
#include "call.h"

#include <math.h>
#include <string.h>

static const char *const names[RESULTS] = {"output", "lse", "weights", "top_index", "top_weight", "importance"};

static double number_of(const call *c, int64_t h, int64_t i, int64_t d)
{
    chance own = {c->wish.seed ^ (uint64_t)((h * c->wish.Lq + i) * (c->wish.Dv + 2) + d + 1)};
    return uniform(&own);
}

double prior_lse(const call *c, int64_t h, int64_t i)
{
    const double x = number_of(c, h, i, -1); /* some rows have seen no key so far */
    return x < -0.5 ? -INFINITY : (float)(2 * x);
}

double prior_output(const call *c, int64_t h, int64_t i, int64_t d)
{
    return prior_lse(c, h, i) == -INFINITY ? 0 : (float)number_of(c, h, i, d);
}

static void write_prior(results *r, const call *c)
{
    for (int64_t h = 0; h < c->wish.H; h++)
        for (int64_t i = 0; i < c->wish.Lq; i++) {
            put(&r->arrays[LSE], 0, h, i, 0, prior_lse(c, h, i));
            for (int64_t d = 0; d < c->wish.Dv; d++) put(&r->arrays[OUTPUT], 0, h, i, d, prior_output(c, h, i, d));
        }
}

void new_results(results *r, const call *c, int fill)
{
    const wish *w = &c->wish;
    const type elem = (type)w->dtype, real = w->dtype == AF_F64 ? F64 : F32;
    chance own = {~w->seed}, *any = w->layouts ? &own : NULL; /* the same layouts for all runs of a call */
    *r = (results){.problem = c->problem, .fill = fill};
    if (c->problem.value.data) r->arrays[OUTPUT] = new_array(elem, w->B, w->H, w->Lq, w->Dv, 0, any, fill);
    if (w->lse) r->arrays[LSE] = new_array(real, w->B, w->H, w->Lq, 1, 0, any, fill);
    if (w->weights) r->arrays[STAGE] = new_array(elem, w->B, w->H, w->Lq, w->Lk, 0, any, fill);
    if (w->topk) {
        r->arrays[TOP_INDEX] = new_array(INT64, w->B, w->H, w->Lq, w->topk, 0, any, fill);
        r->arrays[TOP_WEIGHT] = new_array(elem, w->B, w->H, w->Lq, w->topk, 0, any, fill);
    }
    /* Zeros, which is what it stays where there are no queries. */
    if (w->kind == IMPORTANCE) r->arrays[IMPORTANCES] = new_array(real, w->B, w->H, 1, w->Lk, 0, NULL, 0);
    r->problem.output = r->arrays[OUTPUT].tensor;
    r->problem.lse = r->arrays[LSE].tensor;
    r->problem.weights = r->arrays[STAGE].tensor;
    r->problem.topk = w->topk;
    r->problem.top_index = r->arrays[TOP_INDEX].tensor;
    r->problem.top_weight = r->arrays[TOP_WEIGHT].tensor;
    r->problem.importance = r->arrays[IMPORTANCES].tensor.data;
    if (c->problem.resume) write_prior(r, c);
}

void free_results(results *r)
{
    for (int k = 0; k < RESULTS; k++) free_array(&r->arrays[k]);
}

const char *differ(const results *a, const results *b, int64_t at[4])
{
    for (int k = 0; k < RESULTS; k++)
        if (a->arrays[k].memory && find_difference(&a->arrays[k], &b->arrays[k], at)) return names[k];
    return NULL;
}

const char *spilled(results *r)
{
    for (int k = 0; k < RESULTS; k++)
        if (r->arrays[k].memory && !gaps_untouched(&r->arrays[k], r->fill)) return names[k];
    return NULL;
}
