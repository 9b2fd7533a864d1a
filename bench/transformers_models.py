"""Whole models of transformers under ``eager``, ``sdpa`` and ``attnfast``, in turn.

    python bench/transformers_models.py --cases bert --threads 1 --rounds 5

Prints for each case the median seconds of each, and the median over rounds of the ratio of each to
``attnfast``, which other programs on the machine disturb less; with ``--calls`` also the median
time of one call of the attention function. The models are random.
"""

import argparse
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

import attnfast
import attnfast.transformers

SIZES = {"num_attention_heads": 12, "vocab_size": 1000, "attention_dropout": 0.0, "pad_token_id": 0}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2}
SMALL = SIZES | {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}
WIDE = SIZES | {
    "cls_token_id": 1,
    "sep_token_id": 2,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 3,
}
GROUPED = {"num_key_value_heads": 4, "head_dim": 32}


def bert() -> Any:
    """Build a BERT-like encoder: 6 layers, 384 wide, 12 heads."""
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.BertModel(transformers.BertConfig(**SMALL, **rates))


def modernbert() -> Any:
    """Build a ModernBERT-like encoder: 768 wide, 12 heads, window 128 in two of three layers."""
    return transformers.ModernBertModel(transformers.ModernBertConfig(**WIDE, local_attention=128))


def llama() -> Any:
    """Build a Llama-like decoder: 6 layers, 384 wide, 12 heads over 4."""
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, **GROUPED))


def gemma2() -> Any:
    """Build a Gemma-2-like decoder with softcap and windows of 256."""
    options = {"attn_logit_softcapping": 50.0, "sliding_window": 256, "query_pre_attn_scalar": 32}
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SMALL, **GROUPED, **options))


def tokens(batch: int, length: int, shortest: int | None = None) -> dict[str, Any]:
    """Draw token numbers; with `shortest`, of random lengths padded on the right."""
    ids = torch.randint(5, 1000, (batch, length))
    if shortest is None:
        return {"input_ids": ids}
    lengths = torch.randint(shortest, length + 1, (batch,))
    lengths[0] = length
    return {"input_ids": ids, "attention_mask": (torch.arange(length) < lengths[:, None]).long()}


def forward(model: Any, arguments: dict[str, Any]) -> Callable[[], Any]:
    """Return a call without gradients."""

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def run() -> Any:
        return model(**arguments)

    return run


def step(model: Any, arguments: dict[str, Any]) -> Callable[[], Any]:
    """Return a training step without its optimizer."""

    def run() -> None:
        model.zero_grad()
        model(**arguments).last_hidden_state.square().mean().backward()

    return run


def decode(model: Any, context: int) -> Callable[[], Any]:
    """Return one token of decoding after `context` others, repeated 20 times."""

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def run() -> None:
        cache = transformers.DynamicCache(config=model.config)
        for layer in range(model.config.num_hidden_layers):
            cache.update(*torch.randn(2, 1, 4, context, 32), layer)
        began = time.perf_counter()
        for _ in range(20):
            model(input_ids=torch.tensor([[7]]), cache=cache)
        run.seconds = time.perf_counter() - began  # type: ignore[attr-defined]

    return run


def generate(model: Any, new: int) -> Callable[[], Any]:
    """Return the generation of `new` tokens after 64."""
    prompt = tokens(1, 64)

    def run() -> Any:
        return model.generate(**prompt, max_new_tokens=new, min_new_tokens=new, do_sample=False)

    return run


CASES: dict[str, Callable[[], tuple[Any, Callable[[], Any]]]] = {}

for name, build, inputs in (
    ("bert, 16 texts of 32 to 512 tokens", bert, lambda: tokens(16, 512, 32)),
    ("bert, 16 texts of 128 tokens, no padding", bert, lambda: tokens(16, 128)),
    ("bert, 4 texts of 512 tokens, no padding", bert, lambda: tokens(4, 512)),
    ("modernbert, 4,096 tokens", modernbert, lambda: tokens(1, 4096)),
    ("llama, 1,024 tokens", llama, lambda: tokens(1, 1024)),
    ("gemma2 with softcap, 1,024 tokens", gemma2, lambda: tokens(1, 1024)),
):

    def whole(build: Any = build, inputs: Any = inputs) -> tuple[Any, Callable[[], Any]]:
        model = build().eval()
        return model, forward(model, inputs())

    CASES[name] = whole

for name, build, inputs in (
    ("bert, training step, 16 texts of 32 to 512 tokens", bert, lambda: tokens(16, 512, 32)),
    ("modernbert, training step, 2,048 tokens", modernbert, lambda: tokens(1, 2048)),
):

    def training(build: Any = build, inputs: Any = inputs) -> tuple[Any, Callable[[], Any]]:
        model = build().train()
        return model, step(model, inputs())

    CASES[name] = training

for context in (64, 256, 1024):

    def decoding(context: int = context) -> tuple[Any, Callable[[], Any]]:
        model = llama().eval()
        return model, decode(model, context)

    CASES[f"llama, 20 tokens one by one after {context:,}"] = decoding

for name, build in (("llama", llama), ("gemma2", gemma2)):

    def generation(build: Any = build) -> tuple[Any, Callable[[], Any]]:
        model = build().eval()
        return model, generate(model, 100)

    CASES[f"{name}, generate 100 tokens"] = generation


def seconds(run: Callable[[], Any]) -> float:
    """Return the time of a call, or that which it took of itself."""
    began = time.perf_counter()
    run()
    whole = time.perf_counter() - began
    return getattr(run, "seconds", whole)


def time_calls(calls: dict[str, list[float]]) -> None:
    """Put the time of each call of an attention function into `calls`, by its name."""
    functions = transformers.AttentionInterface()

    def timed(function: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments, **options)
            times.append(time.perf_counter() - began)
            return result

        return call

    for name in ("sdpa", "attnfast"):
        calls[name] = []
        functions.register(name, timed(functions[name], calls[name]))


def measure(name: str, rounds: int, calls: dict[str, list[float]]) -> None:
    """Print a row."""
    torch.manual_seed(0)
    model, run = CASES[name]()
    names = ["eager", "sdpa", "attnfast"]
    if name.startswith("gemma2"):
        names.remove("sdpa")  # it has no softcap
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds + 1):
        for implementation in names:
            model.set_attn_implementation(implementation)
            time_of_call = seconds(run)
            if i:
                times[implementation].append(time_of_call)
    ours = np.array(times["attnfast"])
    columns = [f"{np.median(times[n]):8.3f} s" if n in times else " " * 10 for n in names]
    ratios = [f"{n} {np.median(np.array(times[n]) / ours):5.2f} x" for n in names[:-1]]
    ratios += [f"{n} {1e6 * np.median(found):.0f} us a call" for n, found in calls.items() if found]
    print(f"{name:52} {' '.join(columns)}   {'  '.join(ratios)}", flush=True)
    for found in calls.values():
        found.clear()


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="", metavar="REGEX", help="those whose name it finds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--calls", action="store_true", help="also time each attention")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    attnfast.set_num_threads(options.threads)
    attnfast.transformers.register()
    transformers.logging.set_verbosity_error()
    print(
        f"attnfast {attnfast.__version__}, PyTorch {torch.__version__}, transformers "
        f"{transformers.__version__}, {options.threads} threads; columns: eager, sdpa, attnfast; "
        "then how many times as long the others take"
    )
    calls: dict[str, list[float]] = {}
    if options.calls:
        time_calls(calls)
    for name in CASES:
        if re.search(options.cases, name):
            measure(name, options.rounds, calls)


if __name__ == "__main__":
    main()
