/* Online softmax on a block of scores S[n][NR] that a modifier has changed (unmodified scores: fused_softmax.h), lane
 * by lane:
 *
 *   m' = max(m, max_j S_j)      P_j = exp(S_j - m')      l' = exp(m - m') l + sum_j P_j      O' = exp(m - m') O
 *
 * in place, P over S. The maximum moves only when it would grow by more than SLACK (powers of two, so P stays below
 * 2^SLACK and floating point loses nothing): after the first tiles O is almost never rescaled. */
#ifndef AF_SOFTMAX_H
#define AF_SOFTMAX_H

#include "kernel/types.h"

enum { SLACK = 8 };
#define AF_LOG2E ((real)1.4426950408889634)
#define AF_LN2 ((real)0.6931471805599453)

/* exp of a difference of scores; base2: scores are in units of log 2. */
AF_INLINE v exp_difference(const bool base2, v x) { return v_exp2(base2 ? x : v_mul(x, v_set1(AF_LOG2E))); }

/* Of the lanes in use: running maximum and sum, and what O has to be multiplied by once a maximum has moved. */
typedef struct softmax_state {
    real *m, *l, *factor;
} softmax_state;

/* Returns whether a maximum moved. Bit i of part v0 + c of words[j] tells whether lane i of vector c sees key j; used
 * if masked. */
AF_INLINE bool softmax_tile(const int nv, const bool masked, int n, real *s, const uint64_t *words, int v0,
                            softmax_state state)
{
    real *const m = state.m, *const l = state.l, *const factor = state.factor;
    const v slack = v_set1(SLACK * AF_LN2);
    v top[AF_NV], sum[AF_NV];
    UNROLL(c, nv) {
        top[c] = v_set1(-AF_INFINITY);
        sum[c] = v_zero();
    }
    for (int j = 0; j < n; j++)
        UNROLL(c, nv) {
            v x = v_load(s + j * AF_NR + c * VL);
            if (masked) {
                x = v_select(vm_part(words + j, v0 + c), x, v_set1(-AF_INFINITY));
                v_store(s + j * AF_NR + c * VL, x);
            }
            top[c] = v_max(x, top[c]);
        }
    bool moved = false;
    UNROLL(c, nv) {
        const v old = v_load(m + c * VL);
        const vm grows = vm_gt(top[c], v_add(old, slack));
        top[c] = v_select(grows, top[c], old);
        moved |= vm_word(grows) != 0;
    }
    if (moved) {
        UNROLL(c, nv) {
            const v x = exp_difference(false, v_sub(v_load(m + c * VL), top[c]));
            v_store(factor + c * VL, x);
            v_store(l + c * VL, v_mul(v_load(l + c * VL), x));
            v_store(m + c * VL, top[c]);
        }
    }
    for (int j = 0; j < n; j++)
        UNROLL(c, nv) {
            const v x = exp_difference(false, v_sub(v_load(s + j * AF_NR + c * VL), top[c]));
            v_store(s + j * AF_NR + c * VL, x);
            sum[c] = v_add(sum[c], x);
        }
    UNROLL(c, nv) v_store(l + c * VL, v_add(v_load(l + c * VL), sum[c]));
    return moved;
}

#define SOFTMAX(nv)                                                                                                    \
    (words ? softmax_tile(nv, true, n, s, words, v0, state) : softmax_tile(nv, false, n, s, NULL, 0, state))

/* words: NULL if nothing is hidden. */
static bool softmax_step(int nv, int n, real *s, const uint64_t *words, int v0, softmax_state state)
{
    if (nv == 1) return SOFTMAX(1);
    if (nv == 2) return SOFTMAX(2);
    return SOFTMAX(AF_NV);
}
#undef SOFTMAX

static void rescale(int nv, int64_t Dv, const real *factor, real *o)
{
    for (int64_t d = 0; d < Dv; d++)
        for (int c = 0; c < nv; c++)
            v_store(o + d * AF_NR + c * VL, v_mul(v_load(o + d * AF_NR + c * VL), v_load(factor + c * VL)));
}

#endif
