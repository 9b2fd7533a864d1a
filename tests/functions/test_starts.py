"""kv_starts: padding on the left. The keys after it give what they give alone, at their places."""

import numpy as np
import pytest

import attnfast
from support.arrays import DTYPE_IDS, DTYPES, qkv

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("isa")]

STARTS = (0, 37, 130, 150)  # of 150 keys
RESULTS = {"return_lse": True, "return_weights": True}
CALLS = {
    "attention": lambda q, k, v, **more: attnfast.attention(q, k, v, **RESULTS, **more),
    "causal": lambda q, k, v, **more: attnfast.attention(
        q, k, v, is_causal=True, **RESULTS, **more
    ),
    "window": lambda q, k, v, **more: attnfast.attention(
        *(q, k, v), window_size=(50, 3), alibi_slopes=[0.5, 0.01], **RESULTS, **more
    ),
    "dilation": lambda q, k, v, **more: attnfast.local_attention(
        *(q, k, v, (9, 4)), dilation=[2, 7], **RESULTS, **more
    ),
    "additive": lambda q, k, v, **more: attnfast.additive_attention(q, k, v, **RESULTS, **more),
    "weights": lambda q, k, v, **more: (attnfast.attention_weights(q, k, **more),),
    "importance": lambda q, k, v, **more: (attnfast.key_importance(q, k, **more),),
}


def close(a, b, dtype):
    tolerance = {"rtol": 2e-5, "atol": 2e-6} if dtype.itemsize > 2 else {"rtol": 0.02, "atol": 5e-3}
    np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), **tolerance)


@pytest.mark.parametrize("lq", [2, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("name", CALLS)
def test_the_keys_after_it_alone(name, dtype, lq, rng):
    q, k, v = qkv(rng, lq, 150, 24, batch=(4,), dtype=dtype)
    for row, start in enumerate(STARTS):
        k[row, :, :start], v[row, :, :start] = np.nan, np.inf
    results = CALLS[name](q, k, v, q_offset=100, kv_starts=STARTS)
    for row, start in enumerate(STARTS):
        rest = (a[row, :, start:] for a in (k, v))
        alone = CALLS[name](q[row], *rest, q_offset=100 - start)
        for result, expected in zip(results, alone, strict=True):
            real = result[row]
            if expected.shape != real.shape:  # over the keys: none before the start
                assert not real[..., :start].any()
                real = real[..., start:]
            close(real, expected, dtype)


@pytest.mark.parametrize("k", [3, 70])
def test_the_heaviest_keys(k, rng):
    query, key, _ = qkv(rng, 5, 150, 24, batch=(4,))
    indices, weights = attnfast.attention_topk(query, key, k, kv_starts=STARTS)
    for row, start in enumerate(STARTS):
        n = min(k, 150 - start)
        alone = attnfast.attention_topk(query[row], key[row, :, start:], n)
        assert (indices[row, ..., :n] == alone.indices + start).all()
        assert (indices[row, ..., n:] == -1).all() and not weights[row, ..., n:].any()
        np.testing.assert_allclose(weights[row, ..., :n], alone.weights, rtol=2e-5)


@pytest.mark.parametrize("mask", [False, True])
def test_a_global_token_in_the_padding_is_not_seen(mask, rng):
    """Whether tokens are gathered or, beside a mask, found where they are."""
    q, k, v = qkv(rng, 150, 150, 24, batch=(4,))
    options = {"mask": np.ones((1, 150), bool)} if mask else {}
    tokens = [0, 36, 37, 149]
    result = attnfast.local_attention(
        *(q, k, v, 2), global_tokens=tokens, kv_starts=STARTS, **RESULTS, **options
    )
    for row, start in enumerate(STARTS):
        weights = result.weights[row]
        assert not weights[..., :start].any()
        seen = [token for token in tokens if token >= start]
        assert (weights[..., seen] > 0).all()
        sums = weights.sum(axis=-1)
        np.testing.assert_allclose(sums, np.full_like(sums, start < 150), rtol=1e-5)
        assert np.isneginf(result.lse[row]).all() == (start == 150)
