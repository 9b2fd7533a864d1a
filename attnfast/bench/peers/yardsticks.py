"""What a case is measured by beside NumPy: `attention` otherwise or in float32, a forward call.

Their cases are those that the function names (`functions.Attention.yardsticks`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import attnfast

from ..case import Case
from ..functions import function_of
from ..functions.varlen import packed_again, padded, sequences
from ..inputs import Inputs
from . import Prepared

Sequences = Sequence[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]


class Full:
    """The call that the case names; of packed sequences, over the padded batch with lengths."""

    def __init__(self, threads: int) -> None:
        attnfast.set_num_threads(threads)
        self.version = attnfast.__version__

    def variants(self, case: Case, inputs: Inputs) -> dict[str, Callable[[], Prepared]]:
        """One variant. What padding and taking it out again would cost is not timed."""
        if case.function == "attention_varlen":
            return {"padded": partial(_prepare_padded, case, inputs)}
        calls = function_of(case).calls(case, inputs)
        return {case.function: lambda: Prepared(calls, lambda result: result)}


class Loop(Full):
    """A call of `attention` for each packed sequence."""

    def variants(self, case: Case, inputs: Inputs) -> dict[str, Callable[[], Prepared]]:
        """One variant, whose results stay apart."""
        calls = [partial(attend_each, sequences(inputs), case.causal)]
        return {"loop": lambda: Prepared(calls, lambda results: np.concatenate(results))}


def attend_each(parts: Sequences, causal: bool) -> list[NDArray[Any]]:
    """The result ``(L, H, Dv)`` of every sequence."""
    return [attnfast.attention(*part, is_causal=causal).swapaxes(0, 1) for part in parts]


def _prepare_padded(case: Case, inputs: Inputs) -> Prepared:
    lengths = np.diff(inputs.extra["cu_q"])
    options = {"q_lengths": lengths, "kv_lengths": lengths, "is_causal": case.causal}
    call = partial(attnfast.attention, *padded(case, inputs), **options)
    return Prepared([call], partial(packed_again, inputs))
