"""The targets as data: what attnfast is meant to reach in a case, and how far a result is from it.

Most targets are shares of a machine's own measured limits, on one thread as on many. Tiny cases
have a time instead, for all threads together.
"""

from __future__ import annotations

from dataclasses import dataclass

from attnfast.bench.cases import GROUPS
from attnfast.bench.functions.attention import FORWARD, FULL, SINGLE
from attnfast.bench.peers import OWN, PLAIN
from attnfast.bench.results import CaseResult

# With AVX-512, with any other instruction set: those have at most half as many registers.
Values = tuple[float, float]

# Percent of the FMA peak, over visible pairs.
PEAK: dict[str, Values] = {
    "full_8x12x128x64": (80, 74),
    "full_1x12x512x64": (90, 84),
    "full_8x12x512x64": (90, 84),
    "full_1x16x2048x64": (90, 84),
    "full_1x8x8192x64": (90, 84),
    "full_1x32x2048x128": (92, 88),
    "full_1x8x4096x128": (92, 88),
    "float64_1x16x2048x64": (85, 80),
    "causal_1x16x2048x64": (88, 80),
    "causal_1x8x8192x64": (88, 80),
    "causal_1x32x2048x128": (90, 84),
    "keypad_8x12x512x64": (82, 76),
    "keypad_32x12x128x64": (70, 65),
    "densebool_8x12x512x64": (84, 76),
    "densebool_1x16x2048x64": (84, 76),
    "bias_8x12x512x64": (84, 76),
    **{f"window256_1x8x{length}x64": (82, 76) for length in (4096, 16384, 65536)},
    **{f"causalwindow256_1x8x{length}x64": (76, 70) for length in (4096, 16384, 65536)},
    # Forward and backward; of the window, the backward call alone.
    "train_8x12x128x64": (66, 60),
    "train_1x12x512x64": (80, 76),
    "train_1x8x2048x64": (84, 80),
    "train_causal_1x8x2048x64": (80, 75),
    "train_backward_window256_1x8x4096x64": (72, 66),
}

# Percent of the bandwidth of reading memory.
BANDWIDTH: dict[str, Values] = {
    f"decode_b{batch}_{heads}_{length}x128": (92, 88)
    for heads in ("32kv8", "32kv32")
    for batch in (1, 8)
    for length in (1024, 4096, 16384)
}

# Microseconds of a call from Python.
MICROSECONDS: dict[str, Values] = {
    "tiny_1x1x1x64_k16": (2, 2.5),
    "tiny_1x12x16x64": (10, 20),
    "tiny_1x12x64x64": (70, 110),
}

# How many times faster than another contestant of the same run, with any instruction set.
TIMES: dict[str, tuple[float, str]] = {
    "family_additive_8x1x64x256": (20, PLAIN),
    "train_backward_additive_16x1x100x128": (0.25, FORWARD),  # at most 4 forward calls
    **{
        case.name: (0.6, FULL)
        for case in GROUPS["family"]
        if case.function in ("attention_topk", "key_importance")
    },
    **{case.name: (1.9 if case.cold else 0.97, SINGLE) for case in GROUPS["half"]},
}


@dataclass(frozen=True)
class Target:
    """At least a percentage of `limit`, or at most a number of microseconds where that is empty.

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
    column = 0 if isa == "avx512" else 1
    if case_name in PEAK:
        return Target(PEAK[case_name][column], "peak")
    if case_name in BANDWIDTH:
        return Target(BANDWIDTH[case_name][column], "memory")
    if case_name in MICROSECONDS:
        return Target(MICROSECONDS[case_name][column])
    if case_name in TIMES:
        value, than = TIMES[case_name]
        return Target(value, than=than)
    return None
