"""Gradients of windows of any kind against the closed forms of the reference."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

import attnfast
from attnfast import BlockMask, reference
from support.arrays import DTYPE_IDS, DTYPES, assert_same, poisoned, qkv, same_batch
from support.draws import local_calls
from support.gradient_criterion import check_gradients

QKV = ("query", "key", "value")
OF_CALL = ("bias", "sink_logits", "alibi_slopes")
B, H, LQ, LK = FULL = (2, 4, 130, 300)
LOSS = ("grad_lse", "grad_weights", "wanted")


def numbers(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def wanted_of(options: Any) -> tuple[str, ...]:
    names = (*QKV, *(name for name in OF_CALL if name in options))
    return (*names, "centers") if "sigma" in options else names


def backward(grad_output: Any, *arrays: Any, **options: Any) -> Any:
    """All gradients, by way of a forward call."""
    forward = {name: x for name, x in options.items() if name not in LOSS}
    output, lse, _ = attnfast.local_attention(*arrays, return_lse=True, **forward)
    options = {"wanted": wanted_of(options), **options}
    return attnfast.local_attention_backward(grad_output, *arrays, output, lse, **options)


def check(grad_output: Any, *arrays: Any, tolerance: float = 1e-11, **options: Any) -> None:
    grads = backward(grad_output, *arrays, **options)
    call = (grad_output, *arrays, None, None)
    exact = reference.local_attention_backward(*call, wanted=wanted_of(options), **options)
    given = dict(zip(QKV, arrays, strict=True)) | options
    for name in wanted_of(options):
        got, expected = getattr(grads, name), getattr(exact, name)
        assert got.shape == np.shape(given[name]), name
        assert got.dtype == np.asarray(given[name]).dtype, name
        error = np.abs(got.astype(np.float64) - expected).max(initial=0)
        assert error <= tolerance * max(1, np.abs(expected).max(initial=0)), (name, error)


def case(
    rng: Any, lq: int, lk: int, d: int, dv: int, dtype: Any = np.float64, **more: Any
) -> tuple[Any, ...]:
    q, k, v = qkv(rng, lq, lk, d, dv, dtype=dtype, **more)
    return rng.standard_normal((*q.shape[:-1], dv)).astype(dtype), q, k, v


PLACES = np.random.default_rng(7).uniform(-10, LK + 10, (B, H, LQ))
KINDS: dict[str, dict[str, Any]] = {
    "window": {"window_size": (9, 2)},
    "dilation": {"window_size": (7, 2), "dilation": [1, 1, 3, 3]},
    "large dilation": {"window_size": 3, "dilation": 150},
    "dilations in a group": {"window_size": 4, "dilation": [2, 5, 1, 7]},
    "tokens": {"window_size": 5, "global_tokens": [0, 3, 100, 299]},
    "tokens of rows": {"window_size": 5, "global_tokens": [[2, 2], [7, 180]]},
    "dilated tokens": {"window_size": 2, "dilation": [1, 4, 1, 4], "global_tokens": [4, 5, 90]},
    "local-m": {"window_size": 6, "centers": PLACES.astype(int)},
    "local-p": {"window_size": 6, "centers": PLACES, "sigma": 3.0},
    "centers of heads": {"window_size": (3, 8), "centers": PLACES[0], "sigma": 2.0},
    "centers for all": {"window_size": (3, 8), "centers": PLACES[0, 0], "sigma": 2.0},
    "rising centers": {"window_size": 9, "centers": np.sort(PLACES, axis=-1), "sigma": 4.0},
    "wide": {"window_size": -1, "centers": PLACES, "sigma": 50.0},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 0.8},
    "causal": {"is_causal": True, "q_offset": 170},
    "offsets": {"q_offset": [0, 101]},
    "lengths": {"q_lengths": [7, 130], "kv_lengths": [255, 0], "kv_starts": [9, 0]},
    "mask": {"mask": numbers(FULL) > 0},
    "mask of keys": {"mask": numbers((LK,)) > 0},
    "blocks": {"mask": BlockMask(numbers((4, 3, 5)) > 0, (50, 64))},
    "alibi": {"alibi_slopes": abs(numbers((4,))), "q_offset": 100},
    "sinks": {"sink_logits": numbers((4,)) + 5},
    "bias": {"bias": numbers(FULL[1:])},
    "bias of rows": {"bias": numbers((B, H, LQ, 1))},
    "bias of keys": {"bias": numbers((LK,)), "q_offset": [3, 50]},
    "large scores": {"scale": 300.0},
    "large scores and sinks": {"scale": 300.0, "sink_logits": 900 * abs(numbers((4,)))},
    "losses": {"grad_lse": numbers(FULL[:-1]), "grad_weights": numbers(FULL)},
    "dropout": {"dropout": 0.3, "dropout_seed": 5},
}


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
class TestInFloat64:
    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    def test_options(self, rng, kind, options):
        tolerance = 1e-9 if "scale" in options else 1e-11
        arrays = case(rng, LQ, LK, 20, 13, heads=4, kv_heads=2)
        check(*arrays, tolerance=tolerance, **{"q_offset": 85, **kind, **options})

    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    def test_everything_at_once(self, rng, kind):
        names = "softcap", "causal", "mask", "bias", "sinks", "alibi", "losses", "dropout"
        options = {name: x for key in names for name, x in OPTIONS[key].items()}
        check(*case(rng, LQ, LK, 20, 13, heads=4, kv_heads=2), **kind, **options)

    @pytest.mark.parametrize("kind", [KINDS["dilated tokens"], KINDS["local-p"]])
    def test_several_panels_and_ranges(self, rng, kind):
        options = {**kind, "window_size": 300}
        if "centers" in kind:
            options["centers"] = rng.uniform(0, 700, 1600)
        arrays = case(rng, 1600, 700, 5, 3, heads=4, kv_heads=4, batch=())
        check(*arrays, q_offset=-400, **options, tolerance=1e-10)

    def test_queries_that_see_global_tokens_only(self, rng):
        """Windows before the first key: gradients of sinks need the delta of such rows too."""
        arrays = case(rng, 60, 90, 20, 13, heads=4, kv_heads=2)
        options = {"window_size": 1, "global_tokens": [3, 50], "sink_logits": numbers((4,))}
        check(*arrays, q_offset=-50, **options)

    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    @pytest.mark.parametrize("lq", [0, 1])
    @pytest.mark.parametrize("lk", [0, 1])
    def test_nothing_and_one(self, rng, kind, lq, lk):
        kind = dict(kind)
        if "global_tokens" in kind:
            kind["global_tokens"] = np.ones(lk, bool)
        if "centers" in kind:
            kind["centers"] = np.zeros(lq, kind["centers"].dtype)
        check(*case(rng, lq, lk, 4, 3, heads=4, kv_heads=4), q_offset=0, **kind)


@given(call=local_calls())
def test_any_call(call, each_isa):
    options = {n: x for n, x in call.options.items() if not n.startswith("return")}
    arrays = same_batch(call.query, call.key, call.value)
    grad_output = numbers((*arrays[0].shape[:-1], arrays[2].shape[-1])).astype(arrays[0].dtype)
    wanted = (*QKV, *(name for name in OF_CALL if options.get(name) is not None))
    if options.get("sigma") is not None:
        wanted += ("centers",)

    def compare() -> None:
        grads = backward(grad_output, *arrays, **options, wanted=wanted)
        check_gradients(grads, grad_output, *arrays, function="local_attention", **options)

    each_isa(compare)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_dtypes(rng, dtype, kind, each_isa):
    arrays = case(rng, LQ, LK, 40, 24, dtype, heads=4, kv_heads=2)
    tolerance = 40 * float(ml_dtypes.finfo(dtype).eps)
    each_isa(lambda: check(*arrays, q_offset=85, **kind, tolerance=tolerance))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", ["plain", "bias", "bias of keys", "alibi", "losses"])
def test_the_same_bits_for_any_number_of_threads(rng, kind, name):
    arrays = case(rng, LQ, LK, 20, 13, np.float32, heads=4, kv_heads=2)
    options = {"q_offset": 85, **kind, **OPTIONS[name]}
    if name == "losses":
        options["grad_weights"] = numbers(FULL).astype(np.float32)
    grads = [backward(*arrays, num_threads=n, **options) for n in (1, 2, 3, 5)]
    for other in grads[1:]:
        assert_same(other, grads[0])


def test_many_copied_columns_have_the_same_bits(rng):
    """Of a bias that is larger than what one call of residue classes may copy."""
    arrays = case(rng, 2000, 2000, 4, 4, np.float32, heads=2, kv_heads=2)
    bias = numbers((2000, 2000)).astype(np.float32)
    options = {"window_size": 30, "dilation": 7, "bias": bias, "alibi_slopes": np.array([0.1, 0.2])}
    assert_same(*(backward(*arrays, num_threads=n, **options) for n in (1, 3)))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_row_alone_has_the_same_bits(rng, kind):
    arrays = case(rng, LQ, LK, 20, 13, np.float32, heads=4, kv_heads=2)
    grads = backward(*arrays, q_offset=85, **kind)
    alone = dict(kind)
    for name, axes in (("centers", 3), ("global_tokens", 2)):
        if np.ndim(kind.get(name)) == axes:
            alone[name] = kind[name][1]
    row = backward(*(a[1] for a in arrays), q_offset=85, **alone)
    for name in QKV:
        assert_same(getattr(row, name), getattr(grads, name)[1], name)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("tokens", [[[3, 7], [5, 9]], [[False] * LK, [True] + [False] * (LK - 1)]])
def test_a_row_that_is_not_finite_depends_on_no_other(rng, tokens, sinks):
    """An infinite value whose weight is 0 makes outputs NaN, but no gradient of other keys."""
    arrays = case(rng, LQ, LK, 20, 13, np.float32, heads=4, kv_heads=2)
    arrays[3][0, :, 90, 2] = np.inf
    bias = np.zeros((B, 1, 1, LK), np.float32)
    bias[0, ..., 90], bias[1] = -1e4, 100
    options: dict[str, Any] = {"window_size": 9, "q_offset": 85}
    if sinks:
        options["sink_logits"] = numbers((4,))
    grads = backward(*arrays, bias=bias, global_tokens=tokens, **options)
    alone = (a[0] for a in arrays)
    row = backward(*alone, bias=bias[0], global_tokens=tokens[0], **options)
    assert np.isfinite(np.delete(row.key, 90, axis=-2)).all()
    for name in QKV:
        assert_same(getattr(row, name), getattr(grads, name)[0], name)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_hidden_gives_and_gets_nothing(rng, dtype, kind):
    arrays = case(rng, LQ, LK, 20, 13, dtype, heads=4, kv_heads=2)
    mask = rng.random((B, 1, LQ, LK)) < 0.4
    keys, queries = np.isin(np.arange(LK), range(100, 110)), np.arange(LQ) % 60 == 1
    mask[..., keys] = False
    mask[..., queries, :] = False
    options = {"mask": mask, "q_offset": 85, **kind}
    grads = backward(*arrays, **options)
    assert not grads.key[:, :, keys].any() and not grads.value[:, :, keys].any()
    assert not grads.query[:, :, queries].any()
    if grads[-1] is not None:
        assert not np.broadcast_to(grads.centers, (B, H, LQ))[..., queries].any() or (
            np.ndim(kind["centers"]) < 3
        )
    for poison in (np.nan, np.inf):
        changed = [poisoned(a, queries, poison) for a in arrays[:2]]
        changed += [poisoned(a, keys, poison) for a in arrays[2:]]
        assert_same(backward(*changed, **options), grads, str(poison))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_nan_reaches_those_who_see_it(rng, kind):
    arrays = case(rng, LQ, LK, 9, 9, heads=4, kv_heads=2)
    arrays[2][0, 0, 90, 3] = np.nan
    options = {"q_offset": 85, **kind}
    grads = backward(*arrays, **options)
    exact = reference.local_attention_backward(*arrays, None, None, **options)
    for name in QKV:
        got, expected = getattr(grads, name), getattr(exact, name)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(expected), err_msg=name)


def test_a_center_moves_a_loss_as_its_gradient_says(rng):
    """By central differences of the call; windows have all keys, so none comes in or goes."""
    g, q, k, v = case(rng, 9, 30, 6, 5, heads=2, kv_heads=1)
    centers, step = rng.uniform(0, 30, (2, 2, 9)), 1e-5
    options = {"window_size": -1, "sigma": 4.0}
    grads = backward(g, q, k, v, centers=centers, wanted=("centers",), **options)
    moved = [
        (attnfast.local_attention(q, k, v, centers=centers + x, **options) * g).sum(axis=-1)
        for x in (step, -step)
    ]
    assert np.allclose(grads.centers, (moved[0] - moved[1]) / (2 * step), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("sigma", [1e-200, 5e-324, 1e300])
def test_factors_that_are_no_slope(rng, sigma):
    """Of keys at a center, or around a center that is at all keys."""
    g, q, k, v = case(rng, 9, 30, 6, 5)
    centers = np.arange(9.0)
    grads = backward(g, q, k, v, window_size=3, centers=centers, sigma=sigma, wanted=("centers",))
    assert not grads.centers.any()


@pytest.mark.quick
def test_arguments_are_checked():
    x, lse = np.ones((2, 3, 8), np.float32), np.zeros((2, 3), np.float32)
    arguments: dict[str, Any] = {
        **{"grad_output": x, "query": x, "key": x, "value": x, "output": x, "lse": lse},
        "window_size": 1,
    }
    centers = {"centers": np.ones(3, int)}
    for wrong, error, message in [
        ({"wanted": ("centers",)}, ValueError, "wanted names centers.*pass centers="),
        ({**centers, "wanted": ("centers",)}, ValueError, "integer centers have no gradient"),
        ({"wanted": ("sigma",)}, ValueError, "wanted may name query.*centers, got 'sigma'"),
        ({"wanted": ("score_weight",)}, ValueError, "wanted may name"),
        ({**centers, "dilation": 2}, ValueError, "centers.*dilation"),
    ]:
        with pytest.raises(error, match=message):
            attnfast.local_attention_backward(**{**arguments, **wrong})
