/* Windows about centers: queries are taken in the order of their centers, so that the windows of a block overlap. */
#ifndef AF_QUERY_ORDER_H
#define AF_QUERY_ORDER_H

#include "driver/arena.h"
#include "plan/call.h"
#include "runtime/parallel.h"

/* Sets the order of a call's queries, unless their centers rise already. */
af_status af_order_by_centers(af_call *call, af_watch *watch, af_arena *arena);

#endif
