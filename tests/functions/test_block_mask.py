"""BlockMask: masks of whole blocks, whose hidden blocks cost nothing."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings

import attnfast
from attnfast import BlockMask
from support.arrays import (
    DTYPE_IDS,
    DTYPES,
    qkv,
    same_batch,
    same_bits,
)
from support.criterion import SCORE_OPTIONS, Criterion
from support.drawn_call import Call
from support.draws import SIZES, block_mask, block_masked_calls
from support.layouts import paired

EXAMPLES = settings.default.max_examples
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
FLAGS = {"return_lse": True, "return_weights": True}


@pytest.mark.quick
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_any_call(dtype, each_isa):
    @settings(max_examples=EXAMPLES // 2 if dtype == np.float32 else EXAMPLES // 4)
    @given(call=block_masked_calls(dtypes=(dtype,)))
    def run(call: Call) -> None:
        criterion = call.criterion()
        each_isa(lambda: criterion.check(call.run()))

    run()


@pytest.mark.usefixtures("isa")
class TestEveryFunction:
    @pytest.mark.parametrize("lq", [1, 100])
    def test_all_that_take_a_mask(self, lq, rng):
        """With equal scores the weights show who sees what."""
        q, k = np.zeros((2, 4, lq, 2), np.float32), np.zeros((2, 2, 200, 2), np.float32)
        for size, leading in paired(SIZES, [(), (4,), (2, 1)], times=1):
            mask = block_mask(rng, lq, 200, size, *leading)
            dense = np.broadcast_to(mask.dense(lq, 200), (2, 4, lq, 200))
            seen = attnfast.attention(q, k, k, mask=mask, return_weights=True).weights > 0
            assert (seen == dense).all()
            assert ((attnfast.attention_weights(q, k, mask=mask) > 0) == dense).all()
            biased = attnfast.attention_weights(q, k, mask=mask, stage="biased")
            assert (np.isneginf(biased) == ~dense).all()
            local = attnfast.local_attention(
                q, k, k, (20, 10), mask=mask, q_offset=30, return_weights=True
            )
            near = np.arange(200) - np.arange(lq)[:, None] - 30
            assert ((local.weights > 0) == (dense & (near >= -20) & (near <= 10))).all()
            additive = attnfast.additive_attention(q, k, k, mask=mask, return_weights=True)
            assert ((additive.weights > 0) == dense).all()
            named = attnfast.attention_topk(q, k, 5, mask=mask).indices
            order = np.argsort(~dense, axis=-1, kind="stable")[..., :5]
            expected = np.where(np.take_along_axis(dense, order, axis=-1), order, -1)
            assert (named == expected).all()
            total = attnfast.key_importance(q, k, mask=mask)
            assert ((total > 0) == dense.any(axis=-2)).all()

    def test_local_forms(self, rng):
        q, k, v = qkv(rng, 130, 130, heads=4, kv_heads=2)
        mask = block_mask(rng, 130, 130, 16, 4)
        for options in (
            {"global_tokens": [0, 77]},
            {"dilation": [1, 2, 3, 1]},
            {"dilation": 5, "global_tokens": [[1], [129]]},
            {"centers": rng.integers(0, 130, (4, 130))},
            {"centers": rng.uniform(0, 130, (4, 130)), "sigma": 5.25},
        ):
            options = {"window_size": (12, 9), "mask": mask, **options, **FLAGS}
            result = attnfast.local_attention(q, k, v, **options)
            Criterion(q, k, v, function="local_attention", **options).check(result)

    def test_additive(self, rng):
        q, k, v = qkv(rng, 60, 90)
        options = {"mask": block_mask(rng, 60, 90, (16, 32), 2, 1), **FLAGS}
        result = attnfast.additive_attention(q, k, v, **options)
        Criterion(q, k, v, function="additive_attention", **options).check(result)


@pytest.mark.quick
class TestDense:
    @pytest.mark.parametrize("size", SIZES, ids=str)
    @pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
    def test_each_pair_has_the_bool_of_its_block(self, leading, size, rng):
        bq, bk = np.broadcast_to(size, 2)
        for lq, lk in [(1, 1), (100, 64), (5, 200)]:
            mask = block_mask(rng, lq, lk, size, *leading)
            dense = mask.dense(lq, lk)
            assert dense.shape == (*leading, lq, lk) and dense.dtype == bool
            for i, j in [(0, 0), (lq - 1, lk - 1), (lq // 2, lk // 3)]:
                assert (dense[..., i, j] == mask.blocks[..., i // bq, j // bk]).all()
            repeated = np.repeat(np.repeat(mask.blocks, bq, axis=-2), bk, axis=-1)
            assert (dense == repeated[..., :lq, :lk]).all()

    def test_literal(self):
        mask = BlockMask([[True, False], [False, True]], (2, 3))
        assert mask.dense(3, 5).astype(int).tolist() == [
            [1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0],
            [0, 0, 0, 1, 1],
        ]
        assert mask.block_size == (2, 3)

    def test_it_keeps_a_copy(self):
        blocks = np.ones((2, 2), bool)
        mask = BlockMask(blocks, 4)
        blocks[0, 0] = False
        assert mask.blocks.all() and mask.dense(8, 8).all()

    def test_empty(self):
        mask = BlockMask(np.ones((0, 3), bool), 4)
        assert mask.dense(0, 12).shape == (0, 12)
        q, k = np.ones((0, 8), np.float32), np.ones((12, 8), np.float32)
        assert attnfast.attention(q, k, k, mask=mask).shape == (0, 8)
        output = attnfast.attention(k, q, q, mask=BlockMask(np.ones((3, 0), bool), 4))
        assert output.shape == (12, 8) and not output.any()


class TestFromMask:
    @pytest.mark.parametrize("size", SIZES, ids=str)
    @pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
    def test_it_undoes_dense(self, leading, size, rng):
        for lq, lk in [(1, 1), (100, 64), (5, 200)]:
            mask = block_mask(rng, lq, lk, size, *leading)
            again = BlockMask.from_mask(mask.dense(lq, lk), size)
            assert again.block_size == mask.block_size
            assert same_bits(again.blocks, mask.blocks)

    @pytest.mark.parametrize("size", [2, 7, (3, 5), 64])
    def test_a_block_that_is_partly_visible_is_an_error(self, size, rng):
        bq, bk = np.broadcast_to(size, 2)
        for lq, lk in [(100, 64), (65, 200)]:
            for _ in range(20):
                dense = block_mask(rng, lq, lk, size, 2).dense(lq, lk).copy()
                at = (rng.integers(2), rng.integers(lq), rng.integers(lk))
                i, j = at[1] // bq, at[2] // bk
                alone = min(bq, lq - i * bq) * min(bk, lk - j * bk) == 1
                dense[at] = ~dense[at]
                if not alone:
                    with pytest.raises(ValueError, match=r"^mask"):
                        BlockMask.from_mask(dense, size)

    def test_blocks_of_one_are_any_mask(self, rng):
        dense = rng.random((30, 40)) < 0.5
        assert same_bits(BlockMask.from_mask(dense, 1).blocks, dense)


@pytest.mark.quick
class TestFromFunction:
    def test_it_gets_rows_and_columns_of_blocks(self):
        shapes = []

        def visible(i, j):
            shapes.append((i.shape, j.shape))
            return (i - j) % 3 == 0

        mask = BlockMask.from_function(visible, 100, 64, (16, 10))
        assert shapes == [((7, 1), (1, 7))]
        i, j = np.arange(100)[:, None] // 16, np.arange(64) // 10
        assert (mask.dense(100, 64) == ((i - j) % 3 == 0)).all()

    def test_it_may_broadcast_and_give_heads(self):
        first = BlockMask.from_function(lambda i, j: j == 0, 10, 10, 2)
        assert first.blocks.shape == (5, 5) and (first.blocks == (np.arange(5) == 0)).all()
        heads = np.arange(3)[:, None, None]
        mask = BlockMask.from_function(lambda i, j: (i + j) % 3 == heads, 10, 10, 2)
        assert mask.blocks.shape == (3, 5, 5) and (mask.blocks.sum(axis=0) == 1).all()


@pytest.mark.quick
class TestBigBird:
    def test_its_parts(self):
        mask = BlockMask.bigbird(1000, 1000, 50, window_blocks=5, global_blocks=3, random_blocks=4)
        i, j = np.arange(20)[:, None], np.arange(20)
        ends = (np.arange(20) < 2) | (np.arange(20) >= 19)
        fixed = (abs(i - j) <= 2) | ends | ends[:, None]
        assert mask.blocks.shape == (20, 20) and mask.block_size == (50, 50)
        assert mask.blocks[fixed].all()
        at_random = (mask.blocks & ~fixed).sum(axis=-1)
        assert (at_random == np.minimum(4, (~fixed).sum(axis=-1))).all()

    def test_without_random_blocks_it_is_fixed(self):
        mask = BlockMask.bigbird(320, 640, 64, global_blocks=0, random_blocks=0, window_blocks=1)
        assert (mask.blocks == np.eye(5, 10, dtype=bool)).all()
        everything = BlockMask.bigbird(300, 300, 64, random_blocks=100)
        assert everything.blocks.all()

    def test_seed_and_heads(self):
        one, again, other = (BlockMask.bigbird(4096, 4096, 64, seed=s).blocks for s in (1, 1, 2))
        assert (one == again).all() and (one != other).any()
        heads = BlockMask.bigbird(4096, 4096, 64, heads=4).blocks
        assert heads.shape == (4, 64, 64)
        for a in range(4):
            for b in range(a):
                assert (heads[a] != heads[b]).any()

    @pytest.mark.usefixtures("isa")
    def test_attention_under_it(self, rng):
        q, k, v = qkv(rng, 400, 400, heads=4, kv_heads=2, batch=())
        mask = BlockMask.bigbird(400, 400, 32, heads=4)
        options = {"mask": mask, "is_causal": True, **FLAGS}
        Criterion(q, k, v, **options).check(attnfast.attention(q, k, v, **options))


def zeros(*shape):
    return np.zeros(shape, np.float32)


@settings(max_examples=EXAMPLES // 3)
@given(call=block_masked_calls())
def test_pairs_of_any_plan(call, each_isa):
    options = {n: x for n, x in call.options.items() if n in SCORE_OPTIONS and n != "bias"}
    unbiased = Call(call.query, call.key, call.value, options)
    visible = (~unbiased.criterion().excluded).sum()
    query, key, _ = same_batch(call.query, call.key, call.value)
    every_pair = query.shape[:-1] + key.shape[-2:-1]

    def compare() -> None:
        plan = attnfast.plan(call.query, call.key, call.value, **options)
        assert plan.visible_pairs == visible
        assert plan.visible_pairs <= plan.visited_pairs <= np.prod(every_pair)

    each_isa(compare)


@pytest.mark.usefixtures("isa")
class TestPlan:
    """Work is in proportion to the visible blocks."""

    @pytest.mark.parametrize("size", [64, 128, (64, 256), (256, 64)], ids=str)
    def test_hidden_blocks_cost_nothing(self, size, rng):
        x = zeros(1, 2, 2048, 64)
        mask = block_mask(rng, 2048, 2048, size, 2, density=0.15)
        plan = attnfast.plan(x, x, x, mask=mask)
        assert plan.visible_pairs == mask.dense(2048, 2048).sum()
        assert plan.visited_pairs <= 1.3 * plan.visible_pairs
        nothing = BlockMask(np.zeros_like(mask.blocks), size)
        plan = attnfast.plan(x, x, x, mask=nothing)
        assert plan.visible_pairs == plan.visited_pairs == plan.flops == 0

    def test_bigbird_costs_in_proportion_to_the_length(self):
        pairs = []
        for n in (8192, 65536):
            x = zeros(1, 1, n, 64)
            mask = BlockMask.bigbird(n, n, 64, global_blocks=0)
            pairs.append(attnfast.plan(x, x, x, mask=mask).visited_pairs)
        assert pairs[1] <= 8.5 * pairs[0]

    def test_one_query(self, rng):
        q, k = zeros(1, 2, 1, 64), zeros(1, 2, 8192, 64)
        mask = block_mask(rng, 1, 8192, (1, 64), 2, density=0.1)
        plan = attnfast.plan(q, k, k, mask=mask)
        assert plan.visited_pairs <= 1.1 * plan.visible_pairs
        assert plan.visible_pairs == mask.dense(1, 8192).sum()

    @pytest.mark.parametrize("lq", [1, 300])
    @pytest.mark.parametrize(
        "options",
        [{}, {"mask": True}, {"is_causal": True, "q_offset": 40}, {"kv_lengths": [100, 0]}],
        ids=["plain", "mask", "causal", "lengths"],
    )
    def test_blocks(self, options, lq, rng):
        """The rectangles hold every visible pair, none twice, and what the plan counts."""
        q, k = zeros(2, 4, lq, 16), zeros(2, 2, 250, 16)
        options = dict(options)
        if "mask" in options:
            options["mask"] = block_mask(rng, lq, 250, (64, 50), 2, 1)
        plan = attnfast.plan(q, k, k, return_blocks=True, **options)
        without = attnfast.plan(q, k, k, **options)
        assert without.blocks is None and plan[:-1] == without[:-1]
        assert plan._fields[-1] == "blocks"
        assert plan.blocks.dtype == np.int64 and plan.blocks.shape[1:] == (7,)
        visits = np.zeros((2, 2, lq, 250), int)
        for row, head, first_q, end_q, first_k, end_k, step in plan.blocks:
            assert step == 1
            assert 0 <= first_q < end_q <= lq and 0 <= first_k < end_k <= 250
            visits[row, head, first_q:end_q, first_k:end_k] += 1
        assert visits.max() <= 1
        assert 2 * visits.sum() == plan.visited_pairs
        seen = attnfast.attention_weights(q, k, **options)[:, ::2] > 0
        assert visits[seen].all()


def test_a_mask_that_does_not_fit(rng):
    q, k, v = qkv(rng, 3, 5, batch=(2,), heads=4, kv_heads=2)
    attnfast.attention(q, k, v, mask=BlockMask(np.ones((2, 3), bool), 2))
    for shape in [(2, 2), (1, 3), (3, 3), (3, 2, 3), (3, 1, 2, 3), (1, 1, 1, 2, 3)]:
        mask = BlockMask(np.ones(shape, bool), 2)
        out = np.full((2, 4, 3, 16), 7, np.float32)
        with pytest.raises(ValueError, match=r"^mask"):
            attnfast.attention(q, k, v, mask=mask, out=out)
        assert (out == 7).all()
        for call in (
            lambda mask=mask: attnfast.attention_weights(q, k, mask=mask),
            lambda mask=mask: attnfast.plan(q, k, v, mask=mask),
            lambda mask=mask: attnfast.attention_topk(q, k, 2, mask=mask),
            lambda mask=mask: attnfast.key_importance(q, k, mask=mask),
            lambda mask=mask: attnfast.additive_attention(q, k, v, mask=mask),
            lambda mask=mask: attnfast.local_attention(q, k, v, 2, mask=mask, q_offset=0),
        ):
            with pytest.raises(ValueError, match=r"^mask"):
                call()
    for lq, lk in [(5, 5), (2, 5), (3, 7)]:
        with pytest.raises(ValueError, match=r"Lq|Lk|blocks"):
            BlockMask(np.ones((2, 3), bool), 2).dense(lq, lk)


def test_its_attributes_cannot_be_set():
    mask = BlockMask(np.ones((2, 2), bool), 4)
    with pytest.raises(AttributeError):
        mask.block_size = (0, 0)
    with pytest.raises(AttributeError):
        mask.blocks = np.ones((2, 2))
    with pytest.raises(ValueError, match="read-only"):
        mask.blocks[0, 0] = False


@pytest.mark.parametrize("size", [2**62, 2**63 - 1, 2**70])
def test_blocks_beyond_the_length_are_one_block(size):
    x = np.ones((4, 8))
    mask = BlockMask(np.ones((1, 1), bool), size)
    assert mask.dense(4, 4).all()
    assert (attnfast.attention(x, x, x, mask=mask) == 1).all()
    assert BlockMask.from_mask(np.ones((3, 3), bool), size).blocks.shape == (1, 1)
    with pytest.raises(ValueError, match=r"^mask"):
        attnfast.attention(x, x, x, mask=BlockMask(np.ones((0, 0), bool), size))
