"""Every argument of every public function, one at a time: what is raised, and that nothing is
written.

No argument of any function may be without a case in `support.bad_cases`.
"""

import inspect
import re

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import attnfast
from attnfast import BlockMask, KVCache, PagedKVCache
from support.arrays import same_bits
from support.bad_cases import OPERANDS, cases
from support.legal import FUNCTIONS, REFUSED, K, Q, V, call, named, parameters_of

pytestmark = pytest.mark.quick


PLANNED_FUNCTIONS = [function.__name__ for function in attnfast.planning.CORES]
EACH_CASE = [(function, case) for function in FUNCTIONS for case in cases(function)]


def show(function_and_case):
    function, (kind, name, bad, _) = function_and_case
    shown = f"{bad.dtype}{bad.shape}" if isinstance(bad, np.ndarray) else repr(bad)
    return f"{function}-{kind.__name__}-{name}-{shown}"


def snapshot(arguments):
    """Copies of all arrays, also of those in lists."""
    arrays = []
    for x in arguments.values():
        arrays += [a for a in (x if isinstance(x, list) else [x]) if isinstance(a, np.ndarray)]
        arrays += [x.key, x.value, x.lengths] if isinstance(x, (KVCache, PagedKVCache)) else []
    return [(a, a.copy()) for a in arrays if a.dtype != object]


@pytest.mark.parametrize(("function", "case"), EACH_CASE, ids=map(show, EACH_CASE))
def test_one_bad_argument(function, case):
    kind, name, bad, message = case
    arguments = {**FUNCTIONS[function], name: bad}
    before = snapshot(arguments)
    with pytest.raises(kind, match=re.compile(message, re.DOTALL)) as caught:
        call(function, arguments)
    assert caught.type is kind
    assert name in str(caught.value) or name in OPERANDS
    for a, copy in before:
        assert same_bits(a, copy), "an array was written"


PLANNED = [
    (form, case)
    for form, case in EACH_CASE
    if form.partition(",")[0] in PLANNED_FUNCTIONS
    and not (case[1] in attnfast.planning.OF_LOSS and case[2] is None)  # which a plan does without
]


@pytest.mark.parametrize(("function", "case"), PLANNED, ids=map(show, PLANNED))
def test_a_plan_refuses_what_the_call_refuses(function, case):
    kind, name, bad, message = case
    with pytest.raises(kind, match=re.compile(message, re.DOTALL)) as caught:
        attnfast.plan(named(function), **{**FUNCTIONS[function], name: bad})
    assert caught.type is kind


def test_every_argument_has_a_case():
    broken, legal = {}, {}
    for form, arguments in FUNCTIONS.items():
        function = form.partition(",")[0]
        broken.setdefault(function, set()).update(name for _, name, _, _ in cases(form))
        legal.setdefault(function, set()).update(arguments)
    for function in broken:
        parameters = parameters_of(function)
        assert legal[function] - {"self"} == parameters - REFUSED.get(function, set()), function
        assert parameters <= broken[function], function


def test_every_public_function_is_here():
    public = {n for n in attnfast.__all__ if inspect.isroutine(getattr(attnfast, n))}
    public -= {n for n in public if not inspect.signature(getattr(attnfast, n)).parameters}
    for kind in (BlockMask, KVCache, PagedKVCache):
        members = (n for n in dir(kind) if not n.startswith("_") and callable(getattr(kind, n)))
        public |= {kind.__name__, *(f"{kind.__name__}.{n}" for n in members)}
    assert public == {form.partition(",")[0] for form in FUNCTIONS}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_the_cases_break_is_legal_without_them(function):
    call(function, FUNCTIONS[function])
    attnfast.set_num_threads(None)


class Loud:
    """Refuses to be a number."""

    def __float__(self):
        raise RuntimeError("not a number")


def test_exceptions_of_the_caller_pass_through():
    with pytest.raises((RuntimeError, TypeError)):
        attnfast.attention(Q, K, V, scale=Loud())


@pytest.mark.parametrize(
    ("function", "foreign"),
    [
        ("attention", "dilation"),
        *(("attention_weights", name) for name in ("value", "out")),
        *(("additive_attention", name) for name in ("scale", "dilation")),
        *(
            (function, name)
            for function in ("attention_topk", "key_importance")
            for name in ("out", "return_lse", "return_weights", "value")
        ),
        *(
            ("attention_varlen", name)
            for name in ("mask", "bias", "q_lengths", "kv_lengths", "return_weights")
        ),
    ],
)
def test_arguments_that_a_function_does_not_take(function, foreign):
    with pytest.raises(TypeError, match=foreign):
        call(function, {**FUNCTIONS[function], foreign: None})


@pytest.mark.parametrize("arrays", [(Q, K), (Q, K, V, None)], ids=["no value", "one too many"])
def test_the_wrong_number_of_arrays(arrays):
    with pytest.raises(TypeError):
        attnfast.attention(*arrays)


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
