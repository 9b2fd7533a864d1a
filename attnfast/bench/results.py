"""Results of a run, as plain data that is saved as JSON and loaded again."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .case import Case
from .functions import function_of
from .peers import OWN

SCHEMA = 1


@dataclass
class Entry:
    """One contestant in one case.

    `rounds` holds the median time of a call in each round, `samples` the times of all batches of
    calls. `note` says why there is no time, or what is odd about it.
    """

    contestant: str
    variant: str = ""
    rounds: list[float] = field(default_factory=list)
    samples: list[float] = field(default_factory=list)
    error: float | None = None
    wrong: bool = False
    note: str = ""

    @property
    def median(self) -> float | None:
        """Seconds of a call: the median over rounds, None when the contestant has no time."""
        return statistics.median(self.rounds) if self.rounds else None

    def percentile(self, share: float) -> float:
        """A percentile of all samples, interpolated."""
        ordered = sorted(self.samples)
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    @property
    def noise(self) -> float:
        """Half the spread between p10 and p90, relative to the median."""
        median = self.median
        return (self.percentile(0.9) - self.percentile(0.1)) / (2 * median) if median else 0.0


@dataclass
class CaseResult:
    """All contestants in one case, and the limits measured between them.

    `peak` (GFLOP/s) is the best so far in the run, measured again in every round: a property of the
    chip that disturbance only lowers. `bandwidth` (GB/s), measured for cold cases, is the median of
    the rounds: on a shared machine it comes and goes.
    """

    case: Case
    pairs: float
    peak: float
    bandwidth: float | None
    plain_error: float
    entries: dict[str, Entry]

    @property
    def work(self) -> float:
        """What speed counts: pieces of work over visible pairs, or bytes of keys and values."""
        if self.case.cold:
            return float(self.case.kv_bytes)
        return float(function_of(self.case).work(self.case, self.pairs))

    @property
    def unit(self) -> str:
        """Of a billion of it a second."""
        return "GB/s" if self.case.cold else function_of(self.case).unit

    @property
    def limit(self) -> float:
        """The machine's limit for that work, in the same unit per second."""
        return 1e9 * (self.bandwidth if self.case.cold and self.bandwidth else self.peak)

    @property
    def limited(self) -> bool:
        """Whether it is one; if not, it is what speeds of different runs are compared by."""
        return self.case.cold or function_of(self.case).limited

    def speed(self, contestant: str) -> float | None:
        """Work per second, None without a time."""
        entry = self.entries.get(contestant)
        return self.work / entry.median if entry and entry.median else None

    def relative(self, contestant: str) -> float | None:
        """Speed beside what the machine can do."""
        speed = self.speed(contestant)
        return None if speed is None else speed / self.limit

    def share(self, contestant: str) -> float | None:
        """Speed as a share of the limit, None where there is none."""
        return self.relative(contestant) if self.limited else None

    def times_faster(self, than: str, own: str = OWN) -> float | None:
        """How many times faster `own` is."""
        fast, slow = self.entries.get(own), self.entries.get(than)
        if fast is None or slow is None or not fast.median or not slow.median:
            return None
        return slow.median / fast.median


OUT_OF_TIME = "the time limit was reached"  # why a case was not run


@dataclass
class Report:
    """A whole run.

    `one_thread` is the same run on one thread, measured in the same rounds, where both were asked
    for.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    limits: dict[str, float]
    contestants: dict[str, str]
    results: list[CaseResult] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    one_thread: Report | None = None

    @property
    def threads(self) -> int:
        """Threads of every contestant."""
        return int(self.settings["threads"])

    @property
    def runs(self) -> list[Report]:
        """The run on one thread where there is one, and this one."""
        return [self.one_thread, self] if self.one_thread else [self]

    @property
    def wrong(self) -> bool:
        """Whether attnfast gave a wrong result in any case, on any number of threads."""
        return any(result.entries[OWN].wrong for run in self.runs for result in run.results)

    def save(self, path: Path) -> None:
        """Write the run as JSON, with the derived figures beside the measured ones."""
        data = {"schema": SCHEMA, **self._stored()}
        path.write_text(json.dumps(data, indent=1) + "\n")

    def _stored(self) -> dict[str, Any]:
        data = asdict(self)
        for result, stored in zip(self.results, data["results"], strict=True):
            for name, entry in stored["entries"].items():
                entry["median"] = result.entries[name].median
                entry["speed"] = result.speed(name)
                entry["share_of_limit"] = result.share(name)
        data["one_thread"] = self.one_thread._stored() if self.one_thread else None
        return data

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            When the file is not a report of this schema.
        """
        try:
            data = json.loads(path.read_text())
            if data.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            return cls._restored(data)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path}: must be a run saved with --json by this version ({error})"
            ) from error

    @classmethod
    def _restored(cls, data: dict[str, Any]) -> Report:
        data["results"] = [_case_result(stored) for stored in data["results"]]
        if data.get("one_thread") is not None:
            data["one_thread"] = cls._restored(data["one_thread"])
        return cls(**data)


DERIVED = ("median", "speed", "share_of_limit")


def _case_result(stored: dict[str, Any]) -> CaseResult:
    case = dict(stored.pop("case"))
    if case["window"] is not None:
        case["window"] = tuple(case["window"])
    entries = {
        name: Entry(**{key: value for key, value in entry.items() if key not in DERIVED})
        for name, entry in stored.pop("entries").items()
    }
    return CaseResult(case=Case(**case), entries=entries, **stored)
