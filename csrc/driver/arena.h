/* Memory of a call that is given back all at once. */
#ifndef AF_ARENA_H
#define AF_ARENA_H

#include <stddef.h>
#include <stdint.h>

typedef struct af_arena {
    void *last; /* each piece of memory begins with the address of the one before */
    void *pages;
    size_t page_bytes;
} af_arena;

/* `count` elements of `size` bytes, aligned to cache lines; NULL if there is too little memory or the product
 * overflows. */
void *af_take(af_arena *arena, int64_t count, size_t size);

/* The same for bytes that may be many: the first such piece has large pages where the system has them, as every page is
 * cleared before it is used. */
void *af_take_pages(af_arena *arena, size_t size);

void af_give_back(af_arena *arena);

#endif
