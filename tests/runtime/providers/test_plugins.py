"""Plugin providers for real: OpenVINO's, which runs on Intel's processors, and WebGPU's, which needs a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

IDS, TEXT = [5, 1, 4], "You have won a prize!"
INTEL = "GenuineIntel" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else False
OPENVINO = "OpenVINOExecutionProvider"


@pytest.mark.skipif(not INTEL, reason="the plugin offers no device on another processor than Intel's")
def test_openvinos_plugin_answers_as_the_cpu_does(plugin: Any, bundles: dict[str, Path]) -> None:
    gpt, bert = str(bundles["gpt"]), str(bundles["bert"])
    cpu_gpt, gpt_there, cpu_bert, bert_there = plugin(
        {"bundle": gpt, "provider": "cpu", "ids": IDS},
        {"bundle": gpt, "provider": "openvino", "ids": IDS, "strict": True},
        {"bundle": bert, "provider": "cpu", "text": TEXT},
        {"bundle": bert, "provider": {"OpenVINO": {"device_type": "AUTO"}}, "text": TEXT},
    )
    assert gpt_there["ids"] == cpu_gpt["ids"] and list(gpt_there["nodes"]) == [OPENVINO]
    assert bert_there["scores"] == pytest.approx(cpu_bert["scores"], abs=1e-5)
    assert bert_there["graph"] == "model.standard.onnx" and cpu_bert["graph"] == "model.onnx"


@pytest.mark.skipif(INTEL, reason="the plugin offers Intel's processor")
def test_openvinos_plugin_says_that_it_offers_nothing_here(plugin: Any, bundles: dict[str, Path]) -> None:
    (answer,) = plugin({"bundle": str(bundles["bert"]), "provider": "openvino"})
    assert "offers no device on this machine: it takes only Intel's hardware" in answer["said"]
    assert "install onnxruntime-openvino instead" in answer["said"]


def test_a_plugins_refusals_are_our_errors(plugin: Any, bundles: dict[str, Path]) -> None:
    asked = [{"OpenVINO": {"device_type": "TPU"}}, "NoSuchExecutionProvider", {"Plugin": {"ort_name": "A.B"}}]
    if INTEL:
        asked.append({"OpenVINO": {"more": {"speed": "1"}}})
    answers = plugin(*({"bundle": str(bundles["bert"]), "provider": one} for one in asked))
    assert {answer["error"] for answer in answers} == {"ProviderError"}
    assert "OpenVINO's plugin offers no TPU here" in answers[0]["said"] or not INTEL
    installed = "(installed plugins: OpenVINOExecutionProvider, WebGpuExecutionProvider)"
    assert all(installed in answer["said"] for answer in answers[1:3])
    assert all("does not know the option 'speed'" in answer["said"] for answer in answers[3:])
