"""Runs cases: every contestant in turn in short bursts, in rounds, the limits measured between.

Absolute times on shared machines mean little, so what is compared is measured within seconds of
each other. A contestant whose checked rows are wrong gets no time.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from .cases import Case
from .machine import available_memory
from .peers import CONTESTANTS, OWN, PLAIN
from .processes import WorkerFailed, WorkerProcess
from .progress import Progress
from .results import CaseResult, Entry, Report
from .worker import Trial, Truth

LIMIT_SECONDS = 0.05
START_TIMEOUT = 120.0
CALL_TIMEOUT = 300.0
MEMORY_SHARE = 0.7
OUT_OF_TIME = "the time limit was reached"


@dataclass(frozen=True)
class Settings:
    """How a run is made.

    `patience` is how many seconds of bursts a slow contestant gets in one case beyond its first;
    `time_limit` is shared out among the cases: a slow one loses rounds, and those not begun by the
    end are listed as not run.
    """

    threads: int
    rounds: int = 5
    burst: float = 0.12
    patience: float = 8.0
    time_limit: float = math.inf
    isa: str | None = None
    seed: int = 1
    peers: tuple[str, ...] = ()


class Runner:
    """Owns the worker processes of a run; a context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._names = (OWN, PLAIN, *settings.peers)
        self._workers: dict[str, WorkerProcess] = {}
        self._gone: dict[str, str] = {}
        self._end = time.monotonic() + settings.time_limit
        self._case_end = self._end
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
                    if name in (OWN, PLAIN):
                        raise
                    self._gone[name] = str(error)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
        settings = {**asdict(self._settings), "peers": list(self._settings.peers)}
        if math.isinf(self._settings.time_limit):
            settings["time_limit"] = None  # JSON has no infinity
        return Report(own.call("facts"), settings, limits, versions)

    def run(
        self,
        cases: Sequence[Case],
        report: Report,
        progress: Progress,
        finished: Callable[[CaseResult], None],
    ) -> None:
        """Run the cases in order, adding each to `report` as it finishes."""
        for number, case in enumerate(cases):
            left = self._end - time.monotonic()
            if left <= 0:
                report.not_run[case.name] = OUT_OF_TIME
                continue
            self._case_end = time.monotonic() + left / (len(cases) - number)

            def tell(share: float, text: str, number: int = number, case: Case = case) -> None:
                progress.step(number + share, f"{case.name}: {text}")

            try:
                result = self._run_case(case, tell)
            except WorkerFailed as error:
                report.not_run[case.name] = str(error)
                continue
            report.results.append(result)
            finished(result)

    def _run_case(self, case: Case, tell: Callable[[float, str], None]) -> CaseResult:
        entries = {name: Entry(name, note=self._gone.get(name, "")) for name in self._names}
        active = self._load(case, entries, tell)
        if not active:
            raise WorkerFailed("no contestant could draw its inputs")
        base = PLAIN if PLAIN in active else active[0]
        truth: Truth = self._workers[base].call("truth", timeout=CALL_TIMEOUT)
        pairs = int(self._workers[base].call("pairs", timeout=CALL_TIMEOUT))
        for name in list(active):
            if name not in (OWN, PLAIN) and time.monotonic() > self._end:
                entries[name].note = OUT_OF_TIME
                active.remove(name)
                continue
            tell(0.1, f"{name} prepares")
            if not self._prepare(name, truth, entries[name]):
                active.remove(name)
        bandwidths = self._rounds(case, active, entries, tell)
        for name in self._names:
            self._ask(name, entries[name], "unload")
        bandwidth = statistics.median(bandwidths) if bandwidths else None
        peak = self._peaks[case.dtype]
        return CaseResult(case, pairs, peak, bandwidth, truth.plain_error, entries)

    def _measure_peak(self, dtype: str) -> None:
        """Keep the best FMA rate of the run: disturbance only ever lowers it."""
        rate = float(self._workers[OWN].call("measure", dtype, LIMIT_SECONDS))
        self._peaks[dtype] = max(rate, self._peaks.get(dtype, 0.0))

    def _load(
        self, case: Case, entries: dict[str, Entry], tell: Callable[[float, str], None]
    ) -> list[str]:
        """Draw the inputs in all processes at once, leaving out those without room in memory."""
        room = MEMORY_SHARE * available_memory()
        active = []
        for name in self._names:
            if name in self._gone:
                continue
            needed = CONTESTANTS[name].copies * case.input_bytes
            if needed > room and name != OWN:
                entries[name].note = f"no memory for {needed / 1e9:.1f} GB more of inputs"
                continue
            room -= needed
            if not self._workers[name].alive:
                self._workers[name].close()
                self._workers[name] = self._spawn(name)
                self._workers[name].wait_ready(START_TIMEOUT)
            self._workers[name].send("load", case, self._settings.seed)
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
        """Let the worker choose its variant; whether it has a right answer to time."""
        trials: list[Trial] | None = self._ask(name, entry, "prepare", truth)
        if trials is None:
            return False
        if not trials:
            entry.note = "cannot express this case"
            return False
        chosen = next((trial for trial in trials if trial.right), trials[0])
        entry.variant, entry.error = chosen.variant, chosen.error
        entry.wrong = not chosen.right and any(trial.error is not None for trial in trials)
        entry.note = "; ".join(
            f"{trial.variant}: {trial.note}" for trial in trials if not trial.right
        )
        return chosen.right

    def _rounds(
        self,
        case: Case,
        active: list[str],
        entries: dict[str, Entry],
        tell: Callable[[float, str], None],
    ) -> list[float]:
        """Bursts of every contestant in turn; the memory bandwidths measured on the way."""
        bandwidths: list[float] = []
        spent = dict.fromkeys(active, 0.0)
        for turn in range(self._settings.rounds):
            if turn and time.monotonic() > self._case_end:
                break
            self._measure_peak(case.dtype)
            if case.cold:
                rate = self._workers[OWN].call("measure", "bandwidth", 2 * LIMIT_SECONDS)
                bandwidths.append(float(rate))
            first = turn % max(1, len(active))
            for name in active[first:] + active[:first]:
                if spent[name] > self._settings.patience and name != OWN:
                    continue
                if name not in (OWN, PLAIN) and time.monotonic() > self._end:
                    if not entries[name].rounds:
                        entries[name].note = OUT_OF_TIME
                    continue
                tell(0.2 + 0.8 * turn / self._settings.rounds, f"round {turn + 1}, {name}")
                before = time.monotonic()
                times = self._ask(name, entries[name], "burst", self._settings.burst)
                spent[name] += time.monotonic() - before
                if times:
                    entries[name].rounds.append(statistics.median(times))
                    entries[name].samples += times
        return bandwidths
