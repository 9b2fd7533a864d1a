"""The contestants: attnfast itself, plain NumPy, and the libraries found installed.

Each module here wraps one of them in a class with the same members (`Contestant`). They are
imported only inside their own worker process, so that no two thread pools share a process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from ..case import Case
from ..functions import FUNCTIONS
from ..functions.attention import FORWARD, FULL, LOOP, SINGLE
from ..inputs import Inputs

OWN, PLAIN = "attnfast", "numpy"
FLEX = "flex_attention"  # a variant that takes seconds to compile for a case


class Unsupported(Exception):
    """A contestant cannot run this case; the message says why."""


@dataclass(frozen=True)
class Prepared:
    """One way to run a case: a call for each set of keys, and how to read a call's result.

    `tolerance` is the error that a right result may have beyond that of the case, where a library
    itself computes in a lower precision.
    """

    calls: Sequence[Callable[[], Any]]
    output: Callable[[Any], Any]  # -> what the function is to return, as NumPy arrays
    tolerance: float = 0.0


class Contestant(Protocol):
    """What a worker needs of a library; built with the number of threads it may use."""

    version: str

    def variants(self, case: Case, inputs: Inputs) -> dict[str, Callable[[], Prepared]]:
        """Ways to run the case, by name, each built only when it is tried."""
        ...


@dataclass(frozen=True)
class Entry:
    """Where a contestant lives, what must be importable, how often it holds the inputs.

    `functions` are those it can be asked for.
    """

    module: str
    class_name: str
    needs: tuple[str, ...]
    copies: int
    functions: frozenset[str] = frozenset({"attention", "stored"})


ALL = frozenset(FUNCTIONS)
TRAINING = frozenset({"training", "additive_training"})

CONTESTANTS: dict[str, Entry] = {
    OWN: Entry("own", "Attnfast", (), 1, ALL),
    PLAIN: Entry("plain_numpy", "PlainNumpy", (), 1, ALL),
    FULL: Entry("yardsticks", "Full", (), 2, ALL),
    LOOP: Entry("yardsticks", "Loop", (), 1, ALL),
    SINGLE: Entry("yardsticks", "Full", (), 2),
    FORWARD: Entry("yardsticks", "Full", (), 1, TRAINING),
    "torch": Entry("torch_peer", "Torch", ("torch",), 1, ALL),
    "onnxruntime": Entry("onnxruntime_peer", "OnnxRuntime", ("onnxruntime", "onnx"), 2),
    "openvino": Entry("openvino_peer", "OpenVino", ("openvino",), 2),
    "jax": Entry(
        "jax_peer", "Jax", ("jax", "jaxlib"), 2, frozenset({"attention", "stored", "training"})
    ),
    "llama.cpp": Entry("llama_cpp_peer", "LlamaCpp", ("llama_cpp",), 3),
}
YARDSTICKS: tuple[str, ...] = (FULL, LOOP, SINGLE, FORWARD)  # attnfast too, called otherwise
HOUSE: tuple[str, ...] = (OWN, PLAIN, *YARDSTICKS)  # what needs no other library
PEERS: tuple[str, ...] = tuple(name for name in CONTESTANTS if name not in HOUSE)


def installed_peers() -> list[str]:
    """Peers whose packages can be imported here, without importing them."""
    return [name for name in PEERS if all(find_spec(need) for need in CONTESTANTS[name].needs)]


def build(name: str, threads: int) -> Contestant:
    """Import and set up a contestant in this process."""
    entry = CONTESTANTS[name]
    contestant: Contestant = getattr(import_module(f"{__name__}.{entry.module}"), entry.class_name)(
        threads
    )
    return contestant
