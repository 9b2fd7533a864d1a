"""Gradients of ``LuongAttention`` against central differences, and float32 against float64."""

from typing import Any

import numpy as np
import pytest

from attnfast.layers import LuongAttention
from support.arrays import same_bits
from support.differences import (
    check_by_differences,
    check_layer,
    float32_like_float64,
    loss_of,
    numbers,
)

pytestmark = pytest.mark.quick

B, LQ, LK = 3, 4, 9
REAL = np.arange(LK) < np.array([[9], [0], [6]])
HOLES = numbers(2, (B, LK)) > -0.5

LUONG: dict[str, dict[str, Any]] = {
    "plain": {},
    "key mask": {"key_mask": REAL & HOLES},
    "lengths": {"kv_lengths": [9, 1, 6]},
}


class TestLuong:
    def make(self, score: str, alignment: str, dtype: Any = np.float64) -> Any:
        layer = LuongAttention(
            *(5, 5 if score == "dot" else 6),
            **{"score": score, "alignment": alignment, "units": 4, "dtype": dtype, "seed": 1},
            window=None if alignment == "global" else 3,
        )
        if alignment == "local-p":
            layer.weights["v_p"] *= 3
        return layer

    def inputs(self, layer: Any) -> dict[str, Any]:
        shapes = {"hidden": (B, LQ, layer.dim), "source": (B, LK, layer.source_dim)}
        return {name: numbers(n, shape) for n, (name, shape) in enumerate(shapes.items())}

    @pytest.mark.parametrize("return_weights", [False, True])
    @pytest.mark.parametrize("case", LUONG)
    @pytest.mark.parametrize("alignment", ["global", "local-m", "local-p"])
    @pytest.mark.parametrize("score", ["dot", "general", "concat"])
    def test_differences(self, score, alignment, case, return_weights):
        layer = self.make(score, alignment)
        weights = {name: w for name, w in layer.weights.items() if name != "w_c"}
        options = LUONG[case] | {"return_weights": return_weights}
        if alignment == "local-m":
            options["q_offset"] = [0, 2, 4]
        check_layer(layer, self.inputs(layer), weights, **options)

    @pytest.mark.parametrize("alignment", ["global", "local-m", "local-p"])
    @pytest.mark.parametrize("score", ["dot", "general", "concat"])
    def test_float32(self, score, alignment):
        layer = self.make(score, alignment)
        inputs, options = self.inputs(layer), {"return_weights": True, "kv_lengths": [9, 1, 6]}
        weights = layer.weights

        def make(dtype: Any) -> Any:
            layer = self.make(score, alignment, dtype)
            layer.weights = {name: w.astype(dtype) for name, w in weights.items()}
            return layer

        float32_like_float64(make, inputs, **options)

    @pytest.mark.parametrize("alignment", ["global", "local-m", "local-p"])
    @pytest.mark.parametrize("score", ["dot", "general", "concat"])
    def test_padding_may_hold_anything(self, score, alignment):
        layer = self.make(score, alignment)
        inputs, options = self.inputs(layer), {"kv_lengths": [9, 0, 6]}
        output, pullback = layer.vjp(**inputs, **options)
        expected = pullback(output)
        inputs["source"][~REAL] = np.nan
        poisoned = layer.vjp(**inputs, **options)[1](output)
        for a, b in zip(expected, poisoned, strict=True):
            assert all(same_bits(a[name], b[name]) for name in a)
        assert not expected.inputs["source"][~REAL].any()

    def test_attentional(self):
        layer = self.make("general", "global")
        inputs = {"context": numbers(0, (B, LQ, 6)), "hidden": numbers(1, (B, LQ, 5))}
        vectors, pullback = layer.attentional_vjp(**inputs)
        assert same_bits(vectors, layer.attentional(**inputs))
        gradients = pullback(*loss_of(vectors)[1])
        check_by_differences(
            lambda: loss_of(layer.attentional(**inputs))[0],
            inputs | {"w_c": layer.weights["w_c"]},
            {**gradients.inputs, **gradients.weights},
        )
