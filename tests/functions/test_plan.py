"""plan: how much a call would do, and that work is in proportion to what is visible."""

import itertools
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import attnfast
from attnfast import reference
from support.arrays import DTYPE_IDS, DTYPES, qkv, same_batch
from support.criterion import LOCAL_OPTIONS, SCORE_OPTIONS
from support.drawn_call import OF_KEYS
from support.draws import additive_calls, calls, importance_calls, local_calls, topk_calls
from support.family_draws import varlen_calls
from support.scripts import run_python

pytestmark = pytest.mark.quick


NUMBERS = ("visible_pairs", "visited_pairs", "flops", "bytes", "tasks", "threads", "memory")


def zeros(*shape):
    return np.zeros(shape, np.float32)


def square(length, heads=1, d=64):
    x = zeros(1, heads, length, d)
    return x, x, x


@given(call=calls())
def test_pairs_of_any_call(call, each_isa):
    named = {n: x for n, x in call.options.items() if not n.startswith("return")}
    named.pop("bias", None)  # a plan does not look at numbers
    query, key, _ = same_batch(call.query, call.key, call.value)
    options = {n: x for n, x in named.items() if n in SCORE_OPTIONS}
    biased = reference.attention_weights(query * 0, key * 0, stage="biased", **options)
    visible = int((biased != -np.inf).sum())

    def compare() -> None:
        plan = attnfast.plan(call.query, call.key, call.value, **named)
        assert plan.visible_pairs == visible
        assert visible <= plan.visited_pairs <= biased.size
        assert plan.flops == 2 * visible * (call.query.shape[-1] + call.value.shape[-1])
        assert plan.threads >= 1 and plan.tasks >= (visible > 0)

    each_isa(compare)


def without_flags(call):
    call.options = {n: x for n, x in call.options.items() if not n.startswith("return")}
    return call


FAMILY = {
    "attention_backward": calls().map(without_flags),
    "local_attention_backward": local_calls().map(without_flags),
    "additive_attention_backward": additive_calls().map(without_flags),
    "attention_weights": importance_calls(),
    "local_attention": local_calls(),
    "additive_attention": additive_calls(),
    "attention_topk": topk_calls(),
    "key_importance": importance_calls(),
}


def visits(blocks, *shape):
    """How often a pair of (rows, Hk, Lq, Lk) is in one of the rectangles."""
    counts = np.zeros(shape, int)
    for row, head, first_q, end_q, first_k, end_k, step in blocks:
        counts[row, head, first_q:end_q:step, first_k:end_k:step] += 1
    return counts


@pytest.mark.parametrize("function", FAMILY)
@given(data=st.data())
def test_pairs_of_any_function(function, data, each_isa):
    """As many as the reference sees, each of them in a rectangle."""
    call = data.draw(FAMILY[function])
    named = {n: x for n, x in call.options.items() if n != "bias"}
    if function == "attention_weights":
        del named["per_kv_head"]
    arrays = (call.query, call.key, call.value)[: 2 if function in OF_KEYS else 3]
    query, key, _ = same_batch(call.query, call.key, call.value)
    seen = {n: x for n, x in named.items() if n in (*SCORE_OPTIONS, *LOCAL_OPTIONS)}
    biased = reference.attention_weights(query * 0, key * 0, stage="biased", **seen)
    visible = biased != -np.inf
    *batch, heads, lq, lk = (1,) * (3 - visible.ndim) + visible.shape
    shape = (math.prod(batch), key.shape[-3] if key.ndim > 2 else 1, lq, lk)
    group = heads // shape[1] if shape[1] else 0
    of_any_head = visible.reshape(*shape[:2], group, lq, lk).any(axis=2)

    def compare() -> None:
        plan = attnfast.plan(getattr(attnfast, function), *arrays, return_blocks=True, **named)
        assert plan.visible_pairs == visible.sum() <= plan.visited_pairs
        assert plan.threads >= 1 and plan.tasks >= visible.any()
        assert (visits(plan.blocks, *shape)[of_any_head] > 0).all()

    each_isa(compare)


PACKED = {
    attnfast.attention_varlen: attnfast.attention,
    attnfast.attention_varlen_backward: attnfast.attention_backward,
}


@pytest.mark.parametrize("function", PACKED, ids=lambda function: function.__name__)
@given(drawn=varlen_calls())
def test_pairs_of_packed_sequences(function, drawn, each_isa):
    """Those of a call for each sequence."""
    (query, key, value, cu_q, cu_k), options = drawn
    spans = list(
        zip(itertools.pairwise(cu_q.tolist()), itertools.pairwise(cu_k.tolist()), strict=True)
    )

    def compare() -> None:
        arrays = (query, key, value)
        packed = attnfast.plan(function, *arrays, cu_q, cu_k, return_blocks=True, **options)
        found = visits(packed.blocks, len(spans), key.shape[1], len(query), len(key))
        visible = visited = 0
        for n, ((first_q, end_q), (first_k, end_k)) in enumerate(spans):
            own = dict(options)
            for name, axes in (("q_offset", 1), ("alibi_slopes", 2)):
                if np.ndim(own.get(name)) == axes:
                    own[name] = own[name][n]
            rows = (query[first_q:end_q], key[first_k:end_k], value[first_k:end_k])
            alone = (PACKED[function], *(x.swapaxes(0, 1) for x in rows))
            one = attnfast.plan(*alone, return_blocks=True, **own)
            visible, visited = visible + one.visible_pairs, visited + one.visited_pairs
            mine = found[n, :, first_q:end_q, first_k:end_k]
            assert np.array_equal(mine > 0, visits(one.blocks, 1, *mine.shape)[0] > 0)
            assert mine.sum() == found[n].sum()
        assert (packed.visible_pairs, packed.visited_pairs) == (visible, visited)

    each_isa(compare)


@pytest.mark.usefixtures("isa")
def test_a_plan_of_another_function():
    x = zeros(1, 4, 65, 8)
    dilated = attnfast.plan(attnfast.local_attention, x, x, x, 2, dilation=8, return_blocks=True)
    assert set(dilated.blocks[:, 6]) == {8}
    assert attnfast.plan(attnfast.attention, x, x, x) == attnfast.plan(x, x, x)
    named = attnfast.plan(attnfast.local_attention, query=x, key=x, value=x, window_size=2)
    assert named == attnfast.plan(x, x, x, window_size=2)


def test_what_has_no_plan():
    x = zeros(1, 4, 8)
    names = "attention, attention_weights, local_attention, additive_attention, attention_topk, "
    names += "key_importance, attention_varlen, attention_backward, "
    names += "local_attention_backward, additive_attention_backward, attention_varlen_backward"
    for function in (np.sum, attnfast.merge_attention):
        with pytest.raises(TypeError, match=f"^function must be one of {names}, got <"):
            attnfast.plan(function, x, x)
    with pytest.raises(TypeError, match=r"^causal is not an argument of attention: .*is_causal"):
        attnfast.plan(x, x, x, causal=True)
    with pytest.raises(TypeError, match="missing a required argument: 'value'"):
        attnfast.plan(x, x)
    with pytest.raises(TypeError, match="missing a required argument: 'window_size'"):
        attnfast.plan(attnfast.local_attention, x, x, x)


def test_fields(isa):
    q, k, v = zeros(2, 8, 100, 64), zeros(2, 4, 100, 64), zeros(2, 4, 100, 32)
    plan = attnfast.plan(q, k, v, num_threads=2)
    for name in NUMBERS:
        assert isinstance(getattr(plan, name), int), name
    assert plan.visible_pairs == 2 * 8 * 100 * 100
    assert plan.flops == 2 * plan.visible_pairs * (64 + 32)
    assert plan.bytes >= q.nbytes + k.nbytes + v.nbytes + 2 * 8 * 100 * 32 * 4
    assert plan.isa == isa
    assert 1 <= plan.threads <= 2


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_kernels(dtype, isa, rng):
    arrays = qkv(rng, 200, 200, dtype=dtype)
    assert attnfast.plan(*arrays).kernel == "forward"
    arrays = qkv(rng, 1, 200, dtype=dtype)
    plan = attnfast.plan(*arrays)
    assert plan.kernel == "decode" and plan.isa == isa


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("empty", ["B", "H", "Lq", "Lk"])
def test_nothing_to_do(empty):
    n = {"B": 2, "H": 2, "Lq": 3, "Lk": 4, empty: 0}
    q, k = zeros(n["B"], n["H"], n["Lq"], 8), zeros(n["B"], n["H"], n["Lk"], 8)
    plan = attnfast.plan(q, k, k)
    assert (plan.visible_pairs, plan.visited_pairs, plan.flops) == (0, 0, 0)


@pytest.mark.usefixtures("isa")
def test_the_plan_does_not_touch_the_arrays():
    """Not even their pages: these would take 512 GB."""
    x = np.lib.stride_tricks.as_strided(zeros(64), (1, 1, 2**31, 64), (0, 0, 0, 4))
    few = x[:, :, :1]
    plan = attnfast.plan(few, x, x)
    assert plan.visible_pairs == 2**31 and plan.flops == 4 * 64 * 2**31


@pytest.mark.usefixtures("isa")
def test_causal_visits_half():
    full, causal = attnfast.plan(*square(8192)), attnfast.plan(*square(8192), is_causal=True)
    assert causal.visible_pairs == 8192 * 8193 // 2
    assert causal.visited_pairs <= 0.53 * full.visited_pairs


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("window", [256, (256, 0), (0, 256), (100, -1)])
def test_a_window_visits_little_more_than_it_shows(window):
    plan = attnfast.plan(*square(16384), window_size=window)
    assert plan.visited_pairs <= 1.5 * plan.visible_pairs


@pytest.mark.usefixtures("isa")
def test_a_window_costs_in_proportion_to_the_length():
    short, long = (attnfast.plan(*square(n), window_size=256) for n in (16384, 65536))
    assert long.visited_pairs <= 4.1 * short.visited_pairs
    assert long.visible_pairs <= 4.1 * short.visible_pairs


@pytest.mark.usefixtures("isa")
def test_lengths_visit_what_they_hold():
    x = zeros(4, 2, 1024, 64)
    lengths = [1024, 100, 0, 513]
    plan = attnfast.plan(x, x, x, kv_lengths=lengths)
    assert plan.visible_pairs == 2 * 1024 * sum(lengths)
    assert plan.visited_pairs <= 1.1 * plan.visible_pairs
    both = attnfast.plan(x, x, x, kv_lengths=lengths, q_lengths=lengths)
    assert both.visible_pairs == 2 * sum(n * n for n in lengths)
    assert both.visited_pairs <= 1.2 * both.visible_pairs


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [2, 1024])
def test_starts_visit_what_they_leave(lq):
    x, q = zeros(4, 2, 1024, 64), zeros(4, 2, lq, 64)
    starts = [0, 100, 1024, 513]
    plan = attnfast.plan(q, x, x, kv_starts=starts, return_blocks=True)
    assert attnfast.plan(q, x, x, kv_starts=starts)[:2] == plan[:2]
    assert plan.visible_pairs == 2 * lq * sum(1024 - n for n in starts)
    assert plan.visited_pairs <= 1.1 * plan.visible_pairs
    for row, start in enumerate(starts):
        assert (plan.blocks[plan.blocks[:, 0] == row, 4] >= start).all()
    ends = attnfast.plan(q, x, x, kv_starts=starts, kv_lengths=[1024, 300, 1024, 200])
    assert ends.visible_pairs == 2 * lq * (1024 + 200)
    assert ends.visited_pairs <= 1.1 * ends.visible_pairs


@pytest.mark.usefixtures("isa")
def test_padding_masks_skip_blocks():
    x = zeros(2, 4, 2048, 64)
    mask = np.zeros((2, 1, 1, 2048), bool)
    mask[0, ..., :512], mask[1, ..., 1500:] = True, True
    plan = attnfast.plan(x, x, x, mask=mask)
    assert plan.visible_pairs == 4 * 2048 * (512 + 548)
    assert plan.visited_pairs <= 1.25 * plan.visible_pairs


@pytest.mark.usefixtures("isa")
def test_a_dense_mask_skips_blocks_of_128_keys():
    shown = np.random.default_rng(0).random((16, 16)) < 0.1
    mask = np.kron(shown, np.ones((128, 128), bool))
    plan = attnfast.plan(*square(2048), mask=mask)
    assert 0 < plan.visited_pairs <= 1.6 * plan.visible_pairs


@pytest.mark.usefixtures("isa")
def test_masks_over_keys_cost_what_they_show():
    x = zeros(3, 4, 2048, 64)
    j = np.arange(2048)
    mask = np.stack([j < 700, (j > 1000) & (j < 1003), j % 200 < 150])[:, None, None]
    plan = attnfast.plan(x, x, x, mask=mask)
    assert plan.visible_pairs == 4 * 2048 * mask.sum()
    assert plan.visited_pairs == plan.visible_pairs
    one_query = attnfast.plan(x[:, :, :1], x, x, mask=mask)
    assert one_query.visited_pairs == one_query.visible_pairs == 4 * mask.sum()


@pytest.mark.usefixtures("isa")
def test_a_block_diagonal_mask_skips_blocks():
    x = zeros(1, 1, 2048, 64)
    document = np.arange(2048) // 512
    plan = attnfast.plan(x, x, x, mask=document[:, None] == document)
    assert plan.visible_pairs == 4 * 512**2
    assert plan.visited_pairs <= 1.5 * plan.visible_pairs


@pytest.mark.usefixtures("isa")
def test_one_query_over_many_keys_is_many_tasks():
    q, k = zeros(1, 1, 1, 128), zeros(1, 1, 16384, 128)
    plan = attnfast.plan(q, k, k, num_threads=8)
    assert plan.tasks >= 8 and plan.threads == 8


@pytest.mark.usefixtures("isa")
def test_cutting_depends_on_neither_threads_nor_batch():
    q, k = zeros(1, 4, 1, 64), zeros(1, 2, 9000, 64)
    one = attnfast.plan(q, k, k, num_threads=1)
    for n, batch in itertools.product((1, 2, 64), (1, 5)):
        plan = attnfast.plan(np.repeat(q, batch, 0), np.repeat(k, batch, 0), k, num_threads=n)
        assert plan.tasks == batch * one.tasks


@pytest.mark.usefixtures("isa")
def test_tiny_calls_stay_on_one_thread():
    plan = attnfast.plan(
        zeros(1, 1, 1, 64), zeros(1, 1, 16, 64), zeros(1, 1, 16, 64), num_threads=8
    )
    assert plan.threads == 1


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(
    "function", [attnfast.attention_varlen, attnfast.attention_varlen_backward]
)
def test_packed_sequences_share_the_threads(function):
    """Each of them alone stays on one thread; all are cut as they are alone."""
    x, starts = zeros(200 * 16, 4, 64), np.arange(0, 201 * 16, 16)
    one = attnfast.plan(function, x[:16], x[:16], x[:16], [0, 16], [0, 16], num_threads=2)
    alone = attnfast.plan(function, x, x, x, starts, starts, num_threads=1)
    together = attnfast.plan(function, x, x, x, starts, starts, num_threads=2)
    assert (one.threads, alone.threads, together.threads) == (1, 1, 2)
    assert together.tasks == alone.tasks == 200 * one.tasks
    assert together.memory == 2 * alone.memory >= one.memory > 0


@pytest.mark.usefixtures("isa")
def test_a_plan_is_made_from_lists_too():
    assert attnfast.plan([[1.0]], [[1.0], [2.0]], [[1.0], [2.0]]).visible_pairs == 2


# ---- gradients ----


class TestOfGradients:
    def plan(self, q, k, v, **options):
        return attnfast.plan(attnfast.attention_backward, q, k, v, **options)

    @pytest.mark.usefixtures("isa")
    @pytest.mark.parametrize(
        ("wanted", "products"),
        [
            (("query", "key", "value"), 3 * 64 + 2 * 32),
            (("query", "key"), 3 * 64 + 32),
            (("query",), 2 * 64 + 32),
            (("value",), 64 + 32),
            (("bias",), 64 + 32),
            ((), 64),
        ],
    )
    def test_what_is_wanted_is_counted(self, wanted, products):
        q, k, v = zeros(2, 8, 100, 64), zeros(2, 4, 100, 64), zeros(2, 4, 100, 32)
        plan = self.plan(q, k, v, wanted=wanted, bias=zeros(100), is_causal=True)
        assert plan.visible_pairs == 2 * 8 * 5050
        assert plan.flops == 2 * plan.visible_pairs * products
        queries, keys = 64 + 2 * 32, 64 + 32
        queries += 64 * ("query" in wanted)
        keys += 64 * ("key" in wanted) + 32 * ("value" in wanted)
        assert plan.bytes == 4 * 2 * 100 * (8 * queries + 4 * keys)
        assert plan.kernel == "backward"

    def test_weights_of_additive_scores_need_their_gradients(self):
        x = zeros(2, 100, 64)
        function, weight = attnfast.additive_attention_backward, np.ones(64, np.float32)
        plans = [
            attnfast.plan(function, x, x, x, weight, wanted=wanted)
            for wanted in (("score_weight",), ("value",))
        ]
        assert plans[0].flops == plans[1].flops == 2 * 2 * 100**2 * (64 + 64)

    @pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3), (2, 2, 0)])
    @pytest.mark.parametrize(
        "kind",
        [{}, {"dilation": 2}, {"global_tokens": [0]}, {"sigma": 1.0}],
        ids=["window", "dilation", "tokens", "centers"],
    )
    def test_nothing(self, shape, kind):
        q, k = zeros(*shape, 4), zeros(*shape[:2], 5, 4)
        kind = {**kind, "centers": np.zeros(shape[2])} if "sigma" in kind else kind
        for function in attnfast.local_attention, attnfast.local_attention_backward:
            plan = attnfast.plan(function, q, k, k, 2, q_offset=0, **kind)
            assert (plan.visible_pairs, plan.tasks) == (0, 0)

    @pytest.mark.parametrize("heads", [0, 2])
    def test_nothing_that_is_packed(self, heads):
        x = zeros(0, heads, 4)
        plan = attnfast.plan(attnfast.attention_varlen_backward, x, x, x, [0, 0, 0], [0, 0, 0])
        assert (plan.visible_pairs, plan.tasks) == (0, 0)

    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_no_element_of_an_operand_is_read(self, tmp_path, dtype):
        """Keys and values that have no memory, global tokens among them."""
        code = f"""
import numpy as np
import attnfast
from numpy.lib.stride_tricks import as_strided
q = np.zeros((1, 16, 64), np.{dtype.__name__})
k = as_strided(q, (1, 100, 64), (0, 2**40, q.itemsize))
for function in attnfast.local_attention, attnfast.local_attention_backward:
    plan = attnfast.plan(function, q, k, k, 2, global_tokens=[0, 99], q_offset=0)
    print(plan.visible_pairs)
"""
        i, j = np.ogrid[:16, :100]
        seen = (abs(i - j) <= 2) | (j == 0) | (j == 99) | (i == 0)
        assert run_python(code, tmp_path).split() == [str(seen.sum())] * 2

    def test_the_loss_may_be_given_by_name(self):
        q, k, v = square(100)
        loss = {"grad_output": q, "output": q, "lse": q[..., 0]}
        assert self.plan(q, k, v, **loss) == self.plan(q, k, v)
        named = attnfast.plan(attnfast.attention_backward, query=q, key=k, value=v)
        assert named == self.plan(q, k, v)
        with pytest.raises(ValueError, match="grad_output must have shape"):
            self.plan(q, k, v, grad_output=q[..., :3])
        with pytest.raises(TypeError, match="too many positional arguments"):
            attnfast.plan(attnfast.attention_backward, q, q, k, v, q, q[..., 0])

    @pytest.mark.usefixtures("isa")
    def test_units_are_fixed_by_the_shape(self):
        """Blocks of rows twice, and ranges of 512 keys for each panel of 768 rows."""
        one = self.plan(*square(2048, heads=3), num_threads=1)
        several = self.plan(*square(2048, heads=3), num_threads=8)
        assert several.tasks == one.tasks and several.threads == 8
        assert (one.tasks - 3 * 3 * 4) % (2 * 3) == 0

    @pytest.mark.usefixtures("isa")
    def test_masked_work_is_skipped(self):
        full, causal = self.plan(*square(4096)), self.plan(*square(4096), is_causal=True)
        assert causal.visited_pairs <= 0.54 * full.visited_pairs
        window = self.plan(*square(16384), window_size=256)
        assert window.visited_pairs <= 1.6 * window.visible_pairs

    @pytest.mark.usefixtures("isa")
    def test_it_does_not_touch_the_arrays(self):
        x = np.lib.stride_tricks.as_strided(zeros(64), (1, 1, 2**31, 64), (0, 0, 0, 4))
        plan = self.plan(x[:, :, :1], x, x)
        assert plan.visible_pairs == 2**31

    @pytest.mark.usefixtures("isa")
    @pytest.mark.parametrize("empty", ["B", "H", "Lq", "Lk"])
    def test_nothing_to_do(self, empty):
        n = {"B": 2, "H": 2, "Lq": 3, "Lk": 4, empty: 0}
        q, k = zeros(n["B"], n["H"], n["Lq"], 8), zeros(n["B"], n["H"], n["Lk"], 8)
        assert self.plan(q, k, k)[:3] == (0, 0, 0)


MEMORY = """
import numpy as np
import attnfast

q, k, v = np.ones((3, 4, 6000, 96), np.float32)
output, lse, _ = attnfast.attention(q, k, v, return_lse=True)

def now(name):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

def show(call, results, plan):
    open("/proc/self/clear_refs", "w").write("5")
    before = now("VmRSS")
    call()
    print(now("VmHWM") - before - results, plan.memory)

def backward(first=0):
    call = (output, q, k, v, output, lse)
    attnfast.attention_backward(*(a[:, first:] for a in call), num_threads=1)

one = np.ones((256, 1, 8), np.float32)
keys, values = (np.broadcast_to(one[0, 0, 0], (64, 16384, n)) for n in (8, 512))

def forward(heads=256):
    attnfast.attention(one[:heads], keys[: heads // 4], values[: heads // 4], num_threads=8)

backward(5900)
show(backward, 3 * q.nbytes, attnfast.plan(attnfast.attention_backward, q, k, v, num_threads=1))
forward(4)
show(forward, 256 * 512 * 4, attnfast.plan(one, keys, values, num_threads=8))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_what_a_call_takes(tmp_path):
    """As far as pages are touched."""
    for line in run_python(MEMORY, tmp_path).splitlines():
        taken, told = map(int, line.split())
        assert told / 2 <= taken <= told + 2**20
