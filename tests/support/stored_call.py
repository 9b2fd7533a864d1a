"""Calls whose keys and values are put into 8 bits when they are made."""

from typing import Any

import ml_dtypes
import numpy as np

import attnfast
from support.drawn_call import OF_KEYS, Call

# Bytes of each kind, and one that is as wrong as a byte of it can be.
STORAGES = {
    "int8": (np.dtype(np.int8), 0x80),
    "uint8": (np.dtype(np.uint8), 0xFF),
    "float8_e4m3fn": (np.dtype(ml_dtypes.float8_e4m3fn), 0x7F),
    "float8_e5m2": (np.dtype(ml_dtypes.float8_e5m2), 0x7E),
}


def in_bytes(rows: np.ndarray, storage: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows in 8 bits with a scale for each.

    A row with a number that is not finite, or huge, has the wrong bytes and that number as scale.
    """
    dtype, wrong = STORAGES[storage]
    wide = rows.astype(np.float64)
    size = np.abs(np.where(np.isnan(wide), np.inf, wide)).max(axis=-1, keepdims=True, initial=0)
    spoiled = size > 1e30
    scale = np.where(spoiled, 1.0, np.maximum(size, 1e-30) / 100)
    with np.errstate(all="ignore"):
        numbers = np.where(spoiled, 0, wide / scale)
        stored = (np.rint(numbers) if dtype.kind in "iu" else numbers).astype(dtype)
        scale = np.where(spoiled, wide[..., :1], scale).astype(np.float32)
    stored.view(np.uint8)[np.broadcast_to(spoiled, stored.shape)] = wrong
    return stored, scale


class ByteCall(Call):
    """A call whose key and value are put into 8 bits when it is made, with a scale for each row."""

    def __init__(self, *call: Any, storage: str) -> None:
        super().__init__(*call)
        self.storage = storage

    def like(self, *call: Any) -> "ByteCall":
        return ByteCall(*call, self.function, storage=self.storage)

    def run(self, **more: Any) -> Any:
        named = ("key",) if self.function in OF_KEYS else ("key", "value")
        stored = [in_bytes(getattr(self, name), self.storage) for name in named]
        scales = {f"{name}_scale": s for name, (_, s) in zip(named, stored, strict=True)}
        arrays = [a for a, _ in stored]
        return getattr(attnfast, self.function)(
            self.query, *arrays, **{**self.options, **scales, **more}
        )

    def __repr__(self) -> str:
        return f"{super().__repr__()} in {self.storage}"
