"""`attention`, and the base class of all functions that are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from numpy.random import SFC64, Generator
from numpy.typing import NDArray

import attnfast

from ..case import Case
from ..inputs import (
    Inputs,
    Sample,
    exact_rows,
    make_inputs,
    numpy_dtype,
    sample_rows,
    take_rows,
    visible_pairs,
)

# Yardsticks: other calls of attnfast, timed for comparison beside NumPy.
FULL, LOOP = "attention", "loop"  # of the family
FORWARD = "forward"  # of steps of training
SINGLE = "float32"  # of 16-bit arrays

Calls = Sequence[Callable[[], Any]]


class Attention:
    """A function to measure: its inputs, its work, what it must return, and calls of it.

    `unit` is the unit of 10^9 `work` a second; `limited` says whether the FMA peak limits it.
    """

    unit = "GFLOP/s"
    limited = True

    def draw(self, case: Case, seed: int) -> Inputs:
        """The arrays of a case, the same for the same seed."""
        return make_inputs(case, seed)

    def visible_pairs(self, case: Case, inputs: Inputs) -> float:
        """Visible (batch, query, key) triples, in the mean over heads."""
        return visible_pairs(case, inputs)

    def work(self, case: Case, pairs: float) -> float:
        """Operations of both products over the visible pairs."""
        return case.flops(pairs)

    def sample(self, case: Case, inputs: Inputs) -> Sample:
        """Rows whose results are checked."""
        return sample_rows(case)

    def exact_rows(self, case: Case, inputs: Inputs, sample: Sample, dtype: type) -> NDArray[Any]:
        """The sampled rows over the first set of keys, computed plainly in `dtype`."""
        return exact_rows(case, inputs, sample, dtype)

    def take_rows(self, case: Case, inputs: Inputs, sample: Sample, output: Any) -> NDArray[Any]:
        """The same rows out of what a contestant returned.

        Raises
        ------
        ValueError
            When that has another shape or dtype.
        """
        require(output, (case.batch, case.heads, case.q_len, case.value_dim), case.dtype)
        return take_rows(output, sample)

    def calls(self, case: Case, inputs: Inputs) -> Calls:
        """attnfast, called as a user calls it: a call for each set of keys."""
        options = call_options(case, inputs)
        return [
            partial(attnfast.attention, inputs.query, key, value, **options)
            for key, value in zip(inputs.keys, inputs.values, strict=True)
        ]

    def yardsticks(self, case: Case) -> dict[str, Case]:
        """Other calls of attnfast to time for comparison, by name: float32 for 16 bits."""
        return {SINGLE: replace(case, dtype="float32")} if case.itemsize == 2 else {}


class OfTheFamily(Attention):
    """A function other than `attention`, which is timed on the same shape for comparison."""

    def yardsticks(self, case: Case) -> dict[str, Case]:
        """Attention over all pairs, or over those that causality leaves."""
        return {FULL: replace(case, function="attention", kind="", number=0, window=None)}


def call_options(case: Case, inputs: Inputs) -> dict[str, Any]:
    """Keyword arguments of `attnfast.attention` for a case."""
    options: dict[str, Any] = {}
    if inputs.mask is not None:
        options["mask"] = inputs.mask
    if inputs.bias is not None:
        options["bias"] = inputs.bias
    if case.causal:
        options["is_causal"] = True
    if case.window is not None:
        options["window_size"] = case.window
    if case.softcap is not None:
        options["softcap"] = case.softcap
    if case.at_end:
        options["q_offset"] = "end"
    return options


def require(output: NDArray[Any], shape: tuple[int, ...], dtype: str) -> None:
    """Refuse a result of another shape or dtype."""
    if output.shape != shape or output.dtype != numpy_dtype(dtype):
        raise ValueError(f"returned {output.dtype} {output.shape}")


def more_random(seed: int) -> Generator:
    """Random numbers for arguments beyond the arrays of attention."""
    return Generator(SFC64([seed, 1]))
