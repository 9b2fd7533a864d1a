"""vjp: the result of a call, and its gradients by way of the function's backward."""

import inspect
from typing import Any

import numpy as np
import pytest

import attnfast
from attnfast import (
    additive_attention,
    attention,
    attention_backward,
    attention_varlen,
    local_attention,
    merge_attention,
    vjp,
)
from attnfast.pullback import BACKWARDS
from support.arrays import assert_same, qkv, same_bits

pytestmark = pytest.mark.quick


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape)


def attend(function: Any, *more: Any, packed: bool = False, **options: Any) -> Any:
    """A call of a function that takes query, key and value."""
    arrays = qkv(np.random.default_rng(5), 30, 30, 8, batch=(), dtype=np.float64)
    return function, (*(a.swapaxes(0, 1) if packed else a for a in arrays), *more), options


# A call of each function in BACKWARDS, and what else to want of it than by default.
CALLS: dict[Any, tuple[Any, Any]] = {
    attention: (attend(attention, bias=numbers(30), is_causal=True), ("key", "bias")),
    local_attention: (
        attend(local_attention, 5, centers=numbers(30) * 9 + 15, sigma=2.0, bias=numbers(30)),
        ("value", "bias", "centers"),
    ),
    additive_attention: (
        attend(additive_attention, numbers(8), score_bias=numbers(8), bias=numbers(30)),
        ("query", "score_weight", "score_bias", "bias"),
    ),
    attention_varlen: (
        attend(
            *(attention_varlen, [0, 20, 30], [0, 20, 30]),
            packed=True,
            sink_logits=numbers(2),
            window_size=3,
        ),
        ("sink_logits",),
    ),
    merge_attention: ((merge_attention, (numbers(3, 4, 5), numbers(3, 4)), {}), None),
}


@pytest.fixture
def arrays(rng):
    return qkv(rng, 30, 30, 8, dtype=np.float64)


def test_every_function_has_a_call():
    assert CALLS.keys() == BACKWARDS.keys()


@pytest.mark.parametrize("name", BACKWARDS, ids=lambda function: function.__name__)
def test_it_is_the_call_and_its_backward(name):
    (function, operands, options), wanted = CALLS[name]
    parameters = inspect.signature(function).parameters
    result = function(
        *operands, **{"return_lse": True} if "return_lse" in parameters else {}, **options
    )
    grad_output, grad_lse = numbers(*result.output.shape), numbers(*result.lse.shape)
    call = dict(zip(parameters, operands, strict=False)) | options
    call |= {"grad_output": grad_output, "grad_lse": grad_lse}
    backward = BACKWARDS[function]
    if "output" in inspect.signature(backward).parameters:
        call |= {"output": result.output, "lse": result.lse}
    for names in (None, wanted):
        named = {} if names is None else {"wanted": names}
        returned, pullback = vjp(function, *operands, **named, **options)
        output = returned.output if isinstance(returned, attnfast.AttentionResult) else returned
        assert same_bits(output, result.output)
        expected = backward(**call, **named)
        for _ in range(2):  # a pullback may be called again
            assert_same(pullback(grad_output, grad_lse), expected)


def test_nothing_may_be_wanted(arrays):
    output, pullback = vjp(attention, *arrays, wanted=())
    assert pullback(output) == (None,) * len(attnfast.AttentionGradients._fields)


def test_joined_parts_of_keys(arrays):
    """Gradients of attention by way of two calls and a merge."""
    query, key, value = arrays
    halves = [slice(None, 11), slice(11, None)]
    parts = [
        vjp(attention, query, key[..., half, :], value[..., half, :], return_lse=True)
        for half in halves
    ]
    outputs, lses = ([getattr(result, name) for result, _ in parts] for name in ("output", "lse"))
    merged, join = vjp(merge_attention, outputs, lses)
    assert isinstance(merged, attnfast.AttentionResult)
    by_part = join(numbers(*query.shape))
    grads = [pullback(*by) for (_, pullback), *by in zip(parts, *by_part, strict=True)]
    expected = vjp(attention, *arrays)[1](numbers(*query.shape))
    np.testing.assert_allclose(sum(g.query for g in grads), expected.query, atol=1e-13)
    for name in ("key", "value"):
        both = np.concatenate([getattr(g, name) for g in grads], axis=-2)
        np.testing.assert_allclose(both, getattr(expected, name), atol=1e-13)


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
    with pytest.raises(TypeError, match=r"^wanted is not an argument of merge_attention"):
        vjp(merge_attention, [out], [out[..., 0]], wanted=("outputs",))
    with pytest.raises(TypeError, match=r"^grad_weights is not an argument of attention_varlen"):
        (function, operands, options), _ = CALLS[attention_varlen]
        output, pullback = vjp(function, *operands, **options)
        pullback(output, grad_weights=output)
