"""Which execution provider runs which graph, and why: never a silent fall to another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from torchless.bundle import Bundle
from torchless.errors import InputError, ProviderError
from torchless.manifest import Graph
from torchless.providers.causes import why_not
from torchless.providers.options import BY_NAME, CPU, Options, Plugin
from torchless.providers.placement import Placement

Asked = str | Options | Sequence[str | Options]

AUTO = "auto"
KNOWN = (*BY_NAME, AUTO)
BY_ORT_NAME = {kind.ort_name: kind for kind in BY_NAME.values()}
FURTHER = ("cuda", "tensorrt", "openvino")  # targets of `torchless quantize` besides the CPU
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
    several = isinstance(asked, Sequence) and not isinstance(asked, str | bytes)
    given: Sequence[Any] = asked if several else [asked]  # type: ignore[assignment]
    if not given:
        raise ProviderError(f"provider={asked!r} is empty: give one or more of {', '.join(BY_NAME)}")
    options = [_options(one, BY_NAME if several else KNOWN) for one in given]
    for i, one in enumerate(options):
        if one in options[:i]:
            raise ProviderError(f"provider={asked!r} names {one.called} twice, with the same options")
    return options, False


def _options(one: Any, known: Any) -> Options:
    """Options themselves, torchless's name of a provider, or onnxruntime's, of a plugin's provider too."""
    if isinstance(one, Options):
        return one
    if isinstance(one, type) and issubclass(one, Options):
        raise ProviderError(f"provider={one.__name__} is a class: give {one.__name__}(...)")
    if isinstance(one, str):
        if kind := BY_NAME.get(one) or BY_ORT_NAME.get(one):
            return kind()
        if one.endswith("ExecutionProvider"):
            return Plugin(one)
    raise ProviderError(f"provider={one!r} is unknown (known: {', '.join(known)})")


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
        passed_over.append(f"{one.called}: {cause}")
    raise ProviderError(none_of(passed_over))


def make_provider(options: Options, *, auto: bool, passed_over: Sequence[str]) -> Provider:
    reason = "auto" if auto else "asked for"
    if passed_over:
        reason += f"; passed over {'; '.join(passed_over)}"
    return Provider(options.called, reason, options.ort_name, options)


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
        asked = dialect in (None, graph.dialect) and file in (None, graph.file, PurePosixPath(graph.file).stem)
        if asked and _suits(graph, provider.options, named=(dialect, file) != (None, None)):
            return graph
    have = ", ".join(
        f"{g.file} ({g.dialect}, {g.precision}; {'/'.join(g.providers)})" for g in bundle.manifest.graphs
    )
    wanted = (f" of the {dialect} dialect" if dialect else "") + (f" in {file}" if file else "")
    raise ProviderError(
        f"{bundle.path} has no graph{wanted} for {provider.name} (it has {have}): make one with "
        f"{_maker(provider.options, dialect)}"
    )


def _suits(graph: Graph, options: Options, *, named: bool) -> bool:
    """A manifest knows no plugins: they get the graph of plain operators, or one that was asked for by name."""
    if isinstance(options, Plugin):
        return named or graph.dialect == "standard"
    return options.name in graph.providers


def _maker(options: Options, dialect: str | None) -> str:
    """The commands that make a graph for this provider."""
    if isinstance(options, CPU) and dialect != "standard":
        return "`torchless export CHECKPOINT OUT`"
    command = "`torchless export CHECKPOINT OUT --dialect all`"
    if options.name in FURTHER:
        command += f" (and a smaller one of that with `torchless quantize OUT BUNDLE --target {options.name}`)"
    return command
