"""What was asked for, and where a provider's options, shapes and folders come from: no other wheel is needed."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiny

import torchless
from torchless import CPU, CUDA, DirectML, InputError, OpenVINO, ProviderError, TensorRT
from torchless.bundle import read_bundle
from torchless.hosted import HostedSession
from torchless.manifest import MANIFEST
from torchless.providers import Plugin, asked_for, refusals, tensorrt, wheels
from torchless.providers.causes import why_not


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("gpu", "provider='gpu' is unknown (known: cpu, cuda, tensorrt, openvino, directml, coreml, auto)"),
        ([], "is empty: give one or more of cpu, cuda"),
        (["cpu", "auto"], "provider='auto' is unknown (known: cpu, cuda, tensorrt, openvino, directml, coreml)"),
        (["cuda", CUDA()], "names cuda twice, with the same options"),
        (CUDA, "provider=CUDA is a class: give CUDA(...)"),
        (b"cpu", "provider=b'cpu' is unknown"),
        (3, "provider=3 is unknown"),
    ],
)
def test_what_names_no_provider_is_refused(asked: Any, said: str) -> None:
    with pytest.raises(ProviderError) as raised:
        asked_for(asked)
    assert said in str(raised.value)


def test_names_of_onnxruntime_are_taken_too() -> None:
    options, auto = asked_for(["CUDAExecutionProvider", CUDA(device_id=1), "WebGpuExecutionProvider", "cpu"])
    assert options == [CUDA(), CUDA(device_id=1), Plugin("WebGpuExecutionProvider"), CPU()] and not auto


def test_the_first_that_can_run_is_taken_and_the_reason_names_the_others(gpt_bundle: Path) -> None:
    model = torchless.load(gpt_bundle, provider=["cuda", CPU(arena=False)])
    assert model.provider.name == "cpu" and model.provider.options == CPU(arena=False)
    assert model.provider.reason.startswith("asked for; passed over cuda: onnxruntime")
    assert "pip install" in model.provider.reason


def test_two_wheels_in_one_environment_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr(wheels, "version_of", there.get)
    cause = why_not(CUDA())
    assert cause is not None and "onnxruntime and onnxruntime-gpu are installed together" in cause
    assert "pip uninstall onnxruntime, then pip install --force-reinstall 'onnxruntime-gpu[cuda,cudnn]'" in cause


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the system of one of them")
def test_a_provider_of_another_system_says_so(gpt_bundle: Path) -> None:
    for name, system in (("directml", "DirectML is a part of Windows"), ("coreml", "Core ML is a part of macOS")):
        with pytest.raises(ProviderError, match=f"provider='{name}': {system}, and this is Linux"):
            torchless.load(gpt_bundle, provider=name)


def test_a_decoders_engine_is_built_for_every_input_and_length(gpt_bundle: Path) -> None:
    bundle = read_bundle(gpt_bundle)
    graph = bundle.manifest.graphs[1]
    told = tensorrt.profile(TensorRT(max_batch_size=4, max_length=32), bundle.manifest, graph)
    least, likely, most = (
        dict(part.split(":") for part in told[f"trt_profile_{kind}_shapes"].split(","))
        for kind in ("min", "opt", "max")
    )
    cache = bundle.manifest.cache
    assert cache is not None and len(most) == 4 + 2 * cache.layers and least.keys() == likely.keys() == most.keys()
    heads, size = cache.heads, cache.head_size
    assert (least["input_ids"], likely["input_ids"], most["input_ids"]) == ("1x1", "1x1", "4x32")
    assert (least["logits_positions"], most["seqlens_k"]) == ("1x0", "4")
    names = [part["past_key_values.1.value"] for part in (least, likely, most)]
    assert names == [f"1x{heads}x1x{size}", f"1x{heads}x32x{size}", f"4x{heads}x32x{size}"]
    for wrong in (TensorRT(max_length=10**6), TensorRT(max_length=4, opt_length=5)):
        with pytest.raises(InputError, match="is above"):
            tensorrt.profile(wrong, bundle.manifest, graph)


def test_engines_of_other_weights_lie_in_another_folder(
    gpt_bundle: Path, copy_of: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tensorrt, "library_version", lambda: 101401)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    bundle = read_bundle(gpt_bundle)
    graph = bundle.manifest.graphs[1]
    first = tensorrt.engine_folder(TensorRT(), bundle, graph)
    assert first.is_relative_to(tmp_path) and first.parts[-3:-1] == ("torchless", "tensorrt")
    assert tensorrt.engine_folder(TensorRT(), read_bundle(copy_of(gpt_bundle)), graph) == first
    other = tmp_path / f"copy-{gpt_bundle.name}"
    files = json.loads((other / MANIFEST).read_text())["files"]
    data = next(name for name in files if name.endswith(".data"))
    files[data]["sha256"] = "0" * 64
    tiny.change_json(other / MANIFEST, files=files)
    changed = tensorrt.engine_folder(TensorRT(), read_bundle(other), graph)
    asked = tensorrt.engine_folder(TensorRT(cache_dir=str(tmp_path / "mine")), bundle, graph)
    assert changed != first and asked.parent == tmp_path / "mine" and asked.name == first.name


def test_a_folder_for_engines_that_cannot_be_made_is_an_error(gpt_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    bundle = read_bundle(gpt_bundle)
    with pytest.raises(ProviderError, match=r"cannot be made .*: pass TensorRT\(cache_dir=\.\.\.\)"):
        tensorrt.told(TensorRT(cache_dir=str(tmp_path / "file")), bundle, bundle.manifest.graphs[1])


def test_openvino_computes_in_float32_on_a_processor_unless_told_otherwise() -> None:
    for device, precision in (("CPU", "f32"), ("AUTO", "f32"), ("GPU", None)):
        hints = json.loads(OpenVINO(device_type=device).load_config())[device]
        assert hints.get("INFERENCE_PRECISION_HINT") == precision
    assert "bf16" in OpenVINO(precision="bf16").load_config()


def test_a_serial_session_runs_one_thread_at_a_time() -> None:
    class Session:
        inside = most = 0

        def run(self, *given: Any) -> Any:
            self.inside += 1
            self.most = max(self.most, self.inside)
            time.sleep(0.01)
            self.inside -= 1
            return given

    session = Session()
    serial = HostedSession(lambda: session, serial=True)
    threads = [threading.Thread(target=serial.run, args=(["logits"], {})) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (session.most, serial.most) == (1, 1) and serial.run(["logits"], {})[0] == ["logits"]


def test_the_places_in_onnxruntimes_source_are_left_out() -> None:
    said = (
        "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc:63 static onnxruntime::X "
        "onnxruntime::X::FromProviderOptions(const onnxruntime::ProviderOptions&) [ONNXRuntimeError] : 1 : FAIL : "
        "the graph is odd\nmore"
    )
    assert refusals.of_graph(RuntimeError(said)) == "the graph is odd"
    assert refusals.of_options(RuntimeError(said)) is None
    assert "every node on the device" in refusals.of_graph(
        RuntimeError("This session cannot use the graph capture feature as requested")
    )


def test_directml_and_devices_are_told_as_onnxruntime_takes_them() -> None:
    assert DirectML().told() == {} and DirectML(device_id=2).told() == {"device_id": "2"}
    assert "device_id" not in CUDA().told() and CUDA(device_id=1).told()["device_id"] == "1"
