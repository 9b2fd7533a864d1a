"""Multi-head attention with its projections."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .._keywords import refuse_unknown
from .._signature import plain_signature
from . import layouts
from .forward import CallOptions, forward
from .gradients import LayerGradients, as_gradient
from .linear import Linear, Seed, glorot, real_dtype, size
from .multihead_vjp import multihead_vjp
from .projections import Projections
from .safetensors import read_safetensors

Array = NDArray[Any]


class MultiHeadAttention:
    r"""Multi-head attention: projections of query, key and value, attention, output projection.

    .. math::
        \mathrm{head}_h = \mathrm{attention}(x_q W^Q_h + b^Q_h,\; x_k W^K_h + b^K_h,\;
        x_v W^V_h + b^V_h) \qquad y = [\mathrm{head}_1, \ldots, \mathrm{head}_H] W^O + b^O

    as in [1]_; with fewer key/value heads than query heads as in [2]_.

    Parameters
    ----------
    embed_dim : int
        Width of the query input, and of the output.
    num_heads : int
        Query heads, ``H``.
    num_kv_heads : int, optional
        Key/value heads, ``Hk``, a divisor of `num_heads`, which is the default.
    head_dim, value_head_dim : int, optional
        Size of a head of query and key, ``D``, and of value, ``Dv``. Default
        ``embed_dim // num_heads``, and `head_dim`.
    key_dim, value_dim, output_dim : int, optional
        Width of the key input, of the value input and of the output. Default `embed_dim`.
    use_bias : bool
        Whether the projections add biases, initially zero.
    dtype : dtype
        Either float32 or float64.
    seed : int or numpy.random.Generator, optional
        Draws the weights, uniformly within ``sqrt(6 / (n_in + n_out))``.

    Attributes
    ----------
    weights : Projections
        The arrays, as in ``layer.weights.query.weight``.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017.
    .. [2] J. Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from
       Multi-Head Checkpoints", 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast.layers import MultiHeadAttention
    >>> layer = MultiHeadAttention(256, num_heads=8, num_kv_heads=2, seed=0)
    >>> x = np.random.default_rng(1).standard_normal((4, 100, 256), dtype=np.float32)
    >>> layer(x, is_causal=True, kv_lengths=[100, 100, 64, 7]).shape
    (4, 100, 256)

    Cross attention to an input of another width, with the weights averaged over the heads:

    >>> layer = MultiHeadAttention(256, num_heads=8, key_dim=80, value_dim=80, seed=0)
    >>> output, weights = layer(x, np.ones((4, 30, 80), np.float32), return_weights="mean")
    >>> output.shape, weights.shape
    ((4, 100, 256), (4, 100, 30))
    """

    @plain_signature
    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        value_head_dim: int | None = None,
        key_dim: int | None = None,
        value_dim: int | None = None,
        output_dim: int | None = None,
        use_bias: bool = True,
        dtype: DTypeLike = np.float32,
        seed: Seed = None,
    ) -> None:
        def sized(n: int | None, name: str, default: int) -> int:
            return default if n is None else size(n, name)

        embed, heads = size(embed_dim, "embed_dim"), size(num_heads, "num_heads")
        if head_dim is None and embed % heads:
            raise ValueError(
                f"num_heads must divide embed_dim, {embed}, got {heads}: write head_dim="
            )
        d = sized(head_dim, "head_dim", embed // heads)
        dv = sized(value_head_dim, "value_head_dim", d)
        kv_heads = sized(num_kv_heads, "num_kv_heads", heads)
        rng, real = np.random.default_rng(seed), real_dtype(dtype)
        query, key, value, output = (
            Linear(glorot(rng, (n_in, n_out), real), np.zeros(n_out, real) if use_bias else None)
            for n_in, n_out in (
                (embed, heads * d),
                (sized(key_dim, "key_dim", embed), kv_heads * d),
                (sized(value_dim, "value_dim", embed), kv_heads * dv),
                (heads * dv, sized(output_dim, "output_dim", embed)),
            )
        )
        self.weights = Projections(query, key, value, output, heads, kv_heads)

    # ---- weights from and to other libraries ----

    @classmethod
    def from_projections(cls, weights: Projections) -> "MultiHeadAttention":
        """A layer with these weights.

        Parameters
        ----------
        weights : Projections
            Used without a copy.

        Returns
        -------
        MultiHeadAttention
            With these `weights`.
        """
        layer = cls.__new__(cls)
        layer.weights = weights
        return layer

    @classmethod
    @plain_signature
    def from_torch(
        cls,
        state_dict: Mapping[str, Any],
        num_heads: int,
        prefix: str = "",
        *,
        names: Sequence[str] | None = None,
        dtype: DTypeLike | None = None,
    ) -> "MultiHeadAttention":
        """A layer with the weights of a PyTorch module.

        Parameters
        ----------
        state_dict : mapping of str to tensor or array
            ``state_dict()`` of a ``torch.nn.MultiheadAttention`` or of a model that holds one.
        num_heads : int
            Query heads. The number of key/value heads follows from the shapes.
        prefix : str
            What the names begin with, as ``"encoder.layers.0.self_attn."``.
        names : four str, optional
            For other modules: names of the linear maps of query, key, value and output, each with a
            ``.weight (n_out, n_in)`` and perhaps a ``.bias``; for BERT
            ``("self.query", "self.key", "self.value", "output.dense")``.
        dtype : dtype, optional
            Either float32 or float64. Default float64 for float64, float32 for all else.

        Returns
        -------
        MultiHeadAttention
            With copies of the weights.

        Raises
        ------
        ValueError
            Names that are missing or not of such a module, or weights that do not fit together.

        Examples
        --------
        >>> import numpy as np
        >>> from attnfast.layers import MultiHeadAttention
        >>> state = {"in_proj_weight": np.ones((24, 8)), "out_proj.weight": np.ones((8, 8))}
        >>> MultiHeadAttention.from_torch(state, num_heads=2)
        MultiHeadAttention(8, 2, head_dim=4, use_bias=False, dtype=float64)
        """
        heads = size(num_heads, "num_heads")
        if names is None:
            return cls.from_projections(layouts.from_torch(state_dict, heads, prefix, dtype))
        return cls.from_projections(layouts.from_named(state_dict, heads, prefix, names, dtype))

    @classmethod
    @plain_signature
    def from_safetensors(
        cls,
        path: str | os.PathLike[str],
        num_heads: int,
        prefix: str = "",
        *,
        names: Sequence[str] | None = None,
        dtype: DTypeLike | None = None,
    ) -> "MultiHeadAttention":
        """A layer with weights from a safetensors file; other tensors of the file are not read.

        Parameters
        ----------
        path : str or path-like
            The file.
        num_heads : int
            Query heads.
        prefix, names, dtype : optional
            As for :meth:`from_torch`.

        Returns
        -------
        MultiHeadAttention
            With the weights of the file.

        Raises
        ------
        ValueError
            As for :func:`attnfast.layers.read_safetensors`, or weights that do not fit together.
        """
        wanted = layouts.tensor_names(names, prefix)
        tensors = read_safetensors(path, wanted.__contains__)
        return cls.from_torch(tensors, num_heads, prefix, names=names, dtype=dtype)

    @classmethod
    @plain_signature
    def from_keras(
        cls, weights: Sequence[ArrayLike], *, dtype: DTypeLike | None = None
    ) -> "MultiHeadAttention":
        """A layer with the weights of a Keras ``MultiHeadAttention`` or ``GroupedQueryAttention``.

        Parameters
        ----------
        weights : sequence of array_like
            What ``get_weights()`` of the Keras layer returns: kernels ``(n_in, heads, size)`` of
            query, key and value and ``(heads, size, n_out)`` of the output, each followed by its
            bias or all without. All sizes follow from the shapes.
        dtype : dtype, optional
            As for :meth:`from_torch`.

        Returns
        -------
        MultiHeadAttention
            With copies of the weights.

        Raises
        ------
        ValueError
            Arrays that are not the weights of such a layer.
        """
        return cls.from_projections(layouts.from_keras(weights, dtype))

    @plain_signature
    def to_torch(self, prefix: str = "") -> dict[str, Array]:
        """The weights for a ``torch.nn.MultiheadAttention``.

        Parameters
        ----------
        prefix : str
            What the names are to begin with.

        Returns
        -------
        dict of str to ndarray
            New arrays by their names in the module.

        Raises
        ------
        ValueError
            PyTorch's module cannot have these sizes.
        """
        return layouts.to_torch(self.weights, prefix)

    @plain_signature
    def to_keras(self) -> list[Array]:
        """The weights for a Keras ``MultiHeadAttention`` or ``GroupedQueryAttention``.

        Returns
        -------
        list of ndarray
            As ``set_weights`` takes them; new arrays.

        Raises
        ------
        ValueError
            The layer has an extra key, which Keras's layer cannot have.
        """
        return layouts.to_keras(self.weights)

    # ---- the call ----

    @overload
    def __call__(
        self,
        query: ArrayLike,
        key: ArrayLike | None = ...,
        value: ArrayLike | None = ...,
        *,
        return_weights: Literal[False] = ...,
        **options: Unpack[CallOptions],
    ) -> Array: ...
    @overload
    def __call__(
        self,
        query: ArrayLike,
        key: ArrayLike | None = ...,
        value: ArrayLike | None = ...,
        *,
        return_weights: Literal[True, "mean"],
        **options: Unpack[CallOptions],
    ) -> tuple[Array, Array]: ...
    @overload
    def __call__(
        self,
        query: ArrayLike,
        key: ArrayLike | None = ...,
        value: ArrayLike | None = ...,
        *,
        return_weights: bool | Literal["mean"] = ...,
        **options: Unpack[CallOptions],
    ) -> Array | tuple[Array, Array]: ...
    @plain_signature
    def __call__(
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        *,
        return_weights: bool | Literal["mean"] = False,
        **options: Unpack[CallOptions],
    ) -> Array | tuple[Array, Array]:
        """Attention of `query` to `key` and `value`.

        Parameters
        ----------
        query : array_like, ``(..., Lq, embed_dim)``
            In the dtype of the layer; with no batch axis, one or more.
        key : array_like ``(..., Lk, key_dim)``, optional
            Default `query`: self-attention.
        value : array_like ``(..., Lk, value_dim)``, optional
            Default `key`.
        return_weights : bool or "mean"
            Also return the softmax weights of every head, or their mean over the heads.
        **options
            ``key_mask``, bool ``(..., Lk)``, is True for real keys and False for padding. All else
            as for :func:`attnfast.attention`: ``mask``, ``bias``, ``is_causal``, ``window_size``,
            ``q_offset``, ``q_lengths``, ``kv_lengths``, ``kv_starts``, ``scale``, ``softcap``,
            ``alibi_slopes``, ``sink_logits``, ``num_threads``. A mask or bias for each batch row
            has an axis for the heads too: ``(B, 1, Lq, Lk)``.

        Returns
        -------
        ndarray or (ndarray, ndarray)
            The output ``(..., Lq, output_dim)``; with weights ``(..., H, Lq, Lk)`` or, averaged,
            ``(..., Lq, Lk)``, in which an extra key comes last. A query that sees no key or is past
            ``q_lengths`` gives the bias of the output projection.
        """
        _check(MultiHeadAttention.__call__, return_weights, options)
        output, weights = forward(
            self.weights, query, key, value, dict(options), return_weights=bool(return_weights)
        )
        if weights is None:
            return output
        return output, weights.mean(axis=-3) if return_weights == "mean" else weights

    @plain_signature
    def vjp(
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        *,
        wanted: Sequence[str] = (),
        return_weights: bool | Literal["mean"] = False,
        **options: Unpack[CallOptions],
    ) -> tuple[Any, Callable[..., LayerGradients]]:
        """Call the layer, and return its result with a function that computes gradients.

        It has the name of :func:`attnfast.vjp`, which does the same for a function.

        Parameters
        ----------
        query, key, value : array_like
            As for a call.
        wanted : tuple of str
            Options whose gradients are wanted besides: ``"bias"``, ``"sink_logits"``,
            ``"alibi_slopes"``.
        return_weights : bool or "mean"
            As for a call.
        **options
            As for a call.

        Returns
        -------
        result : ndarray or (ndarray, ndarray)
            What the call returns.
        pullback : callable
            ``pullback(grad_output, grad_weights=None)``: from the derivatives of a loss by the
            output, and by the weights if they were returned, to `LayerGradients`. Weights have the
            names ``"query.weight"``, ``"query.bias"`` and so on, as in ``layer.weights.arrays()``.

        Notes
        -----
        Nothing of size ``Lq x Lk`` is kept unless the weights are returned. The inputs are kept as
        they are: do not change them before the last call of the pullback.

        Examples
        --------
        >>> import numpy as np
        >>> from attnfast.layers import MultiHeadAttention
        >>> layer = MultiHeadAttention(32, num_heads=4, seed=0)
        >>> x = np.random.default_rng(1).standard_normal((8, 20, 32), dtype=np.float32)
        >>> for step in range(3):
        ...     y, pullback = layer.vjp(x, is_causal=True)
        ...     gradients = pullback(y - x)  # of ((y - x) ** 2).sum() / 2
        ...     for name, weight in layer.weights.arrays().items():
        ...         weight -= 0.001 * gradients.weights[name]
        >>> gradients.inputs["query"].shape
        (8, 20, 32)
        """
        _check(MultiHeadAttention.vjp, return_weights, options)
        output, weights, pullback = multihead_vjp(
            *(self.weights, query, key, value, dict(options)),
            wanted=wanted,
            return_weights=bool(return_weights),
        )
        if weights is None:
            return output, pullback
        if return_weights != "mean":
            return (output, weights), pullback
        mean, heads = weights.mean(axis=-3), weights.shape[-3]

        def pullback_of_mean(
            grad_output: ArrayLike, grad_weights: ArrayLike | None = None
        ) -> LayerGradients:
            """Gradients, from the derivatives of a loss by output and mean weights."""
            if grad_weights is not None:
                each = as_gradient(grad_weights, "grad_weights", mean)[..., None, :, :] / heads
                grad_weights = np.broadcast_to(each, weights.shape)
            return pullback(grad_output, grad_weights)

        return (output, mean), pullback_of_mean

    def __repr__(self) -> str:
        w = self.weights
        heads = "" if w.num_kv_heads == w.num_heads else f"num_kv_heads={w.num_kv_heads}, "
        return (
            f"MultiHeadAttention({w.query.n_in}, {w.num_heads}, {heads}head_dim={w.head_dim}, "
            f"use_bias={w.use_bias}, dtype={w.dtype})"
        )

    def _repr_html_(self) -> str:
        from .._html import arrays

        return arrays(repr(self), self.weights.arrays())


def _check(call: Callable[..., Any], return_weights: Any, options: Mapping[str, Any]) -> None:
    known = CallOptions.__annotations__
    unknown = {name: x for name, x in options.items() if name not in known}
    if unknown:
        refuse_unknown(call, unknown, known)
    if not isinstance(return_weights, (bool, np.bool_)) and return_weights != "mean":
        raise ValueError(f'return_weights must be a bool or "mean", got {return_weights!r}')
