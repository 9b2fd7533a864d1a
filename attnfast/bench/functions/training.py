"""Steps of training: the forward and the backward call, or the backward call alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.random import SFC64, Generator
from numpy.typing import NDArray

import attnfast
from attnfast import reference

from ..case import BACKWARD, Case
from ..inputs import Inputs, Sample, numpy_dtype
from .additive import Additive
from .attention import FORWARD, Attention, Calls, call_options, require

GRADIENT = "grad_output"
CHECK_BOTH_BELOW = 2**22  # pairs (Lq, Lk): the reference holds several arrays of them
SHARED = ("bias", "score_weight")  # operands of several batch rows: their gradients are sums


class Training(Attention):
    """`attention` and `attention_backward`.

    A contestant returns a tuple of arrays, those of `results_of`. All of them are held to one
    tolerance: of random arrays they are of about the same size, the root of 1 / keys.
    """

    forward = "attention"

    def draw(self, case: Case, seed: int) -> Inputs:
        """The gradient of the output goes with the arrays as `extra`."""
        inputs = super().draw(case, seed)
        shape = case.batch, case.heads, case.q_len, case.value_dim
        rng, drawn = Generator(SFC64([seed, 2])), np.dtype(case.compute_dtype)
        gradient = rng.standard_normal(shape, dtype=drawn.type)
        extra = {GRADIENT: gradient.astype(numpy_dtype(case.dtype), copy=False)}
        return replace(inputs, extra={**inputs.extra, **extra})

    def work(self, case: Case, pairs: float) -> float:
        """Operations of the products over the visible pairs: two forward, five backward."""
        forward = 2 * (case.head_dim + case.value_dim)
        backward = 2 * (3 * case.head_dim + 2 * case.value_dim)
        return case.heads * pairs * (backward + (0 if case.kind == BACKWARD else forward))

    def sample(self, case: Case, inputs: Inputs) -> Sample:
        """Whole key heads, since every query counts: the first and the last of the last row.

        Of long sequences the last alone. With a bias, of all rows: its gradient is a sum over them.
        """
        rows = range(case.batch) if inputs.bias is not None else [case.batch - 1]
        last = case.kv_heads - 1
        heads = sorted({0, last}) if case.q_len * case.k_len <= CHECK_BOTH_BELOW else [last]
        return [(b, h, np.arange(case.q_len)) for h in heads for b in rows]

    def exact_rows(self, case: Case, inputs: Inputs, sample: Sample, dtype: type) -> NDArray[Any]:
        """The results of the sampled heads by the reference, one after the other."""
        heads: list[NDArray[Any]] = []
        sums: dict[str, NDArray[Any]] = {}
        for b, h, _ in sample:
            for name, part in self._exact(case, inputs, b, h, dtype).items():
                if name in SHARED:
                    key = f"{name} {_place(name, case, b, h)}"
                    part = part * _to_size(name, case)
                    sums[key] = sums[key] + part if key in sums else part
                else:
                    heads.append(part)
        return _flat([*heads, *sums.values()])

    def _exact(
        self, case: Case, inputs: Inputs, b: int, h: int, dtype: type
    ) -> dict[str, NDArray[Any]]:
        """The results of the queries of one key head, by name."""
        query, key, value, gradient = (
            array[b : b + 1, heads]
            for array, heads in (
                (inputs.query, _heads(case, h)),
                (inputs.keys[0], slice(h, h + 1)),
                (inputs.values[0], slice(h, h + 1)),
                (inputs.extra[GRADIENT], _heads(case, h)),
            )
        )
        options = {**self.options(case, inputs), "compute_dtype": dtype}
        if inputs.mask is not None:
            shape = case.batch, 1, case.q_len, case.k_len
            options["mask"] = np.broadcast_to(inputs.mask, shape)[b : b + 1]
        if inputs.bias is not None:
            options["bias"] = inputs.bias[:, _heads(case, h)]
        names = results_of(case, inputs)
        attend = getattr(reference, self.forward)
        results = {"output": attend(query, key, value, **options)} if "output" in names else {}
        backward = getattr(reference, f"{self.forward}_backward")
        wanted = wanted_of(inputs)
        gradients = backward(gradient, query, key, value, None, None, wanted=wanted, **options)
        return results | {name: getattr(gradients, name) for name in wanted}

    def take_rows(self, case: Case, inputs: Inputs, sample: Sample, output: Any) -> NDArray[Any]:
        """The results of the sampled heads, in the same order."""
        shapes = self.shapes(case, inputs)
        names = results_of(case, inputs)
        if len(output) != len(names):
            raise ValueError(f"returned {len(output)} arrays")
        results = dict(zip(names, output, strict=True))
        for name, array in results.items():
            require(array, shapes[name], case.dtype)
        heads: list[NDArray[Any]] = []
        sums: dict[str, NDArray[Any]] = {}
        for b, h, _ in sample:
            for name, array in results.items():
                place = _place(name, case, b, h)
                if name in SHARED:
                    sums[f"{name} {place}"] = array[place] * _to_size(name, case)
                else:
                    heads.append(array[place])
        return _flat([*heads, *sums.values()])

    def shapes(self, case: Case, inputs: Inputs) -> Mapping[str, tuple[int, ...]]:
        """Of what is to be returned, by name."""
        arrays = {
            "output": inputs.extra[GRADIENT],
            "query": inputs.query,
            "key": inputs.keys[0],
            "value": inputs.values[0],
            "bias": inputs.bias,
            "score_weight": inputs.extra.get("score_weight"),
        }
        return {name: array.shape for name, array in arrays.items() if array is not None}

    def options(self, case: Case, inputs: Inputs) -> dict[str, Any]:
        """Keyword arguments that both calls take."""
        return call_options(case, inputs)

    def calls(self, case: Case, inputs: Inputs) -> Calls:
        """attnfast's two calls, with nothing but output and lse handed over."""
        arrays = inputs.query, inputs.keys[0], inputs.values[0]
        options, wanted = self.options(case, inputs), wanted_of(inputs)
        attend = partial(getattr(attnfast, self.forward), *arrays, return_lse=True, **options)
        differentiate = getattr(attnfast, f"{self.forward}_backward")
        differentiate = partial(differentiate, inputs.extra[GRADIENT], *arrays)

        def backward(output: Any, lse: Any) -> tuple[Any, ...]:
            gradients = differentiate(output, lse, wanted=wanted, **options)
            return tuple(getattr(gradients, name) for name in wanted)

        def step() -> tuple[Any, ...]:
            output, lse, _ = attend()
            return output, *backward(output, lse)

        return [partial(backward, *attend()[:2]) if case.kind == BACKWARD else step]

    def yardsticks(self, case: Case) -> dict[str, Case]:
        """The forward call alone."""
        return {FORWARD: replace(case, function=self.forward, kind="")}


class AdditiveTraining(Training, Additive):
    """`additive_attention` and `additive_attention_backward`.

    Work is counted as for the forward call, each tangent once however often it is computed.
    """

    unit = Additive.unit
    limited = Additive.limited
    forward = "additive_attention"

    def work(self, case: Case, pairs: float) -> float:
        """Tangents over the visible pairs."""
        return Additive.work(self, case, pairs)

    def sample(self, case: Case, inputs: Inputs) -> Sample:
        """Everything: the gradient of the weights is a sum over all queries."""
        rows = np.arange(case.q_len)
        return [(b, h, rows) for h in range(case.kv_heads) for b in range(case.batch)]

    def options(self, case: Case, inputs: Inputs) -> dict[str, Any]:
        """The weights of the scores."""
        return {"score_weight": inputs.extra["score_weight"]}


def wanted_of(inputs: Inputs) -> tuple[str, ...]:
    """The operands whose gradients a step computes: all that it has."""
    names = ["query", "key", "value"]
    names += ["bias"] if inputs.bias is not None else []
    return (*names, "score_weight") if "score_weight" in inputs.extra else tuple(names)


def results_of(case: Case, inputs: Inputs) -> tuple[str, ...]:
    """What a call returns: the output, where the forward call is timed too, and the gradients."""
    wanted = wanted_of(inputs)
    return wanted if case.kind == BACKWARD else ("output", *wanted)


def _heads(case: Case, kv_head: int) -> slice:
    """The query heads of a key head."""
    group = case.heads // case.kv_heads
    return slice(kv_head * group, (kv_head + 1) * group)


def _place(name: str, case: Case, b: int, h: int) -> Any:
    """Where the part of one key head is in a result."""
    if name == "score_weight":
        return ...
    if name == "bias":
        return 0, _heads(case, h)
    return b, h if name in ("key", "value") else _heads(case, h)


def _to_size(name: str, case: Case) -> float:
    """What makes a sum over all queries and values about as large as the other results."""
    terms = case.batch * case.heads * case.q_len * case.value_dim
    return 1 / math.sqrt(terms) if name == "score_weight" else 1.0


def _flat(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([part.reshape(-1) for part in parts])
