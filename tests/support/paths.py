"""Where things are."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent

# Modules of attnfast, and pages of docs/guide, that need the library of their name.
BRIDGES = ("autograd", "dask", "jax", "keras", "onnx", "torch", "transformers")
