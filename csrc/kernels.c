/* One kernel table. Compiled once per (instruction set, dtype), see kernel/types.h. */
#include "kernels.h"

#include "kernel/columns.h"
#include "kernel/decode.h"
#include "kernel/forward.h"
#include "kernel/importance.h"
#include "kernel/probe.h"
#include "kernel/rotate.h"
#include "kernel/weights.h"

#if AF_DTYPE == AF_DTYPE_F32
#include "kernel/bytes.h"
#endif
#if !AF_HALF
#include "kernel/backward.h"
#include "kernel/backward_finish.h"
#include "kernel/backward_open.h"
#endif

#define AF_STRING_(x) #x
#define AF_STRING(x) AF_STRING_(x)

const af_kernels AF_TABLE(AF_TYPE, AF_ISA) = {
    .isa = AF_STRING(AF_ISA),
    .dtype = (af_dtype)AF_DTYPE,
    .needs = AF_NEEDS,
    .real_size = sizeof(real),
    .vl = VL,
    .nr = AF_NR,
    .cache_bytes = AF_CACHE_BYTES,
    .decode_rows = DECODE_ROWS,
    .scratch_bytes = scratch_bytes,
    .forward = forward,
    .decode = decode,
    .merge = merge,
    .weights = weights,
    .importance = importance,
#if !AF_HALF
    .backward_bytes = backward_bytes,
    .panel_bytes = panel_bytes,
    .backward_open = backward_open,
    .backward = backward,
    .backward_finish = backward_finish,
#endif
    .copy_columns = copy_columns,
    .rotate_halves = rotate_halves,
    .rotate_neighbours = rotate_neighbours,
    .widen = widen,
    .narrow = narrow,
#if AF_DTYPE == AF_DTYPE_F32
    .bytes = &byte_kernels,
#if AF_LOOKS_UP
    .bytes_by_table = &by_table_kernels,
#endif
#endif
    .probe = &probe,
};
