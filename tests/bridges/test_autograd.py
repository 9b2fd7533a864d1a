"""The functions of attnfast as primitives of autograd."""

import functools
from typing import Any

import numpy as np
import pytest

import attnfast
from attnfast.pullback import BACKWARDS
from support.arrays import assert_same, qkv
from support.scripts import run_python

autograd = pytest.importorskip("autograd")
bridge = pytest.importorskip("attnfast.autograd")
check_grads = functools.partial(
    pytest.importorskip("autograd.test_util").check_grads, modes=["rev"], order=1
)

pytestmark = pytest.mark.quick


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape)


Q, K, V = qkv(np.random.default_rng(5), 7, 9, 6, 5, dtype=np.float64)
PACKED = [x[0].swapaxes(0, 1) for x in (Q, K, V)]
# Function, arrays by name that are differentiated, other arguments.
CALLS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("attention", {"query": Q, "key": K, "value": V}, {}),
    "options": (
        "attention",
        {"query": Q, "value": V, "bias": numbers(1, 2, 1, 9), "sink_logits": numbers(2)},
        {"key": K, "is_causal": True, "q_offset": "end", "softcap": 2.0, "dropout": 0.2},
    ),
    "slopes": (
        "attention",
        {"alibi_slopes": abs(numbers(2))},
        {"query": Q, "key": K, "value": V, "q_offset": 1},
    ),
    "windows": (
        "local_attention",
        {"query": Q, "key": K, "value": V, "centers": np.linspace(1.3, 8.2, 7)},
        {"window_size": -1, "sigma": 2.0},
    ),
    "additive": (
        "additive_attention",
        {"query": Q, "key": K, "score_weight": numbers(6), "score_bias": numbers(2, 6)},
        {"value": V},
    ),
    "packed": (
        "attention_varlen",
        dict(zip(("query", "key", "value"), PACKED, strict=True)),
        {"cu_q": [0, 3, 7], "cu_k": [0, 5, 9]},
    ),
    "merged": ("merge_attention", {"outputs": numbers(3, 4, 5), "lses": numbers(3, 4)}, {}),
}


def call_of(name: str, **more: Any) -> tuple[Any, list[Any]]:
    """A function of the arrays of a call, and these."""
    function, arrays, others = CALLS[name]

    def call(*values: Any) -> Any:
        named = dict(zip(arrays, values, strict=True))
        return getattr(bridge, function)(**named, **others, **more)

    return call, list(arrays.values())


def test_every_function_is_there():
    assert set(bridge.__all__) == {function.__name__ for function in BACKWARDS}
    assert set(bridge.__all__) == {function for function, _, _ in CALLS.values()}


@pytest.mark.parametrize("name", CALLS)
def test_gradients_are_those_of_differences(name):
    call, arrays = call_of(name)

    def output(*values: Any) -> Any:
        result = call(*values)
        return result if name != "merged" else result.output * 2 + result.lse[..., None]

    check_grads(output)(*arrays)


@pytest.mark.parametrize("name", [name for name in CALLS if name != "merged"])
def test_losses_of_the_lse(name):
    call, arrays = call_of(name, return_lse=True)

    def loss(*values: Any) -> Any:
        result = call(*values)
        return (result.output**2).sum() + (result.lse**3).sum()

    check_grads(loss)(*arrays)


@pytest.mark.parametrize("name", ["plain", "options", "windows", "additive"])
def test_losses_of_the_weights(name):
    call, arrays = call_of(name, return_weights=True)
    check_grads(lambda *values: (call(*values).weights ** 2).sum())(*arrays)
    assert call(*arrays).lse is None


@pytest.mark.parametrize("name", CALLS)
def test_without_autograd_it_is_the_function(name):
    function, arrays, others = CALLS[name]
    call, values = call_of(name)
    assert_same(call(*values), getattr(attnfast, function)(**arrays, **others))


def test_gradients_are_those_of_vjp():
    options = {"is_causal": True, "q_offset": "end"}
    output, pullback = attnfast.vjp(attnfast.attention, Q, K, V, **options)
    got = autograd.grad(lambda k: (bridge.attention(Q, k, V, **options) * output).sum())(K)
    assert_same(got, pullback(output).key)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_dtypes_are_kept(dtype):
    q, k, v = (x.astype(dtype) for x in (Q, K, V))
    by_query = autograd.grad(lambda q: (bridge.attention(q, k, v) * np.float64(2)).sum())(q)
    assert by_query.dtype == dtype


def test_a_loss_falls():
    rng = np.random.default_rng(0)
    weights, x, wanted = rng.standard_normal((3, 8, 8)) / 3, numbers(1, 10, 8), numbers(1, 10, 8)

    def loss(w: Any) -> Any:
        return ((bridge.attention(*(x @ w[n] for n in range(3))) - wanted) ** 2).mean()

    before = loss(weights)
    for _ in range(50):
        weights = weights - 0.5 * autograd.grad(loss)(weights)
    assert loss(weights) < 0.9 * before


def test_parts_that_are_traced_one_by_one():
    halves = slice(4), slice(4, 9)

    def merged(q: Any, k: Any, v: Any) -> Any:
        parts = [
            bridge.attention(q, k[..., half, :], v[..., half, :], return_lse=True)
            for half in halves
        ]
        return bridge.merge_attention([p.output for p in parts], tuple(p.lse for p in parts))

    np.testing.assert_allclose(merged(Q, K, V).output, attnfast.attention(Q, K, V), atol=1e-14)
    check_grads(lambda *qkv: merged(*qkv).output)(Q, K, V)
    check_grads(lambda q: merged(q, K, V).lse)(Q)
    check_grads(lambda x: bridge.attention(Q, K, V, sink_logits=[x, 2 * x]))(0.5)


def test_traced_parts_that_differ():
    lses = [numbers(4)] * 2
    with pytest.raises(ValueError, match=r"^outputs must have one shape, got \(4, 5\) and"):
        autograd.grad(lambda x: bridge.merge_attention([x, x[:, :3]], lses).output.sum())(
            numbers(4, 5)
        )
    with pytest.raises(TypeError, match=r"^outputs must have one dtype, got float64 and float32"):
        autograd.grad(
            lambda x: bridge.merge_attention([x, x.astype(np.float32)], lses).output.sum()
        )(numbers(4, 5))


def test_bad_input():
    with pytest.raises(TypeError, match=r"^causal is not an argument of attention: .*is_causal"):
        bridge.attention(Q, K, V, causal=True)
    with pytest.raises(ValueError, match=r"^out must be left out"):
        bridge.attention(Q, K, V, out=np.empty_like(Q))
    with pytest.raises(TypeError, match=r"^scale has no gradient, got .*query, key, value, bias"):
        autograd.grad(lambda scale: bridge.attention(Q, K, V, scale=scale).sum())(1.0)
    with pytest.raises(ValueError, match="query"):
        bridge.attention(Q[..., :3], K, V)
    with pytest.raises(NotImplementedError, match="not defined"):
        autograd.grad(
            lambda q: autograd.grad(lambda q: (bridge.attention(q, K, V) ** 2).sum())(q).sum()
        )(Q)


def test_without_the_package(tmp_path):
    code = (
        "import sys; sys.modules['autograd'] = None\n"
        "import attnfast\n"
        "try: import attnfast.autograd\n"
        "except ImportError as error: print(error)"
    )
    shown = run_python(code, tmp_path)
    assert shown.startswith(
        "attnfast.autograd needs the package autograd, 1.7 or later: pip install"
    )
