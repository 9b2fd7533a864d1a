"""The accuracy criterion for what is said about keys: the heaviest ones, and what each receives."""

import numpy as np

from attnfast import AttentionTopK
from support.arrays import compute_dtype
from support.criterion import Criterion, assert_within


def check_topk(result, criterion, k):
    """Judge indices and weights by the criterion of the weights."""
    indices, weights = result
    exact, biased, excluded = criterion.exact.weights, criterion.biased, criterion.excluded
    assert isinstance(result, AttentionTopK)
    assert indices.dtype == np.int64 and weights.dtype == criterion.dtype
    assert indices.shape == weights.shape == (*exact.shape[:-1], k)
    weights = weights.astype(criterion.truth)

    count = (~excluded).sum(axis=-1, keepdims=True)
    named = np.arange(k) < count
    np.testing.assert_array_equal(indices >= 0, named)
    assert (indices[~named] == -1).all() and not weights[~named].any()
    assert (indices < exact.shape[-1]).all()
    in_order = np.sort(np.where(named, indices, exact.shape[-1] + np.arange(k)), axis=-1)
    assert (np.diff(in_order, axis=-1) > 0).all(), "a key is named twice"
    assert (np.diff(weights, axis=-1) <= 0).all(), "a lighter key comes before a heavier one"

    def of_named(a):
        return np.where(named, np.take_along_axis(a, np.maximum(indices, 0), axis=-1), 0)

    assert not of_named(excluded).any(), "a hidden key is named"
    assert_within(weights, of_named(exact), of_named(criterion.weights_allowed), "weights")
    # The r-th key is as heavy as the exact r-th, up to the errors of the scores that compete.
    order = np.argsort(-biased, axis=-1)[..., :k]
    best, error = (np.take_along_axis(a, order, axis=-1) for a in (biased, criterion.score_error))
    slack = np.maximum.accumulate(error, axis=-1) + of_named(criterion.score_error)
    with np.errstate(all="ignore"):
        lighter = named & (of_named(biased) < best - slack)
    assert not lighter.any(), f"a heavier key is left out at {np.argwhere(lighter)[0]}"


class Importance:
    """The exact result of one call, and how far a result may be from it."""

    def __init__(self, query, key, **options):
        self.dtype = compute_dtype(query.dtype.newbyteorder("="))
        # Weights are not rounded to 16 bits on the way.
        wide = query.astype(self.dtype), key.astype(self.dtype)
        criterion = Criterion(*wide, wide[1][..., :1], **options)
        self.truth, self.shape = criterion.truth, key.shape
        total = criterion.exact.weights.sum(axis=-2)
        summing = criterion.eps * (8 + np.sqrt(query.shape[-2])) * total
        self.total, self.allowed = total, criterion.weights_allowed.sum(axis=-2) + summing

    def check(self, actual, per_kv_head=False):
        assert actual.dtype == self.dtype
        total, allowed = self.total, self.allowed
        if per_kv_head and total.ndim > 1:
            kv_heads = self.shape[-3] if len(self.shape) > 2 else 1
            *batch, heads, lk = total.shape
            groups = (*batch, kv_heads, heads // kv_heads, lk)
            total, allowed = (a.reshape(groups).sum(axis=-2) for a in (total, allowed))
        assert_within(actual.astype(self.truth), total, allowed * 1.01, "importance")
