/* The gradients of a call, added up row by row. */
#ifndef PLAIN_GRADIENTS_H
#define PLAIN_GRADIENTS_H

#include "plain_row.h"

/* Sums over pairs and what bounds their errors, for each element in the memory of a gradient. */
typedef struct sums {
    const array *of; /* NULL: not wanted */
    double *exact, *allowed, *size, *count;
} sums;

typedef struct gradient_sums {
    const call *call;
    sums of[RESULTS]; /* from FIRST_GRADIENT on */
} gradient_sums;

void open_gradients(gradient_sums *g, const call *c, const results *res);
/* Of a row with its weights; of one that is skipped, nothing is known of what it adds to. */
void add_gradients(gradient_sums *g, const row *r, bool skipped);
/* Compares, and gives the memory back. */
void close_gradients(verdict *v, gradient_sums *g);

#endif
