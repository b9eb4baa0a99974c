"""Which onnxruntime is installed: all its wheels bring the same module, and the last one installed has it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping

WHEELS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-migraphx",
    "onnxruntime-qnn",
    "onnxruntime-rocm",
    "onnxruntime-training",
    "onnxruntime-windowsml",
)
# What to install for a provider that the wheel lacks. cuBLAS comes with cuDNN's package: [cuda] alone lacks it.
INSTALL: Mapping[str, str] = {
    "cuda": "onnxruntime-gpu[cuda,cudnn]",
    "tensorrt": "onnxruntime-gpu[cuda,cudnn]",
    "openvino": "onnxruntime-openvino",
    "directml": "onnxruntime-directml",
    "coreml": "onnxruntime",
}


def version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def wheels() -> dict[str, str]:
    """The wheels of onnxruntime that are installed, with their versions."""
    return {name: version for name in WHEELS if (version := version_of(name))}


def in_use(version: str) -> str:
    """The wheel whose files are there, as far as they tell, such as "onnxruntime-gpu 1.31.1"."""
    try:
        from onnxruntime.capi.build_and_package_info import package_name
    except ImportError:
        package_name = "onnxruntime"
    return f"{package_name} {version}"


def install(name: str) -> str:
    """How to get a wheel with the provider: all others have to go first, and with them their files."""
    there = [wheel for wheel in wheels() if wheel != INSTALL[name].partition("[")[0]]
    first = f"pip uninstall {' '.join(there)}, then " if there else ""
    return f"{first}pip install --force-reinstall '{INSTALL[name]}'" if first else f"pip install '{INSTALL[name]}'"


def overwritten() -> str | None:
    """What is wrong with several wheels in one environment; None where there is at most one."""
    there = wheels()
    if len(there) < 2:
        return None
    return f"{' and '.join(there)} are installed together, and the last one has overwritten the others"


def cuda_version() -> tuple[int, int] | None:
    """The CUDA that the wheel was built for; None where it does not say."""
    try:
        from onnxruntime.capi.build_and_package_info import cuda_version as text

        major, _, minor = text.partition(".")
        return int(major), int(minor or 0)
    except (ImportError, ValueError, AttributeError):
        return None
