#include "driver/describe.h"

#include <assert.h>

#include "driver/local.h"
#include "driver/passes.h"
#include "driver/topk.h"
#include "kernels.h"
#include "plan/legal.h"
#include "plan/visibility.h"
#include "runtime/dispatch.h"

typedef struct count {
    const af_call *call;
    const af_plan *plan;
    af_report *report;
    af_rectangle *rectangles;
    int64_t room;
    af_watch *watch;
    unsigned pieces;
    bool
        by_keys; /* gradients: keys in blocks that begin at multiples of the plan's, and not where rows see the first */
} count;

/* How many of some keys row r sees under its row of the mask. */
static int64_t seen_by_mask(const af_call *call, const af_visibility *vis, int r, af_interval keys)
{
    const af_tensor *t = &call->visible.mask;
    const uint8_t *row = (const uint8_t *)t->data + af_offset(t, vis->b, vis->head[r], vis->query[r]);
    int64_t seen = 0;
    for (int64_t j = keys.begin; j < keys.end; j++) seen += row[j * t->j] != 0;
    return seen;
}

/* How many of some keys row r sees under its row of the block mask. */
static int64_t seen_by_blocks(const af_call *call, const af_visibility *vis, int r, af_interval keys)
{
    const af_tensor *t = &call->visible.blocks;
    const uint8_t *row = t->data;
    row += af_offset(t, vis->b, vis->head[r], af_block_of_query(call, vis->b, vis->query[r]));
    int64_t seen = 0;
    for (int64_t j = keys.begin, end; j < keys.end; j = end) {
        const int64_t column = af_block_of_key(call, vis->b, j);
        end = af_min(keys.end, af_block_end(call, vis->b, column));
        if (row[column * t->j]) seen += end - j;
    }
    return seen;
}

/* Pairs of rows [first, last) with keys [j0, j1) that may attend. */
static int64_t visible_in(const af_call *call, const af_visibility *vis, int first, int last, int64_t j0, int64_t j1)
{
    const bool mask = call->visible.mask.data, blocks = call->visible.blocks.data;
    const bool pattern = call->subset.global || call->subset.key_position || (mask && blocks);
    int64_t seen = 0;
    for (int r = first; r < last; r++) {
        const af_interval keys = af_intersect(vis->visible[r], (af_interval){j0, j1});
        if (pattern) {
            for (int64_t j = keys.begin; j < keys.end; j++) seen += af_pair_is_visible(call, vis, r, j);
        } else if (mask) seen += seen_by_mask(call, vis, r, keys);
        else if (blocks) seen += seen_by_blocks(call, vis, r, keys);
        else seen += keys.end - keys.begin;
    }
    return seen;
}

/* Adds a rectangle, in the numbers of the whole call. */
static void add_rectangle(count *c, af_rectangle r)
{
    const af_subset *s = &c->call->subset;
    if (r.first_key == r.end_key) return;
    r.step = 1;
    if (s->class_step) {
        r.step = s->class_step;
        r.first_query = s->class_query[r.b] + r.first_query * r.step;
        r.end_query = s->class_query[r.b] + (r.end_query - 1) * r.step + 1;
        r.first_key = s->class_key[r.b] + r.first_key * r.step;
        r.end_key = s->class_key[r.b] + (r.end_key - 1) * r.step + 1;
        r.b /= s->classes;
    }
    r.b += s->first_b;
    r.hk += s->first_hk;
    if (c->report->rectangles < c->room) c->rectangles[c->report->rectangles] = r;
    c->report->rectangles++;
}

/* The first of rows [r, last) whose query does not follow the one before. */
static int end_of_queries(const af_visibility *vis, int r, int last)
{
    for (r++; r < last; r++)
        if (vis->query[r] != vis->query[r - 1] && vis->query[r] != vis->query[r - 1] + 1) break;
    return r;
}

static int64_t end_of_keys(const int64_t *position, int64_t j, int64_t end)
{
    if (!position) return end;
    for (j++; j < end; j++)
        if (position[j] != position[j - 1] + 1) break;
    return j;
}

/* Adds a piece whose queries, or keys, do not follow one another: a rectangle for each pair of runs that do. */
static void add_runs(count *c, const af_visibility *vis, int first, int last, int64_t j0, int64_t j1)
{
    const int64_t *position = c->call->subset.key_position;
    for (int r = first, next; r < last; r = next) {
        next = end_of_queries(vis, r, last);
        for (int64_t j = j0, end; j < j1; j = end) {
            end = end_of_keys(position, j, j1);
            af_rectangle own = {.b = vis->b, .hk = vis->hk};
            own.first_query = vis->query[r];
            own.end_query = vis->query[next - 1] + 1;
            own.first_key = position ? position[j] : j;
            own.end_key = position ? position[end - 1] + 1 : end;
            add_rectangle(c, own);
        }
    }
}

/* Keys of which a kernel makes pieces, one part of those that rows see after the other. */
static af_interval part_of_keys(const count *c, const af_visibility *vis, int64_t part)
{
    if (!c->by_keys) return af_split(vis->span, part, c->plan->split_keys);
    return af_intersect(vis->span, af_split((af_interval){0, c->call->Lk}, part, c->plan->key_block));
}

/* Goes through the pieces of keys as kernel/forward.h, kernel/decode.h and kernel/backward.h do. */
static af_status count_block(count *c, af_unit unit)
{
    const af_plan *plan = c->plan;
    const int vector_rows = plan->decode ? AF_MAX_ROWS : plan->kernels->vl;
    af_rectangle wide = {.b = unit.b};
    af_visibility vis;
    if (af_check_signals(c->watch) == AF_INTERRUPTED) return AF_INTERRUPTED; /* a block may have no piece */
    af_find_visibility(&vis, c->call, plan, unit, vector_rows);
    wide.hk = vis.hk;
    const int64_t key_block = plan->key_block, key_blocks = (c->call->Lk + key_block - 1) / key_block;
    const int64_t first_part = c->by_keys ? vis.span.begin / key_block : 0;
    for (int64_t part = first_part; part < (c->by_keys ? key_blocks : plan->splits); part++) {
        const af_interval span = part_of_keys(c, &vis, part);
        if (c->by_keys && span.begin == span.end) break;
        for (int64_t j = span.begin, n; j < span.end; j += n) {
            const af_piece piece = af_next_piece(&vis, c->call, span, j, key_block);
            n = piece.keys;
            if (++c->pieces % 64 == 0 && af_check_signals(c->watch) == AF_INTERRUPTED) return AF_INTERRUPTED;
            const int first = piece.first * vector_rows, last = (int)af_min(vis.n, piece.last * vector_rows);
            const int64_t seen = first < last ? visible_in(c->call, &vis, first, last, j, j + n) : 0;
            c->report->visible_pairs += seen;
            if (first >= last || (!seen && !plan->decode)) continue;
            c->report->visited_pairs += n * (last - first);
            if (c->call->subset.query_order.data || c->call->subset.key_position) {
                add_runs(c, &vis, first, last, j, j + n);
                continue;
            }
            const int64_t i = vis.query[first], end = vis.query[last - 1] + 1;
            if (wide.end_key != j || wide.first_query != i || wide.end_query != end) {
                add_rectangle(c, wide);
                wide.first_query = i;
                wide.end_query = end;
                wide.first_key = j;
            }
            wide.end_key = j + n;
        }
    }
    add_rectangle(c, wide);
    return AF_OK;
}

/* Heads that cannot differ, and batch rows, are counted once, unless every rectangle is wanted. */
static bool heads_are_alike(const af_call *call)
{
    return !call->visible.mask.h && !call->visible.blocks.h && !call->visible.center.data &&
           !call->subset.query_order.data && !call->subset.global;
}

static bool rows_are_alike(const af_call *call)
{
    const af_visible *v = &call->visible;
    return !v->mask.b && !v->mask.batch && !v->blocks.b && !v->blocks.batch && !v->q_offset && !v->q_length &&
           !v->kv_length && !v->kv_start && !call->subset.class_step;
}

/* Counts what one call visits, into a report of its own. */
static af_status count_visits(count *c)
{
    const af_plan *plan = c->plan;
    const bool same_heads = !c->rectangles && heads_are_alike(c->call);
    const int64_t heads = same_heads ? 1 : plan->head_groups;
    const int64_t rows = same_heads && rows_are_alike(c->call) ? 1 : c->call->B;
    for (int64_t b = 0; b < rows; b++)
        for (int64_t hg = 0; hg < heads; hg++)
            for (int64_t block = 0; block < plan->blocks; block++) {
                const int64_t row = block * plan->block_rows;
                const int here = (int)af_min(plan->block_rows, plan->rows - row);
                const af_unit unit = {.b = b, .hg = hg, .row = row, .rows = here};
                if (count_block(c, unit) == AF_INTERRUPTED) return AF_INTERRUPTED;
            }
    const int64_t times = (c->call->B / rows) * (plan->head_groups / heads);
    c->report->visible_pairs *= times;
    c->report->visited_pairs *= times;
    c->report->rectangles *= times;
    return AF_OK;
}

/* Counts what a call visits, as by a report of its own, with what is left of the room for rectangles. */
static af_status describe_pieces(af_describer *d, const af_call *call, const af_plan *plan, bool by_keys)
{
    af_report own = {0}, *report = d->report;
    count c = {.call = call, .plan = plan, .report = &own, .watch = d->sink.watch, .by_keys = by_keys};
    if (d->rectangles) {
        const int64_t taken = af_min(report->rectangles, d->room);
        c.rectangles = d->rectangles + taken;
        c.room = d->room - taken;
    }
    if (count_visits(&c) != AF_OK) return AF_INTERRUPTED;
    report->visible_pairs += own.visible_pairs;
    report->visited_pairs += own.visited_pairs;
    report->rectangles += own.rectangles;
    return AF_OK;
}

af_status af_describe_pieces(af_describer *d, const af_call *call, const af_plan *plan)
{
    return describe_pieces(d, call, plan, true);
}

void af_describe_loop(af_report *report, int threads, double memory)
{
    if (threads > report->threads) report->threads = threads;
    if (memory > report->memory) report->memory = memory;
}

void af_describe_group(af_describer *d)
{
    if (!d->group.calls) return;
    const int threads = af_threads_of_group(&d->group, d->sink.run);
    af_describe_loop(d->report, threads, (double)threads * (double)d->group.scratch_bytes);
    d->group = (af_group){0};
}

static af_status describe_call(af_describer *d, const af_call *call, bool queued)
{
    if (call->B == 0 || call->H == 0 || call->Lq == 0) return AF_OK;
    af_schedule s;
    af_call joined;
    af_report *report = d->report;
    const int wanted = d->sink.run->threads;
    af_schedule_call(&s, call, wanted);
    if (describe_pieces(d, call, &s.plan, false) != AF_OK) return AF_INTERRUPTED;
    if (!queued) af_schedule_joined(&s, &joined, call, wanted);
    for (int i = 0; i < s.count; i++) report->tasks += s.pass[i].units;
    if (report->kernel[0] == 'n' || !s.plan.decode) report->kernel = s.plan.decode ? "decode" : "forward";
    if (queued && af_add_to_group(&d->group, &s)) {
        if (d->group.calls == AF_QUEUED_CALLS) af_describe_group(d);
    } else {
        const int threads = af_threads_for(wanted, s.most_units, s.worth_threads);
        af_describe_loop(report, threads, af_working_memory(&s, threads));
    }
    return AF_OK;
}

af_status af_describe_call(af_describer *d, const af_call *call) { return describe_call(d, call, false); }
af_status af_describe_queued(af_describer *d, const af_call *call) { return describe_call(d, call, true); }

static af_status take_call(af_sink *sink, const af_call *call)
{
    return af_describe_queued((af_describer *)sink, call);
}

static af_status take_barrier(af_sink *sink)
{
    af_describe_group((af_describer *)sink);
    return AF_OK;
}

void af_open_describer(af_describer *d, const af_call *call, const af_run *run, af_watch *watch, af_report *report)
{
    *d = (af_describer){.sink = {take_call, take_barrier, run, watch, af_memory_for(run), true}, .report = report};
    *report = (af_report){.isa = af_isa_in_use(call->dtype), .kernel = "none", .threads = 1};
}

void af_end_report(const af_call *call, af_report *report)
{
    const double size = (double)af_elem_bytes(call->dtype), width = (double)(call->D + call->Dv);
    const double queries = (double)call->B * (double)call->H * (double)call->Lq * width;
    const double keys = (double)call->B * (double)call->Hk * (double)call->Lk * width;
    report->flops = 2 * (double)report->visible_pairs * width;
    report->bytes = size * queries + (double)af_key_bytes(call) * keys;
}

af_status af_describe_any(af_describer *d, const af_call *wanted)
{
    af_call call = *wanted;
    if (call.B == 0 || call.H == 0 || call.Lq == 0) return AF_OK;
    if (call.results.topk > AF_LISTED_KEYS) { /* as run: from the lse and whole rows of scores */
        call.results.topk = 0;
        call.results.lse.data = &call;
    }
    return af_describe_local(d, &call);
}

af_status af_describe(const af_problem *problem, const af_run *run, af_report *report, af_rectangle *rectangles,
                      int64_t room)
{
    run = af_or_default_run(run);
    af_watch watch = af_start_watch(run);
    af_call call;
    af_describer d;
    af_open_call(&call, problem);
    assert(af_is_legal(&call));
    af_open_describer(&d, &call, run, &watch, report);
    d.rectangles = rectangles;
    d.room = room;
    const af_status status = af_describe_any(&d, &call);
    if (call.B > 0 && call.H > 0 && call.Lq > 0) af_end_report(&call, report);
    return status;
}
