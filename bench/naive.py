"""Print how much faster each instruction set is than plain loops in C, on one thread.

    python bench/naive.py [--cc "gcc -O3"]

The loops are those of naive.c, compiled for the processor's baseline, as `generic` is; with
`--cc "gcc -O3 -march=native"` for this processor, with -ffast-math with vectors in the sums too.
Contestants take turns; medians of several rounds.
"""

import argparse
import ctypes
import shlex
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import attnfast
from attnfast import config
from attnfast.bench.machine import cpu_name

CELLS = [(12, 512, 64), (4, 2048, 64), (4, 1024, 128)]  # heads, length, head size
ROUNDS = 5


def main() -> None:
    """Print a line for each cell: the time of the loops, and how many times faster attnfast is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cc", default="cc -O3", help="compiler and flags (default: cc -O3)")
    naive = load(shlex.split(parser.parse_args().cc))
    isas = attnfast.available_isas()
    print(cpu_name())
    print(f"{'heads x length x size':24}{'loops':>10}" + "".join(f"{isa:>10}" for isa in isas))
    for cell in CELLS:
        loops, *times = measure(naive, cell, isas)
        ratios = "".join(f"{loops / t:8.1f} x" for t in times)
        print(f"{' x '.join(map(str, cell)):24}{loops * 1e3:7.1f} ms{ratios}", flush=True)


def load(compiler: list[str]) -> ctypes.CDLL:
    """Compile naive.c into a library that lives as long as the process."""
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/naive.so"
        source = str(Path(__file__).with_name("naive.c"))
        subprocess.run([*compiler, "-fPIC", "-shared", source, "-o", library, "-lm"], check=True)
        return ctypes.CDLL(library)


def measure(naive: ctypes.CDLL, cell: tuple[int, int, int], isas: list[str]) -> list[float]:
    """Medians in seconds: the loops, then attnfast with each instruction set; all must agree."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(cell, dtype=np.float32) for _ in range(3))
    outputs = [np.empty_like(q) for _ in range(1 + len(isas))]
    row = np.empty(cell[1], np.float32)
    arguments = [ctypes.c_void_p(a.ctypes.data) for a in (q, k, v, outputs[0], row)]

    def loops() -> None:
        naive.naive_attention(*arguments, *map(ctypes.c_size_t, cell))

    def with_isa(isa: str, out: np.ndarray) -> Callable[[], None]:
        def call() -> None:
            config.use_isa(isa)
            attnfast.attention(q, k, v, num_threads=1, out=out)

        return call

    calls = [loops, *map(with_isa, isas, outputs[1:])]
    seconds = [[timed(call) for call in calls] for _ in range(ROUNDS)]
    config.use_isa(None)
    for output in outputs[1:]:
        np.testing.assert_allclose(output, outputs[0], rtol=1e-4, atol=1e-5)
    return [statistics.median(column) for column in zip(*seconds, strict=True)]


def timed(call: Callable[[], None]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
