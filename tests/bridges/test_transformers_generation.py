"""``attnfast.transformers``: caches and greedy generation against ``eager``."""

import pytest

torch = pytest.importorskip("torch", reason="torch is an optional extra")
pytest.importorskip("transformers", reason="transformers is an optional extra")

import attnfast.transformers  # noqa: E402
from support.families import FAMILIES, build, inputs, result, use  # noqa: E402

attnfast.transformers.register()

DECODERS = [name for name, family in FAMILIES.items() if family.kind in ("decoder", "both")]
# The static cache has a layer of its own for windows: both kinds are tried.
STATIC = ["llama", "mistral", "gemma2", "gemma3", "gpt_oss", "qwen3"]


def generate(name, implementation, tokens=20, **options):
    model = build(name)
    use(model, implementation)
    arguments, _ = inputs(name, "left")
    arguments.pop("decoder_input_ids", None)
    return model.generate(
        **arguments,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        return_dict_in_generate=True,
        **options,
    )


@pytest.mark.parametrize("name", DECODERS)
def test_dynamic_cache(name):
    try:
        expected = generate(name, "eager").sequences
    except RuntimeError:  # T5Gemma beyond its window, in transformers 5.4
        pytest.skip("eager fails")
    assert torch.equal(generate(name, "attnfast").sequences, expected)


@pytest.mark.parametrize("name", STATIC)
def test_static_cache(name):
    options = {"cache_implementation": "static", "disable_compile": True}
    expected, found = (generate(name, x, **options).sequences for x in ("eager", "attnfast"))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"use_cache": False}], ids=str)
def test_other_ways_to_generate(name, options):
    expected, found = (generate(name, x, 8, **options).sequences for x in ("eager", "attnfast"))
    assert torch.equal(found, expected)


def test_weights_of_generation():
    options = {"output_attentions": True}
    expected, found = (generate("llama", x, 4, **options).attentions for x in ("eager", "attnfast"))
    assert [[w.shape for w in step] for step in found] == [
        [w.shape for w in step] for step in expected
    ]
    for e, f in zip(expected[-1], found[-1], strict=True):
        torch.testing.assert_close(f, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "llama4"])
def test_several_tokens_after_a_cache(name):
    """The second half of a text, with the keys of the first in the cache of windows or all."""
    model = build(name)
    arguments, real = inputs(name, "left")
    outcomes = []
    for implementation in ("eager", "attnfast"):
        use(model, implementation)
        with torch.no_grad():
            mask = arguments["attention_mask"]
            first = model(input_ids=arguments["input_ids"][:, :14], attention_mask=mask[:, :14])
            # Named anew in transformers 5.20; both names are read.
            name_of_cache = "cache" if "cache" in first else "past_key_values"
            cache = {name_of_cache: first[name_of_cache]}
            second = {"input_ids": arguments["input_ids"][:, 14:], "attention_mask": mask}
            outcomes.append(result(model, second, **cache)[real[:, 14:]])
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=2e-4, atol=1e-4)
