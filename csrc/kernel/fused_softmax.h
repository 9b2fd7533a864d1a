/* From scores that nothing modifies to weights, a few keys at a time:
 *
 *   P_j = exp(K_j Q' - m)      l += sum_j P_j
 *
 * With enough registers (AF_FUSED_SOFTMAX) this happens in the tile of the product: scores never go through memory, and
 * the next tile's products begin meanwhile. The tile uses the running maximum, or the maximum of the first keys that a
 * lane sees. If a later score exceeds it by more than SLACK (see softmax.h), the tile's scores are stored, the earlier
 * weights of the block are rescaled, and the tile continues from memory. Each lane depends on its own scores alone. */
#ifndef AF_FUSED_SOFTMAX_H
#define AF_FUSED_SOFTMAX_H

#include "kernel/block.h"
#include "kernel/softmax.h"
#include "kernel/tile.h"

/* A block of keys; pointers begin at its first lane. P[.][NR] are the weights so far, with their sums; `factor` is
 * what O must be multiplied by once a maximum has moved. */
typedef struct fused_softmax {
    real *p, *m, *l, *factor;
    const uint64_t *words; /* bit c * VL + i of words[j]: whether lane i of vector c - v0 sees key j; NULL if all do */
    int v0;
    matrix key; /* the keys of the block, and the queries that meet them */
    const real *query;
    real sum[AF_NR];
    bool moved;
} fused_softmax;

static void start_fused_softmax(fused_softmax *w, const scratch *s, const uint64_t *words, int v0, real *factor)
{
    *w = (fused_softmax){
        .p = s->s + v0 * VL, .m = s->m + v0 * VL, .l = s->l + v0 * VL, .factor = factor, .words = words};
    w->v0 = v0;
}

static bool end_fused_softmax(fused_softmax *w, int nv)
{
    for (int c = 0; c < nv * VL; c += VL) v_store(w->l + c, v_add(v_load(w->l + c), v_load(w->sum + c)));
    return w->moved;
}

/* The weights of n keys from j on; their scores are stored where the weights will be. */
static void softmax_from_memory(fused_softmax *w, int nv, int64_t j, int n)
{
    for (int c = 0; !w->moved && c < nv * VL; c++) w->factor[c] = 1;
    for (int c = 0; c < nv * VL; c += VL) {
        real *p = w->p + c, *end = p + j * AF_NR;
        v top = v_set1(-AF_INFINITY), sum = v_load(w->sum + c);
        for (int i = 0; i < n; i++) top = v_max(v_load(end + i * AF_NR), top);
        v m = v_load(w->m + c);
        const vm grows = vm_gt(top, v_add(m, v_set1(SLACK)));
        if (vm_word(grows)) {
            const v old = m;
            m = v_select(grows, top, old);
            const v factor = v_exp2(v_sub(old, m));
            v_store(w->m + c, m);
            v_store(w->l + c, v_mul(v_load(w->l + c), factor));
            v_store(w->factor + c, v_mul(v_load(w->factor + c), factor));
            sum = v_mul(sum, factor);
            for (; p < end; p += AF_NR) v_store(p, v_mul(v_load(p), factor));
            w->moved = true;
        }
        for (int i = 0; i < n; i++) {
            const v y = v_exp2(v_sub(v_load(end + i * AF_NR), m));
            v_store(end + i * AF_NR, y);
            sum = v_add(sum, y);
        }
        v_store(w->sum + c, sum);
    }
}

/* Keys per step, of a block of n. */
AF_INLINE int fused_softmax_keys(int n) { return AF_FUSED_SOFTMAX ? AF_MR : n; }

#if AF_FUSED_SOFTMAX
/* Sets new maxima for the lanes that need one, if none of these lanes has earlier weights. */
AF_INLINE bool begin_maximum(const fused_softmax *w, const int nv, const v top[AF_NV])
{
    uint64_t behind = 0;
    UNROLL(c, nv) {
        const vm grows = vm_gt(top[c], v_add(v_load(w->m + c * VL), v_set1(SLACK)));
        const v weights = v_add(v_load(w->l + c * VL), v_load(w->sum + c * VL));
        behind |= vm_word(grows) & vm_word(vm_ne(weights, v_zero()));
    }
    if (behind) return false;
    UNROLL(c, nv) {
        const v m = v_load(w->m + c * VL);
        v_store(w->m + c * VL, v_select(vm_gt(top[c], v_add(m, v_set1(SLACK))), top[c], m));
    }
    return true;
}

/* The weights of keys j .. j + AF_MR from their scores x, unless a maximum must grow for them. */
AF_INLINE bool softmax_in_registers(fused_softmax *w, const int nv, int64_t j, v x[AF_MR][AF_NV])
{
    v top[AF_NV];
    uint64_t grows = 0;
    UNROLL(c, nv) {
        top[c] = v_set1(-AF_INFINITY);
        UNROLL(i, AF_MR) top[c] = v_max(x[i][c], top[c]);
        grows |= vm_word(vm_gt(top[c], v_add(v_load(w->m + c * VL), v_set1(SLACK))));
    }
    if (__builtin_expect(grows != 0, 0) && !begin_maximum(w, nv, top)) return false;
    const real *terms = exp2_terms_in_place();
    UNROLL(c, nv) {
        const v m = v_load(w->m + c * VL);
        v sum = v_load(w->sum + c * VL);
        UNROLL(i, AF_MR) {
            const v y = v_exp2_by(v_sub(x[i][c], m), terms);
            v_store(w->p + (j + i) * AF_NR + c * VL, y);
            sum = v_add(sum, y);
        }
        v_store(w->sum + c * VL, sum);
    }
    return true;
}

/* A score, or -inf where it is hidden. */
AF_INLINE v hide(const fused_softmax *w, int64_t j, int c, v x)
{
    return v_select(vm_part(w->words + j, w->v0 + c), x, v_set1(-AF_INFINITY));
}

AF_INLINE void fused_softmax_tiles(fused_softmax *w, const int nv, const bool masked, int64_t n, int64_t D,
                                   const prefetch *next)
{
    const tile_kind kind = {AF_MR, nv, true, false};
    const matrix key = w->key, query = {w->query, AF_NR};
    int64_t j = 0;
    for (; j + AF_MR <= n; j += AF_MR) {
        prefetch_ahead(next, j);
        v x[AF_MR][AF_NV];
        tile_sums(kind, D, from_row(kind, key, j), query, x, next, j);
        UNROLL(i, AF_MR)
            UNROLL(c, nv)
                if (masked) x[i][c] = hide(w, j + i, c, x[i][c]);
        if (softmax_in_registers(w, nv, j, x)) continue;
        tile_store(kind, x, (tile_result){w->p + j * AF_NR, AF_NR});
        softmax_from_memory(w, nv, j, AF_MR);
    }
    if (j == n) return;
    score_product(nv, n - j, D, from_row(kind, key, j), w->query, w->p + j * AF_NR, next);
    for (int64_t i = j; masked && i < n; i++)
        UNROLL(c, nv) {
            real *p = w->p + i * AF_NR + c * VL;
            v_store(p, hide(w, i, c, v_load(p)));
        }
    softmax_from_memory(w, nv, j, (int)(n - j));
}

/* n keys, see score_product. */
static __attribute__((noinline)) void fused_softmax_product(fused_softmax *w, int nv, int64_t n, int64_t D,
                                                            const prefetch *next)
{
    if (nv == 1 && w->words) fused_softmax_tiles(w, 1, true, n, D, next);
    else if (nv == 1) fused_softmax_tiles(w, 1, false, n, D, next);
    else if (nv == 2 && w->words) fused_softmax_tiles(w, 2, true, n, D, next);
    else if (nv == 2) fused_softmax_tiles(w, 2, false, n, D, next);
    else if (w->words) fused_softmax_tiles(w, AF_NV, true, n, D, next);
    else fused_softmax_tiles(w, AF_NV, false, n, D, next);
}

#endif

#endif
