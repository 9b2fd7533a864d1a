"""Every machine that was measured as one picture: a panel of bars for each, a bar for each case.

The picture carries a digest of its data, so that a test can tell whether it is of the present ones.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tables
from attnfast.bench.peers import OWN
from attnfast.bench.plot import FAINT, INK, STYLES
from labels import CASES, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURE = tables.ROOT / "docs" / "pictures" / "machines.png"
NOTE = "Comment"  # of a PNG: the digest of what it shows
COLOR = STYLES[OWN][0]


def digest(data: dict[str, Any]) -> str:
    """Which data a picture shows."""
    return hashlib.sha256(json.dumps(data["rows"]).encode()).hexdigest()


def drawn(path: Path) -> str:
    """The digest that a picture carries; nothing where there is no picture."""
    if not path.exists():
        return ""
    found = path.read_bytes().partition(b"tEXt" + NOTE.encode() + b"\0")[2]
    return found[:64].decode("ascii", "replace")


def draw(data: dict[str, Any], path: Path = PICTURE) -> Figure:
    """Draw the shares of the limits, by case and machine, on one thread and on all."""
    from matplotlib.figure import Figure

    rows = data["rows"]
    names = [case for case in CASES if any(case in row["percent"] for row in rows)]
    figure = Figure(figsize=(2.4 + 2.4 * len(rows), 0.9 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for axis, row in zip(axes, rows, strict=True):
        panel(axis, row, names)
    axes[0].set_yticks(range(len(names)), [", ".join(label(CASES[name])) for name in names])
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    figure.supxlabel(
        "percent of the measured limit: bars on all threads, points on one", fontsize=9
    )
    figure.savefig(path, dpi=110, metadata={NOTE: digest(data)})
    return figure


def panel(axis: Axes, row: dict[str, Any], names: list[str]) -> None:
    """One machine and instruction set."""
    for place, name in enumerate(names):
        shares = [share for share in row["percent"].get(name, []) if share is not None]
        if not shares:
            axis.text(2, place, "not measured", va="center", fontsize=7, color=INK)
            continue
        axis.barh(place, shares[-1], height=0.62, color=COLOR, alpha=0.75)
        axis.plot(shares[0], place, "o", markersize=4, color=INK)
        axis.text(3, place, f"{shares[-1]:.0f}", va="center", fontsize=8, color="white")
    processor, isa = tables.machine_name(row).rsplit(", ", 1)
    axis.set_title(f"{processor}\n{isa}, {row['date']}", fontsize=9, color=INK)
    axis.axvline(100, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
    axis.set_xlim(0, 112)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", color=FAINT, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, labelcolor=INK, labelsize=8)
