"""What all pictures share: a figure without pyplot, checks of arguments, labels, saving."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._misread import as_array
from ..result import AttentionResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]
Layout = Literal["constrained", "compressed"]
PathLike = str | os.PathLike[str]

INK, SOFT, FAINT = "#262626", "#8c8c8c", "#d9d9d9"
DOTS = 160  # per inch of a saved picture
POINTS = 72.0  # per inch
# In a label, a line break or a tab shows as its escape, and a dollar sign does not start a formula.
ESCAPES = {n: repr(chr(n))[1:-1] for n in (*range(32), *range(127, 160))} | {ord("$"): r"\$"}


def new_figure(width: float, height: float, layout: Layout = "constrained") -> Figure:
    """Return an empty figure of that many inches, without pyplot.

    Raises
    ------
    ImportError
        When there is no matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'attnfast.plot needs matplotlib: pip install "attnfast[plot]"', name="matplotlib"
        ) from error
    return Figure(figsize=(width, height), layout=layout)


def figure_of(axis: Axes) -> Figure:
    """Return the figure that an axis belongs to, also one in a part of a figure."""
    figure: Any = axis.figure
    while getattr(figure, "figure", figure) is not figure:
        figure = figure.figure
    found: Figure = figure
    return found


def check_axes(ax: Axes | Sequence[Axes] | None, panels: int) -> list[Axes]:
    """Return the given axes, one for each panel; an empty list for None."""
    if ax is None:
        return []
    axes = np.atleast_1d(np.asarray(ax, dtype=object)).ravel().tolist()
    for axis in axes:
        if not callable(getattr(axis, "imshow", None)):
            raise TypeError(f"ax must be matplotlib axes, got {type(axis).__name__}")
    if len(axes) != panels:
        wanted = "one axes" if panels == 1 else f"{panels} axes, one for each head"
        raise ValueError(f"ax must be {wanted}, got {len(axes)}")
    return axes


def check_numbers(array: ArrayLike, name: str) -> Array:
    """Return a float64 array for float64, else a float32 one; refuse negative numbers."""
    if isinstance(array, AttentionResult):
        raise TypeError(
            f"{name} is a whole result: write {name}.weights of a call with return_weights=True"
        )
    values = as_array(array, name)
    if values.dtype.kind not in "fiub" and values.dtype.name != "bfloat16":
        raise TypeError(f"{name} must be real numbers, got {values.dtype}")
    values = values.astype(np.float64 if values.dtype == np.float64 else np.float32)
    if (values < 0).any():
        raise ValueError(
            f"{name} must not be negative, got {values.min():.3g}: scores are not weights"
        )
    return values


def check_tokens(
    tokens: Sequence[str] | None, name: str, length: int | None = None, axis: str = ""
) -> list[str]:
    """Return the labels, `length` of them if it is given; an empty list for None."""
    if tokens is None:
        return []
    if isinstance(tokens, str) or not isinstance(tokens, Iterable):
        raise TypeError(f"{name} must be a sequence of strings, got {type(tokens).__name__}")
    labels = [str(token).translate(ESCAPES) for token in tokens]
    if length is not None and len(labels) != length:
        raise ValueError(f"{name} must be {strings(length, axis)}, got {len(labels)}")
    return labels


def strings(count: int, axis: str) -> str:
    """Say how many strings are wanted, in a message."""
    return f"{count} strings, one for each {axis}" if count != 1 else f"one string, for one {axis}"


def check_titles(titles: Sequence[str] | str | None, panels: int, alone: str) -> list[str]:
    """Return one title per panel; by default the number of the head, or `alone` if one panel."""
    if titles is None:
        return [f"head {head}" for head in range(panels)] if panels > 1 else [alone]
    if not isinstance(titles, Iterable):
        raise TypeError(
            f"titles must be a string or a sequence of strings, got {type(titles).__name__}"
        )
    found = [titles] if isinstance(titles, str) else [str(title) for title in titles]
    if len(found) != panels:
        raise ValueError(f"titles must be {strings(panels, 'head')}, got {len(found)}")
    return found


def check_int(number: int, name: str, first: int, last: int | None = None) -> int:
    """Return a whole number in ``first..last``; without a last one, from the first on."""
    if not isinstance(number, (int, np.integer)) or isinstance(number, bool):
        raise TypeError(f"{name} must be an int, got {type(number).__name__}")
    if number < first or (last is not None and number > last):
        wanted = f"at least {first}" if last is None else f"in {first}..{last}"
        raise ValueError(f"{name} must be {wanted}, got {number}")
    return int(number)


def save(figure: Figure, path: PathLike | None) -> None:
    """Write the picture in the format of the file's suffix, if there is a file to write."""
    if path is not None:
        figure.savefig(path, dpi=DOTS)
