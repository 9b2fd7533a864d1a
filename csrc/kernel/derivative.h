/* From dS of biased scores back through what was added to them and the softcap, on a tile dS[n] of a piece. */
#ifndef AF_DERIVATIVE_H
#define AF_DERIVATIVE_H

#include "kernel/backward_block.h"

/* A tile of lanes: row j of a piece begins at at + j * ld. */
typedef struct lane_tile {
    real *at;
    int64_t ld;
} lane_tile;

/* sums[lane] -= dS |p - j|: the derivative of the slope. */
static void add_slope_sums(const af_call *call, const query_block *block, key_piece piece, lane_tile ds, real *sums)
{
    real position[AF_NR] = {0};
    for (int lane = 0; lane < block->n; lane++)
        position[lane] = (real)(af_position(call, block->vis.b, block->vis.query[lane]) - piece.j0);
    for (int c = block->v0; c < block->v1; c++) {
        v sum = v_zero();
        for (int j = 0; j < piece.n; j++) {
            const v distance = v_abs(v_sub(v_load(position + c * VL), v_set1((real)j)));
            sum = v_fma(v_load(ds.at + j * ds.ld + c * VL), distance, sum);
        }
        v_store(sums + c * VL, v_sub(v_load(sums + c * VL), sum));
    }
}

/* sums[lane] += dS, for a bias that is the same for all keys. */
static void add_row_sums(const query_block *block, int n, lane_tile ds, real *sums)
{
    for (int c = block->v0; c < block->v1; c++) {
        v sum = v_zero();
        for (int j = 0; j < n; j++) sum = v_add(sum, v_load(ds.at + j * ds.ld + c * VL));
        v_store(sums + c * VL, v_add(v_load(sums + c * VL), sum));
    }
}

/* sums[lane] += P dP (j - c): the derivative of the center of a Gaussian, but for a factor. */
static void add_center_sums(const af_call *call, const query_block *block, const backward_scratch *s, key_piece piece,
                            lane_tile p, real *sums)
{
    lane_gaussians rows;
    find_gaussians(call, block, piece.j0, &rows);
    for (int c = block->v0; c < block->v1; c++) {
        v sum = v_zero();
        for (int j = 0; j < piece.n; j++) {
            const v weight = v_load(p.at + j * p.ld + c * VL);
            const v product = v_mul(weight, v_load(s->dp + j * AF_NR + c * VL));
            const v seen = v_select(vm_ne(weight, v_zero()), product, v_zero());
            sum = v_fma(seen, distance_to_centers(&rows, j, c), sum);
        }
        v_store(sums + c * VL, v_add(v_load(sums + c * VL), sum));
    }
}

/* The rows of a block in the gradient of the bias. Returns whether all are the same. */
static bool find_bias_rows(const af_backward *w, const query_block *block, real *rows[AF_NR])
{
    int64_t offset[AF_NR];
    bool same = true;
    row_offsets(&w->gradients->bias, &block->vis, offset);
    for (int lane = 0; lane < block->n; lane++) {
        rows[lane] = (real *)w->gradients->bias.data + offset[lane];
        same = same && offset[lane] == offset[0];
    }
    return same;
}

/* Adds a square of dS, transposed, to rows of the bias, some of which may be the same. */
static void add_bias_square(int lanes, int keys, lane_tile ds, real *const rows[VL], int64_t j0)
{
    v x[VL];
    UNROLL(r, VL) x[r] = r < keys ? v_load(ds.at + r * ds.ld) : v_zero();
    v_transpose(x);
    UNROLL(r, VL)
        if (r < lanes) v_store_n(rows[r] + j0, v_add(v_load_n(rows[r] + j0, keys), x[r]), keys);
}

/* bias[row][j] += dS. */
static void add_bias(const af_backward *w, const query_block *block, key_piece piece, lane_tile ds)
{
    real *rows[AF_NR] = {0};
    if (find_bias_rows(w, block, rows)) {
        for (int j = 0; j < piece.n; j++) {
            v sum = v_zero();
            for (int c = block->v0; c < block->v1; c++) sum = v_add(sum, v_load(ds.at + j * ds.ld + c * VL));
            rows[0][piece.j0 + j] += v_hsum(sum);
        }
        return;
    }
    for (int c = block->v0; c < block->v1; c++)
        for (int j = 0; j < piece.n; j += VL) {
            const int lanes = block->n - c * VL < VL ? block->n - c * VL : VL;
            const lane_tile square = {ds.at + j * ds.ld + c * VL, ds.ld};
            add_bias_square(lanes, piece.n - j < VL ? piece.n - j : VL, square, rows + c * VL, piece.j0 + j);
        }
}

/* dS *= the derivative of the softcap; of hidden pairs dS stays 0. */
static void through_softcap(const query_block *block, const backward_scratch *s, int n, lane_tile ds)
{
    for (int j = 0; j < n; j++)
        for (int c = block->v0; c < block->v1; c++) {
            real *x = ds.at + j * ds.ld + c * VL;
            const v more = v_mul(v_load(x), v_load(s->slope + j * AF_NR + c * VL));
            v_store(x, v_select(vm_ne(v_load(s->s + j * AF_NR + c * VL), v_set1(-AF_INFINITY)), more, v_zero()));
        }
}

/* `sums` are the block's [AF_ROW_SUMS][NR]. */
static void score_derivatives(const af_backward *w, const query_block *block, const backward_scratch *s,
                              key_piece piece, lane_tile ds, real *sums)
{
    const af_call *call = w->call;
    if (w->gradients->alibi) add_slope_sums(call, block, piece, ds, sums + AF_ALIBI_SUM * AF_NR);
    if (w->gradients->bias.data && w->gradients->bias.j == 0)
        add_row_sums(block, piece.n, ds, sums + AF_BIAS_SUM * AF_NR);
    else if (w->gradients->bias.data) add_bias(w, block, piece, ds);
    if (call->score.softcap != 0) through_softcap(block, s, piece.n, ds);
}

#endif
