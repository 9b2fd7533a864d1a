"""PagedKVCache driven by random steps, beside a model of it: lists of the tokens of each text.

After every step no page is lost or written by two texts, each text holds what the model says, and
attends to it as plain attention does. Free pages and unused slots are poisoned before each look.
"""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import attnfast
from attnfast import PagedKVCache, quantize
from support.arrays import BYTES, DTYPES, assert_same, randn, same_bits
from support.criterion import check

HEADS, D, DV = 2, 8, 6


def stored(x, dtype):
    """The numbers that a cache holds for tokens: of 8 bits exact, in float64."""
    if dtype not in BYTES:
        return x
    small, scale = quantize(np.nan_to_num(x.astype(np.float32)), dtype.name)  # padding is NaN
    return small.astype(np.float64) * scale


def in_use(cache):
    """Which slots of which pages hold a token, and how many texts have each page."""
    used = np.zeros((cache.num_pages, cache.page_size), bool)
    shares = np.zeros(cache.num_pages, int)
    for pages, length in zip(cache.block_table, cache.lengths, strict=True):
        for n, page in enumerate(pages[: -(-length // cache.page_size)]):
            used[page, : length - n * cache.page_size] = True
            shares[page] += 1
    return used, shares


class Machine(RuleBasedStateMachine):
    """Steps of a cache; `texts` has the keys and values of each row."""

    @initialize(data=st.data())
    def make(self, data):
        draw = data.draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.dtype = draw(st.sampled_from([*DTYPES, *BYTES]))
        given_in = [dtype for dtype in DTYPES if dtype != np.float64]
        self.given = draw(st.sampled_from(given_in)) if self.dtype in BYTES else self.dtype
        rows, pages, size = (draw(st.integers(*limits)) for limits in ((0, 2), (0, 12), (1, 5)))
        options = {"pages": pages, "page_size": size, "dtype": self.dtype}
        self.cache = PagedKVCache(rows, HEADS, D, DV, **options)
        self.texts = {row: ([], []) for row in range(rows)}

    def rows(self, data):
        """Some rows, or None for all of them."""
        there = sorted(self.texts)
        chosen = data.draw(st.none() | st.lists(st.sampled_from(there), unique=True, max_size=3))
        return chosen, there if chosen is None else chosen

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def append(self, data):
        chosen, rows = self.rows(data)
        n = data.draw(st.sampled_from([0, 1, 1, 2, 7]))
        new = [randn(self.rng, (len(rows), HEADS, n, d), self.given) for d in (D, DV)]
        counts, lengths = [n] * len(rows), None
        if data.draw(st.booleans()):
            lengths = np.array(counts := [data.draw(st.integers(0, n)) for _ in rows], int)
            for r, count in enumerate(counts):
                for part in new:
                    part[r, :, count:] = np.nan
        before, free = pickle.dumps(self.cache), self.cache.free_pages
        needed = self.pages_for(rows, counts)
        if needed > free:
            with pytest.raises(MemoryError, match=rf"pages must be {needed} more .* and {free} of"):
                self.cache.append(*new, lengths, chosen)
            assert pickle.dumps(self.cache) == before
            return
        self.cache.append(*new, lengths, chosen)
        assert self.cache.free_pages == free - needed
        parts = [stored(part, self.dtype) for part in new]
        for r, row in enumerate(rows):
            for held, part in zip(self.texts[row], parts, strict=True):
                held += [part[r, :, i] for i in range(counts[r])]

    def pages_for(self, rows, counts):
        """New pages, and copies: of texts that write to one page, the last owner keeps it."""
        size, used, copies = self.cache.page_size, 0, 0
        table = dict(zip(self.cache.rows.tolist(), self.cache.block_table, strict=True))
        shares = in_use(self.cache)[1]
        for row, count in zip(rows, counts, strict=True):
            length = len(self.texts[row][0])
            used += -(-(length + count) // size) - -(-length // size)
            if count and length % size and shares[page := table[row][length // size]] > 1:
                shares[page] -= 1
                copies += 1
        return used + copies

    @rule()
    def add(self):
        row = self.cache.add()
        assert row not in self.texts
        self.texts[row] = ([], [])

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def fork(self, data):
        row, free = data.draw(st.sampled_from(sorted(self.texts))), self.cache.free_pages
        new = self.cache.fork(row)
        assert new not in self.texts and self.cache.free_pages == free
        self.texts[new] = tuple(list(part) for part in self.texts[row])

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def free(self, data):
        row = data.draw(st.sampled_from(sorted(self.texts)))
        self.cache.free(row)
        del self.texts[row]
        for call in (self.cache.free, self.cache.fork):
            with pytest.raises(ValueError, match=rf"row must be of .*, got {row}"):
                call(row)

    @rule(kind=st.sampled_from([copy.copy, lambda a: pickle.loads(pickle.dumps(a))]))
    def replace_by_a_copy(self, kind):
        old, self.cache = self.cache, kind(self.cache)
        for own in old._memory:  # which shares nothing with it
            own[...] = 0
        for row in list(old.rows):
            old.free(row)

    # ---- what must hold ----

    @invariant()
    def holds_what_it_should(self):
        if not hasattr(self, "cache"):
            return
        cache = self.cache
        used, shares = in_use(cache)
        assert cache.free_pages == (shares == 0).sum()
        assert cache.rows.tolist() == sorted(self.texts)
        for own in cache._memory:
            poison = 127 if own.dtype == np.int8 else np.array(np.nan).astype(own.dtype)
            np.copyto(own, poison, where=~used[:, None, :, None])
        keys, values = cache.key, cache.value
        for row, pages, length in zip(
            sorted(self.texts), cache.block_table, cache.lengths, strict=True
        ):
            assert length == len(self.texts[row][0])
            for pool, held in zip((keys, values), self.texts[row], strict=True):
                for j, token in enumerate(held):
                    page, slot = pages[j // cache.page_size], j % cache.page_size
                    assert same_bits(pool[page, :, slot], token.astype(pool.dtype))
        self.attends(n=1)

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), n=st.integers(0, 9))
    def attends_to_some(self, data, n):
        self.attends(n, data)

    def attends(self, n, data=None):
        chosen, rows = (None, sorted(self.texts)) if data is None else self.rows(data)
        q = randn(self.rng, (len(rows), 2 * HEADS, n, D), self.given)
        options = {} if data is None else {"softcap": 4.0, "window_size": (3, -1)}
        result = self.cache.attend(q, chosen, **options)
        dtype = np.float64 if self.dtype in BYTES else self.dtype
        for r, row in enumerate(rows):
            held = (
                np.array(part, dtype).reshape(-1, HEADS, w)
                for part, w in zip(self.texts[row], (D, DV), strict=True)
            )
            key, value = (part.swapaxes(0, 1) for part in held)
            check(result[r], q[r], key, value, is_causal=True, q_offset="end", **options)


Machine.TestCase.settings = settings(max_examples=40, stateful_step_count=15)
TestAnyHistory = Machine.TestCase


def filled(rng, n=40, dtype=np.float32, **options):
    cache = PagedKVCache(2, HEADS, D, DV, **{"pages": 12, "dtype": dtype, **options})
    new = [randn(rng, (2, HEADS, n, d)) for d in (D, DV)]
    cache.append(*new)
    return cache, *new


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_memory(dtype, rng):
    cache, k, v = filled(rng, dtype=dtype)
    token = (D + DV) * np.dtype(dtype).itemsize + (8 if dtype == np.int8 else 0)
    assert cache.nbytes == 12 * 16 * HEADS * token
    assert cache.free_pages == 6 and cache.lengths.tolist() == [40, 40]
    assert len(pickle.dumps(cache)) < 6 * 16 * HEADS * token + 3000
    other = cache.fork(1)
    assert cache.free_pages == 6 and cache.block_table[2].tolist() == cache.block_table[1].tolist()
    cache.append(k[:1, :, :1], v[:1, :, :1], rows=other)
    assert cache.free_pages == 5 and (cache.block_table[2] == cache.block_table[1]).sum() == 2
    with pytest.raises(MemoryError, match=r"pages must be 10 more for these tokens, and 5 of 12"):
        cache.append(*(np.repeat(a[:1], 4, axis=2) for a in (k, v)), rows=[0])
    cache.free(0)
    cache.append(*(np.repeat(a[:1], 2, axis=2) for a in (k, v)), rows=[other])
    assert cache.add() == 0 and cache.lengths.tolist() == [0, 40, 121]
    assert repr(cache) == (
        f"PagedKVCache(3, 2, 8, 6, pages=12, page_size=16, dtype='{np.dtype(dtype).name}'): "
        "3 pages free"
    )


@pytest.mark.quick
def test_no_memory_and_no_pages():
    for pages in (2**48, 2**62, 2**80):
        with pytest.raises(MemoryError):
            PagedKVCache(1, 1, 8, pages=pages)
    none = PagedKVCache(0, 1, 8, pages=0)
    assert none.attend(np.zeros((0, 2, 3, 8), np.float32)).shape == (0, 2, 3, 8)
    assert not none.attend(np.ones((1, 2, 3, 8), np.float32), none.add()).any()


@pytest.mark.quick
def test_attend_takes_the_options_of_attention(rng):
    cache, _, _ = filled(rng, page_size=5, pages=20)
    cache.append(*(randn(rng, (1, HEADS, 3, d)) for d in (D, DV)), rows=[1])
    q = randn(rng, (2, 2 * HEADS, 3, D))
    stored = {"block_table": cache.block_table, "kv_lengths": cache.lengths}
    stored |= {"is_causal": True, "q_offset": "end"}
    each = {
        "mask": rng.random((2, 1, 3, 45)) < 0.5,
        "bias": randn(rng, (45,)),
        "window_size": (5, 0),
        "q_lengths": [3, 1],
        "kv_starts": [7, 2],
        "scale": 0.5,
        "softcap": 3.0,
        "alibi_slopes": rng.random(4),
        "sink_logits": np.ones(4),
        "return_lse": True,
        "return_weights": True,
        "num_threads": 2,
    }
    for options in ({}, *({name: x} for name, x in each.items()), each):
        expected = attnfast.attention(q, cache.key, cache.value, **stored, **options)
        assert_same(cache.attend(q, **options), expected)
    out = np.zeros((2, 4, 3, DV), np.float32)
    assert cache.attend(q, out=out) is out
    with pytest.raises(TypeError, match=r"^kv_lengths is not an argument of PagedKVCache\.attend"):
        cache.attend(q, kv_lengths=[1, 1])


@pytest.mark.quick
@pytest.mark.parametrize("step", ["_copy_page", "_write"])
def test_an_interrupt_loses_no_page(step, rng, monkeypatch):
    """Texts are as they were, and pages that had been taken are theirs or free."""
    cache, k, v = filled(rng)
    other = cache.fork(0)
    before = [np.array(cache.attend(np.ones((3, 4, 1, D), np.float32)))]

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.append(k[:1], v[:1], rows=[other])
    monkeypatch.undo()
    assert cache.lengths.tolist() == [40, 40, 40]
    assert same_bits(cache.attend(np.ones((3, 4, 1, D), np.float32)), before[0])
    cache.append(k[:1], v[:1], rows=[other])
    for row in (0, 1, other):
        cache.free(row)
    assert cache.free_pages == 12


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_a_fork_that_goes_on_is_like_a_text_of_its_own(dtype, rng):
    """Also the scales of the page that the two texts shared."""
    cache, k, v = filled(rng, dtype=dtype)
    k *= 100 * rng.random((1, HEADS, 40, 1)).astype(np.float32)
    cache.free(0)
    row = cache.add()
    cache.append(k[:1], v[:1], rows=[row])
    other, alone = cache.fork(row), cache.add()
    cache.append(k[:1], v[:1], rows=[alone])
    q = randn(rng, (1, 4, 1, D))
    for place in (other, alone):
        cache.append(k[1:, :, :3], v[1:, :, :3], rows=[place])
    assert same_bits(cache.attend(q, other), cache.attend(q, alone))


@pytest.mark.quick
def test_own_tokens_may_be_appended_again(rng):
    cache, _, _ = filled(rng)
    other = pickle.loads(pickle.dumps(cache))
    pages = cache.key[5:6, :, :9], cache.value[5:6, :, :9]
    copies = [a.copy() for a in pages]
    cache.append(*pages, rows=[1])
    other.append(*copies, rows=[1])
    q = np.ones((2, 4, 1, D), np.float32)
    assert same_bits(cache.attend(q), other.attend(q))


def test_all_pages_may_be_appended_in_other_places(rng):
    cache = PagedKVCache(2, 1, D, D, pages=2, page_size=3)
    a = rng.standard_normal((2, 1, 3, D), dtype=np.float32)
    cache.append(a, a)
    for row in (0, 1):
        cache.free(row)
        cache.add()
    cache.append(cache.key, cache.value)
    assert same_bits(cache.key[cache.block_table[:, 0]], a)
    assert cache.block_table.tolist() == [[1], [0]]


@pytest.mark.quick
def test_a_text_alone_or_beside_others(rng):
    cache, _, _ = filled(rng, pages=100)
    long = cache.add()
    cache.append(*(randn(rng, (1, HEADS, 900, d)) for d in (D, DV)), rows=[long])
    for n in (1, 3, 30):
        q = randn(rng, (3, 4, n, D))
        whole = cache.attend(q)
        for row in range(3):
            assert same_bits(cache.attend(q[row : row + 1], row)[0], whole[row])
