/* The largest scores of a row, in time that depends on the sizes only. */
#ifndef AF_SELECT_H
#define AF_SELECT_H

#include "plan/call.h"
#include "runtime/parallel.h"

/* A key, and the bits of its score as a number that falls as scores rise. NaN counts as +inf. */
typedef struct af_ranked {
    uint64_t rank;
    int64_t key;
} af_ranked;

typedef struct af_selection {
    const void *scores; /* [n] reals */
    af_dtype dtype;     /* AF_F32 or AF_F64 */
    int64_t n, k;
    af_ranked *entries, *spare; /* [af_selection_room(k)] each */
    af_watch *watch;            /* checked about every millisecond; or NULL */
} af_selection;

int64_t af_selection_room(int64_t k);

/* The min(k, n) largest in falling order, equal ones in the order of their keys. They are in `*chosen`, which becomes
 * entries or spare. */
af_status af_select(const af_selection *s, const af_ranked **chosen);

#endif
