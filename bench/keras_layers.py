"""How fast are the layers of attnfast.keras beside Keras's own? In turns, in one process.

    KERAS_BACKEND=torch python bench/keras_layers.py [--rounds 9] [--cases padded,window]

Prints a row for each case: medians of both, and the median of Keras's time over ours. `forward` is
`predict_on_batch`, `fit step` is `train_on_batch`, which the backend numpy does not have. Needs
Keras and the backend.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np

import attnfast
import attnfast.keras


class Case(NamedTuple):
    layer: str
    batch: int
    length: int
    width: int
    options: dict[str, Any]
    call: dict[str, Any] | None = None
    padded: bool = False


HEADS: dict[str, Any] = {"num_heads": 8, "key_dim": 32}
GROUPS: dict[str, Any] = {"num_query_heads": 8, "num_key_value_heads": 2, "head_dim": 32}
CASES = {
    "short": Case("MultiHeadAttention", 16, 64, 256, HEADS),
    "full": Case("MultiHeadAttention", 4, 512, 256, HEADS),
    "causal": Case("MultiHeadAttention", 1, 2048, 256, HEADS, {"use_causal_mask": True}),
    "padded": Case("MultiHeadAttention", 8, 512, 256, HEADS, padded=True),
    "dropout": Case("MultiHeadAttention", 4, 512, 256, {**HEADS, "dropout": 0.1}),
    "window": Case(
        *("MultiHeadAttention", 1, 2048, 256, {**HEADS, "sliding_window": 128}),
        {"use_causal_mask": True},
    ),
    "grouped": Case("GroupQueryAttention", 1, 1024, 256, GROUPS, {"use_causal_mask": True}),
    "dot": Case("Attention", 4, 512, 64, {}),
    "additive": Case("AdditiveAttention", 4, 128, 64, {}),
}


def model_of(module: Any, case: Case) -> Any:
    x = keras.Input((case.length, case.width))
    inputs, masks = [x], {}
    if case.padded:
        real = keras.Input((case.length,), dtype="bool")
        inputs.append(real)
        masks = {"value_mask": real}
    layer = getattr(module, case.layer)(**case.options)
    tokens = issubclass(type(layer), keras.layers.Attention)
    call = case.call or {}
    output = layer([x, x], **call) if tokens else layer(x, x, **masks, **call)
    made = keras.Model(inputs, output)
    made.compile(keras.optimizers.SGD(1e-3), "mse")
    return made


def arrays_of(case: Case) -> tuple[list[Any], Any]:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((case.batch, case.length, case.width), dtype=np.float32)]
    if case.padded:
        lengths = rng.integers(32, case.length, case.batch, endpoint=True)
        arrays.append(np.arange(case.length) < lengths[:, None])
    return arrays, np.zeros_like(arrays[0])


def median_times(calls: list[Callable[[], Any]], rounds: int) -> tuple[float, float, float]:
    for call in calls * 2:
        call()
    times = np.empty((rounds, 2))
    for row in times:
        for n, call in enumerate(calls):
            begin = time.perf_counter()
            call()
            row[n] = time.perf_counter() - begin
    ours, theirs = np.median(times, 0)
    return ours, theirs, float(np.median(times[:, 1] / times[:, 0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cases", default=",".join(CASES))
    options = parser.parse_args()
    backend = keras.backend.backend()
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    isa = attnfast.show_config("dicts")["isa"]
    print(f"attnfast {attnfast.__version__}, Keras {keras.__version__} on {backend}, {isa}, ")
    print(f"{cpus} CPUs\n\n| case | step | attnfast.keras | Keras | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for name in options.cases.split(","):
        case = CASES[name]
        try:
            both = [model_of(module, case) for module in (attnfast.keras, keras.layers)]
        except ValueError:  # a window, before Keras 3.15
            continue
        both[0].set_weights(both[1].get_weights())
        arrays, wanted = arrays_of(case)
        steps = {"forward": [partial(m.predict_on_batch, arrays) for m in both]}
        if backend != "numpy":
            steps["fit step"] = [partial(m.train_on_batch, arrays, wanted) for m in both]
        for step, calls in steps.items():
            ours, theirs, ratio = median_times(calls, options.rounds)
            print(
                f"| {name} | {step} | {1e3 * ours:.3g} ms | {1e3 * theirs:.3g} ms "
                f"| {ratio:.2f} x |",
                flush=True,
            )


if __name__ == "__main__":
    main()
