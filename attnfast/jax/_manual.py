"""Inside of ``jax.shard_map`` each array has a type that says along which axes it varies."""

from typing import Any

import jax


def _field(x: Any) -> dict[str, Any]:
    """The name and value of that type; empty where the array varies nowhere, or JAX has none."""
    aval = jax.typeof(x) if hasattr(jax, "typeof") else None
    for name in ("manual_axis_type", "vma"):  # the second until 0.10.1
        if getattr(aval, name, None):
            return {name: getattr(aval, name)}
    return {}


def _axes(x: Any) -> frozenset[Any]:
    (kind,) = _field(x).values() or (frozenset(),)
    axes: frozenset[Any] = getattr(kind, "varying", kind)
    return axes


def vary_alike(arrays: dict[str, Any]) -> dict[str, Any]:
    """Arrays that all vary where one of them does: a call has one type for all of its results.

    The gradient of one that was the same everywhere is then the sum over devices.
    """
    axes = frozenset[Any]().union(*(_axes(x) for x in arrays.values()))
    if not axes:
        return arrays
    return {name: _vary(x, tuple(axes - _axes(x))) for name, x in arrays.items()}


def _vary(x: Any, axes: tuple[Any, ...]) -> Any:
    if not axes:
        return x
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, axes, to="varying")
    return jax.lax.pvary(x, axes)


def shape_like(x: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """The shape and dtype of a result that varies as an array does."""
    kind = _field(x)
    if not kind:
        return jax.ShapeDtypeStruct(shape, dtype)
    whole = jax.sharding.NamedSharding(jax.typeof(x).sharding.mesh, jax.sharding.PartitionSpec())
    return jax.ShapeDtypeStruct(shape, dtype, sharding=whole, **kind)
