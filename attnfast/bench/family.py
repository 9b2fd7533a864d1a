"""The cases of the attention family, as data."""

from __future__ import annotations

from .case import Case, few_case, self_case

WINDOW = (256, 256)
BLOCK = 64


def family_cases() -> tuple[Case, ...]:
    """All cases, by function, small ones first."""
    return (*_local(), *_blocks(), *_additive(), *_explained(), *_packed())


def _local() -> list[Case]:
    """A window of 256 keys either side, at a length that NumPy can do and at a long one."""
    kinds = {
        "first16": ("first", 16),
        "spread64": ("spread", 64),
        "dilated": ("dilated", 0),
        "m": ("centers", 0),
        "p": ("gaussian", 0),
    }
    return [
        self_case(
            f"family_local_{name}",
            f"1x8x{length}x64",
            function="local_attention",
            window=WINDOW,
            kind=kind,
            number=number,
        )
        for name, (kind, number) in kinds.items()
        for length in (4096, 16384)
    ]


def _blocks() -> list[Case]:
    return [
        self_case(
            f"family_blocks_{kind}",
            f"1x8x{length}x64",
            function="block_mask",
            kind=kind,
            number=BLOCK,
        )
        for kind in ("bigbird", "documents")
        for length in (4096, 16384)
    ]


def _additive() -> list[Case]:
    return [
        self_case("family_additive", "8x1x64x256", function="additive_attention"),
        few_case("family_additive", 16, "1kv1", 1, 400, 256, function="additive_attention"),
        self_case("family_additive", "1x1x512x256", function="additive_attention"),
    ]


def _explained() -> list[Case]:
    """Heaviest keys and importance; `attention` of the same shapes is timed beside them."""
    sizes = ("1x12x512x64", "1x16x2048x64")
    cases = []
    for suffix, causal in (("", False), ("_causal", True)):
        for number in (1, 16):
            cases += [
                self_case(
                    f"family_topk{number}{suffix}",
                    size,
                    function="attention_topk",
                    kind="top",
                    number=number,
                    causal=causal,
                )
                for size in sizes
            ]
        cases += [
            self_case(f"family_importance{suffix}", size, function="key_importance", causal=causal)
            for size in sizes
        ]
    return cases


def _packed() -> list[Case]:
    """Sequences of 16 to 512 rows, one after the other."""
    options = {"function": "attention_varlen", "kind": "lengths from", "number": 16}
    return [
        self_case("family_varlen", "32x12x512x64", **options),
        self_case("family_varlen_causal", "32x12x512x64", causal=True, **options),
    ]
