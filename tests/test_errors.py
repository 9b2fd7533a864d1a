"""Bad input, one argument at a time: what is raised, what it says, and that nothing is written."""

import re

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import attnfast
from support import BFLOAT16, same_bits

# Legal arguments, all at once; each case below breaks one. B = 2, H = 4, Hk = 2, Lq = 3, Lk = 5.
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
    "scale": 0.5,
    "softcap": 30.0,
    "alibi_slopes": np.ones(4, np.float32),
    "sink_logits": np.zeros(4, np.float32),
    "num_threads": 2,
}
ONLY_ATTENTION = ("return_lse", "return_weights", "out")
NAN, INF = float("nan"), float("inf")


def read_only():
    a = np.zeros((2, 4, 3, 6), np.float32)
    a.flags.writeable = False
    return a


def ragged():
    return [[1.0, 2.0], [3.0]]


class Loud:
    """Refuses to be a number."""

    def __float__(self):
        raise RuntimeError("not a number")


TYPE_ERRORS = [
    # Dtypes: query first, then what does not go with it.
    ("query", Q.astype(np.int32), "query.*int32.*astype"),
    ("query", Q > 0, "query.*bool.*astype"),
    ("query", Q.astype(np.complex64), "query.*complex64"),
    ("query", Q.astype(np.longdouble), "query.*float128|query.*longdouble"),
    ("query", Q.astype(object), "query"),
    ("query", np.array(["a", "b"]), "query"),
    ("query", Q.astype("datetime64[s]"), "query.*datetime64"),
    ("query", None, "query"),
    ("query", "text", "query"),
    ("query", {}, "query"),
    ("query", [[1, 2], [3, 4]], "query.*int64.*astype"),
    ("query", np.ma.masked_array(Q, Q > 0.5), "query.*mask"),
    ("key", K.astype(np.float64), r"key.*float64.*query.*float32.*key\.astype\(np\.float32\)"),
    ("key", K.astype(np.float16), r"key.*float16.*query.*float32.*key\.astype\(np\.float32\)"),
    ("key", K.astype(BFLOAT16), r"key.*bfloat16.*query.*float32.*key\.astype\(np\.float32\)"),
    ("key", K.astype(np.int8), "key.*int8"),
    ("key", None, "key"),
    (
        "value",
        V.astype(np.float64),
        r"value.*float64.*query.*float32.*value\.astype\(np\.float32\)",
    ),
    ("value", V.astype(np.uint8), "value.*uint8"),
    ("value", None, "value"),
    ("query", Q.astype(np.float64), r"key.*float32.*query.*float64.*key\.astype\(np\.float64\)"),
    ("query", Q.astype(BFLOAT16), r"key.*float32.*query.*bfloat16.*key\.astype\(.*bfloat16\)"),
    # Masks that are not bool: what to write instead.
    ("mask", np.ones((3, 5), np.int64), "mask.*int64.*!= 0"),
    ("mask", np.ones((3, 5), np.uint8), "mask.*uint8.*!= 0"),
    ("mask", np.zeros((3, 5), np.float32), "mask.*float32.*bias"),
    ("mask", 1, "mask.*int"),
    ("mask", "causal", "mask"),
    ("mask", [[1, 0, 1, 1, 1]], "mask.*int64.*!= 0"),
    ("bias", np.zeros((3, 5), np.int64), "bias.*int64.*astype"),
    ("bias", np.zeros((3, 5), bool), "bias.*bool.*mask"),
    ("bias", np.zeros((3, 5), np.complex128), "bias.*complex128"),
    ("bias", "text", "bias"),
    ("is_causal", 1, "is_causal"),
    ("is_causal", "yes", "is_causal"),
    ("is_causal", None, "is_causal"),
    ("is_causal", np.array([True, False]), "is_causal"),
    ("window_size", 2.0, "window_size.*float"),
    ("window_size", True, "window_size.*bool"),
    ("window_size", "3", "window_size.*str"),
    ("window_size", (1.5, 2), "window_size.*float"),
    ("window_size", (1, NAN), "window_size.*float"),
    ("q_offset", 1.0, "q_offset"),
    ("q_offset", True, "q_offset"),
    ("q_offset", np.array([1.0, 2.0]), "q_offset.*float64"),
    ("q_offset", [True, False], "q_offset.*bool"),
    ("q_lengths", np.array([1.0, 2.0]), "q_lengths.*float64"),
    ("q_lengths", np.array([True, True]), "q_lengths.*bool"),
    ("q_lengths", "end", "q_lengths"),
    ("kv_lengths", np.array([1.0, 2.0]), "kv_lengths.*float64"),
    ("kv_lengths", [None, None], "kv_lengths"),
    ("scale", "0.5", "scale.*str"),
    ("scale", 1j, "scale.*complex"),
    ("scale", [0.5], "scale.*list"),
    ("scale", np.ones(2), "scale.*ndarray"),
    ("scale", True, "scale.*bool"),
    ("softcap", "1", "softcap.*str"),
    ("softcap", [1.0], "softcap.*list"),
    ("softcap", False, "softcap.*bool"),
    ("alibi_slopes", np.array(["a"] * 4), "alibi_slopes"),
    ("alibi_slopes", np.ones(4, complex), "alibi_slopes.*complex128"),
    ("alibi_slopes", np.ones(4, bool), "alibi_slopes.*bool"),
    ("sink_logits", np.ones(4, complex), "sink_logits.*complex128"),
    ("sink_logits", "text", "sink_logits"),
    ("num_threads", 1.0, "num_threads.*float"),
    ("num_threads", "2", "num_threads.*str"),
    ("num_threads", True, "num_threads.*bool"),
    ("return_lse", "yes", "return_lse"),
    ("return_lse", np.array([True, False]), "return_lse"),
    ("return_weights", "no", "return_weights"),
    ("out", [[0.0]], "out.*list"),
    ("out", np.zeros((2, 4, 3, 6), np.float64), "out.*float32.*float64"),
    ("out", np.zeros((2, 4, 3, 6), np.int32), "out.*float32.*int32"),
]

VALUE_ERRORS = [
    # Shapes: the argument, its shape, what was expected.
    ("query", np.float32(1.0), r"query.*\(\)"),
    ("query", Q[0, 0, 0], r"query.*\(8,\)"),
    ("query", ragged(), "query"),
    ("query", Q[..., :7], r"key.*8.*query.*7"),
    ("query", Q[:, :3], r"2.*3|3.*2"),
    ("query", np.concatenate([Q, Q[:1]]), r"\(3, 4, 3, 8\)|\(2, 2, 5, 8\)"),
    ("query", Q[0, 0], "key.*heads.*query"),
    ("key", K[0, 0, 0], r"key.*\(8,\)"),
    ("key", K[..., :7], r"key.*7.*query.*8"),
    ("key", np.concatenate([K, K[:, :1]], axis=1), r"key|value"),
    ("key", K[:, :0], r"key|value"),
    ("key", K[:, :, :4], r"value.*5.*4|value.*4.*5"),
    ("key", np.concatenate([K, K[:1]]), r"\(3, 2, 5, 8\)"),
    ("value", V[0, 0, 0], r"value.*\(6,\)"),
    ("value", V[:, :, :4], r"value.*\(2, 2, 4, 6\)"),
    ("value", V[:, :1], r"value.*\(2, 1, 5, 6\)"),
    ("value", np.concatenate([V, V[:1]]), r"value.*\(3, 2, 5, 6\)"),
    ("mask", np.ones((3, 4), bool), r"mask.*\(3, 4\).*\(2, 4, 3, 5\)"),
    ("mask", np.ones((2, 3, 5), bool), r"mask.*\(2, 3, 5\).*\(2, 4, 3, 5\)"),
    ("mask", np.ones((1, 2, 4, 3, 5), bool), r"mask.*\(1, 2, 4, 3, 5\).*\(2, 4, 3, 5\)"),
    ("mask", np.ones((0, 5), bool), r"mask.*\(0, 5\)"),
    ("mask", [[True], [True, False]], "mask"),
    ("bias", np.zeros((3, 6), np.float32), r"bias.*\(3, 6\).*\(2, 4, 3, 5\)"),
    ("bias", np.zeros((3, 4, 3, 5), np.float32), r"bias.*\(3, 4, 3, 5\)"),
    ("window_size", -2, "window_size.*-2"),
    ("window_size", (-2, 0), "window_size.*-2"),
    ("window_size", (0, -5), "window_size.*-5"),
    ("window_size", (1, 2, 3), "window_size"),
    ("window_size", (1,), "window_size"),
    ("window_size", (), "window_size"),
    ("q_offset", None, r'q_offset.*Lq = 3.*Lk = 5.*q_offset=0.*"end"'),
    ("q_offset", "start", "q_offset.*end.*start"),
    ("q_offset", [1, 2, 3], r"q_offset.*\(2,\).*\(3,\)"),
    ("q_offset", [[1, 2]], r"q_offset.*\(2,\).*\(1, 2\)"),
    ("q_lengths", 3, r"q_lengths.*\(2,\)"),
    ("q_lengths", [3], r"q_lengths.*\(2,\).*\(1,\)"),
    ("q_lengths", [3, 4], r"q_lengths.*3.*4"),
    ("q_lengths", [-1, 3], r"q_lengths.*-1"),
    ("kv_lengths", 5, r"kv_lengths.*\(2,\)"),
    ("kv_lengths", [5, 6], r"kv_lengths.*5.*6"),
    ("kv_lengths", [5, -1], r"kv_lengths.*-1"),
    ("kv_lengths", np.array([5, 2**63], np.uint64), "kv_lengths"),
    ("kv_lengths", [1, 2, 3], r"kv_lengths.*\(2,\).*\(3,\)"),
    ("scale", NAN, "scale.*finite.*nan"),
    ("scale", INF, "scale.*finite.*inf"),
    ("scale", -INF, "scale.*finite.*-inf"),
    ("scale", np.float32(NAN), "scale.*finite.*nan"),
    ("scale", 10**400, "scale.*finite"),
    ("softcap", 0, "softcap.*0"),
    ("softcap", 0.0, "softcap.*0"),
    ("softcap", -1.0, r"softcap.*-1"),
    ("softcap", NAN, "softcap.*nan"),
    ("softcap", INF, "softcap.*inf"),
    ("alibi_slopes", np.ones(3), r"alibi_slopes.*\(4,\).*\(3,\)"),
    ("alibi_slopes", 1.0, r"alibi_slopes.*\(4,\).*\(\)"),
    ("alibi_slopes", np.ones((4, 2)), r"alibi_slopes.*\(2, 4\).*\(4, 2\)"),
    ("sink_logits", np.ones(2), r"sink_logits.*\(4,\).*\(2,\)"),
    ("sink_logits", np.ones((2, 4)), r"sink_logits.*\(4,\).*\(2, 4\)"),
    ("sink_logits", 0.0, r"sink_logits.*\(4,\).*\(\)"),
    ("num_threads", 0, "num_threads.*0"),
    ("num_threads", -3, "num_threads.*-3"),
    ("out", np.zeros((2, 4, 3, 5), np.float32), r"out.*\(2, 4, 3, 6\).*\(2, 4, 3, 5\)"),
    ("out", np.zeros((4, 3, 6), np.float32), r"out.*\(2, 4, 3, 6\).*\(4, 3, 6\)"),
    ("out", read_only(), "out.*read-only"),
    ("out", np.broadcast_to(np.float32(0), (2, 4, 3, 6)), "out.*read-only"),
    ("out", as_strided(np.zeros(6, np.float32), (2, 4, 3, 6), (0, 0, 0, 4)), "out.*share"),
]

CASES = [(TypeError, *case) for case in TYPE_ERRORS] + [
    (ValueError, *case) for case in VALUE_ERRORS
]


def identify(case):
    kind, name, bad, _ = case
    shown = f"{bad.dtype}{bad.shape}" if isinstance(bad, np.ndarray) else repr(bad)
    return f"{kind.__name__}-{name}-{shown}"


def contents(x):
    return x.copy() if isinstance(x, np.ndarray) else x


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_attention(case):
    kind, name, bad, message = case
    arguments = {**GOOD, "out": np.full((2, 4, 3, 6), 7, np.float32), name: bad}
    before = {n: contents(x) for n, x in arguments.items()}
    with pytest.raises(kind, match=re.compile(message, re.DOTALL)) as caught:
        attnfast.attention(**arguments)
    assert caught.type is kind
    assert name in str(caught.value) or name in ("query", "key", "value")
    for n, x in arguments.items():
        if isinstance(x, np.ndarray) and x.dtype != object:
            assert same_bits(x, before[n]), f"{n} was written"


@pytest.mark.parametrize("function", ["attention_weights", "plan"])
@pytest.mark.parametrize("case", [c for c in CASES if c[1] not in ONLY_ATTENTION], ids=identify)
def test_attention_weights_and_plan(case, function):
    kind, name, bad, message = case
    arguments = {**GOOD, name: bad}
    if function == "attention_weights":
        del arguments["value"]
        if name == "value" or message in ("key|value", r"value.*5.*4|value.*4.*5"):
            return
    with pytest.raises(kind, match=re.compile(message, re.DOTALL)):
        getattr(attnfast, function)(**arguments)


def test_what_the_cases_break_is_legal_without_them():
    attnfast.attention(**GOOD, return_lse=True, return_weights=True)
    attnfast.plan(**GOOD)
    attnfast.attention_weights(**{n: x for n, x in GOOD.items() if n != "value"})


def test_exceptions_of_the_caller_pass_through():
    with pytest.raises((RuntimeError, TypeError)):
        attnfast.attention(Q, K, V, scale=Loud())


@pytest.mark.parametrize(
    "call",
    [
        lambda: attnfast.attention(Q, K),
        lambda: attnfast.attention(Q, K, V, None),
        lambda: attnfast.attention(Q, K, V, causal=True),
        lambda: attnfast.attention_weights(Q, K, value=V),
    ],
    ids=["missing value", "positional option", "unknown option", "value for weights"],
)
def test_wrong_signatures(call):
    with pytest.raises(TypeError):
        call()


@pytest.mark.parametrize("stage", ["weight", "", None, 3, "SCORES", ["scores"]])
def test_unknown_stages(stage):
    with pytest.raises((ValueError, TypeError), match=r"stage.*scores.*capped.*biased.*weights"):
        attnfast.attention_weights(Q, K, stage=stage)


@pytest.mark.parametrize(
    ("outputs", "lses", "kind", "message"),
    [
        ([], [], ValueError, "outputs"),
        ([Q], [], ValueError, "lses"),
        ([Q], [Q], ValueError, r"lses.*\(2, 4, 3, 8\)"),
        ([Q, Q], [Q[..., 0]], ValueError, "lses"),
        ([Q, Q[:1]], [Q[..., 0]] * 2, ValueError, r"outputs.*\(1, 4, 3, 8\)"),
        ([Q, Q], [Q[..., 0], Q[:1, ..., 0]], ValueError, r"lses.*\(1, 4, 3\)"),
        ([Q, Q.astype(np.float64)], [Q[..., 0]] * 2, TypeError, "outputs.*float32.*float64"),
        ([Q.astype(int)], [Q[..., 0]], TypeError, "outputs.*int64"),
        ([Q], [Q[..., 0].astype(int)], TypeError, "lses.*int64"),
        ([Q.astype(complex)], [Q[..., 0]], TypeError, "outputs.*complex"),
        (None, None, TypeError, "outputs"),
        (np.float32(1.0), np.float32(1.0), (TypeError, ValueError), "outputs"),
    ],
)
def test_merge_attention(outputs, lses, kind, message):
    with pytest.raises(kind, match=message):
        attnfast.merge_attention(outputs, lses)


def test_absurd_shapes_are_errors():
    """Views of one number may claim any size; products of sizes must not wrap around."""
    one = np.ones(1, np.float32)
    huge = as_strided(one, (2**30, 1, 2**30, 1), (0, 0, 0, 0))
    for arrays in [(huge, one[None], one[None]), (huge, huge, huge)]:
        with pytest.raises((ValueError, MemoryError)):
            attnfast.attention(*arrays)
    wide = as_strided(one, (1, 1, 2**59), (0, 0, 0))
    with pytest.raises((ValueError, MemoryError)):
        attnfast.attention(wide, wide, one[None])
    long = as_strided(one, (2**40, 8), (0, 4))
    with pytest.raises((ValueError, MemoryError)):
        attnfast.attention(long, np.ones((3, 8), np.float32), np.ones((3, 2**20), np.float32))
    with pytest.raises((ValueError, MemoryError)):
        attnfast.attention_weights(long, long)
    deep = np.ones((1,) * 64, np.float32)
    assert attnfast.attention(deep, deep, deep).shape == deep.shape
