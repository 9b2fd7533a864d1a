"""KVCache driven by random steps, beside a model of it: lists of the tokens that a row has seen.

After every step the cache must hold what the model says, and attend to it as plain attention over
those tokens does. Slots that hold nothing are poisoned before each look: none has influence.
"""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from attnfast import KVCache, quantize
from support.arrays import BYTES, DTYPES, randn, same_bits
from support.criterion import check

HEADS, D, DV = 2, 8, 6
EXAMPLES = settings.default.max_examples
POISONS = (np.nan, np.inf)


def stored(x, dtype):
    """The numbers that a cache holds for tokens: of 8 bits exact, in float64."""
    if dtype not in BYTES:
        return x
    small, scale = quantize(np.nan_to_num(x.astype(np.float32)), dtype.name)  # padding is NaN
    return small.astype(np.float64) * scale


def poison_of(dtype, rng):
    """What has no influence where nothing is held."""
    return 127 if dtype == np.int8 else np.array(rng.choice(POISONS)).astype(dtype)


class Row:
    """A text: every token that was appended, and how many the cache has seen at most."""

    def __init__(self, key=(), value=(), written=0):
        self.key, self.value, self.written = list(key), list(value), written

    def __len__(self):
        return len(self.key)

    def copy(self):
        return Row(self.key, self.value, self.written)


class Machine(RuleBasedStateMachine):
    """Steps of a cache with one batch axis."""

    @initialize(data=st.data())
    def make(self, data):
        draw = data.draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.dtype = draw(st.sampled_from([*DTYPES, *BYTES]))
        given_in = [dtype for dtype in DTYPES if dtype != np.float64]
        self.given = draw(st.sampled_from(given_in)) if self.dtype in BYTES else self.dtype
        self.window = draw(st.none() | st.integers(1, 9))
        self.sinks = draw(st.integers(0, 4)) if self.window else 0
        self.grow = not self.window and draw(st.booleans())
        extra = draw(st.sampled_from([0, 1, 5]))
        capacity = self.window + self.sinks + extra if self.window else draw(st.integers(0, 14))
        rows = draw(st.integers(1, 3))
        self.cache = KVCache(
            rows,
            HEADS,
            D,
            DV,
            capacity=capacity,
            dtype=self.dtype,
            window=self.window,
            sinks=self.sinks,
            grow=self.grow,
        )
        self.rows = [Row() for _ in range(rows)]

    # ---- the model ----

    def oldest(self, row):
        """The first token outside the sinks that the ring has not replaced."""
        return max(self.sinks, row.written - (self.cache.capacity - self.sinks))

    def visible(self, row, p):
        """The tokens that one at position p sees."""
        first = max(0, p - self.window + 1) if self.window else 0
        return [j for j in range(p + 1) if j < self.sinks or j >= first]

    def put(self, counts, k, v):
        k, v = stored(k, self.dtype), stored(v, self.dtype)
        for b, row in enumerate(self.rows):
            row.key += [k[b, :, i] for i in range(counts[b])]
            row.value += [v[b, :, i] for i in range(counts[b])]
            row.written = max(row.written, len(row))

    def too_long(self, counts):
        longest = max(len(row) + n for row, n in zip(self.rows, counts, strict=True))
        return not self.window and not self.grow and longest > self.cache.capacity

    def new(self, data, most=12):
        n = data.draw(st.integers(0, most))
        k, v = (randn(self.rng, (len(self.rows), HEADS, n, d), self.given) for d in (D, DV))
        if data.draw(st.booleans()):
            return k, v, None, [n] * len(self.rows)
        counts = [data.draw(st.integers(0, n)) for _ in self.rows]
        for b, count in enumerate(counts):  # what is padding is not read
            k[b, :, count:], v[b, :, count:] = np.nan, np.nan
        return k, v, np.array(counts), counts

    # ---- steps ----

    @rule(data=st.data())
    def append(self, data):
        k, v, lengths, counts = self.new(data)
        if self.too_long(counts):
            before = pickle.dumps(self.cache)
            with pytest.raises(ValueError, match="more tokens than there is room"):
                self.cache.append(k, v, lengths)
            assert pickle.dumps(self.cache) == before
            return
        self.cache.append(k, v, lengths)
        self.put(counts, k, v)

    @rule(data=st.data())
    def extend(self, data):
        k, v, lengths, counts = self.new(data, data.draw(st.sampled_from([1, 4, 30])))
        q = randn(self.rng, (len(self.rows), 2 * HEADS, k.shape[-2], D), self.given)
        if self.too_long(counts):
            return
        options = self.options(data, with_pairs=False)
        result = self.cache.extend(q, k, v, lengths, **options)
        self.put(counts, k, v)
        self.judge(result, q, counts, options)

    @rule(data=st.data())
    def attend(self, data):
        n = data.draw(st.integers(0, 3))
        q = randn(self.rng, (len(self.rows), 2 * HEADS, n, D), self.given)
        if not self.answers([n] * len(self.rows)):
            with pytest.raises(ValueError, match=r"query has .* extend\("):
                self.cache.attend(q)
            return
        options = self.options(data, with_pairs=True)
        self.judge(self.cache.attend(q, **options), q, [n] * len(self.rows), options)

    def answers(self, counts):
        """Whether the cache still has all that the last tokens see."""
        if not self.window or not max(counts):
            return True
        for row, n in zip(self.rows, counts, strict=True):
            if max(self.sinks, len(row) - n - self.window + 1) < self.oldest(row):
                return False
        return True

    def options(self, data, *, with_pairs):
        options = {}
        if data.draw(st.booleans()):
            options["alibi_slopes"] = self.rng.random(2 * HEADS)
        if data.draw(st.booleans()):
            options["softcap"] = 4.0
        if data.draw(st.booleans()):
            options["sink_logits"] = self.rng.random(2 * HEADS)
        if data.draw(st.booleans()):
            options["kv_starts"] = np.array([len(row) // 3 for row in self.rows])
        if with_pairs and data.draw(st.booleans()):
            slots = self.cache.key.shape[-2]
            options["mask"] = self.rng.random((len(self.rows), 1, 1, slots)) < 0.7
            options["bias"] = randn(self.rng, (len(self.rows), 2 * HEADS, 1, slots))
        return options

    @rule(data=st.data())
    def truncate(self, data):
        fewer = data.draw(st.none() | st.integers(1, 6))  # a ring can go back by a few
        lengths = [
            data.draw(st.integers(0, len(row))) if fewer is None else max(0, len(row) - fewer)
            for row in self.rows
        ]
        gone = [
            self.window and n > self.sinks and max(self.sinks, n - self.window) < self.oldest(row)
            for row, n in zip(self.rows, lengths, strict=True)
        ]
        if any(gone):
            with pytest.raises(ValueError, match="lengths must leave a window"):
                self.cache.truncate(lengths)
            return
        self.cache.truncate(lengths)
        for row, n in zip(self.rows, lengths, strict=True):
            del row.key[n:], row.value[n:]
            if n <= self.sinks:
                row.written = n

    @rule(data=st.data())
    def reorder(self, data):
        rows = st.integers(0, len(self.rows) - 1)
        size = st.just(len(self.rows)) | st.integers(1, 3)
        chosen = [data.draw(rows) for _ in range(data.draw(size))]
        self.cache.reorder(chosen)
        self.rows = [self.rows[b].copy() for b in chosen]

    @precondition(lambda self: len(self.rows) <= 2)
    @rule(n=st.integers(1, 2))
    def repeat(self, n):
        self.cache.repeat(n)
        self.rows = [row.copy() for row in self.rows for _ in range(n)]

    @rule(data=st.data())
    def clear(self, data):
        chosen = data.draw(st.none() | st.lists(st.integers(0, len(self.rows) - 1), max_size=2))
        self.cache.clear(chosen)
        for b in range(len(self.rows)) if chosen is None else chosen:
            self.rows[b] = Row()

    @rule()
    def pickle(self):
        self.cache = pickle.loads(pickle.dumps(self.cache))

    # ---- what must hold ----

    @invariant()
    def holds_what_it_should(self):
        if not hasattr(self, "cache"):
            return
        self.poison()
        cache, positions = self.cache, self.cache.positions
        keys, values = cache.key, cache.value
        assert cache.lengths.tolist() == [len(row) for row in self.rows]
        for b, row in enumerate(self.rows):
            held = {int(p): slot for slot, p in enumerate(positions[b]) if p >= 0}
            kept = range(len(row))
            if self.window:
                kept = [j for j in kept if j < self.sinks or j >= self.oldest(row)]
            assert sorted(held) == list(kept)
            for j, slot in held.items():
                assert same_bits(keys[b, :, slot], row.key[j].astype(keys.dtype))
                assert same_bits(values[b, :, slot], row.value[j].astype(values.dtype))
        if self.answers([1] * len(self.rows)):
            q = randn(self.rng, (len(self.rows), 2 * HEADS, 1, D), self.given)
            self.judge(cache.attend(q), q, [1] * len(self.rows), {})

    def poison(self):
        """Overwrites all slots that hold no token."""
        positions = self.cache.positions
        for b in range(len(self.rows)):
            unused = np.ones(self.cache.capacity, bool)
            unused[: positions.shape[-1]] = positions[b] < 0
            for a in self.cache._memory:
                a[b][:, unused] = poison_of(a.dtype, self.rng)

    def judge(self, result, q, counts, options):
        """Each query by itself, over the tokens that it sees."""
        positions = self.cache.positions
        for b, row in enumerate(self.rows):
            for i in range(q.shape[-2]):
                p = len(row) - counts[b] + i
                out = result[b, :, i]
                if i >= counts[b] or p < 0:
                    assert (out == 0).all()
                    continue
                seen = self.visible(row, p)
                seen = [j for j in seen if j >= options.get("kv_starts", [0] * 99)[b]]
                self.judge_one(out, q[b, :, i : i + 1], row, (p, seen), options, positions[b], b)

    def judge_one(self, out, q, row, place, options, positions, b):
        p, seen = place
        named = {n: options[n] for n in ("softcap", "sink_logits") if n in options}
        bias = np.zeros((2 * HEADS, 1, len(seen)))
        if "alibi_slopes" in options:
            bias -= options["alibi_slopes"][:, None, None] * np.abs(p - np.array(seen, int))
        if "mask" in options:
            slots = [int(np.flatnonzero(positions == j)[0]) for j in seen]
            named["mask"] = options["mask"][b][..., slots]
            bias += options["bias"][b][..., slots]
        dtype = np.float64 if self.dtype in BYTES else self.dtype
        key = np.array([row.key[j] for j in seen], dtype).reshape(-1, HEADS, D)
        value = np.array([row.value[j] for j in seen], dtype).reshape(-1, HEADS, DV)
        arrays = q, key.swapaxes(0, 1), value.swapaxes(0, 1)
        check(out[:, None], *arrays, bias=bias.astype(np.float64), **named)


Machine.TestCase.settings = settings(max_examples=3 * EXAMPLES // 5, stateful_step_count=20)
TestAnyHistory = Machine.TestCase


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=EXAMPLES // 5)
def test_a_long_text_in_a_small_ring(seed):
    """Positions grow, memory does not; extended by blocks of any size and by single tokens."""
    rng = np.random.default_rng(seed)
    window, sinks = int(rng.integers(1, 40)), int(rng.integers(0, 5))
    cache = KVCache(1, 1, D, capacity=window + sinks, window=window, sinks=sinks)
    total = 400
    q, k, v = randn(rng, (3, 1, 1, total, D))
    at, bytes_, parts = 0, cache.nbytes, []
    while at < total:
        n = min(int(rng.choice([1, 1, 2, 17, 90])), total - at)
        new = (a[:, :, at : at + n] for a in (q, k, v))
        parts.append(cache.extend(*new))
        at += n
    assert cache.nbytes == bytes_ and cache.lengths.tolist() == [total]
    i, j = np.arange(total)[:, None], np.arange(total)
    mask = (j <= i) & ((j < sinks) | (j > i - window))
    check(np.concatenate(parts, axis=-2), q, k, v, mask=mask)


@pytest.mark.parametrize("counts", [None, [1, 1], [1, 2]], ids=["even", "counted", "uneven"])
def test_what_a_ring_has_replaced_does_not_come_back(counts, rng):
    """Cut short, then written to again, but not as far as before."""
    k = randn(rng, (2, HEADS, 20, D))
    cache = KVCache(2, HEADS, D, capacity=9, window=4)
    cache.append(k, k)
    cache.truncate(16)
    n = 1 if counts is None else max(counts)
    cache.append(k[:, :, 16 : 16 + n], k[:, :, 16 : 16 + n], counts)
    for row, lengths in zip(cache.positions, cache.lengths, strict=True):
        assert sorted(p for p in row.tolist() if p >= 0) == list(range(11, lengths))
