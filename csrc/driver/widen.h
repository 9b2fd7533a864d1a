/* 16-bit operands as float32, for algorithms whose intermediate results must not be rounded. */
#ifndef AF_WIDEN_H
#define AF_WIDEN_H

#include "driver/arena.h"
#include "plan/call.h"

/* Replaces query, key and value (where present) of a 16-bit call by float32 copies, and its dtype. */
bool af_widen_operands(af_call *call, af_arena *arena);

/* Rounds a float32 tensor of rows of `width` elements to a 16-bit one, [B][H][rows]. */
void af_narrow_rows(af_dtype dtype, const af_tensor *wide, const af_tensor *narrow, const int64_t sizes[3],
                    int64_t width);

#endif
