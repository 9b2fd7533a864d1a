"""What ``MultiHeadAttention`` and its parts refuse, and what they say."""

import numpy as np
import pytest

from attnfast.layers import Linear, MultiHeadAttention, Projections

pytestmark = pytest.mark.quick


X = np.zeros((2, 5, 32), np.float32)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            (X.astype(np.float64),),
            {},
            TypeError,
            r"query must be float32 .*query.astype\(np.float32\)",
        ),
        ((X, X.astype(np.float16)), {}, TypeError, "key must be float32 .*float16"),
        ((X, X, X[..., :9]), {}, ValueError, r"value must have shape \(..., length, 32\)"),
        ((X[0, 0],), {}, ValueError, "query must have shape"),
        ((np.ma.masked_array(X),), {}, TypeError, "query is a masked array"),
        ((X,), {"key_mask": np.ones((2, 5))}, TypeError, "key_mask must be bool"),
        ((X,), {"key_mask": np.ones(5, bool)}, ValueError, r"key_mask must have shape \(2, 5\)"),
        ((X,), {"mask": np.ones((2, 5, 5), bool)}, ValueError, r"mask\[..., None, :, :\]"),
        ((X,), {"bias": np.ones((4, 5, 5))}, ValueError, "bias has shape"),
        ((X,), {"mask": np.ones((5, 5))}, TypeError, "mask must be bool"),
        (
            (X,),
            {"mask": np.ones((5, 5)), "key_mask": np.eye(2, 5, dtype=bool)[::-1]},
            TypeError,
            r"mask must be bool, .*float64 of 0 and 1: write mask != 0",
        ),
        ((X,), {"return_weights": "median"}, ValueError, "return_weights must be"),
        (
            (X,),
            {"causal": True},
            TypeError,
            "causal is not an argument of MultiHeadAttention: write is_causal=True",
        ),
        (
            (X,),
            {"out": X},
            TypeError,
            "out is not an argument of MultiHeadAttention: results are new",
        ),
        ((X, X[:, :3]), {"is_causal": True}, ValueError, "q_offset must be given"),
        ((X,), {"kv_lengths": [5, 6]}, ValueError, "kv_lengths must be within"),
    ],
)
def test_bad_calls(arguments, options, error, message):
    with pytest.raises(error, match=message):
        MultiHeadAttention(32, 4, seed=0)(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((32, 5), {}, ValueError, "num_heads must divide embed_dim, 32, got 5"),
        ((32, 4), {"num_kv_heads": 3}, ValueError, "num_kv_heads must divide num_heads, 4, got 3"),
        ((32, 0), {}, ValueError, "num_heads must be at least 1"),
        ((32.0, 4), {}, TypeError, "embed_dim must be an int"),
        ((32, 4), {"key_dim": -1}, ValueError, "key_dim must be at least 1"),
        ((32, 4), {"dtype": np.float16}, TypeError, "dtype must be float32 or float64"),
    ],
)
def test_bad_sizes(arguments, options, error, message):
    with pytest.raises(error, match=message):
        MultiHeadAttention(*arguments, **options)


def test_projections_that_do_not_fit():
    def linear(n_in, n_out, dtype=np.float32):
        return Linear(np.zeros((n_in, n_out), dtype))

    good = [linear(8, 12), linear(8, 6), linear(8, 4), linear(8, 8)]
    assert Projections(*good, 4, 2).value_head_dim == 2
    for at, bad, message in (
        (0, linear(8, 10), "query must have a multiple of 4 outputs for 4 heads, got 10"),
        (1, linear(8, 9), "key must have 6 outputs, 2 heads of 3 like query, got 9"),
        (2, linear(8, 5), "value must have a multiple of 2 outputs for 2 heads, got 5"),
        (3, linear(9, 8), "output must have 8 inputs, 4 heads of 2 like value, got 9"),
        (3, linear(8, 8, np.float64), "output must be float32"),
    ):
        maps = [*good[:at], bad, *good[at + 1 :]]
        with pytest.raises((ValueError, TypeError), match=message):
            Projections(*maps, 4, 2)
    with pytest.raises(ValueError, match="must be given together"):
        Projections(*good, 4, 2, extra_key=np.zeros(6, np.float32))
    with pytest.raises(ValueError, match=r"extra_value must have shape \(4,\)"):
        Projections(*good, 4, 2, np.zeros(6, np.float32), np.zeros(5, np.float32))
    with pytest.raises(ValueError, match=r"bias must have shape \(3,\)"):
        Linear(np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(ValueError, match="weight must have shape"):
        Linear(np.zeros(3))
    with pytest.raises(TypeError, match="weight must be float32 or float64"):
        Linear(np.zeros((2, 3), int))
