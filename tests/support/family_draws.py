"""Hypothesis strategies for calls of every function, with `out`, NaN and bad arguments."""

import inspect
from typing import Any

import numpy as np
from hypothesis import strategies as st

import attnfast
from support.arrays import DTYPES, POISON, compute_dtype, poisoned, randn, same_batch
from support.bad_cases import cases
from support.criterion import SCORE_OPTIONS
from support.dice import DICE
from support.draws import (
    MOST_PAIRS,
    additive_calls,
    block_mask_of,
    calls,
    local_calls,
)
from support.layouts import EDGES, LAYOUTS, lay_out

STAGES = ("scores", "capped", "biased", "weights")


def packed(
    rng: np.random.Generator,
    q_lengths: Any,
    k_lengths: Any,
    d: int = 16,
    dv: int | None = None,
    *,
    heads: int = 2,
    kv_heads: int = 2,
    dtype: Any = np.float32,
) -> tuple[np.ndarray, ...]:
    """Query, key, value, cu_q and cu_k."""
    rows, keys = sum(q_lengths), sum(k_lengths)
    arrays = (
        randn(rng, (rows, heads, d), dtype),
        randn(rng, (keys, kv_heads, d), dtype),
        randn(rng, (keys, kv_heads, d if dv is None else dv), dtype),
    )
    return *arrays, np.cumsum([0, *q_lengths]), np.cumsum([0, *k_lengths])


@st.composite
def varlen_calls(draw: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Sequences of any lengths, and every option."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(0, 6))
    size = st.integers(0, 4) | st.sampled_from([e for e in EDGES if e < 140])
    q_lengths = draw(st.lists(size, min_size=n, max_size=n))
    k_lengths = draw(st.just(q_lengths) | st.lists(size, min_size=n, max_size=n))
    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    heads, d = kv_heads * group, draw(st.sampled_from([1, 8, 33, 64]))
    dtype = draw(st.sampled_from(DTYPES))
    arrays = packed(
        *(rng, q_lengths, k_lengths, d, draw(st.sampled_from([d, 5, 17]))),
        heads=heads,
        kv_heads=kv_heads,
        dtype=dtype,
    )
    layouts = [draw(st.sampled_from(LAYOUTS)) for _ in range(3)]
    laid_out = [lay_out(a, x) for a, x in zip(arrays[:3], layouts, strict=True)]
    options = {
        "is_causal": st.just(True),
        "window_size": st.sampled_from([0, 5, (40, 3), (-1, 2), (None, 70)]),
        "q_offset": st.just("end") | st.integers(-9, 99) | st.just(rng.integers(-9, 99, n)),
        "scale": st.sampled_from([0.0, 0.3, -1.0]),
        "softcap": st.sampled_from([0.5, 30.0]),
        "alibi_slopes": st.sampled_from([(heads,), (n, heads)]).map(rng.standard_normal),
        "sink_logits": st.just(rng.standard_normal(heads)),
        "num_threads": st.integers(1, 3),
    }
    options = {name: draw(x) for name, x in options.items() if draw(st.integers(0, 2)) == 0}
    if q_lengths != k_lengths:
        options.setdefault("q_offset", "end")
    return [*laid_out, *arrays[3:]], options


class AnyCall:
    """A function of the package by its name, and what it is called with."""

    def __init__(self, function: str, arguments: dict[str, Any], **options: Any) -> None:
        self.function, self.arguments = function, {**arguments, **options}

    def run(self) -> Any:
        """Of gradients, what the call returned that they are of, and the gradients."""
        function, name = getattr(attnfast, self.function), self.function.removesuffix("_backward")
        if "output" not in inspect.signature(function).parameters:
            return function(**self.arguments)
        forward = getattr(attnfast, name)
        taken = inspect.signature(forward).parameters
        given = {n: x for n, x in self.arguments.items() if n in taken}
        result = forward(**given, return_lse=True)
        returned = {"output": result.output, "lse": result.lse, **self.arguments}
        return *result[:2], *function(**returned)

    def __repr__(self) -> str:
        def show(x: Any) -> str:
            if isinstance(x, np.ndarray) and x.size > 8:
                return f"<{x.dtype} {x.shape} strides {x.strides}>"
            return repr(x)

        return f"{self.function}({', '.join(f'{n}={show(x)}' for n, x in self.arguments.items())})"


def any_calls(function: str) -> st.SearchStrategy[AnyCall]:
    """Calls of one function: some hold NaN, infinity or huge numbers, some a bad argument."""
    return _spoiled(_poisoned(DRAWN[function]()))


@st.composite
def _attention(draw: Any, strategy: Any = None) -> AnyCall:
    """`attention`, or another function of the same form."""
    call = draw(calls() if strategy is None else strategy)
    if draw(st.integers(0, 5)) == 5:
        call.options["mask"] = draw(DICE.map(lambda dice: block_mask_of(dice, call)))
    operands = {"query": call.query, "key": call.key, "value": call.value}
    drawn = AnyCall(call.function, operands, **call.options)
    if draw(st.integers(0, 7)) == 7:
        query = same_batch(call.query, call.key, call.value)[0]
        shape = (*query.shape[:-1], call.value.shape[-1])
        drawn.arguments["out"] = draw(_outs(shape, call.query.dtype))
    return drawn


@st.composite
def _outs(draw: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    out = np.full(shape, 7, dtype.newbyteorder("="))
    layout = draw(st.sampled_from([x for x in LAYOUTS if x not in ("big-endian", "read-only")]))
    return lay_out(out, layout) if out.ndim > 1 else out


@st.composite
def _without_value(draw: Any, function: str, own: dict[str, Any]) -> AnyCall:
    """A function of query and key with options of its own, which may be functions of Lk."""
    call = draw(calls(most_pairs=MOST_PAIRS))
    if draw(st.integers(0, 5)) == 5:
        call.options["mask"] = draw(DICE.map(lambda dice: block_mask_of(dice, call)))
    query, _, _ = same_batch(call.query, call.key, call.value)
    lk = call.key.shape[-2]
    names = (*SCORE_OPTIONS, "num_threads")
    options = {name: x for name, x in call.options.items() if name in names}
    options |= {n: draw(x(lk) if callable(x) else x) for n, x in own.items()}
    return AnyCall(function, {"query": query, "key": call.key}, **options)


def _numbers_of_keys(lk: int) -> st.SearchStrategy[int]:
    few = st.sampled_from([1, 2, 5, 8, 17, 64, 65, 100, 200, lk]).map(lambda k: min(k, lk))
    return few | st.integers(0, lk)


@st.composite
def _varlen(draw: Any) -> AnyCall:
    arrays, options = draw(varlen_calls())
    named = dict(zip(("query", "key", "value", "cu_q", "cu_k"), arrays, strict=True))
    if draw(st.integers(0, 4)) == 4:
        options |= {"dropout": draw(st.sampled_from([0.1, 0.5])), "dropout_seed": 5}
    call = AnyCall("attention_varlen", named, **options, return_lse=draw(st.booleans()))
    if draw(st.integers(0, 7)) == 7:
        query, value = named["query"], named["value"]
        call.arguments["out"] = draw(_outs((*query.shape[:-1], value.shape[-1]), query.dtype))
    return call


TRAINED = ("bias", "sink_logits", "alibi_slopes", "score_weight", "score_bias")


@st.composite
def _gradients(draw: Any, forward: Any) -> AnyCall:
    """The gradients of a call: of all that it has, or of some."""
    call = draw(forward)
    for name in ("out", "return_lse", "return_weights"):
        call.arguments.pop(name, None)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    query, key, value = (call.arguments[n] for n in ("query", "key", "value"))
    packed = "cu_q" in call.arguments
    if not packed:
        query = same_batch(query, key, value)[0]
    rows, dtype = query.shape[:-1], query.dtype.newbyteorder("=")
    grad_output = randn(rng, (*rows, value.shape[-1]), dtype)
    call.arguments["grad_output"] = lay_out(grad_output, draw(st.sampled_from(LAYOUTS)))
    if draw(st.booleans()):
        call.arguments["grad_lse"] = rng.standard_normal(rows)
    if not packed and draw(st.integers(0, 3)) == 3:
        call.arguments["grad_weights"] = randn(rng, (*rows, key.shape[-2]), dtype)
    names = ["query", "key", "value", *(n for n in TRAINED if n in call.arguments)]
    if call.arguments.get("sigma") is not None:
        names.append("centers")
    some = st.lists(st.sampled_from(names), unique=True).map(tuple)
    call.arguments["wanted"] = draw(st.just(tuple(names)) | some)
    call.function += "_backward"
    return call


@st.composite
def _merge(draw: Any, *, backward: bool = False) -> AnyCall:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = draw(st.sampled_from([(3,), (2, 5), (2, 1, 40), (0, 4)]))
    parts, dv = draw(st.integers(1, 4)), draw(st.sampled_from([1, 8, 33]))
    dtype = draw(st.sampled_from(DTYPES))
    lses = 3 * rng.standard_normal((parts, *rows))
    lses[rng.random(lses.shape) < 0.2] = -np.inf
    named = {"outputs": randn(rng, (parts, *rows, dv), dtype)}
    named["lses"] = lses.astype(compute_dtype(dtype))
    if not backward:
        return AnyCall("merge_attention", named)
    named["grad_output"] = randn(rng, (*rows, dv), dtype)
    if draw(st.booleans()):
        named["grad_lse"] = rng.standard_normal(rows)
    return AnyCall("merge_attention_backward", named)


@st.composite
def _rotate(draw: Any) -> AnyCall:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch = draw(st.sampled_from([(), (1,), (2, 3), (0, 2), (2, 2, 2)]))
    length, pairs = draw(st.sampled_from([1, 5, 40])), draw(st.integers(0, 40))
    x = randn(rng, (*batch, length, 2 * pairs), draw(st.sampled_from(DTYPES)))
    named = {"x": lay_out(x, draw(st.sampled_from(LAYOUTS))), "interleaved": draw(st.booleans())}
    named["positions"] = rng.integers(0, 50, (*batch[:-1], length))
    if draw(st.booleans()):
        angles = rng.random((50, draw(st.integers(0, pairs))))
        named["cos_sin"] = np.cos(angles), np.sin(angles)
    return AnyCall("rotate", named)


@st.composite
def _plan(draw: Any) -> AnyCall:
    call = draw(_attention())
    call.function = "plan"
    call.arguments["return_blocks"] = draw(st.booleans())
    return call


@st.composite
def _poisoned(draw: Any, strategy: Any) -> AnyCall:
    """One call in ten has rows that are not finite: of keys or values, seen or not, or of `x`."""
    call = draw(strategy)
    if draw(st.integers(0, 9)) == 9:
        names = [n for n in ("x", "key", "value", "grad_output", "outputs") if n in call.arguments]
        name = draw(st.sampled_from(names))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        array = call.arguments[name]
        rows = rng.random(array.shape[:-1]) < draw(st.sampled_from([0.01, 0.2, 1.0]))
        poison = draw(st.sampled_from(POISON))
        call.arguments[name] = poisoned(array, rows, poison)
    return call


@st.composite
def _spoiled(draw: Any, strategy: Any) -> AnyCall:
    """One call in twelve has an argument of another kind, shape or range, most of them illegal."""
    call = draw(strategy)
    if draw(st.integers(0, 11)) == 11:
        known = cases(call.function)
        _, name, bad, _ = known[draw(st.integers(0, len(known) - 1))]
        call.arguments[name] = bad
    return call


DRAWN = {
    "attention": _attention,
    "attention_weights": lambda: _without_value(
        "attention_weights", {"stage": st.sampled_from(STAGES)}
    ),
    "local_attention": lambda: _attention(local_calls()),
    "additive_attention": lambda: _attention(additive_calls()),
    "attention_topk": lambda: _without_value("attention_topk", {"k": _numbers_of_keys}),
    "key_importance": lambda: _without_value("key_importance", {"per_kv_head": st.booleans()}),
    "attention_varlen": _varlen,
    "merge_attention": _merge,
    "attention_backward": lambda: _gradients(_attention(calls(most_pairs=MOST_PAIRS))),
    "local_attention_backward": lambda: _gradients(_attention(local_calls())),
    "additive_attention_backward": lambda: _gradients(_attention(additive_calls())),
    "attention_varlen_backward": lambda: _gradients(_varlen()),
    "merge_attention_backward": lambda: _merge(backward=True),
    "rotate": _rotate,
    "plan": _plan,
}
