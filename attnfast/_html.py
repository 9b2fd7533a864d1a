"""HTML that notebooks show of results, masks, caches and layers: a table and a small picture.

Pictures are SVG of a bounded size, whatever they show; all text is escaped.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Line = tuple[str, str, float]  # a name, its value, and the share of 1 that its bar shows

CELLS = 64  # of a heat map, down and across: what has more is summed up
BAR = 10  # pixels of the height of a bar
LEVELS = 16
READ = 2**24  # numbers that a heat map is made of; of more, queries are left out
TEXTS = 16  # rows of a cache that are shown
LONG, SHORT = 192, 24  # pixels of the longer side of a heat map, and of the shorter at the least
FULL, EMPTY, NAN = "#0072b2", "#f0f0f0", "#d55e00"


def card(
    head: str,
    rows: Mapping[str, object],
    picture: str = "",
    caption: str = "",
    *,
    shares: Sequence[float] = (),
) -> str:
    """A heading, a table of names and values, and a picture beside it; `picture` is SVG.

    With `shares` of 1 each of the first rows has a bar.
    """
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th>"
        f"<td style='text-align:left'>{escape(str(value))}</td>"
        f"<td>{_bar(shares[i]) if i < len(shares) else ''}</td></tr>"
        for i, (name, value) in enumerate(rows.items())
    )
    table = f"<table>{cells}</table>" if cells else ""
    below = f"<div><small>{escape(caption)}</small></div>" if caption else ""
    return (
        f"<div><code>{escape(head)}</code>"
        "<div style='display:flex;flex-wrap:wrap;gap:1.5em;align-items:flex-start'>"
        f"{table}<div>{picture}{below}</div></div></div>"
    )


def heat(values: Array, label: str) -> str:
    """A heat map of ``(n, m)`` numbers from 0, white, to 1; a NaN is orange."""
    n, m = values.shape
    shares = np.clip(np.nan_to_num(values), 0, 1)
    levels = np.where(np.isnan(values), -1, np.ceil(LEVELS * shares)).astype(int)
    paths: dict[int, list[str]] = {}
    for y, row in enumerate(levels):
        for x, width, level in _runs(row):
            if level:
                paths.setdefault(level, []).append(f"M{x} {y}h{width}v1h-{width}z")
    drawn = "".join(
        f"<path d='{''.join(parts)}' fill='{FULL if level > 0 else NAN}'"
        f" fill-opacity='{abs(level) / LEVELS if level > 0 else 1:g}'/>"
        for level, parts in sorted(paths.items())
    )
    scale = LONG / max(n, m)
    size = max(round(m * scale), SHORT), max(round(n * scale), SHORT)
    return _svg(size, (m, n), label, drawn)


def arrays(head: str, found: Mapping[str, Array]) -> str:
    """The arrays of a layer, and a bar for the size of each."""
    rows = {name: f"{a.dtype} {a.shape}" for name, a in found.items()}
    total = sum(a.size for a in found.values())
    rows["parameters"] = f"{total:,}"
    return card(head, rows, shares=[a.size / max(total, 1) for a in found.values()])


def cache(
    head: str, texts: Iterable[Line], count: int, nbytes: int, above: Sequence[Line] = ()
) -> str:
    """A cache of `count` texts, of which the first are shown; `above` are lines before them."""
    lines = [*above, *islice(texts, TEXTS)]
    rows = {name: value for name, value, _ in lines}
    if count > TEXTS:
        rows["..."] = f"{count - TEXTS:,} more rows"
    rows["bytes"] = f"{nbytes:,}"
    return card(head, rows, shares=[share for *_, share in lines])


def mean_cells(values: Array) -> Array:
    """A matrix in at most `CELLS` x `CELLS` cells, the mean of each."""
    total = values
    for axis in (0, 1):
        starts = _starts(values.shape[axis])
        count = np.diff(starts, append=values.shape[axis])
        total = np.add.reduceat(total, starts, axis=axis, dtype=np.float64)
        total = total / count.reshape((-1, 1) if axis == 0 else (1, -1))
    return total


def heaviest_cells(weights: Array) -> Array:
    """A matrix in at most `CELLS` x `CELLS` cells, the largest of each."""
    step = -(-weights.size // READ)
    found = weights[::step].astype(np.float32)
    for axis in (0, 1):
        found = np.maximum.reduceat(found, _starts(found.shape[axis]), axis=axis)
    return found


def visited_cells(blocks: Array) -> tuple[Array, int, int]:
    """The share of pairs in each cell that rectangles cover, and the numbers of queries and keys.

    `blocks` has the first and past-the-last query and key, and the step between them.
    """
    Lq, Lk = (max(int(blocks[:, place].max(initial=0)), 1) for place in (1, 3))
    starts = _starts(Lq), _starts(Lk)
    total = np.zeros((len(starts[0]), len(starts[1])))
    for first in range(0, len(blocks), 4096):
        part = blocks[first : first + 4096]
        rows = _counts(part[:, 0], part[:, 1], part[:, 4], starts[0], Lq)
        columns = _counts(part[:, 2], part[:, 3], part[:, 4], starts[1], Lk)
        total += rows.T @ columns
    size = np.outer(np.diff(starts[0], append=Lq), np.diff(starts[1], append=Lk))
    return total / size, Lq, Lk


def _counts(first: Array, past: Array, step: Array, starts: Array, length: int) -> Array:
    """How many of ``first, first + step, ...`` below `past` each cell has, a row for each first."""
    edges = np.append(starts, length)[None]
    below = np.clip(edges, first[:, None], past[:, None]) - first[:, None]
    counts: Array = np.diff(-(-below // step[:, None]), axis=1).astype(np.float64)
    return counts


def _starts(length: int) -> Array:
    """Where each cell begins."""
    cells = min(length, CELLS)
    return np.arange(cells) * length // max(cells, 1)


def _runs(row: Array) -> Iterator[tuple[int, int, int]]:
    """First place, length and level of each run of one level."""
    cuts = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
    for x, past in pairwise(cuts):
        yield x, past - x, int(row[x])


def _bar(share: float) -> str:
    width = 100 * min(max(share, 0), 1)
    drawn = f"<rect width='{width:.3g}' height='1' fill='{FULL}'/>"
    return _svg((LONG, BAR), (100, 1), f"{width:.3g} %", drawn)


def _svg(size: tuple[int, int], box: tuple[int, int], label: str, drawn: str) -> str:
    return (
        f"<svg width='{size[0]}' height='{size[1]}' viewBox='0 0 {box[0]} {box[1]}'"
        f" preserveAspectRatio='none' shape-rendering='crispEdges' role='img'"
        f" aria-label='{escape(label)}' style='background:{EMPTY};border:1px solid #8c8c8c'>"
        f"{drawn}</svg>"
    )
