"""``attnfast.torch``: NumPy's results, gradients, compilation, PyTorch's own function."""

import math
import subprocess
import sys

import numpy as np
import pytest

import attnfast
from attnfast import BlockMask

torch = pytest.importorskip("torch", reason="torch is an optional extra")
pytest.importorskip("ml_dtypes", reason="bfloat16 in NumPy")
bridge = pytest.importorskip("attnfast.torch")
_call = bridge._call
_operators = pytest.importorskip("attnfast.torch._operators")
to_array, to_tensor = bridge._tensors.to_array, bridge._tensors.to_tensor

sdpa = torch.nn.functional.scaled_dot_product_attention
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _fresh():
    torch.manual_seed(0)
    yield
    torch.compiler.reset()


def draw(*shapes, dtype=torch.float64, grad=True):
    return [torch.randn(shape, dtype=dtype).requires_grad_(grad) for shape in shapes]


def qkv(dtype=torch.float64, grad=True):
    return draw((2, 4, 9, 8), (2, 2, 11, 8), (2, 2, 11, 6), dtype=dtype, grad=grad)


CU_Q, CU_K = [0, 4, 9], [0, 5, 11]

# name -> (function, arguments besides query, key and value, names of those that have gradients)
CALLS = {
    "plain": ("attention", lambda: {}, ()),
    "causal": ("attention", lambda: {"is_causal": True, "q_offset": "end"}, ()),
    "window": ("attention", lambda: {"window_size": (3, None), "q_offset": 2}, ()),
    "mask": ("attention", lambda: {"mask": torch.rand(2, 1, 9, 11) < 0.6, "scale": 0.3}, ()),
    "lengths": (
        "attention",
        lambda: {"kv_lengths": torch.tensor([11, 4]), "kv_starts": [2, 0], "q_lengths": [9, 5]},
        (),
    ),
    "blocks": ("attention", lambda: {"mask": BlockMask([[1 > 0, 0 > 0], [1 > 0] * 2], (5, 6))}, ()),
    "bias": ("attention", lambda: {"bias": draw((2, 1, 9, 11))[0], "softcap": 2.0}, ("bias",)),
    "sinks": ("attention", lambda: {"sink_logits": draw((4,))[0]}, ("sink_logits",)),
    "alibi": (
        "attention",
        lambda: {"alibi_slopes": draw((4,))[0], "q_offset": torch.tensor([1, 3])},
        ("alibi_slopes",),
    ),
    "dropout": ("attention", lambda: {"dropout": 0.3, "dropout_seed": 2**64 - 5}, ()),
    "local": (
        "local_attention",
        lambda: {
            "window_size": 2,
            "q_offset": 1,
            "global_tokens": [0, 7],
            "dilation": [1, 2, 1, 1],
        },
        (),
    ),
    "additive": (
        "additive_attention",
        lambda: {"score_weight": draw((8,))[0], "score_bias": draw((4, 8))[0]},
        ("score_weight", "score_bias"),
    ),
    "varlen": ("attention_varlen", lambda: {"cu_q": CU_Q, "cu_k": torch.tensor(CU_K)}, ()),
}


def make(name, dtype=torch.float64, grad=True):
    """The functions here and in ``attnfast``, tensors, and options of a call of `CALLS`."""
    function, options, names = CALLS[name]
    tensors = qkv(dtype, grad)
    options = options()
    if function == "attention_varlen":
        tensors = [x.detach()[0].transpose(0, 1).requires_grad_(grad) for x in tensors]
    learned = {n: options.pop(n).detach().requires_grad_(grad) for n in names}
    return function, tensors, options, learned


def as_numpy(x):
    return to_array(x) if isinstance(x, torch.Tensor) else x


calls = pytest.mark.parametrize("name", CALLS)


# ---- results ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@calls
def test_the_bits_of_numpy(name, dtype):
    function, tensors, options, learned = make(name, dtype, grad=False)
    options |= learned
    flags = {"return_lse": True}
    if function != "attention_varlen":
        flags["return_weights"] = True
    got = getattr(bridge, function)(*tensors, **options, **flags)
    expected = getattr(attnfast, function)(
        *map(as_numpy, tensors), **{n: as_numpy(x) for n, x in options.items()}, **flags
    )
    assert type(got) is type(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype is (dtype if b is not expected.lse else to_tensor(b).dtype)
            assert to_array(a).tobytes() == b.tobytes()
    assert torch.equal(getattr(bridge, function)(*tensors, **options), got.output)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_are_read_where_they_are(dtype):
    for x in (torch.randn(2, 5, 3, 8, dtype=dtype), torch.randn(2, 3, 8, 5, dtype=dtype).mT):
        for view in (x, x.transpose(1, 2), x[:, 1:], x.requires_grad_()):
            a = to_array(view)
            assert a.__array_interface__["data"][0] == view.data_ptr()
            assert a.shape == tuple(view.shape)
            assert [s // a.itemsize for s in a.strides] == list(view.stride())
            back = to_tensor(a)
            assert back.data_ptr() == view.data_ptr()
            assert back.dtype is dtype


def test_the_call_gets_the_memory_of_the_tensors(monkeypatch):
    seen = []

    core, names = _call.CORE[attnfast.attention]

    def spy(query, key, value, options):
        seen.extend(x.__array_interface__["data"][0] for x in (query, key, value))
        return core(query, key, value, options)

    monkeypatch.setitem(_call.CORE, attnfast.attention, (spy, names))
    q, k, v = (torch.randn(2, 7, 3, 8).transpose(1, 2) for _ in range(3))
    output = bridge.attention(q, k, v)
    assert seen == [x.data_ptr() for x in (q, k, v)]
    assert output.transpose(1, 2).is_contiguous()


# ---- gradients ----


@pytest.mark.filterwarnings("ignore:Input #.*double precision:UserWarning")
@calls
def test_gradcheck(name):
    function, tensors, options, learned = make(name)
    names = list(learned)

    def f(*inputs):
        given = dict(zip(names, inputs[3:], strict=True))
        call = getattr(bridge, function)
        result = call(*inputs[:3], **options, **given, return_lse=True)
        return result.output, result.lse.clamp(min=-1e3)  # finite where a query sees no key

    assert torch.autograd.gradcheck(f, (*tensors, *learned.values()), fast_mode=True)


def formula(q, k, v, bias, sinks, slopes, softcap):
    """Attention in torch's own operations, for its automatic differentiation."""
    H, Lq, Lk = q.shape[1], q.shape[2], k.shape[2]
    k, v = (x.repeat_interleave(H // k.shape[1], 1) for x in (k, v))
    s = softcap * torch.tanh(q @ k.mT / math.sqrt(q.shape[-1]) / softcap) + bias
    distance = (torch.arange(Lq)[:, None] - torch.arange(Lk)).abs()
    s = s - slopes[:, None, None] * distance
    s = s.masked_fill(torch.arange(Lk) > torch.arange(Lq)[:, None], -torch.inf)
    s = torch.cat([s, sinks[:, None, None].expand(*s.shape[:3], 1)], -1)
    return s.softmax(-1)[..., :-1] @ v


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_those_of_torch_in_float64(dtype):
    shapes = [(2, 4, 70, 16), (2, 2, 70, 16), (2, 2, 70, 24), (4, 70, 70), (4,), (4,)]
    inputs = draw(*shapes, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    loss = torch.randn(2, 4, 70, 24, dtype=dtype)
    expected = torch.autograd.grad(formula(*exact, 5.0), exact, loss.double())
    q, k, v, bias, sinks, slopes = inputs
    options = {"bias": bias[None], "sink_logits": sinks, "alibi_slopes": slopes, "softcap": 5.0}
    output = bridge.attention(q, k, v, **options, is_causal=True)
    got = torch.autograd.grad(output, inputs, loss)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3}.get(dtype, 3e-2)
    for x, g, e in zip(inputs, got, expected, strict=True):
        assert g.dtype is x.dtype
        assert g.shape == x.shape
        sums = 5 if x is slopes else 1  # of rounded numbers times distances
        assert (g.double() - e).abs().max() <= sums * tolerance * e.abs().max()


def test_gradients_of_weights_and_of_the_lse():
    tensors = qkv()
    f = lambda *x: bridge.attention(*x, return_lse=True, return_weights=True)  # noqa: E731
    assert torch.autograd.gradcheck(f, tensors)
    lse_only = f(*tensors).lse.sum()
    assert torch.autograd.grad(lse_only, tensors[0])[0].any()


def test_only_what_is_wanted_is_computed(monkeypatch):
    asked = []
    backward = _call.BACKWARDS[attnfast.attention]
    monkeypatch.setitem(
        _call.BACKWARDS,
        attnfast.attention,
        lambda **given: asked.append(given["wanted"]) or backward(**given),
    )
    q, k, v = qkv()
    bridge.attention(q, k.detach(), v).sum().backward()
    assert asked == [("query", "value")]


def test_nothing_is_detached_in_silence():
    q, k, v = qkv()
    assert bridge.attention(q, k, v).requires_grad
    with torch.no_grad():
        assert not bridge.attention(q, k, v).requires_grad
    for loss in (lambda output: output.square().sum(), torch.sum):  # whose own derivative is 0
        output = bridge.attention(q, k, v)
        (first,) = torch.autograd.grad(loss(output), q, create_graph=True)
        with pytest.raises(NotImplementedError, match="attention has no second derivatives"):
            (first.square().sum() + q.sum()).backward()
    lengths = torch.tensor([3.0, 4.0], requires_grad=True)
    with pytest.raises(ValueError, match=r"kv_lengths requires gradients.*kv_lengths.detach\(\)"):
        bridge.attention(q, k, v, kv_lengths=lengths)
    output = bridge.attention(q, k, v)
    with torch.no_grad():
        v.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # PyTorch's own
def test_forward_derivatives_are_refused():
    q, k, v = qkv(grad=False)
    with pytest.raises(NotImplementedError, match="query has a forward derivative"):
        torch.func.jvp(lambda q: bridge.attention(q, k, v), (q,), (q,))
    with bridge.activate():
        _, tangent = torch.func.jvp(lambda q: sdpa(q, k[:, :1], v[:, :1]), (q[:, :1],), (q[:, :1],))
    assert tangent.any()


# ---- compilation and transforms ----


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch's own, after a graph break
@calls
def test_compiled(name):
    function, tensors, options, learned = make(name)
    leaves = [*tensors, *learned.values()]

    def f(*inputs):
        given = dict(zip(learned, inputs[3:], strict=True))
        result = getattr(bridge, function)(*inputs[:3], **options, **given, return_lse=True)
        return result.output * 2, result.lse

    compiled = torch.compile(f, backend="aot_eager", fullgraph=name != "blocks")
    got, expected = compiled(*leaves), f(*leaves)
    losses = [torch.randn_like(x) for x in expected]
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
    pairs = (torch.autograd.grad(results, leaves, losses) for results in (got, expected))
    for a, b in zip(*pairs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch's own
@calls
def test_operators_keep_the_rules_of_operators(name):
    function, tensors, options, learned = make(name)
    attending = getattr(attnfast, function)
    names = ("query", "key", "value")
    given = dict(zip(names, tensors, strict=True)) | options | learned
    args = _operators.encode(attending, given)
    torch.library.opcheck(_operators.OPERATORS[attending], args)


def test_exported():
    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            return bridge.attention(q, k, v, window_size=(4, 1), softcap=3.0)

    q, k, v = (torch.randn(2, 4, 20, 8) for _ in range(3))
    length = torch.export.Dim("length", min=4, max=64)
    program = torch.export.export(Model(), (q, k, v), dynamic_shapes=[{2: length}] * 3)
    assert "attnfast.attention" in str(program.graph)
    q, k, v = (torch.randn(2, 4, 31, 8) for _ in range(3))
    assert torch.equal(program.module()(q, k, v), Model()(q, k, v))


VMAPS = {  # shapes of a row of query, key and value, axes of rows, options
    "one head": ([(9, 8), (11, 8), (11, 8)], (0, 1, 0), {}),
    "heads": ([(4, 9, 8), (2, 11, 8), (2, 11, 8)], (0, None, 2), {"softcap": 2.0}),
    "one query for all": ([(4, 9, 8), (2, 11, 8), (2, 11, 8)], (None, 0, 0), {"window_size": 3}),
    "batch": ([(2, 4, 9, 8), (2, 2, 11, 8), (2, 2, 11, 8)], (1, 0, 0), {"is_causal": True}),
    "lengths": ([(2, 4, 9, 8), (2, 2, 11, 8), (2, 2, 11, 8)], (0, 0, 0), {"kv_lengths": [4, 9]}),
    "dropout": ([(4, 9, 8), (2, 11, 8), (2, 11, 8)], (0, 0, 0), {"dropout": 0.4}),
}


@pytest.mark.parametrize(("shapes", "dims", "options"), VMAPS.values(), ids=list(VMAPS))
def test_vmap_is_a_loop(shapes, dims, options):
    rows, heads = 3, 1 if len(shapes[0]) == 2 else 4
    shapes = [s if d is None else (*s[:d], rows, *s[d:]) for s, d in zip(shapes, dims, strict=True)]
    tensors = draw(*shapes, dtype=torch.float32)
    bias = torch.randn(9, 11, requires_grad=True)
    sinks = torch.randn(rows, heads, requires_grad=True)

    def one(q, k, v, bias):
        return bridge.attention(q, k, v, bias=bias, q_offset=1, **options)

    def gradient(q, k, v, bias):
        loss = lambda *x: one(*x).square().sum()  # noqa: E731
        return torch.func.grad(loss, argnums=(0, 1, 2, 3))(q, k, v, bias)

    def row(i):
        inputs = zip(tensors, dims, strict=True)
        return *(x if d is None else x.select(d, i) for x, d in inputs), bias

    for f in (lambda *x: (one(*x),), gradient):
        got = torch.vmap(f, in_dims=(*dims, None))(*tensors, bias)
        for i in range(rows):
            for a, b in zip(got, f(*row(i)), strict=True):
                assert torch.equal(a[i], b)

    with_sinks = torch.vmap(
        lambda s, *x: bridge.attention(*x, sink_logits=s, q_offset=1, **options), in_dims=(0, *dims)
    )(sinks, *tensors)
    for i in range(rows):
        alone = bridge.attention(*row(i)[:3], sink_logits=sinks[i], q_offset=1, **options)
        assert torch.equal(with_sinks[i], alone)


def test_gradients_of_many_losses_at_once():
    tensors = [x.detach() for x in qkv()]
    output, pullback = torch.func.vjp(bridge.attention, *tensors)
    losses = torch.randn(3, *output.shape, dtype=output.dtype)
    got = torch.vmap(pullback)(losses)
    for i, loss in enumerate(losses):
        for a, b in zip(got, pullback(loss), strict=True):
            assert torch.equal(a[i], b)


# ---- PyTorch's signature ----

SDPA = {
    "full": {},
    "causal": {"is_causal": True},
    "bool": {"attn_mask": lambda: torch.rand(2, 1, 9, 11) < 0.7},
    "bool of two axes": {"attn_mask": lambda: torch.rand(9, 11) < 0.7},
    "float": {"attn_mask": lambda: torch.randn(4, 1, 11, dtype=torch.float64)},
    "scale": {"scale": 0.2},
}


def own_and_ours(options):
    q, k, v = draw((2, 4, 9, 8), (2, 2, 11, 8), (2, 2, 11, 8))
    options = {n: x() if callable(x) else x for n, x in options.items()} | {"enable_gqa": True}
    own = sdpa(q, k, v, **options)
    mine = bridge.scaled_dot_product_attention(q, k, v, **options)
    with bridge.activate():
        active = sdpa(q, k, v, **options)
    return (q, k, v), own, mine, active


@pytest.mark.parametrize("options", SDPA.values(), ids=list(SDPA))
def test_sdpa_is_that_of_torch(options):
    inputs, own, mine, active = own_and_ours(options)
    for x in (mine, active):
        assert type(x.grad_fn).__name__ == "_CallBackward"
        torch.testing.assert_close(x, own)
        for a, b in zip(
            *(torch.autograd.grad(y.square().sum(), inputs, retain_graph=True) for y in (x, own)),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_a_float_mask_has_a_gradient():
    q, k, v = draw((2, 4, 9, 8), (2, 4, 11, 8), (2, 4, 11, 8))
    mask = torch.randn(9, 11, dtype=torch.float64, requires_grad=True)
    own, mine = (
        torch.autograd.grad(f(q, k, v, mask).square().sum(), mask)[0]
        for f in (sdpa, bridge.scaled_dot_product_attention)
    )
    torch.testing.assert_close(mine, own)


def test_sdpa_drops_weights_by_the_generator_of_torch():
    q, k = (torch.zeros(1, 1, n, 4) for n in (200, 300))
    v = torch.ones(1, 1, 300, 1)
    torch.manual_seed(3)
    a = bridge.scaled_dot_product_attention(q, k, v, dropout_p=0.25)
    b = bridge.scaled_dot_product_attention(q, k, v, dropout_p=0.25)
    torch.manual_seed(3)
    assert torch.equal(bridge.scaled_dot_product_attention(q, k, v, dropout_p=0.25), a)
    assert not torch.equal(a, b)
    assert abs(float(a.mean()) - 1) < 0.01


UNLIKE = {
    "another dtype": lambda x: (x.to(torch.complex64),) * 3,
    "batch axes that broadcast": lambda x: (x, x[:1], x),
    "empty": lambda x: (x[:0],) * 3,
    "head sizes that differ": lambda x: (x, x[..., :4], x),
    "heads that differ": lambda x: (x, x[:, :2], x[:, :2]),
    "a nested tensor": lambda x: (torch.nested.nested_tensor(list(x.float())),) * 3,
    "a meta tensor": lambda x: (x.to("meta"),) * 3,
}


@pytest.mark.parametrize("make", UNLIKE.values(), ids=list(UNLIKE))
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_attnfast_does_not_compute_is_torch_s(make):
    tensors = make(torch.randn(2, 4, 9, 8))

    def result(f):
        try:
            return f(*tensors)
        except (RuntimeError, NotImplementedError) as error:
            return str(error).splitlines()[0]

    expected = result(sdpa)
    with bridge.activate():
        active = result(sdpa)
    for got in (result(bridge.scaled_dot_product_attention), active):
        assert type(got) is type(expected)
        if isinstance(got, str):
            assert got == expected
        elif not got.is_nested and got.device.type == "cpu":
            torch.testing.assert_close(got, expected, equal_nan=True)


def test_activated_for_every_caller(monkeypatch):
    calls = []
    compute = bridge._sdpa._compute
    monkeypatch.setattr(bridge._sdpa, "_compute", lambda *a: calls.append(1) or compute(*a))
    x = torch.randn(2, 9, 32)
    pad = torch.zeros(2, 9, dtype=torch.bool)
    pad[1, 6:] = True
    layer = torch.nn.TransformerEncoderLayer(32, 4, batch_first=True).eval()
    heads = torch.nn.MultiheadAttention(32, 4, batch_first=True).eval()
    users = [
        lambda: sdpa(x, x, x),
        lambda: layer(x, src_key_padding_mask=pad)[~pad],
        lambda: heads(x, x, x, need_weights=False)[0],
        lambda: torch.ops.aten.scaled_dot_product_attention(x, x, x),
        lambda: torch.compile(sdpa, backend="aot_eager", fullgraph=True)(x, x, x),
    ]
    for user in users:
        with torch.no_grad():
            torch.compiler.reset()
            expected = user()
            assert not calls
            with bridge.activate():
                torch.compiler.reset()
                got = user()
            assert calls
            calls.clear()
            torch.testing.assert_close(got, expected)
    torch.compiler.reset()


def test_a_backend_that_was_asked_for_is_used():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = draw((1, 2, 9, 8), (1, 2, 9, 8), (1, 2, 9, 8))
    with bridge.activate(), sdpa_kernel(SDPBackend.MATH):
        assert type(sdpa(q, k, v).grad_fn).__name__ != "_CallBackward"


def test_restored():
    q, k, v = draw((1, 2, 9, 8), (1, 2, 9, 8), (1, 2, 9, 8))
    active = lambda: type(sdpa(q, k, v).grad_fn).__name__ == "_CallBackward"  # noqa: E731
    assert not active()
    bridge.restore()
    with bridge.activate():
        assert active()
        assert not torch.backends.mha.get_fastpath_enabled()
        with bridge.activate():
            assert active()
        assert active()
    assert not active()
    assert torch.backends.mha.get_fastpath_enabled()
    bridge.activate()
    assert active()
    bridge.restore()
    assert not active()


def test_autocast():
    q, k, v = (torch.randn(2, 4, 9, 8) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        expected = sdpa(q, k, v)
        got = [bridge.attention(q, k, v), bridge.scaled_dot_product_attention(q, k, v)]
        with bridge.activate():
            got.append(sdpa(q, k, v))
    for x in got:
        assert x.dtype is torch.bfloat16
        torch.testing.assert_close(x, expected, atol=2e-2, rtol=2e-2)


# ---- errors and threads ----


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda x: {"key": np.zeros((2, 4, 9, 8))},
            TypeError,
            r"key must be a tensor, got ndarray",
        ),
        (lambda x: {"value": x.half()}, TypeError, r"value has dtype.*value.to\(torch.float32\)"),
        (lambda x: {"query": x.long()}, TypeError, r"query must be of float32.*got torch.int64"),
        (lambda x: {"mask": x}, TypeError, "mask"),
        (lambda x: {"attn_mask": x}, TypeError, "write mask=attn_mask"),
        (lambda x: {"out": x}, TypeError, "out is not an argument of attention"),
        (lambda x: {"bias": x.to_sparse()}, TypeError, r"bias.*bias.to_dense\(\)"),
    ],
)
def test_errors(change, error, message):
    x = torch.randn(2, 4, 9, 8)
    with pytest.raises(error, match=message):
        bridge.attention(**{"query": x, "key": x, "value": x, **change(x)})


def test_another_device_is_refused():
    x = torch.zeros(2, 4, 9, 8)
    other = torch.zeros(2, 4, 9, 8, device="meta")
    with pytest.raises(ValueError, match=r"key must be on the CPU.*on meta"):
        bridge.attention(x, other, x)


def test_threads_are_the_fewer_of_both(monkeypatch):
    seen = []
    x = torch.randn(1, 2, 9, 8)
    monkeypatch.setattr(_call, "get_num_threads", lambda: 2)
    before = torch.get_num_threads()
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            seen.append(_call.with_threads({"query": x}).get("num_threads"))
    finally:
        torch.set_num_threads(before)
    assert seen == [1, None]
    assert _call.with_threads({"num_threads": 5})["num_threads"] == 5


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("None", "attnfast.torch needs PyTorch, which is not installed: pip install"),
        ("types.SimpleNamespace(__version__='2.4.1')", "needs PyTorch 2.5 or newer, got 2.4.1"),
    ],
)
def test_without_a_fitting_torch(tmp_path, module, message):
    script = f"import sys, types; sys.modules['torch'] = {module}; import attnfast.torch"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert message in result.stderr.splitlines()[-1]


def test_attnfast_alone_does_not_import_torch(tmp_path):
    script = "import sys, attnfast; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path).returncode == 0
