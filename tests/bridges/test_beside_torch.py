"""Parity with ``torch.nn.functional.scaled_dot_product_attention``, and life in its process."""

import os
import subprocess
import sys

import numpy as np
import pytest

import attnfast

torch = pytest.importorskip("torch", reason="torch is an optional extra")

sdpa = torch.nn.functional.scaled_dot_product_attention

# dtype name -> (largest error against torch in float64, largest difference to torch itself).
# The outputs here are smaller than 4: half an ulp of that is 2**-8 in bfloat16, 2**-11 in
# float16. torch rounds its softmax weights to the 16-bit type, attnfast does not.
TOLERANCE = {
    "float64": (1e-14, 1e-14),
    "float32": (4e-6, 4e-6),
    "float16": (2**-10, 2**-8),
    "bfloat16": (2**-7, 2**-5),
}

SHAPES = [  # B, H, Hk, Lq, Lk, D, Dv
    (2, 3, 3, 16, 16, 32, 32),
    (1, 2, 2, 130, 130, 64, 64),
    (2, 4, 2, 7, 70, 24, 24),
    (1, 6, 1, 33, 129, 40, 40),
    (2, 2, 2, 65, 50, 48, 80),
    (2, 8, 4, 1, 300, 64, 64),
]


def to_numpy(tensor):
    """View a tensor as a NumPy array; torch itself has no NumPy view of bfloat16."""
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def draw(shape, dtype="float32", seed=0):
    """Random query, key and value tensors for one entry of ``SHAPES``."""
    B, H, Hk, Lq, Lk, D, Dv = shape
    rng = np.random.default_rng(seed)
    shapes = [(B, H, Lq, D), (B, Hk, Lk, D), (B, Hk, Lk, Dv)]
    tensors = [torch.from_numpy(rng.standard_normal(s)) for s in shapes]
    return [t.to(getattr(torch, dtype)) for t in tensors]


def agree(output, tensors, attn_mask=None, **options):
    """Compare an output with torch in float64 and with torch in the tensors' own dtype."""
    dtype = str(tensors[0].dtype).removeprefix("torch.")
    options["enable_gqa"] = tensors[0].shape[1] != tensors[1].shape[1]
    exact_error, difference = TOLERANCE[dtype]
    for kind, tolerance in ((torch.float64, exact_error), (tensors[0].dtype, difference)):
        own = attn_mask
        if own is not None and own.dtype != torch.bool:
            own = own.to(kind)
        expected = sdpa(*(t.to(kind) for t in tensors), attn_mask=own, **options)
        assert output.shape == tuple(expected.shape)
        assert output.dtype.name == dtype
        np.testing.assert_allclose(
            output.astype(np.float64), expected.double().numpy(), rtol=0, atol=tolerance
        )


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestParity:
    def test_full(self, shape, dtype):
        tensors = draw(shape, dtype)
        agree(attnfast.attention(*map(to_numpy, tensors)), tensors)

    def test_causal(self, shape, dtype):
        tensors = draw(shape, dtype)
        # torch lines up query 0 with key 0 whatever the lengths.
        output = attnfast.attention(*map(to_numpy, tensors), is_causal=True, q_offset=0)
        agree(output, tensors, is_causal=True)

    def test_bool_mask(self, shape, dtype):
        tensors = draw(shape, dtype)
        B, _, _, Lq, Lk, *_ = shape
        mask = torch.from_numpy(np.random.default_rng(1).random((B, 1, Lq, Lk)) < 0.6)
        mask[..., 0] = True
        output = attnfast.attention(*map(to_numpy, tensors), mask=mask.numpy())
        agree(output, tensors, attn_mask=mask)

    def test_float_mask(self, shape, dtype):
        tensors = draw(shape, dtype)
        H, Lq, Lk = shape[1], shape[3], shape[4]
        bias = torch.from_numpy(np.random.default_rng(2).standard_normal((H, Lq, Lk)))
        bias[:, :, 1::3] = -torch.inf
        bias = bias.to(tensors[0].dtype)
        output = attnfast.attention(*map(to_numpy, tensors), bias=to_numpy(bias)[None])
        agree(output, tensors, attn_mask=bias)

    def test_scale(self, shape, dtype):
        tensors = draw(shape, dtype)
        output = attnfast.attention(*map(to_numpy, tensors), scale=0.2)
        agree(output, tensors, scale=0.2)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_fully_masked_rows_are_zero(dtype):
    tensors = draw((2, 3, 3, 20, 40, 32, 32), dtype)
    mask = torch.ones(2, 1, 20, 40, dtype=torch.bool)
    mask[0, :, 3:5] = False
    mask[1, :, 19] = False
    output = attnfast.attention(*map(to_numpy, tensors), mask=mask.numpy())
    assert not output[0, :, 3:5].astype(np.float32).any()
    assert not output[1, :, 19].astype(np.float32).any()
    agree(output, tensors, attn_mask=mask)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_transposed_views_are_taken_and_given_back(dtype):
    """The layout that transformer code holds: memory (B, L, H, D), viewed as (B, H, L, D)."""
    packed = draw((2, 45, 45, 3, 3, 32, 32), dtype)
    views = [t.transpose(1, 2) for t in packed]
    arrays = [to_numpy(v) for v in views]
    assert not arrays[0].flags.c_contiguous
    assert all(
        a.__array_interface__["data"][0] == t.data_ptr()
        for a, t in zip(arrays, packed, strict=True)
    )
    output = attnfast.attention(*arrays)
    assert output.swapaxes(1, 2).flags.c_contiguous
    agree(output, views)


# Child processes. Each script asserts and ends with "done"; the work is large enough that both
# libraries run their thread teams.

SETUP = """
import os, signal, time
import numpy as np

rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((2, 4, 700, 64), dtype=np.float32) for _ in range(3))
torch.set_num_threads(2)

def with_torch():
    tensors = map(torch.from_numpy, (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=True).numpy()

def check(expected):
    output = attnfast.attention(q, k, v, is_causal=True, num_threads=2)
    np.testing.assert_allclose(output, expected, rtol=0, atol=2e-6)

def check_in_child(expected):
    child = os.fork()
    if child == 0:
        try:
            check(expected)
        except BaseException:
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, "the child's output is wrong"
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")
"""


def run_script(tmp_path, *lines):
    """Run the lines as one script, outside the source tree."""
    script = "\n".join((*lines, "print('done')"))
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done\n"


imports = pytest.mark.parametrize(
    "imports",
    ["import torch\nimport attnfast", "import attnfast\nimport torch"],
    ids=["torch_first", "attnfast_first"],
)


@imports
def test_both_work_in_one_process(tmp_path, imports):
    run_script(tmp_path, imports, SETUP, "for _ in range(3): check(with_torch())")


@imports
@pytest.mark.parametrize("parent", ["pass", "check(expected)"], ids=["torch_ran", "both_ran"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_fork_after_torch_ran(tmp_path, imports, parent):
    """A forked child has none of the OpenMP threads that torch left in its parent."""
    lines = ("expected = with_torch()", parent, "check_in_child(expected)", "check(expected)")
    run_script(tmp_path, imports, SETUP, *lines)
