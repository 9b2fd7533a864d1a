"""The ONNX ``Attention`` operator, opsets 23 to 25, computed by attnfast.

The ``onnx`` package generates the cases in process: inputs, attributes, expected outputs and
tolerances. ``run_attention_node`` states the operator in terms of the public API; every output
that a case lists is compared as the package's own backend runner does.
"""

import functools
import warnings

import numpy as np
import pytest

import attnfast

STAGES = ("scores", "capped", "biased", "weights")
DOUBLE = 11  # onnx.TensorProto.DOUBLE

# The names of onnx 1.23.2 without their prefix "test_attention_".
CASES = """
4d 4d_fp16 4d_gqa 4d_diff_heads_sizes 4d_scaled 4d_gqa_scaled 4d_diff_heads_sizes_scaled
4d_causal 4d_gqa_causal 4d_diff_heads_sizes_causal 4d_causal_fp16 4d_causal_bf16
4d_softcap 4d_gqa_softcap 4d_diff_heads_sizes_softcap
4d_softcap_neginf_mask 4d_softcap_neginf_mask_poison

4d_attn_mask 4d_attn_mask_3d 4d_attn_mask_3d_causal 4d_attn_mask_4d 4d_attn_mask_4d_causal
4d_attn_mask_bool 4d_attn_mask_bool_4d 4d_gqa_attn_mask 4d_diff_heads_sizes_attn_mask
4d_attn_mask_causal_bf16

4d_with_past_and_present 4d_gqa_with_past_and_present 4d_gqa_with_past_and_present_fp16
4d_diff_heads_with_past_and_present 4d_diff_heads_with_past_and_present_mask3d
4d_diff_heads_with_past_and_present_mask4d 4d_causal_with_past_and_present

4d_with_qk_matmul 4d_with_qk_matmul_bias 4d_with_qk_matmul_softcap 4d_with_qk_matmul_softmax
4d_with_past_and_present_qk_matmul 4d_with_past_and_present_qk_matmul_bias
4d_with_past_and_present_qk_matmul_bias_3d_mask
4d_with_past_and_present_qk_matmul_bias_4d_mask
4d_with_past_and_present_qk_matmul_bias_3d_mask_causal
4d_with_past_and_present_qk_matmul_bias_4d_mask_causal
24_qk_matmul_output_mode3_softmax_precision

3d 3d_gqa 3d_diff_heads_sizes 3d_scaled 3d_gqa_scaled 3d_diff_heads_sizes_scaled
3d_causal 3d_gqa_causal 3d_diff_heads_sizes_causal 3d_causal_bf16
3d_attn_mask 3d_gqa_attn_mask 3d_diff_heads_sizes_attn_mask
3d_softcap 3d_gqa_softcap 3d_diff_heads_sizes_softcap 3d_transpose_verification
3d_with_past_and_present 3d_gqa_with_past_and_present 3d_diff_heads_with_past_and_present
3d_with_past_and_present_qk_matmul 3d_with_past_and_present_qk_matmul_bias
3d_with_past_and_present_qk_matmul_softcap 3d_with_past_and_present_qk_matmul_softmax

4d_diff_heads_mask4d_padded_kv 4d_padded_kv_bf16 4d_causal_padded_kv_bf16
4d_gqa_causal_nonpad_decode 4d_gqa_causal_nonpad_decode_fp16
4d_causal_nonpad_continued_prefill 4d_causal_nonpad_batch_prefill
4d_causal_nonpad_attn_mask_composition 4d_causal_nonpad_negative_offset_structural_empty

causal_boolmask_nan_robustness 23_boolmask_fullymasked_row_nan_robustness
23_fullymasked_qk_matmul_output_mode3_zero 24_fullymasked_qk_matmul_output_mode3_zero

local_window local_window_default local_window_rank1_boolean_mask local_window_with_past
local_window_ext_cache_rank2_mask local_window_ext_cache_rank3_head_mask
local_window_ext_cache_rank4_batch_mask local_window_ext_cache_float16_mask
local_window_gqa_rank4_mask bidirectional_window 3d_local_window
"""
NAMES = CASES.split()


@functools.cache
def collect_cases():
    """Generate the cases, by name; only single ``Attention`` nodes, not their expansions."""
    from onnx.backend.test.case.node import collect_testcases

    random_state = np.random.get_state()  # noqa: NPY002 - the generators seed the global one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cases of other operators overflow on purpose
        cases = collect_testcases("Attention")
    np.random.set_state(random_state)  # noqa: NPY002
    nodes = [(case, case.model.graph.node) for case in cases]
    return {
        case.name.removeprefix("test_attention_"): case
        for case, node in nodes
        if len(node) == 1 and node[0].op_type == "Attention"
    }


def split_heads(array, heads):
    """View ``(B, L, heads * D)`` as ``(B, heads, L, D)``."""
    batch, length, width = array.shape
    return array.reshape(batch, length, heads, width // heads).swapaxes(1, 2)


def join_heads(array):
    """View ``(B, H, L, D)``, laid out in memory as ``(B, L, H, D)``, as ``(B, L, H * D)``."""
    batch, heads, length, width = array.shape
    return array.swapaxes(1, 2).reshape(batch, length, heads * width)


def pad_mask(mask, length):
    """Lengthen the last axis to ``length``; the new keys are disallowed."""
    missing = length - mask.shape[-1]
    if missing <= 0:
        return mask
    disallow = False if mask.dtype == bool else -np.inf
    return np.concatenate(
        (mask, np.full((*mask.shape[:-1], missing), disallow, mask.dtype)), axis=-1
    )


def run_attention_node(inputs, attributes):
    """Evaluate one ONNX ``Attention`` node.

    Parameters
    ----------
    inputs : dict of str to ndarray
        The operator's inputs by their formal names; absent optional inputs are left out.
    attributes : dict of str to int or float

    Returns
    -------
    dict of str to ndarray
        ``Y``, ``present_key``, ``present_value`` and ``qk_matmul_output``.
    """
    query, key, value = inputs["Q"], inputs["K"], inputs["V"]
    packed = query.ndim == 3
    if packed:
        query = split_heads(query, attributes["q_num_heads"])
        key = split_heads(key, attributes["kv_num_heads"])
        value = split_heads(value, attributes["kv_num_heads"])

    offset = 0
    if "past_key" in inputs:
        offset = inputs["past_key"].shape[2]
        key = np.concatenate((inputs["past_key"], key), axis=2)
        value = np.concatenate((inputs["past_value"], value), axis=2)
    present_key, present_value = key, value

    kv_lengths = inputs.get("nonpad_kv_seqlen")
    if kv_lengths is not None:
        offset = kv_lengths - query.shape[2]

    mask = bias = None
    if "attn_mask" in inputs:
        padded = pad_mask(inputs["attn_mask"], key.shape[2])
        mask, bias = (padded, None) if padded.dtype == bool else (None, padded)

    dtype = query.dtype
    if attributes.get("softmax_precision") == DOUBLE:
        query, key, value = (x.astype(np.float64) for x in (query, key, value))

    options = {
        "mask": mask,
        "bias": bias,
        "is_causal": bool(attributes.get("is_causal", 0)),
        "window_size": (
            attributes.get("left_window_size", -1),
            attributes.get("right_window_size", -1),
        ),
        "q_offset": offset,
        "kv_lengths": kv_lengths,
        "scale": attributes.get("scale"),
        "softcap": attributes.get("softcap") or None,
    }
    output = attnfast.attention(query, key, value, **options)
    stage = STAGES[attributes.get("qk_matmul_output_mode", 0)]
    scores = attnfast.attention_weights(query, key, stage=stage, **options)
    return {
        "Y": (join_heads(output) if packed else output).astype(dtype, copy=False),
        "present_key": present_key,
        "present_value": present_value,
        "qk_matmul_output": scores.astype(dtype, copy=False),
    }


def compare(actual, expected, rtol, atol):
    """Compare as ``onnx.backend.test.runner`` does: bfloat16 may be off by two ulps."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    if expected.dtype.name == "bfloat16":
        rtol = max(rtol, 2**-6)
        actual, expected = actual.astype(np.float32), expected.astype(np.float32)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def test_all_93_cases_are_run():
    assert len(NAMES) == 93
    assert sorted(NAMES) == sorted(collect_cases())


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", NAMES)
def test_case(name):
    from onnx.helper import get_attribute_value

    case = collect_cases()[name]
    node = case.model.graph.node[0]
    attributes = {a.name: get_attribute_value(a) for a in node.attribute}
    formal_inputs = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
    formal_outputs = ("Y", "present_key", "present_value", "qk_matmul_output")
    given = [slot for slot, used in zip(formal_inputs, node.input, strict=False) if used]
    wanted = [slot for slot, used in zip(formal_outputs, node.output, strict=False) if used]
    assert case.data_sets
    for arrays, expected in case.data_sets:
        results = run_attention_node(dict(zip(given, arrays, strict=True)), attributes)
        for slot, reference in zip(wanted, expected, strict=True):
            compare(results[slot], reference, case.rtol, case.atol)


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
def test_packed_heads_are_not_copied():
    packed = np.random.default_rng(0).standard_normal((2, 5, 3 * 8), dtype=np.float32)
    heads = split_heads(packed, 3)
    assert np.shares_memory(heads, packed)
    output = attnfast.attention(heads, heads, heads)
    assert np.shares_memory(join_heads(output), output)
