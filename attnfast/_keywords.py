"""Keywords of other libraries: the error for them names the argument that does the same here."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

# Keyword of another library: pairs of an argument here and the advice that needs it. The first
# pair whose argument the function has is used; "" needs none.
FOREIGN: dict[str, list[tuple[str, str]]] = {
    "attn_mask": [
        (
            "mask",
            "write mask=attn_mask if it is bool and True means may attend, as in PyTorch's "
            "scaled_dot_product_attention, mask=~attn_mask if True means hidden, as in its "
            "MultiheadAttention, and bias=attn_mask if it is floating point",
        ),
    ],
    "attn_bias": [("bias", "write bias=attn_bias")],
    "position_bias": [("bias", "write bias=position_bias")],
    "relative_position_bias": [("bias", "write bias=relative_position_bias")],
    "attention_mask": [
        (
            "key_mask",
            "write key_mask=attention_mask != 0 for one number per key, (B, Lk), or "
            "mask=attention_mask[:, None] != 0 for one per query and key, (B, Lq, Lk)",
        ),
        (
            "mask",
            "write mask=attention_mask[:, None, None, :] != 0 for one number per key, (B, Lk), or "
            "mask=attention_mask[:, None] != 0 for one per query and key, (B, Lq, Lk)",
        ),
    ],
    "key_padding_mask": [
        ("key_mask", "write key_mask=~key_padding_mask, in which True means a real key"),
        (
            "kv_lengths",
            "write mask=~key_padding_mask[:, None, None, :], in which True means may attend, or "
            "kv_lengths=(~key_padding_mask).sum(-1), which costs less, if padding is at the end, "
            "kv_starts=key_padding_mask.sum(-1) if it is at the start",
        ),
        ("mask", "write mask=~key_padding_mask[:, None, None, :], in which True means may attend"),
    ],
    "value_mask": [
        ("key_mask", "write key_mask=value_mask"),
        ("mask", "write mask=value_mask[:, None, None, :]"),
    ],
    "key_mask": [("mask", "write mask=key_mask[:, None, None, :] where True means a real key")],
    "query_mask": [("q_lengths", "write q_lengths=query_mask.sum(-1) if padding is at the end")],
    "block_mask": [("mask", "write mask=BlockMask(blocks, block_size)")],
    "score_mod": [("bias", "write bias= with what it adds to the scores")],
    "mask_mod": [("mask", "write mask=BlockMask.from_function(visible, Lq, Lk, block_size)")],
    "global_attention_mask": [
        ("global_tokens", "write global_tokens=global_attention_mask != 0"),
        ("", "use local_attention(..., window_size, global_tokens=global_attention_mask != 0)"),
    ],
    "num_global_tokens": [
        ("global_tokens", "write global_tokens=range(num_global_tokens)"),
        ("", "use local_attention(..., window_size, global_tokens=range(num_global_tokens))"),
    ],
    "global_tokens": [("", "use local_attention(..., window_size, global_tokens=global_tokens)")],
    "dilation": [("", "use local_attention(..., window_size, dilation=dilation)")],
    **{
        name: [
            ("key_scale", "leave it out: there are no values here"),
            ("", "keys and values of 8 bits are taken by attention and attention_varlen of arrays"),
        ]
        for name in ("key_scale", "value_scale", "key_zero_point", "value_zero_point")
    },
    "block_table": [("", "pages are taken by attention and attention_varlen of arrays")],
    "out": [("", "results are new arrays here")],
    "cu_q": [("", "use attention_varlen(query, key, value, cu_q, cu_k) for packed sequences")],
    "cu_k": [("", "use attention_varlen(query, key, value, cu_q, cu_k) for packed sequences")],
    "scale": [
        ("score_weight", "write score_weight=scale * score_weight: additive scores have no scale")
    ],
    "causal": [("is_causal", "write is_causal=True")],
    "use_causal_mask": [("is_causal", "write is_causal=True")],
    "window": [("window_size", "write window_size=(left, right)")],
    "local_window_size": [("window_size", "write window_size=local_window_size")],
    "sliding_window": [
        (
            "window_size",
            "write window_size=(sliding_window - 1, 0) for causal attention,"
            " window_size=sliding_window - 1 for both sides: the query itself is not counted",
        ),
    ],
    "key_value_seq_lengths": [("kv_lengths", "write kv_lengths=key_value_seq_lengths")],
    "query_seq_lengths": [("q_lengths", "write q_lengths=query_seq_lengths")],
    "valid_lens": [("kv_lengths", "write kv_lengths=valid_lens")],
    "valid_length": [("kv_lengths", "write kv_lengths=valid_length")],
    "cache_seqlens": [("kv_lengths", "write kv_lengths=cache_seqlens")],
    "seqlens_k": [("kv_lengths", "write kv_lengths=seqlens_k")],
    "nonpad_kv_seqlen": [("kv_lengths", "write kv_lengths=nonpad_kv_seqlen")],
    **{
        name: [("block_table", f"write block_table={name}, with pages (pages, Hk, page_size, D)")]
        for name in ("block_tables", "page_table", "page_indices")
    },
    **{
        name: [("kv_starts", f"write kv_starts={name} where it counts padded keys on the left")]
        for name in ("leftpad_k", "cache_leftpad", "left_pad", "left_padding")
    },
    "cu_seqlens_q": [
        ("cu_q", "write cu_q=cu_seqlens_q"),
        ("", "use attention_varlen(query, key, value, cu_q, cu_k) for packed sequences"),
    ],
    "cu_seqlens_k": [
        ("cu_k", "write cu_k=cu_seqlens_k"),
        ("", "use attention_varlen(query, key, value, cu_q, cu_k) for packed sequences"),
    ],
    "softmax_scale": [("scale", "write scale=softmax_scale")],
    "sm_scale": [("scale", "write scale=sm_scale")],
    "scaling": [("scale", "write scale=scaling")],
    "scale_factor": [("scale", "write scale=scale_factor")],
    "temperature": [("scale", "write scale=1 / (temperature * np.sqrt(D))")],
    "soft_cap": [("softcap", "write softcap=soft_cap")],
    "logits_soft_cap": [("softcap", "write softcap=logits_soft_cap")],
    "attn_logits_soft_cap": [("softcap", "write softcap=attn_logits_soft_cap")],
    "attn_logit_softcapping": [("softcap", "write softcap=attn_logit_softcapping")],
    "alibi": [("alibi_slopes", "write alibi_slopes= with one slope per head")],
    "sinks": [("sink_logits", "write sink_logits=sinks")],
    "s_aux": [("sink_logits", "write sink_logits=s_aux")],
    "need_weights": [
        ("return_weights", "write return_weights=True to get the weights, else leave it out"),
    ],
    "output_attentions": [("return_weights", "write return_weights=True")],
    "return_attention_scores": [("return_weights", "write return_weights=True")],
    "return_attn_probs": [("return_weights", "write return_weights=True")],
    "return_softmax_lse": [("return_lse", "write return_lse=True")],
    "return_attention": [("return_weights", "write return_weights=True")],
    "return_softmax": [("return_weights", "write return_weights=True")],
    "return_scores": [("", 'use attention_weights(query, key, stage="scores")')],
    "return_logits": [("", 'use attention_weights(query, key, stage="scores")')],
    "average_attn_weights": [
        ("return_weights", "write return_weights=True and average with weights.mean(axis=-3)"),
    ],
    "n_threads": [("num_threads", "write num_threads=n_threads")],
    "n_jobs": [("num_threads", "write num_threads=n_jobs")],
    **{
        name: [
            ("dropout", f"write dropout={name}, and a dropout_seed= that changes in each step"),
            ("", "leave it out, nothing is dropped here, as in inference"),
        ]
        for name in ("dropout_p", "dropout_rate")
    },
    "dropout": [("", "leave it out, nothing is dropped here, as in inference")],
    "training": [
        ("dropout", "leave it out, nothing is dropped unless dropout= says so"),
        ("", "leave it out, nothing is dropped here, as in inference"),
    ],
    "enable_gqa": [("", "leave it out, key and value may have fewer heads than query")],
    "deterministic": [("", "leave it out, the same inputs always give the same bits")],
    "attn_weights": [("return_weights", "write return_weights=True")],
    "max_seqlen_q": [("", "leave it out, lengths follow from cu_q and cu_k")],
    "max_seqlen_k": [("", "leave it out, lengths follow from cu_q and cu_k")],
    **{
        name: [("q_offset", f"write q_offset= with the key at which the first query stands{more}")]
        for name, more in {
            "cache_position": "",
            "position_ids": "",
            "start_pos": "",
            "past_key": ', and pass the past in key and value: "end" then fits',
            "past_key_values": ', and pass the past in key and value: "end" then fits',
        }.items()
    },
    **{
        name: [
            (
                "",
                "leave it out, heads are the axis before the length: "
                "write query.reshape(B, L, H, D).swapaxes(1, 2)",
            )
        ]
        for name in ("heads", "n_heads", "num_heads", "num_kv_heads")
    },
    **{
        name: [
            (
                "",
                "leave it out, arrays are (B, H, L, D): write query.swapaxes(1, 2) if (B, L, H, D)",
            )
        ]
        for name in ("layout", "input_layout", "batch_first")
    },
}


# Words in a keyword that is not in the table, and the advice for its kind.
KINDS: list[tuple[str, str, str]] = [
    ("len", "kv_lengths", "write kv_lengths= for keys and q_lengths= for queries"),
    ("pad", "key_mask", "write key_mask= with True for a real key: ~{0} if its True is padding"),
    (
        "pad",
        "mask",
        "write mask=~{0}[:, None, None, :] if its True is padding, mask={0}[:, None, None, :] if "
        "its True is a real key",
    ),
    (
        "mask",
        "mask",
        "write mask={0} if it is bool and True means may attend, mask=~{0} if True means hidden, "
        "bias={0} if it is floating point",
    ),
]


def refuse_arguments(
    function: Callable[..., Any], extra: Sequence[Any], unknown: Mapping[str, Any]
) -> NoReturn:
    """Raise the TypeError for what a public function does not take, by position or by name."""
    if unknown:
        refuse_unknown(function, unknown)
    parameters = inspect.signature(function).parameters.values()
    first = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    named = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    value = "" if "value" in first else ", and no value is needed"
    raise TypeError(
        f"{function.__name__} takes {len(first)} arguments by position, {', '.join(first)}, got "
        f"{len(first) + len(extra)}: write the others by name, {', '.join(named[:3])} ...{value}"
    )


def refuse_unknown(
    function: Callable[..., Any], unknown: Mapping[str, Any], options: Iterable[str] = ()
) -> NoReturn:
    """Raise the TypeError for keywords that a public function does not have.

    `options` are those that its ``**options`` takes.
    """
    known = [*inspect.signature(function).parameters, *options]
    known = [argument for argument in known if argument not in ("self", "options")]
    where = function.__qualname__.removesuffix(".__call__")
    raise TypeError(
        "; ".join(
            f"{name} is not an argument of {where}{_advice(name, value, known)}"
            for name, value in unknown.items()
        )
    )


def _advice(name: str, value: Any, known: list[str]) -> str:
    if value is None:
        return ": leave it out"
    for needed, advice in FOREIGN.get(name, []):
        if not needed or needed in known:
            return f": {advice}"
    near = difflib.get_close_matches(name, known, 1)
    for word, needed, advice in KINDS:
        if word in name and needed in known and not _is_misspelt(name, near):
            return f": {advice.format(name)}"
    return f": did you mean {near[0]}?" if near else f", which takes {', '.join(known)}"


def _is_misspelt(name: str, near: list[str]) -> bool:
    return bool(near) and difflib.SequenceMatcher(None, name, near[0]).ratio() > 0.9
