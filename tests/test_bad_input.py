"""Every argument of every public function, one at a time: what is raised, and that nothing is
written.

The cases of `test_errors.py` go to every function that takes the argument, those of the family's
own arguments to theirs; no argument of any function may be without a case.
"""

import inspect
import re

import numpy as np
import pytest

import attnfast
import test_local
import test_topk
import test_varlen
from attnfast import BlockMask
from support import same_bits
from test_errors import CASES, GOOD, Q, identify

INF = float("inf")
RESULTS = {"out": np.full((2, 4, 3, 6), 7, np.float32), "return_lse": True, "return_weights": True}
OVERLAPPING = np.lib.stride_tricks.as_strided(
    np.full(30, 7, np.float32), (2, 4, 3, 6), (24, 4, 4, 4)
)
MORE = [
    (TypeError, "mask", np.ma.masked_array(np.ones((3, 5), bool)), "mask is a masked array"),
    (TypeError, "bias", np.ma.masked_array(np.zeros((3, 5))), "bias is a masked array"),
    (ValueError, "mask", BlockMask(np.ones((2, 2), bool), 2), r"mask.*\(2, 2\).*\(2, 3\)"),
    (ValueError, "mask", BlockMask(np.ones((3, 2, 3), bool), 2), r"mask.*\(3, 2, 3\).*\(2, 4"),
    (TypeError, "bias", BlockMask(np.ones((2, 3), bool), 2), "bias"),
    (TypeError, "out", np.ma.masked_array(RESULTS["out"]), "out is a masked array"),
    (ValueError, "out", OVERLAPPING, "out.*share"),
    (TypeError, "scale", np.timedelta64(1), "scale.*timedelta64"),
    (TypeError, "num_threads", np.timedelta64(1), "num_threads.*timedelta64"),
]
ALL = CASES + MORE


def without(arguments, *names):
    return {name: x for name, x in arguments.items() if name not in names}


# Legal arguments of each function, all at once; None for those that do not go together.
FUNCTIONS = {
    "attention": {**GOOD, **RESULTS},
    "attention_weights": {**without(GOOD, "value"), "stage": "weights"},
    "plan": {**GOOD, **RESULTS, "return_blocks": True},
    "local_attention": {
        **{**GOOD, **RESULTS, "dilation": 2, "global_tokens": [0]},
        **{"centers": None, "sigma": None},
    },
    "additive_attention": {
        **{**without(GOOD, "scale"), **RESULTS},
        **{"score_weight": np.ones(8), "score_bias": np.zeros((4, 8))},
    },
    "attention_topk": {**without(GOOD, "value"), "k": 2},
    "key_importance": {**without(GOOD, "value"), "per_kv_head": True},
    "attention_varlen": {
        **{
            n: x
            for n, x in GOOD.items()
            if n in inspect.signature(attnfast.attention_varlen).parameters
        },
        **{**test_varlen.GOOD, "out": np.full((6, 4, 6), 7, np.float32), "return_lse": True},
    },
    "merge_attention": {"outputs": [Q, Q], "lses": [Q[..., 0], Q[..., 0]]},
    "BlockMask": {"blocks": np.ones((2, 2), bool), "block_size": 64},
    "BlockMask.from_mask": {"mask": np.ones((6, 9), bool), "block_size": 3},
    "BlockMask.from_function": {
        **{"visible": lambda i, j: i == j, "Lq": 9, "Lk": 9, "block_size": 3}
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
OWN = {
    "attention_weights": [
        (kind, "stage", bad, "stage.*scores.*capped.*biased.*weights")
        for kind, bad in [(ValueError, x) for x in ("weight", "", None, 3, ["scores"])]
    ],
    "plan": [(kind, "return_blocks", bad, "return_blocks") for kind, bad in FLAG],
    "local_attention": test_local.BAD_WINDOW,
    "additive_attention": [
        (kind, name, bad, f"{name}.*{message}")
        for name in ("score_weight", "score_bias")
        for kind, bad, message in [
            (TypeError, "text", ""),
            (TypeError, np.ones(8, complex), "complex"),
            (TypeError, np.ones(8, bool), "bool"),
            (TypeError, np.ma.masked_array(np.ones(8)), "masked"),
            (ValueError, np.ones(7), r"\(7,\)"),
            (ValueError, np.ones((2, 8)), r"\(2, 8\)"),
            (ValueError, np.ones((2, 4, 8)), r"\(2, 4, 8\)"),
            (ValueError, 1.0, r"\(\)"),
        ]
    ],
    "attention_topk": [case for case in test_topk.CASES if case[1] == "k"],
    "key_importance": [(kind, "per_kv_head", bad, "per_kv_head") for kind, bad in FLAG],
    "attention_varlen": test_varlen.CASES,
    "merge_attention": [
        (TypeError, "outputs", None, "outputs"),
        (TypeError, "outputs", [Q.astype(int)] * 2, "outputs.*int64"),
        (TypeError, "outputs", [Q, Q.astype(np.float64)], "outputs.*float32.*float64"),
        (ValueError, "outputs", [], "outputs"),
        (ValueError, "outputs", [Q, Q[:1]], r"outputs.*\(1, 4, 3, 8\)"),
        (TypeError, "lses", None, "lses"),
        (TypeError, "lses", [Q[..., 0].astype(int)] * 2, "lses.*int64"),
        (ValueError, "lses", [Q[..., 0]], "lses"),
        (ValueError, "lses", [Q, Q], r"lses.*\(2, 4, 3, 8\)"),
    ],
    "BlockMask": [
        *SIZES,
        (TypeError, "blocks", np.ones((2, 2)), "blocks.*float64"),
        (TypeError, "blocks", None, "blocks.*object"),
        (TypeError, "blocks", np.ma.masked_array(np.ones((2, 2), bool)), "blocks.*masked"),
        (ValueError, "blocks", np.ones(2, bool), r"blocks.*\(2,\)"),
        (ValueError, "blocks", [[True], [True, False]], "blocks"),
    ],
    "BlockMask.from_mask": [
        *SIZES,
        (TypeError, "mask", np.ones((6, 9), int), "mask.*int64"),
        (ValueError, "mask", np.ones(6, bool), r"mask.*\(6,\)"),
        (ValueError, "mask", np.arange(54).reshape(6, 9) > 20, "mask.*part of block"),
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
# What is said about query, key and value depends on which of them are given.
OPERANDS = ("query", "key", "value")


def takes(function, case):
    """Whether a case of `attention` is one of another function too."""
    _, name, _, message = case
    if name not in FUNCTIONS[function]:
        return False
    if function == "attention_varlen":  # its arrays have other shapes
        return name not in (*OPERANDS, "out") and "Lq = 3" not in message
    return not (name in OPERANDS and "value" in message and "value" not in FUNCTIONS[function])


def cases(function):
    shared = ALL if "query" in FUNCTIONS[function] else []
    own = OWN.get(function, [])
    return [case for case in shared if takes(function, case)] + own


EACH_CASE = [(function, case) for function in FUNCTIONS for case in cases(function)]


def call(function, arguments):
    """The result; of a context manager, what is inside it."""
    target = attnfast
    for name in function.split("."):
        target = getattr(target, name)
    if function == "num_threads":
        with target(**arguments):
            return None
    return target(**arguments)


def snapshot(arguments):
    """Copies of all arrays, also of those in lists."""
    arrays = []
    for x in arguments.values():
        arrays += [a for a in (x if isinstance(x, list) else [x]) if isinstance(a, np.ndarray)]
    return [(a, a.copy()) for a in arrays if a.dtype != object]


@pytest.mark.parametrize(
    ("function", "case"), EACH_CASE, ids=[f"{f}-{identify(c)}" for f, c in EACH_CASE]
)
def test_one_bad_argument(function, case):
    kind, name, bad, message = case
    good = {n: x for n, x in FUNCTIONS[function].items() if x is not None}
    arguments = {**good, name: bad}
    before = snapshot(arguments)
    with pytest.raises(kind, match=re.compile(message, re.DOTALL)) as caught:
        call(function, arguments)
    assert caught.type is kind
    assert name in str(caught.value) or name in OPERANDS
    for a, copy in before:
        assert same_bits(a, copy), "an array was written"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_argument_has_a_case(function):
    target = attnfast
    for name in function.split("."):
        target = getattr(target, name)
    parameters = inspect.signature(target).parameters.keys() - {"self"}
    assert FUNCTIONS[function].keys() - {"self"} == parameters
    assert parameters <= {name for _, name, _, _ in cases(function)}


def test_every_public_function_is_here():
    public = {n for n in attnfast.__all__ if inspect.isroutine(getattr(attnfast, n))}
    public -= {n for n in public if not inspect.signature(getattr(attnfast, n)).parameters}
    makers = [
        n for n in vars(BlockMask) if not n.startswith("_") and callable(getattr(BlockMask, n))
    ]
    assert public | {"BlockMask"} | {f"BlockMask.{n}" for n in makers} == FUNCTIONS.keys()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_the_cases_break_is_legal_without_them(function):
    call(function, {n: x for n, x in FUNCTIONS[function].items() if x is not None})
    attnfast.set_num_threads(None)
