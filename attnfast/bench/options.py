"""Options of every command that measures or shows a run, and the settings they stand for."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from .case import Case
from .functions import function_of
from .peers import PEERS, YARDSTICKS, installed_peers
from .results import Report
from .runner import Settings


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be greater than 0, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def add_run_options(parser: argparse.ArgumentParser, default_cases: str) -> None:
    """Declare what to measure, with whom, how often, and where the run is kept.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        What they are added to.
    default_cases : str
        What the help says is measured without `--cases`.
    """
    parser.add_argument(
        "--cases",
        action="append",
        metavar="NAMES",
        help="cases to measure: names, globs or groups, separated by commas; may be repeated"
        f" (default: {default_cases})",
    )
    parser.add_argument(
        "--peers",
        default="auto",
        metavar="NAMES",
        help="libraries to compare with: auto (all installed), none, or some of"
        f" {', '.join(PEERS)}, separated by commas (default: auto)",
    )
    parser.add_argument(
        "--threads",
        type=_positive(int),
        metavar="N",
        help="number of threads of every library (default: that of attnfast)",
    )
    parser.add_argument(
        "--rounds", type=_positive(int), metavar="N", help="rounds of each case (default: 5)"
    )
    parser.add_argument(
        "--burst",
        type=_positive(float),
        default=0.12,
        metavar="S",
        help="minimum seconds of each library in a round (default: 0.12)",
    )
    parser.add_argument(
        "--isa", metavar="NAME", help="limit attnfast to this instruction set and lesser ones"
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="seed of the inputs (default: 1)"
    )
    parser.add_argument(
        "--time-limit",
        type=_positive(float),
        metavar="S",
        help="seconds of the run, shared out among its cases; those not begun by then are left out"
        " (default: none)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the run to a file")
    parser.add_argument(
        "--from",
        type=Path,
        dest="earlier",
        metavar="RUN",
        help="show a run saved with --json instead of measuring",
    )


def check_json(options: argparse.Namespace) -> None:
    """Refuse a file that could not be written at the end of a run.

    Raises
    ------
    ValueError
        When its folder does not exist.
    """
    if options.json and not options.json.parent.is_dir():
        raise ValueError(f"--json {options.json}: the folder {options.json.parent} does not exist")


def chosen_peers(names: str) -> tuple[str, ...]:
    """The libraries that `--peers` names.

    Raises
    ------
    ValueError
        When one is unknown or not installed.
    """
    if names == "auto":
        return tuple(installed_peers())
    if names == "none":
        return ()
    peers = [name.strip() for name in names.split(",")]
    for name in peers:
        if name not in PEERS:
            raise ValueError(f"--peers {name}: must be auto, none, or some of {', '.join(PEERS)}")
        if name not in installed_peers():
            raise ValueError(f"--peers {name}: not installed; install it or leave it out")
    return tuple(peers)


def yardsticks_of(cases: Sequence[Case]) -> tuple[str, ...]:
    """The yardsticks that some of the cases have."""
    found = {name for case in cases for name in function_of(case).yardsticks(case)}
    return tuple(name for name in YARDSTICKS if name in found)


def settings_of(options: argparse.Namespace, others: Sequence[str], *, rounds: int = 5) -> Settings:
    """How a run is made: attnfast beside `others`, `rounds` unless the options say.

    Raises
    ------
    ValueError
        When this machine does not have the instruction set.
    """
    import attnfast

    isas = attnfast.available_isas()
    if options.isa is not None and options.isa not in isas:
        raise ValueError(f"--isa {options.isa}: must be one of {', '.join(isas)} on this machine")
    return Settings(
        threads=options.threads or attnfast.get_num_threads(),
        rounds=options.rounds or rounds,
        burst=options.burst,
        isa=options.isa,
        seed=options.seed,
        time_limit=options.time_limit or math.inf,
        others=tuple(others),
    )


def earlier_run(options: argparse.Namespace) -> Report:
    """The run that `--from` names.

    Raises
    ------
    ValueError
        When the file is no run, or cases are chosen too.
    """
    if options.cases:
        raise ValueError("--cases: not accepted with --from, which shows all cases of a run")
    return Report.load(options.earlier)
