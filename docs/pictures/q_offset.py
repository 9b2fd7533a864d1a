"""Draw q_offset.png: which keys four queries see under a causal mask, by `q_offset`.

python docs/pictures/q_offset.py [FILE]
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from attnfast import attention_weights

QUERIES, KEYS = 4, 10
OFFSETS = {
    0: "query 0 at key 0",
    3: "query 0 at key 3",
    "end": "the last query at the last key",
}
GREY, BLUE, ORANGE, INK = "#f0f0f0", "#0072b2", "#d55e00", "#262626"


def draw() -> Figure:
    """A panel for each offset: blue pairs are seen, the dot is the query's own position."""
    figure = Figure(figsize=(9, 2.1), layout="constrained")
    query, key = np.zeros((QUERIES, 1)), np.zeros((KEYS, 1))
    for ax, (offset, meaning) in zip(
        figure.subplots(1, 3, sharey=True), OFFSETS.items(), strict=True
    ):
        seen = attention_weights(query, key, is_causal=True, q_offset=offset) > 0
        ax.pcolormesh(seen, cmap=ListedColormap([GREY, BLUE]), edgecolors="white", linewidth=2)
        ax.plot(seen.sum(axis=1) - 0.5, np.arange(QUERIES) + 0.5, "o", color=ORANGE, ms=5)
        ax.set_title(f"q_offset={offset!r}\n{meaning}", fontsize=10, color=INK)
        ax.set_xticks(np.arange(KEYS) + 0.5, range(KEYS))
        ax.set_yticks(np.arange(QUERIES) + 0.5, range(QUERIES))
        ax.set(aspect="equal", xlabel="key")
        ax.invert_yaxis()
        ax.tick_params(length=0, labelsize=8)
        ax.spines[:].set_visible(False)
    figure.axes[0].set_ylabel("query")
    return figure


if __name__ == "__main__":
    default = Path(__file__).with_suffix(".png")
    draw().savefig(sys.argv[1] if len(sys.argv) > 1 else default, dpi=120)
