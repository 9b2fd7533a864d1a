/* Score modifiers: softcap, ALiBi, bias, in this order, on a tile of scores that lies in cache; and of weights.
 *
 *   s <- softcap * tanh(s / softcap)
 *   s <- s - slope * |p - j|
 *   s <- s + bias */
#ifndef AF_SCORE_H
#define AF_SCORE_H

AF_INLINE v softcap_value(v s, real softcap) { return v_mul(v_set1(softcap), v_tanh(v_mul(s, v_set1(1 / softcap)))); }

/* A bias of -inf hides the key, whatever its score is. */
AF_INLINE v bias_value(v s, v bias)
{
    const v hidden = v_set1(-AF_INFINITY);
    return v_select(vm_ne(bias, hidden), v_add(s, bias), hidden);
}
AF_INLINE v alibi_value(v s, v slope, v distance) { return v_sub(s, v_mul(slope, v_abs(distance))); }

AF_INLINE real lane_slope(const af_problem *p, const block *k, int lane)
{
    return (real)p->alibi[k->view.b * p->alibi_b + k->view.head[lane]];
}

static void softcap_tile(const af_problem *p, const block *k, int n, real *s)
{
    const real softcap = (real)p->softcap;
    for (int j = 0; j < n; j++, s += AF_NR)
        for (int c = k->v0; c < k->v1; c++) v_store(s + c * VL, softcap_value(v_load(s + c * VL), softcap));
}

static void alibi_tile(const af_problem *p, const block *k, int64_t j0, int n, real *s)
{
    real slope[AF_NR] = {0}, position[AF_NR] = {0};
    for (int lane = 0; lane < k->n; lane++) {
        slope[lane] = lane_slope(p, k, lane);
        position[lane] = (real)(af_position(p, k->view.b, k->view.query[lane]) - j0);
    }
    for (int j = 0; j < n; j++, s += AF_NR)
        for (int c = k->v0; c < k->v1; c++) {
            const v distance = v_sub(v_load(position + c * VL), v_set1((real)j));
            v_store(s + c * VL, alibi_value(v_load(s + c * VL), v_load(slope + c * VL), distance));
        }
}

/* A bias has keys along its rows: squares of VL x VL are transposed on the way in. */
static void bias_square(int lanes, int keys, const real *const rows[VL], int64_t j, real *s)
{
    v x[VL];
    UNROLL(r, VL) x[r] = r >= lanes ? v_zero() : keys == VL ? v_load(rows[r] + j) : v_load_n(rows[r] + j, keys);
    v_transpose(x);
    UNROLL(r, VL)
        if (r < keys) v_store(s + r * AF_NR, bias_value(v_load(s + r * AF_NR), x[r]));
}

static void bias_tile(const af_problem *p, const block *k, int64_t j0, int n, real *s)
{
    const real *const *rows = k->bias_row;
    bool same = true;
    for (int lane = 1; lane < k->n; lane++) same = same && rows[lane] == rows[0];
    if (p->bias.j == 0) {
        real lanes[AF_NR] = {0};
        for (int lane = 0; lane < k->n; lane++) lanes[lane] = *rows[lane];
        for (int j = 0; j < n; j++, s += AF_NR)
            for (int c = k->v0; c < k->v1; c++)
                v_store(s + c * VL, bias_value(v_load(s + c * VL), v_load(lanes + c * VL)));
    } else if (same) {
        for (int j = 0; j < n; j++, s += AF_NR)
            for (int c = k->v0; c < k->v1; c++)
                v_store(s + c * VL, bias_value(v_load(s + c * VL), v_set1(rows[0][j0 + j])));
    } else {
        for (int c = k->v0; c < k->v1; c++)
            for (int j = 0; j < n; j += VL)
                bias_square(k->n - c * VL < VL ? k->n - c * VL : VL, n - j < VL ? n - j : VL, rows + c * VL, j0 + j,
                            s + j * AF_NR + c * VL);
    }
}

/* After the softmax, weights fade with the distance from a center: P <- P exp(-spread (j - c)^2), and no others grow.
 */
AF_INLINE v fade_value(v p, v distance, real spread)
{
    const v x = v_mul(v_mul(distance, distance), v_set1(-spread * (real)1.4426950408889634));
    return v_mul(p, v_exp2(x));
}

/* The place of a row's center, counted from key j0 on so that it keeps its fraction. */
AF_INLINE real center_after(const af_problem *p, const block *k, int lane, int64_t j0)
{
    return (real)(af_center(p, k->view.b, k->view.head[lane], k->view.query[lane]) - (double)j0);
}

static void fade_tile(const af_problem *p, const block *k, int64_t j0, int n, real *s)
{
    const real spread = (real)p->spread;
    real center[AF_NR] = {0};
    for (int lane = 0; lane < k->n; lane++) center[lane] = center_after(p, k, lane, j0);
    for (int j = 0; j < n; j++, s += AF_NR)
        for (int c = k->v0; c < k->v1; c++) {
            const v distance = v_sub(v_set1((real)j), v_load(center + c * VL));
            v_store(s + c * VL, fade_value(v_load(s + c * VL), distance, spread));
        }
}

/* The same for one row of weights, keys in the lanes. */
static void fade_row(const af_problem *p, const block *k, int r, int64_t j0, int n, real *s)
{
    const real center = center_after(p, k, r, j0);
    real lane[VL];
    for (int i = 0; i < VL; i++) lane[i] = (real)i;
    for (int j = 0; j < n; j += VL) {
        const int here = n - j < VL ? n - j : VL;
        const v distance = v_add(v_load(lane), v_set1((real)j - center));
        v_store_n(s + j, fade_value(v_load_n(s + j, here), distance, (real)p->spread), here);
    }
}

static void modify_scores(const af_problem *p, const block *k, int64_t j0, int n, real *s)
{
    if (p->softcap != 0) softcap_tile(p, k, n, s);
    if (p->stage <= AF_CAPPED) return;
    if (p->alibi) alibi_tile(p, k, j0, n, s);
    if (p->bias.data) bias_tile(p, k, j0, n, s);
}

#endif
