#include "plain_gradients.h"

#include <math.h>
#include <stdlib.h>

/* With P the softmax, W = P times a gaussian the weights, K what dropout multiplies them by, dO, dW and dL the
 * derivatives by output, weights and lse:
 *
 *   G_j = K_j <dO, v_j> + dW_j     delta = sum_j W_j G_j - dL     dS_j = W_j G_j - P_j delta
 *
 * and from dS on by the chain rule. Errors are bounded as in plain_row.h: that of P is known, and each sum adds its
 * number of terms u of the sum of their sizes. */

typedef struct pairs {
    double by_weight[MOST_KEYS], size[MOST_KEYS]; /* G, and the sum of the sizes of its terms */
    double by_score[MOST_KEYS], error[MOST_KEYS]; /* dS of biased scores */
    double mean, mean_size, mean_error;           /* delta */
} pairs;

static void open_sums(sums *s, const array *a)
{
    const size_t count = a->bytes / (size_t)type_bytes(a->type);
    *s = (sums){a, calloc(count, 8), calloc(count, 8), calloc(count, 8), calloc(count, 8)};
}

void open_gradients(gradient_sums *g, const call *c, const results *res)
{
    *g = (gradient_sums){.call = c};
    for (int k = FIRST_GRADIENT; k < RESULTS; k++)
        if (res->arrays[k].memory) open_sums(&g->of[k], &res->arrays[k]);
}

static int64_t place(const sums *s, int64_t b, int64_t h, int64_t i, int64_t j)
{
    return (element(s->of, b, h, i, j) - s->of->memory) / type_bytes(s->of->type);
}

static void add(sums *s, int64_t at, double x, double allowed)
{
    s->exact[at] += x;
    s->allowed[at] += allowed;
    s->size[at] += fabs(x);
    s->count[at]++;
}

/* Row (b, h, i) of an input: its elements one after the other. */
static void read_row(const call *c, int which, int64_t b, int64_t h, int64_t i, double *to)
{
    const array *a = &c->inputs[which];
    for (int64_t d = 0; d < a->J; d++) to[d] = get(a, b, h, i, d);
}

static void find_by_weights(const row *r, pairs *p)
{
    const call *c = r->call;
    const bool weights = c->loss.grad_weights.data, lse = c->loss.grad_lse.data;
    const int64_t Dv = c->wish.Dv;
    double by_output[MOST_WIDTH], value[MOST_WIDTH];
    read_row(c, BY_OUTPUT, r->b, r->h, r->i, by_output);
    p->mean = lse ? -get(&c->inputs[BY_LSE], r->b, r->h, r->i, 0) : 0;
    p->mean_size = fabs(p->mean);
    p->mean_error = 0;
    for (int64_t j = 0; j < r->keys; j++) {
        if (!r->seen[j]) continue;
        double sum = 0, size = 0;
        read_row(c, VALUE, r->b, r->hk, r->first_key + j, value);
        for (int64_t d = 0; d < Dv; d++) {
            sum += by_output[d] * value[d];
            size += fabs(by_output[d] * value[d]);
        }
        const double more = weights ? get(&c->inputs[BY_WEIGHTS], r->b, r->h, r->i, r->first_key + j) : 0;
        p->by_weight[j] = sum * r->kept[j] + more;
        p->size[j] = size * r->kept[j] + fabs(more);
        p->mean += r->weight[j] * p->by_weight[j];
        p->mean_size += r->weight[j] * p->size[j];
        p->mean_error += r->allowed[j] * p->size[j];
    }
    p->mean_error += unit(c) * (double)(r->count + Dv + 32) * p->mean_size;
}

static void find_by_scores(const row *r, pairs *p)
{
    const double u = unit(r->call), summed = u * (double)(r->call->wish.Dv + 32);
    for (int64_t j = 0; j < r->keys; j++) {
        if (!r->seen[j]) continue;
        const double own = r->weight[j] + r->allowed[j], shared = r->softmax[j] + r->softmax_allowed[j];
        p->by_score[j] = r->weight[j] * p->by_weight[j] - r->softmax[j] * p->mean;
        p->error[j] = r->allowed[j] * p->size[j] + r->softmax_allowed[j] * p->mean_size + shared * p->mean_error +
                      summed * (own * p->size[j] + shared * p->mean_size);
    }
}

static double sech2(double x) { return 1 / (cosh(fmin(x, 300)) * cosh(fmin(x, 300))); }

/* From biased scores to the product. */
static void through_softcap(const row *r, pairs *p)
{
    const double cap = r->call->score.softcap;
    for (int64_t j = 0; cap != 0 && j < r->keys; j++) {
        if (!r->seen[j]) continue;
        const double x = fabs(r->product[j] / cap), e = r->error[j] / cap, slope = sech2(x);
        const double slack = sech2(fmax(x - e, 0)) - sech2(x + e) + 16 * unit(r->call);
        p->error[j] = p->error[j] * (slope + slack) + fabs(p->by_score[j]) * slack;
        p->by_score[j] *= slope;
    }
}

/* What a bias, a slope and a sink get, of biased scores. */
static void add_to_scores(gradient_sums *g, const row *r, const pairs *p)
{
    const call *c = r->call;
    sums *bias = &g->of[D_BIAS], *alibi = &g->of[D_ALIBI], *sink = &g->of[D_SINK];
    for (int64_t j = 0; j < r->keys; j++) {
        if (!r->seen[j]) continue;
        const double distance = fabs((double)(r->position - j));
        if (bias->of) add(bias, place(bias, r->b, r->h, r->i, r->first_key + j), p->by_score[j], p->error[j]);
        if (!alibi->of) continue;
        const int64_t at = place(alibi, c->score.alibi_b ? r->number : 0, r->h, 0, 0);
        add(alibi, at, -p->by_score[j] * distance, p->error[j] * distance);
    }
    if (!sink->of || !has_sink(r)) return;
    const double share = exp(c->score.sink[r->h] - r->lse);
    const double error = expm1(r->lse_allowed + 16 * unit(c) * (1 + fabs(c->score.sink[r->h])));
    add(sink, place(sink, 0, r->h, 0, 0), -share * p->mean,
        share * (error * p->mean_size + (1 + error) * p->mean_error + tiny(c)));
}

/* The derivative of a weight by its center is 2 ln 2 gaussian^2 (j - center) times the weight. */
static void add_to_center(gradient_sums *g, const row *r, const pairs *p)
{
    sums *center = &g->of[D_CENTER];
    const double gaussian = r->call->score.gaussian, factor = 2 * log(2) * gaussian * gaussian, u = unit(r->call);
    if (!center->of || gaussian == 0) return;
    const double at = get(&r->call->inputs[CENTER], r->b, r->h, r->i, 0);
    for (int64_t j = 0; j < r->keys; j++) {
        if (!r->seen[j]) continue;
        const double distance = (double)j - at, moved = u * (8 * fabs(distance) + 2048);
        const double own = r->weight[j] + r->allowed[j], terms = u * (double)(r->call->wish.Dv + 32);
        const double error = (r->allowed[j] + own * terms) * fabs(distance) + own * moved;
        add(center, place(center, r->b, r->h, r->i, 0), factor * r->weight[j] * p->by_weight[j] * distance,
            factor * error * p->size[j]);
    }
}

/* `factor` times row (b, h, i) of an input, to the row of another. */
static void add_row(sums *s, int64_t b, int64_t h, int64_t i, const double *x, double factor, double allowed)
{
    if (!s->of) return;
    const int64_t at = place(s, b, h, i, 0);
    for (int64_t d = 0; d < s->of->J; d++) add(s, at + d, factor * x[d], allowed * fabs(x[d]));
}

static void add_values(gradient_sums *g, const row *r)
{
    double by_output[MOST_WIDTH];
    read_row(r->call, BY_OUTPUT, r->b, r->h, r->i, by_output);
    for (int64_t j = 0; j < r->keys; j++)
        if (r->seen[j])
            add_row(&g->of[D_VALUE], r->b, r->hk, r->first_key + j, by_output, r->weight[j] * r->kept[j],
                    r->allowed[j] * r->kept[j]);
}

static void add_products(gradient_sums *g, const row *r, const pairs *p)
{
    const call *c = r->call;
    const double scale = c->score.scale;
    double query[MOST_WIDTH], key[MOST_WIDTH];
    read_row(c, QUERY, r->b, r->h, r->i, query);
    for (int64_t j = 0; j < r->keys; j++) {
        if (!r->seen[j]) continue;
        const double factor = scale * p->by_score[j], allowed = fabs(scale) * p->error[j];
        read_row(c, KEY, r->b, r->hk, r->first_key + j, key);
        add_row(&g->of[D_QUERY], r->b, r->h, r->i, key, factor, allowed);
        add_row(&g->of[D_KEY], r->b, r->hk, r->first_key + j, query, factor, allowed);
    }
}

/* Element d of key j, of additive scores w tanh x. */
static void add_tanh(gradient_sums *g, const row *r, const pairs *p, int64_t j, int64_t d, double w, double x,
                     double size)
{
    const double t = tanh(x), slope = 1 - t * t, u = unit(r->call), ds = p->by_score[j], error = p->error[j];
    const double moved = u * (8 * size + 16), slack = 2 * slope * moved + 16 * u;
    const double by_x = w * ds * slope, allowed = fabs(w) * (error * (slope + slack) + fabs(ds) * slack);
    sums *query = &g->of[D_QUERY], *key = &g->of[D_KEY];
    sums *weight = &g->of[D_SCORE_WEIGHT], *bias = &g->of[D_SCORE_BIAS];
    if (query->of) add(query, place(query, r->b, r->h, r->i, d), by_x, allowed);
    if (key->of) add(key, place(key, r->b, r->hk, r->first_key + j, d), by_x, allowed);
    if (bias->of) add(bias, place(bias, 0, r->h, 0, d), by_x, allowed);
    if (weight->of)
        add(weight, place(weight, 0, r->h, 0, d), ds * t,
            error * fabs(t) + (fabs(ds) + error) * (slope * moved + 16 * u));
}

static void add_tanhs(gradient_sums *g, const row *r, const pairs *p)
{
    const call *c = r->call;
    const bool moved = c->score.score_bias.data;
    double query[MOST_WIDTH], key[MOST_WIDTH], weight[MOST_WIDTH], bias[MOST_WIDTH] = {0};
    read_row(c, QUERY, r->b, r->h, r->i, query);
    read_row(c, SCORE_WEIGHT, 0, r->h, 0, weight);
    if (moved) read_row(c, SCORE_BIAS, 0, r->h, 0, bias);
    for (int64_t j = 0; j < r->keys; j++) {
        if (!r->seen[j]) continue;
        read_row(c, KEY, r->b, r->hk, r->first_key + j, key);
        for (int64_t d = 0; d < c->wish.D; d++)
            add_tanh(g, r, p, j, d, weight[d], query[d] + key[d] + bias[d],
                     fabs(query[d]) + fabs(key[d]) + fabs(bias[d]));
    }
}

static void lose_row(sums *s, int64_t b, int64_t h, int64_t i)
{
    for (int64_t d = 0; s->of && d < s->of->J; d++) s->allowed[place(s, b, h, i, d)] = INFINITY;
}

/* What a row adds to may be anything. */
static void lose(gradient_sums *g, const row *r)
{
    for (int64_t j = 0; j < r->keys; j++) {
        if (!r->seen[j]) continue;
        lose_row(&g->of[D_QUERY], r->b, r->h, r->i);
        lose_row(&g->of[D_KEY], r->b, r->hk, r->first_key + j);
        lose_row(&g->of[D_VALUE], r->b, r->hk, r->first_key + j);
        sums *bias = &g->of[D_BIAS];
        lose_row(&g->of[D_CENTER], r->b, r->h, r->i);
        if (bias->of) bias->allowed[place(bias, r->b, r->h, r->i, r->first_key + j)] = INFINITY;
    }
    lose_row(&g->of[D_ALIBI], r->call->score.alibi_b ? r->number : 0, r->h, 0);
    lose_row(&g->of[D_SINK], 0, r->h, 0);
    lose_row(&g->of[D_SCORE_WEIGHT], 0, r->h, 0);
    lose_row(&g->of[D_SCORE_BIAS], 0, r->h, 0);
}

void add_gradients(gradient_sums *g, const row *r, bool skipped)
{
    static pairs p;
    if (skipped || (r->count > 0 && poisoned_row(&r->call->inputs[BY_OUTPUT], r->b, r->h, r->i))) {
        lose(g, r);
        return;
    }
    if (r->padding) return;
    find_by_weights(r, &p);
    find_by_scores(r, &p);
    add_to_scores(g, r, &p);
    add_values(g, r);
    add_to_center(g, r, &p);
    through_softcap(r, &p);
    if (r->call->score.additive) add_tanhs(g, r, &p);
    else add_products(g, r, &p);
}

static void compare(verdict *v, const gradient_sums *g, int which)
{
    const sums *s = &g->of[which];
    const array *a = s->of;
    for (int64_t b = 0; b < a->B; b++)
        for (int64_t h = 0; h < a->H; h++)
            for (int64_t i = 0; i < a->I; i++)
                for (int64_t j = 0; j < a->J; j++) {
                    const int64_t at = place(s, b, h, i, j);
                    double allowed = s->allowed[at];
                    if (allowed == INFINITY) continue;
                    if (s->count[at] > 0) allowed += unit(g->call) * (s->count[at] + 32) * s->size[at] + tiny(g->call);
                    const double actual = get(a, b, h, i, j);
                    check(v, result_name(which), (const int64_t[]){b, h, i, j}, actual, s->exact[at], allowed);
                }
}

void close_gradients(verdict *v, gradient_sums *g)
{
    for (int k = FIRST_GRADIENT; k < RESULTS; k++) {
        if (!g->of[k].of) continue;
        compare(v, g, k);
        free(g->of[k].exact);
        free(g->of[k].allowed);
        free(g->of[k].size);
        free(g->of[k].count);
    }
}
