"""A process that holds one contestant and does as it is told over a pipe.

Requests are pickled tuples ``(operation, *arguments)`` on standard input, answers pickled tuples
``(kind, value)`` on what was standard output. Between requests the process sleeps in a read.
"""

from __future__ import annotations

import gc
import math
import os
import pickle
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from . import machine
from .case import COLD_BYTES, Case
from .functions import Attention, function_of
from .inputs import Inputs, numpy_dtype
from .peers import Contestant, Prepared, Unsupported, build

BATCH_SECONDS = 2e-3  # calls are timed in batches at least this long
LEAD_SECONDS = 5e-3  # untimed calls before a burst, to wake the threads
TRIAL_SECONDS = 0.1  # to choose among variants; a third where there is one
SLOW_SECONDS = 0.5  # a slower first call is trial enough; others may have waited for new threads
SETTLE_SECONDS = 0.2  # at most, for a library's idle threads to stop spinning


@dataclass(frozen=True)
class Trial:
    """What became of one variant: the largest error of its checked rows, or why it cannot run."""

    variant: str
    error: float | None
    right: bool
    note: str = ""


@dataclass(frozen=True)
class Truth:
    """Checked rows in higher precision, and how far plain NumPy is from them."""

    rows: NDArray[Any]
    plain_error: float
    tolerance: float


class Worker:
    """The operations, one method each."""

    def __init__(self, name: str, threads: int) -> None:
        self._contestant: Contestant = build(name, threads)
        self._threads = threads
        self._case: Case
        self._function: Attention
        self._inputs: Inputs
        self._prepared: Prepared | None = None
        self._next = 0
        self._batch = 1
        self._seconds: dict[tuple[str, str], float] = {}  # of a call, by series and variant

    def version(self) -> str:
        """Version of the library."""
        return self._contestant.version

    def facts(self) -> dict[str, Any]:
        """Machine and installation as seen with the contestant loaded."""
        return {**machine.machine_facts(), **machine.installation_facts()}

    def measure(self, what: str, seconds: float) -> float:
        """GFLOP/s of the FMA peak of a dtype, or GB/s of reading memory (`"bandwidth"`)."""
        from . import limits

        if what == "bandwidth":
            return limits.read_bandwidth(self._threads, COLD_BYTES, seconds)
        return limits.fma_peak(self._threads, seconds, what)

    def load(self, case: Case, seed: int) -> None:
        """Draw the inputs of a case, dropping those of the case before."""
        self.unload()
        self._case, self._function = case, function_of(case)
        self._inputs = self._function.draw(case, seed)

    def unload(self) -> None:
        """Give the memory of the current case back."""
        self._prepared = None
        self._inputs = Inputs(np.empty(0), [], [], None, None)
        gc.collect()

    def pairs(self) -> float:
        """Visible (batch, query, key) triples of the loaded case, in the mean over heads."""
        return self._function.visible_pairs(self._case, self._inputs)

    def truth(self) -> Truth:
        """What the loaded case's checked rows should be, and the error a right answer may have.

        The tolerance is ten times the error of the same formula in the precision that the case is
        computed in, rounded to its dtype, plus some units of rounding: computing in a lower
        precision fails it, another order of sums does not.
        """
        case, inputs, exact_rows = self._case, self._inputs, self._function.exact_rows
        sample = self._function.sample(case, inputs)
        dtype = np.dtype(case.compute_dtype)
        higher = np.longdouble if dtype == np.float64 else np.float64
        rows = exact_rows(case, inputs, sample, higher)
        plain = exact_rows(case, inputs, sample, dtype.type)
        rounded = plain.astype(numpy_dtype(case.dtype), copy=False).astype(higher)
        plain_error = float(np.max(np.abs(rounded - rows)))
        rounding = 32 * float(np.finfo(dtype).eps) * float(np.max(np.abs(rows)))
        return Truth(rows, plain_error, 10 * plain_error + rounding)

    def prepare(
        self, truth: Truth, longest: float = math.inf, leave_out: Collection[str] = ()
    ) -> list[Trial]:
        """Try every variant, check it, and keep the fastest right one for `burst`.

        Left out are variants named in `leave_out`, and those of which a call took more than
        `longest` seconds in the case before of the same series. As `burst`, it answers once the
        library's threads are asleep.
        """
        trials: list[Trial] = []
        best = math.inf
        variants = self._contestant.variants(self._case, self._inputs)
        length = TRIAL_SECONDS if len(variants) > 1 else TRIAL_SECONDS / 3
        for name, make in variants.items():
            if note := self._why_not(name, longest, leave_out):
                trials.append(Trial(name, None, False, f"left out, {note}"))
                continue
            trial, prepared, seconds = self._try(name, make, truth, length)
            if trial.right and seconds < best:
                best, self._prepared = seconds, prepared
                trials.insert(0, trial)
            else:
                trials.append(trial)
            del prepared  # its arrays, before the next variant makes its own
        self._batch = max(1, round(BATCH_SECONDS / best)) if best else 1
        self._next = 0
        _settle()
        return trials

    def _why_not(self, variant: str, longest: float, leave_out: Collection[str]) -> str:
        """Why not to try a variant, empty to try it."""
        if variant in leave_out:
            return "takes long to prepare"
        seconds = self._seconds.get((self._case.series, variant), 0.0)
        return f"a smaller case took {seconds:.2g} s" if seconds > longest else ""

    def _try(
        self, name: str, make: Callable[[], Prepared], truth: Truth, length: float
    ) -> tuple[Trial, Prepared | None, float]:
        """Prepare and check a variant; seconds of a call of a right one."""
        try:
            prepared = make()
            start = time.perf_counter()
            result = prepared.calls[0]()
            seconds = time.perf_counter() - start
            allowed = truth.tolerance + prepared.tolerance
            trial = self._check(name, prepared.output(result), truth.rows, allowed)
        except Exception as error:  # a library may raise anything for a case it cannot run
            return Trial(name, None, False, _reason(error)), None, math.inf
        del result
        if trial.right and seconds <= SLOW_SECONDS:
            seconds = _seconds_per_call(prepared.calls, length)
        self._seconds[self._case.series, name] = seconds
        return trial, prepared, seconds

    def _check(self, name: str, output: Any, exact: NDArray[Any], allowed: float) -> Trial:
        sample = self._function.sample(self._case, self._inputs)
        try:
            rows = self._function.take_rows(self._case, self._inputs, sample, output)
        except ValueError as refusal:
            return Trial(name, None, False, str(refusal))
        error = float(np.max(np.abs(rows.astype(exact.dtype) - exact)))
        if error <= allowed:
            return Trial(name, error, True)
        note = f"error {error:.1e}, more than the {allowed:.1e} of a right result"
        return Trial(name, error, False, note)

    def burst(self, seconds: float) -> list[float]:
        """Run for at least `seconds`; the time per call of each batch of calls.

        Answers once the library's threads are asleep, so that they do not disturb the next one.
        """
        assert self._prepared is not None
        times = self._timed(self._prepared.calls, seconds)
        _settle()
        return times

    def _timed(self, calls: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
        times = []
        if self._batch > 1:
            lead = time.perf_counter() + LEAD_SECONDS
            while time.perf_counter() < lead:
                self._rotate(calls)()
        start = time.perf_counter()
        while True:
            chosen = [self._rotate(calls) for _ in range(self._batch)]
            before = time.perf_counter()
            for call in chosen:
                call()
            after = time.perf_counter()
            times.append((after - before) / self._batch)
            if after - start >= seconds:
                return times

    def _rotate(self, calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
        self._next = (self._next + 1) % len(calls)
        return calls[self._next]


def _settle() -> None:
    """Wait until this process uses next to no processor time."""
    give_up = time.perf_counter() + SETTLE_SECONDS
    while time.perf_counter() < give_up:
        before = time.process_time()
        time.sleep(5e-3)
        if time.process_time() - before < 1e-3:
            return


def _seconds_per_call(calls: Sequence[Callable[[], Any]], length: float) -> float:
    """The fastest of some seconds of calls, after one that the check has already made.

    They rotate as those that are timed: keys that come from memory do so here too.
    """
    best, start = math.inf, time.perf_counter()
    for call in cycle(calls):
        before = time.perf_counter()
        if before - start >= length:
            break
        call()
        best = min(best, time.perf_counter() - before)
    return best


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, (Unsupported, MemoryError)) and text:
        return text
    return f"{type(error).__name__}: {text}"[:200]


def serve(requests: BinaryIO, answers: BinaryIO, name: str, threads: int) -> None:
    """Answer requests until the pipe closes."""

    def answer(kind: str, value: object) -> None:
        pickle.dump((kind, value), answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()

    try:
        worker = Worker(name, threads)
    except Exception as error:  # an installed library may still fail to load
        answer("error", _reason(error))
        return
    answer("ok", worker.version())
    while True:
        try:
            operation, *arguments = pickle.load(requests)
        except EOFError:
            return
        gc.disable()
        try:
            answer("ok", getattr(worker, operation)(*arguments))
        except Exception as error:
            answer("error", _reason(error))
        finally:
            gc.enable()


def main(name: str, threads: int) -> None:
    """Entry of the process: standard output becomes the pipe, prints go to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        serve(sys.stdin.buffer, answers, name, threads)
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(1)
