"""The same numbers in memory of many forms, and sizes around the edges of tiles."""

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
# Both sides of every multiple of 8, 16 and 48, where the kernels' tiles end.
EDGES = [n + i for n in (8, 16, 24, 32, 48, 64, 96, 128, 144) for i in (-1, 0, 1)]


def lay_out(a: np.ndarray, layout: str) -> np.ndarray:
    """The same numbers in memory of another shape; NaN or a huge integer lies in between."""
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
