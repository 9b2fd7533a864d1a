"""The cases of the benchmark, as data, in groups; the first group is the default of a run."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from .case import PAGES, Case, few_case, self_case
from .family import family_cases
from .training import training_cases, training_sweep


def _grid() -> tuple[Case, ...]:
    window, causal_window = (256, 256), (256, 0)
    cases = [
        self_case("full", "1x12x512x64"),
        self_case("full", "8x12x128x64"),
        self_case("full", "32x12x128x64"),
        self_case("full", "8x12x512x64"),
        self_case("full", "1x16x2048x64"),
        self_case("full", "1x32x2048x128"),
        self_case("full", "1x8x4096x128"),
        self_case("full", "1x8x8192x64"),
        self_case("full", "1x12x500x40"),
        self_case("full", "1x12x512x80"),
        self_case("float64", "1x16x2048x64", dtype="float64"),
        self_case("causal", "1x16x2048x64", causal=True),
        self_case("causal", "1x32x2048x128", causal=True),
        self_case("causal", "1x8x8192x64", causal=True),
        self_case("causal", "1x32kv8x1024x128", causal=True),
        self_case("keypad", "8x12x512x64", mask="keypad"),
        self_case("keypad", "32x12x128x64", mask="keypad"),
        self_case("densebool", "8x12x512x64", mask="dense"),
        self_case("densebool", "1x16x2048x64", mask="dense"),
        self_case("bias", "8x12x512x64", mask="bias"),
    ]
    for length in (4096, 16384, 65536):
        size = f"1x8x{length}x64"
        cases.append(self_case("window256", size, window=window))
        cases.append(self_case("causalwindow256", size, window=causal_window, causal=True))
    for heads in ("32kv8", "32kv32"):
        for batch in (1, 8):
            for length in (1024, 4096, 16384):
                cases.append(few_case("decode", batch, heads, 1, length, cold=True))
    cases += [
        few_case("fewq16", 1, "32kv8", 16, 4096, causal=True, at_end=True),
        Case("tiny_1x1x1x64_k16", 1, 1, 1, 1, 16, 64, 64),
        self_case("tiny", "1x12x16x64"),
        self_case("tiny", "1x12x64x64"),
    ]
    return tuple(cases)


def _shapes() -> tuple[Case, ...]:
    """Lengths, widths and numbers of heads that are no multiples of a power of two."""
    return (
        self_case("shape", "7x3x1000x64"),
        self_case("shape", "1x3x3000x64"),
        self_case("shape", "2x8x1024x48"),
        self_case("shape", "7x3x1024x72"),
        self_case("shape", "1x16x1024x96"),
        self_case("shape", "7x3x1000x160"),
        self_case("shape", "1x3x2048x192"),
        self_case("shape", "1x8x1024x256"),
        self_case("shape", "1x12x1024x64v128"),
        self_case("shape", "1x12x1024x128v64"),
        self_case("shape", "7x3x1000x96v40"),
        self_case("shape_causal", "1x3x3000x64", causal=True),
        self_case("shape_causal", "7x3x1000x160", causal=True),
        self_case("shape_causal", "1x12x2048x64v128", causal=True),
        self_case("shape_float64", "7x3x1000x64", dtype="float64"),
        self_case("shape_float64", "1x8x1024x96v40", dtype="float64"),
        self_case("shape_float64_causal", "1x3x3000x72", dtype="float64", causal=True),
    )


def _half() -> tuple[Case, ...]:
    """16-bit arrays; the same call in float32 is timed beside each."""
    cases = []
    for dtype in ("float16", "bfloat16"):
        cases += [
            self_case(f"half_{dtype}", size, dtype=dtype)
            for size in ("1x12x512x64", "1x16x2048x64", "1x8x4096x128")
        ]
        cases += [
            few_case(f"half_{dtype}_decode", batch, heads, 1, 4096, cold=True, dtype=dtype)
            for heads in ("32kv8", "32kv32")
            for batch in (1, 8)
        ]
    return tuple(cases)


def _cache() -> tuple[Case, ...]:
    """Decoding and prefill over what caches store; float32 in one array is timed beside each."""
    kinds = {name: (name, 0) for name in ("int8", "float8_e4m3fn", "float8_e5m2")}
    kinds |= {"int8g32": ("int8", 32), "pages16": (PAGES, 16)}
    cases = []
    for name, (kind, number) in kinds.items():
        options: dict[str, Any] = {"function": "stored", "kind": kind, "number": number}
        cases += [
            few_case(f"cache_{name}_decode", 1, heads, 1, 4096, cold=True, **options)
            for heads in ("32kv8", "32kv32")
        ]
        cases += [
            self_case(f"cache_{name}_prefill", size, causal=True, **options)
            for size in ("1x16x2048x64", "1x8x2048x128")
        ]
    return tuple(cases)


def _sweep() -> tuple[Case, ...]:
    """Lengths in powers of two, short ones first: a slow contestant is left out of longer ones."""
    lengths, far = [2**n for n in range(7, 14)], [2**n for n in range(9, 17)]
    return (
        *(self_case("sweep_full", f"1x8x{n}x64") for n in lengths),
        *(self_case("sweep_causal", f"1x8x{n}x64", causal=True) for n in lengths),
        *(self_case("sweep_window256", f"1x8x{n}x64", window=(256, 256)) for n in far),
        *training_sweep(),
    )


CASES: tuple[Case, ...] = _grid()

# By group; names in the groups beyond the first begin with the group's own.
GROUPS: dict[str, tuple[Case, ...]] = {
    "grid": CASES,
    "shape": _shapes(),
    "sweep": _sweep(),
    "half": _half(),
    "cache": _cache(),
    "family": family_cases(),
    "train": training_cases(),
}

# What `--quick` runs, in this order: one of each kind first, in case its time runs out.
QUICK: tuple[str, ...] = (
    "full_1x16x2048x64",
    "causal_1x16x2048x64",
    "window256_1x8x4096x64",
    "decode_b1_32kv8_4096x128",
    "keypad_8x12x512x64",
    "tiny_1x1x1x64_k16",
    "full_8x12x128x64",
    "densebool_8x12x512x64",
    "causal_1x32kv8x1024x128",
    "fewq16_b1_32kv8_4096x128",
    "full_1x12x512x64",
    "tiny_1x12x64x64",
)


def select(patterns: Sequence[str] | None, *, quick: bool = False) -> list[Case]:
    """Choose cases by name or glob, or groups by name.

    Parameters
    ----------
    patterns : sequence of str, optional
        Names of groups, names of cases in any group, globs of those, or comma-separated lists of
        all three; None is every case of the first group.
    quick : bool
        Without patterns, the representative subset in its own order.

    Raises
    ------
    ValueError
        When a pattern matches no case.
    """
    if patterns is None:
        named = {case.name: case for case in CASES}
        return [named[name] for name in QUICK] if quick else list(CASES)
    wanted = [part.strip() for text in patterns for part in text.split(",") if part.strip()]
    known = [(group, case) for group, cases in GROUPS.items() for case in cases]

    def matches(pattern: str, group: str, case: Case) -> bool:
        return pattern == group or fnmatchcase(case.name, pattern)

    for pattern in wanted:
        if not any(matches(pattern, group, case) for group, case in known):
            raise ValueError(
                f"--cases {pattern}: must be a case or group of `attnfast bench --list`"
            )
    return [
        case for group, case in known if any(matches(pattern, group, case) for pattern in wanted)
    ]
