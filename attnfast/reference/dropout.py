"""Which weights are dropped: a function of the seed and of a weight's place alone.

Each weight has a 32-bit word and is dropped where ``word < floor(dropout * 2**32)``; the others are
divided by ``1 - dropout``. The words of a query come from two 32-bit numbers a and b:

    x = (key ^ a) * M1;   x ^= b;   x ^= x >> 15;   x *= M2;   x ^= x >> 16;   word = x * M3

which costs 10 instructions a vector of keys or queries. ``a`` and ``b`` are the halves of a 64-bit
number, made of seed, batch row, head and query by one step of SplitMix64 each (Steele, Lea and
Flood, 2014). No size enters, so that a longer batch drops what a shorter one drops.

Why this is enough: for a query, key -> word is one to one, and two queries would have to share all
64 bits of a and b to drop the same keys; with a alone, 4,096 queries of 4,096 keys would hold some
pairs that drop the same keys in another order. With two multiplications, the upper bits of keys at
the worst of 4,095 distances agree 0.1 % more often than chance has it, 7 standard deviations over
24,576 queries of 4,096 keys; with three, at no distance by more than 4. The comparison looks at the
upper bits, which a product mixes best, so that nothing follows the last one. This is no generator
for cryptography.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

M1, M2, M3 = (np.uint32(m) for m in (0x9E3779B9, 0x6A09E667, 0xBB67AE85))  # golden ratio, roots


def dropout_words(seed: int, row: Any, head: Any, query: Any, key: Any) -> NDArray[np.uint32]:
    """The word of each weight, for arrays of whole numbers that broadcast together."""
    state = np.array([seed], dtype=np.uint64)
    state = _split_mix(state)
    for place in (row, head, query):
        state = _split_mix(state + np.asarray(place).astype(np.uint64))
    a, b = (half.astype(np.uint32) for half in (state, state >> np.uint64(32)))
    x = (np.asarray(key).astype(np.uint32) ^ a) * M1
    x = x ^ b
    x = (x ^ (x >> np.uint32(15))) * M2
    x = (x ^ (x >> np.uint32(16))) * M3
    return np.asarray(x)


def dropout_factor(shape: tuple[int, ...], dropout: float, seed: int, first_row: int) -> Any:
    """What weights ``(..., H, Lq, Lk)`` are multiplied by; batch rows count from `first_row`."""
    if dropout == 0:
        return 1.0
    *batch, heads, lq, lk = shape
    rows = first_row + np.arange(math.prod(batch)).reshape((*batch, 1, 1, 1))
    places = np.ogrid[:heads, :lq, :lk]
    kept = dropout_words(seed, rows, *places) >= np.uint32(math.floor(dropout * 2**32))
    return kept / (1 - dropout)


def _split_mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
