#include "driver/joined_batch.h"

/* Heads beyond these are not counted: views of one number may claim any number of them. */
static const double MOST_HEADS = 0x1p40;

/* Whether a number is the same for all batch rows. */
static bool is_same(const int64_t *number, int64_t B)
{
    int64_t b = 1;
    while (number && b < B && number[b] == *number) b++;
    return !number || b >= B;
}

/* Whether batch rows do not differ but in their operands, and their results are rows of outputs. */
static bool is_uniform(const af_call *call)
{
    const af_visible *v = &call->visible;
    const af_score *score = &call->score;
    const af_results *r = &call->results;
    const af_subset *subset = &call->subset;
    if (call->operands.block_table || call->operands.storage || call->gradients.size) return false;
    if (!is_same(v->q_offset, call->B) || !is_same(v->q_length, call->B)) return false;
    if (!is_same(v->kv_length, call->B) || !is_same(v->kv_start, call->B)) return false;
    if (v->dilation || v->global || v->center.data || v->blocks.data || score->alibi || score->sink ||
        score->additive || score->dropout > 0)
        return false;
    if (r->weights.data || r->topk || r->importance || subset->row_lse.data) return false;
    return !subset->query_order.data && !subset->global && !subset->key_position && !subset->classes;
}

/* Makes one axis of the batch rows and their heads; false where they have no common stride. */
static bool join(af_tensor *t, int64_t heads)
{
    if (!t->data) return true;
    if (t->batch || (heads > 1 && t->b != heads * t->h)) return false;
    if (heads == 1) t->h = t->b;
    t->b = 0;
    return true;
}

bool af_join_batch(af_call *joined, const af_call *call)
{
    if (call->B < 2 || (double)call->B * (double)call->H > MOST_HEADS || !is_uniform(call)) return false;
    if (!af_is_shared(&call->visible.mask) || !af_is_shared(&call->score.bias)) return false;
    *joined = *call;
    af_operands *p = &joined->operands;
    af_results *r = &joined->results;
    if (!join(&p->key, call->Hk) || !join(&p->value, call->Hk) || !join(&p->query, call->H)) return false;
    if (!join(&r->output, call->H) || !join(&r->lse, call->H)) return false;
    if (p->key.h >= p->key.i || (p->value.data && p->value.h >= p->value.i)) return false;
    joined->B = 1;
    joined->H *= call->B;
    joined->Hk *= call->B;
    return true;
}
