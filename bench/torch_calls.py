"""What a small call of attnfast.torch costs beyond PyTorch's own of the same arrays, in turns.

    python bench/torch_calls.py [--rounds 21]

One head of 4 queries and keys of 64 numbers, one thread. Prints for each kind of call the medians
of both in microseconds, and the median of their difference. Needs PyTorch.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

import attnfast
import attnfast.torch

Call = Callable[[], Any]
own = torch.nn.functional.scaled_dot_product_attention
ours = attnfast.torch.scaled_dot_product_attention
attention = attnfast.torch.attention

GENERATOR = torch.Generator().manual_seed(0)
PLAIN = torch.randn(3, 1, 1, 4, 64, generator=GENERATOR).unbind()
LEARNED = [x.clone().requires_grad_() for x in PLAIN]
MASK = torch.randn(4, 4, generator=GENERATOR)
LOSS = torch.ones(1, 1, 4, 64)


def gradients(function: Callable[..., Any]) -> Any:
    """Take the gradients of a call by query, key and value."""
    return torch.autograd.grad(function(*LEARNED), LEARNED, LOSS)


# Of each row: PyTorch's call, that of attnfast, and whether attnfast is active meanwhile.
CASES: dict[str, tuple[Call, Call, bool]] = {
    "attention": (lambda: own(*PLAIN), lambda: attention(*PLAIN), False),
    "scaled_dot_product_attention": (lambda: own(*PLAIN), lambda: ours(*PLAIN), False),
    "  with a float mask": (lambda: own(*PLAIN, MASK), lambda: ours(*PLAIN, MASK), False),
    "PyTorch's function, active": (lambda: own(*PLAIN), lambda: own(*PLAIN), True),
    "  with a float mask, active": (lambda: own(*PLAIN, MASK), lambda: own(*PLAIN, MASK), True),
    "attention, gradients recorded": (lambda: own(*LEARNED), lambda: attention(*LEARNED), False),
    "  with its gradients": (lambda: gradients(own), lambda: gradients(attention), False),
}


def microseconds(call: Call, calls: int = 300) -> float:
    """Return the time of one of some calls, after a few that are not counted."""
    for _ in range(5):
        call()
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls * 1e6


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    torch.set_num_threads(1)
    attnfast.set_num_threads(1)
    print(f"attnfast {attnfast.__version__}, PyTorch {torch.__version__}; us")
    print(f"{'call':32} {'PyTorch':>8} {'attnfast':>8}   more")
    for name, (theirs, mine, active) in CASES.items():
        times = []
        for _ in range(options.rounds):
            first = microseconds(theirs)
            with attnfast.torch.activate() if active else nullcontext():
                times.append((first, microseconds(mine)))
        a, b = np.array(times).T
        print(f"{name:32} {np.median(a):8.1f} {np.median(b):8.1f} {np.median(b - a):+6.1f}")


if __name__ == "__main__":
    main()
