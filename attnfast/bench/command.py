"""The `attnfast bench` command: its options, and one run from header to totals."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

from .cases import CASES, QUICK, select
from .compare import comparison_lines
from .machine import busy_warning
from .peers import PEERS, installed_peers
from .processes import WorkerFailed
from .progress import make_progress
from .report import header_lines, make_rows, note_lines, total_lines
from .results import Report
from .runner import Runner, Settings

QUICK_SECONDS = 45.0  # no case is begun later; leaves room for the last one within a minute
QUICK_PATIENCE = 1.0
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
    """Declare the options of the command."""
    parser.add_argument(
        "--quick", action="store_true", help="a representative subset in under a minute"
    )
    parser.add_argument(
        "--cases",
        action="append",
        metavar="NAMES",
        help="names or globs, separated by commas (may be repeated)",
    )
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
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
        "--rounds", type=_positive(int), metavar="N", help="rounds (default: 5, with --quick 3)"
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
    """Run the command; the exit status: 0, 1 for a wrong result, 2 for a bad option."""
    if options.list:
        for case in CASES:
            words = [case.shape, case.dtype, case.mask_text, case.window_text]
            mark = "quick" if case.name in QUICK else ""
            print(f"{case.name:<32} {mark:<6} {' '.join(w for w in words if w != '-')}")
        return 0
    try:
        cases = select(options.cases, quick=options.quick)
        settings = _settings(options)
        old = Report.load(options.compare) if options.compare else None
    except (ValueError, OSError) as error:
        return _fail(error)
    if warning := busy_warning():
        print(f"warning: {warning}", file=sys.stderr)
    interrupted = False
    report = rows = None
    try:
        with Runner(settings) as runner:
            report = runner.new_report()
            print("\n".join(header_lines(report)), end="\n\n", flush=True)
            rows = make_rows(report, cases)
            with make_progress(len(cases)) as progress:
                runner.run(cases, report, progress, rows.add)
    except WorkerFailed as error:
        return _fail(error)
    except KeyboardInterrupt:
        interrupted = True  # what is finished is still worth printing
        if report is None or rows is None:
            return INTERRUPTED
    rows.finish()
    _print_block(note_lines(report))
    _print_block(total_lines(report))
    if old is not None:
        _print_block(comparison_lines(old, report, options.compare.name))
    if options.json:
        report.save(options.json)
    if interrupted:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return 1 if any(r.entries["attnfast"].wrong for r in report.results) else 0


def _settings(options: argparse.Namespace) -> Settings:
    import attnfast

    isas = attnfast.available_isas()
    if options.isa is not None and options.isa not in isas:
        raise ValueError(f"--isa {options.isa}: this machine has {', '.join(isas)}")
    if options.peers == "auto":
        peers = installed_peers()
    elif options.peers == "none":
        peers = []
    else:
        peers = [name.strip() for name in options.peers.split(",")]
        for name in peers:
            if name not in PEERS:
                raise ValueError(f"--peers {name}: not one of {', '.join(PEERS)}")
            if name not in installed_peers():
                raise ValueError(f"--peers {name}: not installed")
    patience = QUICK_PATIENCE if options.quick else Settings.patience
    return Settings(
        threads=options.threads or attnfast.get_num_threads(),
        rounds=options.rounds or (3 if options.quick else 5),
        burst=options.burst,
        patience=patience,
        time_limit=QUICK_SECONDS if options.quick else math.inf,
        isa=options.isa,
        seed=options.seed,
        peers=tuple(peers),
    )


def _fail(error: Exception) -> int:
    print(f"attnfast bench: {error}", file=sys.stderr)
    return 2


def _print_block(lines: list[str]) -> None:
    if lines:
        print("\n" + "\n".join(lines))
