"""The `attnfast` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

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
    doctor = commands.add_parser(
        "doctor",
        help="say what decides speed here, and what to change",
        description="What decides speed in this process and on this machine, and what to change.",
    )
    doctor.add_argument(
        "--import",
        dest="modules",
        metavar="MODULE",
        action="append",
        default=[],
        help="import a module first that your program uses, such as torch: it may bring threads of"
        " its own or change how denormals are treated; may be repeated",
    )
    doctor.set_defaults(run=_doctor)
    benchmark = commands.add_parser(
        "bench",
        help="measure attnfast against plain NumPy and other libraries",
        description="Measure attnfast beside plain NumPy and the other libraries that are"
        " installed, in percent of this machine's measured limits.",
    )
    bench.add_arguments(benchmark)
    benchmark.set_defaults(run=bench.run)
    model = commands.add_parser(
        "onnx",
        help="run an ONNX model, its Attention nodes by attnfast",
        description="Run an ONNX model: its Attention nodes by attnfast, all others by the plain"
        " NumPy of onnx.reference. Prints the name, dtype and shape of each output.",
    )
    model.add_argument("model", metavar="FILE.onnx")
    model.add_argument(
        "--input",
        metavar="[NAME=]FILE.npy",
        action="append",
        default=[],
        help="an input; without a name, the first that has none yet; may be repeated",
    )
    model.add_argument("--output", metavar="FILE.npz", help="write the outputs to this file")
    model.set_defaults(run=_onnx)
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


def _doctor(options: argparse.Namespace) -> int:
    from ._doctor import main as examine

    return examine(options.modules)


def _onnx(options: argparse.Namespace) -> int:
    try:
        from attnfast.onnx import load_model, run_model

        model = load_model(options.model)
        outputs = run_model(model, _read_inputs(options.input, [x.name for x in model.graph.input]))
        if options.output is not None:
            with open(options.output, "wb") as file:
                np.savez(file, **outputs)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"attnfast onnx: error: {error}", file=sys.stderr)
        return 2
    for name, x in outputs.items():
        print(f"{name}: {x.dtype} {x.shape}")
    return 0


def _read_inputs(given: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Arrays by the names of inputs, from ``NAME=FILE.npy`` and ``FILE.npy``."""
    files = {}
    for text in given:
        name, _, path = text.rpartition("=")
        if not name:
            free = [known for known in names if known not in files]
            if not free:
                raise ValueError(f"--input {text} is one too many: there are {', '.join(names)}")
            name = free[0]
        files[name] = path
    return {name: np.load(path) for name, path in files.items()}
