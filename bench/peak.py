"""Print what this machine can do at most: FMA loops and reads, by instruction set and threads."""

import statistics
from collections.abc import Callable

import attnfast
from attnfast import config
from attnfast.bench import limits
from attnfast.bench.machine import cpu_name

SECONDS = 0.3
REPEATS = 5
SIZES = {"4 MiB": 2**22, "256 MiB": 2**28}  # a thread's share; smaller ones time the call itself


def main() -> None:
    """Print medians and best values of a few repeats."""
    counts = sorted({1, attnfast.get_num_threads()})
    print(cpu_name())
    print(f"{'':32}" + "".join(f"{n} thread{'s' * (n > 1)}: median best   " for n in counts))
    for isa in attnfast.available_isas():
        config.use_isa(isa)
        for dtype in ("float32", "float64"):
            label = f"FMA {isa} {dtype}, GFLOP/s"
            show(label, counts, lambda n, d=dtype: limits.fma_peak(n, SECONDS, d))
    config.use_isa(None)
    for name, size in SIZES.items():
        label = f"read {name}, GB/s"
        show(label, counts, lambda n, s=size: limits.read_bandwidth(n, s * n, SECONDS))


def show(label: str, counts: list[int], measure: Callable[[int], float]) -> None:
    """One line: median and best for each number of threads."""
    cells = []
    for n in counts:
        rates = [measure(n) for _ in range(REPEATS)]
        cells.append(f"{statistics.median(rates):17.1f} {max(rates):8.1f}")
    print(f"{label:32}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
