"""PyTorch: `scaled_dot_product_attention` on CPU tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional

from ..cases import Case
from ..inputs import Inputs, full_mask
from ..machine import require_memory
from . import Prepared


class Torch:
    """PyTorch's fused attention, which shares memory with the NumPy inputs."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.autograd.grad_mode.set_grad_enabled(False)
        self.version = torch.__version__

    def variants(self, case: Case, inputs: Inputs) -> dict[str, Callable[[], Prepared]]:
        """`is_causal` where it means what the case means, else one mask that says it all."""
        top_left = case.causal and case.window is None and not case.at_end and case.mask == "none"
        options: dict[str, Any] = {"is_causal": top_left}
        if not top_left:
            if case.window is not None or case.at_end:  # a float mask is made from the bool one
                pairs = case.q_len * case.k_len
                require_memory(pairs * (1 + case.itemsize), "an (Lq, Lk) mask")
            mask = inputs.bias if inputs.bias is not None else full_mask(case, inputs)
            options["attn_mask"] = None if mask is None else torch.from_numpy(mask)
        if case.heads != case.kv_heads:
            options["enable_gqa"] = True
        query = torch.from_numpy(inputs.query)
        calls = [
            partial(
                functional.scaled_dot_product_attention,
                query,
                torch.from_numpy(key),
                torch.from_numpy(value),
                **options,
            )
            for key, value in zip(inputs.keys, inputs.values, strict=True)
        ]
        return {"sdpa": lambda: Prepared(calls, lambda result: result.numpy())}
