"""Draw calls at random and look for one at which NumPy or PyTorch is faster than attnfast.

    OPENBLAS_NUM_THREADS=1 python bench/search.py --minutes 60
    OPENBLAS_NUM_THREADS=1 python bench/search.py --seed 7 --first 123 --calls 1   # that call again

One thread, contestants in turns in one process, so that a ratio stands whatever else the machine
does. A call that looks slow is timed twice more, each time longer; it is printed where all three
say that something else is faster by more than 5 %. The exit status is 1 if there is such a call.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import attnfast
from contest import Call, check_same, fused_torch, plain, take_turns

LEAST = 0.95
MOST_FLOPS, MOST_NUMBERS = 4e8, 2e7  # a call takes some 5 ms at most, an array 80 MB
ROUNDS = (5, 15, 41)
LAYOUTS = {
    "BHLD": (0, 1, 2, 3),
    "BLHD": (0, 2, 1, 3),  # memory order of the axes B, H, L, D
    "BHDL": (0, 1, 3, 2),
    "LBHD": (2, 0, 1, 3),
}


@dataclass(frozen=True)
class Drawn:
    """A call: its shape, how its arrays lie in memory, what hides keys."""

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    k_len: int
    width: int
    value_width: int
    dtype: str
    layout: str
    hides: str

    @property
    def flops(self) -> float:
        """Operations over all pairs."""
        pairs = self.batch * self.heads * self.q_len * self.k_len
        return 2.0 * pairs * (self.width + self.value_width)

    @property
    def numbers(self) -> int:
        """Of the largest array: keys, or the scores that NumPy keeps."""
        keys = self.batch * self.kv_heads * self.k_len * max(self.width, self.value_width)
        return max(keys, self.batch * self.heads * self.q_len * self.k_len)


def _length(rng: np.random.Generator, most: int) -> int:
    """A length that is often small, often a power of two, or just beyond one."""
    length = int(np.exp(rng.uniform(0, np.log(most))))
    if rng.random() < 0.4:
        length = 1 << int(np.log2(length))
        length += int(rng.integers(-1, 2)) if rng.random() < 0.3 else 0
    return max(1, length)


def draw(rng: np.random.Generator) -> Drawn:
    """Draw a call that is neither huge nor empty."""
    while True:
        kv_heads = int(rng.choice([1, 1, 2, 4, 8, 12]))
        group = int(rng.choice([1, 1, 1, 2, 4, 7]))
        width = int(rng.choice([16, 32, 40, 64, 64, 64, 80, 96, 128, 128, 192, 256, 512]))
        same = rng.random() < 0.8
        q_len = 1 if rng.random() < 0.25 else _length(rng, 4096)
        k_len = q_len if q_len > 1 and rng.random() < 0.6 else _length(rng, 16384)
        drawn = Drawn(
            batch=_length(rng, 64 if rng.random() < 0.9 else 20_000),
            heads=kv_heads * group,
            kv_heads=kv_heads,
            q_len=q_len,
            k_len=k_len,
            width=width,
            value_width=width if same else int(rng.choice([32, 64, 128, 256])),
            dtype=str(rng.choice(["float32"] * 5 + ["float64"])),
            layout=str(rng.choice(list(LAYOUTS), p=[0.5, 0.3, 0.1, 0.1])),
            hides=str(
                rng.choice(
                    ["nothing", "causal", "lengths", "dense", "bias", "bias64", "bias LLH"],
                    p=[0.4, 0.15, 0.1, 0.1, 0.1, 0.05, 0.1],
                )
            ),
        )
        if drawn.flops <= MOST_FLOPS and drawn.numbers <= MOST_NUMBERS:
            return drawn


def _in_memory(x: NDArray[Any], layout: str) -> NDArray[Any]:
    """The same array, with its axes in another order in memory."""
    order = LAYOUTS[layout]
    return np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))


def make_calls(drawn: Drawn, rng: np.random.Generator) -> dict[str, Call]:
    """Make the contestants of a drawn call."""

    def normal(*shape: int) -> NDArray[Any]:
        return rng.standard_normal(shape, np.float32).astype(drawn.dtype)

    key_layout = drawn.layout
    query_layout = "BHLD" if key_layout == "BHDL" else key_layout
    query = _in_memory(normal(drawn.batch, drawn.heads, drawn.q_len, drawn.width), query_layout)
    kv = drawn.batch, drawn.kv_heads, drawn.k_len
    key = _in_memory(normal(*kv, drawn.width), key_layout)
    value = _in_memory(normal(*kv, drawn.value_width), query_layout)
    pairs = drawn.q_len, drawn.k_len
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    if drawn.hides == "causal":
        ours |= {"is_causal": True, "q_offset": 0}
        theirs["mask"] = np.tri(*pairs, dtype=bool)
    elif drawn.hides == "lengths":
        ours["kv_lengths"] = rng.integers(1, drawn.k_len + 1, drawn.batch)
        theirs["mask"] = np.arange(drawn.k_len) < ours["kv_lengths"][:, None, None, None]
    elif drawn.hides == "dense":
        mask = rng.random((1, 1, *pairs)) < 0.9
        mask[..., 0] = True
        ours["mask"] = theirs["mask"] = mask
    elif drawn.hides == "bias":
        ours["bias"] = theirs["bias"] = normal(1, drawn.heads, *pairs)
    elif drawn.hides == "bias64":
        ours["bias"] = theirs["bias"] = np.where(rng.random((1, 1, *pairs)) < 0.9, 0, -1e9)
    elif drawn.hides == "bias LLH":
        ours["bias"] = theirs["bias"] = normal(*pairs, drawn.heads).transpose(2, 0, 1)[None]
    calls: dict[str, Call] = {
        "attnfast": partial(attnfast.attention, query, key, value, **ours),
        "numpy": partial(plain, query, key, value, **theirs),
    }
    of_torch = {"is_causal": True} if drawn.hides == "causal" else theirs
    if torch := fused_torch(query, key, value, **of_torch):
        calls["torch"] = torch
    return calls


def slowness(calls: dict[str, Call]) -> tuple[float, dict[str, float]]:
    """Return the best ratio of the fastest other to attnfast that is found, and its times."""
    best, shown = 0.0, {}
    for rounds in ROUNDS:
        times = take_turns(calls, rounds)
        ratio = min(t for name, t in times.items() if name != "attnfast") / times["attnfast"]
        if ratio > best:
            best, shown = ratio, times
        if best >= LEAST:
            break
    return best, shown


def main() -> int:
    """Search; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--calls", type=int, default=10**9, help="at most so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    options = parser.parse_args()
    attnfast.set_num_threads(1)
    end = time.monotonic() + 60 * options.minutes
    slow, number = 0, options.first
    while number < options.first + options.calls and time.monotonic() < end:
        rng = np.random.default_rng([options.seed, number])
        drawn = draw(rng)
        calls = make_calls(drawn, rng)
        check_same(calls)
        ratio, times = slowness(calls)
        if ratio < LEAST or options.calls == 1:
            slow += ratio < LEAST
            rest = "  ".join(f"{name} {1e6 * taken:.1f}" for name, taken in times.items())
            print(f"{number:6} {ratio:5.2f}  {drawn}\n              {rest} us", flush=True)
        number += 1
    isa = attnfast.show_config("dicts")["isa"]
    print(f"{isa}: {number - options.first} calls, {slow} slower than {LEAST} of the fastest")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
