"""How fast are attnfast.onnx and attnfast.autograd beside what they replace? In turns, one thread.

    OPENBLAS_NUM_THREADS=1 python bench/numpy_bridges.py

`onnx`: a model of one `Attention` node, run by `onnx.reference` with attnfast's operator and with
its own. `autograd`: the gradients of query, key and value, beside those of the formula that
autograd differentiates. Each line: milliseconds of attnfast, of the other, and their ratio.
"""

from __future__ import annotations

from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np
from onnx import parser
from onnx.reference import ReferenceEvaluator

import attnfast
from attnfast.autograd import attention
from attnfast.onnx import Attention
from contest import Call, take_turns

SHAPES = (1, 16, 64), (12, 512, 64), (8, 2048, 64)
ROUNDS = 9
MODEL = """
    <ir_version: 11, opset_import: ["" : 25]>
    look (float[b, h, l, d] q, float[b, h, l, d] k, float[b, h, l, d] v) => (float[b, h, l, d] a)
    {{ a = Attention <is_causal = {causal}> (q, k, v) }}
"""


def onnx_calls(causal: bool, arrays: Any) -> dict[str, Call]:
    """A model run in both ways."""
    model = parser.parse_model(MODEL.format(causal=int(causal)))
    feeds = {name: array[None] for name, array in zip("qkv", arrays, strict=True)}
    ways = {"attnfast": {"new_ops": [Attention]}, "onnx": {}}
    runs = {name: ReferenceEvaluator(model, **options) for name, options in ways.items()}
    return {name: lambda run=run: run.run(None, feeds) for name, run in runs.items()}


def autograd_calls(causal: bool, arrays: Any) -> dict[str, Call]:
    """Gradients in both ways."""
    length = arrays.shape[2]
    mask = np.tri(length, dtype=bool) if causal else None

    def fused(query: Any, key: Any, value: Any) -> Any:
        return (attention(query, key, value, is_causal=causal) ** 2).sum()

    def formula(query: Any, key: Any, value: Any) -> Any:
        scores = anp.matmul(query, anp.swapaxes(key, -1, -2)) / 8
        if mask is not None:
            scores = anp.where(mask, scores, -1e9)
        weights = anp.exp(scores - anp.max(scores, axis=-1, keepdims=True))
        output = anp.matmul(weights / anp.sum(weights, axis=-1, keepdims=True), value)
        return (output**2).sum()

    found = {name: autograd.grad(f, (0, 1, 2)) for name, f in (("attnfast", fused), ("", formula))}
    results = [gradient(*arrays) for gradient in found.values()]
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
    return {name: lambda gradient=gradient: gradient(*arrays) for name, gradient in found.items()}


def main() -> None:
    """Measure all, a line for each."""
    attnfast.set_num_threads(1)
    rng = np.random.default_rng(0)
    for bridge, make in (("onnx", onnx_calls), ("autograd", autograd_calls)):
        for causal in (False, True):
            for shape in SHAPES:
                arrays = rng.standard_normal((3, *shape), dtype=np.float32)
                own, other = take_turns(make(causal, arrays), ROUNDS).values()
                size = " x ".join(map(str, shape))
                words = f"{bridge:9}{'causal' if causal else 'full':7} {size:13}"
                times = f"{1e3 * own:8.3f} {1e3 * other:8.3f} ms"
                print(f"{words} {times} {other / own:5.1f} x", flush=True)


if __name__ == "__main__":
    main()
