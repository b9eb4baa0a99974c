"""The GPU wheel of onnxruntime on a machine without a GPU: refusals for real, and placement under stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
WHOLE = ["gpt fp16", "gpt fp16-int8", "gpt fp16-int4", "bert", "bert fp16", "bert fp16-int8", "bert fp16-int4"]


def job(bundle: Path, provider: Any, **more: Any) -> dict[str, Any]:
    return {"bundle": str(bundle), "provider": provider, **more}


def test_without_a_driver_each_missing_library_is_named_and_nothing_falls_to_the_cpu(
    bare: Any, bundles: dict[str, Path]
) -> None:
    cuda, tensorrt, both = bare(
        *(job(bundles["bert"], asked) for asked in ("cuda", "tensorrt", ["cuda", "tensorrt"]))
    )
    assert [answer["error"] for answer in (cuda, tensorrt, both)] == ["ProviderError"] * 3
    assert "NVIDIA's driver is missing (libcuda.so.1): install NVIDIA's driver" in cuda["said"]
    assert "libcublasLt.so.13" in cuda["said"] and "pip install 'onnxruntime-gpu[cuda,cudnn]'" in cuda["said"]
    assert "libnvinfer.so.10" in tensorrt["said"] and "pip install 'tensorrt-cu13==10.*'" in tensorrt["said"]
    assert "- cuda: NVIDIA's driver" in both["said"] and "- tensorrt: missing" in both["said"]


def test_auto_and_a_list_say_what_they_passed_over(bare: Any, bundles: dict[str, Path]) -> None:
    auto, listed = bare(job(bundles["bert"], "auto"), job(bundles["bert"], ["tensorrt", "cpu"]))
    assert auto["provider"] == listed["provider"] == "cpu"
    assert auto["reason"].startswith("auto; passed over cuda: NVIDIA's driver is missing")
    assert listed["reason"].startswith("asked for; passed over tensorrt: missing on this machine: ")


def test_every_node_of_the_graphs_for_cuda_is_placed_there(standing_in: Any, bundles: dict[str, Path]) -> None:
    answers = standing_in(*(job(bundles[name], "cuda", strict=True) for name in WHOLE))
    for name, answer in zip(WHOLE, answers, strict=True):
        assert list(answer.get("nodes", answer)) == [CUDA] and answer["nodes"][CUDA] > 20, name
        assert answer["graph"] == "model.onnx" and answer["reason"] == "asked for"


def test_graphs_of_the_cpu_are_not_run_on_cuda(standing_in: Any, bundles: dict[str, Path]) -> None:
    int8, standard = standing_in(job(bundles["bert int8"], "cuda"), job(bundles["gpt"], "cuda"))
    assert int8["error"] == "ProviderError" and "has no graph for cuda" in int8["said"]
    assert "`torchless export CHECKPOINT OUT --dialect all`" in int8["said"] and "--target cuda" in int8["said"]
    assert (
        standard["graph"] == "model.standard.onnx" and standard["nodes"].get(CPU, 0) < 3 < standard["nodes"][CUDA]
    )


def test_strict_makes_a_node_on_the_cpu_an_error(standing_in: Any, bundles: dict[str, Path]) -> None:
    (answer,) = standing_in(job(bundles["gpt"], "cuda", strict=True))
    assert "nodes were left to the CPU (1 Squeeze): pass strict=False" in answer["said"]


def test_typed_options_reach_onnxruntime(standing_in: Any, bundles: dict[str, Path]) -> None:
    usual, told = standing_in(
        job(bundles["bert fp16"], "cuda"),
        job(bundles["bert fp16"], {"CUDA": {"memory_limit": 1 << 30, "arena": "exact", "tf32": True,
                                            "more": {"sdpa_kernel": "16"}}}),
    )  # fmt: skip
    names = "device_id", "use_tf32", "arena_extend_strategy", "gpu_mem_limit", "sdpa_kernel"
    assert [usual["options"][name] for name in names][:3] == ["0", "0", "kNextPowerOfTwo"]
    assert [told["options"][name] for name in names] == ["0", "1", "kSameAsRequested", str(1 << 30), "16"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"CUDA": {"more": {"speed": "1"}}}, "onnxruntime does not know the option 'speed'"),
        ({"CUDA": {"more": {"arena_extend_strategy": "k"}}}, "the option 'arena_extend_strategy' has a value"),
        ({"CUDA": {"device_id": 1}}, "device_id=1: there is 1 GPU: give 0"),
        ({"TensorRT": {"more": {"speed": "1"}}}, "onnxruntime does not know the option 'speed'"),
        ({"TensorRT": {"more": {"trt_fp16_enable": "1"}}}, "the option 'trt_fp16_enable' has a value"),
        ({"TensorRT": {"more": {"trt_max_partition_iterations": "x"}}}, "has to be a number"),
    ],
)
def test_what_onnxruntime_refuses_is_our_error(
    standing_in: Any, bundles: dict[str, Path], tmp_path: Path, asked: Any, said: str
) -> None:
    (answer,) = standing_in(job(bundles["bert"], asked), XDG_CACHE_HOME=tmp_path)
    assert answer["error"] == "ProviderError" and said in answer["said"], answer
    assert "onnxruntime_src" not in answer["said"]


def test_tensorrts_options_are_all_taken_and_its_folder_is_the_users(
    standing_in: Any, bundles: dict[str, Path], tmp_path: Path
) -> None:
    # Options are read before anything is built: a process that dies, and raises nothing, has taken them all.
    for name in ("bert", "gpt"):
        asked = {"TensorRT": {"fp16": True, "memory_limit": 1 << 30, "cuda_graph": name == "gpt"}}
        standing_in(job(bundles[name], asked), XDG_CACHE_HOME=tmp_path, dies=True)
    assert len(list((tmp_path / "torchless" / "tensorrt").iterdir())) == 2


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"STANDIN_DEVICES": 0}, "the driver finds no GPU: run on a machine that has one"),
        ({"STANDIN_INIT": 100}, "the driver finds no GPU"),
        ({"STANDIN_INIT": 100, "CUDA_VISIBLE_DEVICES": ""}, "(CUDA_VISIBLE_DEVICES='' hides others)"),
        ({"STANDIN_INIT": 803}, "are of different versions: restart the machine"),
        ({"STANDIN_INIT": 999}, "cuInit answers 999"),
        ({"STANDIN_DRIVER": 12040}, "it knows CUDA 12.4, this onnxruntime was built for CUDA 13.0: upgrade"),
    ],
)
def test_what_the_driver_answers_is_told(
    standing_in: Any, bundles: dict[str, Path], variables: dict[str, Any], said: str
) -> None:
    (answer,) = standing_in(job(bundles["bert"], "cuda"), **variables)
    assert answer["error"] == "ProviderError" and said in answer["said"], answer


@pytest.mark.parametrize("recorded", [False, True])
def test_a_gpts_step_is_bound_to_the_device_and_its_cache_stays_there(
    standing_in: Any, bundles: dict[str, Path], recorded: bool
) -> None:
    # Nothing computes: that every allocation, binding, copy and run is accepted is what this can show.
    (answer,) = standing_in({**job(bundles["gpt fp16"], {"CUDA": {"cuda_graph": recorded}}), "steps": 4})
    assert answer["places"] == ["cuda"] and answer["logits"] == [2, 320], answer
    assert answer["records"] == recorded and answer["recorded"] == int(recorded)


def test_cuda_graphs_are_for_decoders(standing_in: Any, bundles: dict[str, Path]) -> None:
    (answer,) = standing_in(job(bundles["bert fp16"], {"CUDA": {"cuda_graph": True}}))
    assert answer["error"] == "ProviderError" and "cuda_graph=True records the step of a GPT" in answer["said"]
