/* Arrays of every dtype in any layout, and the numbers that fill them. Shared by the programs of this directory. */
#ifndef ARRAY_H
#define ARRAY_H

#include "attnfast.h"

/* A stream of random numbers. */
typedef struct chance {
    uint64_t state;
} chance;

uint64_t next(chance *c);
int64_t between(chance *c, int64_t least, int64_t most); /* both included */
double uniform(chance *c);                               /* in [-1, 1] */
bool one_in(chance *c, int n);

/* What a tensor's elements are: those of af_dtype, and two more. */
typedef enum type { F32, F64, F16, BF16, BYTE, INT64 } type;

/* An array (B, H, I, J) in memory of its own, which ends with it and begins with it or a few elements before. */
typedef struct array {
    type type;
    int64_t B, H, I, J;
    char *memory;
    size_t bytes, mapped;
    int64_t *table;
    af_tensor tensor;
} array;

/* What a layout may be, as a set of bits: axes may be broadcast; rows may lie in columns, their elements apart. */
enum { THIN_B = 1, THIN_H = 2, THIN_I = 4, THIN_J = 8, COLUMNS = 16 };

/* Layouts without gaps: (B, H, I, J), (I, B, H, J), (B, H, J, I), which is C_ORDER where columns are not allowed, and
 * the numbers between, other orders of the first three axes. */
enum { C_ORDER = 0, LENGTH_FIRST = 3, IN_COLUMNS = 6 };

/* The layout `order` if `layout` is NULL; else axes in any order and direction, with gaps, thin or in columns, as
 * chance has it and `may` allows it. Every byte is `fill`. */
array new_array(type t, int64_t B, int64_t H, int64_t I, int64_t J, int may, int order, chance *layout, int fill);
/* Of another type in the layout of an array, in memory of its own. */
array new_array_like(const array *a, type t, int fill);
void free_array(array *a);

int64_t type_bytes(type t);
char *element(const array *a, int64_t b, int64_t h, int64_t i, int64_t j);
double get(const array *a, int64_t b, int64_t h, int64_t i, int64_t j);
void put(array *a, int64_t b, int64_t h, int64_t i, int64_t j, double x); /* rounds to the type */

void fill_array(array *a, double x);

/* Where in (b, h, i, j) two arrays of one shape differ in their bits; false if nowhere. */
bool find_difference(const array *a, const array *b, int64_t at[4]);
/* Whether all memory between the elements is still `fill`. Overwrites the elements. */
bool gaps_untouched(array *a, int fill);

#endif
