"""Execution providers: what can be asked of each, which one runs, why not another, and where every node went."""

from torchless.providers.choose import Asked, Provider, asked_for, choose_graph, choose_provider
from torchless.providers.options import BY_NAME, CPU, CUDA, CoreML, DirectML, OpenVINO, Options, Plugin, TensorRT
from torchless.providers.placement import Placement, read_placement

__all__ = [
    "BY_NAME",
    "CPU",
    "CUDA",
    "Asked",
    "CoreML",
    "DirectML",
    "OpenVINO",
    "Options",
    "Placement",
    "Plugin",
    "Provider",
    "TensorRT",
    "asked_for",
    "choose_graph",
    "choose_provider",
    "read_placement",
]
