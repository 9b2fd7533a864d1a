"""Shapes that broadcast, memory of every form, and where results go."""

import functools
import itertools

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import attnfast
from attnfast import AttentionResult, reference
from support.arrays import (
    BFLOAT16,
    DTYPE_IDS,
    DTYPES,
    assert_same,
    compute_dtype,
    qkv,
    randn,
    same_bits,
)
from support.calls import CALLS, PACKED, WITH_OUT
from support.criterion import check
from support.layouts import LAYOUTS, lay_out, paired

pytestmark = pytest.mark.usefixtures("isa")

LENGTHS = pytest.mark.parametrize("lq", [1, 37])


@LENGTHS
@pytest.mark.parametrize("name", ["query", "key", "value", "mask", "bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_each_argument_in_each_layout(dtype, name, lq, rng):
    q, k, v = qkv(rng, lq, 70, 20, 12, dtype=dtype)
    arguments = {
        "query": q,
        "key": k,
        "value": v,
        "mask": rng.random((2, 2, lq, 70)) < 0.7,
        "bias": randn(rng, (2, 2, lq, 70), dtype),
    }
    expected = attnfast.attention(**arguments)
    for layout in LAYOUTS:
        given = lay_out(arguments[name], layout)
        before = given.copy()
        assert same_bits(attnfast.attention(**{**arguments, name: given}), expected), layout
        assert same_bits(given, before), f"an input was written, {layout}"


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize(("lk", "d"), [(2052, 24), (2053, 24), (4100, 17), (132, 72), (9, 200)])
@pytest.mark.parametrize("lq", [2, 12])
def test_keys_and_values_by_columns(lq, lk, d, dtype, rng):
    """Stored (B, H, D, L), or with gaps in the rows: some heads are copied at a time, but few
    queries read columns where they are.
    """
    q, k, v = (rng.standard_normal((3, 6, n, d)).astype(dtype) for n in (lq, lk, lk))
    gaps = np.zeros((3, 6, lk, 2 * d), dtype)
    gaps[..., ::2] = v
    expected = attnfast.attention(q, k, v, return_lse=True, num_threads=1)
    for key, value in itertools.product(
        (k, k.swapaxes(2, 3).copy().swapaxes(2, 3)), (v, gaps[..., ::2], v.T.copy().T)
    ):
        found = attnfast.attention(q, key, value, return_lse=True)
        assert same_bits(found.output, expected.output)
        assert same_bits(found.lse, expected.lse)


@pytest.mark.parametrize("name", CALLS)
def test_strides_of_zero_in_every_function(name, rng):
    shape = (2, 70, 16) if name in PACKED else (2, 2, 70, 16)
    for n, axis in itertools.product(range(3), range(len(shape))):
        arrays = [randn(rng, shape, DTYPES[(n + axis) % 4]) for _ in range(3)]
        arrays[n] = np.broadcast_to(np.take(arrays[n], [0], axis=axis), shape)
        result = CALLS[name](*arrays, np.array)
        arrays[n] = arrays[n].copy()
        assert_same(result, CALLS[name](*arrays, np.array), f"array {n}, axis {axis}")


@pytest.mark.quick
@LENGTHS
@pytest.mark.parametrize("name", CALLS)
def test_every_function_in_each_layout(name, lq, rng):
    for layout, dtype in paired(LAYOUTS, DTYPES, times=1):
        arrays = [randn(rng, (2, n, 20), dtype) for n in (lq, 70, 70)]
        expected = CALLS[name](*arrays, np.array)
        place = functools.partial(lay_out, layout=layout)
        given = [lay_out(a, layout) for a in arrays]
        assert_same(expected, CALLS[name](*given, place), layout)
        for a, b in zip(given, arrays, strict=True):
            assert same_bits(a.astype(dtype), b), "an input was written"


@LENGTHS
@pytest.mark.parametrize("broadcast", list(itertools.product([False, True], repeat=4)), ids=str)
def test_mask_and_bias_broadcast_over_any_axes(broadcast, lq, rng):
    q, k, v = qkv(rng, lq, 90, batch=(3,))
    full = (3, 2, lq, 90)
    shape = tuple(1 if thin else n for thin, n in zip(broadcast, full, strict=True))
    mask, bias = rng.random(shape) < 0.8, randn(rng, shape)
    check(attnfast.attention(q, k, v, mask=mask), q, k, v, mask=mask)
    check(attnfast.attention(q, k, v, bias=bias), q, k, v, bias=bias)
    expected = attnfast.attention(q, k, v, mask=mask, bias=bias)
    while shape and shape[0] == 1:
        shape = shape[1:]
        mask, bias = mask.reshape(shape), bias.reshape(shape)
        assert same_bits(attnfast.attention(q, k, v, mask=mask, bias=bias), expected)
    spread = {
        "mask": np.broadcast_to(mask, full).copy(),
        "bias": np.broadcast_to(bias, full).copy(),
    }
    assert same_bits(attnfast.attention(q, k, v, **spread), expected)


@LENGTHS
@pytest.mark.parametrize(
    ("q_batch", "k_batch", "v_batch"),
    [
        ((2, 3), (2, 3), (2, 3)),
        ((2, 3), (1, 3), (2, 1)),
        ((2, 1), (1, 3), (1, 1)),
        ((2, 3), (), (3,)),
        ((), (2, 3), (3,)),
        ((3,), (2, 1), (1,)),
        ((1, 2, 1, 2), (2, 1, 3, 1), ()),
        ((0, 3), (1, 3), (3,)),
    ],
)
def test_batch_axes_broadcast(q_batch, k_batch, v_batch, lq, rng):
    q, k, v = (
        randn(rng, (*q_batch, 4, lq, 9)),
        randn(rng, (*k_batch, 2, 33, 9)),
        randn(rng, (*v_batch, 2, 33, 6)),
    )
    batch = np.broadcast_shapes(q_batch, k_batch, v_batch)
    result = attnfast.attention(q, k, v, return_lse=True, return_weights=True)
    assert [a.shape for a in result] == [
        (*batch, 4, lq, 6),
        (*batch, 4, lq),
        (*batch, 4, lq, 33),
    ]
    check(result, q, k, v)
    mask = rng.random((*batch, 1, 1, 33)) < 0.5
    lengths = rng.integers(0, 34, batch)
    options = {"mask": mask, "kv_lengths": lengths, "return_lse": True}
    check(attnfast.attention(q, k, v, **options), q, k, v, **options)
    spread = [np.broadcast_to(a, batch + a.shape[-3:]).copy() for a in (q, k, v)]
    assert same_bits(attnfast.attention(*spread), result.output)


def test_batch_axes_of_a_view_that_do_not_collapse(rng):
    q, k, v = (randn(rng, (4, 6, 2, 20, 8))[::2, 1::3].swapaxes(0, 1) for _ in range(3))
    assert q.shape == (2, 2, 2, 20, 8)
    check(attnfast.attention(q, k, v, return_lse=True, return_weights=True), q, k, v)


@LENGTHS
def test_ranks(lq, rng):
    q, k, v = qkv(rng, lq, 40, 8, 5, heads=4, kv_heads=2, batch=(2, 3))
    whole = attnfast.attention(q, k, v, return_lse=True, return_weights=True)
    for rank in (4, 3):
        part = (0,) * (5 - rank)
        result = attnfast.attention(q[part], k[part], v[part], return_lse=True, return_weights=True)
        for a, b in zip(result, whole, strict=True):
            assert same_bits(a, b[part])
    one = attnfast.attention(
        q[0, 0, 3], k[0, 0, 1], v[0, 0, 1], return_lse=True, return_weights=True
    )
    assert [a.shape for a in one] == [(lq, 5), (lq,), (lq, 40)]
    for a, b in zip(one, whole, strict=True):
        np.testing.assert_allclose(a, b[0, 0, 3], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("group", [1, 2, 3, 7])
@pytest.mark.parametrize("kv_heads", [1, 2, 3])
@LENGTHS
def test_grouped_heads(lq, kv_heads, group, rng):
    q, k, v = qkv(rng, lq, 50, 16, 24, heads=kv_heads * group, kv_heads=kv_heads)
    output = attnfast.attention(q, k, v)
    check(output, q, k, v)
    repeated = attnfast.attention(q, np.repeat(k, group, axis=1), np.repeat(v, group, axis=1))
    np.testing.assert_allclose(output, repeated, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("empty", ["B", "H", "Lq", "Lk", "D", "Dv"])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_empty_axes(empty, dtype):
    n = {"B": 2, "H": 2, "Lq": 3, "Lk": 4, "D": 5, "Dv": 6, empty: 0}
    q = np.ones((n["B"], n["H"], n["Lq"], n["D"]), dtype)
    k = np.ones((n["B"], n["H"], n["Lk"], n["D"]), dtype)
    v = np.ones((n["B"], n["H"], n["Lk"], n["Dv"]), dtype)
    output, lse, weights = attnfast.attention(q, k, v, return_lse=True, return_weights=True)
    assert output.shape == (n["B"], n["H"], n["Lq"], n["Dv"])
    assert lse.shape == (n["B"], n["H"], n["Lq"])
    assert weights.shape == (n["B"], n["H"], n["Lq"], n["Lk"])
    if empty == "Lk":
        assert not output.any() and np.isneginf(lse).all()
    else:
        assert (output == 1).all() and np.isfinite(lse).all()
        np.testing.assert_allclose(weights.astype(np.float64), 0.25)
    for stage in reference.STAGES:
        scores = attnfast.attention_weights(q, k, stage=stage)
        assert scores.shape == weights.shape and scores.dtype == dtype


def test_nested_lists_are_float64():
    output = attnfast.attention([[1.0, 0.0]], [[1.0, 2.0], [3.0, 4.0]], [[1.0], [3.0]], scale=0)
    assert output.dtype == np.float64 and output.tolist() == [[2.0]]
    hidden = attnfast.attention(
        [[1.0]], [[1.0], [1.0]], [[1.0], [3.0]], mask=[True, False], bias=[[0.5, 0.5]]
    )
    assert hidden.tolist() == [[1.0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("bias_dtype", DTYPES, ids=DTYPE_IDS)
def test_bias_of_any_dtype(bias_dtype, dtype, rng):
    q, k, v = qkv(rng, 20, 30, dtype=dtype)
    bias = randn(rng, (20, 30), bias_dtype)
    check(attnfast.attention(q, k, v, bias=bias), q, k, v, bias=bias)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_dtypes_of_results(dtype, rng):
    q, k, v = qkv(rng, 3, 4, dtype=dtype)
    assert attnfast.attention(q, k, v).dtype == dtype
    result = attnfast.attention(q, k, v, return_lse=True, return_weights=True)
    assert isinstance(result, AttentionResult)
    assert [a.dtype for a in result] == [dtype, compute_dtype(dtype), dtype]
    assert attnfast.attention(q, k, v, return_lse=True).weights is None
    assert attnfast.attention(q, k, v, return_weights=True).lse is None


def test_a_big_endian_query_gives_native_results(rng):
    q, k, v = qkv(rng, 3, 4)
    output = attnfast.attention(q.astype(">f4"), k, v.astype(">f4"))
    assert output.dtype == np.float32 and output.dtype.isnative
    assert same_bits(output, attnfast.attention(q, k, v))


@pytest.mark.quick
class TestOutput:
    def test_memory_follows_the_axis_order_of_the_query(self, rng):
        q, k, v = (randn(rng, (2, 30, 4, 8)) for _ in range(3))
        output = attnfast.attention(*(a.swapaxes(1, 2) for a in (q, k, v)))
        assert output.shape == (2, 4, 30, 8)
        assert output.swapaxes(1, 2).flags.c_contiguous
        assert attnfast.attention(q, k, v).flags.c_contiguous

    @pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
    def test_every_axis_order(self, order, rng):
        shape = np.array((2, 3, 5, 8))
        memory = randn(rng, shape[list(order)])
        q = memory.transpose(np.argsort(order))
        k, v = randn(rng, (2, 3, 6, 8)), randn(rng, (2, 3, 6, 7))
        output = attnfast.attention(q, k, v)
        check(output, q, k, v)
        assert output.strides[-1] == output.itemsize
        outer = [axis for axis in order if axis != 3]
        steps = [output.strides[axis] for axis in outer]
        assert steps == sorted(steps, reverse=True)

    @LENGTHS
    @pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "read-only"])
    @pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
    def test_out_of_any_layout(self, dtype, layout, lq, rng):
        q, k, v = qkv(rng, lq, 70, 20, 12, dtype=dtype)
        expected = attnfast.attention(q, k, v)
        out = lay_out(np.zeros((2, 2, lq, 12), dtype), layout)
        around = out if out.base is None else out.base
        untouched = around.copy()
        result = attnfast.attention(q, k, v, out=out, return_lse=True)
        assert result.output is out
        assert same_bits(out.astype(dtype), expected)
        out[...] = 0
        assert same_bits(around, untouched), "something between the elements of out was written"
        assert attnfast.attention(q, k, v, out=out) is out

    @LENGTHS
    @pytest.mark.parametrize("name", ["query", "key", "value", "bias"])
    def test_out_may_be_an_input(self, name, lq, rng):
        lk = lq
        arrays = dict(zip(("query", "key", "value"), qkv(rng, lq, lk, lk), strict=True))
        arrays["bias"] = randn(rng, (2, 2, lq, lk))
        expected = attnfast.attention(**arrays)
        assert attnfast.attention(**arrays, out=arrays[name]) is arrays[name]
        assert same_bits(arrays[name], expected)

    @pytest.mark.parametrize("name", WITH_OUT)
    def test_out_may_overlap_an_input(self, name, rng):
        for shift in (-3, 1, 50):
            memory = randn(rng, 2 * 60 * 8 + 200)
            q = memory[100:-100].reshape(2, 60, 8)
            out = memory[100 + shift : len(memory) - 100 + shift].reshape(2, 60, 8)
            k, v = randn(rng, (2, 60, 8)), randn(rng, (2, 60, 8))
            expected = CALLS[name](q, k, v, np.array)
            assert_same(expected, CALLS[name](q, k, v, np.array, out=out), f"shift {shift}")

    @pytest.mark.parametrize("name", WITH_OUT)
    def test_out_of_any_layout_in_every_function(self, name, rng):
        for layout, dtype in paired([x for x in LAYOUTS if x != "read-only"], DTYPES, times=1):
            q, k, v = (randn(rng, (2, 37, 12), dtype) for _ in range(3))
            expected = CALLS[name](q, k, v, np.array)
            out = lay_out(np.zeros((2, 37, 12), dtype), layout)
            around = out if out.base is None else out.base
            untouched = around.copy()
            result = CALLS[name](q, k, v, np.array, out=out)
            output, wanted = (r[0] if isinstance(r, tuple) else r for r in (result, expected))
            assert np.shares_memory(output, out)
            assert same_bits(output.astype(dtype), wanted), layout
            out[...] = 0
            assert same_bits(around, untouched), "something between the elements was written"

    def test_results_do_not_share_memory(self, rng):
        q, k, v = qkv(rng, 5, 5)
        first = attnfast.attention(q, k, v, return_lse=True, return_weights=True)
        second = attnfast.attention(q, k, v, return_lse=True, return_weights=True)
        for a, b in itertools.combinations([*first, *second, q, k, v], 2):
            assert not np.shares_memory(a, b)
        for a in first:
            assert a.flags.writeable


def test_bfloat16_without_help_from_ml_dtypes_names(rng):
    """It is known by its name and size, and the array need not own its memory."""
    q, k, v = (a.view(np.uint16).view(BFLOAT16) for a in qkv(rng, 4, 6, dtype=BFLOAT16))
    check(attnfast.attention(q, k, v), q, k, v)


def test_windows_of_a_signal_as_overlapping_rows(rng):
    """Rows that share memory with each other are read as they lie."""
    signal = randn(rng, 200)
    q = as_strided(signal, (50, 16), (4, 4))
    check(attnfast.attention(q, q, q), q.copy(), q.copy(), q.copy())
