"""Block-sparse masks."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._checks import whole_number
from ._misread import as_array, wrong_mask
from ._signature import plain_signature

Blocks = NDArray[np.bool_]


class BlockMask:
    """A mask of whole blocks: which blocks of queries may attend to which blocks of keys.

    Pass it as ``mask=``. Hidden blocks cost nothing: neither time nor memory for their pairs.

    Parameters
    ----------
    blocks : array_like of bool, ``(..., H or 1, ceil(Lq / bq), ceil(Lk / bk))``
        True where a block of queries may attend to a block of keys. Leading axes broadcast against
        batch and heads; an array of rank 2 is shared by all of them, one of rank 3 has an axis of
        heads.
    block_size : int or (bq, bk)
        Queries and keys in a block; the last blocks may be shorter. Multiples of 64 are fastest.

    Raises
    ------
    TypeError
        `blocks` is not bool, or `block_size` not whole numbers.
    ValueError
        `blocks` has fewer than 2 axes, or a block size is below 1.

    Examples
    --------
    Documents of different length, one after the other, that do not see each other:

    >>> import numpy as np
    >>> from attnfast import BlockMask, plan
    >>> document = np.repeat([0, 1, 2], [2, 5, 1])  # 8 blocks of 128 tokens
    >>> mask = BlockMask(document[:, None] == document, 128)
    >>> x = np.zeros((4, 1024, 64), np.float32)
    >>> plan(x, x, x, mask=mask).visible_pairs == 4 * 128**2 * (2**2 + 5**2 + 1)
    True
    """

    @plain_signature
    def __init__(self, blocks: ArrayLike, block_size: int | tuple[int, int]) -> None:
        a = _bool_array(blocks, "blocks", "block rows, block columns")
        self._block_size = _pair(block_size)
        self._blocks = a.copy()
        self._blocks.flags.writeable = False

    @property
    def blocks(self) -> Blocks:
        """True where a block of queries may attend to a block of keys; read-only."""
        view = self._blocks.view()
        view.flags.writeable = False  # here too: a pickle forgets the flag
        return view

    @property
    def block_size(self) -> tuple[int, int]:
        """Queries and keys in a block."""
        return self._block_size

    @classmethod
    @plain_signature
    def from_mask(cls, mask: ArrayLike, block_size: int | tuple[int, int]) -> "BlockMask":
        """The block mask that is equal to an elementwise mask.

        Parameters
        ----------
        mask : array_like of bool, ``(..., Lq, Lk)``
            Every block must be visible or hidden as a whole.
        block_size : int or (bq, bk)
            Queries and keys in a block.

        Returns
        -------
        BlockMask
            Whose `dense` is `mask`.

        Raises
        ------
        TypeError
            `mask` is not bool.
        ValueError
            A block is partly visible; the message says which.

        Examples
        --------
        >>> import numpy as np
        >>> from attnfast import BlockMask
        >>> half = np.arange(6) < 3
        >>> BlockMask.from_mask(half[:, None] == half, 3).blocks.astype(int)
        array([[1, 0],
               [0, 1]])
        """
        a = _bool_array(mask, "mask", "Lq, Lk")
        sizes = _pair(block_size)
        bq, bk = (min(n, max(length, 1)) for n, length in zip(sizes, a.shape[-2:], strict=True))
        rows, columns = np.arange(0, a.shape[-2], bq), np.arange(0, a.shape[-1], bk)
        if a.size == 0:
            return cls(np.zeros((*a.shape[:-2], len(rows), len(columns)), bool), sizes)
        count = np.add.reduceat(a, rows, axis=-2, dtype=np.int64)
        count = np.add.reduceat(count, columns, axis=-1)
        pairs = np.minimum(bq, a.shape[-2] - rows)[:, None] * np.minimum(bk, a.shape[-1] - columns)
        mixed = (count != 0) & (count != pairs)
        if mixed.any():
            at = tuple(int(n) for n in np.argwhere(mixed)[0])
            raise ValueError(
                f"mask must show or hide each block of {bq} queries and {bk} keys as a whole, got "
                f"block {at} with both"
            )
        return cls(count != 0, sizes)

    @classmethod
    @plain_signature
    def from_function(
        cls,
        visible: Callable[[Any, Any], ArrayLike],
        Lq: int,
        Lk: int,
        block_size: int | tuple[int, int],
    ) -> "BlockMask":
        """The block mask of a function of block row and block column.

        Parameters
        ----------
        visible : callable
            ``visible(i, j)`` is called once with the indices of block rows, ``(n, 1)``, and of
            block columns, ``(1, m)``, and returns bool that broadcasts to ``(..., n, m)``.
        Lq, Lk : int
            Numbers of queries and keys.
        block_size : int or (bq, bk)
            Queries and keys in a block.

        Returns
        -------
        BlockMask
            With one bool for each block.

        Raises
        ------
        TypeError
            `visible` is no function or does not return bool.
        ValueError
            What it returns does not broadcast to the blocks.

        Examples
        --------
        >>> from attnfast import BlockMask
        >>> BlockMask.from_function(lambda i, j: abs(i - j) <= 1, 256, 256, 64).blocks.astype(int)
        array([[1, 1, 0, 0],
               [1, 1, 1, 0],
               [0, 1, 1, 1],
               [0, 0, 1, 1]])
        """
        bq, bk = _pair(block_size)
        rows, columns = _blocks(Lq, bq, "Lq"), _blocks(Lk, bk, "Lk")
        if not callable(visible):
            raise TypeError(f"visible must be a function, got {type(visible).__name__}")
        returned = visible(np.arange(rows)[:, None], np.arange(columns)[None, :])
        blocks = as_array(returned, "visible")
        if blocks.dtype != np.bool_:
            raise TypeError(f"visible must return bool, got {blocks.dtype}")
        try:
            shape = np.broadcast_shapes(blocks.shape, (rows, columns))
        except ValueError:
            shape = ()
        if shape[-2:] != (rows, columns):
            raise ValueError(
                f"visible must return an array that broadcasts to {(rows, columns)} blocks, got "
                f"shape {blocks.shape}"
            )
        return cls(np.broadcast_to(blocks, shape), (bq, bk))

    @classmethod
    def bigbird(
        cls,
        Lq: int,
        Lk: int,
        block_size: int | tuple[int, int],
        *,
        window_blocks: int = 3,
        global_blocks: int = 2,
        random_blocks: int = 3,
        heads: int | None = None,
        seed: int = 0,
    ) -> "BlockMask":
        """The pattern of BigBird: a window, a few global blocks and some at random.

        As in [1]_, block row ``i`` sees the block columns within ``window_blocks // 2`` of it, the
        first and last ``global_blocks // 2`` columns (the first has the one left over), and
        `random_blocks` others. The rows of the global blocks see everything.

        Parameters
        ----------
        Lq, Lk : int
            Numbers of queries and keys.
        block_size : int or (bq, bk)
            Queries and keys in a block.
        window_blocks : int
            Width of the window in blocks, odd.
        global_blocks, random_blocks : int
            Numbers of such blocks.
        heads : int, optional
            With it, every head has random blocks of its own and `blocks` is ``(heads, n, m)``.
        seed : int
            Of the random blocks.

        Returns
        -------
        BlockMask
            The pattern, in which `seed` decides the random blocks.

        Raises
        ------
        TypeError, ValueError
            An argument that is not a whole number or is out of range.

        References
        ----------
        .. [1] M. Zaheer et al., "Big Bird: Transformers for Longer Sequences", 2020.

        Examples
        --------
        >>> from attnfast import BlockMask
        >>> mask = BlockMask.bigbird(4096, 4096, 64)
        >>> int(mask.blocks[20].sum())  # 3 in the window, 2 global, 3 at random, of 64
        8
        """
        bq, bk = _pair(block_size)
        rows, columns = _blocks(Lq, bq, "Lq"), _blocks(Lk, bk, "Lk")
        window = whole_number(window_blocks, "window_blocks", 1)
        if window % 2 == 0:
            raise ValueError(f"window_blocks must be odd, got {window}")
        n_global = whole_number(global_blocks, "global_blocks", 0)
        n_random = whole_number(random_blocks, "random_blocks", 0)
        rng = np.random.default_rng(whole_number(seed, "seed", 0))
        i, j = np.arange(rows)[:, None], np.arange(columns)
        first, last = (n_global + 1) // 2, n_global // 2
        common = np.abs(i - j) <= window // 2
        common |= (j < first) | (j >= columns - last) | (i < first) | (i >= rows - last)
        n_heads = 1 if heads is None else whole_number(heads, "heads", 1)
        blocks = np.repeat(common[None], n_heads, axis=0)
        for head in blocks:
            for row in head:
                hidden = np.flatnonzero(~row)
                row[rng.choice(hidden, min(n_random, len(hidden)), replace=False)] = True
        return cls(blocks[0] if heads is None else blocks, (bq, bk))

    @plain_signature
    def dense(self, Lq: int, Lk: int) -> Blocks:
        """The equal elementwise mask.

        Parameters
        ----------
        Lq, Lk : int
            Numbers of queries and keys.

        Returns
        -------
        ndarray of bool, ``(..., Lq, Lk)``
            True where a query may attend to a key.

        Raises
        ------
        TypeError, ValueError
            `Lq` or `Lk` does not fit the number of blocks.

        Examples
        --------
        >>> from attnfast import BlockMask
        >>> BlockMask([[True, False], [True, True]], (1, 2)).dense(2, 3).astype(int)
        array([[1, 1, 0],
               [1, 1, 1]])
        """
        bq, bk = self.block_size
        wanted = _blocks(Lq, bq, "Lq"), _blocks(Lk, bk, "Lk")
        if self.blocks.shape[-2:] != wanted:
            raise ValueError(
                f"Lq and Lk must make {self.blocks.shape[-2:]} blocks of {self.block_size}, got "
                f"Lq = {Lq} and Lk = {Lk}, which make {wanted}"
            )
        rows, columns = np.arange(Lq) // min(bq, max(Lq, 1)), np.arange(Lk) // min(bk, max(Lk, 1))
        return self.blocks[..., rows[:, None], columns]

    def __repr__(self) -> str:
        seen = self.blocks.mean() if self.blocks.size else 0.0
        return f"BlockMask({self.blocks.shape}, block_size={self.block_size}, visible={seen:.3g})"

    def _repr_html_(self) -> str:
        from . import _html

        if not self.blocks.size:
            return _html.card(repr(self), {})
        place = (0,) * (self.blocks.ndim - 2)
        own = self.blocks[place]
        rows, columns = own.shape
        where = f" of {place}" if place else ""
        return _html.card(
            repr(self),
            {},
            _html.heat(_html.mean_cells(own), "visible blocks"),
            f"visible blocks{where}: {rows:,} of queries, down, and {columns:,} of keys, across",
        )


def _bool_array(x: Any, name: str, axes: str) -> Blocks:
    a = as_array(x, name)
    if a.dtype != np.bool_:
        raise wrong_mask(a, x, name, bias=False)
    if a.ndim < 2:
        raise ValueError(f"{name} must have at least 2 axes ({axes}), got shape {a.shape}")
    return a


def _pair(block_size: Any) -> tuple[int, int]:
    sizes = block_size if isinstance(block_size, (tuple, list)) else (block_size, block_size)
    if len(sizes) != 2:
        raise ValueError(f"block_size must be an int or a pair (bq, bk), got {block_size!r}")
    bq, bk = (whole_number(n, "block_size", 1) for n in sizes)
    return bq, bk


def _blocks(length: Any, size: int, name: str) -> int:
    return -(-whole_number(length, name, 0) // size)
