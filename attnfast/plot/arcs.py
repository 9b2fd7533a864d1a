"""The heaviest keys of each query as arcs over a line of positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .._misread import as_array
from .._signature import plain_signature
from .canvas import (
    FAINT,
    INK,
    SOFT,
    Array,
    PathLike,
    check_axes,
    check_int,
    check_numbers,
    check_titles,
    check_tokens,
    figure_of,
    new_figure,
    save,
    strings,
)
from .fonts import Fonts, choose_fonts
from .labels import WRITTEN, band_of, write_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BACK, AHEAD = "#0072b2", "#d55e00"  # told apart with any kind of colour vision
STEPS = 65  # points of an arc
DOT = 20.0  # square points of the dot of the heaviest arc
WIDE, HIGH = 10.0, 1.9  # inches of a panel, of the highest arc
LINE = 0.22  # inches of a line of text above or below the arcs
TITLE = "heaviest keys of each query"


class Arcs(NamedTuple):
    """Arcs of one head: where they begin and end, and their weights as shares of the heaviest."""

    queries: Array
    keys: Array
    shares: Array
    heaviest: float


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

    An arc joins the position of a query with that of a key: above the labels if the key is before
    the query, below them if it is after. Heavier arcs are wider and darker; the legend gives the
    weights of two arcs. A query that sees itself has a dot. Works for thousands of positions.

    Parameters
    ----------
    indices : array_like of int, ``(H, Lq, k)`` or ``(Lq, k)``
        Keys of :func:`attnfast.attention_topk`, of one batch row; -1 stands for no key.
    weights : array_like, shape of `indices`
        Their weights.
    tokens : sequence of str, optional
        Labels of all positions. Up to 90 labels are all written; of more, those that receive the
        most weight. Default: positions are numbered.
    q_offset : int
        Position of query 0.
    least : float
        Weights below this are left out.
    titles : sequence of str ``(H,)`` or str, optional
        A title for each panel, default ``head 0`` and so on; of a single panel ``heaviest keys of
        each query``.
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
        An argument of the wrong type or shape; the message begins with the name of the argument.

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
        raise ValueError(f"indices must be positions of keys, or -1 for no key, got {keys.min()}")
    start = check_int(q_offset, "q_offset", 0)
    length = max(start + keys.shape[-2], last + 1)
    labels = check_tokens(tokens, "tokens")
    if tokens is not None and len(labels) < length:
        raise ValueError(
            f"tokens must be at least {strings(length, 'position')}, got {len(labels)}"
        )
    length = max(length, len(labels))
    if not isinstance(least, (int, float, np.number)) or math.isnan(least):
        raise ValueError(f"least must be a number, got {least!r}")
    panels = keys if keys.ndim == 3 else keys[None]
    heads = [
        _arcs(panel, part, start, float(least))
        for panel, part in zip(panels, values.reshape(panels.shape), strict=True)
    ]
    names = check_titles(titles, len(panels), TITLE)
    fonts = choose_fonts(tokens=labels, titles=names)
    labels, names = fonts.write(labels), fonts.write(names)
    axes = check_axes(ax, len(panels))
    if axes:
        figure = figure_of(axes[0])
    else:
        width = min(WIDE, max(5.0, 0.3 * length))
        heights = [
            HIGH * sum(_reach(arcs)) + sum(_lines(arcs)) + band_of(labels, length, width) + 0.7
            for arcs in heads
        ]
        figure = new_figure(width, sum(heights))
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
        axes = grid.ravel().tolist()
    for axis, name in zip(axes, names, strict=True):
        axis.set_title(name, color=INK, fontsize=10, fontfamily=fonts.families)
        _frame(axis, bool(labels) and length <= WRITTEN)
    figure.draw_without_rendering()  # lays the axes out: words are measured in inches
    for axis, arcs in zip(axes, heads, strict=True):
        _draw(axis, arcs, labels, length, fonts)
    save(figure, path)
    return figure


def _arcs(keys: Array, weights: Array, start: int, least: float) -> Arcs:
    """The arcs to draw, the heaviest last, so that they are on top."""
    queries = np.broadcast_to(start + np.arange(len(keys))[:, None], keys.shape)
    drawn = (keys >= 0) & (weights > 0) & (weights >= least)
    heaviest = float(weights[drawn].max(initial=np.finfo(weights.dtype).tiny))
    shares = weights[drawn] / heaviest
    order = np.argsort(shares, kind="stable")
    return Arcs(queries[drawn][order], keys[drawn][order].astype(np.int64), shares[order], heaviest)


def _reach(arcs: Arcs) -> tuple[float, float]:
    """How high the arcs rise above and below the line, as shares of the highest."""
    step = arcs.keys - arcs.queries
    back, ahead = np.sqrt(max(-step.min(initial=0), 0)), np.sqrt(max(step.max(initial=0), 0))
    highest = max(back, ahead)
    return (back / highest, ahead / highest) if highest else (0.1, 0.0)


def _lines(arcs: Arcs) -> tuple[float, float]:
    """Inches of text above and below the arcs."""
    below = (arcs.keys > arcs.queries).any()
    return (LINE if len(arcs.keys) else 0.0), (LINE if below else 0.0)


def _frame(axis: Axes, written: bool) -> None:
    """What surrounds the arcs: no box, and numbers unless every position has its label."""
    axis.spines[:].set_visible(False)
    axis.set_yticks([])
    axis.set_xlabel("token" if written else "position", color=INK, fontsize=9)
    if written:
        axis.set_xticks([])
    else:
        axis.tick_params(axis="x", color=FAINT, labelcolor=INK, labelsize=8)


def _draw(axis: Axes, arcs: Arcs, labels: list[str], length: int, fonts: Fonts) -> None:
    from matplotlib.collections import LineCollection

    box = axis.get_window_extent()
    width, height = box.width / figure_of(axis).dpi, box.height / figure_of(axis).dpi
    above, below = _reach(arcs)
    band, lines = band_of(labels, length, width), _lines(arcs)
    # Inches of text in units of the highest arc.
    inch = (above + below) / max(height - band - sum(lines), band, 1e-3)
    half = 0.5 * band * inch
    axis.set_xlim(-0.5 - 0.01 * length, length - 0.5 + 0.01 * length)
    axis.set_ylim(-half - below - 0.03 - lines[1] * inch, half + above + 0.03 + lines[0] * inch)
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
        axis.add_collection(
            LineCollection(
                list(points),
                colors=_shades(color, share, dense),
                linewidths=_widths(share, dense),
                capstyle="round",
            )
        )
    own = distance == 0
    dots = dense * DOT * arcs.shares[own]
    axis.scatter(arcs.keys[own], np.full(own.sum(), half), s=dots, color=SOFT, linewidths=0)
    received = np.bincount(arcs.keys, arcs.shares, minlength=length)
    write_labels(axis, labels, received, width, fonts)
    _explain(axis, arcs, dense)


def _shades(color: str, shares: Array, dense: float) -> Array:
    """The colour of each arc: the heavier, the less transparent."""
    from matplotlib.colors import to_rgba

    colors = np.tile(to_rgba(color), (len(shares), 1))
    colors[:, 3] = 0.04 + dense * 0.86 * shares
    return colors


def _widths(shares: Array, dense: float) -> Array:
    widths: Array = dense * (0.3 + 2.7 * shares)
    return widths


def _explain(axis: Axes, arcs: Arcs, dense: float) -> None:
    """Write above and below the arcs which they are, and what they weigh."""
    from matplotlib.lines import Line2D

    for shown, color, place, words in (
        (arcs.keys < arcs.queries, BACK, 1.0, "keys before the query"),
        (arcs.keys > arcs.queries, AHEAD, 0.0, "keys after the query"),
    ):
        if shown.any():
            axis.text(
                0.0, place, words, color=color, fontsize=8, transform=axis.transAxes,
                va="top" if place else "bottom",
            )  # fmt: skip
    if not len(arcs.keys):
        return
    shares = np.array([1.0, 0.4])
    samples = [
        Line2D([], [], color=color, linewidth=width, label=f"weight {share * arcs.heaviest:.2g}")
        for color, width, share in zip(
            _shades(INK, shares, dense), _widths(shares, dense), shares, strict=True
        )
    ]
    if (arcs.keys == arcs.queries).any():
        dot = Line2D([], [], color=SOFT, marker="o", linestyle="none", label="the query itself")
        dot.set(markersize=math.sqrt(dense * DOT), markeredgewidth=0)
        samples.append(dot)
    axis.legend(
        handles=samples,
        loc="upper right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=len(samples),
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        borderpad=0.0,
        borderaxespad=0.0,
        handlelength=1.6,
        columnspacing=1.4,
    )
