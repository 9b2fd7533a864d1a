"""Pictures of attention: weights as heat maps, heaviest keys as arcs, blocks that are computed.

Every function returns a :class:`matplotlib.figure.Figure` and shows nothing: ``path=`` or
``figure.savefig`` writes it, a notebook with ``%matplotlib inline`` displays it. pyplot is not
used, and matplotlib is imported only to draw: ``pip install "attnfast[plot]"`` installs it.
"""

from .arcs import topk
from .blocks import window
from .heat import weights

__all__ = ["topk", "weights", "window"]


def __dir__() -> list[str]:
    return __all__
