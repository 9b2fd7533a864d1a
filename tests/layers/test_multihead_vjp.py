"""Gradients of ``MultiHeadAttention`` against central differences, and float32 against float64."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from attnfast import BlockMask
from attnfast.layers import Linear, MultiHeadAttention, Projections
from support.arrays import assert_same, same_bits
from support.differences import check_by_differences, loss_of, numbers

pytestmark = pytest.mark.quick

B, H, HK, LQ, LK, D, DV = 2, 4, 2, 5, 7, 3, 2
WIDTHS = {"query": 6, "key": 4, "value": 5}


def make(dtype: Any = np.float64, *, extra: bool = False, use_bias: bool = True) -> Any:
    def linear(seed: int, n_in: int, n_out: int) -> Linear:
        bias = numbers(seed + 50, n_out, dtype) if use_bias else None
        return Linear(numbers(seed, (n_in, n_out), dtype) / dtype(2), bias)

    maps = [
        linear(n, *s) for n, s in enumerate([(6, H * D), (4, HK * D), (5, HK * DV), (H * DV, 8)])
    ]
    weights = Projections(*maps, num_heads=H, num_kv_heads=HK)
    if extra:
        own = {"extra_key": numbers(8, HK * D, dtype), "extra_value": numbers(9, HK * DV, dtype)}
        weights = replace(weights, **own)
    return MultiHeadAttention.from_projections(weights)


def make_inputs(dtype: Any = np.float64) -> dict[str, np.ndarray]:
    lengths = {"query": LQ, "key": LK, "value": LK}
    return {
        name: numbers(n, (B, lengths[name], w), dtype) for n, (name, w) in enumerate(WIDTHS.items())
    }


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True, "q_offset": "end"},
    "window": {"window_size": (2, 1), "q_offset": 1},
    "lengths": {"q_lengths": [5, 2], "kv_lengths": [4, 7], "kv_starts": [0, 3]},
    "key mask": {"key_mask": numbers(3, (B, LK)) > -0.3},
    "masks": {"key_mask": numbers(3, (B, LK)) > -0.3, "mask": numbers(4, (1, H, LQ, LK)) > -1},
    "blocks": {"mask": BlockMask(np.array([[1, 0], [1, 1]], bool), 4), "kv_lengths": [7, 0]},
    "options": {
        **{
            "scale": 0.4,
            "softcap": 2.0,
            "sink_logits": numbers(5, H),
            "bias": numbers(6, (1, H, 1, LK)),
        },
        **{"alibi_slopes": abs(numbers(7, H)), "q_offset": 2},
    },
}
FORMS = [
    {"return_weights": w, "extra": e, "use_bias": not w}
    for w in (False, True)
    for e in (False, True)
]


def run(layer: Any, inputs: dict[str, Any], wanted: Any = (), **options: Any) -> Any:
    """A call, its loss, and the gradients of that."""
    result, pullback = layer.vjp(**inputs, wanted=wanted, **options)
    loss, grads = loss_of(result)
    return result, loss, pullback(*grads)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_central_differences(case, form):
    options = CASES[case] | {"return_weights": form["return_weights"]}
    layer = make(extra=form["extra"], use_bias=form["use_bias"])
    inputs = make_inputs()
    wanted = [name for name in ("bias", "sink_logits", "alibi_slopes") if name in options]
    result, _, gradients = run(layer, inputs, wanted, **options)
    assert_same(result, layer(**inputs, **options))
    arrays = inputs | {name: options[name] for name in wanted}
    both = {**gradients.inputs, **gradients.weights}

    def loss() -> float:
        return loss_of(layer(**inputs, **options))[0]

    check_by_differences(loss, arrays | layer.weights.arrays(), both)


@pytest.mark.parametrize("weights", ["mean", True])
def test_weights_that_are_averaged(weights):
    layer, inputs = make(), make_inputs()
    _, _, gradients = run(layer, inputs, return_weights=weights)
    check_by_differences(
        lambda: loss_of(layer(**inputs, return_weights=weights))[0],
        inputs | layer.weights.arrays(),
        {**gradients.inputs, **gradients.weights},
    )


@pytest.mark.parametrize("given", [("query",), ("query", "key"), ("query", "value")])
def test_what_is_left_out_adds_to_what_stands_for_it(given):
    layer = MultiHeadAttention(6, 2, seed=0, dtype=np.float64)
    inputs = {name: numbers(n, (3, LQ, 6)) for n, name in enumerate(given)}
    _, _, gradients = run(layer, inputs, is_causal=True)
    check_by_differences(
        lambda: loss_of(layer(**inputs, is_causal=True))[0],
        inputs | layer.weights.arrays(),
        {**gradients.inputs, **gradients.weights},
    )


def test_batch_axes_are_summed_and_may_be_missing():
    layer = make()
    inputs = make_inputs()
    for shape in [(1,), (3, 1)]:
        inputs["query"] = numbers(1, (*shape, LQ, 6))
        _, _, gradients = run(layer, inputs)
        check_by_differences(
            lambda: loss_of(layer(**inputs))[0],
            inputs | layer.weights.arrays(),
            {**gradients.inputs, **gradients.weights},
        )
    alone = {name: x[0] for name, x in make_inputs().items()}
    _, _, gradients = run(layer, alone)
    assert gradients.inputs["key"].shape == (LK, 4)


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_float32(case, extra):
    options = {"return_weights": True, **CASES[case]}
    exact, found = (
        run(make(dtype, extra=extra), make_inputs(dtype), **options)[2]
        for dtype in (np.float64, np.float32)
    )
    for group, expected in zip(found, exact, strict=True):
        for name, x in group.items():
            assert x.dtype == np.float32
            size = np.abs(expected[name]).max()
            np.testing.assert_allclose(x, expected[name], rtol=0, atol=2e-5 * (size + 1))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_padding_has_no_influence(poison):
    """Whatever it holds, in the gradients of weights too, if the loss ignores it."""
    layer, inputs = make(), make_inputs()
    options = {"q_lengths": [5, 2], "kv_lengths": [4, 7]}
    results = []
    for value in (1.0, poison):
        given = {name: x.copy() for name, x in inputs.items()}
        given["query"][1, 2:] = value
        given["key"][0, 4:] = given["value"][0, 4:] = value
        output, pullback = layer.vjp(**given, **options)
        grad = numbers(7, output.shape)
        grad[1, 2:] = 0
        gradients = pullback(grad)
        assert not gradients.inputs["key"][0, 4:].any()
        results.append((*gradients.inputs.values(), *gradients.weights.values()))
    for a, b in zip(*results, strict=True):
        assert same_bits(a, b)


def test_bad_derivatives():
    layer, inputs = make(), make_inputs()
    output, pullback = layer.vjp(**inputs)
    with pytest.raises(ValueError, match=r"^grad_output must have shape \(2, 5, 8\), got"):
        pullback(output[0])
    with pytest.raises(TypeError, match=r"^grad_output .*float64.*float32.*astype"):
        pullback(output.astype(np.float32))
    with pytest.raises(ValueError, match=r"^grad_weights needs weights: call vjp so that"):
        pullback(output, output)
    with pytest.raises(ValueError, match=r"^wanted names bias, which the call does not have"):
        layer.vjp(**inputs, wanted=("bias",))
    for wanted in ("bias", ("query",)):
        with pytest.raises(ValueError, match=r"^wanted must be a tuple of bias, .*: inputs and"):
            layer.vjp(**inputs, wanted=wanted, bias=numbers(0, LK))
    with pytest.raises(
        TypeError, match=r"^need_weights is not an argument of MultiHeadAttention.vjp"
    ):
        layer.vjp(**inputs, need_weights=True)
