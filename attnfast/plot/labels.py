"""Labels in a row between arcs: how much room they take, and which of them are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .canvas import INK, POINTS, Array
from .fonts import Fonts, columns_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WRITTEN = 90  # tokens that are all written; of more, those that get the most weight


def band_of(labels: list[str], length: int, width: float) -> float:
    """Return the inches between the arcs above and those below, for labels."""
    if not labels:
        return 0.0
    font = _font_size(length, width)
    longest = max(map(columns_of, labels))
    return 0.19 if _fit(labels, length, width) else (0.62 * font * longest + 6) / POINTS


def write_labels(
    axis: Axes, labels: list[str], received: Array, width: float, fonts: Fonts
) -> None:
    """Write the labels that have room on `width` inches, those that receive most weight first."""
    if not labels:
        return
    length = len(received)
    font = _font_size(length, width)
    places = list(range(length))
    if length > WRITTEN:
        apart = 1.5 * font / POINTS / width * length
        places = []
        for place in np.argsort(-received, kind="stable").tolist():
            if len(places) == WRITTEN or received[place] == 0:
                break
            if all(abs(place - other) >= apart for other in places):
                places.append(place)
    turn = 0 if _fit(labels, length, width) else 90
    for place in places:
        axis.text(
            place,
            0,
            labels[place],
            ha="center",
            va="center",
            rotation=turn,
            fontsize=font,
            fontfamily=fonts.families,
            color=INK,
        )


def _font_size(length: int, width: float) -> float:
    return min(9.0, max(5.0, 0.8 * width / length * POINTS)) if length <= WRITTEN else 7.0


def _fit(labels: list[str], length: int, width: float) -> bool:
    """Whether every label fits at its position without being turned."""
    room = 0.9 * width / length * POINTS
    return max(map(columns_of, labels)) * 0.65 * _font_size(length, width) < room
