"""Checks of plain arguments that the Python side shares."""

import numbers
from typing import Any

import numpy as np


def whole_number(x: Any, name: str, least: int) -> int:
    """An int of at least `least`; the error names the argument."""
    if isinstance(x, (bool, np.bool_, np.timedelta64)) or not isinstance(x, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {type(x).__name__}")
    if x < least:
        raise ValueError(f"{name} must be at least {least}, got {x}")
    return int(x)
