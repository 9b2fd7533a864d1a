"""What workers of dask compute: NumPy in, NumPy out, one thread each.

Types of 16 bits are widened, so that parts are joined and added up in float32.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..api import attention
from ..block_mask import BlockMask
from ..gradient import attention_backward
from ..merge import merge_attention

Array = NDArray[Any]
Options = dict[str, Any]


class Span(NamedTuple):
    """Which queries of their chunk see some of the keys, and where in their chunk these begin."""

    first: int
    last: int  # the one after the last query
    key: int


class Rows(NamedTuple):
    """Results of the queries of a chunk from `start` on; all others saw nothing."""

    start: int
    output: Array
    lse: Array

    @property
    def stop(self) -> int:
        return self.start + int(self.lse.shape[2])

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


class Share(NamedTuple):
    """What a task adds to a chunk of a gradient or of weights, from a place on."""

    start: tuple[int, int]  # along the last two axes
    array: Array  # with 4 axes

    @property
    def stop(self) -> tuple[int, int]:
        return self.start[0] + self.array.shape[2], self.start[1] + self.array.shape[3]

    def place(self, whole: Array, start: tuple[int, int] = (0, 0)) -> Array:
        """Where it belongs in an array that begins at `start`."""
        (i, k), (j, m) = self.start, self.stop
        return whole[:, :, i - start[0] : j - start[0], k - start[1] : m - start[1]]


# ---- attention ----


def cut(chunk: Array, start: int, stop: int) -> Array:
    """Some keys of a chunk: what is sent of it."""
    return chunk[..., start:stop, :]


def attend(
    query: Array, key: Array, value: Array, mask: Any, bias: Any, options: Options, span: Span
) -> Rows:
    """Output and lse of some queries over some of the keys."""
    q, k, v = _operands(query, key, value, span)
    known: dict[str, Any] = {**_pairs(mask, bias), "return_lse": True, "num_threads": 1}
    result = attention(q, k, v, **known, **options)
    return Rows(span.first, result.output, result.lse)


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
    output = rows.output.reshape(rows.output.shape[4 - rank :])
    return output.astype(dtype, copy=False), rows.lse.reshape(output.shape[:-1])


def weigh(
    query: Array,
    key: Array,
    value: Array,
    mask: Any,
    bias: Any,
    options: Options,
    span: Span,
    lse: Array,
) -> Share:
    """The weights that some queries give to some of the keys, by their lse over all keys."""
    q, k, v = _operands(query, key, value, span)
    known: dict[str, Any] = {**_pairs(mask, bias), "return_lse": True, "return_weights": True}
    own = attention(q, k, v[..., :0], num_threads=1, **known, **options)
    whole = _of_rows(lse, 3)[:, :, span.first : span.last]
    with np.errstate(invalid="ignore"):
        share = np.exp(own.lse - whole)[..., None]
        # A hidden key has no part in a NaN, nor in a row that sees nothing.
        weights = np.where(own.weights == 0, 0, own.weights * share)
    return Share((span.first, span.key), weights)


# ---- gradients ----


def differentiate(
    query: Array,
    key: Array,
    value: Array,
    mask: Any,
    bias: Any,
    options: Options,
    span: Span,
    starts: dict[str, tuple[int, int]],
    grad_output: Array,
    output: Array,
    lse: Array,
    grad_lse: Array | None = None,
) -> tuple[Share, ...]:
    """Gradients by a call over some of the keys, from output and lse over all of them.

    `starts` has the names of those that are wanted, and where they begin in their chunks.
    """
    q, k, v = _operands(query, key, value, span)
    rows = slice(span.first, span.last)
    grad, out = (_lift(x)[:, :, rows].astype(q.dtype, copy=False) for x in (grad_output, output))
    known: dict[str, Any] = {"lse": lse} if grad_lse is None else {"lse": lse, "grad_lse": grad_lse}
    known = {name: _of_rows(x, 3)[:, :, rows] for name, x in known.items()}
    known |= {**_pairs(mask, bias), "num_threads": 1}
    wanted = tuple(starts)
    found = attention_backward(grad, q, k, v, out, wanted=wanted, **known, **options)
    return tuple(Share(start, _of_axes(getattr(found, n))) for n, start in starts.items())


def _of_axes(x: Array) -> Array:
    """A gradient with 4 axes: numbers of heads, or of rows and heads, have no others."""
    return x if x.ndim == 4 else x.reshape((1,) * (2 - x.ndim) + x.shape + (1, 1))


def add(one: Share, other: Share) -> Share:
    """The sum of two shares."""
    start = (min(one.start[0], other.start[0]), min(one.start[1], other.start[1]))
    stop = (max(one.stop[0], other.stop[0]), max(one.stop[1], other.stop[1]))
    shape = (*one.array.shape[:2], stop[0] - start[0], stop[1] - start[1])
    whole = np.zeros(shape, one.array.dtype)
    for share in (one, other):
        share.place(whole, start)[...] += share.array
    return Share(start, whole)


def total(share: Share, shape: tuple[int, ...], kept: tuple[int, ...], dtype: Any) -> Array:
    """A whole chunk in its own dtype and with its own axes, 0 where the share has nothing."""
    whole = share.array
    if whole.shape != tuple(shape):
        whole = np.zeros(shape, share.array.dtype)
        share.place(whole)[...] = share.array
    return whole.reshape(kept).astype(dtype, copy=False)


# ---- operands ----


class Blocks:
    """The blocks of a `BlockMask` that some queries and keys meet, which may begin within the first
    and end within the last of them."""

    def __init__(
        self, blocks: Array, block_size: tuple[int, int], pairs: tuple[slice, slice]
    ) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self.pairs = pairs  # which of the queries and of the keys of these blocks

    def mask(self) -> BlockMask:
        """The same with blocks so small that none lies across a border."""
        blocks, sizes = self.blocks, []
        for axis, size, span in zip((2, 3), self.block_size, self.pairs, strict=True):
            sizes.append(math.gcd(size, span.start))
            blocks = blocks.take(np.arange(span.start, span.stop, sizes[-1]) // size, axis)
        return BlockMask(blocks, (sizes[0], sizes[1]))


def _pairs(mask: Any, bias: Any) -> Options:
    return {
        "mask": mask.mask() if isinstance(mask, Blocks) else mask,
        "bias": None if bias is None else _lift(bias),
    }


def _operands(query: Array, key: Array, value: Array, span: Span) -> tuple[Array, Array, Array]:
    return _lift(query)[:, :, span.first : span.last], _lift(key), _lift(value)


def _of_rows(x: Array, axes: int) -> Array:
    return x[(None,) * (axes - x.ndim)]


def _lift(x: Array) -> Array:
    """The array with 4 axes, in float32 or float64, in which its gradient is added up."""
    x = _of_rows(x, 4)
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)


def _write(whole: Rows, part: Rows) -> None:
    rows = slice(part.start - whole.start, part.stop - whole.start)
    whole.output[:, :, rows], whole.lse[:, :, rows] = part.output, part.lse
