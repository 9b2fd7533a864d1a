"""What users hold and would send to another process survives pickling and copying."""

import copy
import pickle

import numpy as np
import pytest

import attnfast
from attnfast import layers
from support.arrays import assert_same, qkv, randn, same_bits

pytestmark = pytest.mark.quick


COPIES = {
    **{f"pickle {n}": lambda x, n=n: pickle.loads(pickle.dumps(x, n)) for n in range(2, 6)},
    "deepcopy": copy.deepcopy,
}


KERAS = (layers.Attention, layers.AdditiveAttention)


EACH = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


@EACH
def test_block_mask(copied, rng):
    q, k, v = qkv(rng, 40, 60)
    mask = attnfast.BlockMask(rng.random((2, 3, 4)) < 0.5, (16, 15))
    again = copied(mask)
    assert again.block_size == mask.block_size and same_bits(again.blocks, mask.blocks)
    assert not again.blocks.flags.writeable
    expected = attnfast.attention(q, k, v, mask=mask)
    assert same_bits(attnfast.attention(q, k, v, mask=again), expected)


@EACH
@pytest.mark.parametrize(
    "layer",
    [
        layers.MultiHeadAttention(16, num_heads=2, num_kv_heads=1, seed=0),
        layers.LuongAttention(16, score="general", seed=0),
        layers.BahdanauAttention(16, 16, 8, seed=0),
        layers.Attention(),
        layers.AdditiveAttention(16),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers(layer, copied, rng):
    x, y = randn(rng, (2, 5, 16)), randn(rng, (2, 7, 16))
    arguments = ([x, y],) if isinstance(layer, KERAS) else (x, y)
    again = copied(layer)
    assert type(again) is type(layer)
    assert_same(layer(*arguments), again(*arguments))


@EACH
def test_results(copied, rng):
    q, k, v = qkv(rng, 9, 8)
    for result in (
        attnfast.attention(q, k, v, return_lse=True),
        attnfast.attention(q, k, v, return_lse=True, return_weights=True),
        attnfast.attention_topk(q, k, 3),
        attnfast.plan(q, k, v),
        attnfast.plan(q, k, v, return_blocks=True),
    ):
        again = copied(result)
        assert type(again) is type(result)
        for name, a, b in zip(result._fields, result, again, strict=True):
            assert a is b or a == b if np.ndim(a) == 0 else same_bits(a, b), name


@EACH
def test_functions(copied):
    for name in attnfast.__all__:
        function = getattr(attnfast, name)
        assert copied(function) is function or isinstance(function, str)
