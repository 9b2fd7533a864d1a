"""The gradients of the reference: against central differences, and hidden keys in them.

A loss is a random linear function of everything that a call returns, in extended precision where
the machine has it. Steps are powers of two and directions have few bits: no step is rounded.
"""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnfast import reference
from support.arrays import poisoned, qkv, same_batch
from support.draws import additive_calls, block_masked_calls, calls, local_calls

STEP = 2.0**-22 if np.finfo(np.longdouble).eps < 1e-18 else 2.0**-18
DIFFERENTIABLE = (
    *("query", "key", "value", "bias", "sink_logits", "alibi_slopes"),
    *("centers", "score_weight", "score_bias"),
)
FULL = (2, 4, 3, 5)  # B, H, Lq, Lk of the small calls


class Problem:
    """A call and a loss on its results; `function` is named as in the reference."""

    def __init__(self, rng: np.random.Generator, function: str, **arguments: Any) -> None:
        self.function, self.arguments = function, arguments
        self.factors = [None if a is None else randn(rng, a.shape) for a in self.run(arguments)]
        centers = arguments.get("centers")
        self.names = [
            name
            for name in DIFFERENTIABLE
            if arguments.get(name) is not None and (name != "centers" or centers.dtype.kind == "f")
        ]

    def run(self, arguments: dict[str, Any], dtype: Any = np.longdouble) -> Any:
        flags: dict[str, Any] = {"return_lse": True}
        if self.function != "attention_varlen":
            flags["return_weights"] = True
        return getattr(reference, self.function)(**arguments, **flags, compute_dtype=dtype)

    def loss(self, **changed: Any) -> tuple[Any, Any]:
        """The loss, and the sum of the sizes of its terms."""
        results = self.run({**self.arguments, **changed})
        terms = [
            (np.where(np.isinf(a), 0, a) * factor).ravel()  # an lse of -inf is a constant
            for a, factor in zip(results, self.factors, strict=True)
            if a is not None
        ]
        every = np.concatenate(terms)
        return every.sum(), np.abs(every).sum()

    def gradients(self, **changed: Any) -> dict[str, np.ndarray]:
        output, lse, weights = self.factors
        names = {"grad_output": output, "grad_lse": lse, "grad_weights": weights}
        given = {n: x for n, x in names.items() if x is not None}
        everything = {"output": None, "lse": None, **given, **self.arguments, **changed}
        backward = getattr(reference, f"{self.function}_backward")
        grads = backward(wanted=tuple(self.names), **everything)
        unwanted = grads._asdict().keys() - self.names
        assert all(getattr(grads, name) is None for name in unwanted)
        return {name: getattr(grads, name) for name in self.names}

    def difference(self, name: str, direction: Any) -> tuple[Any, Any]:
        """The derivative along a direction, and how far rounding may move it."""
        x = np.asarray(self.arguments[name]).astype(np.longdouble)
        up, size = self.loss(**{name: x + STEP * direction})
        down, _ = self.loss(**{name: x - STEP * direction})
        return (up - down) / (2 * STEP), 20 * np.finfo(np.longdouble).eps * size / STEP


def randn(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers of few bits."""
    return np.round(rng.standard_normal(shape) * 256) / 256


def check_each_element(problem: Problem) -> None:
    for name, grad in problem.gradients().items():
        x = np.asarray(problem.arguments[name])
        assert grad.shape == x.shape and grad.dtype == np.float64
        numeric = np.empty(x.shape)
        for at in np.ndindex(x.shape):
            unit = np.zeros(x.shape)
            unit[at] = 1
            numeric[at], _ = problem.difference(name, unit)
        scale = np.abs(numeric).max(initial=0)
        np.testing.assert_allclose(grad, numeric, rtol=0, atol=1e-6 * scale + 1e-10, err_msg=name)


def check_along_a_direction(problem: Problem, rng: np.random.Generator) -> None:
    for name, grad in problem.gradients().items():
        direction = randn(rng, grad.shape)
        numeric, rounding = problem.difference(name, direction)
        terms = grad * direction
        bound = 1e-6 * np.abs(terms).sum() + rounding
        assert abs(terms.sum() - numeric) <= bound, (name, terms.sum(), numeric)


def numbers(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


OF_ATTENTION: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": -0.7},
    "softcap": {"softcap": 0.8},
    "causal": {"is_causal": True, "q_offset": 1},
    "window": {"window_size": (1, 2), "q_offset": [0, 2]},
    "offset from the end": {"is_causal": True, "q_offset": "end", "kv_lengths": [5, 3]},
    "lengths": {"q_lengths": [2, 3], "kv_lengths": [4, 0]},
    "mask": {"mask": numbers(FULL) > 0},
    "alibi": {"alibi_slopes": numbers((4,)), "q_offset": 1},
    "alibi of each row": {"alibi_slopes": numbers((2, 4)), "q_offset": [-1, 3]},
    "sinks": {"sink_logits": numbers((4,)), "q_lengths": [2, 3], "kv_lengths": [5, 0]},
    "dropout": {"dropout": 0.4, "dropout_seed": 3},
    **{
        f"bias {shape}": {"bias": numbers(shape)}
        for shape in [FULL, (4, 3, 5), (2, 1, 1, 5), (4, 1, 1), (3, 1), (1, 5), (5,), ()]
    },
    "bias that hides": {"bias": np.where(numbers(FULL) > 0, numbers(FULL), -np.inf)},
    "all": {
        **{"scale": 0.6, "softcap": 1.5, "alibi_slopes": numbers((2, 4)), "dropout": 0.2},
        **{"bias": numbers((4, 1, 5)), "sink_logits": numbers((4,)), "is_causal": True},
        **{"mask": numbers(FULL) > -1, "window_size": (3, 1), "q_offset": [1, 2]},
    },
}
OF_LOCAL: dict[str, dict[str, Any]] = {
    "dilation": {"window_size": 1, "dilation": [1, 2, 2, 3], "q_offset": 1},
    "global tokens": {"window_size": 0, "global_tokens": [[3], [0]], "q_offset": 0},
    "local-m": {"window_size": 1, "centers": np.array([0, 4, 2])},
    "local-p": {"window_size": 2, "centers": numbers((2, 4, 3)) + 2, "sigma": 0.9},
    "centers of all heads": {"window_size": 2, "centers": np.array([0.3, 4.1, 2.6]), "sigma": 2},
    "all": {
        **{"window_size": (3, 2), "centers": numbers((4, 1)) + 2, "sigma": 1.2, "dropout": 0.3},
        **{"softcap": 1.5, "bias": numbers((5,)), "sink_logits": numbers((4,))},
    },
}
OF_ADDITIVE: dict[str, dict[str, Any]] = {
    "plain": {},
    "one weight for all heads": {"score_weight": numbers((4,)), "score_bias": numbers((4,), 2)},
    "weights of each head": {"score_weight": numbers((4, 4)), "score_bias": numbers((4, 4), 2)},
    "all": {
        **{"score_weight": numbers((4,)), "score_bias": numbers((4, 4)), "softcap": 1.5},
        **{"bias": numbers((3, 1)), "dropout": 0.3, "kv_lengths": [2, 5]},
    },
}


@pytest.mark.quick
class TestEachElement:
    """Grouped heads, a key of one batch row for two and a value without batch axes."""

    def check(self, rng, function, options):
        q, k, v = qkv(rng, 3, 5, 4, 3, heads=4, kv_heads=2, dtype=np.float64)
        check_each_element(Problem(rng, function, query=q, key=k[:1], value=v[0], **options))

    @pytest.mark.parametrize("options", OF_ATTENTION.values(), ids=OF_ATTENTION)
    def test_of_attention(self, rng, options):
        self.check(rng, "attention", options)

    @pytest.mark.parametrize("options", OF_LOCAL.values(), ids=OF_LOCAL)
    def test_of_local_attention(self, rng, options):
        self.check(rng, "local_attention", options)

    @pytest.mark.parametrize("options", OF_ADDITIVE.values(), ids=OF_ADDITIVE)
    def test_of_additive_attention(self, rng, options):
        self.check(rng, "additive_attention", options)

    @pytest.mark.parametrize("slopes", [(4,), (3, 4)], ids=str)
    def test_of_packed_attention(self, rng, slopes):
        q, k, v = qkv(rng, 5, 7, 3, 2, heads=4, kv_heads=2, batch=(), dtype=np.float64)
        arrays = dict(zip(("query", "key", "value"), (q, k, v), strict=True))
        problem = Problem(
            rng,
            "attention_varlen",
            **{name: a.swapaxes(0, 1) for name, a in arrays.items()},
            **{"cu_q": [0, 2, 2, 5], "cu_k": [0, 3, 3, 7], "q_offset": "end", "is_causal": True},
            **{"alibi_slopes": numbers(slopes), "sink_logits": numbers((4,)), "softcap": 2.0},
            **{"dropout": 0.3, "dropout_seed": 1},
        )
        check_each_element(problem)

    def test_of_merged_attention(self, rng):
        parts, step = (3, 2, 4), STEP
        outputs, lses = rng.standard_normal((*parts, 5)), rng.standard_normal(parts)
        lses[0, 0, 0] = lses[:, 1, 1] = -np.inf
        g, by_lse = rng.standard_normal((*parts[1:], 5)), rng.standard_normal(parts[1:])
        grads = reference.merge_attention_backward(g, outputs, lses, grad_lse=by_lse)

        def loss(outputs, lses):
            out, lse, _ = reference.merge_attention(outputs, lses, compute_dtype=np.longdouble)
            return (out * g).sum() + (np.where(np.isinf(lse), 0, lse) * by_lse).sum()

        arrays = [outputs.astype(np.longdouble), lses.astype(np.longdouble)]
        for n, grad in enumerate(grads):
            numeric = np.empty(grad.shape)
            for at in np.ndindex(grad.shape):
                ends = []
                for side in (step, -step):
                    moved = [a.copy() for a in arrays]
                    moved[n][at] += side
                    ends.append(loss(*moved))
                numeric[at] = (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose(grad, numeric, rtol=1e-6, atol=1e-10)

    def test_merging_parts_gives_the_gradients_of_the_whole(self, rng):
        q, k, v = qkv(rng, 3, 6, 4, dtype=np.float64)
        g = rng.standard_normal((*q.shape[:-1], 4))
        halves = [(k[..., s, :], v[..., s, :]) for s in (slice(0, 2), slice(2, 6))]
        parts = [reference.attention(q, *kv, return_lse=True)[:2] for kv in halves]
        outputs, lses = (np.stack(a) for a in zip(*parts, strict=True))
        by_parts = reference.merge_attention_backward(g, outputs, lses)
        grads = [
            reference.attention_backward(by_output, q, *kv, None, None, grad_lse=by_lse)
            for kv, by_output, by_lse in zip(halves, *by_parts, strict=True)
        ]
        whole = reference.attention_backward(g, q, k, v, None, None)
        np.testing.assert_allclose(grads[0].query + grads[1].query, whole.query, atol=1e-14)
        for name in ("key", "value"):
            joined = np.concatenate([getattr(part, name) for part in grads], axis=-2)
            np.testing.assert_allclose(joined, getattr(whole, name), atol=1e-14)


FLOAT64 = (np.dtype(np.float64),)
DRAWN = {
    "attention": calls(FLOAT64, 3000),
    "blocks": block_masked_calls(FLOAT64, 3000),
    "local": local_calls(FLOAT64, 3000),
    "additive": additive_calls(FLOAT64),
}


def problem_of(call: Any, rng: np.random.Generator) -> Problem:
    """A drawn call, without what differences of float64 cannot see."""
    options = dict(call.options)
    for name in ("return_lse", "return_weights", "num_threads"):
        options.pop(name, None)
    if "bias" in options:  # beside a score of -1e9 a step is rounded away
        bias = options["bias"].astype(np.float64)
        options["bias"] = np.where(bias < -100, np.where(bias == -np.inf, bias, -100), bias)
    if options.get("sigma") is not None:  # no key enters or leaves a window within a step
        options["centers"] = (np.floor(options["centers"] * 64.0) + 0.5) / 64
    arrays = {"query": call.query, "key": call.key, "value": call.value}
    return Problem(rng, call.function, **arrays, **options)


@pytest.mark.parametrize("name", DRAWN)
def test_along_a_direction(name):
    @settings(max_examples=40)
    @given(DRAWN[name], st.integers(0, 2**32))
    def run(call, seed):
        rng = np.random.default_rng(seed)
        check_along_a_direction(problem_of(call, rng), rng)

    run()


@pytest.mark.parametrize("name", DRAWN)
def test_hidden_keys_give_and_get_nothing(name):
    @settings(max_examples=40)
    @given(DRAWN[name], st.integers(0, 2**32))
    def run(call, seed):
        rng = np.random.default_rng(seed)
        problem = problem_of(call, rng)
        hidden = hidden_pairs(call, problem)
        blind = hidden.all(axis=-1)
        grads = problem.gradients()
        changed = {"grad_output": poisoned(problem.factors[0], blind, np.nan)}
        changed["grad_weights"] = np.where(hidden, np.nan, problem.factors[2])
        if problem.arguments.get("sink_logits") is None:
            changed["grad_lse"] = np.where(blind, np.nan, problem.factors[1])
        for poison in call.poisoned([np.nan, np.inf]):
            arrays = {"key": poison.key, "value": poison.value}
            for other, grad in problem.gradients(**changed, **arrays).items():
                np.testing.assert_array_equal(grad, grads[other], err_msg=other)
        for other in ("key", "value"):
            rows = np.broadcast_to(call.unseen(getattr(call, other)), grads[other].shape[:-1])
            assert not grads[other][rows].any()
        if call.query.shape[:-1] == blind.shape:
            assert not grads["query"][blind].any()
        bias = problem.arguments.get("bias")
        if bias is not None and bias.shape == hidden.shape:
            assert not grads["bias"][hidden].any()

    run()


def hidden_pairs(call: Any, problem: Problem) -> np.ndarray:
    """Pairs (..., H, Lq, Lk) that are excluded."""
    own = ("return_lse", "score_weight", "score_bias", "sigma", "sink_logits")
    options = {n: x for n, x in problem.arguments.items() if n not in own}
    for name in ("query", "key", "value", "dropout", "dropout_seed"):
        options.pop(name, None)
    query, key, _ = same_batch(call.query, call.key, call.value)
    return reference.attention_weights(query * 0, key * 0, stage="biased", **options) == -np.inf


@pytest.mark.quick
def test_a_key_that_some_queries_see():
    """Stored NaN reaches the gradients of those that see it, and of no other query."""
    x = np.ones((3, 2))
    k = x.copy()
    k[2] = np.nan
    grads = reference.attention_backward(x, x, k, x, None, None, is_causal=True)
    assert np.isfinite(grads.query[:2]).all() and np.isnan(grads.query[2]).all()
    value = x.copy()
    value[2] = np.inf
    grads = reference.attention_backward(x, x, x, value, None, None, is_causal=True)
    assert np.isfinite(grads.query[:2]).all() and not np.isfinite(grads.query[2]).any()


@pytest.mark.quick
def test_by_hand():
    # Weights 1/4 and 3/4; the output falls by 3/16 of what the first score rises.
    q, k, v = [[1.0]], [[0.0], [math.log(3)]], [[4.0], [8.0]]
    grads = reference.attention_backward([[1.0]], q, k, v, None, None)
    np.testing.assert_allclose(grads.value, [[0.25], [0.75]])
    np.testing.assert_allclose(grads.key, [[-0.75], [0.75]])
    np.testing.assert_allclose(grads.query, [[0.75 * math.log(3)]])
    assert grads.bias is None and grads.sink_logits is None


@pytest.mark.quick
@pytest.mark.parametrize("lq", [0, 2])
@pytest.mark.parametrize("lk", [0, 3])
@pytest.mark.parametrize("d", [0, 4])
@pytest.mark.parametrize("dv", [0, 5])
def test_empty_axes(lq, lk, d, dv):
    q, k, v = np.ones((2, 4, lq, d)), np.ones((2, 2, lk, d)), np.ones((2, 2, lk, dv))
    g = np.ones((2, 4, lq, dv))
    for backward, more in [
        (reference.attention_backward, {}),
        (reference.additive_attention_backward, {}),
        (reference.local_attention_backward, {"window_size": 1, "q_offset": 0}),
    ]:
        grads = backward(g, q, k, v, None, None, **more)
        assert [a.shape for a in grads[:3]] == [q.shape, k.shape, v.shape]
    nothing = reference.attention_varlen_backward(
        *(g[0, :, :0], q[0, :, :0], k[0, :, :0], v[0, :, :0]), None, None, cu_q=[0], cu_k=[0]
    )
    assert nothing.query.shape == q[0, :, :0].shape


@pytest.mark.quick
def test_compute_dtype_is_the_dtype_of_everything(rng):
    q, k, v = qkv(rng, 4, 4)
    options = {
        **{"bias": np.zeros((4, 4)), "alibi_slopes": np.ones(2), "sink_logits": np.zeros(2)},
        **{"softcap": np.float64(3.0), "scale": np.float64(0.5), "dropout": 0.5},
    }
    names = ("query", "key", "value", "bias", "alibi_slopes", "sink_logits")
    for dtype in (np.float32, np.float64, np.longdouble):
        grads = reference.attention_backward(
            v, q, k, v, None, None, **options, wanted=names, compute_dtype=dtype
        )
        assert {getattr(grads, name).dtype for name in names} == {np.dtype(dtype)}
