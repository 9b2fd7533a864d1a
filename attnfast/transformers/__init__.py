"""Attention for the models of transformers: ``attn_implementation="attnfast"``.

>>> import attnfast.transformers
>>> attnfast.transformers.register()
>>> from transformers import BertConfig, BertModel
>>> config = BertConfig(num_hidden_layers=1, attn_implementation="attnfast")
>>> model = BertModel(config)

Padding on either side, causality, windows and packed sequences are read from the masks that
transformers describes, and hidden pairs are skipped, not computed and masked. Needs transformers
5.4.0 or newer, PyTorch, and a model on the CPU.
"""

from . import _library as _library  # first: it says what is missing
from ._register import register

__all__ = ["register"]
