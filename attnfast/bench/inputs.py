"""The arrays of attention, what is visible in them, and a float64 check of sampled rows.

Every contestant draws the same arrays from the same seed, each in its own process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .case import Case

# A random dense mask has no block to skip, so it costs all pairs however many it hides. Hiding few
# keeps the visible pairs, which are what is counted, close to the pairs that must be computed.
DENSE_HIDDEN = 1 / 64
CHECKED_HEADS = 8
CHECKED_ROWS = 8
CHECK_ALL_BELOW = 2**21  # pairs (B, H, Lq, Lk) up to which every row is checked


@dataclass(frozen=True)
class Inputs:
    """Arrays of one case; `keys` and `values` hold one array for each rotated set.

    `extra` is what a function of the family takes beyond them, by the names of its arguments.
    """

    query: NDArray[Any]
    keys: list[NDArray[Any]]
    values: list[NDArray[Any]]
    mask: NDArray[np.bool_] | None
    bias: NDArray[Any] | None
    extra: dict[str, Any] = field(default_factory=dict)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of that name."""
    if name == "bfloat16":
        import ml_dtypes  # noqa: F401  (NumPy then knows the name)
    return np.dtype(name)


def make_inputs(case: Case, seed: int) -> Inputs:
    """Draw the arrays of `case`, the same for the same seed."""
    rng = np.random.Generator(np.random.SFC64(seed))
    dtype, drawn = numpy_dtype(case.dtype), np.dtype(case.compute_dtype)

    def normal(*shape: int) -> NDArray[Any]:
        return rng.standard_normal(shape, dtype=drawn.type).astype(dtype, copy=False)

    query = normal(case.batch, case.heads, case.q_len, case.head_dim)
    mask = bias = None
    if case.mask == "keypad":
        lengths = rng.integers(case.k_len // 4, case.k_len + 1, size=case.batch)
        mask = np.arange(case.k_len) < lengths[:, None, None, None]
    elif case.mask == "dense":
        mask = rng.random((case.q_len, case.k_len), dtype=np.float32) >= DENSE_HIDDEN
    elif case.mask == "bias":
        bias = normal(1, case.heads, case.q_len, case.k_len)
    keys, values = [], []
    for _ in range(case.kv_sets):
        keys.append(normal(case.batch, case.kv_heads, case.k_len, case.head_dim))
        values.append(normal(case.batch, case.kv_heads, case.k_len, case.value_dim))
    return Inputs(query, keys, values, mask, bias)


def key_range(case: Case) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and one past the last key that position alone lets each query see."""
    position = np.arange(case.q_len) + (case.k_len - case.q_len if case.at_end else 0)
    first = np.zeros(case.q_len, np.int64)
    stop = np.full(case.q_len, case.k_len, np.int64)
    if case.window is not None:
        first = np.maximum(first, position - case.window[0])
        stop = np.minimum(stop, position + case.window[1] + 1)
    if case.causal:
        stop = np.minimum(stop, position + 1)
    return first, np.maximum(first, stop)


def visible_pairs(case: Case, inputs: Inputs) -> int:
    """Count the visible (batch, query, key) triples; every head sees the same ones."""
    first, stop = key_range(case)
    if inputs.mask is None:
        return case.batch * int((stop - first).sum())
    rows = np.broadcast_to(inputs.mask, (case.batch, 1, case.q_len, case.k_len))[:, 0]
    if case.mask == "keypad":  # one row stands for all queries: count with a running sum
        seen = np.zeros((case.batch, case.k_len + 1), np.int64)
        np.cumsum(rows[:, 0], axis=1, out=seen[:, 1:])
        return int((seen[:, stop] - seen[:, first]).sum())
    keys = np.arange(case.k_len)
    return sum(
        int(np.count_nonzero(rows[:, i] & (keys >= first[i]) & (keys < stop[i])))
        for i in range(case.q_len)
    )


def position_mask(case: Case) -> NDArray[np.bool_]:
    """Bool ``(Lq, Lk)`` of what position alone lets be seen, for libraries without windows."""
    first, stop = key_range(case)
    keys = np.arange(case.k_len)
    return (keys >= first[:, None]) & (keys < stop[:, None])


def full_mask(case: Case, inputs: Inputs) -> NDArray[np.bool_] | None:
    """One bool mask that says all of what is hidden, or None when nothing is."""
    if case.window is None and not case.causal:
        return inputs.mask
    mask = position_mask(case)
    return mask if inputs.mask is None else mask & inputs.mask


Sample = list[tuple[int, int, NDArray[np.intp]]]


def sample_rows(case: Case) -> Sample:
    """Rows (batch, head, queries) whose results are checked: all of a small case."""
    rng = np.random.default_rng(1)
    pairs = [(b, h) for b in range(case.batch) for h in range(case.heads)]
    rows = np.arange(case.q_len)
    if len(pairs) * case.q_len * case.k_len > CHECK_ALL_BELOW:
        if len(pairs) > CHECKED_HEADS:
            inner = rng.choice(len(pairs) - 2, CHECKED_HEADS - 2, replace=False) + 1
            pairs = [pairs[n] for n in (0, *sorted(inner), len(pairs) - 1)]
        if len(rows) > CHECKED_ROWS:
            inner = rng.choice(len(rows) - 2, CHECKED_ROWS - 2, replace=False) + 1
            rows = np.array([0, *sorted(inner), len(rows) - 1])
    return [(b, h, rows) for b, h in pairs]


def take_rows(output: NDArray[Any], sample: Sample) -> NDArray[Any]:
    """The sampled rows of an output ``(B, H, Lq, Dv)``, stacked."""
    return np.concatenate([output[b, h, rows] for b, h, rows in sample])


def exact_rows(
    case: Case, inputs: Inputs, sample: Sample, dtype: type = np.float64
) -> NDArray[Any]:
    """Attention of the sampled rows over the first set of keys, computed plainly in `dtype`."""
    first, stop = key_range(case)
    keys = np.arange(case.k_len)
    group = case.heads // case.kv_heads
    results = []
    for b, h, rows in sample:
        key = inputs.keys[0][b, h // group].astype(dtype)
        value = inputs.values[0][b, h // group].astype(dtype)
        query = inputs.query[b, h, rows].astype(dtype)
        scores = query @ key.T * dtype(1 / math.sqrt(case.head_dim))
        if case.softcap is not None:
            scores = dtype(case.softcap) * np.tanh(scores / dtype(case.softcap))
        if inputs.bias is not None:
            scores += inputs.bias[0, h, rows]
        seen = (keys >= first[rows, None]) & (keys < stop[rows, None])
        if inputs.mask is not None:
            whole = np.broadcast_to(inputs.mask, (case.batch, 1, case.q_len, case.k_len))
            seen &= whole[b, 0, rows]
        scores[~seen] = -np.inf
        some = seen.any(axis=-1, keepdims=True)  # a row that sees nothing is zero
        weights = np.exp(scores - np.where(some, scores.max(axis=-1, keepdims=True), 0))
        results.append(weights @ value / np.where(some, weights.sum(axis=-1, keepdims=True), 1))
    return np.concatenate(results)
