"""local_attention: dilated windows, global tokens, windows about given centers."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings

import attnfast
from attnfast import AttentionResult, reference
from support.arrays import (
    DTYPE_IDS,
    DTYPES,
    compute_dtype,
    qkv,
    randn,
    same_bits,
)
from support.criterion import Criterion
from support.drawn_call import Call
from support.draws import local_calls
from support.scripts import START, run_python

EXAMPLES = settings.default.max_examples
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
FLAGS = {"return_lse": True, "return_weights": True}
LENGTHS = pytest.mark.parametrize("lq", [1, 5, 48, 130])


@pytest.mark.quick
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_any_call(dtype, each_isa):
    @settings(max_examples=EXAMPLES if dtype == np.float32 else EXAMPLES // 3)
    @given(call=local_calls(dtypes=(dtype,)))
    def run(call: Call) -> None:
        criterion = call.criterion()
        each_isa(lambda: criterion.check(call.run()))

    run()


@pytest.mark.usefixtures("isa")
class TestWhoSeesWhat:
    """With equal scores, the keys that have weight are those that are seen."""

    def result(self, lq, lk, window, heads=1, batch=(), **options):
        q = np.zeros((*batch, heads, lq, 1), np.float32)
        k = np.zeros((*batch, 1, lk, 1), np.float32)
        return attnfast.local_attention(q, k, k, window, **FLAGS, **options)

    def seen(self, *shape, **options):
        return self.result(*shape, **options).weights > 0

    @LENGTHS
    @pytest.mark.parametrize("d", [1, 2, 3, 16, 64, 299, 2**62])
    @pytest.mark.parametrize("window", [(0, 0), (2, 1), (40, 0), (None, 0), (3, None), None])
    def test_dilation(self, window, d, lq):
        left, right = window or (None, None)
        for offset in (-70, 0, 100, 299):
            near = (np.arange(300) - np.arange(lq)[:, None] - offset) / d
            expected = near == np.floor(near)
            expected &= (-math.inf if left is None else -left) <= near
            expected &= near <= (math.inf if right is None else right)
            seen = self.seen(lq, 300, window, dilation=d, q_offset=offset)
            assert (seen == expected).all(), offset

    @LENGTHS
    def test_dilation_differs_by_head(self, lq):
        steps = np.array([1, 5, 2, 5, 1, 64])
        i, j = np.arange(lq)[:, None] + 90, np.arange(200)
        near = (j - i) / steps[:, None, None]
        expected = (near == np.floor(near)) & (near >= -3) & (near <= 2)
        assert (self.seen(lq, 200, (3, 2), 6, dilation=steps, q_offset=90) == expected).all()
        for listed in (steps.tolist(), steps.astype(np.uint8), steps[::-1][::-1]):
            seen = self.seen(lq, 200, (3, 2), 6, dilation=listed, q_offset=90)
            assert (seen == expected).all()

    @LENGTHS
    @pytest.mark.parametrize("tokens", [[], [0], [299], [5, 64, 63, 5, 200], list(range(300))])
    @pytest.mark.parametrize("is_causal", [False, True])
    def test_global_tokens(self, is_causal, tokens, lq):
        is_global = np.isin(np.arange(300), tokens)
        for offset in (-60, 0, 180, 296):
            p, j = np.arange(lq)[:, None] + offset, np.arange(300)
            expected = (abs(p - j) <= 7) | is_global | np.isin(p, tokens)
            expected &= (j <= p) | (not is_causal)
            for form in (np.array(tokens, int), is_global):
                options = {"is_causal": is_causal, "q_offset": offset}
                seen = self.seen(lq, 300, 7, global_tokens=form, **options)
                assert (seen == expected).all(), offset

    def test_global_tokens_as_lists_and_of_any_integer_type(self):
        expected = self.seen(40, 40, 2, global_tokens=np.array([3, 30]))
        for tokens in ([3, 30], (30, 3), np.array([3, 30], np.uint8), np.array([3, 30], ">i2")):
            assert (self.seen(40, 40, 2, global_tokens=tokens) == expected).all()
        assert (self.seen(40, 40, 2, global_tokens=[]) == self.seen(40, 40, 2)).all()

    @LENGTHS
    @pytest.mark.parametrize("rows", [(2, 3), (6,)])
    @pytest.mark.parametrize("form", ["indices", "bool"])
    def test_global_tokens_per_batch_row(self, form, rows, lq):
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, 200, (2, 3, 4))
        is_global = (tokens[..., None] == np.arange(200)).any(axis=-2)
        p, j = np.arange(lq)[:, None] + 60, np.arange(200)
        expected = abs(p - j) <= 1
        expected = expected | is_global[:, :, None, :]
        expected |= np.take_along_axis(is_global, (p.T * np.ones((2, 1), int))[:, None, :], -1)[
            ..., None
        ]
        given_form = tokens if form == "indices" else is_global
        given_form = given_form.reshape((*rows, given_form.shape[-1]))
        seen = self.seen(lq, 200, 1, batch=(2, 3), global_tokens=given_form, q_offset=60)
        assert (seen[:, :, 0] == expected).all()

    @LENGTHS
    def test_dilation_and_global_tokens_together(self, lq):
        steps = np.array([1, 4, 9])
        p, j = np.arange(lq)[:, None] + 33, np.arange(250)
        near = (j - p) / steps[:, None, None]
        expected = (near == np.floor(near)) & (abs(near) <= 6)
        expected = (expected | np.isin(j, [2, 70]) | np.isin(p, [2, 70])) & (j < 240) & (j % 11 > 0)
        options = {"dilation": steps, "global_tokens": [2, 70], "q_offset": 33}
        options |= {"kv_lengths": 240, "mask": j % 11 > 0}
        assert (self.seen(lq, 250, 6, 3, **options) == expected).all()

    @LENGTHS
    @pytest.mark.parametrize("window", [(0, 0), (5, 2), (70, 70), (-1, 0), (3, None), None])
    def test_integer_centers_in_any_order(self, window, lq):
        rng = np.random.default_rng(lq)
        centers = rng.integers(-80, 380, (2, lq))
        far = np.iinfo(np.int64)
        centers[1, :1], centers[0, -1:] = far.max, far.min
        left, right = (None if side == -1 else side for side in window or (None, None))
        c, j = centers.astype(object)[..., None], np.arange(300).astype(object)
        expected = np.ones((2, lq, 300), bool)
        if left is not None:
            expected &= (c - left <= j).astype(bool)
        if right is not None:
            expected &= (j <= c + right).astype(bool)
        assert (self.seen(lq, 300, window, 2, centers=centers) == expected).all()

    @LENGTHS
    def test_real_centers_bound_the_window_as_real_numbers(self, lq):
        rng = np.random.default_rng(lq)
        centers = rng.integers(-40, 800, (2, lq)) / 4
        c, j = centers[..., None], np.arange(200)
        expected = (c - 6 <= j) & (j <= c + 3)
        assert (self.seen(lq, 200, (6, 3), 2, centers=centers, sigma=1e3) == expected).all()
        centers[1, :1], centers[0, -1:] = 1e300, -1e300
        c = centers[..., None]
        for window in [(6, 3), (-1, 3), (6, None), None]:
            left, right = (np.inf if side in (None, -1) else side for side in window or (-1, -1))
            expected = (c - left <= j) & (j <= c + right)
            lse = self.result(lq, 200, window, 2, centers=centers, sigma=1e3).lse
            np.testing.assert_allclose(np.exp(lse), expected.sum(axis=-1), rtol=1e-5)

    def test_centers_move_the_window_only(self):
        """Causality and the offset go by the place of the query."""
        centers = np.random.default_rng(0).integers(0, 100, 60)
        p, j = np.arange(60)[:, None] + 20, np.arange(100)
        expected = (abs(centers[:, None] - j) <= 9) & (j <= p)
        seen = self.seen(60, 100, 9, centers=centers, is_causal=True, q_offset=20)
        assert (seen == expected).all()

    def test_centers_broadcast(self):
        rng = np.random.default_rng(0)
        centers = rng.integers(0, 90, (2, 3, 50))
        for shape in [(2, 3, 50), (1, 3, 50), (2, 1, 50), (2, 3, 1), (3, 50), (50,), (3, 1), ()]:
            part = centers[tuple(slice(n) for n in ((1,) * 3 + shape)[-3:])].reshape(shape)
            spread = np.broadcast_to(part, (2, 3, 50)).copy()
            assert (
                self.seen(50, 90, 4, 3, batch=(2,), centers=part)
                == (abs(spread[..., None] - np.arange(90)) <= 4)
            ).all()

    def test_no_position_is_needed_where_none_is_used(self):
        assert self.seen(3, 9, 1, centers=[4, 8, 0]).sum() == 3 + 2 + 2
        with pytest.raises(ValueError, match="q_offset"):
            self.seen(3, 9, 1)
        with pytest.raises(ValueError, match="q_offset"):
            self.seen(3, 9, 1, centers=[4, 8, 0], is_causal=True)


@pytest.mark.quick
class TestFormulas:
    """Against the formulas of the papers, written out."""

    @pytest.fixture
    def case(self, rng):
        h, encoder = randn(rng, (12, 8), np.float64), randn(rng, (40, 8), np.float64)
        return h, encoder, randn(rng, (40, 5), np.float64)

    def align(self, h, states, window):
        score = np.exp((states[window] @ h) / math.sqrt(8))
        return score / score.sum()

    @pytest.mark.usefixtures("isa")
    def test_luong_local_p(self, case, rng):
        """p_t = S sigmoid(v tanh(W h_t)); a_t(s) = align(h_t, h_s) exp(-(s - p_t)^2 / 2 sigma^2)"""
        h, encoder, values = case
        w, v = randn(rng, (8, 8), np.float64), randn(rng, 8, np.float64)
        d = 10  # the half width of the window, sigma = d / 2
        p = 40 / (1 + np.exp(-np.tanh(h @ w.T) @ v))
        output, lse, weights = attnfast.local_attention(
            h, encoder, values, d, centers=p, sigma=d / 2, **FLAGS
        )
        for t in range(12):
            window = np.array([s for s in range(40) if p[t] - d <= s <= p[t] + d])
            a = self.align(h[t], encoder, window)
            a = a * np.exp(-((window - p[t]) ** 2) / (2 * (d / 2) ** 2))
            np.testing.assert_allclose(weights[t, window], a, rtol=1e-12)
            assert not np.delete(weights[t], window).any()
            np.testing.assert_allclose(output[t], a @ values[window], rtol=1e-12, atol=1e-15)
            total = np.exp(encoder[window] @ h[t] / math.sqrt(8)).sum()
            np.testing.assert_allclose(lse[t], math.log(total), rtol=1e-12, atol=1e-14)

    @pytest.mark.usefixtures("isa")
    def test_luong_local_m(self, case):
        """p_t = t: monotonic alignment, a plain softmax within the window."""
        h, encoder, values = case
        output = attnfast.local_attention(h, encoder, values, 3, centers=np.arange(12))
        for t in range(12):
            window = np.arange(max(0, t - 3), t + 4)
            expected = self.align(h[t], encoder, window) @ values[window]
            np.testing.assert_allclose(output[t], expected, rtol=1e-12, atol=1e-15)
        moved = attnfast.local_attention(h, encoder, values, 3, q_offset=0)
        np.testing.assert_allclose(output, moved, rtol=1e-12, atol=1e-15)

    @pytest.mark.usefixtures("isa")
    def test_the_weights_are_not_renormalised(self, case):
        h, encoder, values = case
        centers = np.linspace(0, 39, 12)
        _, lse, weights = attnfast.local_attention(
            h, encoder, values, (None, None), centers=centers, sigma=3.0, **FLAGS
        )
        _, plain_lse, plain = attnfast.attention(h, encoder, values, **FLAGS)
        np.testing.assert_allclose(lse, plain_lse, rtol=1e-13)
        factor = np.exp(-((np.arange(40) - centers[:, None]) ** 2) / 18)
        np.testing.assert_allclose(weights, plain * factor, rtol=1e-12)

    @pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
    def test_longformer(self, dtype, each_isa, rng):
        """Its pattern as a dense mask: per-head dilation, two global tokens, grouped heads."""
        q, k, v = qkv(rng, 200, 200, 24, heads=4, kv_heads=2, batch=(2,), dtype=dtype)
        steps, tokens = [1, 2, 1, 3], np.array([[0, 150], [7, 7]])
        i, j = np.arange(200)[:, None], np.arange(200)
        mask = np.zeros((2, 4, 200, 200), bool)
        for b, h in np.ndindex(2, 4):
            near = ((j - i) % steps[h] == 0) & (abs(j - i) <= 16 * steps[h])
            mask[b, h] = near | np.isin(j, tokens[b]) | np.isin(i, tokens[b])
        criterion = Criterion(q, k, v, mask=mask)
        options = {"dilation": steps, "global_tokens": tokens, **FLAGS}
        each_isa(lambda: criterion.check(attnfast.local_attention(q, k, v, 16, **options)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_criterion_rejects_small_errors(dtype, rng):
    arrays, centers = qkv(rng, 30, 200, 32, dtype=dtype), rng.uniform(0, 200, 30)
    options = {"window_size": 20, "centers": centers, "sigma": 10.0}
    criterion = Criterion(*arrays, function="local_attention", **options)

    def plain(**changed):
        options_now = {**options, **changed, **FLAGS}
        return reference.local_attention(*arrays, **options_now, compute_dtype=dtype)

    criterion.check(plain())
    slightly = 1 + 100 * np.finfo(dtype).eps
    for changed in ({"sigma": 10 * slightly}, {"centers": centers * slightly}):
        with pytest.raises(AssertionError, match="output"):
            criterion.check(plain(**changed))


FORMS = {
    "dilation": {"dilation": [1, 3, 2, 3]},
    "global": {"global_tokens": [0, 209, 150]},
    "both": {"dilation": [3, 1, 1, 2], "global_tokens": [5, 200], "is_causal": True},
    "local-m": {"centers": "integers", "softcap": 3.0},
    "local-p": {"centers": "reals", "sigma": 9.0, "sink_logits": [0.0, 1.0, 2.0, -3.0]},
}


def longer(form, dtype, rng):
    """Arrays and options over several blocks of queries and keys."""
    options = {**FORMS[form], "window_size": (30, 12)}
    if "centers" in options:
        centers = rng.uniform(-10, 220, (4, 210))
        options["centers"] = centers.astype(int) if form == "local-m" else centers
    return qkv(rng, 210, 210, 24, heads=4, kv_heads=2, batch=(), dtype=dtype), options


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("form", FORMS)
def test_longer_sequences(form, dtype, each_isa, rng):
    arrays, options = longer(form, dtype, rng)
    criterion = Criterion(*arrays, function="local_attention", **options)
    options |= FLAGS
    each_isa(lambda: criterion.check(attnfast.local_attention(*arrays, **options)))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=DTYPE_IDS[2:])
@pytest.mark.parametrize("form", FORMS)
def test_results_are_rounded_to_16_bits_once(form, dtype, rng):
    """Whatever parts a result is made of, they are kept in float32."""
    arrays, options = longer(form, dtype, rng)
    exact = reference.local_attention(*arrays, **options)
    once, actual = exact.astype(dtype), attnfast.local_attention(*arrays, **options)
    rms = [np.sqrt(np.mean((y.astype(np.float64) - exact) ** 2)) for y in (once, actual)]
    assert rms[1] < 1.05 * rms[0]


CUTS = {
    "dilation": {"window_size": 4, "dilation": 3},
    "global": {"window_size": 3, "global_tokens": [0, 70]},
    "both": {"window_size": 3, "dilation": [1, 5], "global_tokens": [9]},
    "seen by the global": {"window_size": 0, "global_tokens": [40]},
    "local-m": {"window_size": 5, "centers": "integers"},
    "local-p": {"window_size": 5, "centers": "reals", "sigma": 2.5},
}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES[::3], ids=DTYPE_IDS[::3])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("lq", [3, 90])
def test_only_those_who_see_a_key_feel_it(lq, cut, dtype, rng):
    q, k, v = qkv(rng, lq, 90, 24, dtype=dtype)
    options = {"q_offset": 0 if lq == 90 else 69, **CUTS[cut]}
    if "centers" in options:
        centers = rng.permutation(90)[:lq] + (0 if options["centers"] == "integers" else 0.25)
        options["centers"] = centers
    clean = attnfast.local_attention(q, k, v, **options)
    zeros = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    seen = attnfast.local_attention(*zeros, return_weights=True, **options).weights > 0
    for j in (0, 9, 47, 70, 89):
        sees = seen[..., j]
        dirty_v, dirty_k = v.copy(), k.copy()
        dirty_v[..., j, 3], dirty_k[..., j, 5] = np.inf, np.nan
        dirty = attnfast.local_attention(q, k, dirty_v, **options)
        assert same_bits(dirty[~sees], clean[~sees])
        assert not np.isfinite(dirty[sees][:, 3].astype(np.float32)).any()
        dirty = attnfast.local_attention(q, dirty_k, v, **options)
        assert same_bits(dirty[~sees], clean[~sees])
        assert np.isnan(dirty[sees].astype(np.float32)).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize(
    "options",
    [
        {"window_size": 1, "q_offset": 500, "global_tokens": []},
        {"window_size": (0, 2), "q_offset": -91, "dilation": 15},
        {"window_size": 3, "centers": -4},
        {"window_size": 3, "centers": 93.5, "sigma": 1.5},
        {"window_size": (1, 0), "centers": 5, "is_causal": True, "q_offset": -80},
        {"window_size": 2, "q_offset": 0, "global_tokens": [3], "kv_lengths": [0, 0]},
    ],
    ids=str,
)
def test_a_query_that_sees_nothing(options, dtype, rng):
    q, k, v = qkv(rng, 60, 90, 24, dtype=dtype)
    k[:], v[:] = np.nan, np.inf
    output, lse, weights = attnfast.local_attention(q, k, v, **FLAGS, **options)
    assert not output.any() and not weights.any() and np.isneginf(lse).all()
    sinks = np.array([-3.0, 2.5], np.float32)
    options = {**options, "sink_logits": sinks, "q_lengths": [60, 59]}
    output, lse, weights = attnfast.local_attention(q, k, v, **FLAGS, **options)
    assert not output.any() and not weights.any()
    np.testing.assert_allclose(lse[0], np.broadcast_to(sinks[:, None], (2, 60)), rtol=1e-6)
    assert np.isneginf(lse[1, :, -1]).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_results_and_flags(dtype, rng):
    q, k, v = qkv(rng, 70, 70, 16, 9, dtype=dtype)
    options = {"window_size": 9, "dilation": 2, "global_tokens": [4]}
    output = attnfast.local_attention(q, k, v, **options)
    assert isinstance(output, np.ndarray) and output.dtype == dtype
    result = attnfast.local_attention(q, k, v, return_lse=True, **options)
    assert isinstance(result, AttentionResult) and result.weights is None
    assert same_bits(result.output, output) and result.lse.dtype == compute_dtype(dtype)
    result = attnfast.local_attention(q, k, v, **FLAGS, **options)
    assert same_bits(result.output, output) and result.weights.dtype == dtype
    swapped = [np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in (q, k, v)]
    again = attnfast.local_attention(*swapped, **options)
    assert same_bits(again, output) and again.swapaxes(1, 2).flags.c_contiguous


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", ["query", "key", "value", "centers", "bias"])
@pytest.mark.parametrize("lq", [1, 40])
def test_out_may_be_an_input(lq, name, rng):
    arguments = dict(zip(("query", "key", "value"), qkv(rng, lq, lq, lq), strict=True))
    arguments["bias"] = randn(rng, (2, 2, lq, lq))
    memory = rng.uniform(0, lq, (2, 2, lq, lq)).astype(np.float32)
    arguments |= {"centers": memory[..., 0], "sigma": 3.0, "window_size": 6}
    out = memory if name == "centers" else arguments[name]
    expected = attnfast.local_attention(**arguments)
    assert attnfast.local_attention(**arguments, out=out) is out
    assert same_bits(out, expected)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("empty", ["B", "H", "Lq", "Lk", "D", "Dv"])
@pytest.mark.parametrize("kind", ["dilation", "global", "bool", "local-m", "local-p"])
def test_empty_axes(kind, empty):
    n = {"B": 2, "H": 2, "Lq": 3, "Lk": 4, "D": 5, "Dv": 6, empty: 0}
    q, k = (np.ones((n["B"], n["H"], n[length], n["D"]), np.float32) for length in ("Lq", "Lk"))
    v = np.ones((n["B"], n["H"], n["Lk"], n["Dv"]), np.float32)
    options = {
        "dilation": {"dilation": np.ones(n["H"], int)},
        "global": {"global_tokens": np.zeros((n["B"], min(n["Lk"], 1)), int)},
        "bool": {"global_tokens": np.ones((n["B"], n["Lk"]), bool)},
        "local-m": {"centers": np.ones((n["B"], n["H"], n["Lq"]), int)},
        "local-p": {"centers": np.ones((n["B"], n["H"], n["Lq"])), "sigma": 1e9},
    }[kind]
    output, lse, weights = attnfast.local_attention(q, k, v, 9, q_offset=0, **options, **FLAGS)
    assert output.shape == (n["B"], n["H"], n["Lq"], n["Dv"])
    assert lse.shape == output.shape[:-1] and weights.shape == (*lse.shape, n["Lk"])
    if empty == "Lk":
        assert not output.any() and np.isneginf(lse).all()
    else:
        np.testing.assert_allclose(output, 1, rtol=1e-6)
        assert np.isfinite(lse).all()


LONG = """
n = 100_000
x = np.random.default_rng(0).standard_normal((2, n, 16)).astype(np.float32)
out = np.empty_like(x)
c = np.random.default_rng(1).uniform(0, n, (2, n))

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Vm")}

def call(length):
    y, o = x[:, :length], out[:, :length]
    for options in (
        {"dilation": [1, 3], "global_tokens": [0, length // 2]},
        {"global_tokens": np.arange(length) % 50000 == 7},
        {"centers": c[:, :length].astype(np.int64)},
        {"centers": c[:, :length], "sigma": 16.0},
    ):
        attnfast.local_attention(y, y, y, 32, out=o, num_threads=2, **options)

"""


def test_work_grows_with_the_length_not_its_square(tmp_path):
    script = """
def seconds(length):
    times = []
    for _ in range(3):
        start = time.process_time()
        call(length)
        times.append(time.process_time() - start)
    return min(times)

call(300)
print(seconds(80_000) / seconds(10_000))
"""
    ratio = float(run_python(START + LONG + script, tmp_path))
    assert ratio < 20, ratio  # 8 if linear, 64 if quadratic


@pytest.mark.parametrize("size", [(16, 16), (7, 5), (1, 3), (1, 1)])
def test_block_masks_of_all_forms(size, each_isa, rng):
    """A block mask says the same as its elementwise mask, dilated, with global tokens, or both."""
    q, k, v = qkv(rng, 100, 100, heads=2)
    blocks = rng.random((2, *(-(-100 // n) for n in size))) < 0.6
    mask = attnfast.BlockMask(blocks, size)
    for more in (
        {"dilation": 3},
        {"global_tokens": [5, 60]},
        {"dilation": [1, 2], "global_tokens": [9]},
    ):
        o, lse, w = attnfast.local_attention(
            q, k, v, 8, mask=mask, return_lse=True, return_weights=True, **more
        )
        exact = attnfast.local_attention(
            *(q, k, v, 8), mask=mask.dense(100, 100)[None], **FLAGS, **more
        )
        np.testing.assert_allclose(o, exact.output, atol=2e-6)
        np.testing.assert_allclose(lse, exact.lse, atol=2e-6)
        np.testing.assert_allclose(w, exact.weights, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize(("lq", "lk"), [(3, 60), (60, 60), (3, 70), (60, 70)])
def test_a_batch_row_beside_one_with_global_tokens(lq, lk, dtype, each_isa, rng):
    """Short rows are one call with a mask, longer ones several calls."""
    q, k, v = qkv(rng, lq, lk, dtype=dtype)
    tokens = np.zeros((2, lk), bool)
    tokens[1, 8] = True
    options = {**FLAGS, "q_offset": 0}
    both = attnfast.local_attention(q, k, v, 3, global_tokens=tokens, **options)
    alone = attnfast.local_attention(q[:1], k[:1], v[:1], 3, global_tokens=tokens[:1], **options)
    assert same_bits(both.output[:1], alone.output)
    assert same_bits(both.lse[:1], alone.lse)
    assert same_bits(both.weights[:1], alone.weights)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("lk", [64, 65], ids=["one call", "several calls"])
@pytest.mark.parametrize("alike", [True, False])
def test_short_rows_with_global_tokens(lk, alike, dtype, each_isa, rng):
    """Each batch row has an offset, and tokens of its own or those of all; each head a dilation."""
    q, k, v = (rng.standard_normal((5, 4, n, 24)).astype(dtype) for n in (33, lk, lk))
    tokens = rng.random((5, lk)) < [[0.1], [0], [0.3], [0.1], [1]]
    if alike:
        tokens[:] = tokens[2]
    options = {
        "global_tokens": tokens,
        "window_size": (2, 3),
        "dilation": np.array([1, 2, 1, 3]),
        "q_offset": rng.integers(-9, 40, 5),
        "is_causal": True,
        "kv_lengths": rng.integers(0, lk, 5),
    }
    criterion = Criterion(q, k, v, function="local_attention", **options)
    each_isa(lambda: criterion.check(attnfast.local_attention(q, k, v, **options, **FLAGS)))


@pytest.mark.parametrize(
    ("center", "sigma", "factor"),
    [
        (1e25, 1e25, np.exp(-0.5)),
        (2e19, 1e19, np.exp(-2)),
        (1e300, 1e300, np.exp(-0.5)),
        (3.0, 1e-4, 0.25),
        (3.0, 1e-300, 0.25),
    ],
)
@pytest.mark.parametrize("lq", [2, 20])
def test_factors_of_extreme_centers(center, sigma, factor, lq, each_isa):
    """Far centers see four keys alike; a narrow factor leaves one key in four."""
    q, k = np.zeros((lq, 8), np.float32), np.zeros((4, 8), np.float32)
    centers = np.full(lq, center)
    o = attnfast.local_attention(q, k, k + 1, None, centers=centers, sigma=sigma)
    np.testing.assert_allclose(o, factor, rtol=1e-5)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("size", [1, 10, 30])
@pytest.mark.parametrize(
    "options",
    [
        {"dilation": 2},
        {"global_tokens": [3]},
        {"dilation": 3, "global_tokens": [0, 9], "sink_logits": [0.5]},
    ],
    ids=["dilation", "tokens", "both"],
)
def test_weights_of_large_scores(options, size, dtype, rng):
    """The lse of large scores is rounded by more than weights may be off: their sum must not be."""
    q, k, v = (size * rng.standard_normal((3, 1, 80, 64))).astype(dtype)
    weights = attnfast.local_attention(q, k, v, 4, return_weights=True, **options).weights
    exact = reference.local_attention(q, k, v, 4, return_weights=True, **options).weights
    eps = np.finfo(dtype).eps
    assert weights.max() <= 1 + eps
    sums = weights.astype(np.float64).sum(axis=-1)
    np.testing.assert_allclose(sums, exact.astype(np.float64).sum(axis=-1), rtol=0, atol=4 * eps)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("scale", [1e9, 1e10, 1e30])
@pytest.mark.parametrize("lq", [1, 60])
@pytest.mark.parametrize(
    "options",
    [{"dilation": 2}, {"global_tokens": [0]}, {"dilation": 3, "global_tokens": [0, 9]}],
    ids=["dilation", "tokens", "both"],
)
def test_weights_of_scores_beyond_rounding(options, lq, scale, dtype, rng):
    """One key has all of the weight, though the lse is rounded by more than exp() bears."""
    q, k = (rng.standard_normal((1, n, 16)).astype(dtype) for n in (lq, 60))
    arguments = {"q_offset": 0, "scale": scale, "return_weights": True, **options}
    with np.errstate(over="ignore"):
        weights = attnfast.local_attention(q, k, k, 4, **arguments).weights
        exact = reference.local_attention(q, k, k, 4, **arguments, compute_dtype=np.float64)
    np.testing.assert_array_equal(weights, exact.weights.astype(dtype))


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("options", [{"dilation": 2}, {"global_tokens": [0, 20]}], ids=str)
def test_weights_beside_sinks(options, dtype, rng):
    """What a sink leaves depends on the lse of its own head, also where heads share a block."""
    q, k, v = qkv(rng, 300, 300, 16, heads=4, kv_heads=1, dtype=dtype)
    q *= np.array([1, 4, 0.1, 2]).astype(dtype)[:, None, None]
    options = {"window_size": 4, "sink_logits": [1.0, 6.0, 2.0, 0.0], **options}
    weights = attnfast.local_attention(q, k, v, return_weights=True, **options).weights
    Criterion(q, k, v, function="local_attention", **options).check_weights(weights)


def test_weights_beside_a_row_of_large_scores(rng):
    """Other rows keep their bits."""
    q, k, v = randn(rng, (3, 2, 60, 16))
    options = {"dilation": 2, "global_tokens": [0], "return_weights": True}
    alone = attnfast.local_attention(q, k, v, 4, **options).weights
    q[0, 7] *= np.float32(1e20)
    beside = attnfast.local_attention(q, k, v, 4, **options).weights
    assert same_bits(np.delete(beside[0], 7, axis=0), np.delete(alone[0], 7, axis=0))
    assert same_bits(beside[1], alone[1])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("dilation", "slope"), [(10, 1e38), (2**58, 1e25)])
def test_a_slope_times_a_dilation_may_be_too_large(dilation, slope, rng):
    q, k, v = rng.standard_normal((3, 2, 30, 8)).astype(np.float32)
    options = {"dilation": dilation, "alibi_slopes": [slope, 1.0]}
    exact = reference.local_attention(q, k, v, 3, **options)
    np.testing.assert_allclose(attnfast.local_attention(q, k, v, 3, **options), exact, atol=1e-5)
