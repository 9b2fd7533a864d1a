"""Pairs of English and Chinese texts out of the message catalogues of packages.

A program that speaks several languages ships a file for each: its texts and their translations.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from packages import files

CATALOGUE = r"/zh_(Hans|CN)\w*/LC_MESSAGES/\w+\.mo$"
ROLE = re.compile(r":[\w:]+:(?=`)")  # of Sphinx
HOLE = re.compile(r"%\(\w+\)[a-z]|%[a-z](?!\w)|\$?\{[^{}]*\}")  # filled by the program
MARKUP = re.compile(r"<[^<>]*>|&[a-z]+;|[(（]&\w[)）]|[`*]|&(?=\w)|\\[a-z]")
WORD = re.compile(r"\{\}|[a-z]+(?:['’][a-z]+)?|\d+|[^\w\s]", re.IGNORECASE)
SIGN = re.compile(r"\{\}|[a-zA-Z]+|\d+|\S")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
LONGEST = 16  # words, and half as many signs more


class Pair(NamedTuple):
    """A text as English words and as Chinese signs; a run of Latin letters is one sign."""

    words: list[str]
    signs: list[str]


def messages(catalogue: bytes) -> Iterator[tuple[str, str]]:
    """Yield the pairs of a compiled catalogue; of plurals the first form."""
    order = "<" if catalogue.startswith(b"\xde\x12\x04\x95") else ">"
    count, *tables = struct.unpack_from(order + "3I", catalogue, 8)
    for n in range(count):
        texts = []
        for table in tables:
            length, start = struct.unpack_from(order + "2I", catalogue, table + 8 * n)
            texts.append(catalogue[start : start + length].decode().split("\0")[0])
        yield texts[0].split("\x04")[-1], texts[1]  # without what tells equal texts apart


def clean(text: str) -> str:
    """Return a text without markup, with {} for what the program fills in."""
    return MARKUP.sub("", HOLE.sub(" {} ", ROLE.sub("", text)))


def read(folder: Path) -> list[Pair]:
    """Return the pairs of all wheels in a folder, each English text once."""
    found: dict[str, Pair] = {}
    for _, _, catalogue in files(folder, CATALOGUE):
        for english, chinese in messages(catalogue):
            words, signs = WORD.findall(clean(english)), SIGN.findall(clean(chinese))
            real = [word for word in words if word[0].isalpha()]
            fits = len(real) >= 2 and len(words) <= LONGEST and len(signs) <= LONGEST * 3 // 2
            if fits and CHINESE.search(chinese):
                found.setdefault(" ".join(words).lower(), Pair(words, signs))
    return list(found.values())


def split(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Return pairs to learn from, and pairs held out.

    Every sixth of an order that is always the same is a candidate. It is held out if it shares at
    most half of its words with any text to learn from: half of the words that either of them has.
    The other candidates are in neither part.
    """
    order = np.random.default_rng(2014).permutation(len(pairs))
    train = [pairs[n] for n in order[len(order) // 6 :]]
    sets = [bag(pair) for pair in train]
    sizes = np.array([len(words) for words in sets])
    places: dict[str, list[int]] = {}
    for n, words in enumerate(sets):
        for word in words:
            places.setdefault(word, []).append(n)

    def is_new(words: set[str]) -> bool:
        meets = [n for word in words for n in places.get(word, [])]
        common = np.bincount(meets, minlength=len(sizes))
        return bool((common * 2 <= sizes + len(words) - common).all())

    candidates = [pairs[n] for n in order[: len(order) // 6]]
    return train, [pair for pair in candidates if is_new(bag(pair))]


def bag(pair: Pair) -> set[str]:
    """Return the words of the English text, without marks and numbers."""
    return {word.lower() for word in pair.words if word[0].isalpha()}


def join(signs: list[str]) -> str:
    """Return signs as a text, with spaces around Latin words."""
    text = ""
    for sign in signs:
        latin = sign[0].isascii() and (sign[0].isalnum() or sign == "{}")
        text += f" {sign} " if latin else sign
    return re.sub(r" +([^\w\s{]|$)", r"\1", re.sub(" +", " ", text)).strip()
