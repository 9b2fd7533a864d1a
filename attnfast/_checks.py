"""Checks of plain arguments that the Python side shares."""

import numbers
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._misread import as_array, wrong_integers

MOST = 2**63 - 1  # that an int64 holds


def whole_number(x: Any, name: str, least: int) -> int:
    """An int of at least `least`; the error names the argument."""
    if isinstance(x, (bool, np.bool_, np.timedelta64)) or not isinstance(x, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {type(x).__name__}")
    if x < least:
        raise ValueError(f"{name} must be at least {least}, got {x}")
    return int(x)


def row_numbers(
    x: ArrayLike, name: str, batch: tuple[int, ...], most: int = MOST
) -> NDArray[np.int64]:
    """Numbers from 0 to `most`, one for each batch row or for all; the error names the argument."""
    a = as_array(x, name)
    if a.dtype.kind not in "iu" and a.size:
        raise wrong_integers(a, x, name)
    if a.shape not in ((), batch):
        raise ValueError(
            f"{name} must be an int or have shape {batch}, one for each row, got {a.shape}"
        )
    if a.size and (a.min() < 0 or a.max() > most):
        raise ValueError(f"{name} must be within 0 .. {most}, got {a.min()} .. {a.max()}")
    return np.broadcast_to(a, batch).astype(np.int64)
