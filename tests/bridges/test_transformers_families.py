"""``attnfast.transformers``: families of models against ``eager``."""

import sys
from unittest.mock import Mock

import pytest

torch = pytest.importorskip("torch", reason="torch is an optional extra")
pytest.importorskip("transformers", reason="transformers is an optional extra")

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # noqa: E402

import attnfast.transformers  # noqa: E402
from support.families import FAMILIES, build, inputs, result, use  # noqa: E402

attnfast.transformers.register()


def sides(names):
    """Pair each family with the paddings that its inputs can have."""
    padded = ("right", "left", "none")
    return [
        pytest.param(name, side, id=f"{name}-{side}")
        for name in names
        for side in (padded if FAMILIES[name].kind not in ("image", "audio") else ("none",))
    ]


def compare(monkeypatch, name, side, dtype, gradients=False):
    """Return results, and gradients, under eager and attnfast, where tokens are real."""
    model = build(name, dtype)
    arguments, real = inputs(name, side)
    if dtype != torch.float32:
        arguments = {
            key: x.to(dtype) if x.is_floating_point() else x for key, x in arguments.items()
        }
    outcomes = []
    attend = Mock(wraps=ALL_ATTENTION_FUNCTIONS["attnfast"])
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "attnfast", attend)
    for implementation in ("eager", "attnfast"):
        use(model, implementation)
        model.zero_grad()
        with torch.set_grad_enabled(gradients):
            output = result(model, arguments)[real]
        found = [output.detach()]
        if gradients:
            weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
            (output * weights).sum().backward()
            found += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        outcomes.append(found)
    # Bloom, and T5 until transformers 5.6 at least, know no other attention than their own.
    module = sys.modules[type(model).__module__]
    assert attend.called == hasattr(module, "ALL_ATTENTION_FUNCTIONS")
    return outcomes


@pytest.mark.parametrize("name, side", sides(FAMILIES))
def test_float32(monkeypatch, name, side):
    expected, found = compare(monkeypatch, name, side, torch.float32, gradients=True)
    assert len(expected) == len(found)
    for e, f in zip(expected, found, strict=True):
        torch.testing.assert_close(f, e, rtol=2e-4, atol=2e-5 * max(1.0, e.abs().max().item()))


@pytest.mark.parametrize("name, side", sides(FAMILIES))
def test_bfloat16(monkeypatch, name, side):
    exact = compare(monkeypatch, name, side, torch.float32)[0][0]
    eager, found = (x[0].float() for x in compare(monkeypatch, name, side, torch.bfloat16))
    # As close to float32 as eager is, which also rounds the weights.
    assert (found - exact).norm() <= 1.25 * (eager - exact).norm() + 1e-3 * exact.norm()
