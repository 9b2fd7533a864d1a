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
    int64_t first_key, keys, position, sequence;
    bool wild, padding;
    bool seen[MOST_KEYS];
    double product[MOST_KEYS], capped[MOST_KEYS], score[MOST_KEYS], error[MOST_KEYS]; /* error: of the score */
    double weight[MOST_KEYS], allowed[MOST_KEYS];
    int64_t count;                  /* of keys that are seen */
    double worst;                   /* error of those */
    double lse, lse_allowed, prior; /* prior: weight of what was there before */
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

static bool is_wild(double x) { return !(fabs(x) < 1e6); }

static bool wild_row(const array *a, int64_t b, int64_t h, int64_t i)
{
    for (int64_t j = 0; a->memory && j < a->J; j++)
        if (is_wild(get(a, b, h, i, j))) return true;
    return false;
}

static bool in_hole(const row *r, int64_t place)
{
    const af_problem *p = &r->call->problem;
    if (!p->dilation) return false;
    const int64_t step = p->dilation[r->h], ahead = place - r->position;
    return ahead % step == 0 && ahead / step >= -p->hole_left && ahead / step <= p->hole_right;
}

static bool in_window(const row *r, int64_t place)
{
    const af_problem *p = &r->call->problem;
    if (!p->center.data) return place >= r->position - p->left && place <= r->position + p->right;
    const double center = get(&r->call->inputs[CENTER], r->b, r->h, r->i, 0), at = (double)place;
    if (p->left < AF_FAR && at < center - (double)p->left) return false;
    if (p->right < AF_FAR && at > center + (double)p->right) return false;
    return !p->causal || place <= r->position;
}

static bool sees(const row *r, int64_t j)
{
    const call *c = r->call;
    const af_problem *p = &c->problem;
    const int64_t place = p->place ? p->place[j] : j, step = p->block_step;
    if (r->padding || (p->kv_length && place >= p->kv_length[r->b])) return false;
    if (!in_window(r, place) || in_hole(r, place)) return false;
    if (p->mask.data && get(&c->inputs[MASK], r->b, r->h, r->i, j) == 0) return false;
    if (p->bias.data && get(&c->inputs[BIAS], r->b, r->h, r->i, j) == -INFINITY) return false;
    if (p->global && !p->global[j] && !(r->position >= 0 && r->position < p->Lk && p->global[r->position]))
        return false;
    if (!p->blocks.data) return true;
    const int64_t query = step ? p->block_first_query[r->b] + r->i * step : r->i;
    const int64_t key = step ? p->block_first_key[r->b] + j * step : j;
    return get(&c->inputs[BLOCKS], r->b, r->h, query / p->block_q, key / p->block_k) != 0;
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
    r->product[j] = sum * c->problem.scale;
    r->error[j] = unit(c) * (double)(c->wish.D + 8) * size * fabs(c->problem.scale);
}

static void add_tanhs(row *r, int64_t j)
{
    const call *c = r->call;
    double sum = 0, error = 0;
    for (int64_t d = 0; d < c->wish.D; d++) {
        const double q = get(&c->inputs[QUERY], r->b, r->h, r->i, d);
        const double k = get(&c->inputs[KEY], r->b, r->hk, r->first_key + j, d);
        const double w = get(&c->inputs[SCORE_WEIGHT], 0, r->h, 0, d);
        const double bias = c->problem.score_bias.data ? get(&c->inputs[SCORE_BIAS], 0, r->h, 0, d) : 0;
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
    const af_problem *p = &c->problem;
    if (p->additive) add_tanhs(r, j);
    else multiply(r, j);
    const double s = r->product[j];
    r->capped[j] = p->softcap ? p->softcap * tanh(s / p->softcap) : s;
    r->error[j] += 16 * unit(c) * fabs(r->capped[j]);
    double added = 0, size = fabs(r->capped[j]);
    if (p->alibi) {
        const int64_t of = (r->call->wish.kind == PACKED ? r->sequence : r->b) * p->alibi_b + r->h;
        added -= p->alibi[of] * fabs((double)(r->position - j));
        size += fabs(added);
    }
    if (p->bias.data) {
        const double bias = get(&c->inputs[BIAS], r->b, r->h, r->i, j);
        added += bias;
        if (bias != -INFINITY) size += fabs(bias);
    }
    r->score[j] = r->capped[j] + added;
    r->error[j] += 8 * unit(c) * size;
}

static void find_row(row *r, const call *c, int64_t b, int64_t h, int64_t i)
{
    const af_problem *p = &c->problem;
    r->call = c;
    r->b = b, r->h = h, r->i = i;
    r->hk = h / (p->H / p->Hk);
    r->first_key = r->sequence = 0;
    r->keys = p->Lk;
    r->position = i;
    if (c->wish.kind == PACKED) {
        while (i >= c->first_query[r->sequence + 1]) r->sequence++;
        r->position -= c->first_query[r->sequence];
        r->first_key = c->first_key[r->sequence];
        r->keys = c->first_key[r->sequence + 1] - r->first_key;
    }
    if (p->q_offset) r->position += p->q_offset[c->wish.kind == PACKED ? r->sequence : b];
    r->padding = p->q_length && i >= p->q_length[b];
    r->wild = false;
    r->count = 0;
    r->worst = 0;
    for (int64_t j = 0; j < r->keys; j++) {
        find_score(r, j);
        r->seen[j] = sees(r, j);
        if (!r->seen[j]) continue;
        r->count++;
        r->worst = fmax(r->worst, r->error[j]);
        r->wild = r->wild || wild_row(&c->inputs[KEY], b, r->hk, r->first_key + j) ||
                  wild_row(&c->inputs[VALUE], b, r->hk, r->first_key + j);
    }
}

/* The weight that fades with the distance from the center, and how far off it may be. */
static void fade(row *r, int64_t j)
{
    const call *c = r->call;
    const double distance = fabs((double)j - get(&c->inputs[CENTER], r->b, r->h, r->i, 0));
    const double x = c->wish.fading * distance, shift = c->wish.fading * unit(c) * (8 * distance + 2048);
    const double near = exp2(-fmax(x - shift, 0) * fmax(x - shift, 0)), far = exp2(-(x + shift) * (x + shift));
    const double slack = near - far + 16 * unit(c) * (1 + x * x) * near;
    r->allowed[j] = (r->allowed[j] + r->weight[j]) * slack + r->allowed[j] * near + tiny(c);
    r->weight[j] *= exp2(-x * x);
}

static void find_weights(row *r)
{
    const call *c = r->call;
    const af_problem *p = &c->problem;
    const double u = unit(c);
    double top = -INFINITY, sum = 0, before = p->resume ? prior_lse(c, r->h, r->i) : -INFINITY;
    if (p->sink && !r->padding) before = p->sink[r->h];
    if (p->resume && (!r->count || r->padding)) top = before;
    for (int64_t j = 0; j < r->keys; j++)
        if (r->seen[j]) top = fmax(top, r->score[j]);
    top = fmax(top, before);
    for (int64_t j = 0; j < r->keys; j++)
        if (r->seen[j]) sum += exp(r->score[j] - top);
    r->prior = before == -INFINITY ? 0 : exp(before - top);
    sum += r->prior;
    r->lse = top == -INFINITY ? top : top + log(sum);
    r->lse_allowed = r->worst + u * (double)(r->count + 32) + (top == -INFINITY ? 0 : 16 * u * fabs(r->lse));
    r->prior = sum > 0 ? r->prior / sum : 0;
    for (int64_t j = 0; j < r->keys; j++) {
        r->weight[j] = r->seen[j] ? exp(r->score[j] - r->lse) : 0;
        const double e = r->error[j] + r->lse_allowed + 8 * u * fabs(r->score[j] - r->lse);
        r->allowed[j] = r->seen[j] ? r->weight[j] * (expm1(e) + 32 * u) + tiny(c) : 0;
        if (p->fading > 0 && r->seen[j]) fade(r, j);
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
        if (c->problem.resume) {
            const double before = prior_output(c, r->h, r->i, d);
            x += r->prior * before;
            allowed += r->prior * (expm1(2 * r->lse_allowed) + u) * fabs(before);
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
        if (stage <= AF_CAPPED && wild_row(&c->inputs[KEY], r->b, r->hk, j)) continue;
        if (c->wish.dtype == AF_F16 && fabs(x) > 60000) continue;
        const double slack = x == hidden ? 0 : allowed + rounded(c, x);
        check(v, "weights", r, j, get(&res->arrays[STAGE], r->b, r->h, r->i, j), x, slack);
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
    if (res->arrays[STAGE].memory) check_stage(v, r, res);
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
                const bool skip = r.wild || r.worst > WORST_ERROR;
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
