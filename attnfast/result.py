"""Named tuples that calls return."""

# _html is imported where a notebook asks for it: import attnfast needs none of it.

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


def fields_repr(result: Any) -> str:
    """The name of a named tuple and its fields, arrays as their dtype and shape."""
    shown = (f"{name}={_short(x)}" for name, x in zip(result._fields, result, strict=True))
    return f"{type(result).__name__}({', '.join(shown)})"


def _short(x: Any) -> str:
    if isinstance(x, dict):
        return f"{{{', '.join(f'{name!r}: {_short(part)}' for name, part in x.items())}}}"
    shape = getattr(x, "shape", None)
    if shape is None or isinstance(x, np.generic):
        return repr(x)
    return f"{getattr(x, 'dtype', type(x).__name__)} {tuple(shape)}"


class AttentionResult(NamedTuple):
    """Output of attention, with lse and weights where they were asked for.

    Attributes
    ----------
    output : ndarray
        The attention output, ``(..., H, Lq, Dv)``.
    lse : ndarray or None
        Natural logarithm of each query's softmax denominator, ``(..., H, Lq)``, if asked for.
    weights : ndarray or None
        The softmax weights, ``(..., H, Lq, Lk)``, if asked for.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import attention
    >>> x = np.ones((4, 8))
    >>> output, lse, weights = attention(x, x, x, return_weights=True)
    >>> lse is None, weights.shape
    (True, (4, 4))
    """

    output: NDArray[Any]
    # Arrays where they were asked for, which callers know: `Any` spares them a test for None.
    lse: Any = None
    weights: Any = None

    def __repr__(self) -> str:
        return fields_repr(self)

    def _repr_html_(self) -> str:
        from . import _html

        rows = {name: _short(x) for name, x in zip(self._fields, self, strict=True)}
        weights = self.weights
        if not isinstance(weights, np.ndarray) or weights.ndim < 2 or not weights.size:
            return _html.card("AttentionResult", rows)
        place = (0,) * (weights.ndim - 2)
        cells = _html.heaviest_cells(weights[place])
        heaviest = float(np.nanmax(cells, initial=0)) or 1.0
        where = f" of {place}" if place else ""
        return _html.card(
            "AttentionResult",
            rows,
            _html.heat(cells / heaviest, "weights"),
            f"weights{where}: queries down, keys across, up to {heaviest:.3g}",
        )


class Plan(NamedTuple):
    """What a call would do, see :func:`attnfast.plan`.

    Attributes
    ----------
    visible_pairs : int
        (query, key) pairs, over all batch rows and heads, that may attend.
    visited_pairs : int
        Pairs whose score is computed: those of the key blocks in which anything is visible.
    flops : int
        Floating-point operations of both products over the visible pairs, ``2 pairs (D + Dv)``;
        an element of an additive score counts as 2. Gradients take five products, ``2 pairs (3 D +
        2 Dv)``, or less where fewer are wanted.
    bytes : int
        Bytes of query, key, value and output, each counted once; of gradients also those of
        `grad_output` and of what is wanted of query, key and value, all as they are computed:
        16-bit types as float32.
    tasks : int
        Units of work, which threads divide among themselves: blocks of query rows against one part
        of their keys.
    threads : int
        Number of threads that would compute them.
    isa : str
        Instruction set of the kernels.
    kernel : str
        ``"forward"`` (queries in the vector lanes), ``"decode"`` (few queries), ``"backward"``
        (gradients) or ``"none"`` (nothing to do).
    memory : int
        Bytes of working memory: what threads compute in and hand on to one another. Copies of
        operands are not counted, such as those of 16-bit types for gradients or of the keys that
        a query with global tokens sees.
    blocks : ndarray of int64 or None
        If asked for, the rectangles of pairs that are visited, ``(n, 7)``: batch row, or sequence
        where they are packed; key/value head; first query, query after the last; first key, key
        after the last; and the step from one of these queries, or keys, to the next, which is the
        dilation of windows, else 1. Queries and keys of packed sequences are rows of the packed
        arrays. Where heads share a key/value head, a query counts whole even if only some of
        its heads are visited.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import plan
    >>> x = np.zeros((1000, 64), np.float32)
    >>> what = plan(x, x, x, is_causal=True)
    >>> what.visible_pairs, what.kernel
    (500500, 'forward')
    """

    visible_pairs: int
    visited_pairs: int
    flops: int
    bytes: int
    tasks: int
    threads: int
    isa: str
    kernel: str
    memory: int
    blocks: Any = None

    def __repr__(self) -> str:
        return fields_repr(self)

    def _repr_html_(self) -> str:
        from . import _html

        counts = ("visible_pairs", "visited_pairs", "flops", "bytes", "tasks", "threads", "memory")
        rows = {name: f"{getattr(self, name):,}" for name in counts}
        rows |= {"isa": self.isa, "kernel": self.kernel}
        if self.blocks is None:
            advice = "return_blocks=True also draws the pairs that are visited"
            return _html.card("Plan", rows, caption=advice)
        if not len(self.blocks):
            return _html.card("Plan", rows, caption="no pair is visited")
        row, head = self.blocks[0, :2]
        own = (self.blocks[:, 0] == row) & (self.blocks[:, 1] == head)
        cells, Lq, Lk = _html.visited_cells(self.blocks[own, 2:])
        return _html.card(
            "Plan",
            rows,
            _html.heat(cells, "pairs that are visited"),
            f"visited of {Lq:,} queries, down, and {Lk:,} keys, across: batch row {row}, key/value "
            f"head {head}",
        )


class AttentionTopK(NamedTuple):
    """The heaviest keys of each query.

    Attributes
    ----------
    indices : ndarray of int64
        Keys, heaviest first, ``(..., H, Lq, k)``; -1 where a query sees fewer than `k`.
    weights : ndarray
        Their softmax weights, ``(..., H, Lq, k)``; 0 where there is no key.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast import attention_topk
    >>> attention_topk(np.eye(3), np.eye(3), 1).indices.tolist()
    [[0], [1], [2]]
    """

    indices: NDArray[np.int64]
    weights: NDArray[Any]

    def __repr__(self) -> str:
        return fields_repr(self)
