"""PyTorch's ``scaled_dot_product_attention``, computed by attnfast where it can be."""

import importlib.util
import math
from typing import Any

import torch
from torch.autograd import forward_ad

import attnfast

from ._call import run
from ._tensors import DTYPES, PLAIN, have_memory

_aten = torch.ops.aten.scaled_dot_product_attention.default


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention with the name and the arguments of PyTorch's function, computed by attnfast.

    What attnfast does not compute is handed to PyTorch: other devices and dtypes, nested tensors
    and other subclasses, empty tensors, batch axes that broadcast, wrong arguments (whose errors
    are PyTorch's), ``dropout_p=1``.

    Parameters
    ----------
    query, key, value : Tensor, ``(..., H, L, E)``, ``(..., H, S, E)``, ``(..., H, S, Ev)``
        As for ``torch.nn.functional.scaled_dot_product_attention``.
    attn_mask : Tensor, optional
        Of bool, True where a query may attend, or of the dtype of `query`, added to the scores. It
        may require gradients.
    dropout_p : float
        Probability with which a weight is dropped. The seed is drawn from PyTorch's generator; the
        weights that it drops are others than in PyTorch's own function.
    is_causal : bool
        Query ``i`` sees key ``j`` if ``j <= i``, whatever the lengths: not aligned at the end.
    scale : float, optional
        Default ``1 / sqrt(E)``.
    enable_gqa : bool
        Whether `key` and `value` may have fewer heads than `query`.

    Returns
    -------
    Tensor
        ``(..., H, L, Ev)``, with the gradients of :func:`attention`. A query that sees no key
        gives zeros.

    Raises
    ------
    RuntimeError
        As PyTorch's function.

    Examples
    --------
    >>> import torch
    >>> from attnfast.torch import scaled_dot_product_attention
    >>> q, k, v = torch.randn(3, 2, 8, 50, 64).unbind()
    >>> mine = scaled_dot_product_attention(q, k, v, is_causal=True)
    >>> own = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    >>> torch.allclose(mine, own, atol=1e-5)
    True
    """
    tensors = (query, key, value) if attn_mask is None else (query, key, value, attn_mask)
    if not torch.is_autocast_enabled("cpu") and _fits(
        *(tensors, dropout_p, is_causal, scale, enable_gqa)
    ):
        return _compute(query, key, value, attn_mask, dropout_p, is_causal, scale)
    return torch.nn.functional.scaled_dot_product_attention(
        *(query, key, value, attn_mask, dropout_p, is_causal), scale=scale, enable_gqa=enable_gqa
    )


def _fits(
    tensors: tuple[Any, ...], dropout_p: Any, is_causal: Any, scale: Any, enable_gqa: Any
) -> bool:
    """Whether attnfast computes what PyTorch would for these arguments."""
    for x in tensors:
        if not (type(x) in PLAIN or _is_traced(x)) or not x.is_cpu or x.is_nested:
            return False
        if x.layout is not torch.strided:
            return False
    query, key, value, *mask = tensors
    kind = query.dtype
    return (
        kind in DTYPES
        and key.dtype is kind
        and value.dtype is kind
        and (kind is not torch.bfloat16 or _has_bfloat16())
        and 0.0 <= dropout_p < 1.0
        and (scale is None or (type(scale) is float and math.isfinite(scale)))
        and forward_ad._current_level < 0
        and _shapes_fit(query.shape, key.shape, value.shape, enable_gqa)
        and (not mask or (not is_causal and _mask_fits(mask[0], query, key)))
    )


def _is_traced(x: Any) -> bool:
    """Whether it stands for a tensor while PyTorch compiles or exports."""
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    return isinstance(x, (FakeTensor, FunctionalTensor))


def _has_bfloat16() -> bool:
    return importlib.util.find_spec("ml_dtypes") is not None


def _shapes_fit(query: Any, key: Any, value: Any, enable_gqa: bool) -> bool:
    rank = len(query)
    if rank < 2 or 0 in query or 0 in key or value[-1] == 0:
        return False
    if query == key == value:
        return True
    if len(key) != rank or len(value) != rank:
        return False
    grouped = enable_gqa and rank > 2 and query[-3] % key[-3] == 0
    outer = query[:-3] == key[:-3] if grouped else query[:-2] == key[:-2]
    return bool(outer and key[:-1] == value[:-1] and query[-1] == key[-1])


def _mask_fits(mask: Any, query: Any, key: Any) -> bool:
    if mask.dtype is not torch.bool and mask.dtype is not query.dtype:
        return False
    if mask.dim() > query.dim():
        return False
    last_first = (key.shape[-2], *query.shape[-2::-1])
    return all([n == m or n == 1 for n, m in zip(mask.shape[::-1], last_first, strict=False)])


def _compute(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> Any:
    tensors = {"query": query, "key": key, "value": value}
    if attn_mask is not None:
        missing = query.dim() - attn_mask.dim()
        if missing and attn_mask.shape[:1] == query.shape[:1]:  # else it can be meant in one way
            attn_mask = attn_mask[(None,) * missing]
        tensors["mask" if attn_mask.dtype is torch.bool else "bias"] = attn_mask
    options: dict[str, Any] = {}
    if is_causal:
        options = {"is_causal": True, "q_offset": 0}
    if scale is not None:
        options["scale"] = scale
    if dropout_p:
        options["dropout"] = dropout_p
        seed = torch.randint(2**63 - 1, ())
        if have_memory((seed,)):
            options["dropout_seed"] = int(seed)
        else:
            tensors["dropout_seed"] = seed
    return run(attnfast.attention, {**tensors, **options}, tensors)


# ---- behind PyTorch's own function ----

_library: Any = None
_mha_fastpath = True


def _kernel(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """PyTorch's operator on CPU tensors while attnfast is active."""
    tensors = (query, key, value) if attn_mask is None else (query, key, value, attn_mask)
    if torch._C._get_flash_sdp_enabled() and _fits(
        *(tensors, dropout_p, is_causal, scale, enable_gqa)
    ):
        return _compute(query, key, value, attn_mask, dropout_p, is_causal, scale)
    return _aten.decompose(
        *(query, key, value, attn_mask, dropout_p, is_causal), scale=scale, enable_gqa=enable_gqa
    )


class _Active:
    """What `activate` returns: leaving its ``with`` block restores what was before."""

    def __init__(self, was_active: bool) -> None:
        self._was_active = was_active

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        if not self._was_active:
            restore()


def activate() -> _Active:
    """Make PyTorch's own ``scaled_dot_product_attention`` use attnfast for CPU tensors.

    This registers a kernel with PyTorch's dispatcher, so that it holds for every caller in the
    process: ``torch.nn.functional``, references to the function that were taken before,
    ``nn.MultiheadAttention``, ``nn.TransformerEncoderLayer``, other libraries, compiled code that
    is traced while it is active. The fast path of the two layers, which has an attention of its
    own, is switched off meanwhile (``torch.backends.mha.set_fastpath_enabled``). What attnfast does
    not compute, see :func:`scaled_dot_product_attention`, runs as before; so does what
    ``torch.nn.attention.sdpa_kernel`` asks of another backend.

    Returns
    -------
    context manager
        To write ``with attnfast.torch.activate():``. Without ``with``, it lasts until
        :func:`restore`.

    Examples
    --------
    >>> import torch
    >>> import attnfast.torch
    >>> layer = torch.nn.TransformerEncoderLayer(64, 4, batch_first=True).eval()
    >>> with attnfast.torch.activate():
    ...     layer(torch.randn(2, 50, 64)).shape
    torch.Size([2, 50, 64])
    """
    global _library, _mha_fastpath
    was_active = _library is not None
    if not was_active:
        library = torch.library.Library("aten", "IMPL")
        for key in ("CPU", "AutogradCPU"):
            library.impl("scaled_dot_product_attention", _kernel, key)
        _library = library
        _aten._dispatch_cache.clear()  # which kernel is whose, as tracing has found it so far
        _mha_fastpath = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
    return _Active(was_active)


def restore() -> None:
    """Give PyTorch its own function back; nothing happens if :func:`activate` was not called.

    Examples
    --------
    >>> import attnfast.torch
    >>> _ = attnfast.torch.activate()
    >>> attnfast.torch.restore()
    """
    global _library
    if _library is not None:
        _library._destroy()
        _library = None
        _aten._dispatch_cache.clear()
        torch.backends.mha.set_fastpath_enabled(_mha_fastpath)
