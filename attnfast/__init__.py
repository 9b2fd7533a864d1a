"""Exact attention for NumPy arrays on CPUs.

>>> import numpy as np
>>> import attnfast
>>> q, k, v = np.random.default_rng(0).standard_normal((3, 8, 300, 64), dtype=np.float32)
>>> attnfast.attention(q, k, v, is_causal=True).shape
(8, 300, 64)

Attention:

- `attention`: exact, with masks, biases, padding, grouped heads, causal and sliding windows
- `local_attention`: windows, dilated windows, global tokens, windows about predicted places
- `additive_attention`: the additive scores of Bahdanau et al.
- `attention_varlen`: sequences of different length, packed without padding
- `merge_attention`: joins the results over parts of the keys
- `BlockMask`: a block-sparse pattern for ``mask=``

What it looks at and what it costs:

- `attention_weights`: the weights, or the scores at an earlier stage
- `attention_topk`: the heaviest keys of each query
- `key_importance`: the total weight that each key receives
- `plan`: what a call would do, without doing it

Threads and machine: `num_threads`, `set_num_threads`, `get_num_threads`, `available_isas`,
`show_config`.

Modules to import by name: `attnfast.layers` (layers with weights), `attnfast.plot` (pictures),
`attnfast.reference` (the same functions in plain NumPy, slow, as the meaning of every argument).
"""

from importlib.metadata import version as _version

from .additive import additive_attention
from .api import attention, attention_weights, plan
from .block_mask import BlockMask
from .config import available_isas, get_num_threads, num_threads, set_num_threads, show_config
from .explain import attention_topk, key_importance
from .local import local_attention
from .merge import merge_attention
from .result import AttentionResult, AttentionTopK, Plan
from .varlen import attention_varlen

__version__ = _version("attnfast")

__all__ = [
    "AttentionResult",
    "AttentionTopK",
    "BlockMask",
    "Plan",
    "__version__",
    "additive_attention",
    "attention",
    "attention_topk",
    "attention_varlen",
    "attention_weights",
    "available_isas",
    "get_num_threads",
    "key_importance",
    "local_attention",
    "merge_attention",
    "num_threads",
    "plan",
    "set_num_threads",
    "show_config",
]
