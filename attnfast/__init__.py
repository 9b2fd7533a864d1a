"""Exact attention for NumPy arrays on CPUs."""

from importlib.metadata import version

from .api import attention, attention_weights, plan
from .config import available_isas, get_num_threads, num_threads, set_num_threads, show_config
from .merge import merge_attention
from .result import AttentionResult, Plan

__version__ = version("attnfast")

__all__ = [
    "AttentionResult",
    "Plan",
    "__version__",
    "attention",
    "attention_weights",
    "available_isas",
    "get_num_threads",
    "merge_attention",
    "num_threads",
    "plan",
    "set_num_threads",
    "show_config",
]
