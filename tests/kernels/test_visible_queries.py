"""plan/visible_queries.h: the queries that see some keys, against the keys of every query."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnfast import _core

pytestmark = pytest.mark.quick

FAR = 2**58  # the largest position


def blocks(lk):
    """Every block of keys, as rows (begin, end)."""
    return np.array([(i, j) for i in range(lk) for j in range(i + 1, lk + 1)]).reshape(-1, 2)


def within(n, spans):
    """Which of n numbers each span [begin, end) holds."""
    return (np.arange(n) >= spans[:, :1]) & (np.arange(n) < spans[:, 1:])


def hulls(member):
    """From the first to the last member of each row; (0, 0) if there is none."""
    last = member.shape[1] - member[:, ::-1].argmax(1)
    both = np.stack([member.argmax(1), last], 1)
    return np.where(member.any(1)[:, None], both, 0)


def visibility(lq, lk, window, **options):
    """Which queries see any, and all, of every block of keys, pair by pair; what plan/ says."""
    every = blocks(lk)
    seen, of_any, of_all = _core.probe_visibility(lq, lk, window, every, **options)
    sees = within(lk, seen)[options.get("query_order", slice(None))]
    inside = within(lk, every)
    counts = sees.astype(int) @ inside.T.astype(int)
    return (counts > 0).T, (counts == inside.sum(1)).T, of_any, of_all


bound = st.none() | st.integers(0, 12)
offset = st.integers(-30, 30) | st.sampled_from([FAR, -FAR])


@st.composite
def calls(draw):
    lq, lk = draw(st.integers(1, 20)), draw(st.integers(1, 14))
    options = {}
    if draw(st.booleans()):
        options["q_offset"] = [draw(offset)]
    if draw(st.booleans()):
        options["q_length"] = [draw(st.integers(0, lq))]
    if draw(st.booleans()):
        options["kv_length"] = [draw(st.integers(0, lk))]
    if draw(st.booleans()):
        options["kv_start"] = [draw(st.integers(0, lk))]
    return lq, lk, (draw(bound), draw(bound)), options


@given(calls())
def test_windows_are_exact(call):
    lq, lk, window, options = call
    some, every, of_any, of_all = visibility(lq, lk, window, **options)
    assert (of_any == hulls(some)).all()
    assert (within(lq, of_any) == some).all()
    assert (of_all == hulls(every)).all()
    assert (within(lq, of_all) == every).all()


@given(calls(), st.data())
def test_gathered_keys(call, data):
    """Keys between two gathered ones leave queries in between that see neither."""
    lq, lk, window, options = call
    places = st.sets(st.integers(0, 40), min_size=lk, max_size=lk)
    options["key_position"] = sorted(data.draw(places))
    options["kv_length"] = [data.draw(st.integers(0, 41))]
    some, every, of_any, of_all = visibility(lq, lk, window, **options)
    assert (within(lq, of_any) >= some).all()
    assert (within(lq, of_all) == every).all()
    single = np.flatnonzero(np.diff(blocks(lk))[:, 0] == 1)
    assert (of_any[single] == hulls(some[single])).all()


@given(calls(), st.booleans(), st.booleans(), st.data())
def test_centers(call, causal, ordered, data):
    lq, lk, window, options = call
    exact = not causal and not (ordered and "q_length" in options)
    place = st.integers(-20, 30).map(float)
    if data.draw(st.booleans()):
        place, exact = st.floats(-20, 30) | st.sampled_from([1e300, -1e300]), False
    centers = np.array(data.draw(st.lists(place, min_size=lq, max_size=lq)))
    if not ordered:
        centers.sort()
    options |= {"centers": centers, "causal": causal}
    if ordered:
        options["query_order"] = np.argsort(centers, kind="stable")
    some, every, of_any, of_all = visibility(lq, lk, window, **options)
    assert (within(lq, of_any) >= some).all()
    assert (within(lq, of_all) <= every).all()
    if exact:
        assert (of_any == hulls(some)).all()
        assert (of_all == hulls(every)).all()


BOUNDS = list(product([0, 1, 3, None], [0, 2, None]))


def test_every_small_window():
    for window, offset, q, k in product(BOUNDS, range(-4, 7), [0, 3, 5], [0, 4, 6]):
        options = {"q_offset": [offset], "q_length": [q], "kv_length": [k]}
        some, every, of_any, of_all = visibility(5, 6, window, **options)
        assert (of_any == hulls(some)).all()
        assert (of_all == hulls(every)).all()


@pytest.mark.parametrize("centers", [[0, 1, 2, 3, 4], [-1, -1, 3, 3, 8], [2, 2, 2, 2, 2]])
def test_every_small_window_about_centers_with_causality(centers):
    for window, offset, q in product(BOUNDS, range(-4, 7), [3, 5]):
        options = {"q_offset": [offset], "q_length": [q], "centers": centers, "causal": True}
        some, every, of_any, of_all = visibility(5, 6, window, **options)
        assert (within(5, of_any) >= some).all()
        assert (within(5, of_all) == every).all()
        # As tight as windows and causality are by themselves.
        positions = visibility(5, 6, (None, 0), q_offset=[offset], q_length=[q])[0]
        del options["causal"]
        windows = visibility(5, 6, window, **options)[0]
        assert (within(5, of_any) <= within(5, hulls(windows))).all()
        assert (within(5, of_any) <= within(5, hulls(positions))).all()


@given(calls(), st.data())
def test_order_without_centers(call, data):
    """An order that says nothing of positions, as with global tokens."""
    lq, lk, window, options = call
    options["query_order"] = data.draw(st.permutations(range(lq)))
    some, every, of_any, of_all = visibility(lq, lk, window, **options)
    assert (within(lq, of_any) >= some).all()
    assert (within(lq, of_all) <= every).all()


def test_work_in_proportion_to_the_window():
    begin = np.arange(0, 64_000, 64)
    every = np.stack([begin, begin + 64], 1)
    _, of_any, of_all = _core.probe_visibility(64_000, 64_000, (256, 0), every)
    assert (of_any[:, 0] == begin).all()
    assert (of_any[:, 1] == np.minimum(64_000, begin + 64 + 256)).all()
    assert (of_all[:, 0] == begin + 63).all()
    assert (of_all[:, 1] == np.minimum(64_000, begin + 257)).all()
