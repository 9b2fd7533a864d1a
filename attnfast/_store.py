"""The memory of a cache: tokens that come, go, and change rows."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _core
from ._checks import MOST, row_numbers, whole_number
from ._misread import as_array, spelled, wrong_integers
from ._ring import Ring
from ._signature import plain_signature

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
        self._dims = (
            whole_number(head_dim, "head_dim", 0),
            whole_number(
                head_dim if value_head_dim is None else value_head_dim, "value_head_dim", 0
            ),
        )
        capacity = whole_number(capacity, "capacity", 0)
        self._dtype = as_dtype(dtype)
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

    def _new_memory(self, batch: tuple[int, ...], capacity: int) -> tuple[Array, Array]:
        """Memory for keys and values, which nothing uses yet."""
        key, value = ((*batch, self._heads, capacity, d) for d in self._dims)
        size = sum(math.prod(max(n, 1) for n in shape) for shape in (key, value))
        if size * self._dtype.itemsize > MOST:
            raise MemoryError(f"no memory for keys {key} and values {value}")
        return np.empty(key, self._dtype), np.empty(value, self._dtype)

    def _use(self, batch: tuple[int, ...], capacity: int, memory: tuple[Array, Array]) -> None:
        """Take other memory, in which tokens are already."""
        self._batch, self._front = batch, (*batch, self._heads)
        self._ring = Ring(capacity, capacity if self._window is None else self._sinks)
        self._key, self._value = memory

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
        return self._dims[0]

    @property
    def value_head_dim(self) -> int:
        """Head size of values."""
        return self._dims[1]

    @property
    def capacity(self) -> int:
        """Tokens of a row that there is memory for."""
        return self._ring.capacity

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of keys, values and queries."""
        return self._dtype

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
        """Bytes of memory for keys and values."""
        return self._key.nbytes + self._value.nbytes

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

        Without a window slot ``j`` holds token ``j``; with one, see `positions`. Slots of a row
        that is shorter than others hold nothing of meaning at its end.
        """
        return self._key[..., : self._slots(), :]

    @property
    def value(self) -> Array:
        """The same of values, ``(..., Hk, slots, Dv)``."""
        return self._value[..., : self._slots(), :]

    @property
    def positions(self) -> Array:
        """Which token of its text each slot holds, ``(..., slots)``; -1: none.

        The columns of `mask`, `bias` and returned weights are these slots.
        """
        return self._ring.positions(*self._numbers(), self._slots())

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
            f"KVCache({self._batch}, {self._heads}, {self._dims[0]}, {self._dims[1]}, "
            f"capacity={self.capacity}, dtype={self._dtype.name!r}{window}): up to {longest} tokens"
        )

    # ---- tokens come ----

    @plain_signature
    def append(self, key: ArrayLike, value: ArrayLike, lengths: ArrayLike | None = None) -> None:
        """Put tokens at the end of each row.

        Parameters
        ----------
        key, value : array_like ``(..., Hk, n, D)``, ``(..., Hk, n, Dv)``
            In the dtype of the cache. Keys that are to be rotated have been, see :func:`rotate`.
        lengths : array_like of int, ``batch_shape``, optional
            How many of the `n` tokens of each row are real; the rest is padding, and not read.

        Raises
        ------
        TypeError, ValueError
            Another dtype or shape, or more tokens than there is room for; nothing is written.
        """
        k, v = self._fitting(key, "key", 0), self._fitting(value, "value", 1)
        n = k.shape[-2]
        if v.shape[-2] != n:
            raise ValueError(f"value must have the {n} tokens of key, got {v.shape[-2]}")
        if self._even is not None and lengths is None:
            end = self._even + n
            if end > self._ring.capacity:
                self._make_room(end)
            self._put(k, v, None)
            self._even = end
            return
        counts = row_numbers(n if lengths is None else lengths, "lengths", self._batch, n)
        self._make_room(int((self._numbers()[0] + counts).max(initial=0)))
        self._put(k, v, counts)
        self._late_lengths += counts
        np.maximum(self._late_written, self._late_lengths, out=self._late_written)
        self._settle()

    def _put(self, k: Array, v: Array, counts: Array | None) -> None:
        """Write new tokens to their slots; rows are as long as before."""
        try:
            if counts is not None and counts.ndim and k.shape[-2] == 1:  # a step of uneven rows
                rows = np.nonzero(counts)
                last: Any = (*rows, slice(None), self._ring.slot(self._late_lengths[rows]))
                only: Any = (*rows, slice(None), 0)
                self._key[last], self._value[last] = k[only], v[only]
                return
            for place, new in self._places(k.shape[-2], counts):
                self._key[place], self._value[place] = k[new], v[new]
        except BaseException:  # Ctrl-C: a ring may have lost tokens that were in these slots
            lengths, written = self._numbers()
            np.maximum(written, lengths + k.shape[-2], out=written)
            self._settle()
            raise

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

    def _fitting(self, x: ArrayLike, name: str, which: int) -> Array:
        a = x if type(x) is np.ndarray else as_array(x, name)
        dtype = self._dtype
        if a.dtype is not dtype and a.dtype.newbyteorder("=") != dtype:
            to = f"np.{dtype.name}" if dtype.isbuiltin == 1 else f"ml_dtypes.{dtype.name}"
            raise TypeError(
                f"{name} has dtype {a.dtype} but the cache has {dtype.name}: "
                f"write {spelled(x, name)}.astype({to})"
            )
        shape, d = a.shape, self._dims[which]
        if len(shape) < 3 or shape[:-2] != self._front or shape[-1] != d:
            wanted = ", ".join(map(str, (*self._front, "n", d)))
            raise ValueError(f"{name} must have shape ({wanted}), got {shape}")
        return self._apart(a)

    def _apart(self, a: Array) -> Array:
        """An argument that is read while tokens are written: a copy, if they are in one memory."""
        memory = self._key, self._value
        shares = a.base is not None and any(np.may_share_memory(a, own) for own in memory)
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
        for new, old in zip(memory, (self.key, self.value), strict=True):
            new[..., : old.shape[-2], :] = old
        self._use(self._batch, capacity, memory)

    def _settle(self) -> None:
        """Note whether all rows have one length, and whether more was written to one of them."""
        lengths, written = self._late_lengths, self._late_written
        first = int(lengths.flat[0]) if lengths.size else self._even
        self._even = first if (lengths == first).all() else None
        self._cut = self._window is not None and bool((written > lengths).any())

    # ---- rows change ----

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
        for a in (self._key, self._value):
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
        for new, old in zip(memory, (self.key, self.value), strict=True):
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

    # ---- copies ----

    def __getstate__(self) -> dict[str, Any]:
        """What is in use, without the rest of the memory."""
        lengths, written = self._numbers()
        return {
            "batch_shape": self._batch,
            "num_kv_heads": self._heads,
            "dims": self._dims,
            "capacity": self.capacity,
            "window": self._window,
            "sinks": self._sinks,
            "grow": self._grow,
            "lengths": lengths,
            "written": written,
            "key": self.key,
            "value": self.value,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take memory for all, and copy what was in use."""
        key, value = state["key"], state["value"]
        d, dv = state["dims"]
        names = ("batch_shape", "num_kv_heads", "capacity", "window", "sinks", "grow")
        sizes = {"head_dim": d, "value_head_dim": dv, "dtype": key.dtype}
        Store.__init__(self, **sizes, **{name: state[name] for name in names})
        self._late_lengths[...], self._late_written[...] = state["lengths"], state["written"]
        self._settle()
        self._key[..., : key.shape[-2], :] = key
        self._value[..., : key.shape[-2], :] = value


def as_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """A dtype of caches by its name, or what NumPy takes for one."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise ImportError(
                'dtype="bfloat16" needs the package ml_dtypes: pip install ml_dtypes'
            ) from None
        half: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return half
    try:
        found: np.dtype[Any] | None = np.dtype(dtype).newbyteorder("=")
    except TypeError:
        found = None
    if dtype is None or found is None or found.name not in _core.DTYPES:
        accepted = "float32, float64, float16 or bfloat16"
        raise TypeError(f"dtype must be {accepted}, got {dtype!r}")
    return found
