"""Files of a KVCache: an ``.npz`` of its arrays and numbers."""

import os
import zipfile
from typing import IO, Any

import numpy as np

from ._store import as_dtype

FORMAT = 1
NUMBERS = ("num_kv_heads", "capacity", "window", "sinks", "grow")  # a window of 0: none
ARRAYS = ("batch_shape", "dims", "lengths", "written", "key", "value")


def write(file: str | os.PathLike[str] | IO[bytes], state: dict[str, Any]) -> None:
    """Write a state; bfloat16, which files of NumPy do not know, as its bits."""
    _check_file(file, "write")
    arrays = {name: np.asarray(state[name] or 0) for name in NUMBERS}
    arrays |= {name: np.asarray(state[name]) for name in ARRAYS}
    arrays["batch_shape"] = arrays["batch_shape"].astype(np.int64)
    dtype = arrays["key"].dtype
    if dtype.kind == "V":
        arrays |= {name: arrays[name].view(np.uint16) for name in ("key", "value")}
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
            state = {name: arrays[name] for name in ("format", "dtype", *NUMBERS, *ARRAYS)}
    except (ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"file must be written by KVCache.save: {error}") from error
    if state["format"] != FORMAT:
        raise ValueError(f"file must have format {FORMAT} of KVCache.save, got {state['format']}")
    dtype = as_dtype(str(state["dtype"]))
    state |= {name: int(state[name]) for name in NUMBERS}
    state |= {"grow": bool(state["grow"]), "window": state["window"] or None}
    state |= {name: tuple(state[name].tolist()) for name in ("batch_shape", "dims")}
    if dtype.kind == "V":
        state |= {name: state[name].view(dtype) for name in ("key", "value")}
    _check(state, dtype)
    return state


def _check_file(file: Any, method: str) -> None:
    if not isinstance(file, (str, os.PathLike)) and not hasattr(file, method):
        raise TypeError(f"file must be a path or a binary file, got {type(file).__name__}")


def _check(state: dict[str, Any], dtype: np.dtype[Any]) -> None:
    """Refuse arrays that do not go with each other."""
    batch, lengths, written = state["batch_shape"], state["lengths"], state["written"]
    slots = state["key"].shape[-2] if state["key"].ndim > 1 else -1
    fits = 0 <= slots <= state["capacity"] and lengths.shape == written.shape == batch
    for name, d in zip(("key", "value"), state["dims"], strict=True):
        fits = fits and state[name].shape == (*batch, state["num_kv_heads"], slots, d)
        fits = fits and state[name].dtype == dtype
    if fits and lengths.size:
        held = np.minimum(written, state["capacity"]) if state["window"] else lengths
        fits = lengths.dtype == written.dtype == np.int64 and lengths.min() >= 0
        fits = fits and held.max() <= slots and (not state["window"] or (lengths <= written).all())
    if not fits:
        raise ValueError("file must be written by KVCache.save, got arrays that do not fit")
