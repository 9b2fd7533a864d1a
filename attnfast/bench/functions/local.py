"""`local_attention`: windows with global tokens, dilations and centers."""

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


class Local(OfTheFamily):
    """A window, and one of these kinds beside it.

    `first` and `spread`: `number` global tokens, the first ones or at random; `dilated`: heads of
    dilation 1, 2, 4 and 8; `centers`: integer centers at random, as in Luong's local-m; `gaussian`:
    real centers that rise, with the factor of local-p.
    """

    def draw(self, case: Case, seed: int) -> Inputs:
        """Tokens, dilations or centers go with the arrays as `extra`."""
        rng = more_random(seed)
        extra: dict[str, Any] = {}
        if case.kind == "first":
            extra["global_tokens"] = np.arange(case.number)
        elif case.kind == "spread":
            extra["global_tokens"] = np.sort(rng.choice(case.k_len, case.number, replace=False))
        elif case.kind == "dilated":
            extra["dilation"] = 2 ** (4 * np.arange(case.heads) // case.heads)
        else:
            shape = case.batch, case.heads, case.q_len
            if case.kind == "centers":
                extra["centers"] = rng.integers(0, case.k_len, shape)
            else:
                assert case.window is not None
                extra["centers"] = np.sort(rng.random(shape) * (case.k_len - 1), axis=-1)
                extra["sigma"] = sum(case.window) / 4
        return replace(super().draw(case, seed), extra=extra)

    def visible_pairs(self, case: Case, inputs: Inputs) -> float:
        """Keys of the windows, and what global tokens add to them."""
        assert case.window is not None
        left, right = case.window
        place, last = np.arange(case.q_len), case.k_len - 1
        if "centers" in inputs.extra:
            center = inputs.extra["centers"]
            first = np.maximum(np.ceil(center - left), 0)
            return (
                float((np.minimum(np.floor(center + right), last) - first + 1).sum()) / case.heads
            )
        step = inputs.extra.get("dilation", np.ones(1, int))[:, None]
        before = np.minimum(left, place // step)
        after = np.minimum(right, (last - place) // step)
        seen = before + after + 1
        if "global_tokens" in inputs.extra:
            tokens = inputs.extra["global_tokens"]
            inside = np.searchsorted(tokens, place + right, side="right")
            inside -= np.searchsorted(tokens, place - left)
            seen = seen + len(tokens) - inside
            seen[:, tokens] = case.k_len
        return case.batch * float(seen.sum() / len(seen))

    def exact_rows(self, case: Case, inputs: Inputs, sample: Sample, dtype: type) -> NDArray[Any]:
        """The reference, a query at a time."""
        extra, rows = inputs.extra, []
        for b, h, queries in sample:
            key, value = (a[0][b, h].astype(dtype) for a in (inputs.keys, inputs.values))
            for i in queries:
                options = dict(extra)
                if "dilation" in extra:
                    options["dilation"] = extra["dilation"][h : h + 1]
                if "centers" in extra:
                    options["centers"] = extra["centers"][b, h, i : i + 1]
                row = reference.local_attention(
                    inputs.query[b, h, i : i + 1],
                    key,
                    value,
                    case.window,
                    q_offset=i,
                    compute_dtype=dtype,
                    **options,
                )
                rows.append(row)
        return np.concatenate(rows)

    def calls(self, case: Case, inputs: Inputs) -> Calls:
        """`attnfast.local_attention`."""
        arrays = inputs.query, inputs.keys[0], inputs.values[0]
        return [partial(attnfast.local_attention, *arrays, case.window, **inputs.extra)]


def dense_mask(case: Case, inputs: Inputs) -> NDArray[np.bool_]:
    """Bool, broadcast to ``(B, H, Lq, Lk)``: the mask that NumPy and PyTorch get instead."""
    assert case.window is not None
    left, right = case.window
    mask: NDArray[np.bool_]
    keys, middle = np.arange(case.k_len), np.arange(case.q_len)[:, None]
    if "centers" in inputs.extra:
        middle = inputs.extra["centers"][..., None]
    if "dilation" in inputs.extra:
        step = inputs.extra["dilation"][:, None, None]
        distance = keys - middle
        mask = (distance % step == 0) & (distance >= -left * step) & (distance <= right * step)
        return mask
    mask = (keys >= middle - left) & (keys <= middle + right)
    if "global_tokens" in inputs.extra:
        tokens = inputs.extra["global_tokens"]
        mask[:, tokens] = mask[tokens] = True
    return mask


def gaussian_factor(case: Case, inputs: Inputs) -> NDArray[Any] | None:
    """What the weights are multiplied by after the softmax, ``(B, H, Lq, Lk)``, or None."""
    if case.kind != "gaussian":
        return None
    distance = np.arange(case.k_len) - inputs.extra["centers"][..., None]
    factor: NDArray[Any] = np.exp(-((distance / inputs.extra["sigma"]) ** 2) / 2)
    return factor.astype(case.dtype)
