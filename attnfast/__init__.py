"""Exact attention for NumPy arrays on CPUs.

>>> import numpy as np
>>> import attnfast
>>> q, k, v = np.random.default_rng(0).standard_normal((3, 8, 300, 64), dtype=np.float32)
>>> attnfast.attention(q, k, v, is_causal=True).shape
(8, 300, 64)

Attention:

- `attention`: exact, with masks, biases, padding, grouped heads, causal and sliding windows
- `local_attention`: windows, dilated windows, global tokens, windows around predicted positions
- `additive_attention`: the additive scores of Bahdanau et al.
- `attention_varlen`: sequences of different length, packed without padding
- `merge_attention`: joins results over parts of the keys
- `attention_backward`, `local_attention_backward`, `additive_attention_backward`,
  `attention_varlen_backward`, `merge_attention_backward`: gradients
- `vjp`: a call and its gradients in one: returns the result and a function for its gradients
- `BlockMask`: a block-sparse pattern for ``mask=``
- `KVCache`: keys and values of texts that grow, for decoding; `PagedKVCache`: in pages that texts
  share
- `rotate`: rotary position embedding
- `quantize`: keys and values in 8 bits, with scales

Weights and cost:

- `attention_weights`: the weights, or the scores at an earlier stage
- `attention_topk`: the heaviest keys of each query
- `key_importance`: the total weight that each key receives
- `plan`: what a call would do, without doing it

Threads and machine: `num_threads`, `set_num_threads`, `get_num_threads`, `available_isas`,
`show_config`. For compiled code: `get_include`.

Modules: `attnfast.layers` (layers with weights), `attnfast.plot` (pictures), `attnfast.reference`
(the same functions in plain NumPy: slow, but they define what every argument means). Each is loaded
when it is first used. Only by name: `attnfast.torch`, the functions on PyTorch's tensors;
`attnfast.jax`, on JAX's arrays; `attnfast.keras`, layers for Keras; `attnfast.transformers`, for
the models of transformers; `attnfast.autograd`, for the package autograd; `attnfast.onnx`, models
of ONNX that use them; `attnfast.dask`, for arrays in chunks.
"""

import importlib as _importlib
import typing as _typing
from importlib.metadata import version as _version
from importlib.util import find_spec as _find_spec

if _find_spec(f"{__name__}._core") is None:
    raise ImportError(
        f"attnfast was imported from its source folder, {__path__[0]}, where its compiled part is "
        "not built: to use the installed package, run Python in another folder; to work on the "
        "source, install it in place as CONTRIBUTING.md says under Build"
    )

from .additive import AdditiveGradients, additive_attention, additive_attention_backward
from .api import attention, attention_weights
from .block_mask import BlockMask
from .cache import KVCache
from .config import (
    available_isas,
    get_include,
    get_num_threads,
    num_threads,
    set_num_threads,
    show_config,
)
from .explain import attention_topk, key_importance
from .gradient import AttentionGradients, attention_backward
from .local import LocalGradients, local_attention, local_attention_backward
from .merge import MergeGradients, merge_attention, merge_attention_backward
from .paged import PagedKVCache
from .planning import plan
from .pullback import vjp
from .quantization import quantize
from .result import AttentionResult, AttentionTopK, Plan
from .rotary import rotate
from .varlen import attention_varlen, attention_varlen_backward

if _typing.TYPE_CHECKING:
    from . import layers as layers
    from . import plot as plot
    from . import reference as reference

__version__ = _version("attnfast")

__all__ = [
    "AdditiveGradients",
    "AttentionGradients",
    "AttentionResult",
    "AttentionTopK",
    "BlockMask",
    "KVCache",
    "LocalGradients",
    "MergeGradients",
    "PagedKVCache",
    "Plan",
    "__version__",
    "additive_attention",
    "additive_attention_backward",
    "attention",
    "attention_backward",
    "attention_topk",
    "attention_varlen",
    "attention_varlen_backward",
    "attention_weights",
    "available_isas",
    "get_include",
    "get_num_threads",
    "key_importance",
    "local_attention",
    "local_attention_backward",
    "merge_attention",
    "merge_attention_backward",
    "num_threads",
    "plan",
    "quantize",
    "rotate",
    "set_num_threads",
    "show_config",
    "vjp",
]
_MODULES = ("layers", "plot", "reference")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])


if not _typing.TYPE_CHECKING:  # so that type checkers know which names there are

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return _importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
