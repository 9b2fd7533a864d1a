"""Read a text of the length of a book at once, with window attention and global tokens.

    python long_document.py
    python long_document.py novel.txt --window 512 --global-tokens 16 --layers 6

All tokens of the text, more than 100,000 by default, go through layers of all-MiniLM-L6-v2 as one
sequence: its word vectors, its 512 position vectors repeated, its projections. Each token attends
to a window of neighbours; the first tokens are global, they see all and are seen by all, as in
Longformer. `attnfast.local_attention` computes no other pair; `attnfast.plan` says what full
attention would have cost. Without files the text is what ships with Python: the language
reference that ``help()`` shows, the licence and the Zen.

The picture shows the last layer: how far each head looks, which pairs are computed at the beginning
of the text, which words of the whole text receive the most weight, and where words of a passage
look.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from minilm import Array, MiniLM, Tokenizer, find_model
from texts import read_texts

import attnfast
from attnfast import plot

PIECE = 8192  # tokens on which full attention is measured
SHOWN = 180  # tokens of the passage that is drawn
HEAD = 1  # that is drawn: in layer 1 it finds the same word again
CORNER = 1500  # tokens of the beginning that is drawn
SAMPLE = 256  # queries, spread over the text, by which distances are measured
RANKED = 24  # words that receive the most weight
INK = "#262626"


def plan_of(q: Array, k: Array, window: int, first: int) -> attnfast.Plan:
    """Return what a layer computes, and where; the values have the shape of the keys."""
    tokens = np.arange(first)
    call = (attnfast.local_attention, q, k, k, window)
    return attnfast.plan(*call, global_tokens=tokens, return_blocks=True)


def exact(q: Array, k: Array, v: Array, window: int, first: int, queries: Array) -> Array:
    """Return the outputs of a few queries from all their scores, in float64."""
    i, j = queries[:, None], np.arange(k.shape[-2])
    seen = (abs(i - j) <= window) | (j < first) | (i < first)
    scores = q[..., queries, :].astype(np.float64) @ k.swapaxes(-1, -2).astype(np.float64)
    scores = np.where(seen, scores / np.sqrt(q.shape[-1]), -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights @ v.astype(np.float64) / weights.sum(axis=-1, keepdims=True)


def peak_memory() -> str:
    """Return the most memory that this process has held so far."""
    try:
        import resource
    except ImportError:  # on Windows
        return "unknown"
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{most * (1 if sys.platform == 'darwin' else 1024) / 1e9:.2f} GB"


def time_full(q: Array, k: Array, v: Array) -> float:
    """Return the operations a second of full attention on the beginning of the text."""
    part = [x[..., :PIECE, :] for x in (q, k, v)]
    began = time.perf_counter()
    attnfast.attention(*part)
    return attnfast.plan(*part).flops / (time.perf_counter() - began)


def distances(window: int) -> tuple[Array, list[str]]:
    """Return the bounds of groups of distances, each four times as far as the last, and names."""
    far = [1]
    while far[-1] < window:
        far.append(min(4 * far[-1], window))
    far = far if window else []
    near = [1, *(bound + 1 for bound in far)]
    names = [str(a) if a == b else f"{a}\u2013{b}" for a, b in zip(near, far, strict=False)]
    before, after = [f"{name} before" for name in names], [f"{name} after" for name in names]
    bounds = np.array([-window, *(-n + 1 for n in near[-2::-1]), *near])
    return bounds, [*before[::-1], "itself", *after]


def look_far(q: Array, k: Array, window: int, first: int) -> tuple[Array, list[str]]:
    """Return how the weight of each head is shared out over distances, and their names.

    The means over a sample of the queries ``(H, groups)``; the first group is the global tokens.
    """
    bounds, names = distances(window)
    length = q.shape[-2]
    queries = np.unique(np.linspace(min(first, length - 1), length - 1, SAMPLE).astype(int))
    shares = np.zeros((len(q), 1 + len(names)))
    for i in queries:
        j = np.arange(max(i - window, first), min(i + window + 1, length))
        keys = np.concatenate([np.arange(first), j])
        weights = attnfast.attention_weights(q[:, i : i + 1], k[:, keys])[:, 0]
        group = np.searchsorted(bounds, j - i, side="right")
        np.add.at(shares.T, np.concatenate([np.zeros(first, int), group]), weights.T)
    return shares / len(queries), [f"first {first} tokens", *names]


def receive(q: Array, k: Array, words: list[str], window: int) -> tuple[list[str], Array]:
    """Return the words that receive the most weight in windows, and how much on average."""
    received = attnfast.key_importance(q, k, window_size=window).mean(axis=0)
    kinds, owner, counts = np.unique(words, return_inverse=True, return_counts=True)
    means = np.bincount(owner, received) / counts
    means[counts < len(words) / 1000] = 0  # too rare for a mean
    best = np.argsort(-means, kind="stable")[:RANKED]
    best = best[means[best] > 0]
    return kinds[best].tolist(), means[best]


def draw(
    q: Array, k: Array, words: list[str], layer: int, window: int, first: int, path: Path
) -> None:
    """Draw how far heads look, what is computed, which words receive weight, and a passage."""
    from matplotlib.figure import Figure

    q, k, length = q[0], k[0], q.shape[-2]
    figure = Figure(figsize=(10, 11.5), layout="constrained")
    figure.suptitle(f"Layer {layer} of all-MiniLM-L6-v2 reads {length:,} tokens", color=INK)
    above, middle, below = figure.subfigures(3, 1, height_ratios=(5.2, 2.5, 4.3))
    left, right = above.subplots(1, 2, width_ratios=(1.25, 1))

    shares, groups = look_far(q, k, window, first)
    heads = [str(head) for head in range(len(q))]
    title = "how far each head looks:\nmean weight by distance"
    plot.weights(shares, heads, groups, ax=left, titles=title)
    left.set_xlabel("tokens from the query to the key", color=INK, fontsize=9)
    left.set_ylabel("head", color=INK, fontsize=9)
    corner = (0, min(CORNER, length))
    plan = plan_of(q[:1], k[:1], window, first)
    share = plan.visible_pairs / length**2
    title = (
        f"which pairs are computed among the first {corner[1]:,} tokens\n"
        f"(in the whole text, {100 * share:.2g} % of the full square are visible)"
    )
    plot.window(plan, queries=corner, keys=corner, ax=right, title=title)

    names, means = receive(q, k, words, window)
    axis = middle.subplots()
    axis.bar(range(len(names)), means, width=0.75, color="#0072b2")
    axis.axhline(1, color=INK, linewidth=0.8)
    axis.set_xticks(range(len(names)), names, rotation=90)
    axis.set_xlim(-0.7, len(names) - 0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=9, labelcolor=INK, length=2)
    axis.set_title(
        "tokens of the whole text that receive the most weight (line: the mean of all tokens)",
        color=INK,
        fontsize=10,
    )
    axis.set_xlabel("token", color=INK, fontsize=9)
    axis.set_ylabel("mean weight", color=INK, fontsize=9)

    part = passage(words)
    indices, weights = attnfast.attention_topk(
        q[HEAD, part], k[HEAD], min(3, length), window_size=window, q_offset=part.start
    )
    inside = (indices >= part.start) & (indices < part.stop)
    indices = np.where(inside, indices - part.start, -1)
    title = (
        f"head {HEAD}, tokens {part.start:,} to {part.stop - 1:,}: the three heaviest keys of each"
    )
    axis = below.subplots()
    plot.topk(indices, weights, words[part], ax=axis, titles=title)
    axis.set_xlabel(f"tokens after token {part.start:,}", color=INK, fontsize=9)
    figure.savefig(path, dpi=110)


def passage(words: list[str]) -> slice:
    """Return a part that is mostly words, not marks: the first such after the middle."""
    length = len(words)
    letters = np.cumsum([0, *(word.strip("#").isalpha() for word in words)])
    size = min(SHOWN, length)
    share = (letters[size:] - letters[:-size]) / size
    later = np.flatnonzero(share[length // 2 :] >= 0.85) + length // 2
    start = int(later[0] if len(later) else share.argmax())
    return slice(start, start + size)


def main() -> None:
    """Read the command line, run the layers, compare, draw."""
    sys.stdout.reconfigure(errors="replace")  # for terminals that lack a character
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("files", nargs="*", type=Path, help="text files (default: what ships with Python)")
    add("--window", type=int, default=256, metavar="N", help="tokens seen on either side")
    add("--global-tokens", type=int, default=8, metavar="N", help="first tokens, global")
    add("--layers", type=int, default=2, metavar="N", help="layers to go through, 1 to 6")
    add(
        "--plot", type=Path, default=Path("long_document.png"), metavar="FILE", help="where to draw"
    )
    options = parser.parse_args()
    window, first = options.window, options.global_tokens
    if window < 0 or first < 0 or not 1 <= options.layers <= MiniLM.layers:
        parser.error("--window and --global-tokens must not be negative, --layers 1 to 6")
    try:
        texts = read_texts(options.files)
    except OSError as error:
        parser.error(str(error))

    folder = find_model()
    tokenizer, model = Tokenizer(folder / "vocab.txt"), MiniLM(folder)
    ids = np.array([tokenizer.encode("\n".join(text for _, text in texts))])
    length = ids.shape[1]
    if length < 3:
        parser.error("there is no text in the files")
    first = min(first, length)
    print(f"{length:,} tokens, window {window} on either side, {first} global tokens")

    x = model.look_up(ids)
    for layer in range(options.layers):
        began = time.perf_counter()
        q, k, v = model.project(x, layer)
        called = time.perf_counter()
        context = attnfast.local_attention(q, k, v, window, global_tokens=np.arange(first))
        took = time.perf_counter() - called
        if layer + 1 < options.layers:
            x = model.finish(x, context, layer)
        plan = plan_of(q, k, window, first)
        print(
            f"layer {layer}: attention {took:.2f} s, {plan.flops / took / 1e9:.0f} GFLOP/s; "
            f"with projections {time.perf_counter() - began:.2f} s"
        )
    peak = peak_memory()

    queries = np.unique(np.linspace(0, length - 1, 32).astype(int))
    error = np.abs(context[..., queries, :] - exact(q, k, v, window, first, queries)).max()
    print(f"largest error of {len(queries)} queries against float64: {error:.1e}")
    full = attnfast.plan(q, k, v)
    speed = time_full(q, k, v)
    scores = 4 * model.heads * length**2
    print(
        f"pairs: {plan.visible_pairs:,}; of full attention {full.visible_pairs:,}, "
        f"{full.visible_pairs / plan.visible_pairs:.0f} times as many\n"
        f"full attention, at the {speed / 1e9:.0f} GFLOP/s that it reaches on "
        f"{min(PIECE, length):,} tokens: {full.flops / speed:.0f} s a layer\n"
        f"peak memory: {peak}; the scores of full attention would take {scores / 1e9:,.0f} GB"
    )
    words = [tokenizer.pieces[i] for i in ids[0]]
    draw(q, k, words, options.layers - 1, window, first, options.plot)
    print(f"written: {options.plot}")


if __name__ == "__main__":
    main()
