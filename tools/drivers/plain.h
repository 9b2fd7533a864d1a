/* What a call means, computed plainly in double from csrc/attnfast.h alone, and whether results are near enough. */
#ifndef PLAIN_H
#define PLAIN_H

#include "call.h"

enum { MOST_KEYS = 1024, MOST_WIDTH = 256 }; /* of what is judged */

/* The first element that is too far from what it should be. */
typedef struct verdict {
    const char *result; /* NULL: none */
    int64_t b, h, i, j;
    double actual, exact, allowed;
    int64_t judged, skipped; /* rows; skipped are those that see overflow or NaN, or scores that rounding decides */
    int64_t visible;         /* pairs */
} verdict;

verdict judge(const call *c, const results *r);

#endif
