"""A case of the benchmark: everything about one call except the random numbers in it.

`functions` draws those. Names are safe in file names and in shell globs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MaskKind = Literal["none", "keypad", "dense", "bias"]
BACKWARD = "backward"  # kind of a step of training: only that call is timed
PAGES = "pages"  # kind of keys and values in pages
COLD_BYTES = 256 * 2**20
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Case:
    """One problem: a function, the shape of its arrays, what hides keys.

    Attributes
    ----------
    function : str
        What is called, a name in `functions.FUNCTIONS`.
    kind, number : str, int
        What the function makes of them, in words for a table: `first 16` are global tokens of
        `local_attention`, `top 16` the keys that `attention_topk` is asked for, `pages 16` those
        of a page, `int8 32` the elements that share a scale.
    mask : {"none", "keypad", "dense", "bias"}
        `keypad` is a bool mask ``(B, 1, 1, Lk)`` of random lengths, `dense` a random bool mask
        ``(Lq, Lk)``, `bias` a random float bias ``(1, H, Lq, Lk)``.
    window : tuple of int, optional
        Inclusive ``(left, right)`` bounds beyond the query's own position.
    softcap : float, optional
        Scores are bent to ``softcap * tanh(score / softcap)``.
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
    function: str = "attention"
    kind: str = ""
    number: int = 0
    softcap: float | None = None

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
        """What there is beside shape and window, in words for a table."""
        words = [f"{self.kind} {self.number}" if self.number else self.kind] if self.kind else []
        if self.mask != "none":
            words.append(self.mask)
        if self.causal:
            words.append("causal, end" if self.at_end else "causal")
        if self.softcap is not None:
            words.append(f"softcap {self.softcap:g}")
        return " + ".join(words) or "-"

    @property
    def window_text(self) -> str:
        """The window for a table."""
        return f"{self.window[0]},{self.window[1]}" if self.window else "-"

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return ITEM_BYTES[self.dtype]

    @property
    def compute_dtype(self) -> str:
        """What is computed in: 16-bit elements are widened to float32."""
        return self.dtype if self.itemsize > 2 else "float32"

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
        return self.batch * self.heads * self.q_len * self.k_len * ITEM_BYTES[self.compute_dtype]

    @property
    def input_bytes(self) -> int:
        """Bytes that one process needs for the arrays of this case."""
        rows = self.batch * self.heads * self.q_len * (self.head_dim + self.value_dim)
        extra = self.heads * self.q_len * self.k_len * self.itemsize if self.mask == "bias" else 0
        return rows * self.itemsize + self.kv_bytes * self.kv_sets + extra

    def flops(self, visible_pairs: float) -> float:
        """Floating-point operations of both products over the visible (batch, query, key) pairs."""
        return 2 * self.heads * visible_pairs * (self.head_dim + self.value_dim)


def self_case(name: str, size: str, **fields: object) -> Case:
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


def few_case(
    name: str,
    batch: int,
    heads: str,
    q_len: int,
    k_len: int,
    width: int = 128,
    **fields: object,
) -> Case:
    """A few queries and many keys."""
    query_heads, _, kv_heads = heads.partition("kv")
    return Case(
        name=f"{name}_b{batch}_{heads}_{k_len}x{width}",
        batch=batch,
        heads=int(query_heads),
        kv_heads=int(kv_heads),
        q_len=q_len,
        k_len=k_len,
        head_dim=width,
        value_dim=width,
        **fields,  # type: ignore[arg-type]
    )
