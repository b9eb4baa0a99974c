"""benchmarks/encoder.py: its arithmetic, its table, and the talk with a contender's process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchless.encoder import Encoder

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.syspath_prepend(BENCHMARKS / "neighbours")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, embedding: Any, tmp_path: Path) -> Any:
    """The models of a benchmark whose torchless is this environment's, and whose models are all one tiny bundle."""
    import environments
    import generation_models
    from encoder_models import models_in

    path = embedding.bundle.path
    monkeypatch.setattr(generation_models.Models, "python", lambda self, environment: Path(sys.executable))
    monkeypatch.setattr(generation_models.Models, "path", lambda self, one: path)
    monkeypatch.setattr(generation_models.Models, "make", lambda self, one: {})
    monkeypatch.setattr(generation_models.Models, "checkpoint", path)
    monkeypatch.setattr(environments, "record_of", lambda place: {"bytes": 3e6, "versions": {}})
    return models_in(tmp_path, tmp_path)


def expected(embedding: Any, ids: Any) -> Any:
    run = Encoder(embedding.session, embedding.bundle, "last_hidden_state").run
    return run(ids, np.ones_like(ids), np.zeros_like(ids))


def found(error: float, **figures: list[float]) -> dict[str, Any]:
    return {"figures": figures, "cosine_error": error, "model_bytes": 2e6, "package_bytes": 3e6, "bits": 8}


def test_the_cosine_error_is_a_mean_over_tokens_and_does_not_see_length() -> None:
    from encoder import cosine_error

    wanted = np.array([[[1, 0], [0, 2]]], np.float32)
    assert cosine_error(3 * wanted, wanted) == pytest.approx(0)
    assert cosine_error(np.array([[[1, 1], [0, 1]]]), wanted) == pytest.approx((1 - 0.5**0.5) / 2)
    assert cosine_error(-wanted, wanted) == pytest.approx(2)


def test_times_stand_beside_ours_with_the_median_least_and_most_of_the_ratios_within_a_round() -> None:
    from encoder_table import markdown

    ours = found(3e-4, **{"1x128": [0.010, 0.020, 0.010], "8x128": [0.2, 0.2, 0.2]})
    other = found(2e-3, **{"1x128": [0.020, 0.020, 0.030]})
    run = {
        "settings": {"rounds": 3, "threads": 2, "shapes": ["1x128", "8x128"], "quick": False},
        "machine": {"processor": "one"},
        "missing": {"torch int8": "the environment torch is missing: run it"},
        "contenders": {"torchless int8": ours, "OpenVINO int8": other},
    }
    page = markdown(run)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if "|" in line]
    assert ["torchless int8", "10.0", "200", "0.0003", "2", "3"] in lines
    assert ["OpenVINO int8", "20.0 (2.00, 1.00 to 3.00)", "", "0.002", "2", "3"] in lines
    assert "torch int8 is missing: the environment torch is missing: run it" in page


def test_a_process_answers_with_the_hidden_states_of_its_model(here: Any, embedding: Any, tmp_path: Path) -> None:
    from encoder_models import CONTENDERS
    from generation_process import Worker

    worker, ids = Worker(here, CONTENDERS["torchless fp32"], 1), np.array([[5, 1, 4], [9, 3, 7]])
    try:
        worker.ask(ids=ids.tolist(), save=str(tmp_path / "hidden.npy"))
        assert np.abs(np.load(tmp_path / "hidden.npy") - expected(embedding, ids)).max() < 1e-6
        assert 0 < worker.ask(ids=ids.tolist())["seconds"] < 60
    finally:
        worker.close()


def test_a_contender_that_computes_another_model_is_left_out_and_told(
    here: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from encoder import Run
    from encoder_models import CONTENDERS

    ours, other = "torchless fp32", "torchless int8"
    run = Run(here, 1, [ours, other])
    try:
        wanted = run.hidden(CONTENDERS[ours])
        wanted[..., 0] += 0.05 * np.abs(wanted).max()  # 8 bits may be so far from float32, float32 itself may not
        run.everyone(run.compare, wanted)
        assert list(run.found) == [other] and list(run.workers) == [other]
        assert 1e-6 < run.found[other]["cosine_error"] < 0.05
        assert "it computes another model: the cosine to float32 is off by" in run.missing[ours]
        assert f"{ours}: left out" in capsys.readouterr().err
        run.read(CONTENDERS[other], "2x3")
        assert len(run.found[other]["figures"]["2x3"]) == 1
    finally:
        run.close()


def test_the_tokens_are_words_of_the_model_and_the_same_each_time(here: Any) -> None:
    from encoder import FIRST, Run

    run = Run(here, 1, [])
    ids = run.ids(3, 50)
    assert np.shape(ids) == (3, 50) and ids == run.ids(3, 50)
    assert np.min(ids) >= FIRST and np.max(ids) < run.vocab_size
