"""Small random models of transformers, one for each family, and inputs with padding for them."""

from typing import Any, NamedTuple

import torch
import transformers

LENGTH = 24
SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.0,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 2}  # all: rounding changes no choice


class Family(NamedTuple):
    """How to build the model of a family, and what its inputs are."""

    kind: str  # encoder, decoder, both, image or audio
    model: str
    config: str
    options: dict[str, Any]


def t5gemma() -> dict[str, Any]:
    """The parts of a T5Gemma configuration."""
    part = SIZES | GROUPED | WINDOWS | {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0}
    return {
        "encoder": part,
        "decoder": part | {"is_decoder": True},
        "vocab_size": 99,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dropout_rate": 0.0,
        "attention_dropout": 0.0,
        "classifier_dropout_rate": 0.0,
    }


SEQ2SEQ = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0}

FAMILIES = {
    "bert": Family("encoder", "BertModel", "BertConfig", SIZES | NO_DROPOUT),
    "roberta": Family("encoder", "RobertaModel", "RobertaConfig", SIZES | NO_DROPOUT),
    "distilbert": Family(
        "encoder",
        "DistilBertModel",
        "DistilBertConfig",
        {"vocab_size": 99, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "dropout": 0.0}
        | {"attention_dropout": 0.0, "pad_token_id": 0},
    ),
    "modernbert": Family(
        "encoder", "ModernBertModel", "ModernBertConfig", SIZES | {"local_attention": 8}
    ),
    "gpt2": Family("decoder", "GPT2LMHeadModel", "GPT2Config", SIZES | GPT2 | {"attn_pdrop": 0.0}),
    "gpt_neox": Family(
        "decoder", "GPTNeoXForCausalLM", "GPTNeoXConfig", SIZES | {"hidden_dropout": 0.0}
    ),
    "opt": Family(
        "decoder",
        "OPTForCausalLM",
        "OPTConfig",
        SIZES | {"ffn_dim": 64, "dropout": 0.0, "word_embed_proj_dim": 32},
    ),
    "llama": Family("decoder", "LlamaForCausalLM", "LlamaConfig", SIZES | GROUPED),
    "llama4": Family(
        "decoder",
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        SIZES
        | GROUPED
        | EXPERTS
        | {"intermediate_size_mlp": 64, "attention_chunk_size": 8, "no_rope_layers": [1, 0]},
    ),
    "mistral": Family(
        "decoder", "MistralForCausalLM", "MistralConfig", SIZES | GROUPED | {"sliding_window": 8}
    ),
    "mixtral": Family("decoder", "MixtralForCausalLM", "MixtralConfig", SIZES | GROUPED | EXPERTS),
    "qwen2": Family("decoder", "Qwen2ForCausalLM", "Qwen2Config", SIZES | GROUPED),
    "qwen3": Family(
        "decoder",
        "Qwen3ForCausalLM",
        "Qwen3Config",
        SIZES | GROUPED | WINDOWS | {"use_sliding_window": True},
    ),
    "gemma": Family("decoder", "GemmaForCausalLM", "GemmaConfig", SIZES | GROUPED),
    "gemma2": Family(
        "decoder",
        "Gemma2ForCausalLM",
        "Gemma2Config",
        SIZES | GROUPED | WINDOWS | {"attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8},
    ),
    "gemma3": Family(
        "decoder",
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        SIZES | GROUPED | WINDOWS | {"query_pre_attn_scalar": 8},
    ),
    "gpt_oss": Family(
        "decoder", "GptOssForCausalLM", "GptOssConfig", SIZES | GROUPED | WINDOWS | EXPERTS
    ),
    "phi3": Family(
        "decoder",
        "Phi3ForCausalLM",
        "Phi3Config",
        SIZES | {"num_key_value_heads": 2, "sliding_window": 8},
    ),
    "deepseek_v3": Family(  # value heads are narrower than those of keys
        "decoder",
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        SIZES
        | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
        | {"v_head_dim": 8, "first_k_dense_replace": 2, "num_key_value_heads": 4},
    ),
    "bloom": Family(  # has an attention of its own, which is given the masks of eager
        "decoder",
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.0}
        | {"attention_dropout": 0.0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "t5": Family(
        "both",
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        | {"dropout_rate": 0.0, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0},
    ),
    "t5gemma": Family("both", "T5GemmaForConditionalGeneration", "T5GemmaConfig", t5gemma()),
    "bart": Family("both", "BartForConditionalGeneration", "BartConfig", SEQ2SEQ),
    "whisper": Family(
        "audio",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        SEQ2SEQ | {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 64},
    ),
    "vit": Family(
        "image",
        "ViTModel",
        "ViTConfig",
        {name: SIZES[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}
        | NO_DROPOUT
        | {"num_attention_heads": 4, "image_size": 16, "patch_size": 4},
    ),
}


def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a family's model, the same at each call."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, family.config)(**family.options)
    model = getattr(transformers, family.model)(config).eval().to(dtype)
    for parameter in model.parameters():  # scores that differ, sinks and biases that are not 0
        if parameter.dim() == 1 or parameter.abs().max() == 0:
            parameter.data += 0.3 * torch.randn_like(parameter)
        elif parameter.std() < 0.1:
            parameter.data *= 4
    return model


def use(model: Any, implementation: str) -> None:
    """Switch a model, also those that ``set_attn_implementation`` refused in early releases."""
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = implementation


def inputs(name: str, side: str = "right") -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the arguments of a call, and which rows of the output are real."""
    kind = FAMILIES[name].kind
    generator = torch.Generator().manual_seed(1)

    def tokens(*shape: int) -> torch.Tensor:
        return torch.randint(3, 99, shape, generator=generator)

    if kind == "image":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}, torch.ones(
            2, 17
        ) > 0
    if kind == "audio":
        arguments = {"input_features": torch.randn(2, 8, 40, generator=generator)}
        return arguments | {"decoder_input_ids": tokens(2, 10)}, torch.ones(2, 10) > 0
    lengths = torch.tensor([LENGTH, 13, 3])
    mask = torch.arange(LENGTH) < lengths[:, None]
    if side == "left":
        mask = mask.flip(1)
    elif side == "none":
        mask = torch.ones_like(mask)
    arguments = {"input_ids": tokens(3, LENGTH), "attention_mask": mask.long()}
    if kind == "both":
        return arguments | {"decoder_input_ids": tokens(3, 10)}, torch.ones(3, 10) > 0
    return arguments, mask


def result(model: Any, arguments: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    """Return the logits of a call, or the last hidden state where there are none."""
    output = model(**arguments, **options)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state
