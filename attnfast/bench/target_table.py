"""A run beside the targets: a line for each case, and how many of its cells are reached."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .case import Case
from .compare import LEAST_NOISE
from .peers import OWN, PLAIN, YARDSTICKS
from .results import CaseResult, Report
from .targets import Target, target_of

REACHED = "✓"
MISSING = "-"


@dataclass(frozen=True)
class Cell:
    """One case on one number of threads: how far it is from its target, None where not judged."""

    threads: int
    missing: float | None
    unit: str = "%"

    def __str__(self) -> str:
        if self.missing is None:
            return MISSING
        if self.missing == 0:
            return REACHED
        if self.unit == "us":
            return f"+{self.missing:.3g} us"
        return f"-{self.missing:.1f}" if self.unit == "%" else f"-{self.missing:.3g} x"


def cells_of(report: Report, result: CaseResult) -> list[Cell]:
    """The cells of a case: one thread where it was measured, then all threads."""
    target = target_of(result.case.name, report.machine["isa"])
    sides = [(report.threads, result)]
    if report.one_thread and (alone := report.on_one_thread(result.case.name)):
        sides.insert(0, (1, alone))
    if target is None:
        return [Cell(threads, None) for threads, _ in sides]
    return [
        Cell(threads, _judged(target, side, threads, report.threads), target.unit)
        for threads, side in sides
    ]


def judgement(report: Report, result: CaseResult) -> str:
    """The target of a case and how far it is from it on all threads, in a few words."""
    target = target_of(result.case.name, report.machine["isa"])
    if target is None:
        return MISSING
    return f"{target}: {cells_of(report, result)[-1]}"


def _judged(target: Target, result: CaseResult, threads: int, most: int) -> float | None:
    return target.missing(result) if target.unit != "us" or threads == most else None


def slowdown(report: Report, result: CaseResult) -> float | None:
    """How many times slower attnfast is than on one thread, None where not beyond the noise.

    Rounds of both are seconds apart, so they are compared one by one.
    """
    alone = report.on_one_thread(result.case.name)
    if alone is None or alone is result:
        return None
    rounds, rounds_alone = result.entries[OWN].rounds, alone.entries[OWN].rounds
    if len(rounds) != len(rounds_alone):
        return None
    ratios = [both / one for both, one in zip(rounds, rounds_alone, strict=True)]
    times = statistics.median(ratios) if ratios else 0.0
    return times if times > 1 + LEAST_NOISE else None


def best_other(result: CaseResult) -> str | None:
    """The fastest contestant beside attnfast, however that is called."""
    medians = {
        name: entry.median
        for name, entry in result.entries.items()
        if name not in (OWN, *YARDSTICKS) and entry.median is not None
    }
    return min(medians, key=medians.__getitem__) if medians else None


class TargetLines:
    """Lines of the table, each printed as soon as both numbers of threads are known."""

    def __init__(self, report: Report, cases: Sequence[Case]) -> None:
        self._report = report
        self._others = any(name not in (OWN, *YARDSTICKS) for name in report.contestants)
        width = max((len(case.name) for case in cases), default=4)
        columns = [("case", width), ("target", 15)]
        if report.one_thread:
            columns.append((_threads(1), 10))
        columns.append((_threads(report.threads), 10))
        if self._others:
            columns.append(("best other, attnfast x faster", 46))
        columns.append(("reached", 7))
        self._widths = [width for _, width in columns]
        self._print([head for head, _ in columns])

    def _print(self, texts: Sequence[str]) -> None:
        pairs = zip(texts, self._widths, strict=True)
        print("  ".join(text.ljust(width) for text, width in pairs).rstrip(), flush=True)

    def add(self, result: CaseResult) -> None:
        """Print the line of a case."""
        self._print(target_row(self._report, result, self._others))

    def finish(self) -> None:
        """Nothing is left to print."""


def target_row(report: Report, result: CaseResult, others: bool) -> list[str]:
    """The texts of one line."""
    target = target_of(result.case.name, report.machine["isa"])
    measure = target or _measure(result)
    texts = [result.case.name, str(target or MISSING)]
    if report.one_thread:
        texts.append(_figure(measure, report.on_one_thread(result.case.name)))
    texts.append(_figure(measure, result))
    if others:
        texts.append(_other(measure, result))
    reached = " ".join(f"{cell!s:>7}" for cell in cells_of(report, result))
    if times := slowdown(report, result):
        reached += f"  {times:.2f} x slower than on 1 thread"
    return [*texts, reached]


def _measure(result: CaseResult) -> Target:
    """What a case without a target is shown by."""
    if not result.limited:
        return Target(0, than=PLAIN)
    return Target(0, "memory" if result.case.cold else "peak")


def _figure(target: Target, result: CaseResult | None, contestant: str = OWN) -> str:
    if result is None:
        return MISSING
    if result.entries[contestant].wrong:
        return "WRONG"
    figure = target.figure(result, contestant)
    if figure is None:
        return MISSING
    return f"{figure:.1f} %" if target.limit else f"{figure:.3g} {target.unit}"


def _other(target: Target, result: CaseResult) -> str:
    name = best_other(result)
    if name is None:
        return MISSING
    times, variant = result.times_faster(name), result.entries[name].variant
    return f"{name}/{variant} {_figure(target, result, name)}" + (
        f", x {times:.2f}" if times else ""
    )


def target_totals(report: Report) -> list[str]:
    """How many cells are reached, and where more threads are slower than one."""
    cells = [cell for result in report.results for cell in cells_of(report, result)]
    judged = [cell for cell in cells if cell.missing is not None]
    if not judged:
        return ["reached: no case has a target"]
    each = [
        f"{_count([cell for cell in judged if cell.threads == threads])} on {_threads(threads)}"
        for threads in sorted({cell.threads for cell in judged})
    ]
    lines = [f"reached: {_count(judged)} cells; {', '.join(each)}"]
    slower = [r.case.name for r in report.results if slowdown(report, r)]
    if slower:
        lines.append(f"slower on {_threads(report.threads)} than on 1: {', '.join(slower)}")
    return lines


def _count(cells: list[Cell]) -> str:
    return f"{sum(cell.missing == 0 for cell in cells)} of {len(cells)}"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"
