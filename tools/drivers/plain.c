#include "plain.h"

#include <math.h>
#include <string.h>

/* How far apart two computations may be. Any order of a sum of n terms errs by at most about n u times the sum of their
 * sizes, u being half an ulp of 1. A score's error is that of its product of D terms, and a few u of what is added to
 * it. If no score of a row errs by more than e, its lse does not either, and a weight errs by a factor exp(2 e); the
 * sums over n keys add n u of the sum of the sizes of their terms. Constants cover exp, tanh, log and scale. */

typedef struct row {
    const call *call;
    int64_t b, h, i, hk;
    int64_t first_key, keys, position;
    int64_t number; /* of the batch row, or packed sequence */
    bool poisoned, padding;
    bool seen[MOST_KEYS];
    double product[MOST_KEYS], capped[MOST_KEYS], score[MOST_KEYS], error[MOST_KEYS]; /* error: of the score */
    double weight[MOST_KEYS], allowed[MOST_KEYS];
    int64_t count, visible; /* of keys that are seen; and with those that the bias hides */
    double worst;           /* error of those */
    double lse, lse_allowed;
} row;

static double unit(const call *c) { return c->wish.dtype == AF_F64 ? 0x1p-52 : 0x1p-24; } /* double errs as much */
static double tiny(const call *c) { return c->wish.dtype == AF_F64 ? 1e-300 : 1e-36; }

static double rounded(const call *c, double x) /* on the way into an array */
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

static bool poisoned_row(const array *a, int64_t b, int64_t h, int64_t i)
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

static void find_row(row *r, const call *c, int64_t b, int64_t h, int64_t i)
{
    const af_visible *v = &c->visible;
    r->call = c;
    r->b = b, r->h = h, r->i = i;
    r->hk = h / (c->wish.H / c->wish.Hk);
    r->first_key = 0;
    r->keys = c->wish.Lk;
    r->number = b;
    int64_t own = i;
    if (c->wish.kind == PACKED) {
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

static void find_weights(row *r)
{
    const call *c = r->call;
    const double u = unit(c), sink = c->score.sink && !r->padding ? c->score.sink[r->h] : -INFINITY;
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
        if (c->score.gaussian > 0 && r->seen[j]) multiply_gaussian(r, j);
    }
}

/* Notes an element that is too far off. */
static bool check(verdict *v, const char *name, const row *r, int64_t j, double actual, double exact, double allowed)
{
    if (actual == exact || fabs(actual - exact) <= allowed) return true;
    if (!v->result) {
        v->result = name;
        v->b = r->b, v->h = r->h, v->i = r->i, v->j = j;
        v->actual = actual, v->exact = exact, v->allowed = allowed;
    }
    return false;
}

static void check_output(verdict *v, const row *r, const results *res)
{
    const call *c = r->call;
    const double u = unit(c) * (double)(r->count + 32);
    for (int64_t d = 0; d < c->wish.Dv; d++) {
        double x = 0, allowed = tiny(c);
        for (int64_t j = 0; j < r->keys; j++) {
            if (!r->seen[j]) continue;
            const double value = get(&c->inputs[VALUE], r->b, r->hk, r->first_key + j, d);
            x += r->weight[j] * value;
            allowed += (r->allowed[j] + u * r->weight[j]) * fabs(value);
        }
        check(v, "output", r, d, get(&res->arrays[OUTPUT], r->b, r->h, r->i, d), x, allowed + rounded(c, x));
    }
}

static void check_stage(verdict *v, const row *r, const results *res)
{
    const call *c = r->call;
    for (int64_t j = 0; j < r->keys; j++) {
        const af_stage stage = c->wish.stage;
        const double hidden = stage == AF_WEIGHTS ? 0 : -INFINITY;
        double x = stage == AF_SCORES ? r->product[j] : stage == AF_CAPPED ? r->capped[j] : r->score[j];
        double allowed = r->error[j];
        if (stage == AF_WEIGHTS) x = r->weight[j], allowed = r->allowed[j];
        if (stage >= AF_BIASED && !r->seen[j]) x = hidden, allowed = 0;
        if (stage <= AF_CAPPED && poisoned_row(&c->inputs[KEY], r->b, r->hk, r->first_key + j)) continue;
        if (c->wish.dtype == AF_F16 && fabs(x) > 60000) continue;
        const double slack = x == hidden ? 0 : allowed + rounded(c, x);
        check(v, "weights", r, j, get(&res->arrays[STAGE], r->b, r->h, r->i, r->first_key + j), x, slack);
    }
}

/* Beside the keys of a packed sequence nothing is written. */
static void check_beside(verdict *v, const row *r, const results *res)
{
    const array *a = &res->arrays[STAGE];
    for (int64_t j = 0; j < a->J; j++) {
        if (j >= r->first_key && j < r->first_key + r->keys) continue;
        const unsigned char *x = (const unsigned char *)element(a, r->b, r->h, r->i, j);
        for (int64_t k = 0; k < type_bytes(a->type); k++) check(v, "weights", r, j, x[k], (unsigned char)res->fill, 0);
    }
}

static void check_top(verdict *v, const row *r, const results *res)
{
    const call *c = r->call;
    bool named[MOST_KEYS] = {false};
    for (int64_t t = 0; t < c->wish.topk; t++) {
        const double weight = get(&res->arrays[TOP_WEIGHT], r->b, r->h, r->i, t);
        const int64_t j = *(const int64_t *)element(&res->arrays[TOP_INDEX], r->b, r->h, r->i, t);
        if (t >= r->count) {
            check(v, "top_index", r, t, (double)j, -1, 0);
            check(v, "top_weight", r, t, weight, 0, 0);
            continue;
        }
        if (j < 0 || j >= r->keys || !r->seen[j] || named[j]) {
            check(v, "top_index", r, t, (double)j, -2, 0);
            continue;
        }
        named[j] = true;
        int64_t above = 0;
        for (int64_t k = 0; k < r->keys; k++) above += r->seen[k] && r->score[k] > r->score[j] + 2 * r->worst;
        if (above > t) check(v, "top_index", r, t, (double)above, (double)t, 0);
        check(v, "top_weight", r, t, weight, r->weight[j], r->allowed[j] + rounded(c, r->weight[j]));
    }
}

static void judge_row(verdict *v, const row *r, const results *res)
{
    if (res->arrays[LSE].memory)
        check(v, "lse", r, 0, get(&res->arrays[LSE], r->b, r->h, r->i, 0), r->lse, r->lse_allowed);
    if (res->arrays[OUTPUT].memory) check_output(v, r, res);
    if (res->arrays[STAGE].memory) check_stage(v, r, res), check_beside(v, r, res);
    if (res->arrays[TOP_INDEX].memory) check_top(v, r, res);
}

/* Beyond this, weights say nothing: a bias or distance so large that rounding decides. */
static const double WORST_ERROR = 0.02;

verdict judge(const call *c, const results *res)
{
    static row r;
    static double total[MOST_KEYS], allowed[MOST_KEYS];
    verdict v = {0};
    for (int64_t b = 0; b < c->wish.B; b++)
        for (int64_t h = 0; h < c->wish.H; h++) {
            const int64_t skipped = v.skipped;
            memset(total, 0, sizeof total);
            memset(allowed, 0, sizeof allowed);
            for (int64_t i = 0; i < c->wish.Lq; i++) {
                find_row(&r, c, b, h, i);
                const bool skip = r.poisoned || r.worst > WORST_ERROR;
                v.visible += r.visible;
                v.skipped += skip;
                v.judged += !skip;
                if (skip) continue;
                find_weights(&r);
                judge_row(&v, &r, res);
                for (int64_t j = 0; j < r.keys; j++) total[j] += r.weight[j], allowed[j] += r.allowed[j];
            }
            const double u = unit(c) * (double)(c->wish.Lq + 32);
            const bool sums = res->arrays[IMPORTANCES].memory && v.skipped == skipped;
            for (int64_t j = 0; sums && j < c->wish.Lk; j++)
                check(&v, "importance", &r, j, get(&res->arrays[IMPORTANCES], b, h, 0, j), total[j],
                      allowed[j] + u * total[j]);
        }
    return v;
}
