"""How fast is attnfast.jax beside JAX's own attention? Both compiled, in turns, in one process.

    python bench/jax_bridge.py [--rounds 15] [--cases causal,window]

Prints a row for each case: medians of both, and the median of JAX's time over ours. `forward` is
one compiled call, `training` a call and the gradients of query, key and value. Needs JAX.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import attnfast
from attnfast.jax import dot_product_attention

SECONDS = 0.15  # of a turn


class Case(NamedTuple):
    shape: tuple[int, int, int, int]  # B, T, N, H
    kv_heads: int
    options: dict[str, Any]
    dtype: str = "float32"


CASES = {
    "tiny": Case((1, 16, 1, 64), 1, {}),
    "full": Case((8, 128, 12, 64), 12, {}),
    "long": Case((1, 2048, 16, 64), 16, {}),
    "causal": Case((1, 2048, 16, 64), 16, {"is_causal": True}),
    "grouped": Case((1, 1024, 32, 128), 8, {"is_causal": True}),
    "window": Case((1, 4096, 8, 64), 8, {"is_causal": True, "local_window_size": (256, 0)}),
    "padded": Case((8, 512, 12, 64), 12, {"key_value_seq_lengths": True}),
    "bfloat16": Case((1, 1024, 16, 64), 16, {"is_causal": True}, "bfloat16"),
}


def arrays_of(case: Case) -> tuple[list[Any], dict[str, Any]]:
    rng = np.random.default_rng(0)
    batch, length, heads, size = case.shape
    shapes = [(batch, length, n, size) for n in (heads, case.kv_heads, case.kv_heads)]
    options = dict(case.options)
    if "key_value_seq_lengths" in options:
        lengths = rng.integers(32, length, batch, endpoint=True)
        options["key_value_seq_lengths"] = jnp.asarray(lengths, jnp.int32)
    return [jnp.asarray(rng.standard_normal(s), case.dtype) for s in shapes], options


def compiled(function: Callable[..., Any], training: bool, options: dict[str, Any]) -> Any:
    call = partial(function, **options)
    if not training:
        return jax.jit(call)

    def step(q: Any, k: Any, v: Any) -> Any:
        output, pullback = jax.vjp(call, q, k, v)
        return pullback(output)

    return jax.jit(step)


def turn(call: Callable[..., Any], arrays: list[Any]) -> float:
    """Seconds of one call, the mean over a turn.

    The first is not counted: during it the system takes back the memory of the other contestant,
    2 GB and 0.2 s for JAX's gradients of 4,096 tokens.
    """
    jax.block_until_ready(call(*arrays))
    begin, calls = time.perf_counter(), 0
    while time.perf_counter() - begin < SECONDS or calls == 0:
        jax.block_until_ready(call(*arrays))
        calls += 1
    return (time.perf_counter() - begin) / calls


def measure(case: Case, training: bool, rounds: int) -> tuple[float, float, float]:
    arrays, options = arrays_of(case)
    both = [
        compiled(function, training, options)
        for function in (dot_product_attention, jax.nn.dot_product_attention)
    ]
    for call in both:
        jax.block_until_ready(call(*arrays))
    times = np.array([[turn(call, arrays) for call in both] for _ in range(rounds)])
    ours, theirs = np.median(times, 0)
    return ours, theirs, float(np.median(times[:, 1] / times[:, 0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cases", default=",".join(CASES))
    options = parser.parse_args()
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    isa = attnfast.show_config("dicts")["isa"]
    print(f"attnfast {attnfast.__version__}, JAX {jax.__version__}, {platform.machine()}, {isa}, ")
    print(f"{cpus} CPUs\n\n| case | B x T x heads x H | step | attnfast.jax | JAX | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in options.cases.split(","):
        case = CASES[name]
        batch, length, heads, size = case.shape
        grouped = f"/{case.kv_heads}" if case.kv_heads != heads else ""
        shape = f"{batch} x {length} x {heads}{grouped} x {size}"
        for training in (False, True):
            ours, theirs, ratio = measure(case, training, options.rounds)
            step = "training" if training else "forward"
            print(
                f"| {name} | {shape} | {step} | {1e3 * ours:.3g} ms | {1e3 * theirs:.3g} ms "
                f"| {ratio:.2f} x |",
                flush=True,
            )


if __name__ == "__main__":
    main()
