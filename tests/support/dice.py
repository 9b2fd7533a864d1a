"""Choices of a random test, drawn by hypothesis as one string of bytes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st


class Dice:
    """Choices out of one string of bytes, one or two for each, zeros when they run out.

    Hypothesis draws, varies and shrinks the string as a whole: 0 is the first option everywhere. A
    call makes some 60 choices, and to draw each by itself would take longer than the call.
    """

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def number(self, low: int, high: int) -> int:
        count = high - low + 1
        end = self.at + (1 if count <= 16 else 2 if count < 2**16 else 4)
        number = int.from_bytes(self.content[self.at : end], "big")
        self.at = end
        return low + number % count

    def pick(self, options: Sequence[Any]) -> Any:
        return options[self.number(0, len(options) - 1)]

    def one_in(self, n: int) -> bool:
        return self.number(0, n - 1) == n - 1

    def random(self) -> np.random.Generator:
        return np.random.default_rng(self.number(0, 2**32 - 1))


DICE = st.binary(min_size=128, max_size=128).map(Dice)
