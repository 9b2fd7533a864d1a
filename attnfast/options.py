"""Types of arguments, and the keywords that calls share."""

from typing import Any, Literal, TypedDict

from numpy.typing import ArrayLike, NDArray

from .block_mask import BlockMask

Array = NDArray[Any]
Mask = ArrayLike | BlockMask
Offset = ArrayLike | Literal["end"]
Window = int | tuple[int | None, int | None] | None


class CommonOptions(TypedDict, total=False):
    """Keywords of every call with values that do not change what kind of result it returns."""

    mask: Mask | None
    bias: ArrayLike | None
    is_causal: bool
    q_offset: Offset | None
    q_lengths: ArrayLike | None
    kv_lengths: ArrayLike | None
    softcap: float | None
    alibi_slopes: ArrayLike | None
    sink_logits: ArrayLike | None
    out: Array | None
    num_threads: int | None


class AttentionOptions(CommonOptions, total=False):
    """Those of :func:`attnfast.attention`."""

    window_size: Window
    scale: float | None


class LocalOptions(CommonOptions, total=False):
    """Those of :func:`attnfast.local_attention`."""

    global_tokens: ArrayLike | None
    dilation: ArrayLike
    centers: ArrayLike | None
    sigma: float | None
    scale: float | None


class AdditiveOptions(CommonOptions, total=False):
    """Those of :func:`attnfast.additive_attention`."""

    score_bias: ArrayLike | None
    window_size: Window


class VarlenOptions(TypedDict, total=False):
    """Those of :func:`attnfast.attention_varlen`."""

    is_causal: bool
    window_size: Window
    q_offset: Offset | None
    scale: float | None
    softcap: float | None
    alibi_slopes: ArrayLike | None
    sink_logits: ArrayLike | None
    out: Array | None
    num_threads: int | None
