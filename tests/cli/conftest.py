"""A shell for the commands, and a bundle for each task."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import transformers

from torchless.cli import main
from torchless.export import export

Shell = Callable[..., tuple[int, str, str]]
NLI = {0: "contradiction", 1: "entailment"}


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Run a command in this process: exit code, standard output, standard error."""

    def run(*arguments: object, given: str | bytes = "") -> tuple[int, str, str]:
        content = given.encode() if isinstance(given, str) else given
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def bundles(bert_bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle for each task of an encoder, by the task's name."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny.bert("text-classification").config
    models = {
        "zero-shot-classification": tiny.bert(
            "text-classification", id2label=NLI, label2id={name: i for i, name in NLI.items()}
        ),
        "text-ranking": tiny.bert("text-classification", num_labels=1),
        "multiple-choice": tiny.uneven(transformers.BertForMultipleChoice(config), 7),
        "next-sentence-prediction": tiny.uneven(transformers.BertForNextSentencePrediction(config), 7),
        "token-classification": tiny.uneven(transformers.BertForTokenClassification(config), 7),
        "question-answering": tiny.uneven(transformers.BertForQuestionAnswering(config), 7),
    }
    made = {
        task: export(model, folder / task, tokenizer=tiny.wordpiece(), check=False)
        for task, model in models.items()
    }
    return {**bert_bundles, **made}
