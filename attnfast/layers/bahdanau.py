"""Additive attention of a decoder to the states of an encoder."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .._signature import plain_signature
from ..additive import additive_attention
from ..pullback import vjp
from .gradients import LayerGradients, head_gradients, linear_backward, one_head
from .linear import Linear, Seed, as_input, as_named, check_batch, size
from .masks import as_key_mask

Array = NDArray[Any]


class BahdanauAttention:
    r"""Additive attention with its projections, by Bahdanau et al.

    With the scores and the context of [1]_:

    .. math::
        e_{ij} = v^\top \tanh(W_q^\top s_i + W_k^\top h_j + b) \qquad
        c_i = \sum_j \mathrm{softmax}_j(e_{ij})\, h_j

    Parameters
    ----------
    query_dim, key_dim : int
        Width of a decoder state ``s`` and of an encoder state ``h``.
    units : int
        Width of the sum inside the tanh.
    use_bias : bool
        Whether there is a ``b``; the paper has none.
    weights : mapping of str to array_like, optional
        ``w_query (query_dim, units)``, ``w_key (key_dim, units)``, ``v (units,)`` and with
        `use_bias` ``b (units,)``. By default they are drawn, ``b`` as zeros.
    dtype : dtype, optional
        Either float32 or float64. Default: that of `weights`, or float32.
    seed : int or numpy.random.Generator, optional
        Draws the weights, uniformly within ``sqrt(6 / (n_in + n_out))``.

    Attributes
    ----------
    weights : dict of str to ndarray
        The arrays by those names.

    References
    ----------
    .. [1] D. Bahdanau, K. Cho, Y. Bengio, "Neural Machine Translation by Jointly Learning to Align
       and Translate", 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast.layers import BahdanauAttention
    >>> layer = BahdanauAttention(query_dim=32, key_dim=48, units=24, seed=0)
    >>> states = np.random.default_rng(1).standard_normal((4, 30, 48), dtype=np.float32)
    >>> keys = layer.project_keys(states)
    >>> s = np.zeros((4, 1, 32), np.float32)
    >>> for step in range(3):
    ...     context = layer(s, states, keys=keys, kv_lengths=[30, 12, 7, 21])
    ...     s = np.tanh(s + context[..., :32])
    >>> context.shape
    (4, 1, 48)
    """

    @plain_signature
    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        units: int,
        *,
        use_bias: bool = False,
        weights: Mapping[str, ArrayLike] | None = None,
        dtype: DTypeLike | None = None,
        seed: Seed = None,
    ) -> None:
        n = size(units, "units")
        shapes: dict[str, tuple[int, ...]] = {
            "w_query": (size(query_dim, "query_dim"), n),
            "w_key": (size(key_dim, "key_dim"), n),
            "v": (n,),
        }
        if use_bias:
            shapes["b"] = (n,)
        self.weights = as_named(shapes, weights, dtype, seed)

    @plain_signature
    def project_keys(self, states: ArrayLike) -> Array:
        """Project encoder states: do it once and pass the result as `keys` in every step.

        Parameters
        ----------
        states : array_like, ``(..., Lk, key_dim)``
            Encoder states.

        Returns
        -------
        ndarray, ``(..., Lk, units)``
            Their product with ``w_key``.
        """
        w_key = self.weights["w_key"]
        return Linear(w_key)(as_input(states, "states", len(w_key), w_key.dtype))

    @overload
    def __call__(
        self,
        query: ArrayLike,
        states: ArrayLike,
        *,
        keys: ArrayLike | None = ...,
        key_mask: ArrayLike | None = ...,
        kv_lengths: ArrayLike | None = ...,
        kv_starts: ArrayLike | None = ...,
        return_weights: Literal[False] = ...,
        num_threads: int | None = ...,
    ) -> Array: ...
    @overload
    def __call__(
        self,
        query: ArrayLike,
        states: ArrayLike,
        *,
        keys: ArrayLike | None = ...,
        key_mask: ArrayLike | None = ...,
        kv_lengths: ArrayLike | None = ...,
        kv_starts: ArrayLike | None = ...,
        return_weights: Literal[True],
        num_threads: int | None = ...,
    ) -> tuple[Array, Array]: ...
    @overload
    def __call__(
        self,
        query: ArrayLike,
        states: ArrayLike,
        *,
        keys: ArrayLike | None = ...,
        key_mask: ArrayLike | None = ...,
        kv_lengths: ArrayLike | None = ...,
        kv_starts: ArrayLike | None = ...,
        return_weights: bool = ...,
        num_threads: int | None = ...,
    ) -> Array | tuple[Array, Array]: ...
    @plain_signature
    def __call__(
        self,
        query: ArrayLike,
        states: ArrayLike,
        *,
        keys: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        kv_lengths: ArrayLike | None = None,
        kv_starts: ArrayLike | None = None,
        return_weights: bool = False,
        num_threads: int | None = None,
    ) -> Array | tuple[Array, Array]:
        """The contexts of decoder states.

        Parameters
        ----------
        query : array_like, ``(..., Lq, query_dim)``
            Decoder states, one or many.
        states : array_like, ``(..., Lk, key_dim)``
            Encoder states.
        keys : array_like ``(..., Lk, units)``, optional
            What :meth:`project_keys` returns for `states`.
        key_mask : array_like of bool ``(..., Lk)``, optional
            True for real states, False for padding.
        kv_lengths : array_like of int ``(B,)``, optional
            States from here on are padding.
        kv_starts : array_like of int ``(B,)``, optional
            States before these are padding.
        return_weights : bool
            Also return the softmax weights.
        num_threads : int, optional
            As for :func:`attnfast.attention`.

        Returns
        -------
        ndarray or (ndarray, ndarray)
            Contexts ``(..., Lq, key_dim)``, and weights ``(..., Lq, Lk)`` if asked for.
        """
        options: dict[str, Any] = {"kv_lengths": kv_lengths, "kv_starts": kv_starts}
        options["num_threads"] = num_threads
        s, h, k, options = self._prepare(query, states, keys, key_mask, options)
        operands = self._operands(s, h, k)
        if not return_weights:
            return np.asarray(additive_attention(*operands, **options))[..., 0, :, :]
        result = additive_attention(*operands, return_weights=True, **options)
        return result.output[..., 0, :, :], result.weights[..., 0, :, :]

    @plain_signature
    def vjp(
        self,
        query: ArrayLike,
        states: ArrayLike,
        *,
        keys: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        kv_lengths: ArrayLike | None = None,
        kv_starts: ArrayLike | None = None,
        return_weights: bool = False,
        num_threads: int | None = None,
    ) -> tuple[Any, Callable[..., LayerGradients]]:
        """Call the layer, and return its result with a function that computes gradients.

        Parameters
        ----------
        query, states, keys : array_like
            As for a call. The `keys` count as made of the `states`: they have no gradient of their
            own, but that of the states and of ``w_key`` is complete.
        key_mask, kv_lengths, kv_starts, return_weights, num_threads : optional
            As for a call.

        Returns
        -------
        result : ndarray or (ndarray, ndarray)
            What the call returns.
        pullback : callable
            ``pullback(grad_output, grad_weights=None)``: from the derivatives of a loss by the
            contexts, and by the weights if they were returned, to `LayerGradients`.

        Examples
        --------
        >>> import numpy as np
        >>> from attnfast.layers import BahdanauAttention
        >>> layer = BahdanauAttention(query_dim=32, key_dim=48, units=24, seed=0)
        >>> s, states = np.ones((5, 32), np.float32), np.ones((9, 48), np.float32)
        >>> context, pullback = layer.vjp(s, states)
        >>> sorted(pullback(context).weights)
        ['v', 'w_key', 'w_query']
        """
        options: dict[str, Any] = {"kv_lengths": kv_lengths, "kv_starts": kv_starts}
        options["num_threads"] = num_threads
        s, h, k, options = self._prepare(query, states, keys, key_mask, options)
        names = ["query", "key", "value", "score_weight"]
        names += ["score_bias"] if "b" in self.weights else []
        result, attend_back = vjp(
            additive_attention,
            *self._operands(s, h, k),
            wanted=names,
            return_lse=True,
            return_weights=return_weights,
            **options,
        )
        output, weights = one_head(result)

        def pullback(
            grad_output: ArrayLike, grad_weights: ArrayLike | None = None
        ) -> LayerGradients:
            """Gradients, from the derivatives of a loss by contexts and weights."""
            by_output, by_weights = head_gradients(grad_output, grad_weights, output, weights)
            grads = attend_back(by_output, grad_weights=by_weights)
            of_query, of_key = (Linear(self.weights[name]) for name in ("w_query", "w_key"))
            by_query, by_w_query, _ = linear_backward(of_query, s, grads.query[..., 0, :, :])
            by_states, by_w_key, _ = linear_backward(of_key, h, grads.key[..., 0, :, :])
            by_weight = {"w_query": by_w_query, "w_key": by_w_key, "v": grads.score_weight}
            if "b" in self.weights:
                by_weight["b"] = grads.score_bias
            by_states = by_states + grads.value[..., 0, :, :]
            return LayerGradients({"query": by_query, "states": by_states}, by_weight)

        return (output if weights is None else (output, weights)), pullback

    def _prepare(
        self, query: Any, states: Any, keys: Any, key_mask: Any, options: dict[str, Any]
    ) -> tuple[Array, Array, Array, dict[str, Any]]:
        """The inputs as arrays, and the options of `additive_attention`."""
        w_query, w_key, v = (self.weights[name] for name in ("w_query", "w_key", "v"))
        s = as_input(query, "query", len(w_query), w_query.dtype)
        h = as_input(states, "states", len(w_key), w_key.dtype)
        check_batch(s, "query", h, "states")
        k = Linear(w_key)(h) if keys is None else as_input(keys, "keys", len(v), v.dtype)
        if key_mask is not None:
            options["mask"] = as_key_mask(key_mask, "key_mask", h.shape[:-1])[..., None, None, :]
        return s, h, k, {**options, "score_bias": self.weights.get("b")}

    def _operands(self, s: Array, h: Array, k: Array) -> tuple[Array, Array, Array, Array]:
        """Query, key, value and score weight of `additive_attention`, with one head."""
        q, k, v = (x[..., None, :, :] for x in (Linear(self.weights["w_query"])(s), k, h))
        return q, k, v, self.weights["v"]

    def __repr__(self) -> str:
        w = self.weights
        sizes = f"{len(w['w_query'])}, {len(w['w_key'])}, {len(w['v'])}"
        return f"BahdanauAttention({sizes}, use_bias={'b' in w}, dtype={w['v'].dtype})"

    def _repr_html_(self) -> str:
        from .._html import arrays

        return arrays(repr(self), self.weights)
