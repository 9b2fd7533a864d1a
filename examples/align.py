"""Align the words of two sentences by a head of a real sentence model.

    python align.py
    python align.py "The cat sat down." "A kitten took a seat." --plot cats.png

Both sentences go through all-MiniLM-L6-v2 as one sequence, [CLS] first [SEP] second [SEP]. Of the
72 heads, most look at neighbours, at marks or at themselves; some look for the word of the other
sentence that means the same. The one that is shown is found without knowing any answer: words are
paired off, those first that give each other most weight, and the head wins whose pairs give each
other most in total. Its weights from the first sentence to the second are drawn.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from minilm import Array, MiniLM, Tokenizer, find_model

from attnfast import attention, attention_weights, plot

FIRST = "The cat chased a small mouse across the kitchen floor."
SECOND = "A kitten hunted the tiny rodent through the house."


class Sequence(NamedTuple):
    """Two sentences as one list of tokens."""

    words: tuple[list[str], list[str]]
    ids: list[int]
    owners: list[int]  # the word of each token, counted through both sentences; -1 for marks


def join(tokenizer: Tokenizer, first: str, second: str) -> Sequence:
    """Make [CLS] first [SEP] second [SEP] and remember which token belongs to which word."""
    words = tokenizer.words(first), tokenizer.words(second)
    ids, owners, count = [tokenizer.ids["[CLS]"]], [-1], 0
    for sentence in words:
        for word in sentence:
            pieces = tokenizer.word_ids(word)
            ids += pieces
            owners += [count] * len(pieces)
            count += 1
        ids.append(tokenizer.ids["[SEP]"])
        owners.append(-1)
    return Sequence(words, ids, owners)


def weights_of_layers(model: MiniLM, ids: list[int]) -> Array:
    """Return the weights of all heads of all layers, (layers, H, L, L)."""
    x = model.look_up(np.array([ids]))
    found = []
    for layer in range(model.layers):
        q, k, v = model.project(x, layer)
        found.append(attention_weights(q[0], k[0]))
        x = model.finish(x, attention(q, k, v), layer)
    return np.stack(found)


def between_words(weights: Array, sequence: Sequence) -> tuple[Array, Array]:
    """Return the weights from first to second and from second to first, (..., words, words).

    A word receives what its pieces receive together, and gives what they give on average.
    """
    split, count = len(sequence.words[0]), sum(map(len, sequence.words))
    owns = (np.array(sequence.owners) == np.arange(count)[:, None]).astype(weights.dtype)
    words = owns / owns.sum(axis=1, keepdims=True) @ weights @ owns.T
    return words[..., :split, split:], words[..., split:, :split]


def pair_off(there: Array, back: Array) -> list[tuple[int, int, float]]:
    """Pair words off by the smaller of the two weights that they give each other.

    The heaviest pair comes first; a word is in one pair at most.
    """
    mutual = np.minimum(there, back.T)
    pairs = []
    for _ in range(min(mutual.shape)):
        i, j = divmod(int(mutual.argmax()), mutual.shape[1])
        pairs.append((i, j, float(mutual[i, j])))
        mutual[i], mutual[:, j] = -1, -1
    return pairs


def draw(
    weights: Array, words: tuple[list[str], list[str]], place: tuple[int, int], path: Path
) -> None:
    """Draw the weights from the words of the first sentence to those of the second."""
    title = f"which word finds which\n(layer {place[0]}, head {place[1]} of all-MiniLM-L6-v2)"
    figure = plot.weights(weights, *words, titles=title)
    figure.axes[0].set_xlabel("second sentence")
    figure.axes[0].set_ylabel("first sentence")
    figure.savefig(path, dpi=160)


def main() -> None:
    """Read the command line, align, draw."""
    sys.stdout.reconfigure(errors="replace")  # for terminals that lack a character
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("first", nargs="?", default=FIRST, help="a sentence")
    add("second", nargs="?", default=SECOND, help="another, of much the same meaning")
    add("--layer", type=int, metavar="N", help="0 to 5 (default: whichever aligns most)")
    add("--head", type=int, metavar="N", help="0 to 11 (default: whichever aligns most)")
    add("--plot", type=Path, default=Path("align.png"), metavar="FILE", help="where to draw")
    options = parser.parse_args()
    for name, count in (("layer", MiniLM.layers), ("head", MiniLM.heads)):
        if not 0 <= (getattr(options, name) or 0) < count:
            parser.error(f"--{name} must be 0 to {count - 1}")

    folder = find_model()
    tokenizer, model = Tokenizer(folder / "vocab.txt"), MiniLM(folder)
    sequence = join(tokenizer, options.first, options.second)
    if not all(sequence.words):
        parser.error("a sentence has no words")
    if len(sequence.ids) > 512:
        parser.error(f"the sentences have {len(sequence.ids)} tokens, the model takes 512")

    began = time.perf_counter()
    weights = weights_of_layers(model, sequence.ids)
    seconds = time.perf_counter() - began
    there, back = between_words(weights, sequence)
    places = [
        (layer, head)
        for layer in range(MiniLM.layers)
        for head in range(MiniLM.heads)
        if options.layer in (None, layer) and options.head in (None, head)
    ]
    pairs = {place: pair_off(there[place], back[place]) for place in places}
    totals = {place: sum(weight for *_, weight in pairs[place]) for place in places}
    ranked = sorted(places, key=lambda place: -totals[place])
    best = ranked[0]

    print(f"{len(sequence.ids)} tokens through {MiniLM.layers} layers: {1e3 * seconds:.0f} ms")
    for layer, head in ranked[:3]:
        print(f"layer {layer}, head {head:2}: pairs give each other {totals[layer, head]:.2f}")
    print(f"\nlayer {best[0]}, head {best[1]}")
    for i, j, weight in pairs[best]:
        if weight >= 0.01:
            print(f"  {sequence.words[0][i]:>15}  {sequence.words[1][j]:15} {weight:.2f}")
    draw(there[best], sequence.words, best, options.plot)
    print(f"\nwritten: {options.plot}")


if __name__ == "__main__":
    main()
