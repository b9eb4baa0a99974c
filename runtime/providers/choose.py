"""Which execution provider runs which graph, and why: never a silent fall to another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torchless.bundle import Bundle
from torchless.errors import InputError, ProviderError
from torchless.manifest import Graph
from torchless.providers.causes import why_not
from torchless.providers.options import BY_NAME, CPU, Options
from torchless.providers.placement import Placement

Asked = str | Options | Sequence[str | Options]

AUTO = "auto"
KNOWN = (*BY_NAME, AUTO)
# What `auto` tries, in this order. TensorRT builds for minutes, and OpenVINO is not the faster one for every model:
# they are for those who ask for them.
TRIED = ("cuda", "directml", "cpu")


@dataclass(frozen=True)
class Provider:
    """The provider in use: its short name, onnxruntime's name, the reason for the choice, and its options.

    placement: where every node runs; None for the CPU, which runs them all, and before onnxruntime 1.24.
    """

    name: str
    reason: str
    ort_name: str
    options: Options
    placement: Placement | None = None


def asked_for(asked: Asked) -> tuple[list[Options], bool]:
    """The providers in the order in which they are to be tried, and whether it is `auto` that tries them.

    Raises ProviderError for a name that is unknown.
    """
    if isinstance(asked, str) and asked == AUTO:
        return [BY_NAME[name]() for name in TRIED], True
    several = isinstance(asked, Sequence) and not isinstance(asked, str)
    given: Sequence[Any] = asked if several else [asked]  # type: ignore[assignment]
    if not given:
        raise ProviderError(f"provider={asked!r} is empty: give one or more of {', '.join(BY_NAME)}")
    return [_options(one, BY_NAME if several else KNOWN) for one in given], False


def _options(one: Any, known: Any) -> Options:
    if isinstance(one, Options):
        return one
    if not isinstance(one, str) or one not in BY_NAME:
        raise ProviderError(f"provider={one!r} is unknown (known: {', '.join(known)})")
    return BY_NAME[one]()


def choose_provider(asked: Asked) -> Provider:
    """The first that this machine can run.

    Raises ProviderError for a name that is unknown, and where none can run: with the cause for each.
    """
    options, auto = asked_for(asked)
    passed_over: list[str] = []
    for one in options:
        cause = why_not(one)
        if cause is None:
            return make_provider(one, auto=auto, passed_over=passed_over)
        passed_over.append(f"{one.name}: {cause}")
    raise ProviderError(none_of(passed_over))


def make_provider(options: Options, *, auto: bool, passed_over: Sequence[str]) -> Provider:
    reason = "auto" if auto else "asked for"
    if passed_over:
        reason += f"; passed over {'; '.join(passed_over)}"
    return Provider(options.name, reason, options.ort_name, options)


def none_of(causes: Sequence[str]) -> str:
    """The message for providers that were asked for, of which none can run."""
    if len(causes) == 1:
        name, _, cause = causes[0].partition(": ")
        return f"provider={name!r}: {cause}"
    return "none of the providers can run:\n" + "\n".join(f"- {cause}" for cause in causes)


def choose_graph(bundle: Bundle, provider: Provider, dialect: str | None = None, file: str | None = None) -> Graph:
    """The first graph of the bundle that suits the provider (and is of the dialect or in the file asked for).

    Raises ProviderError where there is none, with the command that makes one.
    """
    if dialect is not None and not isinstance(dialect, str):
        raise InputError(f"dialect={dialect!r}: give fused or standard")
    for graph in bundle.manifest.graphs:
        if provider.name in graph.providers and dialect in (None, graph.dialect) and file in (None, graph.file):
            return graph
    have = ", ".join(
        f"{g.file} ({g.dialect}, {g.precision}; {'/'.join(g.providers)})" for g in bundle.manifest.graphs
    )
    wanted = (f" of the {dialect} dialect" if dialect else "") + (f" in {file}" if file else "")
    raise ProviderError(
        f"{bundle.path} has no graph{wanted} for {provider.name} (it has {have}): make one with "
        f"{_maker(provider.name)}"
    )


def _maker(name: str) -> str:
    """The commands that make a graph for this provider."""
    if name == CPU.name:
        return "`torchless export CHECKPOINT OUT`"
    return f"`torchless export CHECKPOINT OUT --dialect all` and `torchless quantize OUT BUNDLE --target {name}`"
