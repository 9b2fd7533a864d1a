"""The options of calls: the name, type and default of each, once, in the order of signatures.

A public function takes ``**options: Unpack[...]`` of one of the tables at the end, and hands them
on as they are; ``_core`` looks up what is there. `takes` shows the table in the signature.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypedDict

from numpy.typing import ArrayLike, NDArray

from .block_mask import BlockMask

Array = NDArray[Any]
Mask = ArrayLike | BlockMask
Offset = ArrayLike | Literal["end"]
Stage = Literal["scores", "capped", "biased", "weights"]
Window = int | tuple[int | None, int | None] | None

# ---- groups of options that several functions have: each annotation with its default ----


class Pairs(TypedDict, total=False):
    """What there may be one of for each pair of query and key."""

    mask: Annotated[Mask | None, None]
    bias: Annotated[ArrayLike | None, None]


class Causal(TypedDict, total=False):
    """Causality."""

    is_causal: Annotated[bool, False]


class Sides(TypedDict, total=False):
    """The window."""

    window_size: Annotated[Window, None]


class Positions(TypedDict, total=False):
    """Where queries are on the key axis."""

    q_offset: Annotated[Offset | None, None]


class Lengths(TypedDict, total=False):
    """Padding."""

    q_lengths: Annotated[ArrayLike | None, None]
    kv_lengths: Annotated[ArrayLike | None, None]
    kv_starts: Annotated[ArrayLike | None, None]


class StoredKeys(TypedDict, total=False):
    """How keys are stored, for functions without values: in pages, in bytes."""

    block_table: Annotated[ArrayLike | None, None]
    key_scale: Annotated[ArrayLike | None, None]
    key_zero_point: Annotated[ArrayLike | None, None]


class Stored(TypedDict, total=False):
    """How keys and values are stored: in pages, in bytes."""

    block_table: Annotated[ArrayLike | None, None]
    key_scale: Annotated[ArrayLike | None, None]
    value_scale: Annotated[ArrayLike | None, None]
    key_zero_point: Annotated[ArrayLike | None, None]
    value_zero_point: Annotated[ArrayLike | None, None]


class Scale(TypedDict, total=False):
    """The scale of scores."""

    scale: Annotated[float | None, None]


class Scores(TypedDict, total=False):
    """What else scores go through."""

    softcap: Annotated[float | None, None]
    alibi_slopes: Annotated[ArrayLike | None, None]
    sink_logits: Annotated[ArrayLike | None, None]


class Dropout(TypedDict, total=False):
    """Which weights are dropped."""

    dropout: Annotated[float, 0.0]
    dropout_seed: Annotated[int, 0]


class Lse(TypedDict, total=False):
    """A flag that changes what is returned."""

    return_lse: Annotated[bool, False]


class Weights(TypedDict, total=False):
    """The same."""

    return_weights: Annotated[bool, False]


class Out(TypedDict, total=False):
    """Where to write the output."""

    out: Annotated[Array | None, None]


class Threads(TypedDict, total=False):
    """How to run."""

    num_threads: Annotated[int | None, None]


class LossOfLse(TypedDict, total=False):
    """Derivatives of a loss."""

    grad_lse: Annotated[ArrayLike | None, None]


class LossOfWeights(TypedDict, total=False):
    """The same."""

    grad_weights: Annotated[ArrayLike | None, None]


class Wanted(TypedDict, total=False):
    """Whose gradients are wanted."""

    wanted: Annotated[Sequence[str], ("query", "key", "value")]


class Places(TypedDict, total=False):
    """Windows of :func:`attnfast.local_attention`."""

    global_tokens: Annotated[ArrayLike | None, None]
    dilation: Annotated[ArrayLike, 1]
    centers: Annotated[ArrayLike | None, None]
    sigma: Annotated[float | None, None]


class Additive(TypedDict, total=False):
    """Scores of :func:`attnfast.additive_attention`."""

    score_bias: Annotated[ArrayLike | None, None]


class Stages(TypedDict, total=False):
    """What :func:`attnfast.attention_weights` returns."""

    stage: Annotated[Stage, "weights"]


class Grouped(TypedDict, total=False):
    """What :func:`attnfast.key_importance` returns."""

    per_kv_head: Annotated[bool, False]


# ---- the options of each function; those in ...Options do not change the type of its result ----


class Attending(Pairs, Causal, Sides, Positions, Lengths, Scale, Scores, total=False):
    """Who sees whom, and the scores."""


class AttentionOptions(Attending, Stored, Dropout, Out, Threads, total=False):
    """Those of :func:`attnfast.attention`, without flags."""


class AttentionKeywords(Attending, Stored, Dropout, Lse, Weights, Out, Threads, total=False):
    """Those of :func:`attnfast.attention`."""


class BackwardKeywords(Attending, Dropout, LossOfLse, LossOfWeights, Wanted, Threads, total=False):
    """Those of :func:`attnfast.attention_backward`."""


class OfQueries(TypedDict, total=False):
    """Padding of queries, and on the left of keys."""

    q_lengths: Annotated[ArrayLike | None, None]
    kv_starts: Annotated[ArrayLike | None, None]


class CacheOptions(Pairs, Sides, OfQueries, Scale, Scores, Out, Threads, total=False):
    """Those of :meth:`attnfast.KVCache.attend`, which knows where keys are, without flags."""


class CacheKeywords(
    Pairs, Sides, OfQueries, Scale, Scores, Lse, Weights, Out, Threads, total=False
):
    """Those of :meth:`attnfast.KVCache.attend`."""


class StartsOfKeys(TypedDict, total=False):
    """Padding on the left."""

    kv_starts: Annotated[ArrayLike | None, None]


class ExtendOptions(Pairs, Sides, StartsOfKeys, Scale, Scores, Out, Threads, total=False):
    """Those of :meth:`attnfast.KVCache.extend`, without flags."""


class ExtendKeywords(
    Pairs, Sides, StartsOfKeys, Scale, Scores, Lse, Weights, Out, Threads, total=False
):
    """Those of :meth:`attnfast.KVCache.extend`."""


class WeightsKeywords(Stages, Attending, StoredKeys, Threads, total=False):
    """Those of :func:`attnfast.attention_weights`."""


class TopKKeywords(Attending, StoredKeys, Threads, total=False):
    """Those of :func:`attnfast.attention_topk`."""


class ImportanceKeywords(Grouped, Attending, StoredKeys, Threads, total=False):
    """Those of :func:`attnfast.key_importance`."""


class Local(Places, Pairs, Causal, Positions, Lengths, Scale, Scores, total=False):
    """The same within windows."""


class LocalOptions(Local, Dropout, Out, Threads, total=False):
    """Those of :func:`attnfast.local_attention`, without flags."""


class LocalKeywords(Local, Dropout, Lse, Weights, Out, Threads, total=False):
    """Those of :func:`attnfast.local_attention`."""


class LocalBackwardKeywords(Local, Dropout, LossOfLse, LossOfWeights, Wanted, Threads, total=False):
    """Those of :func:`attnfast.local_attention_backward`."""


class Bahdanau(Additive, Pairs, Causal, Sides, Positions, Lengths, Scores, total=False):
    """The same with additive scores."""


class AdditiveOptions(Bahdanau, Dropout, Out, Threads, total=False):
    """Those of :func:`attnfast.additive_attention`, without flags."""


class AdditiveKeywords(Bahdanau, Dropout, Lse, Weights, Out, Threads, total=False):
    """Those of :func:`attnfast.additive_attention`."""


class Packed(Causal, Sides, Positions, Scale, Scores, total=False):
    """The same within packed sequences."""


class VarlenOptions(Packed, Stored, Dropout, Out, Threads, total=False):
    """Those of :func:`attnfast.attention_varlen`, without flags."""


class VarlenKeywords(Packed, Stored, Dropout, Lse, Out, Threads, total=False):
    """Those of :func:`attnfast.attention_varlen`."""


class VarlenBackwardKeywords(Packed, Dropout, LossOfLse, Wanted, Threads, total=False):
    """Those of :func:`attnfast.attention_varlen_backward`."""


class AdditiveBackwardKeywords(
    Bahdanau, Dropout, LossOfLse, LossOfWeights, Wanted, Threads, total=False
):
    """Those of :func:`attnfast.additive_attention_backward`."""
