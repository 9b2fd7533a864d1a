"""Attention and its family as articles write them in NumPy: whole arrays, the dtype of the inputs.

What these functions are asked for says `plain_numpy`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def plain_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: NDArray[np.bool_] | None = None,
    bias: Array | None = None,
    factor: Array | None = None,
) -> Array:
    """softmax(query key' / sqrt(D) + mask) value; the weights may be multiplied by a factor."""
    batch, heads, q_len, width = query.shape
    kv_heads = key.shape[1]
    if heads != kv_heads:  # grouped heads: one more axis, so that keys are broadcast, not repeated
        query = query.reshape(batch, kv_heads, heads // kv_heads, q_len, width)
        key, value = key[:, :, None], value[:, :, None]
    weights = plain_weights(query, key, mask, bias)
    if factor is not None:
        weights = weights * factor
    output: Array = weights @ value
    return output.reshape(batch, heads, q_len, value.shape[-1])


def plain_half(
    query: Array, key: Array, value: Array, mask: NDArray[np.bool_] | None, bias: Array | None
) -> Array:
    """The same for 16-bit arrays, computed in float32: NumPy has no BLAS for 16-bit matrices."""
    q, k, v = (array.astype(np.float32) for array in (query, key, value))
    wide_bias = None if bias is None else bias.astype(np.float32)
    return plain_attention(q, k, v, mask, wide_bias).astype(query.dtype)


def plain_weights(
    query: Array,
    key: Array,
    mask: NDArray[np.bool_] | None = None,
    bias: Array | None = None,
) -> Array:
    """softmax(query key' / sqrt(D) + mask)."""
    scores = query @ key.swapaxes(-1, -2) * (1 / math.sqrt(query.shape[-1]))
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    return softmax(scores)


def softmax(scores: Array) -> Array:
    """Over the last axis."""
    scores = scores - scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores)
    result: Array = weights / weights.sum(axis=-1, keepdims=True)
    return result


def plain_additive(query: Array, key: Array, value: Array, score_weight: Array) -> Array:
    """softmax(tanh(query + key) w) value."""
    scores = np.tanh(query[..., :, None, :] + key[..., None, :, :]) @ score_weight
    result: Array = softmax(scores) @ value
    return result


def plain_topk(
    query: Array, key: Array, k: int, mask: NDArray[np.bool_] | None, from_above: bool = False
) -> tuple[NDArray[np.intp], Array]:
    """The k heaviest weights of each row, by partition and then a sort; -1 for hidden keys.

    `from_above` partitions the negative weights: one more array, but faster where many are equal.
    """
    weights = plain_weights(query, key, mask)
    if from_above:
        found = np.argpartition(-weights, k - 1, axis=-1)[..., :k]
    else:
        found = np.argpartition(weights, -k, axis=-1)[..., -k:]
    heaviest = np.take_along_axis(weights, found, axis=-1)
    order = np.argsort(-heaviest, axis=-1)
    heaviest = np.take_along_axis(heaviest, order, axis=-1)
    found = np.take_along_axis(found, order, axis=-1)
    return np.where(heaviest > 0, found, -1), heaviest


def plain_heaviest(
    query: Array, key: Array, mask: NDArray[np.bool_] | None
) -> tuple[NDArray[np.intp], Array]:
    """The heaviest key alone."""
    weights = plain_weights(query, key, mask)
    found = weights.argmax(axis=-1, keepdims=True)
    return found, np.take_along_axis(weights, found, axis=-1)


def plain_importance(query: Array, key: Array, mask: NDArray[np.bool_] | None) -> Array:
    """The sum of the weights over queries."""
    result: Array = plain_weights(query, key, mask).sum(axis=-2)
    return result


def plain_varlen(parts: Sequence[tuple[Array, Array, Array]], causal: bool) -> Array:
    """The sequences one after the other, ``(T, H, Dv)``."""
    outputs = []
    for query, key, value in parts:
        mask = np.tri(query.shape[1], key.shape[1], dtype=bool) if causal else None
        outputs.append(plain_attention(query[None], key[None], value[None], mask)[0])
    return np.concatenate([output.swapaxes(0, 1) for output in outputs])
