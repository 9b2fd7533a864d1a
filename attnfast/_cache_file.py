"""Files of a KVCache: an ``.npz`` of its arrays and numbers."""

import os
import zipfile
from typing import IO, Any

import numpy as np

from ._storage import NAMES, Storage, as_dtype

FORMAT = 1
NUMBERS = ("num_kv_heads", "capacity", "window", "sinks", "grow")  # a window of 0: none
ARRAYS = ("batch_shape", "dims", "lengths", "written")


def write(file: str | os.PathLike[str] | IO[bytes], state: dict[str, Any]) -> None:
    """Write a state; bfloat16 and float8, which files of NumPy do not know, as their bits."""
    _check_file(file, "write")
    arrays = {name: np.asarray(state[name] or 0) for name in NUMBERS}
    arrays |= {name: np.asarray(state[name]) for name in ARRAYS}
    arrays["batch_shape"] = arrays["batch_shape"].astype(np.int64)
    dtype = state["dtype"]
    parts = {name: state[name] for name in NAMES if name in state}
    if dtype.isbuiltin != 1:
        parts |= {name: parts[name].view(f"u{dtype.itemsize}") for name in NAMES[:2]}
    arrays |= parts
    arrays |= {"format": np.asarray(FORMAT), "dtype": np.asarray(dtype.name)}
    named: dict[str, Any] = arrays
    np.savez(file, **named)


def read(file: str | os.PathLike[str] | IO[bytes]) -> dict[str, Any]:
    """Read a state that `write` has written."""
    _check_file(file, "read")
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as stream:
            return read(stream)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            names = ("format", "dtype", *NUMBERS, *ARRAYS, *NAMES[:2])
            state = {name: arrays[name] for name in names}
            state |= {name: arrays[name] for name in NAMES[2:] if name in arrays}
    except (ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"file must be written by KVCache.save: {error}") from error
    _check_kinds(state)
    if state["format"] != FORMAT:
        raise ValueError(f"file must have format {FORMAT} of KVCache.save, got {state['format']}")
    try:
        state["dtype"] = dtype = as_dtype(str(state["dtype"]))
    except TypeError as error:
        raise ValueError(f"file must be written by KVCache.save: {error}") from error
    state |= {name: int(state[name]) for name in NUMBERS}
    state |= {"grow": bool(state["grow"]), "window": state["window"] or None}
    state |= {name: tuple(state[name].tolist()) for name in ("batch_shape", "dims")}
    if dtype.isbuiltin != 1:
        state |= {name: state[name].view(dtype) for name in NAMES[:2]}
    _check(state)
    return state


def _check_file(file: Any, method: str) -> None:
    if not isinstance(file, (str, os.PathLike)) and not hasattr(file, method):
        raise TypeError(f"file must be a path or a binary file, got {type(file).__name__}")


def _check_kinds(state: dict[str, Any]) -> None:
    """Refuse numbers that are arrays or not whole, and shapes that are not rows of such numbers."""
    axes = dict.fromkeys(("format", *NUMBERS), 0) | {"batch_shape": 1, "dims": 1}
    for name, ndim in axes.items():
        a = state[name]
        if a.ndim != ndim or a.dtype.kind not in "ib":
            found = f"{a.dtype} {a.shape}"
            raise ValueError(f"file must be written by KVCache.save, got {name} of {found}")


def _check(state: dict[str, Any]) -> None:
    """Refuse arrays that do not go with each other."""
    columns = Storage(state["dtype"], state["dims"]).columns
    batch, lengths, written = state["batch_shape"], state["lengths"], state["written"]
    slots = state["key"].shape[-2] if state["key"].ndim > 1 else -1
    fits = 0 <= slots <= state["capacity"] and lengths.shape == written.shape == batch
    for name, (dtype, width) in zip(NAMES, columns, strict=False):
        fits = fits and name in state and state[name].dtype == dtype
        fits = fits and state[name].shape == (*batch, state["num_kv_heads"], slots, width)
    if fits and lengths.size:
        held = np.minimum(written, state["capacity"]) if state["window"] else lengths
        fits = lengths.dtype == written.dtype == np.int64 and lengths.min() >= 0
        fits = fits and held.max() <= slots and (not state["window"] or (lengths <= written).all())
    if not fits:
        raise ValueError("file must be written by KVCache.save, got arrays that do not fit")
