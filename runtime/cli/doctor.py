"""torchless doctor"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from typing import Any

from torchless.errors import ProviderError
from torchless.providers import BY_NAME
from torchless.providers.causes import why_not
from torchless.version import __version__

WHEELS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
OPTIONAL = ("onnx", "safetensors", "torch", "transformers")


def add(commands: Any) -> None:
    command = commands.add_parser(
        "doctor",
        help="what this machine has, and which recipe suits it",
        description="Show the versions, processor and providers that torchless finds here, and what to use.",
    )
    command.add_argument("--json", action="store_true", help="the findings as JSON")
    command.set_defaults(act=act)


def act(args: argparse.Namespace) -> None:
    found = examine()
    if args.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        if isinstance(value, list):
            value = ", ".join(value) or "none"
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {version or 'missing'}" for key, version in value.items())
        print(f"{name.replace('_', ' '):22}{value}")


def examine() -> dict[str, Any]:
    """What is here. Never raises: a missing or broken part is a finding too."""
    found: dict[str, Any] = {
        "torchless": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "runtime": {name: _version(name) for name in ("numpy", "tokenizers")},
        "onnxruntime_wheels": [f"{name} {_version(name)}" for name in WHEELS if _version(name)],
        "for_export": {name: _version(name) for name in OPTIONAL},
        "cores": os.cpu_count(),
    }
    advice = []
    if len(found["onnxruntime_wheels"]) > 1:
        advice.append("several onnxruntime wheels overwrite each other: uninstall all of them, install one")
    try:
        from torchless.ort import onnxruntime
        from torchless.session import default_threads

        ort = onnxruntime()
        from torchless.exactness import signed_int8_saturates

        by_name = {kind.ort_name: name for name, kind in BY_NAME.items()}
        found["threads"] = default_threads() or "one a physical core"
        found["providers_in_wheel"] = [by_name.get(p, p) for p in ort.get_available_providers()]
        found["providers_usable"] = [name for name, kind in BY_NAME.items() if why_not(kind()) is None]
        saturates = signed_int8_saturates()
        found["int8"] = (
            "16-bit sums saturate here: int8 bundles run in the precise mode" if saturates else "exact and fast"
        )
        advice.append("use the recipe int8; int4 where size or tokens a second matter more than a little quality")
    except ProviderError as error:
        advice.append(str(error))
    found["advice"] = advice
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
