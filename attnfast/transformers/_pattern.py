"""What a mask function of transformers means: recognised by its parts, and tried on some pairs.

A mask function says of (batch row, head, query position, key position) whether the query sees the
key. transformers makes it from a few functions of its own; those are known by their code objects.
A part that is not known, such as a function of a user, stays a function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ._library import masking, torch

MaskFunction = Callable[[Any, Any, Any, Any], Any]


@dataclass
class Pattern:
    """A conjunction: key ``k`` is seen from position ``p`` if each field allows it."""

    left: int | None = None  # p - left <= k, None: unbounded
    right: int | None = None  # k <= p + right; 0 is causality
    segments: Any = None  # (B, L): p and k have the same number
    unknown: list[MaskFunction] = field(default_factory=list)
    parts: tuple[
        object, ...
    ] = ()  # what was found: equal for functions that differ in tensors only

    def allows(self, batch: Any, head: Any, query: Any, key: Any) -> Any:
        """Say for index tensors of one shape what the mask function should say."""
        seen = torch.ones_like(query, dtype=torch.bool)
        if self.left is not None:
            seen &= key >= query - self.left
        if self.right is not None:
            seen &= key <= query + self.right
        if self.segments is not None:
            seen &= self.segments[batch, query] == self.segments[batch, key]
        for function in self.unknown:
            seen &= function(batch, head, query, key)
        return seen


def narrower(a: int | None, b: int | None) -> int | None:
    """Return the smaller of two bounds, None being no bound."""
    return b if a is None else a if b is None else min(a, b)


def both(a: Pattern, b: Pattern) -> Pattern | None:
    """Return the conjunction, or None if one pattern cannot hold it."""
    if a.segments is not None and b.segments is not None:
        return None
    return Pattern(
        left=narrower(a.left, b.left),
        right=narrower(a.right, b.right),
        segments=b.segments if a.segments is None else a.segments,
        unknown=a.unknown + b.unknown,
        parts=(a.parts, b.parts),
    )


def made_by(name: str, *arguments: Any) -> Any:
    """Return the code that all functions from a factory of transformers share, if it exists."""
    factory = getattr(masking, name, None)
    return factory(*arguments).__code__ if factory else None


CAUSAL = masking.causal_mask_function.__code__
ALL = masking.bidirectional_mask_function.__code__
AND = made_by("and_masks", masking.causal_mask_function)
WINDOW = made_by("sliding_window_overlay", 1)
WINDOW_BOTH = made_by("sliding_window_bidirectional_overlay", 1)
PACKED = made_by("packed_sequence_mask_function", None)
REMAPPED = made_by("remap_positions_for_packed_sequence", masking.causal_mask_function, None)


def closure(function: MaskFunction) -> dict[str, Any]:
    """Map the names that a function takes from the factory around it to their values."""
    cells = function.__closure__ or ()
    return {
        name: cell.cell_contents
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True)
    }


def read(function: MaskFunction) -> Pattern:
    """Take a mask function apart."""
    code = getattr(function, "__code__", None)
    values = closure(function) if code else {}
    if code is CAUSAL:
        return Pattern(right=0, parts=("causal",))
    if code is ALL:
        return Pattern(parts=("all",))
    if code is WINDOW and type(w := values.get("sliding_window")) is int:
        return Pattern(left=w - 1, parts=("window", w))
    if code is WINDOW_BOTH and type(w := values.get("sliding_window")) is int:
        return Pattern(left=w, right=w, parts=("window on both sides", w))
    if code is PACKED and "packed_sequence_mask" in values:
        return Pattern(segments=values["packed_sequence_mask"], parts=("packed",))
    if code is AND and "mask_functions" in values:
        return read_all(values["mask_functions"])
    return Pattern(unknown=[function], parts=("unknown", code or id(function)))


def read_all(functions: tuple[MaskFunction, ...]) -> Pattern:
    """Take a conjunction apart."""
    whole = Pattern()
    for function in functions:
        whole = both(whole, read(function)) or replace(whole, unknown=[*whole.unknown, function])
    if whole.segments is None:
        return whole
    # Within a sequence positions differ as indices do, so that bounds on the distance of packed
    # positions are bounds on the distance of indices. That holds beside the packed part alone.
    kept = []
    for function in whole.unknown:
        inner = inside(function, whole.segments)
        merged = both(whole, inner) if inner else None
        if merged is None or inner is None or inner.unknown:
            kept.append(function)
        else:
            whole = merged
    return replace(whole, unknown=kept)


def inside(function: MaskFunction, segments: Any) -> Pattern | None:
    """Read a function of packed positions, if these grow by 1 within each segment."""
    if getattr(function, "__code__", None) is not REMAPPED:
        return None
    values = closure(function)
    positions = values.get("position_ids")
    if positions is None or positions.shape != segments.shape or "mask_function" not in values:
        return None
    same = segments.diff(dim=-1) == 0
    if not bool((positions.diff(dim=-1)[same] == 1).all()):
        return None
    pattern = read(values["mask_function"])
    return replace(pattern, parts=("packed positions", pattern.parts))


verified: set[tuple[object, ...]] = set()


def recognise(
    function: MaskFunction, batch: int, queries: range, keys: range, device: Any
) -> Pattern:
    """Return what a mask function means for these positions.

    What is recognised is tried on pairs, once for each composition of parts: a later transformers
    may keep a name and change what it means. If the function says otherwise, all of it is unknown.
    """
    pattern = read(function)
    if pattern.parts in verified or pattern.unknown == [function]:
        return pattern
    reach = 2 * (2 + max(pattern.left or 0, pattern.right or 0))
    if pattern.segments is None and not pattern.unknown:
        queries = keys = range(max(reach, len(keys)))  # no tensor is asked: any position will do
    if not agrees(pattern, function, batch, queries, keys, device):
        return Pattern(unknown=[function])
    if len(keys) >= reach:  # else beyond its edges nothing was tried
        verified.add(pattern.parts)
    return pattern


def agrees(
    pattern: Pattern, function: MaskFunction, batch: int, queries: range, keys: range, device: Any
) -> bool:
    """Compare a pattern with its function at all edges of some queries, and at random keys."""
    generator = torch.Generator().manual_seed(len(queries) + len(keys))
    some = torch.randint(len(queries), (14,), generator=generator)
    edge = torch.tensor([0, len(queries) - 1])
    query = queries.start + torch.cat([edge, some])
    edges = {0, 1, -1}
    for bound in (pattern.right, -pattern.left if pattern.left is not None else None):
        edges |= {bound - 1, bound, bound + 1} if bound is not None else set()
    near = query[:, None] + torch.tensor(sorted(edges))
    far = keys.start + torch.randint(len(keys), (len(query), 16), generator=generator)
    key = torch.cat([near, far], dim=1).clamp(keys.start, keys.stop - 1)
    row = torch.randint(batch, key.shape, generator=generator).flatten()
    index = [row, torch.zeros_like(row), query[:, None].expand(key.shape).flatten(), key.flatten()]
    index = [part.to(device) for part in index]
    said = torch.as_tensor(function(*index)).expand(row.shape)
    return bool(torch.equal(said, pattern.allows(*index)))
