#include "plain_row.h"

#include <math.h>

double unit(const call *c) { return c->wish.dtype == AF_F64 ? 0x1p-52 : 0x1p-24; } /* double errs as much */
double tiny(const call *c) { return c->wish.dtype == AF_F64 ? 1e-300 : 1e-36; }

double rounded(const call *c, double x)
{
    const double size = fabs(x);
    switch (c->wish.dtype) {
    case AF_F16:
        return size * 0x1p-11 + 0x1p-25;
    case AF_BF16:
        return size * 0x1p-8 + 1e-36;
    default:
        return size * unit(c);
    }
}

bool poisoned_row(const array *a, int64_t b, int64_t h, int64_t i)
{
    for (int64_t j = 0; a->memory && j < a->J; j++)
        if (!(fabs(get(a, b, h, i, j)) < 1e6)) return true;
    return false;
}

static bool is_token(const row *r, int64_t j)
{
    const call *c = r->call;
    return c->visible.global && j >= 0 && j < r->keys && c->visible.global[r->b * c->wish.Lk + r->first_key + j];
}

static bool in_window(const row *r, int64_t j)
{
    const af_visible *v = &r->call->visible;
    if (v->center.data) {
        const double center = get(&r->call->inputs[CENTER], r->b, r->h, r->i, 0), at = (double)j;
        return !(v->left < AF_FAR && at < center - (double)v->left) &&
               !(v->right < AF_FAR && at > center + (double)v->right);
    }
    const int64_t step = v->dilation ? v->dilation[r->h] : 1, distance = j - r->position;
    return distance % step == 0 && distance / step >= -v->left && distance / step <= v->right;
}

/* As far as positions, lengths and masks decide it. */
static bool may_attend(const row *r, int64_t j)
{
    const call *c = r->call;
    const af_visible *v = &c->visible;
    if (r->padding || (v->kv_length && j >= v->kv_length[r->number])) return false;
    if (v->kv_start && j < v->kv_start[r->number]) return false;
    if (v->causal && j > r->position) return false;
    if (!in_window(r, j) && !is_token(r, j) && !is_token(r, r->position)) return false;
    if (v->mask.data && get(&c->inputs[MASK], r->b, r->h, r->i, r->first_key + j) == 0) return false;
    return !v->blocks.data || get(&c->inputs[BLOCKS], r->b, r->h, r->i / v->block_q, j / v->block_k) != 0;
}

static bool sees(const row *r, int64_t j)
{
    const array *bias = &r->call->inputs[BIAS];
    return may_attend(r, j) && !(bias->memory && get(bias, r->b, r->h, r->i, r->first_key + j) == -INFINITY);
}

static void multiply(row *r, int64_t j)
{
    const call *c = r->call;
    double sum = 0, size = 0;
    for (int64_t d = 0; d < c->wish.D; d++) {
        const double q = get(&c->inputs[QUERY], r->b, r->h, r->i, d);
        const double k = get(&c->inputs[KEY], r->b, r->hk, r->first_key + j, d);
        sum += q * k;
        size += fabs(q * k);
    }
    r->product[j] = sum * c->score.scale;
    r->error[j] = unit(c) * (double)(c->wish.D + 8) * size * fabs(c->score.scale);
}

static void add_tanhs(row *r, int64_t j)
{
    const call *c = r->call;
    double sum = 0, error = 0;
    for (int64_t d = 0; d < c->wish.D; d++) {
        const double q = get(&c->inputs[QUERY], r->b, r->h, r->i, d);
        const double k = get(&c->inputs[KEY], r->b, r->hk, r->first_key + j, d);
        const double w = get(&c->inputs[SCORE_WEIGHT], 0, r->h, 0, d);
        const double bias = c->score.score_bias.data ? get(&c->inputs[SCORE_BIAS], 0, r->h, 0, d) : 0;
        const double x = tanh(q + k + bias);
        sum += w * x;
        error += fabs(w) * (16 + (double)(c->wish.D + 8) + (1 - x * x) * 4 * (fabs(q) + fabs(k) + fabs(bias)));
    }
    r->product[j] = sum;
    r->error[j] = unit(c) * error;
}

static void find_score(row *r, int64_t j)
{
    const call *c = r->call;
    const af_score *p = &c->score;
    if (p->additive) add_tanhs(r, j);
    else multiply(r, j);
    const double s = r->product[j];
    r->capped[j] = p->softcap ? p->softcap * tanh(s / p->softcap) : s;
    r->error[j] += 16 * unit(c) * fabs(r->capped[j]);
    double added = 0, size = fabs(r->capped[j]);
    if (p->alibi) {
        added -= p->alibi[r->number * p->alibi_b + r->h] * fabs((double)(r->position - j));
        size += fabs(added);
    }
    if (p->bias.data) {
        const double bias = get(&c->inputs[BIAS], r->b, r->h, r->i, r->first_key + j);
        added += bias;
        if (bias != -INFINITY) size += fabs(bias);
    }
    r->score[j] = r->capped[j] + added;
    r->error[j] += 8 * unit(c) * size;
}

void find_row(row *r, const call *c, int64_t b, int64_t h, int64_t i)
{
    const af_visible *v = &c->visible;
    r->call = c;
    r->b = b, r->h = h, r->i = i;
    r->hk = h / (c->wish.H / c->wish.Hk);
    r->first_key = 0;
    r->keys = c->wish.Lk;
    r->number = b;
    int64_t own = i;
    if (is_packed(&c->wish)) {
        r->number = 0;
        while (i >= c->first_query[r->number + 1]) r->number++;
        own -= c->first_query[r->number];
        r->first_key = c->first_key[r->number];
        r->keys = c->first_key[r->number + 1] - r->first_key;
    }
    r->position = own + (v->q_offset ? v->q_offset[r->number] : 0);
    r->padding = v->q_length && own >= v->q_length[r->number];
    r->poisoned = false;
    r->count = r->visible = 0;
    r->worst = 0;
    for (int64_t j = 0; j < r->keys; j++) {
        find_score(r, j);
        r->seen[j] = sees(r, j);
        r->visible += may_attend(r, j);
        if (!r->seen[j]) continue;
        r->count++;
        r->worst = fmax(r->worst, r->error[j]);
        r->poisoned = r->poisoned || poisoned_row(&c->inputs[KEY], b, r->hk, r->first_key + j) ||
                      poisoned_row(&c->inputs[VALUE], b, r->hk, r->first_key + j);
    }
}

/* The weight times a Gaussian of the distance from the center, and how far off it may be. */
static void multiply_gaussian(row *r, int64_t j)
{
    const call *c = r->call;
    const double distance = fabs((double)j - get(&c->inputs[CENTER], r->b, r->h, r->i, 0));
    const double x = c->wish.gaussian * distance, shift = c->wish.gaussian * unit(c) * (8 * distance + 2048);
    const double near = exp2(-fmax(x - shift, 0) * fmax(x - shift, 0)), far = exp2(-(x + shift) * (x + shift));
    const double slack = near - far + 16 * unit(c) * (1 + x * x) * near;
    r->allowed[j] = (r->allowed[j] + r->weight[j]) * slack + r->allowed[j] * near + tiny(c);
    r->weight[j] *= exp2(-x * x);
}

bool has_sink(const row *r) { return r->call->score.sink && !r->padding; }

static uint64_t split_mix(uint64_t state) { return next(&(chance){state}); }

/* The numbers of csrc/plan/dropout.h. */
static void drop_weights(row *r)
{
    const af_score *p = &r->call->score;
    const int64_t own = r->call->first_query ? r->i - r->call->first_query[r->number] : r->i;
    uint64_t state = split_mix(p->dropout_seed);
    state = split_mix(state + (uint64_t)r->number);
    state = split_mix(state + (uint64_t)r->h);
    state = split_mix(state + (uint64_t)own);
    for (int64_t j = 0; j < r->keys; j++) {
        uint32_t x = ((uint32_t)j ^ (uint32_t)state) * UINT32_C(0x9e3779b9);
        x ^= (uint32_t)(state >> 32);
        x = (x ^ x >> 15) * UINT32_C(0x6a09e667);
        x = (x ^ x >> 16) * UINT32_C(0xbb67ae85);
        r->kept[j] = x < floor(p->dropout * 0x1p32) ? 0 : 1 / (1 - p->dropout);
    }
}

void find_weights(row *r)
{
    const call *c = r->call;
    const double u = unit(c), sink = has_sink(r) ? c->score.sink[r->h] : -INFINITY;
    double top = sink, sum = 0;
    for (int64_t j = 0; j < r->keys; j++)
        if (r->seen[j]) top = fmax(top, r->score[j]);
    for (int64_t j = 0; j < r->keys; j++)
        if (r->seen[j]) sum += exp(r->score[j] - top);
    if (sink != -INFINITY) sum += exp(sink - top);
    r->lse = top == -INFINITY ? top : top + log(sum);
    r->lse_allowed = r->worst + u * (double)(r->count + 32) + (top == -INFINITY ? 0 : 16 * u * fabs(r->lse));
    for (int64_t j = 0; j < r->keys; j++) {
        r->weight[j] = r->seen[j] ? exp(r->score[j] - r->lse) : 0;
        const double e = r->error[j] + r->lse_allowed + 8 * u * fabs(r->score[j] - r->lse);
        r->allowed[j] = r->seen[j] ? r->weight[j] * (expm1(e) + 32 * u) + tiny(c) : 0;
        r->softmax[j] = r->weight[j];
        r->softmax_allowed[j] = r->allowed[j];
        if (c->score.gaussian > 0 && r->seen[j]) multiply_gaussian(r, j);
    }
    drop_weights(r);
}

void check(verdict *v, const char *name, const int64_t at[4], double actual, double exact, double allowed)
{
    if (v->result || actual == exact || fabs(actual - exact) <= allowed) return;
    v->result = name;
    v->b = at[0], v->h = at[1], v->i = at[2], v->j = at[3];
    v->actual = actual, v->exact = exact, v->allowed = allowed;
}
