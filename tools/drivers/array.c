#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "array.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

uint64_t next(chance *c) /* splitmix64 */
{
    uint64_t x = c->state += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

int64_t between(chance *c, int64_t least, int64_t most)
{
    return least + (int64_t)(next(c) % (uint64_t)(most - least + 1));
}

double uniform(chance *c) { return (double)(int64_t)next(c) * 0x1p-63; }

bool one_in(chance *c, int n) { return next(c) % (uint64_t)n == 0; }

int64_t type_bytes(type t) { return t == BYTE ? 1 : t == F32 ? 4 : t == F64 || t == INT64 ? 8 : 2; }

/* Strides from the innermost axis outwards. In columns I is the innermost axis, and J takes its place among the others.
 * Returns how many elements. */
static int64_t lay_out(array *a, int may, int order, chance *layout)
{
    static const int orders[6][3] = {{2, 1, 0}, {2, 0, 1}, {1, 2, 0}, {1, 0, 2}, {0, 2, 1}, {0, 1, 2}};
    const bool columns = (may & COLUMNS) && (layout ? one_in(layout, 4) : order == IN_COLUMNS);
    const int64_t inner = columns ? a->I : a->J, n[3] = {a->B, a->H, columns ? a->J : a->I};
    const int *axes = orders[layout ? next(layout) % 6 : (uint64_t)order % 6];
    const bool flat = layout && (may & THIN_J) && one_in(layout, 4);
    int64_t stride[3] = {0}, extent = (flat ? 1 : inner) + (layout && one_in(layout, 2) ? between(layout, 0, 9) : 0);
    int64_t last = flat ? 0 : inner - 1;
    for (int k = 0; k < 3; k++) {
        const int axis = axes[k];
        if (layout && (may >> axis & 1) && one_in(layout, 4)) continue;
        stride[axis] = extent > 0 ? extent : 1;
        last += (n[axis] - 1) * stride[axis];
        extent = stride[axis] * n[axis] + (layout && one_in(layout, 4) ? between(layout, 0, 5) : 0);
    }
    a->tensor.b = stride[0];
    a->tensor.h = stride[1];
    a->tensor.i = columns ? 1 : stride[2];
    a->tensor.j = columns ? stride[2] : flat ? 0 : 1;
    return a->B && a->H && a->I && a->J ? last + 1 : 0;
}

/* Lets an axis of the tensor run the other way. */
static int64_t reverse(int64_t *stride, int64_t n)
{
    const int64_t first = (n - 1) * *stride;
    *stride = -*stride;
    return first;
}

/* Memory that ends at a page without any permission: what a sanitizer does not see, an intrinsic for masked loads say,
 * is stopped there. Of `mapped` bytes; 0: from malloc. */
static char *fenced(size_t bytes, size_t *mapped)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), inside = (bytes + page - 1) / page * page;
    char *base = mmap(NULL, inside + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED || mprotect(base + inside, page, PROT_NONE)) abort();
    *mapped = inside + page;
    return base + inside - bytes;
}

array new_array(type t, int64_t B, int64_t H, int64_t I, int64_t J, int may, int order, chance *layout, int fill)
{
    array a = {.type = t, .B = B, .H = H, .I = I, .J = J};
    const int64_t count = lay_out(&a, may, order, layout), size = type_bytes(t);
    /* Only the end is flush where something comes before, which also moves it off the alignment of malloc. */
    const int64_t before = layout && one_in(layout, 2) ? between(layout, 0, 7) : 0;
    int64_t first = before;
    if (layout && count && one_in(layout, 4)) first += reverse(&a.tensor.b, B);
    if (layout && count && one_in(layout, 4)) first += reverse(&a.tensor.h, H);
    if (layout && count && one_in(layout, 4)) first += reverse(&a.tensor.i, I);
    if (layout && count && (may & COLUMNS) && a.tensor.j != 1 && one_in(layout, 4)) first += reverse(&a.tensor.j, J);
    a.bytes = (size_t)((before + count) * size);
    a.memory = layout && one_in(layout, 2) ? fenced(a.bytes, &a.mapped) : malloc(a.bytes);
    memset(a.memory, fill, a.bytes);
    a.tensor.data = a.memory + first * size;
    if (layout && one_in(layout, 4)) { /* batch rows that no stride describes, here in steps of 1, -1, ... from 0 */
        a.table = malloc((size_t)B * sizeof *a.table);
        for (int64_t b = 0; b < B; b++) a.table[b] = (b % 2 ? B - 1 - b / 2 : b / 2) * a.tensor.b;
        a.tensor.batch = a.table;
    }
    return a;
}

array new_array_like(const array *a, type t, int fill)
{
    const int64_t size = type_bytes(a->type), count = (int64_t)a->bytes / size;
    const int64_t first = ((char *)a->tensor.data - a->memory) / size;
    array other = *a;
    other.type = t;
    other.mapped = 0;
    other.bytes = (size_t)(count * type_bytes(t));
    other.memory = a->mapped ? fenced(other.bytes, &other.mapped) : malloc(other.bytes);
    memset(other.memory, fill, other.bytes);
    other.tensor.data = other.memory + first * type_bytes(t);
    if (a->table) {
        other.table = malloc((size_t)a->B * sizeof *a->table);
        memcpy(other.table, a->table, (size_t)a->B * sizeof *a->table);
        other.tensor.batch = other.table;
    }
    return other;
}

void free_array(array *a)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (a->mapped) munmap(a->memory + a->bytes - (a->mapped - page), a->mapped);
    else free(a->memory);
    free(a->table);
    *a = (array){0};
}

char *element(const array *a, int64_t b, int64_t h, int64_t i, int64_t j)
{
    const af_tensor *t = &a->tensor;
    const int64_t at = (t->batch ? t->batch[b] : b * t->b) + h * t->h + i * t->i + j * t->j;
    return (char *)t->data + at * type_bytes(a->type);
}

double get(const array *a, int64_t b, int64_t h, int64_t i, int64_t j)
{
    const char *p = element(a, b, h, i, j);
    switch (a->type) {
    case F32:
        return *(const float *)p;
    case F64:
        return *(const double *)p;
    case F16:
        return *(const _Float16 *)p;
    case BYTE:
        return *(const uint8_t *)p;
    case INT64:
        return (double)*(const int64_t *)p;
    case BF16:
        break;
    }
    uint32_t bits = (uint32_t)*(const uint16_t *)p << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static uint16_t to_bfloat16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void put(array *a, int64_t b, int64_t h, int64_t i, int64_t j, double x)
{
    char *p = element(a, b, h, i, j);
    switch (a->type) {
    case F32:
        *(float *)p = (float)x;
        break;
    case F64:
        *(double *)p = x;
        break;
    case F16:
        *(_Float16 *)p = (_Float16)x;
        break;
    case BF16:
        *(uint16_t *)p = to_bfloat16((float)x);
        break;
    case BYTE:
        *(uint8_t *)p = (uint8_t)x;
        break;
    case INT64:
        *(int64_t *)p = (int64_t)x;
        break;
    }
}

#define EACH_ELEMENT(a)                                                                                                \
    for (int64_t b = 0; b < (a)->B; b++)                                                                               \
        for (int64_t h = 0; h < (a)->H; h++)                                                                           \
            for (int64_t i = 0; i < (a)->I; i++)                                                                       \
                for (int64_t j = 0; j < (a)->J; j++)

void fill_array(array *a, double x) { EACH_ELEMENT(a) put(a, b, h, i, j, x); }

bool find_difference(const array *a, const array *other, int64_t at[4])
{
    const size_t size = (size_t)type_bytes(a->type);
    EACH_ELEMENT(a)
    {
        if (memcmp(element(a, b, h, i, j), element(other, b, h, i, j), size) == 0) continue;
        memcpy(at, (int64_t[]){b, h, i, j}, 4 * sizeof *at);
        return true;
    }
    return false;
}

bool gaps_untouched(array *a, int fill)
{
    EACH_ELEMENT(a) memset(element(a, b, h, i, j), fill, (size_t)type_bytes(a->type));
    for (size_t k = 0; k < a->bytes; k++)
        if ((unsigned char)a->memory[k] != (unsigned char)fill) return false;
    return true;
}
