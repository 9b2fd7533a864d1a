"""`attention` over keys and values as caches store them: in 8 bits, or in pages.

Arrays of a case are the numbers that the bits stand for, so that other libraries compute the same
in float32. Speed counts float32's bytes for all: its ratio to the yardstick is how much faster a
cache is than one of float32.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import attnfast

from ..case import PAGES, Case
from ..inputs import Inputs, make_inputs
from .attention import FULL, Attention, Calls, call_options, more_random

Array = NDArray[Any]


class Stored(Attention):
    """`kind` is a dtype of 8 bits, or `PAGES`, of `number` keys each.

    Of 8 bits, a number is how many elements of a key or value share a scale, 0 all of them.

    What is stored is the `extra` of the inputs: the arguments of calls, and a first axis for sets.
    """

    def draw(self, case: Case, seed: int) -> Inputs:
        """Keys and values as drawn for `attention`, rounded to what is stored."""
        inputs, sets = make_inputs(case, seed), []
        for n, pair in enumerate(zip(inputs.keys, inputs.values, strict=True)):
            if case.kind == PAGES:
                sets.append(_in_pages(pair, case.number, seed))
                continue
            sets.append(_in_bytes(pair, case.kind, case.number or None))
            for real, name in ((inputs.keys, "key"), (inputs.values, "value")):
                real[n] = real_numbers(sets[-1][name], sets[-1][f"{name}_scale"])
        extra = {name: np.stack([stored[name] for stored in sets]) for name in sets[0]}
        return replace(inputs, extra=extra)

    def calls(self, case: Case, inputs: Inputs) -> Calls:
        """`attnfast.attention` over what is stored."""
        options, extra = call_options(case, inputs), inputs.extra
        return [
            partial(
                attnfast.attention,
                inputs.query,
                **{name: a[n] for name, a in extra.items()},
                **options,
            )
            for n in range(len(inputs.keys))
        ]

    def yardsticks(self, case: Case) -> dict[str, Case]:
        """The same in float32, one array."""
        return {FULL: replace(case, function="attention", kind="", number=0)}


def _in_bytes(arrays: tuple[Array, Array], dtype: str, group: int | None) -> dict[str, Array]:
    """Keys and values, and their scales."""
    pairs = (attnfast.quantize(a, dtype, group=group) for a in arrays)
    (key, key_scale), (value, value_scale) = pairs
    return {"key": key, "value": value, "key_scale": key_scale, "value_scale": value_scale}


def real_numbers(stored: Array, scale: Array) -> Array:
    """The numbers that 8 bits stand for; a scale is that of neighbours in a row."""
    groups = stored.reshape(*scale.shape, -1).astype(np.float32)
    real: Array = (groups * scale[..., None]).reshape(stored.shape)
    return real


def _in_pages(arrays: tuple[Array, Array], size: int, seed: int) -> dict[str, Array]:
    """Pages in random order, and their table."""
    batch, heads, length, _ = arrays[0].shape
    table = more_random(seed).permutation(batch * length // size).reshape(batch, -1)
    pools = []
    for a in arrays:
        pool = np.empty((table.size, heads, size, a.shape[-1]), a.dtype)
        pool[table] = a.reshape(batch, heads, -1, size, a.shape[-1]).swapaxes(1, 2)
        pools.append(pool)
    return {"key": pools[0], "value": pools[1], "block_table": table}
