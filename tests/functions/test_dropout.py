"""Dropout: the weights that the reference drops, in every function, in both directions."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import attnfast
from attnfast import BlockMask, reference
from support.arrays import DTYPE_IDS, DTYPES, assert_same, poisoned, qkv, same_bits

DROP = {"dropout": 0.3, "dropout_seed": 2**63 + 5}
pytestmark = pytest.mark.quick


def numbers(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def check(name: str, *arrays: Any, tolerance: float = 1e-12, **options: Any) -> Any:
    """Assert that a function gives what the reference gives, and return it."""
    options = {**options, "return_lse": True}
    got = getattr(attnfast, name)(*arrays, **options)
    expected = getattr(reference, name)(*arrays, **options)
    for field in ("output", "lse", "weights"):
        mine, exact = getattr(got, field), getattr(expected, field)
        if exact is None:
            continue
        size = np.where(np.isfinite(exact), np.abs(exact), 0).max(initial=1)
        np.testing.assert_allclose(
            mine.astype(np.float64), exact, rtol=0, atol=tolerance * size, err_msg=field
        )
    return got


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "weights": {"return_weights": True},
    "causal": {"is_causal": True, "q_offset": "end"},
    "window": {"window_size": (40, 3), "q_offset": [0, 100]},
    "lengths": {"q_lengths": [1, 0], "kv_lengths": [255, 0], "kv_starts": [9, 0]},
    "mask": {"mask": numbers((2, 4, 1, 300)) > 0},
    "blocks": {"mask": BlockMask(numbers((4, 1, 5)) > 0, (300, 64))},
    "scores": {"softcap": 0.8, "alibi_slopes": abs(numbers((4,))), "q_offset": 100},
    "sinks": {"sink_logits": numbers((4,)) + 5},
    "hides": {"bias": np.where(numbers((300,)) > 0, 0.5, -np.inf)},
}
LOCAL: dict[str, dict[str, Any]] = {
    "dilation": {"dilation": [1, 2, 3, 3], "q_offset": "end"},
    "tokens": {"global_tokens": [3, 50], "q_offset": 0},
    "tokens with slopes": {"global_tokens": [3, 50], "alibi_slopes": np.ones(4), "q_offset": 0},
    "both": {"dilation": 2, "global_tokens": [3, 50], "q_offset": 0, "kv_lengths": [300, 70]},
    "local-m": {"centers": 5},
    "local-p": {"centers": 40.5, "sigma": 3.0},
}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 3, 130])
class TestForward:
    @pytest.mark.parametrize("options", CASES.values(), ids=CASES)
    def test_attention(self, rng, lq, options):
        arrays = qkv(rng, lq, 300, 20, 13, heads=4, kv_heads=2, dtype=np.float64)
        check("attention", *arrays, **options, **DROP)

    @pytest.mark.parametrize("options", LOCAL.values(), ids=LOCAL)
    def test_local_attention(self, rng, lq, options):
        arrays = qkv(rng, lq, 300, 20, 13, heads=4, kv_heads=2, dtype=np.float64)
        if "centers" in options:
            kind = type(options["centers"])
            centers = (options["centers"] + numbers((2, 4, lq)) * 60).clip(0, 299).astype(kind)
            options = {**options, "centers": centers}
        check("local_attention", *arrays, 9, **options, **DROP)

    def test_additive_attention(self, rng, lq):
        arrays = qkv(rng, lq, 300, 20, 13, heads=4, kv_heads=2, dtype=np.float64)
        check("additive_attention", *arrays, numbers((20,)), **DROP)

    def test_attention_varlen(self, rng, lq):
        q, k, v = (
            a[0].swapaxes(0, 1)
            for a in qkv(rng, lq + 5, 300, 20, 13, heads=4, kv_heads=2, dtype=np.float64)
        )
        check("attention_varlen", q, k, v, [0, 5, lq + 5], [0, 40, 300], **DROP)


@pytest.mark.parametrize("lq", [2, 100])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_dtypes(rng, dtype, lq, each_isa):
    arrays = qkv(rng, lq, 300, 20, 13, heads=4, kv_heads=2, dtype=dtype)
    tolerance = 16 * float(ml_dtypes.finfo(dtype).eps)
    each_isa(lambda: check("attention", *arrays, tolerance=tolerance, **DROP))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [1, 130])
class TestBackward:
    """The same weights are dropped, so that gradients are those of the forward call."""

    def both(self, name: str, rng: Any, lq: int, *more: Any, **options: Any) -> None:
        q, k, v = qkv(rng, lq, 600, 20, 13, heads=4, kv_heads=4, dtype=np.float64)
        options |= DROP
        output, lse, _ = getattr(attnfast, name)(q, k, v, *more, return_lse=True, **options)
        g = rng.standard_normal(output.shape)
        options |= {"grad_lse": rng.standard_normal(lse.shape)}
        options |= {"grad_weights": rng.standard_normal((2, 4, lq, 600))}
        backward = f"{name}_backward"
        grads = getattr(attnfast, backward)(g, q, k, v, output, lse, *more, **options)
        exact = getattr(reference, backward)(g, q, k, v, None, None, *more, **options)
        for field in ("query", "key", "value"):
            got, expected = getattr(grads, field), getattr(exact, field)
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-11, err_msg=field)

    @pytest.mark.parametrize("name", ["plain", "causal", "window", "scores", "sinks"])
    def test_attention(self, rng, lq, name):
        self.both("attention", rng, lq, **CASES[name])

    def test_large_scores(self, rng, lq):
        self.both("attention", rng, lq, bias=300 * numbers((600,)))

    def test_additive_attention(self, rng, lq):
        self.both("additive_attention", rng, lq, numbers((20,)))

    def test_attention_varlen(self, rng, lq):
        q, k, v = (a[0].swapaxes(0, 1) for a in qkv(rng, lq + 5, 90, 8, heads=2, dtype=np.float64))
        cu = [0, 5, lq + 5], [0, 40, 90]
        output, lse, _ = attnfast.attention_varlen(q, k, v, *cu, return_lse=True, **DROP)
        g = rng.standard_normal(output.shape)
        grads = attnfast.attention_varlen_backward(g, q, k, v, output, lse, *cu, **DROP)
        exact = reference.attention_varlen_backward(g, q, k, v, None, None, *cu, **DROP)
        for field in ("query", "key", "value"):
            np.testing.assert_allclose(getattr(grads, field), getattr(exact, field), atol=1e-12)


@pytest.mark.parametrize("lq", [1, 100])
def test_the_same_bits_for_any_number_of_threads(rng, lq):
    q, k, v = qkv(rng, lq, 700, 16, heads=4, kv_heads=2)
    results = []
    for threads in (1, 2, 5):
        output, lse, _ = attnfast.attention(q, k, v, return_lse=True, num_threads=threads, **DROP)
        grads = attnfast.attention_backward(q, q, k, v, output, lse, num_threads=threads, **DROP)
        results.append((output, lse, *grads[:3]))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("lq", [2, 100])
def test_hidden_keys_have_no_influence(rng, lq):
    q, k, v = qkv(rng, lq, 300, 16)
    hidden = np.arange(300) % 3 == 1
    options = {"mask": ~hidden, **DROP}
    plain = attnfast.attention(q, k, v, **options)
    changed = attnfast.attention(q, *(poisoned(a, hidden, np.nan) for a in (k, v)), **options)
    assert same_bits(plain, changed)


def test_how_many_are_dropped(rng):
    """Of values that are all 1 the output is the sum of the weights that are kept."""
    q, k = np.zeros((1, 200, 8), np.float32), np.zeros((1, 4096, 8), np.float32)
    v = np.ones((1, 4096, 1), np.float32)
    for dropout in (0.1, 0.5, 0.9):
        kept = attnfast.attention(q, k, v, dropout=dropout, dropout_seed=3) * (1 - dropout)
        deviation = np.sqrt(dropout * (1 - dropout) / (200 * 4096))
        assert abs(kept.mean() - (1 - dropout)) < 5 * deviation
        assert len(np.unique(kept)) > 50  # each query drops others


def test_no_dropout_changes_no_bit(rng):
    arrays = qkv(rng, 50, 70, 16)
    for seed in (0, 9):
        same = attnfast.attention(*arrays, dropout=0.0, dropout_seed=seed)
        assert same_bits(same, attnfast.attention(*arrays))
    seeds = [attnfast.attention(*arrays, dropout=0.5, dropout_seed=s) for s in (0, 1)]
    assert not same_bits(*seeds)
    assert same_bits(attnfast.attention(*arrays, dropout=0.5), seeds[0])  # the default seed is 0
