#include "driver/backward_list.h"

#include "driver/describe.h"
#include "driver/passes.h"
#include "kernels.h"

/* The first calls for which there is memory. */
enum { LEAST_LISTED = 4 };

/* A slot's count grows by so much with each panel that is done, and by 1 with each of its units. */
static const int64_t PANEL_DONE = (int64_t)1 << 32;

/* One panel of a call whose heads have several ranges of keys. */
typedef struct panel_unit {
    const af_listed *listed;
    const af_backward *backward;
    af_panel panel;
    af_slot *slot;
    int64_t before; /* what the slot's count is when the panel has it */
} panel_unit;

static panel_unit find_panel(const af_backward_list *list, const af_listed *listed, int64_t n)
{
    const af_backward *w = &listed->schedule.backward;
    const int64_t number = listed->first_panel + n;
    return (panel_unit){.listed = listed,
                        .backward = w,
                        .panel = af_panel_at(&listed->schedule.order, w, n),
                        .slot = &list->slot[number % list->slots],
                        .before = number / list->slots * PANEL_DONE};
}

static void count_unit(const panel_unit *p)
{
    const int64_t units = p->listed->schedule.panel_units;
    const int64_t done = atomic_fetch_add(&p->slot->done, 1) + 1;
    if (done == p->before + units) atomic_store(&p->slot->done, p->before + PANEL_DONE);
}

/* The blocks of rows [first, end) of a panel, each as a unit of a kernel. */
typedef struct block_run {
    int64_t first, end;
} block_run;

static block_run blocks_of_unit(const panel_unit *p, int64_t index, int64_t most_rows)
{
    const int64_t rows = p->backward->plan.block_rows, blocks = (p->panel.unit.rows + rows - 1) / rows;
    const int64_t most = af_blocks_of_rows(p->backward, most_rows);
    return (block_run){af_min(blocks, index * most), af_min(blocks, (index + 1) * most)};
}

static af_unit unit_of_block(const af_backward *w, af_unit panel, int64_t block)
{
    const int64_t rows = w->plan.block_rows, before = block * rows;
    panel.rows = (int)af_min(rows, panel.rows - before);
    panel.row += before;
    return panel;
}

static void open_unit(const panel_unit *p, int64_t index, void *scratch)
{
    const af_backward *w = p->backward;
    const block_run blocks = blocks_of_unit(p, index, AF_OPEN_ROWS);
    af_wait_for(&p->slot->done, p->before);
    for (int64_t g = blocks.first; g < blocks.end; g++)
        w->plan.kernels->backward_open(w, unit_of_block(w, p->panel.unit, g), p->slot->panel, scratch);
    count_unit(p);
}

/* Counts of a stream's panels: of each range of keys those that have added to it, or come before the last that did.
 * Where panels share sums but not all ranges, one counts all units. */
static _Atomic int64_t *turns_of_stream(const panel_unit *p)
{
    return p->listed->turns + p->panel.stream * (p->backward->ranges + 1);
}

static bool counts_units(const panel_unit *p)
{
    return af_share_sums(&p->listed->schedule.order) && p->backward->parts < p->backward->ranges;
}

/* Waits until all earlier panels of the stream that add to a range have done so. */
static void wait_for_range(const panel_unit *p, int64_t range)
{
    const af_backward *w = p->backward;
    const af_unit unit = p->panel.unit;
    _Atomic int64_t *turns = turns_of_stream(p);
    if (counts_units(p)) {
        af_wait_for(turns, p->panel.turn * w->parts);
        return;
    }
    if (p->panel.turn == 0) return;
    if (unit.row > 0) {
        const af_interval seen = af_seen_ranges(w, unit.b, unit.row - w->panel_rows, w->panel_rows);
        if (w->parts < w->ranges && (range < seen.begin || range >= seen.end)) return; /* nor do those before it */
    }
    af_wait_for(turns + range, p->panel.turn);
}

static void range_unit(const panel_unit *p, int64_t index, void *scratch)
{
    const af_backward *w = p->backward;
    af_unit unit = p->panel.unit;
    const af_interval seen =
        w->parts < w->ranges ? af_seen_ranges(w, unit.b, unit.row, unit.rows) : (af_interval){0, w->ranges};
    const int64_t range = seen.begin + index;
    const bool any = range < seen.end;
    unit.split = any ? range : w->ranges; /* no keys */
    af_wait_for(&p->slot->done, p->before + p->listed->schedule.open_units);
    if (any || counts_units(p)) wait_for_range(p, range);
    w->plan.kernels->backward(w, unit, (af_unit){0}, p->slot->panel, p->slot->parts + (size_t)index * w->part_bytes,
                              scratch);
    if (counts_units(p)) atomic_fetch_add(turns_of_stream(p), 1);
    else if (any) atomic_store(turns_of_stream(p) + range, p->panel.turn + 1);
    count_unit(p);
}

static void finish_unit(const panel_unit *p, int64_t index)
{
    const af_backward *w = p->backward;
    const af_backward_schedule *s = &p->listed->schedule;
    const block_run blocks = blocks_of_unit(p, index, AF_FINISH_ROWS);
    const bool ordered = af_share_sums(&s->order);
    af_wait_for(&p->slot->done, p->before + s->open_units + w->parts);
    if (ordered) af_wait_for(turns_of_stream(p) + w->ranges, p->panel.turn * s->finish_units);
    for (int64_t g = blocks.first; g < blocks.end; g++)
        w->plan.kernels->backward_finish(w, unit_of_block(w, p->panel.unit, g), p->slot->parts);
    if (ordered) atomic_fetch_add(turns_of_stream(p) + w->ranges, 1);
    count_unit(p);
}

/* Panels of calls with several ranges come in rounds, one for each slot: first all are opened, then all ranges, then
 * dQ. So each unit finds that what it waits for is done, or nearly so. */
static void slot_unit(const af_backward_list *list, const af_listed *listed, int64_t index, void *scratch)
{
    const af_backward_schedule *s = &listed->schedule;
    const int64_t round = index / (list->slots * s->panel_units), first = round * list->slots;
    const int64_t panels = af_min(list->slots, s->panels - first);
    const int64_t opens = panels * s->open_units, ranges = panels * s->backward.parts;
    index -= first * s->panel_units;
    if (index < opens) {
        const panel_unit p = find_panel(list, listed, first + index / s->open_units);
        open_unit(&p, index % s->open_units, scratch);
    } else if (index < opens + ranges) {
        index -= opens;
        const panel_unit p = find_panel(list, listed, first + index / s->backward.parts);
        range_unit(&p, index % s->backward.parts, scratch);
    } else {
        index -= opens + ranges;
        const panel_unit p = find_panel(list, listed, first + index / s->finish_units);
        finish_unit(&p, index % s->finish_units);
    }
}

/* Everything of a panel with at most one range; the panel and the part are at the end of its scratch memory. */
static void whole_unit(const af_backward_list *list, const af_listed *listed, int64_t n, void *scratch)
{
    const af_backward_schedule *s = &listed->schedule;
    const af_backward *w = &s->backward;
    const af_kernels *kernels = w->plan.kernels;
    const af_panel panel = af_panel_at(&s->order, w, n);
    char *memory = (char *)scratch + kernels->backward_bytes(w), *part = memory + w->panel_bytes;
    const int64_t blocks = (panel.unit.rows + w->plan.block_rows - 1) / w->plan.block_rows;
    for (int64_t g = 0; g < blocks; g++) kernels->backward_open(w, unit_of_block(w, panel.unit, g), memory, scratch);
    if (w->ranges == 0 || w->call->subset.collects) return;
    const bool more = n + list->ahead < s->panels;
    const af_unit next = more ? af_panel_at(&s->order, w, n + list->ahead).unit : (af_unit){0};
    _Atomic int64_t *turns = listed->turns + panel.stream;
    af_wait_for(turns, panel.turn);
    kernels->backward(w, panel.unit, next, memory, part, scratch);
    for (int64_t g = 0; g < blocks; g++) kernels->backward_finish(w, unit_of_block(w, panel.unit, g), part);
    atomic_store(turns, panel.turn + 1);
}

static void listed_unit(void *context, int64_t index, void *scratch)
{
    const af_backward_list *list = context;
    int64_t low = 0, high = list->count - 1; /* the first whose end is beyond the unit */
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (list->listed[middle]->end > index) high = middle;
        else low = middle + 1;
    }
    const af_listed *listed = list->listed[low];
    if (low) index -= list->listed[low - 1]->end;
    if (listed->schedule.backward.ranges <= 1) whole_unit(list, listed, index, scratch);
    else slot_unit(list, listed, index, scratch);
}

/* Counters of a call's streams, all 0. */
static bool take_turns(af_listed *listed, af_arena *arena)
{
    const af_backward *w = &listed->schedule.backward;
    const int64_t counts = af_streams(&listed->schedule.order) * (w->ranges > 1 ? w->ranges + 1 : 1);
    listed->turns = af_take(arena, counts, sizeof *listed->turns);
    for (int64_t n = 0; listed->turns && n < counts; n++) atomic_init(&listed->turns[n], 0);
    return listed->turns != NULL;
}

/* Slots from `memory` on. */
static bool take_slots(af_backward_list *list, char *memory, af_arena *arena)
{
    list->slot = af_take(arena, list->slots, sizeof *list->slot);
    char *panels = memory, *parts = panels + (size_t)list->slots * list->panel_bytes;
    if (!list->slot) return false;
    for (int64_t n = 0; n < list->slots; n++) {
        atomic_init(&list->slot[n].done, 0);
        list->slot[n].panel = panels + (size_t)n * list->panel_bytes;
        list->slot[n].parts = parts + (size_t)n * list->parts_bytes;
    }
    return true;
}

static size_t larger(size_t a, size_t b) { return a < b ? b : a; }

/* Pure: the threads of all calls, the share of units that one takes, and what depends on the number of threads. */
static void share_calls(af_backward_list *list, af_work *work)
{
    double flops = 0;
    int64_t panels = 0;
    for (int64_t n = 0; n < list->count; n++) flops += list->listed[n]->schedule.flops;
    list->threads = af_threads_for(list->run->threads, work->count, af_worth_threads(flops));
    list->scratch_bytes = list->panel_bytes = list->parts_bytes = 0;
    list->slots = 0;
    for (int64_t n = 0; n < list->count; n++) {
        af_listed *listed = list->listed[n];
        af_backward_schedule *s = &listed->schedule;
        const af_backward *w = &s->backward;
        af_share_schedule(s, list->threads);
        list->scratch_bytes = larger(list->scratch_bytes, s->scratch_bytes);
        if (w->ranges <= 1) continue;
        listed->first_panel = panels;
        panels += s->panels;
        list->slots = af_max(list->slots, s->slots);
        list->panel_bytes = larger(list->panel_bytes, w->panel_bytes);
        list->parts_bytes = larger(list->parts_bytes, (size_t)w->parts * w->part_bytes);
    }
    if (list->slots)
        list->slots = af_min(list->slots, af_panels_that_fit(list->panel_bytes + list->parts_bytes, list->threads));
    work->share = list->slots ? 1 : af_share_of(flops, work->count);
    list->ahead = work->share > 1 ? 1 : list->threads;
}

static bool take_memory(af_backward_list *list, af_arena *arena, af_work *work)
{
    for (int64_t n = 0; n < list->count; n++)
        if (!af_take_sums(&list->listed[n]->schedule, arena) || !take_turns(list->listed[n], arena)) return false;
    const size_t of_threads = (size_t)list->threads * list->scratch_bytes;
    work->scratch_bytes = list->scratch_bytes;
    work->scratch = af_take_pages(arena, of_threads + (size_t)list->slots * (list->panel_bytes + list->parts_bytes));
    return work->scratch && (list->slots == 0 || take_slots(list, work->scratch + of_threads, arena));
}

static void describe_list(const af_backward_list *list)
{
    double memory = (double)list->threads * (double)list->scratch_bytes;
    memory += (double)list->slots * (double)(list->panel_bytes + list->parts_bytes);
    for (int64_t n = 0; n < list->count; n++) memory += af_sums_memory(&list->listed[n]->schedule);
    af_describe_loop(list->report, list->threads, memory);
}

static af_status run_list(af_backward_list *list, af_work *work)
{
    af_arena arena = {0};
    af_status status = AF_NO_MEMORY;
    if (take_memory(list, &arena, work)) {
        status = af_run_work(work, list->watch, list->threads);
        for (int64_t n = 0; n < list->count && status == AF_OK; n++) af_add_sums(&list->listed[n]->schedule);
    }
    af_give_back(&arena);
    return status;
}

af_status af_flush_backward_list(af_backward_list *list)
{
    if (!list->count) return AF_OK;
    af_work work = {.unit = listed_unit, .context = list, .count = list->listed[list->count - 1]->end};
    af_status status = AF_OK;
    share_calls(list, &work);
    if (list->report) describe_list(list);
    else status = run_list(list, &work);
    list->count = 0;
    return status;
}

void af_open_backward_list(af_backward_list *list, const af_run *run, af_watch *watch, af_arena *arena)
{
    *list = (af_backward_list){.run = run, .watch = watch, .arena = arena};
}

/* Memory for as many calls again as there is memory for. */
static bool grow(af_backward_list *list)
{
    const int64_t more = af_min(af_max(LEAST_LISTED, list->room), AF_LISTED_CALLS - list->room);
    af_listed *calls = af_take(list->arena, more, sizeof *calls);
    if (!calls) return false;
    for (int64_t n = 0; n < more; n++) list->listed[list->room++] = calls + n;
    return true;
}

af_status af_list_backward(af_backward_list *list, const af_call *call)
{
    if (list->count == list->room && !grow(list)) return AF_NO_MEMORY;
    af_listed *next = list->listed[list->count];
    *next = (af_listed){.call = *call};
    af_schedule_backward(&next->schedule, &next->call, list->run);
    next->end = (list->count ? list->listed[list->count - 1]->end : 0) + next->schedule.units;
    return ++list->count == AF_LISTED_CALLS ? af_flush_backward_list(list) : AF_OK;
}
