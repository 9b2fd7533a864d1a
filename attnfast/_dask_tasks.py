"""What workers of dask compute: NumPy in, NumPy out, one thread each.

Types of 16 bits are widened, so that parts are joined and added up in float32.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .api import attention
from .gradient import attention_backward
from .merge import merge_attention

Array = NDArray[Any]


class Rows(NamedTuple):
    """Results of the queries of a chunk from `start` on; all others saw nothing."""

    start: int
    output: Array  # or the gradient by the queries
    lse: Array

    @property
    def stop(self) -> int:
        return self.start + len(self.lse[0, 0])

    def within(self, start: int, stop: int) -> "Rows":
        rows = slice(start - self.start, stop - self.start)
        return Rows(start, self.output[:, :, rows], self.lse[:, :, rows])

    def grow(self, start: int, stop: int) -> "Rows":
        """A copy with rows before and after, which saw nothing."""
        batch, heads, _, width = self.output.shape
        output = np.zeros((batch, heads, stop - start, width), self.output.dtype)
        lse = np.full(output.shape[:-1], -np.inf, self.lse.dtype)
        rows = slice(self.start - start, self.stop - start)
        output[:, :, rows], lse[:, :, rows] = self.output, self.lse
        return Rows(start, output, lse)


def cut(chunk: Array, start: int, stop: int) -> Array:
    """Some keys of a chunk: what is sent of it."""
    return chunk[..., start:stop, :]


def attend(
    query: Array, key: Array, value: Array, options: dict[str, Any], start: int, stop: int
) -> Rows:
    """Output and lse of queries ``start .. stop`` over some of the keys."""
    q, k, v = (_lift(x) for x in (query, key, value))
    result = attention(q[:, :, start:stop], k, v, return_lse=True, num_threads=1, **options)
    return Rows(start, result.output, result.lse)


def join(one: Rows, other: Rows) -> Rows:
    """The same over the keys of both."""
    start, stop = max(one.start, other.start), min(one.stop, other.stop)
    if (one.start, one.stop) == (other.start, other.stop):
        merged = merge_attention((one.output, other.output), (one.lse, other.lse))
        return Rows(start, merged.output, merged.lse)
    whole = one.grow(min(one.start, other.start), max(one.stop, other.stop))
    _write(whole, other)
    if start < stop:
        _write(whole, join(one.within(start, stop), other.within(start, stop)))
    return whole


def finish(rows: Rows, count: int, dtype: Any, rank: int) -> tuple[Array, Array]:
    """Output and lse of all queries, in their own dtype and with their own axes."""
    if rows.lse.shape[2] != count:
        rows = rows.grow(0, count)
    return cast(rows.output, dtype, rank), rows.lse.reshape(rows.lse.shape[4 - rank :])


def differentiate(
    query: Array,
    key: Array,
    value: Array,
    options: dict[str, Any],
    start: int,
    stop: int,
    loss: tuple[Array, Array, Array],
) -> tuple[tuple[int, Array], Array, Array]:
    """Gradients by a call over some of the keys, from output and lse over all of them."""
    k, v = _lift(key), _lift(value)
    q, grad, out = (_lift(x)[:, :, start:stop] for x in (query, *loss[:2]))
    lse = loss[2][(None,) * (3 - loss[2].ndim)][:, :, start:stop]
    found = attention_backward(grad, q, k, v, out, lse, num_threads=1, **options)
    return (start, found.query), found.key, found.value


def add(one: tuple[int, Array], other: tuple[int, Array]) -> tuple[int, Array]:
    """The sum of two shares of a gradient, each from a place on."""
    start = min(one[0], other[0])
    stop = max(place + x.shape[2] for place, x in (one, other))
    total = place_in(*one, start, stop)
    total[:, :, other[0] - start : other[0] - start + other[1].shape[2]] += other[1]
    return start, total


def place_in(place: int, share: Array, start: int, stop: int) -> Array:
    """A copy of a gradient with zeros before and after."""
    batch, heads, count, width = share.shape
    whole = np.zeros((batch, heads, stop - start, width), share.dtype)
    whole[:, :, place - start : place - start + count] = share
    return whole


def total(share: tuple[int, Array], count: int, dtype: Any, rank: int) -> Array:
    """The gradient of a whole chunk, in its own dtype and with its own axes."""
    place, x = share
    return cast(x if x.shape[2] == count else place_in(place, x, 0, count), dtype, rank)


def cast(x: Array, dtype: Any, rank: int) -> Array:
    """The array in this dtype, with its own axes."""
    return x.reshape(x.shape[4 - rank :]).astype(dtype, copy=False)


def _write(whole: Rows, part: Rows) -> None:
    rows = slice(part.start - whole.start, part.stop - whole.start)
    whole.output[:, :, rows], whole.lse[:, :, rows] = part.output, part.lse


def _lift(x: Array) -> Array:
    """The array with 4 axes, in float32 or float64."""
    x = x[(None,) * (4 - x.ndim)]
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
