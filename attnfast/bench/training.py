"""The cases of training, as data: forward and backward, or the backward call alone."""

from __future__ import annotations

from dataclasses import replace

from .case import BACKWARD, Case, self_case

WINDOW = (256, 256)


def training_cases() -> tuple[Case, ...]:
    """All cases, small ones first, then what hides keys or bends scores."""
    window = _case("train_window256", "1x8x4096x64", window=WINDOW)
    additive = _case("train_additive", "16x1x100x128", "additive_training")
    return (
        _case("train", "8x12x128x64"),
        _case("train", "1x12x512x64"),
        _case("train", "1x8x2048x64"),
        _case("train", "1x8x2048x128"),
        _case("train_causal", "1x8x2048x64", causal=True),
        _case("train_causal", "1x32kv8x1024x128", causal=True),
        _case("train_keypad", "8x12x512x64", mask="keypad"),
        _case("train_bias", "8x12x512x64", mask="bias"),
        _case("train_softcap", "1x12x512x64", softcap=30.0),
        window,
        _backward(window),
        additive,
        _backward(additive),
    )


def training_sweep() -> tuple[Case, ...]:
    """Lengths in powers of two, as far as plain NumPy has memory for."""
    return tuple(_case("sweep_train", f"1x8x{2**n}x64") for n in range(7, 13))


def _case(name: str, size: str, function: str = "training", **fields: object) -> Case:
    return self_case(name, size, function=function, **fields)


def _backward(case: Case) -> Case:
    """The same without the forward call."""
    name = case.name.replace("train_", "train_backward_", 1)
    return replace(case, name=name, kind=BACKWARD)
