"""Arrays put together from their chunks, each the sum of what tasks have for it."""

import uuid
from collections.abc import Callable, Iterable
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from . import _tasks as tasks

Place = tuple[int, int, int, int]  # of a chunk: batch rows, heads, queries or keys, the last axis


class Sums:
    """An array whose chunks are sums of shares.

    `sizes` are the sizes of chunks along 4 axes, `axes` those of them that the array has. Along an
    axis with one chunk every place is that chunk: what was broadcast is summed.
    """

    def __init__(self, sizes: tuple[tuple[int, ...], ...], axes: tuple[int, ...], dtype: Any):
        self.sizes, self.axes, self.dtype = sizes, axes, dtype
        self.shares: dict[Place, list[Any]] = {}

    def start(self, at: tuple[int, int]) -> tuple[int, int]:
        """Where in a chunk a share begins along the last two axes: at 0 where it was broadcast."""
        i, j = (n if sum(s) > 1 else 0 for n, s in zip(at, self.sizes[2:], strict=True))
        return i, j

    def add(self, at: Place, share: Any) -> None:
        """Add what a task found, a `tasks.Share`, to the chunk at a place."""
        b, h, i, j = (n if len(s) > 1 else 0 for n, s in zip(at, self.sizes, strict=True))
        self.shares.setdefault((b, h, i, j), []).append(share)

    def array(self) -> Any:
        """The dask array."""
        blocks: dict[Place, Any] = {}
        for at in np.ndindex(*(len(s) for s in self.sizes)):
            shape = tuple(s[n] for s, n in zip(self.sizes, at, strict=True))
            kept = tuple(shape[axis] for axis in self.axes)
            shares = self.shares.get(at, [])
            if shares:
                total = dask.delayed(tasks.total, pure=False)(
                    tree(shares, tasks.add), shape, kept, self.dtype
                )
                blocks[at] = da.from_delayed(total, kept, self.dtype)
            else:  # nobody sees these
                blocks[at] = da.zeros(kept, dtype=self.dtype, chunks=kept)
        return assemble(blocks, self.axes)


def tree(parts: list[Any], join: Callable[..., Any]) -> Any:
    """Join in pairs, neighbours first."""
    while len(parts) > 1:
        pairs = [parts[n : n + 2] for n in range(0, len(parts), 2)]
        parts = [dask.delayed(join, pure=False)(*p) if len(p) == 2 else p[0] for p in pairs]
    return parts[0]


def assemble(blocks: dict[Place, Any], axes: tuple[int, ...]) -> Any:
    """One array from its chunks, which have these of the 4 axes."""
    grid = np.empty([1 + max(at[n] for at in blocks) for n in range(4)], object)
    for at, block in blocks.items():
        grid[at] = block
    gone = tuple(axis for axis in range(4) if axis not in axes)
    return da.block(grid.squeeze(gone).tolist())


def in_one_layer(results: dict[str, Any], operands: Iterable[Any]) -> dict[str, Any]:
    """The same dask arrays, their tasks in one layer of the graph and not in one each.

    A call with any of them as operand looks at all of its layers for each of its own tasks.
    """
    known = {layer for x in operands if isinstance(x, da.Array) for layer in x.dask.layers}
    last = {x.name for x in results.values()}
    ours: dict[Any, Any] = {}
    needed: set[str] = set()
    for x in results.values():
        for name in x.dask.layers.keys() - known - last:
            ours.update(x.dask.layers[name])
            needed |= x.dask.dependencies[name] & known
    common = f"attention-{uuid.uuid4().hex}"
    found = {}
    for result, x in results.items():
        kept = x.dask.layers.keys() & known
        layers = {name: x.dask.layers[name] for name in kept}
        dependencies = {name: x.dask.dependencies[name] for name in kept}
        layers |= {common: MaterializedLayer(ours), x.name: x.dask.layers[x.name]}
        dependencies |= {common: needed, x.name: {common}}
        found[result] = da.Array(HighLevelGraph(layers, dependencies), x.name, x.chunks, x.dtype)
    return found
