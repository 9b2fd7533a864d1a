"""JAX, if it is a version that this bridge knows, with the handlers of csrc/xla registered."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import _core

OLDEST = "0.5.0"
WANTED = f"attnfast.jax needs JAX {OLDEST} or newer"

try:
    import jax
except ImportError as error:
    raise ImportError(f"{WANTED}, which cannot be imported: pip install 'attnfast[jax]'") from error

OF_ADDITIVE = ("score_weight", "score_bias")
# In the order of the bits and buffers in csrc/xla.
OPTIONS = (
    *("mask", "blocks", "bias", "q_offset", "q_lengths", "kv_lengths", "kv_starts"),
    *("alibi_slopes", "sink_logits", *OF_ADDITIVE, "dropout_seed"),
)
RESULTS = ("lse", "weights")
GRADIENTS = ("query", "key", "value", "bias", "sink_logits", "alibi_slopes", *OF_ADDITIVE)


def interface_version() -> tuple[int, int]:
    """That of XLA's foreign-function interface in this JAX, as the header that it brings says."""
    header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h")
    found = re.findall(r"#define XLA_FFI_API_M(?:AJ|IN)OR (\d+)", header.read_text())
    major, minor = map(int, found)
    return major, minor


def register() -> None:
    """Make the handlers known to XLA, or say why not: XLA itself would, for all of JAX."""
    if jax.__version_info__ < tuple(map(int, OLDEST.split("."))):
        raise ImportError(f"{WANTED}, got {jax.__version__}: pip install --upgrade 'attnfast[jax]'")
    version = interface_version()
    if version not in _core.XLA_VERSIONS:
        known = ", ".join(f"{major}.{minor}" for major, minor in _core.XLA_VERSIONS)
        raise ImportError(
            f"attnfast.jax knows versions {known} of XLA's foreign-function interface, JAX "
            f"{jax.__version__} has {version[0]}.{version[1]}: upgrade attnfast, or install an "
            "older JAX"
        )
    for name, handler in _core.xla_handlers(version).items():
        jax.ffi.register_ffi_target(name, handler, platform="cpu")


def bits(order: Sequence[str], present: Collection[str]) -> np.int64:
    """A number that has a bit for each name that is present."""
    return np.int64(sum(1 << n for n, name in enumerate(order) if name in present))


def call(target: str, results: Any, operands: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Call a handler for arrays; `results` are their shapes and dtypes.

    Under vmap the operands get a new first axis, of length 1 where they are shared, which is one
    more batch axis to the handler. What C has only once for a call, sinks, the vectors of additive
    scores and the places of dropout, may differ between the examples that vmap makes a batch of:
    they are called in turn.
    """
    of_call = ("sink_logits", *OF_ADDITIVE, "dropout_seed")
    once = int(attributes["given"]) & int(bits(OPTIONS, of_call))
    method = "sequential" if once else "expand_dims"
    return jax.ffi.ffi_call(target, results, vmap_method=method)(*operands, **attributes)


register()
