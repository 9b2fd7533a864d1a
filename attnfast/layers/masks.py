"""Padding masks: from what layers are given to what the kernels take."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]


def as_key_mask(key_mask: ArrayLike, name: str, shape: tuple[int, ...]) -> Array:
    """A bool array, one element for each token of an input of this shape without its width."""
    mask = np.asarray(key_mask)
    if mask.dtype != np.bool_:
        raise TypeError(f"{name} must be bool, True for a real token, got {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {mask.shape}")
    return mask


def as_lengths(kv_lengths: ArrayLike, shape: tuple[int, ...], longest: int) -> Array:
    """Whole numbers within ``0 .. longest``, one for each batch row, in the shape of the batch."""
    lengths = np.asarray(kv_lengths)
    if lengths.dtype.kind not in "iu" and lengths.size:
        raise TypeError(f"kv_lengths must be integers, got {lengths.dtype}")
    if lengths.shape not in (shape, (math.prod(shape),)):
        raise ValueError(f"kv_lengths must have shape {shape}, got {lengths.shape}")
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= longest:
        raise ValueError(f"kv_lengths must be within 0 .. {longest}, got {kv_lengths!r}")
    return lengths.reshape(shape).astype(np.int64)


def real_lengths(mask: Array) -> Array:
    """For each row of a token mask, how many tokens there are up to its last real one."""
    length = mask.shape[-1]
    if length == 0:
        return np.zeros(mask.shape[:-1], np.int64)
    return np.where(mask.any(axis=-1), length - mask[..., ::-1].argmax(axis=-1), 0)


def right_padded(mask: Array) -> bool:
    """Is every row of a token mask real tokens first, padding after?"""
    return bool((real_lengths(mask) == mask.sum(axis=-1)).all())


def hide_keys(
    key_mask: Array, mask: Any, kv_lengths: Any, batch: tuple[int, ...]
) -> tuple[Any, Any]:
    """Join a key mask ``(..., Lk)`` to a mask ``(..., H, Lq, Lk)``; give mask and key lengths.

    Alone it costs nothing: the kernels leave out keys that are hidden from all queries. With
    another mask it becomes lengths if it can, so that no array over all pairs is made.
    """
    keys = key_mask[..., None, None, :]
    if mask is None:
        return keys, kv_lengths
    if kv_lengths is None and right_padded(key_mask):
        return mask, np.broadcast_to(real_lengths(key_mask), batch)
    pairs = np.asarray(mask)
    if pairs.dtype != np.bool_:
        raise TypeError(f"mask must be a bool array where key_mask is given, got {pairs.dtype}")
    return pairs & keys, kv_lengths
