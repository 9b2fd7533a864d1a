"""``attnfast.transformers``: what is read from the masks of transformers, and what is not."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch", reason="torch is an optional extra")
pytest.importorskip("transformers", reason="transformers is an optional extra")

from transformers import masking_utils as masking  # noqa: E402

import attnfast.transformers  # noqa: E402
from attnfast.transformers._mask import Mask, make_mask  # noqa: E402
from attnfast.transformers._pattern import recognise, verified  # noqa: E402
from support.families import build, inputs, result, use  # noqa: E402

attnfast.transformers.register()


def mask(function, queries, keys, padding=None, offset=0, kv_offset=0, batch=2, **others):
    """Call the mask function as transformers does."""
    return make_mask(
        batch_size=batch,
        q_length=queries,
        kv_length=keys,
        q_offset=offset,
        kv_offset=kv_offset,
        mask_function=function,
        attention_mask=padding,
        dtype=torch.float32,
        **others,
    )


def pairs(mask):
    """Compute from the options of a mask which pairs it allows, with the reference."""
    import numpy as np

    from attnfast.reference import attention

    rows, _, queries, keys = mask.shape
    if mask.visible.bounds is not None:
        numbers = torch.bucketize(
            torch.arange(rows * keys), torch.tensor(mask.visible.bounds[1:]), right=True
        ).view(rows, keys)
        same = (numbers[:, :, None] == numbers[:, None, :])[:, None]
        options = dict(mask.visible.options, mask=same.numpy(), q_offset=0)
    else:
        options = {
            name: x.numpy() if isinstance(x, torch.Tensor) else x
            for name, x in mask.visible.options.items()
        }
    q = np.zeros((rows, 1, queries, 1))
    k = np.zeros((rows, 1, keys, 1))
    return attention(q, k, k, return_weights=True, **options).weights[:, 0] > 0


def causal_window(w):
    return masking.sliding_window_causal_mask_function(w)


def window_on_both_sides(w):
    return masking.sliding_window_bidirectional_mask_function(w)


def packed(function):
    """Two rows that hold sequences of 5, 9, 2 and of 7, 9."""
    positions = torch.tensor(
        [[*range(5), *range(9), *range(2)], [*range(7), *range(9)]], dtype=torch.long
    )
    numbers = masking.find_packed_sequence_indices(positions)
    if hasattr(masking, "remap_positions_for_packed_sequence"):
        function = masking.remap_positions_for_packed_sequence(function, positions)
    return masking.and_masks(function, masking.packed_sequence_mask_function(numbers))


FUNCTIONS = {
    "causal": lambda: masking.causal_mask_function,
    "all": lambda: masking.bidirectional_mask_function,
    "window of 1": lambda: causal_window(1),
    "window": lambda: causal_window(4),
    "long window": lambda: causal_window(40),
    "window on both sides": lambda: window_on_both_sides(3),
}
PADDING = {
    "none": None,
    "right": torch.arange(16) < torch.tensor([[16], [5]]),
    "left": torch.arange(16) >= torch.tensor([[0], [9]]),
    "both": (torch.arange(16) >= 2) & (torch.arange(16) < torch.tensor([[16], [9]])),
    "hole": torch.arange(16) != torch.tensor([[20], [9]]),
    "everything": torch.arange(16) < torch.tensor([[16], [0]]),
}


def check(found, real=None):
    """Compare the options of a mask with the dense mask of eager, where queries are real."""
    expected = (found.dense() == 0)[:, 0].numpy()
    seen = pairs(found)
    if real is not None:
        expected &= real[:, :, None].numpy()
        seen &= real[:, :, None].numpy()
    assert (seen == expected).all()


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_options_say_what_the_function_says(name, padding):
    found = mask(FUNCTIONS[name](), 16, 16, PADDING[padding])
    assert isinstance(found, Mask)
    assert ("mask" in found.visible.options) == (padding == "hole")
    check(found, PADDING[padding])


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "queries, keys, offset, kv_offset",
    [(1, 16, 15, 0), (3, 16, 13, 0), (3, 16, 5, 0), (1, 6, 20, 15), (4, 9, 20, 15)],
)
def test_caches(name, queries, keys, offset, kv_offset):
    padding = torch.arange(kv_offset + keys) >= torch.tensor([[0], [offset - 1]])
    for kept in (None, padding):
        check(mask(FUNCTIONS[name](), queries, keys, kept, offset, kv_offset))


def test_window_of_transformers_counts_the_query():
    assert mask(causal_window(4), 16, 16).visible.options == {
        "is_causal": True,
        "window_size": (3, None),
        "q_offset": 0,
    }
    options = mask(window_on_both_sides(4), 16, 16).visible.options
    assert options["window_size"] == (4, 4)


def test_one_query_that_sees_all_has_no_options():
    function = masking.causal_mask_function
    assert mask(function, 1, 16, offset=15).visible.options == {}
    assert mask(function, 1, 16, offset=15, allow_is_causal_skip=True) is None
    assert mask(function, 1, 16, offset=14, allow_is_causal_skip=True) is not None
    assert mask(function, 1, 16, PADDING["left"], 15, allow_is_causal_skip=True) is not None
    assert mask(causal_window(4), 1, 16, offset=15, allow_is_causal_skip=True) is not None


@pytest.mark.parametrize("name", ["causal", "window"])
def test_packed_sequences_are_bounds(name):
    found = mask(packed(FUNCTIONS[name]()), 16, 16)
    assert found.visible.bounds == [0, 5, 14, 16, 23, 32]
    assert "mask" not in found.visible.options
    check(found)


def stripes(batch, head, query, key):
    return (query - key) % 3 == 0


@pytest.mark.parametrize("padding", PADDING)
def test_functions_of_users_become_dense_masks_beside_what_is_known(padding):
    function = masking.and_masks(causal_window(8), stripes)
    found = mask(function, 16, 16, PADDING[padding])
    assert "mask" in found.visible.options and found.visible.options["is_causal"]
    check(found, PADDING[padding])
    function = masking.or_masks(causal_window(3), stripes)
    found = mask(function, 16, 16, PADDING[padding])
    assert "is_causal" not in found.visible.options
    check(found, PADDING[padding])


def test_packed_and_a_function_of_a_user():
    found = mask(masking.and_masks(packed(causal_window(4)), stripes), 16, 16)
    assert found.visible.bounds is None
    check(found)


def test_a_changed_meaning_is_noticed(monkeypatch):
    """A later transformers might count windows otherwise under the same name."""
    verified.clear()
    function = causal_window(4)
    everything = range(32), range(32), "cpu"
    assert recognise(function, 2, *everything).unknown == []
    verified.clear()
    monkeypatch.setattr("attnfast.transformers._pattern.ALL", causal_window(1).__code__)
    monkeypatch.setattr("attnfast.transformers._pattern.AND", None)
    assert recognise(function, 2, *everything).unknown == [function]


def test_a_mask_is_the_tensor_of_eager_where_it_is_used():
    found = mask(causal_window(4), 16, 16, PADDING["left"])
    expected = masking.eager_mask(**found.arguments)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert torch.equal(found[:, :, 3:, :5], expected[:, :, 3:, :5])
    assert torch.equal(torch.zeros(2, 4, 16, 16) + found, torch.zeros(2, 4, 16, 16) + expected)
    assert torch.equal(found.to(torch.bfloat16), expected.to(torch.bfloat16))
    assert torch.equal(pickle.loads(pickle.dumps(found)), expected)


def test_a_mask_stays_a_description_where_it_is_handed_on():
    found = mask(causal_window(4), 16, 16, PADDING["left"])
    assert "options" in repr(found)
    for other in (found.detach(), copy.deepcopy(found), found.contiguous()):
        assert isinstance(other, Mask) and other.visible is found.visible


def test_what_is_written_into_a_mask_counts():
    found = mask(masking.causal_mask_function, 16, 16)
    assert (found + 1).max() == 1 and found.is_untouched
    found[:, :, :, 3] = torch.finfo(torch.float32).min
    assert not found.is_untouched
    assert (found.dense()[:, :, :, 3] < 0).all()
    found = mask(masking.causal_mask_function, 16, 16)
    found.mul_(0)
    assert not found.is_untouched and (found.dense() == 0).all()


def test_models_may_be_given_dense_masks():
    """A mask with four axes goes to the layers as it is."""
    model = build("llama")
    arguments, real = inputs("llama", "left")
    shape = real.shape[1]
    seen = real[:, None, None, :] & torch.ones(shape, shape, dtype=torch.bool).tril()
    dense = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    use(model, "eager")
    expected = result(model, arguments)[real]
    for attention_mask in (dense, seen):
        use(model, "attnfast")
        found = result(model, dict(arguments, attention_mask=attention_mask))[real]
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-4)
