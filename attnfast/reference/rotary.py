"""Rotary position embedding."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Array = NDArray[Any]


def rotate(
    x: ArrayLike,
    positions: ArrayLike,
    *,
    base: float = 10000.0,
    interleaved: bool = False,
    cos_sin: tuple[ArrayLike, ArrayLike] | None = None,
    compute_dtype: DTypeLike = np.float64,
) -> Array:
    """Turn pairs of elements by an angle that grows with the position.

    ``(x, y)`` becomes ``(x cos - y sin, y cos + x sin)``. Elements beyond those pairs that
    `cos_sin` has stay as they are.

    Parameters
    ----------
    x, positions : array_like
        As for :func:`attnfast.rotate`.
    base, interleaved, cos_sin : optional
        As for :func:`attnfast.rotate`.
    compute_dtype : dtype
        In which to compute.

    Returns
    -------
    ndarray
        In `compute_dtype`.
    """
    a, places = np.asarray(x).astype(compute_dtype), np.asarray(positions)
    if cos_sin is None:
        pairs = a.shape[-1] // 2
        angles = places[..., None] * base ** -(np.arange(pairs) / max(pairs, 1))
        cos, sin = np.cos(angles), np.sin(angles)
    else:
        cos, sin = (np.asarray(table).astype(np.float64)[places] for table in cos_sin)
        pairs = cos.shape[-1]
    if a.ndim > 2:  # heads share them
        cos, sin = (np.expand_dims(c.astype(compute_dtype), -3) for c in (cos, sin))
    first = slice(0, 2 * pairs, 2) if interleaved else slice(0, pairs)
    second = slice(1, 2 * pairs, 2) if interleaved else slice(pairs, 2 * pairs)
    result = a.copy()
    result[..., first] = a[..., first] * cos - a[..., second] * sin
    result[..., second] = a[..., second] * cos + a[..., first] * sin
    return result
