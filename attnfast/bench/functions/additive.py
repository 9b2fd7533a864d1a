"""`additive_attention`, whose work is hyperbolic tangents."""

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


class Additive(OfTheFamily):
    """Scores of a random weight for each of the D tangents of a pair."""

    unit = "Gtanh/s"
    limited = False

    def draw(self, case: Case, seed: int) -> Inputs:
        """The weights, of which scores have a spread of about 1, go with the arrays as `extra`."""
        weight = more_random(seed).standard_normal(case.head_dim) / np.sqrt(case.head_dim)
        return replace(super().draw(case, seed), extra={"score_weight": weight.astype(case.dtype)})

    def work(self, case: Case, pairs: float) -> float:
        """Tangents over the visible pairs."""
        return case.heads * pairs * case.head_dim

    def exact_rows(self, case: Case, inputs: Inputs, sample: Sample, dtype: type) -> NDArray[Any]:
        """The reference, a query at a time: it holds all tangents at once."""
        rows = []
        for b, h, queries in sample:
            key, value = (a[0][b, h].astype(dtype) for a in (inputs.keys, inputs.values))
            for i in queries:
                query = inputs.query[b, h, i : i + 1]
                options = {"compute_dtype": dtype, **inputs.extra}
                rows.append(reference.additive_attention(query, key, value, **options))
        return np.concatenate(rows)

    def calls(self, case: Case, inputs: Inputs) -> Calls:
        """`attnfast.additive_attention`."""
        arrays = inputs.query, inputs.keys[0], inputs.values[0]
        return [partial(attnfast.additive_attention, *arrays, **inputs.extra)]
