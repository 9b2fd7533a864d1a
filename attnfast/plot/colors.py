"""The colour scale of weights: from white at 0 evenly to dark."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .canvas import INK, Array

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

# Lightness falls evenly (in OKLab) from white, the hue turns from apricot to indigo.
COLORS = (
    "#ffffff", "#f4e1ce", "#eec09c", "#ee9878", "#e86c69", "#c85274",
    "#a43c78", "#7e2a78", "#542369", "#2f1a52", "#111034",
)  # fmt: skip
LIGHT = 0.5  # from this luminance on, dark words are easier to read than white ones


def top_of(weights: Array, vmax: float | None) -> float:
    """The weight at the end of the colour scale."""
    if vmax is None:
        finite = weights[np.isfinite(weights)]
        return float(finite.max()) or 1.0 if finite.size else 1.0
    if not isinstance(vmax, (int, float, np.number)) or not 0 < vmax < math.inf:
        raise ValueError(f"vmax must be a finite number above 0, got {vmax!r}")
    return float(vmax)


def colormap(cmap: str | Colormap | None) -> str | Colormap:
    """The colour map of a picture: the caller's, or that of `COLORS`."""
    if cmap is not None:
        return cmap
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("attention", COLORS)


def color_at(share: float) -> str:
    """The colour at a share of the scale, without matplotlib."""
    known = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLORS])
    places = np.linspace(0, 1, len(known))
    red, green, blue = (round(float(np.interp(share, places, channel))) for channel in known.T)
    return f"#{red:02x}{green:02x}{blue:02x}"


def ink_on(red: float, green: float, blue: float) -> str:
    """The colour of words on a colour, whose parts are from 0 to 1."""
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue >= LIGHT else "#ffffff"
