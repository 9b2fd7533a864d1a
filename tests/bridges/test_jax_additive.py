"""attnfast.jax.additive_attention: the bits of attnfast, JAX's transformations, bad input."""

import numpy as np
import pytest

import attnfast
from attnfast import BlockMask

pytest.importorskip("jax", reason="needs JAX")
import jax
import jax.numpy as jnp

from attnfast.jax import additive_attention
from support.jax_arrays import draw, same, stacked

DTYPES = ["float32", "float64", "float16", "bfloat16"]


@pytest.fixture(autouse=True)
def precise():
    """float64 too."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


RNG = np.random.default_rng(2)
B, H, HK, LQ, LK, D, DV = 3, 4, 2, 13, 19, 12, 6
SHAPES = (B, H, LQ, D), (B, HK, LK, D), (B, HK, LK, DV)
VECTORS = {
    "ones": {},
    "shared": {"score_weight": RNG.standard_normal(D).astype(np.float32)},
    "of_heads": {
        "score_weight": RNG.standard_normal((H, D)).astype(np.float32),
        "score_bias": RNG.standard_normal(D).astype(np.float32),
    },
    "bias_of_heads": {"score_bias": RNG.standard_normal((H, D))},
}
OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True, "q_offset": "end"},
    "window": {"window_size": (5, 2), "q_offset": np.array([3, -2, 40])},
    "lengths": {"q_lengths": [13, 0, 4], "kv_lengths": [19, 9, 0], "kv_starts": [0, 2, 0]},
    "mask": {"mask": RNG.random((B, 1, LQ, LK)) < 0.5},
    "blocks": {"mask": BlockMask(RNG.random((H, 2, 3)) < 0.6, 8)},
    "added": {"bias": RNG.standard_normal((LQ, LK)).astype(np.float32), "softcap": 2.0},
    "of_heads": {
        "alibi_slopes": RNG.random((B, H)).astype(np.float32),
        "sink_logits": RNG.standard_normal(H).astype(np.float32),
        "q_offset": 0,
    },
    "dropout": {"dropout": 0.3, "dropout_seed": 2**40 + 7},
}
CASES = [("ones", "plain"), *(("shared", name) for name in OPTIONS)]
CASES += [("of_heads", name) for name in ("plain", "causal", "of_heads", "dropout")]
CASES += [("bias_of_heads", "lengths")]


@pytest.mark.parametrize(("vectors", "name"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_are_those_of_attnfast(vectors, name, dtype):
    q, k, v = draw(*SHAPES, dtype=dtype)
    (grad,) = draw((B, H, LQ, DV), dtype=dtype, seed=5)
    options = VECTORS[vectors] | OPTIONS[name]
    own = {"bias", "sink_logits", "alibi_slopes", "score_weight", "score_bias"} & options.keys()
    expected, pullback = attnfast.vjp(
        attnfast.additive_attention, q, k, v, **options, wanted=("query", "key", "value", *own)
    )
    gradients = pullback(grad)._asdict()

    def call(arrays):
        fixed = {n: x for n, x in options.items() if n not in arrays}
        return additive_attention(**arrays, **fixed)

    arrays = {"query": q, "key": k, "value": v, **{n: jnp.asarray(options[n]) for n in own}}
    result, pullback = jax.vjp(jax.jit(call), arrays)
    assert same(result, expected)
    (found,) = pullback(jnp.asarray(grad))
    for n, x in found.items():
        assert same(x, gradients[n]), n


def test_lse_and_weights():
    q, k, v = draw(*SHAPES)
    options = VECTORS["of_heads"] | {"return_lse": True, "return_weights": True}
    result = additive_attention(q, k, v, **options)
    expected = attnfast.additive_attention(q, k, v, **options)
    for x, e in zip(result, expected, strict=True):
        assert same(x, e)


@pytest.mark.parametrize(
    "shapes",
    [
        [(7, 8), (9, 8), (9, 5)],
        [(2, 1, 4, 7, 8), (1, 3, 2, 9, 8), (2, 1, 2, 9, 5)],
        [(0, 4, 7, 8), (0, 2, 9, 8), (0, 2, 9, 5)],
        [(2, 4, 7, 8), (2, 2, 0, 8), (2, 2, 0, 5)],
        [(2, 4, 7, 0), (2, 2, 9, 0), (2, 2, 9, 5)],
        [(2, 4, 7, 8), (2, 2, 9, 8), (2, 2, 9, 0)],
    ],
    ids=str,
)
def test_ranks_and_batch_axes_that_broadcast(shapes):
    heads = shapes[0][-3] if len(shapes[0]) > 2 else 1
    weight = RNG.standard_normal((heads, shapes[0][-1])).astype(np.float32)
    arrays = *draw(*shapes), weight
    wanted = ("query", "key", "value", "score_weight")
    output, expected = attnfast.vjp(attnfast.additive_attention, *arrays, wanted=wanted)
    result, pullback = jax.vjp(additive_attention, *map(jnp.asarray, arrays))
    assert same(result, output)
    gradients = expected(np.ones_like(output))
    found = pullback(jnp.ones_like(result))
    for n, x in zip(wanted, found, strict=True):
        assert same(x, getattr(gradients, n)), n


def formula(q, k, v, w, b):
    scores = (w * jnp.tanh(q[..., :, None, :] + k[..., None, :, :] + b)).sum(-1)
    return jax.nn.softmax(scores, -1) @ v


def test_gradients_are_those_that_jax_derives():
    arrays = draw((2, 5, 8), (2, 6, 8), (2, 6, 4), (8,), (8,), dtype="float64")
    expected, by_formula = jax.vjp(formula, *arrays)
    result, pullback = jax.vjp(
        lambda q, k, v, w, b: additive_attention(q, k, v, w, score_bias=b), *arrays
    )
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-13)
    for x, e in zip(pullback(result), by_formula(result), strict=True):
        np.testing.assert_allclose(x, e, rtol=1e-11, atol=1e-12)


def test_vmap():
    n = 4
    q, k, v = draw((n, *SHAPES[0]), SHAPES[1], (n, *SHAPES[2]))
    weights, bias = draw((n, D), (n, H, D))

    def call(q, v, weight, bias):
        return additive_attention(q, k, v, weight, score_bias=bias, is_causal=True, q_offset="end")

    result = jax.vmap(call)(q, v, weights, bias)
    assert same(result, stacked(lambda i: call(q[i], v[i], weights[i], bias[i]), n))
    shared = jax.jit(jax.vmap(call, (0, 0, None, None)))(q, v, weights[0], bias[0])
    assert same(shared, stacked(lambda i: call(q[i], v[i], weights[0], bias[0]), n))

    one = jax.grad(lambda *arrays: (call(*arrays) ** 2).sum(), (0, 2, 3))
    alone = [one(q[i], v[i], weights[0], bias[0]) for i in range(n)]
    each = jax.vmap(one, (0, 0, None, None))(q, v, weights[0], bias[0])
    total = jax.grad(
        lambda q, v, *shared: (jax.vmap(call, (0, 0, None, None))(q, v, *shared) ** 2).sum(),
        (0, 2, 3),
    )(q, v, weights[0], bias[0])
    for place, parts in enumerate(zip(*alone, strict=True)):
        np.testing.assert_allclose(each[place], jnp.stack(parts), rtol=1e-5, atol=1e-5)
        sums = jnp.stack(parts) if place == 0 else sum(parts)
        np.testing.assert_allclose(total[place], sums, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"score_weight": np.zeros(D + 1)}, ValueError, "score_weight must have shape"),
        ({"score_weight": np.zeros((2, D))}, ValueError, "score_weight must have shape"),
        ({"score_weight": ["x"]}, TypeError, "x"),
        ({"score_bias": np.zeros((B, H, D))}, ValueError, "score_bias must have shape"),
        ({"scale": 0.5}, TypeError, "scale"),
        ({"out": np.zeros(3)}, TypeError, "out is not an argument"),
        ({"key": np.zeros((B, HK, LK, 3), np.float32)}, ValueError, "head size"),
    ],
    ids=str,
)
def test_bad_input_is_named_while_the_call_is_traced(given, error, message):
    q, k, v = draw(*SHAPES)
    with pytest.raises(error, match=message):
        additive_attention(**{"query": q, "key": k, "value": v} | given)
