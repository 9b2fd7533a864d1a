#include "plan/call.h"

#include <string.h>

/* A part of a problem as far as its writer knew it; what the writer did not know is as in `unset`. Inlined, so that the
 * usual copy is of a constant size. */
static inline __attribute__((always_inline)) void open_part(void *part, const size_t size, const void *from,
                                                            const void *unset)
{
    size_t known = 0;
    if (from) memcpy(&known, from, sizeof known);
    if (known >= size) {
        memcpy(part, from, size);
        return;
    }
    memcpy(part, unset, size);
    if (known) memcpy(part, from, known);
}

static const af_problem no_problem;
static const af_operands no_operands;
static const af_visible all_visible = {.left = AF_FAR, .right = AF_FAR};
static const af_score plain_score = {.scale = 1};
static const af_results no_results;
static const af_gradients no_gradients;

void af_open_call(af_call *call, const af_problem *problem)
{
    af_problem p;
    open_part(&p, sizeof p, problem, &no_problem);
    call->dtype = p.dtype;
    call->B = p.B;
    call->H = p.H;
    call->Hk = p.Hk;
    call->Lq = p.Lq;
    call->Lk = p.Lk;
    call->D = p.D;
    call->Dv = p.Dv;
    call->subset = (af_subset){0};
    call->gradients = no_gradients;
    open_part(&call->operands, sizeof call->operands, p.operands, &no_operands);
    open_part(&call->visible, sizeof call->visible, p.visible, &all_visible);
    open_part(&call->score, sizeof call->score, p.score, &plain_score);
    open_part(&call->results, sizeof call->results, p.results, &no_results);
    if (!call->results.output.data) call->operands.value = (af_tensor){0}; /* which is how kernels know */
    if (!call->results.weights.data) call->results.stage = AF_WEIGHTS;     /* what lse and output need */
    if (call->results.stage == AF_SCORES) call->score.softcap = 0;
}

void af_open_gradients(af_call *call, const af_problem *problem, const af_gradients *gradients)
{
    af_problem known = *problem;
    af_results results = {.size = sizeof results, .output = gradients->output, .stage = AF_WEIGHTS};
    known.results = &results;
    af_open_call(call, &known);
    open_part(&call->gradients, sizeof call->gradients, gradients, &no_gradients);
    call->subset.natural = call->subset.tiles = true;
}

bool af_has_results(const af_call *call)
{
    const af_results *r = &call->results;
    if (call->B == 0 || call->H == 0 || call->Lq == 0) return false;
    if ((r->output.data && call->Dv > 0) || r->lse.data) return true;
    return r->topk || ((r->weights.data || r->importance) && call->Lk > 0);
}

bool af_is_dilated(const af_call *call)
{
    for (int64_t h = 0; call->visible.dilation && h < call->H; h++)
        if (call->visible.dilation[h] != 1) return true;
    return false;
}

af_part af_whole_part(const af_call *call)
{
    return (af_part){.B = call->B, .H = call->H, .Lq = call->Lq, .Lk = call->Lk};
}

af_part af_packed_part(const af_call *whole, const af_packing *packing, int64_t s)
{
    af_part part = af_whole_part(whole);
    part.row = s;
    part.i = packing->first_query[s];
    part.Lq = packing->first_query[s + 1] - part.i;
    part.j = packing->first_key[s];
    part.Lk = packing->first_key[s + 1] - part.j;
    return part;
}

/* A tensor from the first element of a part on. */
static void move(af_tensor *t, int64_t b, int64_t h, int64_t i, int64_t j, int64_t size)
{
    if (!t->data) return;
    if (t->batch) t->batch += b;
    else t->data = (char *)t->data + b * t->b * size;
    t->data = (char *)t->data + (h * t->h + i * t->i + j * t->j) * size;
}

bool af_has_columns(const af_call *call)
{
    const af_operands *p = &call->operands;
    if (call->B == 0 || call->Hk == 0 || call->Lk == 0) return false; /* without elements, strides mean nothing */
    return af_in_columns(&p->key, call->D) || af_in_columns(&p->value, call->Dv);
}

static void move_results(af_results *r, const af_call *whole, const af_part *p)
{
    const int64_t size = af_elem_bytes(whole->dtype), real = af_real_bytes(whole->dtype);
    move(&r->output, p->b, p->h, p->i, 0, size);
    move(&r->lse, p->b, p->h, p->i, 0, real);
    move(&r->weights, p->b, p->h, p->i, p->j, size);
    move(&r->top_index, p->b, p->h, p->i, 0, sizeof(int64_t));
    move(&r->top_weight, p->b, p->h, p->i, 0, size);
    if (r->importance) r->importance = (char *)r->importance + ((p->b * whole->H + p->h) * whole->Lk + p->j) * real;
}

static void move_scores(af_score *score, const af_call *whole, const af_part *p)
{
    const int64_t real = af_real_bytes(whole->dtype);
    move(&score->score_weight, 0, p->h, 0, 0, real);
    move(&score->score_bias, 0, p->h, 0, 0, real);
    move(&score->bias, p->b, p->h, p->i, p->j, real);
    if (score->alibi) score->alibi += p->row * score->alibi_b + p->h;
    if (score->sink) score->sink += p->h;
}

static void move_visible(af_visible *v, const af_call *whole, const af_part *p)
{
    if (v->q_offset) v->q_offset += p->row;
    if (v->q_length) v->q_length += p->row;
    if (v->kv_length) v->kv_length += p->row;
    if (v->kv_start) v->kv_start += p->row;
    if (v->dilation) v->dilation += p->h;
    if (v->global) v->global += p->b * whole->Lk + p->j;
    move(&v->center, p->b, p->h, p->i, 0, sizeof(double));
    move(&v->mask, p->b, p->h, p->i, p->j, 1);
    move(&v->blocks, p->b, p->h, 0, 0, 1);
}

static void move_gradients(af_gradients *g, const af_call *whole, const af_part *p)
{
    const int64_t real = af_real_bytes(whole->dtype), hk = p->h / (whole->H / whole->Hk);
    af_tensor *of_queries[] = {&g->output, &g->lse, &g->grad_output, &g->grad_lse, &g->query};
    for (size_t n = 0; n < sizeof of_queries / sizeof *of_queries; n++) move(of_queries[n], p->b, p->h, p->i, 0, real);
    move(&g->grad_weights, p->b, p->h, p->i, p->j, real);
    move(&g->key, p->b, hk, p->j, 0, real);
    move(&g->value, p->b, hk, p->j, 0, real);
    move(&g->bias, p->b, p->h, p->i, p->j, real);
    move(&g->center, p->b, p->h, p->i, 0, sizeof(double));
    if (g->alibi) g->alibi += p->row * whole->score.alibi_b + p->h;
    if (g->sink) g->sink += p->h;
    if (g->score_weight) g->score_weight += p->h * whole->score.score_weight.h;
    if (g->score_bias) g->score_bias += p->h * whole->score.score_bias.h;
}

af_call af_cut_call(const af_call *whole, af_part p)
{
    const int64_t size = af_elem_bytes(whole->dtype), group = whole->H / whole->Hk, hk = p.h / group;
    af_call call = *whole;
    call.B = p.B;
    call.H = p.H;
    call.Hk = p.H < group ? 1 : p.H / group;
    call.Lq = p.Lq;
    call.Lk = p.Lk;
    call.subset.first_b += p.row;
    call.subset.first_h += p.h;
    call.subset.first_hk += hk;
    move(&call.operands.query, p.b, p.h, p.i, 0, size);
    const bool paged = call.operands.block_table;
    const int64_t b = paged ? 0 : p.b, j = paged ? 0 : p.j; /* a table names the pages of a row */
    call.subset.first_key += j;
    move(&call.operands.key, b, hk, j, 0, af_key_bytes(whole));
    move(&call.operands.value, b, hk, j, 0, af_key_bytes(whole));
    af_groups *groups[] = {&call.operands.key_scale, &call.operands.value_scale, &call.operands.key_zero,
                           &call.operands.value_zero};
    for (size_t n = 0; n < sizeof groups / sizeof *groups; n++) move(&groups[n]->at, b, hk, 0, 0, sizeof(float));
    if (paged) call.operands.block_table += p.row * call.operands.blocks;
    move(&call.subset.row_lse, p.b, p.h, p.i, 0, af_real_bytes(whole->dtype));
    move(&call.subset.collected, p.b, p.h, p.i, 0, af_real_bytes(whole->dtype));
    move_visible(&call.visible, whole, &p);
    move_scores(&call.score, whole, &p);
    move_results(&call.results, whole, &p);
    if (whole->gradients.size) move_gradients(&call.gradients, whole, &p);
    return call;
}
