"""Attention over chunks of dask arrays is attention; also on processes, one of which dies."""

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import attnfast
from support.paths import ROOT
from support.scripts import run_python

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
bridge = pytest.importorskip("attnfast.dask")
tasks = pytest.importorskip("attnfast.dask._tasks")

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(5)
Q = RNG.standard_normal((2, 4, 50, 8))
K, V = RNG.standard_normal((2, 2, 2, 70, 8))
SINKS = np.array([1.0, 2.0, 3.0, 4.0])
OTHERS = ("bias", "sink_logits", "alibi_slopes")
CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "end": {"is_causal": True, "q_offset": "end", "kv_lengths": [70, 40], "q_lengths": [50, 9]},
    "window": {"window_size": 7, "q_offset": 3},
    "rows": {
        "window_size": (3, -1),
        "is_causal": True,
        "q_offset": [4, 30],
        "kv_lengths": [60, 0],
        "kv_starts": [2, 0],
    },
    "pairs": {
        "mask": RNG.random((2, 1, 50, 70)) < 0.5,
        "bias": RNG.standard_normal((1, 4, 1, 70)),
    },
    "scores": {
        "alibi_slopes": SINKS / 10,
        "sink_logits": SINKS,
        "q_offset": 0,
        "softcap": 2.0,
        "scale": 0.5,
    },
    "nothing": {"is_causal": True, "q_offset": -60, "sink_logits": SINKS},
}


@pytest.fixture(autouse=True)
def one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def arrays(dtype: Any = np.float64) -> tuple[list[np.ndarray], list[Any]]:
    """Query, key and value, and the same in chunks that do not fit one another."""
    plain = [x.astype(dtype) for x in (Q, K, V)]
    chunks = (1, 2, 20, 8), (2, 1, 30, 4), (2, 2, 70, 8)
    return plain, [da.from_array(x, chunks=c) for x, c in zip(plain, chunks, strict=True)]


def check(plain: Any, chunked: Any, lazy: dict[str, Any] | None = None, **options: Any) -> None:
    """Output, lse, weights and all gradients of a call are those of attnfast.

    `lazy` are options that dask gets in another form.
    """
    lazy = {**options, **(lazy or {})}
    expected = attnfast.attention(*plain, return_lse=True, return_weights=True, **options)
    result = bridge.attention(*chunked, return_lse=True, return_weights=True, **lazy)
    for ours, theirs in zip(dask.compute(*result), expected, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    rng = np.random.default_rng(1)
    loss = rng.standard_normal(expected.output.shape).astype(expected.output.dtype)
    more = {"grad_lse": rng.standard_normal(expected.lse.shape)}
    more["wanted"] = "query", "key", "value", *(name for name in OTHERS if name in options)
    found = bridge.attention_backward(loss, *chunked, *result[:2], **lazy, **more)
    by_arrays = attnfast.attention_backward(loss, *plain, *expected[:2], **options, **more)
    for lazily, theirs in zip(found, by_arrays, strict=True):
        assert (lazily is None) == (theirs is None)
        if lazily is not None:
            ours = lazily.compute()
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CALLS)
def test_results_and_gradients(name):
    check(*arrays(), **CALLS[name])
    output = bridge.attention(*arrays()[1], **CALLS[name])
    assert output.chunks[:3] == arrays()[1][0].chunks[:3]


@pytest.mark.parametrize(
    "rows",
    [(2, 1, 1), (1, 2, 2), (2, 0, 0), (0, 2, 2), (1, 2, 1), (2, 2, 0), (1, 1, 2)],
    ids=lambda rows: "-".join(map(str, rows)),
)
def test_batch_rows_broadcast(rows):
    """0: no axis of batch rows."""
    plain, chunked = arrays()
    plain = [x[:n] if n else x[0] for x, n in zip(plain, rows, strict=True)]
    chunked = [x[:n] if n else x[0] for x, n in zip(chunked, rows, strict=True)]
    options = {"window_size": (9, 3), "q_offset": [2, 11], "kv_lengths": [70, 33]}
    bias = RNG.standard_normal((2, 1, 1, 70))
    check(plain, chunked, bias=bias, sink_logits=SINKS, **options)


def test_chunks_without_elements():
    """Slices and filters leave such chunks."""
    plain, _ = arrays()
    sizes = ((0, 1, 0, 1), (2, 0, 2), (50, 0), (0, 8)), ((2, 0), (0, 1, 1), (0, 0, 70), (8,))
    chunked = [da.from_array(x, chunks=sizes[n]) for x, n in zip(plain, (0, 1, 1), strict=True)]
    bias = RNG.standard_normal((50, 1))
    lazy = {"bias": da.from_array(bias, chunks=((0, 50), (0, 1)))}
    check(plain, chunked, lazy, bias=bias, **CALLS["end"])
    plain[0] = plain[0][:1]  # for the batch rows of keys
    chunked[0] = da.from_array(plain[0], chunks=((0, 1), *sizes[0][1:]))
    check(plain, chunked, lazy, bias=bias, **CALLS["window"])


@pytest.mark.parametrize(
    ("axis", "which"),
    [(0, (0, 1, 2)), (2, (0,)), (2, (1, 2)), (2, (0, 1, 2)), (3, (2,))],
    ids=["no batch rows", "no queries", "no keys", "neither", "empty values"],
)
def test_axes_without_elements(axis, which):
    """An empty axis may be in several chunks."""
    plain, chunked = arrays()
    for n in which:
        shape = [0 if k == axis else size for k, size in enumerate(plain[n].shape)]
        sizes = [(0, 0) if k == axis else some for k, some in enumerate(chunked[n].chunks)]
        plain[n], chunked[n] = np.zeros(shape), da.zeros(shape, chunks=sizes)
    mask = np.ones((plain[0].shape[2], 1), bool)
    lazy = {"mask": da.from_array(mask, chunks=1)}
    options = {"mask": mask, "is_causal": True, "q_offset": "end"}
    check(plain, chunked, lazy, **options)
    if axis:
        check([x[0, 0] for x in plain], [x[0, 0] for x in chunked], lazy, **options)


@pytest.mark.parametrize("shape", [(50, 70), (4, 1, 70), (2, 1, 50, 1), (2, 4, 50, 70), (1, 1)])
def test_gradients_of_a_bias(shape):
    """Its chunks are other ones, and windows leave out parts of it."""
    bias = RNG.standard_normal(shape)
    lazy = {"bias": da.from_array(bias, chunks=17)}
    check(*arrays(), lazy, bias=bias, window_size=(11, 2), q_offset=8)


def test_gradients_of_a_single_row_of_queries():
    plain, chunked = arrays()
    last = slice(None), slice(None), slice(44, 45)
    q = da.concatenate([chunked[0][last], chunked[0][:, :, :3]], axis=2)  # chunks of 1 and 3
    x = np.concatenate([plain[0][last], plain[0][:, :, :3]], axis=2)
    bias = RNG.standard_normal((4, 70))
    check([x, *plain[1:]], [q, *chunked[1:]], bias=bias, window_size=30, q_offset=20)


def test_slopes_for_each_row():
    slopes = abs(RNG.standard_normal((2, 4)))
    check(*arrays(), alibi_slopes=slopes, q_offset=[3, 20])


@pytest.mark.parametrize("size", [(20, 30), (16, 8), (7, 3), (1, 1), (64, 128)])
def test_block_masks(size):
    """Blocks lie across the borders of chunks."""
    shape = (4, -(-50 // size[0]), -(-70 // size[1]))
    mask = attnfast.BlockMask(RNG.random(shape) < 0.4, size)
    check(*arrays(), mask=mask)
    check(*arrays(), mask=mask, window_size=(13, 5), q_offset=10, sink_logits=SINKS)


def test_hidden_blocks_are_not_read():
    read = []

    def load(block_info: Any = None) -> np.ndarray:
        (start, stop), _ = block_info[None]["array-location"]
        read.append(start)
        return np.ones((stop - start, 8))

    key = da.map_blocks(load, chunks=((100,) * 5, 8), dtype=float, meta=np.empty((0, 0)))
    mask = attnfast.BlockMask(np.eye(5, dtype=bool), 100)
    query = da.ones((500, 8), chunks=(100, 8))
    np.testing.assert_allclose(bridge.attention(query, key, key, mask=mask)[130:150], 1)
    assert set(read) == {100}


def test_blocks_are_sent_as_blocks():
    """Where they lie across the borders of chunks, blocks of one pair were part of the graph."""
    x = da.zeros((3996, 8), chunks=(999, 8))
    mask = attnfast.BlockMask(np.ones((63, 63), dtype=bool), 64)
    graph = bridge.attention(x, x, x, mask=mask).__dask_graph__()
    assert len(pickle.dumps(dict(graph))) < 100_000


def test_visible_nan_stays_and_hidden_keys_weigh_nothing():
    plain, _ = arrays()
    plain[1][:, :, 65, 0] = np.nan  # in the last chunk of keys
    lazy = [da.from_array(x, chunks=(2, 4, 20, 8)) for x in plain]
    options = {"window_size": (20, 10), "q_offset": 8, "return_weights": True}
    expected = attnfast.attention(*plain, **options)
    found = bridge.attention(*lazy, **options)
    np.testing.assert_array_equal(np.isnan(found.output), np.isnan(expected.output))
    hidden = expected.weights == 0
    assert np.isnan(found.weights.compute()).any()
    np.testing.assert_array_equal(found.weights.compute()[hidden], 0)


@pytest.mark.parametrize("rank", [2, 3])
def test_fewer_axes(rank):
    x = Q[(0,) * (4 - rank)]
    chunked = da.from_array(x, chunks=(*(1,) * (rank - 2), 20, 8))
    found = bridge.attention(chunked, chunked, chunked, window_size=4)
    np.testing.assert_allclose(found, attnfast.attention(x, x, x, window_size=4), atol=1e-12)


def test_a_result_has_few_layers():
    """Each is looked at for every task of a call that takes the result."""
    _, chunked = arrays()
    output, lse, _ = bridge.attention(*chunked, return_lse=True)
    operands = set().union(*(x.dask.layers for x in chunked))
    assert len(output.dask.layers.keys() - operands) < 10
    found = bridge.attention_backward(output, *chunked, output, lse)
    assert max(len(x.dask.layers.keys() - operands) for x in found[:3]) < 20
    with dask.config.set(scheduler="threads"):
        assert found.key.compute().shape == found.key.shape


def test_masks_in_chunks():
    plain, chunked = arrays()
    mask = CALLS["pairs"]["mask"]
    found = bridge.attention(*chunked, mask=da.from_array(mask, chunks=13))
    np.testing.assert_allclose(found, attnfast.attention(*plain, mask=mask), atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtypes_are_kept_and_sums_are_wide(dtype):
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), dtype, dtype))
    plain, chunked = arrays(dtype)
    result = bridge.attention(*chunked, return_lse=True)
    found = bridge.attention_backward(result.output, *chunked, *result[:2])
    got = dask.compute(result.output, *found[:3])
    wide = [x.astype(np.float64) for x in plain]
    exact, pullback = attnfast.vjp(attnfast.attention, *wide)
    expected = exact, *pullback(got[0].astype(np.float64))[:3]
    step = 2.0 ** {"float32": -20, "float16": -10, "bfloat16": -7}[dtype.name]
    # The output is rounded once: half a step.
    np.testing.assert_allclose(got[0].astype(np.float64), exact, rtol=0.51 * step, atol=1e-6)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a.astype(np.float64), b, rtol=2 * step, atol=2 * step)


def test_the_gradient_of_a_small_bias_is_rounded_once():
    plain, chunked = arrays(np.float32)
    bias = RNG.standard_normal((4, 1, 70)).astype(np.float16)
    result = bridge.attention(*chunked, bias=bias, return_lse=True)
    operands = plain[0], *chunked, *result[:2]
    found = bridge.attention_backward(*operands, bias=bias, wanted=("bias",)).bias
    _, pullback = attnfast.vjp(attnfast.attention, *plain, bias=bias.astype(float), wanted=["bias"])
    exact = pullback(plain[0]).bias
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.compute().astype(float), exact, rtol=0.51 / 2**10, atol=1e-5)


def test_only_keys_within_the_window_are_needed():
    """Those of other chunks are not read, and of these chunks only what is seen."""
    read = []

    def load(name: str, block_info: Any = None) -> np.ndarray:
        (start, stop), _ = block_info[None]["array-location"]
        read.append((name, start))
        x = np.full((stop - start, 8), np.nan)
        x[np.arange(start, stop) >= 380] = 1
        return x

    chunks = ((100,) * 10, 8)
    key, value = (
        da.map_blocks(load, name, chunks=chunks, dtype=float, meta=np.empty((0, 0)))
        for name in "kv"
    )
    query = da.ones((1000, 8), chunks=(100, 8))
    output = bridge.attention(query, key, value, window_size=(20, 0))
    np.testing.assert_allclose(output[400:450].compute(), 1)
    assert sorted(set(read)) == [(name, start) for name in "kv" for start in (300, 400)]


def test_tasks_use_one_thread(monkeypatch):
    seen = []

    def attend(*operands: Any, **options: Any) -> Any:
        seen.append(options["num_threads"])
        return attnfast.attention(*operands, **options)

    monkeypatch.setattr(tasks, "attention", attend)
    bridge.attention(*arrays()[1]).compute()
    assert set(seen) == {1}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dropout": 0.1}, TypeError, r"^dropout is not an argument of attnfast\.dask: .*map"),
        ({"num_threads": 2}, TypeError, r"^num_threads is not an argument of attnfast\.dask"),
        ({"mask": [[True]]}, TypeError, r"^mask must be a NumPy or dask array.*np\.asarray"),
        ({"bias": np.ones((50, 70), int)}, TypeError, r"^bias must be floating point, got int64"),
        ({"kv_lengths": da.ones(2, dtype=int)}, TypeError, r"^kv_lengths is a dask array"),
        ({"sink_logits": np.ones(3)}, ValueError, r"^sink_logits"),
        ({"causal": True}, TypeError, r"^causal is not .*is_causal"),
        ({"window_size": -3}, ValueError, r"^window_size"),
        ({"is_causal": True}, ValueError, r"q_offset"),
        ({"mask": np.ones((50, 70))}, TypeError, r"^mask must be bool, True .*got float64"),
        ({"mask": np.ones((50, 69), bool)}, ValueError, r"^mask has shape \(50, 69\)"),
        ({"kv_lengths": [1, 2, 3]}, ValueError, r"^kv_lengths"),
    ],
)
def test_bad_input_raises_before_anything_runs(options, error, message):
    with pytest.raises(error, match=message):
        bridge.attention(*arrays()[1], **options)


def test_bad_shapes():
    q, k, v = arrays()[1]
    with pytest.raises(ValueError, match=r"^the batch axes of key do not broadcast"):
        bridge.attention(q, da.concatenate([k, k[:1]]), v)
    with pytest.raises(ValueError, match=r"^query must have 2 to 4 axes.*reshape"):
        bridge.attention(q[None], k, v)
    with pytest.raises(ValueError, match=r"^key must have a known shape.*compute_chunk_sizes"):
        bridge.attention(q[0, 0], k[0, 0][k[0, 0, :, 0] > 0], v[0, 0])
    with pytest.raises(ValueError, match=r"^lse must have shape \(2, 4, 50\)"):
        bridge.attention_backward(q, q, k, v, q, q)
    lse = q[..., 0]
    with pytest.raises(ValueError, match=r"^wanted names bias, which the call does not have"):
        bridge.attention_backward(q, q, k, v, q, lse, wanted=("bias",))
    with pytest.raises(TypeError, match=r"^grad_weights is not an argument of attnfast\.dask"):
        bridge.attention_backward(q, q, k, v, q, lse, grad_weights=lse)
    with pytest.raises(TypeError, match=r"^grad_output has dtype float32 but query has float64"):
        bridge.attention_backward(q.astype(np.float32), q, k, v, q, lse)
    with pytest.raises(TypeError, match=r"^output must be float.*got bool"):
        bridge.attention_backward(q, q, k, v, q > 0, lse)
    with pytest.raises(TypeError, match=r"^grad_lse must be .*got complex128"):
        bridge.attention_backward(q, q, k, v, q, lse, grad_lse=1j * lse)


CLUSTER = """
import os, sys
import numpy as np, dask.array as da, attnfast
from attnfast.dask import attention
from distributed import Client, LocalCluster

def kill_once(x):
    try:
        os.close(os.open({flag!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return x
    os._exit(1)

if __name__ == "__main__":
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 400, 16), dtype=np.float32)
    chunked = [da.from_array(x, chunks=(2, 100, 16)) for x in (q, k, v)]
    alone = attention(*chunked, is_causal=True).compute(scheduler="synchronous")
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True,
                      dashboard_address=None) as cluster, Client(cluster) as client:
        first = set(client.nthreads())
        last = chunked[2][:, 300:]
        last = last.map_blocks(kill_once, dtype=last.dtype, meta=last._meta)
        late = da.concatenate([chunked[2][:, :300], last], axis=1)
        output = attention(chunked[0], chunked[1], late, is_causal=True).compute()
        assert os.path.exists({flag!r}) and set(client.nthreads()) != first, "no worker died"
    assert output.tobytes() == alone.tobytes()
    np.testing.assert_allclose(output, attnfast.attention(q, k, v, is_causal=True), atol=1e-6)
    print("right")
"""


def test_a_worker_dies(tmp_path):
    pytest.importorskip("distributed")
    script = tmp_path / "cluster.py"
    script.write_text(CLUSTER.format(flag=str(tmp_path / "dead")))
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0 and done.stdout == "right\n", done.stderr


def test_the_example(tmp_path):
    pytest.importorskip("distributed")
    script = [str(ROOT / "examples" / "long_sequence.py"), "--tokens", "4000", "--chunk", "500"]
    done = subprocess.run(
        [sys.executable, *script, "--window", "32"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "4,000 tokens in 8 chunks" in done.stdout
    assert float(done.stdout.split()[-1]) < 1e-5


def test_without_the_package(tmp_path):
    code = (
        "import sys; sys.modules['dask'] = None\n"
        "import attnfast\n"
        "try: import attnfast.dask\n"
        "except ImportError as error: print(error)"
    )
    shown = run_python(code, tmp_path)
    assert shown.startswith("attnfast.dask needs the package dask, 2024.8 or later: pip install")
