"""PyTorch on CPU tensors: `scaled_dot_product_attention`, and FlexAttention where it saves work.

FlexAttention is compiled for the case while it is prepared, which takes a C++ compiler and some
seconds; PyTorch keeps what it compiled in the system's folder for temporary files.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from ..case import Case
from ..inputs import Inputs, full_mask
from ..machine import require_memory
from . import FLEX, TRAINING, Prepared
from .torch_family import family_variants
from .torch_training import training_variants

MASK_PAIRS = 2**26  # (Lq, Lk) pairs up to which the block mask is made without compiling that too


class Torch:
    """PyTorch's two ways to fused attention, which share memory with the NumPy inputs."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.autograd.grad_mode.set_grad_enabled(False)
        self.version = torch.__version__

    def variants(self, case: Case, inputs: Inputs) -> dict[str, Callable[[], Prepared]]:
        """The usual function, and FlexAttention where position hides keys and nothing else does."""
        if case.function in TRAINING:
            return training_variants(case, inputs)
        if case.function not in ("attention", "stored"):
            return family_variants(case, inputs)
        variants: dict[str, Callable[[], Prepared]]
        variants = {"sdpa": partial(_prepare_sdpa, case, inputs)}
        if case.mask == "none" and (case.causal or case.window is not None):
            variants[FLEX] = partial(_prepare_flex, case, inputs)
        return variants


def _prepare_sdpa(case: Case, inputs: Inputs) -> Prepared:
    """`is_causal` where it means what the case means, else one mask that says it all."""
    top_left = case.causal and case.window is None and not case.at_end and case.mask == "none"
    options: dict[str, Any] = {"is_causal": top_left}
    if not top_left:
        if case.window is not None or case.at_end:  # a float mask is made from the bool one
            pairs = case.q_len * case.k_len
            require_memory(pairs * (1 + case.itemsize), "an (Lq, Lk) mask")
        mask = inputs.bias if inputs.bias is not None else full_mask(case, inputs)
        options["attn_mask"] = None if mask is None else torch.from_numpy(mask)
    return _prepared(case, inputs, partial(functional.scaled_dot_product_attention, **options))


def _prepare_flex(case: Case, inputs: Inputs) -> Prepared:
    """One kernel for any length, as fast as one for this length and compiled once for a sweep."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.compiler.reset()  # forgets the cases before, of which only so many may be remembered
    compiled = partial(torch.compile, dynamic=True, fullgraph=True)
    large = case.q_len * case.k_len > MASK_PAIRS  # would be made by way of all pairs
    make_mask = compiled(create_block_mask) if large else create_block_mask
    mask = make_mask(_sees(case), None, None, case.q_len, case.k_len, device="cpu")
    prepared = _prepared(case, inputs, partial(compiled(flex_attention), block_mask=mask))
    prepared.calls[0]()  # compiles
    return prepared


def _sees(case: Case) -> Callable[[Any, Any, Any, Any], Any]:
    """Whether a query sees a key, by position: a function that PyTorch can compile."""
    shift = case.k_len - case.q_len if case.at_end else 0
    left, right = case.window if case.window is not None else (case.q_len + case.k_len, 0)
    first, last = shift - left, shift + (min(right, 0) if case.causal else right)

    def sees(batch: Any, head: Any, row: Any, column: Any) -> Any:
        return (column - row >= first) & (column - row <= last)

    return sees


def _prepared(case: Case, inputs: Inputs, attend: Callable[..., Any]) -> Prepared:
    """Calls of `attend` over each set of keys and values."""
    options = {"enable_gqa": True} if case.heads != case.kv_heads else {}
    query = _tensor(inputs.query)
    calls = [
        partial(attend, query, _tensor(key), _tensor(value), **options)
        for key, value in zip(inputs.keys, inputs.values, strict=True)
    ]
    if case.dtype == "bfloat16":
        dtype = inputs.query.dtype
        return Prepared(calls, lambda result: result.view(torch.int16).numpy().view(dtype))
    return Prepared(calls, lambda result: result.numpy())


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    """The same memory; PyTorch does not know the bfloat16 of NumPy's arrays by name."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
