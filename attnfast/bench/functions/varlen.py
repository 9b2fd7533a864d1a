"""`attention_varlen`: packed sequences, beside padded ones and a call for each."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.random import SFC64, Generator
from numpy.typing import NDArray

import attnfast
from attnfast import reference

from ..case import Case
from ..inputs import Inputs, Sample, sample_rows
from .attention import FULL, LOOP, Attention, Calls, require


class Packed(Attention):
    """`batch` sequences of `number` to `q_len` rows; arrays are ``(T, H, D)``."""

    def draw(self, case: Case, seed: int) -> Inputs:
        """Bounds of the sequences go with the packed arrays as `extra`."""
        rng = Generator(SFC64(seed))
        lengths = rng.integers(case.number, case.q_len + 1, size=case.batch)
        ends = np.concatenate([[0], np.cumsum(lengths)])

        def normal(heads: int, width: int) -> NDArray[Any]:
            shape = int(ends[-1]), heads, width
            return rng.standard_normal(shape, dtype=np.dtype(case.dtype).type)

        query = normal(case.heads, case.head_dim)
        key = normal(case.kv_heads, case.head_dim)
        value = normal(case.kv_heads, case.value_dim)
        return Inputs(query, [key], [value], None, None, {"cu_q": ends, "cu_k": ends})

    def visible_pairs(self, case: Case, inputs: Inputs) -> float:
        """Pairs within the sequences."""
        lengths = np.diff(inputs.extra["cu_q"])
        return int((lengths * (lengths + 1) // 2 if case.causal else lengths**2).sum())

    def sample(self, case: Case, inputs: Inputs) -> Sample:
        """Rows of sequences, counted from their beginning; each with its last."""
        lengths = np.diff(inputs.extra["cu_q"])
        return [
            (s, h, np.unique(np.minimum(rows, lengths[s] - 1))) for s, h, rows in sample_rows(case)
        ]

    def exact_rows(self, case: Case, inputs: Inputs, sample: Sample, dtype: type) -> NDArray[Any]:
        """The reference on a sequence alone."""
        ends, group, results = inputs.extra["cu_q"], case.heads // case.kv_heads, []
        for s, h, rows in sample:
            place = slice(ends[s], ends[s + 1])
            keys = np.arange(ends[s + 1] - ends[s])
            results.append(
                reference.attention(
                    inputs.query[place][rows, h],
                    inputs.keys[0][place, h // group],
                    inputs.values[0][place, h // group],
                    mask=keys <= rows[:, None] if case.causal else None,
                    compute_dtype=dtype,
                )
            )
        return np.concatenate(results)

    def take_rows(self, case: Case, inputs: Inputs, sample: Sample, output: Any) -> NDArray[Any]:
        """The sampled rows of the packed output."""
        require(output, (len(inputs.query), case.heads, case.value_dim), case.dtype)
        ends = inputs.extra["cu_q"]
        return np.concatenate([output[ends[s] + rows, h] for s, h, rows in sample])

    def calls(self, case: Case, inputs: Inputs) -> Calls:
        """`attnfast.attention_varlen`."""
        arrays = inputs.query, inputs.keys[0], inputs.values[0]
        options = {"is_causal": case.causal, **inputs.extra}
        return [partial(attnfast.attention_varlen, *arrays, **options)]

    def yardsticks(self, case: Case) -> dict[str, Case]:
        """The same sequences otherwise: padded, and in a call each."""
        return {FULL: case, LOOP: case}


def sequences(inputs: Inputs) -> list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Queries, keys and values ``(H, L, D)`` of each sequence, as views."""
    ends = inputs.extra["cu_q"]
    arrays = [a.swapaxes(0, 1) for a in (inputs.query, inputs.keys[0], inputs.values[0])]
    return [(arrays[0][:, a:b], arrays[1][:, a:b], arrays[2][:, a:b]) for a, b in pairwise(ends)]


def padded(case: Case, inputs: Inputs) -> list[NDArray[Any]]:
    """Queries, keys and values ``(B, H, L, D)``, zero beyond each sequence."""
    ends, arrays = inputs.extra["cu_q"], []
    for packed in (inputs.query, inputs.keys[0], inputs.values[0]):
        _, heads, width = packed.shape
        array = np.zeros((case.batch, heads, case.q_len, width), case.dtype)
        for s, (a, b) in enumerate(pairwise(ends)):
            array[s, :, : b - a] = packed[a:b].swapaxes(0, 1)
        arrays.append(array)
    return arrays


def packed_again(inputs: Inputs, output: NDArray[Any]) -> NDArray[Any]:
    """The rows ``(T, H, Dv)`` of a padded result."""
    lengths = np.diff(inputs.extra["cu_q"])
    return np.concatenate([output[s, :, :n].swapaxes(0, 1) for s, n in enumerate(lengths)])
