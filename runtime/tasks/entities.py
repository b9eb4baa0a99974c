"""From the scores of tokens to entities: tokens make words, words that agree make an entity.

N tokens, L labels. The rules are those of transformers, but for WordPiece, where "##" says what makes a word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

Float = npt.NDArray[np.float32]

# How the scores of a word's tokens [T,L] become the word's [L]; "none" and "simple" know no words.
JUDGES: dict[str, Callable[[Float], Float]] = {
    "first": lambda scores: scores[0],
    "average": lambda scores: scores.mean(axis=0),
    "max": lambda scores: scores[scores.max(axis=1).argmax()],
}
STRATEGIES = ("none", "simple", *JUDGES)


@dataclass(frozen=True)
class Token:
    """A token that stands for characters of the text: those from start to end."""

    index: int  # in the encoding, which has special tokens too
    start: int
    end: int
    continues: bool  # the word of the token before it


@dataclass(frozen=True)
class Span:
    """The tokens first to last, which bear one label."""

    label: str
    score: float
    first: int
    last: int


def content(encoding: Encoding) -> list[int]:
    """The places of the tokens that the template has not added."""
    return [index for index, special in enumerate(encoding.special_tokens_mask) if not special]


def tokens_of(text: str, encoding: Encoding, *, word_aware: bool, unknown: object) -> list[Token]:
    """The text's tokens. word_aware: the model's tokens say which go on with a word, as WordPiece's "##" does.

    Without that a word begins at the text's beginning, at or after a space, and with each unknown token.
    """
    tokens = []
    offsets, word_ids, ids = encoding.offsets, encoding.word_ids, encoding.ids  # each access would copy the list
    word = None
    for index in content(encoding):
        start, end = offsets[index]
        if word_aware:
            continues = word_ids[index] == word is not None
        else:
            continues = ids[index] != unknown and start > 0 and " " not in text[start - 1 : start + 1]
        word = word_ids[index]
        tokens.append(Token(index, start, end, continues))
    return tokens


def spans(scores: Float, tokens: Sequence[Token], labels: Sequence[str], strategy: str) -> list[Span]:
    """Scores [N,L] of these tokens -> spans that cover all of them, in order; with "none" one a token."""
    judged = []
    for first, last in words(tokens) if strategy in JUDGES else ((i, i) for i in range(len(tokens))):
        row = JUDGES[strategy](scores[first : last + 1]) if strategy in JUDGES else scores[first]
        judged.append(Span(labels[int(row.argmax())], float(row.max()), first, last))
    return judged if strategy == "none" else group(judged)


def words(tokens: Sequence[Token]) -> list[tuple[int, int]]:
    """The first and last token of each word; the first token begins one, whatever stood before it."""
    starts = [i for i, token in enumerate(tokens) if i == 0 or not token.continues]
    return list(zip(starts, [start - 1 for start in starts[1:]] + [len(tokens) - 1], strict=False))


def group(judged: Sequence[Span]) -> list[Span]:
    """Neighbours of one kind become one span, unless the later one begins with "B-"; its score is their mean."""
    groups: list[list[Span]] = []
    for span in judged:
        begins, kind = kind_of(span.label)
        if groups and not begins and kind == kind_of(groups[-1][-1].label)[1]:
            groups[-1].append(span)
        else:
            groups.append([span])
    return [
        Span(group_name(one[0].label), float(np.mean([span.score for span in one])), one[0].first, one[-1].last)
        for one in groups
    ]


def kind_of(label: str) -> tuple[bool, str]:
    """B-PER -> (True, PER); I-PER and PER -> (False, PER)."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def group_name(label: str) -> str:
    """What an entity is called: the label without what stands before its first hyphen, as in transformers."""
    return label.split("-", 1)[-1]
