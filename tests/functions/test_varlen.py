"""attention_varlen: many sequences, packed one after the other, each as if it were alone."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings

import attnfast
from attnfast import AttentionResult, reference
from support.arrays import DTYPE_IDS, DTYPES, compute_dtype, same_bits
from support.criterion import Criterion
from support.family_draws import packed, varlen_calls

EXAMPLES = settings.default.max_examples
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
MIXED = ([5, 0, 1, 130, 17, 1, 64], [70, 9, 0, 130, 300, 1, 65])


def alone(query, key, value, cu_q, cu_k, function=attnfast.attention, **options):
    """The rows of each sequence, and the result of attention on it by itself."""
    bounds = zip(itertools.pairwise(cu_q), itertools.pairwise(cu_k), strict=True)
    for s, ((a, b), (c, d)) in enumerate(bounds):
        own = dict(options)
        if np.ndim(own.get("q_offset")):
            own["q_offset"] = own["q_offset"][s]
        if np.ndim(own.get("alibi_slopes")) > 1:
            own["alibi_slopes"] = own["alibi_slopes"][s]
        rows = (x.swapaxes(0, 1) for x in (query[a:b], key[c:d], value[c:d]))
        result = function(*rows, return_lse=True, **own)
        yield slice(a, b), result.output.swapaxes(0, 1), result.lse.swapaxes(0, 1)


def check_alone(result, *arrays, **options):
    """Assert that every sequence has the bits that it has alone."""
    for s, (rows, output, lse) in enumerate(alone(*arrays, **options)):
        assert same_bits(result.output[rows], output), s
        assert same_bits(result.lse[rows], lse), s


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
@given(call=varlen_calls())
def test_any_call_has_the_bits_of_each_sequence_alone(call):
    arrays, options = call
    result = attnfast.attention_varlen(*arrays, return_lse=True, **options)
    check_alone(result, *arrays, **options)


@EACH_DTYPE
@pytest.mark.parametrize(
    "lengths", [([5, 0, 1, 50, 17], [70, 9, 0, 90, 65]), ([1] * 4, [9, 0, 33, 150])], ids=str
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True, "q_offset": "end"},
        {"window_size": (60, 5), "q_offset": 3, "sink_logits": [0.0, 1.0, -2.0, 3.0]},
        {"alibi_slopes": [0.1, 0.2, 0.4, -0.1], "q_offset": "end", "softcap": 2.0},
    ],
    ids=["plain", "causal", "window", "alibi"],
)
def test_against_the_reference(options, lengths, dtype, each_isa, rng):
    arrays = packed(rng, *lengths, 24, 9, heads=4, kv_heads=2, dtype=dtype)
    query, key, value, cu_q, cu_k = arrays
    criteria = []
    for (a, b), (c, d) in zip(itertools.pairwise(cu_q), itertools.pairwise(cu_k), strict=True):
        rows = (x.swapaxes(0, 1) for x in (query[a:b], key[c:d], value[c:d]))
        criteria.append((slice(a, b), Criterion(*rows, **options)))
    exact = reference.attention_varlen(*arrays, return_lse=True, **options)
    assert exact.output.shape == (len(query), 4, 9)

    def run():
        result = attnfast.attention_varlen(*arrays, return_lse=True, **options)
        assert isinstance(result, AttentionResult) and result.weights is None
        assert result.output.shape == exact.output.shape and result.output.dtype == dtype
        assert result.lse.shape == exact.lse.shape and result.lse.dtype == compute_dtype(dtype)
        for rows, criterion in criteria:
            output, lse = (x[rows].swapaxes(0, 1) for x in result[:2])
            criterion.check(AttentionResult(output, lse))

    each_isa(run)


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
class TestSequences:
    def test_literal(self):
        q, k = np.zeros((3, 1, 1)), np.zeros((4, 1, 1))
        v = np.array([1.0, 2.0, 4.0, 8.0]).reshape(4, 1, 1)
        output = attnfast.attention_varlen(q, k, v, [0, 1, 3], [0, 3, 4])
        np.testing.assert_allclose(output.ravel(), [7 / 3, 8, 8], rtol=1e-15)

    def test_one_sequence_is_attention(self, rng):
        q, k, v, cu_q, cu_k = packed(rng, [50], [90], heads=4)
        result = attnfast.attention_varlen(q, k, v, cu_q, cu_k)
        assert same_bits(
            result, attnfast.attention(*(a.swapaxes(0, 1) for a in (q, k, v))).swapaxes(0, 1)
        )

    def test_a_long_sequence_among_short_ones(self, rng):
        lengths = [1] * 100 + [2000] + [3] * 50
        arrays = packed(rng, lengths, lengths, 8)
        options = {"is_causal": True}
        result = attnfast.attention_varlen(*arrays, return_lse=True, **options)
        check_alone(result, *arrays, **options)
        one = packed(rng, [1], [20_000], 8)  # cut into several tasks
        check_alone(attnfast.attention_varlen(*one, return_lse=True), *one)

    @pytest.mark.parametrize("poison", [np.nan, np.inf, 1e38])
    def test_what_lies_in_one_sequence_does_not_reach_another(self, poison, rng):
        q, k, v, cu_q, cu_k = packed(rng, *MIXED)
        options = {"window_size": (200, 200), "q_offset": 0, "return_lse": True}
        clean = attnfast.attention_varlen(q, k, v, cu_q, cu_k, **options)
        for s in range(len(cu_q) - 1):
            dirty = [a.copy() for a in (q, k, v)]
            dirty[0][cu_q[s] : cu_q[s + 1]] = poison
            for a in dirty[1:]:
                a[cu_k[s] : cu_k[s + 1]] = poison
            result = attnfast.attention_varlen(*dirty, cu_q, cu_k, **options)
            others = np.ones(len(q), bool)
            others[cu_q[s] : cu_q[s + 1]] = False
            assert same_bits(result.output[others], clean.output[others])
            assert same_bits(result.lse[others], clean.lse[others])
            if cu_k[s] < cu_k[s + 1]:
                seen = result.lse[~others]
                assert (~np.isfinite(seen) | (abs(seen) > 1e30)).all()

    @EACH_DTYPE
    def test_a_query_that_sees_nothing(self, dtype, rng):
        arrays = packed(rng, [3, 4, 5], [7, 0, 6], dtype=dtype)
        output, lse, _ = attnfast.attention_varlen(*arrays, return_lse=True)
        assert not output[3:7].any() and np.isneginf(lse[3:7]).all()
        assert output[:3].any() and np.isfinite(lse[:3]).all() and np.isfinite(lse[7:]).all()
        sinks = [-1.5, 2.0]
        output, lse, _ = attnfast.attention_varlen(*arrays, return_lse=True, sink_logits=sinks)
        assert not output[3:7].any()
        np.testing.assert_allclose(lse[3:7], [sinks] * 4, rtol=1e-6)

    def test_a_position_per_sequence(self, rng):
        arrays = packed(rng, [3, 4, 5], [9, 9, 9])
        for offset in ([6, 0, -2], np.array([6, 5, 4], np.int8), "end", 4):
            options = {"is_causal": True, "q_offset": offset}
            result = attnfast.attention_varlen(*arrays, return_lse=True, **options)
            check_alone(result, *arrays, **options)
        same = packed(rng, [3, 4], [3, 4])
        attnfast.attention_varlen(*same, is_causal=True)
        for option in ({"is_causal": True}, {"window_size": 3}, {"alibi_slopes": [1.0, 1.0]}):
            with pytest.raises(ValueError, match=r"^q_offset"):
                attnfast.attention_varlen(*arrays, **option)

    @pytest.mark.parametrize("n", [0, 1, 3])
    @EACH_DTYPE
    def test_empty_sequences(self, dtype, n, rng):
        q, k, v, cu_q, cu_k = packed(rng, [0] * n, [0] * n, 8, 5, dtype=dtype)
        output, lse, _ = attnfast.attention_varlen(q, k, v, cu_q, cu_k, return_lse=True)
        assert output.shape == (0, 2, 5) and lse.shape == (0, 2) and output.dtype == dtype

    @pytest.mark.parametrize("empty", ["H", "D", "Dv"])
    def test_empty_axes(self, empty):
        n = {"H": 2, "D": 4, "Dv": 3, empty: 0}
        q, k = (np.ones((rows, n["H"], n["D"]), np.float32) for rows in (5, 6))
        v = np.ones((6, n["H"], n["Dv"]), np.float32)
        output, lse, _ = attnfast.attention_varlen(q, k, v, [0, 2, 5], [0, 1, 6], return_lse=True)
        assert output.shape == (5, n["H"], n["Dv"]) and lse.shape == (5, n["H"])
        assert (output == 1).all() and np.isfinite(lse).all()


@pytest.mark.usefixtures("isa")
class TestMemory:
    @pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.uint64, ">i4"])
    def test_bounds_of_any_integer_type(self, dtype, rng):
        q, k, v, cu_q, cu_k = packed(rng, [5, 0, 60], [7, 9, 30])
        expected = attnfast.attention_varlen(q, k, v, cu_q, cu_k)
        for a, b in [(cu_q.astype(dtype), cu_k.astype(dtype)), (cu_q.tolist(), tuple(cu_k))]:
            assert same_bits(attnfast.attention_varlen(q, k, v, a, b), expected)

    @pytest.mark.parametrize("name", ["query", "key", "value"])
    def test_out_may_be_an_input(self, name, rng):
        names = ("query", "key", "value", "cu_q", "cu_k")
        arguments = dict(zip(names, packed(rng, MIXED[0], MIXED[0]), strict=True))
        expected = attnfast.attention_varlen(**arguments)
        out = arguments[name]
        assert attnfast.attention_varlen(**arguments, out=out) is out
        assert same_bits(out, expected)
