"""TensorRT: engines that are kept between runs, and the range of shapes that they are built for.

Without a range TensorRT would build at the first call, and again for each shape beyond those that it has seen.
Types are the graph's own: no precision is allowed beside them unless TensorRT(fp16=True) asks for it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from torchless.bundle import Bundle
from torchless.errors import InputError, ProviderError
from torchless.log import log
from torchless.manifest import Graph, Manifest
from torchless.ort import onnxruntime
from torchless.providers import libraries, nvidia
from torchless.providers.options import TensorRT, Told

LARGEST_STEP = 256  # tokens that the decoder reads at once
TUNED_LENGTH = 128  # tokens that an encoder's engine is tuned for, unless told otherwise

Range = tuple[list[int], list[int], list[int]]  # the least, the likeliest and the largest shape


def told(options: TensorRT, bundle: Bundle, graph: Graph) -> Told:
    """Everything that the provider is told for this graph; makes the folder of its engines.

    Raises ProviderError where that folder cannot be made, InputError for a length beyond the model's.
    """
    folder = engine_folder(options, bundle, graph)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProviderError(
            f"the folder for TensorRT's engines cannot be made ({error}): pass TensorRT(cache_dir=...)"
        ) from error
    if not any(folder.glob("*.engine")):
        log.info(
            "TensorRT builds an engine for %s: minutes, this once (kept in %s)", bundle.path / graph.file, folder
        )
    kept = {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
    }
    return {**options.told(), **kept, **profile(options, bundle.manifest, graph), **options.more}


def profile(options: TensorRT, manifest: Manifest, graph: Graph) -> Told:
    """The shapes that the engine serves, for every input that the graph contract knows (docs/graph.md).

    A graph that lacks one of the inputs ignores its shapes. None are told for another tool's graph.
    """
    if graph.dialect == "foreign":
        return {}
    ranges = dict(_ranges(options, manifest))
    return {
        f"trt_profile_{kind}_shapes": ",".join(
            f"{name}:{'x'.join(map(str, shapes[i]))}" for name, shapes in ranges.items()
        )
        for i, kind in enumerate(("min", "opt", "max"))
    }


def _ranges(options: TensorRT, manifest: Manifest) -> Iterator[tuple[str, Range]]:
    context = manifest.context_length
    longest = context if options.max_length is None else options.max_length
    if longest > context:
        raise InputError(f"max_length={longest:,} is above the model's context of {context:,}")
    usual = min(longest, TUNED_LENGTH) if options.opt_length is None else options.opt_length
    if usual > longest:
        raise InputError(f"opt_length={usual:,} is above max_length={longest:,}")
    few, many = options.opt_batch_size, options.max_batch_size
    if manifest.cache is None:
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            yield name, ([1, 1], [few, usual], [many, longest])
        return
    step = min(LARGEST_STEP, longest)
    for name in ("input_ids", "position_ids"):
        yield name, ([1, 1], [few, 1], [many, step])
    yield "seqlens_k", ([1], [few], [many])
    yield "logits_positions", ([1, 0], [few, 1], [many, step])
    heads, size = manifest.cache.heads, manifest.cache.head_size
    for i in range(manifest.cache.layers):
        for kind in ("key", "value"):
            least, likely, most = (
                [rows, heads, slots, size] for rows, slots in ((1, 1), (few, usual), (many, longest))
            )
            yield f"past_key_values.{i}.{kind}", (least, likely, most)


def engine_folder(options: TensorRT, bundle: Bundle, graph: Graph) -> Path:
    """Where the engines of this graph lie: a folder for each bundle, onnxruntime, TensorRT, driver and GPU.

    onnxruntime's own name for an engine knows the graph's inputs and outputs but not its weights.
    """
    root = Path(options.cache_dir).absolute() if options.cache_dir else user_cache() / "torchless" / "tensorrt"
    shown = nvidia.gpus()
    gpu = shown[options.device_id] if options.device_id < len(shown) else None
    parts = [graph.file, onnxruntime().__version__, library_version(), nvidia.driver_version(), gpu]
    for name, entry in sorted(bundle.manifest.files.items()):
        if entry.sha256:
            parts.append((name, entry.sha256))
        else:  # of another tool's folder nothing was hashed
            state = bundle.file(name).stat()
            parts.append((name, state.st_size, state.st_mtime_ns))
    return root / hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def user_cache() -> Path:
    """The folder for what may be thrown away, as each system has it."""
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    if sys.platform == "darwin":
        return home / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")


def library_version() -> int | None:
    """TensorRT's, such as 101401 for 10.14.1; None where it is not here."""
    try:
        for name in libraries.needed_libraries(libraries.provider_file("tensorrt")):
            if "nvinfer" in name:
                return int(ctypes.CDLL(name).getInferLibVersion())
    except (OSError, ValueError, AttributeError, StopIteration):
        pass
    return None
