"""Padding masks: from the arguments of layers to those of `attnfast.attention`."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._misread import as_array, wrong_integers, wrong_mask
from ..block_mask import BlockMask

Array = NDArray[Any]


def as_key_mask(key_mask: ArrayLike, name: str, shape: tuple[int, ...]) -> Array:
    """A bool array, one element for each token of an input of this shape without its width."""
    mask = as_array(key_mask, name)
    if mask.dtype != np.bool_:
        raise wrong_mask(mask, key_mask, name, "for a real token", bias=False)
    if mask.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {mask.shape}")
    return mask


def as_lengths(kv_lengths: ArrayLike, shape: tuple[int, ...], longest: int) -> Array:
    """Whole numbers within ``0 .. longest``, one for each batch row, in the shape of the batch."""
    lengths = as_array(kv_lengths, "kv_lengths")
    if lengths.dtype.kind not in "iu" and lengths.size:
        raise wrong_integers(lengths, kv_lengths, "kv_lengths")
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


def real_starts(mask: Array) -> Array:
    """For each row of a token mask, where its first real token is, or 0."""
    return mask.argmax(axis=-1) if mask.shape[-1] else np.zeros(mask.shape[:-1], np.int64)


def right_padded(mask: Array) -> bool:
    """Is every row of a token mask real tokens first, padding after?"""
    return bool((real_lengths(mask) == mask.sum(axis=-1)).all())


def hide_keys(key_mask: Array, options: dict[str, Any], batch: tuple[int, ...]) -> dict[str, Any]:
    """Join a key mask ``(..., Lk)`` to the options of a call, whose mask is ``(..., H, Lq, Lk)``.

    Alone it costs nothing: the kernels leave out keys that are hidden from all queries. With
    another mask it becomes starts and lengths if it can, so that no array over all pairs is made.
    """
    keys, mask = key_mask[..., None, None, :], options.get("mask")
    if mask is None:
        return {**options, "mask": keys}
    starts, ends = real_starts(key_mask), real_lengths(key_mask)
    given = options.get("kv_lengths") is not None or options.get("kv_starts") is not None
    if not given and bool((ends - starts == key_mask.sum(axis=-1)).all()):
        return {
            **options,
            "kv_starts": np.broadcast_to(starts, batch),
            "kv_lengths": np.broadcast_to(ends, batch),
        }
    if isinstance(mask, BlockMask):
        raise TypeError(
            "mask must be a bool array beside a key_mask whose padding is not at the ends, got a "
            "BlockMask: write mask.dense(Lq, Lk)"
        )
    pairs = as_array(mask, "mask")
    if pairs.dtype != np.bool_:
        raise wrong_mask(pairs, mask, "mask")
    return {**options, "mask": pairs & keys}
