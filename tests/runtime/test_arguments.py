"""Every argument that a call takes refuses what it cannot be, by its name, and takes numpy's whole numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchless
from torchless import Embedding, FillMask, InputError, TextClassification, TorchlessError
from torchless.arguments import check_count, check_flag, check_name

ODD: list[Any] = [
    [],
    ["a", "b"],
    {},
    {"a": 1},
    np.array(["a", "b"]),
    np.array([1, 2]),
    5,
    1.5,
    b"x",
    object(),
    set(),
]


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value).partition(" at ")[0])
def test_whatever_a_setting_is_given_the_error_names_it(
    classifier: TextClassification, embedding: Embedding, fill_mask: FillMask, value: Any
) -> None:
    calls: list[tuple[Any, str, str]] = [
        *(
            (classifier, "a", name)
            for name in ("function_to_apply", "both_orders", "truncation", "truncation_side")
        ),
        *((fill_mask, "a [MASK]", name) for name in ("multi_token", "truncation_side")),
        (embedding, "a", "normalize"),
    ]
    for model, text, name in calls:
        with pytest.raises(InputError, match=f"^{name}=.*: give "):
            model(text, **{name: value})
    for model, text, name in [
        (classifier, "a", "top_k"),
        (embedding, "a", "truncate_dim"),
        (embedding, "a", "batch_size"),
    ]:
        if not isinstance(value, int):
            with pytest.raises(InputError, match=f"^{name}=.*: give a whole number"):
                model(text, **{name: value})


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value).partition(" at ")[0])
def test_whatever_load_is_given_the_error_names_it(bert_bundles: dict[str, Path], value: Any) -> None:
    for name in ("task", "provider", "dialect", "spin", "verify"):
        with pytest.raises(TorchlessError, match=f"{name}="):
            torchless.load(bert_bundles["text-classification"], **{name: value})
    with pytest.raises(InputError, match=f"expected the folder of a bundle, got {type(value).__name__}"):
        torchless.load(value)
    with pytest.raises(InputError, match="expected the folder of a bundle, got NoneType"):
        torchless.load(None)  # type: ignore[arg-type]


def test_numpys_whole_numbers_are_whole_numbers(
    classifier: TextClassification, embedding: Embedding, fill_mask: FillMask, gpt_bundle: Path
) -> None:
    for kind in (np.int64, np.int8, np.uint16):
        assert len(fill_mask("a [MASK]", top_k=kind(2))) == 2
        assert classifier(["a b c"], batch_size=kind(2), max_length=kind(4), truncation=True)
        assert embedding("a", truncate_dim=kind(5)).shape == (5,)
        with torchless.load(gpt_bundle, threads=kind(1)) as opened:
            assert len(opened.next_tokens("The", top=kind(3))) == 3


def test_vectors_and_texts_do_not_mix(embedding: Embedding) -> None:
    vector = embedding("a")
    for mixture in (["a", vector], [vector, vector[:5]], [vector, "a"]):
        with pytest.raises(
            InputError, match=r"^a: (give texts or vectors of one length|expected numbers of shape)"
        ):
            embedding.similarity(mixture, vector[None])


def test_masks_that_do_not_fit_or_are_cut_away_are_said(fill_mask: FillMask) -> None:
    long = "the union is strong " * 15
    with pytest.raises(TorchlessError, match=r"the text has 39 masks, and 38 tokens fit .*: give fewer masks$"):
        fill_mask("[MASK] " * 39)
    with pytest.raises(InputError, match=r"truncation cuts the \[MASK\] off 'the union .*truncation_side='left'"):
        fill_mask(long + "[MASK]", truncation=True)
    with pytest.raises(InputError, match="truncation_side='right'"):
        fill_mask("[MASK] " + long, truncation=True, truncation_side="left")
    assert len(fill_mask(long + "[MASK]", truncation=True, truncation_side="left")) == 5
    assert len(fill_mask("[MASK] " * 38)) == 38


def test_checks_give_back_what_they_were_given() -> None:
    assert type(check_count("n", np.int8(3))) is int and check_count("n", 0, least=0) == 0
    assert check_flag("f", False) is False and check_name("side", "left", ("right", "left")) == "left"
    wrong: list[tuple[Callable[..., Any], list[Any], str]] = [
        (check_count, [True], "x=True: give a whole number of 1 or more"),
        (check_count, [np.bool_(True)], "x=.*True.*: give a whole number"),
        (check_count, [2.0], "x=2.0: give a whole number"),
        (check_count, [3, 4], "x=3: give a whole number of 4 or more"),
        (check_flag, ["no"], "x='no': give True or False"),
        (check_name, ["c", ("a", "b")], "x='c': give a or b"),
        (check_name, ["a", {"a b": 1, "b": 2}, "None, "], "x='a': give None, a b or b"),
    ]
    for check, arguments, match in wrong:
        with pytest.raises(InputError, match=match):
            check("x", *arguments)
