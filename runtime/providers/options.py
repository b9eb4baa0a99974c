"""What can be asked of each execution provider, typed, and how onnxruntime is told (its own names and values).

Options that are left at None are onnxruntime's own defaults. `more` holds further ones under onnxruntime's names.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torchless.arguments import check_count, check_flag, check_name
from torchless.errors import InputError, ProviderError

Told = dict[str, str]

GROW, EXACT = "grow", "exact"
ARENAS = {GROW: "kNextPowerOfTwo", EXACT: "kSameAsRequested"}


@dataclass(frozen=True)
class Options:
    """Options of one provider. `name` is torchless's, `ort_name` onnxruntime's."""

    name: ClassVar[str]
    ort_name: ClassVar[str]
    device: ClassVar[str] = "cpu"  # where tensors lie, as onnxruntime calls it

    more: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.more, Mapping) or not all(
            isinstance(text, str) for item in self.more.items() for text in item
        ):
            raise InputError(f"more={self.more!r}: give onnxruntime's own options, texts by their names")

    @property
    def called(self) -> str:
        """The provider's name in messages and in `model.provider.name`."""
        return self.name

    def told(self) -> Told:
        """As onnxruntime takes them."""
        return {**self._told(), **self.more}

    def _told(self) -> Told:
        return {}

    def _check_device(self, device_id: int) -> None:
        check_count("device_id", device_id, least=0)

    def _told_device(self, device_id: int) -> Told:
        """Nothing for the first, the default: told of it, onnxruntime prints a warning about plugins."""
        return {"device_id": str(device_id)} if device_id else {}


@dataclass(frozen=True)
class CPU(Options):
    """onnxruntime's own kernels. Threads are `load`'s, since they serve every provider's nodes on the CPU.

    arena: keep memory between runs (quicker; what a large call took is given back after it). Off, each run gives
    all back. memory_limit: bytes for the weights as onnxruntime packs them, for what runs compute with, and for a
    decoder's keys and values; a call that needs more is a MemoryLimitError.
    """

    name = "cpu"
    ort_name = "CPUExecutionProvider"

    arena: bool = True
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("arena", self.arena)
        _check_memory(self.memory_limit)
        if self.memory_limit is not None and not self.arena:
            raise InputError("memory_limit is the arena's: not with arena=False")


@dataclass(frozen=True)
class CUDA(Options):
    """NVIDIA's GPUs.

    memory_limit: bytes of the arena, in which all but CUDA's own memory lies. arena: "grow" doubles what it takes,
    "exact" takes what is asked for. tf32: products of float32 with 10 bits of mantissa, on Ampere and later: fast,
    but not torch's to 1e-4. cuda_graph: record the decoding step once and replay it; every node
    must be on the device, and one thread may use the model at a time.
    """

    name = "cuda"
    ort_name = "CUDAExecutionProvider"
    device = "cuda"

    device_id: int = 0
    memory_limit: int | None = None
    arena: str = GROW
    tf32: bool = False
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_device(self.device_id)
        _check_memory(self.memory_limit)
        check_name("arena", self.arena, tuple(ARENAS))
        check_flag("tf32", self.tf32)
        check_flag("cuda_graph", self.cuda_graph)

    def _told(self) -> Told:
        told = {
            **self._told_device(self.device_id),
            "arena_extend_strategy": ARENAS[self.arena],
            "use_tf32": str(int(self.tf32)),
            "enable_cuda_graph": str(int(self.cuda_graph)),
        }
        return told if self.memory_limit is None else {**told, "gpu_mem_limit": str(self.memory_limit)}


@dataclass(frozen=True)
class TensorRT(Options):
    """NVIDIA's compiler for its GPUs; nodes that it does not take go to CUDA.

    The first load builds an engine, which takes minutes; it is kept in `cache_dir`, by default a folder of the user
    (tensorrt.py). fp16: let TensorRT choose float16 where it is faster; a float16 graph needs no such leave.
    max_batch_size, max_length: the largest that the engine is built for, by default 16 and the context; more is an
    error. opt_batch_size, opt_length: what it is tuned for.
    """

    name = "tensorrt"
    ort_name = "TensorrtExecutionProvider"
    device = "cuda"

    device_id: int = 0
    memory_limit: int | None = None
    fp16: bool = False
    max_batch_size: int = 16
    max_length: int | None = None
    opt_batch_size: int = 1
    opt_length: int | None = None
    optimization_level: int = 3
    cache_dir: str | None = None
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_device(self.device_id)
        _check_memory(self.memory_limit)
        check_flag("fp16", self.fp16)
        check_flag("cuda_graph", self.cuda_graph)
        check_count("max_batch_size", self.max_batch_size)
        check_count("opt_batch_size", self.opt_batch_size)
        if self.opt_batch_size > self.max_batch_size:
            raise InputError(f"opt_batch_size={self.opt_batch_size} is above max_batch_size={self.max_batch_size}")
        for name in ("max_length", "opt_length"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if check_count("optimization_level", self.optimization_level, least=0) > 5:
            raise InputError(f"optimization_level={self.optimization_level}: give 0 to 5")
        if self.cache_dir is not None and not isinstance(self.cache_dir, str):
            raise InputError(f"cache_dir={self.cache_dir!r}: give a folder's path as text")

    def _told(self) -> Told:
        told = {
            **self._told_device(self.device_id),
            "trt_fp16_enable": str(self.fp16),
            "trt_builder_optimization_level": str(self.optimization_level),
            "trt_cuda_graph_enable": str(self.cuda_graph),
        }
        return told if self.memory_limit is None else {**told, "trt_max_workspace_size": str(self.memory_limit)}


@dataclass(frozen=True)
class OpenVINO(Options):
    """Intel's runtime: its own CPU kernels (on any x86-64), Intel's GPUs and NPUs.

    device_type: "CPU", "GPU", "NPU", "AUTO" or another that OpenVINO knows. precision: "f32", "f16" or "bf16" for
    the arithmetic; by default f32 for CPU and AUTO (some processors would take bf16), else what the device prefers.
    threads: of a CPU, by default all. cache_dir: keeps compiled graphs, for a quicker start.
    """

    name = "openvino"
    ort_name = "OpenVINOExecutionProvider"

    device_type: str = "CPU"
    precision: str | None = None
    threads: int | None = None
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.device_type, str) or not self.device_type:
            raise InputError(f'device_type={self.device_type!r}: give "CPU", "GPU", "NPU" or "AUTO"')
        if self.precision is not None:
            check_name("precision", self.precision, ("f32", "f16", "bf16"))
        if self.threads is not None:
            check_count("threads", self.threads, least=0)

    def _told(self) -> Told:
        return {"device_type": self.device_type, "load_config": self.load_config()}

    def load_config(self) -> str:
        """OpenVINO's own properties of the device, as JSON."""
        asked = {
            "INFERENCE_PRECISION_HINT": self.precision or ("f32" if self.device_type in ("CPU", "AUTO") else None),
            "INFERENCE_NUM_THREADS": None if self.threads is None else str(self.threads),
            "CACHE_DIR": self.cache_dir,
        }
        return json.dumps({self.device_type: {key: value for key, value in asked.items() if value is not None}})


@dataclass(frozen=True)
class DirectML(Options):
    """Any GPU under Windows 10 and 11, through DirectX 12."""

    name = "directml"
    ort_name = "DmlExecutionProvider"

    device_id: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_device(self.device_id)

    def _told(self) -> Told:
        return self._told_device(self.device_id)


@dataclass(frozen=True)
class CoreML(Options):
    """Apple's devices. compute_units: "ALL", "CPUAndNeuralEngine", "CPUAndGPU" or "CPUOnly"."""

    name = "coreml"
    ort_name = "CoreMLExecutionProvider"

    compute_units: str = "ALL"
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("compute_units", self.compute_units, ("ALL", "CPUAndNeuralEngine", "CPUAndGPU", "CPUOnly"))

    def _told(self) -> Told:
        told = {"ModelFormat": "MLProgram", "MLComputeUnits": self.compute_units}
        return told if self.cache_dir is None else {**told, "ModelCacheDirectory": self.cache_dir}


@dataclass(frozen=True)
class Plugin(Options):
    """A provider of an installed plugin package (onnxruntime-ep-*), by onnxruntime's name for it.

    Plugin("WebGpuExecutionProvider", more={...}): `more` are the package's own options. device_id: which of the
    devices that it offers. It is given the standard graph, or the one that `load` is asked for.
    """

    name = "plugin"

    ort_name: str  # type: ignore[misc]
    device_id: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.ort_name, str) or not self.ort_name:
            raise InputError(f'Plugin({self.ort_name!r}): give onnxruntime\'s name, as "WebGpuExecutionProvider"')
        self._check_device(self.device_id)

    @property
    def called(self) -> str:
        return self.ort_name


BY_NAME: Mapping[str, type[Options]] = {
    kind.name: kind for kind in (CPU, CUDA, TensorRT, OpenVINO, DirectML, CoreML)
}


def limited(options: Options, limit: int | None) -> Options:
    """The same options with `load`'s memory_limit. InputError for two limits, ProviderError where there is none."""
    if limit is None:
        return options
    _check_memory(limit)
    if not hasattr(options, "memory_limit"):
        raise ProviderError(f"{options.called} knows no memory_limit: load without one")
    if options.memory_limit not in (None, limit):
        raise InputError(f"memory_limit={limit!r}, and {options}: give one limit")
    limited: Options = dataclasses.replace(options, memory_limit=limit)  # type: ignore[call-arg]
    return limited


def _check_memory(limit: Any) -> None:
    if limit is not None:
        check_count("memory_limit", limit)


def records(options: Options) -> bool:
    """Whether the decoding step is recorded and replayed, which one thread at a time may do."""
    return isinstance(options, CUDA | TensorRT) and options.cuda_graph
