/* Which weights are dropped: a function of the seed and of a weight's place in the whole call. Each weight has a 32-bit
 * word and is dropped where word < dropout * 2^32. The words of a query come from two numbers a and b:
 *
 *   x = (key ^ a) * M1;   x ^= b;   x ^= x >> 15;   x *= M2;   x ^= x >> 16;   word = x * M3
 *
 * a and b are the halves of a 64-bit number, made of seed, batch row, head and query by a step of SplitMix64 each. */
#ifndef AF_DROPOUT_H
#define AF_DROPOUT_H

#include "plan/call.h"

enum { AF_DROPOUT_SHIFT1 = 15, AF_DROPOUT_SHIFT2 = 16 };
#define AF_DROPOUT_M1 UINT32_C(0x9E3779B9)
#define AF_DROPOUT_M2 UINT32_C(0x6A09E667)
#define AF_DROPOUT_M3 UINT32_C(0xBB67AE85)

static inline uint64_t af_split_mix(uint64_t state)
{
    state += UINT64_C(0x9E3779B97F4A7C15);
    state = (state ^ (state >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    state = (state ^ (state >> 27)) * UINT64_C(0x94D049BB133111EB);
    return state ^ (state >> 31);
}

/* a and b of a query, in the lower and the upper half. */
static inline uint64_t af_dropout_query(const af_call *call, int64_t b, int64_t h, int64_t i)
{
    const af_subset *s = &call->subset;
    const int64_t row = s->first_b + (s->classes ? b / s->classes : b);
    const int64_t query = s->classes ? s->class_query[b] + i * s->class_step : i;
    uint64_t state = af_split_mix(call->score.dropout_seed);
    state = af_split_mix(state + (uint64_t)row);
    state = af_split_mix(state + (uint64_t)(s->first_h + h));
    return af_split_mix(state + (uint64_t)query);
}

/* Key j of batch row b in the whole call. */
static inline uint32_t af_dropout_key(const af_call *call, int64_t b, int64_t j)
{
    const af_subset *s = &call->subset;
    if (s->key_position) return (uint32_t)s->key_position[j];
    return (uint32_t)(s->classes ? s->class_key[b] + j * s->class_step : j);
}

static inline uint32_t af_dropout_threshold(const af_call *call)
{
    return (uint32_t)(call->score.dropout * 4294967296.0);
}

#endif
