"""One onnxruntime session: opened once, with thread and memory settings, shared by every call."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from torchless.arguments import check_count, check_flag
from torchless.bundle import Bundle
from torchless.errors import BundleError, InputError, ProviderError, TorchlessError
from torchless.external import check_external
from torchless.hosted import HostedSession
from torchless.limits import exceeded, open_limited, shares
from torchless.manifest import EXPORT_AGAIN, Graph
from torchless.ort import onnxruntime
from torchless.providers import refusals
from torchless.providers.choose import Provider
from torchless.providers.options import CPU, CUDA, DirectML, OpenVINO, Plugin, TensorRT, records
from torchless.providers.placement import RECORD

if TYPE_CHECKING:
    import onnxruntime as ort

MOST_THREADS = 4096
# Microseconds that a thread waits awake for the next operator: enough for all but a few of the gaps within a step.
# Longer gains nothing on an idle machine and takes up to a quarter of the speed beside a busy one (performance.md).
AWAKE = 20


def default_threads() -> int:
    """0 lets onnxruntime take one thread a physical core; fewer where this process may use fewer.

    A container's CPU quota and an affinity mask are invisible to onnxruntime, which would start a thread for
    every core of the machine and make each wait for the others.
    """
    cores = os.cpu_count() or 1
    allowed = cores
    if hasattr(os, "sched_getaffinity"):  # Linux
        allowed = len(os.sched_getaffinity(0))
        try:
            quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
            if quota != "max":
                allowed = min(allowed, max(1, round(int(quota) / int(period))))
        except (OSError, ValueError):
            pass
    return allowed if allowed < cores else 0


def open_session(
    bundle: Bundle,
    graph: Graph,
    provider: Provider,
    *,
    threads: int | None = None,
    spin: bool = False,
    optimize: bool = True,
) -> HostedSession:
    """Open one graph of a bundle, so that a program can fork, leave and limit it (see HostedSession).

    threads: for one operator; None or 0 for one a physical core. spin: let idle threads busy-wait as long as
    onnxruntime sees fit, between two calls too (a core burnt by a program that waits for its user). optimize:
    let onnxruntime fuse operators; without it a graph is computed as it is written.

    Raises BundleError for a graph that this onnxruntime cannot read, ProviderError for a provider that did not
    take it.
    """
    given = provider.options
    limit: int | None = getattr(given, "memory_limit", None)
    return HostedSession(
        lambda: _open(bundle, graph, provider, threads=threads, spin=spin, optimize=optimize),
        shrinks=isinstance(given, CPU) and given.arena,
        limit=limit,
        caches=shares(bundle, graph, limit)[1] if limit is not None and isinstance(given, CPU) else None,
        serial=isinstance(given, DirectML) or records(given),
    )


def _open(
    bundle: Bundle, graph: Graph, provider: Provider, *, threads: int | None, spin: bool, optimize: bool
) -> ort.InferenceSession:
    options = session_options(graph, threads=threads, spin=spin, optimize=optimize)
    check_external(bundle, graph)
    path = bundle.file(graph.file)
    on_cpu = isinstance(provider.options, CPU)
    if not on_cpu:
        options.add_session_config_entry(RECORD, "1")
    ort = onnxruntime()
    try:
        # enable_fallback would rebuild the session on the CPU and print instead of raising.
        providers = provider_list(provider, bundle, graph, options)
        make = ort.InferenceSession
        if isinstance(provider.options, CPU) and provider.options.memory_limit is not None:
            make = functools.partial(open_limited, limit=shares(bundle, graph, provider.options.memory_limit)[0])
        session = make(str(path), options, enable_fallback=False, **providers)
    except TorchlessError:
        raise
    except Exception as error:  # onnxruntime's own classes differ by version
        if beyond := exceeded(error, getattr(provider.options, "memory_limit", None)):
            raise beyond from error
        reason = refusals.of_graph(error)
        if wrong := refusals.of_options(error):
            raise ProviderError(f"{provider.options}: {wrong}") from error
        if not on_cpu:
            raise ProviderError(f"{provider.name} cannot open {path}: {reason}") from error
        raise BundleError(
            f"{path} cannot be opened by onnxruntime {ort.__version__}: {EXPORT_AGAIN}, or upgrade "
            f"onnxruntime ({reason})"
        ) from error
    if not session.get_providers()[0].startswith(provider.ort_name):  # OpenVINO's plugin adds ".AUTO"
        raise ProviderError(f"{path} was not taken by {provider.ort_name}, only by {session.get_providers()}")
    return session


def session_options(graph: Graph, *, threads: int | None, spin: bool, optimize: bool = True) -> ort.SessionOptions:
    """What every provider's session has in common (see open_session)."""
    check_flag("spin", spin)
    wanted = 0 if threads is None else check_count("threads", threads, least=0)
    if wanted > MOST_THREADS:
        raise InputError(f"threads={threads:,}: give {MOST_THREADS:,} or fewer, 0 for one a physical core")
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors become exceptions, and their lines would stand beside ours
    options.intra_op_num_threads = wanted or default_threads()
    options.inter_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = False  # shapes change with every text, so no plan fits twice
    if not spin:
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(AWAKE))  # older ones pass over it
    if graph.signed_int8:
        from torchless.exactness import signed_int8_saturates

        if signed_int8_saturates():
            options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def provider_list(provider: Provider, bundle: Bundle, graph: Graph, options: ort.SessionOptions) -> dict[str, Any]:
    """Arguments of InferenceSession that give this provider the graph first, and the CPU what it does not take."""
    given = provider.options
    if isinstance(given, CPU):
        options.enable_cpu_mem_arena = given.arena
        return {"providers": [(CPU.ort_name, given.told())]}
    if isinstance(given, TensorRT):
        from torchless.providers import tensorrt

        beside = CUDA(device_id=given.device_id, memory_limit=given.memory_limit)
        first = (given.ort_name, tensorrt.told(given, bundle, graph))
        return {"providers": [first, (beside.ort_name, beside.told()), CPU.ort_name]}
    if isinstance(given, OpenVINO | Plugin):
        from torchless.providers import plugins

        if not plugins.built_in(given.ort_name):
            plugins.add_provider(options, given)  # and no names: they would win over the devices
            return {}
    return {"providers": [(given.ort_name, given.told()), CPU.ort_name]}


def require(session: HostedSession, bundle: Bundle, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Raise BundleError unless the graph has these inputs and outputs: a manifest that lies about its graph."""
    have = {value.name for value in session.get_inputs()}, {value.name for value in session.get_outputs()}
    missing = [name for name in inputs if name not in have[0]] + [name for name in outputs if name not in have[1]]
    if missing:
        raise BundleError(
            f"the graph of {bundle.path} lacks {', '.join(missing)}, which {bundle.manifest.task} needs: "
            f"{EXPORT_AGAIN}"
        )


def bind(array: npt.NDArray[Any]) -> ort.OrtValue:
    """An OrtValue over the array's own memory: what is written to one is read from the other."""
    return onnxruntime().OrtValue.ortvalue_from_numpy(array)
