"""Read a text of the length of a book at once, with window attention and global tokens.

    python long_document.py
    python long_document.py novel.txt --window 512 --global-tokens 16 --layers 6

All tokens of the text, more than 100,000 by default, go through layers of all-MiniLM-L6-v2 as one
sequence: its real word vectors, its 512 places over and over, its projections. Each token attends
to a window of neighbours; the first tokens are global, they see all and are seen by all, as in
Longformer. `attnfast.local_attention` computes no pair outside of that, `attnfast.plan` says what
full attention would have cost. Without files the text is what ships with Python: the language
reference that ``help()`` shows, the licence and the Zen.

The picture shows which blocks of pairs are visited, in the whole text and at its beginning, and
where words of a passage look in the last layer.
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
SHOWN = 60  # tokens of the passage that is drawn
HEAD = 9  # that is drawn
CORNER = 1500  # tokens of the beginning that is drawn


def count_pairs(length: int, window: int, first: int) -> int:
    """Return the pairs that see each other where the first tokens are global."""
    i = np.arange(first, length)
    low, past = np.maximum(i - window, 0), np.minimum(i + window + 1, length)
    return int((past - low + np.minimum(first, low)).sum()) + first * length


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


def draw(q: Array, k: Array, words: list[str], window: int, first: int, path: Path) -> None:
    """Draw the blocks of one head, and the heaviest keys of a passage in the head after it."""
    from matplotlib.figure import Figure

    length, one = q.shape[-2], q[:, :1]
    plan = attnfast.plan(one, k[:, :1], one, window_size=window, return_blocks=True)
    # The plan is that of the window; what global tokens add is known.
    added = [(0, 0, 0, first, 0, length), (0, 0, first, length, 0, first)] if first else []
    added = np.array(added, np.int64).reshape(-1, 6)
    plan = plan._replace(blocks=np.concatenate([plan.blocks, added]))
    figure = Figure(figsize=(10, 9), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(4.6, 4.4))
    left, right = above.subplots(1, 2)
    corner = (0, min(CORNER, length))
    plot.window(plan, ax=left, title=f"all {length:,} tokens")
    plot.window(plan, queries=corner, keys=corner, ax=right, title=f"the first {corner[1]:,}")
    part = passage(words)
    indices, weights = attnfast.attention_topk(
        q[0, HEAD, part], k[0, HEAD], min(3, length), window_size=window, q_offset=part.start
    )
    inside = (indices >= part.start) & (indices < part.stop)
    indices = np.where(inside, indices - part.start, -1)
    title = f"tokens {part.start:,} to {part.stop - 1:,}, head {HEAD}"
    plot.topk(indices, weights, words[part], ax=below.subplots(), titles=title, path=path)


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

    pairs = model.heads * count_pairs(length, window, first)
    x = model.look_up(ids)
    for layer in range(options.layers):
        began = time.perf_counter()
        q, k, v = model.project(x, layer)
        called = time.perf_counter()
        context = attnfast.local_attention(q, k, v, window, global_tokens=np.arange(first))
        took = time.perf_counter() - called
        if layer + 1 < options.layers:
            x = model.finish(x, context, layer)
        flops = 4 * pairs * q.shape[-1]
        print(
            f"layer {layer}: attention {took:.2f} s, {flops / took / 1e9:.0f} GFLOP/s; "
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
        f"pairs: {pairs:,}; of full attention {full.visible_pairs:,}, "
        f"{full.visible_pairs / pairs:.0f} times as many\n"
        f"full attention, at the {speed / 1e9:.0f} GFLOP/s that it reaches on "
        f"{min(PIECE, length):,} tokens: {full.flops / speed:.0f} s a layer\n"
        f"peak memory: {peak}; the scores of full attention would take {scores / 1e9:,.0f} GB"
    )
    draw(q, k, [tokenizer.pieces[i] for i in ids[0]], window, first, options.plot)
    print(f"written: {options.plot}")


if __name__ == "__main__":
    main()
