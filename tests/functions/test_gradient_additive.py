"""Gradients of additive attention against the reference's closed forms."""

from typing import Any

import numpy as np
import pytest

import attnfast
from attnfast import BlockMask, reference
from support.arrays import DTYPE_IDS, DTYPES, assert_same, poisoned, qkv
from support.gradient_criterion import check_gradients

QKV = ("query", "key", "value")
OF_CALL = ("bias", "sink_logits", "alibi_slopes", "score_bias")
FULL = (2, 4, 60, 150)  # B, H, Lq, Lk


def numbers(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def wanted_of(options: Any) -> tuple[str, ...]:
    return (*QKV, "score_weight", *(name for name in OF_CALL if name in options))


def backward(grad_output: Any, *arrays: Any, **options: Any) -> Any:
    """All gradients, by way of a forward call; arrays are query, key, value and score_weight."""
    forward = {n: x for n, x in options.items() if n not in ("grad_lse", "grad_weights", "wanted")}
    *qkv_, weight = arrays
    output, lse, _ = attnfast.additive_attention(*arrays, return_lse=True, **forward)
    options = {"wanted": wanted_of(options), **options}
    return attnfast.additive_attention_backward(grad_output, *qkv_, output, lse, weight, **options)


def check(grad_output: Any, *arrays: Any, **options: Any) -> None:
    grads = backward(grad_output, *arrays, **options)
    *qkv_, weight = arrays
    call = {"function": "additive_attention", "score_weight": weight, **options}
    check_gradients(grads, grad_output, *qkv_, **call)


def case(
    rng: Any, lq: int, lk: int, d: int, dv: int, dtype: Any = np.float64, **more: Any
) -> tuple[Any, ...]:
    q, k, v = qkv(rng, lq, lk, d, dv, dtype=dtype, **more)
    grad_output = rng.standard_normal((*q.shape[:-1], dv)).astype(dtype)
    return grad_output, q, k, v, rng.standard_normal(d)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "weights of heads": {"score_bias": numbers((4, 12))},
    "softcap": {"softcap": 0.8, "score_bias": numbers((12,))},
    "causal": {"is_causal": True, "q_offset": 90},
    "window": {"window_size": (40, 3), "q_offset": [0, 60]},
    "lengths": {"q_lengths": [7, 60], "kv_lengths": [130, 0], "kv_starts": [9, 0]},
    "mask": {"mask": numbers(FULL) > 0},
    "blocks": {"mask": BlockMask(numbers((4, 3, 5)) > 0, (25, 32))},
    "alibi": {"alibi_slopes": abs(numbers((4,))), "q_offset": 50},
    "sinks": {"sink_logits": numbers((4,)) + 5},
    "bias": {"bias": numbers(FULL[1:])},
    "large scores": {"bias": 300 * numbers((150,))},
    "losses": {"grad_lse": numbers(FULL[:-1]), "grad_weights": numbers(FULL)},
    "dropout": {"dropout": 0.4, "dropout_seed": 9},
}


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
class TestInFloat64:
    @pytest.mark.parametrize("options", CASES.values(), ids=CASES)
    def test_options(self, rng, options):
        arrays = case(rng, 60, 150, 12, 7, heads=4, kv_heads=4)
        weight = numbers((4, 12)) if "score_bias" in options else arrays[-1]
        check(*arrays[:-1], weight, **options)

    @pytest.mark.parametrize("lq", [1, 3, 4, 5, 49, 51, 97])
    @pytest.mark.parametrize("d", [1, 8, 33])
    def test_sizes(self, rng, lq, d):
        """Blocks of all rows, of some and of few; whole vectors and their rest."""
        check(*case(rng, lq, 70, d, 5), score_bias=numbers((d,)))

    @pytest.mark.parametrize("lq", [0, 7])
    @pytest.mark.parametrize("lk", [0, 1])
    @pytest.mark.parametrize("d", [0, 4])
    def test_nothing(self, rng, lq, lk, d):
        check(*case(rng, lq, lk, d, 3))

    @pytest.mark.parametrize("lq", [2, 7])
    def test_heads_without_elements(self, rng, lq):
        """Their scores are 0, and need the same memory; in two ranges of keys."""
        check(*case(rng, lq, 1100, 0, 3))

    def test_heads_that_share_keys(self, rng):
        check(*case(rng, 50, 90, 12, 7, heads=6, kv_heads=2), score_bias=numbers((12,)))

    def test_several_panels_and_ranges(self, rng):
        check(*case(rng, 800, 600, 3, 2, heads=1, kv_heads=1, batch=()))

    @pytest.mark.parametrize("lq", [2, 60])
    def test_beyond_the_range_of_a_product_of_exponentials(self, rng, lq):
        g, q, k, v, w = case(rng, lq, 70, 12, 5)
        q[..., 1, :] *= 200
        k[..., 5, :] *= 1e4
        check(g, q, k, v, w)


@pytest.mark.parametrize("lq", [2, 60])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_dtypes(rng, dtype, lq, each_isa):
    arrays = case(rng, lq, 90, 40, 24, dtype, heads=2, kv_heads=2)
    bias = numbers((40,))
    each_isa(lambda: check(*arrays, is_causal=True, q_offset="end"))
    each_isa(lambda: check(*arrays, score_bias=bias, dropout=0.3))


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("name", ["weights of heads", "window", "losses"])
def test_the_same_bits_for_any_number_of_threads(rng, name, threads):
    arrays = case(rng, 60, 150, 12, 7, heads=4, kv_heads=2)
    assert_same(*(backward(*arrays, num_threads=n, **CASES[name]) for n in (1, threads)))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [3, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_hidden_gives_and_gets_nothing(rng, lq, dtype):
    g, q, k, v, w = case(rng, lq, 330, 20, 13, dtype, heads=4, kv_heads=4)
    mask = rng.random((2, 1, lq, 330)) < 0.4
    keys, queries = np.isin(np.arange(330), range(100, 110)), np.arange(lq) % 60 == 1
    mask[..., keys] = False
    mask[..., queries, :] = False
    options = {"mask": mask, "score_bias": numbers((20,)), "sink_logits": numbers((4,))}
    grads = backward(g, q, k, v, w, **options)
    assert not grads.key[:, :, keys].any() and not grads.value[:, :, keys].any()
    assert not grads.query[:, :, queries].any()
    for poison in (np.nan, np.inf):
        changed = [poisoned(a, queries, poison) for a in (g, q)]
        changed += [poisoned(a, keys, poison) for a in (k, v)]
        assert_same(backward(*changed, w, **options), grads, str(poison))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [3, 60])
@pytest.mark.parametrize("losses", [False, True], ids=["output", "losses"])
def test_nan_reaches_those_who_see_it(rng, lq, losses):
    g, q, k, v, w = case(rng, lq, lq, 9, 9)
    k[0, 0, 1, 3] = np.nan
    options = {"is_causal": True}
    if losses:
        options["grad_weights"] = numbers((*q.shape[:-1], lq))
    grads = backward(g, q, k, v, w, **options)
    exact = reference.additive_attention_backward(g, q, k, v, None, None, w, **options)
    for name in QKV:
        got, expected = getattr(grads, name), getattr(exact, name)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(expected), err_msg=name)


@pytest.mark.quick
def test_arguments_are_checked():
    x, lse = np.ones((2, 3, 8), np.float32), np.zeros((2, 3), np.float32)
    arguments: dict[str, Any] = {
        **{"grad_output": x, "query": x, "key": x, "value": x, "output": x, "lse": lse}
    }
    for wrong, error, message in [
        (
            {"wanted": ("score_weight",)},
            ValueError,
            "wanted names score_weight.*pass score_weight=",
        ),
        ({"wanted": ("scale",)}, ValueError, "wanted may name query.*score_bias, got 'scale'"),
        ({"scale": 1.0}, TypeError, "scale"),
        (
            {"score_weight": np.ones(7)},
            ValueError,
            r"score_weight must have shape \(8,\) or \(2, 8\)",
        ),
    ]:
        with pytest.raises(error, match=message):
            attnfast.additive_attention_backward(**{**arguments, **wrong})
