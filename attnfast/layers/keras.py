"""The layers Attention and AdditiveAttention of Keras, in NumPy: one head, no projections.

They need no Keras. Layers for Keras's own models are in `attnfast.keras`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .._misread import as_array
from .._signature import plain_signature
from ..additive import additive_attention
from ..api import attention
from ..pullback import vjp
from ..result import AttentionResult
from .gradients import LayerGradients, add_to, head_gradients, inner, one_head
from .linear import Seed, as_weights, check_array, check_batch, real_dtype, size
from .masks import as_key_mask, real_lengths, right_padded

Array = NDArray[Any]


Pullback = Callable[[Array, Array | None], tuple[Array, Array, Array, dict[str, Any]]]


class _TokenAttention(ABC):
    """The calls of both layers, which differ in `_attend` and `_vjp`."""

    @abstractmethod
    def _attend(self, q: Array, k: Array, v: Array, **options: Any) -> AttentionResult: ...

    @abstractmethod
    def to_keras(self) -> list[Array]:
        """The weights for a Keras layer."""

    def _repr_html_(self) -> str:
        from .._html import arrays

        return arrays(repr(self), {f"weights[{i}]": a for i, a in enumerate(self.to_keras())})

    @abstractmethod
    def _vjp(
        self, q: Array, k: Array, v: Array, **options: Any
    ) -> tuple[AttentionResult, Pullback]:
        """The result, and from derivatives by output and weights to q, k, v and own weights."""

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
        arrays = _arrays(inputs)
        query_mask, options = _options(mask, arrays, use_causal_mask, return_attention_scores)
        heads = (x[..., None, :, :] for x in arrays)
        output, weights = one_head(self._attend(*heads, num_threads=num_threads, **options))
        if query_mask is not None:
            output[~query_mask] = 0
        return output if weights is None else (output, weights)

    @plain_signature
    def vjp(
        self,
        inputs: Sequence[ArrayLike],
        mask: Sequence[ArrayLike | None] | None = None,
        *,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
        num_threads: int | None = None,
    ) -> tuple[Any, Callable[..., LayerGradients]]:
        """Call the layer, and return its result with a function that computes gradients.

        Parameters
        ----------
        inputs, mask : list
            As for a call.
        return_attention_scores, use_causal_mask, num_threads : optional
            As for a call.

        Returns
        -------
        result : ndarray or (ndarray, ndarray)
            What the call returns.
        pullback : callable
            ``pullback(grad_output, grad_weights=None)``: from the derivatives of a loss by the
            output, and by the weights if they were returned, to `LayerGradients`: ``"query"``,
            ``"value"`` and, if it was given, ``"key"``, and the attributes that are trained.
        """
        arrays = _arrays(inputs)
        query_mask, options = _options(mask, arrays, use_causal_mask, return_attention_scores)
        heads = (x[..., None, :, :] for x in arrays)
        result, attend_back = self._vjp(*heads, num_threads=num_threads, **options)
        output, weights = one_head(result)
        if query_mask is not None:
            output = np.where(query_mask[..., None], output, 0)  # the pullback keeps the other

        def pullback(
            grad_output: ArrayLike, grad_weights: ArrayLike | None = None
        ) -> LayerGradients:
            """Gradients, from the derivatives of a loss by output and weights."""
            by_output, by_weights = head_gradients(grad_output, grad_weights, output, weights)
            if query_mask is not None:
                by_output = np.where(query_mask[..., None, :, None], by_output, 0)
            *grads, by_weight = attend_back(by_output, by_weights)
            by_input: dict[str, Array] = {}
            names = ("query", "key" if len(inputs) == 3 else "value", "value")
            for name, grad in zip(names, grads, strict=True):
                add_to(by_input, name, grad[..., 0, :, :])
            return LayerGradients(by_input, by_weight)

        return (output if weights is None else (output, weights)), pullback


class Attention(_TokenAttention):
    r"""Dot-product attention as in ``keras.layers.Attention``.

    After [1]_:

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
        result: AttentionResult
        if self.score_mode == "dot":
            result = attention(q, k, v, scale=self._scale, return_lse=True, **options)
            return result
        result = additive_attention(*self._additive(q, k, v), return_lse=True, **options)
        return result

    @property
    def _scale(self) -> float:
        return self.scale if self.use_scale else 1.0

    def _additive(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array, Array]:
        """Operands and score weight of `additive_attention`."""
        if self._scale != 1:
            q, k = q * q.dtype.type(self._scale), k * k.dtype.type(self._scale)
        return q, k, v, np.full(q.shape[-1], self.concat_score_weight)

    def _vjp(
        self, q: Array, k: Array, v: Array, **options: Any
    ) -> tuple[AttentionResult, Pullback]:
        own = self._vjp_of_dot if self.score_mode == "dot" else self._vjp_of_concat
        return own(q, k, v, {**options, "return_lse": True})

    def _vjp_of_dot(
        self, q: Array, k: Array, v: Array, options: dict[str, Any]
    ) -> tuple[AttentionResult, Pullback]:
        # With a scale of 0 all scores are 0, but not their derivative by the scale.
        scale, unit, x = self._scale, self._scale or 1.0, q if self._scale else np.zeros_like(q)
        result, attend_back = vjp(attention, x, k, v, scale=unit, **options)

        def pullback(grad: Array, grad_weights: Array | None) -> Any:
            by_q, by_k, by_v = attend_back(grad, grad_weights=grad_weights)[:3]
            by_weight = {"scale": inner(q, by_q) / unit} if self.use_scale else {}
            return by_q if scale else np.zeros_like(by_q), by_k, by_v, by_weight

        return result, pullback

    def _vjp_of_concat(
        self, q: Array, k: Array, v: Array, options: dict[str, Any]
    ) -> tuple[AttentionResult, Pullback]:
        scale = self._scale
        options["wanted"] = ("query", "key", "value", "score_weight")
        result, attend_back = vjp(additive_attention, *self._additive(q, k, v), **options)

        def pullback(grad: Array, grad_weights: Array | None) -> Any:
            grads = attend_back(grad, grad_weights=grad_weights)
            by_weight = {"concat_score_weight": grads.score_weight.sum()}
            if self.use_scale:
                by_weight["scale"] = inner(q, grads.query) + inner(k, grads.key)
            by_q, by_k = (x * x.dtype.type(scale) for x in (grads.query, grads.key))
            return by_q, by_k, grads.value, by_weight

        return result, pullback

    def __repr__(self) -> str:
        return f"Attention(use_scale={self.use_scale}, score_mode={self.score_mode!r})"


class AdditiveAttention(_TokenAttention):
    r"""Additive attention as in ``keras.layers.AdditiveAttention``.

    After [1]_:

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
        self._check_width(q)
        result: AttentionResult = additive_attention(
            q, k, v, self.scale, return_lse=True, **options
        )
        return result

    def _vjp(
        self, q: Array, k: Array, v: Array, **options: Any
    ) -> tuple[AttentionResult, Pullback]:
        self._check_width(q)
        own = () if self.scale is None else ("score_weight",)
        options |= {"return_lse": True, "wanted": ("query", "key", "value", *own)}
        result, attend_back = vjp(additive_attention, q, k, v, self.scale, **options)

        def pullback(grad: Array, grad_weights: Array | None) -> Any:
            grads = attend_back(grad, grad_weights=grad_weights)
            by_weight = {} if self.scale is None else {"scale": grads.score_weight}
            return *grads[:3], by_weight

        return result, pullback

    def _check_width(self, q: Array) -> None:
        if q.shape[-1] != self.dim:
            raise ValueError(f"query must have width {self.dim}, got {q.shape[-1]}")

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


def _options(
    mask: Sequence[ArrayLike | None] | None,
    arrays: tuple[Array, Array, Array],
    use_causal_mask: bool,
    return_weights: bool,
) -> tuple[Array | None, dict[str, Any]]:
    """The mask of the query, and the options of attention."""
    query_mask, value_mask = _masks(mask, arrays[0], arrays[2])
    options: dict[str, Any] = {"is_causal": use_causal_mask, "return_weights": return_weights}
    options["q_offset"] = 0 if use_causal_mask else None
    if value_mask is not None:
        options["mask"] = value_mask[..., None, None, :]
    if query_mask is not None and not return_weights and right_padded(query_mask):
        options["q_lengths"] = real_lengths(query_mask)
    return query_mask, options


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
