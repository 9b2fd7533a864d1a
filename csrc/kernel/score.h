/* Score modifiers: softcap, ALiBi, bias, in this order, on a tile of scores that lies in cache; and of weights.
 *
 *   s <- softcap * tanh(s / softcap)
 *   s <- s - slope * |p - j|
 *   s <- s + bias */
#ifndef AF_SCORE_H
#define AF_SCORE_H

#include "kernel/mask.h"

AF_INLINE v softcap_value(v s, real softcap) { return v_mul(v_set1(softcap), v_tanh(v_mul(s, v_set1(1 / softcap)))); }

/* A bias of -inf hides the key, whatever its score is. */
AF_INLINE v bias_value(v s, v bias)
{
    const v hidden = v_set1(-AF_INFINITY);
    return v_select(vm_ne(bias, hidden), v_add(s, bias), hidden);
}
AF_INLINE v alibi_value(v s, v slope, v distance) { return v_sub(s, v_mul(slope, v_abs(distance))); }

AF_INLINE real lane_slope(const af_call *call, const query_block *block, int lane)
{
    return (real)call->score.alibi[block->vis.b * call->score.alibi_b + block->vis.head[lane]];
}

static void softcap_tile(const af_call *call, const query_block *block, int n, real *s)
{
    const real softcap = (real)call->score.softcap;
    for (int j = 0; j < n; j++, s += AF_NR)
        for (int c = block->v0; c < block->v1; c++) v_store(s + c * VL, softcap_value(v_load(s + c * VL), softcap));
}

static void alibi_tile(const af_call *call, const query_block *block, int64_t j0, int n, real *s)
{
    real slope[AF_NR] = {0}, position[AF_NR] = {0};
    for (int lane = 0; lane < block->n; lane++) {
        slope[lane] = lane_slope(call, block, lane);
        position[lane] = (real)(af_position(call, block->vis.b, block->vis.query[lane]) - j0);
    }
    for (int j = 0; j < n; j++, s += AF_NR)
        for (int c = block->v0; c < block->v1; c++) {
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

static void bias_tile(const af_call *call, const query_block *block, int64_t j0, int n, real *s)
{
    const real *const *rows = block->bias_row;
    bool same = true;
    for (int lane = 1; lane < block->n; lane++) same = same && rows[lane] == rows[0];
    if (call->score.bias.j == 0) {
        real lanes[AF_NR] = {0};
        for (int lane = 0; lane < block->n; lane++) lanes[lane] = *rows[lane];
        for (int j = 0; j < n; j++, s += AF_NR)
            for (int c = block->v0; c < block->v1; c++)
                v_store(s + c * VL, bias_value(v_load(s + c * VL), v_load(lanes + c * VL)));
    } else if (same) {
        for (int j = 0; j < n; j++, s += AF_NR)
            for (int c = block->v0; c < block->v1; c++)
                v_store(s + c * VL, bias_value(v_load(s + c * VL), v_set1(rows[0][j0 + j])));
    } else {
        for (int c = block->v0; c < block->v1; c++)
            for (int j = 0; j < n; j += VL)
                bias_square(block->n - c * VL < VL ? block->n - c * VL : VL, n - j < VL ? n - j : VL, rows + c * VL,
                            j0 + j, s + j * AF_NR + c * VL);
    }
}

/* After the softmax, weights fade with the distance from a center: P <- P 2^-x^2, x = gaussian (j - c). */
AF_INLINE v gaussian_value(v p, v x) { return v_mul(p, v_exp2(v_sub(v_zero(), v_mul(x, x)))); }

/* The center of a row and the sharpness of its Gaussian. Keys are whole numbers, so only the fraction of a center is
 * rounded in the distance j - c, and narrow Gaussians keep their precision anywhere. A center too far away for reals to
 * count keys is moved nearer, with a wider Gaussian. */
typedef struct row_gaussian {
    real whole, fraction; /* c - j0 */
    real sharpness;
} row_gaussian;

static row_gaussian find_gaussian(const af_call *call, const query_block *block, int lane, int64_t j0)
{
    const double far = 1.0e12, limit = AF_DOUBLE ? 1e300 : 1e30;
    const double center = af_center(call, block->vis.b, block->vis.head[lane], block->vis.query[lane]);
    const double whole = center < far && center > -far ? (double)(int64_t)center : center;
    const double away = whole - (double)j0, size = away < 0 ? -away : away;
    const double sharpness = size > far ? size / far * call->score.gaussian : call->score.gaussian;
    const double near = size > far ? (away < 0 ? -far : far) : away;
    return (row_gaussian){(real)near, (real)(center - whole), (real)(sharpness < limit ? sharpness : limit)};
}

/* Those of the rows of a block. */
typedef struct lane_gaussians {
    real whole[AF_NR], fraction[AF_NR], sharpness[AF_NR];
} lane_gaussians;

static void find_gaussians(const af_call *call, const query_block *block, int64_t j0, lane_gaussians *rows)
{
    *rows = (lane_gaussians){0};
    for (int lane = 0; lane < block->n; lane++) {
        const row_gaussian row = find_gaussian(call, block, lane, j0);
        rows->whole[lane] = row.whole;
        rows->fraction[lane] = row.fraction;
        rows->sharpness[lane] = row.sharpness;
    }
}

/* j - c for key j0 + j and a vector of rows. */
AF_INLINE v distance_to_centers(const lane_gaussians *rows, int j, int c)
{
    return v_sub(v_sub(v_set1((real)j), v_load(rows->whole + c * VL)), v_load(rows->fraction + c * VL));
}

/* Weights of lanes, rows ld apart. */
static void gaussian_tile(const af_call *call, const query_block *block, int64_t j0, int n, real *s, int64_t ld)
{
    lane_gaussians rows;
    find_gaussians(call, block, j0, &rows);
    for (int j = 0; j < n; j++, s += ld)
        for (int c = block->v0; c < block->v1; c++) {
            const v x = v_mul(distance_to_centers(&rows, j, c), v_load(rows.sharpness + c * VL));
            v_store(s + c * VL, gaussian_value(v_load(s + c * VL), x));
        }
}

/* The same for one row of weights, keys in the lanes. */
static void gaussian_row(const af_call *call, const query_block *block, int r, int64_t j0, int n, real *s)
{
    const row_gaussian row = find_gaussian(call, block, r, j0);
    real lane[VL];
    for (int i = 0; i < VL; i++) lane[i] = (real)i;
    for (int j = 0; j < n; j += VL) {
        const int here = n - j < VL ? n - j : VL;
        const v keys = v_sub(v_add(v_load(lane), v_set1((real)j)), v_set1(row.whole));
        const v distance = v_sub(keys, v_set1(row.fraction));
        v_store_n(s + j, gaussian_value(v_load_n(s + j, here), v_mul(distance, v_set1(row.sharpness))), here);
    }
}

/* What is added to scores after the softcap. */
static void add_to_scores(const af_call *call, const query_block *block, int64_t j0, int n, real *s)
{
    if (call->score.alibi) alibi_tile(call, block, j0, n, s);
    if (call->score.bias.data) bias_tile(call, block, j0, n, s);
}

static void modify_scores(const af_call *call, const query_block *block, int64_t j0, int n, real *s)
{
    if (call->score.softcap != 0) softcap_tile(call, block, n, s);
    if (call->results.stage > AF_CAPPED) add_to_scores(call, block, j0, n, s);
}

#endif
