"""Which pages each text of a paged cache has, how many share each page, and which are free."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Needed(NamedTuple):
    """Pages that rows must get before they are written to."""

    more: Array  # how many new ones, each row
    shared: list[tuple[int, int, int]]  # to be replaced by a copy: row, block of its table, page


class Pages:
    """Tables of pages for rows of tokens. A page that nobody has any more is free."""

    def __init__(self, count: int, size: int, rows: int) -> None:
        self.count, self.size = count, size
        self.table = np.full((rows, 4), -1, np.int64)  # of each row its pages, then -1
        self.held = np.zeros(rows, np.int64)  # pages of each row
        self.lengths = np.zeros(rows, np.int64)  # its tokens
        self.there = np.ones(rows, bool)
        self.recount()

    def recount(self) -> None:
        """Count again who shares each page, from the tables alone."""
        used = self.table[np.arange(self.table.shape[1]) < self.held[:, None]]
        self.shares = np.bincount(used, minlength=self.count)
        self.free = np.flatnonzero(self.shares == 0)[::-1].tolist()  # the last one is next
        self.forked = bool((self.shares > 1).any())  # else no page is shared
        self.rows = np.flatnonzero(self.there)  # that are there

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Around a change of tables: Ctrl-C within it loses no page."""
        try:
            yield
        except BaseException:
            self.recount()
            raise

    def blocks_of(self, tokens: Array) -> Array:
        """Pages that so many tokens fill."""
        return -(-tokens // self.size)

    def table_of(self, rows: Array) -> Array:
        """The pages of rows that their tokens reach, ``(rows, blocks)``."""
        blocks = int(self.blocks_of(self.lengths[rows]).max(initial=0))
        table: Array = self.table[rows, :blocks]
        return table

    def needed(self, rows: Array, counts: Array) -> Needed:
        """What rows need for `counts` more tokens; a MemoryError if it is not there."""
        lengths = self.lengths[rows]
        more = self.blocks_of(lengths + counts) - self.held[rows]
        shared = self._shared(rows, lengths // self.size, counts) if self.forked else []
        total = int(np.maximum(more, 0, out=more).sum()) + len(shared)
        if total > len(self.free):
            raise MemoryError(
                f"pages must be {total} more for these tokens, and {len(self.free)} of "
                f"{self.count} are free: free rows, or make the cache with more pages"
            )
        return Needed(more, shared)

    def take(self, rows: Array, needed: Needed, copy: Callable[[int, int], None]) -> None:
        """Give rows what they need; `copy` copies a page to another."""
        for row, block, old in needed.shared:
            new = self._take()
            copy(old, new)
            self.table[row, block] = new
            self.shares[old] -= 1
        if not needed.more.any():
            return
        self._widen(int((self.held[rows] + needed.more).max()))
        for row, n in zip(rows.tolist(), needed.more.tolist(), strict=True):
            for _ in range(n):
                self.table[row, self.held[row]] = self._take()
                self.held[row] += 1

    def _shared(self, rows: Array, first: Array, counts: Array) -> list[tuple[int, int, int]]:
        """Rows whose next token goes to a page that others have, as in `Needed`.

        The last of those that are to write to it may keep it.
        """
        begun = (counts > 0) & (first < self.held[rows])
        pages = self.table[rows[begun], first[begun]]
        if not (self.shares[pages] > 1).any():
            return []
        found, left = [], {page: int(self.shares[page]) for page in pages.tolist()}
        each = zip(rows[begun].tolist(), first[begun].tolist(), pages.tolist(), strict=True)
        for row, block, page in each:
            if left[page] > 1:
                left[page] -= 1
                found.append((row, block, page))
        return found

    def _take(self) -> int:
        page = int(self.free.pop())
        self.shares[page] = 1
        return page

    def _widen(self, blocks: int) -> None:
        """Room in the tables for so many pages a row."""
        missing = blocks - self.table.shape[1]
        if missing > 0:
            missing = max(missing, self.table.shape[1])
            self.table = np.pad(self.table, ((0, 0), (0, missing)), constant_values=-1)

    def new_row(self) -> int:
        """The number of an empty row that was not there: the lowest one."""
        if self.there.all():
            more = max(self.there.size, 4)
            self.table = np.pad(self.table, ((0, more), (0, 0)), constant_values=-1)
            self.held, self.lengths = (np.pad(a, (0, more)) for a in (self.held, self.lengths))
            self.there = np.pad(self.there, (0, more))
        row = int(np.flatnonzero(~self.there)[0])
        self.there[row] = True
        self.rows = np.flatnonzero(self.there)
        return row

    def fork(self, row: int) -> int:
        """A new row that has the pages of another."""
        new, held = self.new_row(), int(self.blocks_of(self.lengths[row]))
        pages = self.table[row, :held]
        self.table[new, :held], self.held[new] = pages, held
        self.lengths[new] = self.lengths[row]
        self.shares[pages] += 1
        self.forked = True
        return new

    def drop(self, row: int) -> None:
        """Let go of a row and its pages."""
        pages = self.table[row, : self.held[row]].copy()
        self.there[row], self.held[row], self.lengths[row] = False, 0, 0
        self.rows, self.table[row] = np.flatnonzero(self.there), -1
        self.shares[pages] -= 1
        self.free += pages[self.shares[pages] == 0][::-1].tolist()
