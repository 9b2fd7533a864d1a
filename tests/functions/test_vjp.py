"""vjp: the result of a call, and its gradients by way of the function's backward."""

from typing import Any

import numpy as np
import pytest

import attnfast
from attnfast import attention, attention_backward, vjp
from attnfast.pullback import BACKWARDS
from support.arrays import assert_same, qkv, same_bits

pytestmark = pytest.mark.quick


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape)


# A call of each function in BACKWARDS, and what to want of it.
CALLS: dict[Any, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
    attention: ((), {"bias": numbers(30), "is_causal": True}, ("key", "bias")),
}


@pytest.fixture
def arrays(rng):
    return qkv(rng, 30, 30, 8, dtype=np.float64)


def test_every_function_has_a_call():
    assert CALLS.keys() == BACKWARDS.keys()


@pytest.mark.parametrize("function", BACKWARDS, ids=lambda function: function.__name__)
def test_it_is_the_call_and_its_backward(arrays, function):
    more, options, wanted = CALLS[function]
    result = function(*arrays, *more, return_lse=True, **options)
    for names in (None, wanted):
        output, pullback = vjp(function, *arrays, *more, wanted=names, **options)
        assert same_bits(output, result.output)
        grad_output, grad_lse = numbers(*output.shape), numbers(*result.lse.shape)
        named = {} if names is None else {"wanted": names}
        call = (grad_output, *arrays, *result[:2], *more)
        loss = {"grad_lse": grad_lse}
        expected = BACKWARDS[function](*call, **loss, **named, **options)
        for _ in range(2):  # a pullback may be called again
            assert_same(pullback(grad_output, grad_lse), expected)
        assert (expected.query is None) == (names is not None)


def test_flags_decide_what_is_returned(arrays):
    plain = attention(*arrays)
    for lse in (False, True):
        for weights in (False, True):
            result, pullback = vjp(attention, *arrays, return_lse=lse, return_weights=weights)
            if lse or weights:
                assert isinstance(result, attnfast.AttentionResult)
                assert (result.lse is not None, result.weights is not None) == (lse, weights)
                result = result.output
            assert same_bits(result, plain)
            assert_same(pullback(plain), vjp(attention, *arrays)[1](plain))


def test_losses_of_lse_and_weights(arrays):
    output, lse, weights = attention(*arrays, return_lse=True, return_weights=True)
    grad_lse, grad_weights = numbers(*lse.shape), numbers(*weights.shape)
    _, pullback = vjp(attention, *arrays)
    more = {"grad_lse": grad_lse, "grad_weights": grad_weights}
    expected = attention_backward(output, *arrays, output, lse, **more)
    assert_same(pullback(output, grad_lse, grad_weights), expected)


def test_operands_by_name_and_as_lists(arrays):
    query, key, value = (a[0, 0] for a in arrays)
    expected = vjp(attention, query, key, value)[1](query)
    named = vjp(attention, query=query, key=key, value=value)[1](query)
    lists = vjp(attention, query.tolist(), key.tolist(), value.tolist())[1](query)
    assert_same(named, expected)
    assert_same(lists, expected)


def test_out_is_written_and_kept(arrays):
    out = np.empty_like(arrays[0])
    output, pullback = vjp(attention, *arrays, out=out)
    assert output is out
    assert_same(pullback(out), vjp(attention, *arrays)[1](out))


@pytest.mark.parametrize("name", ["query", "bias"])
def test_out_may_not_overlap_what_the_pullback_reads(arrays, name):
    both = np.zeros((*arrays[0].shape[:-1], 38))
    out = both[..., :8]
    operands = dict(zip(("query", "key", "value"), arrays, strict=True)) | {"bias": both[..., 8:]}
    if name == "query":
        out, operands["bias"] = operands["query"], None
    before = out.copy()
    with pytest.raises(ValueError, match=f"^out must not overlap {name}, .*write out="):
        vjp(attention, **operands, out=out)
    assert same_bits(out, before)


def test_what_has_no_backward(arrays):
    for function in (np.sum, attnfast.attention_topk, attention_backward, "attention"):
        with pytest.raises(TypeError, match=r"^function must be one that has a backward, "):
            vjp(function, *arrays)
    with pytest.raises(TypeError, match=r"^causal is not an argument of attention: .*is_causal"):
        vjp(attention, *arrays, causal=True)
    with pytest.raises(TypeError, match="missing a required argument: 'value'"):
        vjp(attention, *arrays[:2])


def test_wanted_is_checked_before_the_call(arrays):
    out = np.full_like(arrays[0], 7)
    for wanted, error, message in [
        (("lse",), ValueError, "wanted may name query, key, value, bias, .*got 'lse'"),
        (("centers",), ValueError, "wanted may name query, .*got 'centers'"),
        (("bias",), ValueError, "wanted names bias, .*pass bias= as well"),
        ("key", TypeError, r"wanted must be a tuple of names, .*write wanted=\('key',\)"),
    ]:
        with pytest.raises(error, match=message):
            vjp(attention, *arrays, wanted=wanted, out=out)
    assert (out == 7).all()
