"""Keys and values that are stored in pages, or in 8 bits: the rows that they stand for."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .scores import Array

# Options that say what is stored stands for.
NUMBERS = ("key_scale", "value_scale", "key_zero_point", "value_zero_point")


def rows_of_pages(pool: Array, block_table: ArrayLike) -> Array:
    """Keys or values ``(..., Hk, blocks * page_size, D)`` from pages ``(pages, Hk, page_size, D)``.

    Row ``j`` is row ``j % page_size`` of page ``block_table[..., j // page_size]``. A number that
    names no page stands for rows that no query may see; they are NaN here.
    """
    table = np.asarray(block_table)
    pages, heads, size, width = pool.shape
    there = (table >= 0) & (table < pages)
    rows = np.full((*table.shape, heads, size, width), np.nan).astype(pool.dtype)
    rows[there] = pool[table[there]]
    rows = np.moveaxis(rows, -4, -3)  # (..., Hk, blocks, page_size, D)
    return rows.reshape((*table.shape[:-1], heads, table.shape[-1] * size, width))


def real_numbers(
    stored: Array, scale: ArrayLike | None, zero_point: ArrayLike | None, dtype: DTypeLike
) -> Array:
    """``(stored - zero_point) * scale``; each axis of these two divides that of what is stored."""
    real = stored.astype(dtype)
    if zero_point is not None:
        real = real - _for_each_element(np.asarray(zero_point).astype(dtype), stored.shape)
    if scale is not None:
        real = real * _for_each_element(np.asarray(scale).astype(dtype), stored.shape)
    return real


def _for_each_element(numbers: Array, shape: tuple[int, ...]) -> Array:
    numbers = numbers.reshape((1,) * (len(shape) - numbers.ndim) + numbers.shape)
    for axis, n in enumerate(shape):
        if 1 < numbers.shape[axis] < n:
            numbers = np.repeat(numbers, n // numbers.shape[axis], axis=axis)
    return numbers


def real_rows(
    rows: ArrayLike,
    dtype: DTypeLike,
    *,
    block_table: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    zero_point: ArrayLike | None = None,
) -> Any:
    """Keys or values as plain rows of real numbers, whatever they are stored in."""
    stored = np.asarray(rows)
    if scale is not None or zero_point is not None:
        stored = real_numbers(stored, scale, zero_point, dtype)
    return stored if block_table is None else rows_of_pages(stored, block_table)


def packed_rows(
    key: ArrayLike,
    value: ArrayLike,
    cu_k: ArrayLike,
    block_table: ArrayLike | None,
    dtype: DTypeLike,
    **numbers: ArrayLike,
) -> list[Array]:
    """Keys and values of packed sequences as rows of real numbers ``(Tk, Hk, D)``.

    Of pages, sequence ``s`` has the first ``cu_k[s + 1] - cu_k[s]`` rows of those in row ``s`` of
    `block_table`.
    """
    packed = []
    for name, a in (("key", key), ("value", value)):
        scale, zero = (numbers.get(f"{name}_{of}") for of in ("scale", "zero_point"))
        real = real_rows(a, dtype, block_table=block_table, scale=scale, zero_point=zero)
        if block_table is not None:
            rows = zip(real, np.diff(cu_k), strict=True)
            real = np.concatenate([real[:0, :, 0], *(one[:, :n].swapaxes(0, 1) for one, n in rows)])
        packed.append(real)
    return packed
