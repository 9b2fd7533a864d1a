"""The `attnfast bench` command: its options, and one run from header to totals."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from .case import Case
from .cases import GROUPS, QUICK, select
from .compare import comparison_lines
from .functions import function_of
from .machine import busy_warning
from .peers import FLEX, OWN, PEERS, YARDSTICKS, installed_peers
from .plot import check_plot_file, draw, is_plotted
from .processes import WorkerFailed
from .progress import make_progress
from .report import Rows, header_lines, make_rows, note_lines, total_lines
from .results import Report
from .runner import Runner, Settings
from .target_table import TargetLines, target_totals
from .turns import run_cases

QUICK_SECONDS = 45.0  # no case is begun later; leaves room for the last one within a minute
QUICK_PATIENCE = 1.0
SWEEP_PATIENCE = 0.5
SWEEP_LONGEST = 1.0
INTERRUPTED = 130


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above zero")
        return value

    parse.__name__ = kind.__name__
    return parse


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
        help="a representative subset in under a minute, without FlexAttention, which compiles",
    )
    parser.add_argument(
        "--cases",
        action="append",
        metavar="NAMES",
        help="names or globs of cases, or names of groups, separated by commas (may be repeated)",
    )
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--targets",
        action="store_true",
        help="on one thread and on all in turn, beside the target of each case; with --peers none"
        " attnfast alone",
    )
    shown.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw speed and time over length (the sweep_* cases), on one thread and on all in"
        " turn, as .png, .svg or .pdf",
    )
    parser.add_argument(
        "--from",
        type=Path,
        dest="earlier",
        metavar="RUN",
        help="show a run written by --json instead of measuring",
    )
    parser.add_argument(
        "--peers",
        default="auto",
        metavar="NAMES",
        help=f"auto (all installed), none, or some of {', '.join(PEERS)} (default: auto)",
    )
    parser.add_argument(
        "--threads", type=_positive(int), metavar="N", help="threads of every contestant"
    )
    parser.add_argument(
        "--rounds",
        type=_positive(int),
        metavar="N",
        help="rounds (default: 5, with --quick or --plot 3)",
    )
    parser.add_argument(
        "--burst",
        type=_positive(float),
        default=0.12,
        metavar="S",
        help="seconds of each contestant in a round, at least (default: 0.12)",
    )
    parser.add_argument("--isa", metavar="NAME", help="the best instruction set to use")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of the inputs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the run to a file")
    parser.add_argument(
        "--compare", type=Path, metavar="OLD", help="compare with a run written by --json"
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
        _check_files(options)
        old = Report.load(options.compare) if options.compare else None
        if options.earlier:
            get_report = partial(_show, options, _earlier(options))
        else:
            cases = _cases(options)
            get_report = partial(_measure, options, cases, _settings(options, cases))
    except (ValueError, OSError) as error:
        return _fail(error)
    try:
        report, interrupted = get_report()
    except WorkerFailed as error:
        return _fail(error)
    if report is None:
        return INTERRUPTED
    _print_block(note_lines(report))
    if options.targets:
        _print_block(target_totals(report))
    _print_block(total_lines(report))
    if old is not None:
        _print_block(comparison_lines(old, report, options.compare.name))
    if options.json:
        report.save(options.json)
    if options.plot and report.results:
        draw(report, options.plot)
    if interrupted:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return 1 if any(r.entries[OWN].wrong for run in report.runs for r in run.results) else 0


def _print_cases() -> None:
    for group, cases in GROUPS.items():
        print(f"{group}:")
        for case in cases:
            words = [case.shape, case.dtype, case.mask_text, case.window_text]
            if case.function != "attention":
                words.insert(0, case.function)
            mark = "quick" if case.name in QUICK else ""
            print(f"  {case.name:<40} {mark:<6} {' '.join(w for w in words if w != '-')}")


def _check_files(options: argparse.Namespace) -> None:
    """Refuse what could not be written at the end of a run."""
    if options.plot:
        check_plot_file(options.plot)
    if options.json and not options.json.parent.is_dir():
        raise ValueError(f"--json {options.json}: there is no folder {options.json.parent}")


def _cases(options: argparse.Namespace) -> list[Case]:
    if not options.plot:
        return select(options.cases, quick=options.quick)
    if options.quick:
        raise ValueError("--plot has cases of its own; choose among them with --cases")
    cases = select(options.cases or ["sweep_*"])
    for case in cases:
        if not is_plotted(case):
            raise ValueError(f"--plot draws the sweep_* cases, not {case.name}")
    return cases


def _settings(options: argparse.Namespace, cases: list[Case]) -> Settings:
    import attnfast

    isas = attnfast.available_isas()
    if options.isa is not None and options.isa not in isas:
        raise ValueError(f"--isa {options.isa}: this machine has {', '.join(isas)}")
    settings = Settings(
        threads=options.threads or attnfast.get_num_threads(),
        rounds=options.rounds or (3 if options.quick or options.plot else 5),
        burst=options.burst,
        isa=options.isa,
        seed=options.seed,
        peers=tuple(_peers(options.peers)),
        yardsticks=tuple(name for name in YARDSTICKS if _measures(name, cases)),
    )
    if options.targets and not settings.yardsticks:
        settings = replace(settings, plain=options.peers != "none")
    if options.quick:
        settings = replace(settings, patience=QUICK_PATIENCE, time_limit=QUICK_SECONDS)
        return replace(settings, leave_out=(FLEX,))
    if options.plot:
        return replace(settings, patience=SWEEP_PATIENCE, longest_call=SWEEP_LONGEST)
    return settings


def _measures(yardstick: str, cases: list[Case]) -> bool:
    return any(yardstick in function_of(case).yardsticks(case) for case in cases)


def _peers(names: str) -> list[str]:
    if names == "auto":
        return installed_peers()
    if names == "none":
        return []
    peers = [name.strip() for name in names.split(",")]
    for name in peers:
        if name not in PEERS:
            raise ValueError(f"--peers {name}: not one of {', '.join(PEERS)}")
        if name not in installed_peers():
            raise ValueError(f"--peers {name}: not installed")
    return peers


def _earlier(options: argparse.Namespace) -> Report:
    if options.cases or options.quick:
        raise ValueError("--from shows all of a run; leave --cases and --quick out")
    report = Report.load(options.earlier)
    if options.plot and not any(is_plotted(result.case) for result in report.results):
        raise ValueError(f"--plot: {options.earlier} has no sweep_* cases")
    return report


def _measure(
    options: argparse.Namespace, cases: list[Case], settings: Settings
) -> tuple[Report | None, bool]:
    """The finished cases, and whether there was an interruption before all were."""
    if warning := busy_warning():
        print(f"warning: {warning}", file=sys.stderr)
    report = rows = None
    interrupted = False
    try:
        with ExitStack() as stack:
            runners = [stack.enter_context(Runner(side)) for side in _sides(options, settings)]
            reports = [runner.new_report() for runner in runners]
            report = reports[-1]
            report.one_thread = reports[0] if len(reports) > 1 else None
            rows = _begin(options, report, cases)
            with make_progress(len(cases)) as progress:
                sides = list(zip(runners, reports, strict=True))
                run_cases(sides, cases, progress, rows.add)
    except KeyboardInterrupt:
        interrupted = True  # what is finished is still worth printing
    if rows is None:
        return None, interrupted
    rows.finish()
    return report, interrupted


def _sides(options: argparse.Namespace, settings: Settings) -> list[Settings]:
    """Settings for one thread, where it is asked for, then for all; peers only where shown.

    Where there are yardsticks, targets are relative to them and to NumPy.
    """
    if settings.threads == 1 or not (options.targets or options.plot):
        return [settings]
    one = replace(settings, threads=1)
    if options.targets:
        one = replace(one, peers=(), plain=bool(one.yardsticks))
    return [one, settings]


def _show(options: argparse.Namespace, report: Report) -> tuple[Report, bool]:
    rows = _begin(options, report, [result.case for result in report.results])
    for result in report.results:
        rows.add(result)
    rows.finish()
    return report, False


def _begin(options: argparse.Namespace, report: Report, cases: list[Case]) -> Rows:
    """Print the header; the table to print below it."""
    print("\n".join(header_lines(report)), end="\n\n", flush=True)
    return TargetLines(report, cases) if options.targets else make_rows(report, cases)


def _fail(error: Exception) -> int:
    print(f"attnfast bench: {error}", file=sys.stderr)
    return 2


def _print_block(lines: list[str]) -> None:
    if lines:
        print("\n" + "\n".join(lines))
