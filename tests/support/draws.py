"""Hypothesis strategies for whole calls: shapes, dtypes, memory layouts and every option."""

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from attnfast import BlockMask
from support.arrays import DTYPES, compute_dtype, randn, same_batch
from support.criterion import SCORE_OPTIONS
from support.dice import DICE, Dice
from support.drawn_call import Call
from support.layouts import EDGES, LAYOUTS, lay_out
from support.paged_call import PagedCall
from support.stored_call import STORAGES, ByteCall

MOST_PAIRS = 40_000  # of queries and keys, for what takes longer than `attention`
SIZES = [1, 3, 16, 64, 100, (1, 64), (48, 7), (130, 1), (64, 128), (1000, 1000)]  # of blocks


def _size(dice: Dice, limit: int) -> int:
    kind = dice.number(0, 2)
    if kind == 0:
        return dice.number(0, 5)
    return dice.number(1, limit) if kind == 1 else dice.pick([n for n in EDGES if n <= limit])


def calls(dtypes: Any = tuple(DTYPES), most_pairs: int = 100_000) -> st.SearchStrategy[Call]:
    """Any legal call of `attention` whose scores are finite."""
    return DICE.map(lambda dice: _call(dice, dtypes, most_pairs))


def local_calls(
    dtypes: Any = tuple(DTYPES), most_pairs: int = MOST_PAIRS
) -> st.SearchStrategy[Call]:
    """Any legal call of `local_attention`: windows in any place, global tokens, dilation."""
    return DICE.map(lambda dice: _local_call(dice, dtypes, most_pairs))


def additive_calls(dtypes: Any = tuple(DTYPES)) -> st.SearchStrategy[Call]:
    """Any legal call of `additive_attention`."""
    return DICE.map(lambda dice: _additive_call(dice, dtypes))


def block_masked_calls(
    dtypes: Any = tuple(DTYPES), most_pairs: int = MOST_PAIRS
) -> st.SearchStrategy[Call]:
    """Any legal call of `attention` with a block mask."""
    return DICE.map(lambda dice: _block_masked_call(dice, dtypes, most_pairs))


def topk_calls(dtypes: Any = tuple(DTYPES)) -> st.SearchStrategy[Call]:
    """Any legal call of `attention_topk`."""
    return DICE.map(lambda dice: _topk_call(dice, dtypes))


def importance_calls(dtypes: Any = tuple(DTYPES)) -> st.SearchStrategy[Call]:
    """Any legal call of `key_importance`."""
    return DICE.map(lambda dice: _importance_call(dice, dtypes))


def paged_calls(dtypes: Any = tuple(DTYPES)) -> st.SearchStrategy[Call]:
    """Any legal call of `attention` with keys and values in pages."""
    return DICE.map(lambda dice: _paged_call(dice, dtypes))


def paged_key_calls(dtypes: Any = tuple(DTYPES)) -> st.SearchStrategy[Call]:
    """Any legal call of a function of keys, with these in pages."""
    return DICE.map(lambda dice: _with_function_of_keys(dice, _paged_call(dice, dtypes)))


def byte_calls(dtypes: Any = tuple(DTYPES)) -> st.SearchStrategy[Call]:
    """Any legal call with keys and values in 8 bits, of `attention` or a function of keys."""
    return DICE.map(lambda dice: _byte_call(dice, dtypes))


DRAWN = {
    "attention": calls,
    "pages": paged_calls,
    "keys in pages": paged_key_calls,
    "bytes": byte_calls,
    "blocks": block_masked_calls,
    "local": local_calls,
    "additive": additive_calls,
    "top": topk_calls,
    "importance": importance_calls,
}


def any_call(name: str, examples: int) -> Callable[[Any], Any]:
    """Run a test with calls of `DRAWN[name]`: so many of `attention`, a third of that of others."""
    count = settings(max_examples=examples if name == "attention" else -(-examples // 3))
    return lambda test: count(given(call=DRAWN[name]())(test))


def _call(dice: Dice, dtypes: Any, most_pairs: int, multiple: int = 1) -> Call:
    """`multiple` divides the number of keys."""
    rng = dice.random()
    dtype = dice.pick(dtypes)
    batch = dice.pick([(), (), (1,), (2,), (3,), (2, 2), (1, 3)])
    kv_heads, group = dice.number(1, 3), dice.pick([1, 1, 2, 3, 4])
    lq, lk = _size(dice, 150), _size(dice, 300)
    if dice.one_in(2):
        lq = min(lq, dice.number(1, 4))
        lk += dice.pick([0, 512, 1500])
    elif dice.one_in(2):
        lq = lk = min(lq, lk)
    d = dice.pick([1, 2, 3, 7, 8, 16, 24, 33, 40, 64, 65, 80, 128, 130])
    dv = dice.pick([d, d, 1, 5, 8, 17, 48, 64, 96])
    while math.prod(batch) * kv_heads * group * lq * lk > most_pairs:
        batch, kv_heads, lk = batch[:-1], 1, lk - lk // 3
    lk -= lk % multiple
    heads = kv_heads * group

    amplitude = dice.pick([0.0, 1.0, 1.0, 3.0, 100.0])
    q_batch, k_batch, v_batch = (_thinned(dice, batch) for _ in range(3))
    if (*q_batch, heads, lq) == (*k_batch, kv_heads):  # could be one query for each head
        q_batch = (1, *q_batch)
    rank2 = batch == () and heads == 1 and dice.one_in(2)
    query = amplitude * rng.standard_normal((*q_batch, heads, lq, d))
    key = rng.standard_normal((*k_batch, kv_heads, lk, d))
    value = dice.pick([1e-3, 1.0, 1e3]) * rng.standard_normal((*v_batch, kv_heads, lk, dv))
    value += dice.pick([0.0, 0.0, 10.0])
    arrays = []
    for a in (query, key, value):
        a = a.astype(dtype)
        if rank2:
            a = a[0]
        a = lay_out(a, dice.pick(LAYOUTS))
        if dice.one_in(16) and a.shape[-2]:
            a = np.broadcast_to(a[..., :1, :], a.shape)
        arrays.append(a)
    batch = np.broadcast_shapes(q_batch, k_batch, v_batch)
    full = (lq, lk) if rank2 else (*batch, heads, lq, lk)
    return Call(*arrays, _options(dice, rng, full, batch, heads, dtype))


def _local_call(dice: Dice, dtypes: Any, most_pairs: int) -> Call:
    call = _call(dice, dtypes, most_pairs)
    rng = dice.random()
    query, key, _ = same_batch(call.query, call.key, call.value)
    full, lk = query.shape[:-1], key.shape[-2]
    batch, heads = full[:-2], full[-2] if len(full) > 1 else 1
    options = call.options
    if options.get("window_size") is None:
        left, right = (dice.number(0, 3 if dice.one_in(2) else lk) for _ in range(2))
        options["window_size"] = dice.pick([left, (left, right)])
    kind = dice.pick(["window", "global", "dilation", "both", "local-m", "local-p"])
    if kind in ("global", "both"):
        options["global_tokens"] = _global_tokens(dice, rng, batch, lk)
    if kind in ("dilation", "both"):
        options["dilation"] = dice.pick([1, 2, 3, 4, 7, 16, 40, *4 * [rng.integers(1, 6, heads)]])
    if kind in ("local-m", "local-p"):
        centers = rng.uniform(-5, lk + 5, _broadcastable(dice, full, len(batch)))
        if kind == "local-m":
            options["centers"] = np.floor(centers).astype(dice.pick(["i8", "i4"]))
        else:
            options["centers"] = centers.astype(dice.pick(["f8", "f4"]))
            options["sigma"] = dice.pick([0.3, 2, 10.0, 1000.0])
        if options["centers"].ndim > 1:
            options["centers"] = lay_out(options["centers"], dice.pick(LAYOUTS))
    return Call(call.query, call.key, call.value, options, "local_attention")


def _global_tokens(dice: Dice, rng: np.random.Generator, batch: tuple[int, ...], lk: int) -> Any:
    rows = dice.pick([(), batch, (math.prod(batch),)])
    if dice.one_in(2):
        return rng.random((*rows, lk)) < dice.pick([0.0, 0.02, 0.3, 1.0])
    count = dice.number(0, 4) if lk else 0
    return rng.integers(0, max(lk, 1), (*rows, count)).astype(dice.pick(["i8", "u2"]))


def _additive_call(dice: Dice, dtypes: Any) -> Call:
    call = _call(dice, dtypes, most_pairs=2500)
    rng = dice.random()
    call.options.pop("scale", None)
    heads, d = call.query.shape[-3] if call.query.ndim > 2 else 1, call.query.shape[-1]
    for name in ("score_weight", "score_bias"):
        shape = dice.pick([None, (d,), (heads, d)])
        if shape is not None:
            numbers = dice.pick([0.3, 1.0, 5.0]) * rng.standard_normal(shape)
            call.options[name] = numbers.astype(dice.pick(["f4", "f8", "f2"]))
    return Call(call.query, call.key, call.value, call.options, "additive_attention")


def block_mask(
    rng: np.random.Generator, lq: int, lk: int, size: Any, *leading: int, density: float = 0.5
) -> BlockMask:
    """Blocks at random."""
    rows, columns = np.broadcast_to(size, 2)
    return BlockMask(rng.random((*leading, -(-lq // rows), -(-lk // columns))) < density, size)


def block_mask_of(dice: Dice, call: Call) -> BlockMask:
    """A block mask that fits a call."""
    rng = dice.random()
    query, key, _ = same_batch(call.query, call.key, call.value)
    leading = tuple(1 if dice.one_in(3) else n for n in query.shape[:-2])
    leading = leading[dice.number(0, len(leading)) :]
    size, density = dice.pick(SIZES), dice.pick([0.0, 0.1, 0.5, 0.9, 1.0])
    return block_mask(rng, query.shape[-2], key.shape[-2], size, *leading, density=density)


def _block_masked_call(dice: Dice, dtypes: Any, most_pairs: int) -> Call:
    call = _call(dice, dtypes, most_pairs)
    call.options["mask"] = block_mask_of(dice, call)
    return call


def _paged_call(dice: Dice, dtypes: Any) -> Call:
    size, seed = dice.pick([16, 1, 2, 5, 64, 130]), dice.number(0, 2**32 - 1)
    call = _call(dice, dtypes, MOST_PAIRS, multiple=size)
    return PagedCall(*call.parts(), page_size=size, seed=seed)


def _byte_call(dice: Dice, dtypes: Any) -> Call:
    call = _call(dice, [t for t in dtypes if t != np.float64], MOST_PAIRS)
    call = ByteCall(*call.parts(), storage=dice.pick(list(STORAGES)))
    return call if dice.one_in(3) else _with_function_of_keys(dice, call)


def _with_function_of_keys(dice: Dice, call: Call) -> Call:
    """The same call of a function of keys."""
    call.function = dice.pick(["attention_weights", "attention_topk", "key_importance"])
    lk = call.key.shape[-2]
    own = {
        "attention_weights": lambda: {"stage": dice.pick(["biased", "weights"])},
        "attention_topk": lambda: {"k": min(lk, dice.pick([1, 5, 17, 64, 65, 200, lk]))},
        "key_importance": lambda: {"per_kv_head": dice.one_in(2)},
    }[call.function]()
    options = {n: x for n, x in call.options.items() if n in (*SCORE_OPTIONS, "sink_logits")}
    query, _, _ = same_batch(call.query, call.key, call.value)
    return call.like(query, call.key, call.value, {**options, **own})


def _topk_call(dice: Dice, dtypes: Any) -> Call:
    call = _call(dice, dtypes, most_pairs=MOST_PAIRS)
    lk = call.key.shape[-2]
    k = dice.number(0, lk) if dice.one_in(2) else min(lk, dice.pick([1, 2, 5, 8, 17, 64, lk]))
    return _of_keys(call, "attention_topk", k=k)


def _importance_call(dice: Dice, dtypes: Any) -> Call:
    call = _call(dice, dtypes, most_pairs=MOST_PAIRS)
    return _of_keys(call, "key_importance", per_kv_head=dice.one_in(2))


def _of_keys(call: Call, function: str, **more: Any) -> Call:
    """The call with all batch axes in the query, and the options of a function without values."""
    options = {n: x for n, x in call.options.items() if n in (*SCORE_OPTIONS, "sink_logits")}
    query, _, _ = same_batch(call.query, call.key, call.value)
    return Call(query, call.key, call.value, {**options, **more}, function)


def _thinned(dice: Dice, batch: tuple[int, ...]) -> tuple[int, ...]:
    """Batch axes of one input: some of length 1, the leading ones perhaps absent."""
    thin = tuple(1 if dice.one_in(5) else n for n in batch)
    return thin[1:] if thin and dice.one_in(10) else thin


def _broadcastable(dice: Dice, full: tuple[int, ...], batch_ndim: int) -> tuple[int, ...]:
    """A shape that broadcasts to `full` and cannot be taken for that of an array per batch row."""
    shape = tuple(1 if dice.one_in(3) else n for n in full)
    shape = shape[dice.pick([0, 0, 0, *range(len(shape) + 1)]) :]
    missing = len(full) - len(shape)
    if batch_ndim and 0 < missing < 3 and shape[:batch_ndim] == full[:batch_ndim]:
        return (1,) * missing + shape
    return shape


def _options(
    dice: Dice,
    rng: np.random.Generator,
    full: tuple[int, ...],
    batch: tuple[int, ...],
    heads: int,
    dtype: Any,
) -> dict[str, Any]:
    lq, lk = full[-2:]
    options: dict[str, Any] = {}

    def sometimes(name: str, option: Callable[[], Any], one_in: int = 3) -> None:
        if dice.one_in(one_in):
            options[name] = option()

    def per_row(low: int, high: int) -> Any:
        if math.prod(batch) == 1 and dice.one_in(2):
            return dice.number(low, high)
        if dice.one_in(2):
            return np.where(rng.random(batch or (1,)) < 0.5, low, high)
        return rng.integers(low, high + 1, batch or (1,))

    def side() -> Any:
        return dice.pick([None, -1, 0, 1]) if dice.one_in(2) else dice.number(0, max(lk, 1))

    def one_offset() -> Any:
        return "end" if dice.one_in(3) else dice.number(-lq - 3, lk + 3)

    def offset() -> Any:
        return per_row(-lq - 3, lk + 3) if dice.one_in(3) else one_offset()

    def slopes() -> Any:
        shape = (*(batch if dice.one_in(2) else ()), heads)
        return rng.standard_normal(shape).astype(np.float32)

    sometimes("is_causal", lambda: True)
    sometimes("window_size", lambda: (side(), side()) if dice.one_in(2) else dice.number(0, lk))
    sometimes("alibi_slopes", slopes, 5)
    sometimes("q_lengths", lambda: per_row(0, lq), 5)
    sometimes("kv_lengths", lambda: per_row(0, lk))
    sometimes("kv_starts", lambda: per_row(0, lk), 4)
    sometimes("q_offset", offset, 2)
    if lq != lk and "q_offset" not in options:
        options["q_offset"] = one_offset()
    sometimes("scale", lambda: dice.pick([0.0, 1.0, 0.3, -0.2]), 5)
    sometimes("softcap", lambda: dice.pick([0.5, 5.0, 30.0]), 5)
    sometimes("sink_logits", lambda: dice.pick([1, 20]) * randn(rng, heads), 5)
    sometimes("mask", lambda: _mask(dice, rng, full, len(batch)))
    sometimes("bias", lambda: _bias(dice, rng, full, len(batch), dtype))
    if dice.one_in(5):
        options["dropout"] = dice.pick([0.1, 0.3, 0.5, 0.9])
        options["dropout_seed"] = dice.number(0, 2**32 - 1)
    sometimes("return_lse", lambda: True, 2)
    sometimes("return_weights", lambda: True, 4)
    sometimes("num_threads", lambda: dice.number(1, 3), 2)
    return options


def _mask(
    dice: Dice, rng: np.random.Generator, full: tuple[int, ...], batch_ndim: int
) -> np.ndarray:
    shape = _broadcastable(dice, full, batch_ndim)
    mask = rng.random(shape) < dice.pick([0.0, 0.05, 0.5, 0.95, 1.0])
    if mask.ndim > 1 and dice.one_in(2):
        mask &= rng.random((*shape[:-1], 1)) < 0.7
    if dice.one_in(2):  # padding at the end, and at the start
        ends = np.sort(rng.integers(0, full[-1] + 1, 2))
        mask = np.broadcast_to(mask, (*shape[:-1], full[-1])) if shape else mask
        mask = mask & ((np.arange(full[-1]) >= ends[0]) & (np.arange(full[-1]) < ends[1]))
    return lay_out(mask, dice.pick(LAYOUTS)) if mask.ndim > 1 else mask


def _bias(
    dice: Dice, rng: np.random.Generator, full: tuple[int, ...], batch_ndim: int, dtype: Any
) -> np.ndarray:
    shape = _broadcastable(dice, full, batch_ndim)
    bias_dtype = dice.pick([dtype, *DTYPES])
    bias = dice.pick([0.0, 1.0, 30.0]) * rng.standard_normal(shape)
    # The most negative number that is finite in the dtype of the bias and in that of the scores.
    least = max(float(ml_dtypes.finfo(t).min) for t in (bias_dtype, compute_dtype(dtype)))
    for special in (-np.inf, -1e9, least):
        if dice.one_in(4):
            where = rng.random(shape) < dice.pick([0.05, 0.5, 1.0])
            bias = np.where(where, special, bias)
        if bias.ndim > 1 and dice.one_in(6):
            bias = np.where(rng.random((*shape[:-1], 1)) < 0.3, special, bias)
    with np.errstate(over="ignore"):
        bias = np.asarray(bias).astype(bias_dtype)
    return lay_out(bias, dice.pick(LAYOUTS)) if bias.ndim > 1 else bias
