"""Calls of every function, small ones, and how far their results may be from the reference's.

For processors and Pythons that have nothing but NumPy and the package: no tests, no hypothesis.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# Of a result to the reference's in float64, relative to the larger of 1 and what is expected.
BOUNDS = {"float32": 1e-5, "float64": 1e-13, "float16": 2e-3, "bfloat16": 2e-2}
EVERYTHING = {"return_lse": True, "return_weights": True}
QKV = ("query", "key", "value")

Module = Any  # attnfast, or attnfast.reference
Call = Callable[[Module], Any]


def calls(dtype: Any) -> Iterator[tuple[str, Call]]:
    """A name and a call of each function, in each of its forms: of the library or the reference."""
    rng = np.random.default_rng(7)

    def randn(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(dtype)

    q, k, v = randn(2, 4, 37, 24), randn(2, 2, 53, 24), randn(2, 2, 53, 19)
    yield from of_attention(rng, q, k, v)
    yield from of_stored(rng, q, k, v)
    yield from of_family(rng, q, k, v)
    packed, bounds = (
        (randn(37, 4, 24), randn(53, 2, 24), randn(53, 2, 19)),
        ([0, 9, 37], [0, 40, 53]),
    )
    yield "packed", lambda m: m.attention_varlen(*packed, *bounds, is_causal=True, q_offset="end")
    parts = randn(3, 2, 11, 8), rng.standard_normal((3, 2, 11)).astype(np.float32)
    yield "merge", lambda m: m.merge_attention(*parts)
    yield "rotate", lambda m: m.rotate(q, np.arange(37))
    yield "rotate pairs", lambda m: m.rotate(q, np.arange(37), interleaved=True)
    yield from of_gradients(rng, q, k, v)
    yield "gradients of packed", lambda m: trained(m, "attention_varlen", packed, *bounds)
    yield "gradients of merge", lambda m: m.merge_attention_backward(parts[0][0], *parts)


def of_attention(rng: Any, q: Any, k: Any, v: Any) -> Iterator[tuple[str, Call]]:
    import attnfast

    places = {"q_offset": "end", "kv_lengths": [53, 31], "kv_starts": [2, 9]}
    mask, bias = rng.random((37, 53)) < 0.7, rng.standard_normal((4, 37, 53))
    blocks = attnfast.BlockMask(np.eye(5, 7, dtype=bool) | (np.arange(7) == 2), 8)
    forms: dict[str, dict[str, Any]] = {
        "plain": {},
        "causal": {"is_causal": True, "window_size": 20, **places},
        "window": {"window_size": (9, 4), "q_offset": 3},
        "mask": {"mask": mask, "bias": bias, "softcap": 5.0},
        "lengths": {"q_lengths": [30, 37], "kv_lengths": [53, 11], "sink_logits": np.ones(4)},
        "ALiBi": {"alibi_slopes": [1.0, 0.5, 0.2, 0.1], "q_offset": 5},
        "blocks": {"mask": blocks},
        "dropout": {"dropout": 0.3, "dropout_seed": 5, **places},
    }
    for name, options in forms.items():
        yield name, lambda m, o=options: m.attention(q, k, v, **o, **EVERYTHING)
    few = {"is_causal": True, **places, **EVERYTHING}
    yield "one query", lambda m: m.attention(q[:, :, :1], k, v, **few)
    yield "five queries", lambda m: m.attention(q[:, :, :5], k, v, mask=mask[:5], **EVERYTHING)


def of_stored(rng: Any, q: Any, k: Any, v: Any) -> Iterator[tuple[str, Call]]:
    """Keys and values in pages, in 8 bits, and in a cache."""
    pools = tuple(a[:, :, :48].reshape(-1, 2, 8, a.shape[-1]) for a in (k, v))
    options = {"block_table": rng.permutation(12).reshape(2, 6), "kv_lengths": [48, 29]}
    for n in (37, 1):
        yield (
            f"pages, {n} queries",
            lambda m, x=q[:, :, :n]: m.attention(x, *pools, **options, **EVERYTHING),
        )
    where = {**options, "is_causal": True, "q_offset": 11}
    yield "scores of pages", lambda m: m.attention_weights(q, pools[0], stage="scores", **where)
    for n in (5, 48):
        yield f"top {n} of pages", lambda m, n=n: m.attention_topk(q, pools[0], n, **where)[1]
    yield "importance of pages", lambda m: m.key_importance(q, pools[0], **where)
    rows, bounds = q[0, :, :7].swapaxes(0, 1), ([0, 1, 7], [0, 48, 77])
    table = options["block_table"]
    yield (
        "packed pages",
        lambda m: m.attention_varlen(rows, *pools, *bounds, block_table=table, return_lse=True),
    )
    if q.dtype != np.float64:  # 8 bits are for queries of less
        small = [rng.integers(-100, 100, a.shape, np.int8) for a in (k, v)]
        scales = {"key_scale": np.full((2, 2, 53, 1), 0.01), "value_scale": 0.02}
        for n in (37, 1):
            yield (
                f"8 bits, {n} queries",
                lambda m, x=q[:, :, :n]: m.attention(x, *small, **scales, **EVERYTHING),
            )
        of_keys = {"key_scale": scales["key_scale"]}
        yield "weights of 8 bits", lambda m: m.attention_weights(q, small[0], **of_keys)
        yield "top of 8 bits", lambda m: m.attention_topk(q, small[0], 5, **of_keys)[1]
        yield "importance of 8 bits", lambda m: m.key_importance(q, small[0], **of_keys)
    text = np.concatenate([q, q], axis=-2)[:, :, :53]
    yield "cache", lambda m: grown(m, text, k, v)
    yield "ring", lambda m: grown(m, text, k, v, window=20)


def grown(m: Module, q: Any, k: Any, v: Any, window: int | None = None) -> Any:
    """Attention of a text to itself, by a cache token by token at its end."""
    if not hasattr(m, "KVCache"):
        seen = {} if window is None else {"window_size": (window - 1, 0)}
        return m.attention(q, k, v, is_causal=True, **seen)
    capacity = q.shape[-2] if window is None else window
    shape = (k.shape[0], k.shape[1], k.shape[-1], v.shape[-1])
    cache = m.KVCache(*shape, capacity=capacity, window=window, dtype=q.dtype)
    steps = [0, 40, *range(41, q.shape[-2] + 1)]
    pieces = [slice(a, b) for a, b in itertools.pairwise(steps)]
    outputs = [cache.extend(*(a[:, :, piece] for a in (q, k, v))) for piece in pieces]
    return np.concatenate(outputs, axis=-2)


def of_family(rng: Any, q: Any, k: Any, v: Any) -> Iterator[tuple[str, Call]]:
    places = {"q_offset": "end", "kv_lengths": [53, 31], "kv_starts": [2, 9]}
    mask, centers = rng.random((37, 53)) < 0.7, rng.uniform(0, 52, (2, 4, 37))
    for stage in ("scores", "capped", "biased", "weights"):
        yield stage, lambda m, s=stage: m.attention_weights(q, k, stage=s, mask=mask, softcap=3.0)
    local: dict[str, dict[str, Any]] = {
        "global tokens": {"window_size": 5, "global_tokens": [2, 20], "q_offset": 1},
        "dilation": {"window_size": 5, "dilation": 2, "mask": mask, "q_offset": 1},
        "local-m": {"window_size": 8, "centers": centers.astype(np.int64)},
        "local-p": {"window_size": 8, "centers": centers, "sigma": 4.0},
    }
    for name, options in local.items():
        yield name, lambda m, o=options: m.local_attention(q, k, v, **o, **EVERYTHING)
    w = rng.standard_normal(24)
    yield "additive", lambda m: m.additive_attention(q, k, v, w, **places, **EVERYTHING)
    yield "additive one", lambda m: m.additive_attention(q[:, :, :1], k, v, w, mask=mask[:1])
    yield "top", lambda m: m.attention_topk(q, k, 5, mask=mask)
    yield "importance", lambda m: m.key_importance(q, k, mask=mask)


def of_gradients(rng: Any, q: Any, k: Any, v: Any) -> Iterator[tuple[str, Call]]:
    places = {"q_offset": "end", "kv_lengths": [53, 31], "kv_starts": [2, 9]}
    mask, bias = rng.random((37, 53)) < 0.7, rng.standard_normal((4, 37, 53))
    every = {"mask": mask, "bias": bias, "softcap": 5.0, "sink_logits": np.ones(4)}
    drop = {"dropout": 0.3, "dropout_seed": 5}
    arrays, w = (q, k, v), rng.standard_normal(24)
    yield "gradients", lambda m: trained(m, "attention", arrays, **places, **drop)
    yield (
        "gradients of options",
        lambda m: trained(m, "attention", arrays, own=("bias", "sink_logits"), **every),
    )
    local: dict[str, dict[str, Any]] = {
        "global tokens": {"window_size": 5, "global_tokens": [2, 20], "q_offset": 1},
        "dilation": {"window_size": 5, "dilation": 2, "mask": mask, "q_offset": 1},
        "local-p": {"window_size": 8, "centers": rng.uniform(0, 52, (2, 4, 37)), "sigma": 4.0},
    }
    for name, options in local.items():
        own = ("centers",) if "centers" in options else ()
        yield (
            f"gradients of {name}",
            lambda m, o=options, own=own: trained(m, "local_attention", arrays, own=own, **o),
        )
    yield (
        "gradients of additive",
        lambda m: trained(m, "additive_attention", arrays, w, own=("score_weight",), **places),
    )


def trained(m: Module, name: str, arrays: Any, *more: Any, own: Any = (), **options: Any) -> Any:
    """Gradients of an eighth of the sum of the output."""
    output, lse, _ = getattr(m, name)(*arrays, *more, return_lse=True, **options)
    loss = np.full(output.shape, 0.125).astype(arrays[0].dtype), *arrays, output, lse, *more
    wanted = (*QKV, *own)
    found = getattr(m, f"{name}_backward")(*loss, wanted=wanted, **options)
    return tuple(getattr(found, each) for each in wanted)


def difference(result: Any, expected: Any) -> float:
    """The largest, relative to the larger of 1 and what is expected; infinite where one is."""
    if isinstance(expected, tuple):
        pairs = zip(result, expected, strict=True)
        return max((difference(x, y) for x, y in pairs if y is not None), default=0.0)
    x, y = np.asarray(result, np.float64), np.asarray(expected, np.float64)
    finite = np.isfinite(y)
    if x.shape != y.shape or not np.array_equal(x[~finite], y[~finite], equal_nan=True):
        return float("inf")
    if not np.isfinite(x[finite]).all():
        return float("inf")
    error = np.abs(x[finite] - y[finite]) / np.maximum(np.abs(y[finite]), 1)
    return float(error.max(initial=0))
