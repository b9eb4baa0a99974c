"""Where every node of an opened graph runs, as onnxruntime itself tells it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torchless.providers.options import CPU

if TYPE_CHECKING:
    from torchless.hosted import HostedSession

RECORD = "session.record_ep_graph_assignment_info"  # onnxruntime 1.24; older ones pass over it


@dataclass(frozen=True)
class Placement:
    """How many nodes each provider took, by onnxruntime's names, and which operators were left to the CPU.

    Nodes are counted as they stood when they were given out: later fusions make them fewer. What a provider
    compiles as one piece is counted by what it was made of.
    """

    nodes: Mapping[str, int]
    on_cpu: Mapping[str, int]  # by operator

    @property
    def whole(self) -> bool:
        """No node was left to the CPU."""
        return not self.on_cpu

    def __str__(self) -> str:
        return ", ".join(
            f"{count:,} on {name.removesuffix('ExecutionProvider')}" for name, count in self.nodes.items()
        )


def read_placement(session: HostedSession) -> Placement | None:
    """None where this onnxruntime cannot tell (before 1.24), or was not asked to record it."""
    try:
        subgraphs: list[Any] = session.get_provider_graph_assignment_info()
    except (AttributeError, RuntimeError):
        return None
    nodes: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for subgraph in subgraphs:
        inside = subgraph.get_nodes()
        nodes[subgraph.ep_name] += len(inside)
        if subgraph.ep_name == CPU.ort_name:
            left.update(node.op_type for node in inside)
    return Placement(dict(nodes.most_common()), dict(left.most_common()))
