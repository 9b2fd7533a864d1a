"""The operator ``Attention`` of ONNX, opsets 23 to 25, and models that use it.

>>> import numpy as np
>>> from attnfast.onnx import Attention, run_model
>>> from onnx import TensorProto, helper
>>> def tensor(name):
...     return helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", "length", 32))
>>> node = helper.make_node(
...     "Attention", ["x", "x", "x"], ["y"], q_num_heads=4, kv_num_heads=4, is_causal=1
... )
>>> graph = helper.make_graph([node], "layer", [tensor("x")], [tensor("y")])
>>> model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
>>> x = np.random.default_rng(0).standard_normal((2, 50, 32), dtype=np.float32)
>>> run_model(model, {"x": x})["y"].shape
(2, 50, 32)

`Attention` is for ``onnx.reference.ReferenceEvaluator(model, new_ops=[Attention])``. The other
operators are those of that evaluator: plain NumPy, made to be right rather than fast.

Needs the package onnx 1.19 or later: ``pip install "attnfast[onnx]"``.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    if onnx.defs.onnx_opset_version() < 24:
        raise ImportError(f"onnx {onnx.__version__} is too old")
except (ImportError, AttributeError) as error:
    raise ImportError(
        "attnfast.onnx needs the package onnx, 1.19 or later: pip install 'attnfast[onnx]'"
    ) from error

from .api import attention, attention_weights
from .options import Stage

__all__ = ["Attention", "load_model", "run_model"]

Array = NDArray[Any]

# The stage that each qk_matmul_output_mode asks for.
STAGES: tuple[Stage, ...] = ("scores", "capped", "biased", "weights")


class Attention(OpRun):  # type: ignore[misc, unused-ignore]
    """The operator ``Attention``, computed by :func:`attnfast.attention`.

    It has the meaning of ONNX 1.23 in all of its opsets. Releases up to then corrected the order of
    grouped heads, that of softcap and mask, the modes of ``qk_matmul_output``, and the causal mask
    of a cache outside the operator. The softmax of float16 and bfloat16 is in float32, or in
    float64 where `softmax_precision` says so.

    Examples
    --------
    >>> from attnfast.onnx import Attention
    >>> from onnx import helper
    >>> from onnx.reference import ReferenceEvaluator
    >>> node = helper.make_node("Attention", ["q", "k", "v"], ["y"])
    >>> evaluator = ReferenceEvaluator(node, new_ops=[Attention])
    >>> x = np.ones((1, 2, 5, 8), np.float32)
    >>> evaluator.run(None, {"q": x, "k": x, "v": x})[0].shape
    (1, 2, 5, 8)
    """

    op_domain = ""

    @property
    def output(self) -> list[str]:
        """Names of the outputs. The evaluator stores even those without a name, which is None."""
        return [name or f"{id(self)} {n}" for n, name in enumerate(self.onnx_node.output)]

    def _run(
        self,
        query: Array,
        key: Array,
        value: Array,
        attn_mask: Array | None = None,
        past_key: Array | None = None,
        past_value: Array | None = None,
        nonpad_kv_seqlen: Array | None = None,
        **attributes: Any,
    ) -> tuple[Array, ...]:
        dtype, packed = query.dtype, query.ndim == 3
        if packed:
            query, key, value = _unpack(query, key, value, attributes)
        past = _past_length(past_key, past_value, nonpad_kv_seqlen)
        if past_key is not None and past_value is not None:
            key = np.concatenate((past_key, key), axis=2)
            value = np.concatenate((past_value, value), axis=2)
        present = key, value
        options = _options(attributes)
        options["kv_lengths"] = nonpad_kv_seqlen
        options["q_offset"] = (
            past if nonpad_kv_seqlen is None else nonpad_kv_seqlen - query.shape[2]
        )
        if attn_mask is not None:
            mask = _mask(attn_mask, key.shape[2])
            options["mask" if mask.dtype == bool else "bias"] = mask
        query, key, value = _same_dtype(query, key, value, attributes.get("softmax_precision"))
        output = attention(query, key, value, **options).astype(dtype, copy=False)
        results = (_pack(output) if packed else output, *present)
        if len(self.onnx_node.output) < 4:
            return results[: len(self.onnx_node.output)]
        stage = STAGES[attributes.get("qk_matmul_output_mode") or 0]
        scores: Array = attention_weights(query, key, stage=stage, **options)
        return *results, scores.astype(dtype, copy=False)


def run_model(
    model: Any, inputs: Mapping[str, ArrayLike], outputs: list[str] | None = None
) -> dict[str, Any]:
    """Run an ONNX model, its ``Attention`` nodes by attnfast, all others by ``onnx.reference``.

    Parameters
    ----------
    model : str, path or onnx.ModelProto
        The model, or its file.
    inputs : dict of str to array_like
        Inputs by name, in the dtypes that the model states. Those that the model has a value for
        may be left out.
    outputs : list of str, optional
        Names of the outputs to return; default all of the model.

    Returns
    -------
    dict of str to ndarray
        Outputs by name.

    Raises
    ------
    TypeError
        An input of another dtype than the model states.
    ValueError
        Inputs that are missing, that the model does not have, or that do not fit its shapes.

    Examples
    --------
    >>> from attnfast.onnx import run_model
    >>> from onnx import parser
    >>> model = parser.parse_model('''
    ...     <ir_version: 11, opset_import: ["" : 25]>
    ...     look (float[1, 2, n, 8] q, float[1, 2, m, 8] memory) => (float[1, 2, n, 8] y)
    ...     { y = Attention <left_window_size = 4> (q, memory, memory) }
    ... ''')
    >>> x = np.ones((1, 2, 5, 8), np.float32)
    >>> run_model(model, {"q": x, "memory": x})["y"].shape
    (1, 2, 5, 8)
    """
    if not isinstance(model, onnx.ModelProto):
        model = load_model(model)
    evaluator = ReferenceEvaluator(model, new_ops=[Attention])
    known = {x.name: x.type.tensor_type for x in model.graph.input}
    stored = {x.name for x in model.graph.initializer}
    arrays = {name: np.asarray(x) for name, x in inputs.items()}
    missing = [name for name in known if name not in arrays and name not in stored]
    unknown = [name for name in arrays if name not in known]
    if missing or unknown:
        raise ValueError(
            f"inputs must be those of the model, {', '.join(known)}; "
            + "; ".join([f"{n} is missing" for n in missing] + [f"{n} is not one" for n in unknown])
        )
    for name, x in arrays.items():
        _check_input(name, x, known[name])
    names = list(evaluator.output_names) if outputs is None else list(outputs)
    return dict(zip(names, evaluator.run(names, arrays), strict=True))


def load_model(path: str | os.PathLike[str]) -> Any:
    """Read the file of an ONNX model, and those beside it that hold its arrays.

    Parameters
    ----------
    path : str or path
        The file.

    Returns
    -------
    onnx.ModelProto
        The model.

    Raises
    ------
    OSError
        A file that cannot be read.
    ValueError
        A file that holds no model.

    Examples
    --------
    >>> from attnfast.onnx import load_model, run_model
    >>> model = load_model("layer.onnx")  # doctest: +SKIP
    >>> run_model(model, {"x": np.ones((2, 50, 32), np.float32)})  # doctest: +SKIP
    """
    try:
        model = onnx.load(os.fspath(path))
    except DecodeError:
        raise ValueError(f"path must be the file of an ONNX model, got {path}") from None
    if not model.graph.node:
        raise ValueError(f"path must be the file of an ONNX model, got {path}: it has no nodes")
    return model


def _check_input(name: str, x: Array, stated: Any) -> None:
    """Refuse an array that is not of the dtype and shape that a model states."""
    if not stated.elem_type:
        return
    dtype = onnx.helper.tensor_dtype_to_np_dtype(stated.elem_type)
    if x.dtype != dtype:
        raise TypeError(
            f"inputs[{name!r}] must be {dtype}, got {x.dtype}: write {name}.astype({dtype.name!r})"
        )
    if not stated.HasField("shape"):
        return
    sizes = [d.dim_value if d.HasField("dim_value") else None for d in stated.shape.dim]
    if len(sizes) != x.ndim or any(
        n not in (None, have) for n, have in zip(sizes, x.shape, strict=True)
    ):
        shown = ", ".join(d.dim_param or str(d.dim_value or "any") for d in stated.shape.dim)
        raise ValueError(f"inputs[{name!r}] must have shape ({shown}), got {x.shape}")


def _unpack(query: Array, key: Array, value: Array, attributes: dict[str, Any]) -> list[Array]:
    """View ``(B, L, heads * D)`` as ``(B, heads, L, D)``."""
    unpacked = []
    for x, name, slot in (
        (query, "q_num_heads", "Q"),
        (key, "kv_num_heads", "K"),
        (value, "kv_num_heads", "V"),
    ):
        heads = attributes.get(name)
        if x.ndim != 3 or not heads or x.shape[2] % heads:
            raise ValueError(
                f"{slot} must have shape (batch, length, {name} * size) beside a Q with 3 axes, "
                f"got {x.shape} and {name}={heads}"
            )
        batch, length, width = x.shape
        unpacked.append(x.reshape(batch, length, heads, width // heads).swapaxes(1, 2))
    return unpacked


def _pack(array: Array) -> Array:
    """View ``(B, H, L, D)``, laid out in memory as ``(B, L, H, D)``, as ``(B, L, H * D)``."""
    batch, heads, length, width = array.shape
    return array.swapaxes(1, 2).reshape(batch, length, heads * width)


def _past_length(
    past_key: Array | None, past_value: Array | None, nonpad_kv_seqlen: Array | None
) -> int:
    """How many keys are before those of this call in a cache that the operator keeps."""
    if (past_key is None) != (past_value is None):
        raise ValueError("past_key and past_value must be given together, got one of them")
    if past_key is not None and nonpad_kv_seqlen is not None:
        raise ValueError("nonpad_kv_seqlen must be left out beside past_key and past_value")
    return 0 if past_key is None else past_key.shape[2]


def _options(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes as arguments of attention."""
    sides = (attributes.get(f"{side}_window_size") for side in ("left", "right"))
    return {
        "is_causal": bool(attributes.get("is_causal")),
        "window_size": tuple(-1 if side is None else side for side in sides),
        "scale": attributes.get("scale"),
        "softcap": attributes.get("softcap") or None,
    }


def _mask(mask: Array, length: int) -> Array:
    """The mask with 4 axes, for keys up to `length`: those that it leaves out are hidden."""
    if mask.dtype.kind in "iu":
        mask = mask.astype(np.float32)  # added, as the reference of ONNX does
    missing = length - mask.shape[-1]
    if missing > 0:
        hidden = np.full(
            (*mask.shape[:-1], missing), False if mask.dtype == bool else -np.inf, mask.dtype
        )
        mask = np.concatenate((mask, hidden), axis=-1)
    return mask.reshape((1,) * (4 - mask.ndim) + mask.shape)


def _same_dtype(query: Array, key: Array, value: Array, softmax_precision: int | None) -> list[Any]:
    """Query, key and value in one dtype, float64 if the softmax shall be."""
    dtypes = {x.dtype for x in (query, key, value)}
    if softmax_precision == onnx.TensorProto.DOUBLE or np.dtype(np.float64) in dtypes:
        dtype: Any = np.float64
    else:
        dtype = query.dtype if len(dtypes) == 1 else np.float32
    return [x.astype(dtype, copy=False) for x in (query, key, value)]
