"""attnfast itself, called as a user calls it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import attnfast

from ..cases import Case
from ..inputs import Inputs
from . import Prepared


class Attnfast:
    """The library under test."""

    def __init__(self, threads: int) -> None:
        attnfast.set_num_threads(threads)
        self.version = attnfast.__version__

    def variants(self, case: Case, inputs: Inputs) -> dict[str, Callable[[], Prepared]]:
        """One variant: `attnfast.attention` with the arguments that the case needs."""
        options = call_options(case, inputs)
        calls = [
            partial(attnfast.attention, inputs.query, key, value, **options)
            for key, value in zip(inputs.keys, inputs.values, strict=True)
        ]
        return {"attention": lambda: Prepared(calls, lambda result: result)}


def call_options(case: Case, inputs: Inputs) -> dict[str, object]:
    """Keyword arguments of `attnfast.attention` for a case."""
    options: dict[str, object] = {}
    if inputs.mask is not None:
        options["mask"] = inputs.mask
    if inputs.bias is not None:
        options["bias"] = inputs.bias
    if case.causal:
        options["is_causal"] = True
    if case.window is not None:
        options["window_size"] = case.window
    if case.at_end:
        options["q_offset"] = "end"
    return options
