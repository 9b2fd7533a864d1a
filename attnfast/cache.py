"""Keys and values of a text that grows: what a decoder keeps from step to step."""

import os
from typing import IO, Any, Literal, Never, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core
from ._cache_file import read, write
from ._checks import row_numbers
from ._misread import as_array
from ._rows import Rows
from ._signature import check_arguments, plain_signature, takes
from ._storage import Parts
from ._windowed import MASKED_QUERIES, OF_PAIRS, Kept, attend_in_order, attend_stored
from .options import CacheKeywords, CacheOptions, ExtendKeywords, ExtendOptions
from .result import AttentionResult

Array = NDArray[Any]
Options = dict[str, Any]
OF_ROWS = {"alibi_slopes", "kv_starts", "q_lengths", "window_size"}
Result = Array | AttentionResult
Replaced = list[tuple[Any, Parts]]  # places, and what was there


class KVCache(Rows):
    r"""Keys and values of texts that grow, and attention of new tokens over them.

    Each batch row holds a text of its own length. Without a window a row keeps up to `capacity`
    tokens. With one it keeps the last tokens in a ring and the first `sinks` besides [1]_: memory
    does not grow with the text, positions do.

    Parameters
    ----------
    batch_shape : int or tuple of int
        Axes before the heads, ``()`` for one text in arrays of rank 3.
    num_kv_heads : int
        Key/value heads; queries may have a multiple of them.
    head_dim : int
        Head size of keys.
    value_head_dim : int, optional
        That of values, default `head_dim`.
    capacity : int
        Tokens of a row that there is memory for; with a window at least ``window + sinks``.
    dtype : str or dtype
        In which keys and values are stored: float32, float64, float16 or bfloat16, also that of
        queries; or int8, float8_e4m3fn or float8_e5m2, with a scale for each token and head, see
        :func:`quantize`. Keys, values and queries are then of float32, float16 or bfloat16.
    window : int, optional
        A token sees the last `window` tokens, itself included, and the sinks. A window of
        :func:`attnfast.attention` does not count the token itself: it is ``(window - 1, 0)`` there.
    sinks : int
        The first tokens of a text, which all tokens see. Only with a window.
    grow : bool
        Take more memory for a token too many, twice as much at a time. Default: it is an error.

    Raises
    ------
    TypeError, ValueError
        A number that is not whole or out of range, a dtype that is not accepted, or a `capacity`
        that is less than the window and the sinks.
    MemoryError
        No memory for the capacity.

    See Also
    --------
    rotate : Rotary position embedding, for keys before they are appended.

    References
    ----------
    .. [1] G. Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023.

    Examples
    --------
    A prompt of 10 tokens, then one token at a time; 8 query heads share 2 key/value heads:

    >>> import numpy as np
    >>> from attnfast import KVCache
    >>> rng = np.random.default_rng(0)
    >>> def tokens(n, heads):
    ...     return rng.standard_normal((1, heads, n, 64), dtype=np.float32)
    >>> cache = KVCache(1, 2, 64, capacity=100)
    >>> cache.extend(tokens(10, 8), tokens(10, 2), tokens(10, 2)).shape
    (1, 8, 10, 64)
    >>> for _ in range(5):
    ...     cache.append(tokens(1, 2), tokens(1, 2))
    ...     output = cache.attend(tokens(1, 8))
    >>> output.shape, cache.lengths
    ((1, 8, 1, 64), array([15]))

    The same in 8 bits:

    >>> cache = KVCache(1, 2, 64, capacity=100, dtype="int8")
    >>> cache.extend(tokens(10, 8), tokens(10, 2), tokens(10, 2)).dtype, cache.nbytes
    (dtype('float32'), 27200)
    """

    # ---- attention ----

    @overload
    def attend(
        self,
        query: ArrayLike,
        *,
        return_lse: Literal[False] = ...,
        return_weights: Literal[False] = ...,
        **options: Unpack[CacheOptions],
    ) -> Array: ...
    @overload
    def attend(
        self,
        query: ArrayLike,
        *,
        return_lse: Literal[True],
        return_weights: bool = ...,
        **options: Unpack[CacheOptions],
    ) -> AttentionResult: ...
    @overload
    def attend(
        self,
        query: ArrayLike,
        *,
        return_lse: bool = ...,
        return_weights: Literal[True],
        **options: Unpack[CacheOptions],
    ) -> AttentionResult: ...
    @overload
    def attend(
        self,
        query: ArrayLike,
        *,
        return_lse: bool = ...,
        return_weights: bool = ...,
        **options: Unpack[CacheOptions],
    ) -> Result: ...
    @takes(CacheKeywords)
    def attend(self, query: ArrayLike, *extra: Never, **options: Unpack[CacheKeywords]) -> Result:
        """Attention over what is kept; the last query is at the last token of its row, causal.

        Parameters
        ----------
        query : array_like ``(..., H, n, D)``
            The last `n` tokens of each row, whose keys have been appended. Where a row has fewer
            tokens than `n`, the first queries are before its first token: zero rows, as they see
            nothing.
        mask, bias : optional
            As for :func:`attnfast.attention`, with a column for each slot of `key`: without a
            window those are tokens, with one see `positions`.
        window_size : optional
            As for :func:`attnfast.attention`, of a cache without a window of its own.
        q_lengths : array_like of int, ``batch_shape``, optional
            How many of the `n` queries of each row are real.
        kv_starts : array_like of int, ``batch_shape``, optional
            Tokens before these are padding on the left, and never seen.
        scale, softcap, alibi_slopes, sink_logits : optional
            As for :func:`attnfast.attention`.
        return_lse, return_weights, out, num_threads : optional
            As for :func:`attnfast.attention`.

        Returns
        -------
        ndarray or AttentionResult
            As for :func:`attnfast.attention`.

        Raises
        ------
        TypeError, ValueError
            As for :func:`attnfast.attention`; and more queries than the ring of a window can
            answer, as it has forgotten what the first of them sees: then use `extend`.
        """
        if extra or options:
            check_arguments(KVCache.attend, extra, options)
        return self._attend(self._checked_query(query), {**options})

    @overload
    def extend(
        self,
        query: ArrayLike,
        key: ArrayLike,
        value: ArrayLike,
        lengths: ArrayLike | None = ...,
        *,
        return_lse: Literal[False] = ...,
        return_weights: Literal[False] = ...,
        **options: Unpack[ExtendOptions],
    ) -> Array: ...
    @overload
    def extend(
        self,
        query: ArrayLike,
        key: ArrayLike,
        value: ArrayLike,
        lengths: ArrayLike | None = ...,
        *,
        return_lse: Literal[True],
        return_weights: bool = ...,
        **options: Unpack[ExtendOptions],
    ) -> AttentionResult: ...
    @overload
    def extend(
        self,
        query: ArrayLike,
        key: ArrayLike,
        value: ArrayLike,
        lengths: ArrayLike | None = ...,
        *,
        return_lse: bool = ...,
        return_weights: Literal[True],
        **options: Unpack[ExtendOptions],
    ) -> AttentionResult: ...
    @overload
    def extend(
        self,
        query: ArrayLike,
        key: ArrayLike,
        value: ArrayLike,
        lengths: ArrayLike | None = ...,
        *,
        return_lse: bool = ...,
        return_weights: bool = ...,
        **options: Unpack[ExtendOptions],
    ) -> Result: ...
    @takes(ExtendKeywords)
    def extend(
        self,
        query: ArrayLike,
        key: ArrayLike,
        value: ArrayLike,
        lengths: ArrayLike | None = None,
        *extra: Never,
        **options: Unpack[ExtendKeywords],
    ) -> Result:
        """Put tokens at the end of each row, and return their attention.

        For any number of tokens, also where a window forgets: each of them sees its own last
        `window` tokens, and the sinks.

        Parameters
        ----------
        query : array_like ``(..., H, n, D)``
            Of the new tokens.
        key, value : array_like ``(..., Hk, n, D)``, ``(..., Hk, n, Dv)``
            As for `append`.
        lengths : array_like of int, ``batch_shape``, optional
            As for `append`; also of the queries.
        mask, bias : optional
            As for `attend`, with the slots that there are afterwards. Where a window forgets what
            one of the new tokens sees, there are no such slots, and these, like `return_weights`,
            are a ValueError.
        window_size, kv_starts, scale, softcap, alibi_slopes, sink_logits : optional
            As for `attend`.
        return_lse, return_weights, out, num_threads : optional
            As for `attend`.

        Returns
        -------
        ndarray or AttentionResult
            As for :func:`attnfast.attention`; rows from `lengths` on are 0.

        Raises
        ------
        TypeError, ValueError
            As for `append` and `attend`; nothing is appended.
        """
        if extra or options:
            check_arguments(KVCache.extend, extra, options)
        q = self._apart(self._checked_query(query))
        k, v = self._fitting(key, 0), self._fitting(value, 1)
        n = q.shape[-2]
        if k.shape[-2] != n or v.shape[-2] != n:
            raise ValueError(
                f"query, key and value must have one number of tokens, got {n}, {k.shape[-2]} "
                f"and {v.shape[-2]}: attend takes queries of tokens that are there"
            )
        given: Options = dict(options)
        counts = None if lengths is None else row_numbers(lengths, "lengths", self._batch, n)
        if counts is not None:
            given["q_lengths"] = counts
        new = self._storage.rows(k, v, counts)
        if self._window is None:
            replaced: Replaced = []
        elif n <= self._ring.size - self._window + 1 or self._keeps_all(n):
            replaced = self._replaced(n, counts)
        else:
            return self._extend_in_order(q, new, given)
        before = [a.copy() for a in self._numbers()]
        capacity, memory = self.capacity, self._memory
        try:
            self._append(new, counts)
            return self._attend(q, given)
        except BaseException:
            self._use(self._batch, capacity, memory)
            self._late_lengths[...], self._late_written[...] = before
            self._settle()
            for place, parts in replaced:
                for own, part in zip(memory, parts, strict=True):
                    own[place] = part
            raise

    def _keeps_all(self, n: int) -> bool:
        """Whether no row has replaced a token, or will by `n` more."""
        return int(self._numbers()[1].max(initial=0)) + n <= self.capacity

    def _replaced(self, n: int, counts: Array | None) -> Replaced:
        """What slots of a ring hold before `n` tokens are put there."""
        places = [place for place, _ in self._places(n, counts)]
        return [(place, tuple(own[place].copy() for own in self._memory)) for place in places]

    def _checked_query(self, query: ArrayLike) -> Array:
        q = as_array(query, "query")
        if q.ndim >= 3 and q.shape[:-3] != self._batch:
            raise ValueError(
                f"query must have the batch axes of the cache, {self._batch}, before heads, tokens "
                f"and head size, got shape {q.shape}"
            )
        if q.ndim < 3:
            raise ValueError(
                f"query must have {len(self._batch) + 3} axes (..., heads, tokens, head size), "
                f"got shape {q.shape}"
            )
        return q

    def _attend(self, q: Array, options: Options) -> Result:
        if self._window is not None:
            return self._attend_ring(q, options)
        if self._even is None:
            options["kv_lengths"] = self._late_lengths
        positioned = q.shape[-2] != 1 or "alibi_slopes" in options or "window_size" in options
        if positioned or self._even is None:
            options["q_offset"] = "end"
            options["is_causal"] = True
        used = self._used()
        options.update(self._storage.scales(used))
        return _core.attention(q, used[0], used[1], options)

    def _kept(self) -> Kept:
        assert self._window is not None
        return Kept(self._storage, self._used(), self._ring, self._window, *self._numbers())

    def _attend_ring(self, q: Array, options: Options) -> Result:
        n = q.shape[-2]
        simple = n == 1 and not self._cut and self._ring.size == self._window
        if simple and OF_ROWS.isdisjoint(options):  # the query sees all that there is
            if self._even is None:
                options["kv_lengths"] = np.minimum(self._late_lengths, self.capacity)
            used = self._used()
            options.update(self._storage.scales(used))
            return _core.attention(q, used[0], used[1], options)
        kept, counts = self._kept(), self._ring_options(options, n)
        first = kept.lengths - counts
        seen = np.maximum(first - kept.window + 1, self._ring.fixed)
        if n and (seen < self._ring.oldest(kept.written)).any():
            most = self._ring.size - kept.window + 1
            raise ValueError(
                f"query has {n} tokens, of which a ring of {self._ring.size} with a window of "
                f"{kept.window} can answer the last {most} only: append and attend by "
                "extend(query, key, value), which is exact for any number"
            )
        options.pop("q_lengths", None)
        if n <= MASKED_QUERIES or any(options.get(name) is not None for name in OF_PAIRS):
            return attend_stored(q, kept, first, counts, options)
        return attend_in_order(q, kept, None, counts, options)

    def _extend_in_order(self, q: Array, new: Parts, options: Options) -> Result:
        """Attend first, over a copy, then append: by then the ring has forgotten what was seen."""
        for name in OF_PAIRS:
            if options.get(name) is not None and options[name] is not False:
                raise ValueError(
                    f"{name} has a column for each slot, which extend replaces where a window "
                    f"forgets: append the tokens, and give {name} to attend"
                )
        counts = self._ring_options(options, q.shape[-2])
        lengths = options.pop("q_lengths", None)
        out = options.get("out")  # which is written before tokens are read again
        if isinstance(out, np.ndarray):
            new = tuple(a.copy() if np.may_share_memory(a, out) else a for a in new)
        result = attend_in_order(q, self._kept(), new, counts, options)
        self._append(new, lengths)
        return result

    def _ring_options(self, options: Options, n: int) -> Array:
        """Checks options with a number for each row; returns how many queries of each are real."""
        if options.get("window_size") is not None:
            raise ValueError(
                f"window_size must be left out, the cache has a window of {self._window}, "
                f"got {options['window_size']!r}"
            )
        longest = int(self._numbers()[0].max(initial=0)) + n
        for name, most in (("q_lengths", n), ("kv_starts", longest)):
            if options.get(name) is not None:
                options[name] = row_numbers(options[name], name, self._batch, most)
            else:
                options.pop(name, None)
        counts: Array = options.get("q_lengths", np.full(self._batch, n))
        return counts

    # ---- copies ----

    @plain_signature
    def save(self, file: str | os.PathLike[str] | IO[bytes]) -> None:
        """Write the cache to an ``.npz`` file, which `load` reads.

        Parameters
        ----------
        file : path or binary file
            As for :func:`numpy.savez`.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        write(file, self.__getstate__())

    @classmethod
    @plain_signature
    def load(cls, file: str | os.PathLike[str] | IO[bytes]) -> "KVCache":
        """Read a cache that `save` has written.

        Parameters
        ----------
        file : path or binary file
            As for :func:`numpy.load`; nothing in it is run.

        Returns
        -------
        KVCache
            With the tokens and the capacity that it had.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            It is not such a file.
        """
        cache = cls.__new__(cls)
        cache.__setstate__(read(file))
        return cache
