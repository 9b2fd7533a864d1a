"""Chunks of queries and the keys that they see, for attnfast.dask."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np

from . import _dask_tasks as tasks
from ._keywords import refuse_unknown
from ._misread import check_axes
from .api import attention
from .planning import plan

OPTIONS = {
    *("mask", "bias", "is_causal", "window_size", "q_offset", "q_lengths", "kv_lengths"),
    *("kv_starts", "scale", "softcap", "alibi_slopes", "sink_logits"),
}
BY_ROW = ("q_offset", "q_lengths", "kv_lengths", "kv_starts")
BY_PAIR = ("mask", "bias")
Place = tuple[int, int, int]  # of a chunk: batch rows, heads, queries or keys


class Part(NamedTuple):
    """Keys that a chunk of queries sees: those of one chunk from a place on."""

    key: Any
    value: Any
    options: dict[str, Any]
    chunk: int
    start: int
    first: int  # query of the chunk that may see them
    last: int  # the one after the last such query


class Block(NamedTuple):
    """A chunk of queries, and the keys that it sees."""

    at: Place
    shape: tuple[int, ...]  # of queries, without the axis of their elements
    query: Any
    parts: list[Part]


class Call(NamedTuple):
    """Operands whose chunks of batch rows and heads fit."""

    query: Any
    key: Any
    value: Any
    options: dict[str, Any]

    def blocks(self) -> Iterator[Block]:
        """Chunks of queries with the keys that they see."""
        query_chunks, key_chunks, value_chunks = (
            chunks_of(x) for x in (self.query, self.key, self.value)
        )
        rows, heads, places = (_slices(sizes) for sizes in sizes_of(self.query)[:3])
        chunks = _slices(self.key.chunks[-2])
        for i, place in enumerate(places):
            for b, row in enumerate(rows):
                first, last = self.visible(place, row)
                seen = [
                    (j, max(first, chunk.start), min(last, chunk.stop))
                    for j, chunk in enumerate(chunks)
                    if max(first, chunk.start) < min(last, chunk.stop)
                ] or [(0, 0, 0)]
                for h, head in enumerate(heads):
                    parts = []
                    for n, (j, start, stop) in enumerate(seen):
                        edge, keys = chunks[j].start, slice(start, stop)
                        k, v = (
                            x[b, h, j, 0]
                            if keys == chunks[j]
                            else dask.delayed(tasks.cut, pure=False)(
                                x[b, h, j, 0], start - edge, stop - edge
                            )
                            for x in (key_chunks, value_chunks)
                        )
                        queries = self.seeing(keys, place, row, everything=n == 0)
                        options = self.part_options(row, head, queries, keys, n == 0)
                        some = queries.start - place.start, queries.stop - place.start
                        parts.append(Part(k, v, options, j, start - edge, *some))
                    shape = tuple(s.stop - s.start for s in (row, head, place))
                    shape = shape[4 - self.query.ndim :]
                    yield Block((b, h, i), shape, query_chunks[b, h, i, 0], parts)

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

    def by_row(self, name: str) -> Any:
        """An option that has a number for each batch row, or the same for all."""
        return np.broadcast_to(self.options[name], sum(sizes_of(self.query)[0]))

    def visible(self, place: slice, row: slice) -> tuple[int, int]:
        """The first key that any of these queries may see, and the one after the last."""
        offset = self.by_row("q_offset")[row]
        left, right = self.options["window_size"]
        first, last = 0, self.key.shape[-2]
        if left is not None:
            first = max(first, int(offset.min(initial=last)) + place.start - left)
        if right is not None:
            last = min(last, int(offset.max(initial=0)) + place.stop + right)
        for name, edge in (("kv_starts", "first"), ("kv_lengths", "last")):
            if self.options.get(name) is not None:
                given = self.by_row(name)[row]
                if edge == "first":
                    first = max(first, int(given.min(initial=last)))
                else:
                    last = min(last, int(given.max(initial=0)))
        return first, last

    def part_options(
        self, row: slice, head: slice, place: slice, keys: slice, has_sink: bool
    ) -> dict[str, Any]:
        """The options of one task: positions count from its first query and its first key."""
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
            if given.get(name) is not None:
                x = self.by_row(name)[row] + shift
                options[name] = x if size is None else np.clip(x, 0, size)
        for name in BY_PAIR:
            if given.get(name) is not None:
                options[name] = _part_of_pairs(given[name], (row, head, place, keys))
        if given.get("alibi_slopes") is not None:
            slopes = np.asarray(given["alibi_slopes"])
            options["alibi_slopes"] = slopes[head] if slopes.ndim == 1 else slopes[row, head]
        if has_sink and given.get("sink_logits") is not None:
            options["sink_logits"] = np.asarray(given["sink_logits"])[head]
        return options


def prepare(query: Any, key: Any, value: Any, options: dict[str, Any]) -> Call:
    """Check a call, and bring its chunks in line."""
    for name in ("out", "return_weights", "dropout", "dropout_seed", "num_threads", "return_lse"):
        if name in options:
            raise TypeError(f"{name} is not an argument of attnfast.dask: leave it out")
    unknown = {name: x for name, x in options.items() if name not in OPTIONS}
    if unknown:
        refuse_unknown(attention, unknown)
    q, k, v = (da.asarray(x) for x in (query, key, value))
    for name, x in (("query", q), ("key", k), ("value", v)):
        if not 2 <= x.ndim <= 4 or np.isnan(x.shape).any():
            raise ValueError(f"{name} must have 2 to 4 axes of known size, got shape {x.shape}")
    if not q.shape[:-3] == k.shape[:-3] == v.shape[:-3]:
        raise ValueError(
            f"query, key and value must have the same batch rows, got {q.shape}, {k.shape} and "
            f"{v.shape}: write da.broadcast_to"
        )
    given = {name: x for name, x in options.items() if x is not None}
    for name in BY_ROW:
        if name in given and not isinstance(given[name], str):
            given[name] = np.asarray(given[name])
    _check(q, k, v, given)
    _resolve(q, k, given)
    q, k, v = (x.rechunk({-1: -1}) for x in (q, k, v))
    if q.ndim > 2:
        group = q.shape[-3] // k.shape[-3]
        if any(n % group for n in q.chunks[-3]):
            q = q.rechunk({-3: tuple(n * group for n in k.chunks[-3])})
        k = k.rechunk({-3: tuple(n // group for n in q.chunks[-3])})
    if q.ndim > 3:
        k = k.rechunk({0: q.chunks[0]})
    return Call(q, k, v.rechunk((*k.chunks[:-1], -1)), given)


def sizes_of(x: Any) -> tuple[tuple[int, ...], ...]:
    """Sizes of chunks along 4 axes."""
    return (*((1,),) * (4 - x.ndim), *x.chunks)


def chunks_of(x: Any, axes: int = 4) -> Any:
    """The chunks, by their places along so many axes.

    They are those of the array itself: slices would have keys that dask fuses with others, in one
    call but not in the next.
    """
    chunks = x.to_delayed(optimize_graph=False)
    return chunks.reshape((1,) * (axes - x.ndim) + chunks.shape)


def _check(q: Any, k: Any, v: Any, given: dict[str, Any]) -> None:
    """Let attnfast refuse what it would refuse, by arrays that have no memory."""
    small = {name: x for name, x in given.items() if name not in BY_PAIR}
    plan(*(np.broadcast_to(np.zeros((), x.dtype), x.shape) for x in (q, k, v)), **small)
    full = (*q.shape[:-3], *(1, *q.shape)[-3:-1], k.shape[-2])
    for name in BY_PAIR:
        x = given.get(name)
        if x is None:
            continue
        if not hasattr(x, "dtype") or not hasattr(x, "shape"):
            raise TypeError(f"{name} must be a NumPy or dask array, got {type(x).__name__}")
        check_axes(name, x.shape, full[:-3], full[-3:])
        kinds = "b" if name == "mask" else "fV"  # V: bfloat16
        if x.dtype.kind not in kinds:
            raise TypeError(f"{name} must be {'bool' if kinds == 'b' else 'float'}, got {x.dtype}")


def _resolve(q: Any, k: Any, given: dict[str, Any]) -> None:
    """Offsets as numbers, windows as two of them or None, causality as a window."""
    offset = given.get("q_offset", 0)
    if isinstance(offset, str):
        lengths = given.get("kv_lengths", k.shape[-2]), given.get("q_lengths", q.shape[-2])
        offset = np.asarray(lengths[0]) - lengths[1]
    given["q_offset"] = np.asarray(offset)
    window = given.get("window_size")
    sides = window if isinstance(window, Sequence) else (window, window)
    left, right = (None if side in (None, -1) else int(side) for side in sides)
    if given.pop("is_causal", False):
        right = 0 if right is None else min(right, 0)
    given["window_size"] = (left, right)


def _slices(sizes: Sequence[int]) -> list[slice]:
    ends = np.cumsum((0, *sizes)).tolist()
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


def _part_of_pairs(x: Any, where: tuple[slice, ...]) -> Any:
    """What a task needs of a mask or bias, with 4 axes."""
    x = x[(None,) * (4 - x.ndim)]
    x = x[tuple(s if n != 1 else slice(None) for s, n in zip(where, x.shape, strict=True))]
    if isinstance(x, np.ndarray):
        return x
    return x.rechunk(-1).to_delayed(optimize_graph=False).item()
