"""Tensors as arrays and arrays as tensors, on the same memory."""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd import forward_ad

Array = NDArray[Any]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
PLAIN = (torch.Tensor, torch.nn.Parameter)


@functools.cache
def bfloat16() -> np.dtype[Any]:
    """NumPy's bfloat16, which is that of ``ml_dtypes``."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(
            "tensors of bfloat16 need ml_dtypes, which is not installed: pip install ml_dtypes"
        ) from error
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


def to_array(x: Any) -> Array:
    """The memory of a CPU tensor as an array; gradients are the caller's affair."""
    if x.dtype is torch.bfloat16:
        return x.detach().view(torch.int16).numpy().view(bfloat16())  # type: ignore[no-any-return]
    return x.numpy(force=True)  # type: ignore[no-any-return]


def to_tensor(a: Array) -> Any:
    """The memory of a new array as a tensor."""
    if a.dtype.itemsize == 2 and a.dtype.name == "bfloat16":
        return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(a)


def have_memory(tensors: Iterable[Any]) -> bool:
    """Whether the tensors may be read now, and nobody watches what is done with them.

    Otherwise (compilation, export, functorch's transforms, forward derivatives, dispatch modes,
    subclasses) only an operator is seen.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    ) and all(type(x) in PLAIN for x in tensors)
