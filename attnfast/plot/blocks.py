"""The blocks of queries and keys that a call visits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..result import Plan
from .canvas import (
    FAINT,
    INK,
    POINTS,
    Array,
    PathLike,
    check_axes,
    check_int,
    figure_of,
    new_figure,
    save,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Span = tuple[int, int]

VISITED, SKIPPED = "#0072b2", "#f0f0f0"
LONG, SHORT = 5.0, 1.2  # inches of the longer side, and of the shorter at the least


def window(
    plan: Plan,
    batch: int = 0,
    head: int = 0,
    *,
    shape: tuple[int, int] | None = None,
    queries: Span | None = None,
    keys: Span | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    path: PathLike | None = None,
) -> Figure:
    """Draw the blocks of queries and keys that a call visits: its window, its masks, its lengths.

    Parameters
    ----------
    plan : Plan
        Of :func:`attnfast.plan` with ``return_blocks=True``.
    batch : int
        The batch row to draw; batch axes count as one, in C order.
    head : int
        The key/value head to draw.
    shape : (Lq, Lk), optional
        Numbers of queries and keys; default as far as the blocks of any row and head reach.
    queries, keys : (first, past), optional
        The part to draw, from the first up to, not including, the other; default all.
    title : str, optional
        By default the share of all pairs that is visited, and the pairs of the whole call.
    ax : Axes, optional
        Where to draw; default a new figure.
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
        A plan without blocks, or an argument of the wrong type or size; the message begins with
        its name.

    Examples
    --------
    >>> import numpy as np
    >>> import attnfast
    >>> from attnfast import plot
    >>> x = np.zeros((4096, 64), np.float32)
    >>> plan = attnfast.plan(x, x, x, window_size=256, return_blocks=True)
    >>> figure = plot.window(plan)
    >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
    ('key', 'query')
    """
    blocks = _check_blocks(plan)
    row = check_int(batch, "batch", 0, int(blocks[:, 0].max()) if len(blocks) else None)
    group = check_int(head, "head", 0, int(blocks[:, 1].max()) if len(blocks) else None)
    Lq, Lk = _check_shape(shape, blocks)
    top, bottom = _check_span(queries, "queries", Lq)
    left, right = _check_span(keys, "keys", Lk)
    own = blocks[(blocks[:, 0] == row) & (blocks[:, 1] == group), 2:]
    visited = int(((own[:, 1] - own[:, 0]) * (own[:, 3] - own[:, 2])).sum())

    rows, cols = bottom - top, right - left
    scale = LONG / max(rows, cols)
    width, height = max(cols * scale, SHORT), max(rows * scale, SHORT)
    axes = check_axes(ax, 1)
    if axes:
        axis, figure = axes[0], figure_of(axes[0])
    else:
        figure = new_figure(max(width + 0.8, 4.2), height + 1.4)
        axis = figure.subplots()
    shown = (own[:, 0] < bottom) & (own[:, 1] > top) & (own[:, 2] < right) & (own[:, 3] > left)
    _draw(axis, own[shown], scale)
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, top)
    axis.set_aspect("equal" if min(rows, cols) * scale >= SHORT else "auto")
    _finish(axis)
    axis.set_title(
        _words(plan, visited, Lq * Lk) if title is None else title,
        color=INK,
        fontsize=9,
        linespacing=1.5,
    )
    save(figure, path)
    return figure


def _check_blocks(plan: Plan) -> Array:
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be what attnfast.plan returns, got {type(plan).__name__}")
    blocks: Any = getattr(plan, "blocks", None)
    if blocks is None:
        raise ValueError("plan has no blocks: ask for them with return_blocks=True")
    found = np.asarray(blocks)
    if found.ndim != 2 or found.shape[1] != 6 or found.dtype.kind not in "iu":
        raise ValueError(f"plan has blocks that are not (n, 6) integers but {found.shape}")
    return found


def _check_shape(shape: tuple[int, int] | None, blocks: Array) -> tuple[int, int]:
    reach = [int(blocks[:, place].max(initial=0)) for place in (3, 5)]
    if shape is None:
        return max(reach[0], 1), max(reach[1], 1)
    if not isinstance(shape, (tuple, list)) or len(shape) != 2:
        raise ValueError(f"shape must be (Lq, Lk), got {shape!r}")
    Lq, Lk = (check_int(n, "shape", max(far, 1)) for n, far in zip(shape, reach, strict=True))
    return Lq, Lk


def _check_span(span: Span | None, name: str, length: int) -> Span:
    if span is None:
        return 0, length
    if not isinstance(span, (tuple, list)) or len(span) != 2:
        raise ValueError(f"{name} must be (first, past), got {span!r}")
    first = check_int(span[0], name, 0, length - 1)
    return first, check_int(span[1], name, first + 1, length)


def _draw(axis: Axes, blocks: Array, scale: float) -> None:
    """Draw the rectangles, with gaps between them where they are large enough to be seen."""
    from matplotlib.collections import PolyCollection

    corners = np.stack([blocks[:, [2, 0]], blocks[:, [3, 0]], blocks[:, [3, 1]], blocks[:, [2, 1]]])
    sides = np.concatenate([blocks[:, 1] - blocks[:, 0], blocks[:, 3] - blocks[:, 2]])
    side = float(np.median(sides)) * scale * POINTS if len(blocks) else 0.0
    gap = min(0.8, 0.1 * side)
    axis.set_facecolor(SKIPPED)
    verts: Any = corners.swapaxes(0, 1).astype(float)
    axis.add_collection(
        PolyCollection(
            verts,
            facecolors=VISITED,
            edgecolors="white" if gap > 0.2 else VISITED,
            linewidths=gap if gap > 0.2 else 0.5,  # a single row of pairs can be seen too
        )
    )


def _finish(axis: Axes) -> None:
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter
    from matplotlib.transforms import ScaledTranslation

    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(MaxNLocator(5, integer=True))
        side.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.set_xlabel("key", color=INK, fontsize=9)
    axis.set_ylabel("query", color=INK, fontsize=9)
    axis.tick_params(color=FAINT, labelcolor=INK, labelsize=8)
    axis.spines[:].set_color(FAINT)
    axis.legend(
        handles=[Patch(color=VISITED, label="visited"), Patch(color=SKIPPED, label="skipped")],
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=axis.transAxes + ScaledTranslation(0, -0.4, figure_of(axis).dpi_scale_trans),
        ncols=2,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
    )


def _words(plan: Plan, visited: int, pairs: int) -> str:
    return (
        f"{100 * visited / pairs:.3g} % of {pairs:,} pairs visited\n"
        f"call: {plan.visible_pairs:,} visible of {plan.visited_pairs:,} visited"
    )
