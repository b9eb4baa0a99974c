"""What many tests share: bundles, made once a run from random weights and never written to; a count of reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import HealthCheck, settings

import torchless
from torchless.decoder import Decoder
from torchless.export import export

# The same examples on every machine, however slow it is; --hypothesis-profile=default looks for others.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")


@pytest.fixture(scope="session")
def gpt_model() -> Any:
    return tiny.gpt2()


@pytest.fixture(scope="session")
def gpt_checkpoint(gpt_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(gpt_model, tmp_path_factory.mktemp("gpt") / "checkpoint", tiny.bpe())


@pytest.fixture(scope="session")
def gpt_bundle(gpt_checkpoint: Path) -> Path:
    return export(gpt_checkpoint, gpt_checkpoint.with_name("bundle"), dialect="all")


@pytest.fixture(scope="session")
def gpt(gpt_bundle: Path) -> torchless.TextGeneration:
    return torchless.load(gpt_bundle)


LABELS = {0: "ham", 1: "spam", 2: "unsure"}


@pytest.fixture(scope="session")
def bert_models() -> dict[str, Any]:
    """A tiny BERT for each task, by the task's name; the classifier has three labels."""
    extra: dict[str, dict[str, Any]] = {"text-classification": {"id2label": LABELS}}
    return {task: tiny.bert(task, seed, **extra.get(task, {})) for seed, task in enumerate(tiny.BERTS)}


@pytest.fixture(scope="session")
def bert_checkpoints(bert_models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bert")
    return {task: tiny.save(model, folder / task, tiny.wordpiece()) for task, model in bert_models.items()}


@pytest.fixture(scope="session")
def bert_bundles(bert_checkpoints: dict[str, Path]) -> dict[str, Path]:
    return {task: export(path, path.with_name(f"{task}.bundle")) for task, path in bert_checkpoints.items()}


@pytest.fixture(scope="session")
def classifier(bert_bundles: dict[str, Path]) -> torchless.TextClassification:
    return torchless.load(bert_bundles["text-classification"])


@pytest.fixture(scope="session")
def embedding(bert_bundles: dict[str, Path]) -> torchless.Embedding:
    return torchless.load(bert_bundles["feature-extraction"])


@pytest.fixture(scope="session")
def fill_mask(bert_bundles: dict[str, Path]) -> torchless.FillMask:
    return torchless.load(bert_bundles["fill-mask"])


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a bundle or checkpoint that a test may damage."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / f"copy-{folder.name}"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens the decoder has read at each time."""
    counts: list[int] = []
    extend = Decoder.extend

    def counting(self: Decoder, cache: Any, ids: Any, **options: Any) -> Any:
        counts.append(len(ids))
        return extend(self, cache, ids, **options)

    monkeypatch.setattr(Decoder, "extend", counting)
    return counts
