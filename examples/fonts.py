"""Fonts for the words in pictures of the examples: a box in the place of a word says nothing."""

import warnings
from collections.abc import Iterable

from attnfast.plot.fonts import choose_fonts


def families_for(texts: Iterable[str]) -> list[str] | None:
    """Return installed fonts that together have all characters; None for the default ones.

    Raises LookupError, which says what to install, if a character is in no font.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says that there will be boxes
        fonts = choose_fonts(texts=texts)
    if fonts.missing:
        some = " ".join(sorted(fonts.missing)[:5])
        raise LookupError(
            f"no installed font has the characters {some}: install one that does, for Chinese "
            "fonts-noto-cjk on Debian and Ubuntu, and start Python again"
        )
    return fonts.families
