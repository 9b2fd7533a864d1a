"""One call of a public function, which tests run, poison and cut into batch rows."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import attnfast
from attnfast import BlockMask, reference
from support.arrays import poisoned, same_batch
from support.criterion import LOCAL_OPTIONS, SCORE_OPTIONS, Criterion

OF_KEYS = ("attention_weights", "attention_topk", "key_importance")  # they take no value
FLAGS = {"return_lse": True, "return_weights": True}


class Call:
    """The arguments of one call of `attention` or another function of the same form."""

    def __init__(
        self, query: Any, key: Any, value: Any, options: dict[str, Any], function: str = "attention"
    ) -> None:
        self.query, self.key, self.value, self.options = query, key, value, options
        self.function = function

    def parts(self) -> tuple[Any, Any, Any, dict[str, Any]]:
        """What a call is made of, beside its function."""
        return self.query, self.key, self.value, self.options

    def like(self, query: Any, key: Any, value: Any, options: dict[str, Any]) -> "Call":
        """A call of the same function and form."""
        return Call(query, key, value, options, self.function)

    def run(self, **more: Any) -> Any:
        function = getattr(attnfast, self.function)
        arrays = (self.query, self.key, self.value)[: 2 if self.function in OF_KEYS else 3]
        return function(*arrays, **{**self.options, **more})

    def run_for_all(self, **more: Any) -> Any:
        """Everything that the function can return."""
        return self.run(**({} if self.function in OF_KEYS else FLAGS), **more)

    def poisoned(self, poisons: Sequence[float]) -> list["Call"]:
        """The same call with each poison in the keys and values that no query sees."""
        arrays = [(a, self.unseen(a)) for a in (self.key, self.value)]
        return [
            self.like(self.query, *(poisoned(*a, poison) for a in arrays), self.options)
            for poison in poisons
        ]

    def criterion(self) -> Criterion:
        return Criterion(self.query, self.key, self.value, function=self.function, **self.options)

    def unseen(self, array: np.ndarray) -> np.ndarray:
        """The rows (..., L) of `array`, key or value, that no query sees."""
        named = (*SCORE_OPTIONS, *LOCAL_OPTIONS)
        options = {n: x for n, x in self.options.items() if n in named}
        query, key, _ = same_batch(self.query, self.key, self.value)
        biased = reference.attention_weights(query * 0, key * 0, stage="biased", **options)
        unseen = (biased == -np.inf).all(axis=-2)
        if unseen.ndim > 1:
            *batch, heads, lk = unseen.shape
            kv_heads = key.shape[-3]
            unseen = unseen.reshape((*batch, kv_heads, heads // kv_heads, lk)).all(axis=-2)
        # What is broadcast must be unseen in every batch row.
        unseen = unseen.all(axis=tuple(range(unseen.ndim - array.ndim + 1)))
        thin = tuple(axis for axis, n in enumerate(array.shape[:-1]) if n == 1)
        return unseen.all(axis=thin, keepdims=True)

    def alone(self) -> Iterator[tuple[tuple[int, ...], "Call"]]:
        """The index of each batch row and the call of this row alone.

        Of a call with dropout only the first: which weights are dropped depends on the row's place.
        """
        arrays = same_batch(self.query, self.key, self.value)
        query, key, _ = arrays
        batch, full = query.shape[:-3], (*query.shape[:-1], key.shape[-2])
        for row in np.ndindex(*batch):
            if self.options.get("dropout") and any(row):
                return
            options = dict(self.options)
            for name in ("q_lengths", "kv_lengths", "kv_starts", "q_offset"):
                if np.ndim(options.get(name)):
                    options[name] = np.reshape(options[name], batch)[row]
            for name in ("alibi_slopes", "global_tokens"):
                if np.ndim(options.get(name)) > 1:
                    shape = (*batch, options[name].shape[-1])
                    options[name] = np.reshape(options[name], shape)[row]
            for name, shape in [("mask", full), ("bias", full), ("centers", full[:-1])]:
                if isinstance(options.get(name), BlockMask):
                    blocks = options[name].blocks
                    blocks = np.broadcast_to(blocks, full[:-2] + blocks.shape[-2:])[row]
                    options[name] = BlockMask(blocks, options[name].block_size)
                elif name in options and query.ndim > 2:
                    options[name] = np.broadcast_to(options[name], shape)[row]
            yield row, self.like(*(a[row] for a in arrays), options)

    def __repr__(self) -> str:
        def show(x: Any) -> str:
            if isinstance(x, np.ndarray) and x.size > 8:
                return f"<{x.dtype} {x.shape} strides {x.strides}>"
            return repr(x)

        named = [f"{n}={show(getattr(self, n))}" for n in ("query", "key", "value")]
        named += [f"{n}={show(x)}" for n, x in self.options.items()]
        return f"Call({', '.join(named)})"
