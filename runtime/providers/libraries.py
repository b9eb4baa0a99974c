"""The shared libraries that a provider of onnxruntime needs: which of them this machine lacks."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import io
import mmap
import re
import struct
import sys
from pathlib import Path

from torchless.ort import onnxruntime

WINDOWS = sys.platform == "win32"
FILE = "onnxruntime_providers_{}.dll" if WINDOWS else "libonnxruntime_providers_{}.so"
NVIDIAS = re.compile(
    r"(lib)?(nvcuda|cuda|cudart|cublas|curand|cudnn|cufft|nvinfer|nvonnxparser|nvrtc)", re.IGNORECASE
)
IMPORTED = re.compile(rb"\0((?:nvcuda|cudart|cublas|curand|cudnn|cufft|nvinfer|nvonnxparser)\w*\.dll)(?=\0)", re.I)
LOADABLE, DYNAMIC = 1, 2  # kinds of an ELF file's segments
NEEDED, STRINGS = 1, 5  # tags of its dynamic section


def provider_file(provider: str) -> Path:
    """The library of a provider that is one of its own: cuda, tensorrt or shared."""
    return Path(onnxruntime().__file__).parent / "capi" / FILE.format(provider)


def missing_libraries(provider: str) -> list[str]:
    """What keeps the provider's own library from being loaded: names of libraries, else the system's own words.

    Empty where it loads. NVIDIA's pip packages are loaded first, as onnxruntime itself would not.
    """
    preload()
    own = provider_file(provider)
    try:
        ctypes.CDLL(str(provider_file("shared")), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(own))
        return []
    except OSError as error:
        reason = str(error)
    try:
        needed = needed_libraries(own)
    except (OSError, ValueError, struct.error):
        needed = []
    # The system names the first that it misses; the others are found by asking for each.
    return [name for name in needed if NVIDIAS.match(name) and not loads(name)] or [reason]


def loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


@functools.cache
def preload() -> None:
    """Load what NVIDIA's pip packages hold, so that the provider's library finds it by its bare name."""
    ort = onnxruntime()
    if hasattr(ort, "preload_dlls") and importlib.util.find_spec("nvidia") is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find; so do we, as an error
            ort.preload_dlls()
    spec = importlib.util.find_spec("tensorrt_libs")  # of tensorrt-cu12, tensorrt-cu13
    for folder in spec.submodule_search_locations or () if spec else ():
        for pattern in (
            ("nvinfer_*.dll", "nvonnxparser_*.dll") if WINDOWS else ("libnvinfer.so.*", "libnvonnxparser.so.*")
        ):
            for path in sorted(Path(folder).glob(pattern)):
                loads(str(path))


def needed_libraries(path: Path) -> list[str]:
    """The names of the libraries that a library is linked against, as its own file lists them.

    Raises ValueError for a file that is neither ELF nor PE.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:2] == b"MZ":
            return sorted({found[1].decode() for found in IMPORTED.finditer(data)})
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError(f"{path} is no library of 64 bits")
        return _needed(data)


def _needed(data: mmap.mmap) -> list[str]:
    table, size, count = struct.unpack_from("<Q", data, 0x20)[0], *struct.unpack_from("<HH", data, 0x36)
    segments = []
    for i in range(count):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, table + i * size)
        segments.append((kind, offset, address, length))
    tags = []
    for kind, offset, _, length in segments:
        if kind == DYNAMIC:
            tags += [struct.unpack_from("<QQ", data, at) for at in range(offset, offset + length, 16)]
    strings = next(value for tag, value in tags if tag == STRINGS)
    start = next(
        offset + strings - address
        for kind, offset, address, length in segments
        if kind == LOADABLE and address <= strings < address + length
    )
    names = [start + value for tag, value in tags if tag == NEEDED]
    return [data[at : data.find(b"\0", at)].decode() for at in names]
