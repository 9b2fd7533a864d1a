"""Attention over dask arrays: in chunks of batch rows, heads, queries and keys.

>>> import dask.array as da
>>> from attnfast.dask import attention
>>> q, k, v = (da.random.random((8, 4000, 64), chunks=(4, 1000, 64)) for _ in range(3))
>>> output = attention(q, k, v, is_causal=True, window_size=256)
>>> output.shape, output.chunks[1]
((8, 4000, 64), (1000, 1000, 1000, 1000))
>>> output[:, 2000:2010].compute().shape
(8, 10, 64)

A chunk of queries meets each chunk of keys that it may see in a task of its own; the results are
joined by `attnfast.merge_attention`, in pairs. Of a chunk of keys only the part within the window
is sent. The result is lazy, and depends on the chunks but not on the scheduler or the workers.

Needs the package dask, 2024.8 or later: ``pip install attnfast[dask]``.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

try:
    import dask
    import dask.array as da

    if tuple(int(n) for n in dask.__version__.split(".")[:2]) < (2024, 8):
        raise ImportError(f"dask {dask.__version__} is too old")
except (ImportError, AttributeError) as error:
    raise ImportError(
        "attnfast.dask needs the package dask, 2024.8 or later: write pip install attnfast[dask]"
    ) from error

from . import _dask_tasks as tasks
from ._dask_blocks import Place, chunks_of, prepare, sizes_of
from .gradient import AttentionGradients
from .result import AttentionResult

__all__ = ["attention", "attention_backward"]

Blocks = dict[Place, Any]


def attention(query: Any, key: Any, value: Any, *, return_lse: bool = False, **options: Any) -> Any:
    """Exact attention over dask arrays; see :func:`attnfast.attention`.

    Parameters
    ----------
    query, key, value : dask array, ``(L, D)``, ``(H, L, D)`` or ``(B, H, L, D)``
        Chunked along any axis but the last, which becomes one chunk. Chunks of batch rows and heads
        are those of query, unless they would divide heads that share a key head.
    return_lse : bool, optional
        Return the log-sum-exp too.
    **options
        Those of :func:`attnfast.attention` but for `out`, `return_weights`, `dropout` and
        `num_threads`, which is 1 in every task. `mask` and `bias` may be dask arrays. NumPy arrays
        become part of the graph.

    Returns
    -------
    dask array or AttentionResult
        Output, in the chunks of query; with `return_lse` ``(output, lse, None)``.

    Raises
    ------
    TypeError, ValueError
        As for :func:`attnfast.attention`, when it is called; an argument that is not supported.

    Examples
    --------
    >>> import dask.array as da
    >>> from attnfast.dask import attention
    >>> x = da.ones((2, 4, 100, 16), chunks=(1, 2, 50, 16))
    >>> attention(x, x, x).compute().shape
    (2, 4, 100, 16)
    """
    call = prepare(query, key, value, options)
    dtype, rank = call.query.dtype, call.query.ndim
    real = dtype if dtype == np.float64 else np.float32
    outputs: Blocks = {}
    lses: Blocks = {}
    for block in call.blocks():
        parts = [
            dask.delayed(tasks.attend, pure=False)(
                block.query, part.key, part.value, part.options, part.first, part.last
            )
            for part in block.parts
        ]
        output, lse = dask.delayed(tasks.finish, pure=False, nout=2)(
            _tree(parts, tasks.join), block.shape[-1], dtype, rank
        )
        shape = (*block.shape, call.value.shape[-1])
        outputs[block.at] = da.from_delayed(output, shape, dtype)
        lses[block.at] = da.from_delayed(lse, block.shape, real)
    output = _assemble(outputs, rank)
    return AttentionResult(output, _assemble(lses, rank), None) if return_lse else output


def attention_backward(
    grad_output: Any, query: Any, key: Any, value: Any, output: Any, lse: Any, **options: Any
) -> AttentionGradients:
    """Gradients of a loss by query, key and value; see :func:`attnfast.attention_backward`.

    Parameters
    ----------
    grad_output : dask array
        Derivative of the loss by the output.
    query, key, value, **options
        Those of :func:`attention`.
    output, lse : dask array
        What it returned, with ``return_lse=True``.

    Returns
    -------
    AttentionGradients
        ``query``, ``key`` and ``value``; all others are None: they are not computed over chunks.

    Raises
    ------
    TypeError, ValueError
        As for :func:`attention`.

    Examples
    --------
    >>> import dask.array as da
    >>> from attnfast.dask import attention, attention_backward
    >>> x = da.random.random((2, 100, 16), chunks=(1, 50, 16))
    >>> output, lse, _ = attention(x, x, x, is_causal=True, return_lse=True)
    >>> grads = attention_backward(2 * output, x, x, x, output, lse, is_causal=True)
    >>> grads.key.compute().shape
    (2, 100, 16)
    """
    call = prepare(query, key, value, options)
    dtype, rank = call.query.dtype, call.query.ndim
    sizes = call.query.shape[:-1]
    known = []
    for name, x, shape in (
        ("grad_output", grad_output, (*sizes, call.value.shape[-1])),
        ("output", output, (*sizes, call.value.shape[-1])),
        ("lse", lse, sizes),
    ):
        x = da.asarray(x)
        if x.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {x.shape}")
        chunks = x.rechunk((*call.query.chunks[:-1], *shape[rank - 1 :]))
        known.append(chunks_of(chunks, axes=4 - rank + x.ndim))
    by_query: Blocks = {}
    shares: dict[Place, list[Any]] = {}
    for block in call.blocks():
        loss = [x[block.at].item() if x.ndim == 4 else x[block.at] for x in known]
        found = [
            dask.delayed(tasks.differentiate, pure=False, nout=3)(
                block.query, part.key, part.value, part.options, part.first, part.last, loss
            )
            for part in block.parts
        ]
        total = dask.delayed(tasks.total, pure=False)(
            _tree([parts[0] for parts in found], tasks.add), block.shape[-1], dtype, rank
        )
        shape = (*block.shape, call.query.shape[-1])
        by_query[block.at] = da.from_delayed(total, shape, dtype)
        for part, (_, by_key, by_value) in zip(block.parts, found, strict=True):
            shares.setdefault((*block.at[:2], part.chunk), []).append(
                ((part.start, by_key), (part.start, by_value))
            )
    gradients = {
        "query": _assemble(by_query, rank),
        "key": _collect(shares, call.key, 0),
        "value": _collect(shares, call.value, 1),
    }
    return AttentionGradients(**{**dict.fromkeys(AttentionGradients._fields), **gradients})


def _tree(parts: list[Any], join: Callable[..., Any]) -> Any:
    """Join in pairs, neighbours first."""
    while len(parts) > 1:
        pairs = [parts[n : n + 2] for n in range(0, len(parts), 2)]
        parts = [dask.delayed(join, pure=False)(*p) if len(p) == 2 else p[0] for p in pairs]
    return parts[0]


def _collect(shares: dict[Place, list[Any]], x: Any, which: int) -> Any:
    """The gradients of keys or values: for each chunk the sum of what chunks of queries gave."""
    found: Blocks = {}
    sizes = sizes_of(x)[:3]
    rows, heads, places = (range(len(n)) for n in sizes)
    for at in itertools.product(rows, heads, places):
        shape = (*(along[n] for along, n in zip(sizes, at, strict=True)), x.shape[-1])
        given = [share[which] for share in shares.get(at, [])]
        given = given or [(0, np.zeros(shape, x.dtype))]  # nobody sees these keys
        total = dask.delayed(tasks.total, pure=False)(
            _tree(given, tasks.add), shape[2], x.dtype, x.ndim
        )
        found[at] = da.from_delayed(total, shape[4 - x.ndim :], x.dtype)
    return _assemble(found, x.ndim)


def _assemble(blocks: Blocks, rank: int) -> Any:
    """One array from its chunks by their places; `rank` counts the axes of a query."""
    rows, heads, places = (range(1 + max(at[n] for at in blocks)) for n in range(3))
    return _line_up(
        [
            _line_up(
                [_line_up([blocks[b, h, i] for i in places], rank - 2) for h in heads], rank - 3
            )
            for b in rows
        ],
        rank - 4,
    )


def _line_up(arrays: list[Any], axis: int) -> Any:
    return arrays[0] if len(arrays) == 1 else da.concatenate(arrays, axis=axis)
