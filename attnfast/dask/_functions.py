"""The functions: a task for each chunk of queries and each part of the keys that it may see."""

from collections.abc import Callable
from typing import Any, Never, Unpack

import dask
import dask.array as da
import numpy as np

from .._signature import takes
from ..gradient import AttentionGradients
from ..options import Attending, LossOfLse, Lse, Wanted, Weights
from ..result import AttentionResult
from . import _tasks as tasks
from ._blocks import QKV, Block, Call, Part, chunks_of, rechunk, sizes_of
from ._prepare import check_loss, prepare
from ._sums import Place, Sums, assemble, in_one_layer, tree


class DaskKeywords(Attending, Lse, Weights, total=False):
    """Those of `attention` here."""


class DaskBackwardKeywords(Attending, LossOfLse, Wanted, total=False):
    """Those of `attention_backward` here."""


@takes(DaskKeywords)
def attention(
    query: Any, key: Any, value: Any, *extra: Never, **options: Unpack[DaskKeywords]
) -> Any:
    """Exact attention over dask arrays; see :func:`attnfast.attention`.

    Parameters
    ----------
    query, key, value : dask array, ``(L, D)``, ``(H, L, D)`` or ``(B, H, L, D)``
        Chunked along any axis but the last, which becomes one chunk. Chunks of batch rows and heads
        are those of query, unless they would divide heads that share a key head. Chunks without
        elements are left out. One batch row broadcasts to those of the others.
    mask, bias : array or dask array, optional
        As in :func:`attnfast.attention`. NumPy arrays become part of the graph.
    is_causal, window_size, q_offset, q_lengths, kv_lengths, kv_starts : optional
        As in :func:`attnfast.attention`.
    scale, softcap, alibi_slopes, sink_logits : optional
        As in :func:`attnfast.attention`.
    return_lse, return_weights : bool
        Return the log-sum-exp, the softmax weights too.

    Returns
    -------
    dask array or AttentionResult
        Output, in the chunks of query; with `return_lse` or `return_weights`
        ``(output, lse, weights)``, the weights in chunks of queries and keys.

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
    call = prepare(attention, (query, key, value), extra, options)
    dtype, real, rank = call.query.dtype, call.real_type, call.rank
    outputs: dict[Place, Any] = {}
    lses: dict[Place, Any] = {}
    sizes = (call.rows, *sizes_of(call.query)[1:3], call.key.chunks[-2])
    weights = Sums(sizes, call.axes, dtype)
    for block in call.blocks():
        parts = [_over(tasks.attend, block, part) for part in block.parts]
        output, lse = dask.delayed(tasks.finish, pure=False, nout=2)(
            tree(parts, tasks.join), block.shape[2], dtype, rank
        )
        shape = block.shape[4 - rank :]
        outputs[block.at] = da.from_delayed(output, (*shape, call.value.shape[-1]), dtype)
        lses[block.at] = da.from_delayed(lse, shape, real)
        for part in block.parts if options.get("return_weights") else ():
            weights.add((*block.at[:3], part.chunk), _over(tasks.weigh, block, part, lse))
    found = {"output": assemble(outputs, call.axes)}
    if options.get("return_lse"):
        found["lse"] = assemble(lses, call.axes[:-1])
    if options.get("return_weights"):
        found["weights"] = weights.array()
    found = in_one_layer(found, call.operands)
    if len(found) == 1:
        return found["output"]
    return AttentionResult(found["output"], found.get("lse"), found.get("weights"))


@takes(DaskBackwardKeywords)
def attention_backward(
    grad_output: Any,
    query: Any,
    key: Any,
    value: Any,
    output: Any,
    lse: Any,
    *extra: Never,
    **options: Unpack[DaskBackwardKeywords],
) -> AttentionGradients:
    """Gradients of a loss of :func:`attention`; see :func:`attnfast.attention_backward`.

    Parameters
    ----------
    grad_output : array or dask array
        Derivative of the loss by the output.
    query, key, value : dask array
        Those of :func:`attention`.
    output, lse : dask array
        What it returned, with ``return_lse=True``.
    mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, kv_starts : optional
        As in the forward call.
    scale, softcap, alibi_slopes, sink_logits : optional
        As in the forward call.
    grad_lse : array or dask array, optional
        Derivative of the loss by `lse`.
    wanted : tuple of str
        Which gradients to compute: fields of `AttentionGradients`.

    Returns
    -------
    AttentionGradients
        dask arrays in the shapes and dtypes of the operands, None where not wanted: query, key and
        value in the chunks in which they met, `bias` in chunks of queries and keys.

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
    wanted = tuple(options.get("wanted", ("query", "key", "value")))
    call = prepare(attention_backward, (query, key, value), extra, options)
    loss = {"grad_output": grad_output, "output": output, "lse": lse}
    if options.get("grad_lse") is not None:
        loss["grad_lse"] = options["grad_lse"]
    loss = {name: da.asarray(x) for name, x in loss.items()}
    check_loss(call, loss)
    known = [_rows(call, x, name) for name, x in loss.items()]
    sums = {name: Sums(*_like(call, name)) for name in wanted}
    for block in call.blocks():
        here = [x[block.at[: x.ndim]] for x in known]
        for part in block.parts:
            # Sinks are logits of the first part only.
            names = [n for n in wanted if n != "sink_logits" or n in part.options]
            places = [_place(name, block, part) for name in names]
            starts = {n: sums[n].start(start) for n, (_, start) in zip(names, places, strict=True)}
            found = _over(tasks.differentiate, block, part, starts, *here, nout=len(names))
            for name, (at, _), share in zip(names, places, found, strict=True):
                sums[name].add(at, share)
    gradients = {name: x.array() for name, x in sums.items()}
    return AttentionGradients(**in_one_layer(gradients, [*call.operands, *loss.values()]))


def _over(
    task: Callable[..., Any], block: Block, part: Part, *more: Any, nout: int | None = None
) -> Any:
    """The task for a chunk of queries and some of the keys that it sees.

    What is lazy is an argument of its own: dask computes its graph anew where it is in a container.
    """
    return dask.delayed(task, pure=False, nout=nout)(block.query, *part[:5], part.span, *more)


def _place(name: str, block: Block, part: Part) -> tuple[Place, tuple[int, int]]:
    """The chunk of a gradient that a part has a share of, and where in it the share begins."""
    b, h, i, _ = block.at
    if name in ("key", "value"):
        return (b, h, part.chunk, 0), (part.span.key, 0)
    if name == "query":
        return block.at, (part.span.first, 0)
    return (b, h, i, part.chunk), (part.span.first, part.span.key)


def _rows(call: Call, x: Any, name: str) -> Any:
    """The chunks of an array that has something for each query, by their places."""
    shape = call.shape
    if name in ("grad_output", "output"):
        shape = (*shape, call.value.shape[-1])
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {x.shape}")
    sizes = (call.rows, *sizes_of(call.query)[1:3])[4 - call.rank :]
    x = rechunk(x, (*sizes, *((n,) for n in shape[call.rank - 1 :])))
    return chunks_of(x, axes=4 - call.rank + x.ndim)


def _like(call: Call, name: str) -> tuple[Any, tuple[int, ...], Any]:
    """The chunks of a gradient along 4 axes, which of them it has, and its dtype."""
    if name in QKV:
        x = getattr(call, name)
        return sizes_of(x), tuple(range(4 - x.ndim, 4)), x.dtype
    x = call.options[name]
    heads, places = sizes_of(call.query)[1:3]
    if name == "bias":
        sizes = (call.rows, heads, places, call.key.chunks[-2])
        whole = (1,) * (4 - x.ndim) + x.shape
        chunks = tuple(s if n != 1 else (1,) for s, n in zip(sizes, whole, strict=True))
        return chunks, tuple(range(4 - x.ndim, 4)), x.dtype
    rows = call.rows if x.ndim == 2 else (1,)
    dtype = x.dtype if x.dtype.kind in "fV" else np.dtype(np.float64)
    return (rows, heads, (1,), (1,)), tuple(range(2 - x.ndim, 2)), dtype
