"""The `attnfast bench` command: its options, and one run from header to totals."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from .case import Case
from .cases import GROUPS, QUICK, select
from .compare import comparison_lines
from .measure import INTERRUPTED, measure, print_blocks, show
from .options import (
    add_run_options,
    check_json,
    chosen_peers,
    earlier_run,
    settings_of,
    yardsticks_of,
)
from .page import check_page_file, page
from .peers import FLEX, PLAIN
from .plot import check_plot_file, draw, is_plotted
from .processes import WorkerFailed
from .report import make_rows, note_lines, total_lines
from .results import Report
from .runner import Settings

QUICK_SECONDS = 45.0  # no case is begun later; leaves room for the last one within a minute
QUICK_PATIENCE = 1.0
SWEEP_PATIENCE = 0.5
SWEEP_LONGEST = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        What they are added to.
    """
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"measure {len(QUICK)} representative cases in under a minute: 3 rounds, and without"
        " FlexAttention, which compiles each case",
    )
    parser.add_argument("--list", action="store_true", help="list the cases and exit")
    add_run_options(parser, "grid")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw speed and time over length as .png, .svg or .pdf: the sweep_* cases, on one"
        " thread and on all threads in turn, 3 rounds",
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write the report, with the plot of its sweep_* cases, as one .html file, to attach to"
        " an issue",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="OLD",
        help="compare with a run saved with --json: is attnfast faster or slower now?",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command.

    Parameters
    ----------
    options : argparse.Namespace
        Those of :func:`add_arguments`, parsed.

    Returns
    -------
    int
        The exit status: 0, 1 for a wrong result, 2 for a bad option, 130 when interrupted.
    """
    if options.list:
        _print_cases()
        return 0
    get_report: Callable[[], tuple[Report | None, bool]]
    try:
        check_json(options)
        if options.plot:
            check_plot_file(options.plot)
        if options.html:
            check_page_file(options.html)
        old = Report.load(options.compare) if options.compare else None
        if options.earlier:
            get_report = partial(show, _earlier(options), make_rows)
        else:
            cases = _cases(options)
            get_report = partial(measure, _sides(options, cases), cases, make_rows)
    except (ValueError, OSError) as error:
        return _fail(error)
    try:
        report, interrupted = get_report()
    except WorkerFailed as error:
        return _fail(error)
    if report is None:
        return INTERRUPTED
    print_blocks(note_lines(report), total_lines(report))
    if old is not None:
        print_blocks(comparison_lines(old, report, options.compare.name))
    if options.json:
        report.save(options.json)
    if options.plot and report.results:
        draw(report, options.plot)
    if options.html:
        options.html.write_text(page(report), encoding="utf-8")
    if interrupted:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return 1 if report.wrong else 0


def _print_cases() -> None:
    for group, cases in GROUPS.items():
        print(f"{group}:")
        for case in cases:
            words = [case.shape, case.dtype, case.mask_text, case.window_text]
            if case.function != "attention":
                words.insert(0, case.function)
            mark = "quick" if case.name in QUICK else ""
            print(f"  {case.name:<40} {mark:<6} {' '.join(w for w in words if w != '-')}")


def _cases(options: argparse.Namespace) -> list[Case]:
    if not options.plot:
        return select(options.cases, quick=options.quick)
    if options.quick:
        raise ValueError("--quick: not accepted with --plot; choose sweep_* cases with --cases")
    cases = select(options.cases or ["sweep_*"])
    for case in cases:
        if not is_plotted(case):
            raise ValueError(f"--cases {case.name}: --plot draws only sweep_* cases")
    return cases


def _sides(options: argparse.Namespace, cases: list[Case]) -> list[Settings]:
    """Settings of the run; for a figure those on one thread first."""
    yardsticks = () if options.plot else yardsticks_of(cases)
    others = (PLAIN, *yardsticks, *chosen_peers(options.peers))
    settings = settings_of(options, others, rounds=3 if options.quick or options.plot else 5)
    if options.quick:
        time_limit = min(QUICK_SECONDS, settings.time_limit)
        settings = replace(settings, patience=QUICK_PATIENCE, time_limit=time_limit)
        return [replace(settings, leave_out=(FLEX,))]
    if not options.plot:
        return [settings]
    settings = replace(settings, patience=SWEEP_PATIENCE, longest_call=SWEEP_LONGEST)
    return [settings] if settings.threads == 1 else [replace(settings, threads=1), settings]


def _earlier(options: argparse.Namespace) -> Report:
    if options.quick:
        raise ValueError("--quick: not accepted with --from, which shows all cases of a run")
    report = earlier_run(options)
    if options.plot and not any(is_plotted(result.case) for result in report.results):
        raise ValueError(f"--from {options.earlier}: has no sweep_* cases, which --plot draws")
    return report


def _fail(error: Exception) -> int:
    print(f"attnfast bench: {error}", file=sys.stderr)
    return 2
