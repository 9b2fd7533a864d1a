"""What callers see of public functions: signatures as a person writes them, advice on keywords."""

import inspect
import re

import numpy as np
import pytest

import attnfast
import attnfast.layers
import attnfast.plot
from attnfast import _keywords, planning
from support.arrays import same_bits
from support.legal import FUNCTIONS, call, parameters_of

pytestmark = pytest.mark.quick


X = np.ones((2, 3, 8), np.float32)
LONGEST = 420  # characters of a signature, which a screen shows in a few lines
ATTENDING = [name for name, arguments in FUNCTIONS.items() if "query" in arguments]


def public():
    for module in (attnfast, attnfast.layers, attnfast.plot):
        for name in module.__all__:
            thing = getattr(module, name)
            if callable(thing):
                yield f"{module.__name__}.{name}", thing
            if inspect.isclass(thing) and not hasattr(thing, "_fields"):
                for member in ("__call__", *(n for n in dir(thing) if n[0] != "_")):
                    method = getattr(thing, member, None)
                    if getattr(method, "__module__", "").startswith("attnfast"):
                        yield f"{module.__name__}.{name}.{member}", method


@pytest.mark.parametrize(
    ("name", "thing"), list(public()), ids=lambda x: x if type(x) is str else ""
)
def test_signatures_fit_a_screen(name, thing):
    shown = str(inspect.signature(thing))
    assert len(shown) < LONGEST
    assert "unknown" not in shown and "Union[" not in shown


def test_the_signature_of_attention_is_what_a_person_writes():
    shown = str(inspect.signature(attnfast.attention))
    assert shown.startswith("(query, key, value, *, mask=None, bias=None, is_causal=False, ")
    assert shown.endswith("return_lse=False, return_weights=False, out=None, num_threads=None)")


@pytest.mark.parametrize(
    ("keyword", "advice"),
    [
        ("attn_mask", "mask=attn_mask .*mask=~attn_mask .*bias=attn_mask "),
        ("causal", "is_causal=True"),
        ("dropout_p", "write dropout=dropout_p, and a dropout_seed="),
        (
            "key_padding_mask",
            r"mask=~key_padding_mask\[.*kv_lengths=.*kv_starts=",
        ),
        ("leftpad_k", "write kv_starts=leftpad_k"),
        ("cache_leftpad", "write kv_starts=cache_leftpad"),
        ("need_weights", "return_weights=True"),
        ("sliding_window", r"window_size=\(sliding_window - 1, 0\)"),
        ("window_sise", r"did you mean window_size\?"),
        ("kv_length", r"did you mean kv_lengths\?"),
        ("seq_lens", "kv_lengths= for keys and q_lengths= for queries"),
        ("tgt_mask", "mask=tgt_mask .*mask=~tgt_mask if True means hidden, bias=tgt_mask if"),
        ("pad_mask", r"mask=~pad_mask\[:, None, None, :\] if its True is padding, mask=pad_mask"),
        ("global_attention_mask", "use local_attention.*global_tokens=global_attention_mask != 0"),
        ("num_heads", r"leave it out, .*query.reshape\(B, L, H, D\).swapaxes\(1, 2\)"),
        ("return_scores", 'use attention_weights\\(query, key, stage="scores"\\)'),
        ("cu_q", "use attention_varlen"),
        ("nonsense", "which takes query, key, value, mask, bias, is_causal, .*num_threads$"),
    ],
)
def test_keywords_of_other_libraries(keyword, advice):
    out = np.full_like(X, 7)
    with pytest.raises(TypeError, match=f"^{keyword} is not an argument of attention.*{advice}"):
        attnfast.attention(X, X, X, out=out, **{keyword: True})
    assert (out == 7).all()


@pytest.mark.parametrize("function", planning.CORES, ids=lambda function: function.__name__)
def test_arguments_by_position(function):
    parameters = inspect.signature(function).parameters.values()
    first = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    wanted = f"^{function.__name__} takes {len(first)} arguments by position, {', '.join(first)}, "
    wanted += rf"got {len(first) + 1}: write the others by name, \w+, \w+, \w+ \.\.\."
    with pytest.raises(TypeError, match=wanted) as caught:
        function(*[X] * len(first), X)
    assert str(caught.value).endswith("...") == ("value" in first)


@pytest.mark.parametrize("function", planning.CORES, ids=lambda function: function.__name__)
def test_an_option_with_its_default_is_one_left_out(function):
    parameters = inspect.signature(function).parameters.values()
    options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    legal = FUNCTIONS[function.__name__]
    first = {p.name: legal[p.name] for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    if "window_size" in first:
        options["q_offset"] = first["q_offset"] = 0  # which must be given
    expected = function(**first)
    for chosen in (options, *({name: x} for name, x in options.items())):
        result = function(**{**first, **chosen})
        parts = zip(result, expected, strict=True)
        assert all(same_bits(a, b) for a, b in parts), chosen


def test_all_foreign_keywords_are_told_at_once():
    message = "^attn_mask is not an argument of attention: leave it out; enable_gqa .* fewer heads"
    with pytest.raises(TypeError, match=message):
        attnfast.attention(X, X, X, attn_mask=None, enable_gqa=True)


@pytest.mark.parametrize("keyword", [*_keywords.FOREIGN, "seq_lens", "tgt_mask", "pad_mask"])
@pytest.mark.parametrize("form", ATTENDING)
def test_advice_names_arguments_that_the_function_has(form, keyword):
    """Every `name=` in the advice is an argument of the function that gives it."""
    function = form.partition(",")[0]
    arguments = FUNCTIONS[form]
    if keyword in parameters_of(function):
        return
    meant = "attention" if function in ("plan", "vjp") else function
    with pytest.raises(TypeError, match=f"^{keyword} is not an argument of {meant}") as caught:
        call(form, {**arguments, keyword: 1})
    message = re.sub(r"\(axis=-?\d\)", "", str(caught.value))
    other = re.search(r": use (\w+)\(", message)
    advised = parameters_of(other[1] if other else function)
    assert set(re.findall(r"(\w+)=", message)) <= advised


@pytest.mark.parametrize(
    ("keyword", "advice"),
    [
        ("key_padding_mask", "key_mask=~key_padding_mask"),
        ("padding_mask", "key_mask= with True for a real key: ~padding_mask if its True is"),
        ("need_weights", "return_weights=True"),
        ("nonsense", "which takes query, key, value, return_weights, key_mask, "),
    ],
)
def test_keywords_of_other_layers(keyword, advice):
    layer = attnfast.layers.MultiHeadAttention(8, 2)
    wanted = f"^{keyword} is not an argument of MultiHeadAttention.*{advice}"
    with pytest.raises(TypeError, match=wanted):
        layer(X, **{keyword: True})


def test_the_scale_of_additive_scores_is_that_of_their_weight():
    advice = r"^scale is not .*write score_weight=scale \* score_weight"
    with pytest.raises(TypeError, match=advice):
        attnfast.additive_attention(X, X, X, scale=0.5)


@pytest.mark.parametrize("kind", [attnfast.KVCache, attnfast.PagedKVCache])
def test_errors_about_arguments_name_the_cache(kind):
    with pytest.raises(TypeError, match=rf"^{kind.__name__}\.__init__\(\) missing"):
        kind()
