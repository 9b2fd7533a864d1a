"""OpenVINO: ScaledDotProductAttention (opset 13) compiled for the CPU, held to float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as ops

from ..case import Case
from ..inputs import Inputs, full_mask
from ..machine import require_memory
from . import Prepared, Unsupported


class OpenVino:
    """The CPU plugin, which without the precision hint would silently compute in bfloat16."""

    def __init__(self, threads: int) -> None:
        self.version = openvino.__version__.split("-")[0]
        self._core = openvino.Core()
        self._settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }

    def variants(self, case: Case, inputs: Inputs) -> dict[str, Callable[[], Prepared]]:
        """One variant; windows and queries at the end need a mask of `(Lq, Lk)`."""
        if case.dtype != "float32":
            raise Unsupported(f"{case.dtype} is not supported on the CPU")
        if case.window is not None:
            require_memory(case.q_len * case.k_len, "an (Lq, Lk) mask", 1e9)
        return {"sdpa": partial(self._prepare, case, inputs)}

    def _prepare(self, case: Case, inputs: Inputs) -> Prepared:
        top_left = case.causal and case.window is None and not case.at_end
        mask: NDArray[Any] | None = inputs.bias
        if mask is None and not top_left:
            mask = full_mask(case, inputs)  # shared without a reference: `output` keeps it
        arrays = [inputs.query, inputs.keys[0], inputs.values[0]]
        if mask is not None:
            arrays.append(mask)
        compiled = self._core.compile_model(_model(case, arrays, top_left), "CPU", self._settings)
        calls = []
        for key, value in zip(inputs.keys, inputs.values, strict=True):
            request = compiled.create_infer_request()
            arrays[1:3] = key, value
            for place, array in enumerate(arrays):
                request.set_input_tensor(place, openvino.Tensor(array, shared_memory=True))
            calls.append(partial(request.infer, share_outputs=True))

        def output(result: Any, keep: object = mask) -> NDArray[Any]:
            return np.array(result[0])

        return Prepared(calls, output)


def _model(case: Case, arrays: list[NDArray[Any]], causal: bool) -> openvino.Model:
    """Graph over parameters shaped as `arrays`; grouped heads are broadcast inside it."""
    parameters = [ops.parameter(list(array.shape), array.dtype) for array in arrays]
    query, key, value = parameters[:3]
    if case.heads != case.kv_heads:
        key, value = (_repeat_heads(case, node) for node in (key, value))
    mask = parameters[3] if len(parameters) > 3 else None
    result = ops.scaled_dot_product_attention(query, key, value, mask, causal=causal)
    return openvino.Model([result], parameters, "attention")


def _repeat_heads(case: Case, node: openvino.Node) -> openvino.Node:
    batch, kv_heads, length, width = node.shape
    group = case.heads // case.kv_heads
    wide = ops.unsqueeze(node, ops.constant([2], np.int64))
    wide = ops.broadcast(wide, ops.constant([batch, kv_heads, group, length, width], np.int64))
    return ops.reshape(wide, ops.constant([batch, case.heads, length, width], np.int64), False)
