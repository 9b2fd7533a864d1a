"""Models of ONNX with Attention nodes; promises/test_onnx.py has ONNX's own cases of them."""

import numpy as np
import pytest

import attnfast
from attnfast.cli import main
from support.arrays import assert_same
from support.scripts import run_python

onnx = pytest.importorskip("onnx")
bridge = pytest.importorskip("attnfast.onnx")
parser = pytest.importorskip("onnx.parser")
ReferenceEvaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator

pytestmark = pytest.mark.quick

BLOCK = """
<ir_version: 10, opset_import: ["" : 23]>
block (float[batch, length, 24] x) => (float[batch, length, 24] y)
<float[24, 24] wq, float[24, 24] wk, float[24, 24] wv>
{
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    v = MatMul (x, wv)
    a = Attention <q_num_heads = 4, kv_num_heads = 4, is_causal = 1> (q, k, v)
    y = Add (x, a)
}
"""
DECODER = """
<ir_version: 10, opset_import: ["" : 24]>
step (float16[1, 4, n, 8] q, float16[1, 2, n, 8] k, float16[1, 2, n, 8] v,
      float16[1, 2, p, 8] past_key, float16[1, 2, p, 8] past_value)
=> (float16[1, 4, n, 8] y, float16[1, 2, t, 8] present_key, float16[1, 2, t, 8] present_value)
{
    y, present_key, present_value =
        Attention <is_causal = 1, softcap = 3.0> (q, k, v, "", past_key, past_value)
}
"""


@pytest.fixture
def block(rng):
    """A layer, and its model with weights."""
    model = parser.parse_model(BLOCK)
    for name in ("wq", "wk", "wv"):
        weight = rng.standard_normal((24, 24), dtype=np.float32) / 5
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.checker.check_model(model)
    return model


def call_node(inputs, outputs=("y",), opset=25, **attributes):
    """Run one node with these arrays, None for inputs that are left out."""
    names = [f"x{n}" if x is not None else "" for n, x in enumerate(inputs)]
    node = onnx.helper.make_node("Attention", names, outputs, **attributes)
    evaluator = ReferenceEvaluator(node, new_ops=[bridge.Attention])
    given = {name: x for name, x in zip(names, inputs, strict=True) if x is not None}
    return evaluator.run(None, given)


def test_a_model_is_what_its_reference_computes(block, rng):
    x = rng.standard_normal((2, 30, 24), dtype=np.float32)
    (expected,) = ReferenceEvaluator(block).run(None, {"x": x})
    found = bridge.run_model(block, {"x": x})
    assert list(found) == ["y"]
    np.testing.assert_allclose(found["y"], expected, rtol=1e-5, atol=1e-5)
    assert list(bridge.run_model(block, {"x": x}, ["a"])) == ["a"]


def test_a_cache_grows_step_by_step(rng):
    model = parser.parse_model(DECODER)
    q, k, v = (rng.standard_normal((1, h, 10, 8)).astype(np.float16) for h in (4, 2, 2))
    whole = attnfast.attention(q, k, v, is_causal=True, softcap=3.0)
    key = value = np.zeros((1, 2, 0, 8), np.float16)
    for part in (slice(0, 4), slice(4, 5), slice(5, 10)):
        rows = {name: x[:, :, part] for name, x in zip("qkv", (q, k, v), strict=True)}
        found = bridge.run_model(model, {**rows, "past_key": key, "past_value": value})
        key, value = found["present_key"], found["present_value"]
        np.testing.assert_allclose(found["y"], whole[:, :, part], rtol=2e-3, atol=2e-3)
    assert_same((key, value), (k, v))


@pytest.mark.parametrize("shape", [(9,), (9, 9), (2, 9, 9), (1, 2, 9, 9), (2, 1, 1, 9)])
def test_masks_broadcast_from_the_right(shape, rng):
    """Those with 3 axes are of heads even where there are as many batch rows."""
    q, k, v = rng.standard_normal((3, 2, 2, 9, 8), dtype=np.float32)
    mask = rng.random(shape) < 0.7
    expected = attnfast.attention(q, k, v, mask=np.broadcast_to(mask, (2, 2, 9, 9)))
    assert_same(call_node([q, k, v, mask])[0], expected)
    bias = rng.integers(-2, 3, shape)
    expected = attnfast.attention(q, k, v, bias=np.broadcast_to(bias * 1.0, (2, 2, 9, 9)))
    np.testing.assert_allclose(call_node([q, k, v, bias])[0], expected, atol=1e-6)


def test_keys_that_a_short_mask_leaves_out_are_hidden(rng):
    q, k, v = rng.standard_normal((3, 1, 2, 9, 8), dtype=np.float32)
    expected = attnfast.attention(q, k[:, :, :6], v[:, :, :6])
    k[:, :, 6:] = v[:, :, 6:] = np.nan
    for mask in (np.ones((9, 6), bool), np.zeros((9, 6), np.float32)):
        np.testing.assert_allclose(call_node([q, k, v, mask])[0], expected, atol=1e-6)


def test_outputs_without_a_name_do_not_become_inputs(rng):
    """The evaluator would hand them to the next node as what it leaves out."""
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 23]>
        two (float[1, 2, 9, 8] x) => (float[1, 2, 9, 8] y, float[1, 2, 9, 9] s)
        {
            a, "", "", s = Attention <qk_matmul_output_mode = 3> (x, x, x)
            y = Attention (a, a, a, "", "", "")
        }
    """)
    x = rng.standard_normal((1, 2, 9, 8), dtype=np.float32)
    found = bridge.run_model(model, {"x": x})
    once, _, weights = attnfast.attention(x, x, x, return_weights=True)
    np.testing.assert_allclose(found["s"], weights, rtol=1e-5, atol=1e-7)
    assert_same(found["y"], attnfast.attention(once, once, once))


def test_values_may_have_another_dtype(rng):
    q, k, v = rng.standard_normal((3, 1, 2, 9, 8))
    exact = attnfast.attention(q, k, v)
    (y,) = call_node([q.astype(np.float16), k.astype(np.float16), v.astype(np.float32)])
    assert y.dtype == np.float16
    np.testing.assert_allclose(y, exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("changes", "attributes", "message"),
    [
        ({}, {"kv_num_heads": 2}, r"^Q must have shape .*q_num_heads=None"),
        ({}, {"q_num_heads": 5, "kv_num_heads": 2}, r"^Q must have shape .*q_num_heads=5"),
        ({4: np.zeros((1, 2, 3, 4), np.float32)}, {}, r"^past_key and past_value must be given"),
        (
            {n: np.zeros((1, 2, 3, 4), np.float32) for n in (4, 5)} | {6: np.array([3])},
            {},
            r"^nonpad_kv_seqlen must be left out",
        ),
    ],
)
def test_bad_nodes(changes, attributes, message):
    if not attributes:
        attributes = {"q_num_heads": 2, "kv_num_heads": 2}
    inputs = [np.ones((1, 5, 8), np.float32)] * 3 + [None] * 4
    for n, x in changes.items():
        inputs[n] = x
    with pytest.raises(ValueError, match=message):
        call_node(inputs, **attributes)


def test_bad_inputs(block):
    x = np.ones((1, 5, 24), np.float32)
    with pytest.raises(ValueError, match=r"those of the model, x; x is missing; z is not one"):
        bridge.run_model(block, {"z": x})
    with pytest.raises(TypeError, match=r"^inputs\['x'\] must be float32, got float64: write x.as"):
        bridge.run_model(block, {"x": x.astype(float)})
    with pytest.raises(ValueError, match=r"must have shape \(batch, length, 24\), got \(1, 5, 8\)"):
        bridge.run_model(block, {"x": x[..., :8]})


def test_the_command(block, tmp_path, monkeypatch, capsys, rng):
    monkeypatch.chdir(tmp_path)
    onnx.save(block, "block.onnx")
    x = rng.standard_normal((2, 30, 24), dtype=np.float32)
    np.save("x.npy", x)
    for given in ("x.npy", "x=x.npy"):
        assert main(["onnx", "block.onnx", "--input", given, "--output", "y.npz"]) == 0
        assert capsys.readouterr().out == "y: float32 (2, 30, 24)\n"
        assert_same(np.load("y.npz")["y"], bridge.run_model("block.onnx", {"x": x})["y"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["block.onnx"], "x is missing"),
        (["block.onnx", "--input", "x.npy", "--input", "x.npy"], "one too many: there are x"),
        (["x.npy"], "must be the file of an ONNX model, got x.npy"),
        (["empty.onnx"], "must be the file of an ONNX model, got empty.onnx"),
        (["none.onnx"], "none.onnx"),
    ],
)
def test_the_command_explains(arguments, message, block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(block, "block.onnx")
    np.save("x.npy", np.ones((1, 5, 24), np.float32))
    (tmp_path / "empty.onnx").touch()
    assert main(["onnx", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("attnfast onnx: error: ") and message in error


def test_without_the_package(tmp_path):
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "import attnfast\n"
        "try: import attnfast.onnx\n"
        "except ImportError as error: print(error)"
    )
    shown = run_python(code, tmp_path)
    assert shown.startswith("attnfast.onnx needs the package onnx, 1.19 or later: pip install")
