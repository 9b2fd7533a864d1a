"""Additive attention within a window around a real center, for which there is no kernel."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..additive import additive_attention
from ..pullback import vjp
from ..result import AttentionResult

Array = NDArray[Any]


def additive_window(
    q: Array,
    k: Array,
    v: Array,
    *,
    window_size: int,
    centers: Array,
    sigma: float,
    score_weight: Array,
    mask: Array | None = None,
    kv_lengths: Any = None,
    return_lse: bool = False,
    return_weights: bool = False,
    num_threads: int | None = None,
) -> AttentionResult:
    """What :func:`attnfast.local_attention` does for float `centers`, with the additive score.

    Every query gets the keys of its window as keys of its own, so work and memory are in proportion
    to ``Lq * window_size``. One head: q ``(..., 1, Lq, D)``, k ``(..., 1, Lk, D)``, centers
    ``(..., 1, Lq)``, mask ``(..., 1, 1, Lk)``.
    """
    near = _Near(q, k, v, window_size, centers, sigma, mask, kv_lengths)
    _, lse, weights = additive_attention(
        *near.operands(q),
        score_weight,
        return_lse=return_lse,
        return_weights=True,
        **near.options(num_threads),
    )
    return near.result(lse, weights, return_weights=return_weights)


class WindowGradients(NamedTuple):
    """Gradients by the names of the arguments."""

    query: Array
    key: Array
    value: Array
    centers: Array
    score_weight: Array


def window_pullback(
    q: Array,
    k: Array,
    v: Array,
    *,
    window_size: int,
    centers: Array,
    sigma: float,
    score_weight: Array,
    mask: Array | None = None,
    kv_lengths: Any = None,
    num_threads: int | None = None,
) -> Callable[..., WindowGradients]:
    """Gradients of `additive_window` by those of output and weights, in the same memory."""
    near = _Near(q, k, v, window_size, centers, sigma, mask, kv_lengths)
    (_, _, weights), attend_back = vjp(
        additive_attention,
        *near.operands(q),
        score_weight,
        wanted=("query", "key", "score_weight"),
        return_weights=True,
        **near.options(num_threads),
    )

    def pullback(grad: Array, grad_weights: Array | None = None) -> WindowGradients:
        by_near = near.gradient_of_weights(grad, grad_weights)
        kept = weights[:, :, 0, 0] * near.factor
        nothing = np.zeros((*near.j.shape[:2], 1, 1, 0), q.dtype)
        by_weights = (by_near * near.factor)[:, :, None, None]
        grads = attend_back(nothing, grad_weights=by_weights)
        distance = near.j - near.c
        by_centers = (by_near * kept * distance).sum(axis=-1) / sigma**2
        by_value = kept[..., None] * grad.reshape(*near.j.shape[:2], 1, -1)
        return WindowGradients(
            grads.query.reshape(q.shape),
            near.add_up(grads.key[:, :, 0], k.shape),
            near.add_up(by_value, v.shape),
            by_centers.reshape(centers.shape),
            grads.score_weight,
        )

    return pullback


class _Near:
    """The keys and values of the window of each query, as keys of its own."""

    def __init__(
        self,
        q: Array,
        k: Array,
        v: Array,
        window_size: int,
        centers: Array,
        sigma: float,
        mask: Array | None,
        kv_lengths: Any,
    ) -> None:
        self.batch, Lq, Lk = q.shape[:-3], q.shape[-2], k.shape[-2]
        c = centers.astype(np.float64).reshape(-1, Lq, 1)
        B, width = len(c), min(2 * window_size + 1, Lk)
        j = np.maximum(np.ceil(c - window_size), 0).astype(np.int64) + np.arange(width)
        visible = (j <= c + window_size) & (j < Lk)
        if kv_lengths is not None:
            visible &= j < np.reshape(kv_lengths, (B, 1, 1))
        self.at = np.arange(B)[:, None, None], np.minimum(j, Lk - 1)
        if mask is not None:
            visible &= mask.reshape(B, Lk)[self.at]
        self.key, self.value = (x.reshape(B, Lk, x.shape[-1])[self.at] for x in (k, v))
        self.value[~visible] = 0
        self.j, self.c, self.visible, self.Lk = j, c, visible, Lk
        self.factor = np.exp(-(((j - c) / sigma) ** 2) / 2).astype(q.dtype)

    def operands(self, q: Array) -> tuple[Array, Array, Array]:
        """B * Lq batch rows of one query each. Their values are summed after the factor."""
        query = q.reshape(*self.j.shape[:2], 1, 1, q.shape[-1])
        return query, self.key[:, :, None], self.value[:, :, None, :, :0]

    def options(self, num_threads: int | None) -> dict[str, Any]:
        return {"mask": self.visible[:, :, None, None], "num_threads": num_threads}

    def result(self, lse: Any, weights: Array, *, return_weights: bool) -> AttentionResult:
        """From the softmax weights of each window."""
        B, Lq = self.j.shape[:2]
        near_weights = weights[:, :, 0] * self.factor[:, :, None]
        output = (near_weights @ self.value).reshape(*self.batch, 1, Lq, self.value.shape[-1])
        lse = None if lse is None else lse.reshape(*self.batch, 1, Lq)
        if not return_weights:
            return AttentionResult(output, lse)
        dense = np.zeros((B, Lq, self.Lk), output.dtype)
        b, i, t = np.nonzero(self.visible)
        dense[b, i, self.j[b, i, t]] = near_weights[b, i, 0, t]
        return AttentionResult(output, lse, dense.reshape(*self.batch, 1, Lq, self.Lk))

    def gradient_of_weights(self, grad: Array, grad_weights: Array | None) -> Array:
        """By the weights of each window after the factor, from those by output and weights."""
        B, Lq = self.j.shape[:2]
        by_near: Array = (self.value @ grad.reshape(B, Lq, -1, 1))[..., 0]
        if grad_weights is not None:
            dense = grad_weights.reshape(B, Lq, self.Lk)
            by_near = by_near + np.take_along_axis(dense, self.at[1], axis=-1)
        return by_near

    def add_up(self, near: Array, shape: tuple[int, ...]) -> Array:
        """What the windows of all queries add to each key or value."""
        total = np.zeros((len(self.j), *shape[-2:]), near.dtype)
        np.add.at(total, self.at, near)
        return total.reshape(shape)
