/* One query row of a call in double: which keys it sees, scores, weights, and how far off each may be. */
#ifndef PLAIN_ROW_H
#define PLAIN_ROW_H

#include "plain.h"

/* How far apart two computations may be. Any order of a sum of n terms errs by at most about n u times the sum of their
 * sizes, u being half an ulp of 1. A score's error is that of its product of D terms, and a few u of what is added to
 * it. If no score of a row errs by more than e, its lse does not either, and a weight errs by a factor exp(2 e); the
 * sums over n keys add n u of the sum of the sizes of their terms. Constants cover exp, tanh, log and scale. */

typedef struct row {
    const call *call;
    int64_t b, h, i, hk;
    int64_t first_key, keys, position;
    int64_t number; /* of the batch row, or packed sequence */
    bool poisoned, padding;
    bool seen[MOST_KEYS];
    double product[MOST_KEYS], capped[MOST_KEYS], score[MOST_KEYS], error[MOST_KEYS]; /* error: of the score */
    double softmax[MOST_KEYS], softmax_allowed[MOST_KEYS];
    double weight[MOST_KEYS], allowed[MOST_KEYS]; /* the same, times the gaussian */
    double kept[MOST_KEYS];                       /* what dropout multiplies the weight by */
    int64_t count, visible;                       /* of keys that are seen; and with those that the bias hides */
    double worst;                                 /* error of those */
    double lse, lse_allowed;
} row;

/* Half an ulp of 1 in the dtype of sums, and the size below which numbers may vanish. */
double unit(const call *c);
double tiny(const call *c);
double rounded(const call *c, double x); /* on the way into an array */

/* Beyond this, weights say nothing: a bias or distance so large that rounding decides. */
static const double WORST_ERROR = 0.02;

bool poisoned_row(const array *a, int64_t b, int64_t h, int64_t i);
bool has_sink(const row *r);
void find_row(row *r, const call *c, int64_t b, int64_t h, int64_t i);
void find_weights(row *r);

/* Notes an element that is too far off. */
void check(verdict *v, const char *name, const int64_t at[4], double actual, double exact, double allowed);

#endif
