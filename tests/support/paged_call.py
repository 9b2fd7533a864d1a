"""Keys and values in pages: pools made of plain arrays, and calls that are made with them."""

import math
from typing import Any

import numpy as np

import attnfast
from support.drawn_call import OF_KEYS, Call

# Entries of a block table that name no page.
NOWHERE = (-1, 2**40, -(2**63))


def lengths_of(options: dict[str, Any], batch: tuple[int, ...], lk: int) -> Any:
    """kv_starts and kv_lengths of each batch row."""
    given = (options.get("kv_starts"), 0), (options.get("kv_lengths"), lk)
    filled = (np.asarray(none if rows is None else rows) for rows, none in given)
    count = math.prod(batch)
    return zip(*(np.broadcast_to(a.ravel(), count) for a in filled), strict=True)


def in_pages(
    rng: np.random.Generator,
    arrays: Any,
    size: int,
    options: dict[str, Any] | None = None,
    fill: float = np.nan,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Pools of pages of `size` rows, in any order, and the table for these arrays (..., Hk, L, D).

    Pages that no length reaches are full of `fill`, or the table names none there.
    """
    *batch, _, length, _ = arrays[0].shape
    blocks, rows = length // size, math.prod(batch)
    pages = rng.permutation(rows * blocks + 3)
    table = pages[: rows * blocks].reshape(rows, blocks)
    pools = []
    for a in arrays:
        *_, heads, _, width = a.shape
        pool = np.full((len(pages), heads, size, width), fill).astype(a.dtype)
        pool[table] = a.reshape(rows, heads, blocks, size, width).swapaxes(1, 2)
        pools.append(pool)
    reach = lengths_of(options or {}, tuple(batch), length)
    for row, (start, end) in enumerate(reach):
        for n in range(blocks):
            if start < end and (n + 1) * size > start and n * size < end:
                continue
            for pool in pools:
                pool[table[row, n]] = np.array(fill).astype(pool.dtype)
            if rng.random() < 0.5:
                table[row, n] = rng.choice(NOWHERE)
    return pools, table.reshape((*batch, blocks))


class PagedCall(Call):
    """A call whose key and value are put into pages when it is made."""

    def __init__(self, *call: Any, page_size: int, seed: int) -> None:
        super().__init__(*call)
        self.page_size, self.seed = page_size, seed

    def like(self, *call: Any) -> "PagedCall":
        return PagedCall(*call, self.function, page_size=self.page_size, seed=self.seed)

    def run(self, **more: Any) -> Any:
        keyed = [a[None] if a.ndim == 2 else a for a in (self.key, self.value)]
        batch = np.broadcast_shapes(*(a.shape[:-3] for a in (self.query, *keyed)))
        keyed = [np.broadcast_to(a, batch + a.shape[-3:]) for a in keyed]
        rng = np.random.default_rng(self.seed)
        pools, table = in_pages(rng, keyed, self.page_size, self.options)
        if self.seed % 2:  # (pages, page_size, Hk, D)
            pools = [np.ascontiguousarray(pool.swapaxes(1, 2)).swapaxes(1, 2) for pool in pools]
        options = {**self.options, "block_table": table, **more}
        pools = pools[:1] if self.function in OF_KEYS else pools
        result = getattr(attnfast, self.function)(self.query, *pools, **options)
        if self.key.ndim > 2 or self.value.ndim > 2:
            return result
        parts = result if isinstance(result, tuple) else (result,)
        parts = [a if a is None else a[0] for a in parts]
        return type(result)(*parts) if isinstance(result, tuple) else parts[0]

    def __repr__(self) -> str:
        return f"{super().__repr__()} in pages of {self.page_size}, seed {self.seed}"
