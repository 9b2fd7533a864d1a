"""Chunks of queries and the keys that they see."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np

from .._misread import Array
from ..block_mask import BlockMask
from . import _tasks as tasks
from ._sums import Place

QKV = ("query", "key", "value")
Sizes = tuple[int, ...]
Where = tuple[slice, slice, slice, slice]  # batch rows, heads, queries, keys


class Part(NamedTuple):
    """Keys that a chunk of queries sees: those of one chunk from a place on."""

    key: Any
    value: Any
    mask: Any
    bias: Any
    options: dict[str, Any]
    chunk: int
    span: tasks.Span


class Block(NamedTuple):
    """A chunk of queries, and the keys that it sees."""

    at: Place
    shape: tuple[int, int, int]  # batch rows, heads, queries
    query: Any
    parts: list[Part]


class Call(NamedTuple):
    """Operands whose chunks of batch rows and heads fit.

    An operand that has one batch row, or no axis for them, has the same for all rows.
    """

    query: Any
    key: Any
    value: Any
    options: dict[str, Any]
    rows: Sizes  # of the chunks of batch rows

    @property
    def rank(self) -> int:
        """How many axes the output has."""
        return int(max(x.ndim for x in self[:3]))

    @property
    def axes(self) -> tuple[int, ...]:
        """Which of 4."""
        return tuple(range(4 - self.rank, 4))

    @property
    def shape(self) -> tuple[int, ...]:
        """Batch rows, heads and queries, as far as the output has these axes."""
        heads, queries = (1, *self.query.shape)[-3:-1]
        return (sum(self.rows), heads, queries)[4 - self.rank :]

    @property
    def operands(self) -> list[Any]:
        """All that may be dask arrays."""
        return [*self[:3], self.options.get("mask"), self.options.get("bias")]

    @property
    def real_type(self) -> Any:
        """What lse is in."""
        return np.dtype(np.float64 if self.query.dtype == np.float64 else np.float32)

    def blocks(self) -> Iterator[Block]:
        """Chunks of queries with the keys that they see."""
        queries, keys, values = (chunks_of(x) for x in self[:3])
        rows = _slices(self.rows)
        heads, places = (_slices(sizes) for sizes in sizes_of(self.query)[1:3])
        for (i, place), (b, row) in itertools.product(enumerate(places), enumerate(rows)):
            seen = self.seen(place, row)
            for h, head in enumerate(heads):
                parts = []
                for n, (j, chunk, some) in enumerate(seen):
                    k, v = (_cut(x[b % len(x), h, j, 0], chunk, some) for x in (keys, values))
                    looking = self.seeing(some, place, row, everything=n == 0)
                    where = row, head, looking, some
                    mask, bias = (
                        _of_pairs(self.options.get(name), where) for name in ("mask", "bias")
                    )
                    options = self.part_options(where, n == 0)
                    first, last = looking.start - place.start, looking.stop - place.start
                    span = tasks.Span(first, last, some.start - chunk.start)
                    parts.append(Part(k, v, mask, bias, options, j, span))
                shape = (row.stop - row.start, head.stop - head.start, place.stop - place.start)
                yield Block((b, h, i, 0), shape, queries[b % len(queries), h, i, 0], parts)

    def seen(self, place: slice, row: slice) -> list[tuple[int, slice, slice]]:
        """The number and place of each chunk of keys that any of these queries may see, and the
        keys from the first to the last of those that they may see."""
        first, last = self.visible(place, row)
        found = []
        for j, chunk in enumerate(_slices(self.key.chunks[-2])):
            keys = slice(max(first, chunk.start), min(last, chunk.stop))
            if keys.start < keys.stop and self.shows(row, place, keys):
                found.append((j, chunk, keys))
        return found or [(0, slice(0, self.key.chunks[-2][0]), slice(0, 0))]

    def shows(self, row: slice, place: slice, keys: slice) -> bool:
        """Whether a `BlockMask` has any block for these."""
        mask = self.options.get("mask")
        if not isinstance(mask, BlockMask):
            return True
        blocks = _with_axes(mask.blocks)
        near = (
            slice(s.start // size, -(-s.stop // size))
            for s, size in zip((place, keys), mask.block_size, strict=True)
        )
        return bool(blocks[row if len(blocks) > 1 else slice(None), :, *near].any())

    def seeing(self, keys: slice, place: slice, row: slice, everything: bool) -> slice:
        """The queries of a chunk that may see any of these keys, or all for the sake of a sink."""
        if everything and self.options.get("sink_logits") is not None:
            return place
        offset = self.by_row("q_offset")[row]
        left, right = self.options["window_size"]
        first, last = place.start, place.stop
        if right is not None:
            first = max(first, keys.start - right - int(offset.max(initial=0)))
        if left is not None:
            last = min(last, keys.stop + left - int(offset.min(initial=place.stop)))
        return slice(min(first, place.stop), max(last, min(first, place.stop)))

    def by_row(self, name: str) -> Array:
        """An option that has a number for each batch row, or the same for all."""
        return np.broadcast_to(self.options[name], sum(self.rows))

    def visible(self, place: slice, row: slice) -> tuple[int, int]:
        """The first key that any of these queries may see, and the one after the last."""
        offset = self.by_row("q_offset")[row]
        left, right = self.options["window_size"]
        first, last = 0, self.key.shape[-2]
        if left is not None:
            first = max(first, int(offset.min(initial=last)) + place.start - left)
        if right is not None:
            last = min(last, int(offset.max(initial=0)) + place.stop + right)
        if "kv_starts" in self.options:
            first = max(first, int(self.by_row("kv_starts")[row].min(initial=last)))
        if "kv_lengths" in self.options:
            last = min(last, int(self.by_row("kv_lengths")[row].max(initial=0)))
        return first, last

    def part_options(self, where: Where, has_sink: bool) -> dict[str, Any]:
        """The options of one task: positions count from its first query and its first key."""
        row, head, place, keys = where
        given = self.options
        options: dict[str, Any] = {n: given[n] for n in ("scale", "softcap") if n in given}
        left, right = given["window_size"]
        options["window_size"] = (-1 if left is None else left, -1 if right is None else right)
        for name, shift, size in (
            ("q_offset", place.start - keys.start, None),
            ("q_lengths", -place.start, place.stop - place.start),
            ("kv_lengths", -keys.start, keys.stop - keys.start),
            ("kv_starts", -keys.start, keys.stop - keys.start),
        ):
            if name in given:
                x = self.by_row(name)[row] + shift
                options[name] = x if size is None else np.clip(x, 0, size)
        if "alibi_slopes" in given:
            slopes = given["alibi_slopes"]
            options["alibi_slopes"] = slopes[head] if slopes.ndim == 1 else slopes[row, head]
        if has_sink and "sink_logits" in given:
            options["sink_logits"] = given["sink_logits"][head]
        return options


def sizes_of(x: Any) -> tuple[Sizes, ...]:
    """Sizes of chunks along 4 axes."""
    return (*((1,),) * (4 - x.ndim), *x.chunks)


def chunks_of(x: Any, axes: int = 4) -> Any:
    """The chunks, by their places along so many axes.

    They are those of the array itself: slices would have keys that dask fuses with others, in one
    call but not in the next.
    """
    chunks = x.to_delayed(optimize_graph=False)
    return chunks.reshape((1,) * (axes - x.ndim) + chunks.shape)


def without_empty(x: Any) -> tuple[Sizes, ...]:
    """Sizes of the chunks that have something; of an empty axis it is one chunk."""
    return tuple(tuple(n for n in sizes if n) or (0,) for sizes in x.chunks)


def rechunk(x: Any, chunks: tuple[Sizes, ...]) -> Any:
    """The array in these chunks; of an array without elements dask would keep others."""
    return x.rechunk(chunks) if x.size else da.zeros(x.shape, dtype=x.dtype, chunks=chunks)


def _cut(x: Any, chunk: slice, keys: slice) -> Any:
    """Some keys of a chunk."""
    if keys == chunk:
        return x
    start, stop = keys.start - chunk.start, keys.stop - chunk.start
    return dask.delayed(tasks.cut, pure=False)(x, start, stop)


def _slices(sizes: Sequence[int]) -> list[slice]:
    ends = np.cumsum((0, *sizes)).tolist()
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


def _with_axes(x: Any) -> Any:
    return x[(None,) * (4 - x.ndim)]


def _of_pairs(x: Any, where: Where) -> Any:
    """What a task needs of a mask or bias, with 4 axes."""
    if x is None:
        return None
    if isinstance(x, BlockMask):
        return _of_blocks(x, where)
    x = _with_axes(x)
    x = x[tuple(s if n != 1 else slice(None) for s, n in zip(where, x.shape, strict=True))]
    if isinstance(x, np.ndarray):
        return x
    return rechunk(x, tuple((n,) for n in x.shape)).to_delayed(optimize_graph=False).item()


def _of_blocks(mask: BlockMask, where: Where) -> tasks.Blocks:
    """The same of blocks."""
    blocks = _with_axes(mask.blocks)
    for axis in (0, 1):
        if blocks.shape[axis] > 1:
            blocks = blocks[(slice(None),) * axis + (where[axis],)]
    pairs = []
    for axis, size in zip((2, 3), mask.block_size, strict=True):
        first, last = where[axis].start // size, -(-where[axis].stop // size)
        blocks = blocks[(slice(None),) * axis + (slice(first, last),)]
        pairs.append(slice(where[axis].start - first * size, where[axis].stop - first * size))
    return tasks.Blocks(blocks, mask.block_size, (pairs[0], pairs[1]))
