#include "plan/legal.h"

#include <math.h>

static bool all_within(const int64_t *numbers, int64_t count, int64_t least, int64_t most)
{
    for (int64_t n = 0; numbers && n < count; n++)
        if (numbers[n] < least || numbers[n] > most) return false;
    return true;
}

static bool sizes_are_legal(const af_call *call)
{
    if (call->dtype < AF_F32 || call->dtype > AF_BF16) return false;
    if (call->B < 0 || call->H < 0 || call->Lq < 0 || call->Lk < 0 || call->D < 0 || call->Dv < 0) return false;
    return call->H == 0 || (call->Hk > 0 && call->H % call->Hk == 0);
}

static bool groups_are_legal(const af_groups *g) { return !g->at.data || (g->rows > 0 && g->columns > 0); }

/* Of a row of so many keys, which is a batch row or a packed sequence: every page with a key that is not padding
 * exists. How many there are is not known here. */
static bool row_has_pages(const af_call *call, int64_t row, int64_t keys)
{
    const af_operands *p = &call->operands;
    const af_visible *v = &call->visible;
    if (!p->block_table) return true;
    if (keys / p->page_size + (keys % p->page_size != 0) > p->blocks) return false;
    const int64_t begin = v->kv_start ? v->kv_start[row] : 0, end = v->kv_length ? v->kv_length[row] : keys;
    for (int64_t n = begin / p->page_size; begin < end && n * p->page_size < end; n++)
        if (p->block_table[row * p->blocks + n] < 0) return false;
    return true;
}

/* How keys and values are stored: pages and bytes go with plain windows. */
static bool storage_is_legal(const af_call *call)
{
    const af_operands *p = &call->operands;
    if (!p->block_table && !p->storage) return true;
    if (p->storage < AF_AS_QUERY || p->storage > AF_FLOAT8_E5M2 || (p->storage && call->dtype == AF_F64)) return false;
    if (p->block_table && (p->page_size < 1 || p->blocks < 0 || p->key.batch || p->value.batch)) return false;
    if (!groups_are_legal(&p->key_scale) || !groups_are_legal(&p->value_scale)) return false;
    if (!groups_are_legal(&p->key_zero) || !groups_are_legal(&p->value_zero)) return false;
    return !call->visible.center.data && !call->visible.global && !af_is_dilated(call) && !call->score.additive;
}

/* Rows whose elements are apart are copied some heads at a time. */
static bool columns_are_legal(const af_call *call)
{
    const af_operands *p = &call->operands;
    if (!af_has_columns(call)) return true;
    return !p->block_table && !p->storage && !call->visible.global && !call->results.importance;
}

/* Of `rows` entries for each batch row. */
static bool visible_is_legal(const af_call *call, int64_t rows)
{
    const af_visible *v = &call->visible;
    if (v->left < 0 || v->right < 0) return false;
    if (!all_within(v->q_offset, rows, -AF_MAX_POSITION, AF_MAX_POSITION)) return false;
    if (!all_within(v->q_length, rows, 0, call->Lq) || !all_within(v->kv_length, rows, 0, call->Lk)) return false;
    if (!all_within(v->kv_start, rows, 0, call->Lk)) return false;
    if (!all_within(v->dilation, call->H, 1, AF_FAR)) return false;
    if (v->mask.data && v->mask.j != 0 && v->mask.j != 1) return false;
    if (v->blocks.data && (v->block_q < 1 || v->block_k < 1)) return false;
    return !v->center.data || !(v->global || af_is_dilated(call));
}

static bool score_is_legal(const af_call *call)
{
    const af_score *s = &call->score;
    if (s->additive && !s->score_weight.data) return false;
    if (s->bias.data && s->bias.j != 0 && s->bias.j != 1) return false;
    if (!(s->dropout >= 0 && s->dropout < 1)) return false;
    return s->softcap >= 0 && (s->gaussian == 0 || (s->gaussian > 0 && call->visible.center.data));
}

/* Each result by itself, and the table of csrc/attnfast.h. */
static bool results_are_legal(const af_call *call)
{
    const af_results *r = &call->results;
    if (r->output.data && !call->operands.value.data) return false;
    if (r->topk < 0 || (r->topk && (!r->top_index.data || !r->top_weight.data))) return false;
    if (r->topk && call->dtype != AF_F64 && call->Lk >= (int64_t)1 << 32) return false;
    if (r->stage < AF_SCORES || r->stage > AF_WEIGHTS) return false;
    if (r->stage != AF_WEIGHTS && (r->output.data || r->lse.data)) return false;
    if ((r->weights.data != NULL) + (r->topk > 0) + (r->importance != NULL) > 1) return false;
    if (call->visible.center.data && (r->importance || (r->topk && call->score.gaussian > 0))) return false;
    if (!call->visible.global && !af_is_dilated(call)) return true;
    return !call->score.additive && !r->topk && !r->importance && r->stage == AF_WEIGHTS;
}

bool af_is_legal(const af_call *call)
{
    if (!sizes_are_legal(call) || !visible_is_legal(call, call->B) || !score_is_legal(call)) return false;
    if (!results_are_legal(call) || !storage_is_legal(call) || !columns_are_legal(call)) return false;
    for (int64_t b = 0; call->operands.block_table && b < call->B; b++)
        if (!row_has_pages(call, b, call->Lk)) return false;
    return true;
}

static bool rows_are_legal(const af_tensor *t, int64_t width) { return !t->data || width < 2 || t->j == 1; }

/* Rows that are written by several threads. */
static bool sums_are_legal(const af_tensor *t, int64_t heads, int64_t rows, int64_t width)
{
    if (!t->data || width < 1) return true;
    return rows_are_legal(t, width) && (heads < 2 || t->h != 0) && (rows < 2 || t->i != 0);
}

bool af_are_legal_gradients(const af_call *call)
{
    const af_score *s = &call->score;
    const af_gradients *g = &call->gradients;
    if (call->operands.block_table || call->operands.storage || call->dtype > AF_F64) return false;
    if (af_has_columns(call)) return false;
    if (!g->output.data || !g->lse.data || !g->grad_output.data) return false;
    if (!rows_are_legal(&g->output, call->Dv) || !rows_are_legal(&g->grad_output, call->Dv)) return false;
    if (!rows_are_legal(&g->grad_weights, call->Lk)) return false;
    if (!sums_are_legal(&g->query, call->H, call->Lq, call->D)) return false;
    if (!sums_are_legal(&g->key, call->Hk, call->Lk, call->D)) return false;
    if (!sums_are_legal(&g->value, call->Hk, call->Lk, call->Dv)) return false;
    if (g->bias.data && (!s->bias.data || (g->bias.j != 0 && !rows_are_legal(&g->bias, call->Lk)))) return false;
    if ((g->alibi && !s->alibi) || (g->sink && !s->sink)) return false;
    if (g->center.data && !call->visible.center.data) return false;
    return (!g->score_weight || s->additive) && (!g->score_bias || s->score_bias.data);
}

/* The bounds of some sequences, and lengths, or starts, within them. */
static bool bounds_are_legal(const int64_t *first, int64_t sequences, int64_t rows, const int64_t *length)
{
    for (int64_t s = 0; s < sequences; s++)
        if (first[s] > first[s + 1] || (length && length[s] > first[s + 1] - first[s])) return false;
    return first[0] == 0 && first[sequences] == rows;
}

bool af_is_legal_packed(const af_call *whole, const af_packing *packing)
{
    const af_visible *v = &whole->visible;
    const int64_t sequences = packing->sequences, *first_query = packing->first_query, *first_key = packing->first_key;
    if (!sizes_are_legal(whole) || whole->B != 1 || sequences < 0) return false;
    if (!bounds_are_legal(first_query, sequences, whole->Lq, v->q_length)) return false;
    if (!bounds_are_legal(first_key, sequences, whole->Lk, v->kv_length)) return false;
    if (!bounds_are_legal(first_key, sequences, whole->Lk, v->kv_start)) return false;
    if (v->blocks.data || whole->results.importance) return false;
    if (!visible_is_legal(whole, sequences) || !score_is_legal(whole) || !results_are_legal(whole)) return false;
    if (!storage_is_legal(whole) || af_has_columns(whole)) return false;
    for (int64_t s = 0; s < sequences; s++)
        if (!row_has_pages(whole, s, first_key[s + 1] - first_key[s])) return false;
    return true;
}

bool af_rotation_is_legal(const af_rotation *r)
{
    if (r->dtype < AF_F32 || r->dtype > AF_BF16 || r->B < 0 || r->H < 0 || r->L < 0 || r->pairs < 0) return false;
    const int64_t width = r->B == 0 || r->H == 0 || r->L == 0 ? 0 : r->D; /* without a row, strides mean nothing */
    if (r->pairs > r->D / 2 || !rows_are_legal(&r->from, width) || !rows_are_legal(&r->to, width)) return false;
    return !r->cosine.data == !r->sine.data && (r->cosine.data || (isfinite(r->base) && r->base > 0));
}
