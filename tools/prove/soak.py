"""Calls everything for minutes, from many threads of many processes, and looks for what goes wrong.

    python tools/prove/soak.py [--minutes 10] [--threads 4] [--processes 2] [--seed 0]

Runs against the installed package. Each thread draws problems of the whole family
(soak_problems.py): functions, gradients, keys and values in pages, in 8 bits and in caches; shapes,
dtypes, memory layouts, options. A problem is computed ten times with different numbers of
threads, which has to give the same bits; every tenth problem, so one call in a hundred, is judged
by the tests' criterion against ``attnfast.reference``. Meanwhile bad calls are refused, Ctrl-C ends
long calls, children are forked that have to get the same bits, and threads come and go.

After each round, when its threads have ended, a process looks at its memory, threads and open
files. Fails, with exit code 1, if a call did or a result is wrong, if files or threads stay behind,
or if memory grows by more than GROWTH MB an hour.
"""

import argparse
import contextlib
import ctypes
import faulthandler
import gc
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import attnfast

# The criterion of accuracy belongs to the tests; it is needed here and is no part of the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from soak_problems import Options, draw, one_in

from support.arrays import assert_same, randn

# Measured: 6 to 13 MB/h in 10 minutes, 28 to 52 in the first minute, as freed memory falls to
# pieces (repeating the same problems adds nothing). 4 KB lost in each call: 3300 at 150 calls/s.
GROWTH = 200.0
ENVIRONMENT = {
    # OpenBLAS ends its threads when somebody forks, and who is in a product then waits for ever.
    "OPENBLAS_NUM_THREADS": "1",
    # What glibc keeps of freed memory, 100 MB or so for each process, would hide what is lost.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
}
REPEATS = 10
CHECK_EVERY = 10  # problems
MOST_THREADS = 4  # of a call
LATENCY = 5.0  # s from Ctrl-C to the end of the call, on a machine that is much too busy
WARM_UP = 1 / 3  # of the samples


class SoakError(Exception):
    """What was seen cannot be right."""


def refused(rng: np.random.Generator) -> None:
    """A call that must raise, after some of its arguments were taken in."""
    x = randn(rng, (2, 20, 8))
    bad: list[Options] = [
        {"mask": np.ones((20, 20))},
        {"bias": np.ones((3, 20, 20), np.float32)},
        {"kv_lengths": [21]},
        {"alibi_slopes": [1.0, 2.0], "sink_logits": [1.0]},
        {"mask": np.ones((20, 20), bool), "out": np.empty((2, 20, 9), np.float32)},
    ]
    with contextlib.suppress(TypeError, ValueError):
        attnfast.attention(x, x, x, **bad[rng.integers(len(bad))])
        raise SoakError("a bad call was not refused")


# ---- one process ----


@dataclass
class Sample:
    """What a process has done so far and what it holds between rounds."""

    process: int
    seconds: float
    memory: int
    threads: int
    files: int
    done: Counter[str]
    worst: dict[str, float]


@dataclass
class Totals:
    """What the threads of a process have done; several of them write to it."""

    done: Counter[str] = field(default_factory=Counter)
    worst: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, **more: int) -> None:
        with self.lock:
            self.done.update(more)

    def note(self, dtype: str, error: float) -> None:
        with self.lock:
            self.worst[dtype] = max(self.worst.get(dtype, 0.0), error)


def solve(rng: np.random.Generator, totals: Totals, judged: bool) -> None:
    problem = draw(rng)
    try:
        first = problem.run(1)
        for _ in range(REPEATS - 1):
            assert_same(first, problem.run(int(rng.integers(1, MOST_THREADS + 1))))
        totals.count(calls=REPEATS)
        if judged:
            totals.note(problem.arrays[0].dtype.name, problem.check(first))
            totals.count(checks=1)
    except Exception as error:
        error.add_note(repr(problem))
        raise


def many_calls(seed: list[int], totals: Totals, end: float) -> None:
    """One thread of one round."""
    rng = np.random.default_rng(seed)
    try:
        while time.monotonic() < end and not totals.errors:
            solve(rng, totals, one_in(rng, CHECK_EVERY))
            if one_in(rng, 5):
                refused(rng)
                totals.count(refused=1)
    except Exception:
        totals.errors.append(f"thread of seed {seed}: {traceback.format_exc()}")


def press_ctrl_c() -> None:
    """A call of seconds is ended by SIGINT; that of other threads goes on."""
    x = np.broadcast_to(np.float32(1), (64, 16384, 64))
    pressed: list[float] = []

    def press() -> None:
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.1, press)
    try:
        timer.start()
        attnfast.attention(x, x, x)
        timer.join()
    except KeyboardInterrupt:
        late = time.monotonic() - pressed[0]
        if late > LATENCY:
            raise SoakError(f"Ctrl-C ended a call after {late:.2f} s") from None
        timer.join()
        return
    raise SoakError("Ctrl-C did not end a call")


def fork(rng: np.random.Generator) -> None:
    """A child has to get the bits of its parent, whose other threads are at work."""
    problem = draw(rng)
    expected = problem.run(2)
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            for threads in (2, 1, MOST_THREADS):
                assert_same(expected, problem.run(threads))
            code = 0
        os._exit(code)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            if status:
                raise SoakError(f"a child ended with {os.waitstatus_to_exitcode(status)}")
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise SoakError("a child hangs")


def held() -> tuple[int, int, int]:
    """Bytes, threads and open files; memory that was freed is given back first.

    The bytes are those of the process's own. What is mapped from files comes and goes with the
    memory that others need.
    """
    gc.collect()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    kilobytes = sum(int(status[name].split()[0]) for name in ("RssAnon", "VmSwap"))
    return 1024 * kilobytes, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def rounds(number: int, args: argparse.Namespace, totals: Totals) -> Iterator[Sample]:
    rng = np.random.default_rng([args.seed, number])
    start = time.monotonic()
    length = min(5.0, max(1.0, args.minutes * 60 / 100))
    turn = 0
    while (now := time.monotonic()) < start + 60 * args.minutes:
        turn += 1
        threads = [
            threading.Thread(
                target=many_calls, args=([args.seed, number, turn, t], totals, now + length)
            )
            for t in range(args.threads)
        ]
        for thread in threads:
            thread.start()
        press_ctrl_c()
        fork(rng)
        totals.count(interrupts=1, forks=1)
        for thread in threads:
            thread.join()
        if totals.errors:
            return
        yield Sample(number, time.monotonic() - start, *held(), totals.done, totals.worst)


def process(number: int, args: argparse.Namespace, pipe: Any) -> None:
    """Send a sample after each round, the text of an error if there is one, and None at the end."""
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork with threads
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR1)
    totals = Totals()
    try:
        for sample in rounds(number, args, totals):
            pipe.send(sample)
    except Exception:
        totals.errors.append(traceback.format_exc())
    for error in totals.errors:
        pipe.send(error)
    pipe.send(None)


# ---- all of them ----


def slope(samples: list[Sample]) -> tuple[float, float]:
    """MB an hour by which a process grows after warming up, and the standard error of that."""
    late = samples[int(len(samples) * WARM_UP) :]
    if len(late) < 4:
        return math.nan, math.nan
    t = np.array([s.seconds for s in late]) / 3600
    y = np.array([s.memory for s in late]) / 1e6
    t -= t.mean()
    rise = float(t @ y / (t @ t))
    rest = y - y.mean() - rise * t
    return rise, math.sqrt(float(rest @ rest) / (len(t) - 2) / float(t @ t))


def judge(samples: list[Sample], args: argparse.Namespace) -> list[str]:
    """Print the figures of one process and say what is wrong with them."""
    last = samples[-1]
    rise, error = slope(samples)
    print(
        f"process {last.process}: {last.memory / 1e6:.0f} MB, {rise:+.1f} MB/h +- {error:.1f}; "
        f"at most {max(s.threads for s in samples)} threads, "
        f"{max(s.files for s in samples)} files after a round; "
        f"{len(samples)} rounds in {last.seconds:.0f} s"
    )
    problems = []
    if rise - 2 * error > GROWTH:
        problems.append(f"memory grows by {rise:.0f} MB an hour, more than {GROWTH:.0f}")
    third = max(1, len(samples) // 3)
    for name in ("threads", "files"):
        before = max(getattr(s, name) for s in samples[:third])
        after = min(getattr(s, name) for s in samples[-third:])
        if after > before:
            problems.append(f"{before} {name} became {after}")
    return [f"process {last.process}: {problem}" for problem in problems]


def follow(pipes: dict[Any, int], seconds: float) -> tuple[list[Sample], list[str]]:
    """All samples and errors of the processes, with a bar of progress where rich is installed."""
    samples: list[Sample] = []
    errors: list[str] = []
    start = time.monotonic()
    deadline = start + seconds + 120
    with progress(seconds) as show:
        while pipes:
            ready: list[Any] = multiprocessing.connection.wait(list(pipes), timeout=1)
            for pipe in ready:
                try:
                    message = pipe.recv()
                except EOFError:
                    message = f"process {pipes[pipe]} died"
                if isinstance(message, Sample):
                    samples.append(message)
                    continue
                if message is not None:
                    errors.append(message)
                del pipes[pipe]
            show(min(seconds, time.monotonic() - start))
            if time.monotonic() > deadline:
                return samples, [*errors, f"processes {sorted(pipes.values())} hang"]
    return samples, errors


@contextlib.contextmanager
def progress(seconds: float) -> Iterator[Any]:
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda done: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("soaking", total=seconds)
        yield lambda done: bar.update(task, completed=done)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    context = multiprocessing.get_context("spawn")
    workers, pipes = [], {}
    for number in range(args.processes):
        ours, theirs = context.Pipe(duplex=False)
        workers.append(context.Process(target=process, args=(number, args, theirs), daemon=True))
        workers[-1].start()
        theirs.close()
        pipes[ours] = number
    start = time.monotonic()
    try:
        samples, problems = follow(pipes, 60 * args.minutes)
    except KeyboardInterrupt:
        return 130
    finally:
        seconds = time.monotonic() - start
        for worker in workers:
            worker.join(timeout=10)
            if worker.is_alive() and worker.pid:
                os.kill(worker.pid, signal.SIGUSR1)  # shows what its threads do
                time.sleep(1)
                worker.kill()
    done: Counter[str] = Counter()
    worst: dict[str, float] = {}
    for number in range(args.processes):
        own = [s for s in samples if s.process == number]
        if own:
            problems += judge(own, args)
            done.update(own[-1].done)
            worst = {n: max(x, worst.get(n, 0.0)) for n, x in own[-1].worst.items()} | {
                n: x for n, x in worst.items() if n not in own[-1].worst
            }
    print(f"{done['calls'] / seconds:.0f} calls/s for {seconds:.0f} s,", dict(done))
    print("largest errors:", {name: float(f"{x:.2g}") for name, x in sorted(worst.items())})
    for problem in problems:
        print(problem)
    print("failed" if problems else "passed")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
