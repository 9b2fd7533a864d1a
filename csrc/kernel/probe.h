/* The pieces one by one, and the machine's limits, for tests and benchmarks. */
#ifndef AF_PROBE_H
#define AF_PROBE_H

#include "kernel/softmax.h"
#include "kernel/tile.h"

#define PROBE_FUNCTION(name)                                                                                           \
    static void probe_##name(const void *x, void *y, int64_t n)                                                        \
    {                                                                                                                  \
        int64_t i = 0;                                                                                                 \
        for (; i + VL <= n; i += VL) v_store((real *)y + i, v_##name(v_load((const real *)x + i)));                    \
        const int rest = (int)(n - i);                                                                                 \
        if (rest) v_store_n((real *)y + i, v_##name(v_load_n((const real *)x + i, rest)), rest);                       \
    }
PROBE_FUNCTION(exp2)
PROBE_FUNCTION(tanh)
PROBE_FUNCTION(log2)
PROBE_FUNCTION(exp_twice)
PROBE_FUNCTION(exp_twice_fast)
#undef PROBE_FUNCTION

static void probe_tile(bool accumulate, int64_t rows, int64_t k, const void *a, int64_t lda, const void *b, void *c)
{
    const matrix from = {a, lda};
    if (accumulate) value_product(AF_NV, true, k, rows, from, (matrix){b, AF_NR}, c);
    else score_product(AF_NV, rows, k, from, b, c, NULL);
}

static void probe_softmax(void *s, int n, void *m, void *l)
{
    real factor[AF_NR];
    softmax_step(AF_NV, n, s, NULL, 0, (softmax_state){m, l, factor});
}

/* As many independent chains as a tile has accumulators. */
static double probe_fma_peak(int64_t iterations)
{
    v acc[AF_MR][AF_NV];
    const v x = v_set1((real)0.999), y = v_set1((real)1e-3);
    UNROLL(i, AF_MR)
        UNROLL(j, AF_NV) acc[i][j] = v_set1((real)(i * AF_NV + j));
    for (int64_t t = 0; t < iterations; t++)
        UNROLL(i, AF_MR)
            UNROLL(j, AF_NV) acc[i][j] = v_fma(acc[i][j], x, y);
    v sum = v_zero();
    UNROLL(i, AF_MR)
        UNROLL(j, AF_NV) sum = v_add(sum, acc[i][j]);
    const double flops = 2.0 * AF_MR * AF_NV * VL * (double)iterations;
    return v_hsum(sum) == -1 ? 0 : flops; /* the sum is positive; asking keeps the loop */
}

static double probe_read(const void *data, int64_t n)
{
    const real *x = data;
    v sum[8];
    UNROLL(i, 8) sum[i] = v_zero();
    for (int64_t i = 0; i + 8 * VL <= n / (int64_t)sizeof(real); i += 8 * VL)
        UNROLL(c, 8) sum[c] = v_add(sum[c], v_load(x + i + c * VL));
    UNROLL(i, 7) sum[0] = v_add(sum[0], sum[i + 1]);
    return (double)v_hsum(sum[0]);
}

static const af_probe probe = {
    probe_exp2, probe_tanh,    probe_log2,     probe_exp_twice, probe_exp_twice_fast,
    probe_tile, probe_softmax, probe_fma_peak, probe_read,
};

#endif
