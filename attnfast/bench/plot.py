"""A run of the `sweep_*` cases as a figure: speed over length, and time over length for windows.

One row of panels for one thread, one for all threads. matplotlib is imported only here, and only
when a figure is drawn.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .case import Case
from .peers import OWN, PLAIN, YARDSTICKS
from .results import CaseResult, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
PANELS = {
    "sweep_full": "full",
    "sweep_causal": "causal",
    "sweep_window256": "window ±256",
    "sweep_train": "forward + backward",
}
TIMED = "sweep_window256"

# Colours told apart with any kind of colour vision, each with a marker of its own.
STYLES = {
    OWN: ("#d55e00", "o"),
    PLAIN: ("#737373", "x"),
    "torch": ("#0072b2", "s"),
    "onnxruntime": ("#009e73", "^"),
    "openvino": ("#cc79a7", "D"),
    "jax": ("#56b4e9", "v"),
    "llama.cpp": ("#e69f00", "P"),
}
NAMES = {
    PLAIN: "NumPy",
    "torch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "jax": "JAX",
}
INK, FAINT = "#262626", "#d9d9d9"
WIDTH, HEIGHT = 2.8, 2.7  # inches of a panel: five are still legible on the width of a page
TOP, FOOTER, LEGEND = 0.45, 0.3, 0.24  # inches for the title, the footer, a line of the legend


def check_plot_file(path: Path) -> None:
    """Refuse a file that could not be drawn, before anything is measured.

    Raises
    ------
    ValueError
        When the suffix is none of `SUFFIXES`, the folder does not exist, or there is no matplotlib.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--plot {path}: the suffix must be one of {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ValueError(f"--plot {path}: the folder {path.parent} does not exist")
    if find_spec("matplotlib") is None:
        raise ValueError('--plot needs matplotlib: pip install "attnfast[bench]"')


def is_plotted(case: Case) -> bool:
    """Whether a figure shows the case."""
    return case.series in PANELS


def draw(report: Report, file: Path | BinaryIO, kind: str | None = None) -> None:
    """Draw the sweeps of a run to a file, in the format of its suffix or of `kind`."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = _panels(report)
    names = [name for name in _shown(report) if _has_line(report, name)]
    in_line = len(panels) + 1
    below = FOOTER + LEGEND * math.ceil(len(names) / in_line)
    width, height = WIDTH * max(2, len(panels)), HEIGHT * len(report.runs) + TOP + below
    rect = (0.005, below / height, 0.99, 1 - (TOP + below) / height)
    layout = ConstrainedLayoutEngine(rect=rect, wspace=0.03, hspace=0.06)
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(width, height), layout=layout)
        grid: Any = figure.subplots(len(report.runs), len(panels), squeeze=False)
        for run, axes in zip(report.runs, grid, strict=True):
            for (series, timed), axis in zip(panels, axes, strict=True):
                draw_panel = _draw_times if timed else _draw_speeds
                draw_panel(axis, run, series)
                axis.set_title(_title(run, series, timed), color=INK)
        lines = {str(line.get_label()): line for line in grid[-1][-1].get_lines()}
        figure.legend(
            [lines[name] for name in names],
            [f"{NAMES.get(name, name)} {report.contestants[name]}" for name in names],
            loc="lower center",
            bbox_to_anchor=(0.5, 0.8 * FOOTER / height),
            ncols=min(in_line, max(1, len(names))),
            frameon=False,
        )
        _add_words(figure, report)
        figure.savefig(file, dpi=160, format=kind)


def _shown(run: Report) -> list[str]:
    """Contestants that a figure shows."""
    return [name for name in run.contestants if name not in YARDSTICKS]


def _panels(report: Report) -> list[tuple[str, bool]]:
    """Series and whether times are shown, of what the run has."""
    found = {result.case.series for result in report.results}
    shown = [series for series in PANELS if series in found]
    return [(s, timed) for s in shown for timed in ([False, True] if s == TIMED else [False])]


def _title(run: Report, series: str, timed: bool) -> str:
    threads = f"{run.threads} thread{'s' if run.threads > 1 else ''}"
    return f"{PANELS[series]}{': time' if timed else ''}, {threads}"


def line_of(run: Report, series: str, contestant: str) -> list[CaseResult]:
    """Results of a contestant in a series, by length, where it has a time."""
    return sorted(
        (
            result
            for result in run.results
            if result.case.series == series and result.speed(contestant)
        ),
        key=lambda result: result.case.q_len,
    )


def peak_of(run: Report) -> float:
    """GFLOP/s: the best of the run, which disturbance only lowers."""
    peaks = [result.peak for result in run.results if is_plotted(result.case)]
    return max([run.limits["fma_float32"], *peaks])


def _draw_speeds(axis: Axes, run: Report, series: str) -> None:
    peak = peak_of(run)
    for name in _shown(run):
        results = line_of(run, series, name)
        speeds = [(result.speed(name) or 0.0) / 1e9 for result in results]
        _draw_line(axis, name, [result.case.q_len for result in results], speeds)
    axis.set_ylim(0, 1.12 * peak)  # room for the words above the line
    axis.axhline(peak, color=INK, linewidth=2.0, linestyle=(0, (4, 2)))
    axis.annotate(
        f"FMA peak {peak:.0f} GFLOP/s",
        (0, peak),
        (3, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="bottom",
        color=INK,
    )
    axis.set_ylabel("GFLOP/s over visible pairs")
    _finish_axis(axis, run, series)


def _draw_times(axis: Axes, run: Report, series: str) -> None:
    for name in _shown(run):
        results = line_of(run, series, name)
        times = [1e3 * (result.entries[name].median or 0.0) for result in results]
        _draw_line(axis, name, [result.case.q_len for result in results], times)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axis.set_ylabel("time of a call, ms")
    _finish_axis(axis, run, series)


def _draw_line(axis: Axes, name: str, lengths: list[int], heights: list[float]) -> None:
    """A contestant's line; one without a point still has its place in the legend."""
    color, marker = STYLES.get(name, (INK, "."))
    own = name == OWN
    (line,) = axis.plot(
        lengths,
        heights,
        label=name,
        color=color,
        marker=marker,
        markersize=5.5 if own else 4.5,
        linewidth=2.4 if own else 1.4,
        zorder=4 if own else 3,
        clip_on=False,
    )
    line.set_in_layout(bool(lengths))  # no points: it would count as one at the figure's corner


def _finish_axis(axis: Axes, run: Report, series: str) -> None:
    lengths = sorted({r.case.q_len for r in run.results if r.case.series == series})
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [_length(length) for length in lengths])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("length L (queries and keys)")
    axis.grid(color=FAINT, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(color=FAINT, labelcolor=INK, labelsize=8)


def _length(length: int) -> str:
    return f"{length // 1024}k" if length % 1024 == 0 else f"{length}"


def _add_words(figure: Figure, report: Report) -> None:
    """The title above and what was measured below."""
    height = figure.get_figheight()
    case = next(result.case for result in report.results if is_plotted(result.case))
    rounds = report.settings["rounds"]
    words = [
        f"{case.dtype}, B = {case.batch}, H = {case.heads}, D = {case.head_dim}",
        f"instruction set {report.machine['isa']}",
        f"median of {rounds} round{'s' if rounds > 1 else ''}",
        report.machine.get("date", ""),
    ]
    title, footer = f"Attention on {report.machine['cpu']}", "; ".join(w for w in words if w)
    figure.text(0.5, 1 - 0.12 / height, title, ha="center", va="top", color=INK, fontsize=13)
    figure.text(0.5, 0.08 / height, footer, ha="center", va="bottom", color=INK, fontsize=8)


def _has_line(report: Report, name: str) -> bool:
    return any(line_of(run, series, name) for run in report.runs for series in PANELS)
