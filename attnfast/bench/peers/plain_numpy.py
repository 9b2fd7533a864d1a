"""Attention as articles write it in NumPy: the baseline that every row is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cases import Case
from ..inputs import Inputs, full_mask
from ..machine import require_memory
from . import Prepared

MOST_BYTES = 5e9  # two arrays of scores live at once; above this a user would not run it


def plain_attention(
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    mask: NDArray[np.bool_] | None = None,
    bias: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """softmax(query key' / sqrt(D) + mask) value, in the dtype of the arrays."""
    batch, heads, q_len, width = query.shape
    kv_heads = key.shape[1]
    if heads != kv_heads:  # grouped heads: one more axis, so that keys are broadcast, not repeated
        query = query.reshape(batch, kv_heads, heads // kv_heads, q_len, width)
        key, value = key[:, :, None], value[:, :, None]
    scores = query @ key.swapaxes(-1, -2) * (1 / math.sqrt(width))
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    scores = scores - scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores)
    weights = weights / weights.sum(axis=-1, keepdims=True)
    output: NDArray[Any] = weights @ value
    return output.reshape(batch, heads, q_len, value.shape[-1])


class PlainNumpy:
    """NumPy and whatever BLAS it was built with."""

    def __init__(self, threads: int) -> None:
        self.version = np.__version__

    def variants(self, case: Case, inputs: Inputs) -> dict[str, Callable[[], Prepared]]:
        """One variant; refuses scores that would not fit a desktop's memory."""
        require_memory(2 * case.score_bytes, "the scores", MOST_BYTES)
        mask = full_mask(case, inputs)
        calls = [
            partial(plain_attention, inputs.query, key, value, mask, inputs.bias)
            for key, value in zip(inputs.keys, inputs.values, strict=True)
        ]
        return {"plain": lambda: Prepared(calls, lambda result: result)}
