"""The names by which transformers finds the attention function and the mask function."""

from ._attend import attend
from ._library import AttentionInterface, masking
from ._mask import make_mask

# transformers looks for these in the name of an implementation, and then expects its own.
TAKEN = ("eager", "sdpa", "flash", "flex", "paged", "|", "/", ":", "@")


def register(name: str = "attnfast") -> None:
    """Register attnfast with transformers, for models with ``attn_implementation=name``.

    Registers an attention function and the mask function that goes with it. Models that are loaded
    or built with that name, or switched to it by ``model.set_attn_implementation(name)``, compute
    their attention with attnfast, in training as well. Calling this twice does no harm.

    Parameters
    ----------
    name : str
        What to write for ``attn_implementation``.

    Raises
    ------
    ValueError
        For a name that transformers reads as one of its own implementations.

    Examples
    --------
    >>> import attnfast.transformers
    >>> attnfast.transformers.register()
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    >>> config = LlamaConfig(**sizes, num_attention_heads=4, attn_implementation="attnfast")
    >>> model = LlamaForCausalLM(config)
    """
    found = [part for part in TAKEN if part in name]
    if found or not name:
        raise ValueError(
            f"name must not be empty or contain one of {', '.join(map(repr, TAKEN))}, by which "
            f"transformers knows its own implementations, got {name!r}: write 'attnfast'"
        )
    AttentionInterface.register(name, attend)
    masking.AttentionMaskInterface.register(name, make_mask)
