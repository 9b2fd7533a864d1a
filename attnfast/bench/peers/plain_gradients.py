"""Gradients of attention in closed form, as articles write them in NumPy: whole arrays.

The forward functions return what the backward ones need of them: the weights are kept.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .plain_math import softmax

Array = NDArray[Any]


def forward(
    query: Array,
    key: Array,
    value: Array,
    mask: NDArray[np.bool_] | None = None,
    bias: Array | None = None,
    softcap: float | None = None,
) -> tuple[Array, Array, Array | None]:
    """Output, weights, and the derivative of the softcap where there is one."""
    query, key, value = grouped(query, key, value)
    scores = query @ key.swapaxes(-1, -2) * (1 / math.sqrt(query.shape[-1]))
    slope = None
    if softcap is not None:
        bent = np.tanh(scores / softcap)
        scores, slope = softcap * bent, 1 - bent * bent
    if bias is not None:
        scores = scores + bias.reshape(1, *scores.shape[1:])
    if mask is not None:
        hidden = ~mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        scores[np.broadcast_to(hidden[:, :, None], scores.shape)] = -np.inf
    weights = softmax(scores)
    output: Array = weights @ value
    return output.reshape(len(output), -1, *output.shape[-2:]), weights, slope


def backward(
    gradient: Array,
    query: Array,
    key: Array,
    value: Array,
    output: Array,
    weights: Array,
    slope: Array | None,
    with_bias: bool,
) -> tuple[Array, ...]:
    """Gradients of query, key, value, and of a bias that all batch rows share."""
    shapes = query.shape, key.shape, value.shape
    delta = (gradient * output).sum(axis=-1).reshape(weights.shape[:-1])
    query, key, value = grouped(query, key, value)
    gradient = gradient.reshape(*weights.shape[:-1], -1)
    by_value = (weights.swapaxes(-1, -2) @ gradient).sum(axis=2)
    by_score = weights * (gradient @ value.swapaxes(-1, -2) - delta[..., None])
    by_bias = by_score.sum(axis=0).reshape(1, shapes[0][1], *by_score.shape[-2:])
    if slope is not None:
        by_score = by_score * slope
    by_score = by_score * (1 / math.sqrt(query.shape[-1]))
    by_query = by_score @ key
    by_key = (by_score.swapaxes(-1, -2) @ query).sum(axis=2)
    arrays = by_query, by_key, by_value
    gradients = tuple(a.reshape(shape) for a, shape in zip(arrays, shapes, strict=True))
    return (*gradients, by_bias) if with_bias else gradients


def grouped(query: Array, key: Array, value: Array) -> tuple[Array, Array, Array]:
    """One more axis, the query heads of a key head, so that keys are broadcast, not repeated."""
    batch, heads, q_len, width = query.shape
    kv_heads = key.shape[1]
    query = query.reshape(batch, kv_heads, heads // kv_heads, q_len, width)
    return query, key[:, :, None], value[:, :, None]


def forward_additive(
    query: Array, key: Array, value: Array, score_weight: Array
) -> tuple[Array, Array, Array]:
    """Output, weights and tangents."""
    tangents = np.tanh(query[..., :, None, :] + key[..., None, :, :])
    weights = softmax(tangents @ score_weight)
    return weights @ value, weights, tangents


def backward_additive(
    gradient: Array,
    value: Array,
    score_weight: Array,
    output: Array,
    weights: Array,
    tangents: Array,
) -> tuple[Array, Array, Array, Array]:
    """Gradients of query, key, value and the weights of the scores."""
    delta = (gradient * output).sum(axis=-1, keepdims=True)
    by_value = weights.swapaxes(-1, -2) @ gradient
    by_score = weights * (gradient @ value.swapaxes(-1, -2) - delta)
    by_weight = np.tensordot(by_score, tangents, by_score.ndim)
    by_sum = by_score[..., None] * (1 - tangents * tangents) * score_weight
    return by_sum.sum(axis=-2), by_sum.sum(axis=-3), by_value, by_weight
