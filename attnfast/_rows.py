"""Rows of a cache: cut short, in another order, more than once, empty again."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._checks import MOST, row_numbers, whole_number
from ._misread import as_array, wrong_integers
from ._signature import plain_signature
from ._store import Store

Array = NDArray[Any]


class Rows(Store):
    """What :class:`attnfast.KVCache` documents as going back, and beams."""

    @plain_signature
    def truncate(self, lengths: ArrayLike) -> None:
        """Forget the last tokens of each row.

        Parameters
        ----------
        lengths : int or array_like of int, ``batch_shape``
            How many tokens stay, of all rows or of each.

        Raises
        ------
        TypeError, ValueError
            Numbers that are not whole, negative or above the lengths; or, with a window, so few
            that the ring has replaced tokens that the next one sees.
        """
        wanted = row_numbers(lengths, "lengths", self._batch)
        lengths_, written = self._numbers()
        if (wanted > lengths_).any():
            raise ValueError(
                f"lengths must be at most those of the cache, {lengths_.tolist()}, "
                f"got {wanted.tolist()}"
            )
        if self._window is not None:
            fixed, oldest = self._ring.fixed, self._ring.oldest(written)
            gone = (wanted > fixed) & (np.maximum(wanted - self._window, fixed) < oldest)
            if gone.any():
                least = (oldest + self._window)[gone].max()
                raise ValueError(
                    f"lengths must leave a window of {self._window} tokens that the ring still "
                    f"has, {least} or more, got {wanted[gone].min()}: make the cache with a larger "
                    "capacity, or clear the row"
                )
            np.copyto(written, wanted, where=wanted <= fixed)
        lengths_[...] = wanted
        self._settle()

    @plain_signature
    def reorder(self, rows: ArrayLike) -> None:
        """Row ``i`` becomes what row ``rows[i]`` was, as beam search does after each step.

        Parameters
        ----------
        rows : array_like of int, ``(n,)``
            Rows of the first batch axis, in any number and order, which may repeat. As many as
            there are is fastest: only rows that change are copied.

        Raises
        ------
        TypeError, ValueError
            Rows that are not whole numbers or not there, or a cache without batch axes.
        """
        chosen = self._chosen(rows)
        n, slots = self._batch[0], self._slots()
        if chosen.size != n:
            self._take_rows(chosen)
            return
        moved = np.flatnonzero(chosen != np.arange(n))
        origin = chosen[moved]
        for a in self._memory:
            a[moved, ..., :slots, :] = a[origin, ..., :slots, :]
        for a in self._numbers():
            a[moved] = a[origin]
        self._settle()

    @plain_signature
    def repeat(self, n: int) -> None:
        """Each row ``n`` times, one after the other: one for each beam of a prompt.

        Parameters
        ----------
        n : int
            How often.

        Raises
        ------
        TypeError, ValueError
            A number that is not whole or below 1, or a cache without batch axes.
        MemoryError
            No memory for so many rows; the cache is as it was.
        """
        times, rows = whole_number(n, "n", 1), self._first_axis("n")
        if times > MOST // max(rows, 1):
            raise MemoryError(f"no memory for {rows} rows {times} times")
        self._take_rows(np.repeat(np.arange(rows), times))

    @plain_signature
    def clear(self, rows: ArrayLike | None = None) -> None:
        """Forget all tokens, of all rows or of some.

        Parameters
        ----------
        rows : array_like of int, optional
            Rows of the first batch axis.

        Raises
        ------
        TypeError, ValueError
            As for `reorder`.
        """
        chosen: Any = ... if rows is None else self._chosen(rows)
        for numbers in self._numbers():
            numbers[chosen] = 0
        self._settle()

    def _take_rows(self, chosen: Array) -> None:
        batch = chosen.size, *self._batch[1:]
        memory = self._new_memory(batch, self.capacity)
        for new, old in zip(memory, self._used(), strict=True):
            new[..., : old.shape[-2], :] = old[chosen]
        lengths, written = self._numbers()
        self._late_lengths, self._late_written = lengths[chosen], written[chosen]
        self._use(batch, self.capacity, memory)
        self._even = 0 if self._even is None else self._even
        self._settle()

    def _first_axis(self, name: str) -> int:
        if not self._batch:
            raise ValueError(
                f"{name} is of rows, and this cache has no batch axes: make it with batch_shape=1"
            )
        return self._batch[0]

    def _chosen(self, rows: ArrayLike) -> Array:
        n, a = self._first_axis("rows"), as_array(rows, "rows")
        if a.dtype.kind not in "iu" and a.size:
            raise wrong_integers(a, rows, "rows")
        if a.ndim > 1:
            raise ValueError(f"rows must have one axis, got shape {a.shape}")
        a = np.atleast_1d(a).astype(np.int64)
        if a.size and not 0 <= a.min() <= a.max() < n:
            raise ValueError(f"rows must be within 0 .. {n - 1}, got {a.min()} .. {a.max()}")
        return a
