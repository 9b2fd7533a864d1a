#include "driver/backward_order.h"

#include "plan/intervals.h"

/* Whether several batch rows add to the same elements. */
static bool repeats(const af_tensor *t, int64_t batch) { return t->data && batch > 1 && (t->batch || t->b == 0); }

af_panel_order af_order_panels(const af_backward *w, int64_t together)
{
    const af_call *call = w->call;
    const af_gradients *g = w->gradients;
    const bool batch = repeats(&g->query, call->B) || repeats(&g->key, call->B) || repeats(&g->value, call->B) ||
                       repeats(&g->bias, call->B);
    af_panel_order order = {.batch_streams = call->B, .head_streams = w->plan.head_groups};
    if (batch)
        order.batch_streams = af_max(1, call->subset.classes); /* classes of one batch row have no sum in common */
    if (w->plan.group != call->H / call->Hk) order.head_streams = call->Hk; /* heads that share keys */
    if (g->bias.data && g->bias.h == 0) order.head_streams = 1;
    order.batch_positions = call->B / order.batch_streams;
    order.head_positions = w->plan.head_groups / order.head_streams;
    order.panels = (w->plan.rows + w->panel_rows - 1) / w->panel_rows;
    order.together = af_max(1, af_min(together, af_streams(&order)));
    return order;
}

int64_t af_streams(const af_panel_order *order) { return order->batch_streams * order->head_streams; }

static int64_t panels_of_stream(const af_panel_order *order)
{
    return order->batch_positions * order->head_positions * order->panels;
}

int64_t af_panels(const af_panel_order *order) { return af_streams(order) * panels_of_stream(order); }

bool af_share_sums(const af_panel_order *order) { return order->batch_positions * order->head_positions > 1; }

af_panel af_panel_at(const af_panel_order *order, const af_backward *w, int64_t n)
{
    const int64_t turns = panels_of_stream(order), first = n / (order->together * turns) * order->together;
    const int64_t taking = af_min(order->together, af_streams(order) - first);
    n -= first * turns;
    af_panel panel = {.stream = first + n % taking, .turn = n / taking};
    const int64_t position = panel.turn / order->panels, row = panel.turn % order->panels * w->panel_rows;
    panel.unit.b = position / order->head_positions * order->batch_streams + panel.stream / order->head_streams;
    panel.unit.hg = panel.stream % order->head_streams * order->head_positions + position % order->head_positions;
    panel.unit.row = row;
    panel.unit.rows = (int)af_min(w->panel_rows, w->plan.rows - row);
    return panel;
}
