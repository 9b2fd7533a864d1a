"""Exact attention for NumPy arrays on CPUs."""

from importlib.metadata import version

from .additive import additive_attention
from .api import attention, attention_weights, plan
from .block_mask import BlockMask
from .config import available_isas, get_num_threads, num_threads, set_num_threads, show_config
from .explain import attention_topk, key_importance
from .local import local_attention
from .merge import merge_attention
from .result import AttentionResult, AttentionTopK, Plan
from .varlen import attention_varlen

__version__ = version("attnfast")

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
