"""Providers in packages of their own, onnxruntime-ep-*, which are registered with onnxruntime when asked for.

Such a provider is not named to onnxruntime but given by its devices; what `get_available_providers` says of it
after its registration holds for no session.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torchless.errors import ProviderError
from torchless.ort import onnxruntime
from torchless.providers.options import OpenVINO, Options, Plugin

if TYPE_CHECKING:
    import onnxruntime as ort

PREFIX = "onnxruntime-ep-"
OLDEST = "onnxruntime 1.23"
# The plugin passes over what it does not know, so a misspelt option would vanish.
OPENVINO_TAKES = ("load_config", "reshape_input", "enable_causallm", "hint_enable_gqa")

_registering = threading.Lock()
_registered: set[str] = set()  # packages whose library this process has given to onnxruntime


@dataclass(frozen=True)
class Package:
    """An installed plugin package: its name, its version, and the module that knows where its library lies."""

    name: str
    version: str
    module: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def packages() -> list[Package]:
    """The plugin packages in this environment, by name."""
    found = {}
    for one in importlib.metadata.distributions():
        name = (one.metadata["Name"] or "").lower().replace("_", "-")
        if name.startswith(PREFIX):
            top = (one.read_text("top_level.txt") or "").split()
            found[name] = Package(name, one.version, top[0] if top else name.replace("-", "_"))
    return [found[name] for name in sorted(found)]


def provider_names(package: Package) -> list[str]:
    """onnxruntime's names of the providers in a package. Raises ProviderError for one that is broken."""
    module = _import(package)
    names = module.get_ep_names() if hasattr(module, "get_ep_names") else [module.get_ep_name()]
    return [str(name) for name in names]


def register(package: Package) -> None:
    """Give the package's library to onnxruntime, once a process.

    Raises ProviderError for a library that this onnxruntime cannot load, and for one that is too old to load any.
    """
    ort = onnxruntime()
    if not hasattr(ort, "register_execution_provider_library"):
        raise ProviderError(f"onnxruntime {ort.__version__} knows no plugin providers: install {OLDEST} or newer")
    with _registering:
        if package.name in _registered:
            return
        try:
            ort.register_execution_provider_library(package.name, str(_import(package).get_library_path()))
        except ProviderError:
            raise
        except Exception as error:  # onnxruntime's own classes differ by version
            raise ProviderError(
                f"{package} cannot be loaded: {str(error).strip().splitlines()[0][:300]}"
            ) from error
        _registered.add(package.name)


def built_in(ort_name: str) -> bool:
    """Whether onnxruntime itself was built with the provider: a registered plugin's is listed too."""
    return ort_name in onnxruntime().get_available_providers() and not _offered(ort_name)


def devices(options: Plugin | OpenVINO) -> list[ort.OrtEpDevice]:
    """The devices that the provider's plugin offers, those of OpenVINO of the type asked for; registers the plugin.

    Raises ProviderError where no package has the provider, or its library cannot be loaded.
    """
    if not _offered(options.ort_name):  # else somebody has registered it already
        register(_package_of(options))
    if not isinstance(options, OpenVINO):
        return _offered(options.ort_name)
    if options.device_type == "AUTO":
        return _offered(f"{options.ort_name}.AUTO")
    return [one for one in _offered(options.ort_name) if one.ep_metadata.get("ov_device") == options.device_type]


def why_not(options: Plugin | OpenVINO) -> str | None:
    """Why the plugin cannot run here; None where nothing is known to be in the way."""
    try:
        offered = devices(options)
    except ProviderError as error:
        return str(error)
    if isinstance(options, Plugin):
        if not offered:
            return f"{_package_of(options)} offers no device on this machine: it finds no hardware that it can use"
        if options.device_id >= len(offered):
            return f"device_id={options.device_id}: {options.ort_name} offers {len(offered)}, counted from 0"
        return None
    if offered:
        return None
    others = sorted({one.ep_metadata.get("ov_device", "") for one in _offered(options.ort_name)})
    if others:
        return f"OpenVINO's plugin offers no {options.device_type} here: give {', '.join(others)} or AUTO"
    return (
        f"{_package_of(options)} offers no device on this machine: it takes only Intel's hardware (this is "
        f"{platform.processor() or platform.machine()}): install onnxruntime-openvino instead, which runs on any "
        "x86-64, in an environment without another onnxruntime"
    )


def add_provider(session: ort.SessionOptions, options: Plugin | OpenVINO) -> None:
    """Give the graph to the plugin's device first. Raises ProviderError for options that it would pass over."""
    if isinstance(options, OpenVINO):
        told = {"load_config": options.load_config(), **options.more}
        if unknown := sorted(set(told) - set(OPENVINO_TAKES)):
            raise ProviderError(
                f"OpenVINO's plugin does not know the option {unknown[0]!r} (it takes {', '.join(OPENVINO_TAKES)})"
            )
        session.add_provider_for_devices(devices(options)[:1], told)
    else:
        session.add_provider_for_devices(devices(options)[options.device_id :][:1], options.told())


def _offered(ort_name: str) -> list[Any]:
    """Devices of a registered plugin's provider; a provider that is built in offers none."""
    ort = onnxruntime()
    every = ort.get_ep_devices() if hasattr(ort, "get_ep_devices") else ()
    return [one for one in every if one.ep_name == ort_name and "library_path" in one.ep_metadata]


def _package_of(options: Options) -> Package:
    """The package that has the provider."""
    known, broken = [], ""
    for package in packages():
        try:
            names = provider_names(package)
        except ProviderError as error:
            names, broken = [], f"; {error}"
        if options.ort_name in names:
            return package
        known += names
    if isinstance(options, OpenVINO):
        raise ProviderError(
            "OpenVINO is not installed: pip install onnxruntime-ep-openvino (beside onnxruntime, for Intel's "
            "hardware), or onnxruntime-openvino in an environment of its own (for any x86-64)"
            f"{broken}"
        )
    raise ProviderError(
        f"no plugin package has {options.ort_name} (installed plugins: {', '.join(known) or 'none'}): pip install "
        f"the {PREFIX}… package that has it{broken}"
    )


def _import(package: Package) -> Any:
    try:
        module = importlib.import_module(package.module)
    except Exception as error:  # whatever a package does while it is imported
        raise ProviderError(f"{package} cannot be imported ({type(error).__name__}: {error})") from error
    if not hasattr(module, "get_library_path"):
        raise ProviderError(f"{package} does not say where its library lies: it is no plugin provider")
    return module
