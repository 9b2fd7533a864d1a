"""The layers of Keras that project to heads: attnfast replaces their `_compute_attention`."""

from typing import Any

from . import _options
from ._library import backend, keras
from ._options import Described

# Methods that a subclass may have of its own: then masks are built, or Keras computes.
MASKS = (
    *("call", "_compute_attention", "_compute_attention_mask"),
    *("_compute_causal_mask", "_compute_sliding_window_mask"),
)
SCORES = ("_masked_softmax", "_build_attention", "build")


class _Heads:
    """What both have in common, before the original among the bases."""

    _flash_attention: bool | None
    _dropout_layer: Any

    def _compute_attention_mask(
        self,
        query: Any,
        value: Any,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        use_causal_mask: bool = False,
    ) -> Any:
        given = query_mask, value_mask, key_mask, attention_mask, use_causal_mask
        window = getattr(self, "_sliding_window", getattr(self, "sliding_window", None))
        described = Described(query, value, *given, window)
        if described.is_readable() and not _options.overrides(type(self), MASKS):
            return None if described.is_empty() else described
        return self._as_mask(described)

    def _as_mask(self, mask: Any) -> Any:
        """The mask that Keras would have made."""
        if not isinstance(mask, Described):
            return mask
        return super()._compute_attention_mask(*mask[:-1])  # type: ignore[misc]

    def _attend(
        self, operands: tuple[Any, Any, Any], given: tuple[Any, Any, bool], rate: float, scale: Any
    ) -> Any:
        """The output, or None where Keras is to compute it.

        `given` are the mask, `training` and `use_causal_mask`; `rate` is that of dropout.
        """
        mask, training, causal = given
        if (
            self._flash_attention
            or len(operands[0].shape) != 4
            or rate >= 1
            or (rate and training is None and _options.overrides(type(self), MASKS[:2]))
            or _options.overrides(type(self), SCORES)
            or not backend.computes(*operands)
        ):
            return None
        found = _options.read(mask)
        if found is None or not _options.fits(found[0], *operands):
            return None
        options, query_mask = found
        if causal:
            options |= {"is_causal": True, "q_offset": 0}
        if rate and training:
            options |= _options.dropout(rate, self._dropout_layer.seed_generator)
        output = backend.attend("attention", *operands, scale=float(scale), **options)
        return _options.only_real(output, query_mask)


@keras.saving.register_keras_serializable("attnfast")
class MultiHeadAttention(_Heads, keras.layers.MultiHeadAttention):  # type: ignore[misc]
    """``keras.layers.MultiHeadAttention``, with attnfast for the attention of its heads.

    Its arguments, weights, configuration and masks are those of Keras's layer. Padding, causality
    and a sliding window are skipped, and nothing is in memory for each pair of a query and a key. A
    query that sees no key gives zeros before the output projection; in Keras it gives the mean of
    all values.

    Keras computes, as in its own layer: with ``return_attention_scores=True``, with
    ``flash_attention=True``, over several `attention_axes`, ``dropout=1``, on other devices than
    CPUs, and where a subclass replaces how scores are made.

    Parameters
    ----------
    num_heads, key_dim : int
        Heads, and the size of a query or key in each.
    *args, **kwargs
        The others of ``keras.layers.MultiHeadAttention``.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast.keras import MultiHeadAttention
    >>> x = np.random.default_rng(0).standard_normal((3, 50, 64), dtype=np.float32)
    >>> real = np.arange(50) < np.array([[50], [20], [33]])
    >>> layer = MultiHeadAttention(num_heads=4, key_dim=16, dropout=0.1)
    >>> tuple(layer(x, x, query_mask=real, value_mask=real).shape)
    (3, 50, 64)
    """

    def _compute_attention(
        self,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any = None,
        training: Any = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> tuple[Any, Any]:
        operands = query, key, value
        if not return_attention_scores:
            given = attention_mask, training, use_causal_mask
            output = self._attend(operands, given, self._dropout, self._inverse_sqrt_key_dim)
            if output is not None:
                return output, None
        mask = self._as_mask(attention_mask)
        causal = {"use_causal_mask": True} if use_causal_mask else {}
        result: tuple[Any, Any] = super()._compute_attention(
            *operands, mask, training, return_attention_scores, **causal
        )
        return result


@keras.saving.register_keras_serializable("attnfast")
class GroupedQueryAttention(_Heads, keras.layers.GroupQueryAttention):  # type: ignore[misc]
    """``keras.layers.GroupQueryAttention``, with attnfast for the attention of its heads.

    As :class:`MultiHeadAttention`: the layer is Keras's but for the attention itself. Keys and
    values are not repeated for the heads of queries that share them.

    Parameters
    ----------
    head_dim, num_query_heads, num_key_value_heads : int
        The size of a head, and how many there are.
    *args, **kwargs
        The others of ``keras.layers.GroupQueryAttention``.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast.keras import GroupQueryAttention
    >>> x = np.random.default_rng(0).standard_normal((2, 50, 64), dtype=np.float32)
    >>> layer = GroupQueryAttention(head_dim=16, num_query_heads=4, num_key_value_heads=2)
    >>> tuple(layer(x, x, use_causal_mask=True).shape)
    (2, 50, 64)
    """

    def build(self, query_shape: Any, value_shape: Any, key_shape: Any = None) -> None:
        super().build(query_shape, value_shape, key_shape)
        if not _options.overrides(type(self), MASKS[:2]):
            self.num_repeats = 1  # `call` leaves keys and values as they are

    def _compute_attention(
        self,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any = None,
        training: Any = None,
        use_causal_mask: bool = False,
    ) -> tuple[Any, Any]:
        operands = query, key, value
        if not self._return_attention_scores:
            given = attention_mask, training, use_causal_mask
            output = self._attend(operands, given, self.dropout, self._inverse_sqrt_head_dim)
            if output is not None:
                return output, None
        mask = self._as_mask(attention_mask)
        causal = {"use_causal_mask": True} if use_causal_mask else {}
        key, value = (self._repeated(x, query.shape[2]) for x in (key, value))
        result: tuple[Any, Any] = super()._compute_attention(
            query, key, value, mask, training, **causal
        )
        return result

    def _repeated(self, x: Any, heads: int) -> Any:
        """Keys or values as Keras computes with them: one head for each of the queries."""
        return x if x.shape[2] == heads else keras.ops.repeat(x, heads // x.shape[2], axis=2)


GroupQueryAttention = GroupedQueryAttention  # Keras too exports it by another name
