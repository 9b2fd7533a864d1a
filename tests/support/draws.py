"""Hypothesis strategies for whole calls: shapes, dtypes, memory layouts and every option."""

import math
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

import attnfast
from attnfast import reference
from support.arrays import DTYPES, compute_dtype, randn, same_batch
from support.criterion import LOCAL_OPTIONS, SCORE_OPTIONS, Criterion
from support.layouts import EDGES, LAYOUTS, lay_out


class Call:
    """The arguments of one call of `attention` or another function of the same form."""

    def __init__(
        self, query: Any, key: Any, value: Any, options: dict[str, Any], function: str = "attention"
    ) -> None:
        self.query, self.key, self.value, self.options = query, key, value, options
        self.function = function

    def run(self, **more: Any) -> Any:
        function = getattr(attnfast, self.function)
        return function(self.query, self.key, self.value, **{**self.options, **more})

    def criterion(self) -> Criterion:
        return Criterion(self.query, self.key, self.value, function=self.function, **self.options)

    def unseen(self, array: np.ndarray) -> np.ndarray:
        """The rows (..., L) of `array`, key or value, that no query sees."""
        named = (*SCORE_OPTIONS, *LOCAL_OPTIONS)
        options = {n: x for n, x in self.options.items() if n in named}
        query, key, _ = same_batch(self.query, self.key, self.value)
        biased = reference.attention_weights(query * 0, key * 0, stage="biased", **options)
        unseen = (biased == -np.inf).all(axis=-2)
        if unseen.ndim > 1:
            *batch, heads, lk = unseen.shape
            kv_heads = key.shape[-3]
            unseen = unseen.reshape((*batch, kv_heads, heads // kv_heads, lk)).all(axis=-2)
        # What is broadcast must be unseen in every batch row.
        unseen = unseen.all(axis=tuple(range(unseen.ndim - array.ndim + 1)))
        thin = tuple(axis for axis, n in enumerate(array.shape[:-1]) if n == 1)
        return unseen.all(axis=thin, keepdims=True)

    def alone(self) -> Iterator[tuple[tuple[int, ...], "Call"]]:
        """The index of each batch row and the call of this row alone."""
        arrays = same_batch(self.query, self.key, self.value)
        query, key, _ = arrays
        batch, full = query.shape[:-3], (*query.shape[:-1], key.shape[-2])
        for row in np.ndindex(*batch):
            options = dict(self.options)
            for name in ("q_lengths", "kv_lengths", "q_offset"):
                if np.ndim(options.get(name)):
                    options[name] = np.reshape(options[name], batch)[row]
            for name in ("alibi_slopes", "global_tokens"):
                if np.ndim(options.get(name)) > 1:
                    shape = (*batch, options[name].shape[-1])
                    options[name] = np.reshape(options[name], shape)[row]
            for name, shape in [("mask", full), ("bias", full), ("centers", full[:-1])]:
                if name in options and query.ndim > 2:
                    options[name] = np.broadcast_to(options[name], shape)[row]
            yield row, Call(*(a[row] for a in arrays), options, self.function)

    def __repr__(self) -> str:
        def show(x: Any) -> str:
            if isinstance(x, np.ndarray) and x.size > 8:
                return f"<{x.dtype} {x.shape} strides {x.strides}>"
            return repr(x)

        named = [f"{n}={show(getattr(self, n))}" for n in ("query", "key", "value")]
        named += [f"{n}={show(x)}" for n, x in self.options.items()]
        return f"Call({', '.join(named)})"


def _sizes(limit: int) -> st.SearchStrategy[int]:
    return (
        st.integers(0, 5)
        | st.sampled_from([n for n in EDGES if n <= limit])
        | st.integers(1, limit)
    )


@st.composite
def calls(draw: Any, dtypes: Any = tuple(DTYPES), most_pairs: int = 100_000) -> Call:
    """Any legal call whose scores are finite."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(dtypes))
    batch = draw(st.sampled_from([(), (), (1,), (2,), (3,), (2, 2), (1, 3)]))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 3, 4]))
    lq, lk = draw(_sizes(150)), draw(_sizes(300))
    if draw(st.booleans()):
        lq = min(lq, draw(st.integers(1, 4)))
        lk += draw(st.sampled_from([0, 512, 1500]))
    elif draw(st.booleans()):
        lq = lk = min(lq, lk)
    d = draw(st.sampled_from([1, 2, 3, 7, 8, 16, 24, 33, 40, 64, 65, 80, 128, 130]))
    dv = draw(st.sampled_from([d, d, 1, 5, 8, 17, 48, 64, 96]))
    while math.prod(batch) * kv_heads * group * lq * lk > most_pairs:
        batch, kv_heads, lk = batch[:-1], 1, lk - lk // 3
    heads = kv_heads * group
    full = (*batch, heads, lq, lk)

    amplitude = draw(st.sampled_from([0.0, 1.0, 1.0, 3.0, 100.0]))
    q_batch, k_batch, v_batch = (draw(_thinned(batch)) for _ in range(3))
    rank2 = batch == () and heads == 1 and draw(st.booleans())
    query = amplitude * rng.standard_normal((*q_batch, heads, lq, d))
    key = rng.standard_normal((*k_batch, kv_heads, lk, d))
    value = draw(st.sampled_from([1e-3, 1.0, 1e3])) * rng.standard_normal(
        (*v_batch, kv_heads, lk, dv)
    ) + draw(st.sampled_from([0.0, 0.0, 10.0]))
    arrays = []
    for a in (query, key, value):
        a = a.astype(dtype)
        if rank2:
            a = a[0]
        a = lay_out(a, draw(st.sampled_from(LAYOUTS)))
        if draw(st.integers(0, 15)) == 0 and a.shape[-2]:
            a = np.broadcast_to(a[..., :1, :], a.shape)
        arrays.append(a)
    batch = np.broadcast_shapes(q_batch, k_batch, v_batch)
    full = (*batch, heads, lq, lk)[2 if rank2 and not batch else 0 :]
    options = draw(_options(rng, full, batch, heads, lq, lk, dtype))
    return Call(*arrays, options)


@st.composite
def local_calls(draw: Any, dtypes: Any = tuple(DTYPES)) -> Call:
    """Any legal call of `local_attention`: windows in any place, global tokens, dilation."""
    call = draw(calls(dtypes, most_pairs=40_000))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    query, key, _ = same_batch(call.query, call.key, call.value)
    full, lk = query.shape[:-1], key.shape[-2]
    batch, heads = full[:-2], full[-2] if len(full) > 1 else 1
    options = call.options
    if options.get("window_size") is None:
        side = st.integers(0, 3) | st.integers(0, lk)
        options["window_size"] = draw(side | st.tuples(side, side))
    kind = draw(st.sampled_from(["window", "global", "dilation", "both", "local-m", "local-p"]))
    if kind in ("global", "both"):
        options["global_tokens"] = draw(_global_tokens(rng, batch, lk))
    if kind in ("dilation", "both"):
        step = st.integers(1, 4) | st.sampled_from([7, 16, 40])
        per_head = st.just(rng.integers(1, 6, heads))
        options["dilation"] = draw(step | per_head)
    if kind in ("local-m", "local-p"):
        shape = draw(_broadcastable(full, len(batch)))
        centers = rng.uniform(-5, lk + 5, shape)
        if kind == "local-m":
            options["centers"] = np.floor(centers).astype(draw(st.sampled_from(["i8", "i4"])))
        else:
            options["centers"] = centers.astype(draw(st.sampled_from(["f8", "f4"])))
            options["sigma"] = draw(st.sampled_from([0.3, 2, 10.0, 1000.0]))
        if options["centers"].ndim > 1:
            options["centers"] = lay_out(options["centers"], draw(st.sampled_from(LAYOUTS)))
    return Call(call.query, call.key, call.value, options, "local_attention")


@st.composite
def _global_tokens(draw: Any, rng: np.random.Generator, batch: tuple[int, ...], lk: int) -> Any:
    rows = draw(st.sampled_from([(), batch, (math.prod(batch),)]))
    if draw(st.booleans()):
        return rng.random((*rows, lk)) < draw(st.sampled_from([0.0, 0.02, 0.3, 1.0]))
    count = draw(st.integers(0, 4)) if lk else 0
    return rng.integers(0, max(lk, 1), (*rows, count)).astype(draw(st.sampled_from(["i8", "u2"])))


@st.composite
def additive_calls(draw: Any, dtypes: Any = tuple(DTYPES)) -> Call:
    """Any legal call of `additive_attention`."""
    call = draw(calls(dtypes, most_pairs=2500))
    call.options.pop("scale", None)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    heads, d = call.query.shape[-3] if call.query.ndim > 2 else 1, call.query.shape[-1]
    for name in ("score_weight", "score_bias"):
        shape = draw(st.sampled_from([None, (d,), (heads, d)]))
        if shape is not None:
            numbers = draw(st.sampled_from([0.3, 1.0, 5.0])) * rng.standard_normal(shape)
            call.options[name] = numbers.astype(draw(st.sampled_from(["f4", "f8", "f2"])))
    return Call(call.query, call.key, call.value, call.options, "additive_attention")


@st.composite
def _thinned(draw: Any, batch: tuple[int, ...]) -> tuple[int, ...]:
    """Batch axes of one input: some of length 1, the leading ones perhaps absent."""
    thin = tuple(1 if draw(st.integers(0, 4)) == 0 else n for n in batch)
    return thin[1:] if thin and draw(st.integers(0, 9)) == 0 else thin


@st.composite
def _broadcastable(draw: Any, full: tuple[int, ...], batch_ndim: int) -> tuple[int, ...]:
    """A shape that broadcasts to `full` and cannot be taken for that of an array per batch row."""
    shape = tuple(1 if draw(st.integers(0, 2)) == 0 else n for n in full)
    shape = shape[draw(st.sampled_from([0, 0, 0, *range(len(shape) + 1)])) :]
    missing = len(full) - len(shape)
    if batch_ndim and 0 < missing < 3 and shape[:batch_ndim] == full[:batch_ndim]:
        return (1,) * missing + shape
    return shape


@st.composite
def _options(
    draw: Any,
    rng: np.random.Generator,
    full: tuple[int, ...],
    batch: tuple[int, ...],
    heads: int,
    lq: int,
    lk: int,
    dtype: Any,
) -> dict[str, Any]:
    options: dict[str, Any] = {}

    def sometimes(name: str, strategy: Any, one_in: int = 3) -> None:
        if draw(st.integers(1, one_in)) == 1:
            options[name] = draw(strategy)

    def per_row(low: int, high: int) -> Any:
        numbers = st.builds(
            lambda lows: (
                rng.integers(low, high + 1, batch or (1,))
                if not lows
                else np.where(rng.random(batch or (1,)) < 0.5, low, high)
            ),
            st.booleans(),
        )
        return numbers | st.integers(low, high) if math.prod(batch) == 1 else numbers

    sometimes("is_causal", st.just(True))
    side = st.sampled_from([None, -1, 0, 1]) | st.integers(0, max(lk, 1))
    sometimes("window_size", st.integers(0, lk) | st.tuples(side, side))
    sometimes(
        "alibi_slopes",
        st.just(
            rng.standard_normal((*(batch if draw(st.booleans()) else ()), heads)).astype(np.float32)
        ),
        5,
    )
    sometimes("q_lengths", per_row(0, lq), 5)
    sometimes("kv_lengths", per_row(0, lk))
    offsets = st.integers(-lq - 3, lk + 3)
    sometimes("q_offset", offsets | st.just("end") | per_row(-lq - 3, lk + 3), 2)
    if lq != lk and "q_offset" not in options:
        options["q_offset"] = draw(st.just("end") | offsets)
    sometimes("scale", st.sampled_from([0.0, 1.0, 0.3, -0.2]), 5)
    sometimes("softcap", st.sampled_from([0.5, 5.0, 30.0]), 5)
    sometimes("sink_logits", st.just(draw(st.sampled_from([1, 20])) * randn(rng, heads)), 5)
    sometimes("mask", _masks(rng, full, len(batch)))
    sometimes("bias", _biases(rng, full, len(batch), dtype))
    sometimes("return_lse", st.just(True), 2)
    sometimes("return_weights", st.just(True), 4)
    sometimes("num_threads", st.integers(1, 3), 2)
    return options


@st.composite
def _masks(
    draw: Any, rng: np.random.Generator, full: tuple[int, ...], batch_ndim: int
) -> np.ndarray:
    shape = draw(_broadcastable(full, batch_ndim))
    mask = rng.random(shape) < draw(st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]))
    if mask.ndim > 1 and draw(st.booleans()):
        mask &= rng.random((*shape[:-1], 1)) < 0.7
    if draw(st.booleans()):  # padding at the end, and at the start
        ends = np.sort(rng.integers(0, full[-1] + 1, 2))
        mask = np.broadcast_to(mask, (*shape[:-1], full[-1])) if shape else mask
        mask = mask & ((np.arange(full[-1]) >= ends[0]) & (np.arange(full[-1]) < ends[1]))
    return lay_out(mask, draw(st.sampled_from(LAYOUTS))) if mask.ndim > 1 else mask


@st.composite
def _biases(
    draw: Any, rng: np.random.Generator, full: tuple[int, ...], batch_ndim: int, dtype: Any
) -> np.ndarray:
    shape = draw(_broadcastable(full, batch_ndim))
    bias_dtype = draw(st.sampled_from([dtype, *DTYPES]))
    bias = draw(st.sampled_from([0.0, 1.0, 30.0])) * rng.standard_normal(shape)
    # The most negative number that is finite in the dtype of the bias and in that of the scores.
    least = max(float(ml_dtypes.finfo(t).min) for t in (bias_dtype, compute_dtype(dtype)))
    for special in (-np.inf, -1e9, least):
        if draw(st.integers(0, 3)) == 0:
            where = rng.random(shape) < draw(st.sampled_from([0.05, 0.5, 1.0]))
            bias = np.where(where, special, bias)
        if bias.ndim > 1 and draw(st.integers(0, 5)) == 0:
            bias = np.where(rng.random((*shape[:-1], 1)) < 0.3, special, bias)
    with np.errstate(over="ignore"):
        bias = np.asarray(bias).astype(bias_dtype)
    return lay_out(bias, draw(st.sampled_from(LAYOUTS))) if bias.ndim > 1 else bias
