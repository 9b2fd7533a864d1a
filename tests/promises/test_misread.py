"""What users of other libraries pass: the sentence that says what to write, and nothing written.

No call may be read in another way than it was meant: a mask without the axis of heads, a mask of 0
and 1, centers of the other algorithm, one state for each batch row without its length.
"""

import re

import ml_dtypes
import numpy as np
import pytest

import attnfast
from attnfast import BlockMask
from attnfast._misread import check_axes
from attnfast.layers import (
    AdditiveAttention,
    Attention,
    BahdanauAttention,
    LuongAttention,
    MultiHeadAttention,
)
from support.arrays import qkv, same_bits
from support.criterion import Criterion, check

pytestmark = pytest.mark.quick


INF = float("inf")
FUNCTIONS = {
    "attention": {},
    "attention_weights": {},
    "plan": {},
    "local_attention": {"window_size": 2},
    "additive_attention": {},
    "attention_topk": {"k": 2},
    "key_importance": {},
}


def arguments(function, batch=(4,), heads=4, lq=6, lk=6):
    """Arrays whose batch axes, heads and lengths may be equal by chance."""
    q, k, v = qkv(np.random.default_rng(0), lq, lk, 8, heads=heads, batch=batch)
    given = {"query": q, "key": k, "q_offset": 0, **FUNCTIONS[function]}
    if function in ("attention", "plan", "local_attention", "additive_attention"):
        given |= {"value": v, "out": np.full_like(q, 7)}
    return given


def assert_refused(function, kind, name, message, given):
    """Assert that a call raises, speaks of the argument `name` first, and writes to no array."""
    before = {n: x.copy() for n, x in given.items() if isinstance(x, np.ndarray)}
    with pytest.raises(kind, match=re.escape(message)) as caught:
        getattr(attnfast, function)(**given)
    assert str(caught.value).startswith(name), str(caught.value)
    for n, x in before.items():
        assert x.dtype == object or same_bits(x, given[n]), f"{n} was written"


def refused(function, name, bad, message, kind=ValueError, **shape):
    given = {**arguments(function, **shape), name: bad}
    assert_refused(function, kind, name, message, given)


# ---- shapes of masks ----


AXES = [
    # The batch axes, heads and length of a call; the shape of a mask; a part of the error message.
    ((3,), 4, 6, (3, 6, 6), "does not broadcast to (3, 4, 6, 6): write {}[:, None]"),
    ((3,), 4, 6, (3, 1, 6), "write {}[:, None]"),
    ((4,), 4, 6, (4, 6, 6), "two ways: write {}[:, None] if it is (batch, Lq, Lk), {}[None] if"),
    ((4,), 4, 6, (4, 6, 6), "{}[None] if it is (heads, Lq, Lk)"),
    ((4,), 4, 6, (4, 1, 6), "write {}[:, None] if it is (batch, Lq, Lk)"),
    ((3,), 4, 6, (3, 6), "does not broadcast to (3, 4, 6, 6): write {}[:, None, None, :]"),
    ((6,), 4, 6, (6, 6), "write {}[:, None, None, :] if it is (batch, Lk), {}[None, None] if it"),
    ((6,), 4, 6, (6, 6), "{}[None, None] if it is (Lq, Lk)"),
    ((4, 4), 4, 6, (4, 4, 6, 6), "{}[:, :, None] if it is (batch, batch, Lq, Lk), {}[None] if"),
    ((2, 3), 4, 6, (2, 3, 6, 6), "write {}[:, :, None]"),
    ((2, 3), 4, 6, (2, 3, 6), "write {}[:, :, None, None, :]"),
    ((1, 4), 4, 6, (1, 4, 6, 6), "two ways"),
]


@pytest.mark.parametrize("name", ["mask", "bias"])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("batch", "heads", "length", "shape", "message"), AXES)
def test_an_array_for_each_batch_row_without_heads(
    batch, heads, length, shape, message, function, name
):
    bad = np.ones(shape, bool if name == "mask" else np.float32)
    sizes = {"batch": batch, "heads": heads, "lq": length, "lk": length}
    refused(function, name, bad, message.format(name, name), **sizes)


def test_a_key_mask_is_told_of_lengths():
    refused("attention", "mask", np.ones((3, 6), bool), ", or kv_lengths if it is", batch=(3,))


@pytest.mark.parametrize("batch", [(4,), (6,), (2, 4), (4, 4)], ids=str)
def test_what_is_advised_is_accepted_and_right(batch):
    """Both readings, where the shape alone does not say which is meant."""
    q, k, v = qkv(np.random.default_rng(0), 6, 6, heads=4, batch=batch)
    rng, n = np.random.default_rng(1), len(batch)
    every, rows = [slice(None)] * n, (*[slice(None)] * n, None)
    for per_row, index in [((6, 6), rows), ((6,), (*every, None, None, slice(None)))]:
        mask = rng.random((*batch, *per_row)) < 0.6
        check(attnfast.attention(q, k, v, mask=mask[index]), q, k, v, mask=mask[index])
        missing = n + 3 - mask.ndim
        full = (1,) * missing + mask.shape
        try:
            np.broadcast_shapes(full, (*batch, 4, 6, 6))
        except ValueError:
            continue
        aligned = mask[(None,) * missing]
        check(attnfast.attention(q, k, v, mask=aligned), q, k, v, mask=mask)


@pytest.mark.parametrize(
    ("batch", "shape"),
    [
        ((), (6, 6)),
        ((), (4, 6, 6)),
        ((), (4, 1, 6)),
        ((3,), (6, 6)),
        ((3,), (4, 6, 6)),
        ((1,), (1, 6, 6)),
        ((1,), (1, 6)),
        ((1,), (4, 6, 6)),
        ((4,), (1, 6, 6)),
        ((4,), (4, 1, 6, 6)),
        ((4,), (1, 4, 6, 6)),
        ((6,), (6,)),
        ((6,), (1, 6)),
        ((2, 2), (4, 6, 6)),
        ((1, 1), (1, 1, 6, 6)),
        ((2, 4), (4, 4, 6, 6)),
    ],
    ids=str,
)
def test_shapes_that_can_be_read_in_one_way(batch, shape, rng):
    q, k, v = qkv(rng, 6, 6, heads=4, batch=batch)
    mask = rng.random(shape) < 0.6
    check(attnfast.attention(q, k, v, mask=mask), q, k, v, mask=mask)


@pytest.mark.parametrize("dtype", [int, float])
def test_centers_for_each_batch_row(dtype):
    more = {} if dtype is int else {"sigma": 1.0}
    q, k, v = qkv(np.random.default_rng(0), 6, 6, heads=4, batch=(4,))
    for rows, message in [
        (3, r"^centers .*\(3, 6\).*\(3, 4, 6\): write centers\[:, None\]$"),
        (4, r"^centers .*\[:, None\] if it is \(batch, Lq\), .*\[None\] if it is \(heads, Lq\)$"),
    ]:
        centers = np.ones((rows, 6), dtype)
        with pytest.raises(ValueError, match=message):
            attnfast.local_attention(q[:rows], k[:rows], v[:rows], 2, centers=centers, **more)
    for legal in (np.ones((4, 1, 6)), np.ones((1, 4, 6)), np.ones(6)):
        attnfast.local_attention(q, k, v, 2, centers=legal.astype(dtype), **more)
    attnfast.local_attention(q[..., :4, :], k, v, 2, centers=np.ones(4, dtype), **more)


@pytest.mark.parametrize("size", [1, 3])
def test_leading_axes_of_a_block_mask_are_heads(size, rng):
    q, k, v = qkv(rng, 6, 6, heads=4, batch=(4,))
    mask = BlockMask(rng.random((4, 6 // size, 6 // size)) < 0.6, size)
    expected = attnfast.attention(q, k, v, mask=mask.dense(6, 6)[None])
    assert same_bits(attnfast.attention(q, k, v, mask=mask), expected)
    rows = BlockMask(mask.blocks[:3], size)
    advice = "write BlockMask(mask.blocks[:, None], mask.block_size)"
    refused("attention", "mask", rows, advice, batch=(3,))
    given = {**arguments("attention", (3,)), "mask": BlockMask(rows.blocks[:, None], size)}
    attnfast.attention(**given)


def test_the_rule_of_axes_by_hand():
    def error_of(shape, batch=(4,), last=(4, 6, 7), **more):
        try:
            check_axes("mask", shape, batch, last, **more)
        except ValueError as error:
            return str(error)
        return None

    for shape in [(6, 7), (7,), (), (4, 1, 6, 7), (1, 7)]:
        assert error_of(shape) is None
    assert error_of((4, 6, 7)).endswith("mask[None] if it is (heads, Lq, Lk)")
    assert error_of((4, 7), last=(4, 4, 7)).endswith("mask[None, None] if it is (Lq, Lk)")
    assert error_of((4, 6, 7), blocks=True) is None
    assert error_of((1, 6, 7), batch=(1,)) is None
    assert error_of((5, 7)) == "mask has shape (5, 7), which does not broadcast to (4, 4, 6, 7)"


# ---- dtypes of masks ----


CAUSAL = np.tril(np.ones((6, 6)))
ADDITIVE = np.where(CAUSAL, 0, -INF)
BIG = np.where(CAUSAL, 0, -10000)
SHOWN, ADDED = "write mask != 0", "write bias=mask"
MASKS = [
    (CAUSAL, "float64 of 0 and 1: write mask != 0 if 1 is visible, mask == 0 if 1 hides"),
    (CAUSAL.astype(np.float32), SHOWN),
    (CAUSAL.astype(ml_dtypes.bfloat16), SHOWN),
    (CAUSAL.astype(np.uint8), SHOWN),
    (CAUSAL.astype(int), "int64 of 0 and 1: write mask != 0"),
    (255 * CAUSAL.astype(np.uint8), SHOWN),
    (np.ones((6, 6)), SHOWN),
    (CAUSAL.tolist(), "write np.asarray(mask) != 0"),
    (ADDITIVE, ADDED),
    (ADDITIVE.astype(np.float16), ADDED),
    (ADDITIVE.astype(ml_dtypes.bfloat16), ADDED),
    (BIG.astype(np.float32), ADDED),
    (BIG, "write bias=mask.astype(np.float32)"),
    (BIG.tolist(), "write bias=np.asarray(mask).astype(np.float32)"),
    (0.5 * CAUSAL, ADDED),
    (CAUSAL - 2, ADDED),
    (np.zeros((6, 6)), "write bias=mask if 0 is added to the scores, mask != 0 if 0 hides"),
    (np.zeros((6, 6), int), "write bias=mask.astype(np.float32) if 0 is added to the scores, mask"),
    (np.full((6, 6), np.nan), ADDED),
    (
        ~CAUSAL.astype(int),
        "of -1 and -2, which ~ makes of 0 and 1: write mask != -1 for what was 1 before",
    ),
    (np.array("causal"), "write is_causal=True"),
    (lambda i, j: i > j, "write mask=BlockMask.from_function(mask, Lq, Lk, block_size)"),
]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("mask", "message"), MASKS)
def test_masks_that_are_not_bool(mask, message, function):
    refused(function, "mask", mask, message, TypeError, batch=(2,))


def advised(mask):
    """The keywords that the message writes, evaluated."""
    with pytest.raises(TypeError) as caught:
        attnfast.attention(np.ones((6, 2)), np.ones((6, 2)), np.ones((6, 2)), mask=mask)
    ends = " if 1 is visible, .* == 0 if 1 hides| for what.*"
    written = re.search(rf": write (.*?)({ends})?$", str(caught.value))[1]
    written = written if written.startswith("bias=") else f"mask={written}"
    return eval(f"dict({written})", {"mask": mask, "np": np})


OF_ONE_MEANING = [mask for mask, message in MASKS[:-3] if "if 0" not in message]


@pytest.mark.parametrize("mask", OF_ONE_MEANING)
def test_advice_does_not_turn_a_mask_round(mask):
    options = advised(mask)
    x = np.random.default_rng(0).standard_normal((6, 2))
    if "mask" in options:
        assert options["mask"].dtype == bool
        np.testing.assert_array_equal(options["mask"], np.asarray(mask) > 0)
        return
    bias = np.asarray(mask).astype(np.float64)
    weights = attnfast.attention_weights(x, x, bias=options["bias"])
    assert same_bits(weights, attnfast.attention_weights(x, x, bias=bias))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (CAUSAL, "float64 of 0 and 1: write {} != 0"),
        (CAUSAL.astype(int), "write {} != 0"),
        (ADDITIVE, "write {} == 0 if 0 is True"),
        (BIG, "write {} == 0 if 0 is True"),
    ],
)
def test_masks_of_tokens_and_blocks(bad, message):
    with pytest.raises(TypeError, match=rf"^blocks .*{message.format('blocks')}"):
        BlockMask(bad, 1)
    with pytest.raises(TypeError, match=rf"^mask .*{message.format('mask')}"):
        BlockMask.from_mask(bad, 1)
    layer, x = MultiHeadAttention(8, 2), np.ones((6, 6, 8), np.float32)
    with pytest.raises(TypeError, match=rf"^key_mask .*{message.format('key_mask')}"):
        layer(x, key_mask=bad)


def test_values_between_are_no_mask_of_blocks():
    with pytest.raises(TypeError, match=r"^blocks must be bool, .*float64$"):
        BlockMask(0.5 * CAUSAL, 1)


def test_a_bias_of_0_and_1():
    message = "write mask=bias != 0 if 1 is visible, mask=bias == 0 if 1 hides, bias.astype(np"
    refused("attention", "bias", CAUSAL.astype(int), message, TypeError)


# ---- arrays without batch, and with batch times heads ----


@pytest.mark.parametrize("name", ["mask", "bias"])
@pytest.mark.parametrize("shape", [(4, 6), (4, 1, 1, 6), (4, 1, 6, 6)])
def test_a_batch_that_is_taken_for_heads(name, shape):
    bad = np.ones(shape, bool if name == "mask" else np.float32)
    message = "arrays of rank 3 are (heads, length, head size), write query[:, None] (key and value"
    refused("attention", name, bad, message, batch=(), lq=5)


def test_one_mask_for_each_row_and_head(rng):
    q, k, v = qkv(rng, 6, 6, heads=4, batch=(3,))
    mask = rng.random((12, 6, 6)) < 0.6
    refused("attention", "mask", mask, "write mask.reshape(3, 4, 6, 6) if its first", batch=(3,))
    right = mask.reshape(3, 4, 6, 6)
    check(attnfast.attention(q, k, v, mask=right), q, k, v, mask=right)


@pytest.mark.parametrize("name", ["key", "value"])
def test_batch_axes_that_do_not_fit(name, rng):
    """Each shape is told once."""
    given = dict(zip(("query", "key", "value"), qkv(rng, 6, 6, batch=(3,)), strict=True))
    given[name] = given[name][:2]
    with pytest.raises(ValueError, match=f"^the batch axes of {name} do not broadcast: ") as caught:
        attnfast.attention(**given)
    told = str(caught.value).partition(": ")[2]
    assert [told.count(word) for word in ("query", "key")] == [1, 1]


def test_a_query_without_the_axis_of_lengths(rng):
    q, k, v = qkv(rng, 6, 6, heads=4, batch=(3,))
    with pytest.raises(
        ValueError, match=r"^key must .* 3 heads of query, got 4: .*write query\[\.\.\., None,"
    ):
        attnfast.attention(q[:, :, -1], k, v)
    square = [x[[0, 1, 2, 0]] for x in (q, k, v)]
    with pytest.raises(ValueError, match=r"^query .*two ways: write query\[\.\.\., None, :\] if"):
        attnfast.attention(square[0][:, :, -1], *square[1:])
    for query in (square[0][:, :, -1][..., None, :], square[0][:, :, -1][None]):
        check(attnfast.attention(query, *square[1:]), query, *square[1:])
    for query, key in [(q[0], k), (q[0, :, :2], k), (q[:1, :1, 0], k[:1, :1])]:
        attnfast.attention(query, key, key)


# ---- global tokens ----


@pytest.mark.parametrize("row", [[1, 0, 0, 0, 0, 0], [0] * 6, np.ones((4, 6), np.uint8)], ids=str)
def test_global_tokens_as_0_and_1_for_each_key(row):
    given = {**arguments("local_attention"), "global_tokens": row}
    message = (
        "global_tokens must be indices or bools, got 6 integers of 0 and 1 for 6 keys: "
        "write global_tokens != 0 if"
    )
    assert_refused("local_attention", ValueError, "global_tokens", message, given)
    given["global_tokens"] = np.asarray(row) != 0
    attnfast.local_attention(**given)


# ---- local-m and local-p ----


SIGMA = [
    # window_size, centers, sigma; a part of the error message.
    (2, np.arange(6), 1.0, "write centers.astype(np.float64), or leave sigma out"),
    (2, list(range(6)), 1.0, "write np.asarray(centers).astype(np.float64), or leave sigma out"),
    (2, np.arange(6.0), None, "write sigma=(2 + 2) / 4 for local-p, or centers=np.rint(centers)"),
    ((1, 4), np.arange(6.0), None, "write sigma=(1 + 4) / 4 for local-p"),
    ((1, 4), [0.5] * 6, None, "np.rint(centers).astype(np.int64) for local-m"),
    (0, np.arange(6.0), None, "write a sigma above 0 for local-p"),
    (None, np.arange(6.0), None, "write a sigma above 0 for local-p"),
    ((3, -1), np.arange(6.0), None, "write a sigma above 0 for local-p"),
    (2, None, 1.0, "must be None without centers, got 1.0: leave sigma out"),
]


@pytest.mark.parametrize(("window", "centers", "sigma", "message"), SIGMA)
def test_the_dtype_of_centers_alone_decides_nothing(window, centers, sigma, message):
    given = {**arguments("local_attention"), "window_size": window}
    given |= {"centers": centers, "sigma": sigma}
    assert_refused("local_attention", ValueError, "sigma", message, given)


def test_what_is_advised_for_centers(rng):
    q, k, v = qkv(rng, 6, 30)
    centers, window = rng.uniform(0, 30, 6), (3, 5)
    options = {"centers": centers, "sigma": (3 + 5) / 4}
    for more in (options, {"centers": np.rint(centers).astype(np.int64)}):
        more = {"window_size": window, **more}
        criterion = Criterion(q, k, v, function="local_attention", **more)
        criterion.check(attnfast.local_attention(q, k, v, **more))


# ---- lengths ----


@pytest.mark.parametrize("name", ["kv_lengths", "q_lengths", "kv_starts", "q_offset"])
def test_lengths_of_a_batch_that_is_taken_for_heads(name):
    message = "write query[:, None] (key and value alike) if they are (batch, length, head size)"
    for function in FUNCTIONS:
        refused(function, name, [6, 5, 4, 3], message, batch=())
    q, k, v = qkv(np.random.default_rng(0), 6, 6, heads=4, batch=())
    with pytest.raises(ValueError, match=rf"^{name} must be one number.*rank 2 are one head"):
        attnfast.attention(q[0], k[0], v[0], **{name: [6, 5]})
    alike = [x[:, None] for x in (q, k, v)]
    attnfast.attention(*alike, **{name: [6, 5, 4, 3]})


@pytest.mark.parametrize("name", ["kv_lengths", "q_lengths"])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.full(4, 6.0), "{0} must be integers, got float64: write {0}.astype(np.int64)"),
        (np.ones((4, 6), bool), "write {0}.sum(axis=-1) if padding is False and at the end"),
        (np.ones(4, bool), "{0} must be integers, got bool"),
        (np.ones(4, complex), "take {0}.real and {0}.imag apart"),
        (np.full(4, 6, object), "write {0}.astype(np.int64) if they are numbers"),
        (["6"] * 4, "{0} must be integers, got text"),
        ([None] * 4, "{0} must be an array of numbers, got list of NoneType"),
    ],
)
def test_lengths_that_are_not_integers(name, bad, message):
    refused("attention", name, bad, message.format(name), TypeError)


def test_starts_that_are_a_mask():
    message = "write kv_starts.argmax(axis=-1) if padding is False and at the start"
    refused("attention", "kv_starts", np.ones((4, 6), bool), message, TypeError)


# ---- states without a length ----


S, STATES = np.ones((4, 8), np.float32), np.ones((4, 9, 8), np.float32)
LAYERS = {
    "query": [
        lambda s, states: BahdanauAttention(8, 8, 5)(s, states),
        lambda s, states: MultiHeadAttention(8, 2)(s, states),
        lambda s, states: Attention()([s, states]),
        lambda s, states: AdditiveAttention(8)([s, states]),
    ],
    "hidden": [
        lambda s, states, score=score: LuongAttention(8, score=score)(s, states)
        for score in ("dot", "general", "concat")
    ],
}
EACH_LAYER = [(name, call) for name, layers in LAYERS.items() for call in layers]


@pytest.mark.parametrize(("name", "call"), EACH_LAYER)
def test_a_state_for_each_batch_row(name, call):
    message = rf"^{name} .*\(4, 8\).*\(4, 9, 8\).* write {name}\[:, None\] for one"
    with pytest.raises(ValueError, match=message):
        call(S, STATES)
    assert call(S[:, None], STATES).shape == (4, 1, 8)
    with pytest.raises(ValueError, match=rf"^{name} .*write {name}\[:, :, None\]"):
        call(np.stack([S] * 2), np.stack([STATES] * 2))
    assert call(S[:1], STATES[0]).shape == (1, 8)
    if name == "query":  # shared by all batch rows
        assert call(S[None], STATES).shape == call(S[:3], STATES)[..., :1, :].repeat(4, 1).shape


def test_one_state_alone():
    for layer in (BahdanauAttention(8, 8, 5), MultiHeadAttention(8, 2)):
        with pytest.raises(ValueError, match=r"^query .*\(8,\): write query\[None\]"):
            layer(S[0], STATES[0])


@pytest.mark.parametrize("real", [None, np.eye(4, 9, dtype=bool)], ids=["no key_mask", "key_mask"])
def test_masks_of_multi_head_attention(real):
    """A key mask that is joined to a mask must not hide that its axes were mistaken."""
    layer, x = MultiHeadAttention(8, 2), STATES
    for lq, message in [(4, "two ways"), (9, r"broadcast to \(4, 2, 9, 9\)")]:
        with pytest.raises(ValueError, match=rf"^mask .*{message}.* mask\[:, None, None, :\]"):
            layer(x[:, :lq], x, mask=np.ones((4, 9), bool), key_mask=real)
    assert layer(x, mask=np.ones((9, 9), bool), key_mask=real).shape == x.shape


# ---- what is no array of real numbers ----


OPERANDS = [
    (np.ones((4, 4, 6, 8), complex), "take {0}.real and {0}.imag apart"),
    (np.ones((4, 4, 6, 8), np.complex64), "attnfast computes in real numbers"),
    (np.ones((4, 4, 6, 8), object), "write {0}.astype(np.float32) if they are numbers"),
    (np.full((4, 4, 6, 8), "1"), "got text (<U1)"),
    ([["a", "b"]], "got text (<U1)"),
    ([[1, 2]], "write np.asarray({0}).astype(np.float32)"),
    (np.ones((4, 4, 6, 8), "m8[s]"), "got timedelta64[s]"),
    ([[None]], "{0} must be an array of numbers, got list of NoneType"),
    (np.ma.ones((4, 4, 6, 8)), "write {0}.data, and hide keys with mask=, True where {0}.mask is"),
]


@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize(("bad", "message"), OPERANDS)
def test_operands_that_are_not_real(bad, message, name):
    refused("attention", name, bad, message.format(name), TypeError)


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("mask", np.ones((6, 6), complex), "take mask.real and mask.imag apart"),
        ("mask", [["a"]], "mask must be bool, True where a query may attend, got text"),
        ("mask", np.ones((6, 6), object), "write mask != 0 if they are numbers"),
        ("mask", np.ma.ones((6, 6), bool), "write mask.filled(False)"),
        ("bias", np.ones((6, 6), complex), "take bias.real and bias.imag apart"),
        ("bias", [["a"]], "bias must be floating point, got text"),
        ("bias", np.ones((6, 6), object), "write bias.astype(np.float32) if they are numbers"),
        (
            "bias",
            np.ones((6, 6), bool),
            "write mask=bias if True means that a query may attend, mask=~bias if",
        ),
        ("bias", np.ma.ones((6, 6)), "write bias.filled(-np.inf)"),
        ("alibi_slopes", np.ones(4, complex), "take alibi_slopes.real and alibi_slopes.imag apart"),
        ("sink_logits", ["a"] * 4, "sink_logits must be real numbers, got text"),
        ("window_size", np.array([2, 3]), "got an array: write (2, 3)"),
        ("window_size", np.array(2), "got an array: write 2"),
        ("window_size", np.array([2.0, 3.0]), "window_size must be an int or a pair (left, right)"),
        ("key", np.ones((4, 4, 6, 8)).tolist(), "write np.asarray(key).astype(np.float32)"),
    ],
)
def test_options_that_are_not_real(name, bad, message):
    refused("attention", name, bad, message, TypeError)


@pytest.mark.parametrize(
    ("name", "bad", "got"),
    [
        ("query", np.ones((4, 4, 6, 8), "m8[s]"), r"timedelta64\[s\]"),
        ("query", np.zeros((4, 4, 6, 8), [("x", int)]), r"\[.*\]"),
        ("query", [["a"]], r"text \(<U1\)"),
        ("mask", np.ones((6, 6), "M8[s]"), r"datetime64\[s\]"),
        ("kv_lengths", np.ones(4, bool), "bool"),
        ("kv_starts", np.ones(4, bool), "bool"),
        ("kv_lengths", ["6"] * 4, r"text \(<U1\)"),
    ],
)
def test_no_advice_where_there_is_none(name, bad, got):
    with pytest.raises(TypeError, match=f"^{name} must be .*, got {got}$"):
        attnfast.attention(**{**arguments("attention"), name: bad})


@pytest.mark.parametrize("name", ["query", "mask", "bias", "kv_lengths"])
def test_sequences_of_different_lengths(name):
    message = f"{name} must be an array, got nested sequences of different lengths"
    refused("attention", name, [[1.0], [1.0, 2.0]], message)


def test_parts_and_inputs_that_are_not_real():
    with pytest.raises(TypeError, match=r"^outputs\[1\] .*outputs\[1\].real"):
        attnfast.merge_attention([S, S.astype(complex)], [S[:, 0]] * 2)
    with pytest.raises(TypeError, match=r"^query .*take query.real and query.imag apart"):
        MultiHeadAttention(8, 2)(STATES.astype(complex))
    with pytest.raises(TypeError, match=r"^value is a masked array"):
        Attention()([STATES, np.ma.masked_array(STATES)])


# ---- tensors of torch ----


class Device:
    """The device of a `Tensor`."""

    def __init__(self, kind):
        self.type = kind

    def __str__(self):
        return f"{self.type}:0"


class Tensor:
    """What the library looks at of a torch tensor, which NumPy cannot read."""

    __module__ = "torch"

    def __init__(self, dtype="float32", requires_grad=False, device="cpu"):
        self.dtype, self.requires_grad = f"torch.{dtype}", requires_grad
        self.device = Device(device)

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("tensor cannot be read")


TENSORS = [
    ({"requires_grad": True}, "that requires gradients", ".detach().numpy()"),
    (
        {"dtype": "bfloat16"},
        "of dtype bfloat16",
        ".view(torch.int16).numpy().view(ml_dtypes.bfloat16)",
    ),
    ({"device": "cuda"}, "on device cuda:0", ".cpu().numpy()"),
    (
        {"dtype": "bfloat16", "requires_grad": True, "device": "cuda"},
        "of dtype bfloat16 that requires gradients on device cuda:0",
        ".detach().cpu().view(torch.int16).numpy().view(ml_dtypes.bfloat16)",
    ),
]


@pytest.mark.parametrize("name", ["query", "key", "value", "mask", "bias", "kv_lengths"])
@pytest.mark.parametrize(("traits", "got", "write"), TENSORS)
def test_tensors(traits, got, write, name):
    message = f"{name} is a torch tensor {got}, which NumPy cannot read: write {name}{write}"
    refused("attention", name, Tensor(**traits), message, TypeError)


def test_other_tensors_say_what_torch_says():
    refused("attention", "query", Tensor(), "an array: tensor cannot be read", TypeError)
    with pytest.raises(TypeError, match=r"^query .*write query.detach\(\).numpy\(\)"):
        MultiHeadAttention(8, 2)(Tensor(requires_grad=True))


def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    array = np.random.default_rng(0).standard_normal((4, 4, 6, 8)).astype(np.float32)
    x = torch.from_numpy(array)
    expected = attnfast.attention(array, array, array)
    assert same_bits(attnfast.attention(x, x, x), expected)
    names = {"torch": torch, "ml_dtypes": ml_dtypes}
    for query in (x.clone().requires_grad_(), x.bfloat16(), x.bfloat16().requires_grad_()):
        with pytest.raises(TypeError, match=r"^query is a torch tensor") as caught:
            attnfast.attention(query, x, x)
        written = eval(str(caught.value).split(": write ")[1], names, {"query": query})
        assert written.dtype.name == str(query.dtype).removeprefix("torch.")
        expected = query.detach().float().numpy()
        assert same_bits(written.astype(np.float32), expected)
    with pytest.raises(TypeError, match=r"^query .* on device meta, .*query.cpu\(\).numpy\(\)"):
        attnfast.attention(x.to("meta"), x, x)
    with pytest.raises(TypeError, match=r"^query cannot be read as an array: .*Sparse"):
        attnfast.attention(x.to_sparse(), x, x)
    attnfast.attention(x, x, x, kv_lengths=torch.Size([6, 5, 4, 3]))
