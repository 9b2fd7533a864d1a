"""Pictures of attention: weights as heat maps and coloured texts, heaviest keys as arcs, blocks.

Every function returns a :class:`matplotlib.figure.Figure` and shows nothing: ``path=`` or
``figure.savefig`` writes it, a notebook with ``%matplotlib inline`` displays it. pyplot is not
used, and matplotlib is imported only to draw: ``pip install "attnfast[plot]"`` installs it.
:func:`text_html` returns HTML, and needs no matplotlib.
"""

from .arcs import topk
from .blocks import window
from .heat import weights
from .words import text, text_html

__all__ = ["text", "text_html", "topk", "weights", "window"]


def __dir__() -> list[str]:
    return __all__
