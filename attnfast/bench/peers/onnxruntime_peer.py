"""ONNX Runtime: three operators that compute attention, the fastest right one of which counts.

`Attention` is the ONNX standard's; `MultiHeadAttention` and `GroupQueryAttention` are the
runtime's own (`com.microsoft`), with arrays of shape `(B, L, H * D)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from ..case import Case
from ..inputs import Inputs, full_mask
from ..machine import require_memory
from . import Prepared

OWN_DOMAIN = "com.microsoft"
STANDARD_OPSET = 23
Feeds = dict[str, NDArray[Any]]


class OnnxRuntime:
    """The CPU provider, inputs and outputs bound beforehand."""

    def __init__(self, threads: int) -> None:
        self.version = onnxruntime.__version__
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._options.log_severity_level = 4

    def variants(self, case: Case, inputs: Inputs) -> dict[str, Callable[[], Prepared]]:
        """The operators that can say what the case says."""
        own = case.dtype == "float32"  # the runtime's own operators know no float64
        by_position = case.mask == "none" and (case.at_end or case.q_len in (1, case.k_len))
        causal_window = case.causal and case.window is not None and case.window[1] == 0
        variants: dict[str, Callable[[], Prepared]] = {}
        grouped = case.dtype in ("float32", "float16")
        if grouped and by_position and (case.window is None or causal_window):
            variants["GroupQueryAttention"] = partial(self._group_query, case, inputs)
        if case.window is None or case.q_len <= 4096 or not variants:
            require_memory(2 * case.score_bytes, "the scores")
            variants["Attention"] = partial(self._attention, case, inputs)
            if own and case.heads == case.kv_heads:
                variants["MultiHeadAttention"] = partial(self._multi_head, case, inputs)
        return variants

    def _attention(self, case: Case, inputs: Inputs) -> Prepared:
        top_left = is_top_left(case)
        mask = inputs.bias if inputs.bias is not None or top_left else full_mask(case, inputs)
        feeds: Feeds = {"Q": inputs.query}
        if mask is not None:  # wants one row of mask for each query
            rows = np.broadcast_shapes(mask.shape, (case.q_len, 1))
            feeds["attn_mask"] = np.ascontiguousarray(np.broadcast_to(mask, rows))
        names = ("Q", "K", "V", "attn_mask"), ("Y",)
        sets = [{**feeds, "K": k, "V": v} for k, v in _kv(inputs)]
        settings = {"is_causal": int(top_left)}
        if case.dtype == "float64":
            settings["softmax_precision"] = onnx.TensorProto.DOUBLE
        node = self._node("Attention", names, sets[0], settings)
        shape = (case.batch, case.heads, case.q_len, case.value_dim)
        return Prepared([_bind(node, feed, {"Y": shape}) for feed in sets], _first_output)

    def _multi_head(self, case: Case, inputs: Inputs) -> Prepared:
        top_left = is_top_left(case)
        feeds: Feeds = {"query": _heads_last(inputs.query)}
        if inputs.bias is not None:
            feeds["attention_bias"] = inputs.bias
        elif case.mask == "keypad" and inputs.mask is not None and not case.window:
            feeds["key_padding_mask"] = inputs.mask[:, 0, 0].astype(np.int32)
        elif not top_left and (mask := full_mask(case, inputs)) is not None:
            wide = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
            feeds["attention_bias"] = np.where(wide, 0, -np.inf).astype(case.dtype)
        names = ("query", "key", "value", "", "key_padding_mask", "attention_bias"), ("output",)
        sets = [{**feeds, "key": _heads_last(k), "value": _heads_last(v)} for k, v in _kv(inputs)]
        settings = {"num_heads": case.heads, "unidirectional": int(top_left)}
        node = self._node("MultiHeadAttention", names, sets[0], settings, OWN_DOMAIN)
        shape = (case.batch, case.q_len, case.heads * case.value_dim)
        calls = [_bind(node, feed, {"output": shape}) for feed in sets]
        return Prepared(calls, partial(_heads_first, case))

    def _group_query(self, case: Case, inputs: Inputs) -> Prepared:
        """The queries' own keys are the new ones; all before them are the past, shared in place."""
        names = (
            ("query", "key", "value", "past_key", "past_value", "seqlens", "total"),
            ("output", "present_key", "present_value"),
        )
        feeds: Feeds = {
            "query": _heads_last(inputs.query),
            "seqlens": np.full(case.batch, case.k_len - 1, np.int32),
            "total": np.array(case.k_len, np.int32),
        }
        new = slice(case.k_len - case.q_len, None)
        sets = [
            {
                **feeds,
                "key": _heads_last(key[:, :, new]),
                "value": _heads_last(value[:, :, new]),
                "past_key": key,
                "past_value": value,
            }
            for key, value in _kv(inputs)
        ]
        settings = {
            "num_heads": case.heads,
            "kv_num_heads": case.kv_heads,
            "local_window_size": case.window[0] + 1 if case.window else -1,
        }
        if not case.causal and case.q_len > 1:
            settings["causal"] = 0  # not known to older releases, which then lack this variant
        node = self._node("GroupQueryAttention", names, sets[0], settings, OWN_DOMAIN)
        shape = (case.batch, case.q_len, case.heads * case.value_dim)
        shared = {"present_key": "past_key", "present_value": "past_value"}
        calls = [_bind(node, feed, {"output": shape}, shared) for feed in sets]
        return Prepared(calls, partial(_heads_first, case))

    def _node(
        self,
        operator: str,
        names: tuple[tuple[str, ...], tuple[str, ...]],
        feeds: Feeds,
        attributes: dict[str, int],
        domain: str = "",
    ) -> onnxruntime.InferenceSession:
        """A session over the one operator, typed for `feeds`; inputs not fed are left out."""
        used = [name if name in feeds else "" for name in names[0]]
        while not used[-1]:
            used.pop()
        node = helper.make_node(operator, used, names[1], domain=domain)
        node.attribute.extend(helper.make_attribute(*pair) for pair in attributes.items())
        dtype = helper.np_dtype_to_tensor_dtype
        typed = helper.make_tensor_value_info
        graph = helper.make_graph(
            [node],
            operator,
            [typed(n, dtype(feeds[n].dtype), feeds[n].shape) for n in used if n],
            [typed(n, dtype(feeds[used[0]].dtype), None) for n in names[1]],
        )
        opsets = [helper.make_opsetid("", STANDARD_OPSET), helper.make_opsetid(OWN_DOMAIN, 1)]
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return onnxruntime.InferenceSession(
            model.SerializeToString(), self._options, providers=["CPUExecutionProvider"]
        )


def is_top_left(case: Case) -> bool:
    """Whether the operators' causal flag, which starts query 0 at key 0, says all of it."""
    return case.causal and case.window is None and not case.at_end and case.mask == "none"


def _kv(inputs: Inputs) -> zip[tuple[NDArray[Any], NDArray[Any]]]:
    return zip(inputs.keys, inputs.values, strict=True)


def _bind(
    session: onnxruntime.InferenceSession,
    feeds: Feeds,
    outputs: Mapping[str, tuple[int, ...]],
    shared: Mapping[str, str] | None = None,
) -> Callable[[], Any]:
    """A call that runs the session on these arrays; `shared` outputs are written over inputs."""
    binding = session.io_binding()
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()
    }
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    dtype = next(iter(feeds.values())).dtype
    for name, shape in outputs.items():
        empty = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype)
        binding.bind_ortvalue_output(name, empty)
    for name, source in (shared or {}).items():
        binding.bind_ortvalue_output(name, values[source])

    def call(keep: object = (feeds, values)) -> Any:
        session.run_with_iobinding(binding)
        return binding

    return call


def _first_output(binding: Any) -> NDArray[Any]:
    output: NDArray[Any] = binding.get_outputs()[0].numpy()
    return output


def _heads_last(array: NDArray[Any]) -> NDArray[Any]:
    """(B, H, L, D) -> (B, L, H * D)."""
    batch, heads, length, width = array.shape
    return np.ascontiguousarray(array.swapaxes(1, 2)).reshape(batch, length, heads * width)


def _heads_first(case: Case, binding: Any) -> NDArray[Any]:
    """(B, L, H * Dv) -> (B, H, L, Dv)."""
    shape = (case.batch, case.q_len, case.heads, case.value_dim)
    return _first_output(binding).reshape(shape).swapaxes(1, 2)
