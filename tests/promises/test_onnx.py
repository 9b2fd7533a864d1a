"""The ONNX ``Attention`` operator, opsets 23 to 25, computed by attnfast.

The ``onnx`` package generates the cases in process: inputs, attributes, expected outputs and
tolerances. Each runs through ``onnx.reference`` with `attnfast.onnx.Attention`; every output that a
case lists is compared as the package's own backend runner does.
"""

import functools
import warnings

import numpy as np
import pytest

pytest.importorskip("onnx")
bridge = pytest.importorskip("attnfast.onnx")

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
    from onnx.reference import ReferenceEvaluator

    case = collect_cases()[name]
    evaluator = ReferenceEvaluator(case.model, new_ops=[bridge.Attention])
    assert [type(node) for node in evaluator.rt_nodes_] == [bridge.Attention]
    assert case.data_sets
    for arrays, expected in case.data_sets:
        given = dict(zip(evaluator.input_names, arrays, strict=True))
        for result, reference in zip(evaluator.run(None, given), expected, strict=True):
            compare(result, reference, case.rtol, case.atol)
