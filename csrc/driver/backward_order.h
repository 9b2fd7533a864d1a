/* The order in which gradients of the panels of a call are begun. Heads that add to the same gradient are a stream:
 * what they add is added in their order, for the same bits however many threads there are. Streams take turns, some at
 * a time, so that threads find units that wait for nothing. */
#ifndef AF_BACKWARD_ORDER_H
#define AF_BACKWARD_ORDER_H

#include "plan/backward.h"

typedef struct af_panel_order {
    int64_t batch_streams, head_streams;     /* streams are numbered by both */
    int64_t batch_positions, head_positions; /* heads of a stream */
    int64_t panels;                          /* of a head */
    int64_t together;                        /* streams that take turns */
} af_panel_order;

/* A panel of a head: its stream, and its place among the panels of the stream. */
typedef struct af_panel {
    af_unit unit;
    int64_t stream, turn;
} af_panel;

/* `together` streams take turns, if there are as many. */
af_panel_order af_order_panels(const af_backward *backward, int64_t together);

int64_t af_streams(const af_panel_order *order);
int64_t af_panels(const af_panel_order *order);

/* Whether heads share a stream. */
bool af_share_sums(const af_panel_order *order);

af_panel af_panel_at(const af_panel_order *order, const af_backward *backward, int64_t n);

#endif
