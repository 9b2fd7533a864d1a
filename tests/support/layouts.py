"""The same numbers in memory of many forms, and sizes around the edges of tiles."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

LAYOUTS = (
    "contiguous",
    "swapped axes",
    "reversed rows",
    "every other row",
    "Fortran order",
    "every other column",
    "backwards",
    "misaligned",
    "big-endian",
    "read-only",
)
# Both sides of every width of a register tile, 8 to 48 query lanes, and of its multiples.
EDGES = [n + i for n in (8, 12, 16, 24, 32, 48, 64, 96, 128, 144) for i in (-1, 0, 1)]
AROUND = [1, 2, 3, *(n for n in EDGES if n < 100)]


def paired(*lists: Sequence[Any], times: int) -> Iterator[tuple[Any, ...]]:
    """Each element of each list `times` times or more, beside others each time.

    Where what is done for one element does not depend on the others, this sees what all
    combinations would. The pairs look random and are the same in every run.
    """
    rng = np.random.default_rng(0)
    count = max(map(len, lists))
    for _ in range(times):
        orders = [rng.permutation(len(x)) for x in lists]
        for n in range(count):
            yield tuple(x[o[n % len(x)]] for x, o in zip(lists, orders, strict=True))


def lay_out(a: np.ndarray, layout: str) -> np.ndarray:
    """The same numbers in memory of another shape; NaN or a huge integer lies in between."""
    if a.ndim == 1:
        return lay_out(a[:, None], layout)[:, 0]
    gap = np.iinfo(a.dtype).max if a.dtype.kind in "iu" else np.nan
    if layout == "swapped axes" and a.ndim > 2:
        return np.ascontiguousarray(a.swapaxes(-3, -2)).swapaxes(-3, -2)
    if layout == "reversed rows":
        return np.ascontiguousarray(a[..., ::-1, :])[..., ::-1, :]
    if layout == "every other row":
        spread = np.full((*a.shape[:-2], 2 * a.shape[-2] + 1, a.shape[-1]), gap, a.dtype)
        spread[..., 1::2, :] = a
        return spread[..., 1::2, :]
    if layout == "Fortran order":
        return np.asfortranarray(a)
    if layout == "every other column":
        spread = np.full((*a.shape[:-1], 2 * a.shape[-1] + 1), gap, a.dtype)
        spread[..., 1::2] = a
        return spread[..., 1::2]
    if layout == "backwards":
        return np.ascontiguousarray(a[..., ::-1])[..., ::-1]
    if layout == "misaligned":
        raw = np.empty(a.nbytes + 1, np.uint8)
        shifted = raw[1:].view(a.dtype).reshape(a.shape)
        shifted[...] = a
        return shifted
    if layout == "big-endian" and a.dtype.kind == "f":
        return a.astype(a.dtype.newbyteorder(">"))
    if layout == "read-only":
        a = a.copy()
        a.flags.writeable = False
    return a
