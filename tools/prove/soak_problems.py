"""Random calls of the whole family for soak.py, each with a way to judge its result."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

import attnfast
from attnfast import reference
from support.arrays import DTYPES, randn
from support.criterion import Criterion
from support.gradient_criterion import check_gradients
from support.key_criteria import Importance, check_topk
from support.layouts import LAYOUTS, lay_out
from support.paged_call import in_pages

Options = dict[str, Any]
KINDS = ("int8", "float8_e4m3fn", "float8_e5m2")  # of 8 bits
STORED = ("block_table", "key_scale", "value_scale")


@dataclass
class Problem:
    """A call of one function of the family."""

    function: str
    arrays: tuple[np.ndarray, ...]
    options: Options

    def __repr__(self) -> str:
        shapes = ", ".join(str(a.shape) for a in self.arrays)
        options = {name: getattr(x, "shape", x) for name, x in self.options.items()}
        return f"{self.function}({shapes}) {self.arrays[0].dtype} {options}"

    def run(self, threads: int) -> Any:
        function = getattr(attnfast, self.function)
        return function(*self.arrays, **self.options, num_threads=threads)

    def check(self, result: Any) -> float:
        """Assert that the result is right; return its largest error."""
        options = dict(self.options)
        if self.function == "attention_varlen":
            return self._check_packed(result)
        if self.function == "key_importance":
            per_kv_head = options.pop("per_kv_head")
            exact = Importance(*self.arrays, **options)
            exact.check(result, per_kv_head)
            return 0.0
        query, key = self.arrays[:2]
        value = key[..., :1] if self.function in ("attention_topk", "attention_weights") else None
        if self.function == "attention_topk":
            k = options.pop("k")
            check_topk(result, Criterion(query, key, value, **options), k)
            return 0.0
        if self.function == "attention_weights":
            criterion = Criterion(query, key, value, **options)
            criterion.check_weights(result)
            return largest(result, criterion.exact.weights)
        criterion = Criterion(*self.arrays, function=self.function, **options)
        criterion.check(result)
        return largest(result.output, criterion.exact.output)

    def _check_packed(self, result: Any) -> float:
        query, key, value, cu_q, cu_k = self.arrays
        options = {n: x for n, x in self.options.items() if n != "return_lse"}
        error = 0.0
        for s in range(len(cu_q) - 1):
            rows, keys = slice(cu_q[s], cu_q[s + 1]), slice(cu_k[s], cu_k[s + 1])
            one = (query[rows], key[keys], value[keys])
            criterion = Criterion(*(a.swapaxes(0, 1) for a in one), **options)
            output, lse = result.output[rows].swapaxes(0, 1), result.lse[rows].swapaxes(0, 1)
            criterion.check((output, lse, None))
            error = max(error, largest(output, criterion.exact.output))
        return error


@dataclass(repr=False)
class Training(Problem):
    """A call, and the gradients of a loss that is linear in its output."""

    grad_output: np.ndarray
    wanted: tuple[str, ...]

    def run(self, threads: int) -> Any:
        result = super().run(threads)
        options = {n: x for n, x in self.options.items() if n not in ("return_lse",)}
        loss = self.grad_output, *self.arrays[:3], result.output, result.lse, *self.arrays[3:]
        backward = getattr(attnfast, f"{self.function}_backward")
        return backward(*loss, **options, wanted=self.wanted, num_threads=threads)

    def check(self, result: Any) -> float:
        if self.function == "attention_varlen":  # tests compare it with each sequence alone
            return 0.0
        options = {n: x for n, x in self.options.items() if n != "return_lse"}
        check_gradients(result, self.grad_output, *self.arrays, function=self.function, **options)
        return 0.0


@dataclass(repr=False)
class Stored(Problem):
    """A call of `attention` with keys and values in pages, in 8 bits or both.

    `plain` are those that they stand for.
    """

    plain: tuple[np.ndarray, ...]

    def check(self, result: Any) -> float:
        options = {n: x for n, x in self.options.items() if n not in STORED}
        criterion = Criterion(self.arrays[0], *self.plain, **options)
        criterion.check(result)
        return largest(result.output, criterion.exact.output)


@dataclass(repr=False)
class Growing(Problem):
    """A text that a cache takes piece by piece; the result is the output of all its tokens.

    `options` are those of the cache, `pieces` the places between its steps.
    """

    pieces: tuple[int, ...]

    def run(self, threads: int) -> Any:
        query, key, value = self.arrays
        shape = (*key.shape[:2], key.shape[-1], value.shape[-1])
        cache = attnfast.KVCache(*shape, dtype=query.dtype.newbyteorder("="), **self.options)
        outputs = []
        for a, b in zip(self.pieces, self.pieces[1:], strict=False):
            new = (x[..., a:b, :] for x in self.arrays)
            outputs.append(cache.extend(*new, num_threads=threads))
        return np.concatenate(outputs, axis=-2)

    def check(self, result: Any) -> float:
        length = self.arrays[0].shape[-2]
        i, j = np.arange(length)[:, None], np.arange(length)
        mask = j <= i
        if window := self.options.get("window"):
            mask &= (j < self.options["sinks"]) | (j > i - window)
        criterion = Criterion(*self.arrays, mask=mask)
        criterion.check(result)
        return largest(result, criterion.exact.output)


def largest(actual: Any, exact: Any) -> float:
    return float(np.abs(actual.astype(exact.dtype) - exact).max(initial=0))


def one_in(rng: np.random.Generator, n: int) -> bool:
    return bool(rng.integers(n) == 0)


def draw_arrays(rng: np.random.Generator, dtype: Any, most_pairs: int) -> tuple[np.ndarray, ...]:
    """Query, key and value; a third of them with few queries, as in decoding."""
    batch, kv_heads, group = rng.integers(1, [3, 3, 4])
    few = one_in(rng, 3)
    lq = int(rng.integers(0, 9) if few else rng.integers(1, 200))
    lk = int(rng.integers(1, 3000 if few else 300))
    d = int(rng.choice([1, 8, 33, 64, 64, 128]))
    dv = int(rng.choice([d, 1, 40, 64]))
    lk = max(1, min(lk, most_pairs // int(batch * kv_heads * group * max(lq, 1))))
    shapes = [(batch, kv_heads * group, lq, d), (batch, kv_heads, lk, d), (batch, kv_heads, lk, dv)]
    return tuple(lay_out(randn(rng, s, dtype), str(rng.choice(LAYOUTS))) for s in shapes)


def some_axes(rng: np.random.Generator, full: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to (B, H, Lq, Lk): with as many axes, as fewer may be misread."""
    shape = full[int(rng.integers(0, 4)) :]
    return (1,) * (4 - len(shape)) + shape


def draw_options(rng: np.random.Generator, arrays: tuple[np.ndarray, ...]) -> Options:
    (batch, heads, lq, _), lk = arrays[0].shape, arrays[1].shape[-2]
    full = (batch, heads, lq, lk)
    options: Options = {"q_offset": "end" if one_in(rng, 2) else int(rng.integers(-9, lk))}
    possible = {
        "is_causal": lambda: True,
        "window_size": lambda: (int(rng.integers(0, lk + 1)), int(rng.integers(0, 40))),
        "q_lengths": lambda: rng.integers(0, lq + 1, batch),
        "kv_lengths": lambda: rng.integers(0, lk + 1, batch),
        "kv_starts": lambda: rng.integers(0, lk + 1, batch),
        "softcap": lambda: 5.0,
        "scale": lambda: 0.3,
        "alibi_slopes": lambda: randn(rng, heads),
        "sink_logits": lambda: randn(rng, heads),
        "mask": lambda: rng.random(some_axes(rng, full)) < 0.7,
        "bias": lambda: randn(rng, some_axes(rng, full)),
    }
    return options | {name: make() for name, make in possible.items() if one_in(rng, 4)}


def draw_attention(rng: np.random.Generator, function: str, dtype: Any) -> Problem:
    arrays = draw_arrays(rng, dtype, 4000 if function == "additive_attention" else 60_000)
    options = draw_options(rng, arrays) | {"return_lse": True, "return_weights": one_in(rng, 3)}
    heads, lk = arrays[0].shape[1], arrays[1].shape[-2]
    if function == "additive_attention":
        options.pop("scale", None)
        if one_in(rng, 2):
            options["score_weight"] = randn(rng, (heads, arrays[0].shape[-1]))
    if function == "local_attention":
        options.setdefault("window_size", int(rng.integers(1, 40)))
        kind = rng.integers(4)
        if kind == 1:
            options["global_tokens"] = rng.integers(0, lk, 3)
        if kind == 2:
            options["dilation"] = int(rng.integers(1, 4))
        if kind == 3:
            options["centers"] = rng.uniform(0, lk, arrays[0].shape[:-1])
            options["sigma"] = 7.0
    if one_in(rng, 4):
        options |= {"dropout": 0.3, "dropout_seed": int(rng.integers(2**32))}
    if function == "attention" and "mask" not in options and one_in(rng, 4):
        blocks = (math.ceil(n / 16) for n in (arrays[0].shape[-2], lk))
        options["mask"] = attnfast.BlockMask(rng.random(tuple(blocks)) < 0.5, 16)
    return Problem(function, arrays, options)


def draw_scores(rng: np.random.Generator, function: str, dtype: Any) -> Problem:
    query, key, _ = draw_arrays(rng, dtype, 60_000)
    options = draw_options(rng, (query, key))
    if function == "attention_topk":
        options["k"] = int(rng.integers(1, min(key.shape[-2], 100) + 1))
    if function == "key_importance":
        options["per_kv_head"] = one_in(rng, 2)
    return Problem(function, (query, key), options)


def draw_packed(rng: np.random.Generator, function: str, dtype: Any) -> Problem:
    cu_q, cu_k = (np.cumsum([0, *rng.integers(0, 90, 6)]) for _ in range(2))
    heads = int(rng.choice([2, 4]))
    query = randn(rng, (cu_q[-1], heads, 64), dtype)
    key, value = (randn(rng, (cu_k[-1], 2, 64), dtype) for _ in range(2))
    options: Options = {"return_lse": True, "q_offset": "end"}
    if one_in(rng, 2):
        options["is_causal"] = True
    return Problem(function, (query, key, value, cu_q, cu_k), options)


def draw_stored(rng: np.random.Generator, function: str, dtype: Any) -> Problem:
    """In pages, in 8 bits, or both."""
    query, *arrays = draw_arrays(rng, dtype, 60_000)
    length = arrays[0].shape[-2]
    size = min(length, int(rng.choice([1, 2, 16, 16, 64])))
    arrays = [a[..., : length // size * size, :] for a in arrays]
    options = draw_options(rng, (query, *arrays))
    options |= {"return_lse": True, "return_weights": one_in(rng, 3)}
    plain, scales = arrays, []
    in_bytes = dtype != np.float64 and one_in(rng, 2)
    if in_bytes:
        kind = str(rng.choice(KINDS))
        arrays, scales = map(list, zip(*(attnfast.quantize(a, kind) for a in arrays), strict=True))
        numbers = zip(arrays, scales, strict=True)
        plain = [reference.stored.real_rows(a, np.float64, scale=s) for a, s in numbers]
    if not in_bytes or one_in(rng, 2):
        order = rng.integers(2**32)  # that of the pages, of numbers and of their scales
        fill = 0 if in_bytes else np.nan
        paged = [
            in_pages(np.random.default_rng(order), each, size, options, fill)
            for each in (arrays, scales)
            if each
        ]
        options["block_table"] = paged[0][1]
        arrays, scales = paged[0][0], paged[1][0] if in_bytes else []
    options |= dict(zip(("key_scale", "value_scale"), scales, strict=False))
    return Stored("attention", (query, *arrays), options, tuple(plain))


def draw_growing(rng: np.random.Generator, function: str, dtype: Any) -> Problem:
    batch, kv_heads, group = (int(n) for n in rng.integers(1, [3, 3, 4]))
    length = int(rng.integers(1, 150))
    d, dv = (int(n) for n in rng.choice([1, 8, 33, 64], 2))
    shapes = [(batch, kv_heads * group, length, d), (batch, kv_heads, length, d)]
    arrays = [randn(rng, s, dtype) for s in (*shapes, (batch, kv_heads, length, dv))]
    arrays = [lay_out(a, str(rng.choice(LAYOUTS))) for a in arrays]
    options: Options = {"capacity": length}
    if one_in(rng, 2):
        window, sinks = (int(n) for n in rng.integers([1, 0], [40, 5]))
        options = {"capacity": window + sinks, "window": window, "sinks": sinks}
    elif one_in(rng, 2):
        options = {"capacity": 1, "grow": True}
    cuts = rng.integers(0, length, int(rng.integers(0, 12)))
    pieces = (0, *sorted(int(n) for n in cuts), length)
    return Growing("KVCache", tuple(arrays), options, pieces)


def draw_training(rng: np.random.Generator, function: str, dtype: Any) -> Problem:
    function = function.removesuffix("_backward")
    problem = DRAWN[function](rng, function, dtype)
    problem.options.pop("return_weights", None)
    query, _, value, *_ = problem.arrays
    grad_output = randn(rng, (*query.shape[:-1], value.shape[-1]), dtype)
    trained = ("bias", "sink_logits", "alibi_slopes", "score_weight")
    wanted = ("query", "key", "value", *(name for name in trained if name in problem.options))
    return Training(function, problem.arrays, problem.options, grad_output, wanted)


DRAWN = {
    "attention": draw_attention,
    "local_attention": draw_attention,
    "additive_attention": draw_attention,
    "attention_topk": draw_scores,
    "attention_weights": draw_scores,
    "key_importance": draw_scores,
    "attention_varlen": draw_packed,
    "pages and bytes": draw_stored,
    "cache": draw_growing,
    "attention_backward": draw_training,
    "local_attention_backward": draw_training,
    "additive_attention_backward": draw_training,
    "attention_varlen_backward": draw_training,
}


def draw(rng: np.random.Generator) -> Problem:
    function = str(rng.choice(sorted(DRAWN)))
    dtype = DTYPES[rng.integers(len(DTYPES))]
    return DRAWN[function](rng, function, dtype)
