"""The `attnfast` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import attnfast
from attnfast import bench


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; default ``sys.argv[1:]``.

    Returns
    -------
    int
        Exit status.
    """
    parser = argparse.ArgumentParser(
        prog="attnfast", description="Exact attention for NumPy arrays on CPUs."
    )
    parser.add_argument("--version", action="version", version=f"attnfast {attnfast.__version__}")
    parser.set_defaults(run=lambda options: parser.print_help())
    commands = parser.add_subparsers(metavar="command")
    info = commands.add_parser("info", help="print the configuration of this installation")
    info.set_defaults(run=_info)
    benchmark = commands.add_parser(
        "bench",
        help="measure attnfast against plain NumPy and other libraries",
        description="Measure attnfast beside plain NumPy and the other libraries that are"
        " installed, in percent of this machine's measured limits.",
    )
    bench.add_arguments(benchmark)
    benchmark.set_defaults(run=bench.run)
    options = parser.parse_args(argv)
    try:
        status: int = options.run(options) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _info(options: argparse.Namespace) -> None:
    attnfast.show_config()
