/* The edges of csrc/attnfast.h that the fuzzer does not come to: parts that are absent or written by a caller with an
 * older header, no run, results that are not wanted, and calls that are not legal. Prints what is wrong. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "attnfast.h"
#include "plan/legal.h"

enum { L = 3, D = 2 };

static int problems;

static void expect(bool right, const char *what)
{
    if (right) return;
    fprintf(stderr, "wrong: %s\n", what);
    problems++;
}

/* One head of L queries and keys, and its results. */
typedef struct case_ {
    float query[L * D], key[L * D], value[L * D], output[L * D], lse[L], weights[L * L], top_weight[L * 70];
    float importance[L];
    int64_t top_index[L * 70], dilation[1], length[1];
    uint8_t global[L];
    double center[L];
    af_operands operands;
    af_visible visible;
    af_score score;
    af_results results;
    af_problem problem;
} case_;

static af_tensor rows_of(void *data, int64_t width) { return (af_tensor){.data = data, .i = width, .j = 1}; }

static void make(case_ *c)
{
    *c = (case_){.dilation = {2}, .length = {1}};
    for (int n = 0; n < L * D; n++) {
        c->query[n] = (float)n / 4;
        c->key[n] = (float)(n % 3);
        c->value[n] = (float)n;
        c->output[n] = -1;
    }
    for (int i = 0; i < L; i++) c->lse[i] = -1;
    c->operands = (af_operands){.size = sizeof c->operands,
                                .query = rows_of(c->query, D),
                                .key = rows_of(c->key, D),
                                .value = rows_of(c->value, D)};
    c->visible = (af_visible){.size = sizeof c->visible, .left = AF_FAR, .right = AF_FAR};
    c->score = (af_score){.size = sizeof c->score, .scale = 1};
    c->results = (af_results){.size = sizeof c->results, .stage = AF_WEIGHTS};
    c->results.output = rows_of(c->output, D);
    c->results.lse = (af_tensor){.data = c->lse, .i = 1};
    c->problem = (af_problem){.size = sizeof c->problem, .B = 1, .H = 1, .Hk = 1, .Lq = L, .Lk = L, .D = D, .Dv = D};
    c->problem.operands = &c->operands;
    c->problem.visible = &c->visible;
    c->problem.score = &c->score;
    c->problem.results = &c->results;
}

static bool is_right(const case_ *c, bool output)
{
    bool right = true;
    for (int i = 0; i < L; i++) {
        double sum = 0, mean[D] = {0};
        for (int j = 0; j < L; j++) {
            double score = 0;
            for (int d = 0; d < D; d++) score += (double)c->query[i * D + d] * (double)c->key[j * D + d];
            sum += exp(score);
            for (int d = 0; d < D; d++) mean[d] += exp(score) * (double)c->value[j * D + d];
        }
        right = right && fabs((double)c->lse[i] - log(sum)) < 1e-5;
        for (int d = 0; d < D; d++)
            right = right && fabs((double)c->output[i * D + d] - (output ? mean[d] / sum : -1)) < 1e-5;
    }
    return right;
}

static void try_parts(void)
{
    case_ c;
    make(&c);
    expect(af_attention(&c.problem, NULL) == AF_OK && is_right(&c, true), "no run");
    make(&c);
    c.visible.size = c.score.size = 0;
    c.visible.left = c.visible.right = 0;
    c.score.scale = 0;
    expect(af_attention(&c.problem, NULL) == AF_OK && is_right(&c, true), "parts of no size");
    make(&c);
    c.problem.visible = NULL;
    c.problem.score = NULL;
    expect(af_attention(&c.problem, NULL) == AF_OK && is_right(&c, true), "no parts");
    make(&c);
    c.results.output.data = NULL;
    expect(af_attention(&c.problem, NULL) == AF_OK && is_right(&c, false), "value without output");
    make(&c);
    c.problem.results = NULL;
    expect(af_attention(&c.problem, NULL) == AF_OK && c.lse[0] == -1, "no results");
    make(&c);
    c.results.output.data = NULL;
    c.results.top_index = rows_of(c.top_index, 70);
    c.results.top_weight = rows_of(c.top_weight, 70);
    c.results.topk = 70;
    expect(af_attention(&c.problem, NULL) == AF_OK && is_right(&c, false), "lse beside a long list");
    expect(c.top_index[2] >= 0 && c.top_index[3] == -1 && c.top_weight[3] == 0, "a list longer than the keys");
    af_report report;
    expect(af_describe(&c.problem, NULL, &report, NULL, 0) == AF_OK && report.visible_pairs == L * L, "describe");
}

/* What a call for gradients is given, and where they go; of packed sequences where there is a packing. */
typedef struct gradient_case {
    const af_packing *packing;
    float grad_output[L * D], grad_lse[L], query[L * D], key[L * D], value[L * D];
    double sink[1];
    af_gradients gradients;
} gradient_case;

static af_status attend(case_ *c, const af_packing *packing)
{
    return packing ? af_attention_packed(&c->problem, packing, NULL) : af_attention(&c->problem, NULL);
}

static af_status go_back(case_ *c, gradient_case *g)
{
    return g->packing ? af_attention_packed_backward(&c->problem, g->packing, &g->gradients, NULL)
                      : af_attention_backward(&c->problem, &g->gradients, NULL);
}

/* After a call: gradients of a loss sum(output * grad_output) + sum(lse * grad_lse). */
static void make_gradients(case_ *c, gradient_case *g, const af_packing *packing)
{
    make(c);
    expect(attend(c, packing) == AF_OK, "the call before gradients");
    *g = (gradient_case){packing, .grad_output = {1, -1, 0.5F, 2, -2, 0}, .grad_lse = {0.5F, -1, 2}};
    g->gradients = (af_gradients){.size = sizeof g->gradients, .output = c->results.output, .lse = c->results.lse};
    g->gradients.grad_output = rows_of(g->grad_output, D);
    g->gradients.query = rows_of(g->query, D);
    g->gradients.key = rows_of(g->key, D);
    g->gradients.value = rows_of(g->value, D);
}

static double loss(case_ *c, const gradient_case *g)
{
    double sum = 0;
    expect(attend(c, g->packing) == AF_OK, "a call beside gradients");
    for (int n = 0; n < L * D; n++) sum += (double)c->output[n] * (double)g->grad_output[n];
    for (int i = 0; i < L; i++) sum += g->gradients.grad_lse.data ? (double)c->lse[i] * (double)g->grad_lse[i] : 0;
    return sum;
}

/* Of an operand, by differences; `begun` is what its gradient held before. */
static void compare(case_ *c, const gradient_case *g, float *operand, const float *gradient, float begun,
                    const char *what)
{
    const float step = 0x1p-6F;
    for (int n = 0; n < L * D; n++) {
        const float x = operand[n];
        operand[n] = x + step;
        const double above = loss(c, g);
        operand[n] = x - step;
        const double below = loss(c, g), slope = (above - below) / (2 * (double)step);
        operand[n] = x;
        expect(fabs((double)(gradient[n] - begun) - slope) < 4e-3, what);
    }
}

static void try_backward(const af_packing *packing)
{
    case_ c;
    gradient_case g;
    make_gradients(&c, &g, packing);
    expect(go_back(&c, &g) == AF_OK, "backward with no run");
    compare(&c, &g, c.query, g.query, 0, "the gradient of query");
    compare(&c, &g, c.key, g.key, 0, "the gradient of key");
    compare(&c, &g, c.value, g.value, 0, "the gradient of value");
    make_gradients(&c, &g, packing);
    for (int n = 0; n < L * D; n++) g.key[n] = 3;
    g.gradients.grad_lse = (af_tensor){.data = g.grad_lse, .i = 1};
    g.gradients.query.data = g.gradients.value.data = NULL;
    c.problem.visible = NULL;
    c.problem.results = NULL;
    c.score.size = 0;
    expect(go_back(&c, &g) == AF_OK, "backward without parts and results");
    expect(g.query[0] == 0 && g.value[0] == 0, "gradients that are not wanted");
    make(&c);
    compare(&c, &g, c.key, g.key, 3, "a gradient that is added to, with grad_lse");
    make_gradients(&c, &g, packing);
    c.problem.H = 0;
    expect(go_back(&c, &g) == AF_OK && g.key[0] == 0, "backward of no rows");
}

#define REFUSE_GRADIENTS(what, ...)                                                                                    \
    do {                                                                                                               \
        make_gradients(&c, &g, NULL);                                                                                  \
        __VA_ARGS__;                                                                                                   \
        af_open_gradients(&call, &c.problem, &g.gradients);                                                            \
        expect(!af_are_legal_gradients(&call), what);                                                                  \
    } while (0)

static void try_illegal_gradients(void)
{
    case_ c;
    gradient_case g;
    af_call call;
    make_gradients(&c, &g, NULL);
    af_open_gradients(&call, &c.problem, &g.gradients);
    expect(af_are_legal_gradients(&call), "legal gradients");
    REFUSE_GRADIENTS("gradients in 16 bits", c.problem.dtype = AF_F16);
    REFUSE_GRADIENTS("gradients without output", g.gradients.output.data = NULL);
    REFUSE_GRADIENTS("gradients without lse", g.gradients.lse.data = NULL);
    REFUSE_GRADIENTS("gradients without grad_output", g.gradients.grad_output.data = NULL);
    REFUSE_GRADIENTS("a gradient of query in steps", g.gradients.query.j = 2);
    REFUSE_GRADIENTS("a gradient of key in steps", g.gradients.key.j = 2);
    REFUSE_GRADIENTS("a gradient of value in steps", g.gradients.value.j = 0);
    REFUSE_GRADIENTS("one row for the gradient of all queries", g.gradients.query.i = 0);
    REFUSE_GRADIENTS("one row for the gradient of all keys", g.gradients.key.i = 0);
    REFUSE_GRADIENTS("one row for the gradient of all values", g.gradients.value.i = 0);
    REFUSE_GRADIENTS("one gradient for the queries of all heads", c.problem.H = 2);
    REFUSE_GRADIENTS("one gradient for the keys of all heads", c.problem.H = c.problem.Hk = 2;
                     g.gradients.query.h = g.gradients.value.h = L * D);
    REFUSE_GRADIENTS("one gradient for the values of all heads", c.problem.H = c.problem.Hk = 2;
                     g.gradients.query.h = g.gradients.key.h = L * D);
    REFUSE_GRADIENTS("grad_weights in steps", g.gradients.grad_weights = rows_of(c.weights, L);
                     g.gradients.grad_weights.j = 2);
    REFUSE_GRADIENTS("a gradient of no bias", g.gradients.bias = rows_of(c.weights, L));
    REFUSE_GRADIENTS("a gradient of a bias in steps", g.gradients.bias = c.score.bias = rows_of(c.weights, L);
                     g.gradients.bias.j = 2);
    REFUSE_GRADIENTS("a gradient of no slope", g.gradients.alibi = g.sink);
    REFUSE_GRADIENTS("a gradient of no sink", g.gradients.sink = g.sink);
    REFUSE_GRADIENTS("a gradient of no centers", g.gradients.center.data = g.sink);
    REFUSE_GRADIENTS("a gradient of no weights of scores", g.gradients.score_weight = g.sink);
    REFUSE_GRADIENTS("a gradient of no bias of scores", g.gradients.score_bias = g.sink);
}

static void refuse(const case_ *c, const char *what)
{
    af_call call;
    af_open_call(&call, &c->problem);
    expect(!af_is_legal(&call), what);
}

#define REFUSE(what, ...)                                                                                              \
    do {                                                                                                               \
        make(&c);                                                                                                      \
        __VA_ARGS__;                                                                                                   \
        refuse(&c, what);                                                                                              \
    } while (0)

static void try_illegal(void)
{
    case_ c;
    af_call call;
    make(&c);
    af_open_call(&call, &c.problem);
    expect(af_is_legal(&call), "a legal call");
    const af_tensor weights = rows_of(c.weights, L), index = rows_of(c.top_index, 70), top = rows_of(c.top_weight, 70);
    const af_tensor center = {.data = c.center, .i = 1};
    af_visible *v = &c.visible;
    af_results *r = &c.results;
    REFUSE("an output without value", c.operands.value.data = NULL);
    REFUSE("heads that do not divide", c.problem.Hk = 2);
    REFUSE("a window that ends before it begins", v->left = -1);
    REFUSE("a length beyond the keys", c.length[0] = L + 1; v->kv_length = c.length);
    REFUSE("a start beyond the keys", c.length[0] = L + 1; v->kv_start = c.length);
    REFUSE("columns and importance", c.operands.key.j = 2; r->importance = c.importance);
    REFUSE("columns and global tokens", c.operands.key.j = 2; v->global = c.global);
    REFUSE("additive scores without weights", c.score.additive = true);
    REFUSE("a gaussian without center", c.score.gaussian = 1);
    REFUSE("centers and dilation", v->center = center; v->dilation = c.dilation);
    REFUSE("centers and global tokens", v->center = center; v->global = c.global);
    REFUSE("centers and importance", v->center = center; r->importance = c.importance);
    REFUSE("weights and importance", r->weights = weights; r->importance = c.importance);
    REFUSE("weights and a list", r->weights = weights; r->top_index = index; r->top_weight = top; r->topk = 1);
    REFUSE("a list without memory", r->topk = 1);
    REFUSE("scores beside lse", r->weights = weights; r->stage = AF_BIASED);
    REFUSE("dilation and a list", v->dilation = c.dilation; r->top_index = index; r->top_weight = top; r->topk = 1);
    REFUSE("tokens and importance", v->global = c.global; r->importance = c.importance);
    REFUSE("tokens and additive scores", v->global = c.global; c.score.additive = true; c.score.score_weight = center);
    const int64_t nowhere[] = {0, -1}, two[] = {0, 0};
#define PAGED c.operands.block_table = two, c.operands.blocks = 2, c.operands.page_size = 2
    REFUSE("pages of no size", PAGED; c.operands.page_size = 0);
    REFUSE("too few pages", PAGED; c.operands.page_size = 1);
    REFUSE("a page that is not there", PAGED; c.operands.block_table = nowhere);
    REFUSE("pages and dilation", PAGED; v->dilation = c.dilation);
    REFUSE("pages and additive scores", PAGED; c.score.additive = true; c.score.score_weight = center);
    REFUSE("bytes and float64", c.operands.storage = AF_INT8; c.problem.dtype = AF_F64);
    REFUSE("bytes of no kind", c.operands.storage = (af_storage)9);
    REFUSE("bytes and global tokens", c.operands.storage = AF_INT8; v->global = c.global);
    REFUSE("groups of no rows", c.operands.storage = AF_INT8; c.operands.key_scale.at.data = c.query);
    make(&c);
    PAGED;
    c.operands.block_table = nowhere;
    c.length[0] = 2;
    v->kv_length = c.length;
    af_open_call(&call, &c.problem);
    expect(af_is_legal(&call), "no page beyond the length");
    make(&c);
    c.problem.Lk = c.operands.key.j = c.operands.value.j = 0; /* as NumPy has it of arrays without elements */
    v->global = c.global;
    af_open_call(&call, &c.problem);
    expect(!af_has_columns(&call) && af_is_legal(&call), "no keys have no columns");
    const int64_t rising[] = {0, 2, L}, falling[] = {0, L + 1, L};
    const af_packing legal = {2, rising, rising}, illegal = {2, rising, falling};
    make(&c);
    af_open_call(&call, &c.problem);
    expect(af_is_legal_packed(&call, &legal), "legal sequences");
    expect(!af_is_legal_packed(&call, &illegal), "bounds that fall");
    call.results.importance = c.importance;
    expect(!af_is_legal_packed(&call, &legal), "packed importance");
    const int64_t of_sequences[] = {0, 1, 0, -1}, without_one[] = {0, 1, -1, 0};
    make(&c);
    PAGED;
    c.operands.page_size = 1;
    c.operands.block_table = of_sequences;
    af_open_call(&call, &c.problem);
    expect(af_is_legal_packed(&call, &legal), "pages of sequences");
    c.operands.block_table = without_one;
    af_open_call(&call, &c.problem);
    expect(!af_is_legal_packed(&call, &legal), "a page of a sequence that is not there");
    c.operands.block_table = of_sequences;
    c.operands.blocks = 1;
    af_open_call(&call, &c.problem);
    expect(!af_is_legal_packed(&call, &legal), "too few pages for a sequence");
}

#define REFUSE_ROTATION(what, ...)                                                                                     \
    do {                                                                                                               \
        r = legal;                                                                                                     \
        __VA_ARGS__;                                                                                                   \
        expect(!af_rotation_is_legal(&r), what);                                                                       \
    } while (0)

static void try_rotation(void)
{
    float x[L * D] = {1, 2, 3, 4, 5, 6};
    const int64_t positions[L] = {0, 0, 0};
    const af_rotation legal = {.size = sizeof legal,
                               .B = 1,
                               .H = 1,
                               .L = L,
                               .D = D,
                               .pairs = D / 2,
                               .from = rows_of(x, D),
                               .to = rows_of(x, D),
                               .position = {.data = (void *)(uintptr_t)positions, .i = 1},
                               .base = 100};
    af_rotation r = legal;
    expect(af_rotate(&r, NULL) == AF_OK && x[0] == 1 && x[L * D - 1] == 6, "position 0 turns nothing");
    REFUSE_ROTATION("more pairs than elements", r.pairs = D);
    REFUSE_ROTATION("rows in steps", r.from.j = 2);
    REFUSE_ROTATION("results in steps", r.to.j = 0);
    REFUSE_ROTATION("a base of 0", r.base = 0);
    REFUSE_ROTATION("a base that is NaN", r.base = NAN);
    REFUSE_ROTATION("a table alone", r.cosine = rows_of(x, 1));
    r = legal;
    r.L = r.from.j = r.to.j = 0; /* as NumPy has it of arrays without elements */
    expect(af_rotation_is_legal(&r) && af_rotate(&r, NULL) == AF_OK, "a rotation of no rows");
}

int main(void)
{
    try_parts();
    try_illegal();
    try_rotation();
    const int64_t first[] = {0, 1, L};
    const af_packing packing = {2, first, first};
    try_backward(NULL);
    try_backward(&packing);
    try_illegal_gradients();
    return problems != 0;
}
