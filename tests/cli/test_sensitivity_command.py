"""`torchless sensitivity`: the table, JSON, and what is wrong with the data or the bundle."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tiny

from torchless.quantize.sensitivity import sensitivity


@pytest.fixture
def text_file(tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(tiny.SENTENCES), encoding="utf-8")
    return tmp_path / "text.txt"


def test_layers_and_then_matrices_are_shown_the_worst_first(shell, gpt_bundle, text_file):
    code, said, error = shell("sensitivity", gpt_bundle, "--recipe", "int4", "--data", text_file)
    assert (code, error) == (0, "")
    found = sensitivity(gpt_bundle, recipe="int4", data=text_file)
    head, layers, matrices = said.split("\n\n")
    assert head == "error: KL divergence from float32, nats; loss: rise of cross-entropy, nats"
    for block, title, wanted in ((layers, "layers", True), (matrices, "matrices", False)):
        ranked = sorted((one for one in found if one.whole == wanted), key=lambda one: -one.error)
        first, *rows = block.splitlines()
        assert first.startswith(title) and [row.split()[0] for row in rows] == [one.name for one in ranked]
        for row, one in zip(rows, ranked, strict=True):
            _, saved, shown, loss, *_ = row.split()
            assert float(saved) == pytest.approx(one.saved / 1e6, abs=0.005)
            assert float(shown) == pytest.approx(one.error, rel=0.06)
            assert float(loss) == pytest.approx(one.loss, rel=0.6)
    assert max(len(row.split()[-1]) for row in layers.splitlines()[1:] if row.endswith("#")) == 24


def test_without_data_there_is_no_loss(shell, bert_bundles):
    code, said, _ = shell("sensitivity", bert_bundles["feature-extraction"])
    assert code == 0 and said.startswith("error: mean cosine error\n") and "loss" not in said


def test_a_long_list_of_matrices_ends_with_the_worst(shell, gpt_bundle, monkeypatch):
    monkeypatch.setattr("torchless.cli.sensitivity.MOST_MATRICES", 3)
    assert "matrices, 3 worst of 8" in shell("sensitivity", gpt_bundle)[1]


def test_json_is_every_record_one_a_line(shell, gpt_bundle, text_file):
    code, said, _ = shell("sensitivity", gpt_bundle, "--data", text_file, "--json")
    found = sensitivity(gpt_bundle, data=text_file)
    records = [json.loads(line) for line in said.splitlines()]
    assert code == 0 and records == json.loads(json.dumps([dataclasses.asdict(one) for one in found]))


def test_what_is_wrong_is_one_line_and_exit_code_1(shell, gpt_bundle, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    for given, message in (
        (["--data", tmp_path / "empty.txt"], "empty.txt holds no text"),
        (["--data", tmp_path / "none.txt"], "none.txt cannot be read"),
        (["--recipe", "int3"], "recipe='int3' is unknown"),
        (["--recipe", "fp16"], "leaves every matrix"),
    ):
        code, said, error = shell("sensitivity", gpt_bundle, *given)
        assert (code, said) == (1, "") and message in error and error.count("\n") == 1
