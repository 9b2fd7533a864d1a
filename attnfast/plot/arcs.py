"""The heaviest keys of each query as arcs over a line of positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .._signature import plain_signature
from .canvas import (
    FAINT,
    INK,
    POINTS,
    SOFT,
    Array,
    PathLike,
    as_array,
    check_axes,
    check_int,
    check_numbers,
    check_titles,
    check_tokens,
    figure_of,
    new_figure,
    save,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BACK, AHEAD = "#0072b2", "#d55e00"  # told apart with any kind of colour vision
WRITTEN = 90  # tokens that are all written; of more, those that get the most weight
STEPS = 65  # points of an arc
WIDE, HIGH = 10.0, 1.9  # inches of a panel, of the highest arc


class Arcs(NamedTuple):
    """Arcs of one head: where they begin and end, and their weights from 0 to 1."""

    queries: Array
    keys: Array
    shares: Array


@plain_signature
def topk(
    indices: ArrayLike,
    weights: ArrayLike,
    tokens: Sequence[str] | None = None,
    *,
    q_offset: int = 0,
    least: float = 0.0,
    titles: Sequence[str] | str | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    path: PathLike | None = None,
) -> Figure:
    """Draw the heaviest keys of each query as arcs, for texts too long for a heat map.

    An arc joins the query's place with the key's, above the line to keys before the query and
    below it to keys after; the heavier, the wider and the darker. A query that sees itself has a
    dot. Thousands of positions are no trouble.

    Parameters
    ----------
    indices : array_like of int, ``(H, Lq, k)`` or ``(Lq, k)``
        Keys of :func:`attnfast.attention_topk`, of one batch row; -1 stands for no key.
    weights : array_like, shape of `indices`
        Their weights.
    tokens : sequence of str, optional
        Labels of all positions. Up to 90 are all written; of more, those that receive the most
        weight. Without them, positions are numbered.
    q_offset : int
        Place of query 0 on the line.
    least : float
        Weights below this are left out.
    titles : sequence of str ``(H,)`` or str, optional
        A title for each panel, default ``head 0`` and so on where there is more than one.
    ax : Axes or sequence of Axes ``(H,)``, optional
        Where to draw; default a new figure with the heads one below the other.
    path : path-like, optional
        Where to save the picture, in the format of the suffix.

    Returns
    -------
    Figure
        The new figure, or the one that `ax` belongs to.

    Raises
    ------
    ImportError
        When there is no matplotlib.
    TypeError, ValueError
        An argument of the wrong type or shape; the message begins with its name.

    Examples
    --------
    >>> from attnfast import plot
    >>> indices = [[0, -1], [0, 1], [1, 0]]
    >>> weights = [[1.0, 0.0], [0.8, 0.2], [0.6, 0.3]]
    >>> figure = plot.topk(indices, weights, ["the", "red", "flag"])
    >>> [text.get_text() for text in figure.axes[0].texts[:3]]
    ['the', 'red', 'flag']
    """
    keys = as_array(indices, "indices")
    if keys.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got {keys.dtype}")
    if keys.ndim not in (2, 3) or 0 in keys.shape[:-1]:
        raise ValueError(
            f"indices must be (H, Lq, k) or (Lq, k) and not empty, got shape {keys.shape}"
            + (": choose a batch row" if keys.ndim > 3 else "")
        )
    values = check_numbers(weights, "weights")
    if values.shape != keys.shape:
        raise ValueError(
            f"weights must have the shape of indices, {keys.shape}, got {values.shape}"
        )
    last = int(keys.max(initial=-1))
    if keys.min(initial=0) < -1:
        raise ValueError(f"indices must be places, or -1 for none, got {keys.min()}")
    start = check_int(q_offset, "q_offset", 0)
    length = max(start + keys.shape[-2], last + 1)
    labels = check_tokens(tokens, "tokens")
    if tokens is not None and len(labels) < length:
        raise ValueError(
            f"tokens must be at least {length} strings, one for each position, got {len(labels)}"
        )
    length = max(length, len(labels))
    if not isinstance(least, (int, float, np.number)) or math.isnan(least):
        raise ValueError(f"least must be a number, got {least!r}")
    panels = keys if keys.ndim == 3 else keys[None]
    heads = [
        _arcs(panel, part, start, float(least))
        for panel, part in zip(panels, values.reshape(panels.shape), strict=True)
    ]
    names = check_titles(titles, len(panels))
    axes = check_axes(ax, len(panels))
    if axes:
        figure = figure_of(axes[0])
    else:
        width = min(WIDE, max(5.0, 0.3 * length))
        heights = [HIGH * sum(_reach(arcs)) + _band(labels, length, width) + 0.6 for arcs in heads]
        figure = new_figure(width, sum(heights))
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
        axes = grid.ravel().tolist()
    for axis, name in zip(axes, names, strict=True):
        axis.set_title(name, color=INK, fontsize=10)
        _frame(axis, bool(labels) and length <= WRITTEN)
    figure.draw_without_rendering()  # lays the axes out: words are measured in inches
    for axis, arcs in zip(axes, heads, strict=True):
        _draw(axis, arcs, labels, length)
    save(figure, path)
    return figure


def _arcs(keys: Array, weights: Array, start: int, least: float) -> Arcs:
    """The arcs to draw, the heaviest last, so that they are on top."""
    queries = np.broadcast_to(start + np.arange(len(keys))[:, None], keys.shape)
    drawn = (keys >= 0) & (weights > 0) & (weights >= least)
    shares = weights[drawn] / weights[drawn].max(initial=np.finfo(weights.dtype).tiny)
    order = np.argsort(shares, kind="stable")
    return Arcs(queries[drawn][order], keys[drawn][order].astype(np.int64), shares[order])


def _reach(arcs: Arcs) -> tuple[float, float]:
    """How high the arcs rise above and below the line, as shares of the highest."""
    step = arcs.keys - arcs.queries
    back, ahead = np.sqrt(max(-step.min(initial=0), 0)), np.sqrt(max(step.max(initial=0), 0))
    highest = max(back, ahead)
    return (back / highest, ahead / highest) if highest else (0.1, 0.0)


def _band(labels: list[str], length: int, width: float) -> float:
    """Inches between the arcs above and those below, for the labels."""
    if not labels:
        return 0.0
    font = _font_size(length, width)
    longest = max(map(len, labels))
    return 0.16 if _lying(labels, length, width) else (0.62 * font * longest + 6) / POINTS


def _font_size(length: int, width: float) -> float:
    return min(9.0, max(5.0, 0.8 * width / length * POINTS)) if length <= WRITTEN else 7.0


def _lying(labels: list[str], length: int, width: float) -> bool:
    """Whether each label fits above its place without being turned."""
    room = 0.9 * width / length * POINTS
    return max(map(len, labels)) * 0.65 * _font_size(length, width) < room


def _frame(axis: Axes, written: bool) -> None:
    """What surrounds the arcs: no box, and numbers where words do not stand."""
    axis.spines[:].set_visible(False)
    axis.set_yticks([])
    if written:
        axis.set_xticks([])
    else:
        axis.tick_params(axis="x", color=FAINT, labelcolor=INK, labelsize=8)
        axis.set_xlabel("position", color=INK, fontsize=9)


def _draw(axis: Axes, arcs: Arcs, labels: list[str], length: int) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba

    box = axis.get_window_extent()
    width, height = box.width / figure_of(axis).dpi, box.height / figure_of(axis).dpi
    above, below = _reach(arcs)
    band = _band(labels, length, width)
    # A label's inches in units of the highest arc.
    half = 0.5 * (above + below) * band / max(height - band, band, 1e-3)
    axis.set_xlim(-0.5 - 0.01 * length, length - 0.5 + 0.01 * length)
    axis.set_ylim(-half - below - 0.03, half + above + 0.03)
    for edge in {half, -half}:
        axis.axhline(edge, color=FAINT, linewidth=0.6, zorder=0)

    dense = min(1.0, (200 / length) ** 0.3)  # thinner lines where there are many
    distance = arcs.keys - arcs.queries
    highest = math.sqrt(max(np.abs(distance).max(initial=1), 1))
    turn = np.linspace(0, np.pi, STEPS)
    for side, color, edge in ((-1, BACK, half), (1, AHEAD, -half)):
        chosen = np.sign(distance) == side
        middle = (arcs.keys + arcs.queries)[chosen, None] / 2
        radius = np.abs(distance)[chosen, None]
        points = np.empty((len(middle), STEPS, 2))
        points[..., 0] = middle + radius / 2 * np.cos(turn)
        points[..., 1] = edge - side * np.sqrt(radius) / highest * np.sin(turn)
        share = arcs.shares[chosen]
        colors = np.tile(to_rgba(color), (len(share), 1))
        colors[:, 3] = 0.04 + dense * 0.86 * share
        axis.add_collection(
            LineCollection(
                list(points),
                colors=colors,
                linewidths=dense * (0.3 + 2.7 * share),
                capstyle="round",
            )
        )
    own = distance == 0
    dots = dense * 20 * arcs.shares[own]
    axis.scatter(arcs.keys[own], np.full(own.sum(), half), s=dots, color=SOFT, linewidths=0)
    _write(axis, arcs, labels, length, width)
    for shown, color, place, words in (
        (arcs.keys < arcs.queries, BACK, 1.0, "keys before the query"),
        (arcs.keys > arcs.queries, AHEAD, 0.0, "keys after the query"),
    ):
        if shown.any():
            axis.text(
                0.0, place, words, color=color, fontsize=8, transform=axis.transAxes,
                va="top" if place else "bottom",
            )  # fmt: skip


def _write(axis: Axes, arcs: Arcs, labels: list[str], length: int, width: float) -> None:
    """Write the labels that have room, those that receive the most weight first."""
    if not labels:
        return
    font = _font_size(length, width)
    places = list(range(length))
    if length > WRITTEN:
        received = np.bincount(arcs.keys, arcs.shares, minlength=length)
        apart = 1.5 * font / POINTS / width * length
        places = []
        for place in np.argsort(-received, kind="stable").tolist():
            if len(places) == WRITTEN or received[place] == 0:
                break
            if all(abs(place - other) >= apart for other in places):
                places.append(place)
    turn = 0 if _lying(labels, length, width) else 90
    for place in places:
        axis.text(
            place,
            0,
            labels[place],
            ha="center",
            va="center",
            rotation=turn,
            fontsize=font,
            color=INK,
        )
