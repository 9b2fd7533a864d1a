"""Compares the speed of two installed builds of attnfast.

    pip install --no-deps --target OLD .     # before the change
    pip install --no-deps --target NEW .     # after it
    python bench/compare_builds.py OLD NEW [--cases "causal*,shape"] [--threads all] [--isa avx2]

Each build runs the cases of `attnfast bench` in a process of its own, and OLD in a third one. The
processes take turns in short bursts. A ratio is time of OLD / time of NEW in neighbouring bursts,
the median over all rounds: above 1, NEW is faster. What OLD against OLD gives in the same run is
the noise. A cell is marked with < where NEW is more than 3 % slower and that is outside the noise.

Ends with 1 if a cell is marked, or if a geometric mean is below --least. With --threads 1 all
processes are pinned to one core and CPU time is that of the calling thread; with --threads all it
is that of the process, with the waiting of its threads.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKER = Path(__file__).resolve().with_name("build_worker.py")
SIDES = ("old", "new", "again")  # "again" is OLD in another process
GROUP_SECONDS = 2e-3  # calls are timed in groups at least this long
LEAST_RATIO = 0.97
MEMORY_SHARE = 0.7
SEED = 1


class BuildError(Exception):
    """A build could not do what it was asked; the message says why."""


class Build:
    """An installed build in a process of its own."""

    def __init__(self, side: str, folder: Path, arguments: argparse.Namespace) -> None:
        if not (folder / "attnfast").is_dir():
            raise SystemExit(f"{folder} holds no attnfast: make it with pip install --target")
        self.side = side
        paths = [str(folder.resolve()), *(p for p in sys.path if p and Path(p) != WORKER.parent)]
        clock = "thread" if arguments.threads == "1" else "process"
        self.process = subprocess.Popen(
            [sys.executable, "-S", WORKER, json.dumps(paths), json.dumps(arguments.cpus), clock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(arguments),
        )

    def ask(self, operation: str, *values: Any) -> Any:
        """The result of an operation of the worker."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps([operation, *values]), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.side} ended with {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise BuildError(f"{self.side}: {answer['error']}")
        return answer["value"]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def _environment(arguments: argparse.Namespace) -> dict[str, str]:
    threads = str(len(arguments.cpus))
    names = ("ATTNFAST_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    isa = {"ATTNFAST_ISA": arguments.isa} if arguments.isa else {}
    return {**os.environ, **dict.fromkeys(names, threads), **isa}


@dataclass(frozen=True)
class Cell:
    """One kind of time of one case: logarithms of ratios, one for each pair of bursts."""

    old_to_new: list[float]
    old_to_old: list[float]

    @property
    def ratio(self) -> float:
        return math.exp(statistics.median(self.old_to_new))

    @property
    def noise(self) -> float:
        """How far OLD is from OLD, and twice the errors of both medians, as a fraction."""
        errors = math.hypot(_error(self.old_to_new), _error(self.old_to_old))
        return math.expm1(abs(statistics.median(self.old_to_old)) + 2 * errors)

    @property
    def slower(self) -> bool:
        return self.ratio < min(LEAST_RATIO, 1 / (1 + self.noise))

    def __str__(self) -> str:
        mark = "<" if self.slower else " "
        noise = f"{100 * self.noise:.1f}" if self.noise < 1 else ">100"
        return f"{self.ratio:7.3f}{mark} {noise:>6} %"

    def stored(self) -> dict[str, Any]:
        names = ("ratio", "noise", "slower", "old_to_new", "old_to_old")
        return {name: getattr(self, name) for name in names}


def _error(logarithms: Sequence[float]) -> float:
    """Standard error of the median, from the median distance to it."""
    middle = statistics.median(logarithms)
    distance = statistics.median(abs(x - middle) for x in logarithms)
    return 1.253 * 1.483 * distance / math.sqrt(len(logarithms))


KINDS = ("wall", "cpu")


def measure(builds: dict[str, Build], case: str, arguments: argparse.Namespace) -> dict[str, Cell]:
    """Run one case in all processes.

    The order of a round is mirrored (old new again again new old), and rotates from round to round.
    """
    loaded = {side: builds[side].ask("load", case, SEED) for side in SIDES}
    for side, answer in loaded.items():
        if answer is None:
            raise BuildError(f"{side} has no such case")
    if loaded["old"][0] != loaded["new"][0]:
        raise BuildError("the two builds draw different inputs for it")
    count = max(1, round(GROUP_SECONDS / max(seconds for _, seconds in loaded.values())))
    logs: dict[str, tuple[list[float], list[float]]] = {kind: ([], []) for kind in KINDS}
    for turn in range(arguments.rounds):
        order = SIDES[turn % 3 :] + SIDES[: turn % 3]
        for half in (order, order[::-1]):
            times = {side: builds[side].ask("burst", count, arguments.burst) for side in half}
            for k, kind in enumerate(KINDS):
                old, new, again = (math.log(max(times[side][k], 1e-9)) for side in SIDES)
                logs[kind][0].append(old - new)
                logs[kind][1].append(old - again)
    return {kind: Cell(*logs[kind]) for kind in KINDS}


def available_memory() -> float:
    """Bytes that can be allocated without swapping; infinite where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    (line,) = (line for line in lines if line.startswith("MemAvailable"))
    return 1024.0 * int(line.split()[1])


class Progress:
    """One rewritten line on standard error where that is a terminal."""

    def __init__(self, total: int) -> None:
        self.total, self.start = total, time.monotonic()

    def show(self, done: int, text: str) -> None:
        if sys.stderr.isatty():
            seconds = time.monotonic() - self.start
            line = f"[{done}/{self.total}] {seconds:.0f} s  {text}" if text else ""
            print(f"\r\x1b[K{line[:78]}", end="", file=sys.stderr, flush=True)


Results = dict[str, dict[str, Cell]]


def run(builds: dict[str, Build], arguments: argparse.Namespace) -> tuple[Results, dict[str, str]]:
    """The cells of each case, printed as they come, and why cases were left out."""
    cases = builds["new"].ask("select", arguments.cases)
    width = max(len(name) for name, _ in cases)
    print(f"{'old / new'.ljust(width)}     wall    noise      CPU    noise")
    results: Results = {}
    left_out: dict[str, str] = {}
    progress = Progress(len(cases))
    for number, (name, size) in enumerate(cases):
        progress.show(number + 1, name)
        try:
            if len(SIDES) * size > MEMORY_SHARE * available_memory():
                raise BuildError(f"needs {len(SIDES) * size / 1e9:.1f} GB")
            results[name] = measure(builds, name, arguments)
        except BuildError as error:
            left_out[name] = str(error)
        finally:
            for build in builds.values():
                build.ask("unload")
        progress.show(number + 1, "")
        if name in results:
            cells = " ".join(str(results[name][kind]) for kind in KINDS)
            print(f"{name.ljust(width)}  {cells}", flush=True)
    return results, left_out


def geometric_means(results: Results) -> dict[str, float]:
    """Over the cases, of each kind of time."""
    return {
        kind: math.exp(statistics.fmean(math.log(cells[kind].ratio) for cells in results.values()))
        for kind in KINDS
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, metavar="OLD", help="folder of the build before")
    parser.add_argument("new", type=Path, metavar="NEW", help="folder of the build after")
    parser.add_argument(
        "--cases",
        action="append",
        metavar="PATTERN",
        help="groups, names or globs as for attnfast bench (default: all groups but sweep)",
    )
    parser.add_argument("--list", action="store_true", help="print the names of the cases of NEW")
    parser.add_argument("--threads", choices=("1", "all"), default="1")
    parser.add_argument("--cpu", type=int, help="the core of --threads 1 (default the last one)")
    parser.add_argument("--isa", help="instruction set (ATTNFAST_ISA)")
    parser.add_argument("--rounds", type=int, default=10, help="six bursts each (default 10)")
    parser.add_argument("--burst", type=float, default=0.03, help="seconds (default 0.03)")
    parser.add_argument("--least", type=float, help="least geometric mean of the ratios")
    parser.add_argument("--json", type=Path, help="write all ratios to this file")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    affinity = getattr(os, "sched_getaffinity", lambda _: set(range(os.cpu_count() or 1)))
    everywhere = sorted(affinity(0))
    one = everywhere[-1] if options.cpu is None else options.cpu
    if one not in everywhere:
        parser.error(f"--cpu must be one of {everywhere}, got {one}")
    options.cpus = [one] if options.threads == "1" else everywhere
    return options


def main() -> int:
    arguments = parse()
    with ExitStack() as stack:
        builds = {}
        for side in SIDES:
            folder = arguments.new if side == "new" else arguments.old
            builds[side] = Build(side, folder, arguments)
            stack.callback(builds[side].close)
        try:
            if arguments.list:
                for name, _ in builds["new"].ask("select", arguments.cases):
                    print(name)
                return 0
            about = {side: build.ask("about") for side, build in builds.items()}
            for side in ("old", "new"):
                print(f"{side}  {' '.join(about[side][x] for x in ('version', 'isa', 'folder'))}")
            results, left_out = run(builds, arguments)
        except BuildError as error:
            raise SystemExit(str(error)) from None
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    if not results:
        print("nothing was compared")
        return 1
    means = geometric_means(results)
    slower = [name for name, cells in results.items() if any(c.slower for c in cells.values())]
    print(f"geometric mean of {len(results)}: wall {means['wall']:.3f}, CPU {means['cpu']:.3f}")
    print(f"slower: {', '.join(slower) or 'none'}")
    if arguments.json:
        settings = {name: str(value) for name, value in vars(arguments).items()}
        stored = {
            name: {k: c.stored() for k, c in cells.items()} for name, cells in results.items()
        }
        content = {"settings": settings, "builds": about, "geometric_mean": means}
        content |= {"cases": stored, "left_out": left_out}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    least = arguments.least
    return int(bool(slower) or (least is not None and min(means.values()) < least))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
