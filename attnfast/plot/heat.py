"""Weights as heat maps, one per head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from .._signature import plain_signature
from .canvas import (
    FAINT,
    INK,
    POINTS,
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
)
from .colors import colormap, top_of
from .fonts import choose_fonts, columns_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

LABELLED = 100  # tokens on an axis that all have their label
GRID = "#ececec"
BAR = 3.0  # inches of a colour bar at the most
ROOM = 11.0  # inches of width that panels are spread over
NAME = 0.2  # inches that the name of an axis takes
TITLE = "attention weights"


@plain_signature
def weights(
    weights: ArrayLike,
    query_tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    *,
    titles: Sequence[str] | str | None = None,
    columns: int | None = None,
    vmax: float | None = None,
    cmap: str | Colormap | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    path: PathLike | None = None,
) -> Figure:
    """Draw attention weights as heat maps, one for each head, on one colour scale from 0.

    Parameters
    ----------
    weights : array_like, ``(H, Lq, Lk)`` or ``(Lq, Lk)``
        Weights of :func:`attnfast.attention_weights`, of one batch row. Queries are rows, keys
        columns. A NaN is painted grey.
    query_tokens, key_tokens : sequence of str, optional
        Labels of the queries ``(Lq,)`` and keys ``(Lk,)``. Up to 100 labels are all written; of
        more, every second, third and so on. Default: positions are numbered.
    titles : sequence of str ``(H,)`` or str, optional
        A title for each panel, default ``head 0`` and so on; of a single panel ``attention
        weights``.
    columns : int, optional
        Panels in a row; by default what fits in 11 inches.
    vmax : float, optional
        The weight that has the last colour, default the largest of all. A lower `vmax` helps where
        a few large weights leave the rest too light.
    cmap : str or Colormap, optional
        Default: perceptually uniform, from white to dark.
    ax : Axes or sequence of Axes ``(H,)``, optional
        Where to draw; default a new figure, sized so that its labels can be read.
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
    >>> import numpy as np
    >>> from attnfast import attention_weights, plot
    >>> q, k = np.random.default_rng(0).standard_normal((2, 4, 3, 8))
    >>> words = ["the", "red", "flag"]
    >>> figure = plot.weights(attention_weights(q, k), words, words)
    >>> [axis.get_title() for axis in figure.axes[:4]]
    ['head 0', 'head 1', 'head 2', 'head 3']
    """
    values = check_numbers(weights, "weights")
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise ValueError(
            f"weights must be (H, Lq, Lk) or (Lq, Lk) and not empty, got shape {values.shape}"
            + (": choose a batch row" if values.ndim > 3 else "")
        )
    panels = values if values.ndim == 3 else values[None]
    count, rows, cols = panels.shape
    row_labels = check_tokens(query_tokens, "query_tokens", rows, "query")
    column_labels = check_tokens(key_tokens, "key_tokens", cols, "key")
    names = check_titles(titles, count, TITLE)
    fonts = choose_fonts(query_tokens=row_labels, key_tokens=column_labels, titles=names)
    row_labels, column_labels, names = map(fonts.write, (row_labels, column_labels, names))
    top = top_of(panels, vmax)
    wide = count if columns is None else min(check_int(columns, "columns", 1), count)
    font = _font_size(max(rows, cols)) if row_labels or column_labels else 8.0
    axes = check_axes(ax, count)
    if axes:
        figure, in_row = figure_of(axes[0]), 1
    else:
        width, height = _panel_size(rows, cols, font, bool(row_labels or column_labels))
        if columns is None:
            fitting = max(1, min(count, int(ROOM / width)))
            wide = math.ceil(count / math.ceil(count / fitting))  # as even as the rows allow
        margins = (
            _margin(row_labels, font) + NAME + 1.0,
            _margin(column_labels, font) + NAME + 0.2,
        )
        figure, axes = _new_grid(count, wide, (width, height + 0.3), margins)
        in_row = wide
    cmap = colormap(cmap)
    image: Any = None
    for number, (axis, panel, name) in enumerate(zip(axes, panels, names, strict=True)):
        image = _draw_panel(axis, panel, top, cmap, bool(row_labels or column_labels))
        axis.set_title(name, color=INK, fontsize=max(font, 8.0) + 1, fontfamily=fonts.families)
        # Panels of a new figure share the labels at its left and at its foot.
        left, foot = number % in_row == 0, ax is not None or number + in_row >= count
        text = {"fontfamily": fonts.families}
        _label(axis.yaxis, row_labels, rows, font, left, "query", text)
        _label(axis.xaxis, column_labels, cols, font, foot, "key", text | {"rotation": 90})
    bar: Any = figure.colorbar(
        image,
        ax=axes,
        pad=0.02,
        aspect=25,
        shrink=min(0.9, BAR / (figure.get_figheight() * _height_of(axes))),
        fraction=0.05,
        extend="max" if (panels > top).any() else "neither",
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, color=FAINT, labelcolor=INK)
    bar.set_label("weight", color=INK, fontsize=9)
    save(figure, path)
    return figure


def _new_grid(
    count: int, wide: int, panel: tuple[float, float], margins: tuple[float, float]
) -> tuple[Figure, list[Axes]]:
    """A figure with that many panels, `wide` in a row, and room for labels."""
    tall = math.ceil(count / wide)
    figure = new_figure(
        wide * panel[0] + margins[0], tall * panel[1] + margins[1], layout="compressed"
    )
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.07, h_pad=0.05)
    grid: Any = figure.subplots(tall, wide, squeeze=False)
    axes = grid.ravel().tolist()
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def _height_of(axes: list[Axes]) -> float:
    """Height of all panels together, as a share of the figure's."""
    boxes = [axis.get_position() for axis in axes]
    return float(max(box.y1 for box in boxes) - min(box.y0 for box in boxes))


def _font_size(longest: int) -> float:
    """Points of a label: smaller where there are many."""
    return float(np.interp(longest, [20, 60, LABELLED], [8.5, 6.5, 5.0]))


def _panel_size(rows: int, cols: int, font: float, labelled: bool) -> tuple[float, float]:
    """Inches of a panel: cells as high as a label, or a size that suits pixels."""
    cell = 1.5 * font / POINTS if labelled else 3.0 / max(rows, cols)
    longest = 1.5 * LABELLED * 5.0 / POINTS
    width, height = (min(max(cell * n, 0.5), longest) for n in (cols, rows))
    return max(width, 0.9), height


def _margin(labels: list[str], font: float) -> float:
    """Inches that labels take beside their panel."""
    return 0.3 + 0.6 * font / POINTS * max(map(columns_of, labels), default=0)


def _draw_panel(axis: Axes, panel: Array, top: float, cmap: str | Colormap, labelled: bool) -> Any:
    rows, cols = panel.shape
    square = labelled or max(rows, cols) <= 4 * min(rows, cols)
    axis.set_facecolor(FAINT)  # shows where a weight is NaN
    image = axis.imshow(panel, cmap=cmap, vmin=0, vmax=top, aspect="equal" if square else "auto")
    axis.spines[:].set(color=FAINT, linewidth=0.6)
    if max(rows, cols) <= LABELLED:
        axis.set_xticks(np.arange(cols + 1) - 0.5, minor=True)
        axis.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
        axis.grid(which="minor", color=GRID, linewidth=0.5)
        axis.tick_params(which="minor", length=0)
    return image


def _label(
    axis: Any,
    labels: list[str],
    length: int,
    font: float,
    shown: bool,
    name: str,
    text: dict[str, Any],
) -> None:
    """Write the axis name and all labels where they fit, some otherwise, or numbers without."""
    axis.set_tick_params(length=2, width=0.6, color=FAINT, pad=2, labelsize=font, labelcolor=INK)
    if not shown:
        axis.set_ticks([])
        return
    axis.set_label_text(name, color=INK, fontsize=9)
    if labels:
        places = np.arange(0, length, math.ceil(length / LABELLED))
        axis.set_ticks(places, [labels[i] for i in places], **text)
    else:
        from matplotlib.ticker import MaxNLocator

        axis.set_major_locator(MaxNLocator(min(length, 6), integer=True, min_n_ticks=1))
