"""One run: measure cases with one or more settings in turn, or take an earlier run; print a table.

What the table looks like is up to the caller (`MakeRows`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from .case import Case
from .machine import busy_warning
from .progress import make_progress
from .report import Rows, header_lines
from .results import Report
from .runner import Runner, Settings
from .turns import run_cases

INTERRUPTED = 130  # exit status

MakeRows = Callable[[Report, Sequence[Case]], Rows]


def measure(
    sides: Sequence[Settings], cases: Sequence[Case], make_rows: MakeRows
) -> tuple[Report | None, bool]:
    """Measure the cases; the settings differ in their number of threads and take turns.

    Parameters
    ----------
    sides : sequence of Settings
        Those of one run, or of two, the first of which is on one thread.
    cases : sequence of Case
        In the order in which they are measured.
    make_rows : callable
        Makes the table that is printed as cases finish.

    Returns
    -------
    report : Report or None
        The finished cases of the last settings, with those of the first as `one_thread`; None when
        interrupted before the first case.
    interrupted : bool
        Whether Ctrl-C ended the run.
    """
    if warning := busy_warning():
        print(f"warning: {warning}", file=sys.stderr)
    report = rows = None
    interrupted = False
    try:
        with ExitStack() as stack:
            runners = [stack.enter_context(Runner(side)) for side in sides]
            reports = [runner.new_report() for runner in runners]
            report = reports[-1]
            report.one_thread = reports[0] if len(reports) > 1 else None
            rows = _begin(report, cases, make_rows)
            with make_progress(len(cases)) as progress:
                run_cases(list(zip(runners, reports, strict=True)), cases, progress, rows.add)
    except KeyboardInterrupt:
        interrupted = True  # what is finished is still worth printing
    if rows is None:
        return None, interrupted
    rows.finish()
    return report, interrupted


def show(report: Report, make_rows: MakeRows) -> tuple[Report, bool]:
    """Print an earlier run as `measure` would; the same results as from there."""
    rows = _begin(report, [result.case for result in report.results], make_rows)
    for result in report.results:
        rows.add(result)
    rows.finish()
    return report, False


def _begin(report: Report, cases: Sequence[Case], make_rows: MakeRows) -> Rows:
    """Print the header; the table to print below it."""
    print("\n".join(header_lines(report)), end="\n\n", flush=True)
    return make_rows(report, cases)


def print_blocks(*blocks: Sequence[str]) -> None:
    """Print lines below the table, an empty line before each block that has some."""
    for lines in blocks:
        if lines:
            print("\n" + "\n".join(lines))
