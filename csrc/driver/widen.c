#include "driver/widen.h"

#include "kernels.h"
#include "plan/intervals.h"
#include "runtime/dispatch.h"

/* A float32 copy of [B][H][rows][width] elements; axes that repeat themselves are copied once. */
static bool widen(af_dtype dtype, af_tensor *t, const int64_t sizes[3], int64_t width, af_arena *arena)
{
    if (!t->data) return true;
    const int64_t B = af_min(sizes[0], t->batch || t->b ? sizes[0] : 1), H = af_min(sizes[1], t->h ? sizes[1] : 1),
                  rows = af_min(sizes[2], t->i ? sizes[2] : 1);
    if ((double)B * (double)H * (double)rows * (double)width > 0x1p56) return false;
    float *copy = af_take(arena, B * H * rows * width, sizeof *copy);
    if (!copy) return false;
    const af_kernels *kernels = af_kernels_for(dtype);
    float *to = copy;
    for (int64_t b = 0; b < B; b++)
        for (int64_t h = 0; h < H; h++)
            for (int64_t i = 0; i < rows; i++, to += width)
                kernels->widen((const uint16_t *)t->data + af_offset(t, b, h, i), to, width);
    *t = (af_tensor){.data = copy, .j = 1};
    t->b = B > 1 ? H * rows * width : 0;
    t->h = H > 1 ? rows * width : 0;
    t->i = rows > 1 ? width : 0;
    return true;
}

bool af_widen_operands(af_call *call, af_arena *arena)
{
    af_operands *o = &call->operands;
    const int64_t queries[3] = {call->B, call->H, call->Lq}, keys[3] = {call->B, call->Hk, call->Lk};
    const af_dtype dtype = call->dtype;
    call->dtype = AF_F32;
    return widen(dtype, &o->query, queries, call->D, arena) && widen(dtype, &o->key, keys, call->D, arena) &&
           widen(dtype, &o->value, keys, call->Dv, arena);
}

void af_narrow_rows(af_dtype dtype, const af_tensor *wide, const af_tensor *narrow, const int64_t sizes[3],
                    int64_t width)
{
    const af_kernels *kernels = af_kernels_for(dtype);
    for (int64_t b = 0; b < sizes[0]; b++)
        for (int64_t h = 0; h < sizes[1]; h++)
            for (int64_t i = 0; i < sizes[2]; i++)
                kernels->narrow((const float *)wide->data + af_offset(wide, b, h, i),
                                (uint16_t *)narrow->data + af_offset(narrow, b, h, i), width);
}
