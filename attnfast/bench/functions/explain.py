"""`attention_topk` and `key_importance`, which need no values."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import attnfast
from attnfast import reference

from ..case import Case
from ..inputs import CHECKED_HEADS, Inputs, Sample, key_range
from .attention import Calls, OfTheFamily, call_options, require


class Explained(OfTheFamily):
    """Counts the product of queries and keys once, however often it is made."""

    def work(self, case: Case, pairs: float) -> float:
        """Operations of one product over the visible pairs."""
        return 2 * case.heads * pairs * case.head_dim


class TopK(Explained):
    """The `number` heaviest keys."""

    def exact_rows(self, case: Case, inputs: Inputs, sample: Sample, dtype: type) -> NDArray[Any]:
        """The greatest weights, twice: as they are returned, and of the keys that are returned."""
        tops = []
        for b, h, queries in sample:
            weights = _weights(case, inputs, b, h, queries, dtype)
            tops.append(-np.sort(-weights, axis=-1)[:, : case.number])
        return np.tile(np.concatenate(tops), 2)

    def take_rows(self, case: Case, inputs: Inputs, sample: Sample, output: Any) -> NDArray[Any]:
        """The weights that were found, and the exact ones of the keys that were found.

        Both are near the greatest weights, in order, whichever of two nearly equal keys is found.
        """
        indices, weights = output
        shape = case.batch, case.heads, case.q_len, case.number
        require(indices, shape, "int64")
        require(weights, shape, case.dtype)
        rows = []
        for b, h, queries in sample:
            found = indices[b, h, queries]
            exact = _weights(case, inputs, b, h, queries, np.float64)
            ordered = np.sort(found, axis=-1)
            if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
                raise ValueError("a key is among the heaviest twice")
            taken = np.take_along_axis(exact, np.maximum(found, 0), axis=-1)
            rows.append(np.hstack([weights[b, h, queries], np.where(found >= 0, taken, 0)]))
        return np.concatenate(rows)

    def calls(self, case: Case, inputs: Inputs) -> Calls:
        """`attnfast.attention_topk`."""
        options = call_options(case, inputs)
        arrays = inputs.query, inputs.keys[0]
        return [partial(attnfast.attention_topk, *arrays, case.number, **options)]


class Importance(Explained):
    """The total weight of each key."""

    def sample(self, case: Case, inputs: Inputs) -> Sample:
        """Whole heads: every query counts."""
        pairs = [(b, h) for b in range(case.batch) for h in range(case.heads)]
        step = -(-len(pairs) // CHECKED_HEADS)
        return [(b, h, np.arange(case.q_len)) for b, h in pairs[::step]]

    def exact_rows(self, case: Case, inputs: Inputs, sample: Sample, dtype: type) -> NDArray[Any]:
        """Column sums of the weights."""
        return np.stack([_weights(case, inputs, *rows, dtype).sum(axis=0) for rows in sample])

    def take_rows(self, case: Case, inputs: Inputs, sample: Sample, output: Any) -> NDArray[Any]:
        """Those of the sampled heads."""
        require(output, (case.batch, case.heads, case.k_len), case.dtype)
        return np.stack([output[b, h] for b, h, _ in sample])

    def calls(self, case: Case, inputs: Inputs) -> Calls:
        """`attnfast.key_importance`."""
        options = call_options(case, inputs)
        return [partial(attnfast.key_importance, inputs.query, inputs.keys[0], **options)]


def _weights(
    case: Case, inputs: Inputs, b: int, h: int, queries: NDArray[np.intp], dtype: type
) -> NDArray[Any]:
    """Softmax weights of some queries of a head, from the reference."""
    first, stop = key_range(case)
    keys = np.arange(case.k_len)
    seen = (keys >= first[queries, None]) & (keys < stop[queries, None])
    return np.asarray(
        reference.attention_weights(
            inputs.query[b, h, queries], inputs.keys[0][b, h], mask=seen, compute_dtype=dtype
        )
    )
