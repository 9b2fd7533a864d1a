"""rotate: angles, positions, tables, layouts of x and out."""

import numpy as np
import pytest

import attnfast
from attnfast import reference, rotate
from support.arrays import DTYPE_IDS, DTYPES, compute_dtype, randn, same_bits

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("isa")]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("first", [0, -70, 131_000, 2**40])
def test_angles_by_the_base(first, dtype, interleaved, rng):
    x, positions = randn(rng, (2, 3, 40, 36), dtype), first + np.arange(40)
    for base in (10000.0, 5e5, 2, np.float32(1.5)):
        options = {"base": base, "interleaved": interleaved}
        exact = reference.rotate(x, positions, **options)
        eps = 1.5 * float(np.finfo(compute_dtype(dtype)).eps)
        if x.itemsize == 2:
            eps = {"float16": 2**-10, "bfloat16": 2**-7}[dtype.name]
        rounding = eps + 2 * np.finfo(float).eps * np.abs(positions).max()
        np.testing.assert_allclose(
            rotate(x, positions, **options).astype(np.float64), exact, rtol=eps, atol=8 * rounding
        )


def test_products_depend_on_distances_alone(rng):
    q, k = rng.standard_normal((2, 4, 1, 64))
    near = rotate(q, 12) @ rotate(k, 5).swapaxes(-1, -2)
    far = rotate(q, 100_012) @ rotate(k, 100_005).swapaxes(-1, -2)
    np.testing.assert_allclose(near, far, rtol=1e-9, atol=1e-9)
    assert same_bits(rotate(q, 0), q)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_positions_of_each_batch_row(batch, rng):
    x = randn(rng, (*batch, 3, 7, 16))
    positions = rng.integers(-9, 99, (*batch, 7))
    whole = rotate(x, positions)
    for row in np.ndindex(batch):
        assert same_bits(whole[row], rotate(x[row], positions[row]))
        for i in range(7):
            one = rotate(x[row][:, i : i + 1], positions[row][i])
            assert same_bits(whole[row][:, i : i + 1], one)
    for kind in (np.int8, np.uint16, np.int32, list):
        given = positions.tolist() if kind is list else np.abs(positions).astype(kind)
        wanted = positions if kind is list else np.abs(positions)
        assert same_bits(rotate(x, given), rotate(x, wanted))
    shared = positions[(slice(0, 1),) * len(batch)]
    assert same_bits(rotate(x, shared), rotate(x, np.broadcast_to(shared, positions.shape)))


def test_tables(rng):
    x, positions = randn(rng, (2, 3, 7, 20)), rng.integers(0, 50, (2, 7))
    angles = np.arange(50)[:, None] * 10000.0 ** -(np.arange(10) / 10)
    cos, sin = np.cos(angles), np.sin(angles)
    assert same_bits(rotate(x, positions, cos_sin=(cos, sin)), rotate(x, positions))
    laid = [np.asfortranarray(cos), np.repeat(sin, 2, axis=1)[:, ::2]]
    assert same_bits(rotate(x, positions, cos_sin=laid), rotate(x, positions))
    part = rotate(x, positions, cos_sin=(2 * cos[:, :4], 2 * sin[:, :4]))
    assert same_bits(part[..., 8:], x[..., 8:])
    exact = reference.rotate(x[..., :8], positions, cos_sin=(cos[:, :4], sin[:, :4]))
    np.testing.assert_allclose(part[..., :8], 2 * exact, rtol=1e-6, atol=1e-6)
    none = np.zeros((50, 0))
    assert same_bits(rotate(x, positions, cos_sin=(none, none)), x)


def test_where_results_are_written(rng):
    x = randn(rng, (2, 9, 4, 16)).swapaxes(1, 2)
    y = rotate(x, np.arange(9))
    assert y.strides == x.strides
    memory = np.full((2, 4, 9, 40), 7, np.float32)
    out = memory[..., 3:35:2]
    assert rotate(x, np.arange(9), out=out) is out and same_bits(out, y)
    assert (np.delete(memory, np.s_[3:35:2], axis=-1) == 7).all()
    before = x.copy()
    overlapping = x[:, :, ::-1]
    assert rotate(x, np.arange(9), out=overlapping) is overlapping and same_bits(overlapping, y)
    x[...] = before
    assert rotate(x, np.arange(9), out=x) is x and same_bits(x, y)


@pytest.mark.parametrize("interleaved", [False, True])
def test_out_in_the_memory_of_what_is_read(interleaved, rng):
    """Tables and positions that later rows read."""
    length = 100
    positions = np.arange(length)[::-1].copy()
    x, memory = randn(rng, (length, 16)), randn(rng, (length + 3, 16))
    cos, sin = memory[3:, :8], memory[3:, 8:]
    options = {"interleaved": interleaved}
    expected = rotate(x, positions, cos_sin=(cos.copy(), sin.copy()), **options)
    out = memory[:length]
    assert rotate(x, positions, cos_sin=(cos, sin), out=out, **options) is out
    assert same_bits(out, expected)
    x, memory = randn(rng, (length, 16), np.float64), np.zeros((length, 16))
    places = memory.view(np.int64)[:, 0]
    places[:] = positions
    out = memory[::-1]
    assert same_bits(rotate(x, places, out=out, **options), rotate(x, positions, **options))


def test_empty_axes():
    for shape in ((0, 8), (3, 0), (0, 2, 8), (2, 0, 3, 8), (0, 1, 3, 8), (2, 0, 8), (0, 0)):
        x = np.zeros(shape, np.float32)
        assert rotate(x, np.arange(shape[-2])).shape == shape
    empty = np.zeros((0, 4)), np.zeros((0, 4))
    assert rotate(np.zeros((2, 0, 8)), np.arange(0), cos_sin=empty).shape == (2, 0, 8)


def test_more_than_one_thread_has_work(rng):
    x = randn(rng, (8, 3000, 64))
    first = rotate(x, np.arange(3000), num_threads=1)
    for n in (2, 3, 8):
        assert same_bits(rotate(x, np.arange(3000), num_threads=n), first)
    with attnfast.num_threads(2):
        assert same_bits(rotate(x, np.arange(3000)), first)
