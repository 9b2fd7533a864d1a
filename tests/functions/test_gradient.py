"""Gradients of attention against the reference's closed forms."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attnfast
from attnfast import BlockMask, reference
from support.arrays import DTYPE_IDS, DTYPES, assert_same, poisoned, qkv, same_batch
from support.draws import block_masked_calls, calls
from support.gradient_criterion import check_gradients
from support.workers import with_every_thread

EXAMPLES = settings.default.max_examples
NAMES = ("query", "key", "value", "bias", "sink_logits", "alibi_slopes")
FULL = (2, 4, 130, 600)  # B, H, Lq, Lk: two ranges of keys, blocks with a rest


def numbers(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def backward(grad_output: Any, query: Any, key: Any, value: Any, **options: Any) -> Any:
    """All gradients, by way of a forward call."""
    forward = {n: x for n, x in options.items() if n not in ("grad_lse", "grad_weights", "wanted")}
    output, lse, _ = attnfast.attention(query, key, value, return_lse=True, **forward)
    options.setdefault("wanted", [n for n in NAMES if n in NAMES[:3] or n in options])
    return attnfast.attention_backward(grad_output, query, key, value, output, lse, **options)


def check(rng: np.random.Generator, arrays: Any, **options: Any) -> None:
    query, _, value = same_batch(*arrays)
    grad_output = rng.standard_normal((*query.shape[:-1], value.shape[-1])).astype(query.dtype)
    grads = backward(grad_output, *arrays, **options)
    options.pop("wanted", None)
    check_gradients(grads, grad_output, *arrays, **options)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": -0.7},
    "no scale": {"scale": 0},
    "softcap": {"softcap": 0.8},
    "causal": {"is_causal": True, "q_offset": 470},
    "window": {"window_size": (40, 3), "q_offset": [0, 300]},
    "offset from the end": {"is_causal": True, "q_offset": "end", "kv_lengths": [600, 77]},
    "lengths": {"q_lengths": [7, 130], "kv_lengths": [555, 0]},
    "starts": {"kv_starts": [0, 543]},
    "mask": {"mask": numbers(FULL) > 0},
    "mask of keys": {"mask": numbers((2, 1, 1, 600)) > 0},
    "blocks": {"mask": BlockMask(numbers((4, 3, 10)) > 0, (50, 64))},
    "alibi": {"alibi_slopes": abs(numbers((4,))), "q_offset": 100},
    "alibi of each row": {"alibi_slopes": abs(numbers((2, 4))) / 8, "q_offset": [-1, 300]},
    "sinks": {"sink_logits": numbers((4,)) + 5, "q_lengths": [2, 130], "kv_lengths": [600, 0]},
    **{
        f"bias {shape}": {"bias": numbers(shape), "grad_lse": numbers(FULL[:-1])}
        for shape in [
            *(FULL, FULL[1:], (1, *FULL[1:]), FULL[2:], (2, 1, 1, 600), (600,)),
            *((4, 1, 1), (2, 1, 130, 1), (130, 1), (2, 4, 1, 1), (), (1, 1)),
        ]
    },
    "bias that hides": {"bias": np.where(numbers(FULL) > 0, numbers(FULL), -np.inf)},
    "large scores": {"bias": 300 * numbers((600,)), "sink_logits": 300 * numbers((4,))},
    "all": {
        **{"scale": 0.6, "softcap": 1.5, "alibi_slopes": abs(numbers((2, 4))) / 9},
        **{"bias": numbers((4, 1, 600)), "sink_logits": numbers((4,)), "is_causal": True},
        **{"mask": numbers(FULL) > -1, "window_size": (300, 1), "q_offset": [100, 480]},
        **{"grad_lse": numbers(FULL[:-1]), "grad_weights": numbers(FULL)},
    },
}


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
class TestInFloat64:
    """Grouped heads, a key of one batch row for two and a value without batch axes."""

    @pytest.mark.parametrize("options", CASES.values(), ids=CASES)
    def test_options(self, rng, options):
        q, k, v = qkv(rng, 130, 600, 20, 13, heads=4, kv_heads=2, dtype=np.float64)
        check(rng, (q, k[:1], v[0]), **options)

    @pytest.mark.parametrize("wanted", [("query",), ("value",), ("key", "bias"), ()], ids=str)
    def test_only_what_is_wanted(self, rng, wanted):
        arrays = qkv(rng, 70, 90, 9, dtype=np.float64)
        grad_output = rng.standard_normal(arrays[0].shape)
        bias = numbers((70, 90))
        everything = backward(grad_output, *arrays, bias=bias)
        some = backward(grad_output, *arrays, bias=bias, wanted=wanted)
        for name in NAMES:
            mine = getattr(some, name)
            assert (mine is not None) == (name in wanted)
            if mine is not None:
                np.testing.assert_allclose(mine, getattr(everything, name), rtol=0, atol=1e-13)

    @pytest.mark.parametrize("lq", [0, 1, 1600])
    @pytest.mark.parametrize("lk", [0, 1, 3])
    @pytest.mark.parametrize("d", [0, 4])
    def test_sizes(self, rng, lq, lk, d):
        check(rng, qkv(rng, lq, lk, d, 3, dtype=np.float64))
        check(rng, tuple(a[0, 0] for a in qkv(rng, lq, lk, 3, d, dtype=np.float64)))

    def test_several_panels(self, rng):
        arrays = qkv(rng, 1700, 700, 8, heads=3, kv_heads=1, batch=(), dtype=np.float64)
        check(rng, arrays, is_causal=True, q_offset=-500)

    @pytest.mark.parametrize("bias", [(), (1, 1700)], ids=["", "bias of all rows"])
    def test_panels_that_see_few_ranges(self, rng, bias):
        arrays = qkv(rng, 400, 1700, 3, heads=2, kv_heads=1, batch=(), dtype=np.float64)
        options = {"bias": numbers(bias)} if bias else {}
        check(rng, arrays, window_size=(60, 30), q_offset=900, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_dtypes(rng, dtype, each_isa):
    arrays = qkv(rng, 200, 600, 40, 24, heads=4, kv_heads=2, dtype=dtype)
    weights = numbers((2, 4, 200, 600)).astype(dtype)
    each_isa(lambda: check(rng, arrays, is_causal=True, q_offset=350, softcap=3.0))
    each_isa(lambda: check(rng, arrays, bias=numbers((600,)), grad_weights=weights))


@pytest.mark.parametrize("function", ["attention", "local_attention"])
def test_large_scores_that_are_exact(rng, function, each_isa):
    """The lse of scores near 2**20 is rounded by up to 3 %, the scores are not."""
    q, k, v = qkv(rng, 130, 600, 8, heads=2)
    bias = rng.integers(0, 4, (130, 600)).astype(np.float32)
    options = {"window_size": 900, "global_tokens": [5, 70], "q_offset": 0}
    options = options if function == "local_attention" else {}
    forward, pull = getattr(attnfast, function), getattr(attnfast, f"{function}_backward")

    def compare() -> None:
        near, far = [], []
        for shift, grads in ((0, near), (2**20, far)):
            given = {"bias": bias + np.float32(shift), "scale": 0, **options}
            output, lse, _ = forward(q, k, v, return_lse=True, **given)
            wanted = "value", "bias"
            found = pull(np.ones_like(output), q, k, v, output, lse, wanted=wanted, **given)
            grads += [found.value, found.bias]
        for a, b in zip(near, far, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

    each_isa(compare)


DRAWN = {"attention": calls(), "blocks": block_masked_calls()}


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_calls(name):
    @settings(max_examples=3 * EXAMPLES // 5)
    @given(DRAWN[name], st.integers(0, 2**32))
    def run(call, seed):
        arrays, options = arguments_of(call)
        check(np.random.default_rng(seed), arrays, **options)

    run()


def arguments_of(call: Any) -> Any:
    names = ("return_lse", "return_weights")
    options = {n: x for n, x in call.options.items() if n not in names and x is not None}
    return (call.query, call.key, call.value), options


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("case", ["plain", "all", "bias ()", "blocks", "window"])
def test_the_same_bits_for_any_number_of_threads(rng, case, threads):
    q, k, v = qkv(rng, 130, 600, 20, 13, heads=4, kv_heads=2, dtype=np.float64)
    grad_output = rng.standard_normal((2, 4, 130, 13))
    one, more = (
        with_every_thread(backward, grad_output, q, k[:1], v, num_threads=n, **CASES[case])
        for n in (1, threads)
    )
    assert_same(one, more)


@pytest.mark.parametrize("shape", [(), (1, 1, 1600, 2100), (2, 1, 1600, 2100), (1, 2, 1, 2100)])
@pytest.mark.parametrize("options", [{}, {"window_size": 90, "q_offset": [-20, 900]}])
def test_the_same_bits_with_panels_in_flight(rng, shape, options):
    q, k, v = qkv(rng, 1600, 2100, 4, heads=2)
    grad_output = rng.standard_normal(q.shape).astype(np.float32)
    options = options | ({"bias": numbers(shape).astype(np.float32)} if shape else {})
    alone = backward(grad_output, q, k[:1], v, num_threads=1, **options)
    for threads in (2, 7):
        options["num_threads"] = threads
        shared = with_every_thread(backward, grad_output, q, k[:1], v, **options)
        assert_same(alone, shared, f"{threads} threads")


def test_a_batch_row_alone(rng):
    arrays = qkv(rng, 900, 700, 16, heads=4, kv_heads=2)
    grad_output = rng.standard_normal((2, 4, 900, 16)).astype(np.float32)
    both = backward(grad_output, *arrays, is_causal=True, q_offset=-100)
    for row in (0, 1):
        alone = backward(grad_output[row], *(a[row] for a in arrays), is_causal=True, q_offset=-100)
        assert_same(alone, type(both)(*(a if a is None else a[row] for a in both)))


@pytest.mark.usefixtures("isa")
class TestHidden:
    @pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
    def test_what_is_hidden_gives_and_gets_nothing(self, rng, dtype):
        """Keys and values that no query sees, queries and losses that see no key."""
        q, k, v = qkv(rng, 300, 330, 20, 13, heads=4, kv_heads=2, dtype=dtype)
        g = rng.standard_normal((2, 4, 300, 13)).astype(dtype)
        mask = rng.random((2, 1, 300, 330)) < 0.4
        keys, queries = np.isin(np.arange(330), range(100, 110)), np.arange(300) % 60 == 7
        mask[..., keys] = False
        mask[..., queries, :] = False
        options = {"mask": mask, "kv_lengths": [280, 330], "is_causal": True, "q_offset": 20}
        options["sink_logits"] = numbers((4,))
        grads = backward(g, q, k, v, **options)
        assert not grads.key[:, :, keys].any() and not grads.value[:, :, keys].any()
        assert not grads.key[0, :, 280:].any() and not grads.query[:, :, queries].any()
        padding = keys | (np.arange(330) >= np.array([280, 330])[:, None, None])
        for poison in (np.nan, np.inf):
            changed = [poisoned(a, queries, poison) for a in (g, q)]
            changed += [poisoned(a, padding, poison) for a in (k, v)]
            assert_same(backward(*changed, **options), grads, str(poison))

    @pytest.mark.parametrize("name", ["query", "key", "value", "grad_output"])
    @pytest.mark.parametrize("losses", [False, True], ids=["output", "losses"])
    def test_nan_reaches_those_who_see_it(self, rng, name, losses):
        q, k, v = qkv(rng, 200, 200, 9, dtype=np.float64)
        arrays = {"grad_output": numbers(q.shape), "query": q, "key": k, "value": v}
        arrays[name][0, 0, 77, 3] = np.nan
        if losses:
            arrays["grad_weights"] = numbers((*q.shape[:-1], 200))
        grads = backward(**arrays, is_causal=True)
        exact = reference.attention_backward(**arrays, output=None, lse=None, is_causal=True)
        for other in NAMES[:3]:
            got, expected = getattr(grads, other), getattr(exact, other)
            np.testing.assert_array_equal(np.isnan(got), np.isnan(expected), err_msg=other)


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_calls_hide(name):
    @settings(max_examples=2 * EXAMPLES // 5)
    @given(DRAWN[name], st.integers(0, 2**32))
    def run(call, seed):
        rng = np.random.default_rng(seed)
        arrays, options = arguments_of(call)
        query, _, value = same_batch(*arrays)
        g = rng.standard_normal((*query.shape[:-1], value.shape[-1])).astype(query.dtype)
        grads = backward(g, *arrays, **options)
        for poison in call.poisoned([np.nan, np.inf]):
            assert_same(backward(g, *arguments_of(poison)[0], **options), grads)
        for other in ("key", "value"):
            grad = getattr(grads, other)
            rows = np.broadcast_to(call.unseen(getattr(call, other)), grad.shape[:-1])
            assert not grad[rows].any()

    run()


@pytest.mark.quick
def test_arguments_are_checked():
    x = np.ones((2, 3, 8), np.float32)
    lse = np.zeros((2, 3), np.float32)
    for wrong, error, message in [
        ({"grad_output": x[..., :7]}, ValueError, r"grad_output must have shape \(2, 3, 8\), got"),
        ({"grad_output": x.astype(float)}, TypeError, r"grad_output has dtype float64 .*astype"),
        ({"output": x[:1]}, ValueError, r"output must have shape \(2, 3, 8\), got \(1, 3, 8\)"),
        ({"lse": lse[..., None]}, ValueError, r"lse must have shape \(2, 3\), got \(2, 3, 1\)"),
        ({"grad_lse": lse[0]}, ValueError, r"grad_lse must have shape \(2, 3\), got \(3,\)"),
        ({"grad_weights": x}, ValueError, r"grad_weights must have shape \(2, 3, 3\)"),
        ({"wanted": "key"}, TypeError, r"wanted must be a tuple .*write wanted=\('key',\)"),
        ({"wanted": ("lse",)}, ValueError, r"wanted may name query, .*got 'lse'"),
        ({"wanted": ("bias",)}, ValueError, r"wanted names bias, .*pass bias="),
        ({"causal": True}, TypeError, r"is_causal=True"),
    ]:
        arguments = {
            **{"grad_output": x, "query": x, "key": x, "value": x, "output": x, "lse": lse},
            **wrong,
        }
        with pytest.raises(error, match=message):
            attnfast.attention_backward(**arguments)
