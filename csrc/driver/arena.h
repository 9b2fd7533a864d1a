/* Memory of a call that is given back all at once. */
#ifndef AF_ARENA_H
#define AF_ARENA_H

#include <stddef.h>
#include <stdint.h>

typedef struct af_arena {
    void *last; /* each piece of memory begins with the address of the one before */
} af_arena;

/* `count` elements of `size` bytes, aligned to cache lines; NULL if there is too little memory or the product
 * overflows. */
void *af_take(af_arena *arena, int64_t count, size_t size);

void af_give_back(af_arena *arena);

#endif
