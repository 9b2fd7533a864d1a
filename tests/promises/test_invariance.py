"""The same inputs give the same bits: threads, runs, batches, memory layouts, flags."""

import itertools
import threading

import numpy as np
import pytest
from hypothesis import settings

import attnfast
from attnfast import _core
from support.arrays import DTYPES, assert_same, compute_dtype, qkv, randn, row_of, same_bits
from support.calls import CALLS
from support.draws import DRAWN, any_call
from support.layouts import LAYOUTS, lay_out, paired
from support.workers import with_every_thread

EXAMPLES = settings.default.max_examples
EVERYTHING = {"return_lse": True, "return_weights": True}
SHAPES = {
    "tiny": {"lq": 3, "lk": 5, "d": 8},
    "prefill": {"lq": 130, "lk": 300, "d": 40, "heads": 4, "kv_heads": 2},
    "decode": {"lq": 1, "lk": 3000, "d": 64, "heads": 8, "kv_heads": 2, "batch": (3,)},
    "decode one head": {"lq": 1, "lk": 16384, "d": 16, "heads": 1, "batch": ()},
    "speculative": {"lq": 7, "lk": 2500, "d": 33, "heads": 6, "kv_heads": 1},
    "long": {"lq": 600, "lk": 1400, "d": 16, "heads": 1, "batch": (1,)},
    "five blocks": {"blocks": 5, "lk": 300, "d": 24},  # of query lanes, whatever their number
}
OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True, "q_offset": "end"},
    "window": {"window_size": (300, 4), "q_offset": "end"},
    "alibi and softcap": {"alibi_slopes": 0.01, "softcap": 10.0, "q_offset": "end"},
    "mask": {"mask": True},
    "bias": {"bias": True},
    "lengths": {"kv_lengths": True},
    "starts": {"kv_starts": True},
    "sink": {"sink_logits": True},
}


def case(shape, options, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    sizes = dict(SHAPES[shape])
    if "blocks" in sizes:
        sizes["lq"] = sizes.pop("blocks") * _core.query_lanes(compute_dtype(dtype).name)
    q, k, v = qkv(rng, **sizes, dtype=dtype)
    options = dict(OPTIONS[options])
    full = (*q.shape[:-1], k.shape[-2])
    if "mask" in options:
        options["mask"] = rng.random(full) < 0.8
    if "bias" in options:
        options["bias"] = rng.standard_normal(full).astype(dtype)
    if "kv_starts" in options:
        options["kv_starts"] = rng.integers(0, full[-1] // 2, q.shape[:-3] or (1,))
    if "kv_lengths" in options:
        options["kv_lengths"] = rng.integers(full[-1] // 2, full[-1], q.shape[:-3] or (1,))
    if "alibi_slopes" in options:
        options["alibi_slopes"] = np.full(q.shape[-3], options["alibi_slopes"])
    if "sink_logits" in options:
        options["sink_logits"] = rng.standard_normal(q.shape[-3])
    return (q, k, v), options


# Every shape under every option in float32; in the other types each of both.
CASES = [
    *itertools.product(SHAPES, OPTIONS, DTYPES[:1]),
    *paired(list(SHAPES), list(OPTIONS), DTYPES[1:], times=3),
]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("shape", "options", "dtype"), CASES)
def test_threads_and_runs(shape, options, dtype):
    arrays, options = case(shape, options, dtype)
    first = attnfast.attention(*arrays, num_threads=1, return_lse=True, **options)
    for n in (1, 2, 3, 5, 8):
        options |= {"num_threads": n, "return_lse": True}
        again = with_every_thread(attnfast.attention, *arrays, **options)
        assert_same(first, again, f"{n} threads")


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", CALLS)
def test_threads_and_runs_of_every_function(name, rng):
    """More than one thread's work each, so that threads do share it."""
    for (lq, lk), dtype in paired([(3, 6000), (300, 700), (1500, 40)], DTYPES, times=1):
        arrays = [randn(rng, (2, n, 33), dtype) for n in (lq, lk, lk)]
        first = CALLS[name](*arrays, np.array, num_threads=1)
        for n in (2, 3, 5):
            again = with_every_thread(CALLS[name], *arrays, np.array, num_threads=n)
            assert_same(first, again, f"{n} threads")


@pytest.mark.quick
@pytest.mark.parametrize("name", DRAWN)
def test_threads_and_runs_of_any_call(name, each_isa):
    @any_call(name, EXAMPLES)
    def run(call):
        def compare() -> None:
            first = call.run_for_all(num_threads=1)
            for n in (1, 2, 3, 5, 8):
                again = with_every_thread(call.run_for_all, num_threads=n)
                assert_same(first, again, f"{n} threads")

        each_isa(compare)

    run()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", [name for name in SHAPES if SHAPES[name].get("batch") != ()])
def test_a_batch_row_alone_and_in_a_batch(shape, options):
    arrays, options = case(shape, options)
    whole = attnfast.attention(*arrays, **EVERYTHING, **options)
    for row in range(arrays[0].shape[0]):
        one = slice(row, row + 1)
        alone = dict(options)
        for name in ("mask", "bias", "kv_lengths", "kv_starts"):
            if name in options:
                alone[name] = options[name][one]
        single = attnfast.attention(*(a[one] for a in arrays), **EVERYTHING, **alone)
        assert_same(type(whole)(*(a[one] for a in whole)), single)


@pytest.mark.quick
@pytest.mark.parametrize("name", DRAWN)
def test_a_row_of_any_call_alone_and_in_a_batch(name, each_isa):
    @any_call(name, EXAMPLES // 2)
    def run(call):
        rows = list(call.alone())

        def compare() -> None:
            whole = call.run_for_all()
            for row, alone in rows:
                assert_same(row_of(whole, row), alone.run_for_all(), str(row))

        each_isa(compare)

    run()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", [n for n in SHAPES if SHAPES[n].get("heads", 2) > 1])
def test_a_group_of_heads_alone(shape, options):
    """Splits and blocks must not depend on how many heads there are."""
    (q, k, v), options = case(shape, options)
    whole = attnfast.attention(q, k, v, **EVERYTHING, **options)
    group = q.shape[-3] // k.shape[-3]
    for g in range(k.shape[-3]):
        heads = slice(g * group, (g + 1) * group)
        alone = dict(options)
        for name in ("mask", "bias"):
            if name in options:
                alone[name] = options[name][..., heads, :, :]
        for name in ("alibi_slopes", "sink_logits"):
            if name in options:
                alone[name] = options[name][heads]
        part = attnfast.attention(
            q[..., heads, :, :],
            *(a[..., g : g + 1, :, :] for a in (k, v)),
            **EVERYTHING,
            **alone,
        )
        assert same_bits(part.output, whole.output[..., heads, :, :])
        assert same_bits(part.lse, whole.lse[..., heads, :])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("shape", ["prefill", "decode", "speculative"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(layout, shape):
    (q, k, v), options = case(shape, "mask")
    first = attnfast.attention(q, k, v, **EVERYTHING, **options)
    options["mask"] = lay_out(options["mask"], layout)
    arrays = [lay_out(a, layout) for a in (q, k, v)]
    assert_same(first, attnfast.attention(*arrays, **EVERYTHING, **options))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_flags_do_not_change_the_output(shape, options):
    arrays, options = case(shape, options)
    output = attnfast.attention(*arrays, **options)
    with_lse = attnfast.attention(*arrays, return_lse=True, **options)
    both = attnfast.attention(*arrays, **EVERYTHING, **options)
    assert same_bits(output, with_lse.output) and same_bits(output, both.output)
    assert same_bits(with_lse.lse, both.lse)


@pytest.mark.quick
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", CALLS)
def test_many_python_threads_at_once(name, rng):
    """Each with its own problem, all repeated, none disturbed by the others."""
    arrays = [qkv(rng, *n, 24, kv_heads=1, batch=()) for n in [(1, 3000), (30, 70), (100, 140)]]
    expected = [CALLS[name](*a, np.array) for a in arrays]
    wrong, start = [], threading.Barrier(6)

    def work(i):
        start.wait()
        for n in range(8):
            result = CALLS[name](*arrays[i % 3], np.array, num_threads=1 + (n + i) % 3)
            try:
                assert_same(expected[i % 3], result)
            except AssertionError as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
