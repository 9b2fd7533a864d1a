"""Hold attnfast against this project's targets, on one thread and on all threads in turn.

    python bench/targets.py --rounds 5 --peers none                  # attnfast alone
    python bench/targets.py --isa avx2 --json run.json
    python bench/targets.py --from run.json                          # show that run again

A line for each case: its target (`target_values.py`), what attnfast reaches, the fastest other
contestant, and how far each number of threads is from the target. Below the table: how many cells
are reached, and which cases are slower on all threads than on one. The exit status is that of
`attnfast bench`: 1 for a wrong result, never for a missed target.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import attnfast
from attnfast.bench.case import Case
from attnfast.bench.cases import select
from attnfast.bench.compare import LEAST_NOISE
from attnfast.bench.functions import function_of
from attnfast.bench.measure import INTERRUPTED, measure, print_blocks, show
from attnfast.bench.options import (
    add_run_options,
    check_json,
    chosen_peers,
    earlier_run,
    settings_of,
)
from attnfast.bench.peers import OWN, PLAIN, YARDSTICKS
from attnfast.bench.processes import WorkerFailed
from attnfast.bench.report import note_lines, total_lines
from attnfast.bench.results import CaseResult, Report
from attnfast.bench.runner import Settings
from target_values import Target, target_of

JUDGED = ["grid", "half", "train"]  # groups of cases that are measured without --cases

REACHED = "✓"
MISSING = "-"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(
        description="Hold attnfast against this project's targets, on one thread and on all."
    )
    add_run_options(parser, ",".join(JUDGED))
    parser.add_argument(
        "--all-on-one", action="store_true", help="NumPy and the libraries on one thread too"
    )
    options = parser.parse_args(arguments)
    get_report: Callable[[], tuple[Report | None, bool]]
    try:
        check_json(options)
        if options.earlier:
            get_report = partial(show, earlier_run(options), TargetLines)
        else:
            cases = select(options.cases or JUDGED)
            get_report = partial(
                measure, sides_of(options, cases, options.all_on_one), cases, TargetLines
            )
    except (ValueError, OSError) as error:
        return _fail(error)
    try:
        report, interrupted = get_report()
    except WorkerFailed as error:
        return _fail(error)
    if report is None:
        return INTERRUPTED
    print_blocks(note_lines(report), target_totals(report), total_lines(report))
    if options.json:
        report.save(options.json)
    if interrupted:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return 1 if report.wrong else 0


def _fail(error: Exception) -> int:
    print(f"targets: {error}", file=sys.stderr)
    return 2


def sides_of(
    options: argparse.Namespace, cases: list[Case], all_on_one: bool = False
) -> list[Settings]:
    """Settings for one thread, then for all.

    On one thread NumPy and peers are only where a target needs them, or with `all_on_one`.
    """
    isa = options.isa or attnfast.available_isas()[0]
    needed = {measure_of(case, isa).than for case in cases}
    house = [name for name in (PLAIN, *YARDSTICKS) if name in needed]
    plain = [] if PLAIN in needed or options.peers == "none" else [PLAIN]
    settings = settings_of(options, (*plain, *house, *chosen_peers(options.peers)))
    if settings.threads == 1:
        return [settings]
    alone = settings.others if all_on_one else tuple(house)
    return [replace(settings, threads=1, others=alone), settings]


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
    if report.one_thread and (alone := on_one_thread(report, result)):
        sides.insert(0, (1, alone))
    if target is None:
        return [Cell(threads, None) for threads, _ in sides]
    return [
        Cell(threads, _judged(target, side, threads, report.threads), target.unit)
        for threads, side in sides
    ]


def _judged(target: Target, result: CaseResult, threads: int, most: int) -> float | None:
    return target.missing(result) if target.unit != "us" or threads == most else None


def on_one_thread(report: Report, result: CaseResult) -> CaseResult | None:
    """The result of the same case on one thread, None where that was not measured."""
    run = report.runs[0]
    if run.threads > 1:
        return None
    return next((alone for alone in run.results if alone.case == result.case), None)


def slowdown(report: Report, result: CaseResult) -> float | None:
    """How many times slower attnfast is than on one thread, None where not beyond the noise.

    Rounds of both are seconds apart, so they are compared one by one.
    """
    alone = on_one_thread(report, result)
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
    measure = measure_of(result.case, report.machine["isa"])
    texts = [result.case.name, str(target or MISSING)]
    if report.one_thread:
        texts.append(_figure(measure, on_one_thread(report, result)))
    texts.append(_figure(measure, result))
    if others:
        texts.append(_other(measure, result))
    reached = " ".join(f"{cell!s:>7}" for cell in cells_of(report, result))
    if times := slowdown(report, result):
        reached += f"  {times:.2f} x slower than on 1 thread"
    return [*texts, reached]


def measure_of(case: Case, isa: str) -> Target:
    """What a case is shown by: its target, or one of 0 in a unit that suits the case."""
    if target := target_of(case.name, isa):
        return target
    if not (case.cold or function_of(case).limited):
        return Target(0, than=PLAIN)
    return Target(0, "memory" if case.cold else "peak")


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


if __name__ == "__main__":
    sys.exit(main())
