"""The arguments of a call: checked by attnfast itself, with chunks that fit one another."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import dask.array as da
import numpy as np

from .._misread import as_array, check_axes
from .._signature import OPTIONS, check_arguments
from ..api import attention
from ..block_mask import BlockMask
from ..gradient import attention_backward
from ..planning import plan
from ._blocks import QKV, Call, Sizes, rechunk, without_empty

BY_ROW = ("q_offset", "q_lengths", "kv_lengths", "kv_starts")
BY_HEAD = ("alibi_slopes", "sink_logits")
MISSING = {
    "out": "the result is a new dask array: leave it out",
    "num_threads": "every task has one thread: leave it out, and choose threads of the scheduler",
    "dropout": "which weights are dropped depends on their places in the whole arrays: map "
    "attnfast.attention over chunks of batch rows, with another dropout_seed for each",
    "dropout_seed": "there is no dropout: leave it out",
    "grad_weights": "it enters through a sum over all keys: pass the derivative of what is made "
    "of the weights as grad_output",
}


def prepare(
    function: Callable[..., Any], operands: Sequence[Any], extra: Sequence[Any], options: Any
) -> Call:
    """Check a call, and bring its chunks in line."""
    for name in options:
        if name in MISSING and name not in OPTIONS[function]:
            raise TypeError(f"{name} is not an argument of attnfast.dask: {MISSING[name]}")
    check_arguments(function, extra, options)
    q, k, v = (da.asarray(x) for x in operands)
    for name, x in zip(QKV, (q, k, v), strict=True):
        if np.isnan(x.shape).any():
            raise ValueError(
                f"{name} must have a known shape, got {x.shape}: write {name}.compute_chunk_sizes()"
            )
        if not 2 <= x.ndim <= 4:
            advice = f": write {name}.reshape(-1, *{name}.shape[-3:])" if x.ndim > 4 else ""
            raise ValueError(f"{name} must have 2 to 4 axes, got shape {x.shape}{advice}")
    given = {name: x for name, x in options.items() if x is not None}
    for name in (*BY_ROW, *BY_HEAD):
        if name in given and not isinstance(given[name], str):
            given[name] = as_array(given[name], name)
    _check(function, (q, k, v), given)
    _resolve(q, k, given)
    return _fit(q, k, v, given)


def check_loss(call: Call, loss: dict[str, Any]) -> None:
    """Let attnfast refuse the dtypes of what only gradients have, by arrays of one element."""
    small: dict[str, Any] = {
        name: np.zeros((1,) if name in ("lse", "grad_lse") else (1, 1), x.dtype)
        for name, x in loss.items()
    }
    whole: Any = attention_backward
    plan(whole, *(np.zeros((1, 1), x.dtype) for x in call[:3]), **small)


def _check(function: Callable[..., Any], operands: Sequence[Any], given: dict[str, Any]) -> None:
    """Let attnfast refuse what it would refuse, by arrays that have no memory."""
    q, k, v = operands
    small = {name: x for name, x in given.items() if name != "grad_lse"}
    for name in ("mask", "bias"):
        x = given.get(name)
        if x is None or isinstance(x, BlockMask):
            continue
        if not hasattr(x, "dtype") or not hasattr(x, "shape"):
            raise TypeError(
                f"{name} must be a NumPy or dask array, got {type(x).__name__}: write "
                f"np.asarray({name})"
            )
        if name == "mask" and x.dtype != bool:
            raise TypeError(f"mask must be bool, True where a query may attend, got {x.dtype}")
        small[name] = np.zeros((1,) * x.ndim, x.dtype)
    whole: Any = attention_backward if "wanted" in OPTIONS[function] else attention
    zeros: list[Any] = [np.broadcast_to(np.zeros((), x.dtype), x.shape) for x in operands]
    plan(whole, *zeros, **small)
    full = (*_batch(q, k, v), *(1, *q.shape)[-3:-1], k.shape[-2])
    for name in ("mask", "bias"):
        if name in given and not isinstance(given[name], BlockMask):
            check_axes(name, given[name].shape, full[:-3], full[-3:])


def _batch(*operands: Any) -> tuple[int, ...]:
    return np.broadcast_shapes(*(x.shape[:-3] for x in operands))


def _resolve(q: Any, k: Any, given: dict[str, Any]) -> None:
    """Offsets as numbers, windows as two of them or None, causality as a window."""
    offset = given.get("q_offset", 0)
    if isinstance(offset, str):
        lengths = given.get("kv_lengths", k.shape[-2]), given.get("q_lengths", q.shape[-2])
        offset = np.asarray(lengths[0]) - lengths[1]
    given["q_offset"] = np.asarray(offset)
    window = given.get("window_size")
    sides = window if isinstance(window, Sequence) else (window, window)
    left, right = (None if side in (None, -1) else int(side) for side in sides)
    if given.pop("is_causal", False):
        right = 0 if right is None else min(right, 0)
    given["window_size"] = (left, right)


def _fit(q: Any, k: Any, v: Any, given: dict[str, Any]) -> Call:
    """Vectors in one chunk, heads that share a key head too; rows and heads as those of query."""
    q, k, v = (rechunk(x, (*without_empty(x)[:-1], x.shape[-1:])) for x in (q, k, v))
    if q.ndim > 2:
        heads = q.chunks[-3]
        group = q.shape[-3] // max(1, math.prod(k.shape[-3:-2]))
        if any(n % max(1, group) for n in heads):
            of_keys = k.chunks[-3] if k.ndim > 2 else (1,)
            q = _along(q, -3, tuple(n * group for n in of_keys))
        shared = tuple(n // max(1, group) for n in q.chunks[-3])
        k, v = (_along(x, -3, shared) if x.ndim > 2 else x for x in (k, v))
    v = _along(v, -2, k.chunks[-2])
    rows: Sizes = next((x.chunks[0] for x in (q, k, v) if x.ndim > 3 and len(x) != 1), (1,))
    q, k, v = (_along(x, 0, rows) if x.ndim > 3 and len(x) != 1 else x for x in (q, k, v))
    return Call(q, k, v, given, rows)


def _along(x: Any, axis: int, sizes: Sizes) -> Any:
    """The array in chunks of these sizes along one axis."""
    chunks = list(x.chunks)
    chunks[axis] = sizes
    return rechunk(x, tuple(chunks))
