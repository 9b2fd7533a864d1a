"""Talk to a language model that runs in NumPy.

    python chat.py
    python chat.py notes.txt --question "When does the train leave?"
    python chat.py notes.txt --summarise --cache int8
    python chat.py --window 512 --sinks 4

SmolLM2-135M-Instruct reads a text and questions, or holds a dialogue in the terminal; the answer
appears as it is made. Each of its 30 layers keeps the keys and values of the text in a cache of
attnfast. Several questions share those of the text; with a window they do not grow, however long
the dialogue. It is a small model: what it says may be wrong.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from smollm import Caches, Model, Tokenizer, find_model, generate

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
SUMMARY = "Summarise this text in two or three sentences."
ASSISTANT = "<|im_start|>assistant\n"
STORED = {"float8": "float8_e4m3fn"}


class Talk:
    """A model that reads and answers, and what that takes."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model = Model(find_model())
        self.tokenizer = Tokenizer(self.model)
        self.rng = np.random.default_rng(options.seed)

    def caches(self, tokens: int, *, shared: bool) -> Caches:
        """Return a cache for each layer, with room for so many tokens."""
        window, sinks = self.options.window, self.options.sinks
        dtype = STORED.get(self.options.cache, self.options.cache)
        if window:
            return self.model.new_cache(window + sinks, dtype, window, sinks)
        if tokens > self.model.context:
            sys.exit(
                f"The text and the answer have {tokens} tokens, but the model has room for "
                f"{self.model.context}: give a shorter text, or --window"
            )
        return (
            self.model.new_pages(tokens, dtype) if shared else self.model.new_cache(tokens, dtype)
        )

    def question(self, text: str, questions: list[str]) -> list[str]:
        """Print the answers to questions about a text, which is read once."""
        start = self.tokenizer.turn("system", SYSTEM) + f"<|im_start|>user\n{text}\n\n"
        before = self.tokenizer.read(start)
        asked = [self.tokenizer.read(f"{one}<|im_end|>\n{ASSISTANT}") for one in questions]
        most = len(before) + max(map(len, asked)) + self.options.tokens + 1
        caches = self.caches(most, shared=True)
        begin = time.perf_counter()
        self.model.attention_seconds = 0.0
        self.model.logits(before, caches)
        self.report(caches, len(before), 0, (begin, time.perf_counter()))
        answers = []
        for tokens in asked:
            branch = caches.fork()
            answers.append(self.answer(branch, tokens))
            branch.free()
        return answers

    def dialogue(self) -> None:
        """Talk until the end of the input."""
        caches = self.caches(self.model.context, shared=False)
        before = self.tokenizer.turn("system", SYSTEM)
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "")
            except (EOFError, KeyboardInterrupt):
                return
            if not line.strip():
                continue
            tokens = self.tokenizer.read(before + self.tokenizer.turn("user", line) + ASSISTANT)
            if not self.options.window and len(tokens) + self.options.tokens + 1 > caches.room():
                sys.exit("The dialogue fills the room that the model has: try --window 1024")
            self.answer(caches, tokens)
            before = "\n"  # after the end of the answer

    def answer(self, caches: Caches, tokens: list[int]) -> str:
        """Print an answer as it is made, and return it."""
        self.model.attention_seconds, start = 0.0, time.perf_counter()
        first, made, shown = None, [], ""
        choice = {"temperature": self.options.temperature, "top_p": self.options.top_p}
        choice["rng"] = self.rng
        most, end = self.options.tokens, self.tokenizer.end
        for token in generate(self.model, caches, tokens, most, choice, end):
            first = first or time.perf_counter()
            made.append(token)
            whole = self.tokenizer.write(made)
            if not whole.endswith("\N{REPLACEMENT CHARACTER}"):  # a character is several tokens
                print(whole[len(shown) :], end="", flush=True)
                shown = whole
        print(flush=True)
        self.report(caches, len(tokens), len(made), (start, first or time.perf_counter()))
        return shown

    def report(self, caches: Caches, read: int, made: int, times: tuple[float, float]) -> None:
        """Print what it took, to the standard error."""
        start, first = times
        end = time.perf_counter()
        written = f"; {made} written, {made / (end - first):.1f} a second" if made else ""
        print(
            f"[{read} tokens read, {read / (first - start):.0f} a second{written}; attention "
            f"{self.model.attention_seconds / (end - start):.0%} of the time; "
            f"cache {caches.nbytes() / 1e6:.1f} MB of {self.options.cache}]",
            file=sys.stderr,
        )

    def perplexity(self, text: str) -> float:
        """Print how well the model foretells a text: e to the mean surprise of its tokens."""
        tokens = self.tokenizer.read(text)[: self.options.perplexity]
        caches = self.caches(len(tokens), shared=False)
        surprise = self.model.surprise(tokens, caches)
        result = float(np.exp(np.mean(surprise)))
        print(f"perplexity {result:.4f} over {len(tokens)} tokens, cache of {self.options.cache}")
        return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("file", nargs="?", type=Path, help="a text that questions are about")
    add("--question", action="append", default=[], help="about the text; may be repeated")
    add("--summarise", action="store_true", help="sum the text up")
    add("--perplexity", type=int, help="print how well the model foretells so many of its tokens")
    stored = ["float32", "float16", "bfloat16", "int8", "float8"]
    add("--cache", default="float32", choices=stored, help="what keys and values are kept in")
    add("--window", type=int, help="tokens that each token sees (default: all)")
    add("--sinks", type=int, default=4, help="first tokens that all see beside the window (4)")
    add("--tokens", type=int, default=200, help="most tokens of an answer (200)")
    add("--temperature", type=float, default=0.0, help="0 (default): always the likeliest token")
    add("--top-p", type=float, default=0.9, help="share of the likely tokens (0.9)")
    add("--seed", type=int, default=0, help="of the choice of tokens (0)")
    options = parser.parse_args(arguments)
    if bool(options.question or options.summarise or options.perplexity) != bool(options.file):
        parser.error("a file goes with --question, --summarise or --perplexity")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Answer, or talk until the end of the input."""
    options = parse(arguments)
    talk = Talk(options)
    if not options.file:
        talk.dialogue()
        return
    text = options.file.read_text(encoding="utf-8")
    if options.perplexity:
        talk.perplexity(text)
    asked = [SUMMARY] if options.summarise else []
    if asked + options.question:
        talk.question(text, asked + options.question)


if __name__ == "__main__":
    main()
