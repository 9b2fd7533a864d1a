"""Calls that compute the same, timed in turns on one thread: which one is slow, and by how much."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], Any]
BURST = 1e-3  # seconds of a turn: many calls of a small problem, one of a large one
TOLERANCE = {8: 1e-9, 4: 2e-4, 2: 3e-2}  # largest difference of two results, by bytes of an element


def _burst(call: Call, count: int) -> float:
    """Seconds of one call, the mean of `count`."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def take_turns(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Median seconds of each call; a round gives every one of them a turn.

    A call that takes a second in its first turn gets three turns only.
    """
    counts, times = {}, {}
    for name, call in calls.items():
        call()
        once = _burst(call, 1)
        counts[name] = max(1, int(BURST / once)) if once < BURST else 1
        times[name] = [once] if once > 1 else []
    for turn in range(rounds):
        for name, call in calls.items():
            if turn < 3 or times[name][0] < 1:
                times[name].append(_burst(call, counts[name]))
    return {name: statistics.median(taken) for name, taken in times.items()}


def check_same(calls: dict[str, Call]) -> None:
    """Raise ValueError unless every call returns what the first one does, within rounding."""
    first, *others = calls
    wanted = as_array(calls[first]())
    for name in others:
        found = as_array(calls[name]())
        limit = TOLERANCE[wanted.dtype.itemsize]
        if found.shape != wanted.shape or not np.allclose(
            found.astype(np.float64), wanted.astype(np.float64), rtol=limit, atol=limit
        ):
            raise ValueError(f"{name} and {first} do not compute the same")


def as_array(result: Any) -> NDArray[Any]:
    """The first array of a result; a tensor shares its memory with it."""
    if isinstance(result, tuple):
        result = result[0]
    return result if isinstance(result, np.ndarray) else result.numpy()


def plain(
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    *,
    mask: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Attention as a careful user of NumPy writes it; the heads of a group share one product."""
    batch, heads, q_len, width = query.shape
    kv_heads = key.shape[1]
    rows = (query * query.dtype.type(width**-0.5)).reshape(batch, kv_heads, -1, width)
    scores = (rows @ key.swapaxes(-1, -2)).reshape(batch, heads, q_len, -1)
    if bias is not None:
        scores += bias
    if mask is not None:
        scores[np.broadcast_to(~mask, scores.shape)] = -np.inf
    scores -= scores.max(-1, keepdims=True)
    np.exp(scores, out=scores)
    total = scores.sum(-1, keepdims=True)
    output = scores.reshape(batch, kv_heads, heads // kv_heads * q_len, -1) @ value
    output = output.reshape(batch, heads, q_len, -1)
    output /= total
    return output


def fused_torch(
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    *,
    mask: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
    is_causal: bool = False,
) -> Call | None:
    """A call of PyTorch's fused attention on the same memory; None without PyTorch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # repeated memory cannot be written to
        tensors = [torch.from_numpy(x) for x in (query, key, value)]
    hidden = mask if mask is not None else None if bias is None else bias.astype(query.dtype)
    rest = {
        "attn_mask": None if hidden is None else torch.from_numpy(np.ascontiguousarray(hidden)),
        "is_causal": is_causal,
        "enable_gqa": query.shape[1] != key.shape[1],
    }

    def call() -> Any:
        with torch.inference_mode():
            return torch.nn.functional.scaled_dot_product_attention(*tensors, **rest)

    return call
