"""NVIDIA's driver, asked through its own library: which GPUs are here, and what keeps CUDA from them."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
KERNEL = Path("/proc/driver/nvidia/version")
VISIBLE = "CUDA_VISIBLE_DEVICES"
MAJOR, MINOR = 75, 76  # attributes: the compute capability
DRIVER = "install NVIDIA's driver (in a container: start it with `--gpus all`)"
# What cuInit answers, in the driver's own numbers.
ANSWERS = {
    34: "the library is CUDA's stub, made only to compile against: take its folder off the search path",
    100: "the driver finds no GPU",
    802: "the driver says that the GPUs are not ready yet: start NVIDIA's fabric manager",
    803: "the driver's library and its kernel module are of different versions: restart the machine",
    804: "CUDA's compatibility package does not suit this GPU: remove it, or upgrade the driver",
}


@dataclass(frozen=True)
class GPU:
    """One that the driver shows. memory: bytes. capability: such as "8.6"."""

    name: str
    memory: int
    capability: str


def why_no_device(device_id: int, cuda: tuple[int, int] | None) -> str | None:
    """Why the GPU of this number cannot be used with a CUDA of this version; None where nothing is in the way."""
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError:
        return f"NVIDIA's driver is missing ({LIBRARY}): {DRIVER}"
    try:
        answer = driver.cuInit(0)
        newest = _number(driver.cuDriverGetVersion)
        count = 0 if answer else _number(driver.cuDeviceGetCount)
    except AttributeError:  # an odd driver: onnxruntime will say what it thinks of it
        return None
    if cuda is not None and 0 < newest // 1000 < cuda[0]:
        return (
            f"NVIDIA's driver is too old: it knows CUDA {_dotted(newest)}, this onnxruntime was built for CUDA "
            f"{cuda[0]}.{cuda[1]}: upgrade the driver, or install an onnxruntime-gpu for CUDA {newest // 1000}"
        )
    shown = f" ({VISIBLE}={os.environ[VISIBLE]!r} hides others)" if VISIBLE in os.environ else ""
    if answer and answer != 100:
        return ANSWERS.get(answer, f"NVIDIA's driver cannot start (cuInit answers {answer}): restart the machine")
    if not count:
        return f"{ANSWERS[100]}{shown}: run on a machine that has one"
    if device_id >= count:
        return f"device_id={device_id}: there {f'are {count} GPUs' if count > 1 else 'is 1 GPU'}{shown}: give 0" + (
            f" to {count - 1}" if count > 1 else ""
        )
    return None


def gpus() -> list[GPU]:
    """Those that the driver shows; none where there is no driver."""
    try:
        driver = ctypes.CDLL(LIBRARY)
        if driver.cuInit(0):
            return []
        return [_gpu(driver, number) for number in range(_number(driver.cuDeviceGetCount))]
    except (OSError, AttributeError):
        return []


def driver_version() -> str | None:
    """The driver, as exactly as it can be told, such as "580.65.06 (CUDA 13.0)"; None where there is none."""
    try:
        newest = _dotted(_number(ctypes.CDLL(LIBRARY).cuDriverGetVersion))
    except (OSError, AttributeError):
        return None
    try:
        words = KERNEL.read_text().splitlines()[0].split()
        exact = next(word for word in words if word[0].isdigit() and "." in word)
    except (OSError, StopIteration, IndexError):
        return f"CUDA {newest}"
    return f"{exact} (CUDA {newest})"


def _gpu(driver: Any, number: int) -> GPU:
    device = ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = [_number(driver.cuDeviceGetAttribute, kind, device) for kind in (MAJOR, MINOR)]
    return GPU(name.value.decode(errors="replace"), memory.value, ".".join(map(str, capability)))


def _number(ask: Any, *given: Any) -> int:
    number = ctypes.c_int()
    ask(ctypes.byref(number), *given)
    return number.value


def _dotted(version: int) -> str:
    """13010 is 13.1"""
    return f"{version // 1000}.{version % 1000 // 10}"
