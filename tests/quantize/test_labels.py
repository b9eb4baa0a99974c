"""What the labels of the data mean to a model: names, indices, or switches."""

from __future__ import annotations

import numpy as np
import pytest
from pairs import examples

from torchless.errors import InputError
from torchless.quantize.quality.labels import class_ids, label_sets, numbers

LABELS = ["ham", "spam", "unsure"]


@pytest.mark.parametrize(
    ("given", "labels", "expected"),
    [
        (["ham", "SPAM", "Ham"], ["ham", "spam", "HAM"], [0, 1, 0]), (["HAM"], ["ham", "HAM"], [1]),
        ([1, True, 0.0, "2"], LABELS, [1, 1, 0, 2]), ([5, 1], ["1", "2", "3", "4", "5"], [4, 0]),
        ([0, 4, 1], ["1", "2", "3", "4", "5"], [0, 4, 1]),
    ],
)  # fmt: skip
def test_labels_are_names_or_if_not_all_are_indices(given, labels, expected):
    assert class_ids([("here", one) for one in given], labels).tolist() == expected


@pytest.mark.parametrize("given", [-1, 3, None, [1], "1.5", float("nan"), "", "²", {"a": 1}, 10**30])
def test_what_is_no_label_is_refused(given):
    with pytest.raises(InputError, match="here: labels that the model lacks"):
        class_ids([("here", given)], LABELS)


def test_several_labels_are_names_indices_or_switches():
    given = [["spam"], [0, 2], [1, 0, 0], [0.0, 1.0, 1.0], "ham|unsure", "[0, 1, 0]", [], "", "spam"]
    found = label_sets(examples(*["x"] * 9, label=given), LABELS)
    expected = ["010", "101", "100", "011", "101", "010", "000", "000", "010"]
    assert ["".join(str(int(one)) for one in row) for row in found] == expected


def test_a_label_that_is_no_number_is_refused_for_a_regression():
    assert numbers(examples("a", "b", label=["1.5", -2])).tolist() == [1.5, -2]
    for given in ("ham", [1], None, "nan"):
        with pytest.raises(InputError, match=r"line 1: the label .* is no number"):
            numbers(examples("a", label=[given]))


def test_many_unknown_labels_are_counted():
    placed = [(f"line {i}", f"label {i}") for i in range(8)]
    message = "line 0 and 7 more: labels that the model lacks: 'label 0', .* 'label 4' and 3 more"
    assert np.array_equal(class_ids([("here", "spam")], LABELS), [1])
    with pytest.raises(InputError, match=message):
        class_ids(placed, LABELS)


def test_a_label_of_any_length_is_told_short():
    with pytest.raises(InputError) as told:
        class_ids([("here", "9" * 5000)], LABELS)
    assert len(str(told.value)) < 150
