"""One installed build of attnfast in a process of its own, timed as compare_builds.py asks.

    python -S bench/build_worker.py PATHS CPUS CLOCK

PATHS (JSON) becomes the search path, CPUS (JSON) is where the process may run, CLOCK is `thread`
or `process`: whose CPU time is counted. Without `site` (-S) no editable installation comes before
PATHS. Requests are JSON lists [operation, arguments ...], one a line, answers are JSON objects.
"""

import gc
import itertools
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

LEAD_SECONDS = 2e-3  # untimed calls before a burst: caches are filled, threads awake
LONG_SECONDS = 20e-3  # a call that takes longer needs no lead
SETTLE_SECONDS = 0.2  # at most, until threads that have nothing to do are asleep
CHECKED_BYTES = 1 << 20  # of an input


class Worker:
    """The operations, one method each."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.calls: Iterator[Callable[[], Any]] = iter(())
        self.seconds = 0.0

    def about(self) -> dict[str, str]:
        """Version, folder and instruction set."""
        import attnfast

        config = attnfast.show_config("dicts")
        folder = os.path.dirname(attnfast.__file__)
        return {"version": config["attnfast"], "folder": folder, "isa": config["isa"]}

    def select(self, patterns: list[str] | None) -> list[tuple[str, int]]:
        """Names and bytes of inputs of the cases that match; without patterns all but sweeps."""
        from attnfast.bench.cases import GROUPS, select

        patterns = patterns or [group for group in GROUPS if group != "sweep"]
        return [(case.name, case.input_bytes) for case in select(patterns)]

    def load(self, name: str, seed: int) -> list[float] | None:
        """A checksum of the inputs and the seconds of a call; None if there is no such case."""
        from attnfast.bench.cases import GROUPS
        from attnfast.bench.functions import function_of

        named = {case.name: case for cases in GROUPS.values() for case in cases}
        if name not in named:
            return None
        case, function = named[name], function_of(named[name])
        inputs = function.draw(case, seed)
        calls = function.calls(case, inputs)
        self.calls = itertools.cycle(calls)
        calls[0]()
        times: list[float] = []
        while sum(times) < LEAD_SECONDS:
            start = time.perf_counter()
            calls[0]()
            times.append(time.perf_counter() - start)
        self.seconds = min(times)
        return [_checksum(inputs.query, inputs.keys[0], *inputs.values[:1]), self.seconds]

    def unload(self) -> None:
        """Give the memory of the case back."""
        self.calls = iter(())
        gc.collect()

    def burst(self, count: int, seconds: float) -> list[float]:
        """Wall time and CPU time of a call, medians over groups of `count` calls."""
        gc.disable()
        lead = time.perf_counter() + LEAD_SECONDS
        while self.seconds < LONG_SECONDS and time.perf_counter() < lead:
            next(self.calls)()
        walls: list[float] = []
        cpus: list[float] = []
        end = time.perf_counter() + seconds
        while not walls or time.perf_counter() < end:
            calls = list(itertools.islice(self.calls, count))
            cpu, wall = self.clock(), time.perf_counter()
            for call in calls:
                call()
            walls.append(time.perf_counter() - wall)
            cpus.append(self.clock() - cpu)
        gc.enable()
        if self.clock is time.process_time:
            _settle()
        return [sorted(times)[len(times) // 2] / count for times in (walls, cpus)]


def _checksum(*arrays: Any) -> int:
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(repr((array.shape, array.dtype.str)).encode(), checksum)
        checksum = zlib.crc32(array.reshape(-1)[:CHECKED_BYTES].tobytes(), checksum)
    return checksum


def _settle() -> None:
    """Wait until this process uses next to no CPU time."""
    give_up = time.perf_counter() + SETTLE_SECONDS
    while time.perf_counter() < give_up:
        before = time.process_time()
        time.sleep(2e-3)
        if time.process_time() - before < 5e-4:
            return


def main() -> None:
    paths, cpus, clock = sys.argv[1:]
    sys.path[:] = json.loads(paths)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, json.loads(cpus))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a build prints does not disturb the answers
    worker = Worker(time.thread_time if clock == "thread" else time.process_time)
    for line in sys.stdin:
        operation, *arguments = json.loads(line)
        try:
            answer = {"value": getattr(worker, operation)(*arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
