"""Bad values of every argument of every public function: the error, and what it has to say.

A case is (kind of error, argument, bad value, pattern of the message). `cases` gives those of a
function: of the arguments that many functions share, and of its own.
"""

import io

import numpy as np
from numpy.lib.stride_tricks import as_strided

from attnfast import BlockMask
from support.arrays import BFLOAT16
from support.legal import FUNCTIONS, PACKED, PACKED_SMALL, REFUSED, RESULTS, K, Q, V

NAN, INF = float("nan"), float("inf")
# Errors about one of these may name another: two arrays that do not fit are a fault of either.
OPERANDS = ("query", "key", "value")
OVERLAPPING = as_strided(np.full(30, 7, np.float32), (2, 4, 3, 6), (24, 4, 4, 4))


def read_only():
    a = np.zeros((2, 4, 3, 6), np.float32)
    a.flags.writeable = False
    return a


def ragged():
    return [[1.0, 2.0], [3.0]]


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
    ("key", K.astype(np.int16), "key.*int16"),
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
    ("kv_starts", np.array([1.0, 2.0]), "kv_starts.*float64"),
    ("kv_starts", np.array([True, True]), "kv_starts.*bool"),
    ("kv_starts", "end", "kv_starts"),
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
    ("dropout", "0.5", "dropout.*str"),
    ("dropout", True, "dropout.*bool"),
    ("dropout_seed", 1.0, "dropout_seed.*float"),
    ("dropout_seed", "3", "dropout_seed.*str"),
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
    ("kv_starts", 0, r"kv_starts.*\(2,\)"),
    ("kv_starts", [0, 6], r"kv_starts.*5.*6.*counts keys of padding on the left"),
    ("kv_starts", [-1, 0], r"kv_starts.*-1.*counts keys of padding on the left"),
    ("kv_starts", [0, 1, 2], r"kv_starts.*\(2,\).*\(3,\)"),
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
    ("dropout", 1.0, r"dropout.*1\.0"),
    ("dropout", -0.1, r"dropout.*-0\.1"),
    ("dropout", NAN, "dropout.*nan"),
    ("dropout_seed", -1, "dropout_seed.*-1"),
    ("dropout_seed", 2**64, "dropout_seed.*18446744073709551616"),
    ("num_threads", 0, "num_threads.*0"),
    ("num_threads", -3, "num_threads.*-3"),
    ("out", np.zeros((2, 4, 3, 5), np.float32), r"out.*\(2, 4, 3, 6\).*\(2, 4, 3, 5\)"),
    ("out", np.zeros((4, 3, 6), np.float32), r"out.*\(2, 4, 3, 6\).*\(4, 3, 6\)"),
    ("out", read_only(), "out.*read-only"),
    ("out", np.broadcast_to(np.float32(0), (2, 4, 3, 6)), "out.*read-only"),
    ("out", as_strided(np.zeros(6, np.float32), (2, 4, 3, 6), (0, 0, 0, 4)), "out.*share"),
]


MORE = [
    (TypeError, "mask", np.ma.masked_array(np.ones((3, 5), bool)), "mask is a masked array"),
    (TypeError, "bias", np.ma.masked_array(np.zeros((3, 5))), "bias is a masked array"),
    (
        ValueError,
        "mask",
        BlockMask(np.ones((2, 2), bool), 2),
        r"^mask must have \(2, 3\) blocks.*got \(2, 2\)$",
    ),
    (ValueError, "mask", BlockMask(np.ones((3, 2, 3), bool), 2), r"mask.*\(3, 2, 3\).*\(2, 4"),
    (TypeError, "bias", BlockMask(np.ones((2, 3), bool), 2), "bias"),
    (TypeError, "out", np.ma.masked_array(RESULTS["out"]), "out must.*masked array"),
    (ValueError, "out", OVERLAPPING, "out.*share"),
    (TypeError, "scale", np.timedelta64(1), "scale.*timedelta64"),
    (TypeError, "num_threads", np.timedelta64(1), "num_threads.*timedelta64"),
]

SHARED = [
    *((TypeError, *case) for case in TYPE_ERRORS),
    *((ValueError, *case) for case in VALUE_ERRORS),
    *MORE,
]
# Arguments that one function only has, or that mean something else there.
SIZES = [
    (TypeError, "block_size", 2.0, "block_size.*float"),
    (TypeError, "block_size", True, "block_size.*bool"),
    (TypeError, "block_size", None, "block_size"),
    (TypeError, "block_size", (2, "2"), "block_size.*str"),
    (ValueError, "block_size", 0, "block_size.*0"),
    (ValueError, "block_size", (3, -1), "block_size.*-1"),
    (ValueError, "block_size", (1, 2, 3), "block_size"),
]
FLAG = [(TypeError, x) for x in (1, 0.0, None, "yes", [True], np.array([True, False]))]

WINDOW = [
    (TypeError, "dilation", 1.0, "float"),
    (TypeError, "dilation", True, "bool"),
    (TypeError, "dilation", "2", "dilation"),
    (TypeError, "dilation", None, "None"),
    (TypeError, "dilation", np.ones(4), "float64"),
    (TypeError, "dilation", np.ones(4, bool), "bool"),
    (ValueError, "dilation", 0, "0"),
    (ValueError, "dilation", -1, "-1"),
    (ValueError, "dilation", [1, 2, 0, 1], "0"),
    (ValueError, "dilation", 2**70, f"^dilation must be numbers of at most 64 bits, got {2**70}"),
    (ValueError, "dilation", [1, 1, 10**50, 1], "got a number of 167 bits"),
    (ValueError, "dilation", [1, 2], r"\(4,\).*\(2,\)"),
    (ValueError, "dilation", np.ones((2, 4), int), r"\(4,\).*\(2, 4\)"),
    (TypeError, "global_tokens", [0.0, 1.0], "float64"),
    (TypeError, "global_tokens", "0", "global_tokens"),
    (TypeError, "global_tokens", np.ones(5, np.float32), "float32"),
    (TypeError, "global_tokens", np.ones(5, complex), "complex"),
    (ValueError, "global_tokens", [0, 5], "5"),
    (ValueError, "global_tokens", [-1], "-1"),
    (ValueError, "global_tokens", np.array([2**63], np.uint64), "global_tokens"),
    (ValueError, "global_tokens", [[0], [1], [2]], r"\(3, 1\)"),
    (ValueError, "global_tokens", np.ones(4, bool), r"\(4,\)"),
    (ValueError, "global_tokens", np.ones((3, 5), bool), r"\(3, 5\)"),
    (ValueError, "global_tokens", np.zeros((2, 1, 1), int), r"\(2, 1, 1\)"),
    (ValueError, "centers", np.ones(3, int), "^centers.*global_tokens"),
    (ValueError, "sigma", 1.0, "^sigma.*centers"),
]
CENTERED = [
    (TypeError, "centers", np.ones((2, 4, 3), bool), "bool"),
    (TypeError, "centers", np.ones((2, 4, 3), complex), "complex"),
    (TypeError, "centers", "middle", "centers"),
    (ValueError, "centers", np.ones((2, 4, 2)), r"\(2, 4, 2\).*\(2, 4, 3\)"),
    (ValueError, "centers", np.ones((3, 2, 4, 3)), r"\(3, 2, 4, 3\)"),
    (ValueError, "centers", np.ones(3, int), "^sigma.*centers"),
    (ValueError, "centers", np.array([0, NAN, 1]), "nan|finite"),
    (ValueError, "centers", np.array([0, INF, 1]), "inf|finite"),
    (ValueError, "centers", np.array([0, -INF, 1]), "inf|finite"),
    (ValueError, "sigma", None, r"^sigma.*write sigma=\(\d \+ \d\) / 4 for local-p"),
    (ValueError, "sigma", 0.0, "0"),
    (ValueError, "sigma", -1.0, "-1"),
    (ValueError, "sigma", NAN, "nan"),
    (ValueError, "sigma", INF, "inf"),
    (TypeError, "sigma", "1", "str"),
    (TypeError, "sigma", [1.0], "list"),
    (TypeError, "sigma", True, "bool"),
    (TypeError, "sigma", np.ones(3), "ndarray"),
    (ValueError, "dilation", 2, "^centers.*dilation"),
    (ValueError, "global_tokens", [0], "^centers.*global_tokens"),
]
VECTORS = [
    (TypeError, "text", ""),
    (TypeError, np.array(["a"] * 8), ""),
    (TypeError, np.ones(8, complex), "complex"),
    (TypeError, np.ones(8, bool), "bool"),
    (TypeError, np.ma.masked_array(np.ones(8)), "masked"),
    (ValueError, np.ones(7), r"\(8,\).*\(7,\)"),
    (ValueError, np.ones(1), r"\(8,\).*\(1,\)"),
    (ValueError, np.ones((2, 8)), r"\(4, 8\).*\(2, 8\)"),
    (ValueError, np.ones((8, 4)), r"\(4, 8\).*\(8, 4\)"),
    (ValueError, np.ones((2, 4, 8)), r"\(2, 4, 8\)"),
    (ValueError, [[1.0], [1.0, 2.0]], ""),
    (ValueError, 1.0, r"\(8,\).*\(\)"),
]
PACKED_ARRAYS = [
    (TypeError, "query", PACKED["query"].astype(int), "int64.*astype"),
    (ValueError, "query", PACKED["query"][0], r"\(4, 8\)"),
    (ValueError, "query", PACKED["query"][None], r"\(1, 6, 4, 8\)"),
    (TypeError, "key", PACKED["key"].astype(np.float64), "float64.*float32"),
    (ValueError, "key", PACKED["key"][..., :7], "7.*8"),
    (ValueError, "key", PACKED["key"][None], r"\(1, 9, 2, 8\)"),
    (ValueError, "value", PACKED["value"][:8], r"\(8, 2, 6\)"),
    (ValueError, "value", PACKED["value"][:, :1], r"\(9, 1, 6\)"),
    (ValueError, "value", PACKED["value"][0], r"\(2, 6\)"),
    (ValueError, "cu_k", [0, 3, 5, 9], "cu_q.*3.*4"),
    (ValueError, "q_offset", None, 'q_offset=0.*"end"'),
    (ValueError, "alibi_slopes", np.ones((3, 4)), r"\(2, 4\).*\(3, 4\)"),
    (ValueError, "out", np.zeros((6, 4, 5), np.float32), r"\(6, 4, 6\).*\(6, 4, 5\)"),
    (TypeError, "out", np.zeros((6, 4, 6)), "float32.*float64"),
]
BOUNDS = [
    (kind, name, bad, message)
    for name, end in [("cu_q", 6), ("cu_k", 9)]
    for kind, bad, message in [
        (TypeError, np.array([0.0, 2.0, end]), "float64"),
        (TypeError, np.array([False, True, True]), "bool"),
        (TypeError, "0 2", name),
        (TypeError, None, name),
        (ValueError, end, r"\(\)"),
        (ValueError, [[0, 2, end]], r"\(1, 3\)"),
        (ValueError, np.array([], int), r"\(0,\)"),
        (ValueError, [1, 2, end], "0.*1"),
        (ValueError, [-1, 2, end], "-1"),
        (ValueError, [0, 2, end - 1], f"{end}.*{end - 1}|{end - 1}.*{end}"),
        (ValueError, [0, 2, end + 1], f"{end}.*{end + 1}|{end + 1}.*{end}"),
        (ValueError, [0, end + 1, end], "rise"),
        (ValueError, [0, 2**62, end], "rise"),
        (ValueError, np.array([0, 2**63, end], np.uint64), name),
    ]
]
LISTED = [
    (TypeError, "k", 2.0, "float"),
    (TypeError, "k", True, "bool"),
    (TypeError, "k", "2", "str"),
    (TypeError, "k", None, "None"),
    (TypeError, "k", [2], "list"),
    (TypeError, "k", np.array([1, 2]), "ndarray"),
    (ValueError, "k", -1, "-1"),
    (ValueError, "k", 6, "5.*6"),
    (ValueError, "k", 2**70, "5"),
]
PAGED = [
    (TypeError, "block_table", np.zeros((2, 1)), "block_table.*integers.*float64.*astype"),
    (TypeError, "block_table", np.zeros((2, 1), bool), "block_table.*bool"),
    (TypeError, "block_table", "0", "block_table"),
    (ValueError, "block_table", 0, r"block_table.*\(\)"),
    (ValueError, "block_table", [[0], [1], [0]], r"block_table.*\(3, 1\), query \(2, 4, 3, 8\)"),
    (ValueError, "block_table", [[0], [2]], r"block_table must.*0 \.\. 1.*got 2.*batch row 1"),
    (ValueError, "block_table", [[-1], [1]], "block_table must.*got -1 for keys 0 .. 4 of"),
    (ValueError, "key", K[0], r"key must have 4 axes beside block_table.*\(2, 5, 8\)"),
    (ValueError, "value", V[:1], r"value must have the pages.*\(1, 2, 5, 6\)"),
    (ValueError, "kv_lengths", [5, 6], r"kv_lengths.*5.*6"),
]
K8, V8 = FUNCTIONS["attention, bytes"]["key"], FUNCTIONS["attention, bytes"]["value"]
SMALL = [
    *(
        case
        for name, of in (("key_scale", "key"), ("value_scale", "value"))
        for case in [
            (ValueError, name, None, rf"{name} must be given with {of} of int8.*quantize\({of}, "),
            *(
                (kind, each, bad, f"{each}.*{message}")
                for each in (name, name.replace("scale", "zero_point"))
                for kind, bad, message in [
                    (TypeError, np.ones(1, bool), "bool"),
                    (TypeError, np.ones(1, complex), "complex"),
                    (TypeError, "1", "real numbers"),
                    (ValueError, np.ones((2, 2, 4, 1)), r"divide.*\(2, 2, 5, .*\(2, 2, 4, 1\)"),
                    (ValueError, np.ones((3, 1, 1, 1)), r"\(3, 1, 1, 1\)"),
                    (ValueError, np.ones((1, 1, 1, 1, 1)), r"\(1, 1, 1, 1, 1\)"),
                    (ValueError, np.ones((5, 0)), r"\(5, 0\)"),
                ]
            ),
        ]
    ),
    (TypeError, "query", Q.astype(np.float64), r"query must.*int8.*query\.astype\(np\.float32\)"),
    (TypeError, "query", K8, "query.*int8"),
    (TypeError, "key", K8.view(np.uint8), "value must have the dtype of key, uint8, got int8"),
    (TypeError, "key", K8.astype(np.int16), "key.*int16"),
    (ValueError, "key", K8[..., :7], r"key.*7.*query.*8"),
    (TypeError, "value", V, r"value must.*int8, got float32.*quantize\(value, "),
    (ValueError, "value", V8[:, :, :4], r"value.*\(2, 2, 4, 6\)"),
]
PLAIN = [
    (ValueError, name, 1.0, f"{name} must be left out with {of} of float32, which")
    for name, of in [
        *(("key_scale", "key"), ("value_scale", "value")),
        *(("key_zero_point", "key"), ("value_zero_point", "value")),
    ]
]


def of_keys(known):
    """Of some cases, those of functions without values."""
    return [case for case in known if "value" not in case[1] and "value" not in case[3]]


PLAIN_KEYS = [
    *of_keys(PLAIN),
    (ValueError, "key", K.astype(np.int8), r"key_scale must be given.*quantize\(key, "),
]
PACKED_PAGED = [
    *[case for case in PAGED if case[0] is TypeError or "()" in case[3]],
    (ValueError, "block_table", [[0]], r"block_table must.*\(2, blocks\), got \(1, 1\)"),
    (ValueError, "block_table", [0, 1], r"block_table must.*\(2, blocks\), got \(2,\)"),
    (ValueError, "block_table", [[0], [2]], r"block_table.*0 \.\. 1.*cu_k.*2.*sequence 1"),
    (ValueError, "block_table", [[-1], [1]], "block_table.*got -1 for keys 0 .. 4 of sequence 0"),
    (ValueError, "cu_k", [0, 5, 11], "cu_k must.*5 keys a sequence.*1 pages of 5 hold, got 6"),
    (ValueError, "cu_k", [0, 5, 4], "cu_k must rise from 0, got 5 before 4"),
    (ValueError, "cu_k", [1, 5, 9], "cu_k must rise from 0, got 1 .. 9"),
    (ValueError, "key", K[0], r"key must have 4 axes beside block_table.*\(2, 5, 8\)"),
    (ValueError, "value", V[:1], r"value must have the pages.*\(1, 2, 5, 6\)"),
    (ValueError, "key", K[..., :7], r"key.*7.*key \(2, 2, 5, 7\), query \(6, 4, 8\)"),
]
PACKED_SMALL_CASES = [
    *[(*case[:3], case[3].split(r"\(")[0]) for case in SMALL if case[2] is None],
    *[
        (kind, each, bad, f"{each}.*{message}")
        for each in ("key_scale", "value_scale", "key_zero_point", "value_zero_point")
        for kind, bad, message in [
            (TypeError, np.ones(1, bool), "bool"),
            (ValueError, np.ones((4, 2, 1)), r"divide.*\(9, 2, .*\(4, 2, 1\)"),
            (ValueError, np.ones((2, 9, 1)), r"divide.*\(9, 2, .*\(2, 9, 1\)"),
            (ValueError, np.ones((1, 9, 2, 1)), r"divide.*\(1, 9, 2, 1\)"),
        ]
    ],
    (TypeError, "query", PACKED["query"].astype(np.float64), r"query must.*int8.*np\.float32"),
    (TypeError, "key", PACKED_SMALL["key"].view(np.uint8), "value must.*uint8, got int8"),
    (TypeError, "value", PACKED["value"], r"value must.*int8, got float32.*quantize\(value, "),
    (ValueError, "value", PACKED_SMALL["value"][:8], r"value.*\(8, 2, 6\)"),
]
LOSS = [
    *(
        case
        for name, width in (("grad_output", 6), ("output", 6), ("grad_weights", 5))
        for case in [
            (TypeError, name, np.zeros((2, 4, 3, width)), f"{name}.*float64.*query.*float32"),
            (TypeError, name, np.zeros((2, 4, 3, width), int), f"{name}.*int64"),
            (ValueError, name, np.zeros((2, 4, 3, 4), np.float32), rf"{name}.*\(2, 4, 3, 4\)"),
            (ValueError, name, np.zeros((3, width), np.float32), rf"{name}.*\(3, {width}\)"),
        ]
    ),
    *(
        case
        for name in ("lse", "grad_lse")
        for case in [
            (ValueError, name, np.zeros((2, 4, 5)), rf"{name}.*\(2, 4, 5\)"),
            (ValueError, name, np.zeros(3), rf"{name}.*\(3,\)"),
            (TypeError, name, np.zeros((2, 4, 3), complex), f"{name}.*complex128"),
        ]
    ),
    (TypeError, "grad_output", None, "grad_output.*NoneType"),
    (TypeError, "lse", None, "lse.*NoneType"),
]
WANTED = [
    (TypeError, "wanted", "query", r"wanted.*'query'.*write wanted=\('query',\)"),
    (TypeError, "wanted", 3, "wanted.*3"),
    (ValueError, "wanted", ("keys",), "wanted.*'keys'"),
    (ValueError, "wanted", (1,), "wanted.*1"),
]

# ---- KVCache ----

TOKENS = [
    case
    for name, x in (("key", K), ("value", V))
    for case in [
        (TypeError, name, None, f"{name}.*NoneType"),
        (TypeError, name, x.astype(np.float64), f"{name}.*float64.*cache has float32.*astype"),
        (ValueError, name, x[:1], rf"{name} must have shape \(2, 2, n, .\), got \(1, 2, "),
        (ValueError, name, x[:, :1], rf"{name} must have shape .* got \(2, 1, "),
        (ValueError, name, x[..., :5], rf"{name} must have shape .* got .*5\)"),
        (ValueError, name, x[0, 0], rf"{name} must have shape"),
    ]
]
PAGED_ROWS = [
    (ValueError, "rows", np.array([0, 2]), r"rows must be of \[0, 1\], got 2"),
    (ValueError, "rows", np.array([-1, 0]), r"rows must be of \[0, 1\], got -1"),
    (ValueError, "rows", np.array([[0, 1]]), r"rows must have one axis, got shape \(1, 2\)"),
    (TypeError, "rows", np.array([0.0, 1.0]), "rows.*float64"),
]
LENGTHS_OF_ROWS = [
    (TypeError, "lengths", np.array([1.0, 2.0]), "lengths.*float64"),
    (TypeError, "lengths", "3", "lengths"),
    (ValueError, "lengths", np.array([1, 2, 3]), r"lengths.*\(2,\).*\(3,\)"),
    (ValueError, "lengths", np.array([-1, 2]), "lengths.*-1"),
]
ROWS = [
    (TypeError, "rows", np.array([0.0, 1.0]), "rows.*float64"),
    (TypeError, "rows", None, "rows.*NoneType"),
    (ValueError, "rows", np.array([0, 2]), "rows must be within 0 .. 1, got 0 .. 2"),
    (ValueError, "rows", np.array([-1, 0]), "rows must be within 0 .. 1, got -1 .. 0"),
    (ValueError, "rows", np.zeros((1, 2), int), r"rows must have one axis.*\(1, 2\)"),
]
NO_FILE = io.BytesIO(b"text")
OF_ATTENTION = [
    (ValueError, "window_size", -2, "window_size"),
    (TypeError, "window_size", 2.5, "window_size"),
    (ValueError, "scale", np.nan, "scale"),
    (ValueError, "softcap", -1.0, "softcap"),
    (ValueError, "alibi_slopes", np.ones(3), "alibi_slopes"),
    (ValueError, "sink_logits", np.ones(3), "sink_logits"),
    *((kind, name, bad, name) for name in ("return_lse", "return_weights") for kind, bad in FLAG),
    (ValueError, "out", np.zeros((2, 4, 3, 5), np.float32), r"out.*\(2, 4, 3, 6\)"),
    (ValueError, "num_threads", 0, "num_threads"),
]

OWN = {
    "attention_backward": LOSS + WANTED,
    "local_attention_backward": LOSS + WANTED + WINDOW,
    "local_attention_backward, centers": LOSS + WANTED + CENTERED,
    "additive_attention_backward": [
        *LOSS,
        *WANTED,
        *(
            (kind, name, bad, f"{name}.*{message}")
            for name in ("score_weight", "score_bias")
            for kind, bad, message in VECTORS
        ),
    ],
    "attention_varlen_backward": [
        *[case for case in PACKED_ARRAYS if case[1] != "out"],
        *BOUNDS,
        *WANTED,
        *[case for case in LOSS if case[2] is None],
        *(
            case
            for name in ("grad_output", "output")
            for case in [
                (TypeError, name, np.zeros((6, 4, 6)), f"{name}.*float64.*query.*float32"),
                (ValueError, name, np.zeros((4, 6, 6), np.float32), rf"{name}.*\(4, 6, 6\)"),
            ]
        ),
        *(
            (ValueError, name, np.zeros((4, 6)), rf"{name}.*\(4, 6\)")
            for name in ("lse", "grad_lse")
        ),
    ],
    "attention_weights": PLAIN_KEYS
    + [
        (kind, "stage", bad, "stage.*scores.*capped.*biased.*weights")
        for kind, bad in [(ValueError, x) for x in ("weight", "", None, 3, ["scores"])]
    ],
    "vjp": [
        *WANTED,
        *(
            (ValueError, name, 1, f"{name} must be left out.*no gradients")
            for name in sorted(REFUSED["vjp"])
        ),
        (TypeError, "function", np.sum, "function .* backward, attention.*got <.*sum"),
        (TypeError, "function", None, "function.*None"),
    ],
    "attention": [*PLAIN, (TypeError, "key", K.astype(np.int8), "value.*int8")],
    "attention, pages": PAGED,
    "attention_weights, pages": of_keys(PAGED),
    "attention_topk, pages": of_keys(PAGED),
    "key_importance, pages": of_keys(PAGED),
    "attention_varlen, pages": PACKED_PAGED,
    "plan, pages": PAGED,
    "attention, bytes": SMALL,
    "attention_weights, bytes": of_keys(SMALL),
    "attention_topk, bytes": of_keys(SMALL),
    "key_importance, bytes": of_keys(SMALL),
    "attention_varlen, bytes": PACKED_SMALL_CASES,
    "plan, bytes": SMALL,
    "quantize": [
        (TypeError, "x", Q.astype(int), "x.*int64.*astype"),
        (TypeError, "x", "text", "x.*text"),
        (ValueError, "x", np.array([[1, NAN, 0, 0]]), "x must be finite.*nan"),
        (ValueError, "x", np.array([[1e300, 0, 0, 0]]), "x must be finite.*inf"),
        *(
            (ValueError, "dtype", x, "dtype must be one of int8,")
            for x in ("uint8", "int4", 8, ["int8"])
        ),
        (ValueError, "axis", 4, "axis must be below 4.*got 4"),
        (ValueError, "axis", -5, "axis must be at least -4, got -5"),
        (TypeError, "axis", 1.0, "axis.*float"),
        (ValueError, "axis", (0, 1), "group must be None with 2 axes, got 4"),
        (ValueError, "group", 3, "group must divide.*8 long, got 3"),
        (ValueError, "group", 0, "group must be at least 1"),
        (TypeError, "group", 2.0, "group.*float"),
    ],
    "plan": [(kind, "return_blocks", bad, "return_blocks") for kind, bad in FLAG],
    "local_attention": WINDOW,
    "local_attention, centers": CENTERED,
    "additive_attention": [
        (kind, name, bad, f"{name}.*{message}")
        for name in ("score_weight", "score_bias")
        for kind, bad, message in VECTORS
    ],
    "attention_topk": LISTED + PLAIN_KEYS,
    "key_importance": PLAIN_KEYS
    + [(kind, "per_kv_head", bad, "per_kv_head") for kind, bad in FLAG],
    "attention_varlen": PACKED_ARRAYS + BOUNDS + PLAIN,
    "rotate": [
        *(
            (kind, "x", bad, f"x.*{message}")
            for kind, bad, message in [
                (TypeError, None, "NoneType"),
                (TypeError, Q.astype(int), "int64.*astype"),
                (TypeError, Q.astype(complex), "complex"),
                (ValueError, Q[0, 0, 0], r"2 axes.*\(8,\)"),
                (ValueError, Q[..., :7], r"even.*7.*x\[..., :6\]"),
            ]
        ),
        *(
            (kind, "positions", bad, f"positions.*{message}")
            for kind, bad, message in [
                (TypeError, None, "NoneType"),
                (TypeError, np.arange(3.0), "float64.*astype"),
                (TypeError, np.ones(3, bool), "bool"),
                (ValueError, 2, r"\(3,\) or \(2, 3\).*\(\).*np.arange\(3\)"),
                (ValueError, np.arange(4), r"\(3,\) or \(2, 3\).*\(4,\)"),
                (ValueError, np.zeros((4, 3), int), r"\(4, 3\)"),
                (ValueError, np.zeros((2, 1, 3), int), r"\(2, 1, 3\).*positions\[..., 0, :\]"),
            ]
        ),
        *(
            (kind, "base", bad, "base")
            for kind, bad in [
                (TypeError, None),
                (TypeError, "10000"),
                (ValueError, 0),
                (ValueError, -1.0),
                (ValueError, np.nan),
                (ValueError, np.inf),
            ]
        ),
        *((kind, "interleaved", bad, "interleaved") for kind, bad in FLAG),
        (TypeError, "out", [1.0], "out.*list"),
        (TypeError, "out", np.zeros((2, 4, 3, 8)), "out.*dtype of x, float32, got float64"),
        (ValueError, "out", np.zeros((2, 4, 3, 6), np.float32), r"out.*\(2, 4, 3, 8\)"),
        (ValueError, "out", np.broadcast_to(np.float32(0), (2, 4, 3, 8)), "out.*read-only"),
        *(
            (kind, "num_threads", bad, "num_threads")
            for kind, bad in [(TypeError, 1.0), (TypeError, True), (ValueError, 0)]
        ),
    ],
    "rotate, tables": [
        (ValueError, "base", 500.0, "base.*left out beside cos_sin.*500"),
        (ValueError, "positions", np.array([0, 1, 9]), r"positions.*0 .. 8.*got 0 .. 9"),
        (ValueError, "positions", np.array([0, -1, 2]), r"positions.*0 .. 8.*got -1 .. 2"),
        *(
            (kind, "cos_sin", bad, f"cos_sin.*{message}")
            for kind, bad, message in [
                (TypeError, 3, "int"),
                (TypeError, np.ones((2, 9, 4)), "ndarray"),
                (TypeError, (np.ones((9, 4)),) * 3, "tuple"),
                (TypeError, (np.ones((9, 4)), None), r"\[1\].*NoneType"),
                (TypeError, (np.ones((9, 4), int), np.ones((9, 4))), r"\[0\].*int64"),
                (ValueError, (np.ones((9, 4)), np.ones((9, 3))), r"\(9, 4\) and \(9, 3\)"),
                (ValueError, (np.ones((9, 8)),) * 2, r"4 columns.*8.*cos\[:, :4\]"),
                (ValueError, (np.ones((2, 9, 4)),) * 2, r"\(2, 9, 4\).*reshape"),
            ]
        ),
    ],
    "KVCache": [
        *(
            (kind, name, bad, f"{name}.*{message}")
            for name in ("batch_shape", "num_kv_heads", "head_dim", "value_head_dim", "capacity")
            for kind, bad, message in [
                (TypeError, 2.0, "float"),
                (TypeError, True, "bool"),
                (TypeError, "2", "str"),
                (ValueError, -1, "-1"),
            ]
        ),
        (ValueError, "capacity", 9, "capacity.*window \\+ sinks, 10, got 9"),
        (ValueError, "num_kv_heads", 0, "num_kv_heads.*0"),
        *((kind, "window", bad, "window") for kind, bad in [(TypeError, 8.0), (ValueError, 0)]),
        *((kind, "sinks", bad, "sinks") for kind, bad in [(TypeError, None), (ValueError, -1)]),
        *((kind, "grow", bad, "grow") for kind, bad in FLAG),
        (ValueError, "grow", True, "grow must be False with a window"),
        (ValueError, "window", None, "sinks must be 0 without a window, got 2"),
        *(
            (TypeError, "dtype", bad, "dtype must be one of float32, .*float8_e5m2, got")
            for bad in ("float8", "uint8", np.int32, np.complex64, None, 3, np.longdouble)
        ),
    ],
    "KVCache.append": [
        *TOKENS,
        (ValueError, "key", K[:, :, :3], "key|value must have the 3 tokens"),
        (ValueError, "lengths", np.array([6, 0]), r"lengths must be within 0 .. 5, got 0 .. 6"),
        *LENGTHS_OF_ROWS,
    ],
    "KVCache.append, bytes": [
        case
        for name, x in (("key", K), ("value", V))
        for case in [
            (TypeError, name, x.astype(int), f"{name} must be floating point.*int64.*astype"),
            (
                TypeError,
                name,
                x.astype(np.int8),
                rf"{name} must be floating point.* int8.*\* scale",
            ),
            (ValueError, name, np.full_like(x, NAN), f"{name} must be finite.*8 bits, got nan"),
            (ValueError, name, x[..., :5], rf"{name} must have shape .* got .*5\)"),
        ]
    ],
    "KVCache.extend, bytes": [
        (TypeError, "query", Q.astype(np.float64), "query must be float32, float16 or bfloat16"),
        (ValueError, "key", np.full_like(K[:, :, :3], NAN), "key must be finite.*8 bits, got nan"),
        (ValueError, "scale", NAN, "scale"),
    ],
    "KVCache.attend": [
        (TypeError, "query", None, "query.*NoneType"),
        (TypeError, "query", Q.astype(np.float64), "key has dtype float32 but query has float64"),
        (ValueError, "query", Q[0], r"query must have the batch axes.*\(2,\).*\(4, 3, 8\)"),
        (ValueError, "query", Q[0, 0], r"query must have 4 axes.*\(3, 8\)"),
        (ValueError, "query", Q[..., :7], "head size of query, 7"),
        (ValueError, "q_lengths", np.array([4, 0]), "q_lengths must be within 0 .. 3"),
        (TypeError, "q_lengths", np.array([1.0, 0]), "q_lengths"),
        (ValueError, "kv_starts", np.array([6, 0]), "kv_starts must be within 0 .. 5"),
        (TypeError, "kv_starts", np.array([1.0, 0]), "kv_starts"),
        *OF_ATTENTION,
        (TypeError, "mask", np.ones((2, 1, 3, 5)), "mask.*float64"),
        (ValueError, "mask", np.ones((2, 1, 3, 6), bool), r"mask.*\(2, 1, 3, 6\)"),
        (TypeError, "bias", np.ones((4, 3, 5), int), "bias.*int64"),
        (ValueError, "bias", np.ones((4, 3, 6), np.float32), r"bias.*\(4, 3, 6\)"),
    ],
    "KVCache.extend": [
        *[case for case in TOKENS if case[1] != "self"],
        (TypeError, "query", None, "query.*NoneType"),
        (ValueError, "query", Q[0], r"query must have the batch axes.*\(2,\).*\(4, 3, 8\)"),
        (ValueError, "query", Q[:, :, :2], "query, key and value must have one number of tokens"),
        (ValueError, "lengths", np.array([4, 0]), "lengths must be within 0 .. 3, got 0 .. 4"),
        *LENGTHS_OF_ROWS,
        (ValueError, "kv_starts", np.array([99, 0]), "kv_starts must be within 0 .. "),
        (TypeError, "kv_starts", np.array([1.0, 0]), "kv_starts"),
        *OF_ATTENTION,
        (TypeError, "mask", np.ones((2, 1, 3, 5)), "mask.*float64"),
        (TypeError, "bias", np.ones((4, 3, 5), int), "bias.*int64"),
    ],
    "KVCache.truncate": [
        *LENGTHS_OF_ROWS,
        (ValueError, "lengths", np.array([6, 0]), r"lengths.*\[5, 3\]|lengths.*\[5, 5\]"),
        (ValueError, "lengths", np.array([2**63, 0], np.uint64), "lengths must be within 0 .. "),
    ],
    "KVCache.reorder": ROWS,
    "KVCache.repeat": [
        (kind, "n", bad, "n must be")
        for kind, bad in [(TypeError, 1.0), (TypeError, True), (ValueError, 0)]
    ],
    "KVCache.clear": [case for case in ROWS if case[2] is not None],
    "KVCache.save": [(TypeError, "file", 3.5, "file")],
    "KVCache.load": [(TypeError, "file", 3.5, "file"), (ValueError, "file", NO_FILE, "file must")],
    "PagedKVCache": [
        *(
            (kind, name, bad, f"{name}.*{message}")
            for name in (
                *("num_rows", "num_kv_heads", "head_dim", "value_head_dim"),
                *("pages", "page_size"),
            )
            for kind, bad, message in [
                (TypeError, 2.0, "float"),
                (TypeError, True, "bool"),
                (ValueError, -1, "-1"),
            ]
        ),
        (ValueError, "num_kv_heads", 0, "num_kv_heads.*0"),
        (ValueError, "page_size", 0, "page_size.*0"),
        (TypeError, "dtype", "uint8", "dtype must be one of float32, .*, got 'uint8'"),
    ],
    "PagedKVCache.append": [
        *TOKENS,
        (ValueError, "value", V[:, :, :2], "value must have the 1 tokens"),
        (ValueError, "lengths", np.array([2, 0]), r"lengths must be within 0 .. 1, got 0 .. 2"),
        *LENGTHS_OF_ROWS,
        (ValueError, "rows", np.array([1, 1]), r"rows must name each text once, got \[1, 1\]"),
        *PAGED_ROWS,
    ],
    "PagedKVCache.attend": [
        (TypeError, "query", None, "query.*NoneType"),
        (TypeError, "query", Q.astype(np.float64), "key has dtype float32 but query has float64"),
        (ValueError, "query", Q[:1], r"query must have shape \(2, heads.*got \(1, 4, 3, 8\)"),
        (ValueError, "query", Q[0], r"query must have shape \(2, heads.*got \(4, 3, 8\)"),
        (ValueError, "query", Q[..., :7], "head size of query, 7"),
        (ValueError, "q_lengths", np.array([4, 0]), "q_lengths"),
        (ValueError, "kv_starts", np.array([7, 0]), "kv_starts"),
        *OF_ATTENTION,
        (TypeError, "mask", np.ones((2, 1, 3, 6)), "mask.*float64"),
        (ValueError, "mask", np.ones((2, 1, 3, 5), bool), r"mask.*\(2, 1, 3, 5\)"),
        (TypeError, "bias", np.ones((4, 3, 6), int), "bias.*int64"),
        *PAGED_ROWS,
    ],
    **{
        f"PagedKVCache.{name}": [
            (TypeError, "row", 1.0, "row must be an int, got float"),
            (TypeError, "row", True, "row must be an int, got bool"),
            (ValueError, "row", -1, "row must be at least 0, got -1"),
            (ValueError, "row", 9, r"row must be of \[0, 1.*\], got 9"),
        ]
        for name in ("fork", "free")
    },
    "merge_attention": [
        (TypeError, "outputs", None, "outputs"),
        (TypeError, "outputs", [Q.astype(int)] * 2, "outputs.*int64"),
        (TypeError, "outputs", [Q.astype(complex)] * 2, "outputs.*complex"),
        (TypeError, "outputs", [Q, Q.astype(np.float64)], "outputs.*float32.*float64"),
        (ValueError, "outputs", [], "outputs"),
        (TypeError, "outputs", np.float32(1.0), "outputs.*float32"),
        (ValueError, "outputs", np.array(1.0), "outputs"),
        (ValueError, "outputs", [Q, Q[:1]], r"outputs.*\(1, 4, 3, 8\)"),
        (TypeError, "lses", None, "lses"),
        (TypeError, "lses", [Q[..., 0].astype(int)] * 2, "lses.*int64"),
        (ValueError, "lses", [], "lses"),
        (ValueError, "lses", [Q[..., 0]], "lses"),
        (ValueError, "lses", [Q, Q], r"lses.*\(2, 4, 3, 8\)"),
        (ValueError, "lses", [Q[..., 0], Q[:1, ..., 0]], r"lses.*\(1, 4, 3\)"),
    ],
    "merge_attention_backward": [
        (TypeError, "outputs", [Q, Q.astype(np.float64)], "outputs.*float32.*float64"),
        (ValueError, "lses", [Q[..., 0]], "lses"),
        (TypeError, "grad_output", Q.astype(np.float64), r"grad_output.*float32.*float64.*astype"),
        (TypeError, "grad_output", None, "grad_output.*NoneType"),
        (ValueError, "grad_output", Q[:1], r"grad_output.*\(1, 4, 3, 8\)"),
        (TypeError, "grad_lse", Q[..., 0].astype(complex), "grad_lse.*complex"),
        (ValueError, "grad_lse", Q, r"grad_lse.*\(2, 4, 3, 8\)"),
    ],
    "BlockMask": [
        *SIZES,
        (TypeError, "blocks", np.ones((2, 2)), "blocks.*float64"),
        (TypeError, "blocks", np.ones((2, 2), int), "blocks.*int64"),
        (TypeError, "blocks", None, "blocks.*NoneType"),
        (ValueError, "blocks", True, r"blocks.*\(\)"),
        (TypeError, "blocks", np.ma.masked_array(np.ones((2, 2), bool)), "blocks.*masked"),
        (ValueError, "blocks", np.ones(2, bool), r"blocks.*\(2,\)"),
        (ValueError, "blocks", [[True], [True, False]], "blocks"),
    ],
    "BlockMask.from_mask": [
        *SIZES,
        (TypeError, "mask", np.ones((6, 9), int), "mask.*int64"),
        (ValueError, "mask", np.ones(6, bool), r"mask.*\(6,\)"),
        (ValueError, "mask", np.arange(54).reshape(6, 9) > 20, "mask.*block.*as a whole"),
    ],
    "BlockMask.from_function": [
        *SIZES,
        (TypeError, "visible", None, "visible.*NoneType"),
        (TypeError, "visible", lambda i, j: i + j, "visible.*int64"),
        (ValueError, "visible", lambda i, j: np.ones((2, 3), bool), r"visible.*\(2, 3\)"),
    ],
    "BlockMask.bigbird": [
        *SIZES,
        (ValueError, "window_blocks", 2, "window_blocks.*odd"),
        (ValueError, "heads", 0, "heads.*0"),
        *(
            (kind, name, bad, name)
            for name in ("window_blocks", "global_blocks", "random_blocks", "heads", "seed")
            for kind, bad in [
                (TypeError, 1.0),
                (TypeError, True),
                (TypeError, "1"),
                (ValueError, -1),
            ]
        ),
    ],
    "BlockMask.dense": [(ValueError, "Lq", 11, r"Lq.*\(3, 2\)"), (ValueError, "Lk", 3, "Lk.*1")],
    "set_num_threads": [
        (kind, "num_threads", bad, "num_threads")
        for kind, bad in [(TypeError, 1.0), (TypeError, "2"), (TypeError, True), (ValueError, 0)]
    ],
    "num_threads": [
        (kind, "n", bad, "num_threads")
        for kind, bad in [(TypeError, 1.0), (TypeError, "2"), (TypeError, True), (ValueError, 0)]
    ],
    "show_config": [(ValueError, "mode", bad, "mode.*stdout") for bad in ("json", None, 3)],
}
for function in ("BlockMask.from_function", "BlockMask.bigbird", "BlockMask.dense"):
    OWN[function] += [
        (kind, name, bad, name)
        for name in ("Lq", "Lk")
        for kind, bad in [(TypeError, 9.0), (TypeError, True), (TypeError, "9"), (ValueError, -1)]
    ]


def takes(function, case):
    """Whether a case of `attention` is one of another function too."""
    _, name, _, message = case
    arguments = FUNCTIONS[function]
    if "key_scale" in arguments and name in OPERANDS:  # it has cases of its own
        return False
    if (
        "block_table" in arguments
        and "value" not in arguments
        and name == "key"
        and "3, 2, 5" in message
    ):
        return False  # a pool may have more pages than are used
    if name not in arguments:
        return False
    if "cu_q" in arguments:  # its arrays have other shapes
        return name not in (*OPERANDS, "out") and "Lq = 3" not in message
    return not (name in OPERANDS and "value" in message and "value" not in arguments)


def cases(function):
    """All cases of one function."""
    cache = "KVCache" in function  # some of its messages are its own
    shared = SHARED if "query" in FUNCTIONS[function] and not cache else []
    return [case for case in shared if takes(function, case)] + OWN.get(function, [])
