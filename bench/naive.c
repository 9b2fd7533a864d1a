/* Attention as a textbook writes it, for bench/naive.py: one row of scores at a time, every loop over all of it. */
#include <math.h>
#include <stddef.h>

/* heads x length x size, all in rows one after the other; `row` has room for one score a key. */
void naive_attention(const float *q, const float *k, const float *v, float *o, float *row, size_t heads, size_t length,
                     size_t size)
{
    const float scale = 1 / sqrtf((float)size);
    for (size_t h = 0; h < heads; h++, k += length * size, v += length * size)
        for (size_t i = 0; i < length; i++, q += size, o += size) {
            float top = -INFINITY, sum = 0;
            for (size_t j = 0; j < length; j++) {
                float score = 0;
                for (size_t d = 0; d < size; d++) score += q[d] * k[j * size + d];
                row[j] = score * scale;
                if (row[j] > top) top = row[j];
            }
            for (size_t j = 0; j < length; j++) {
                row[j] = expf(row[j] - top);
                sum += row[j];
            }
            for (size_t d = 0; d < size; d++) o[d] = 0;
            for (size_t j = 0; j < length; j++)
                for (size_t d = 0; d < size; d++) o[d] += row[j] / sum * v[j * size + d];
        }
}
