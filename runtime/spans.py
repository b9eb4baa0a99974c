"""Where an answer stands in its text: from the offsets of tokens to those of a word that can be read."""

from __future__ import annotations

import unicodedata

JOINER = "\N{ZERO WIDTH JOINER}"  # makes one emoji of several
TONES = range(0x1F3FB, 0x1F400)  # of an emoji's skin


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """[start, end) without the white space around it, and with all that belongs to its last character.

    Tokenizers count the space before a word to its token, and may leave out an accent that is a character of its
    own, or the rest of an emoji. A span of nothing but white space stays as it is.
    """
    inside = text[start:end].strip()
    if inside:
        start += text[start:end].index(inside)
        end = start + len(inside)
        while end < len(text) and continues(text, end):
            end += 1
    return start, end


def continues(text: str, index: int) -> bool:
    """Whether a character belongs to the one before it: accents, vowel signs, variations, joined emoji."""
    one = text[index]
    if one == JOINER:
        return unicodedata.category(text[index + 1 : index + 2] or " ") == "So"
    emoji = text[index - 1] == JOINER and unicodedata.category(one) == "So"
    return emoji or unicodedata.category(one) in ("Mn", "Me") or ord(one) in TONES
