"""What every model does: it opens with settings, is shared by threads, pickles as its path, and closes."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

import torchless
from torchless import InputError, ProviderError, TextGeneration, TorchlessError, session
from torchless.bundle import read_bundle
from torchless.manifest import Graph


def test_load_gives_the_class_of_the_task(gpt_bundle: Path, bert_bundles: dict[str, Path]) -> None:
    kinds = {
        "text-generation": torchless.TextGeneration,
        "text-classification": torchless.TextClassification,
        "fill-mask": torchless.FillMask,
        "feature-extraction": torchless.Embedding,
    }
    for task, bundle in {"text-generation": gpt_bundle, **bert_bundles}.items():
        with torchless.load(str(bundle)) as model:
            assert type(model) is kinds[task]
            assert repr(bundle.name)[1:-1] in repr(model) and "precision='fp32'" in repr(model)


def test_every_public_name_exists_and_an_unknown_one_is_an_attribute_error() -> None:
    assert all(getattr(torchless, name) is not None for name in torchless.__all__)
    with pytest.raises(AttributeError, match="module 'torchless' has no attribute 'Laod'"):
        _ = torchless.Laod


def test_every_error_descends_from_one() -> None:
    errors = [getattr(torchless, name) for name in torchless.__all__ if name.endswith("Error")]
    assert len(errors) > 8
    assert all(issubclass(error, TorchlessError) for error in errors)
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize("name", ["gpt", "classifier", "embedding", "fill_mask"])
def test_eight_threads_at_once_get_what_one_gets(request: pytest.FixtureRequest, name: str) -> None:
    model = request.getfixturevalue(name)
    texts = [f"the union {'is strong ' * i}[MASK] {i}" for i in range(4)]
    options = {"max_new_tokens": 9, "seed": 3} if name == "gpt" else {"truncation": True}

    def ask(index: int) -> str:
        if name == "gpt" and index % 3 == 0:
            return "".join(model.stream(texts[index % 4], **options))
        answer = model(texts[index % 4], **options)
        return answer.text if name == "gpt" else repr(answer.tolist() if name == "embedding" else answer)

    expected = [ask(index) for index in range(4)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(64))) == [ask(index) for index in range(64)]
    assert [ask(index) for index in range(4)] == expected


def test_streams_may_be_read_in_turns(gpt: TextGeneration) -> None:
    texts = ["The union", "A", "people"]
    streams = [gpt.stream(text, max_new_tokens=12) for text in texts]
    while any(stream.result is None for stream in streams):
        for stream in streams:
            next(stream, None)
    assert [stream.result for stream in streams] == [gpt(text, max_new_tokens=12) for text in texts]


@pytest.mark.parametrize("name", ["gpt", "classifier", "embedding", "fill_mask"])
def test_a_pickled_model_opens_its_bundle_again_with_its_settings(
    request: pytest.FixtureRequest, name: str
) -> None:
    model = request.getfixturevalue(name)
    kept = pickle.dumps(model)
    assert len(kept) < 2000  # the path, not the weights
    with pickle.loads(kept) as again:
        assert (type(again), again.settings, again.bundle) == (type(model), model.settings, model.bundle)
        assert repr(again("the [MASK]")) == repr(model("the [MASK]"))


def test_a_pickle_of_a_relative_path_opens_from_another_folder(
    gpt_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(gpt_bundle.parent)
    with torchless.load(gpt_bundle.name, dialect="standard", threads=1, spin=True) as model:
        kept = pickle.dumps(model)
        expected = model("The union", max_new_tokens=5)
    monkeypatch.chdir(tmp_path)
    with pickle.loads(kept) as again:
        assert (again.settings.threads, again.settings.spin, again.graph.dialect) == (1, True, "standard")
        assert again("The union", max_new_tokens=5) == expected


def test_a_pickle_whose_bundle_is_gone_says_so(gpt_bundle: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(gpt_bundle, tmp_path / "moved")
    with torchless.load(moved) as model:
        kept = pickle.dumps(model)
    shutil.rmtree(moved)
    with pytest.raises(torchless.BundleError, match="moved is not a folder"):
        pickle.loads(kept)


@pytest.mark.parametrize("name", ["text-generation", "text-classification", "fill-mask", "feature-extraction"])
def test_a_closed_model_says_so_for_every_call(name: str, gpt_bundle: Path, bert_bundles: dict[str, Path]) -> None:
    with torchless.load({"text-generation": gpt_bundle, **bert_bundles}[name]) as model:
        model("the [MASK]")
    model.close()  # twice is fine
    calls: list[Any] = [model, lambda text: model([text]), lambda text: model([])]
    if name == "text-generation":
        calls += [lambda text: list(model.stream(text)), model.score, model.next_tokens]
    for call in calls:
        with pytest.raises(TorchlessError, match="was closed: load it again"):
            call("the [MASK]")


def test_closing_gives_the_session_back(gpt_bundle: Path) -> None:
    import gc
    import weakref

    model = torchless.load(gpt_bundle)
    held = weakref.ref(model.session)
    model("the union", max_new_tokens=2)
    model.close()
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "openvino", "directml", "coreml"])
def test_a_provider_that_cannot_run_here_is_an_error_and_no_silent_cpu(gpt_bundle: Path, provider: str) -> None:
    with pytest.raises(ProviderError, match=rf"provider='{provider}'.*"):
        torchless.load(gpt_bundle, provider=provider)


def test_an_unknown_provider_is_refused_with_the_known_ones(gpt_bundle: Path) -> None:
    with pytest.raises(ProviderError, match=r"provider='gpu' is unknown \(known: cpu, cuda, tensorrt"):
        torchless.load(gpt_bundle, provider="gpu")
    with pytest.raises(ProviderError, match="provider=None is unknown"):
        torchless.load(gpt_bundle, provider=None)  # type: ignore[arg-type]


def test_auto_says_what_it_chose_and_why(gpt_bundle: Path) -> None:
    with torchless.load(gpt_bundle, provider="auto") as model:
        assert (model.provider.name, model.provider.ort_name) == ("cpu", "CPUExecutionProvider")
        assert model.provider.reason


def test_a_dialect_that_the_bundle_lacks_is_refused_with_the_command_that_makes_it(
    gpt_bundle: Path, bert_bundles: dict[str, Path]
) -> None:
    with torchless.load(gpt_bundle, dialect="standard") as model:
        assert model.graph.file == "model.standard.onnx"
    lacks = r"no graph of the standard dialect.* \(it has model\.onnx \(fused, fp32; .*\)\): make one with .* all`"
    with pytest.raises(ProviderError, match=lacks):
        torchless.load(bert_bundles["fill-mask"], dialect="standard")


@pytest.mark.parametrize("threads", [-1, 1.5, "2", True, 5000])
def test_a_number_of_threads_that_is_none_is_refused(gpt_bundle: Path, threads: Any) -> None:
    with pytest.raises(InputError, match=r"threads=.*: give (a whole number of 0 or more|4,096 or fewer, 0 for)"):
        torchless.load(gpt_bundle, threads=threads)


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 1}, {"threads": 3}, {"spin": True}])
def test_threads_and_spinning_change_no_answer(
    gpt: TextGeneration, gpt_bundle: Path, options: dict[str, Any]
) -> None:
    with torchless.load(gpt_bundle, **options) as model:
        assert model("The union", max_new_tokens=9) == gpt("The union", max_new_tokens=9)
        chosen = model.session.get_session_options()
        assert chosen.intra_op_num_threads == (options.get("threads") or session.default_threads())


def test_the_default_is_as_many_threads_as_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(session.Path, "read_text", lambda self: "max 100000\n")
    assert session.default_threads() == 6
    monkeypatch.setattr(session.Path, "read_text", lambda self: "150000 100000\n")
    assert session.default_threads() == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(session.Path, "read_text", lambda self: "max 100000\n")
    assert session.default_threads() == 0  # onnxruntime's own choice: one a physical core


def test_without_onnxruntime_one_sentence_says_what_to_install(
    gpt_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ProviderError, match=r"onnxruntime is not installed: pip install 'torchless\[cpu\]'"):
        torchless.load(gpt_bundle)


def test_a_provider_that_does_not_take_the_graph_is_an_error(
    gpt_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "get_providers", lambda self: ["Other", "CPUExecutionProvider"]
    )
    with pytest.raises(ProviderError, match="was not taken by CPUExecutionProvider, only by"):
        torchless.load(gpt_bundle)


def test_a_graph_for_another_provider_only_is_not_run_on_the_cpu(gpt_bundle: Path) -> None:
    from torchless.providers import choose_graph, choose_provider

    bundle = read_bundle(gpt_bundle)
    graphs = (Graph("model.onnx", "fused", "fp16", ("cuda",)),)
    object.__setattr__(bundle.manifest, "graphs", graphs)
    with pytest.raises(ProviderError, match=r"has no graph for cpu \(it has model\.onnx \(fused, fp16; cuda\)\)"):
        choose_graph(bundle, choose_provider("cpu"))


def test_a_model_answers_in_another_process_that_was_spawned(gpt: TextGeneration) -> None:
    script = "import pickle, sys; print(pickle.load(sys.stdin.buffer)('The union', max_new_tokens=8).token_ids)"
    done = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(gpt), capture_output=True, timeout=120)
    assert done.stdout.decode().strip() == str(gpt("The union", max_new_tokens=8).token_ids), done.stderr.decode()
