"""A text whose words are coloured by weight, as a picture and as HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .._signature import plain_signature
from .canvas import (
    ESCAPES,
    FAINT,
    INK,
    POINTS,
    Array,
    PathLike,
    check_axes,
    check_numbers,
    check_titles,
    check_tokens,
    figure_of,
    new_figure,
    save,
)
from .colors import color_at, colormap, ink_on, top_of
from .fonts import Fonts, choose_fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

TITLE = "attention weights"
WIDE = 8.0  # inches of a picture
FONT, SMALLEST = 11.0, 4.0  # points
LINE, BOX = 1.9, 1.5  # heights of a line and of a coloured word, in those of the font
UNIT = 100.0  # points of the font that words are measured in
IN_HTML = {n: escaped for n, escaped in ESCAPES.items() if n != ord("$")}


class Text(NamedTuple):
    """What is drawn: words, which of them end a line, their weights by panel, titles, scale."""

    words: list[str]
    breaks: list[bool]
    panels: Array
    titles: list[str]
    top: float


class Place(NamedTuple):
    """A word in a panel, in widths of `UNIT`: its line, its left edge and its width."""

    line: int
    left: float
    width: float


class Html(str):
    """HTML that a notebook shows as what it says."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return str(self)


@plain_signature
def text(
    tokens: Sequence[str],
    weights: ArrayLike,
    *,
    sep: str = " ",
    titles: Sequence[str] | str | None = None,
    vmax: float | None = None,
    cmap: str | Colormap | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    path: PathLike | None = None,
) -> Figure:
    """Draw a text whose words are coloured by weight, once for each head.

    Parameters
    ----------
    tokens : sequence of str, ``(n,)``
        The text in pieces, in any script for which a font is installed, from left to right. A piece
        that ends with a line break ends a line.
    weights : array_like, ``(n,)`` or ``(H, n)``
        A weight for each piece: a row of :func:`attnfast.attention_weights`, which is what one
        query gives to all keys, or :func:`attnfast.key_importance`, of one batch row. A NaN is
        painted grey.
    sep : str
        What stands between two pieces: ``""`` for pieces that have their own spaces, and for
        scripts that have none. A picture has room for it, and leaves it blank.
    titles : sequence of str ``(H,)`` or str, optional
        A title for each panel, default ``head 0`` and so on; of a single panel ``attention
        weights``.
    vmax : float, optional
        The weight that has the last colour, default the largest of all.
    cmap : str or Colormap, optional
        Default: perceptually uniform, from white to dark.
    ax : Axes or sequence of Axes ``(H,)``, optional
        Where to draw; words are as large as the axes have room for. Default a new figure with the
        heads one below the other.
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

    See Also
    --------
    text_html : The same as HTML, without matplotlib.

    Examples
    --------
    >>> from attnfast import plot
    >>> figure = plot.text(["the", "red", "flag"], [0.1, 0.3, 0.6])
    >>> [word.get_text() for word in figure.axes[0].texts]
    ['the', 'red', 'flag']
    """
    shown = _read(tokens, weights, sep, titles, vmax, ESCAPES)
    fonts = choose_fonts(tokens=shown.words, titles=shown.titles)
    shown = shown._replace(words=fonts.write(shown.words), titles=fonts.write(shown.titles))
    axes = check_axes(ax, len(shown.panels))
    figure = figure_of(axes[0]) if axes else new_figure(WIDE, WIDE)
    widths, space = _measure(figure, shown.words, sep, fonts)
    if not axes:
        lines = _lay_out(widths, space, shown.breaks, (WIDE - 0.4) * POINTS / FONT)[-1].line + 1
        height = (lines + 0.3) * LINE * FONT / POINTS
        figure.set_size_inches(WIDE, len(shown.panels) * (height + 0.4) + 0.8)
        grid: Any = figure.subplots(len(shown.panels), 1, squeeze=False)
        axes = grid.ravel().tolist()
    scale = _add_scale(figure, axes, shown, cmap)
    for axis, name in zip(axes, shown.titles, strict=True):
        axis.set_title(name, color=INK, fontsize=10, fontfamily=fonts.families)
        axis.spines[:].set_visible(False)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.draw_without_rendering()  # lays the axes out: words are measured in inches
    for axis, row in zip(axes, shown.panels, strict=True):
        _draw(axis, shown, scale.to_rgba(np.ma.masked_invalid(row)), (widths, space), fonts)
    save(figure, path)
    return figure


@plain_signature
def text_html(
    tokens: Sequence[str],
    weights: ArrayLike,
    *,
    sep: str = " ",
    titles: Sequence[str] | str | None = None,
    vmax: float | None = None,
) -> str:
    """Return HTML of a text whose words are coloured by weight, once for each head.

    A notebook shows what is returned, and a word's weight where the mouse points at it. Needs no
    matplotlib; letters are those of the browser, which also writes from right to left.

    Parameters
    ----------
    tokens : sequence of str, ``(n,)``
        The text in pieces, in any script. A piece that ends with a line break ends a line.
    weights : array_like, ``(n,)`` or ``(H, n)``
        A weight for each piece, as for :func:`text`. A NaN is painted grey.
    sep : str
        What stands between two pieces: ``""`` for pieces that have their own spaces, and for
        scripts that have none.
    titles : sequence of str ``(H,)`` or str, optional
        As for :func:`text`.
    vmax : float, optional
        The weight that has the last colour, default the largest of all.

    Returns
    -------
    str
        A piece of HTML, its text escaped, with the colours in it.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type or shape; the message begins with the name of the argument.

    See Also
    --------
    text : The same as a picture.

    Examples
    --------
    >>> from attnfast import plot
    >>> html = plot.text_html(["the", "flag"], [0.2, 0.8])
    >>> html[html.index("<span") : html.index("</span>")]
    "<span title='0.2' style='background:#eeac8a;color:#262626'>the"
    """
    shown = _read(tokens, weights, sep, titles, vmax, IN_HTML)
    between = escape(sep)
    parts = []
    for name, row in zip(shown.titles, shown.panels, strict=True):
        words = map(_span, shown.words, row.tolist(), [shown.top] * len(row))
        ends = ["<br>" if last else between for last in shown.breaks[:-1]]
        body = "".join(word + end for word, end in zip(words, [*ends, ""], strict=True))
        parts.append(
            f"<figure style='margin:1em 0'><figcaption>{escape(name)}</figcaption>"
            f"<p dir='auto' style='background:#ffffff;color:{INK};padding:.3em;line-height:1.8;"
            f"white-space:pre-wrap'>{body}</p></figure>"
        )
    return Html("".join(parts))


def _span(word: str, weight: float, top: float) -> str:
    color = FAINT if math.isnan(weight) else color_at(min(weight / top, 1.0))
    ink = ink_on(*(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)))
    style = f"background:{color};color:{ink}"
    return f"<span title='{weight:.3g}' style='{style}'>{escape(word)}</span>"


def _read(
    tokens: Any, weights: ArrayLike, sep: str, titles: Any, vmax: Any, escapes: dict[int, str]
) -> Text:
    """The arguments of either function, checked."""
    if isinstance(tokens, Iterable) and not isinstance(tokens, str):
        tokens = [str(token) for token in tokens]
    check_tokens(tokens, "tokens")
    if not tokens:
        raise ValueError(f"tokens must be a sequence of strings and not empty, got {tokens!r}")
    values = check_numbers(weights, "weights")
    if values.ndim not in (1, 2) or 0 in values.shape:
        raise ValueError(
            f"weights must be (n,) or (H, n) and not empty, got shape {values.shape}"
            + (": choose a query, or a head" if values.ndim > 2 else "")
        )
    if values.shape[-1] != len(tokens):
        wanted = f"{len(tokens)} numbers in a row, one for each token"
        wanted = wanted if len(tokens) > 1 else "one number in a row, for one token"
        raise ValueError(f"weights must have {wanted}, got shape {values.shape}")
    if not isinstance(sep, str):
        raise TypeError(f"sep must be a str, got {type(sep).__name__}")
    panels = values if values.ndim == 2 else values[None]
    return Text(
        [token.translate(escapes) for token in tokens],
        [token.endswith("\n") for token in tokens],
        panels,
        check_titles(titles, len(panels), TITLE),
        top_of(values, vmax),
    )


def _measure(figure: Figure, words: list[str], sep: str, fonts: Fonts) -> tuple[list[float], float]:
    """Widths of the words and of what stands between them, in heights of the font."""
    probe = figure.text(0, 0, "", fontsize=UNIT, fontfamily=fonts.families)

    def width(word: str) -> float:
        probe.set_text(f"|{word}|")  # a space at an end counts
        return float(probe.get_window_extent().width)

    bars, points = width(""), figure.dpi / POINTS * UNIT
    known = {word: (width(word) - bars) / points for word in {*words, sep}}
    probe.remove()
    return [known[word] for word in words], known[sep]


def _lay_out(widths: list[float], space: float, breaks: list[bool], room: float) -> list[Place]:
    """A place for each word, in lines of a width."""
    places, line, left = [], 0, 0.0
    for width, last in zip(widths, breaks, strict=True):
        if left > 0 and left + width > room:
            line, left = line + 1, 0.0
        places.append(Place(line, left, width))
        left += width + space
        if last:
            line, left = line + 1, 0.0
    return places


def _add_scale(figure: Figure, axes: list[Axes], shown: Text, cmap: str | Colormap | None) -> Any:
    """The colour scale, with a bar below the axes that explains it."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(0, shown.top), colormap(cmap))
    chosen: Any = scale.get_cmap()
    scale.set_cmap(chosen.with_extremes(bad=FAINT))
    bar: Any = figure.colorbar(
        scale,
        ax=axes,
        orientation="horizontal",
        shrink=0.35,
        aspect=30,
        pad=0.02,
        extend="max" if (shown.panels > shown.top).any() else "neither",
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, color=FAINT, labelcolor=INK)
    bar.set_label("weight", color=INK, fontsize=9)
    return scale


def _draw(
    axis: Axes, shown: Text, colors: Array, measured: tuple[list[float], float], fonts: Fonts
) -> None:
    """Write the words into the axes, as large as they fit, up to `FONT`."""
    from matplotlib.patches import Rectangle

    box, dots = axis.get_window_extent(), figure_of(axis).dpi / POINTS
    width, height = box.width / dots, box.height / dots
    font = FONT
    places = _lay_out(*measured, shown.breaks, width / font)
    while font > SMALLEST and (
        (places[-1].line + 1) * LINE * font > height or max(measured[0]) * font > width
    ):
        font -= 0.25
        places = _lay_out(*measured, shown.breaks, width / font)
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
    for word, place, color in zip(shown.words, places, colors, strict=True):
        left, middle = place.left * font, (place.line + 0.5) * LINE * font
        corner = left, middle - BOX / 2 * font
        axis.add_patch(Rectangle(corner, place.width * font, BOX * font, color=color, linewidth=0))
        axis.text(
            left,
            middle,
            word,
            va="center_baseline",
            fontsize=font,
            fontfamily=fonts.families,
            color=ink_on(*color[:3]),
            in_layout=False,
        )
