"""Where a cache keeps the keys of a text: slots in memory, and the positions that they hold."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Ring:
    """The slots of a row: position ``p`` is in slot ``p`` if it is below `fixed`, else in a ring.

    Without a window every slot is fixed. With one, `fixed` slots hold the first keys of a text, and
    the others are a ring, in which a new key replaces the oldest one.
    """

    def __init__(self, capacity: int, fixed: int) -> None:
        self.capacity, self.fixed = capacity, fixed
        self.size = capacity - fixed

    def pieces(self, first: int, count: int) -> Iterator[tuple[slice, slice]]:
        """Slots for positions `first` and up, and which of the `count` new rows go there.

        Rows that a later one of them would replace are left out.
        """
        end = first + count
        if first < self.fixed:
            n = min(end, self.fixed) - first
            yield slice(first, first + n), slice(0, n)
        p = max(first, self.fixed, end - self.size)
        while p < end:
            slot = self.fixed + (p - self.fixed) % self.size
            n = min(end - p, self.capacity - slot)
            yield slice(slot, slot + n), slice(p - first, p - first + n)
            p += n

    def slot(self, positions: Array) -> Array:
        """Slots of positions."""
        if not self.size:
            return positions
        wrapped: Array = self.fixed + (positions - self.fixed) % self.size
        return np.where(positions < self.fixed, positions, wrapped)

    def oldest(self, written: Array) -> Array:
        """The first position in the ring, of rows in which so many have been written."""
        first: Array = np.maximum(self.fixed, written - self.size)
        return first

    def positions(self, lengths: Array, written: Array, slots: int) -> Array:
        """The position in each of the first slots ``(..., slots)``, -1 where there is none.

        `lengths` is how long each row is, `written` how long it has been since it was empty.
        """
        lengths, written = lengths[..., None], written[..., None]
        slot = np.arange(slots)
        held = np.broadcast_to(slot, (*lengths.shape[:-1], slots))
        if self.size:  # the last position up to the end of what was written that has this slot
            last = written - 1 - (written - 1 - slot) % self.size
            held = np.where(slot < self.fixed, slot, np.where(last >= self.fixed, last, -1))
        return np.where(held < lengths, held, -1)
