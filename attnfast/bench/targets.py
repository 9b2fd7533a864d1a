"""What attnfast is meant to reach in a case, as data, and whether a run has reached it.

Targets are shares of a machine's own measured limits, so they hold for any machine and for one
thread as for many. Tiny cases have a time instead, which holds for all threads together.
"""

from __future__ import annotations

from dataclasses import dataclass

from .family import family_cases
from .functions.attention import FULL
from .peers import OWN, PLAIN
from .results import CaseResult

# Percent of the FMA peak, over visible pairs.
PEAK: dict[str, float] = {
    "full_1x12x512x64": 86,
    "full_8x12x128x64": 78,
    "full_32x12x128x64": 78,
    "full_1x16x2048x64": 90,
    "full_1x32x2048x128": 92,
    "full_1x8x4096x128": 92,
    "full_1x8x8192x64": 90,
    "full_1x12x500x40": 75,
    "full_1x12x512x80": 80,
    "float64_1x16x2048x64": 85,
    "causal_1x16x2048x64": 85,
    "causal_1x32x2048x128": 87,
    "causal_1x8x8192x64": 88,
    "causal_1x32kv8x1024x128": 84,
    "keypad_8x12x512x64": 80,
    "keypad_32x12x128x64": 65,
    "densebool_8x12x512x64": 80,
    "densebool_1x16x2048x64": 84,
    "bias_8x12x512x64": 80,
    "window256_1x8x4096x64": 82,
    "window256_1x8x16384x64": 82,
    "window256_1x8x65536x64": 82,
    "causalwindow256_1x8x4096x64": 75,
    "causalwindow256_1x8x16384x64": 75,
    "causalwindow256_1x8x65536x64": 75,
    "fewq16_b1_32kv8_4096x128": 70,
}

# Percent of the bandwidth of reading memory.
BANDWIDTH: dict[str, float] = {
    f"decode_b{batch}_{heads}_{length}x128": 90
    for heads in ("32kv8", "32kv32")
    for batch in (1, 8)
    for length in (1024, 4096, 16384)
}

# Microseconds of a call from Python.
MICROSECONDS: dict[str, float] = {
    "tiny_1x1x1x64_k16": 2.5,
    "tiny_1x12x16x64": 10,
    "tiny_1x12x64x64": 70,
}

# How many times faster than another contestant of the same run.
TIMES: dict[str, tuple[float, str]] = {
    "family_additive_8x1x64x256": (20, PLAIN),
    **{
        case.name: (0.6, FULL)
        for case in family_cases()
        if case.function in ("attention_topk", "key_importance")
    },
}

AVX2_ALLOWANCE = 5.0  # points less of the FMA peak with half as many registers


@dataclass(frozen=True)
class Target:
    """A least percentage of `limit`, or a most number of microseconds where that is empty.

    Where `than` names another contestant, the target is to be so many times faster.
    """

    value: float
    limit: str = ""
    than: str = ""

    @property
    def unit(self) -> str:
        """Of the value, and of what is short of it."""
        if self.than:
            return "x"
        return "%" if self.limit else "us"

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit} {self.limit or self.than}".rstrip()

    def figure(self, result: CaseResult, contestant: str = OWN) -> float | None:
        """What a contestant has reached, in the unit of the target."""
        if self.than:
            return result.times_faster(self.than, contestant)
        if self.limit:
            share = result.share(contestant)
            return None if share is None else 100 * share
        median = result.entries[contestant].median if contestant in result.entries else None
        return None if median is None else 1e6 * median

    def missing(self, result: CaseResult) -> float | None:
        """How much attnfast is short of the target, as far as figures are shown; None unmeasured.

        Zero where the target is reached.
        """
        figure = self.figure(result)
        if figure is None:
            return None
        if self.unit == "us":
            short = round(figure - self.value, 2)
        else:
            short = round(self.value - figure, 1 if self.limit else 2)
        return max(0.0, short)


def target_of(case_name: str, isa: str) -> Target | None:
    """The target of a case with an instruction set, None where there is none."""
    if case_name in PEAK:
        allowance = AVX2_ALLOWANCE if isa == "avx2" else 0.0
        return Target(PEAK[case_name] - allowance, "peak")
    if case_name in BANDWIDTH:
        return Target(BANDWIDTH[case_name], "memory")
    if case_name in TIMES:
        value, than = TIMES[case_name]
        return Target(value, than=than)
    return Target(MICROSECONDS[case_name]) if case_name in MICROSECONDS else None
