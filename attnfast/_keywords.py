"""Keywords of other libraries: the error for them names the argument that does the same here."""

import difflib
import inspect
from collections.abc import Callable, Iterable
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
            "mask",
            "write mask=~key_padding_mask[:, None, None, :], in which True means may attend, or "
            "kv_lengths=(~key_padding_mask).sum(-1), which costs less, if padding is at the end",
        ),
    ],
    "value_mask": [
        ("key_mask", "write key_mask=value_mask"),
        ("mask", "write mask=value_mask[:, None, None, :]"),
    ],
    "key_mask": [("mask", "write mask=key_mask[:, None, None, :] where True means a real key")],
    "query_mask": [("q_lengths", "write q_lengths=query_mask.sum(-1) if padding is at the end")],
    "block_mask": [("mask", "write mask=BlockMask(blocks, block_size)")],
    "causal": [("is_causal", "write is_causal=True")],
    "use_causal_mask": [("is_causal", "write is_causal=True")],
    "window": [("window_size", "write window_size=(left, right)")],
    "local_window_size": [("window_size", "write window_size=local_window_size")],
    "sliding_window": [
        (
            "window_size",
            "write window_size=(sliding_window - 1, 0), which does not count the query itself",
        ),
    ],
    "key_value_seq_lengths": [("kv_lengths", "write kv_lengths=key_value_seq_lengths")],
    "query_seq_lengths": [("q_lengths", "write q_lengths=query_seq_lengths")],
    "valid_lens": [("kv_lengths", "write kv_lengths=valid_lens")],
    "lengths": [("kv_lengths", "write kv_lengths= for keys and q_lengths= for queries")],
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
    "soft_cap": [("softcap", "write softcap=soft_cap")],
    "logits_soft_cap": [("softcap", "write softcap=logits_soft_cap")],
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
    "average_attn_weights": [
        ("return_weights", "write return_weights=True and average with weights.mean(axis=-3)"),
    ],
    "n_threads": [("num_threads", "write num_threads=n_threads")],
    "n_jobs": [("num_threads", "write num_threads=n_jobs")],
    **{
        name: [("", "leave it out, nothing is dropped here, as in inference")]
        for name in ("dropout", "dropout_p", "dropout_rate", "training")
    },
    "enable_gqa": [("", "leave it out, key and value may have fewer heads than query")],
    "deterministic": [("", "leave it out, the same inputs always give the same bits")],
    "attn_weights": [("return_weights", "write return_weights=True")],
    "max_seqlen_q": [("", "leave it out, lengths follow from cu_q and cu_k")],
    "max_seqlen_k": [("", "leave it out, lengths follow from cu_q and cu_k")],
}


def refuse_unknown(
    function: Callable[..., Any], unknown: Iterable[str], options: Iterable[str] = ()
) -> NoReturn:
    """Raise the TypeError for keywords that a public function does not have.

    `options` are those that its ``**options`` takes.
    """
    name = next(iter(unknown))
    known = [*inspect.signature(function).parameters, *options]
    known = [argument for argument in known if argument not in ("self", "options")]
    where = function.__qualname__.removesuffix(".__call__")
    raise TypeError(f"{name} is not an argument of {where}{_advice(name, known)}")


def _advice(name: str, known: list[str]) -> str:
    for needed, advice in FOREIGN.get(name, []):
        if not needed or needed in known:
            return f": {advice}"
    near = difflib.get_close_matches(name, known, 1)
    return f": did you mean {near[0]}?" if near else f", which takes {', '.join(known)}"
