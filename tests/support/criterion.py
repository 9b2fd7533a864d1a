"""The accuracy criterion.

With x the exact result (`attnfast.reference` in a wider type) and plain the result
of plain NumPy attention in the kernels' own precision, a result y is accepted where

    |y - x| <= 2 max_row |plain - x| + rounding.

The first term alone would flake: by luck plain can be exact. `rounding` is therefore the
first-order bound of the errors that any order of summation must be allowed. A score s_ij carries an
absolute error of eps * E_ij, where E_ij adds up the magnitudes that were rounded on the way to it
(the terms of the dot product, the capped score, bias, ALiBi); an error e_ij in the scores moves the
weights by w_ij (e_ij - sum_k w_ik e_ik); and the sums over keys add a few eps of their absolute
terms. In float32 this comes to about 1e-6 at unit logits and grows with them, as the error does.

Additive scores are sums of w_d tanh(q_d + k_d + b_d). The library takes each tanh from the product
of exp(2q) and exp(2k), which costs it an eps or so however small the tanh is: 2 eps |w_d| per term.
A Gaussian exp(-t) of a distance d that multiplies a weight adds an error of (4 + 4t) eps to it, and
d / (2 sigma^2) eps for the rounding of the center's fraction.
"""

from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np

from attnfast import reference
from attnfast.reference.dropout import dropout_factor
from support.arrays import compute_dtype, same_batch, truth_dtype

POSITION_OPTIONS = {"q_offset", "q_lengths", "kv_lengths", "kv_starts"}
SCORE_OPTIONS = (
    *POSITION_OPTIONS,
    *("mask", "bias", "is_causal", "window_size", "scale", "softcap", "alibi_slopes"),
)
LOCAL_OPTIONS = ("global_tokens", "dilation", "centers")


def check(actual: Any, query: Any, key: Any, value: Any, **options: Any) -> None:
    """Assert that a result of `attention` (an array or an AttentionResult) meets the criterion."""
    Criterion(query, key, value, **options).check(actual)


def kept_of(shape: tuple[int, ...], options: dict[str, Any]) -> Any:
    """What dropout multiplies weights (..., H, Lq, Lk) by."""
    if not options.get("dropout"):
        return np.ones(shape)
    full = (1,) * (3 - len(shape)) + shape
    seed = options.get("dropout_seed", 0)
    return dropout_factor(full, options["dropout"], seed, 0).reshape(shape)


class Criterion:
    """The exact result of one call and how far a result may be from it.

    `function` is ``"attention"``, ``"local_attention"`` or ``"additive_attention"``; the options
    are those of that function. Bounds are worked out once, in float64, for all results judged.
    """

    def __init__(
        self, query: Any, key: Any, value: Any, *, function: str = "attention", **options: Any
    ) -> None:
        for name in ("return_lse", "return_weights", "out", "num_threads"):
            options.pop(name, None)
        query, key, value = same_batch(query, key, value)
        self.dtype = query.dtype.newbyteorder("=")
        self.eps = float(np.finfo(compute_dtype(self.dtype)).eps)
        self.tiny = float(np.finfo(compute_dtype(self.dtype)).tiny)
        self.truth = truth_dtype(self.dtype)
        everything = {**options, "return_lse": True, "return_weights": True}
        compute = getattr(reference, function)
        self.exact = compute(query, key, value, compute_dtype=self.truth, **everything)
        self.plain = compute(
            query, key, value, compute_dtype=compute_dtype(self.dtype), **everything
        )
        w = self.weights = self.exact.weights.astype(np.float64)
        self.value = _like_weights(value.astype(np.float64), w)
        self.kept = kept_of(w.shape, options)
        terms = self._additive if function == "additive_attention" else self._product
        self.score_error, self.biased = self._score_error(query, key, terms, options)
        self.excluded = self.biased == -np.inf
        # Keys whose weight could matter if every score were off by its error.
        top = self.biased.max(axis=-1, initial=-np.inf, keepdims=True)
        self.relevant = ~self.excluded & (self.biased + 2 * self.score_error > top - 40)
        # Rounding alone decides between the keys of such a row (a bias of -1e9 on all, say): first
        # order says nothing, only that the output is some mean of the values.
        self.worst_error = (self.relevant * self.score_error).max(axis=-1, initial=0)
        self.unresolved = self.worst_error > 0.05
        self.gaussian_error = self._gaussian_error(options)
        self.weighted_error = w * (self.score_error + self.gaussian_error)
        if options.get("sigma") is not None:
            named = (*SCORE_OPTIONS, *LOCAL_OPTIONS, "sink_logits")
            named_ = {name: x for name, x in options.items() if name in named}
            w = reference.attention_weights(query, key, **named_)
        self.softmax_weights = w  # without a Gaussian
        self.row_error = (w * self.score_error).sum(axis=-1)
        if options.get("sink_logits") is not None:
            sink = np.abs(np.asarray(options["sink_logits"], dtype=np.float64))
            share = np.clip(1 - w.sum(axis=-1), 0, 1)
            sink = sink[:, None] if w.ndim > 2 else sink
            self.row_error = self.row_error + 4 * self.eps * share * sink
        # Sums over keys: the library may add them up in another order than NumPy does.
        self.sum_error = self.eps * (8 + np.sqrt(w.shape[-1]))

    def _score_error(
        self, query: Any, key: Any, terms: Any, options: dict[str, Any]
    ) -> tuple[Any, Any]:
        """eps * E_ij, and the biased scores."""
        error, scores = terms(query, key, options)
        named = (*SCORE_OPTIONS, *LOCAL_OPTIONS)
        options = {name: options[name] for name in named if options.get(name) is not None}
        biased = reference.attention_weights(query, key, stage="biased", scores=scores, **options)
        # Zero queries leave the bias and ALiBi alone; with equal signs they cannot cancel.
        added = {name: options[name] for name in POSITION_OPTIONS if name in options}
        if "bias" in options:
            added["bias"] = -np.abs(np.asarray(options["bias"]).astype(np.float64))
        if "alibi_slopes" in options:
            added["alibi_slopes"] = np.abs(np.asarray(options["alibi_slopes"]).astype(np.float64))
        if len(added) > len(POSITION_OPTIONS & added.keys()):
            zeros = np.zeros_like(query), np.zeros_like(key)
            added = np.abs(reference.attention_weights(*zeros, stage="biased", **added))
        else:
            added = 0
        error = error + 4 * self.eps * np.abs(biased) + 6 * self.eps * added
        return np.where(biased == -np.inf, 0, error), biased

    def _product(self, query: Any, key: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        """The error of scale * q . k; the reference works out the scores."""
        scale = {} if options.get("scale") is None else {"scale": abs(options["scale"])}
        terms = reference.attention_weights(np.abs(query), np.abs(key), stage="scores", **scale)
        return self.eps * (2 + np.sqrt(query.shape[-1]) / 4) * terms, None

    def _additive(self, query: Any, key: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        """The error of sum_d w_d tanh(q_d + k_d + b_d), and the scores themselves."""
        q = query.astype(np.float64).reshape((*self.exact.lse.shape, 1, query.shape[-1]))
        k = _like_weights(key.astype(np.float64), self.weights)[..., None, :, :]
        parameters = options.get("score_weight"), options.get("score_bias")
        w, b = (
            np.asarray(default if a is None else a).astype(np.float64)[..., None, None, :]
            for a, default in zip(parameters, ([1.0], [0.0]), strict=True)
        )
        if q.ndim == 3:  # one head, without its axis
            w, b = (a.reshape(a.shape[-3:]) for a in (w, b))
        tanh = np.tanh(q + k + b)
        # The bias may be added to the query or to the key first.
        moved = np.abs(b) > 0
        each = 2 + (2 + np.sqrt(q.shape[-1]) / 4) * np.abs(tanh)
        each = each + moved * (1 - tanh**2) * (np.abs(q) + np.abs(k) + np.abs(b))
        return self.eps * (np.abs(w) * each).sum(axis=-1), (w * tanh).sum(axis=-1)

    def _gaussian_error(self, options: dict[str, Any]) -> Any:
        """The relative error of what multiplies the weights of local-p attention."""
        if options.get("sigma") is None:
            return 0
        centers, sigma = np.asarray(options["centers"]), options["sigma"]
        j = np.arange(self.weights.shape[-1])
        distance = np.abs(j - centers.astype(np.float64)[..., None])
        t = (distance / sigma) ** 2 / 2
        return self.eps * (4 + 4 * t + distance / (2 * sigma**2))

    def _ulp(self, x: Any) -> Any:
        """Rounding to the output's dtype, subnormal or not."""
        info = ml_dtypes.finfo(self.dtype)
        return float(info.eps) * np.abs(x) + float(info.smallest_subnormal)

    def _plain_error(self, plain: Any, exact: Any) -> Any:
        """The largest error of plain NumPy in each row."""
        rounded = plain.astype(self.dtype).astype(self.truth)
        return np.abs(rounded - exact).max(axis=-1, keepdims=True, initial=0).astype(np.float64)

    def check(self, result: Any) -> None:
        """Judge an output or an AttentionResult."""
        output, lse, weights = result if isinstance(result, tuple) else (result, None, None)
        assert output.dtype == self.dtype
        self.check_output(output)
        if lse is not None:
            assert lse.dtype == compute_dtype(self.dtype)
            self.check_lse(lse)
        if weights is not None:
            assert weights.dtype == self.dtype
            self.check_weights(weights)

    def check_biased(self, biased: Any) -> None:
        """Also for scores that overflow a 16-bit dtype."""
        with np.errstate(over="ignore", invalid="ignore"):
            low = (self.biased - self.score_error).astype(self.dtype)
            high = (self.biased + self.score_error).astype(self.dtype)
        np.testing.assert_array_equal(biased[self.excluded], -np.inf)
        assert ((low <= biased) & (biased <= high))[~self.excluded].all()

    def check_output(self, output: Any) -> None:
        output = np.asarray(output).astype(self.truth)
        assert_within(output, self.exact.output, self.output_allowed, "output")

    @cached_property
    def output_allowed(self) -> Any:
        exact, size = self.exact.output.astype(np.float64), np.abs(self.value)
        terms = self.weighted_error + self.sum_error * self.weights + 4 * self.tiny
        rounding = 1.2 * ((terms * self.kept) @ size + self.row_error[..., None] * np.abs(exact))
        plain = self._plain_error(self.plain.output, self.exact.output)
        allowed = 2 * plain + rounding + self._ulp(exact)
        for row in map(tuple, np.argwhere(self.unresolved)):
            values = (self.value[row[:-1]] * self.kept[row][:, None])[self.relevant[row]]
            reach = np.abs(np.concatenate([values, 0 * values[:1]]) - exact[row]).max(axis=0)
            allowed[row] = np.maximum(allowed[row], reach)
        return np.where(self.excluded.all(axis=-1)[..., None], 0, allowed)

    def check_lse(self, lse: Any) -> None:
        lse, exact = np.asarray(lse).astype(self.truth), self.exact.lse
        empty = exact == -np.inf
        np.testing.assert_array_equal(lse == -np.inf, empty, "rows with an lse of -inf")
        lse, exact, plain = (np.where(empty, 0, a) for a in (lse, exact, self.plain.lse))
        row_error = np.where(self.unresolved, self.worst_error, self.row_error)
        rounding = 1.2 * row_error + self.sum_error + 4 * self.eps * np.abs(exact)
        assert_within(lse, exact, 2 * np.abs(plain - exact) + rounding, "lse")

    def check_weights(self, weights: Any) -> None:
        weights = np.asarray(weights).astype(self.truth)
        assert_within(weights, self.exact.weights, self.weights_allowed, "weights")

    @cached_property
    def weights_allowed(self) -> Any:
        """How far each weight may be from the exact one."""
        w, row_error = self.weights, self.row_error[..., None] + self.sum_error
        # A key's own share of the mean error cancels: (1 - w_ij) e_ij - sum_{k != j} w_ik e_ik.
        own = 2 * w * self.softmax_weights * self.score_error
        rounding = 1.2 * (self.weighted_error - own + w * row_error) + 4 * self.tiny
        plain = self._plain_error(self.plain.weights, self.exact.weights)
        allowed = 2 * plain + rounding + self._ulp(self.weights)
        allowed = np.where(self.unresolved[..., None], 1.0, allowed)
        return np.where(self.excluded, 0, allowed)


def _like_weights(value: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Repeat the value's heads so that weights @ value is the output."""
    if weights.ndim == 2:
        return value.reshape(value.shape[-2:])
    if value.shape[-3]:
        value = np.repeat(value, weights.shape[-3] // value.shape[-3], axis=-3)
    return value


def assert_within(actual: np.ndarray, exact: np.ndarray, allowed: Any, name: str) -> None:
    assert actual.shape == exact.shape, f"{name} has shape {actual.shape}, not {exact.shape}"
    error = np.abs(actual - exact)
    wrong = ~(error <= allowed)
    if wrong.any():
        with np.errstate(all="ignore"):
            ratio = np.where(wrong, error / allowed, 0)
        at = np.unravel_index(np.nanargmax(np.where(np.isnan(ratio), np.inf, ratio)), ratio.shape)
        raise AssertionError(
            f"{name}[{', '.join(map(str, at))}] is {actual[at]!r}, exact {exact[at]!r}: error "
            f"{error[at]:.3g}, allowed {np.broadcast_to(allowed, error.shape)[at]:.3g} "
            f"({wrong.sum()} of {wrong.size} elements wrong)"
        )
