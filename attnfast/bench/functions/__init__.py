"""The functions that are measured: what a call of each takes, counts as work, and must return.

One module for each kind of function. Contestants and the runner know them by `Attention`, whose
methods the others replace where they differ.
"""

from __future__ import annotations

from ..case import Case
from .additive import Additive
from .attention import Attention
from .block_mask import Blocks
from .explain import Importance, TopK
from .local import Local
from .stored import Stored
from .training import AdditiveTraining, Training
from .varlen import Packed

__all__ = ["FUNCTIONS", "Attention", "function_of"]

FUNCTIONS: dict[str, Attention] = {
    "attention": Attention(),
    "local_attention": Local(),
    "block_mask": Blocks(),
    "additive_attention": Additive(),
    "attention_topk": TopK(),
    "key_importance": Importance(),
    "attention_varlen": Packed(),
    "stored": Stored(),
    "training": Training(),
    "additive_training": AdditiveTraining(),
}


def function_of(case: Case) -> Attention:
    """What the case calls."""
    return FUNCTIONS[case.function]
