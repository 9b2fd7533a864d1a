"""``attnfast.transformers``: training, packed sequences, weights, and what it refuses."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="torch is an optional extra")
transformers = pytest.importorskip("transformers", reason="transformers is an optional extra")

import attnfast.transformers  # noqa: E402
from support.families import FAMILIES, build, inputs, result, use  # noqa: E402

attnfast.transformers.register()


def gradients(model, arguments, real, **options):
    """Return the output at real tokens and the gradients of all parameters that have one."""
    model.zero_grad()
    output = result(model, arguments, **options)[real]
    output.square().mean().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach(), **found}


def close(found, expected):
    """Compare two results of `gradients`."""
    assert found.keys() == expected.keys()
    for name, e in expected.items():
        scale = max(1.0, e.abs().max().item())
        torch.testing.assert_close(found[name], e, rtol=2e-4, atol=3e-5 * scale, msg=name)


def checkpoint(model, on, *options):
    """Switch checkpointing, which transformers 5.23 names anew."""
    names = (
        f"{kind}_checkpointing_{'enable' if on else 'disable'}"
        for kind in ("activation", "gradient")
    )
    next(getattr(model, name) for name in names if hasattr(model, name))(*options)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["bert", "modernbert", "gemma2", "gpt_oss", "t5"])
def test_gradient_checkpointing(name, reentrant):
    model = build(name).train()
    arguments, real = inputs(name)
    use(model, "eager")
    expected = gradients(model, arguments, real)
    use(model, "attnfast")
    checkpoint(model, True, {"use_reentrant": reentrant})
    close(gradients(model, arguments, real, use_cache=False), expected)


@pytest.mark.parametrize("frozen", ["q_proj", "k_proj", "v_proj", "sinks", "embed_tokens"])
def test_gradients_that_are_not_wanted(frozen):
    """The others are not lost with them."""
    model = build("gpt_oss")
    arguments, real = inputs("gpt_oss", "left")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in name)
    use(model, "eager")
    expected = gradients(model, arguments, real)
    assert not any(frozen in name for name in expected)
    use(model, "attnfast")
    close(gradients(model, arguments, real), expected)


def test_dropout_follows_the_generator_of_torch():
    model = build("bert").train()
    for layer in model.encoder.layer:
        layer.attention.self.dropout.p = 0.5
    use(model, "attnfast")
    arguments, real = inputs("bert")
    outcomes = []
    for seed, checkpointing in ((0, False), (0, True), (1, False)):
        checkpoint(model, checkpointing)
        torch.manual_seed(seed)
        outcomes.append(gradients(model, arguments, real))
    close(outcomes[1], outcomes[0])
    assert not torch.allclose(outcomes[2]["output"], outcomes[0]["output"])
    assert torch.equal(result(model.eval(), arguments), result(model, arguments))


def pack(lengths):
    """Return token numbers of several texts in one row, positions, and where texts begin."""
    total = sum(lengths)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 99, (1, total), generator=generator)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return ids, positions, bounds


LENGTHS = [5, 11, 1, 7]


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "qwen3", "gpt2"])
def test_packed_by_positions(name):
    ids, positions, _ = pack(LENGTHS)
    arguments = {"input_ids": ids, "position_ids": positions}
    model = build(name)
    real = torch.ones_like(ids, dtype=torch.bool)
    use(model, "eager")
    expected = gradients(model, arguments, real, use_cache=False)
    use(model, "attnfast")
    close(gradients(model, arguments, real, use_cache=False), expected)
    alone = [result(model, {"input_ids": x}, use_cache=False) for x in ids.split(LENGTHS, 1)]
    alone = torch.cat(alone, 1)[0]
    torch.testing.assert_close(expected["output"], alone, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert", "llama"])
@pytest.mark.parametrize("weights", [False, True])
def test_packed_by_bounds(name, weights):
    """The arguments of transformers' collator for flash attention, which encoders need."""
    ids, positions, bounds = pack(LENGTHS)
    arguments = {"input_ids": ids} | ({} if name == "distilbert" else {"position_ids": positions})
    arguments |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
    arguments |= {"max_length_q": max(LENGTHS), "max_length_k": max(LENGTHS)}
    model = build(name)
    if name == "distilbert":
        model.embeddings.position_embeddings.weight.data.zero_()
    use(model, "attnfast")
    found = result(model, arguments, output_attentions=weights)
    alone = [result(model, {"input_ids": x}) for x in ids.split(LENGTHS, 1)]
    torch.testing.assert_close(found, torch.cat(alone, 1), rtol=2e-4, atol=1e-4)


def test_bounds_that_contradict_the_rest_are_refused():
    ids, positions, bounds = pack(LENGTHS)
    model = build("llama")
    use(model, "attnfast")
    wrong = {"cu_seq_lens_q": bounds[:-1], "cu_seq_lens_k": bounds}
    with pytest.raises(ValueError, match="where position_ids restart"):
        model(input_ids=ids, position_ids=positions, use_cache=False, **wrong)
    both = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    with pytest.raises(ValueError, match="leave out attention_mask"):
        model(input_ids=ids, attention_mask=mask, **both)


def attentions(output):
    """Return all weights of a model's output, by name."""
    names = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")
    return {name: output[name] for name in names if output.get(name) is not None}


@pytest.mark.parametrize("name", FAMILIES)
def test_weights(name):
    model = build(name)
    arguments, _ = inputs(name, "none")
    outcomes = []
    for implementation in ("eager", "attnfast"):
        use(model, implementation)
        with torch.no_grad():
            outcomes.append(attentions(model(**arguments, output_attentions=True)))
    expected, found = outcomes
    assert expected and found.keys() == expected.keys()
    for kind in expected:
        assert len(found[kind]) == len(expected[kind])
        for e, f in zip(expected[kind], found[kind], strict=True):
            torch.testing.assert_close(f, e, rtol=1e-4, atol=1e-5)


def test_weights_have_gradients():
    model = build("bert")
    arguments, real = inputs("bert")
    outcomes = []
    for implementation in ("eager", "attnfast"):
        use(model, implementation)
        model.zero_grad()
        weights = model(**arguments, output_attentions=True).attentions
        sum((w * real[:, None, :, None]).square().sum() for w in weights).backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        outcomes.append({n: g for n, g in found.items() if g.abs().max() > 0})
    close(outcomes[1], {n: g for n, g in outcomes[0].items() if n in outcomes[1]})
    assert all(g.abs().max() < 1e-6 for n, g in outcomes[0].items() if n not in outcomes[1])


def test_rows_of_padding_are_zero():
    model = build("bert")
    seen = []
    layer = model.encoder.layer[0].attention.output.dense
    layer.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    use(model, "attnfast")
    arguments, real = inputs("bert")
    model(**arguments)
    assert (seen[0][~real] == 0).all() and (seen[0][real] != 0).any(-1).all()


def test_cross_attention_between_texts_of_one_length():
    """The padding of the source is not that of the target."""
    model = build("bart")
    generator = torch.Generator().manual_seed(3)
    source, target = torch.randint(3, 99, (2, 2, 12), generator=generator)
    mask = torch.arange(12) < torch.tensor([[12], [4]])
    arguments = {"input_ids": source, "attention_mask": mask, "decoder_input_ids": target}
    outcomes = []
    for implementation in ("eager", "attnfast"):
        use(model, implementation)
        outcomes.append(result(model, arguments).detach())
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["", "my_sdpa", "flash_attnfast", "paged|x", "user/attnfast"])
def test_names_that_transformers_reads_otherwise(name):
    with pytest.raises(ValueError, match="name must not be empty or contain"):
        attnfast.transformers.register(name)


def test_another_name():
    attnfast.transformers.register("other_name")
    model = build("bert")
    model.set_attn_implementation("other_name")
    arguments, real = inputs("bert")
    found = result(model, arguments)[real]
    use(model, "attnfast")
    assert torch.equal(found, result(model, arguments)[real])


@pytest.mark.parametrize("missing", ["transformers", "torch", "old"])
def test_a_missing_library_is_one_sentence(missing, tmp_path):
    code = "import sys, types\n"
    if missing == "old":
        code += "m = types.ModuleType('transformers'); m.__version__ = '4.57.6'\n"
        code += "sys.modules['transformers'] = m\n"
    else:
        code += f"sys.modules[{missing!r}] = None\n"
    code += "try:\n    import attnfast.transformers\n"
    code += "except ImportError as error:\n    print(error)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "attnfast.transformers needs transformers 5.4.0 or newer" in run.stdout
    assert "pip install" in run.stdout and run.stdout.count("\n") == 1


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it traces
@pytest.mark.parametrize("name", ["bert", "gemma2"])
def test_traced_models_have_dense_masks(name):
    model = build(name)
    use(model, "attnfast")
    arguments, real = inputs(name)
    with torch.no_grad():
        expected = result(model, arguments)[real]
        found = result(torch.compile(model, backend="eager"), arguments)[real]
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-4)
