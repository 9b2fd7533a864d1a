"""A run as text: the header, one row for each case, notes, totals."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol

from .case import Case
from .peers import HOUSE, OWN, PLAIN, YARDSTICKS
from .results import OUT_OF_TIME, CaseResult, Entry, Report


class Rows(Protocol):
    """A table that grows while a run goes on."""

    def add(self, result: CaseResult) -> None:
        """A case is finished, on all numbers of threads."""
        ...

    def finish(self) -> None:
        """No more will come."""
        ...


def header_lines(report: Report) -> list[str]:
    """What was measured with what, on what."""
    facts = report.machine
    quota = f"quota {facts['quota']:g} cores" if facts["quota"] else "no quota"
    threads = " and ".join(str(run.threads) for run in report.runs)
    peers = [f"{n} {v}" for n, v in report.contestants.items() if n not in HOUSE]
    return [
        f"attnfast  {facts['version']}, instruction set {facts['isa']} (this machine has"
        f" {', '.join(facts['isas'])})",
        f"CPU       {facts['cpu']}; {facts['cores']} cores, {facts['affinity']} for this process,"
        f" {quota}",
        f"threads   {threads}; OpenMP: {facts['openmp']}",
        f"NumPy     {facts['numpy']}, {facts['blas']}; Python {facts['python']}",
        *(f"limits    {_limits(run)}" for run in report.runs),
        f"peers     {', '.join(peers) or 'none'}",
    ]


def _limits(report: Report) -> str:
    limits, threads = report.limits, report.threads
    return (
        f"measured on {threads} thread{'s' if threads > 1 else ''}:"
        f" FMA {limits['fma_float32']:.0f} GFLOP/s in float32, {limits['fma_float64']:.0f} in"
        f" float64; memory read {limits['bandwidth']:.1f} GB/s"
    )


def columns(report: Report) -> list[str]:
    """Column heads: what is timed is attnfast; `x name` is how many times faster it is."""
    return [
        "case",
        "shape",
        "dtype",
        "mask",
        "window",
        "median [p10 p90] n",
        "speed",
        "% of limit",
        *(f"x {name}" for name in report.contestants if name != OWN),
        "error (x numpy's)",
    ]


def row(report: Report, result: CaseResult) -> list[str]:
    """The cells of one case."""
    case, own = result.case, result.entries[OWN]
    speed, share = result.speed(OWN), result.share(OWN)
    limit = "bandwidth" if case.cold and result.bandwidth else "peak"
    return [
        case.name,
        case.shape,
        case.dtype,
        case.mask_text,
        case.window_text,
        format_entry(own),
        "-" if speed is None else f"{speed / 1e9:.{1 if speed >= 1e10 else 2}f} {result.unit}",
        "-" if share is None else f"{100 * share:.1f} {limit}",
        *(_times(result, name) for name in report.contestants if name != OWN),
        format_error(result, own),
    ]


def format_entry(entry: Entry) -> str:
    """Median [p10 p90] n, in one unit."""
    if entry.wrong:
        return "WRONG"
    median = entry.median
    if median is None:
        return "-"
    scale, unit = next(pair for pair in UNITS if median < 1000 * pair[0] or pair is UNITS[-1])
    low, high = entry.percentile(0.1) / scale, entry.percentile(0.9) / scale
    return f"{median / scale:.3g} {unit} [{low:.3g} {high:.3g}] {len(entry.samples)}"


LATE = (
    "time was short because this machine is slow or busy: `attnfast doctor` says why; without"
    " --quick and --time-limit there is no limit, and --cases NAME --peers none takes least"
)
UNITS = ((1e-6, "us"), (1e-3, "ms"), (1.0, "s"))


def format_error(result: CaseResult, entry: Entry) -> str:
    """Largest error of the checked rows, and its ratio to plain NumPy's."""
    if entry.error is None:
        return "-"
    plain = result.entries[PLAIN].error if PLAIN in result.entries else None
    plain = plain or result.plain_error
    return f"{entry.error:.1e} ({entry.error / plain:.1f})" if plain else f"{entry.error:.1e}"


def _times(result: CaseResult, name: str) -> str:
    if result.entries[name].wrong:
        return "wrong"
    times = result.times_faster(name)
    return "-" if times is None else f"{times:.3g}"


def note_lines(report: Report) -> list[str]:
    """Why cells are empty, and what else a reader should know."""
    notes: dict[str, dict[str, None]] = {}
    for run in report.runs:
        for result in run.results:
            for name, entry in result.entries.items():
                if entry.note and (not entry.rounds or name == OWN):
                    notes.setdefault(f"{name}: {entry.note}", {})[result.case.name] = None
        for case_name, reason in run.not_run.items():
            notes.setdefault(f"not run, {reason}", {})[case_name] = None
    lines = [f"{text} ({', '.join(names)})" for text, names in notes.items()]
    late = any(OUT_OF_TIME in run.not_run.values() for run in report.runs)
    return [*lines, LATE] if late else lines


def total_lines(report: Report) -> list[str]:
    """Geometric mean and worst case of the speed against each contestant."""
    lines = []
    for name in report.contestants:
        if name in (OWN, *YARDSTICKS):
            continue
        pairs = [
            (times, result.case.name)
            for result in report.results
            if (times := result.times_faster(name)) is not None
        ]
        if pairs:
            mean = statistics.geometric_mean(times for times, _ in pairs)
            least, where = min(pairs)
            lines.append(
                f"against {name}: {mean:.3g} x as fast in the geometric mean of {len(pairs)}"
                f" cases, lowest {least:.3g} x in {where}"
            )
    return lines


class Lines:
    """Rows as aligned lines, each printed as soon as it is known."""

    def __init__(self, report: Report, cases: Sequence[Case]) -> None:
        self._report = report
        heads = columns(report)
        texts = [[c.name, c.shape, c.dtype, c.mask_text, c.window_text] for c in cases]
        widths = [max(map(len, column)) for column in zip(heads[:5], *texts, strict=True)]
        times = [max(len(name) + 2, 6) for name in report.contestants if name != OWN]
        self._widths = [*widths, 27, 13, 14, *times, 17]
        self._print(heads)

    def _print(self, cells: Sequence[str]) -> None:
        pairs = zip(cells, self._widths, strict=True)
        print("  ".join(cell.ljust(width) for cell, width in pairs).rstrip(), flush=True)

    def add(self, result: CaseResult) -> None:
        """Print the row of a case."""
        self._print(row(self._report, result))

    def finish(self) -> None:
        """Nothing is left to print."""


class Table:
    """A rich table, printed at the end; its cells hold two lines so that it fits a terminal."""

    def __init__(self, report: Report, cases: Sequence[Case]) -> None:
        self._report = report
        self._rows: list[list[str]] = []

    def add(self, result: CaseResult) -> None:
        """Keep the row of a case."""
        cells = row(self._report, result)
        words = [text for text in cells[1:5] if text != "-"]
        time, _, spread = cells[5].partition(" [")
        share, _, limit = cells[7].partition(" ")
        self._rows.append(
            [
                f"{cells[0]}\n[dim]{' '.join(words)}[/dim]",
                f"{time}\n[dim]{chr(92)}[{spread}[/dim]" if spread else time,
                f"{cells[6]}\n[dim]{share} % of {limit}[/dim]" if limit else cells[6],
                *cells[8:-1],
                cells[-1].replace(" (", "\n("),
            ]
        )

    def finish(self) -> None:
        """Print the table."""
        from rich.console import Console
        from rich.table import Table as RichTable

        heads = columns(self._report)
        table = RichTable(box=None, header_style="bold", pad_edge=False)
        names = [result.case.name for result in self._report.results]
        table.add_column("case", min_width=max(map(len, names), default=0))
        table.add_column("median\n[dim]\\[p10 p90] n[/dim]", no_wrap=True)
        table.add_column("speed", no_wrap=True)
        for head in heads[8:]:
            table.add_column(head.replace(" ", "\n", 1), justify="right")
        for cells in self._rows:
            table.add_row(*cells)
        Console(highlight=False).print(table)


def make_rows(report: Report, cases: Sequence[Case]) -> Rows:
    """A table on a terminal with rich, lines otherwise."""
    if sys.stdout.isatty() and find_spec("rich") is not None:
        return Table(report, cases)
    return Lines(report, cases)
