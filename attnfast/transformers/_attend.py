"""The attention function: what a layer of transformers calls with its queries, keys and values."""

from __future__ import annotations

from typing import Any

from .. import attention
from ..torch import attention_varlen
from ..torch._call import call
from ._library import output_capturing, torch
from ._mask import Mask, Visible

COLLECTOR = getattr(output_capturing, "_active_collector", None)
ALL = Visible()
CAUSAL = Visible({"is_causal": True, "q_offset": 0})


def attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Any = None,
    softcap: float | None = None,
    s_aux: Any = None,
    sinks: Any = None,
    cu_seq_lens_q: Any = None,
    cu_seq_lens_k: Any = None,
    output_attentions: bool | None = None,
    **others: Any,
) -> tuple[Any, Any]:
    """Compute the attention of a layer; arguments and results are those of transformers.

    `query` is ``(B, H, Lq, D)``, `key` and `value` have ``Hk`` heads. Returns the output
    ``(B, Lq, H, Dv)``, and the weights ``(B, H, Lq, Lk)`` if they are asked for, else None.
    """
    if not query.is_cpu and query.device.type != "meta":
        raise ValueError(
            f"attnfast computes on the CPU, got a query on {query.device}: move the model with "
            'model.to("cpu"), or call model.set_attn_implementation("sdpa")'
        )
    visible = read_mask(module, query, key, attention_mask, is_causal)
    options = dict(visible.options)
    if scaling is not None:
        options["scale"] = scaling
    if softcap is not None:
        options["softcap"] = softcap
    if s_aux is not None:
        options["sink_logits"] = s_aux
    if position_bias is not None:
        bias = options.get("bias")
        options["bias"] = position_bias if bias is None else position_bias + bias
    if dropout > 0 and module.training:
        options["dropout"] = dropout
        # Drawn by PyTorch: manual_seed and gradient checkpointing decide over it.
        options["dropout_seed"] = int(torch.randint(2**63 - 1, ()))

    wanted = output_attentions or weights_are_collected()
    if visible.bounds is not None or cu_seq_lens_q is not None:
        packed = packed_bounds(visible, options, cu_seq_lens_q, cu_seq_lens_k)
        if packed is not None:
            if not wanted and sinks is None and "bias" not in options:
                return attend_packed(query, key, value, *packed, options), None
            options["mask"] = packed_mask(query, key, *packed)
            options["q_offset"] = 0
    given = {"query": query, "key": key, "value": value, **options}
    if not wanted and sinks is None:
        return call(attention, given).transpose(1, 2).contiguous(), None
    result = call(
        attention, {**given, "return_weights": bool(wanted), "return_lse": sinks is not None}
    )
    output, weights = result.output, result.weights
    if sinks is not None:  # one for each query, (B, H, Lq, 1), in the denominator
        share = torch.sigmoid(result.lse[..., None] - sinks).to(output.dtype)
        output = output * share
        weights = weights * share if wanted else None
    return output.transpose(1, 2).contiguous(), weights


def read_mask(module: Any, query: Any, key: Any, mask: Any, is_causal: bool | None) -> Visible:
    """Return what the mask of a call lets its queries see."""
    if mask is None:
        if query.shape[2] == 1:
            return ALL
        # What "sdpa" takes it for. Queries begin at the first key: a static cache is longer.
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        return CAUSAL if causal else ALL
    if isinstance(mask, Mask):
        rows, _, queries, keys = mask.shape
        Lq, Lk = query.shape[2], key.shape[2]
        if mask.is_untouched and rows == query.shape[0] and (queries, keys) == (Lq, Lk):
            return mask.visible
        mask = mask.dense()
    return Visible({"mask" if mask.dtype == torch.bool else "bias": mask})


def weights_are_collected() -> bool:
    """Whether a model that was called with ``output_attentions=True`` now collects weights.

    Some models do not hand that argument on to their layers.
    """
    collected = COLLECTOR.get() if COLLECTOR is not None else None
    return collected is not None and any("attentions" in name for name in collected)


def packed_bounds(
    visible: Visible, options: dict[str, Any], cu_q: Any, cu_k: Any
) -> tuple[Any, Any] | None:
    """Return where packed sequences begin, from the mask or from a collator without padding."""
    if cu_q is None or cu_k is None:
        return None if visible.bounds is None else (visible.bounds, visible.bounds)
    given = cu_q.tolist(), cu_k.tolist()
    if visible.bounds is not None and given != (visible.bounds, visible.bounds):
        raise ValueError(
            f"cu_seq_lens_q and cu_seq_lens_k must be the places where position_ids restart, "
            f"{visible.bounds}, got {given[0]} and {given[1]}: leave one of the two out"
        )
    others = {"mask", "kv_lengths", "kv_starts", "q_lengths"} & options.keys()
    if others or options.pop("q_offset", 0) != 0:
        raise ValueError(
            "cu_seq_lens_q is for sequences packed without padding and without a cache, got it "
            "with an attention_mask or a cache: leave out attention_mask, and pass use_cache=False"
        )
    return given


def attend_packed(
    query: Any, key: Any, value: Any, cu_q: list[int], cu_k: list[int], options: dict[str, Any]
) -> Any:
    """Attend within each of several sequences; the memory of layers is that of packed rows."""
    B, _, Lq, _ = query.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    output = attention_varlen(q, k, v, cu_q, cu_k, **options)
    return output.unflatten(0, (B, Lq))


def packed_mask(query: Any, key: Any, cu_q: list[int], cu_k: list[int]) -> Any:
    """Return the mask ``(B, 1, Lq, Lk)`` of pairs in one sequence."""
    numbers = []
    for x, bounds in ((query, cu_q), (key, cu_k)):
        rows = torch.arange(x.shape[0] * x.shape[2])
        number = torch.bucketize(rows, torch.tensor(bounds[1:]), right=True)
        numbers.append(number.view(x.shape[0], 1, x.shape[2]))
    return numbers[0][..., :, None] == numbers[1][..., None, :]
