"""The mask function: a mask that transformers carries about, and the attention function reads."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from ._library import import_utils, masking, torch
from ._pattern import Pattern, recognise

aten = torch.ops.aten


@dataclass
class Visible:
    """Which keys the queries of a call see: options of ``attnfast.torch.attention``."""

    options: dict[str, Any] = field(default_factory=dict)
    bounds: list[int] | None = (
        None  # where packed sequences begin in all rows together, and the end
    )


class Mask(torch.Tensor):  # type: ignore[misc]
    """The additive mask ``(B, 1, Lq, Lk)`` of ``eager``, which is not in memory until it is read.

    Models hand masks on, and some slice them, add to them or have an attention of their own that
    needs them. All of that works as with a plain tensor, and makes the mask of ``eager``.
    """

    @staticmethod
    def __new__(cls, visible: Visible, arguments: dict[str, Any], size: Any, device: Any) -> Any:
        dtype = arguments.get("dtype", torch.float32)
        return torch.Tensor._make_wrapper_subclass(cls, size, dtype=dtype, device=device)

    def __init__(self, visible: Visible, arguments: dict[str, Any], size: Any, device: Any):
        self.visible = visible
        self.arguments = arguments
        self._dense: Any = None
        self.is_untouched = True  # nobody can have written into the dense mask

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # What checkpointing does to a tensor that it keeps.
        if function in (aten.detach.default, aten.alias.default):
            return args[0]._again()
        from torch.utils._pytree import tree_map

        # Views and operations in place: from now on only the dense mask says what is visible.
        aliases = any(argument.alias_info for argument in function._schema.arguments)

        def plain(x: Any) -> Any:
            if not isinstance(x, Mask):
                return x
            x.is_untouched &= not aliases
            return x.dense()

        return function(*tree_map(plain, args), **tree_map(plain, kwargs or {}))

    def _again(self) -> Mask:
        other = Mask(self.visible, self.arguments, self.shape, self.device)
        other._dense, other.is_untouched = self._dense, self.is_untouched
        return other

    def dense(self) -> Any:
        """Return the mask that ``eager`` would have got."""
        if self._dense is None:
            self._dense = masking.eager_mask(**self.arguments)
        return self._dense

    def __repr__(self, **options: Any) -> str:
        return f"{type(self).__name__}({tuple(self.shape)}, {self.visible})"

    def __deepcopy__(self, memo: Any) -> Any:
        return self._again() if self.is_untouched else self.dense().clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.dense().__reduce_ex__(protocol)


def make_mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Any = masking.causal_mask_function,
    attention_mask: Any = None,
    device: Any = "cpu",
    **others: Any,
) -> Any:
    """Describe a mask; the keywords are those that transformers gives every mask function."""
    causal = mask_function is masking.causal_mask_function
    may_skip = q_length == 1 and causal and others.get("allow_is_causal_skip")
    if may_skip and attention_mask is None and sees_all(q_offset, kv_offset + kv_length):
        return None
    arguments = dict(
        others,
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        device=device,
        allow_is_bidirectional_skip=False,
    )
    two_axes = attention_mask is None or attention_mask.ndim == 2
    # Under torch.compile and torch.export values may not be looked at.
    tracing = import_utils.is_tracing(q_offset if torch.is_tensor(q_offset) else attention_mask)
    if tracing or not (q_length and kv_length and two_axes):
        return masking.eager_mask(**arguments)
    queries = range(int(q_offset), int(q_offset) + q_length)
    keys = range(kv_offset, kv_offset + kv_length)
    padding = key_padding(attention_mask, keys)
    if may_skip and padding is None and queries[0] >= keys[-1]:
        return None
    pattern = recognise(mask_function, batch_size, queries, keys, device)
    self_attention = pattern.right == 0 or made_for_self_attention()
    visible = describe(pattern, arguments, queries, keys, padding, self_attention)
    return Mask(visible, arguments, (batch_size, 1, q_length, kv_length), device)


def sees_all(q_offset: Any, end: int) -> bool:
    """Whether one token of decoding sees every key, for which "sdpa" has no mask either.

    Asked before anything else: after a pass over its weights a model has evicted all code from the
    caches, and each line of it that a token needs comes from memory.
    """
    return type(q_offset) is int and q_offset >= end - 1 and not torch.compiler.is_compiling()


def made_for_self_attention() -> bool:
    """Whether the mask is for one sequence, so that what pads its keys also pads its queries.

    Only transformers' own function that calls `make_mask` knows, and does not hand it on.
    """
    caller = sys._getframe(2)
    ours = caller.f_globals is vars(masking)
    return ours and caller.f_locals.get("encoder_hidden_states", caller) is None


def key_padding(attention_mask: Any, keys: range) -> Any:
    """Return the bool mask ``(B, Lk)`` of the keys that are no padding, None if all are."""
    if attention_mask is None:
        return None
    mask = attention_mask[:, keys.start : keys.stop].to(torch.bool)
    missing = len(keys) - mask.shape[1]
    if missing:
        mask = torch.nn.functional.pad(mask, (0, missing))
    return None if bool(mask.all()) else mask


def describe(
    pattern: Pattern,
    arguments: dict[str, Any],
    queries: range,
    keys: range,
    padding: Any,
    self_attention: bool,
) -> Visible:
    """Say by options what a pattern and padding let these queries see of these keys."""
    visible = Visible()
    options = visible.options
    if pattern.segments is not None:
        visible.bounds = bounds_of(pattern, queries, keys, padding)
        if visible.bounds is None:
            pattern = Pattern(unknown=[arguments["mask_function"]])
    # A bound that no pair reaches is left out: one query of a decoder sees all of its cache.
    left, right = pattern.left, pattern.right
    if left is not None and queries[-1] - left <= keys[0]:
        left = None
    if right is not None and queries[0] + right >= keys[-1]:
        right = None
    if right == 0:
        options["is_causal"], right = True, None
    if left is not None or right is not None:
        options["window_size"] = (left, right)
    if options and visible.bounds is None:
        options["q_offset"] = queries.start - keys.start
    if padding is not None:
        pad(options, padding, queries, keys, self_attention)
    if pattern.unknown:
        dense = masking.sdpa_mask(
            **arguments
            | dict(
                mask_function=masking.and_masks(*pattern.unknown),
                attention_mask=None,
                allow_is_causal_skip=False,
            )
        )
        options["mask"] = dense & options["mask"] if "mask" in options else dense
    return visible


def bounds_of(pattern: Pattern, queries: range, keys: range, padding: Any) -> list[int] | None:
    """Return where sequences begin in the rows of all batch rows together, None for other calls."""
    numbers = pattern.segments
    rising = bool((numbers.diff(dim=-1) >= 0).all())
    if pattern.unknown or padding is not None or queries != keys or not rising:
        return None
    begins = torch.ones_like(numbers, dtype=torch.bool)
    begins[:, 1:] = numbers.diff(dim=-1) > 0
    return [*begins.flatten().nonzero().flatten().tolist(), begins.numel()]


def pad(
    options: dict[str, Any], mask: Any, queries: range, keys: range, self_attention: bool
) -> None:
    """Write the padding of keys, and of queries that are those keys, as options."""
    count = mask.sum(dim=1)
    starts = mask.int().argmax(dim=1) * (count > 0)
    lengths = starts + count
    places = torch.arange(mask.shape[1], device=mask.device)
    if not torch.equal(mask, (places >= starts[:, None]) & (places < lengths[:, None])):
        options["mask"] = mask[:, None, None, :]
        return
    options["kv_lengths"] = lengths.tolist()
    if starts.any():
        options["kv_starts"] = starts.tolist()
    if self_attention and len(queries) > 1 and queries.start >= keys.start:
        real = lengths + (keys.start - queries.start)
        options["q_lengths"] = real.clamp(0, len(queries)).tolist()
