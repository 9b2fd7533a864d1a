"""What cases are called in the tables of the documentation, and which of them a page shows."""

from __future__ import annotations

from attnfast.bench.case import Case
from attnfast.bench.cases import GROUPS

LABEL = "case", "batch x heads x length x head size"  # heads of the columns of a label
CASES = {case.name: case for cases in GROUPS.values() for case in cases}

# Beginnings of the names of cases; the longest that fits is taken.
WORDS = {
    "bias": "dense bias",
    "cache_float8_e4m3fn_decode": "1 query, float8_e4m3fn",
    "cache_float8_e5m2_decode": "1 query, float8_e5m2",
    "cache_int8_decode": "1 query, int8, a scale for a key and head",
    "cache_int8g32_decode": "1 query, int8, scales of 32 numbers",
    "cache_pages16_decode": "1 query, float32 in pages of 16 keys",
    "causal": "causal",
    "causalwindow256": "causal window of 256",
    "decode": "1 query",
    "densebool": "dense mask",
    "family_additive": "additive",
    "family_blocks_bigbird": "BigBird, blocks of 64",
    "family_blocks_documents": "documents, blocks of 64",
    "family_importance": "importance",
    "family_importance_causal": "causal importance",
    "family_local_dilated": "window, dilations 1, 2, 4, 8",
    "family_local_first16": "window, first 16 tokens global",
    "family_local_m": "window about whole centers at random",
    "family_local_p": "window about real centers that rise",
    "family_local_spread64": "window, 64 tokens at random global",
    "family_topk1": "top 1",
    "family_topk16": "top 16",
    "family_topk16_causal": "causal top 16",
    "family_topk1_causal": "causal top 1",
    "family_varlen": "packed, lengths 16 to 512",
    "family_varlen_causal": "causal packed, lengths 16 to 512",
    "fewq16": "16 queries at the end",
    "float64": "full, float64",
    "full": "full",
    "half_bfloat16": "full, bfloat16",
    "half_bfloat16_decode": "1 query, bfloat16",
    "half_float16": "full, float16",
    "half_float16_decode": "1 query, float16",
    "keypad": "padded keys",
    "shape": "full",
    "shape_causal": "causal",
    "shape_float64": "full, float64",
    "shape_float64_causal": "causal, float64",
    "tiny": "full",
    "train": "full",
    "train_additive": "additive",
    "train_backward_additive": "additive, backward alone",
    "train_backward_window256": "window of 256 either side, backward alone",
    "train_bias": "dense bias, with its gradient",
    "train_causal": "causal",
    "train_keypad": "padded keys",
    "train_softcap": "softcap of 30",
    "train_window256": "window of 256 either side",
    "window256": "window of 256 either side",
}

# What docs/performance.md shows of the grid.
CHOSEN = (
    "full_1x12x512x64",
    "full_8x12x128x64",
    "full_1x16x2048x64",
    "full_1x8x4096x128",
    "causal_1x16x2048x64",
    "causal_1x32kv8x1024x128",
    "keypad_8x12x512x64",
    "densebool_8x12x512x64",
    "bias_8x12x512x64",
    "window256_1x8x4096x64",
    "causalwindow256_1x8x4096x64",
    "decode_b1_32kv8_4096x128",
    "fewq16_b1_32kv8_4096x128",
    "tiny_1x1x1x64_k16",
)

# What docs/new.md shows of the grid, of the family and of training.
SHOWN = (
    "full_1x12x512x64",
    "full_1x16x2048x64",
    "full_1x8x4096x128",
    "causal_1x16x2048x64",
    "densebool_8x12x512x64",
    "bias_8x12x512x64",
    "decode_b1_32kv8_4096x128",
    "decode_b1_32kv32_4096x128",
    "keypad_8x12x512x64",
    "window256_1x8x4096x64",
    "causalwindow256_1x8x4096x64",
    "family_local_first16_1x8x4096x64",
    "family_local_dilated_1x8x4096x64",
    "family_blocks_bigbird_1x8x4096x64",
    "family_varlen_causal_32x12x512x64",
    "train_1x8x2048x64",
    "train_causal_1x8x2048x64",
    "train_bias_8x12x512x64",
    "train_softcap_1x12x512x64",
    "train_window256_1x8x4096x64",
    "train_additive_16x1x100x128",
)


def label(case: Case) -> list[str]:
    """What a case is called in a table: words, and batch x heads x length x head size."""
    first = max((word for word in WORDS if case.name.startswith(word)), key=len, default="")
    return [WORDS.get(first, case.series), case.shape.replace("x", " x ")]
