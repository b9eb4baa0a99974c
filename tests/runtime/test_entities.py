"""Tokens to words to entities, and where windows meet: the rules alone, on scores made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from torchless.tasks.entities import Span, Token, group, spans, words
from torchless.windows import seams, stitch

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "THING")


def rows(*labels: str, score: float = 0.9) -> Any:
    """Scores [N,L] that say these labels."""
    scores = np.full((len(labels), len(LABELS)), (1 - score) / (len(LABELS) - 1), np.float32)
    scores[np.arange(len(labels)), [LABELS.index(label) for label in labels]] = score
    return scores


def tokens(*continues: int) -> list[Token]:
    return [Token(i + 1, 3 * i, 3 * i + 2, bool(flag)) for i, flag in enumerate(continues)]


def test_neighbours_of_one_kind_join_unless_the_later_begins_with_b() -> None:
    found = spans(
        rows("B-PER", "I-PER", "B-PER", "I-LOC", "B-LOC", "O", "THING", "THING"), tokens(*[0] * 8), LABELS, "simple"
    )
    assert [(one.label, one.first, one.last) for one in found] == [
        ("PER", 0, 1), ("PER", 2, 2), ("LOC", 3, 3), ("LOC", 4, 4), ("O", 5, 5), ("THING", 6, 7)
    ]  # fmt: skip
    (odd,) = group([Span("NON-PERSON", 0.5, 0, 0), Span("NON-PERSON", 1.0, 1, 1)])
    assert (odd.label, odd.score) == ("PERSON", 0.75)  # as in transformers


def test_a_word_has_the_label_of_its_first_of_its_surest_or_of_its_mean_token() -> None:
    scores = np.concatenate([rows("B-PER", score=0.5), rows("I-LOC", score=0.8), rows("I-LOC", score=0.7)])
    word = tokens(0, 1, 1)
    judged = {name: spans(scores, word, LABELS, name) for name in ("first", "max", "average", "simple")}
    assert [(one.label, one.last) for one in judged["first"]] == [("PER", 2)]
    assert [(one.label, one.last) for one in judged["max"]] == [("LOC", 2)]
    assert [(one.label, one.last) for one in judged["average"]] == [("LOC", 2)]
    assert [(one.label, one.last) for one in judged["simple"]] == [("PER", 0), ("LOC", 2)]
    assert judged["average"][0].score == pytest.approx((0.1 + 0.8 + 0.7) / 3)
    assert words(tokens(1, 1, 0, 1)) == [(0, 1), (2, 3)]
    assert words([]) == [] and spans(np.zeros((0, 6), np.float32), [], LABELS, "first") == []


def test_seams_lie_in_the_middle_of_the_overlap_and_beside_what_is_joined() -> None:
    windows = [range(0, 10), range(6, 16), range(12, 20)]
    assert seams(windows, [set(), set(), set()]) == [8, 14]
    assert seams(windows, [{8, 9}, {7, 8}, {14}]) == [6, 13]
    assert seams(windows, [{7, 8, 9}, set(range(6, 16)), set()]) == [8, 16]
    assert seams([range(0, 4), range(4, 7)], [set(), {4}]) == [4]  # no overlap leaves no choice
    assert seams([range(0, 8), range(1, 9), range(2, 10)], [{5, 4}, set(), {4}]) == [3, 5]
    assert seams([range(5)], [set()]) == []
    parts = [np.arange(10) + 100.0, np.arange(6, 16) + 200.0, np.arange(12, 20) + 300.0]
    stitched = stitch(windows, [8, 14], [part[:, None] for part in parts])[:, 0]
    assert stitched.tolist() == [*range(100, 108), *range(208, 214), *range(314, 320)]
