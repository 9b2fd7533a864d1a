"""The pages "From your code": each listing and what replaces it give the same, and its faults."""

import os
import re

import numpy as np
import pytest

import attnfast
from support.paths import ROOT

# Keras 3.15 on NumPy 2: arrays of its variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PAGES = {
    "English": ROOT / "docs" / "guide" / "from-your-code.md",
    "Chinese": ROOT / "docs" / "zh" / "from-your-code.md",
}


def sections(page):
    """The code blocks under each heading of a page."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    bodies = re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]
    found = [re.findall(r"```python\n(.*?)```", body, re.DOTALL) for body in bodies]
    return dict(zip(headings, found, strict=True))


HEADINGS = list(sections(PAGES["English"]))
SECTIONS = {}


@pytest.fixture(params=PAGES, autouse=True)
def page(request):
    """Every test runs for each language; sections have the names of the English ones."""
    found = sections(PAGES[request.param]).values()
    SECTIONS.update(zip(HEADINGS, found, strict=True))


B, H, L, D = 3, 2, 7, 4
LENGTHS = np.array([7, 4, 1])
REAL = np.arange(L) < LENGTHS[:, None]


def arrays(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def run(heading, name):
    """What both blocks of a section define under a name."""
    found = []
    for code in SECTIONS[heading]:
        if "keras" in code:
            use_keras()
        elif "torch" in code:
            pytest.importorskip("torch", reason="torch is an optional extra")
        namespace = {"__name__": "page"}
        exec(compile(code, heading, "exec"), namespace)
        found.append(namespace[name])
    return found


def use_keras():
    """Keras with PyTorch, or skip."""
    pytest.importorskip("torch", reason="torch is an optional extra")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="keras is not installed")
    if keras.backend.backend() != "torch":
        pytest.skip("Keras has another backend here")


def agree(a, b, **tolerance):
    """Two results, or tuples of them, are equal but for rounding."""
    if isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            agree(x, y, **tolerance)
    else:
        a, b = (x.detach().numpy() if hasattr(x, "detach") else np.asarray(x) for x in (a, b))
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, **{"rtol": 1e-9, "atol": 1e-11, **tolerance})


def test_every_section_has_a_listing_and_its_form():
    assert all(len(blocks) == 2 for heading, blocks in SECTIONS.items()), SECTIONS.keys()
    for listing, form in SECTIONS.values():
        assert "attnfast" in form and "attnfast" not in listing
        names = [
            re.findall(r"^(?:def|class) (\w+)", code, re.MULTILINE)[-1] for code in (listing, form)
        ]
        assert names[0] == names[1]


def test_the_pages_have_the_same_listings():
    english, chinese = (
        [re.sub(r" *#.*", "", code) for blocks in sections(page).values() for code in blocks]
        for page in PAGES.values()
    )
    assert english == chinese


# ---- NumPy ----


def test_softmax_in_numpy():
    listing, form = run("softmax in NumPy", "self_attention")
    given = arrays(0, (L, 6), (6, D), (6, D), (6, 5))
    agree(listing(*given), form(*given))
    hot = [given[0].astype("f4") * 100, *(w.astype("f4") for w in given[1:])]
    with np.errstate(all="ignore"):
        assert np.isnan(listing(*hot)[0]).any()
    assert np.isfinite(form(*hot)[0]).all()
    with pytest.raises(TypeError, match="astype"):
        form(*(np.round(x).astype(int) for x in given))


MASKED = "scores += mask * -1e9"


def masked(dtype=np.float64):
    q, k, v = (x.astype(dtype) for x in arrays(1, *[(B, H, L, D)] * 3))
    return q, k, v, np.broadcast_to(~REAL[:, None, None], (B, 1, L, L)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_added_masks(dtype):
    listing, form = run(MASKED, "scaled_dot_product_attention")
    rounding = {"atol": 1e-6} if dtype == np.float32 else {"atol": 1e-9}
    agree(listing(*masked(dtype)), form(*masked(dtype)), **rounding)


def test_what_added_masks_do_where_all_is_hidden():
    listing, form = run(MASKED, "scaled_dot_product_attention")
    q, k, v, mask = masked(np.float32)
    mask[1] = 1
    output, weights = listing(q, k, v, mask)
    np.testing.assert_allclose(weights[1], 1 / L, rtol=1e-6)
    np.testing.assert_allclose(
        output[1], np.broadcast_to(v[1].mean(1, keepdims=True), v[1].shape), atol=1e-6
    )
    assert not form(q, k, v, mask)[0][1].any()


def test_what_added_masks_do_to_nan_and_float16():
    listing, form = run(MASKED, "scaled_dot_product_attention")
    q, k, v, mask = masked()
    v[1, :, 4:] = np.nan
    assert np.isnan(listing(q, k, v, mask)[0][1]).all()
    assert np.isfinite(form(q, k, v, mask)[0]).all()
    with np.errstate(all="ignore"):
        assert np.isnan(np.float16(0) * np.float16(-1e9))


def test_heads_by_einsum():
    listing, form = run("Heads by einsum", "multi_head")
    q, k, v = arrays(2, (B, L, H, D), (B, L, H, D), (B, L, H, D))
    mask = REAL[:, None, None].astype(int)
    agree(listing(q, k, v, mask, H * D), form(q, k, v, mask, H * D))
    out = attnfast.attention(q[0].swapaxes(0, 1), k[0].swapaxes(0, 1), v[0].swapaxes(0, 1))
    paper = form(q[:1], k[:1], v[:1], mask[:1], D)
    agree(paper[0], out.swapaxes(0, 1).reshape(L, -1))


# ---- PyTorch ----


def tensors(*shapes, seed=3):
    import torch

    return [torch.from_numpy(x).requires_grad_() for x in arrays(seed, *shapes)]


def same_gradients(listing, form, *given):
    """Outputs, and the gradients of inputs and parameters, are equal but for rounding."""
    import torch

    parameters = [list(f.parameters()) if hasattr(f, "parameters") else [] for f in (listing, form)]
    results = [f(*given) for f in (listing, form)]
    agree(*results)
    firsts = [r[0] if isinstance(r, tuple) else r for r in results]
    loss = torch.from_numpy(arrays(9, firsts[0].shape)[0])
    inputs = [x for x in given if hasattr(x, "requires_grad") and x.requires_grad]
    grads = [
        torch.autograd.grad((first * loss).sum(), [*inputs, *own], allow_unused=True)
        for first, own in zip(firsts, parameters, strict=True)
    ]
    for a, b in zip(*grads, strict=True):
        agree(*(np.zeros(1) if x is None else x for x in (a, b)))


def modules(heading, name, *sizes):
    """Two modules with the same weights."""
    listing, form = (cls(*sizes).double() for cls in run(heading, name))
    form.load_state_dict(listing.state_dict())
    return listing, form


def test_bmm_softmax_bmm():
    listing, form = run("bmm, softmax, bmm", "scaled_dot_product_attention")
    q, k, v = tensors((B, 5, D), (B, L, D), (B, L, 6))
    same_gradients(listing, form, q, k, v)


def test_softmax_without_an_axis_is_over_the_batch():
    torch = pytest.importorskip("torch")
    with pytest.warns(UserWarning, match="Implicit dimension"):
        weights = torch.nn.functional.softmax(torch.randn(B, L, L))
    agree(weights.sum(0), torch.ones(L, L), atol=1e-6)


def test_masked_fill():
    listing, form = run("masked_fill with -1e9", "attention")
    import torch

    q, k, v = tensors(*[(B, H, L, D)] * 3)
    mask = torch.from_numpy(REAL[:, None, None].astype(int))
    same_gradients(listing, form, q, k, v)
    same_gradients(listing, form, q, k, v, mask, torch.nn.Dropout(0.5).eval())
    hidden = mask * torch.tensor([1, 0, 1]).reshape(3, 1, 1, 1)
    agree(listing(q, k, v, hidden)[0][1], v[1].mean(1, keepdim=True).expand(H, L, D))
    assert not form(q, k, v, hidden)[0][1].any()
    with pytest.raises(RuntimeError, match="overflow"):
        listing(q.half(), k.half(), v.half(), mask)


def test_dropout_keeps_the_mean():
    _, form = run("masked_fill with -1e9", "attention")
    import torch

    torch.manual_seed(0)
    q, k, v = tensors((1, 1, 4, D), (1, 1, 4000, D), (1, 1, 4000, D))
    dropped, weights = form(q, k, v + 1, dropout=torch.nn.Dropout(0.5).train())
    kept, same = form(q, k, v + 1)
    agree(weights, same)
    assert 0 < (dropped - kept).abs().max() < 0.3


def test_a_causal_mask():
    listing, form = run("A causal mask by tril", "causal_attention")
    q, k, v = tensors(*[(B, H, L, D)] * 3)
    same_gradients(listing, form, q, k, v)
    agree(listing(q[..., -1:, :], k, v), v[..., :1, :])  # the newest word sees the first
    agree(form(q[..., -1:, :], k, v), form(q, k, v)[..., -1:, :])


def test_a_sum_of_words():
    listing, form = modules("A sum of words by attention", "Attention", D)
    (x,) = tensors((B, L, D))
    same_gradients(listing, form, x)
    agree(form(x, lengths=LENGTHS)[1], listing(x[1:2, :4])[0])
    wrong = (listing.u(listing.W(x).tanh()).softmax(dim=-1) * x).sum(1)
    agree(wrong, x.sum(1))


def test_attention_of_a_decoder():
    listing, form = modules("attention(query, values, mask)", "BahdanauAttention", D)
    import torch

    query, values = tensors((B, 1, D), (B, L, D))
    mask = torch.from_numpy(REAL[:, None].astype(int))
    same_gradients(listing, form, query, values, mask)
    assert listing(query, values, mask * 0)[0].isnan().all()
    assert not form(query, values, mask * 0)[0].any()
    (steps,) = tensors((B, 5, D), seed=4)
    contexts, _ = form(steps, values, mask)
    for t in range(5):
        agree(contexts[:, t : t + 1], listing(steps[:, t : t + 1], values, mask)[0])


def test_luongs_scores():
    listing, form = modules("Luong's scores", "Attn", D)
    hidden, source = tensors((1, B, D), (L, B, D))
    same_gradients(listing, form, hidden, source)
    agree(form(hidden, source, LENGTHS)[1], listing(hidden[:, 1:2], source[:4, 1:2])[0])
    before = form(hidden, source)
    form.attn.bias.data += 1
    agree(form(hidden, source), before)


def test_weights_that_do_not_look():
    listing, form = modules("Weights that do not look at the source", "AttnDecoder", D, L)
    embedded, hidden, source = tensors((B, D), (B, D), (B, L, D))
    same_gradients(listing, form, embedded, hidden, source)
    other = form(embedded, hidden, source.flip(1), LENGTHS)
    agree(other[2], source[2, -1])  # one position is left


# ---- Keras ----


def keras_layers(heading, name, *sizes, given):
    """Two layers with the same weights."""
    listing, form = (cls(*sizes) for cls in run(heading, name))
    for layer in (listing, form):
        layer(*given)
    return listing, form


def floats(*shapes):
    import torch

    return [torch.from_numpy(x.astype("f4")) for x in arrays(5, *shapes)]


def test_bahdanau_in_keras():
    heading, name = "Bahdanau's layer in Keras", "BahdanauAttention"
    use_keras()
    given = floats((B, D), (B, L, 6))
    listing, form = keras_layers(heading, name, 5, given=given)
    shared = [layer.get_weights() for layer in (listing.W1, listing.W2)]
    for layer, weights in zip((form.W1, form.W2), shared, strict=True):
        layer.set_weights(weights)
    form.V.set_weights(listing.V.get_weights()[:1])
    agree(listing(*given), form(*given), rtol=1e-5, atol=1e-6)
    part = listing(given[0][1:2], given[1][1:2, :4])[0]
    agree(form(*given, lengths=LENGTHS)[0][1:2], part, rtol=1e-5, atol=1e-6)


def test_w_and_b_in_keras():
    use_keras()
    given = floats((B, L, D))
    listing, form = keras_layers("A Keras layer with W and b", "WordAttention", given=given)
    form.set_weights([3 * w + 0.1 for w in listing.get_weights()])
    listing.set_weights(form.get_weights())
    agree(listing(*given), form(*given), rtol=1e-5, atol=1e-6)


def test_keras_attention():
    use_keras()
    listing, form = run("Attention()([query, value]) in Keras", "attend")
    query, value = (x.astype("f4") for x in arrays(6, (B, 5, D), (B, L, D)))
    masks = np.ones((B, 5), bool), REAL
    agree(listing(query, value, *masks), form(query, value, *masks), rtol=1e-5, atol=1e-6)
    hidden = masks[0], REAL & np.array([[True], [False], [True]])
    mean = value[1].mean(0, keepdims=True).repeat(5, 0)
    agree(listing(query, value, *hidden)[1], mean, rtol=1e-5, atol=1e-6)
    assert not form(query, value, *hidden)[1].any()


def test_a_bare_tanh_cannot_point():
    heaviest = np.e / (np.e + 99 / np.e)
    assert 0.069 < heaviest < 0.07
    assert np.e**2 == pytest.approx(7.4, abs=0.02)
    scores = attnfast.additive_attention(
        np.zeros((1, 1)), np.r_[9, -9 * np.ones(99)][:, None], np.eye(100)
    )
    assert scores.max() == pytest.approx(heaviest)


def test_keras_needs_a_scale():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 200, 64))
    assert attnfast.attention_weights(q, k, scale=1.0).max(axis=-1).mean() > 0.7
    assert attnfast.attention_weights(q, k).max(axis=-1).mean() < 0.06
