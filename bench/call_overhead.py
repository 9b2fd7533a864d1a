"""What a call costs beyond its arithmetic: each option of a call that has next to nothing to do.

    python bench/call_overhead.py --functions attention --rounds 50

One query, 16 keys, one thread. Prints for each option the microseconds of the call, and the median
over rounds of how much longer it takes than the plain call beside it.
"""

import argparse
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import attnfast

RNG = np.random.default_rng(0)
Q = RNG.standard_normal((1, 2, 1, 64), dtype=np.float32)
K, V = RNG.standard_normal((2, 1, 2, 16, 64), dtype=np.float32)
LENGTHS = np.array([12])
MASK = np.arange(16) < 12
HEADS = np.array([0.5, 0.25], np.float32)
CU_Q, CU_K = np.array([0, 1]), np.array([0, 16])

ONE_CALL: dict[str, dict[str, Any]] = {
    "kv_lengths": {"kv_lengths": LENGTHS},
    "kv_lengths, int": {"kv_lengths": 12},
    "kv_lengths, list": {"kv_lengths": [12]},
    "kv_lengths, int32": {"kv_lengths": LENGTHS.astype(np.int32)},
    "q_lengths": {"q_lengths": np.array([1])},
    "kv_starts": {"kv_starts": np.array([2])},
    "q_offset": {"q_offset": 15},
    "q_offset, array": {"q_offset": np.array([15])},
    'q_offset, "end"': {"q_offset": "end"},
    "is_causal, q_offset": {"is_causal": True, "q_offset": 15},
    "window_size, q_offset": {"window_size": (8, 0), "q_offset": 15},
    "scale": {"scale": 0.125},
    "softcap": {"softcap": 30.0},
    "alibi_slopes, q_offset": {"alibi_slopes": HEADS, "q_offset": 15},
    "sink_logits": {"sink_logits": HEADS},
    "dropout": {"dropout": 0.1, "dropout_seed": 7},
    "num_threads": {"num_threads": 1},
}
PAIRS: dict[str, dict[str, Any]] = {
    "mask": {"mask": MASK},
    "bias": {"bias": np.where(MASK, 0, -np.inf).astype(np.float32)},
    "bias, float64": {"bias": np.where(MASK, 0, -np.inf)},
}
RETURNED: dict[str, dict[str, Any]] = {
    "return_lse": {"return_lse": True},
    "return_weights": {"return_weights": True},
    "out": {"out": np.empty_like(Q)},
}
TOGETHER: dict[str, Any] = {
    "mask": MASK,
    "window_size": (12, 0),
    "is_causal": True,
    "q_offset": 15,
    "q_lengths": np.array([1]),
    "kv_lengths": LENGTHS,
    "kv_starts": np.array([2]),
    "scale": 0.125,
    "softcap": 30.0,
    "alibi_slopes": HEADS,
    "sink_logits": HEADS,
    "num_threads": 1,
}
TRAINED: dict[str, dict[str, Any]] = {
    "wanted": {"wanted": ("query", "value")},
    "wanted, bias": {"wanted": ("bias",), **PAIRS["bias"]},
    "wanted, sink_logits": {"wanted": ("sink_logits",), "sink_logits": HEADS},
    "grad_lse": {"grad_lse": np.ones((1, 2, 1), np.float32)},
}


def swapped(x: Any) -> Any:
    """Return an array in the memory order (B, L, H, D)."""
    return np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)


def rows(x: Any) -> Any:
    """Return an array of packed rows (L, H, D)."""
    return np.ascontiguousarray(x[0].swapaxes(0, 1))


def without(names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return the options of one call that a function with fewer of them has."""
    return {label: o for label, o in ONE_CALL.items() if not {*names} & {*o}}


def backward() -> Callable[..., Any]:
    """Return the gradients of the plain call, whatever the options: only their time counts."""
    output, lse, _ = attnfast.attention(Q, K, V, return_lse=True)

    def run(**options: Any) -> Any:
        return attnfast.attention_backward(output, Q, K, V, output, lse, **options)

    return run


def varlen(**options: Any) -> Any:
    """Attend within one packed sequence."""
    return attnfast.attention_varlen(PACKED[0], PACKED[1], PACKED[2], CU_Q, CU_K, **options)


PACKED = rows(Q), rows(K), rows(V)
OF_WEIGHTS = without(("dropout",)) | PAIRS
TWO = np.concatenate([Q, Q], axis=2)
LOCAL = {
    "dilation": {"dilation": 2, "q_offset": 15},
    "global_tokens": {"global_tokens": [0], "q_offset": 15},
    "centers": {"centers": np.full((1, 2, 1), 8.0), "sigma": 2.0},
}
WEIGHT = np.ones(64, np.float32)

# Of each function: a call, and its options.
FUNCTIONS: dict[str, tuple[Callable[..., Any], dict[str, dict[str, Any]]]] = {
    "attention": (
        lambda **o: attnfast.attention(Q, K, V, **o),
        ONE_CALL | PAIRS | RETURNED | {"all together": TOGETHER},
    ),
    "attention, 2 queries": (
        lambda query=TWO: attnfast.attention(query, K, V),
        {"in the order (B, L, H, D)": {"query": swapped(TWO)}},
    ),
    "attention_backward": (backward(), ONE_CALL | PAIRS | TRAINED | {"all together": TOGETHER}),
    "local_attention": (
        lambda **o: attnfast.local_attention(Q, K, V, 16, **({"q_offset": 15} | o)),
        without(("window_size",)) | PAIRS | LOCAL,
    ),
    "additive_attention": (
        lambda **o: attnfast.additive_attention(Q, K, V, **o),
        without(("scale",)) | PAIRS | {"score_weight": {"score_weight": WEIGHT}},
    ),
    "attention_varlen": (
        varlen,
        without(("q_lengths", "kv_lengths", "kv_starts")) | {"return_lse": {"return_lse": True}},
    ),
    "attention_weights": (lambda **o: attnfast.attention_weights(Q, K, **o), OF_WEIGHTS),
    "attention_topk": (lambda **o: attnfast.attention_topk(Q, K, 4, **o), OF_WEIGHTS),
    "key_importance": (lambda **o: attnfast.key_importance(Q, K, **o), OF_WEIGHTS),
}


def microseconds(call: Callable[..., Any], options: dict[str, Any], calls: int) -> float:
    """Return the time of one of some calls."""
    began = time.perf_counter()
    for _ in range(calls):
        call(**options)
    return (time.perf_counter() - began) / calls * 1e6


def measure(name: str, rounds: int, calls: int) -> None:
    """Print the rows of a function."""
    call, options = FUNCTIONS[name]
    plain: list[float] = []
    times: dict[str, list[float]] = {label: [] for label in options}
    for i in range(rounds + 1):
        for label, given in options.items():
            beside = microseconds(call, {}, calls)
            taken = microseconds(call, given, calls)
            if i:
                plain.append(beside)
                times[label].append(taken - beside)
    base = float(np.median(plain))
    print(f"{name:27} {base:8.2f}")
    for label, more in times.items():
        print(f"  {label:25} {base + np.median(more):8.2f} {np.median(more):+8.2f}", flush=True)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--functions", default="", metavar="REGEX", help="those whose name it finds"
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=100, help="calls that are timed at once")
    options = parser.parse_args()
    attnfast.set_num_threads(1)
    print(f"{'call':27} {'us':>8}   beyond the plain call")
    for name in FUNCTIONS:
        if re.search(options.functions, name):
            measure(name, options.rounds, options.calls)


if __name__ == "__main__":
    main()
