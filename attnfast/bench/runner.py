"""Runs a case: every contestant in turn in short bursts, in rounds, the limits measured between.

Absolute times on shared machines mean little, so what is compared is measured within seconds of
each other. A contestant whose checked rows are wrong gets no time. `turns.py` runs several cases.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from .case import Case
from .functions import function_of
from .machine import available_memory
from .peers import CONTESTANTS, HOUSE, OWN, PLAIN, YARDSTICKS
from .processes import WorkerFailed, WorkerProcess
from .results import OUT_OF_TIME, CaseResult, Entry, Report
from .worker import Trial, Truth

LIMIT_SECONDS = 0.05
START_TIMEOUT = 120.0
CALL_TIMEOUT = 300.0
MEMORY_SHARE = 0.7


@dataclass(frozen=True)
class Settings:
    """How a run is made.

    `patience` is how many seconds of bursts a slow contestant gets in one case beyond its first;
    `time_limit` is shared out among the cases: a slow one loses rounds, and those not begun by the
    end are listed as not run. `others` are the contestants beside attnfast, in the order of the
    table. `leave_out` names variants that are not tried; of another library, neither is a variant
    of which a call took more than `longest_call` seconds in a smaller case of the same series.
    """

    threads: int
    rounds: int = 5
    burst: float = 0.12
    patience: float = 8.0
    time_limit: float = math.inf
    isa: str | None = None
    seed: int = 1
    others: tuple[str, ...] = (PLAIN,)
    leave_out: tuple[str, ...] = ()
    longest_call: float = math.inf


@dataclass
class CaseRun:
    """A case under way: what is known before its rounds, and what they have brought so far."""

    case: Case
    pairs: float
    plain_error: float
    entries: dict[str, Entry]
    active: list[str]
    spent: dict[str, float]
    bandwidths: list[float] = field(default_factory=list)


class Runner:
    """Owns the worker processes of a run with one number of threads; a context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._names = (OWN, *settings.others)
        self._workers: dict[str, WorkerProcess] = {}
        self._gone: dict[str, str] = {}
        self._end = time.monotonic() + settings.time_limit
        self._peaks: dict[str, float] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Runner:
        with ExitStack() as stack:
            for name in self._names:
                self._workers[name] = self._spawn(name)
                stack.callback(self._close, name)
            for name in self._names:
                try:
                    self._workers[name].wait_ready(START_TIMEOUT)
                except WorkerFailed as error:
                    if name in HOUSE:
                        raise
                    self._gone[name] = str(error)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def _close(self, name: str) -> None:
        self._workers[name].close()

    def _spawn(self, name: str) -> WorkerProcess:
        return WorkerProcess(name, self._settings.threads, self._settings.isa)

    def new_report(self) -> Report:
        """Facts of the machine and its limits, no results yet."""
        for _ in range(3):
            for dtype in ("float32", "float64"):
                self._measure_peak(dtype)
        limits = {f"fma_{dtype}": peak for dtype, peak in self._peaks.items()}
        own = self._workers[OWN]
        limits["bandwidth"] = own.call("measure", "bandwidth", 4 * LIMIT_SECONDS)
        versions = {
            name: self._gone.get(name) or self._workers[name].version for name in self._names
        }
        return Report(own.call("facts"), _stored(self._settings), limits, versions)

    @property
    def rounds(self) -> int:
        """How many rounds a case has, if its time allows."""
        return self._settings.rounds

    @property
    def seconds_left(self) -> float:
        """Until the time limit of the run."""
        return self._end - time.monotonic()

    def begin(self, case: Case, tell: Callable[[float, str], None]) -> CaseRun:
        """Draw the inputs of a case and let every contestant prepare for it.

        Raises
        ------
        WorkerFailed
            When the case cannot be run at all.
        """
        entries = {name: Entry(name, note=self._gone.get(name, "")) for name in self._names}
        active = self._load(case, entries, tell)
        if not active:
            raise WorkerFailed(f"no contestant could draw its inputs: {entries[OWN].note}")
        base = PLAIN if PLAIN in active else active[0]
        truth: Truth = self._workers[base].call("truth", timeout=CALL_TIMEOUT)
        pairs = float(self._workers[base].call("pairs", timeout=CALL_TIMEOUT))
        for name in list(active):
            if name not in HOUSE and self.seconds_left < 0:
                entries[name].note = OUT_OF_TIME
                active.remove(name)
                continue
            tell(0.1, f"{name} prepares")
            if not self._prepare(name, truth, entries[name]):
                active.remove(name)
        spent = dict.fromkeys(active, 0.0)
        return CaseRun(case, pairs, truth.plain_error, entries, active, spent)

    def end(self, run: CaseRun) -> CaseResult:
        """Give the memory of a case back; what its rounds have measured."""
        for name in self._names:
            self._ask(name, run.entries[name], "unload")
        bandwidth = statistics.median(run.bandwidths) if run.bandwidths else None
        peak = self._peaks[run.case.compute_dtype]
        return CaseResult(run.case, run.pairs, peak, bandwidth, run.plain_error, run.entries)

    def _measure_peak(self, dtype: str) -> None:
        """Keep the best FMA rate of the run: disturbance only ever lowers it."""
        rate = float(self._workers[OWN].call("measure", dtype, LIMIT_SECONDS))
        self._peaks[dtype] = max(rate, self._peaks.get(dtype, 0.0))

    def _load(
        self, case: Case, entries: dict[str, Entry], tell: Callable[[float, str], None]
    ) -> list[str]:
        """Draw the inputs in all processes at once, leaving out those without room in memory.

        A yardstick draws those of its own case, where the function has one for it.
        """
        yardsticks = function_of(case).yardsticks(case)
        room = MEMORY_SHARE * available_memory()
        active = []
        for name in self._names:
            if name in self._gone or (name in YARDSTICKS and name not in yardsticks):
                continue
            if case.function not in CONTESTANTS[name].functions:
                entries[name].note = "does not have this function"
                continue
            needed = CONTESTANTS[name].copies * case.input_bytes
            if needed > room and name != OWN:
                entries[
                    name
                ].note = f"not enough memory for another {needed / 1e9:.1f} GB of inputs"
                continue
            room -= needed
            if not self._workers[name].alive:
                self._workers[name].close()
                self._workers[name] = self._spawn(name)
                self._workers[name].wait_ready(START_TIMEOUT)
            self._workers[name].send("load", yardsticks.get(name, case), self._settings.seed)
            active.append(name)
        tell(0.0, "drawing inputs")
        for name in list(active):
            try:
                self._workers[name].receive(CALL_TIMEOUT)
            except WorkerFailed as error:
                entries[name].note = str(error)
                active.remove(name)
        return active

    def _ask(self, name: str, entry: Entry, operation: str, *arguments: object) -> Any:
        """Call a worker; a failure becomes the entry's note."""
        if name in self._gone or not self._workers[name].alive:
            return None
        try:
            return self._workers[name].call(operation, *arguments, timeout=CALL_TIMEOUT)
        except WorkerFailed as error:
            entry.note = entry.note or str(error)
            return None

    def _prepare(self, name: str, truth: Truth, entry: Entry) -> bool:
        """Let the worker choose its variant; whether it has a right answer to time.

        A yardstick is held against the truth of its own case.
        """
        if name in YARDSTICKS:
            own_truth: Truth | None = self._ask(name, entry, "truth")
            if own_truth is None:
                return False
            truth = own_truth
        longest = math.inf if name == OWN else self._settings.longest_call
        leave_out = self._settings.leave_out
        trials: list[Trial] | None = self._ask(name, entry, "prepare", truth, longest, leave_out)
        if trials is None:
            return False
        if not trials:
            entry.note = "does not support this case"
            return False
        chosen = next((trial for trial in trials if trial.right), trials[0])
        entry.variant, entry.error = chosen.variant, chosen.error
        entry.wrong = not chosen.right and any(trial.error is not None for trial in trials)
        entry.note = "; ".join(
            f"{trial.variant}: {trial.note}" for trial in trials if not trial.right
        )
        return chosen.right

    def round(self, run: CaseRun, turn: int, tell: Callable[[float, str], None]) -> None:
        """A burst of every contestant, the machine's limits first."""
        self._measure_peak(run.case.compute_dtype)
        if run.case.cold:
            rate = self._workers[OWN].call("measure", "bandwidth", 2 * LIMIT_SECONDS)
            run.bandwidths.append(float(rate))
        first = turn % max(1, len(run.active))
        for name in run.active[first:] + run.active[:first]:
            entry = run.entries[name]
            if run.spent[name] > self._settings.patience and name != OWN:
                continue
            if name not in HOUSE and self.seconds_left < 0:
                if not entry.rounds:
                    entry.note = OUT_OF_TIME
                continue
            tell(0.2 + 0.8 * turn / self.rounds, f"round {turn + 1}, {name}")
            before = time.monotonic()
            times = self._ask(name, entry, "burst", self._settings.burst)
            run.spent[name] += time.monotonic() - before
            if times:
                entry.rounds.append(statistics.median(times))
                entry.samples += times


def _stored(settings: Settings) -> dict[str, Any]:
    """Settings as JSON has them: no tuples, None for no limit."""
    stored = asdict(settings)
    for name, value in stored.items():
        if isinstance(value, tuple):
            stored[name] = list(value)
        elif value == math.inf:
            stored[name] = None
    return stored
