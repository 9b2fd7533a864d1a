"""What a layer of Keras is asked to hide and to drop, as options of `attention`."""

from typing import Any, NamedTuple

from ._library import backend, keras

ops = keras.ops
Options = dict[str, Any]


class Described(NamedTuple):
    """What Keras would make a mask of: the arguments of `_compute_attention_mask`, and the window.

    A layer gives it to its own `_compute_attention` in place of the mask, of which nothing is then
    ever built.
    """

    query: Any
    value: Any
    query_mask: Any
    value_mask: Any
    key_mask: Any
    attention_mask: Any
    use_causal_mask: bool
    window: int | None  # a query sees keys at a distance below it

    def is_readable(self) -> bool:
        """Whether all parts have the shapes and dtypes that Keras documents."""
        query, value, *of_tokens, pairs, _, _ = self
        if len(query.shape) != 3 or len(value.shape) != 3:
            return False
        lengths = query.shape[1], value.shape[1], value.shape[1]
        for mask, length in zip(of_tokens, lengths, strict=True):
            if mask is not None and tuple(mask.shape) != (query.shape[0], length):
                return False
        if pairs is None:
            return True
        # Of four axes it and a mask of tokens broadcast differently in Keras.
        ranks = (2, 3, 4) if all(mask is None for mask in of_tokens) else (2, 3)
        return is_bool(pairs) and len(pairs.shape) in ranks

    def is_empty(self) -> bool:
        return not self.use_causal_mask and all(x is None for x in (*self[2:6], self.window))


def is_bool(mask: Any) -> bool:
    return bool(keras.backend.standardize_dtype(mask.dtype) == "bool")


def read(mask: Any) -> tuple[Options, Any] | None:
    """Options of attention for a mask or what describes it, and the mask of the queries.

    None for a mask that Keras does not document.
    """
    if mask is None:
        return {}, None
    if not isinstance(mask, Described):
        known = is_bool(mask) and len(mask.shape) in (2, 3, 4)
        return ({"mask": _of_pairs(mask)}, None) if known else None
    options = of_tokens(mask.query_mask, None, mask.use_causal_mask)
    if mask.window is not None:
        options |= {"window_size": mask.window - 1, "q_offset": 0}
    seen = None if mask.attention_mask is None else _of_pairs(mask.attention_mask)
    for keys in (mask.value_mask, mask.key_mask):
        if keys is not None:
            keys = ops.cast(keys, "bool")[:, None, None, :]
            seen = keys if seen is None else ops.logical_and(seen, keys)
    if seen is not None:
        options["mask"] = seen
    return options, mask.query_mask


def of_tokens(query_mask: Any, key_mask: Any, use_causal_mask: bool) -> Options:
    """Options for masks ``(batch, length)``; the output is still to be set to 0 by `only_real`."""
    options: Options = {}
    if use_causal_mask:
        options |= {"is_causal": True, "q_offset": 0}
    if key_mask is not None:
        options["mask"] = ops.cast(key_mask, "bool")[:, None, None, :]
    if query_mask is not None and query_mask.shape[1]:
        places = ops.arange(1, query_mask.shape[1] + 1, dtype="int32")
        options["q_lengths"] = ops.max(places * ops.cast(query_mask, "int32"), axis=1)
    return options


def only_real(output: Any, query_mask: Any) -> Any:
    """The output, with 0 for queries that are padding."""
    if query_mask is None:
        return output
    return ops.where(ops.cast(query_mask, "bool")[:, :, None, None], output, 0)


def _of_pairs(mask: Any) -> Any:
    """The mask with all axes; of three it is one for each batch row, as Keras reads it."""
    rank = len(mask.shape)
    return mask[None, None] if rank == 2 else mask[:, None] if rank == 3 else mask


def fits(options: Options, query: Any, key: Any, value: Any) -> bool:
    """Whether the shapes of operands ``(batch, length, heads, size)`` and of the mask agree."""
    q, k, v = (tuple(x.shape) for x in (query, key, value))
    if len(k) != 4 or k[:-1] != v[:-1] or (q[0], q[3]) != (k[0], k[3]):
        return False
    if not k[2] or q[2] % k[2]:
        return False
    full = q[0], q[2], q[1], k[1]
    mask = options.get("mask")
    return mask is None or all(n in (1, m) for n, m in zip(mask.shape, full, strict=True))


def dropout(rate: float, generator: Any) -> Options:
    """Options for dropout by a seed from the generator of the layer."""
    return {"dropout": rate, "dropout_seed": backend.as_seed(generator.next())}


def overrides(cls: type, hooks: tuple[str, ...]) -> bool:
    """Whether a subclass of a layer of attnfast has one of these methods of its own."""
    ours = next(c for c in cls.__mro__ if c.__module__.startswith(__package__))
    return any(getattr(cls, name, None) is not getattr(ours, name, None) for name in hooks)
