"""benchmarks/generation.py: its arithmetic, what it counts as read, and the talk with a contender's process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from torchless.quantize import quantize

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.syspath_prepend(BENCHMARKS / "neighbours")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, gpt_bundle: Path) -> Any:
    """The models of a benchmark whose torchless is this environment's, and whose fp32 bundle is a tiny one."""
    import generation_models

    monkeypatch.setattr(generation_models.Models, "python", lambda self, environment: Path(sys.executable))
    monkeypatch.setattr(generation_models.Models, "path", lambda self, one: gpt_bundle)
    return generation_models.Models(gpt_bundle.parent, gpt_bundle.parent)


def found(bits: int = 8, **figures: list[float]) -> dict[str, Any]:
    return {
        "ours": bits == 8, "bits": bits, "figures": figures, "read_bytes": 1e6, "model_bytes": 2e6,
        "package_bytes": 3e6, "versions": {},
    }  # fmt: skip


def run_of(contenders: dict[str, Any]) -> dict[str, Any]:
    return {
        "settings": {"rounds": 3, "threads": 2, "new": 32, "quick": False},
        "machine": {"processor": "one", "cores": 2, "python": "3"},
        "bandwidth": [30e9],
        "missing": {"torch fp32": "the environment torch is missing: run it"},
        "contenders": contenders,
    }


def test_ratios_are_taken_within_a_round_and_less_is_better_for_time_and_memory() -> None:
    from generation_table import ratio

    one = found(decode_1x32=[100, 10, 300], start_ms=[10, 40, 10])
    other = found(decode_1x32=[50, 10, 100], start_ms=[30, 40, 20])
    assert ratio(one, other, "decode_1x32") == 2  # of 2, 1, 3; the ratio of medians would be 2, too
    assert ratio(one, other, "start_ms") == 2  # of 3, 1, 2; the ratio of medians would be 3
    assert ratio(one, found(), "start_ms") is None


def test_how_near_a_limit_decoding_comes_is_taken_within_a_round() -> None:
    from generation_table import share

    assert share(found(decode_1x32=[50, 90, 40], limit=[100, 100, 50]), "limit") == 0.8  # of 0.5, 0.9, 0.8
    assert share(found(decode_1x32=[50]), "limit") is None


def test_the_tables_hold_each_contender_and_bar_and_leave_blank_what_was_not_measured() -> None:
    from generation_table import markdown

    ours = found(decode_1x32=[150, 160], decode_4x32=[300, 310], decode_1x992=[99, 99])
    page = markdown(run_of({"torchless int8": ours, "llama.cpp Q8_0": found(decode_1x32=[100, 100])}))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if "|" in line]
    assert ["torchless int8", "1", "155", "305", "", "", "99", "", "", "", ""] in lines
    assert ["llama.cpp Q8_0", "1", "100", "", "", "", "", "", "", "", ""] in lines
    assert ["torchless int8, decoding, 1 text", "llama.cpp Q8_0", "1.55", "1.3"] in lines
    assert "torch fp32 is missing: the environment torch is missing: run it" in page


def test_a_token_reads_all_weights_but_the_tables_of_which_it_picks_rows(
    gpt_model: Any, gpt_bundle: Path, tmp_path: Path
) -> None:
    from onnx_weights import read_by_a_token

    weights = {name: 4 * p.numel() for name, p in gpt_model.named_parameters()}
    positions = weights["transformer.wpe.weight"]
    read = read_by_a_token(gpt_bundle / "model.onnx")  # the tied head reads all of wte
    assert sum(weights.values()) - positions <= read < sum(weights.values()) - positions + 100
    small = quantize(gpt_bundle, tmp_path / "int4", recipe="int4-all")
    assert read_by_a_token(small / "model.onnx") < read / 2


def test_a_process_answers_with_the_tokens_of_its_model_and_is_stopped_in_between(here: Any, gpt: Any) -> None:
    from generation_models import CONTENDERS
    from generation_process import Worker

    worker, prompts = Worker(here, CONTENDERS["torchless fp32"], 1), [[5, 1, 4], [9, 3, 7]]
    try:
        told = worker.ask(prompts=prompts, new=4)
        made = gpt(prompts, max_new_tokens=4, do_sample=False, eos_token_id=None)
        assert told["ids"] == [one.token_ids for one in made]
        assert told["first"] > 0 and told["rest"] > 0
        status = Path(f"/proc/{worker.process.pid}/stat")
        if status.is_file():
            assert status.read_text().rsplit(")", 1)[1].split()[0] == "T"
        logits = worker.ask(logits=[5, 1, 4])["logits"]
        assert logits == pytest.approx(
            gpt.decoder.extend(gpt.decoder.new_cache(), [5, 1, 4])[-1].tolist(), abs=1e-5
        )
    finally:
        worker.close()


def test_a_process_that_fails_says_why(here: Any) -> None:
    from generation_models import CONTENDERS, ContenderError
    from generation_process import Worker

    worker = Worker(here, CONTENDERS["torchless fp32"], 1)
    try:
        with pytest.raises(ContenderError, match=r"it ended with 1: .*InputError.*vocabulary|token ids must be"):
            worker.ask(prompts=[[10**6]], new=2)
    finally:
        worker.close()


def test_a_fresh_process_tells_when_it_starts_and_what_memory_it_takes(here: Any) -> None:
    from generation_models import CONTENDERS
    from generation_process import fresh

    seconds, peak = fresh(here, CONTENDERS["torchless fp32"], 1, 12, "the sea", whole=True)
    assert 0.01 < seconds < 600 and peak is not None and 1e7 < peak < 1e9
    seconds, peak = fresh(here, CONTENDERS["torchless fp32"], 1, 12, "the sea", whole=False)
    assert seconds > 0.01 and peak is None


def test_an_environment_that_is_missing_names_the_command_that_makes_it(tmp_path: Path) -> None:
    from generation_models import ContenderError, Models

    with pytest.raises(ContenderError, match=r"environment gguf is missing: run .*environments\.py .* --only gguf"):
        Models(tmp_path, tmp_path).python("gguf")


def test_an_installation_that_fails_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import environments

    monkeypatch.setitem(environments.ENVIRONMENTS, "gguf", [str(tmp_path / "nothing.whl")])
    assert environments.set_up(tmp_path, ["gguf"], None) == ["gguf"]
    error = capsys.readouterr().err
    assert error.startswith("gguf: left out (ERROR: ") and error.count("\n") == 1
    assert environments.record_of(tmp_path / "gguf") is None
