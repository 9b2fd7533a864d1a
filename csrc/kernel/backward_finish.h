/* The parts of dQ of all ranges of keys, added up in their order. */
#ifndef AF_BACKWARD_FINISH_H
#define AF_BACKWARD_FINISH_H

#include "kernel/backward_block.h"

/* Adds the parts of block g to the first one that has anything; NULL if none has. */
static real *join_parts(const af_backward *w, int64_t g, char *parts)
{
    real *total = NULL;
    for (int64_t range = 0; range < w->parts; range++, parts += w->part_bytes) {
        if (!((const uint8_t *)parts)[w->part_bytes - (size_t)w->panel_blocks + (size_t)g]) continue;
        real *part = (real *)parts + g * w->block_part;
        for (int64_t i = 0; total && i < w->block_part; i += VL)
            v_store(total + i, v_add(v_load(total + i), v_load(part + i)));
        if (!total) total = part;
    }
    return total;
}

/* rows[lane][0 .. width) += scale * lanes'. */
static void add_query_rows(const query_block *block, int64_t width, const real *lanes, real scale,
                           real *const rows[AF_NR])
{
    for (int c = 0; c < block->nv; c++)
        for (int64_t d = 0; d < width; d += VL) {
            const int here = width - d < VL ? (int)(width - d) : VL;
            v x[VL];
            UNROLL(r, VL) x[r] = r < here ? v_load(lanes + (d + r) * AF_NR + c * VL) : v_zero();
            v_transpose(x);
            UNROLL(r, VL) {
                if (c * VL + r >= block->n) break;
                real *to = rows[c * VL + r] + d;
                if (here == VL) v_store(to, v_fma(x[r], v_set1(scale), v_load(to)));
                else v_store_n(to, v_fma(x[r], v_set1(scale), v_load_n(to, here)), here);
            }
        }
}

/* What all rows of a block give to the weights and the bias of additive scores. */
static void sum_vectors(const af_backward *w, const af_visibility *vis, int64_t block, const real *total)
{
    const af_call *call = w->call;
    const int64_t D = call->D, all = call->B * call->H * w->plan.blocks;
    const real *sums[AF_VECTOR_SUMS] = {total + (D + AF_ROW_SUMS) * AF_NR, total};
    for (int k = 0; k < AF_VECTOR_SUMS; k++) {
        double *to = w->vector_sums + (k * all + (vis->b * call->H + vis->head[0]) * w->plan.blocks + block) * D;
        for (int64_t d = 0; d < D; d++) {
            v sum = v_load(sums[k] + d * AF_NR);
            for (int c = 1; c < AF_NV; c++) sum = v_add(sum, v_load(sums[k] + d * AF_NR + c * VL));
            to[d] = v_hsum(sum);
        }
    }
}

static void backward_finish(const af_backward *w, af_unit unit, void *parts)
{
    const af_call *call = w->call;
    const int64_t g = unit.row % w->panel_rows / w->plan.block_rows;
    query_block block;
    real *rows[AF_NR] = {0}, *total = join_parts(w, g, parts);
    if (!total) return;
    make_block(&block, call, &w->plan, unit);
    if (w->gradients->query.data) {
        int64_t offset[AF_NR];
        row_offsets(&w->gradients->query, &block.vis, offset);
        for (int lane = 0; lane < block.n; lane++) rows[lane] = (real *)w->gradients->query.data + offset[lane];
        add_query_rows(&block, call->D, total, (real)w->plan.query_scale, rows);
    }
    if (w->vector_sums) sum_vectors(w, &block.vis, unit.row / w->plan.block_rows, total);
    for (int lane = 0; w->row_sums && lane < block.n; lane++)
        for (int k = 0; k < AF_ROW_SUMS; k++)
            w->row_sums[k * call->B * call->H * call->Lq + row_number(call, &block.vis, lane)] =
                total[(call->D + k) * AF_NR + lane];
}

#endif
