/* Elementary functions, written once on the vector vocabulary. NaN in, NaN out. */
#ifndef AF_MATH_H
#define AF_MATH_H

/* 2^r for 0 <= r < 1 as 1 + r q(r), so that 2^0 is exactly 1. Coefficients: minimax relative error with the constant
 * fixed at 1 (Remez). Error of v_exp2: 2.7 ulp in float, 1.5 ulp in double. */
#if AF_DOUBLE
static const real exp2_terms[] = {
    1,
    0x1.62e42fefa39f5p-1,
    0x1.ebfbdff82c04bp-3,
    0x1.c6b08d7065837p-5,
    0x1.3b2ab6f734179p-7,
    0x1.5d87ff4d22504p-10,
    0x1.4308fa1dd2ccfp-13,
    0x1.ffcfc6a994c4bp-17,
    0x1.628f3584fcda4p-20,
    0x1.b85f42c30da13p-24,
    0x1.c2c47945ab31cp-28,
    0x1.58566e54c9da9p-31,
};
#else
static const real exp2_terms[] = {
    1, 0x1.62e4bap-1f, 0x1.ebdb56p-3f, 0x1.c91ce6p-5f, 0x1.277856p-7f, 0x1.e974fap-10f,
};
#endif

/* Where an instruction can broadcast an operand from memory, the terms stay there and take no registers in a loop that
 * is short of them. */
AF_INLINE const real *exp2_terms_in_place(void)
{
    const real *terms = exp2_terms;
#if AF_EMBEDS
    __asm__ volatile("" : "+r"(terms));
#endif
    return terms;
}

AF_INLINE v exp2_fraction(v r, const real *terms)
{
    enum { degree = sizeof exp2_terms / sizeof *exp2_terms - 1 };
    v y = v_set1(terms[degree]);
    UNROLL(i, degree) y = v_fma(y, r, v_set1(terms[degree - 1 - i]));
    return y;
}

/* 2^x for x below the largest exponent; exactly 0 for x = -infinity. */
AF_INLINE v v_exp2_by(v x, const real *terms) { return v_scale2(exp2_fraction(v_fraction(x), terms), x); }
AF_INLINE v v_exp2(v x) { return v_exp2_by(x, exp2_terms); }

/* (e^r - 1) / r with y = n ln 2 + r, |r| <= ln 2 / 2, for |y| up to some hundreds. r is made in two pieces; Taylor
 * terms down to a quarter ulp. */
AF_INLINE v exp_reduced(v y, v *n, v *r)
{
#if AF_DOUBLE
    static const real hi = 0x1.62e42fee00000p-1, lo = 0x1.a39ef35793c76p-33;
    enum { terms = 14 };
#else
    static const real hi = 0x1.62e4p-1f, lo = 0x1.7f7d1cp-20f;
    enum { terms = 8 };
#endif
    *n = v_round(v_mul(y, v_set1((real)1.4426950408889634)));
    *r = v_fma(*n, v_set1(-lo), v_fma(*n, v_set1(-hi), y));
    v q = v_set1(1);
    UNROLL(i, terms - 1) q = v_fma(q, v_mul(*r, v_set1((real)1 / (terms - i))), v_set1(1));
    return q;
}

/* e^y - 1 for 0 <= y <= 64. */
AF_INLINE v expm1_positive(v y)
{
    v n, r;
    const v q = exp_reduced(y, &n, &r), power = v_scale2(v_set1(1), n);
    return v_fma(v_mul(q, r), power, v_sub(power, v_set1(1)));
}

/* e^(2 x) where that is a normal number. Error: 1.1 ulp. */
AF_INLINE v v_exp_twice(v x)
{
    v n, r;
    const v q = exp_reduced(v_add(x, x), &n, &r);
    return v_scale2(v_fma(q, r, v_set1(1)), n);
}

/* The same in fewer operations, less exact far from 0, where tanh does not show it: an error of 0.8 eps there. */
AF_INLINE v v_exp_twice_fast(v x)
{
    const v c = v_set1((real)2.8853900817779268), y = v_mul(x, c), rest = v_fma(x, c, v_sub(v_zero(), y));
    return v_scale2(exp2_fraction(v_add(v_fraction(y), rest), exp2_terms), y);
}

/* tanh x = e / (e + 2), e = exp(2 |x|) - 1, with the sign of x. Error: 2.7 ulp. */
AF_INLINE v v_tanh(v x)
{
    const v y = v_min(v_set1(32), v_abs(x));
    const v e = expm1_positive(v_add(y, y));
    const v t = v_div(e, v_add(e, v_set1(2)));
    return v_select(vm_gt(v_zero(), x), v_sub(v_zero(), t), t);
}

/* log2 x for positive normal x, +inf for +inf: exponent + log of the mantissa m in [0.7, 1.41] by the series
 * log m = 2 (s + s^3 / 3 + s^5 / 5 ...), s = (m - 1) / (m + 1). */
AF_INLINE v v_log2(v x)
{
    enum { terms = AF_DOUBLE ? 12 : 6 };
    v n = v_exponent(x), m = v_mantissa(x);
    const vm high = vm_gt(m, v_set1((real)1.4142135623730951));
    m = v_select(high, v_mul(m, v_set1((real)0.5)), m);
    n = v_select(high, v_add(n, v_set1(1)), n);
    const v s = v_div(v_sub(m, v_set1(1)), v_add(m, v_set1(1))), s2 = v_mul(s, s);
    v y = v_set1((real)1 / (2 * terms - 1));
    UNROLL(i, terms - 1) y = v_fma(y, s2, v_set1((real)1 / (2 * (terms - 1 - i) - 1)));
    const v value = v_fma(v_mul(s, y), v_set1((real)2.8853900817779268), n);
    const vm finite = vm_gt(v_set1(AF_INFINITY), x);
    return v_select(finite, value, x);
}

#endif
