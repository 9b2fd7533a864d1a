"""attnfast.jax.attention: the bits of attnfast, JAX's transformations, bad input."""

import functools
import re

import numpy as np
import pytest

import attnfast
from attnfast import BlockMask

pytest.importorskip("jax", reason="needs JAX")
import jax
import jax.numpy as jnp

from attnfast.jax import attention
from support.jax_arrays import draw, same, stacked

DTYPES = ["float32", "float64", "float16", "bfloat16"]


@pytest.fixture(autouse=True)
def precise():
    """float64 too."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


RNG = np.random.default_rng(1)
B, H, HK, LQ, LK, D, DV = 3, 4, 2, 21, 37, 16, 24
SHAPES = (B, H, LQ, D), (B, HK, LK, D), (B, HK, LK, DV)
OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True, "q_offset": "end"},
    "offset": {"is_causal": True, "q_offset": np.array([3, -2, 40])},
    "window": {"window_size": (5, 2), "q_offset": 7},
    "lengths": {"q_lengths": [21, 0, 4], "kv_lengths": [37, 9, 0]},
    "end_of_lengths": {
        "is_causal": True,
        "q_offset": "end",
        "q_lengths": [21, 2, 4],
        "kv_lengths": [37, 9, 30],
    },
    "starts": {"kv_starts": np.array([0, 5, 37])},
    "mask": {"mask": RNG.random((B, 1, LQ, LK)) < 0.5},
    "mask_of_keys": {"mask": RNG.random((B, 1, 1, LK)) < 0.5},
    "blocks": {"mask": BlockMask(RNG.random((H, 3, 5)) < 0.6, 8)},
    "pairs_as_blocks": {"mask": BlockMask(RNG.random((LQ, LK)) < 0.6, 1)},
    "bias": {"bias": RNG.standard_normal((H, LQ, LK))},
    "bias_of_rows": {"bias": np.where(RNG.random((B, 1, 1, LK)) < 0.2, -np.inf, 1e300)},
    "softcap": {"softcap": 2.0, "scale": np.float32(0.5)},
    "alibi": {"alibi_slopes": RNG.random(H), "q_offset": 0},
    "alibi_of_rows": {"alibi_slopes": RNG.random((B, H)), "q_offset": 0},
    "sinks": {"sink_logits": RNG.standard_normal(H)},
    "dropout": {"dropout": 0.3, "dropout_seed": 2**40 + 7},
    "threads": {"num_threads": 1},
}
everything = pytest.mark.parametrize("name", OPTIONS)


# ---- the bits of attnfast ----


@everything
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_are_those_of_attnfast(name, dtype):
    q, k, v = draw(*SHAPES, dtype=dtype)
    flags = {"return_lse": True, "return_weights": name != "blocks"}
    expected = attnfast.attention(q, k, v, **OPTIONS[name], **flags)
    result = attention(q, k, v, **OPTIONS[name], **flags)
    assert isinstance(result, attnfast.AttentionResult)
    assert same(result.output, expected.output)
    assert same(result.lse, expected.lse)
    assert result.weights is None if name == "blocks" else same(result.weights, expected.weights)
    assert same(attention(q, k, v, **OPTIONS[name]), expected.output)


@everything
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_gradients_too(name, dtype):
    q, k, v = draw(*SHAPES, dtype=dtype)
    (grad,) = draw((B, H, LQ, DV), dtype=dtype, seed=5)
    options = OPTIONS[name]
    own = {"bias", "sink_logits", "alibi_slopes"} & options.keys()
    output, pullback = attnfast.vjp(
        attnfast.attention, q, k, v, **options, wanted=("query", "key", "value", *own)
    )
    expected = pullback(grad)._asdict()

    def call(arrays):
        return attention(**arrays, **{n: x for n, x in options.items() if n not in arrays})

    arrays = {"query": q, "key": k, "value": v, **{n: jnp.asarray(options[n]) for n in own}}
    result, pullback = jax.vjp(jax.jit(call), arrays)
    assert same(result, output)
    (found,) = pullback(jnp.asarray(grad))
    for n, x in found.items():
        assert same(x, expected[n]), n


def test_gradients_of_lse_and_weights():
    q, k, v = draw(*SHAPES)
    results, pullback = jax.vjp(
        lambda *x: tuple(attention(*x, return_lse=True, return_weights=True)), q, k, v
    )
    grads = draw(*(x.shape for x in results), seed=3)
    output, _, _ = attnfast.attention(q, k, v, return_lse=True, return_weights=True)
    expected = attnfast.attention_backward(
        grads[0], q, k, v, output, np.asarray(results[1]), grad_lse=grads[1], grad_weights=grads[2]
    )
    for x, e in zip(pullback(tuple(map(jnp.asarray, grads))), expected, strict=False):
        assert same(x, e)
    only_lse = jax.grad(lambda q: attention(q, k, v, return_lse=True).lse.sum())(q)
    expected = attnfast.attention_backward(
        np.zeros_like(output), q, k, v, output, np.asarray(results[1]), grad_lse=np.ones((B, H, LQ))
    )
    assert same(only_lse, expected.query)


@pytest.mark.parametrize(
    "shapes",
    [
        [(7, 8), (9, 8), (9, 5)],
        [(4, 7, 8), (2, 9, 8), (2, 9, 5)],
        [(2, 3, 4, 7, 8), (2, 3, 2, 9, 8), (2, 3, 2, 9, 5)],
        [(2, 3, 4, 7, 8), (1, 3, 2, 9, 8), (3, 2, 9, 5)],
        [(2, 1, 4, 7, 8), (1, 3, 2, 9, 8), (2, 1, 2, 9, 5)],
        [(4, 7, 8), (3, 2, 9, 8), (2, 9, 5)],
        [(0, 4, 7, 8), (0, 2, 9, 8), (0, 2, 9, 5)],
        [(2, 4, 0, 8), (2, 2, 9, 8), (2, 2, 9, 5)],
        [(2, 4, 7, 8), (2, 2, 0, 8), (2, 2, 0, 5)],
        [(2, 4, 7, 0), (2, 2, 9, 0), (2, 2, 9, 5)],
        [(2, 4, 7, 8), (2, 2, 9, 8), (2, 2, 9, 0)],
        [(2, 4, 7, 0), (2, 2, 0, 0), (2, 2, 0, 0)],
    ],
    ids=str,
)
def test_ranks_and_batch_axes_that_broadcast(shapes):
    arrays = draw(*shapes)
    output, expected = attnfast.vjp(attnfast.attention, *arrays)
    result, pullback = jax.vjp(attention, *map(jnp.asarray, arrays))
    assert same(result, output)
    flags = {"return_lse": True, "return_weights": True}
    for x, e in zip(attention(*arrays, **flags), attnfast.attention(*arrays, **flags), strict=True):
        assert same(x, e)
    for x, e in zip(pullback(jnp.ones_like(result)), expected(np.ones_like(output)), strict=False):
        assert same(x, e)


def test_no_keys_with_every_option():
    q, k, v = draw((B, H, LQ, D), (B, HK, 0, D), (B, HK, 0, DV))
    options = {"bias": np.zeros((LQ, 1)), "mask": np.ones((B, 1, LQ, 0), bool), "q_offset": "end"}
    options |= {"kv_lengths": [0, 0, 0], "kv_starts": [0, 0, 0], "sink_logits": np.arange(H)}
    options |= {"q_lengths": [LQ, 0, 3], "window_size": 3}
    expected = attnfast.attention(q, k, v, **options, return_lse=True)
    result = attention(q, k, v, **options, return_lse=True)
    assert same(result.output, expected.output) and same(result.lse, expected.lse)


def test_whole_numbers_for_each_head():
    q, k, v = draw(*SHAPES)
    options = {"sink_logits": np.arange(H), "alibi_slopes": np.arange(H), "q_offset": 0}
    result, pullback = jax.vjp(lambda q: attention(q, k, v, **options), q)
    expected, gradients = attnfast.vjp(attnfast.attention, q, k, v, **options)
    assert same(result, expected)
    assert same(pullback(result)[0], gradients(expected).query)


def test_numbers_smaller_than_normal_are_not_flushed():
    """XLA flushes them in its threads; bits would depend on which thread computes them."""
    q, k = np.zeros((2, 64, 400, 32), np.float32), np.zeros((2, 64, 400, 32), np.float32)
    v = np.full((2, 64, 400, 32), 3e-39, np.float32)
    expected = attnfast.attention(q, k, v)
    assert expected.all()
    assert same(attention(q, k, v), expected)


@pytest.mark.parametrize("repeats", range(3))
def test_the_bits_of_large_calls_on_all_threads(repeats):
    q, k, v = draw((2, 8, 700, 64), (2, 8, 700, 64), (2, 8, 700, 64), seed=repeats)
    output, expected = attnfast.vjp(attnfast.attention, q, k, v, is_causal=True)
    loss = functools.partial(attention, is_causal=True)
    result, pullback = jax.vjp(jax.jit(loss), q, k, v)
    assert same(result, output)
    for x, e in zip(pullback(result), expected(output), strict=False):
        assert same(x, e)


def test_hidden_keys_have_no_influence():
    q, k, v = draw(*SHAPES)
    k[:, :, 20:], v[:, :, 20:] = np.nan, np.inf
    lengths = jnp.full(B, 20)
    result, pullback = jax.vjp(lambda *x: attention(*x, kv_lengths=lengths), q, k, v)
    assert same(result, attnfast.attention(q, k[:, :, :20], v[:, :, :20]))
    gradients = pullback(jnp.ones_like(result))
    assert all(np.isfinite(x).all() for x in gradients)
    assert not gradients[1][:, :, 20:].any() and not gradients[2][:, :, 20:].any()


def test_seeds():
    q, k, v = draw(*SHAPES)
    expected = attnfast.attention(q, k, v, dropout=0.5, dropout_seed=77)
    for seed in (77, np.int32(77), jnp.asarray([77]), jnp.uint32(77), jnp.int64(77)):
        assert same(attention(q, k, v, dropout=0.5, dropout_seed=seed), expected)
    drop = jax.jit(lambda seed: attention(q, k, v, dropout=0.5, dropout_seed=seed))
    assert same(drop(77), expected)
    keys = jax.random.split(jax.random.key(0))
    assert same(drop(keys[0]), drop(keys[0]))
    assert not same(drop(keys[0]), drop(keys[1]))


# ---- JAX's transformations ----


def test_vmap_over_any_argument():
    n = 5
    q, k, v, bias = draw((n, *SHAPES[0]), SHAPES[1], (n, *SHAPES[2]), (n, H, LQ, LK))
    lengths = jnp.asarray(RNG.integers(0, LK, (n, B)))
    slopes = jnp.asarray(RNG.random((n, H)))

    def call(q, k, v, bias, lengths, slopes):
        return attention(
            q, k, v, bias=bias, kv_lengths=lengths, alibi_slopes=slopes, q_offset=0, is_causal=True
        )

    axes = (0, None, 0, 0, 0, 0)
    result = jax.vmap(call, axes)(q, k, v, bias, lengths, slopes)
    alone = stacked(lambda i: call(q[i], k, v[i], bias[i], lengths[i], slopes[i]), n)
    assert same(result, alone)
    for place, several in ((0, q), (4, lengths), (5, slopes)):
        arguments = [q[0], k, v[0], bias[0], lengths[0], slopes[0]]
        before, after = arguments[:place], arguments[place + 1 :]
        alone = jnp.stack([call(*before, several[i], *after) for i in range(n)])
        axes = tuple(0 if n == place else None for n in range(6))
        assert same(jax.jit(jax.vmap(call, axes))(*before, several, *after), alone)


def test_vmap_of_what_there_is_once():
    """Sinks that differ between examples; dropout, which is the same in each of them."""
    n = 4
    q, k, v = draw((n, *SHAPES[0]), *SHAPES[1:])
    sinks = RNG.standard_normal((n, H))

    def call(q, sinks):
        return attention(q, k, v, sink_logits=sinks, dropout=0.4, dropout_seed=3)

    result = jax.vmap(call)(q, sinks)
    assert same(result, stacked(lambda i: call(q[i], sinks[i]), n))
    grads = jax.vmap(jax.grad(lambda q, s: call(q, s).sum(), (0, 1)))(q, sinks)
    one = jax.grad(lambda q, s: call(q, s).sum(), (0, 1))
    alone = [one(q[i], sinks[i]) for i in range(n)]
    for x, parts in zip(grads, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(x, jnp.stack(parts), rtol=1e-6, atol=1e-6)


def test_vmap_twice_and_over_the_last_axis():
    q, k, v = draw((3, 5, 4, 9, 8), (2, 9, 8), (2, 9, 8))
    result = jax.vmap(jax.vmap(attention, (0, None, None)), (0, None, None))(q, k, v)
    assert same(result, attnfast.attention(q, k, v))
    result = jax.vmap(attention, (4, None, None), 4)(np.moveaxis(q, 1, 4), k, v)
    assert same(np.moveaxis(np.asarray(result), 4, 1), attnfast.attention(q, k, v))


def test_gradients_under_vmap_and_of_vmap():
    n = 4
    q, k, v, bias = draw((n, H, LQ, D), (HK, LK, D), (n, HK, LK, DV), (LQ, LK))

    def loss(q, k, v, bias):
        return (attention(q, k, v, bias=bias) ** 2).sum()

    def total(*arrays):
        return jax.vmap(loss, (0, None, 0, None))(*arrays).sum()

    each = jax.vmap(jax.grad(loss, (0, 1, 2, 3)), (0, None, 0, None))(q, k, v, bias)
    alone = [jax.grad(loss, (0, 1, 2, 3))(q[i], k, v[i], bias) for i in range(n)]
    for x, parts in zip(each, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(x, jnp.stack(parts), rtol=1e-6, atol=1e-6)
    of_all = jax.grad(total, (0, 1, 2, 3))(q, k, v, bias)
    for x, parts, shared in zip(of_all, zip(*alone, strict=True), (0, 1, 0, 1), strict=True):
        expected = sum(parts) if shared else jnp.stack(parts)
        np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)


def test_jacobian_has_many_gradients_of_one_output():
    q, k, v = draw((3, 4), (5, 4), (5, 4), dtype="float64")
    found = jax.jacrev(attention, (0, 1, 2))(q, k, v)
    expected = jax.jacrev(plain, (0, 1, 2))(q, k, v)
    for x, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, e, rtol=1e-12, atol=1e-13)


def plain(q, k, v, scale=None):
    scores = q @ jnp.swapaxes(k, -1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return jax.nn.softmax(scores, -1) @ v


def test_gradients_against_differences():
    from jax.test_util import check_grads

    q, k, v, bias = draw((2, 5, 8), (1, 6, 8), (1, 6, 4), (5, 6), dtype="float64")
    slopes, sinks = np.array([0.2, 0.6]), np.array([0.1, -0.4])

    def call(q, k, v, bias, slopes, sinks):
        return attention(
            q, k, v, bias=bias, alibi_slopes=slopes, sink_logits=sinks, q_offset="end",
            is_causal=True, softcap=3.0, return_lse=True,
        )[:2]  # fmt: skip

    check_grads(call, (q, k, v, bias, slopes, sinks), order=1, modes=["rev"], rtol=1e-6, atol=1e-8)


def handlers_in(function, *arguments):
    """The results of each call of a handler in what JAX compiles, by the handler's name."""
    text = jax.jit(function).lower(*arguments).as_text()
    calls = re.findall(r"custom_call @attnfast_(\w+)\(.*-> (.*)$", text, re.MULTILINE)
    return {name: re.findall(r"tensor<([\dx]+)x", results) for name, results in calls}


def test_only_needed_gradients_are_computed():
    q, k, v = draw(*SHAPES)
    bias = jnp.zeros((B, H, LQ, LK))

    def loss(q, bias):
        return attention(q, k, v, bias=bias).sum()

    size = f"{B}x{H}x{LQ}"
    assert handlers_in(loss, q, bias) == {"attention": [f"{size}x{DV}"]}
    calls = handlers_in(jax.grad(loss), q, bias)
    assert calls == {"attention": [f"{size}x{DV}", size], "attention_backward": [f"{size}x{D}"]}
    calls = handlers_in(jax.grad(loss, 1), q, bias)
    assert calls["attention_backward"] == [f"{size}x{LK}"]
    frozen = jax.grad(lambda q: attention(jax.lax.stop_gradient(q), k, v).sum() + q.sum())
    assert "attention_backward" not in handlers_in(frozen, q)


def test_remat_scan_and_checkpoint():
    q, k, v = draw((2, 4, 30, 16), (2, 4, 30, 16), (2, 4, 30, 16))

    def layers(x, step):
        return jax.lax.scan(lambda x, _: (step(x), None), x, None, length=3)[0].sum()

    def step(x):
        return attention(x, k, v, is_causal=True)

    kept = jax.grad(lambda x: layers(x, step))(q)
    again = jax.grad(lambda x: layers(x, jax.checkpoint(step)))(q)
    assert same(kept, again)


def test_other_derivatives_are_errors():
    q, k, v = draw(*SHAPES)
    with pytest.raises(TypeError, match="jvp"):
        jax.jvp(lambda q: attention(q, k, v), (q,), (q,))
    twice = jax.grad(lambda q: jax.grad(lambda q: attention(q, k, v).sum())(q).sum())
    with pytest.raises(ValueError, match=r"attnfast_attention.* cannot be differentiated"):
        twice(q)


def test_calls_with_the_same_options_are_compiled_once():
    from attnfast.jax import _call

    q, k, v = draw(*SHAPES)
    _call._call.clear_cache()
    for n in range(3):
        attention(q + n, k, v, is_causal=True, q_offset=n, scale=0.5)
    assert _call._call._cache_size() == 1
    attention(q, k, v, is_causal=True, q_offset=0, scale=0.25)
    assert _call._call._cache_size() == 2


# ---- bad input ----


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mask": np.zeros((LQ, LK), np.int32)}, TypeError, "mask must be bool"),
        ({"bias": np.zeros((LQ, LK + 1))}, ValueError, "bias .* broadcast"),
        ({"kv_lengths": [1, 2]}, ValueError, "kv_lengths must have one entry for each batch row"),
        ({"kv_lengths": [1.0, 2.0, 3.0]}, TypeError, "kv_lengths"),
        ({"is_causal": True}, ValueError, "q_offset"),
        ({"is_causal": 1, "q_offset": 0}, TypeError, "is_causal must be True or False"),
        ({"window_size": (1, 2, 3), "q_offset": 0}, ValueError, "window_size"),
        ({"window_size": np.array([1, 2]), "q_offset": 0}, TypeError, "window_size"),
        ({"scale": [0.5, {}]}, TypeError, "scale must be a real number"),
        ({"q_offset": "start"}, ValueError, "q_offset must be"),
        ({"scale": float("inf")}, ValueError, "scale must be finite"),
        ({"softcap": -1}, ValueError, "softcap must be"),
        ({"dropout": 1.0}, ValueError, "dropout must be"),
        ({"dropout": 0.5, "dropout_seed": -1}, ValueError, "dropout_seed must be within"),
        ({"dropout": 0.5, "dropout_seed": 0.5}, TypeError, "dropout_seed must be an int"),
        ({"sink_logits": np.zeros(3)}, ValueError, "sink_logits must have shape"),
        ({"num_threads": 0}, ValueError, "num_threads"),
        ({"out": np.zeros(3)}, TypeError, "out is not an argument"),
        ({"causal": True}, TypeError, "is_causal"),
    ],
    ids=str,
)
def test_bad_input_is_named_while_the_call_is_traced(options, error, message):
    q, k, v = draw(*SHAPES)
    with pytest.raises(error, match=message):
        attention(q, k, v, **options)
    with pytest.raises(error, match=message):
        jax.make_jaxpr(lambda q: attention(q, k, v, **options))(q)


def test_operands_that_do_not_go_together():
    q, k, v = draw(*SHAPES)
    with pytest.raises(TypeError, match="key has dtype float64"):
        attention(q, k.astype(np.float64), v)
    with pytest.raises(ValueError, match="head size"):
        attention(q, k[..., :8], v)
    with pytest.raises(TypeError, match="query"):
        attention(q.astype(np.int32), k, v)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_lengths": [37, 38, 0]}, "kv_lengths must be within 0 .. 37, got 38"),
        ({"q_lengths": [-1, 0, 0]}, "q_lengths must be within 0 .. 21, got -1"),
        ({"kv_starts": [0, 0, 50]}, "kv_starts must be within 0 .. 37, got 50"),
    ],
)
def test_values_out_of_range_are_errors_of_the_call(options, message):
    q, k, v = draw(*SHAPES)
    with pytest.raises(Exception, match=message):
        jax.block_until_ready(attention(q, k, v, **options))


def test_flags_that_are_traced():
    q, k, v = draw(*SHAPES)
    for name, x in (("is_causal", True), ("scale", 0.5), ("window_size", 3)):
        with pytest.raises(TypeError, match=f"{name} must be known when the call is compiled"):
            jax.jit(lambda x, name=name: attention(q, k, v, q_offset=0, **{name: x}))(x)
