"""`attention` with a `BlockMask`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import attnfast
from attnfast import reference

from ..case import Case
from ..inputs import Inputs, Sample
from .attention import Calls, OfTheFamily, more_random

NEW_DOCUMENT = (
    1 / 12
)  # the chance that a block begins one: 768 tokens in the mean with blocks of 64


class Blocks(OfTheFamily):
    """Blocks of `number` by `number`: BigBird's pattern, or documents that see themselves only."""

    def draw(self, case: Case, seed: int) -> Inputs:
        """The mask goes with the arrays as `extra`."""
        if case.kind == "bigbird":
            mask = attnfast.BlockMask.bigbird(case.q_len, case.k_len, case.number, seed=seed)
        else:
            begins = more_random(seed).random(-(-case.q_len // case.number)) < NEW_DOCUMENT
            document = np.cumsum(begins)
            mask = attnfast.BlockMask(document[:, None] == document, case.number)
        return replace(super().draw(case, seed), extra={"mask": mask})

    def visible_pairs(self, case: Case, inputs: Inputs) -> float:
        """The pairs of the visible blocks, the last of which may be shorter."""
        rows, columns = (
            np.diff(np.append(np.arange(0, length, case.number), length))
            for length in (case.q_len, case.k_len)
        )
        return case.batch * int(rows @ inputs.extra["mask"].blocks @ columns)

    def exact_rows(self, case: Case, inputs: Inputs, sample: Sample, dtype: type) -> NDArray[Any]:
        """The reference with the rows of the mask written out."""
        blocks, rows = inputs.extra["mask"].blocks, []
        for b, h, queries in sample:
            seen = np.repeat(blocks[queries // case.number], case.number, axis=-1)
            rows.append(
                reference.attention(
                    inputs.query[b, h, queries],
                    inputs.keys[0][b, h],
                    inputs.values[0][b, h],
                    mask=seen[:, : case.k_len],
                    compute_dtype=dtype,
                )
            )
        return np.concatenate(rows)

    def calls(self, case: Case, inputs: Inputs) -> Calls:
        """`attnfast.attention` with the mask."""
        arrays = inputs.query, inputs.keys[0], inputs.values[0]
        return [partial(attnfast.attention, *arrays, **inputs.extra)]
