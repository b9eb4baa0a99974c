"""Which execution provider runs the graph, and why: never a silent fall to another one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torchless.errors import InputError, ProviderError

if TYPE_CHECKING:
    from torchless.bundle import Bundle
    from torchless.manifest import Graph

KNOWN = ("cpu", "cuda", "tensorrt", "openvino", "directml", "coreml", "auto")
ORT_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
SUPPORTED = ("cpu",)


@dataclass(frozen=True)
class Provider:
    """The provider in use: its short name, onnxruntime's name, and the reason for the choice."""

    name: str
    reason: str
    ort_name: str = field(default="CPUExecutionProvider")


def choose_provider(asked: str) -> Provider:
    """Raises ProviderError for a name that is unknown, or known but not supported by this version."""
    if not isinstance(asked, str) or asked not in KNOWN:
        raise ProviderError(f"provider={asked!r} is unknown (known: {', '.join(KNOWN)})")
    if asked == "auto":
        return Provider("cpu", "auto: the CPU is the only provider that this version of torchless supports")
    if asked not in SUPPORTED:
        raise ProviderError(
            f"provider={asked!r} is not supported by this version of torchless, which runs on the CPU: "
            "pass provider='cpu' or 'auto'"
        )
    return Provider(asked, "asked for", ORT_NAMES[asked])


def choose_graph(bundle: Bundle, provider: Provider, dialect: str | None = None) -> Graph:
    """The first graph of the bundle that suits the provider (and has the dialect, if one is asked for)."""
    if dialect is not None and not isinstance(dialect, str):
        raise InputError(f"dialect={dialect!r}: give fused or standard")
    for graph in bundle.manifest.graphs:
        if provider.name in graph.providers and dialect in (None, graph.dialect):
            return graph
    have = ", ".join(
        f"{g.file} ({g.dialect}, {g.precision}; {'/'.join(g.providers)})" for g in bundle.manifest.graphs
    )
    wanted = f" of the {dialect} dialect" if dialect else ""
    raise ProviderError(
        f"{bundle.path} has no graph{wanted} for {provider.name} (it has {have}): make one with "
        "`torchless export CHECKPOINT OUT --dialect all`"
    )
