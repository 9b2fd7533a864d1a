"""The weights of multi-head attention: four linear maps that fit together."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .linear import Linear, check_array, size

Array = NDArray[Any]
MAPS = ("query", "key", "value", "output")


@dataclass(frozen=True, eq=False)
class Projections:
    """The linear maps of multi-head attention, with their heads.

    Parameters
    ----------
    query, key, value, output : Linear
        From the inputs to ``H * D``, ``Hk * D`` and ``Hk * Dv``, and from ``H * Dv`` to the output.
        Heads are adjacent columns. All of one dtype.
    num_heads, num_kv_heads : int
        ``H`` and ``Hk``.
    extra_key, extra_value : ndarray, optional
        One more key ``(Hk * D,)`` and value ``(Hk * Dv,)`` without a position, which every query
        sees whatever the masks. PyTorch's ``bias_k`` and ``bias_v``.

    Raises
    ------
    TypeError, ValueError
        Dtypes or sizes that do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from attnfast.layers import Linear, MultiHeadAttention, Projections
    >>> wide, narrow = Linear(np.ones((32, 32))), Linear(np.ones((32, 8)))
    >>> grouped = Projections(wide, narrow, narrow, wide, num_heads=4, num_kv_heads=1)
    >>> grouped.head_dim
    8
    >>> MultiHeadAttention.from_projections(grouped)
    MultiHeadAttention(32, 4, num_kv_heads=1, head_dim=8, use_bias=False, dtype=float64)
    """

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    num_heads: int
    num_kv_heads: int
    extra_key: Array | None = None
    extra_value: Array | None = None

    def __post_init__(self) -> None:
        heads, kv_heads = size(self.num_heads, "num_heads"), size(self.num_kv_heads, "num_kv_heads")
        if heads % kv_heads:
            raise ValueError(f"num_kv_heads must divide num_heads, {heads}, got {kv_heads}")
        if self.query.n_out % heads:
            raise ValueError(
                f"query must have a multiple of {heads} outputs for {heads} heads, got "
                f"{self.query.n_out}"
            )
        if self.key.n_out != kv_heads * self.head_dim:
            raise ValueError(
                f"key must have {kv_heads * self.head_dim} outputs, {kv_heads} heads of "
                f"{self.head_dim} like query, got {self.key.n_out}"
            )
        if self.value.n_out % kv_heads:
            raise ValueError(
                f"value must have a multiple of {kv_heads} outputs for {kv_heads} heads, got "
                f"{self.value.n_out}"
            )
        if self.output.n_in != heads * self.value_head_dim:
            raise ValueError(
                f"output must have {heads * self.value_head_dim} inputs, {heads} heads of "
                f"{self.value_head_dim} like value, got {self.output.n_in}"
            )
        for name, m in (("key", self.key), ("value", self.value), ("output", self.output)):
            check_array(m.weight, name, m.weight.shape, self.dtype)
        if (self.extra_key is None) != (self.extra_value is None):
            raise ValueError("extra_key and extra_value must be given together")
        if self.extra_key is not None and self.extra_value is not None:
            check_array(self.extra_key, "extra_key", (self.key.n_out,), self.dtype)
            check_array(self.extra_value, "extra_value", (self.value.n_out,), self.dtype)

    def __repr__(self) -> str:
        maps = ", ".join(f"{name}={getattr(self, name)}" for name in MAPS)
        extra = ", extra_key, extra_value" if self.extra_key is not None else ""
        heads = f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}"
        return f"Projections({maps}, {heads}{extra})"

    def _repr_html_(self) -> str:
        from .._html import arrays

        return arrays(repr(self), self.arrays())

    @property
    def head_dim(self) -> int:
        """``D``, the size of a head of query and key."""
        return self.query.n_out // self.num_heads

    @property
    def value_head_dim(self) -> int:
        """``Dv``, the size of a head of value."""
        return self.value.n_out // self.num_kv_heads

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of all arrays: float32 or float64."""
        return self.query.weight.dtype

    def arrays(self) -> dict[str, Array]:
        """The arrays by name, such as ``"query.weight"``, as they have gradients.

        Returns
        -------
        dict of str to ndarray
            The arrays themselves: writing into them changes the layer.
        """
        found = {
            f"{name}.{part}": getattr(getattr(self, name), part)
            for name in MAPS
            for part in ("weight", "bias")
        }
        found |= {"extra_key": self.extra_key, "extra_value": self.extra_value}
        return {name: array for name, array in found.items() if array is not None}

    @property
    def use_bias(self) -> bool:
        """Whether any of the maps adds a bias."""
        return any(m.bias is not None for m in (self.query, self.key, self.value, self.output))
