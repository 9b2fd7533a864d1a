/* Memory for the results of calls, and whether two runs of one call wrote the same. */
#include "call.h"

static const char *const names[RESULTS] = {
    [OUTPUT] = "output",
    [LSE] = "lse",
    [STAGE] = "weights",
    [TOP_INDEX] = "top_index",
    [TOP_WEIGHT] = "top_weight",
    [IMPORTANCES] = "importance",
    [D_QUERY] = "the gradient of query",
    [D_KEY] = "the gradient of key",
    [D_VALUE] = "the gradient of value",
    [D_BIAS] = "the gradient of bias",
    [D_ALIBI] = "the gradient of alibi",
    [D_SINK] = "the gradient of sink",
    [D_SCORE_WEIGHT] = "the gradient of score_weight",
    [D_SCORE_BIAS] = "the gradient of score_bias",
    [D_CENTER] = "the gradient of center",
};

const char *result_name(int which) { return names[which]; }

/* Whether heads or rows repeat their elements. */
static bool repeats(const array *a) { return (a->H > 1 && a->tensor.h == 0) || (a->I > 1 && a->tensor.i == 0); }

/* The gradient of an input, or nothing if there is no such input, perhaps in the same layout: the batch rows of all,
 * and heads and rows of a bias or of vectors of heads, may repeat their elements where the input does. */
static void new_gradient(results *r, int which, const array *input, type t, chance *layout)
{
    if (!input->memory) return;
    const bool like = !layout || (one_in(layout, 2) && (which == D_BIAS || !repeats(input)));
    r->arrays[which] = like ? new_array_like(input, t, r->fill)
                            : new_array(t, input->B, input->H, input->I, input->J, 0, C_ORDER, layout, r->fill);
}

/* That of the slopes and of the sinks, in the layout of af_score. */
static void new_head_sums(results *r, int which, const double *input, int64_t rows, int64_t heads)
{
    if (input) r->arrays[which] = new_array(F64, rows, heads, 1, 1, 0, C_ORDER, NULL, r->fill);
}

static void new_gradients(results *r, const call *c, chance *layout)
{
    const wish *w = &c->wish;
    const type real = (type)w->dtype;
    const int64_t rows = is_packed(w) ? w->sequences : w->B;
    r->gradients = c->loss;
    new_gradient(r, D_QUERY, &c->inputs[QUERY], real, layout);
    new_gradient(r, D_KEY, &c->inputs[KEY], real, layout);
    new_gradient(r, D_VALUE, &c->inputs[VALUE], real, layout);
    new_gradient(r, D_BIAS, &c->inputs[BIAS], real, layout);
    new_gradient(r, D_CENTER, &c->inputs[CENTER], F64, layout);
    new_head_sums(r, D_ALIBI, c->score.alibi, c->score.alibi_b ? rows : 1, w->H);
    new_head_sums(r, D_SINK, c->score.sink, 1, w->H);
    new_gradient(r, D_SCORE_WEIGHT, &c->inputs[SCORE_WEIGHT], F64, NULL);
    new_gradient(r, D_SCORE_BIAS, &c->inputs[SCORE_BIAS], F64, NULL);
    for (int k = FIRST_GRADIENT; k < RESULTS; k++) {
        if (w->unwanted >> (k - FIRST_GRADIENT) & 1) free_array(&r->arrays[k]);
        if (r->arrays[k].memory) fill_array(&r->arrays[k], 0);
    }
    r->gradients.output = r->part.output;
    r->gradients.lse = r->part.lse;
    r->gradients.query = r->arrays[D_QUERY].tensor;
    r->gradients.key = r->arrays[D_KEY].tensor;
    r->gradients.value = r->arrays[D_VALUE].tensor;
    r->gradients.bias = r->arrays[D_BIAS].tensor;
    r->gradients.center = r->arrays[D_CENTER].tensor;
    r->gradients.alibi = r->arrays[D_ALIBI].tensor.data;
    r->gradients.sink = r->arrays[D_SINK].tensor.data;
    r->gradients.score_weight = r->arrays[D_SCORE_WEIGHT].tensor.data;
    r->gradients.score_bias = r->arrays[D_SCORE_BIAS].tensor.data;
}

void new_results(results *r, const call *c, int fill)
{
    const wish *w = &c->wish;
    const type elem = (type)w->dtype, real = w->dtype == AF_F64 ? F64 : F32;
    chance own = {~w->seed}, *any = w->layouts ? &own : NULL; /* the same layouts for all runs of a call */
    *r = (results){.part = {.size = sizeof r->part, .stage = w->stage, .topk = w->topk}, .fill = fill};
    if (c->operands.value.data && !w->no_output)
        r->arrays[OUTPUT] = new_array(elem, w->B, w->H, w->Lq, w->Dv, 0, w->order, any, fill);
    if (w->lse) r->arrays[LSE] = new_array(real, w->B, w->H, w->Lq, 1, 0, w->order, any, fill);
    if (w->weights) r->arrays[STAGE] = new_array(elem, w->B, w->H, w->Lq, w->Lk, 0, w->order, any, fill);
    if (w->topk) {
        r->arrays[TOP_INDEX] = new_array(INT64, w->B, w->H, w->Lq, w->topk, 0, w->order, any, fill);
        r->arrays[TOP_WEIGHT] = new_array(elem, w->B, w->H, w->Lq, w->topk, 0, w->order, any, fill);
    }
    /* Zeros, which is what it stays where there are no queries. */
    if (w->importance) r->arrays[IMPORTANCES] = new_array(real, w->B, w->H, 1, w->Lk, 0, C_ORDER, NULL, 0);
    r->part.output = r->arrays[OUTPUT].tensor;
    r->part.lse = r->arrays[LSE].tensor;
    r->part.weights = r->arrays[STAGE].tensor;
    r->part.top_index = r->arrays[TOP_INDEX].tensor;
    r->part.top_weight = r->arrays[TOP_WEIGHT].tensor;
    r->part.importance = r->arrays[IMPORTANCES].tensor.data;
    if (has_gradients(w)) new_gradients(r, c, any);
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
