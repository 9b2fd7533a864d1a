"""Reading safetensors files: 8 bytes with the header's length, a JSON header, the raw data."""

import json
import math
import os
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .._signature import plain_signature

Array = NDArray[Any]

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


@plain_signature
def read_safetensors(
    path: str | os.PathLike[str], wanted: Callable[[str], bool] | None = None
) -> dict[str, Array]:
    """The tensors of a safetensors file, by name.

    Parameters
    ----------
    path : str or path-like
        The file.
    wanted : callable, optional
        Which names to read; the rest of the file is not touched. Default: all.

    Returns
    -------
    dict of str to ndarray
        In the order of the header. bfloat16 is widened to float32, which is exact.

    Raises
    ------
    ValueError
        Not a safetensors file, one that is cut short, or a tensor of a dtype that NumPy lacks.

    Examples
    --------
    >>> import json, os, tempfile
    >>> import numpy as np
    >>> from attnfast.layers import read_safetensors
    >>> entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    >>> header = json.dumps({"weight": entry}).encode()
    >>> path = os.path.join(tempfile.mkdtemp(), "tiny.safetensors")
    >>> with open(path, "wb") as file:
    ...     data = np.arange(4, dtype="<f4").tobytes()
    ...     _ = file.write(len(header).to_bytes(8, "little") + header + data)
    >>> read_safetensors(path)
    {'weight': array([[0., 1.],
           [2., 3.]], dtype=float32)}
    """
    with open(path, "rb") as file:
        try:
            entries, start, end = _header(file)
            names = [name for name in entries if wanted is None or wanted(name)]
            return {name: _tensor(file, name, entries[name], start, end) for name in names}
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None


def _header(file: BinaryIO) -> tuple[dict[str, Any], int, int]:
    """The entries, and where the data starts and ends."""
    end = os.fstat(file.fileno()).st_size
    start = 8 + int.from_bytes(file.read(8), "little")
    if end < 8 or start > end:
        raise ValueError(
            f"not a safetensors file: it has {end} bytes, but its header would end at {start}"
        )
    try:
        entries = json.loads(file.read(start - 8))
    except (ValueError, RecursionError):
        raise ValueError("not a safetensors file: the header is not JSON") from None
    if not isinstance(entries, dict):
        raise ValueError("not a safetensors file: the header is not a JSON object")
    entries.pop("__metadata__", None)
    return entries, start, end


def _tensor(file: BinaryIO, name: str, entry: Any, start: int, end: int) -> Array:
    try:
        kind, shape, (first, past) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, first, past]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"tensor {name!r} lacks dtype, shape or data_offsets") from None
    if not isinstance(kind, str) or kind not in DTYPES:
        raise ValueError(
            f"tensor {name!r} must have one of the dtypes {', '.join(DTYPES)}, got {kind}"
        )
    if any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError(
            f"tensor {name!r} must have a shape and data_offsets of ints from 0 on, got {shape} "
            f"and {[first, past]}"
        )
    dtype, count = np.dtype(DTYPES[kind]), math.prod(shape)
    if past - first != count * dtype.itemsize:
        raise ValueError(
            f"tensor {name!r} of {kind} {shape} must have {count * dtype.itemsize} bytes of data, "
            f"got {past - first}"
        )
    if start + past > end:
        raise ValueError(f"tensor {name!r} ends beyond the end of the file: the file is cut short")
    file.seek(start + first)
    data = np.fromfile(file, dtype, count).reshape(shape)
    if kind == "BF16":
        wide = data.astype(np.uint32)
        wide <<= np.uint32(16)
        return wide.view(np.float32)
    return data.astype(dtype.newbyteorder("="), copy=False)
