"""The memory of a cache, and tokens that come."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ._checks import row_numbers, whole_number
from ._ring import Ring
from ._signature import plain_signature
from ._storage import NAMES, Parts, Storage

Array = NDArray[Any]
ALL = slice(None)


class Store:
    """Keys and values of rows of tokens; what :class:`attnfast.KVCache` documents."""

    @plain_signature
    def __init__(
        self,
        batch_shape: int | Sequence[int],
        num_kv_heads: int,
        head_dim: int,
        value_head_dim: int | None = None,
        *,
        capacity: int,
        dtype: DTypeLike = "float32",
        window: int | None = None,
        sinks: int = 0,
        grow: bool = False,
    ) -> None:
        given = batch_shape if isinstance(batch_shape, (tuple, list)) else (batch_shape,)
        self._batch = tuple(whole_number(n, "batch_shape", 0) for n in given)
        self._heads = whole_number(num_kv_heads, "num_kv_heads", 1)
        dims = head_dim, head_dim if value_head_dim is None else value_head_dim
        names = "head_dim", "value_head_dim"
        d, dv = (whole_number(n, name, 0) for n, name in zip(dims, names, strict=True))
        capacity = whole_number(capacity, "capacity", 0)
        self._storage = Storage(dtype, (d, dv))
        self._window = None if window is None else whole_number(window, "window", 1)
        self._sinks = whole_number(sinks, "sinks", 0)
        if not isinstance(grow, (bool, np.bool_)):
            raise TypeError(f"grow must be True or False, got {type(grow).__name__}")
        self._grow = bool(grow)
        self._check_window(capacity)
        self._use(self._batch, capacity, self._new_memory(self._batch, capacity))
        # The length of all rows, if they have one, and else those of each. Lengths and what was
        # written, see Ring.positions, are behind by what was appended since all became equal.
        self._even: int | None = 0
        self._late_lengths = np.zeros(self._batch, np.int64)
        self._late_written = np.zeros(self._batch, np.int64)
        self._cut = False  # whether more was written, in some row of a ring, than its length

    def _check_window(self, capacity: int) -> None:
        if self._window is None and self._sinks:
            raise ValueError(
                f"sinks must be 0 without a window, got {self._sinks}: every token is kept"
            )
        if self._window is not None and self._grow:
            raise ValueError("grow must be False with a window: a ring is never full")
        if self._window is not None and capacity < self._window + self._sinks:
            raise ValueError(
                f"capacity must be at least window + sinks, {self._window + self._sinks}, "
                f"got {capacity}"
            )

    def _new_memory(self, batch: tuple[int, ...], capacity: int) -> Parts:
        """Memory for keys and values, which nothing uses yet."""
        return self._storage.empty((*batch, self._heads), capacity)

    def _use(self, batch: tuple[int, ...], capacity: int, memory: Parts) -> None:
        """Take other memory, in which tokens are already."""
        self._batch, self._front = batch, (*batch, self._heads)
        self._ring = Ring(capacity, capacity if self._window is None else self._sinks)
        self._memory = memory

    # ---- what it is and holds ----

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Axes before the heads."""
        return self._batch

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads."""
        return self._heads

    @property
    def head_dim(self) -> int:
        """Head size of keys."""
        return self._storage.dims[0]

    @property
    def value_head_dim(self) -> int:
        """Head size of values."""
        return self._storage.dims[1]

    @property
    def capacity(self) -> int:
        """Tokens of a row that there is memory for."""
        return self._ring.capacity

    @property
    def dtype(self) -> np.dtype[Any]:
        """In which keys and values are stored."""
        return self._storage.dtype

    @property
    def window(self) -> int | None:
        """How many tokens a token sees, itself included, beside the sinks; None: all before it."""
        return self._window

    @property
    def sinks(self) -> int:
        """The first tokens of a text, which all see."""
        return self._sinks

    @property
    def nbytes(self) -> int:
        """Bytes of memory for keys and values, and for their scales."""
        return sum(part.nbytes for part in self._memory)

    @property
    def lengths(self) -> Array:
        """Tokens of each row so far, those that a window has forgotten included.

        A copy, read-only: it stays what it was when tokens come and go.
        """
        lengths = self._numbers()[0].copy()
        lengths.flags.writeable = False
        return lengths

    @property
    def key(self) -> Array:
        """The slots of keys that are in use, ``(..., Hk, slots, D)``: a view.

        Of keys in 8 bits a copy of the numbers that they stand for, in float32. Without a window
        slot ``j`` holds token ``j``; with one, see `positions`. Slots of a row that is shorter than
        others hold nothing of meaning at its end.
        """
        return self._storage.real(self._used(), 0)

    @property
    def value(self) -> Array:
        """The same of values, ``(..., Hk, slots, Dv)``."""
        return self._storage.real(self._used(), 1)

    @property
    def positions(self) -> Array:
        """Which token of its text each slot holds, ``(..., slots)``; -1: none.

        The columns of `mask`, `bias` and returned weights are these slots.
        """
        return self._ring.positions(*self._numbers(), self._slots())

    def _used(self) -> Parts:
        """What is stored in the slots that are in use."""
        slots = self._slots()
        return tuple([part[..., :slots, :] for part in self._memory])

    def _slots(self) -> int:
        if self._even is not None and not self._cut:
            return min(self._even, self._ring.capacity)
        lengths, written = self._numbers()
        return min(int((written if self._window else lengths).max()), self._ring.capacity)

    def _numbers(self) -> tuple[Array, Array]:
        """How long each row is, and how long it has been since it was empty."""
        if self._even is not None:
            self._late_lengths[...] = self._even
            np.maximum(self._late_written, self._late_lengths, out=self._late_written)
        return self._late_lengths, self._late_written

    def __repr__(self) -> str:
        window = f", window={self._window}, sinks={self._sinks}" if self._window else ""
        longest = int(self.lengths.max(initial=0))
        return (
            f"KVCache({self._batch}, {self._heads}, {self.head_dim}, {self.value_head_dim}, "
            f"capacity={self.capacity}, dtype={self.dtype.name!r}{window}): up to {longest} tokens"
        )

    def _repr_html_(self) -> str:
        from . import _html

        lengths, room = self.lengths, max(self.capacity, 1)
        texts = (
            (f"row {', '.join(map(str, place))}".strip(), f"{n:,} tokens", n / room)
            for place, n in np.ndenumerate(lengths)
        )
        return _html.cache(repr(self), texts, lengths.size, self.nbytes)

    # ---- tokens come ----

    @plain_signature
    def append(self, key: ArrayLike, value: ArrayLike, lengths: ArrayLike | None = None) -> None:
        """Put tokens at the end of each row.

        Parameters
        ----------
        key, value : array_like ``(..., Hk, n, D)``, ``(..., Hk, n, Dv)``
            In the dtype of the cache; of float32, float64, float16 or bfloat16 for one that stores
            8 bits. Keys that are to be rotated have been, see :func:`rotate`.
        lengths : array_like of int, ``batch_shape``, optional
            How many of the `n` tokens of each row are real; the rest is padding, and not read.

        Raises
        ------
        TypeError, ValueError
            Another dtype or shape, more tokens than there is room for, or numbers that are not
            finite, for a cache that stores 8 bits; nothing is written.
        """
        k, v = self._fitting(key, 0), self._fitting(value, 1)
        n = k.shape[-2]
        if v.shape[-2] != n:
            raise ValueError(f"value must have the {n} tokens of key, got {v.shape[-2]}")
        counts = None if lengths is None else row_numbers(lengths, "lengths", self._batch, n)
        self._append(self._storage.rows(k, v, counts), counts)

    def _append(self, new: Parts, counts: Array | None) -> None:
        n = new[0].shape[-2]
        if self._even is not None and counts is None:
            end = self._even + n
            if end > self._ring.capacity:
                self._make_room(end)
            self._put(new, None)
            self._even = end
            return
        if counts is None:
            counts = np.full(self._batch, n)
        self._make_room(int((self._numbers()[0] + counts).max(initial=0)))
        self._put(new, counts)
        self._late_lengths += counts
        np.maximum(self._late_written, self._late_lengths, out=self._late_written)
        self._settle()

    def _put(self, new: Parts, counts: Array | None) -> None:
        """Write new tokens to their slots; rows are as long as before."""
        n = new[0].shape[-2]
        try:
            if counts is None and self._even is not None:
                for slots, rows in self._ring.pieces(self._even, n):
                    self._put_all(new, slots, rows)
            elif counts is not None and counts.ndim and n == 1:  # a step of uneven rows
                some = np.nonzero(counts)
                last: Any = (*some, ALL, self._ring.slot(self._late_lengths[some]))
                only: Any = (*some, ALL, 0)
                for own, part in zip(self._memory, new, strict=True):
                    own[last] = part[only]
            else:
                for place, which in self._places(n, counts):
                    for own, part in zip(self._memory, new, strict=True):
                        own[place] = part[which]
        except BaseException:  # Ctrl-C: a ring may have lost tokens that were in these slots
            lengths, written = self._numbers()
            np.maximum(written, lengths + n, out=written)
            self._settle()
            raise

    def _put_all(self, new: Parts, slots: slice, rows: slice) -> None:
        """The same slots of all rows."""
        whole = rows.start == 0 and rows.stop == new[0].shape[-2]
        place = (..., slots, ALL)
        for own, part in zip(self._memory, new, strict=True):
            own[place] = part if whole else part[..., rows, :]

    def _places(self, n: int, counts: Array | None) -> Iterator[tuple[Any, Any]]:
        """Where new tokens go: an index of arrays of slots, and one of arrays of new tokens."""
        if counts is None and self._even is not None:
            for slots, new in self._ring.pieces(self._even, n):
                yield (..., slots, ALL), (..., new, ALL)
            return
        lengths = self._numbers()[0]
        for row in np.ndindex(self._batch):
            count = n if counts is None else int(counts[row])
            for slots, new in self._ring.pieces(int(lengths[row]), count):
                yield (*row, ..., slots, ALL), (*row, ..., new, ALL)

    def _fitting(self, x: ArrayLike, which: int) -> Array:
        a = self._storage.fitting(x, which, self._front)
        return a if a.base is None else self._apart(a)

    def _apart(self, a: Array) -> Array:
        """An argument that is read while tokens are written: a copy, if they are in one memory."""
        shares = any(np.may_share_memory(a, own) for own in self._memory)
        return a.copy() if shares else a

    def _make_room(self, longest: int) -> None:
        """Room for a row of this length, or an error. A ring has room for any."""
        if self._window is not None or longest <= self._ring.capacity:
            return
        if not self._grow:
            raise ValueError(
                f"key has more tokens than there is room for: a row would have {longest}, the "
                f"capacity is {self.capacity}: make the cache with capacity={longest} or more, or "
                "with grow=True"
            )
        capacity = max(longest, 2 * self.capacity)
        memory = self._new_memory(self._batch, capacity)
        for new, old in zip(memory, self._used(), strict=True):
            new[..., : old.shape[-2], :] = old
        self._use(self._batch, capacity, memory)

    def _settle(self) -> None:
        """Note whether all rows have one length, and whether more was written to one of them."""
        lengths, written = self._late_lengths, self._late_written
        first = int(lengths.flat[0]) if lengths.size else self._even
        self._even = first if (lengths == first).all() else None
        self._cut = self._window is not None and bool((written > lengths).any())

    # ---- copies ----

    def __getstate__(self) -> dict[str, Any]:
        """What is in use, without the rest of the memory."""
        lengths, written = self._numbers()
        return {
            "batch_shape": self._batch,
            "num_kv_heads": self._heads,
            "dims": self._storage.dims,
            "dtype": self.dtype,
            "capacity": self.capacity,
            "window": self._window,
            "sinks": self._sinks,
            "grow": self._grow,
            "lengths": lengths,
            "written": written,
            **dict(zip(NAMES, self._used(), strict=False)),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take memory for all, and copy what was in use."""
        d, dv = state["dims"]
        names = "batch_shape", "num_kv_heads", "capacity", "dtype", "window", "sinks", "grow"
        Store.__init__(self, head_dim=d, value_head_dim=dv, **{name: state[name] for name in names})
        self._late_lengths[...], self._late_written[...] = state["lengths"], state["written"]
        self._settle()
        for own, name in zip(self._memory, NAMES, strict=False):
            part = state[name]
            own[..., : part.shape[-2], :] = part


Store.__init__.__qualname__ = "KVCache.__init__"  # Python's errors about arguments name it
