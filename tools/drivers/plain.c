#include "plain.h"

#include <math.h>
#include <string.h>

#include "plain_gradients.h"
#include "plain_row.h"

static void check_row(verdict *v, const char *name, const row *r, int64_t j, double actual, double exact,
                      double allowed)
{
    check(v, name, (const int64_t[]){r->b, r->h, r->i, j}, actual, exact, allowed);
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
            x += r->weight[j] * r->kept[j] * value;
            allowed += (r->allowed[j] + u * r->weight[j]) * r->kept[j] * fabs(value);
        }
        check_row(v, "output", r, d, get(&res->arrays[OUTPUT], r->b, r->h, r->i, d), x, allowed + rounded(c, x));
    }
}

/* Whether a key is padding in pages, which is never read. */
static bool in_no_page(const row *r, int64_t j)
{
    const af_visible *p = &r->call->visible;
    if (!r->call->wish.page_size) return false;
    return (p->kv_start && j < p->kv_start[r->number]) || (p->kv_length && j >= p->kv_length[r->number]);
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
        if (stage <= AF_CAPPED && in_no_page(r, j)) x = hidden, allowed = 0;
        else if (stage <= AF_CAPPED && poisoned_row(&c->inputs[KEY], r->b, r->hk, r->first_key + j)) continue;
        if (c->wish.dtype == AF_F16 && fabs(x) > 60000) continue;
        const double slack = x == hidden ? 0 : allowed + rounded(c, x);
        check_row(v, "weights", r, j, get(&res->arrays[STAGE], r->b, r->h, r->i, r->first_key + j), x, slack);
    }
}

/* Beside the keys of a packed sequence nothing is written. */
static void check_beside(verdict *v, const row *r, const results *res)
{
    const array *a = &res->arrays[STAGE];
    for (int64_t j = 0; j < a->J; j++) {
        if (j >= r->first_key && j < r->first_key + r->keys) continue;
        const unsigned char *x = (const unsigned char *)element(a, r->b, r->h, r->i, j);
        for (int64_t k = 0; k < type_bytes(a->type); k++)
            check_row(v, "weights", r, j, x[k], (unsigned char)res->fill, 0);
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
            check_row(v, "top_index", r, t, (double)j, -1, 0);
            check_row(v, "top_weight", r, t, weight, 0, 0);
            continue;
        }
        if (j < 0 || j >= r->keys || !r->seen[j] || named[j]) {
            check_row(v, "top_index", r, t, (double)j, -2, 0);
            continue;
        }
        named[j] = true;
        int64_t above = 0;
        for (int64_t k = 0; k < r->keys; k++) above += r->seen[k] && r->score[k] > r->score[j] + 2 * r->worst;
        if (above > t) check_row(v, "top_index", r, t, (double)above, (double)t, 0);
        check_row(v, "top_weight", r, t, weight, r->weight[j], r->allowed[j] + rounded(c, r->weight[j]));
    }
}

static void judge_row(verdict *v, const row *r, const results *res)
{
    if (res->arrays[LSE].memory)
        check_row(v, "lse", r, 0, get(&res->arrays[LSE], r->b, r->h, r->i, 0), r->lse, r->lse_allowed);
    if (res->arrays[OUTPUT].memory) check_output(v, r, res);
    if (res->arrays[STAGE].memory) check_stage(v, r, res), check_beside(v, r, res);
    if (res->arrays[TOP_INDEX].memory) check_top(v, r, res);
}

verdict judge(const call *c, const results *res)
{
    static row r;
    static double total[MOST_KEYS], allowed[MOST_KEYS];
    verdict v = {0};
    gradient_sums gradients;
    if (has_gradients(&c->wish)) open_gradients(&gradients, c, res);
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
                if (!skip) find_weights(&r);
                if (has_gradients(&c->wish)) add_gradients(&gradients, &r, skip);
                if (skip) continue;
                judge_row(&v, &r, res);
                for (int64_t j = 0; j < r.keys; j++) total[j] += r.weight[j], allowed[j] += r.allowed[j];
            }
            const double u = unit(c) * (double)(c->wish.Lq + 32);
            const bool all = res->arrays[IMPORTANCES].memory && v.skipped == skipped;
            for (int64_t j = 0; all && j < c->wish.Lk; j++)
                check_row(&v, "importance", &r, j, get(&res->arrays[IMPORTANCES], b, h, 0, j), total[j],
                          allowed[j] + u * total[j]);
        }
    if (has_gradients(&c->wish)) close_gradients(&v, &gradients);
    return v;
}
