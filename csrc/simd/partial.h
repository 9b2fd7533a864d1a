/* Incomplete vectors of 16-bit numbers and bytes, by way of an array: for instruction sets without masked loads of
 * them.
 */
#ifndef AF_PARTIAL_H
#define AF_PARTIAL_H

#if AF_HALF
AF_INLINE v e_load_n(const elem *p, int n)
{
    elem t[VL] = {0};
    for (int i = 0; i < n; i++) t[i] = p[i];
    return e_load(t);
}
AF_INLINE void e_store_n(elem *p, v x, int n)
{
    elem t[VL];
    e_store(t, x);
    for (int i = 0; i < n; i++) p[i] = t[i];
}
#endif

/* 64 bytes: the n at p and then zeros. */
AF_INLINE const uint8_t *with_zeros(const uint8_t *p, int n, uint8_t t[64])
{
    if (n >= 64) return p;
    for (int i = 0; i < 64; i++) t[i] = 0;
    for (int i = 0; i < n; i++) t[i] = p[i];
    return t;
}

#endif
