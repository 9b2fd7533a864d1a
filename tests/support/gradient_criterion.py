"""The accuracy criterion of gradients: at most 2 x the error of plain NumPy, plus rounding.

Rounding is the first-order bound of the errors that any order of summation must be allowed, as in
`support.criterion`: a gradient of a score is P (dP - delta), so an error e in the score moves it by
e times P (|dP| + sum_k P |dP|), and sums add a few eps of their absolute terms. A 16-bit output is
rounded, and so is the delta that is made of it.
"""

from typing import Any

import ml_dtypes
import numpy as np

from attnfast import reference
from attnfast.reference.gradients import choose, sum_to
from attnfast.reference.scores import arrange, scale_of, score_stages
from support.arrays import compute_dtype
from support.criterion import SCORE_OPTIONS, Criterion, assert_within

LOSS = ("grad_lse", "grad_weights")


def check_gradients(
    actual: Any,
    grad_output: Any,
    query: Any,
    key: Any,
    value: Any,
    *,
    function: str = "attention",
    **options: Any,
) -> None:
    """Judge the gradients of a call of `function` that are there."""
    options.pop("num_threads", None)
    dtype = np.asarray(query).dtype
    arrays = {"query": query, "key": key, "value": value}
    wanted = tuple(name for name, x in actual._asdict().items() if x is not None)
    call = (grad_output, query, key, value, None, None)
    forward = {n: x for n, x in options.items() if n not in LOSS}
    base = Criterion(query, key, value, function=function, **forward)
    backward = getattr(reference, f"{function}_backward")
    exact, plain = (
        backward(*call, wanted=wanted, compute_dtype=d, **options)
        for d in (base.truth, compute_dtype(dtype))
    )
    rounding = _rounding(base, grad_output, arrays, function, options)
    for name in wanted:
        given = np.asarray(arrays.get(name, options.get(name)))
        x, y = getattr(exact, name), getattr(actual, name)
        assert y.shape == given.shape, name
        if given.dtype.kind not in "iu":
            assert y.dtype == given.dtype.newbyteorder("="), name
        info = ml_dtypes.finfo(y.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = getattr(plain, name).astype(y.dtype).astype(base.truth)
        error = np.abs(rounded - x).max(initial=0)
        ulp = float(info.eps) * np.abs(x) + float(info.smallest_subnormal)
        assert_within(y.astype(base.truth), x, 2 * error + rounding[name] + ulp, name)


def _rounding(
    base: Criterion,
    grad_output: Any,
    arrays: dict[str, Any],
    function: str,
    options: dict[str, Any],
) -> dict[str, Any]:
    """What rounding may add up to in each gradient."""
    (q, k, v), _ = arrange(np.float64, *arrays.values())
    full = (*q.shape[:-1], k.shape[-2])
    w, softmax = base.weights.reshape(full), base.softmax_weights.reshape(full)
    kept = base.kept.reshape(full)
    g = np.abs(np.asarray(grad_output).astype(np.float64)).reshape((*full[:-1], v.shape[-1]))
    by_weight = kept * (g @ np.abs(v).swapaxes(-1, -2))
    if options.get("grad_weights") is not None:
        by_weight = by_weight + np.abs(options["grad_weights"].astype(np.float64)).reshape(full)
    mean = (w * by_weight).sum(axis=-1)
    if options.get("grad_lse") is not None:
        mean = mean + np.abs(options["grad_lse"]).reshape(full[:-1])
    summed = 16 + np.sqrt(full[-1]) + np.sqrt(full[-2] * full[-3])
    row_error = (base.row_error + 4 * base.eps * np.abs(_finite(base.exact.lse))).reshape(full[:-1])
    row_error = np.where(base.unresolved.reshape(full[:-1]), 1e6, row_error)
    score_error = base.score_error.reshape(full) + row_error[..., None]
    factor_error = np.broadcast_to(base.gaussian_error, base.weights.shape).reshape(full)
    relative = summed * base.eps + 2 * score_error + factor_error
    size = w * by_weight + softmax * mean[..., None]
    output = np.abs(base.exact.output.astype(np.float64)).reshape(g.shape)
    info = ml_dtypes.finfo(base.dtype)
    stored = float(info.eps) * output + float(info.smallest_subnormal)
    by_output = (g * stored).sum(axis=-1)
    scores = size * relative + softmax * by_output[..., None] + 4 * base.tiny
    if function == "additive_attention":
        grads = _of_tanhs(scores, size, q, k, base.eps, options)
    else:
        scale = abs(scale_of(q, options.get("scale")))
        grads = {
            "query": scale * scores @ np.abs(k),
            "key": scale * scores.swapaxes(-1, -2) @ np.abs(q),
        }
    grads["value"] = (w * relative * kept).swapaxes(-1, -2) @ g + 4 * base.tiny
    rounding = choose(grads, ("query", "key", "value"), **arrays)._asdict()
    for name in ("score_weight", "score_bias"):
        if options.get(name) is not None:
            rounding[name] = sum_to(grads[name], np.shape(options[name]))
    if options.get("bias") is not None:
        rounding["bias"] = sum_to(scores, np.shape(options["bias"]))
    if options.get("alibi_slopes") is not None:
        named = {n: options[n] for n in SCORE_OPTIONS if options.get(n) is not None}
        distance = score_stages(q, k, **named).distance
        by_slope = (scores * distance).sum(axis=(-2, -1))
        rounding["alibi_slopes"] = sum_to(by_slope, np.shape(options["alibi_slopes"]))
    if options.get("sigma") is not None:
        centers, sigma = np.asarray(options["centers"]).astype(np.float64), options["sigma"]
        away = np.abs(np.arange(full[-1]) - np.broadcast_to(centers, full[:-1])[..., None])
        by_center = (w * by_weight * relative * away).sum(axis=-1) / sigma**2
        rounding["centers"] = sum_to(by_center + 4 * base.tiny, centers.shape)
    if options.get("sink_logits") is not None:
        sink = np.asarray(options["sink_logits"]).astype(np.float64)[:, None]
        share = np.exp(np.minimum(sink - base.exact.lse.reshape(full[:-1]).astype(float), 0))
        by_sink = share * (mean * (summed * base.eps + 2 * row_error) + by_output)
        rounding["sink_logits"] = sum_to(by_sink.sum(axis=-1), sink.shape[:1])
    return rounding


def _of_tanhs(
    scores: Any, size: Any, q: Any, k: Any, eps: float, options: dict[str, Any]
) -> dict[str, Any]:
    """From errors and sizes of the gradients of scores, w tanh(q + k + b) a term.

    The derivative 1 - tanh^2 is off by some eps, and by twice itself times the error of the sum.
    """
    given = (options.get("score_weight"), options.get("score_bias"))
    weight, bias = (
        np.asarray(default if a is None else a).astype(np.float64)[..., None, None, :]
        for a, default in zip(given, ([1.0], [0.0]), strict=True)
    )
    x, y = q[..., :, None, :], k[..., None, :, :]
    tanh = np.tanh(x + y + bias)
    slope = 1 - tanh**2
    moved = eps * (4 + 2 * (np.abs(x) + np.abs(y) + np.abs(bias)))
    error, ds = scores[..., None], size[..., None]
    pairs = np.abs(weight) * (error * slope + ds * (2 * slope * moved + 8 * eps))
    by_weight = error * np.abs(tanh) + ds * (slope * moved + 8 * eps)
    return {
        "query": pairs.sum(axis=-2),
        "key": pairs.sum(axis=-3),
        "score_weight": by_weight.sum(axis=(-2, -3)),
        "score_bias": pairs.sum(axis=(-2, -3)),
    }


def _finite(a: Any) -> Any:
    return np.where(np.isfinite(a), a, 0).astype(np.float64)
