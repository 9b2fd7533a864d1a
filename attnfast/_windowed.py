"""Attention over a ring of keys, in the order in which they are stored or in that of the text."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _core
from ._ring import Ring
from ._storage import Parts, Storage
from .block_mask import BlockMask
from .result import AttentionResult

Array = NDArray[Any]
Options = dict[str, Any]
Result = Array | AttentionResult

# Up to so many queries see keys through a mask, so that what is not of the size of the cache stays
# small; more are worth a copy of the keys in order. 32 heads of 128 over a window of 4096: the mask
# takes 0.2 of the time for 1 query, 0.8 for 32 and 0.95 for 128 (Zen 4, 1 thread).
MASKED_QUERIES = 64
# What has a number for each pair of query and key goes with the order of slots.
OF_PAIRS = ("mask", "bias", "return_weights")


class Kept(NamedTuple):
    """What a cache holds, and where: arrays ``(..., Hk, slots, D)``, and numbers of each row."""

    storage: Storage
    parts: Parts
    ring: Ring
    window: int
    lengths: Array
    written: Array


def attend_stored(
    query: Array, kept: Kept, first: Array, counts: Array, options: Options
) -> Result:
    """Attention of queries at positions `first` and up over the slots as they are.

    A mask of slots says which positions a query sees: softmax does not care for their order.
    """
    slots, n = kept.parts[0].shape[-2], query.shape[-2]
    held = kept.ring.positions(kept.lengths, kept.written, slots)[..., None, None, :]
    place = first[..., None, None, None] + np.arange(n)[:, None]
    visible = (held >= 0) & (held <= place)
    visible &= (held < kept.ring.fixed) | (held > place - kept.window)
    if "kv_starts" in options:
        visible &= held >= options.pop("kv_starts")[..., None, None, None]
    check(query, kept, options)
    mask, slopes = options.get("mask"), options.pop("alibi_slopes", None)
    if mask is not None:
        mask = mask.dense(n, slots) if isinstance(mask, BlockMask) else np.asarray(mask)
        visible = mask & visible
    if slopes is not None:
        added = -_slopes(slopes)[..., None, None] * np.abs(place - held)
        bias = options.get("bias")
        options["bias"] = added if bias is None else np.asarray(bias).astype(np.float64) + added
    options |= {"mask": visible, "q_lengths": counts, **kept.storage.scales(kept.parts)}
    return _core.attention(query, kept.parts[0], kept.parts[1], options)


def attend_in_order(
    query: Array, kept: Kept, new: Parts | None, counts: Array, options: Options
) -> Result:
    """Attention over a copy of the keys in the order of the text, `new` ones after those kept.

    The queries are the last `counts` rows of the text. Keys that none of them sees are left out, so
    that positions in the ring are less by a gap; a window sees no further than the first kept key.
    """
    fixed, total = kept.ring.fixed, kept.lengths + (counts if new else 0)
    first = total - counts
    oldest = np.maximum(fixed, first - kept.window + 1)
    gap = oldest - fixed
    stored = np.minimum(kept.lengths, fixed) + np.maximum(kept.lengths - oldest, 0)
    added = new or (None,) * len(kept.parts)
    parts = tuple(
        _in_order(part, rows, kept, oldest, stored)
        for part, rows in zip(kept.parts, added, strict=True)
    )
    columns = parts[0].shape[-2]
    starts = options.get("kv_starts")
    if starts is not None:
        starts = np.where(starts <= fixed, starts, np.maximum(fixed, starts - gap))
        options["kv_starts"] = np.minimum(starts, columns)
    slopes = options.get("alibi_slopes")
    if slopes is not None and fixed and gap.any():  # first keys are further away than they seem
        check(query, kept, {"alibi_slopes": slopes})
        far = np.where(np.arange(columns) < fixed, gap[..., None], 0)[..., None, None, :]
        options["bias"] = -_slopes(slopes)[..., None, None] * far
    options |= {"q_lengths": counts, "kv_lengths": total - gap, "q_offset": first - gap}
    options["is_causal"] = True
    options["window_size"] = (kept.window - 1, 0)
    if not fixed:
        options.update(kept.storage.scales(parts))
        return _core.attention(query, parts[0], parts[1], options)
    options["global_tokens"] = np.arange(min(fixed, columns))
    return _attend_local(query, kept, parts, options)


def _attend_local(query: Array, kept: Kept, parts: Parts, options: Options) -> Result:
    """Attention by windows and global tokens, which takes no 8 bits: they are widened before it."""
    window = options.pop("window_size")
    key, value = (kept.storage.real(parts, which) for which in (0, 1))
    if query.dtype == key.dtype or not kept.storage.quantised:
        return _core.local_attention(query, key, value, window, options)
    out = options.pop("out", None)
    _describe(query, kept, {"out": out})
    result = _core.local_attention(query.astype(np.float32), key, value, window, options)
    output, lse, _ = result if isinstance(result, AttentionResult) else (result, None, None)
    if out is None:
        out = np.empty_like(query, shape=output.shape)
    np.copyto(out, output, casting="same_kind")
    return AttentionResult(out, lse) if isinstance(result, AttentionResult) else out


def _in_order(part: Array, rows: Array | None, kept: Kept, oldest: Array, stored: Array) -> Array:
    """The first keys of each row, those from `oldest` on, and new ones, packed to the left."""
    n = rows.shape[-2] if rows is not None else 0
    columns = int(stored.max(initial=0)) + n
    result = np.empty((*part.shape[:-2], columns, part.shape[-1]), part.dtype)
    even = len({*zip(kept.lengths.flat, oldest.flat, strict=True)}) == 1
    for row in np.ndindex(() if even else kept.lengths.shape):
        here = (0,) * kept.lengths.ndim if even else row
        length, begin = int(kept.lengths[here]), int(oldest[here])
        held, out = part[row], result[row]  # of all rows, if they are alike
        at = min(length, kept.ring.fixed)
        out[..., :at, :] = held[..., :at, :]
        for slots, _ in kept.ring.pieces(begin, max(length - begin, 0)):
            count = slots.stop - slots.start
            out[..., at : at + count, :] = held[..., slots, :]
            at += count
        if rows is not None:
            out[..., at : at + n, :] = rows[row]
    return result


def check(query: Array, kept: Kept, options: Options) -> None:
    """Refuse what a call over the slots would refuse, before options are made of others."""
    if any(options.get(name) is not None for name in ("mask", "bias", "alibi_slopes")):
        _describe(query, kept, {**options, "q_offset": 0})


def _describe(query: Array, kept: Kept, options: Options) -> None:
    options = {**options, **kept.storage.scales(kept.parts), "return_blocks": False}
    _core.attention(query, kept.parts[0], kept.parts[1], options)


def _slopes(x: Any) -> Array:
    """Slopes ``(H,)`` or ``(B, H)``, which a call of the core has checked."""
    return np.asarray(x).astype(np.float64)
