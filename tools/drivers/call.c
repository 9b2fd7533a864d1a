#include "call.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static type real_of(af_dtype dtype) { return dtype == AF_F64 ? F64 : F32; }

/* Memory that lives as long as the call and is no longer than it must be. */
static void *own(call *c, int64_t count, size_t size)
{
    return c->owned[c->owned_count++] = malloc((size_t)count * size);
}

static bool adds_to_prior(const wish *w) { return w->kind == GLOBAL || w->kind == GATHERED; }
static bool has_value(const wish *w) { return w->kind == ATTEND || w->kind == PACKED || adds_to_prior(w); }

/* Options that only some calls have. */
static void mend(wish *w)
{
    w->H = w->H / w->Hk * w->Hk;
    if (adds_to_prior(w) && w->dtype > AF_F64) w->kind = ATTEND; /* the binding widens 16-bit types there */
    if (!has_value(w)) w->Dv = 0;
    if (w->kind != ATTEND && w->kind != WEIGHTS) w->weights = false;
    if (w->kind == WEIGHTS) w->weights = true;
    else w->stage = AF_WEIGHTS;
    if (w->stage == AF_SCORES) w->softcap = 0;
    if (w->kind == SUMS || adds_to_prior(w)) w->lse = true;
    else if (w->kind != ATTEND && w->kind != PACKED) w->lse = false;
    w->topk = w->kind == TOP ? least(most(w->topk, 1), least(w->Lk, 64)) : 0;
    if (w->kind == TOP && w->Lk == 0) w->kind = SUMS, w->lse = true;
    if (w->kind != ATTEND) w->additive = w->center = false;
    if (w->additive) w->center = false;
    if (!w->center) w->fading = 0;
    w->ordered = w->ordered && (w->center || adds_to_prior(w));
    if (w->kind == PACKED) w->B = 1, w->mask = w->bias = w->q_length = w->kv_length = false, w->block_q = 0;
    if (adds_to_prior(w)) {
        w->B = 1;
        w->sink = false;
    }
    if (w->kind == GATHERED) {
        w->mask = w->bias = w->alibi = false;
        w->block_q = 0;
        w->kv_length = true;
    }
    if (w->block_q == 1 && w->block_k == 1) w->block_k = 2;
    if (w->block_step == 0) {
        w->block_q = least(w->block_q, most(w->Lq, 1));
        w->block_k = least(w->block_k, most(w->Lk, 1));
    }
}

/* A row of numbers, or one that looks like nothing a user has. */
static void fill_numbers(call *c, int which, double amplitude, int wild)
{
    static const double extreme[] = {NAN, INFINITY, -INFINITY, 1e38, -1e38};
    array *a = &c->inputs[which];
    for (int64_t b = 0; b < a->B; b++)
        for (int64_t h = 0; h < a->H; h++)
            for (int64_t i = 0; i < a->I; i++) {
                const bool spoil = wild && one_in(&c->chance, wild);
                const double x = extreme[next(&c->chance) % 5];
                for (int64_t j = 0; j < a->J; j++) put(a, b, h, i, j, spoil ? x : amplitude * uniform(&c->chance));
            }
}

static void new_input(call *c, int which, type t, int64_t B, int64_t H, int64_t I, int64_t J, int thin, af_tensor *to)
{
    c->inputs[which] = new_array(t, B, H, I, J, thin, c->wish.layouts ? &c->chance : NULL, 0xff);
    *to = c->inputs[which].tensor;
}

static void set_operands(call *c)
{
    const wish *w = &c->wish;
    af_problem *p = &c->problem;
    const type t = (type)w->dtype;
    const int poison = has_value(w) && w->poison ? 2 * w->poison : w->poison;
    new_input(c, QUERY, t, w->B, w->H, w->Lq, w->D, THIN_B | THIN_H | THIN_I, &p->query);
    new_input(c, KEY, t, w->B, w->Hk, w->Lk, w->D, THIN_B | THIN_H | THIN_I, &p->key);
    fill_numbers(c, QUERY, w->amplitude, 0);
    fill_numbers(c, KEY, w->amplitude, poison);
    if (!has_value(w)) return;
    new_input(c, VALUE, t, w->B, w->Hk, w->Lk, w->Dv, THIN_B | THIN_H | THIN_I, &p->value);
    fill_numbers(c, VALUE, 1, poison);
}

static void set_scores(call *c)
{
    const wish *w = &c->wish;
    af_problem *p = &c->problem;
    const type real = real_of(w->dtype);
    p->scale = w->scale;
    p->softcap = w->softcap;
    p->additive = w->additive;
    if (w->additive) {
        new_input(c, SCORE_WEIGHT, real, 1, w->H, 1, most(w->D, 1), THIN_H, &p->score_weight);
        fill_numbers(c, SCORE_WEIGHT, 1, 0);
    }
    if (w->additive && w->score_bias) {
        new_input(c, SCORE_BIAS, real, 1, w->H, 1, most(w->D, 1), THIN_H, &p->score_bias);
        fill_numbers(c, SCORE_BIAS, 1, 0);
    }
    if (w->bias) {
        new_input(c, BIAS, real, w->B, w->H, w->Lq, w->Lk, THIN_B | THIN_H | THIN_I | THIN_J, &p->bias);
        array *a = &c->inputs[BIAS];
        for (int64_t b = 0; b < a->B; b++)
            for (int64_t h = 0; h < a->H; h++)
                for (int64_t i = 0; i < a->I; i++)
                    for (int64_t j = 0; j < a->J; j++)
                        put(a, b, h, i, j, one_in(&c->chance, 8) ? -INFINITY : 2 * uniform(&c->chance));
    }
    const int64_t rows = w->kind == PACKED ? w->sequences : w->B;
    if (w->alibi) {
        double *slopes = own(c, rows * w->H, sizeof *slopes);
        for (int64_t k = 0; k < rows * w->H; k++) slopes[k] = 0.1 * uniform(&c->chance);
        p->alibi = slopes;
        p->alibi_b = one_in(&c->chance, 2) ? 0 : w->H;
    }
    if (w->sink) {
        double *sinks = own(c, w->H, sizeof *sinks);
        for (int64_t h = 0; h < w->H; h++) sinks[h] = 3 * uniform(&c->chance);
        p->sink = sinks;
    }
}

static int64_t *new_rows(call *c, int64_t count, int64_t low, int64_t high)
{
    int64_t *rows = own(c, count, sizeof *rows);
    for (int64_t k = 0; k < count; k++) rows[k] = between(&c->chance, low, high);
    return rows;
}

/* Numbers rising from 0 to `end`, as the bounds of packed sequences. */
static int64_t *new_bounds(call *c, int64_t parts, int64_t end)
{
    int64_t *bounds = new_rows(c, parts + 1, 0, end);
    bounds[0] = 0;
    bounds[parts] = end;
    for (int64_t k = 1; k < parts; k++)
        for (int64_t n = k; n > 1 && bounds[n] < bounds[n - 1]; n--) {
            const int64_t larger = bounds[n - 1];
            bounds[n - 1] = bounds[n];
            bounds[n] = larger;
        }
    return bounds;
}

static void set_places(call *c)
{
    const wish *w = &c->wish;
    af_problem *p = &c->problem;
    const int64_t rows = w->kind == PACKED ? w->sequences : w->B;
    p->left = w->window && w->left >= 0 ? w->left : AF_FAR;
    p->right = w->window && w->right >= 0 ? w->right : AF_FAR;
    if (w->center) p->causal = w->causal;
    else if (w->causal) p->right = least(p->right, 0);
    if (w->q_offset) {
        int64_t *offset = new_rows(c, rows, -w->Lq - 3, w->Lk + 3);
        for (int64_t b = 0; b < rows && w->far; b++)
            if (one_in(&c->chance, 4)) offset[b] = one_in(&c->chance, 2) ? AF_MAX_POSITION : -AF_MAX_POSITION;
        p->q_offset = offset;
    }
    if (w->q_length) p->q_length = new_rows(c, w->B, 0, w->Lq);
    if (w->kv_length) p->kv_length = new_rows(c, w->B, 0, w->Lk);
    if (w->kind == PACKED) {
        c->first_query = new_bounds(c, w->sequences, w->Lq);
        c->first_key = new_bounds(c, w->sequences, w->Lk);
    }
    if (w->center) {
        new_input(c, CENTER, F64, w->B, w->H, w->Lq, 1, THIN_B | THIN_H | THIN_I, &p->center);
        fill_numbers(c, CENTER, (double)w->Lk, 0);
        if (w->far && w->B && w->H && w->Lq) put(&c->inputs[CENTER], 0, 0, 0, 0, 1e30 * uniform(&c->chance));
        p->fading = w->fading;
    }
}

static void set_order(call *c)
{
    const wish *w = &c->wish;
    if (!w->ordered) return;
    new_input(c, ORDER, INT64, w->B, w->H, w->Lq, 1, 0, &c->problem.order);
    array *a = &c->inputs[ORDER];
    for (int64_t b = 0; b < a->B; b++)
        for (int64_t h = 0; h < a->H; h++)
            for (int64_t i = 0; i < a->I; i++) { /* a shuffle: the new one takes the place of one before it */
                const int64_t other = between(&c->chance, 0, i);
                put(a, b, h, i, 0, get(a, b, h, other, 0));
                put(a, b, h, other, 0, (double)i);
            }
}

static void fill_bytes(call *c, int which)
{
    array *a = &c->inputs[which];
    for (int64_t b = 0; b < a->B; b++)
        for (int64_t h = 0; h < a->H; h++)
            for (int64_t i = 0; i < a->I; i++)
                for (int64_t j = 0; j < a->J; j++)
                    put(a, b, h, i, j,
                        fabs(uniform(&c->chance)) < c->wish.density ? (double)between(&c->chance, 1, 255) : 0);
}

static void set_masks(call *c)
{
    const wish *w = &c->wish;
    af_problem *p = &c->problem;
    if (w->mask) {
        new_input(c, MASK, BYTE, w->B, w->H, w->Lq, w->Lk, THIN_B | THIN_H | THIN_I | THIN_J, &p->mask);
        fill_bytes(c, MASK);
    }
    if (!w->block_q) return;
    int64_t step = 1, first = 0;
    p->block_q = w->block_q;
    p->block_k = w->block_k;
    p->block_step = w->block_step;
    if (w->block_step) {
        step = w->block_step;
        first = step - 1; /* a residue, or an offset if step is 1 */
        p->block_first_query = new_rows(c, w->B, 0, first);
        p->block_first_key = new_rows(c, w->B, 0, first);
    }
    const int64_t rows = (first + most(w->Lq - 1, 0) * step) / p->block_q + 1;
    const int64_t columns = (first + most(w->Lk - 1, 0) * step) / p->block_k + 1;
    new_input(c, BLOCKS, BYTE, w->B, w->H, rows, columns, THIN_B | THIN_H | THIN_I | THIN_J, &p->blocks);
    fill_bytes(c, BLOCKS);
}

/* The pairs that windows leave out: keys that are global, or gathered from a longer array. */
static void set_rest(call *c)
{
    const wish *w = &c->wish;
    af_problem *p = &c->problem;
    if (!adds_to_prior(w)) return;
    p->resume = true;
    p->hole_left = p->left;
    p->hole_right = p->right;
    p->left = AF_FAR;
    p->right = w->causal ? 0 : AF_FAR;
    p->dilation = new_rows(c, w->H, 1, 3);
    if (w->kind == GATHERED) {
        int64_t *place = own(c, w->Lk, sizeof *place), last = -1;
        for (int64_t j = 0; j < w->Lk; j++) place[j] = last += between(&c->chance, 1, 4);
        p->place = place;
        *(int64_t *)p->kv_length = between(&c->chance, 0, last + 1);
        return;
    }
    uint8_t *global = own(c, w->Lk, 1);
    int64_t *places = own(c, w->Lk + 1, sizeof *places), *starts = own(c, 2, sizeof *starts), count = 0;
    for (int64_t j = 0; j < w->Lk; j++) {
        global[j] = fabs(uniform(&c->chance)) < w->density / 4;
        if (global[j]) places[count++] = j;
    }
    places[count] = w->Lk;
    starts[0] = 0;
    starts[1] = count;
    p->global = global;
    p->global_places = places;
    p->global_starts = starts;
}

void make_call(call *c, const wish *w)
{
    *c = (call){.wish = *w, .chance = {w->seed}};
    mend(&c->wish);
    w = &c->wish;
    c->problem = (af_problem){.dtype = w->dtype, .B = w->B, .H = w->H, .Hk = w->Hk, .Lq = w->Lq, .Lk = w->Lk};
    c->problem.D = w->D;
    c->problem.Dv = w->Dv;
    c->problem.stage = w->stage;
    set_operands(c);
    set_scores(c);
    set_places(c);
    set_order(c);
    set_masks(c);
    set_rest(c);
}

void free_call(call *c)
{
    for (int k = 0; k < INPUTS; k++) free_array(&c->inputs[k]);
    for (int k = 0; k < c->owned_count; k++) free(c->owned[k]);
}

af_status run_call(const call *c, const results *r, const af_run *run)
{
    if (c->wish.kind != PACKED) return af_attention(&r->problem, run);
    return af_attention_packed(&r->problem, c->wish.sequences, c->first_query, c->first_key, run);
}
