"""The reference of local, additive, packed, top-k attention and importance: by hand, by loops."""

import math

import numpy as np
import pytest

from attnfast import AttentionResult, reference
from support.arrays import qkv

pytestmark = pytest.mark.quick


FLAGS = {"return_lse": True, "return_weights": True}


def visible(lq, lk, window_size, **options):
    """Which pairs have weight in local attention when all scores are equal, as 0 and 1."""
    zeros = np.zeros((lq, 1)), np.zeros((lk, 1)), np.zeros((lk, 1))
    weights = reference.local_attention(*zeros, window_size, **FLAGS, **options).weights
    return (weights > 0).astype(int).tolist()


class TestLocal:
    def test_a_window_is_that_of_attention(self, rng):
        q, k, v = qkv(rng, 6, 6)
        for window in (0, 2, (1, 0), (None, 1), -1, None):
            local = reference.local_attention(q, k, v, window, **FLAGS)
            plain = reference.attention(q, k, v, window_size=window, **FLAGS)
            for a, b in zip(local, plain, strict=True):
                np.testing.assert_array_equal(a, b)

    def test_dilation_takes_every_dth_key(self):
        assert visible(1, 9, 1, dilation=3, q_offset=4) == [[0, 1, 0, 0, 1, 0, 0, 1, 0]]
        assert visible(1, 9, (2, 1), dilation=2, q_offset=5) == [[0, 1, 0, 1, 0, 1, 0, 1, 0]]
        assert visible(2, 6, (None, 0), dilation=2, q_offset=4) == [
            [1, 0, 1, 0, 1, 0],
            [0, 1, 0, 1, 0, 1],
        ]
        assert visible(1, 6, None, dilation=4, q_offset=-3) == [[0, 1, 0, 0, 0, 1]]

    def test_dilation_per_head(self):
        q, k = np.zeros((4, 1, 1)), np.zeros((2, 7, 1))  # two query heads for each key head
        _, _, weights = reference.local_attention(
            q, k, k, 1, dilation=[1, 2, 3, 1], q_offset=3, **FLAGS
        )
        assert (weights[:, 0] > 0).astype(int).tolist() == [
            [0, 0, 1, 1, 1, 0, 0],
            [0, 1, 0, 1, 0, 1, 0],
            [1, 0, 0, 1, 0, 0, 1],
            [0, 0, 1, 1, 1, 0, 0],
        ]

    @pytest.mark.parametrize("tokens", [[2], [2, 2], [False, False, True, False]], ids=str)
    def test_a_global_token_is_seen_by_all_and_sees_all(self, tokens):
        assert visible(4, 4, 0, global_tokens=tokens) == [
            [1, 0, 1, 0],
            [0, 1, 1, 0],
            [1, 1, 1, 1],
            [0, 0, 1, 1],
        ]
        assert visible(4, 4, 0, global_tokens=tokens, is_causal=True) == [
            [1, 0, 0, 0],
            [0, 1, 0, 0],
            [1, 1, 1, 0],
            [0, 0, 1, 1],
        ]

    def test_a_query_is_global_by_its_place(self):
        assert visible(3, 4, 0, global_tokens=[0, 3], q_offset=2) == [
            [1, 0, 1, 1],
            [1, 1, 1, 1],
            [1, 0, 0, 1],  # beyond the last key
        ]
        assert visible(2, 2, 0, global_tokens=[0], q_offset=-1) == [[1, 0], [1, 1]]
        assert visible(2, 3, 0, global_tokens=[], q_offset=0) == [[1, 0, 0], [0, 1, 0]]

    def test_global_tokens_per_batch_row(self):
        x = np.zeros((2, 1, 3, 1))
        for tokens in ([[0], [2]], [[True, False, False], [False, False, True]]):
            weights = reference.local_attention(x, x, x, 0, global_tokens=tokens, **FLAGS).weights
            assert (weights[:, 0] > 0).astype(int).tolist() == [
                [[1, 1, 1], [1, 1, 0], [1, 0, 1]],
                [[1, 0, 1], [0, 1, 1], [1, 1, 1]],
            ]

    def test_lengths_and_masks_bound_global_tokens_too(self):
        assert visible(3, 3, 0, global_tokens=[0, 2], kv_lengths=[2], q_lengths=[2]) == [
            [1, 1, 0],
            [1, 1, 0],
            [0, 0, 0],
        ]
        assert visible(2, 2, 0, global_tokens=[0], mask=[[True], [False]]) == [[1, 1], [0, 0]]

    def test_integer_centers_move_the_window(self):
        assert visible(3, 5, 1, centers=[4, 0, -1]) == [
            [0, 0, 0, 1, 1],
            [1, 1, 0, 0, 0],
            [1, 0, 0, 0, 0],
        ]
        assert visible(2, 5, (0, 2), centers=3) == [[0, 0, 0, 1, 1]] * 2
        assert visible(3, 3, 1, centers=[1, 1, 1], is_causal=True) == [
            [1, 0, 0],
            [1, 1, 0],
            [1, 1, 1],
        ]

    def test_real_centers_bound_the_window_as_real_numbers(self):
        assert visible(3, 5, 1, centers=[1.5, 2.0, 2.25]) == [
            [0, 1, 1, 0, 0],
            [0, 1, 1, 1, 0],
            [0, 0, 1, 1, 0],
        ]

    def test_local_p_by_hand(self):
        # Equal scores: each of keys 1, 2, 3 has weight 1/3 before the Gaussian about 2 with
        # sigma = 1 (half of the window).
        x = np.zeros((1, 1))
        keys, values = np.zeros((5, 1)), np.array([[100.0], [1.0], [2.0], [4.0], [100.0]])
        output, lse, weights = reference.local_attention(
            x, keys, values, 2, sigma=1.0, centers=[2.0], **FLAGS
        )
        assert weights.shape == (1, 5) and (weights > 0).all()
        output, lse, weights = reference.local_attention(
            x, keys, values, 1, sigma=1.0, centers=[2.0], **FLAGS
        )
        side = math.exp(-0.5) / 3
        np.testing.assert_allclose(weights, [[0, side, 1 / 3, side, 0]], rtol=1e-15)
        np.testing.assert_allclose(output, [[5 * side + 2 / 3]], rtol=1e-15)
        np.testing.assert_allclose(lse, [math.log(3)], rtol=1e-15)

    @pytest.mark.parametrize("seed", range(4))
    def test_against_loops(self, seed):
        rng = np.random.default_rng(seed)
        q, k, v = qkv(rng, 7, 11, 3, 2, heads=4, kv_heads=2)
        offset, dilation = rng.integers(-3, 8, 2), rng.integers(1, 4, 4)
        tokens = rng.random((2, 11)) < 0.2
        output, lse, _ = reference.local_attention(
            *(q, k, v),
            (2, 1),
            global_tokens=tokens,
            dilation=dilation,
            q_offset=offset,
            kv_lengths=[11, 6],
            **FLAGS,
        )
        for b, h, i in np.ndindex(2, 4, 7):
            p, d, scores = i + int(offset[b]), int(dilation[h]), {}
            near = {p + d * t for t in range(-2, 2)}
            for j in range((11, 6)[b]):
                if j in near or tokens[b, j] or (0 <= p < 11 and tokens[b, p]):
                    scores[j] = float(q[b, h, i].astype(float) @ k[b, h // 2, j]) / math.sqrt(3)
            total = sum(math.exp(s) for s in scores.values())
            expected = sum(math.exp(s) * v[b, h // 2, j] for j, s in scores.items())
            np.testing.assert_allclose(output[b, h, i], expected / (total or 1), rtol=1e-5)
            np.testing.assert_allclose(
                lse[b, h, i], math.log(total) if total else -math.inf, rtol=1e-5
            )


class TestAdditive:
    def test_two_keys_by_hand(self):
        # atanh(1/2) + 0 and atanh(1/2) + atanh(1/2): tanh of the sum is 0.8.
        a = math.atanh(0.5)
        output, lse, weights = reference.additive_attention(
            [[a]], [[0.0], [a]], [[4.0], [8.0]], [10 * math.log(3) / 3], **FLAGS
        )
        # Scores differ by 0.3 * 10 / 3 ln 3 = ln 3: weights 1/4 and 3/4.
        np.testing.assert_allclose(weights, [[0.25, 0.75]], rtol=1e-14)
        np.testing.assert_allclose(output, [[7.0]], rtol=1e-14)
        np.testing.assert_allclose(lse, [5 * math.log(3) / 3 + math.log(4)], rtol=1e-14)

    def test_it_is_not_scaled(self):
        lse = reference.additive_attention([[20.0] * 9], [[20.0] * 9], [[0.0]], **FLAGS).lse
        np.testing.assert_allclose(lse, [9.0], rtol=1e-15)

    def test_weight_and_bias_per_head(self):
        q, k = np.zeros((2, 1, 2)), np.zeros((1, 1, 2))
        score = {"score_weight": [[1.0, 2.0], [3.0, 4.0]], "score_bias": [[20.0, 0.0], [0.0, 30.0]]}
        lse = reference.additive_attention(q, k, k, **score, **FLAGS).lse
        np.testing.assert_allclose(lse, [[1.0], [4.0]], rtol=1e-15)
        score = {"score_weight": [1.0, 2.0], "score_bias": [0.0, -20.0]}
        lse = reference.additive_attention(q, k, k, **score, **FLAGS).lse
        np.testing.assert_allclose(lse, [[-2.0], [-2.0]], rtol=1e-15)

    def test_the_rest_is_that_of_attention(self, rng):
        """A head size of 1 and huge inputs: tanh is a sign, so are these scores of attention."""
        q = 100 + np.zeros((2, 5, 1))
        k, v = 1000 * np.sign(rng.standard_normal((2, 5, 1))), rng.standard_normal((2, 5, 3))
        options = {
            "mask": rng.random((5, 5)) < 0.8,
            "bias": rng.standard_normal((5, 5)),
            "is_causal": True,
            "window_size": (3, 0),
            "softcap": 0.7,
            "alibi_slopes": [0.1, 0.2],
            "sink_logits": [0.5, -1.0],
            "kv_lengths": [4],
            **FLAGS,
        }
        additive = reference.additive_attention(q, k, v, [0.3], **options)
        plain = reference.attention(q, k, v, scale=0.3 / 1e5, **options)
        for a, b in zip(additive, plain, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-13)


class TestTopK:
    def test_heaviest_first_and_equals_by_index(self):
        q, k = [[1.0]], [[1.0], [3.0], [2.0], [3.0], [0.0]]
        e = np.exp([1, 3, 2, 3, 0])
        indices, weights = reference.attention_topk(q, k, 4, scale=1.0)
        assert indices.tolist() == [[1, 3, 2, 0]]
        np.testing.assert_allclose(weights, [e[[1, 3, 2, 0]] / e.sum()], rtol=1e-14)
        indices, weights = reference.attention_topk(q, k, 1, scale=1.0, sink_logits=[2.0])
        assert indices.tolist() == [[1]]
        np.testing.assert_allclose(weights, [[e[1] / (e.sum() + e[2])]], rtol=1e-14)

    def test_fewer_keys_than_k(self):
        zeros = np.zeros((2, 3, 1))
        indices, weights = reference.attention_topk(zeros, zeros, 3, is_causal=True)
        assert indices.tolist() == [[[0, -1, -1], [0, 1, -1], [0, 1, 2]]] * 2
        np.testing.assert_allclose(
            weights[0], [[1, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]], rtol=1e-15
        )
        indices, weights = reference.attention_topk(zeros, zeros, 2, kv_lengths=[0])
        assert (indices == -1).all() and not weights.any()
        assert reference.attention_topk(zeros, zeros, 0)[0].shape == (2, 3, 0)

    def test_hidden_keys_are_behind_visible_ones_of_any_score(self):
        k = [[1.0], [-5.0], [np.nan]]
        indices, weights = reference.attention_topk([[1.0]], k, 3, mask=[False, True, False])
        assert indices.tolist() == [[1, -1, -1]] and weights.tolist() == [[1.0, 0.0, 0.0]]


class TestImportance:
    def test_columns_add_up_to_the_number_of_queries(self, rng):
        q, k, _ = qkv(rng, 6, 4, heads=6, kv_heads=2)
        total = reference.key_importance(q, k)
        assert total.shape == (2, 6, 4)
        np.testing.assert_allclose(total.sum(axis=-1), 6, rtol=1e-14)
        weights = reference.attention_weights(q, k)
        np.testing.assert_allclose(total, weights.sum(axis=-2), rtol=1e-14)
        grouped = reference.key_importance(q, k, per_kv_head=True)
        assert grouped.shape == (2, 2, 4)
        np.testing.assert_allclose(grouped[:, 1], total[:, 3:].sum(axis=1), rtol=1e-14)

    def test_by_hand(self):
        zeros = np.zeros((3, 1))
        total = reference.key_importance(zeros, zeros, is_causal=True)
        np.testing.assert_allclose(total, [1 + 1 / 2 + 1 / 3, 1 / 2 + 1 / 3, 1 / 3], rtol=1e-15)
        assert reference.key_importance(zeros, zeros, per_kv_head=True).shape == (3,)


class TestVarlen:
    @pytest.mark.parametrize("q_offset", [0, "end", [3, -1, 2]], ids=str)
    def test_each_sequence_alone(self, q_offset, rng):
        q, k, v = (rng.standard_normal(s) for s in [(9, 4, 3), (12, 2, 3), (12, 2, 5)])
        cu_q, cu_k, slopes = [0, 4, 4, 9], [0, 5, 8, 12], rng.random((3, 4))
        result = reference.attention_varlen(
            q,
            k,
            v,
            cu_q,
            cu_k,
            is_causal=True,
            q_offset=q_offset,
            alibi_slopes=slopes,
            return_lse=True,
        )
        assert isinstance(result, AttentionResult) and result.weights is None
        assert result.output.shape == (9, 4, 5) and result.lse.shape == (9, 4)
        for s, (a, b) in enumerate([(0, 4), (4, 4), (4, 9)]):
            c, d = cu_k[s : s + 2]
            rows = (x.swapaxes(0, 1) for x in (q[a:b], k[c:d], v[c:d]))
            alone = reference.attention(
                *rows,
                is_causal=True,
                q_offset=q_offset[s] if isinstance(q_offset, list) else q_offset,
                alibi_slopes=slopes[s],
                return_lse=True,
            )
            np.testing.assert_array_equal(result.output[a:b], alone.output.swapaxes(0, 1))
            np.testing.assert_array_equal(result.lse[a:b], alone.lse.swapaxes(0, 1))

    def test_sequences_by_hand(self):
        q, k = np.zeros((3, 1, 1)), np.zeros((4, 1, 1))
        v = np.array([1.0, 2.0, 4.0, 8.0]).reshape(4, 1, 1)
        output = reference.attention_varlen(q, k, v, [0, 1, 3], [0, 3, 4])
        np.testing.assert_allclose(output.ravel(), [7 / 3, 8, 8], rtol=1e-15)
        empty = reference.attention_varlen(q[:0], k[:0], v[:0], [0], [0])
        assert empty.shape == (0, 1, 1)

    def test_a_position_must_be_given_where_it_is_not_evident(self):
        x = np.zeros((3, 1, 1))
        reference.attention_varlen(x, x, x, [0, 1, 3], [0, 1, 3], is_causal=True)
        with pytest.raises(ValueError, match="q_offset"):
            reference.attention_varlen(x, x, x, [0, 1, 3], [0, 2, 3], is_causal=True)


class Blocks:
    """Stands for a mask that is kept as blocks."""

    def dense(self, lq, lk):
        return np.add.outer(np.arange(lq) // 2, np.arange(lk) // 2) % 2 == 0


def test_a_mask_may_be_kept_as_blocks(rng):
    q, k, v = qkv(rng, 5, 7)
    dense = Blocks().dense(5, 7)
    assert dense.shape == (5, 7) and 0 < dense.sum() < 35
    for a, b in zip(
        reference.attention(q, k, v, mask=Blocks(), **FLAGS),
        reference.attention(q, k, v, mask=dense, **FLAGS),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
def test_compute_dtype_is_the_dtype_of_everything(dtype, rng):
    q, k, v = qkv(rng, 4, 4, 3)
    numbers = {"score_weight": np.ones(3), "score_bias": np.ones((2, 3))}
    p = {"centers": rng.uniform(0, 3, 4), "sigma": np.float64(1.5)}
    cu = [0, 1, 2]
    options = {**FLAGS, "compute_dtype": dtype}
    results = [
        *reference.local_attention(q, k, v, 2, **p, **options),
        *reference.additive_attention(q, k, v, **numbers, **options),
        reference.attention_topk(q, k, 2, compute_dtype=dtype)[1],
        reference.key_importance(q, k, compute_dtype=dtype),
        *reference.attention_varlen(q[0], k[0], v[0], cu, cu, return_lse=True, compute_dtype=dtype)[
            :2
        ],
    ]
    assert {a.dtype for a in results} == {np.dtype(dtype)}


@pytest.mark.parametrize("lq", [0, 2])
@pytest.mark.parametrize("lk", [0, 3])
@pytest.mark.parametrize("heads", [0, 2])
@pytest.mark.parametrize("d", [0, 4])
def test_empty_axes(lq, lk, heads, d):
    q, k, v = np.ones((2, heads, lq, d)), np.ones((2, heads, lk, d)), np.ones((2, heads, lk, 5))
    local = {"q_offset": 0, "global_tokens": np.zeros((2, lk), bool), "dilation": [1] * heads}
    for output in (
        reference.local_attention(q, k, v, 2, **local),
        reference.local_attention(q, k, v, 2, centers=np.zeros(lq)),
        reference.additive_attention(q, k, v),
    ):
        assert output.shape == (2, heads, lq, 5)
        assert output.any() == (output.size > 0 and lk > 0)
    indices, weights = reference.attention_topk(q, k, lk)
    assert indices.shape == weights.shape == (2, heads, lq, lk)
    assert reference.key_importance(q, k, per_kv_head=True).shape == (2, heads, lk)
