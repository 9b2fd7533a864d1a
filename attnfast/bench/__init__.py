"""`attnfast bench`: attnfast against plain NumPy and the libraries found installed.

Cases (`case`) are data (`cases`, `family`); `functions` says what they call, and their arrays come
from a seed (`inputs`). Every contestant (`peers`) runs in a process of its own (`worker`,
`processes`) and takes turns with the others (`runner`, `turns`). A run (`options`, `measure`) is
printed (`report`) and stored (`results`); `command` also compares (`compare`) and draws (`plot`)
it.
"""

from .command import add_arguments, run

__all__ = ["add_arguments", "run"]
