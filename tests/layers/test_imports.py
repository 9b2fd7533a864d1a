"""The layers need NumPy alone."""

from support.scripts import run_python


def test_only_numpy(tmp_path):
    """Importing and using the layers brings in no other package."""
    code = """
import sys
import numpy as np
before = {name.split(".")[0] for name in sys.modules}
from attnfast.layers import *
x = np.ones((1, 5, 8), np.float32)
layer = MultiHeadAttention(8, 2, seed=0)
MultiHeadAttention.from_torch(layer.to_torch(), 2)(x)
LuongAttention(8, seed=0)(x, x), BahdanauAttention(8, 8, 8, seed=0)(x, x), Attention()([x, x])
new = {name.split(".")[0] for name in sys.modules} - before
others = {"torch", "keras", "safetensors", "ml_dtypes", "scipy", "onnx"}
print("attnfast" in new, sorted(new & others))
"""
    assert run_python(code, tmp_path) == "True []\n"
