#include "driver/arena.h"

#include <stdlib.h>

enum { CACHE_LINE = 64 };

void *af_take(af_arena *arena, int64_t count, size_t size)
{
    if (count < 0 || (double)count * (double)size > 0x1p60) return NULL;
    void **memory = malloc((size_t)count * size + sizeof(void *) + CACHE_LINE);
    if (!memory) return NULL;
    *memory = arena->last;
    arena->last = memory;
    return (void *)(((uintptr_t)(memory + 1) + CACHE_LINE - 1) & ~(uintptr_t)(CACHE_LINE - 1));
}

void af_give_back(af_arena *arena)
{
    while (arena->last) {
        void **memory = arena->last;
        arena->last = *memory;
        free(memory);
    }
}
