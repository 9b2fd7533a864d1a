"""Two runs compared, with verdicts that allow for the noise of both."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .peers import OWN
from .results import CaseResult, Report

LEAST_NOISE = 0.03  # medians of quiet runs of the same code differ by as much


@dataclass(frozen=True)
class Change:
    """How attnfast changed in one case: `ratio` above 1 is faster now."""

    name: str
    ratio: float
    noise: float

    @property
    def verdict(self) -> str:
        """Faster or slower only where the ratio is outside the noise."""
        if abs(math.log(self.ratio)) <= math.log1p(self.noise):
            return "no difference beyond the noise"
        return "faster" if self.ratio > 1 else "slower"


def compare(old: Report, new: Report) -> list[Change]:
    """Changes of speed beside the machine's limit, for the cases that both runs measured."""
    before = {result.case.name: result for result in old.results}
    changes = []
    for result in new.results:
        earlier = before.get(result.case.name)
        if earlier is None or earlier.case != result.case:
            continue
        was, now = earlier.relative(OWN), result.relative(OWN)
        if was and now:
            changes.append(Change(result.case.name, now / was, _noise(earlier, result)))
    return changes


def _noise(*results: CaseResult) -> float:
    return max(LEAST_NOISE, math.hypot(*(result.entries[OWN].noise for result in results)))


def comparison_lines(old: Report, new: Report, name: str) -> list[str]:
    """The comparison as text, with the differences of machine and settings between the runs."""
    lines = [
        f"compared with {name} (attnfast {old.machine['version']}): share of the limit, now / then;"
        " above 1 is faster"
    ]
    unlike = [
        f"{what} was {before}, now {now}"
        for what, before, now in (
            ("CPU", old.machine["cpu"], new.machine["cpu"]),
            ("instruction set", old.machine["isa"], new.machine["isa"]),
            ("threads", old.settings["threads"], new.settings["threads"]),
        )
        if before != now
    ]
    lines += [f"  warning: {text}" for text in unlike]
    changes = compare(old, new)
    if not changes:
        return [*lines, "  no case in common"]
    width = max(len(change.name) for change in changes)
    lines += [
        f"  {change.name.ljust(width)}  {change.ratio:5.2f}x  noise {100 * change.noise:3.0f} %"
        f"  {change.verdict}"
        for change in changes
    ]
    return lines
