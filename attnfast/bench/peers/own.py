"""attnfast itself, called as a user calls it."""

from __future__ import annotations

from collections.abc import Callable

import attnfast

from ..case import Case
from ..functions import function_of
from ..inputs import Inputs
from . import Prepared


class Attnfast:
    """The library under test."""

    def __init__(self, threads: int) -> None:
        attnfast.set_num_threads(threads)
        self.version = attnfast.__version__

    def variants(self, case: Case, inputs: Inputs) -> dict[str, Callable[[], Prepared]]:
        """One variant: the function of the case with the arguments that it needs."""
        calls = function_of(case).calls(case, inputs)
        return {case.function: lambda: Prepared(calls, lambda result: result)}
