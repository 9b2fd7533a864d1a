"""The named problems of the benchmark, as data.

A case says everything about one attention call except the random numbers in it; `inputs.py`
draws those. Names are safe in file names and in shell globs. The cases stand in groups, of which
a run without names takes the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

MaskKind = Literal["none", "keypad", "dense", "bias"]


@dataclass(frozen=True)
class Case:
    """One attention problem.

    Attributes
    ----------
    mask : {"none", "keypad", "dense", "bias"}
        `keypad` is a bool mask ``(B, 1, 1, Lk)`` of random lengths, `dense` a random bool mask
        ``(Lq, Lk)``, `bias` a random float bias ``(1, H, Lq, Lk)``.
    window : tuple of int, optional
        Inclusive ``(left, right)`` bounds beyond the query's own position.
    at_end : bool
        The last query stands at the last key (``q_offset="end"``) instead of query 0 at key 0.
    cold : bool
        Keys and values come from memory, not from cache: calls rotate over several sets of them,
        and speed is counted in bytes of keys and values read once.
    """

    name: str
    batch: int
    heads: int
    kv_heads: int
    q_len: int
    k_len: int
    head_dim: int
    value_dim: int
    mask: MaskKind = "none"
    causal: bool = False
    window: tuple[int, int] | None = None
    at_end: bool = False
    cold: bool = False
    dtype: str = "float32"

    @property
    def series(self) -> str:
        """The name without its size: what cases of growing size have in common."""
        return self.name.rpartition("_")[0]

    @property
    def shape(self) -> str:
        """B x H[/Hk] x L x D, with Lq/Lk and D/Dv where they differ."""

        def pair(first: int, second: int) -> str:
            return f"{first}" if first == second else f"{first}/{second}"

        return "x".join(
            (
                f"{self.batch}",
                pair(self.heads, self.kv_heads),
                pair(self.q_len, self.k_len),
                pair(self.head_dim, self.value_dim),
            )
        )

    @property
    def mask_text(self) -> str:
        """What hides keys apart from the window, in words for a table."""
        words: list[str] = [] if self.mask == "none" else [self.mask]
        if self.causal:
            words.append("causal, end" if self.at_end else "causal")
        return " + ".join(words) or "-"

    @property
    def window_text(self) -> str:
        """The window for a table."""
        return f"{self.window[0]},{self.window[1]}" if self.window else "-"

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return 8 if self.dtype == "float64" else 4

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values of one call, each read once."""
        width = self.head_dim + self.value_dim
        return self.batch * self.kv_heads * self.k_len * width * self.itemsize

    @property
    def kv_sets(self) -> int:
        """How many sets of keys and values the calls rotate over."""
        return -(-COLD_BYTES // self.kv_bytes) if self.cold else 1

    @property
    def score_bytes(self) -> int:
        """Bytes of one (B, H, Lq, Lk) array, which plain implementations allocate."""
        return self.batch * self.heads * self.q_len * self.k_len * self.itemsize

    @property
    def input_bytes(self) -> int:
        """Bytes that one process needs for the arrays of this case."""
        rows = self.batch * self.heads * self.q_len * (self.head_dim + self.value_dim)
        extra = self.heads * self.q_len * self.k_len * self.itemsize if self.mask == "bias" else 0
        return rows * self.itemsize + self.kv_bytes * self.kv_sets + extra

    def flops(self, visible_pairs: int) -> int:
        """Floating-point operations of both products over the visible (batch, query, key) pairs."""
        return 2 * self.heads * visible_pairs * (self.head_dim + self.value_dim)


COLD_BYTES = 256 * 2**20


def _self(name: str, size: str, **fields: object) -> Case:
    """A self-attention case named `name_size`; size is B x H[kvHk] x L x D[vDv]."""
    batch, heads, length, widths = size.split("x")
    query_heads, _, kv_heads = heads.partition("kv")
    width, _, value_width = widths.partition("v")
    return Case(
        name=f"{name}_{size}",
        batch=int(batch),
        heads=int(query_heads),
        kv_heads=int(kv_heads or query_heads),
        q_len=int(length),
        k_len=int(length),
        head_dim=int(width),
        value_dim=int(value_width or width),
        **fields,  # type: ignore[arg-type]
    )


def _few(name: str, batch: int, heads: str, q_len: int, k_len: int, **fields: object) -> Case:
    """A few queries at the end of many keys, D = 128."""
    query_heads, _, kv_heads = heads.partition("kv")
    return Case(
        name=f"{name}_b{batch}_{heads}_{k_len}x128",
        batch=batch,
        heads=int(query_heads),
        kv_heads=int(kv_heads),
        q_len=q_len,
        k_len=k_len,
        head_dim=128,
        value_dim=128,
        **fields,  # type: ignore[arg-type]
    )


def _grid() -> tuple[Case, ...]:
    window, causal_window = (256, 256), (256, 0)
    cases = [
        _self("full", "1x12x512x64"),
        _self("full", "8x12x128x64"),
        _self("full", "32x12x128x64"),
        _self("full", "8x12x512x64"),
        _self("full", "1x16x2048x64"),
        _self("full", "1x32x2048x128"),
        _self("full", "1x8x4096x128"),
        _self("full", "1x8x8192x64"),
        _self("full", "1x12x500x40"),
        _self("full", "1x12x512x80"),
        _self("float64", "1x16x2048x64", dtype="float64"),
        _self("causal", "1x16x2048x64", causal=True),
        _self("causal", "1x32x2048x128", causal=True),
        _self("causal", "1x8x8192x64", causal=True),
        _self("causal", "1x32kv8x1024x128", causal=True),
        _self("keypad", "8x12x512x64", mask="keypad"),
        _self("keypad", "32x12x128x64", mask="keypad"),
        _self("densebool", "8x12x512x64", mask="dense"),
        _self("densebool", "1x16x2048x64", mask="dense"),
        _self("bias", "8x12x512x64", mask="bias"),
    ]
    for length in (4096, 16384, 65536):
        size = f"1x8x{length}x64"
        cases.append(_self("window256", size, window=window))
        cases.append(_self("causalwindow256", size, window=causal_window, causal=True))
    for heads in ("32kv8", "32kv32"):
        for batch in (1, 8):
            for length in (1024, 4096, 16384):
                cases.append(_few("decode", batch, heads, 1, length, cold=True))
    cases += [
        _few("fewq16", 1, "32kv8", 16, 4096, causal=True, at_end=True),
        Case("tiny_1x1x1x64_k16", 1, 1, 1, 1, 16, 64, 64),
        _self("tiny", "1x12x16x64"),
        _self("tiny", "1x12x64x64"),
    ]
    return tuple(cases)


def _shapes() -> tuple[Case, ...]:
    """Lengths, widths and numbers of heads that are no multiples of a power of two."""
    return (
        _self("shape", "7x3x1000x64"),
        _self("shape", "1x3x3000x64"),
        _self("shape", "2x8x1024x48"),
        _self("shape", "7x3x1024x72"),
        _self("shape", "1x16x1024x96"),
        _self("shape", "7x3x1000x160"),
        _self("shape", "1x3x2048x192"),
        _self("shape", "1x8x1024x256"),
        _self("shape", "1x12x1024x64v128"),
        _self("shape", "1x12x1024x128v64"),
        _self("shape", "7x3x1000x96v40"),
        _self("shape_causal", "1x3x3000x64", causal=True),
        _self("shape_causal", "7x3x1000x160", causal=True),
        _self("shape_causal", "1x12x2048x64v128", causal=True),
        _self("shape_float64", "7x3x1000x64", dtype="float64"),
        _self("shape_float64", "1x8x1024x96v40", dtype="float64"),
        _self("shape_float64_causal", "1x3x3000x72", dtype="float64", causal=True),
    )


def _sweep() -> tuple[Case, ...]:
    """Lengths in powers of two, short ones first: a slow contestant is left out of longer ones."""
    lengths, far = [2**n for n in range(7, 14)], [2**n for n in range(9, 17)]
    return (
        *(_self("sweep_full", f"1x8x{n}x64") for n in lengths),
        *(_self("sweep_causal", f"1x8x{n}x64", causal=True) for n in lengths),
        *(_self("sweep_window256", f"1x8x{n}x64", window=(256, 256)) for n in far),
    )


CASES: tuple[Case, ...] = _grid()

# By group; names in the groups beyond the first begin with the group's own.
GROUPS: dict[str, tuple[Case, ...]] = {"grid": CASES, "shape": _shapes(), "sweep": _sweep()}

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
    """Choose cases by name or glob.

    Parameters
    ----------
    patterns : sequence of str, optional
        Names, globs, or comma-separated lists of both, of cases in any group; None is every case
        of the first group.
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
    known = [case for group in GROUPS.values() for case in group]
    for pattern in wanted:
        if not any(fnmatchcase(case.name, pattern) for case in known):
            raise ValueError(f"no case matches {pattern!r}; `attnfast bench --list` names them all")
    return [case for case in known if any(fnmatchcase(case.name, p) for p in wanted)]
