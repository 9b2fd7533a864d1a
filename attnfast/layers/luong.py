"""Global and local attention of a decoder to the states of an encoder."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .._signature import plain_signature
from ..additive import additive_attention
from ..api import attention
from ..local import local_attention
from ..result import AttentionResult
from .gradients import (
    LayerGradients,
    as_gradient,
    head_gradients,
    linear_backward,
    one_head,
)
from .linear import Linear, Seed, as_input, as_named, check_batch, size
from .luong_vjp import add_center_gradients, attend, score_gradients
from .masks import as_key_mask, as_lengths, real_lengths
from .windows import additive_window

Array = NDArray[Any]
Score = Literal["dot", "general", "concat"]
Alignment = Literal["global", "local-m", "local-p"]


class LuongAttention:
    r"""Attention of target states ``h_t`` to source states ``h_s``, by Luong et al.

    With the scores and the context of [1]_:

    .. math::
        \mathrm{score}(h_t, h_s) = \begin{cases}
        h_t^\top h_s & \text{dot} \\ h_t^\top W_a h_s & \text{general} \\
        v_a^\top \tanh(W_a^\top [h_t; h_s]) & \text{concat} \end{cases} \qquad
        c_t = \sum_s a_t(s)\, h_s

    The weights ``a_t`` are the softmax of the scores over all source positions (``"global"``), or
    over the window ``|s - p_t| <= D`` around ``p_t = t`` (``"local-m"``) or around a position that
    is predicted (``"local-p"``), and then

    .. math::
        p_t = S\, \sigma(v_p^\top \tanh(W_p^\top h_t)) \qquad
        a_t(s) = \mathrm{softmax}_s(\mathrm{score})\; e^{-(s - p_t)^2 / (2 (D / 2)^2)}

    with ``S`` the number of source states. Local alignments cost ``Lq * D``, not ``Lq * Lk``.

    Parameters
    ----------
    dim : int
        Width of ``h_t``.
    source_dim : int, optional
        Width of ``h_s``. Default `dim`, which ``"dot"`` requires.
    score : {"dot", "general", "concat"}
        Which score.
    alignment : {"global", "local-m", "local-p"}
        Which source positions.
    window : int, optional
        ``D``, for local alignments.
    units : int, optional
        Width inside the tanh of ``"concat"`` and of the predicted position. Default `dim`.
    weights : mapping of str to array_like, optional
        ``w_a``, ``(dim, source_dim)`` for ``"general"``, ``(dim + source_dim, units)`` for
        ``"concat"``; for the latter also ``v_a (units,)``; for ``"local-p"`` ``w_p (dim, units)``
        and ``v_p (units,)``; always ``w_c (source_dim + dim, dim)``. By default they are drawn.
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
    .. [1] M.-T. Luong, H. Pham, C. D. Manning, "Effective Approaches to Attention-based Neural
       Machine Translation", 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast.layers import LuongAttention
    >>> layer = LuongAttention(32, score="general", alignment="local-p", window=10, seed=0)
    >>> rng = np.random.default_rng(1)
    >>> source = rng.standard_normal((4, 200, 32), dtype=np.float32)
    >>> hidden = rng.standard_normal((4, 50, 32), dtype=np.float32)
    >>> context, weights = layer(hidden, source, return_weights=True)
    >>> context.shape, weights.shape, int((weights > 0).sum(axis=-1).max())
    ((4, 50, 32), (4, 50, 200), 20)
    >>> layer.attentional(context, hidden).shape
    (4, 50, 32)
    """

    @plain_signature
    def __init__(
        self,
        dim: int,
        source_dim: int | None = None,
        *,
        score: Score = "general",
        alignment: Alignment = "global",
        window: int | None = None,
        units: int | None = None,
        weights: Mapping[str, ArrayLike] | None = None,
        dtype: DTypeLike | None = None,
        seed: Seed = None,
    ) -> None:
        self.dim = size(dim, "dim")
        self.source_dim = self.dim if source_dim is None else size(source_dim, "source_dim")
        if score not in ("dot", "general", "concat"):
            raise ValueError(f'score must be "dot", "general" or "concat", got {score!r}')
        if alignment not in ("global", "local-m", "local-p"):
            raise ValueError(
                f'alignment must be "global", "local-m" or "local-p", got {alignment!r}'
            )
        if score == "dot" and self.source_dim != self.dim:
            raise ValueError(
                f'source_dim must be dim, {self.dim}, for score "dot", got {self.source_dim}'
            )
        if window is None and alignment != "global":
            raise ValueError(f"window must be given for alignment {alignment!r}, got None")
        if window is not None and alignment == "global":
            raise ValueError(f'window must be None for alignment "global", got {window}')
        self.score, self.alignment = score, alignment
        self.window = 0 if window is None else size(window, "window")
        n = self.dim if units is None else size(units, "units")
        self.weights = as_named(self._shapes(n), weights, dtype, seed)

    def _shapes(self, units: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"w_c": (self.source_dim + self.dim, self.dim)}
        if self.score == "general":
            shapes["w_a"] = self.dim, self.source_dim
        if self.score == "concat":
            shapes |= {"w_a": (self.dim + self.source_dim, units), "v_a": (units,)}
        if self.alignment == "local-p":
            shapes |= {"w_p": (self.dim, units), "v_p": (units,)}
        return shapes

    # ---- the parts ----

    @plain_signature
    def project_keys(self, source: ArrayLike) -> Array:
        """Project source states: do it once and pass the result as `keys` in every call.

        Parameters
        ----------
        source : array_like, ``(..., Lk, source_dim)``
            Source states ``h_s``.

        Returns
        -------
        ndarray, ``(..., Lk, units)`` or ``(..., Lk, source_dim)``
            For ``"concat"`` their product with their part of ``w_a``, else the states.
        """
        h_s = self._input(source, "source", self.source_dim)
        return Linear(self.weights["w_a"][self.dim :])(h_s) if self.score == "concat" else h_s

    @plain_signature
    def centers(self, hidden: ArrayLike, lengths: ArrayLike) -> Array:
        """Predicted positions ``p_t``, for ``"local-p"``.

        Parameters
        ----------
        hidden : array_like, ``(..., Lq, dim)``
            Target states ``h_t``, finite.
        lengths : array_like of int, ``(...)``
            Numbers of source states, ``S``.

        Returns
        -------
        ndarray, ``(..., Lq)``
            Positions from 0 to ``S``.

        Raises
        ------
        ValueError
            Another alignment, or states that hold NaN or inf.
        """
        if self.alignment != "local-p":
            raise ValueError(
                f'alignment must be "local-p" to predict centers, got {self.alignment!r}'
            )
        h_t = self._input(hidden, "hidden", self.dim)
        logit = np.tanh(Linear(self.weights["w_p"])(h_t)) @ self.weights["v_p"]
        if not np.isfinite(logit).all():
            raise ValueError("hidden must be finite where positions are predicted, got NaN or inf")
        share = (1 + np.tanh(logit / 2)) / 2  # the logistic function, without overflow
        return np.asarray(np.asarray(lengths)[..., None] * share, dtype=h_t.dtype)

    @plain_signature
    def attentional(self, context: ArrayLike, hidden: ArrayLike) -> Array:
        """The attentional vectors ``tanh(W_c^T [c_t; h_t])``.

        Parameters
        ----------
        context : array_like, ``(..., Lq, source_dim)``
            Contexts ``c_t``, as a call returns them.
        hidden : array_like, ``(..., Lq, dim)``
            Target states ``h_t``.

        Returns
        -------
        ndarray, ``(..., Lq, dim)``
            A new array.
        """
        c = self._input(context, "context", self.source_dim)
        h_t = self._input(hidden, "hidden", self.dim)
        return np.tanh(Linear(self.weights["w_c"])(np.concatenate([c, h_t], axis=-1)))

    # ---- the call ----

    @overload
    def __call__(
        self,
        hidden: ArrayLike,
        source: ArrayLike,
        *,
        keys: ArrayLike | None = ...,
        q_offset: ArrayLike = ...,
        key_mask: ArrayLike | None = ...,
        kv_lengths: ArrayLike | None = ...,
        return_weights: Literal[False] = ...,
        num_threads: int | None = ...,
    ) -> Array: ...
    @overload
    def __call__(
        self,
        hidden: ArrayLike,
        source: ArrayLike,
        *,
        keys: ArrayLike | None = ...,
        q_offset: ArrayLike = ...,
        key_mask: ArrayLike | None = ...,
        kv_lengths: ArrayLike | None = ...,
        return_weights: Literal[True],
        num_threads: int | None = ...,
    ) -> tuple[Array, Array]: ...
    @overload
    def __call__(
        self,
        hidden: ArrayLike,
        source: ArrayLike,
        *,
        keys: ArrayLike | None = ...,
        q_offset: ArrayLike = ...,
        key_mask: ArrayLike | None = ...,
        kv_lengths: ArrayLike | None = ...,
        return_weights: bool = ...,
        num_threads: int | None = ...,
    ) -> Array | tuple[Array, Array]: ...
    @plain_signature
    def __call__(
        self,
        hidden: ArrayLike,
        source: ArrayLike,
        *,
        keys: ArrayLike | None = None,
        q_offset: ArrayLike = 0,
        key_mask: ArrayLike | None = None,
        kv_lengths: ArrayLike | None = None,
        return_weights: bool = False,
        num_threads: int | None = None,
    ) -> Array | tuple[Array, Array]:
        """The contexts of target states.

        Parameters
        ----------
        hidden : array_like, ``(..., Lq, dim)``
            Target states ``h_t``, one or many.
        source : array_like, ``(..., Lk, source_dim)``
            Source states ``h_s``, with the same leading axes.
        keys : array_like, optional
            What :meth:`project_keys` returns for `source`; saves work with ``"concat"``.
        q_offset : int or array_like of int ``(B,)``
            The ``t`` of the first target state, for ``"local-m"``.
        key_mask : array_like of bool ``(..., Lk)``, optional
            True for real states, False for padding. ``S`` ends with the last real state.
        kv_lengths : array_like of int ``(B,)``, optional
            States from here on are padding: ``S``.
        return_weights : bool
            Also return the weights ``a_t``.
        num_threads : int, optional
            As for :func:`attnfast.attention`.

        Returns
        -------
        ndarray or (ndarray, ndarray)
            Contexts ``(..., Lq, source_dim)``, and weights ``(..., Lq, Lk)`` if asked for.
        """
        options: dict[str, Any] = {"num_threads": num_threads, "return_weights": return_weights}
        call = self._prepare(hidden, source, keys, key_mask, kv_lengths, options)
        function, operands, options = self._align(*call, q_offset, options)
        result = function(*operands, return_lse=True, **options)
        context = result.output[..., 0, :, :]
        return (context, result.weights[..., 0, :, :]) if return_weights else context

    @plain_signature
    def vjp(
        self,
        hidden: ArrayLike,
        source: ArrayLike,
        *,
        keys: ArrayLike | None = None,
        q_offset: ArrayLike = 0,
        key_mask: ArrayLike | None = None,
        kv_lengths: ArrayLike | None = None,
        return_weights: bool = False,
        num_threads: int | None = None,
    ) -> tuple[Any, Callable[..., LayerGradients]]:
        """Call the layer, and return its result with a function that computes gradients.

        Parameters
        ----------
        hidden, source, keys : array_like
            As for a call. The `keys` count as made of the `source`: they have no gradient of their
            own, but those of the source and of ``w_a`` are complete.
        q_offset, key_mask, kv_lengths, return_weights, num_threads : optional
            As for a call.

        Returns
        -------
        result : ndarray or (ndarray, ndarray)
            What the call returns.
        pullback : callable
            ``pullback(grad_output, grad_weights=None)``: from the derivatives of a loss by the
            contexts, and by the weights if they were returned, to `LayerGradients` of all weights
            but ``w_c``, which :meth:`attentional_vjp` has. Moving edges of a window around a
            predicted position have no gradient.

        Examples
        --------
        >>> import numpy as np
        >>> from attnfast.layers import LuongAttention
        >>> layer = LuongAttention(32, score="general", seed=0)
        >>> hidden, source = np.ones((5, 32), np.float32), np.ones((9, 32), np.float32)
        >>> context, pullback = layer.vjp(hidden, source)
        >>> pullback(context).weights["w_a"].shape
        (32, 32)
        """
        options: dict[str, Any] = {"num_threads": num_threads, "return_weights": return_weights}
        h_t, h_s, k, lengths = self._prepare(hidden, source, keys, key_mask, kv_lengths, options)
        function, operands, options = self._align(h_t, h_s, k, lengths, q_offset, options)
        result, attend_back = attend(function, operands, options)
        output, weights = one_head(result)

        def pullback(
            grad_output: ArrayLike, grad_weights: ArrayLike | None = None
        ) -> LayerGradients:
            """Gradients, from the derivatives of a loss by contexts and weights."""
            by_output, by_weights = head_gradients(grad_output, grad_weights, output, weights)
            grads = attend_back(by_output, grad_weights=by_weights)
            gradients = score_gradients(self.score, self.weights, h_t, h_s, grads)
            if self.alignment == "local-p":
                by_centers = grads.centers[..., 0, :] * lengths[..., None]
                add_center_gradients(self.weights, h_t, by_centers, gradients)
            return gradients

        return (output if weights is None else (output, weights)), pullback

    @plain_signature
    def attentional_vjp(
        self, context: ArrayLike, hidden: ArrayLike
    ) -> tuple[Array, Callable[..., LayerGradients]]:
        """Attentional vectors, and a function that computes gradients.

        Parameters
        ----------
        context, hidden : array_like
            As for :meth:`attentional`.

        Returns
        -------
        vectors : ndarray, ``(..., Lq, dim)``
            What :meth:`attentional` returns.
        pullback : callable
            ``pullback(grad_output)``: from the derivative of a loss by the vectors to
            `LayerGradients` of ``context``, ``hidden`` and ``w_c``.
        """
        c = self._input(context, "context", self.source_dim)
        h_t = self._input(hidden, "hidden", self.dim)
        both, w_c = np.concatenate([c, h_t], axis=-1), Linear(self.weights["w_c"])
        vectors = np.tanh(w_c(both))

        def pullback(grad_output: ArrayLike) -> LayerGradients:
            """Gradients, from the derivative of a loss by the attentional vectors."""
            grad = as_gradient(grad_output, "grad_output", vectors) * (1 - vectors**2)
            by_both, by_w_c, _ = linear_backward(w_c, both, grad)
            by_input = {
                "context": by_both[..., : self.source_dim],
                "hidden": by_both[..., self.source_dim :],
            }
            return LayerGradients(by_input, {"w_c": by_w_c})

        return vectors, pullback

    # ---- parts of a call ----

    def _prepare(
        self,
        hidden: Any,
        source: Any,
        keys: Any,
        key_mask: Any,
        kv_lengths: Any,
        options: dict[str, Any],
    ) -> tuple[Array, Array, Array, Array]:
        """Target and source states, keys and numbers of source states; padding joins `options`."""
        h_t = self._input(hidden, "hidden", self.dim)
        h_s = self._input(source, "source", self.source_dim)
        check_batch(h_t, "hidden", h_s, "source", shared=False)
        if h_t.shape[:-2] != h_s.shape[:-2]:
            raise ValueError(
                f"source must have the batch axes of hidden: source {h_s.shape}, hidden {h_t.shape}"
            )
        lengths = np.full(h_s.shape[:-2], h_s.shape[-2])
        if kv_lengths is not None:
            lengths = as_lengths(kv_lengths, lengths.shape, h_s.shape[-2])
            options["kv_lengths"] = lengths
        if key_mask is not None:
            real = as_key_mask(key_mask, "key_mask", h_s.shape[:-1])
            options["mask"] = real[..., None, None, :]
            lengths = np.minimum(lengths, real_lengths(real))
        k = self.project_keys(h_s) if keys is None else self._keys(keys, h_s)
        return h_t, h_s, k, lengths

    def _align(
        self,
        h_t: Array,
        h_s: Array,
        k: Array,
        lengths: Array,
        q_offset: Any,
        options: dict[str, Any],
    ) -> tuple[Callable[..., AttentionResult], tuple[Array, Array, Array], dict[str, Any]]:
        """The function that attends with one head, by score and alignment, and its arguments."""
        concat = self.score == "concat"
        w_a = self.weights.get("w_a")
        q = h_t if w_a is None else Linear(w_a[: self.dim])(h_t)
        q, k, v = (x[..., None, :, :] for x in (q, k, h_s))
        if concat:
            options["score_weight"] = self.weights["v_a"]
        else:
            options["scale"] = 1.0
        function: Callable[..., AttentionResult] = additive_attention if concat else attention
        if self.alignment == "local-m":
            options |= {"window_size": self.window, "q_offset": q_offset}
        if self.alignment == "local-p":
            options |= {"window_size": self.window}
            options["centers"] = self.centers(h_t, lengths)[..., None, :]
            options["sigma"] = self.window / 2
            function = additive_window if concat else local_attention
        return function, (q, k, v), options

    def _input(self, x: ArrayLike, name: str, width: int) -> Array:
        return as_input(x, name, width, self.weights["w_c"].dtype)

    def _keys(self, keys: ArrayLike, h_s: Array) -> Array:
        width = len(self.weights["v_a"]) if self.score == "concat" else self.source_dim
        k = self._input(keys, "keys", width)
        if k.shape[:-1] != h_s.shape[:-1]:
            raise ValueError(
                f"keys must have the shape of source up to its last axis, {h_s.shape[:-1]}, got "
                f"{k.shape}"
            )
        return k

    def __repr__(self) -> str:
        window = f", window={self.window}" if self.window else ""
        return (
            f"LuongAttention({self.dim}, {self.source_dim}, score={self.score!r}, "
            f"alignment={self.alignment!r}{window}, dtype={self.weights['w_c'].dtype})"
        )

    def _repr_html_(self) -> str:
        from .._html import arrays

        return arrays(repr(self), self.weights)
