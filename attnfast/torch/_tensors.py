"""Tensors as arrays and arrays as tensors, on the same memory."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

Array = NDArray[Any]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
BFLOAT16 = torch.bfloat16
PLAIN = (torch.Tensor, torch.nn.Parameter)
dispatch_modes = torch._C._len_torch_dispatch_stack
transforms = torch._C._functorch.peek_interpreter_stack
tracing = torch._C._get_tracing_state


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
    if x.dtype is BFLOAT16:
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
    for x in tensors:
        if type(x) not in PLAIN:
            return False
    return not is_watched()


def is_watched() -> bool:
    """Whether somebody looks at what is done with tensors, whichever they are."""
    return (
        is_compiling()
        or dispatch_modes() > 0
        or transforms() is not None
        or tracing() is not None
        or forward_ad._current_level >= 0
    )


def plain_arrays(given: Mapping[str, Any], operands: Sequence[str]) -> dict[str, Any] | None:
    """Arguments with arrays for tensors, None if one is not a plain tensor on the CPU."""
    found = dict(given)
    for name, x in given.items():
        if isinstance(x, Tensor):
            if type(x) not in PLAIN or not x.is_cpu:
                return None
            found[name] = x.numpy(force=True) if x.dtype is not BFLOAT16 else to_array(x)
        elif name in operands:
            return None
    return found
