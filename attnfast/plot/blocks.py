"""The blocks of queries and keys that a call computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..result import Plan
from .canvas import (
    FAINT,
    INK,
    Array,
    PathLike,
    check_axes,
    check_int,
    figure_of,
    new_figure,
    save,
)
from .fonts import choose_fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Span = tuple[int, int]

COMPUTED, SKIPPED = "#0072b2", "#f0f0f0"
SEAM = 1.0  # points of the rim of a block: closes seams, and shows a block of a single row
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
    """Draw the blocks of queries and keys that a call computes: its window, masks and lengths.

    A pair of a query and a key is visible if window, masks and lengths let the query attend to
    the key. A call computes whole blocks of pairs, so at the edges also a few that are not
    visible, and skips the blocks that have no visible pair.

    Parameters
    ----------
    plan : Plan
        Of :func:`attnfast.plan` with ``return_blocks=True``.
    batch : int
        The batch row to draw; batch axes count as one, in C order.
    head : int
        The key/value head to draw.
    shape : (Lq, Lk), optional
        Numbers of queries and keys; default up to the last block of any batch row and head.
    queries, keys : (first, past), optional
        The part to draw, `past` excluded; default all.
    title : str, optional
        By default the share of the full square of pairs that is computed, how many pairs that
        is, and the percentage of them that is visible.
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
        the name of the argument.

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
    own = _with_step_1(blocks[(blocks[:, 0] == row) & (blocks[:, 1] == group), 2:])
    computed = int(((own[:, 1] - own[:, 0]) * (own[:, 3] - own[:, 2])).sum())
    title = _words(plan, computed, Lq * Lk) if title is None else title
    fonts = choose_fonts(title=[title])

    rows, cols = bottom - top, right - left
    scale = LONG / max(rows, cols)
    width, height = max(cols * scale, SHORT), max(rows * scale, SHORT)
    axes = check_axes(ax, 1)
    if axes:
        axis, figure = axes[0], figure_of(axes[0])
    else:
        figure = new_figure(max(width + 0.8, 4.2), height + 1.6)
        axis = figure.subplots()
    shown = (own[:, 0] < bottom) & (own[:, 1] > top) & (own[:, 2] < right) & (own[:, 3] > left)
    _draw(axis, own[shown])
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, top)
    axis.set_aspect("equal" if min(rows, cols) * scale >= SHORT else "auto")
    _finish(axis)
    axis.set_title(
        fonts.write([title])[0], color=INK, fontsize=9, linespacing=1.5, fontfamily=fonts.families
    )
    save(figure, path)
    return figure


def _check_blocks(plan: Plan) -> Array:
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be what attnfast.plan returns, got {type(plan).__name__}")
    blocks: Any = getattr(plan, "blocks", None)
    if blocks is None:
        raise ValueError("plan must have blocks, got None: write plan(..., return_blocks=True)")
    found = np.asarray(blocks)
    if found.ndim != 2 or found.shape[1] != 7 or found.dtype.kind not in "iu":
        raise ValueError(
            f"plan must have blocks of (n, 7) integers, got shape {found.shape} of {found.dtype}"
        )
    return found


def _with_step_1(blocks: Array) -> Array:
    """First and past the last query and key; of dilated windows a rectangle for each pair."""
    whole = [blocks[blocks[:, 4] == 1, :4]]
    for first, past, left, right, step in blocks[blocks[:, 4] > 1]:
        i, j = np.meshgrid(np.arange(first, past, step), np.arange(left, right, step))
        whole.append(np.stack([i, i + 1, j, j + 1], axis=-1).reshape(-1, 4))
    return np.concatenate(whole)


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


def _draw(axis: Axes, blocks: Array) -> None:
    """Draw the rectangles; those that touch become one area."""
    from matplotlib.collections import PolyCollection

    corners = np.stack([blocks[:, [2, 0]], blocks[:, [3, 0]], blocks[:, [3, 1]], blocks[:, [2, 1]]])
    axis.set_facecolor(SKIPPED)
    verts: Any = corners.swapaxes(0, 1).astype(float)
    axis.add_collection(
        PolyCollection(
            verts,
            facecolors=COMPUTED,
            edgecolors=COMPUTED,
            linewidths=SEAM,
            joinstyle="miter",
            snap=True,  # a pixel that two blocks share would be lighter
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
        handles=[
            Patch(color=COMPUTED, label="computed: blocks with visible pairs"),
            Patch(color=SKIPPED, label="skipped: here no query may see a key"),
        ],
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=axis.transAxes + ScaledTranslation(0, -0.4, figure_of(axis).dpi_scale_trans),
        alignment="left",
        frameon=False,
        fontsize=8,
        labelcolor=INK,
    )


def _words(plan: Plan, computed: int, pairs: int) -> str:
    share = f"{100 * computed / pairs:.3g} % of the full square is computed"
    if not computed:
        return f"{share}\nno pair is visible"
    visible = f"{100 * plan.visible_pairs / plan.visited_pairs:.3g} %"
    # The plan counts the visible pairs of all rows and heads together.
    alone = computed == plan.visited_pairs
    of_them = f"{visible} visible" if alone else f"in the whole call {visible} visible"
    return f"{share}\n{computed:,} pairs, {of_them}"
