"""The layers Attention and AdditiveAttention of Keras: one head, no projections."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .._misread import as_array
from .._signature import plain_signature
from ..additive import additive_attention
from ..api import attention
from ..result import AttentionResult
from .linear import Seed, as_weights, check_array, check_batch, real_dtype, size
from .masks import as_key_mask, real_lengths, right_padded

Array = NDArray[Any]


class _TokenAttention(ABC):
    """The call of both layers, which differ in `_attend`."""

    @abstractmethod
    def _attend(self, q: Array, k: Array, v: Array, **options: Any) -> AttentionResult: ...

    @overload
    def __call__(
        self,
        inputs: Sequence[ArrayLike],
        mask: Sequence[ArrayLike | None] | None = ...,
        *,
        return_attention_scores: Literal[False] = ...,
        use_causal_mask: bool = ...,
        num_threads: int | None = ...,
    ) -> Array: ...
    @overload
    def __call__(
        self,
        inputs: Sequence[ArrayLike],
        mask: Sequence[ArrayLike | None] | None = ...,
        *,
        return_attention_scores: Literal[True],
        use_causal_mask: bool = ...,
        num_threads: int | None = ...,
    ) -> tuple[Array, Array]: ...
    @overload
    def __call__(
        self,
        inputs: Sequence[ArrayLike],
        mask: Sequence[ArrayLike | None] | None = ...,
        *,
        return_attention_scores: bool = ...,
        use_causal_mask: bool = ...,
        num_threads: int | None = ...,
    ) -> Array | tuple[Array, Array]: ...
    @plain_signature
    def __call__(
        self,
        inputs: Sequence[ArrayLike],
        mask: Sequence[ArrayLike | None] | None = None,
        *,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
        num_threads: int | None = None,
    ) -> Array | tuple[Array, Array]:
        """Attention of queries to values.

        Parameters
        ----------
        inputs : [query, value] or [query, value, key]
            ``(..., Tq, dim)``, ``(..., Tv, Dv)`` and ``(..., Tv, dim)``; the key is by default the
            value. Any dtype that :func:`attnfast.attention` takes.
        mask : [query_mask, value_mask], optional
            Either may be None. `query_mask`, bool ``(..., Tq)``, is False where the output is to be
            zero; `value_mask`, bool ``(..., Tv)``, False where a value and its key are hidden.
        return_attention_scores : bool
            Also return the softmax weights.
        use_causal_mask : bool
            Query ``i`` sees keys up to ``i``, also where ``Tq`` and ``Tv`` differ.
        num_threads : int, optional
            As for :func:`attnfast.attention`.

        Returns
        -------
        ndarray or (ndarray, ndarray)
            Output ``(..., Tq, Dv)``, and weights ``(..., Tq, Tv)`` if asked for. A query that sees
            no key gives zeros.
        """
        query, key, value = _arrays(inputs)
        query_mask, value_mask = _masks(mask, query, value)
        options: dict[str, Any] = {"is_causal": use_causal_mask, "num_threads": num_threads}
        options["q_offset"] = 0 if use_causal_mask else None
        if value_mask is not None:
            options["mask"] = value_mask[..., None, None, :]
        if query_mask is not None and not return_attention_scores and right_padded(query_mask):
            options["q_lengths"] = real_lengths(query_mask)
        heads = (x[..., None, :, :] for x in (query, key, value))
        result = self._attend(*heads, return_weights=return_attention_scores, **options)
        output = result.output[..., 0, :, :]
        if query_mask is not None:
            output[~query_mask] = 0
        return (output, result.weights[..., 0, :, :]) if return_attention_scores else output


class Attention(_TokenAttention):
    r"""Dot-product attention as in ``keras.layers.Attention``, after [1]_.

    .. math::
        \mathrm{score}_{ij} = s\, q_i \cdot k_j \qquad\text{or, for "concat",}\qquad
        c \sum_d \tanh(s\,(q_{id} + k_{jd}))

    Parameters
    ----------
    use_scale : bool
        Whether there is a scale ``s``; without it ``s`` is 1, not ``1 / sqrt(dim)``.
    score_mode : {"dot", "concat"}
        Which score.

    Attributes
    ----------
    scale, concat_score_weight : float
        ``s`` and ``c``, initially 1.

    References
    ----------
    .. [1] M.-T. Luong, H. Pham, C. D. Manning, "Effective Approaches to Attention-based Neural
       Machine Translation", 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast.layers import Attention
    >>> query, value = np.random.default_rng(0).standard_normal((2, 3, 20, 16))
    >>> real = np.arange(20) < np.array([[20], [12], [5]])
    >>> output, weights = Attention()(
    ...     [query, value], mask=[None, real], return_attention_scores=True
    ... )
    >>> output.shape, weights.shape, bool(weights[2, :, 5:].any())
    ((3, 20, 16), (3, 20, 20), False)
    """

    def __init__(
        self, use_scale: bool = False, score_mode: Literal["dot", "concat"] = "dot"
    ) -> None:
        if score_mode not in ("dot", "concat"):
            raise ValueError(f'score_mode must be "dot" or "concat", got {score_mode!r}')
        self.use_scale = use_scale
        self.score_mode = score_mode
        self.scale = 1.0
        self.concat_score_weight = 1.0

    @property
    def _names(self) -> list[str]:
        """The trained numbers, in the order of Keras."""
        concat = ["concat_score_weight"] if self.score_mode == "concat" else []
        return (["scale"] if self.use_scale else []) + concat

    @classmethod
    @plain_signature
    def from_keras(
        cls,
        weights: Sequence[ArrayLike],
        use_scale: bool = False,
        score_mode: Literal["dot", "concat"] = "dot",
    ) -> "Attention":
        """A layer with the weights of a Keras layer that was made with these arguments.

        Parameters
        ----------
        weights : sequence of array_like
            What ``get_weights()`` of the Keras layer returns.
        use_scale, score_mode : optional
            As for the class.

        Returns
        -------
        Attention
            With those numbers.

        Raises
        ------
        ValueError
            Another number of weights than these arguments have.
        """
        layer = cls(use_scale, score_mode)
        values = [float(as_weights(w, np.float64).reshape(())) for w in weights]
        if len(values) != len(layer._names):
            names = ", ".join(layer._names)
            raise ValueError(f"weights must be [{names}], got {len(values)} arrays")
        for name, x in zip(layer._names, values, strict=True):
            setattr(layer, name, x)
        return layer

    @plain_signature
    def to_keras(self) -> list[Array]:
        """The weights for a Keras layer.

        Returns
        -------
        list of ndarray
            As ``set_weights`` takes them; new arrays.
        """
        return [np.array(getattr(self, name), np.float32) for name in self._names]

    def _attend(self, q: Array, k: Array, v: Array, **options: Any) -> AttentionResult:
        scale = self.scale if self.use_scale else 1.0
        result: AttentionResult
        if self.score_mode == "dot":
            result = attention(q, k, v, scale=scale, return_lse=True, **options)
            return result
        if scale != 1:
            q, k = q * q.dtype.type(scale), k * k.dtype.type(scale)
        weight = np.full(q.shape[-1], self.concat_score_weight)
        result = additive_attention(q, k, v, weight, return_lse=True, **options)
        return result

    def __repr__(self) -> str:
        return f"Attention(use_scale={self.use_scale}, score_mode={self.score_mode!r})"


class AdditiveAttention(_TokenAttention):
    r"""Additive attention as in ``keras.layers.AdditiveAttention``, after [1]_.

    .. math:: \mathrm{score}_{ij} = \sum_d s_d \tanh(q_{id} + k_{jd})

    Parameters
    ----------
    dim : int
        Width of query and key.
    use_scale : bool
        Whether there is a scale ``s``; without it ``s`` is 1.
    dtype : dtype
        Of the scale: float32 or float64.
    seed : int or numpy.random.Generator, optional
        Draws the scale, uniformly within ``sqrt(3 / dim)``.

    Attributes
    ----------
    scale : ndarray ``(dim,)`` or None
        ``s``.

    References
    ----------
    .. [1] D. Bahdanau, K. Cho, Y. Bengio, "Neural Machine Translation by Jointly Learning to Align
       and Translate", 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast.layers import AdditiveAttention
    >>> query, value = np.random.default_rng(0).standard_normal((2, 3, 20, 16))
    >>> AdditiveAttention(16, seed=0)([query, value], use_causal_mask=True).shape
    (3, 20, 16)
    """

    @plain_signature
    def __init__(
        self,
        dim: int,
        use_scale: bool = True,
        *,
        dtype: DTypeLike = np.float32,
        seed: Seed = None,
    ) -> None:
        self.dim, real = size(dim, "dim"), real_dtype(dtype)
        limit = math.sqrt(3 / self.dim)
        drawn = np.random.default_rng(seed).uniform(-limit, limit, self.dim)
        self.scale = drawn.astype(real) if use_scale else None

    @classmethod
    @plain_signature
    def from_keras(
        cls, weights: Sequence[ArrayLike], dim: int | None = None
    ) -> "AdditiveAttention":
        """A layer with the weights of a Keras layer.

        Parameters
        ----------
        weights : sequence of array_like
            What ``get_weights()`` of the Keras layer returns.
        dim : int, optional
            Width of query and key; needed only for a layer without a scale.

        Returns
        -------
        AdditiveAttention
            With a copy of the scale.

        Raises
        ------
        ValueError
            Weights of another layer, or no `dim` where it is needed.
        """
        arrays = [as_weights(w) for w in weights]
        if len(arrays) > 1 or (not arrays and dim is None):
            raise ValueError(f"weights must be [scale], or [] with dim, got {len(arrays)} arrays")
        layer = cls(len(arrays[0].ravel()) if dim is None else dim, use_scale=False)
        for scale in arrays:
            check_array(scale, "scale", (layer.dim,), scale.dtype)
            layer.scale = scale
        return layer

    @plain_signature
    def to_keras(self) -> list[Array]:
        """The weights for a Keras layer.

        Returns
        -------
        list of ndarray
            As ``set_weights`` takes them; new arrays.
        """
        return [] if self.scale is None else [self.scale.copy()]

    def _attend(self, q: Array, k: Array, v: Array, **options: Any) -> AttentionResult:
        if q.shape[-1] != self.dim:
            raise ValueError(f"query must have width {self.dim}, got {q.shape[-1]}")
        result: AttentionResult = additive_attention(
            q, k, v, self.scale, return_lse=True, **options
        )
        return result

    def __repr__(self) -> str:
        return f"AdditiveAttention({self.dim}, use_scale={self.scale is not None})"


def _arrays(inputs: Sequence[ArrayLike]) -> tuple[Array, Array, Array]:
    """Query, key and value."""
    accepted = "inputs must be [query, value] or [query, value, key]"
    if not isinstance(inputs, (list, tuple)):
        raise TypeError(f"{accepted}, got {type(inputs).__name__}")
    if len(inputs) not in (2, 3):
        raise ValueError(f"{accepted}, got {len(inputs)} arrays")
    names = ("query", "value", "key")
    arrays = [as_array(x, name) for name, x in zip(names, inputs, strict=False)]
    for name, x in zip(names, arrays, strict=False):
        if x.ndim < 2:
            raise ValueError(f"{name} must have shape (..., length, dim), got {x.shape}")
    check_batch(arrays[0], "query", arrays[1], "value")
    return arrays[0], arrays[-1] if len(arrays) == 3 else arrays[1], arrays[1]


def _masks(
    mask: Sequence[ArrayLike | None] | None, query: Array, value: Array
) -> tuple[Array | None, Array | None]:
    if mask is None:
        return None, None
    if not isinstance(mask, (list, tuple)):
        raise TypeError(f"mask must be [query_mask, value_mask], got {type(mask).__name__}")
    if len(mask) != 2:
        raise ValueError(f"mask must be [query_mask, value_mask], got {len(mask)} items")
    pairs = zip(("query_mask", "value_mask"), mask, (query, value), strict=True)
    q, v = (None if m is None else as_key_mask(m, name, x.shape[:-1]) for name, m, x in pairs)
    return q, v
