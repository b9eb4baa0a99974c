"""Where an answer stands in its text: from the offsets of tokens to those of a word that can be read."""

from __future__ import annotations

import unicodedata


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """[start, end) without the white space around it, and with all accents of its last letter.

    Tokenizers count the space before a word to its token, and may leave out an accent that is a character of its
    own. A span of nothing but white space stays as it is.
    """
    inside = text[start:end].strip()
    if inside:
        start += text[start:end].index(inside)
        end = start + len(inside)
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1
    return start, end
