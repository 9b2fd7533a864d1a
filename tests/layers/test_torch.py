"""``MultiHeadAttention`` with the weights of ``torch.nn.MultiheadAttention``, and back.

The numbers written here were computed by PyTorch 2.13.0 in float64, so they hold without it.
"""

import numpy as np
import pytest

from attnfast.layers import MultiHeadAttention

pytestmark = pytest.mark.quick


WIDTHS = [(32, 4, None, None), (48, 6, 20, 30), (24, 1, 24, 10)]  # embed, heads, kdim, vdim


def draw_state(rng, embed, kdim=None, vdim=None, bias=True, extra=False):
    """A state dict of torch.nn.MultiheadAttention with random numbers."""
    if kdim is None:
        shapes = {"in_proj_weight": (3 * embed, embed)}
    else:
        widths = {"q": embed, "k": kdim, "v": vdim}
        shapes = {f"{x}_proj_weight": (embed, width) for x, width in widths.items()}
    if bias:
        shapes["in_proj_bias"] = (3 * embed,)
    if extra:
        shapes["bias_k"] = shapes["bias_v"] = (1, 1, embed)
    shapes["out_proj.weight"] = (embed, embed)
    if bias:
        shapes["out_proj.bias"] = (embed,)
    return {name: 0.5 * rng.standard_normal(shape) for name, shape in shapes.items()}


def test_numbers_of_torch():
    rng = np.random.default_rng(7)
    layer = MultiHeadAttention.from_torch(draw_state(rng, 6, 4, 5, extra=True), num_heads=2)
    query, key, value = (
        rng.standard_normal((2, n, width)) for n, width in ((2, 6), (3, 4), (3, 5))
    )
    output, weights = layer(
        query, key, value, key_mask=[[True, True, True], [True, False, False]],
        return_weights="mean",
    )  # fmt: skip
    expected = [
        -0.3652336857, -0.9982290360, 0.3024066456, -0.2539270466, -0.6156441118, 0.0080265732,
        -0.3623532242, -0.9692934333, -0.0966982994, -0.4285551178, -0.9477982296, -0.0444107886,
        -0.5696673937, -1.3734959937, 0.5042101459, -0.2585139442, -0.4263271643, -0.1857510367,
        -0.5938951085, -1.4391850656, 0.4529861702, -0.2590029047, -0.5270464418, -0.2032136560,
    ]  # fmt: skip
    np.testing.assert_allclose(output.ravel(), expected, rtol=0, atol=1e-10)
    expected = [
        0.2095186722, 0.2158581595, 0.1910256901, 0.3835974782, 0.2198208558, 0.3207506685,
        0.1960126993, 0.2634157764, 0.2591597690, 0.0000000000, 0.0000000000, 0.7408402310,
        0.3626098536, 0.0000000000, 0.0000000000, 0.6373901464,
    ]  # fmt: skip
    np.testing.assert_allclose(weights.ravel(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_round_trip(widths, bias, extra):
    embed, heads, kdim, vdim = widths
    state = draw_state(np.random.default_rng(0), embed, kdim, vdim, bias, extra)
    around = {f"encoder.attn.{name}": array for name, array in state.items()}
    around["encoder.norm.weight"] = np.ones(embed)
    layer = MultiHeadAttention.from_torch(around, heads, "encoder.attn.")
    back = layer.to_torch("encoder.attn.")
    assert back.keys() == around.keys() - {"encoder.norm.weight"}
    for name, array in back.items():
        assert array.flags.c_contiguous
        assert not np.shares_memory(array, around[name])
        np.testing.assert_array_equal(array, around[name])


def test_weights_are_copies():
    state = draw_state(np.random.default_rng(0), 8)
    layer = MultiHeadAttention.from_torch(state, 2)
    before = layer(np.ones((1, 3, 8)))
    for array in state.values():
        array[:] = 0
    assert (layer(np.ones((1, 3, 8))) == before).all()


def test_dtypes():
    state = draw_state(np.random.default_rng(0), 8)
    assert MultiHeadAttention.from_torch(state, 2).weights.dtype == np.float64
    assert MultiHeadAttention.from_torch(state, 2, dtype=np.float32).weights.dtype == np.float32
    halves = {name: array.astype(np.float16) for name, array in state.items()}
    assert MultiHeadAttention.from_torch(halves, 2).weights.dtype == np.float32


def test_missing_biases_become_zeros():
    rng = np.random.default_rng(0)
    names = "q", "k", "v", "out"
    state = {f"{name}.weight": rng.standard_normal((8, 8)) for name in names}
    state["q.bias"] = rng.standard_normal(8)
    back = MultiHeadAttention.from_torch(state, 2, names=names).to_torch()
    np.testing.assert_array_equal(back["in_proj_bias"], [*state["q.bias"], *np.zeros(16)])
    np.testing.assert_array_equal(back["out_proj.bias"], np.zeros(8))


def test_named_maps_find_their_heads():
    rng = np.random.default_rng(0)
    widths = {"q_proj": (24, 12), "k_proj": (8, 12), "v_proj": (6, 12), "o_proj": (18, 12)}
    state = {
        f"layers.0.self_attn.{name}.weight": rng.standard_normal(shape)
        for name, shape in widths.items()
    }
    state["layers.0.self_attn.o_proj.weight"] = rng.standard_normal((12, 18))
    layer = MultiHeadAttention.from_torch(state, 6, "layers.0.self_attn.", names=tuple(widths))
    w = layer.weights
    assert (w.num_kv_heads, w.head_dim, w.value_head_dim) == (2, 4, 3)
    np.testing.assert_array_equal(w.key.weight, state["layers.0.self_attn.k_proj.weight"].T)
    with pytest.raises(ValueError, match=r"one width .* map 12 to 24, 12 to 8, 12 to 6, 18 to 12"):
        layer.to_torch()


@pytest.mark.parametrize(
    ("change", "heads", "options", "message"),
    [
        ({"out_proj.weight": None}, 2, {}, "no 'out_proj.weight'"),
        ({"in_proj_weight": None}, 2, {}, "no 'q_proj_weight'"),
        ({"norm.weight": np.ones(8)}, 2, {}, "has 'norm.weight', which is not of torch"),
        ({"in_proj_weight": np.ones((25, 8))}, 2, {}, r"in_proj_weight must .* got \(25, 8\)"),
        ({"in_proj_bias": np.ones(23)}, 2, {}, "in_proj_bias must"),
        ({"bias_k": np.ones(8)}, 2, {}, "must be given together"),
        ({"in_proj_bias": np.ones(27)}, 2, {}, "bias must have shape"),
        ({}, 3, {}, "query must have a multiple of 3 outputs for 3 heads, got 8"),
        ({}, 2, {"prefix": "attn."}, "no 'attn.q_proj_weight'"),
        ({}, 2, {"names": ("q", "k", "v")}, "names must be four"),
        ({}, 2, {"names": ("q", "k", "v", "o")}, "no 'q.weight'"),
    ],
)
def test_bad_state(change, heads, options, message):
    state = {**draw_state(np.random.default_rng(0), 8), **change}
    state = {name: array for name, array in state.items() if array is not None}
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention.from_torch(state, heads, **options)


# With PyTorch itself.


def modules(widths, dtype, extra=False, bias=True):
    """A module of PyTorch with random weights, the layer made of it, and inputs."""
    torch = pytest.importorskip("torch", reason="torch is an optional extra")
    embed, heads, kdim, vdim = widths
    module = torch.nn.MultiheadAttention(
        embed, heads, kdim=kdim, vdim=vdim, bias=bias, add_bias_kv=extra, batch_first=True
    )
    module = module.to(getattr(torch, dtype)).eval()
    rng = np.random.default_rng(3)
    state = draw_state(rng, embed, kdim, vdim, bias, extra)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    inputs = [
        rng.standard_normal((3, length, width or embed)).astype(dtype)
        for length, width in ((11, embed), (19, kdim), (19, vdim))
    ]
    return module, MultiHeadAttention.from_torch(module.state_dict(), heads), inputs


def agree(module, layer, inputs, key_padding_mask=None, attn_mask=None, **options):
    """Output, weights of the heads and their mean."""
    torch = pytest.importorskip("torch", reason="torch is an optional extra")
    tolerance = 1e-14 if inputs[0].dtype == np.float64 else 5e-6
    tensors = [torch.from_numpy(x) for x in inputs]
    masks = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask}
    masks = {n: None if m is None else torch.from_numpy(m) for n, m in masks.items()}
    for kind in (True, "mean"):
        actual = layer(*inputs, return_weights=kind, **options)
        with torch.no_grad():
            expected = module(*tensors, average_attn_weights=kind == "mean", **masks)
        for a, e in zip(actual, expected, strict=True):
            assert a.dtype == inputs[0].dtype
            assert a.shape == tuple(e.shape)
            e = e.numpy()
            np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * np.abs(e).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
class TestParity:
    def test_full(self, widths, extra, dtype):
        agree(*modules(widths, dtype, extra))

    def test_no_bias(self, widths, extra, dtype):
        agree(*modules(widths, dtype, extra, bias=False))

    def test_padding(self, widths, extra, dtype):
        module, layer, inputs = modules(widths, dtype, extra)
        padding = np.random.default_rng(1).random((3, 19)) < 0.4
        padding[:, 4] = False
        agree(module, layer, inputs, padding, key_mask=~padding)

    def test_causal_and_padding(self, widths, extra, dtype):
        module, layer, inputs = modules(widths, dtype, extra)
        hidden = ~np.tri(11, 19, dtype=bool)
        padding = np.arange(19) >= np.array([[19], [4], [1]])
        agree(
            *(module, layer, inputs, padding, hidden),
            is_causal=True, q_offset=0, kv_lengths=[19, 4, 1],
        )  # fmt: skip

    def test_float_mask(self, widths, extra, dtype):
        module, layer, inputs = modules(widths, dtype, extra)
        heads = widths[1]
        bias = np.random.default_rng(2).standard_normal((3, heads, 11, 19)).astype(dtype)
        bias[..., 1::3] = -np.inf
        agree(module, layer, inputs, attn_mask=bias.reshape(-1, 11, 19), bias=bias)

    def test_back(self, widths, extra, dtype):
        module, layer, _ = modules(widths, dtype, extra)
        torch = pytest.importorskip("torch", reason="torch is an optional extra")
        state = {name: torch.from_numpy(array) for name, array in layer.to_torch().items()}
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        module.load_state_dict(state)
        assert all((module.state_dict()[name] == before[name]).all() for name in before)


def test_zero_attention_is_a_sink_of_zero():
    torch = pytest.importorskip("torch", reason="torch is an optional extra")
    module = torch.nn.MultiheadAttention(16, 4, add_zero_attn=True, batch_first=True).double()
    layer = MultiHeadAttention.from_torch(module.state_dict(), 4)
    x = np.random.default_rng(0).standard_normal((2, 9, 16))
    with torch.no_grad():
        expected = module(*[torch.from_numpy(x)] * 3)[0].numpy()
    np.testing.assert_allclose(layer(x, sink_logits=np.zeros(4)), expected, rtol=0, atol=1e-14)


def test_parameters_and_bfloat16():
    torch = pytest.importorskip("torch", reason="torch is an optional extra")
    module = torch.nn.MultiheadAttention(16, 4).bfloat16()
    layer = MultiHeadAttention.from_torch(dict(module.named_parameters()), 4)
    assert layer.weights.dtype == np.float32
    expected = module.out_proj.weight.detach().float().numpy()
    np.testing.assert_array_equal(layer.weights.output.weight, expected.T)
