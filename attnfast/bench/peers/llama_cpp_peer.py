"""llama.cpp: the fused attention of its library ggml on the CPU, called through ctypes.

The package llama-cpp-python has ggml as shared libraries; its Python module is not imported.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Sequence
from ctypes import c_bool, c_float, c_int, c_int64, c_size_t, c_void_p
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import attnfast

from ..case import Case
from ..functions import function_of
from ..functions.stored import real_numbers
from ..inputs import Inputs, full_mask
from ..machine import require_memory
from . import Prepared, Unsupported

Array = NDArray[Any]

ALIGNMENT = 64  # of the memory of a tensor
F32, F16, Q8_0, BF16 = 0, 1, 8, 30  # numbers of ggml's types
TYPES = {"float32": F32, "float16": F16, "bfloat16": BF16}
WIDTH = 32  # elements of a block of Q8_0
BLOCK = np.dtype([("scale", "<f2"), ("numbers", "i1", WIDTH)])
SUFFIXES = {"darwin": ("lib{}.dylib", "lib{}.so"), "win32": ("{}.dll", "lib{}.dll")}


# `struct ggml_init_params`: bytes and memory for what tensors are, none for their elements.
_FIELDS = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]
_Parameters: Any = type("_Parameters", (ctypes.Structure,), {"_fields_": _FIELDS})

# Return type, types of arguments: no function whose structs have changed between releases.
PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "ggml_backend_cpu_buffer_from_ptr": (c_void_p, c_void_p, c_size_t),
    "ggml_backend_graph_compute": (c_int, c_void_p, c_void_p),
    "ggml_backend_tensor_alloc": (c_int, c_void_p, c_void_p, c_void_p),
    "ggml_build_forward_expand": (None, c_void_p, c_void_p),
    "ggml_flash_attn_ext": (c_void_p, *[c_void_p] * 5, *[c_float] * 3),
    "ggml_graph_overhead": (c_size_t,),
    "ggml_init": (c_void_p, _Parameters),
    "ggml_new_graph": (c_void_p, c_void_p),
    "ggml_new_tensor_4d": (c_void_p, c_void_p, c_int, *[c_int64] * 4),
    "ggml_permute": (c_void_p, c_void_p, c_void_p, *[c_int] * 4),
    "ggml_tensor_overhead": (c_size_t,),
}
TENSORS = 8  # of a call, at most


class LlamaCpp:
    """`ggml_flash_attn_ext` in a graph of its own for each set of keys and values."""

    def __init__(self, threads: int) -> None:
        folder = _folder()
        self._ggml = _library(folder, "ggml-base")
        for name, (result, *arguments) in PROTOTYPES.items():
            function = getattr(self._ggml, name)
            function.restype, function.argtypes = result, arguments
        cpu = _library(folder, "ggml-cpu")
        cpu.ggml_backend_cpu_init.restype = c_void_p
        cpu.ggml_backend_cpu_set_n_threads.argtypes = c_void_p, c_int
        cpu.ggml_backend_cpu_set_n_threads.restype = None
        self._backend = cpu.ggml_backend_cpu_init()
        cpu.ggml_backend_cpu_set_n_threads(self._backend, threads)
        self.version = version("llama-cpp-python")

    def variants(self, case: Case, inputs: Inputs) -> dict[str, Callable[[], Prepared]]:
        """Keys of a head one after the other, or all heads of a token as llama.cpp's own cache."""
        if case.dtype not in TYPES:
            raise Unsupported(f"{case.dtype} is not supported")
        if inputs.bias is not None:
            raise Unsupported("a bias is rounded to float16")
        require_memory(2 * case.q_len * case.k_len, "an (Lq, Lk) mask", 1e9)
        name, stored = _stored(case, inputs)
        return {
            f"flash_attn_ext, {name}{words}": partial(self._prepare, case, inputs, stored, by_token)
            for words, by_token in (("", False), (" by token", True))
        }

    def _prepare(self, case: Case, inputs: Inputs, stored: _Stored, by_token: bool) -> Prepared:
        calls = []
        for key, value in zip(stored.keys, stored.values, strict=True):
            graph = _Graph(self._ggml)
            query = graph.tensor(inputs.query.astype(np.float32), F32)
            keys, values = (graph.tensor(a, stored.type, by_token) for a in (key, value))
            mask = _mask(case, inputs)
            hidden = None if mask is None else graph.tensor(mask, F16)
            result = graph.attend(case, query, keys, values, hidden)
            calls.append(partial(self._compute, graph, result))
        dtype = inputs.query.dtype

        def output(result: Array) -> Array:
            return result.swapaxes(1, 2).astype(dtype)

        return Prepared(calls, output, stored.tolerance)

    def _compute(self, graph: _Graph, result: Array) -> Array:
        status = self._ggml.ggml_backend_graph_compute(self._backend, graph.compiled)
        if status:
            raise RuntimeError(f"ggml_backend_graph_compute returned {status}")
        return result


class _Graph:
    """One call: its tensors, their memory, and the graph that computes it.

    What ggml itself allocates is some kilobytes, which stay until the process ends.
    """

    def __init__(self, ggml: ctypes.CDLL) -> None:
        self._ggml, self._kept = ggml, []  # type: ctypes.CDLL, list[Array]
        size = ggml.ggml_graph_overhead() + TENSORS * ggml.ggml_tensor_overhead()
        self._context = ggml.ggml_init(_Parameters(size, None, True))
        self.compiled = ggml.ggml_new_graph(self._context)

    def tensor(self, array: Array, kind: int, by_token: bool = False) -> int:
        """A tensor with the elements of an array ``(B, H, L, D)``; ggml names the last axis first.

        By token, they are in memory as ``(B, L, H, D)``.
        """
        array = array.swapaxes(1, 2) if by_token else array
        own = _aligned(array.shape, array.dtype)
        own[...] = array
        batch, rows, columns, width = array.shape
        width *= WIDTH if kind == Q8_0 else 1
        new = self._ggml.ggml_new_tensor_4d
        tensor: int = new(self._context, kind, width, columns, rows, batch)
        self._place(tensor, own)
        if by_token:
            tensor = self._ggml.ggml_permute(self._context, tensor, 0, 2, 1, 3)
        return tensor

    def attend(self, case: Case, query: int, key: int, value: int, mask: int | None) -> Array:
        """Build the graph; the array ``(B, Lq, H, Dv)`` that computing it fills."""
        result = self._ggml.ggml_flash_attn_ext(
            self._context,
            query,
            key,
            value,
            mask,
            1 / math.sqrt(case.head_dim),
            0.0,
            case.softcap or 0.0,
        )
        shape = (case.batch, case.q_len, case.heads, case.value_dim)
        output = _aligned(shape, np.dtype(np.float32))
        self._place(result, output)
        self._ggml.ggml_build_forward_expand(self.compiled, result)
        return output

    def _place(self, tensor: int, array: Array) -> None:
        self._kept.append(array)
        address = array.ctypes.data
        buffer = self._ggml.ggml_backend_cpu_buffer_from_ptr(address, array.nbytes)
        self._ggml.ggml_backend_tensor_alloc(buffer, tensor, address)


@dataclass(frozen=True)
class _Stored:
    """Keys and values as ggml has them, and the error that this allows beyond that of a case."""

    type: int
    keys: Sequence[Array]
    values: Sequence[Array]
    tolerance: float


def _stored(case: Case, inputs: Inputs) -> tuple[str, _Stored]:
    """What a case's keys and values are in ggml, and its name there.

    int8 is Q8_0, blocks of 32 numbers with a float16 scale, for which ggml rounds queries to 8 bits
    too; the other kinds of caches are float32, as for other libraries.
    """
    if case.function == "stored" and case.kind == "int8":
        if case.head_dim % WIDTH or case.value_dim % WIDTH:
            raise Unsupported(f"head sizes of int8 must be multiples of {WIDTH}")
        extra = inputs.extra
        keys = _blocks(extra["key"], extra["key_scale"])
        values = _blocks(extra["value"], extra["value_scale"])
        query = real_numbers(*attnfast.quantize(inputs.query, group=WIDTH))
        tolerance = 2 * _change(case, inputs, replace(inputs, query=query))
        return "q8_0", _Stored(Q8_0, list(keys), list(values), tolerance)
    kind = TYPES[case.dtype]
    tolerance = _sum_error(case, inputs) if kind == F16 else 0.0
    name = {F32: "f32", F16: "f16", BF16: "bf16"}[kind]
    return name, _Stored(kind, inputs.keys, inputs.values, tolerance)


def _change(case: Case, inputs: Inputs, other: Inputs) -> float:
    """How far other inputs move the checked rows."""
    function = function_of(case)
    sample = function.sample(case, inputs)
    first, second = (function.exact_rows(case, x, sample, np.float64) for x in (inputs, other))
    return float(np.max(np.abs(first - second)))


def _sum_error(case: Case, inputs: Inputs) -> float:
    """What may be lost where the weighted sum of float16 values is float16 itself.

    A sum of n terms is rounded n times; errors of either sign add up to about sqrt(n) of one.
    """
    function = function_of(case)
    rows = function.exact_rows(case, inputs, function.sample(case, inputs), np.float64)
    unit = float(np.finfo(np.float16).eps) / 2
    return 4 * math.sqrt(case.k_len) * unit * float(np.max(np.abs(rows)))


def _blocks(numbers: Array, scales: Array) -> Array:
    """int8 numbers ``(..., D)`` as blocks ``(..., D / 32)`` of Q8_0; one scale, or one a block."""
    blocks = np.empty((*numbers.shape[:-1], numbers.shape[-1] // WIDTH), BLOCK)
    blocks["numbers"] = numbers.reshape(*blocks.shape, WIDTH)
    blocks["scale"] = scales
    return blocks


def _mask(case: Case, inputs: Inputs) -> Array | None:
    """What is hidden, in float16 as ggml wants it: 0 or -inf for each query and key."""
    mask = full_mask(case, inputs)
    if mask is None:
        return None
    wide = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    shape = (*wide.shape[:2], case.q_len, case.k_len)
    return np.broadcast_to(np.where(wide, np.float16(0), np.float16(-np.inf)), shape)


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Memory of NumPy's, which asks for huge pages where an array is large."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _folder() -> Path:
    """Where the package keeps its libraries."""
    spec = find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise Unsupported("llama_cpp is not a package")
    return Path(spec.submodule_search_locations[0]) / "lib"


def _library(folder: Path, name: str) -> ctypes.CDLL:
    patterns = SUFFIXES.get(sys.platform, ("lib{}.so",))
    paths = [folder / pattern.format(name) for pattern in patterns]
    path = next((path for path in paths if path.exists()), paths[0])
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
