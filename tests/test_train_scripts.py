"""What users give to examples/train/classify.py: mistakes end it with a sentence, before anything is learned."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import transformers

TRAIN = Path(__file__).parent.parent / "examples" / "train"
COLUMNS = ("text", "text_pair", "label")


@pytest.fixture(scope="module")
def scripts() -> Any:
    """The modules classify and finetune, which find their neighbours beside them."""
    before = set(sys.modules)
    sys.path.insert(0, str(TRAIN))
    yield argparse.Namespace(**{name: importlib.import_module(name) for name in ("classify", "finetune")})
    sys.path.remove(str(TRAIN))
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(TRAIN)):
            del sys.modules[name]


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.jsonl", '["a", "b"]\n', "a.jsonl: row 1 is a list, not an object with text and label"),
        ("a.jsonl", '{"text": 5, "label": "x"}', "row 1: text is a int, expected text"),
        ("a.jsonl", '{"text": "a", "text_pair": 5, "label": "x"}', "row 1: text_pair is a int"),
        ("a.jsonl", '{"text": "a", "label": 1.5}', "row 1: label is a float, expected text"),
        ("a.jsonl", '{"text": "a", "label": true}', "row 1: label is a bool"),
        ("a.jsonl", '{"text": "a", "label": ["x"]}', "row 1: label is a list"),
        ("a.jsonl", '{"text": "\\ud800", "label": "x"}', "row 1: text holds half a character"),
        ("a.jsonl", '{"text": "a"}', "row 1 has no label: name the columns"),
        ("a.jsonl", "not json", "a.jsonl cannot be read"),
        ("a.jsonl", "\n", "a.jsonl holds no rows"),
        ("a.csv", f"text,label\n{'a' * 200_000},x\n", "a.csv cannot be read: field larger than field limit"),
        ("a.csv", "text,lab\na,b\n", "row 1 has no label"),
        ("a.csv", "", "a.csv holds no rows"),
    ],
)
def test_a_table_that_is_wrong_is_told_in_a_sentence(
    scripts: Any, tmp_path: Path, name: str, content: str, match: str
) -> None:
    with pytest.raises(SystemExit, match=match):
        scripts.classify.read_rows(write(tmp_path / name, content), *COLUMNS)
    with pytest.raises(SystemExit, match=r"nowhere\.csv cannot be read"):
        scripts.classify.read_rows(tmp_path / "nowhere.csv", *COLUMNS)


def test_labels_may_be_numbers_and_stand_in_their_order(scripts: Any, tmp_path: Path) -> None:
    lines = [{"text": f"text {i}", "label": i} for i in (10, 2, 0)] + [
        {"text": "a", "text_pair": "b", "label": "2"}
    ]
    path = write(tmp_path / "a.jsonl", "\n\n".join(json.dumps(line) for line in lines))
    rows = scripts.classify.read_rows(path, *COLUMNS)
    assert rows == [("text 10", "10"), ("text 2", "2"), ("text 0", "0"), (("a", "b"), "2")]
    assert scripts.classify.in_order({label for _, label in rows}) == ["0", "2", "10"]
    assert scripts.classify.in_order({"10", "2", "x"}) == ["10", "2", "x"]
    table = write(tmp_path / "a.CSV", 'text,label,more\n"a, b",x,1\n')
    assert scripts.classify.read_rows(table, *COLUMNS) == [("a, b", "x")]


def test_a_base_that_cannot_learn_is_told_in_a_sentence(scripts: Any, gpt_checkpoint: Path, tmp_path: Path) -> None:
    def refused(base: Path, match: str) -> None:
        with pytest.raises(SystemExit, match=match):
            scripts.finetune.open_classifier(base, ["x", "y"])

    refused(tmp_path / "nowhere", "nowhere holds no config.json: give the folder of a checkpoint")
    sizes = dict(vocab_size=320, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    gpt1 = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**sizes))
    folder = tiny.save(gpt1, tmp_path / "gpt1", tiny.bpe())
    refused(folder, "gpt1 is a openai-gpt: these scripts teach albert, bert, .*gpt2")
    (folder / "tokenizer.json").unlink()
    refused(folder, "gpt1 holds no tokenizer.json")
    empty = tiny.save(tiny.bert("fill-mask"), tmp_path / "empty", tiny.wordpiece())
    (empty / "model.safetensors").unlink()
    refused(empty, "empty cannot be opened .*: give the folder of a checkpoint")
    write(empty / "tokenizer.json", "{}")
    refused(empty, "empty cannot be opened")
    write(empty / "config.json", "[]")
    refused(empty, "empty: its config.json cannot be used")


@pytest.mark.parametrize("family", ["bert", "roberta", "camembert", "xlm-roberta", "mpnet", "electra"])
def test_texts_are_cut_to_the_positions_that_the_model_has(scripts: Any, family: str) -> None:
    model = tiny.bert("feature-extraction") if family == "bert" else tiny.encoder(family, "Model")
    ids = list(range(5, 5 + scripts.finetune.longest(model.config)))
    assert len(ids) == 40
    assert model(transformers.BatchEncoding({"input_ids": [ids]}, tensor_type="pt")["input_ids"])
    with pytest.raises((IndexError, RuntimeError)):
        model(transformers.BatchEncoding({"input_ids": [[*ids, 5]]}, tensor_type="pt")["input_ids"])


def test_a_limit_that_leaves_no_token_for_a_text_is_refused(scripts: Any) -> None:
    with pytest.raises(SystemExit, match="2 tokens leave none for a text beside the 2 of the template"):
        scripts.finetune.encode(tiny.wordpiece(), ["a whale"], 2)
    assert len(scripts.finetune.encode(tiny.wordpiece(), ["a whale"], 3)[0].ids) == 3


def test_every_setting_that_changes_what_is_learned_is_in_the_name_of_a_run(scripts: Any) -> None:
    settings = {"base": Path("a"), "epochs": 3, "lr": 0.1, "seed": 1, "max_length": None, "dtype": "float32"}
    others = {"base": Path("b"), "epochs": 4, "lr": 0.2, "seed": 2, "max_length": 9, "dtype": "bfloat16"}
    rows = [("a", "x")]
    names = [scripts.classify.run_name(argparse.Namespace(**settings), given) for given in (rows, rows * 2)]
    for name, value in others.items():
        names.append(scripts.classify.run_name(argparse.Namespace(**settings | {name: value}), rows))
    assert len(set(names)) == len(names) == 8


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--epochs", "0"], "argument --epochs: '0': give a whole number of 1 or more"),
        (["--max-length", "-3"], "--max-length: '-3': give a whole number"),
        (["--max-length", "x"], "give a whole number"),
        (["--threads", "0"], "give a whole number"),
        (["--minutes", "0"], "argument --minutes: '0': give a number above 0"),
        (["--lr", "nan"], "argument --lr: 'nan': give a number above 0"),
        (["--lr", "x"], "give a number above 0"),
    ],
    ids=str,
)
def test_a_setting_that_is_out_of_range_is_refused(
    scripts: Any,
    arguments: list[str],
    match: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["classify.py", "a.csv", *arguments])
    with pytest.raises(SystemExit, match="2"):
        scripts.classify.main()
    assert match in capsys.readouterr().err
