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

bool is_packed(const wish *w) { return w->kind == PACKED || w->kind == PACKED_GRADIENTS; }

bool has_gradients(const wish *w) { return w->kind == GRADIENTS || w->kind == PACKED_GRADIENTS; }

static bool is_free(const wish *w) { return w->kind == FREE || w->kind == PACKED; }

static bool has_value(const wish *w) { return w->kind == ATTEND || w->kind == LOCAL || is_free(w) || has_gradients(w); }

/* Options of what the C library can do: the table of csrc/attnfast.h. */
static void mend_free(wish *w)
{
    if (w->additive || w->center) w->dilation = 0, w->global = false;
    if (w->kind == PACKED) w->B = 1, w->importance = false, w->block_q = 0;
    if (w->weights) w->list = w->importance = false;
    if (w->list) w->importance = false;
    if (w->dilation || w->global) w->stage = AF_WEIGHTS, w->list = w->importance = false;
    if (w->weights && w->stage != AF_WEIGHTS) w->no_output = true, w->lse = false;
    if (w->importance) w->center = false;
    w->topk = w->list ? most(w->topk, 1) : 0;
    if (w->topk || !w->center) w->gaussian = 0;
    if (!w->weights) w->stage = AF_WEIGHTS;
}

/* Options that only some functions of the package have. */
static void mend_kind(wish *w)
{
    w->no_output = w->list = w->importance = false;
    if (w->kind != ATTEND && w->kind != WEIGHTS && w->kind != LOCAL) w->weights = false;
    if (w->kind == WEIGHTS) w->weights = true;
    else w->stage = AF_WEIGHTS;
    if (w->kind == SUMS) w->lse = true;
    else if (!has_value(w)) w->lse = false;
    w->topk = w->kind == TOP ? least(most(w->topk, 1), w->Lk) : 0;
    if (w->kind == TOP && w->Lk == 0) w->kind = SUMS, w->lse = true;
    w->importance = w->kind == IMPORTANCE;
    if (w->kind != ATTEND) w->additive = w->center = false;
    if (w->additive) w->center = false;
    if (!w->center) w->gaussian = 0;
    if (w->kind != LOCAL) w->dilation = 0, w->global = false;
}

static void mend_gradients(wish *w)
{
    w->lse = true;
    w->stage = AF_WEIGHTS;
    w->weights = w->no_output = w->list = w->importance = false;
    w->topk = 0;
    if (w->additive || w->center) w->dilation = 0, w->global = false;
    if (!w->center) w->gaussian = 0;
    if (is_packed(w)) w->B = 1, w->block_q = 0;
}

/* Options that do not go together. */
static void mend(wish *w)
{
    /* Gradients of 16-bit types are their callers' to round. */
    if (w->dtype > AF_F64 && has_gradients(w)) w->kind = is_packed(w) ? PACKED : ATTEND;
    w->H = w->H / w->Hk * w->Hk;
    if (!has_value(w)) w->Dv = 0;
    if (has_gradients(w)) mend_gradients(w);
    else if (is_free(w)) mend_free(w);
    else mend_kind(w);
    if (w->kind == LOCAL || has_gradients(w) || w->additive || w->center || w->dilation || w->global)
        w->page_size = 0, w->storage = AF_AS_QUERY;
    if (w->dtype == AF_F64) w->storage = AF_AS_QUERY;
    if (w->page_size) w->group_rows = 0;
    if (w->block_q == 1 && w->block_k == 1) w->block_k = 2;
    w->block_q = least(w->block_q, most(w->Lq, 1));
    w->block_k = least(w->block_k, most(w->Lk, 1));
}

/* A row of numbers, or one in `poison` of them that overflows or is NaN. */
static void fill_numbers(call *c, int which, double amplitude, int poison)
{
    static const double extreme[] = {NAN, INFINITY, -INFINITY, 1e38, -1e38};
    array *a = &c->inputs[which];
    for (int64_t b = 0; b < a->B; b++)
        for (int64_t h = 0; h < a->H; h++)
            for (int64_t i = 0; i < a->I; i++) {
                const bool spoil = poison && one_in(&c->chance, poison);
                const double x = extreme[next(&c->chance) % 5];
                for (int64_t j = 0; j < a->J; j++) put(a, b, h, i, j, spoil ? x : amplitude * uniform(&c->chance));
            }
}

static void new_input(call *c, int which, type t, int64_t B, int64_t H, int64_t I, int64_t J, int may, af_tensor *to)
{
    const wish *w = &c->wish;
    c->inputs[which] = new_array(t, B, H, I, J, may, w->order, w->layouts ? &c->chance : NULL, 0xff);
    *to = c->inputs[which].tensor;
}

/* What layouts keys and values may have. */
static int may_lie(const wish *w)
{
    const bool rows = is_packed(w) || has_gradients(w) || w->page_size || w->storage || w->global || w->importance;
    return THIN_B | THIN_H | THIN_I | (rows ? 0 : COLUMNS);
}

static void set_operands(call *c)
{
    const wish *w = &c->wish;
    af_operands *p = &c->operands;
    const type t = (type)w->dtype;
    p->size = sizeof *p;
    const int poison = has_value(w) && w->poison ? 2 * w->poison : w->poison;
    new_input(c, QUERY, t, w->B, w->H, w->Lq, w->D, THIN_B | THIN_H | THIN_I, &p->query);
    new_input(c, KEY, t, w->B, w->Hk, w->Lk, w->D, may_lie(w), &p->key);
    fill_numbers(c, QUERY, w->amplitude, 0);
    fill_numbers(c, KEY, w->amplitude, poison);
    if (!has_value(w)) return;
    new_input(c, VALUE, t, w->B, w->Hk, w->Lk, w->Dv, may_lie(w), &p->value);
    fill_numbers(c, VALUE, 1, poison);
}

static void set_scores(call *c)
{
    const wish *w = &c->wish;
    af_score *p = &c->score;
    const type real = real_of(w->dtype);
    p->size = sizeof *p;
    p->scale = w->scale;
    p->softcap = w->softcap;
    p->additive = w->additive;
    p->gaussian = w->gaussian;
    p->dropout = w->dropout;
    p->dropout_seed = w->seed * UINT64_C(0x9e3779b97f4a7c15);
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
    const int64_t rows = is_packed(w) ? w->sequences : w->B;
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

/* Lengths, or starts, of batch rows of n queries or keys, or of sequences with bounds. */
static int64_t *new_lengths(call *c, const int64_t *bounds, int64_t n)
{
    if (!bounds) return new_rows(c, c->wish.B, 0, n);
    int64_t *lengths = own(c, c->wish.sequences, sizeof *lengths);
    for (int64_t s = 0; s < c->wish.sequences; s++) lengths[s] = between(&c->chance, 0, bounds[s + 1] - bounds[s]);
    return lengths;
}

static void set_positions(call *c)
{
    const wish *w = &c->wish;
    af_visible *p = &c->visible;
    p->size = sizeof *p;
    const int64_t rows = is_packed(w) ? w->sequences : w->B;
    p->left = w->window && w->left >= 0 ? w->left : AF_FAR;
    p->right = w->window && w->right >= 0 ? w->right : AF_FAR;
    p->causal = w->causal;
    if (w->q_offset) {
        int64_t *offset = new_rows(c, rows, -w->Lq - 3, w->Lk + 3);
        for (int64_t b = 0; b < rows && w->far; b++)
            if (one_in(&c->chance, 4)) offset[b] = one_in(&c->chance, 2) ? AF_MAX_POSITION : -AF_MAX_POSITION;
        p->q_offset = offset;
    }
    if (is_packed(w)) {
        c->first_query = new_bounds(c, w->sequences, w->Lq);
        c->first_key = new_bounds(c, w->sequences, w->Lk);
    }
    if (w->q_length) p->q_length = new_lengths(c, c->first_query, w->Lq);
    if (w->kv_length) p->kv_length = new_lengths(c, c->first_key, w->Lk);
    if (w->kv_start) p->kv_start = new_lengths(c, c->first_key, w->Lk);
    if (w->center) {
        new_input(c, CENTER, F64, w->B, w->H, w->Lq, 1, THIN_B | THIN_H | THIN_I, &p->center);
        fill_numbers(c, CENTER, (double)w->Lk, 0);
        if (w->far && w->B && w->H && w->Lq) put(&c->inputs[CENTER], 0, 0, 0, 0, 1e30 * uniform(&c->chance));
    }
}

/* Dilations, of which neighbouring heads often have the same one, and global tokens, of which some batch rows have
 * none. */
static void set_local(call *c)
{
    const wish *w = &c->wish;
    if (w->dilation) {
        int64_t *dilation = new_rows(c, w->H, 1, w->dilation);
        for (int64_t h = 0; h < w->H && w->far; h++)
            if (one_in(&c->chance, 4)) dilation[h] = one_in(&c->chance, 2) ? AF_FAR : AF_MAX_POSITION;
        for (int64_t h = 1; h < w->H; h++)
            if (one_in(&c->chance, 2)) dilation[h] = dilation[h - 1];
        c->visible.dilation = dilation;
    }
    if (!w->global) return;
    uint8_t *global = own(c, w->B * w->Lk, 1);
    for (int64_t b = 0; b < w->B; b++) {
        const double density = one_in(&c->chance, 3) ? 0 : w->density / 4;
        for (int64_t j = 0; j < w->Lk; j++)
            global[b * w->Lk + j] = fabs(uniform(&c->chance)) < density ? (uint8_t)between(&c->chance, 1, 255) : 0;
    }
    c->visible.global = global;
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
    af_visible *p = &c->visible;
    if (w->mask) {
        new_input(c, MASK, BYTE, w->B, w->H, w->Lq, w->Lk, THIN_B | THIN_H | THIN_I | THIN_J, &p->mask);
        fill_bytes(c, MASK);
    }
    if (!w->block_q) return;
    p->block_q = w->block_q;
    p->block_k = w->block_k;
    const int64_t rows = most(w->Lq - 1, 0) / p->block_q + 1, columns = most(w->Lk - 1, 0) / p->block_k + 1;
    new_input(c, BLOCKS, BYTE, w->B, w->H, rows, columns, THIN_B | THIN_H | THIN_I | THIN_J, &p->blocks);
    fill_bytes(c, BLOCKS);
}

static void set_loss(call *c)
{
    const wish *w = &c->wish;
    const type elem = (type)w->dtype;
    af_gradients *p = &c->loss;
    if (!has_gradients(w)) return;
    p->size = sizeof *p;
    new_input(c, BY_OUTPUT, elem, w->B, w->H, w->Lq, w->Dv, THIN_B | THIN_H | THIN_I, &p->grad_output);
    fill_numbers(c, BY_OUTPUT, 1, 4 * w->poison);
    if (w->loss_lse) {
        new_input(c, BY_LSE, elem, w->B, w->H, w->Lq, 1, THIN_B | THIN_H | THIN_I, &p->grad_lse);
        fill_numbers(c, BY_LSE, 1, 0);
    }
    if (w->loss_weights) {
        new_input(c, BY_WEIGHTS, elem, w->B, w->H, w->Lq, w->Lk, THIN_B | THIN_H | THIN_I, &p->grad_weights);
        fill_numbers(c, BY_WEIGHTS, 1, 0);
    }
}

/* Numbers of the groups of a head's rows: powers of two, or whole numbers from -20 to 20. */
static void new_groups(call *c, int which, af_groups *g, int64_t heads, const array *rows, bool scales)
{
    const wish *w = &c->wish;
    array *a = &c->groups[which];
    g->rows = w->group_rows ? w->group_rows : most(rows->I, 1);
    g->columns = w->group_columns ? w->group_columns : most(rows->J, 1);
    const int64_t down = (most(rows->I, 1) - 1) / g->rows + 1, across = (most(rows->J, 1) - 1) / g->columns + 1;
    *a = new_array(F32, w->page_size ? 1 : rows->B, heads, down, across, 0, C_ORDER, NULL, 0xff);
    for (int64_t b = 0; b < a->B; b++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t i = 0; i < down; i++)
                for (int64_t j = 0; j < across; j++)
                    put(a, b, h, i, j,
                        scales ? ldexp(1, (int)between(&c->chance, -8, -5)) : (double)between(&c->chance, -20, 20));
    g->at = a->tensor;
    if (a->B == 1) g->at.b = 0;
    if (down == 1) g->at.i = 0;
    if (across == 1) g->at.j = 0;
}

/* Bytes instead of the numbers of an array, which become what the bytes stand for: at most 8 bits, exact in any
 * dtype. Heads may share bytes, but not what these stand for, as scales are theirs alone. */
static void make_bytes(call *c, int which, af_tensor *t, af_groups *scale, af_groups *zero)
{
    const wish *w = &c->wish;
    array *rows = &c->inputs[which], *bytes = &c->bytes[which - KEY];
    const int first = 2 * (which - KEY);
    const bool zeros = one_in(&c->chance, 2);
    *bytes = new_array(BYTE, rows->B, rows->H, rows->I, rows->J, THIN_B | THIN_H | THIN_I, w->order,
                       w->layouts ? &c->chance : NULL, 0xff);
    const array apart = new_array(rows->type, rows->B, rows->H, rows->I, rows->J, 0, C_ORDER, NULL, 0xff);
    free_array(rows);
    *rows = apart;
    new_groups(c, first, scale, rows->H, rows, true);
    if (zeros) new_groups(c, first + 1, zero, rows->H, rows, false);
    *t = bytes->tensor;
    for (int64_t b = 0; b < rows->B; b++)
        for (int64_t h = 0; h < rows->H; h++)
            for (int64_t i = 0; i < rows->I; i++)
                for (int64_t j = 0; j < rows->J; j++) {
                    const int64_t x = between(&c->chance, -100, 100) + (w->storage == AF_UINT8 ? 100 : 0);
                    *(uint8_t *)element(bytes, b, h, i, j) = (uint8_t)x;
                }
    for (int64_t b = 0; b < rows->B; b++)
        for (int64_t h = 0; h < rows->H; h++)
            for (int64_t i = 0; i < rows->I; i++)
                for (int64_t j = 0; j < rows->J; j++) {
                    const char *byte = element(bytes, b, h, i, j);
                    const double x = w->storage == AF_UINT8 ? *(const uint8_t *)byte : *(const int8_t *)byte;
                    const int64_t gb = w->page_size ? 0 : b, gi = i / scale->rows, gj = j / scale->columns;
                    const double from = zeros ? get(&c->groups[first + 1], gb, h, gi, gj) : 0;
                    put(rows, b, h, i, j, (x - from) * get(&c->groups[first], gb, h, gi, gj));
                }
}

static void set_bytes(call *c)
{
    af_operands *p = &c->operands;
    if (!c->wish.storage) return;
    p->storage = c->wish.storage;
    make_bytes(c, KEY, &p->key, &p->key_scale, &p->key_zero);
    if (p->value.data) make_bytes(c, VALUE, &p->value, &p->value_scale, &p->value_zero);
}

/* Batch rows, or packed sequences, and the keys of one. */
static int64_t table_rows(const wish *w) { return is_packed(w) ? w->sequences : w->B; }
static int64_t keys_of_row(const call *c, int64_t n)
{
    return c->first_key ? c->first_key[n + 1] - c->first_key[n] : c->wish.Lk;
}

/* A pool with the rows of an array in the pages that the table names; NaN beside them. */
static void fill_pool(call *c, int which, af_tensor *t, int64_t pages)
{
    const af_operands *p = &c->operands;
    const array *rows = c->wish.storage ? &c->bytes[which - KEY] : &c->inputs[which];
    array *pool = &c->pools[which - KEY];
    *pool = new_array(rows->type, pages, rows->H, p->page_size, rows->J, 0, c->wish.order,
                      c->wish.layouts ? &c->chance : NULL, 0xff);
    free(pool->table); /* pages have a stride */
    pool->table = NULL;
    pool->tensor.batch = NULL;
    for (int64_t n = 0; n < table_rows(&c->wish); n++)
        for (int64_t j = 0; j < keys_of_row(c, n); j++) {
            const int64_t page = p->block_table[n * p->blocks + j / p->page_size], i = j % p->page_size;
            const int64_t b = c->first_key ? 0 : n, from = c->first_key ? c->first_key[n] + j : j;
            for (int64_t h = 0; page >= 0 && h < rows->H; h++)
                for (int64_t d = 0; d < rows->J; d++)
                    memcpy(element(pool, page, h, i, d), element(rows, b, h, from, d), (size_t)type_bytes(rows->type));
        }
    *t = pool->tensor;
}

/* The same keys and values in pages: those of a batch row, or sequence, in any order, and no page where nobody may
 * look. */
static void set_pages(call *c)
{
    const wish *w = &c->wish;
    af_operands *p = &c->operands;
    if (!w->page_size) return;
    p->page_size = w->page_size;
    p->blocks = (w->Lk + w->page_size - 1) / w->page_size + (w->Lk == 0);
    const int64_t rows = table_rows(w), pages = rows * p->blocks + 2;
    int64_t *table = own(c, rows * p->blocks, sizeof *table);
    for (int64_t n = 0; n < rows * p->blocks; n++) table[n] = n + 1;
    for (int64_t n = rows * p->blocks - 1; n > 0; n--) {
        const int64_t other = between(&c->chance, 0, n), page = table[n];
        table[n] = table[other];
        table[other] = page;
    }
    for (int64_t b = 0; b < rows; b++) {
        const int64_t begin = c->visible.kv_start ? c->visible.kv_start[b] : 0;
        const int64_t end = c->visible.kv_length ? c->visible.kv_length[b] : keys_of_row(c, b);
        for (int64_t n = 0; n < p->blocks; n++)
            if (begin >= end || (n + 1) * p->page_size <= begin || n * p->page_size >= end)
                table[b * p->blocks + n] = INT64_MIN;
    }
    p->block_table = table;
    fill_pool(c, KEY, &p->key, pages);
    if (p->value.data) fill_pool(c, VALUE, &p->value, pages);
}

void make_call(call *c, const wish *w)
{
    *c = (call){.wish = *w, .chance = {w->seed}};
    mend(&c->wish);
    w = &c->wish;
    set_operands(c);
    set_scores(c);
    set_positions(c);
    set_local(c);
    set_masks(c);
    set_bytes(c);
    set_pages(c);
    set_loss(c);
}

void free_call(call *c)
{
    for (int k = 0; k < INPUTS; k++) free_array(&c->inputs[k]);
    for (int k = 0; k < 2; k++) free_array(&c->pools[k]), free_array(&c->bytes[k]);
    for (int k = 0; k < 4; k++) free_array(&c->groups[k]);
    for (int k = 0; k < c->owned_count; k++) free(c->owned[k]);
}
