"""Additive attention within a window around a real center, for which there is no kernel."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..additive import additive_attention
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
    batch, Lq, Lk, Dv = q.shape[:-3], q.shape[-2], k.shape[-2], v.shape[-1]
    c = centers.astype(np.float64).reshape(-1, Lq, 1)
    B, width = len(c), min(2 * window_size + 1, Lk)
    j = np.maximum(np.ceil(c - window_size), 0).astype(np.int64) + np.arange(width)
    visible = (j <= c + window_size) & (j < Lk)
    if kv_lengths is not None:
        visible &= j < np.reshape(kv_lengths, (B, 1, 1))
    at = np.arange(B)[:, None, None], np.minimum(j, Lk - 1)
    if mask is not None:
        visible &= mask.reshape(B, Lk)[at]
    near_k, near_v = (x.reshape(B, Lk, x.shape[-1])[at] for x in (k, v))
    near_v[~visible] = 0
    # B * Lq batch rows of one query each. Their values are summed here, after the factor.
    _, lse, weights = additive_attention(
        q.reshape(B, Lq, 1, 1, q.shape[-1]),
        near_k[:, :, None],
        near_v[:, :, None, :, :0],
        score_weight,
        mask=visible[:, :, None, None],
        return_lse=return_lse,
        return_weights=True,
        num_threads=num_threads,
    )
    near_weights = weights[:, :, 0]
    factor = np.exp(-(((j - c) / sigma) ** 2) / 2)
    near_weights *= factor.astype(q.dtype)[:, :, None]
    output = (near_weights @ near_v).reshape(*batch, 1, Lq, Dv)
    lse = lse.reshape(*batch, 1, Lq) if return_lse else None
    if not return_weights:
        return AttentionResult(output, lse)
    dense = np.zeros((B, Lq, Lk), q.dtype)
    b, i, t = np.nonzero(visible)
    dense[b, i, j[b, i, t]] = near_weights[b, i, 0, t]
    return AttentionResult(output, lse, dense.reshape(*batch, 1, Lq, Lk))
