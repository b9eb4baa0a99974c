"""Why a provider cannot run on this machine: which wheel, library or device is missing, and what to do."""

from __future__ import annotations

import platform
import sys

from torchless.ort import onnxruntime
from torchless.providers import wheels
from torchless.providers.options import CUDA, CoreML, DirectML, OpenVINO, Options, Plugin, TensorRT

SYSTEMS = {"win32": "Windows", "darwin": "macOS", "linux": "Linux"}


def why_not(options: Options) -> str | None:
    """The cause and the remedy, in a sentence; None where nothing is known to be in the way.

    Raises ProviderError where onnxruntime itself is missing.
    """
    ort = onnxruntime()
    if cause := _platform(options):
        return cause
    if isinstance(options, Plugin | OpenVINO):
        from torchless.providers import plugins

        if isinstance(options, Plugin) or not plugins.built_in(options.ort_name):
            return plugins.why_not(options)
        return None
    if options.ort_name not in ort.get_available_providers():
        return _wheel(options, ort.__version__)
    if isinstance(options, CUDA | TensorRT):
        return _nvidia(options)
    return None


def _platform(options: Options) -> str | None:
    system = SYSTEMS.get(sys.platform, sys.platform)
    if isinstance(options, DirectML) and sys.platform != "win32":
        return f"DirectML is a part of Windows, and this is {system}: use cuda or cpu"
    if isinstance(options, CoreML) and sys.platform != "darwin":
        return f"Core ML is a part of macOS, and this is {system}: use cuda or cpu"
    if isinstance(options, CUDA | TensorRT) and sys.platform == "darwin":
        return "NVIDIA makes no driver for macOS: use coreml or cpu"
    return None


def _wheel(options: Options, version: str) -> str:
    """The wheel was built without the provider."""
    cause = f"{wheels.in_use(version)} was built without {options.ort_name}"
    if twice := wheels.overwritten():
        cause = f"{cause} ({twice})"
    return f"{cause}: {wheels.install(options.name)}"


def _nvidia(options: CUDA | TensorRT) -> str | None:
    from torchless.providers import libraries, nvidia

    kind = options.name
    path = libraries.provider_file(kind)
    if not path.is_file():
        damage = wheels.overwritten() or "the wheel is damaged"
        return f"{path.name} is missing, although onnxruntime was built with it ({damage}): {wheels.install(kind)}"
    missing = libraries.missing_libraries(kind)
    cuda = wheels.cuda_version()
    if nvidia.LIBRARY in missing:
        others = [name for name in missing if name != nvidia.LIBRARY]
        return f"NVIDIA's driver is missing ({nvidia.LIBRARY}): {nvidia.DRIVER}" + (
            f"; also missing: {_install_libraries(others, cuda)}" if others else ""
        )
    if missing:
        return f"missing on this machine: {_install_libraries(missing, cuda)}"
    return nvidia.why_no_device(options.device_id, cuda)


def _install_libraries(missing: list[str], cuda: tuple[int, int] | None) -> str:
    """The libraries that are missing, and the packages that hold them."""
    remedies = []
    tensorrt = [name for name in missing if "nvinfer" in name or "nvonnxparser" in name]
    if len(tensorrt) < len(missing):
        remedies.append("pip install 'onnxruntime-gpu[cuda,cudnn]'")
    if tensorrt:
        number = "".join(filter(str.isdigit, tensorrt[0].replace(".dll", ""))) or "10"
        remedies.append(f"pip install 'tensorrt-cu{cuda[0] if cuda else 13}=={number}.*'")
    at = " on the PATH" if platform.system() == "Windows" else " on LD_LIBRARY_PATH"
    return f"{', '.join(missing)}: {' and '.join(remedies)}, or put CUDA's own libraries{at}"
