#include "runtime/dispatch.h"

#include <stdatomic.h>
#include <string.h>

#include "af_variants.h" /* written by the build: AF_VARIANTS(X) is X(dtype, isa) ..., best first */
#include "runtime/cpu.h"

#define DECLARE(dtype, isa) extern const af_kernels AF_TABLE(dtype, isa);
#define ADDRESS(dtype, isa) &AF_TABLE(dtype, isa),
AF_VARIANTS(DECLARE)
static const af_kernels *const tables[] = {AF_VARIANTS(ADDRESS)};
enum { TABLES = sizeof tables / sizeof *tables };

static _Atomic(const char *) cap; /* NULL: none; else the name in a table */

static bool runs_here(const af_kernels *table) { return (table->needs & ~af_cpu_features()) == 0; }

const af_kernels *af_kernels_for(af_dtype dtype)
{
    const char *limit = atomic_load_explicit(&cap, memory_order_relaxed);
    int i = 0;
    if (limit)
        while (strcmp(tables[i]->isa, limit) != 0) i++;
    while (tables[i]->dtype != dtype || !runs_here(tables[i])) i++; /* the last tables run anywhere */
    return tables[i];
}

const af_byte_kernels *af_byte_kernels_here(void)
{
    const af_kernels *table = af_kernels_for(AF_F32);
    return table->bytes_by_table && af_cpu_uses(AF_CPU_LOOKS_UP) ? table->bytes_by_table : table->bytes;
}

const char *af_isa(int index)
{
    for (int i = 0; i < TABLES; i++) {
        const bool repeated = i > 0 && strcmp(tables[i]->isa, tables[i - 1]->isa) == 0;
        if (!repeated && runs_here(tables[i]) && index-- == 0) return tables[i]->isa;
    }
    return NULL;
}

bool af_cap_isa(const char *name)
{
    const char *known = NULL;
    for (int i = 0; name && (known = af_isa(i)) && strcmp(known, name) != 0; i++) {}
    if (name && !known) return false;
    atomic_store_explicit(&cap, known, memory_order_relaxed);
    return true;
}

const char *af_isa_in_use(af_dtype dtype) { return af_kernels_for(dtype)->isa; }
