"""Shapes and layouts at which attention once was slow: is anything else faster there today?

    OPENBLAS_NUM_THREADS=1 python bench/cliffs.py                 # all, with PyTorch if installed
    ATTNFAST_ISA=avx2 OPENBLAS_NUM_THREADS=1 python bench/cliffs.py --only "layout*"

One thread, contestants in turns in one process. A line for each case: the time of attnfast, of the
others, and the ratio of the fastest other to attnfast. Below 0.95 something else is faster by more
than the 5 % that this project allows. The exit status is 1 if there is such a line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import attnfast
from contest import Call, check_same, fused_torch, plain, take_turns

LEAST = 0.95
CASES: dict[str, Callable[[], dict[str, Call]]] = {}
RNG = np.random.default_rng(0)


def case(function: Callable[[], dict[str, Call]]) -> Callable[[], dict[str, Call]]:
    """Enter a function that makes the contestants of a case, attnfast's first."""
    CASES[function.__name__] = function
    return function


def normal(*shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    """Draw an array."""
    return RNG.standard_normal(shape).astype(dtype)


def qkv(
    batch: int, heads: str, lengths: tuple[int, int], width: int, dtype: Any = np.float32
) -> Iterator[NDArray[Any]]:
    """Draw query, key and value; heads is H or H/Hk."""
    query_heads, _, kv_heads = heads.partition("/")
    yield normal(batch, int(query_heads), lengths[0], width, dtype=dtype)
    for _ in range(2):
        yield normal(batch, int(kv_heads or query_heads), lengths[1], width, dtype=dtype)


def contestants(
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    others: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Call]:
    """Make the calls of attnfast with `options`, of NumPy and PyTorch with `others`."""
    others = options if others is None else others
    calls: dict[str, Call] = {"attnfast": partial(attnfast.attention, query, key, value, **options)}
    masked = {name: x for name, x in others.items() if name != "is_causal"}
    if others.get("is_causal"):
        masked["mask"] = np.tri(query.shape[2], key.shape[2], dtype=bool)
    calls["numpy"] = partial(plain, query, key, value, **masked)
    if torch := fused_torch(query, key, value, **others):
        calls["torch"] = torch
    return calls


@case
def layout_keys_transposed() -> dict[str, Call]:
    """Keys stored (B, H, D, L), one query."""
    query, _, value = qkv(1, "8", (1, 4096), 64)
    return contestants(query, normal(1, 8, 64, 4096).swapaxes(2, 3), value)


@case
def layout_blhd_prefill() -> dict[str, Call]:
    """Arrays stored (B, L, H, D), as projections leave them."""
    return contestants(*(normal(1, 1024, 16, 64).swapaxes(1, 2) for _ in range(3)))


@case
def layout_blhd_decode() -> dict[str, Call]:
    """The same with one query."""
    key, value = (normal(1, 4096, 8, 128).swapaxes(1, 2) for _ in range(2))
    return contestants(normal(1, 1, 32, 128).swapaxes(1, 2), key, value)


@case
def layout_shared_keys() -> dict[str, Call]:
    """500 queries, each a batch row of its own, that share their keys by broadcasting."""
    query = normal(500, 4, 1, 64)
    key, value = (np.broadcast_to(normal(1, 4, 256, 64), (500, 4, 256, 64)) for _ in range(2))
    as_length = query[:, :, 0].swapaxes(0, 1)[None]

    def one_length() -> NDArray[Any]:
        found = attnfast.attention(as_length, key[:1], value[:1])
        return found[0].swapaxes(0, 1)[:, :, None]

    return contestants(query, key, value) | {"as a length": one_length}


@case
def data_nan_padding() -> dict[str, Call]:
    """NaN in keys and values that a dense mask hides, against zeros there."""
    query, key, value = qkv(4, "8", (256, 256), 64)
    mask = np.broadcast_to(np.arange(256) < 200, (4, 1, 256, 256)).copy()
    dirty = [x.copy() for x in (key, value)]
    for x in dirty:
        x[:, :, 200:] = np.nan
    calls = contestants(query, key, value, mask=mask)
    return {"attnfast": partial(attnfast.attention, query, *dirty, mask=mask)} | {
        ("clean" if name == "attnfast" else name): call for name, call in calls.items()
    }


@case
def data_one_infinity() -> dict[str, Call]:
    """One infinite number that late queries see, under causality, against none."""
    query, key, value = qkv(1, "8", (1024, 1024), 64)
    dirty = value.copy()
    dirty[0, 0, 1000, 0] = np.inf
    calls = contestants(query, key, value, is_causal=True)
    return {
        "attnfast": partial(attnfast.attention, query, key, dirty, is_causal=True),
        "clean": calls["attnfast"],
    }


@case
def data_rising_scores() -> dict[str, Call]:
    """Scores that rise along the keys."""
    query, key, value = qkv(1, "8", (1024, 1024), 64)
    query[..., 0], key[..., 0] = 8.0, 0.05 * np.arange(1024)
    return contestants(query, key, value)


@case
def local_globals_short_rows() -> dict[str, Call]:
    """`local_attention` with global tokens over many short rows, against its own dense mask."""
    query, key, value = qkv(1000, "2", (32, 32), 16)
    mask = np.abs(np.subtract.outer(np.arange(32), np.arange(32))) <= 4
    mask[0] = mask[:, 0] = True
    tokens = np.zeros(32, bool)
    tokens[0] = True
    call = partial(attnfast.local_attention, query, key, value, (4, 4), global_tokens=tokens)
    calls = contestants(query, key, value, mask=mask)
    return {"attnfast": call, "dense mask": calls.pop("attnfast"), **calls}


def _bias(bias: NDArray[Any]) -> dict[str, Call]:
    return contestants(*qkv(1, "8", (1024, 1024), 64), bias=bias)


@case
def bias_float64() -> dict[str, Call]:
    """A float64 bias of float32 arrays, as `np.where(mask, 0, -np.inf)` gives."""
    return _bias(np.where(RNG.random((1024, 1024)) < 0.9, 0, -np.inf))


@case
def bias_float16() -> dict[str, Call]:
    """A float16 bias of float32 arrays."""
    return _bias(normal(8, 1024, 1024, dtype=np.float16))


@case
def bias_heads_last() -> dict[str, Call]:
    """A bias stored (Lq, Lk, H), as T5 computes it."""
    return _bias(normal(1024, 1024, 8).transpose(2, 0, 1))


def _blocks(rows: int, keys: int) -> dict[str, Call]:
    query, key, value = qkv(1, "8", (1024, 1024), 64)
    blocks = RNG.random((1024 // rows, 1024 // keys)) < 0.5
    blocks[:, 0] = True
    mask = blocks.repeat(rows, 0).repeat(keys, 1)
    calls = contestants(query, key, value, mask=mask)
    call = partial(
        attnfast.attention, query, key, value, mask=attnfast.BlockMask(blocks, (rows, keys))
    )
    return {"attnfast": call, "elementwise": calls.pop("attnfast"), **calls}


@case
def blocks_2_keys() -> dict[str, Call]:
    """A BlockMask with blocks of 2 keys, against its elementwise form."""
    return _blocks(64, 2)


@case
def blocks_64_by_1() -> dict[str, Call]:
    """A BlockMask with blocks of 64 queries and one key."""
    return _blocks(64, 1)


@case
def topk_65() -> dict[str, Call]:
    """`attention_topk` with k = 65, against a full sort by NumPy's partition."""
    query, key, _ = qkv(1, "8", (256, 2048), 64)

    def partition() -> NDArray[Any]:
        scores = query @ key.swapaxes(-1, -2)
        scores *= np.float32(1 / 8)
        found = np.argpartition(scores, -65)[..., -65:]
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        kept = np.take_along_axis(weights, found, -1)
        order = np.argsort(-kept, axis=-1, kind="stable")
        return np.take_along_axis(kept, order, -1)

    def ours() -> NDArray[Any]:
        return attnfast.attention_topk(query, key, 65).weights

    return {"attnfast": ours, "numpy": partition}


def _wide(heads: str, lengths: tuple[int, int], width: int, dtype: Any) -> dict[str, Call]:
    return contestants(*qkv(1, heads, lengths, width, dtype))


CASES |= {
    "wide_512": partial(_wide, "4", (512, 512), 512, np.float32),
    "wide_1024": partial(_wide, "2", (512, 512), 1024, np.float32),
    "wide_2048": partial(_wide, "1", (512, 512), 2048, np.float32),
    "wide_512_float64": partial(_wide, "2", (512, 512), 512, np.float64),
    "float64_2048x64": partial(_wide, "4", (2048, 2048), 64, np.float64),
    "full_4096x128": partial(_wide, "2", (4096, 4096), 128, np.float32),
    "tiny_12x16x64": partial(_wide, "12", (16, 16), 64, np.float32),
    "tiny_one_query": partial(_wide, "1", (1, 16), 64, np.float32),
}


def _multi_query(heads: int, dtype: Any) -> dict[str, Call]:
    query, key = normal(1, heads, 1, 576, dtype=dtype), normal(1, 1, 4096, 576, dtype=dtype)
    return contestants(query, key, key[..., :512])


CASES["wide_one_key_head"] = partial(_multi_query, 128, np.float32)
CASES["wide_one_key_head_float64"] = partial(_multi_query, 16, np.float64)
CASES |= {
    f"rows_{n}": partial(_wide, "12", (n, 1024), 64, np.float32)
    for n in (24, 25, 26, 32, 33, 48, 49, 65, 73)
}


@case
def many_rows_one_key() -> dict[str, Call]:
    """100,000 batch rows with one key each."""
    return contestants(*qkv(100_000, "1", (1, 1), 16))


@case
def many_windows_of_49() -> dict[str, Call]:
    """Windows of 7 x 7 patches."""
    return contestants(*qkv(256, "4", (49, 49), 32))


@case
def many_sequences_of_8() -> dict[str, Call]:
    """Sequences of 8 tokens."""
    return contestants(*qkv(1000, "4", (8, 8), 32))


@case
def one_key() -> dict[str, Call]:
    """Many queries of one key."""
    return contestants(*qkv(1, "8", (4096, 1), 64))


def main() -> int:
    """Measure the cases asked for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="*", help="names or globs, with commas (default: all)")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    attnfast.set_num_threads(1)
    slow = 0
    for name, make in CASES.items():
        if not any(fnmatch(name, pattern) for pattern in options.only.split(",")):
            continue
        calls = make()
        if not name.startswith("data_"):
            check_same(calls)
        times = take_turns(calls, options.rounds)
        mine = times.pop("attnfast")
        ratio = min(times.values()) / mine
        slow += ratio < LEAST
        rest = "  ".join(f"{other} {1e6 * taken:10.1f}" for other, taken in times.items())
        print(f"{name:26} {ratio:5.2f}  attnfast {1e6 * mine:10.1f}  {rest} us", flush=True)
    print(f"{attnfast.show_config('dicts')['isa']}: {slow} slower than {LEAST} of the fastest")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
