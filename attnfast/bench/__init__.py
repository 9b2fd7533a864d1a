"""`attnfast bench`: attnfast against plain NumPy and the libraries found installed.

Cases (`case`) are data (`cases`, `family`), what they call says `functions`, their arrays come from
a seed (`inputs`), every contestant (`peers`) runs in a process of its own (`worker`, `processes`)
and is timed in turn (`runner`, `turns`); what was measured (`results`) is printed (`report`),
stored, compared (`compare`), judged (`targets`, `target_table`) and drawn (`plot`).
"""

from .command import add_arguments, run

__all__ = ["add_arguments", "run"]
