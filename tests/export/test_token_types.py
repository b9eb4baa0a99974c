"""Whether a pair's second text gets segment 1, as in transformers' pipelines: the tokenizer's settings say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import transformers

import torchless
from torchless.bundle import read_bundle
from torchless.export import export

NAMES = ["input_ids", "token_type_ids", "attention_mask"]
PAIR = ("the union is strong", "a whale")


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.bert("text-classification")


def tokenizer(**settings: Any) -> Any:
    special = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "pad", "cls", "sep", "mask")}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tiny.wordpiece(), **special, **settings)


@pytest.mark.parametrize("settings", [{}, {"model_input_names": NAMES}, {"model_input_names": NAMES[::2]}], ids=str)
@pytest.mark.parametrize("live", [False, True])
def test_a_pair_is_answered_as_by_transformers(
    settings: dict[str, Any], live: bool, model: Any, tmp_path: Path
) -> None:
    given = tokenizer(**settings)
    model.save_pretrained(tmp_path / "checkpoint")
    given.save_pretrained(tmp_path / "checkpoint")
    source = {"source": model, "tokenizer": given} if live else {"source": tmp_path / "checkpoint"}
    out = export(**source, out=tmp_path / "out", check=False)  # type: ignore[arg-type]
    manifest = read_bundle(out).manifest
    assert (manifest.token_types, manifest.segments) == (None if NAMES[1] in given.model_input_names else False, 2)
    pipeline = transformers.pipeline("text-classification", model=str(tmp_path / "checkpoint"))
    expected = {one["label"]: one["score"] for one in pipeline({"text": PAIR[0], "text_pair": PAIR[1]}, top_k=None)}
    assert torchless.load(out)(PAIR).scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (None, None),
        ({}, None),
        ({"tokenizer_class": "BertTokenizer"}, None),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, False),
        ({"tokenizer_class": "TokenizersBackend", "model_input_names": NAMES}, None),
        ({"tokenizer_class": "BertTokenizer", "model_input_names": NAMES[::2]}, False),
    ],
    ids=str,
)
def test_where_no_names_are_given_the_class_decides_and_without_settings_the_template(
    settings: dict[str, Any] | None, expected: bool | None, model: Any, tmp_path: Path
) -> None:
    folder = tiny.save(model, tmp_path / "checkpoint", tiny.wordpiece())
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert read_bundle(export(folder, tmp_path / "out", check=False)).manifest.token_types is expected
    live = export(model, tmp_path / "live", tokenizer=folder, check=False)
    assert read_bundle(live).manifest.token_types is expected


def test_names_that_are_no_list_are_refused(model: Any, tmp_path: Path) -> None:
    folder = tiny.save(model, tmp_path / "checkpoint", tiny.wordpiece())
    (folder / "tokenizer_config.json").write_text('{"model_input_names": "input_ids"}')
    tiny.refused(folder, "tokenizer_config.json: model_input_names is 'input_ids', expected a list", tmp_path)


def test_a_model_without_segments_has_neither(tmp_path: Path) -> None:
    for name, model in (("gpt", tiny.gpt2()), ("distilbert", tiny.encoder("distilbert", "Model"))):
        manifest = read_bundle(export(model, tmp_path / name, tokenizer=tokenizer(), check=False)).manifest
        assert (manifest.token_types, manifest.segments) == (None, None)
