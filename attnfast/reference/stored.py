"""Keys and values that are stored in pages: the rows that they stand for."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .scores import Array


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


def real_rows(rows: ArrayLike, *, block_table: ArrayLike | None = None) -> Any:
    """Keys or values as plain rows, whatever they are stored in."""
    stored = np.asarray(rows)
    return stored if block_table is None else rows_of_pages(stored, block_table)
