"""torchless doctor"""

from __future__ import annotations

import argparse
import json
import os
import platform
from typing import Any

from torchless.download import hub_state
from torchless.errors import TorchlessError
from torchless.providers import BY_NAME, nvidia, plugins, wheels
from torchless.providers.causes import why_not
from torchless.providers.options import Options, Plugin
from torchless.version import __version__

OPTIONAL = ("onnx", "safetensors", "torch", "transformers")
# What to make for a provider that is usable here.
RECIPES = {
    "cpu": "int8; int4 where size or tokens a second matter more than a little quality",
    "cuda": "fp16; fp16-int4 for a smaller file (quantize --target cuda)",
    "tensorrt": "export --dialect all, then quantize --target tensorrt",
    "openvino": "export --dialect all, then quantize --target openvino",
    "directml": "fp16",
    "coreml": "export --dialect all",
}
PLUGIN = "export --dialect all"


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
        elif name in ("providers", "recipes"):
            for key, text in value.items():
                print(f"{f'{name[:-1]} {key}':21} {text}")
            continue
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {version or 'missing'}" for key, version in value.items())
        print(f"{name.replace('_', ' '):22}{value}")


def examine() -> dict[str, Any]:
    """What is here. Never raises: a missing or broken part is a finding too."""
    found: dict[str, Any] = {
        "torchless": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "runtime": {name: wheels.version_of(name) for name in ("numpy", "tokenizers")},
        "onnxruntime_wheels": [f"{name} {version}" for name, version in wheels.wheels().items()],
        "plugins": [str(package) for package in plugins.packages()],
        "driver": nvidia.driver_version() or "no driver of NVIDIA",
        "gpus": [f"{gpu.name}, {gpu.memory / 2**30:.0f} GiB, {gpu.capability}" for gpu in nvidia.gpus()],
        "for_export": {name: wheels.version_of(name) for name in OPTIONAL},
        "hub": hub_state(),
        "cores": os.cpu_count(),
    }
    advice = []
    if twice := wheels.overwritten():
        advice.append(f"{twice}: uninstall all of them, install one")
    try:
        from torchless.ort import onnxruntime

        ort = onnxruntime()
        from torchless.exactness import signed_int8_saturates
        from torchless.session import default_threads

        by_name = {kind.ort_name: name for name, kind in BY_NAME.items()}
        found["threads"] = default_threads() or "one a physical core"
        found["providers_in_wheel"] = [by_name.get(p, p) for p in ort.get_available_providers()]
        causes = {name: _why_not(kind()) for name, kind in BY_NAME.items()} | _plugins(set(by_name))
        found["providers"] = {name: cause or "usable" for name, cause in causes.items()}
        found["providers_usable"] = [name for name, cause in causes.items() if cause is None]
        found["recipes"] = {name: RECIPES.get(name, PLUGIN) for name in found["providers_usable"]}
        saturates = signed_int8_saturates()
        found["int8"] = (
            "16-bit sums saturate here: int8 bundles run in the precise mode" if saturates else "exact and fast"
        )
    except TorchlessError as error:
        advice.append(str(error))
    found["advice"] = advice
    return found


def _plugins(known: set[str]) -> dict[str, str | None]:
    """Of the providers that plugin packages bring, by onnxruntime's name, but for those of names of ours."""
    found: dict[str, str | None] = {}
    for package in plugins.packages():
        try:
            found |= {name: _why_not(Plugin(name)) for name in plugins.provider_names(package) if name not in known}
        except Exception as error:
            found[package.name] = f"{type(error).__name__}: {error}"
    return found


def _why_not(options: Options) -> str | None:
    try:
        return why_not(options)
    except Exception as error:  # a broken package is a finding, whatever it raises
        return f"{type(error).__name__}: {error}"
