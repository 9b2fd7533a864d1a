"""Calls on a machine whose processors are busy: all threads against one, and two callers at once.

    python bench/busy.py                      # every processor kept busy by another process
    python bench/busy.py --burners 0          # the same on the machine as it is

First table: for each case the time of a call on one thread and on all, in turns: median and 99th
percentile, and both of all threads as multiples of those of one. Second table: two processes that
call at the same time with all threads, as a share of what they do with one thread each.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import attnfast

SHAPES = {
    "1x12x64x64": (1, 12, 64, 64),
    "1x8x128x64": (1, 8, 128, 64),
    "1x8x512x64": (1, 8, 512, 64),
    "8x12x128x64": (8, 12, 128, 64),
    "1x8x1024x64": (1, 8, 1024, 64),
}
TURN = 0.25  # seconds that one number of threads has before the other one


def burn() -> None:
    """Keep a processor busy until the process is ended."""
    while True:
        pass


@contextmanager
def burners(count: int) -> Iterator[None]:
    """Have so many processes that do nothing but use a processor."""
    processes = [multiprocessing.Process(target=burn, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def arrays(shape: tuple[int, ...]) -> list[Any]:
    """Draw query, key, value."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(3)]


def call_for(seconds: float, threads: int | None, operands: list[Any]) -> list[float]:
    """Seconds of each call in that time."""
    taken = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        attnfast.attention(*operands, num_threads=threads)
        taken.append(time.perf_counter() - start)
    return taken


def latencies(shape: tuple[int, ...], seconds: float) -> dict[str, list[float]]:
    """Times of calls on one thread and on all, in turns."""
    operands = arrays(shape)
    taken: dict[str, list[float]] = {"one": [], "all": []}
    for _ in range(int(seconds / TURN / 2)):
        taken["one"] += call_for(TURN, 1, operands)
        taken["all"] += call_for(TURN, None, operands)
    return taken


def count_calls(shape: tuple[int, ...], threads: int | None, seconds: float, queue: Any) -> None:
    """Put how many calls ran in that time, after a tenth of it."""
    operands = arrays(shape)
    call_for(seconds / 10, threads, operands)
    queue.put(len(call_for(seconds, threads, operands)))


def throughput(shape: tuple[int, ...], threads: int | None, seconds: float) -> float:
    """Calls a second of two processes together."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    callers = [
        context.Process(target=count_calls, args=(shape, threads, seconds, queue)) for _ in range(2)
    ]
    for caller in callers:
        caller.start()
    total = sum(queue.get() for _ in callers)
    for caller in callers:
        caller.join()
    return total / seconds


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--burners", type=int, default=attnfast.get_num_threads())
    parser.add_argument("--seconds", type=float, default=8, help="for each case")
    options = parser.parse_args()
    threads = attnfast.get_num_threads()
    print(f"{threads} threads, {options.burners} processes that only use a processor; ms")
    print("case            one: median   99 %    all: median   99 %    all / one: median   99 %")
    with burners(options.burners):
        for name, shape in SHAPES.items():
            taken = latencies(shape, options.seconds)
            (half, late), (all_half, all_late) = (
                1e3 * np.percentile(taken[who], [50, 99]) for who in ("one", "all")
            )
            print(
                f"{name:15}  {half:10.3f} {late:6.2f}  {all_half:13.3f} {all_late:6.2f}"
                f"  {all_half / half:18.2f} {all_late / late:6.2f}",
                flush=True,
            )
    print("\ntwo processes at once, calls a second: all threads / one thread each")
    for name, shape in SHAPES.items():
        one, every = (throughput(shape, n, options.seconds / 4) for n in (1, None))
        print(f"{name:15}  {every:9.0f} / {one:9.0f} = {every / one:.2f}", flush=True)


if __name__ == "__main__":
    main()
