"""What to write instead of an argument that is refused, or that can be read in two ways."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]


# ---- arrays of other libraries ----


def as_array(x: Any, name: str) -> Array:
    """Any array-like as an ndarray; an error where information would be lost."""
    if type(x) is np.ndarray:
        return x
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array{_masked_advice(name)}")
    _refuse_tensor(x, name)
    if name == "mask" and callable(x):
        raise TypeError(
            "mask is a function: write mask=BlockMask.from_function(mask, Lq, Lk, block_size), "
            "which calls it with arrays of query and key numbers, mask(i, j)"
        )
    try:
        a = np.asarray(x)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise ValueError(f"{name} cannot be read as an array: {error}") from error
        raise ValueError(
            f"{name} must be an array, got nested sequences of different lengths"
        ) from None
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name} cannot be read as an array: {error}") from error
    if a.dtype == object:
        if a.size and all(type(number) is int for number in a.flat):
            raise ValueError(f"{name} must be numbers of at most 64 bits, got {_largest(a)}")
        held = f" of {type(a.flat[0]).__name__}" if a.ndim and a.size else ""
        raise TypeError(f"{name} must be an array of numbers, got {type(x).__name__}{held}")
    return a


def _largest(a: Array) -> str:
    """The largest of Python's ints in size, cut short where it has many digits."""
    number = max(a.flat, key=abs)
    return str(number) if abs(number) < 10**40 else f"a number of {number.bit_length()} bits"


def _masked_advice(name: str) -> str:
    """NumPy's mask is True where something is hidden, the opposite of `mask`."""
    fill = "-np.inf" if name == "bias" else "False"
    if name in ("bias", "blocks") or name.endswith("mask"):
        return f": write {name}.filled({fill}) to hide what it masks"
    advice = f", whose mask is not read: write {name}.data"
    if name in ("query", "key", "value"):
        advice += f", and hide keys with mask=, True where {name}.mask is False"
    return advice


def _refuse_tensor(x: Any, name: str) -> None:
    """Refuse dask arrays, and torch tensors that NumPy cannot read."""
    libraries = {kind.__module__.split(".")[0] for kind in type(x).__mro__}
    if "dask" in libraries:
        chunked = name in ("query", "key", "value", "mask", "bias")
        instead = ", or call attnfast.dask.attention, which takes chunks" if chunked else ""
        raise TypeError(f"{name} is a dask array: write {name}.compute(){instead}")
    if "torch" not in libraries or not hasattr(x, "requires_grad"):
        return
    traits, write, read = "", name, ".numpy()"
    if str(x.dtype) == "torch.bfloat16":
        traits += " of dtype bfloat16"
        read = ".view(torch.int16).numpy().view(ml_dtypes.bfloat16)"
    if x.requires_grad:
        traits += " that requires gradients"
        write += ".detach()"
    if x.device.type != "cpu":
        traits += f" on device {x.device}"
        write += ".cpu()"
    if traits:
        raise TypeError(
            f"{name} is a torch tensor{traits}, which NumPy cannot read: write {write}{read}"
        )


# ---- dtypes ----


def spelled(x: Any, name: str) -> str:
    """How to write the argument as an array, whatever was passed."""
    return name if isinstance(x, np.ndarray) else f"np.asarray({name})"


def wrong_dtype(
    a: Array, x: Any, name: str, accepted: str, advice: str = "", held: str = ""
) -> TypeError:
    """The error for the array `a`, made of the argument `x`, whose dtype is not accepted.

    `advice` is for numbers of another kind; ``{0}`` stands for the argument. `held` says which
    numbers the array holds.
    """
    got, kind = f"{a.dtype}{held}", a.dtype.kind
    if kind == "c":
        advice = "attnfast computes in real numbers, take {0}.real and {0}.imag apart"
    elif kind in "US":
        got, advice = f"text ({a.dtype})", ""
    elif kind == "O":
        got = "Python objects (dtype object)"
        advice = f"{advice} if they are numbers" if advice else ""
    elif kind in "mM" or a.dtype.type is np.void:
        advice = ""
    message = f"{name} must be {accepted}, got {got}"
    return TypeError(f"{message}: {advice.format(spelled(x, name))}" if advice else message)


def wrong_operand(a: Array, x: Any, name: str) -> TypeError:
    """For query, key and value."""
    to = "np.float64" if a.dtype == np.longdouble else "np.float32"
    accepted = "float32, float64, float16 or bfloat16"
    return wrong_dtype(a, x, name, accepted, f"write {{0}}.astype({to})")


def wrong_bias(a: Array, x: Any) -> TypeError:
    """For a bias."""
    advice = "write {0}.astype(np.float32)"
    if a.dtype == bool:
        advice = "write mask=bias if True means that a query may attend, mask=~{0} if it hides"
    elif a.dtype.kind in "iu" and a.size and ((a == 0) | (a == 1)).all():
        advice = (
            "write mask={0} != 0 if 1 is visible, mask={0} == 0 if 1 hides, "
            "{0}.astype(np.float32) if it is added to the scores"
        )
    return wrong_dtype(a, x, "bias", "floating point", advice)


def wrong_integers(a: Array, x: Any, name: str) -> TypeError:
    """For lengths, offsets and positions."""
    advice = "write {0}.astype(np.int64)"
    if a.dtype == bool:
        advice = ""
        if a.ndim > 1 and name in ("q_lengths", "kv_lengths"):
            advice = "write {0}.sum(axis=-1) if padding is False and at the end"
        elif a.ndim > 1 and name == "kv_starts":
            advice = "write {0}.argmax(axis=-1) if padding is False and at the start"
    return wrong_dtype(a, x, name, "integers", advice)


def wrong_mask(
    a: Array, x: Any, name: str, true: str = "where a query may attend", bias: bool = True
) -> TypeError:
    """For a mask that is not bool: the advice depends on its values.

    `bias` says whether the call takes one. Where 1 may show or hide, the advice is for both.
    """
    accepted, shown, added = f"bool, True {true}", "{0} != 0", "{0} == 0"
    whole = a.dtype.kind in "iu"
    if bias:
        added = "bias={0}.astype(np.float32)" if whole else f"bias={name}"
    real = whole or a.dtype.kind == "f" or (a.dtype.kind == "V" and a.dtype.type is not np.void)
    if bias and a.dtype.kind in "US":
        got = f"text ({a.dtype})"
        return TypeError(
            f"{name} must be {accepted}, got {got}: write is_causal=True for a causal mask"
        )
    if not real or a.size == 0:
        return wrong_dtype(a, x, name, accepted, f"write {shown}")
    zero = a == 0
    if zero.all():
        advice = f"write {added} if 0 is added to the scores, {shown} if 0 hides a key"
        return wrong_dtype(a, x, name, accepted, advice, " that is 0 everywhere")
    if (zero | (a == 1)).all():
        return wrong_dtype(
            a,
            x,
            name,
            accepted,
            f"write {shown} if 1 is visible, {{0}} == 0 if 1 hides",
            " of 0 and 1",
        )
    if whole and ((a == -1) | (a == -2)).all():
        advice = "write {0} != -1 for what was 1 before, {0} == -1 for what was 0"
        return wrong_dtype(a, x, name, accepted, advice, " of -1 and -2, which ~ makes of 0 and 1")
    if whole and (a >= 0).all():
        return wrong_dtype(a, x, name, accepted, f"write {shown}")
    if bias:
        return wrong_dtype(a, x, name, accepted, f"write {added} for what is added to the scores")
    advice = f"write {added} if 0 is True" if (a <= 0).all() else ""
    return wrong_dtype(a, x, name, accepted, advice)


# ---- numbers ----


def wrong_window(window_size: Array) -> TypeError:
    """For a window that is an array."""
    sides = window_size.ravel().tolist()
    write = ""
    if window_size.dtype.kind in "iu" and len(sides) in (1, 2):
        write = f": write {sides[0] if len(sides) == 1 else tuple(sides)}"
    return TypeError(f"window_size must be an int or a pair (left, right), got an array{write}")


def missing_offset(differ: str) -> ValueError:
    """For a call that needs positions where there are more keys than queries, or fewer."""
    return ValueError(
        "q_offset must be given when is_causal, window_size or alibi_slopes need positions and "
        f"{differ}: q_offset=0 lines up the first query with the first key, "
        'q_offset="end" the last query with the last key'
    )


def check_sigma(centers: Any, sigma: Any, smooth: bool, sides: tuple[int, int] | None) -> None:
    """Integer centers are Luong's local-m, real ones (`smooth`) with a sigma his local-p.

    `sides` are those of the window where both are bounded.
    """
    if not smooth and sigma is not None:
        raise ValueError(
            "sigma must be None with integer centers (local-m), got a value: "
            f"write {spelled(centers, 'centers')}.astype(np.float64), or leave sigma out"
        )
    if smooth and sigma is None:
        write = "a sigma above 0"
        if sides and sum(sides) > 0:
            write = f"sigma=({sides[0]} + {sides[1]}) / 4"
        raise ValueError(
            f"sigma must be given with real centers: write {write} for local-p, "
            "or centers=np.rint(centers).astype(np.int64) for local-m"
        )


def check_global_tokens(a: Array, rows: Shape, batch_rows: int, keys: int) -> None:
    """Refuse global tokens of a shape or range that does not fit, or bools written as 0 and 1."""
    whole = a.dtype.kind in "iu"
    if a.ndim == 0 or a.shape[:-1] not in ((), rows, (batch_rows,)):
        last = "n" if whole else "Lk"
        shapes = f"({last},) or {rows} + ({last},)"
        raise ValueError(f"global_tokens must have shape {shapes}, got {a.shape}")
    if a.dtype.kind == "b" and a.shape[-1] != keys:
        raise ValueError(
            f"global_tokens must have one bool for each of the {keys} keys, got shape {a.shape}"
        )
    if whole and a.shape[-1] == keys > 4 and a.min() >= 0 and a.max() <= 1:
        raise ValueError(
            f"global_tokens must be indices or bools, got {keys} integers of 0 and 1 for {keys} "
            "keys: write global_tokens != 0 if there is one for each key, np.unique(global_tokens) "
            "if they are indices"
        )
    if whole and a.size and (a.min() < 0 or a.max() >= keys):
        raise ValueError(
            f"global_tokens must be within 0 .. {keys - 1}, got {a.min()} .. {a.max()}"
        )


# ---- shapes ----


def check_query(query: Shape, key: Shape) -> None:
    """Refuse a query whose axis of lengths may be missing, or that of the batch."""
    if 2 < len(query) == len(key) - 1 and query[:-1] == key[:-2] and max(query[:-2]) > 1:
        raise ValueError(
            f"query has shape {query} beside key {key}, which can be read in two ways: write "
            "query[..., None, :] if it is one query for each head, query[None] if it is "
            "(heads, Lq, D)"
        )


def wrong_rows(name: str, got: Shape, rows: Shape, rank: int) -> ValueError:
    """For what has one entry for each batch row, of which there are `rows`."""
    if rows:
        return ValueError(f"{name} must have one entry for each batch row, shape {rows}, got {got}")
    one = "arrays of rank 2 are one head of one batch row"
    if rank > 2:
        one = (
            "arrays of rank 3 are (heads, length, head size) of one batch row, write query[:, None]"
            " (key and value alike) if they are (batch, length, head size)"
        )
    return ValueError(f"{name} must be one number, got shape {got}: {one}")


def check_axes(name: str, shape: Shape, batch: Shape, last: Shape, *, blocks: bool = False) -> None:
    """Refuse a shape that does not broadcast to ``(*batch, *last)``, or for two reasons at once.

    `last` is (heads, Lq, Lk) or (heads, Lq). An array for each batch row that lacks the axis of
    heads, or those of heads and queries, broadcasts only by chance, and then to something else.
    Leading axes of a `BlockMask` are heads by definition.
    """
    full = (*batch, *last)
    fits = len(shape) <= len(full) and all(
        n in (1, m) for n, m in zip(shape[::-1], full[::-1], strict=False)
    )
    lost = _lost_axes(shape, batch, last)
    if fits and (blocks or not lost):
        return
    got = f"{name} has shape {shape}"
    misfit = f"{got}, which does not broadcast to {full}"
    if not lost:
        raise ValueError(f"{misfit}{_other_axes(name, shape, batch, last)}")
    index = ", ".join([":"] * len(batch) + ["None"] * lost + [":"] * (lost - 1))
    if blocks:
        raise ValueError(f"{misfit}: write BlockMask(mask.blocks[{index}], mask.block_size)")
    if not fits:
        padding = ", or kv_lengths if it is padding at the end, kv_starts if at the start"
        padding = padding if lost == 2 and name == "mask" else ""
        raise ValueError(f"{misfit}: write {name}[{index}]{padding}")
    axes = (*("batch" for _ in batch), "heads", "Lq", "Lk")[: len(full)]
    per_row = (*axes[: len(batch)], *axes[len(batch) + lost :])
    raise ValueError(
        f"{got}, which can be read in two ways: write {name}[{index}] if it is "
        f"({', '.join(per_row)}), {name}[{', '.join(['None'] * lost)}] if it is "
        f"({', '.join(axes[-len(shape) :])})"
    )


def _other_axes(name: str, shape: Shape, batch: Shape, last: Shape) -> str:
    """Advice on a shape that fits another reading of the arrays."""
    rows = math.prod(batch) * last[0]
    if batch and len(shape) == len(last) and shape == (rows, *last[1:]):
        return f": write {name}.reshape{(*batch, *last)} if its first axis is batch times heads"
    of_rows = len(shape) in (len(last) - 1, len(last) + 1) and shape[0] == last[0] > 1
    if not batch and of_rows and shape[-1] in (1, last[-1]):
        return (
            f": arrays of rank 3 are (heads, length, head size), write query[:, None] (key and "
            f"value alike) if they are (batch, length, head size), and {name} as for rank 4"
        )
    return ""


def _lost_axes(shape: Shape, batch: Shape, last: Shape) -> int:
    """How many axes after those of the batch are missing in an array for each batch row, or 0."""
    n = len(batch)
    if shape[:n] != batch or not any(m > 1 for m in batch):
        return 0
    for lost in range(1, len(last)):
        kept = last[lost:]
        if len(shape) == n + len(kept) and all(
            m in (1, k) for m, k in zip(shape[n:], kept, strict=True)
        ):
            return lost
    return 0
