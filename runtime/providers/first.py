"""From what was asked for to an open session: the first provider that can run, and what it took of the graph."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torchless.arguments import check_flag
from torchless.bundle import Bundle
from torchless.errors import ProviderError
from torchless.hosted import HostedSession
from torchless.log import log
from torchless.manifest import Graph
from torchless.providers.causes import why_not
from torchless.providers.choose import Asked, Provider, asked_for, choose_graph, make_provider, none_of
from torchless.providers.options import CPU, limited, records
from torchless.providers.placement import read_placement
from torchless.session import open_session


@dataclass(frozen=True)
class Settings:
    """How a bundle is opened; everything that a pickled model needs besides the path."""

    provider: Asked = "cpu"
    threads: int | None = None
    spin: bool = False
    dialect: str | None = None
    file: str | None = None
    strict: bool = False
    memory_limit: int | None = None


@dataclass(frozen=True)
class Opened:
    """A session, the provider that runs it, and the graph that it was made of."""

    session: HostedSession
    provider: Provider
    graph: Graph


def open_first(bundle: Bundle, settings: Settings) -> Opened:
    """The session of the first provider asked for that can run, on the graph of the bundle that suits it.

    Raises ProviderError where none can, with the cause for each: it is not on this machine, the bundle has no graph
    for it, it refuses the graph, or, with strict, it leaves nodes to the CPU.
    """
    check_flag("strict", settings.strict)
    options, auto = asked_for(settings.provider)
    causes: list[str] = []
    for one in options:
        try:
            one = limited(one, settings.memory_limit)
            cause = why_not(one)
            if cause is not None:
                raise ProviderError(cause)
            provider = make_provider(one, auto=auto, passed_over=causes)
            if records(one) and (bundle.manifest.cache is None or not bundle.manifest.cache.shared):
                raise ProviderError(
                    f"cuda_graph=True records the step of a GPT with a shared cache, and {bundle.path} has none: "
                    "leave it off"
                )
            graph = choose_graph(bundle, provider, settings.dialect, settings.file)
            session = open_session(bundle, graph, provider, threads=settings.threads, spin=settings.spin)
            provider = _placed(session, provider, graph, settings.strict)
            return Opened(session, provider, graph)
        except ProviderError as error:
            causes.append(f"{one.called}: {error}")
    raise ProviderError(none_of(causes))


def _placed(session: HostedSession, provider: Provider, graph: Graph, strict: bool) -> Provider:
    """The provider with what it took of the graph."""
    if provider.name == CPU.name:
        return provider
    placement = read_placement(session)
    if placement is None:
        if strict:
            raise ProviderError("strict=True needs onnxruntime 1.24 or newer, which tells where nodes run")
        return provider
    if placement.on_cpu:
        left = ", ".join(f"{count} {kind}" for kind, count in placement.on_cpu.items())
        told = f"of {graph.file} {sum(placement.on_cpu.values())} nodes were left to the CPU ({left})"
        if strict:
            raise ProviderError(f"{told}: pass strict=False to let them run there")
        log.warning("%s: %s", provider.name, told)
    return dataclasses.replace(provider, placement=placement)
