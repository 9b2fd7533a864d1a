"""Fonts for labels: matplotlib's default font lacks Chinese, Japanese, Korean and other scripts."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

BOX = "\u25a1"  # stands for a character without a font; every default font has it
EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH")
BLANK = ("Last Resort", "LastResort", "Adobe Blank")  # a glyph for everything, and it says nothing
NAMED = 5  # missing characters that a warning names

Family = tuple[str, str]  # name, file


class Fonts(NamedTuple):
    """Families to write labels with, and the characters that none of them has."""

    families: list[str] | None
    missing: frozenset[str] = frozenset()

    def write(self, labels: Sequence[str]) -> list[str]:
        """Return the labels with a box for each missing character."""
        boxes = dict.fromkeys(map(ord, self.missing), BOX)
        return [label.translate(boxes) for label in labels] if boxes else list(labels)


def choose_fonts(**labels: Iterable[str]) -> Fonts:
    """Return families that have the characters of all labels, the default ones first.

    Takes lists of labels by the name of the argument that they come from. Fonts are looked up only
    if a label has a character that the default ones lack. Emits one warning if no font has it.
    """
    characters = {name: set("".join(texts)) for name, texts in labels.items()}
    wanted = "".join(sorted(c for c in set().union(*characters.values()) if not c.isascii()))
    if not wanted:
        return Fonts(None)
    from matplotlib.font_manager import FontProperties

    own = list(FontProperties().get_family())
    missing = _lacking(wanted, _files(own))
    if not missing:
        return Fonts(None)
    found, left = _cover(missing, _installed())
    if left:
        _add_new_fonts()
        found, left = _cover(missing, _installed())
    if left:
        names = [name for name, used in characters.items() if used.intersection(left)]
        warnings.warn(_words(names, left), UserWarning, stacklevel=3)
    return Fonts([*own, *found], frozenset(left))


def columns_of(label: str) -> float:
    """Return the width of a label in Latin characters."""
    return sum(
        0 if unicodedata.category(c) == "Mn" else _width(unicodedata.east_asian_width(c))
        for c in label
    )


def _width(kind: str) -> float:
    return 1.7 if kind in "WF" else 1.0


def _files(families: Iterable[str]) -> list[str]:
    """The files that matplotlib takes for families."""
    from matplotlib.font_manager import FontProperties, findfont

    return [str(findfont(FontProperties(family=[family]))) for family in families]


def _lacking(characters: str, files: Iterable[str]) -> str:
    """The characters that are in none of the fonts."""
    from matplotlib.font_manager import get_font

    for file in files:
        font = get_font(file)
        characters = "".join(c for c in characters if not font.get_char_index(ord(c)))
    return characters


def _installed() -> tuple[Family, ...]:
    """The families that matplotlib knows, each with the file of an upright face."""
    from matplotlib.font_manager import fontManager

    files: dict[str, str] = {}
    for entry in sorted(fontManager.ttflist, key=lambda entry: entry.style != "normal"):
        if not entry.name.startswith(BLANK):
            files.setdefault(entry.name, str(entry.fname))
    return tuple(files.items())


@cache
def _add_new_fonts() -> None:
    """Tell matplotlib of fonts that were installed after it had stored its list."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    known = {str(entry.fname) for entry in fontManager.ttflist}
    for file in sorted({*findSystemFonts()} - known):
        try:
            fontManager.addfont(file)
        except (OSError, RuntimeError, ValueError):
            continue  # not a font that matplotlib can draw


@lru_cache(maxsize=64)
def _cover(missing: str, families: tuple[Family, ...]) -> tuple[tuple[str, ...], str]:
    """Families that together have the characters, as few as possible, and what they leave."""
    having = {name: _present(missing, file) for name, file in families}
    region = _region(missing)
    chosen, left = [], set(missing)
    while left:
        best = min(
            having, key=lambda name: _rank(name, len(having[name] & left), region), default=""
        )
        if not having.get(best, set()) & left:
            break
        chosen.append(best)
        left -= having[best]
    return tuple(chosen), "".join(sorted(left))


def _present(characters: str, file: str) -> set[str]:
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
    except (OSError, RuntimeError):
        return set()
    return {c for c in characters if font.get_char_index(ord(c))}


def _region(characters: str) -> str:
    """Whose forms of ideographs a text wants, as in the names of font families."""
    names = "".join(unicodedata.name(c, "") for c in characters)
    kana = "HIRAGANA" in names or "KATAKANA" in names
    return "JP" if kana else "KR" if "HANGUL" in names else "SC"


def _rank(name: str, count: int, region: str) -> tuple[int, bool, bool, bool, str]:
    """Order of families: most characters first, then the region's, then sans-serif ones."""
    return -count, region not in name.split(), "Sans" not in name, "Mono" in name, name


def _words(names: list[str], missing: str) -> str:
    shown = ", ".join(f"{c} (U+{ord(c):04X})" for c in missing[:NAMED])
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    packages = " and ".join(sorted(set(map(_package, missing))))
    return (
        f"{', '.join(names)}: no installed font has {shown}{more}, drawn as {BOX}; install a "
        f"font that has them (on Debian and Ubuntu: {packages}) and restart Python"
    )


def _package(character: str) -> str:
    """A package of Debian whose fonts most likely have the character."""
    if unicodedata.name(character, "").startswith(EAST_ASIAN):
        return "fonts-noto-cjk"
    return "fonts-symbola" if unicodedata.category(character) == "So" else "fonts-noto-core"
