"""Gradients of Bahdanau's and Keras's layers against central differences."""

from typing import Any

import numpy as np
import pytest

from attnfast.layers import AdditiveAttention, Attention, BahdanauAttention
from support.arrays import same_bits
from support.differences import check_layer, float32_like_float64, numbers

pytestmark = pytest.mark.quick

B, LQ, LK = 3, 4, 9
REAL = np.arange(LK) < np.array([[9], [0], [6]])
HOLES = numbers(2, (B, LK)) > -0.5


# ---- Bahdanau ----

BAHDANAU: dict[str, dict[str, Any]] = {
    "plain": {},
    "key mask": {"key_mask": HOLES},
    "lengths": {"kv_lengths": [9, 0, 6]},
    "starts": {"kv_starts": [0, 9, 3], "kv_lengths": [8, 9, 4]},
}


class TestBahdanau:
    def make(self, dtype: Any = np.float64, use_bias: bool = True) -> Any:
        layer = BahdanauAttention(5, 6, 7, use_bias=use_bias, dtype=dtype, seed=1)
        if use_bias:
            layer.weights["b"] += numbers(3, 7).astype(dtype)
        return layer

    def inputs(self) -> dict[str, Any]:
        return {"query": numbers(0, (B, LQ, 5)), "states": numbers(1, (B, LK, 6))}

    @pytest.mark.parametrize("return_weights", [False, True])
    @pytest.mark.parametrize("use_bias", [False, True])
    @pytest.mark.parametrize("case", BAHDANAU)
    def test_differences(self, case, use_bias, return_weights):
        layer = self.make(use_bias=use_bias)
        options = BAHDANAU[case] | {"return_weights": return_weights}
        check_layer(layer, self.inputs(), layer.weights, **options)

    @pytest.mark.parametrize("case", BAHDANAU)
    def test_float32(self, case):
        float32_like_float64(self.make, self.inputs(), return_weights=True, **BAHDANAU[case])

    def test_keys_count_as_made_of_the_states(self):
        layer, inputs = self.make(), self.inputs()
        output, pullback = layer.vjp(**inputs)
        _, with_keys = layer.vjp(**inputs, keys=layer.project_keys(inputs["states"]))
        for a, b in zip(pullback(output), with_keys(output), strict=True):
            assert a.keys() == b.keys()
            assert all(same_bits(a[name], b[name]) for name in a)

    def test_padding_may_hold_anything(self):
        layer, inputs = self.make(), self.inputs()
        output, pullback = layer.vjp(**inputs, kv_lengths=[9, 0, 6])
        expected = pullback(output)
        inputs["states"][~REAL] = np.nan
        poisoned = layer.vjp(**inputs, kv_lengths=[9, 0, 6])[1](output)
        for a, b in zip(expected, poisoned, strict=True):
            assert all(same_bits(a[name], b[name]) for name in a)
        assert not expected.inputs["states"][~REAL].any()


# ---- Keras ----


class Named:
    """A layer whose inputs are named and whose numbers are arrays, for `check`."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.weights = {}
        for name in ("scale", "concat_score_weight"):
            if name in getattr(layer, "_names", ["scale"]) and getattr(layer, name) is not None:
                self.weights[name] = np.array(getattr(layer, name), np.float64)

    def _call(self, call: Any, query: Any, value: Any, key: Any, options: Any) -> Any:
        for name, array in self.weights.items():
            setattr(self.layer, name, array if array.ndim else float(array))
        return call([query, value] if key is None else [query, value, key], **options)

    def __call__(self, query: Any, value: Any, key: Any = None, **options: Any) -> Any:
        return self._call(self.layer, query, value, key, options)

    def vjp(self, query: Any, value: Any, key: Any = None, **options: Any) -> Any:
        return self._call(self.layer.vjp, query, value, key, options)


def keras_layer(name: str, scale: float = 0.4) -> Any:
    if "additive" in name:
        return AdditiveAttention(5, "scale" in name, dtype=np.float64, seed=0)
    layer = Attention("scale" in name, "concat" if "concat" in name else "dot")
    layer.scale, layer.concat_score_weight = scale, 0.8
    return layer


KERAS = ["dot", "dot, scale", "concat", "concat, scale", "additive", "additive, scale"]
MASKS: dict[str, Any] = {
    "plain": None,
    "value": [None, HOLES],
    "padding": [np.arange(LQ) < np.array([[4], [0], [3]]), REAL],
    "query": [numbers(3, (B, LQ)) > -0.5, None],
}


class TestKeras:
    @pytest.mark.parametrize("weights", [False, True])
    @pytest.mark.parametrize("mask", MASKS)
    @pytest.mark.parametrize("name", KERAS)
    def test_differences(self, name, mask, weights):
        layer = Named(keras_layer(name))
        inputs = {"query": numbers(0, (B, LQ, 5)), "value": numbers(1, (B, LK, 5))}
        options = {"mask": MASKS[mask], "return_attention_scores": weights}
        check_layer(layer, inputs, layer.weights, use_causal_mask=True, **options)
        inputs |= {"value": numbers(1, (B, LK, 3)), "key": numbers(2, (B, LK, 5))}
        check_layer(layer, inputs, layer.weights, **options)

    @pytest.mark.parametrize("name", ["dot, scale", "concat, scale"])
    def test_a_scale_of_0(self, name):
        layer = Named(keras_layer(name, scale=0.0))
        inputs = {"query": numbers(0, (B, LQ, 5)), "value": numbers(1, (B, LK, 5))}
        check_layer(layer, inputs, layer.weights)

    @pytest.mark.parametrize("name", ["dot, scale", "concat, scale"])
    def test_padding_may_hold_anything(self, name):
        query, value = numbers(0, (B, LQ, 5)), numbers(1, (B, LK, 5))
        mask = MASKS["padding"]
        output, pullback = keras_layer(name).vjp([query, value], mask)
        expected = pullback(output)
        query[~mask[0]] = value[~mask[1]] = np.nan
        poisoned = keras_layer(name).vjp([query, value], mask)[1](output)
        for a, b in zip(expected, poisoned, strict=True):
            assert all(same_bits(a[name], b[name]) for name in a)

    @pytest.mark.parametrize("name", KERAS)
    def test_float16(self, name):
        """Inputs of 16 bits, which these layers take, have gradients in their dtype."""
        query, value = (numbers(n, (B, 4, 5), np.float16) for n in (0, 1))
        output, pullback = keras_layer(name).vjp([query, value])
        gradients = pullback(np.ones_like(output))
        exact, expected = keras_layer(name).vjp([query.astype(float), value.astype(float)])
        expected = expected(np.ones_like(exact))
        for name, grad in gradients.inputs.items():
            assert grad.dtype == np.float16
            np.testing.assert_allclose(grad, expected.inputs[name], rtol=0, atol=2e-2)
