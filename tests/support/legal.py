"""Legal arguments of every public function, all at once, so that a test can break one of them.

B = 2, H = 4, Hk = 2, Lq = 3, Lk = 5, D = 8, Dv = 6.
"""

import inspect
import io
import tempfile
from pathlib import Path

import numpy as np

import attnfast
from attnfast import BlockMask

RNG = np.random.default_rng(0)
Q, K, V = (RNG.random(s, np.float32) for s in [(2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 6)])
GOOD = {
    "query": Q,
    "key": K,
    "value": V,
    "mask": np.ones((2, 1, 3, 5), bool),
    "bias": np.zeros((4, 3, 5), np.float32),
    "is_causal": True,
    "window_size": (4, 2),
    "q_offset": 2,
    "q_lengths": np.array([3, 2]),
    "kv_lengths": np.array([5, 4]),
    "kv_starts": np.array([0, 1]),
    "scale": 0.5,
    "softcap": 30.0,
    "alibi_slopes": np.ones(4, np.float32),
    "sink_logits": np.zeros(4, np.float32),
    "num_threads": 2,
}

# K and V as pools of two pages, one for each batch row.
PAGES = {"block_table": np.array([[1], [0]])}
SMALL = {
    "key": (100 * K).astype(np.int8),
    "value": (100 * V).astype(np.int8),
    "key_scale": np.full((2, 2, 5, 1), 0.01, np.float32),
    "value_scale": 0.01,
    "key_zero_point": np.zeros((2, 1, 1)),
    "value_zero_point": 3,
}
SMALL_KEYS = {name: x for name, x in SMALL.items() if name.startswith("key")}
DROPOUT = {"dropout": 0.25, "dropout_seed": 3}
RESULTS = {"out": np.full((2, 4, 3, 6), 7, np.float32), "return_lse": True, "return_weights": True}
LOSS = {
    "grad_output": np.ones((2, 4, 3, 6), np.float32),
    "output": np.zeros((2, 4, 3, 6), np.float32),
    "lse": np.ones((2, 4, 3), np.float32),
    "grad_lse": np.zeros((2, 4, 3), np.float32),
    "grad_weights": np.zeros((2, 4, 3, 5), np.float32),
    "wanted": ("query", "bias"),
}
# Tq = 6, Tk = 9 in two sequences.
PACKED = {
    "query": RNG.random((6, 4, 8), np.float32),
    "key": RNG.random((9, 2, 8), np.float32),
    "value": RNG.random((9, 2, 6), np.float32),
    "cu_q": np.array([0, 2, 6]),
    "cu_k": np.array([0, 5, 9]),
    "out": np.full((6, 4, 6), 7, np.float32),
    "q_offset": "end",
}
# The same with K and V as pages, and with 8 bits.
PACKED_PAGES = {**PACKED, "key": K, "value": V, **PAGES}
PACKED_SMALL = {
    **PACKED,
    "key": (100 * PACKED["key"]).astype(np.int8),
    "value": (100 * PACKED["value"]).astype(np.int8),
    "key_scale": np.full((9, 2, 1), 0.01, np.float32),
    "value_scale": 0.01,
    "key_zero_point": np.zeros((2, 1)),
    "value_zero_point": 3,
}
PACKED_LOSS = {
    "grad_output": np.ones((6, 4, 6), np.float32),
    "output": np.zeros((6, 4, 6), np.float32),
    "lse": np.ones((6, 4), np.float32),
    "grad_lse": np.zeros((6, 4), np.float32),
    "wanted": ("query", "sink_logits"),
}


def without(arguments, *names):
    return {name: x for name, x in arguments.items() if name not in names}


def those_of(function, arguments):
    """The arguments that a function takes."""
    parameters = inspect.signature(function).parameters
    return {name: x for name, x in arguments.items() if name in parameters}


def parameters_of(function):
    """The names of what a public function takes; of `plan` and `vjp`, those for `attention`."""
    names = set(inspect.signature(named(function)).parameters) - {"self"}
    if function not in ("plan", "vjp"):
        return names
    return names - {"operands", "options"} | parameters_of("attention")


# Arguments that are taken to be refused.
REFUSED = {
    "vjp": {
        *("block_table", "key_scale", "value_scale", "key_zero_point", "value_zero_point"),
    }
}


def cache(dtype="float32"):
    """One that holds K and V, and has room for more."""
    new = attnfast.KVCache(2, 2, 8, 6, capacity=40, dtype=dtype)
    new.append(K, V)
    return new


def paged():
    """One that holds K and V, and room for a text more."""
    new = attnfast.PagedKVCache(2, 2, 8, 6, pages=10, page_size=3)
    new.append(K, V)
    return new


ASKED_OF_A_CACHE = ("query", "key", "value", "is_causal", "q_offset", "kv_lengths")
FILE = Path(tempfile.mkdtemp()) / "cache.npz"
cache().save(FILE)

# By name; what stands behind a comma tells two forms of one function apart.
FUNCTIONS = {
    "attention": {**GOOD, **DROPOUT, **RESULTS},
    "attention, pages": {**GOOD, **DROPOUT, **RESULTS, **PAGES},
    "attention, bytes": {**GOOD, **DROPOUT, **RESULTS, **SMALL},
    "attention_weights": {**without(GOOD, "value"), "stage": "weights"},
    "attention_weights, pages": {**without(GOOD, "value"), **PAGES, "stage": "scores"},
    "attention_weights, bytes": {**without(GOOD, "value"), **SMALL_KEYS},
    "plan": {**GOOD, **DROPOUT, **RESULTS, "return_blocks": True},
    "plan, pages": {**GOOD, **DROPOUT, **RESULTS, **PAGES, "return_blocks": True},
    "plan, bytes": {**GOOD, **DROPOUT, **RESULTS, **SMALL, "return_blocks": True},
    "local_attention": {**GOOD, **DROPOUT, **RESULTS, "dilation": 2, "global_tokens": [0]},
    "local_attention, centers": {
        **GOOD,
        **DROPOUT,
        **RESULTS,
        "centers": np.ones((2, 4, 3)),
        "sigma": 1.0,
    },
    "additive_attention": {
        **without(GOOD, "scale"),
        **DROPOUT,
        **RESULTS,
        "score_weight": np.ones(8),
        "score_bias": np.zeros((4, 8)),
    },
    "attention_topk": {**without(GOOD, "value"), "k": 2},
    "attention_topk, pages": {**without(GOOD, "value"), **PAGES, "k": 2},
    "attention_topk, bytes": {**without(GOOD, "value"), **SMALL_KEYS, "k": 2},
    "key_importance": {**without(GOOD, "value"), "per_kv_head": True},
    "key_importance, pages": {**without(GOOD, "value"), **PAGES, "per_kv_head": True},
    "key_importance, bytes": {**without(GOOD, "value"), **SMALL_KEYS},
    "attention_varlen": {
        **those_of(attnfast.attention_varlen, {**GOOD, **DROPOUT, **RESULTS}),
        **PACKED,
    },
    "attention_varlen, pages": {
        **those_of(attnfast.attention_varlen, {**GOOD, **DROPOUT, **RESULTS}),
        **PACKED_PAGES,
    },
    "attention_varlen, bytes": {
        **those_of(attnfast.attention_varlen, {**GOOD, **DROPOUT, **RESULTS}),
        **PACKED_SMALL,
    },
    "attention_backward": {**GOOD, **DROPOUT, **LOSS},
    "local_attention_backward": {
        **{**GOOD, **DROPOUT, **LOSS},
        **{"dilation": 2, "global_tokens": [0]},
    },
    "local_attention_backward, centers": {
        **{**GOOD, **DROPOUT, **LOSS},
        **{"centers": np.ones((2, 4, 3)), "sigma": 1.0, "wanted": ("query", "centers")},
    },
    "additive_attention_backward": {
        **without(GOOD, "scale"),
        **DROPOUT,
        **LOSS,
        "score_weight": np.ones(8),
        "score_bias": np.zeros((4, 8)),
        "wanted": ("query", "score_weight", "score_bias"),
    },
    "attention_varlen_backward": {
        **those_of(attnfast.attention_varlen_backward, {**GOOD, **DROPOUT, **PACKED_LOSS}),
        **without(PACKED, "out"),
    },
    "vjp": {
        **{"function": attnfast.attention, **GOOD, **DROPOUT, **RESULTS},
        "wanted": ("query", "bias"),
    },
    "rotate": {
        **{"x": Q, "positions": np.arange(6).reshape(2, 3), "base": 500.0, "interleaved": True},
        **{"out": np.full((2, 4, 3, 8), 7, np.float32), "num_threads": 2},
    },
    "rotate, tables": {
        **{"x": Q, "positions": np.arange(3)},
        "cos_sin": (RNG.random((9, 3)), RNG.random((9, 3))),
    },
    "KVCache": {
        **{"batch_shape": (2,), "num_kv_heads": 2, "head_dim": 8, "value_head_dim": 6},
        **{"capacity": 12, "dtype": "float16", "window": 8, "sinks": 2, "grow": False},
    },
    "KVCache.append": {"self": cache(), "key": K, "value": V, "lengths": np.array([5, 2])},
    "KVCache.attend": {
        **{"self": cache(), "query": Q, "return_lse": True, "return_weights": True},
        **without(GOOD, *ASKED_OF_A_CACHE),
        "out": np.full((2, 4, 3, 6), 7, np.float32),
    },
    "KVCache.extend": {
        **{"self": cache(), "query": Q, "key": K[:, :, :3], "value": V[:, :, :3]},
        **{"lengths": np.array([3, 1]), "return_lse": True, "return_weights": True},
        **without(GOOD, *ASKED_OF_A_CACHE, "q_lengths", "mask", "bias"),
        **{"mask": None, "bias": None, "out": np.full((2, 4, 3, 6), 7, np.float32)},
    },
    "KVCache.append, bytes": {"self": cache("int8"), "key": K, "value": V},
    "KVCache.extend, bytes": {
        **{"self": cache("int8"), "query": Q, "key": K[:, :, :3], "value": V[:, :, :3]},
        **{"scale": 0.5, "lengths": np.array([3, 1])},
    },
    "KVCache.truncate": {"self": cache(), "lengths": np.array([5, 3])},
    "KVCache.reorder": {"self": cache(), "rows": np.array([1, 0])},
    "KVCache.repeat": {"self": cache(), "n": 1},
    "KVCache.clear": {"self": cache(), "rows": np.array([1])},
    "KVCache.save": {"self": cache(), "file": io.BytesIO()},
    "KVCache.load": {"file": FILE},
    "PagedKVCache": {
        **{"num_rows": 2, "num_kv_heads": 2, "head_dim": 8, "value_head_dim": 6, "pages": 9},
        **{"page_size": 4, "dtype": "float16"},
    },
    "PagedKVCache.append": {
        **{"self": paged(), "key": K[:, :, :1], "value": V[:, :, :1]},
        **{"lengths": np.array([1, 0]), "rows": np.array([1, 0])},
    },
    "PagedKVCache.attend": {
        **{"self": paged(), "query": Q, "rows": np.array([0, 1])},
        **{"return_lse": True, "return_weights": True},
        **without(GOOD, *ASKED_OF_A_CACHE, "mask", "bias", "q_lengths", "kv_starts"),
        **{"mask": np.ones((2, 1, 3, 6), bool), "bias": np.zeros((4, 3, 6), np.float32)},
        **{"q_lengths": np.array([3, 2]), "kv_starts": np.array([0, 1])},
        "out": np.full((2, 4, 3, 6), 7, np.float32),
    },
    "PagedKVCache.add": {"self": paged()},
    "PagedKVCache.fork": {"self": paged(), "row": 1},
    "PagedKVCache.free": {"self": paged(), "row": 1},
    "quantize": {"x": Q, "dtype": "int8", "axis": -1, "group": 4},
    "merge_attention": {"outputs": [Q, Q], "lses": [Q[..., 0], Q[..., 0]]},
    "merge_attention_backward": {
        **{"grad_output": Q, "outputs": [Q, Q], "lses": [Q[..., 0], Q[..., 0]]},
        "grad_lse": Q[..., 0],
    },
    "BlockMask": {"blocks": np.ones((2, 2), bool), "block_size": 64},
    "BlockMask.from_mask": {"mask": np.ones((6, 9), bool), "block_size": 3},
    "BlockMask.from_function": {
        "visible": lambda i, j: i == j,
        **{"Lq": 9, "Lk": 9, "block_size": 3},
    },
    "BlockMask.bigbird": {
        **{"Lq": 90, "Lk": 90, "block_size": 9, "window_blocks": 3, "global_blocks": 2},
        **{"random_blocks": 1, "heads": 2, "seed": 0},
    },
    "BlockMask.dense": {"self": BlockMask(np.ones((2, 2), bool), 5), "Lq": 9, "Lk": 9},
    "set_num_threads": {"num_threads": 2},
    "num_threads": {"n": 2},
    "show_config": {"mode": "dicts"},
}


def named(function):
    """A public function or method by its name in `FUNCTIONS`."""
    target = attnfast
    for name in function.partition(",")[0].split("."):
        target = getattr(target, name)
    return target


def call(function, arguments):
    """The result of a function by its name; of a context manager, what is inside it."""
    if function == "num_threads":
        with named(function)(**arguments):
            return None
    if function == "vjp":
        return attnfast.vjp(arguments["function"], **without(arguments, "function"))
    return named(function)(**arguments)
