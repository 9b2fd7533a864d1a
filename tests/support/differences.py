"""Gradients of a layer against central differences of its calls."""

from collections.abc import Callable
from typing import Any

import numpy as np

from support.arrays import assert_same

STEP = 1e-6


def numbers(seed: int, shape: Any, dtype: Any = np.float64) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def check_by_differences(
    call: Callable[[], Any], arrays: dict[str, np.ndarray], gradients: dict[str, Any]
) -> None:
    """Compare gradients of a loss with its growth along two random directions for each array.

    `call` returns the loss for what is in the arrays, all of float64.
    """
    assert gradients.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.shape(gradients[name]) == array.shape, name
        for seed in (0, 1):
            direction = numbers(seed, array.shape)
            before = array.copy()
            losses = []
            for sign in (1, -1):
                array[...] = before + sign * STEP * direction
                losses.append(call())
            array[...] = before
            expected = (losses[0] - losses[1]) / (2 * STEP)
            found = float((gradients[name] * direction).sum())
            assert abs(found - expected) <= 1e-7 * (abs(expected) + 10), (name, found, expected)


def loss_of(result: Any) -> tuple[float, list[np.ndarray]]:
    """A loss that depends on every number of what a layer returned, and its derivatives."""
    results = result if isinstance(result, tuple) else (result,)
    grads = [numbers(7 + n, x.shape, x.dtype) for n, x in enumerate(results)]
    return sum(float((x * g).sum()) for x, g in zip(results, grads, strict=True)), grads


def check_layer(layer: Any, inputs: dict[str, Any], weights: dict[str, Any], **options: Any) -> Any:
    """The gradients of a call, of which every number is checked."""
    result, pullback = layer.vjp(**inputs, **options)
    assert_same(result, layer(**inputs, **options))
    gradients = pullback(*loss_of(result)[1])
    check_by_differences(
        lambda: loss_of(layer(**inputs, **options))[0],
        inputs | weights,
        {**gradients.inputs, **gradients.weights},
    )
    return gradients


def float32_like_float64(make: Any, inputs: dict[str, Any], **options: Any) -> None:
    found = []
    for dtype in (np.float64, np.float32):
        given = {name: x.astype(dtype) for name, x in inputs.items()}
        result, pullback = make(dtype).vjp(**given, **options)
        found.append(pullback(*loss_of(result)[1]))
    for exact, actual in zip(*found, strict=True):
        for name, x in actual.items():
            assert x.dtype == np.float32, name
            size = np.abs(exact[name]).max() + 1
            np.testing.assert_allclose(x, exact[name], rtol=0, atol=2e-5 * size, err_msg=name)
