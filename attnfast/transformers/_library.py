"""transformers and PyTorch, if they are versions that this bridge knows."""

OLDEST = "5.4.0"  # the first that says where queries begin by numbers, q_length and q_offset
WANTED = f"attnfast.transformers needs transformers {OLDEST} or newer with PyTorch"

try:
    import torch
    import transformers
except ImportError as error:
    raise ImportError(
        f"{WANTED}, which cannot be imported: pip install 'attnfast[transformers]'"
    ) from error

if [*map(int, transformers.__version__.split(".")[:2])] < [*map(int, OLDEST.split(".")[:2])]:
    raise ImportError(
        f"{WANTED}, got {transformers.__version__}: pip install --upgrade 'attnfast[transformers]'"
    )

from transformers import AttentionInterface  # noqa: E402
from transformers import masking_utils as masking  # noqa: E402
from transformers.utils import import_utils, output_capturing  # noqa: E402

__all__ = ["OLDEST", "AttentionInterface", "import_utils", "masking", "output_capturing", "torch"]
