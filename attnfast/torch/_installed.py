"""Whether there is a PyTorch that `attnfast.torch` can use."""

import re

OLDEST = (2, 5)  # the first with `enable_gqa`, and with vmap of custom operators

try:
    import torch
except ImportError as error:
    raise ImportError(
        "attnfast.torch needs PyTorch, which is not installed: pip install 'attnfast[torch]'"
    ) from error

if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < OLDEST:
    raise ImportError(
        f"attnfast.torch needs PyTorch {OLDEST[0]}.{OLDEST[1]} or newer, got {torch.__version__}: "
        "pip install --upgrade 'attnfast[torch]'"
    )
