/* Memory for the results of calls, and whether two runs of one call wrote the same. */
#include "call.h"

static const char *const names[RESULTS] = {"output", "lse", "weights", "top_index", "top_weight", "importance"};

void new_results(results *r, const call *c, int fill)
{
    const wish *w = &c->wish;
    const type elem = (type)w->dtype, real = w->dtype == AF_F64 ? F64 : F32;
    chance own = {~w->seed}, *any = w->layouts ? &own : NULL; /* the same layouts for all runs of a call */
    *r = (results){.part = {.size = sizeof r->part, .stage = w->stage, .topk = w->topk}, .fill = fill};
    if (c->operands.value.data && !w->no_output)
        r->arrays[OUTPUT] = new_array(elem, w->B, w->H, w->Lq, w->Dv, 0, any, fill);
    if (w->lse) r->arrays[LSE] = new_array(real, w->B, w->H, w->Lq, 1, 0, any, fill);
    if (w->weights) r->arrays[STAGE] = new_array(elem, w->B, w->H, w->Lq, w->Lk, 0, any, fill);
    if (w->topk) {
        r->arrays[TOP_INDEX] = new_array(INT64, w->B, w->H, w->Lq, w->topk, 0, any, fill);
        r->arrays[TOP_WEIGHT] = new_array(elem, w->B, w->H, w->Lq, w->topk, 0, any, fill);
    }
    /* Zeros, which is what it stays where there are no queries. */
    if (w->importance) r->arrays[IMPORTANCES] = new_array(real, w->B, w->H, 1, w->Lk, 0, NULL, 0);
    r->part.output = r->arrays[OUTPUT].tensor;
    r->part.lse = r->arrays[LSE].tensor;
    r->part.weights = r->arrays[STAGE].tensor;
    r->part.top_index = r->arrays[TOP_INDEX].tensor;
    r->part.top_weight = r->arrays[TOP_WEIGHT].tensor;
    r->part.importance = r->arrays[IMPORTANCES].tensor.data;
}

void free_results(results *r)
{
    for (int k = 0; k < RESULTS; k++) free_array(&r->arrays[k]);
}

void blank_beside_sequences(const call *c, results *r)
{
    array *a = &r->arrays[STAGE];
    if (c->wish.kind != PACKED || !a->memory) return;
    int64_t s = 0;
    for (int64_t i = 0; i < a->I; i++) {
        while (i >= c->first_query[s + 1]) s++;
        for (int64_t h = 0; h < a->H; h++)
            for (int64_t j = 0; j < a->J; j++)
                if (j < c->first_key[s] || j >= c->first_key[s + 1]) put(a, 0, h, i, j, 0);
    }
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
