"""Keys and values of many texts in pages that they share."""

import copy
from typing import Any, Literal, Never, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _core
from ._checks import row_numbers, whole_number
from ._misread import as_array, wrong_integers
from ._pages import Pages
from ._signature import check_arguments, plain_signature, takes
from ._storage import NAMES, Parts, Storage
from .options import CacheKeywords, CacheOptions
from .result import AttentionResult

Array = NDArray[Any]
Result = Array | AttentionResult


class PagedKVCache:
    """Keys and values of texts in pages of one pool, and attention of new tokens over them.

    A text takes a page when its last one is full [1]_, so that many texts of unknown length fit one
    memory. `fork` makes a second text with the same beginning: both have the same pages, and a page
    is copied when one of them writes to it.

    Parameters
    ----------
    num_rows : int
        Texts to begin with, all empty: rows ``0 .. num_rows - 1``.
    num_kv_heads : int
        Key/value heads; queries may have a multiple of them.
    head_dim : int
        Head size of keys.
    value_head_dim : int, optional
        That of values, default `head_dim`.
    pages : int
        Pages that there are. Their memory is taken at once.
    page_size : int
        Tokens of a page.
    dtype : str or dtype
        As for :class:`KVCache`.

    Raises
    ------
    TypeError, ValueError
        A number that is not whole or out of range, or a dtype that is not accepted.
    MemoryError
        No memory for the pages.

    See Also
    --------
    KVCache : A row of memory for each text; windows, beams, files.

    References
    ----------
    .. [1] W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with
       PagedAttention", 2023.

    Examples
    --------
    Two questions about one text of 100 tokens, which is kept once:

    >>> import numpy as np
    >>> from attnfast import PagedKVCache
    >>> rng = np.random.default_rng(0)
    >>> def tokens(n, heads):
    ...     return rng.standard_normal((1, heads, n, 64), dtype=np.float32)
    >>> cache = PagedKVCache(1, 2, 64, pages=20)
    >>> cache.append(tokens(100, 2), tokens(100, 2))
    >>> other = cache.fork(0)
    >>> for row in (0, other):
    ...     cache.append(tokens(5, 2), tokens(5, 2), rows=row)
    ...     output = cache.attend(tokens(5, 8), rows=row)
    >>> cache.lengths, cache.free_pages
    (array([105, 105]), 12)
    """

    @plain_signature
    def __init__(
        self,
        num_rows: int,
        num_kv_heads: int,
        head_dim: int,
        value_head_dim: int | None = None,
        *,
        pages: int,
        page_size: int = 16,
        dtype: DTypeLike = "float32",
    ) -> None:
        rows = whole_number(num_rows, "num_rows", 0)
        self._heads = whole_number(num_kv_heads, "num_kv_heads", 1)
        dims = head_dim, head_dim if value_head_dim is None else value_head_dim
        names = "head_dim", "value_head_dim"
        d, dv = (whole_number(n, name, 0) for n, name in zip(dims, names, strict=True))
        count, size = whole_number(pages, "pages", 0), whole_number(page_size, "page_size", 1)
        self._storage = Storage(dtype, (d, dv))
        self._memory = self._storage.empty((count, self._heads), size)
        self._pages = Pages(count, size, rows)

    # ---- what it is and holds ----

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
    def dtype(self) -> np.dtype[Any]:
        """In which keys and values are stored."""
        return self._storage.dtype

    @property
    def num_pages(self) -> int:
        """Pages that there are."""
        return self._pages.count

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return self._pages.size

    @property
    def free_pages(self) -> int:
        """Pages that no text has."""
        return len(self._pages.free)

    @property
    def nbytes(self) -> int:
        """Bytes of memory of all pages, with the scales of 8 bits."""
        return sum(part.nbytes for part in self._memory)

    @property
    def rows(self) -> Array:
        """The numbers of the texts that are there."""
        return self._pages.rows.copy()

    @property
    def lengths(self) -> Array:
        """Tokens of each of `rows`."""
        lengths: Array = self._pages.lengths[self._pages.rows]
        return lengths

    @property
    def block_table(self) -> Array:
        """The pages of each of `rows`, ``(rows, blocks)``; -1 after the last one."""
        return self._pages.table_of(self._pages.rows)

    @property
    def key(self) -> Array:
        """The pool of pages, ``(pages, Hk, page_size, D)``: a view.

        Of keys in 8 bits a copy of the numbers that they stand for, in float32.
        """
        return self._storage.real(self._memory, 0)[...]

    @property
    def value(self) -> Array:
        """The same of values, ``(pages, Hk, page_size, Dv)``."""
        return self._storage.real(self._memory, 1)[...]

    def __repr__(self) -> str:
        return (
            f"PagedKVCache({self.rows.size}, {self._heads}, {self.head_dim}, "
            f"{self.value_head_dim}, pages={self.num_pages}, page_size={self.page_size}, "
            f"dtype={self.dtype.name!r}): {self.free_pages} pages free"
        )

    def _repr_html_(self) -> str:
        from . import _html

        pages, whole = self._pages, max(self.num_pages, 1)
        counts = {
            "used": self.num_pages - self.free_pages,
            "free": self.free_pages,
            "shared": int((pages.shares > 1).sum()),
        }
        above = [(f"pages {name}", f"{n:,}", n / whole) for name, n in counts.items()]
        each = zip(pages.rows.tolist(), self.lengths.tolist(), strict=True)
        texts = (
            (f"row {row}", f"{n:,} tokens, {pages.held[row]:,} pages", pages.held[row] / whole)
            for row, n in each
        )
        return _html.cache(repr(self), texts, pages.rows.size, self.nbytes, above)

    # ---- texts ----

    @plain_signature
    def add(self) -> int:
        """Begin a text.

        Returns
        -------
        int
            The number of its row, the lowest one that is not in use.
        """
        return self._pages.new_row()

    @plain_signature
    def fork(self, row: int) -> int:
        """Begin a text with all tokens of another, which takes no memory: pages are shared.

        Parameters
        ----------
        row : int
            The text to begin with.

        Returns
        -------
        int
            The number of the new row, the lowest one that is not in use.

        Raises
        ------
        TypeError, ValueError
            No number of a row that is there.
        """
        number = self._row(row)
        with self._pages.counted():
            return self._pages.fork(number)

    @plain_signature
    def free(self, row: int) -> None:
        """Drop a text; its pages are free if no other text has them.

        Parameters
        ----------
        row : int
            The text. Its number may be given to a new one.

        Raises
        ------
        TypeError, ValueError
            No number of a row that is there.
        """
        number = self._row(row)
        with self._pages.counted():
            self._pages.drop(number)

    # ---- tokens ----

    @plain_signature
    def append(
        self,
        key: ArrayLike,
        value: ArrayLike,
        lengths: ArrayLike | None = None,
        rows: ArrayLike | None = None,
    ) -> None:
        """Put tokens at the end of texts.

        Parameters
        ----------
        key, value : array_like ``(rows, Hk, n, D)``, ``(rows, Hk, n, Dv)``
            As for :meth:`KVCache.append`.
        lengths : array_like of int ``(rows,)``, optional
            How many of the `n` tokens of each text are real; the rest is padding, and not read.
        rows : int or array_like of int ``(rows,)``, optional
            Which texts, each once. Default all, in the order of their numbers.

        Raises
        ------
        TypeError, ValueError
            Another dtype or shape, rows that are not there, or numbers that are not finite, for a
            cache that stores 8 bits; nothing is written.
        MemoryError
            Too few pages are free; nothing is written.
        """
        chosen = self._chosen(rows)
        if rows is not None and len(set(chosen.tolist())) != chosen.size:
            raise ValueError(f"rows must name each text once, got {chosen.tolist()}")
        front = (chosen.size, self._heads)
        k, v = (self._storage.fitting(x, n, front) for n, x in enumerate((key, value)))
        n = k.shape[-2]
        if v.shape[-2] != n:
            raise ValueError(f"value must have the {n} tokens of key, got {v.shape[-2]}")
        counts = np.full(chosen.size, n)
        if lengths is not None:
            counts = row_numbers(lengths, "lengths", (chosen.size,), n)
        new = self._storage.rows(k, v, None if lengths is None else counts)
        if any(a.base is not None and self._shares_memory(a) for a in new):
            new = tuple(a.copy() for a in new)
        needed = self._pages.needed(chosen, counts)
        with self._pages.counted():
            self._pages.take(chosen, needed, self._copy_page)
            self._write(new, chosen, counts)
            self._pages.lengths[chosen] += counts

    def _shares_memory(self, a: Array) -> bool:
        return any(np.may_share_memory(a, own) for own in self._memory)

    def _copy_page(self, old: int, new: int) -> None:
        for own in self._memory:
            own[new] = own[old]

    def _write(self, new: Parts, rows: Array, counts: Array) -> None:
        """New tokens to the pages that rows have for them."""
        if new[0].shape[-2] != 1:
            for i, (row, count) in enumerate(zip(rows.tolist(), counts.tolist(), strict=True)):
                self._write_row(tuple(part[i, :, :count] for part in new), row)
            return
        some: Any = slice(None) if counts.all() else counts > 0
        where = rows[some]
        block, slot = np.divmod(self._pages.lengths[where], self._pages.size)
        page = self._pages.table[where, block]
        for own, part in zip(self._memory, new, strict=True):
            own[page, :, slot] = part[some, :, 0]

    def _write_row(self, new: Parts, row: int) -> None:
        """The same of one row: tokens ``(Hk, n, D)``."""
        size, count, done = self._pages.size, new[0].shape[-2], 0
        first = int(self._pages.lengths[row])
        while done < count:
            block, slot = divmod(first + done, size)
            n, page = min(size - slot, count - done), self._pages.table[row, block]
            for own, part in zip(self._memory, new, strict=True):
                own[page, :, slot : slot + n] = part[:, done : done + n]
            done += n

    @overload
    def attend(
        self,
        query: ArrayLike,
        rows: ArrayLike | None = ...,
        *,
        return_lse: Literal[False] = ...,
        return_weights: Literal[False] = ...,
        **options: Unpack[CacheOptions],
    ) -> Array: ...
    @overload
    def attend(
        self,
        query: ArrayLike,
        rows: ArrayLike | None = ...,
        *,
        return_lse: Literal[True],
        return_weights: bool = ...,
        **options: Unpack[CacheOptions],
    ) -> AttentionResult: ...
    @overload
    def attend(
        self,
        query: ArrayLike,
        rows: ArrayLike | None = ...,
        *,
        return_lse: bool = ...,
        return_weights: Literal[True],
        **options: Unpack[CacheOptions],
    ) -> AttentionResult: ...
    @overload
    def attend(
        self,
        query: ArrayLike,
        rows: ArrayLike | None = ...,
        *,
        return_lse: bool = ...,
        return_weights: bool = ...,
        **options: Unpack[CacheOptions],
    ) -> Result: ...
    @takes(CacheKeywords)
    def attend(
        self,
        query: ArrayLike,
        rows: ArrayLike | None = None,
        *extra: Never,
        **options: Unpack[CacheKeywords],
    ) -> Result:
        """Attention over texts; the last query is at the last token of its text, causal.

        Parameters
        ----------
        query : array_like ``(rows, H, n, D)``
            The last `n` tokens of each text, whose keys have been appended. Where a text has fewer
            tokens than `n`, the first queries are before its first token: zero rows, as they see
            nothing.
        rows : int or array_like of int ``(rows,)``, optional
            Which texts. Default all, in the order of their numbers.
        mask, bias : optional
            As for :func:`attnfast.attention`, with a column for each token that the pages of the
            longest of these texts have room for.
        window_size, q_lengths, kv_starts : optional
            As for :func:`attnfast.attention`.
        scale, softcap, alibi_slopes, sink_logits : optional
            As for :func:`attnfast.attention`.
        return_lse, return_weights, out, num_threads : optional
            As for :func:`attnfast.attention`; the columns of weights are those of `mask`.

        Returns
        -------
        ndarray or AttentionResult
            As for :func:`attnfast.attention`.

        Raises
        ------
        TypeError, ValueError
            As for :func:`attnfast.attention`, and rows that are not there.
        """
        if extra or options:
            check_arguments(PagedKVCache.attend, extra, options)
        q, chosen = as_array(query, "query"), self._chosen(rows)
        if q.ndim != 4 or q.shape[0] != chosen.size:
            raise ValueError(
                f"query must have shape ({chosen.size}, heads, tokens, head size), one for each "
                f"of the rows, got {q.shape}"
            )
        stored = {
            "block_table": self._pages.table_of(chosen),
            "kv_lengths": self._pages.lengths[chosen],
            **self._storage.scales(self._memory),
        }
        place = {"q_offset": "end", "is_causal": True}
        return _core.attention(q, self._memory[0], self._memory[1], {**options, **stored, **place})

    # ---- rows ----

    def _row(self, row: int) -> int:
        number = whole_number(row, "row", 0)
        self._check_rows([number], "row")
        return number

    def _chosen(self, rows: ArrayLike | None) -> Array:
        if rows is None:
            return self._pages.rows
        a = as_array(rows, "rows")
        if a.dtype.kind not in "iu" and a.size:
            raise wrong_integers(a, rows, "rows")
        if a.ndim > 1:
            raise ValueError(f"rows must have one axis, got shape {a.shape}")
        self._check_rows(a.ravel().tolist(), "rows")
        return np.atleast_1d(a).astype(np.int64)

    def _check_rows(self, rows: list[int], name: str) -> None:
        there = self._pages.there
        for row in rows:
            if not (0 <= row < there.size and there[row]):
                raise ValueError(f"{name} must be of {self._pages.rows.tolist()}, got {row}")

    # ---- copies ----

    def __getstate__(self) -> dict[str, Any]:
        """Without the pages that are free."""
        used = np.flatnonzero(self._pages.shares)
        return {
            "num_kv_heads": self._heads,
            "dims": self._storage.dims,
            "dtype": self.dtype,
            "pages": copy.deepcopy(self._pages),
            "used": used,
            **{name: part[used] for name, part in zip(NAMES, self._memory, strict=False)},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._heads = state["num_kv_heads"]
        self._storage = Storage(state["dtype"], state["dims"])
        self._pages = state["pages"]
        self._memory = self._storage.empty((self._pages.count, self._heads), self._pages.size)
        for own, name in zip(self._memory, NAMES, strict=False):
            own[state["used"]] = state[name]
