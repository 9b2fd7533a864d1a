"""Keras, if its version and backend are ones that this bridge knows, and what attends on it."""

import importlib
import importlib.util
import re
from typing import Any

OLDEST = "3.12.0"  # before, masks of values are an error in Attention
BACKENDS = ("torch", "jax", "numpy")
WANTED = f"attnfast.keras needs Keras {OLDEST} or newer"

if importlib.util.find_spec("keras") is None:
    raise ImportError(f"{WANTED}, which is not installed: pip install 'attnfast[keras]'")
try:
    import keras
except ImportError as error:
    raise ImportError(
        f"{WANTED} with the backend {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}, but importing "
        f"keras fails ({error}): set KERAS_BACKEND to one that is installed"
    ) from error

__all__ = ["BACKENDS", "OLDEST", "backend", "keras"]


def _numbers(version: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", version)[:2]]


if _numbers(keras.__version__) < _numbers(OLDEST):
    raise ImportError(f"{WANTED}, got {keras.__version__}: pip install --upgrade 'attnfast[keras]'")

if keras.backend.backend() not in BACKENDS:
    raise ImportError(
        f"attnfast.keras computes with the Keras backends {', '.join(BACKENDS[:-1])} and "
        f"{BACKENDS[-1]}, got {keras.backend.backend()}: set KERAS_BACKEND to one of them before "
        "Keras is imported, or use the layers of keras.layers"
    )

# Of the module: `computes(*arrays)`, whether attnfast computes with such arrays;
# `attend(function, query, key, value, **options)`, the output of attention or of additive_attention
# for operands (batch, length, heads, size); `as_seed(state)`, a seed from the state of Keras's
# generator.
backend: Any = importlib.import_module(f"{__package__}._{keras.backend.backend()}")
