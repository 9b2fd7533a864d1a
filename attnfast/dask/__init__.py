"""Attention over dask arrays: in chunks of batch rows, heads, queries and keys.

>>> import dask.array as da
>>> from attnfast.dask import attention
>>> q, k, v = (da.random.random((8, 4000, 64), chunks=(4, 1000, 64)) for _ in range(3))
>>> output = attention(q, k, v, is_causal=True, window_size=256)
>>> output.shape, output.chunks[1]
((8, 4000, 64), (1000, 1000, 1000, 1000))
>>> output[:, 2000:2010].compute().shape
(8, 10, 64)

A chunk of queries meets each chunk of keys that it may see in a task of its own; the results are
joined by `attnfast.merge_attention`, in pairs. Of a chunk of keys only the part within the window
is sent. The result is lazy, and depends on the chunks but not on the scheduler or the workers.

Needs the package dask, 2024.8 or later: ``pip install "attnfast[dask]"``.
"""

try:
    import dask
    import dask.array

    if tuple(int(n) for n in dask.__version__.split(".")[:2]) < (2024, 8):
        raise ImportError(f"dask {dask.__version__} is too old")
except (ImportError, AttributeError) as error:
    raise ImportError(
        "attnfast.dask needs the package dask, 2024.8 or later: pip install 'attnfast[dask]'"
    ) from error

from ._functions import attention, attention_backward

__all__ = ["attention", "attention_backward"]
