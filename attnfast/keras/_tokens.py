"""The layers of Keras without projections: attnfast computes scores and output in one."""

from typing import Any

from . import _options
from ._library import backend, keras

ops = keras.ops
Scored = tuple[str, Any, Any, dict[str, Any]]
HOOKS = ("_calculate_scores", "_calculate_score_mask", "_apply_scores", "build")


class _Tokens:
    """What both have in common, before the original among the bases."""

    use_scale: bool
    scale: Any
    dropout: float
    seed_generator: Any

    def call(
        self,
        inputs: Any,
        mask: Any = None,
        training: Any = False,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        """Attend, as the layer of Keras does.

        Parameters
        ----------
        inputs, mask : list
            ``[query, value]`` or ``[query, value, key]``, and ``[query_mask, value_mask]``.
        training, return_attention_scores, use_causal_mask : bool
            As for the layer of Keras.

        Returns
        -------
        tensor or (tensor, tensor)
            Output, and scores if they are asked for.
        """
        if not return_attention_scores and not _options.overrides(type(self), HOOKS):
            self._validate_inputs(inputs=inputs, mask=mask)  # type: ignore[attr-defined]
            output = self._attend(inputs, mask, training, use_causal_mask)
            if output is not None:
                return output
        return super().call(  # type: ignore[misc]
            inputs,
            mask=mask,
            training=training,
            return_attention_scores=return_attention_scores,
            use_causal_mask=use_causal_mask,
        )

    def _attend(self, inputs: Any, mask: Any, training: Any, causal: bool) -> Any:
        """The output, or None where Keras is to compute it."""
        query, value, key = inputs if len(inputs) == 3 else (*inputs, inputs[1])
        query_mask, key_mask = mask[:2] if mask else (None, None)
        if any(len(x.shape) != 3 for x in inputs) or self.dropout >= 1:
            return None
        for x, real in ((query, query_mask), (value, key_mask)):
            if real is not None and tuple(real.shape) != tuple(x.shape[:-1]):
                return None
        function, query, key, scores = self._scored(query, key)
        operands = [x[:, :, None, :] for x in (query, key, value)]
        options = scores | _options.of_tokens(query_mask, key_mask, causal)
        if not backend.computes(*operands) or not _options.fits(options, *operands):
            return None
        if training and self.dropout:
            options |= _options.dropout(self.dropout, self.seed_generator)
        output = backend.attend(function, *operands, **options)
        return _options.only_real(output, query_mask)[:, :, 0, :]

    def _scored(self, query: Any, key: Any) -> Scored:
        """The function of attnfast, its query and key, and options for its scores."""
        raise NotImplementedError


@keras.saving.register_keras_serializable("attnfast")
class Attention(_Tokens, keras.layers.Attention):  # type: ignore[misc]
    """``keras.layers.Attention``, computed by attnfast.

    Its arguments, weights, configuration and masks are those of Keras's layer. Keys that are hidden
    are skipped; a query that sees no key gives zeros, where Keras gives about the mean of all
    values. Keras computes with ``return_attention_scores=True``, for inputs of other than three
    axes, ``dropout=1``, on other devices than CPUs, and in subclasses with scores of their own.

    Parameters
    ----------
    *args, **kwargs
        Those of ``keras.layers.Attention``.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast.keras import Attention
    >>> query, value = np.random.default_rng(0).standard_normal((2, 3, 20, 16), dtype=np.float32)
    >>> tuple(Attention(use_scale=True)([query, value]).shape)
    (3, 20, 16)
    """

    def _scored(self, query: Any, key: Any) -> Scored:
        if self.scale is not None:
            query = ops.multiply(query, self.scale)
        if self.score_mode == "dot":
            return "attention", query, key, {"scale": 1.0}
        if self.scale is not None:
            key = ops.multiply(key, self.scale)
        weight = ops.multiply(ops.ones(query.shape[-1:], query.dtype), self.concat_score_weight)
        return "additive_attention", query, key, {"score_weight": weight}


@keras.saving.register_keras_serializable("attnfast")
class AdditiveAttention(_Tokens, keras.layers.AdditiveAttention):  # type: ignore[misc]
    """``keras.layers.AdditiveAttention``, computed by attnfast.

    As :class:`Attention`. Keras holds a tanh for each query, key and element in memory, attnfast
    does not.

    Parameters
    ----------
    *args, **kwargs
        Those of ``keras.layers.AdditiveAttention``.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast.keras import AdditiveAttention
    >>> query, value = np.random.default_rng(0).standard_normal((2, 3, 20, 16), dtype=np.float32)
    >>> tuple(AdditiveAttention()([query, value], use_causal_mask=True).shape)
    (3, 20, 16)
    """

    def _scored(self, query: Any, key: Any) -> Scored:
        weight = self.scale if self.use_scale else ops.ones(query.shape[-1:], query.dtype)
        weight = ops.convert_to_tensor(weight)
        return "additive_attention", query, key, {"score_weight": weight}
