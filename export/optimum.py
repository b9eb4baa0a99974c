"""The second exporter: whatever Hugging Face optimum can trace, then fused by onnxruntime's transformer optimizer.

For architectures that have no file in families/. optimum-onnx 0.1 wants transformers below 4.58, so it lives in an
environment of its own: pip install "torchless[cpu,optimum]".
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.adopting import copy_into
from torchless.bundle import Bundle
from torchless.errors import ExportError
from torchless.foreign import HEADS, read_foreign
from torchless.hub_config import read_object
from torchless.manifest import Manifest
from torchless.pooling import pool
from torchless.probe import TOLERANCE, Probe, largest, max_error, record, run_probe
from torchless.tasks import TASKS
from torchless.writing import new_bundle, seal

Float = npt.NDArray[np.float32]

MISSING = (
    "the second exporter needs optimum-onnx, which wants transformers below 4.58: make an environment of its own "
    "and pip install 'torchless[cpu,optimum]' there"
)
WITH_PAST = "text-generation-with-past"
# What onnxruntime's optimizer calls the layouts that it knows; it looks for their patterns in any other as well.
FUSED_AS = {"gpt2": "gpt2", "gpt_neo": "gpt2", "openai-gpt": "gpt2"}


def export_with_optimum(
    source: Any,
    out: str | os.PathLike[str],
    *,
    task: str | None,
    check: bool,
    overwrite: bool,
    tell: Callable[[str], None],
) -> Path:
    """Trace a Hugging Face folder, fuse the graph where that changes no number, compare with torch, write a bundle.

    Raises ExportError for a source, a task or an architecture that optimum does not take, and for a graph that
    differs from torch by more than 1e-4 of its largest output (of 1 at least).
    """
    if not isinstance(source, str | os.PathLike) or not Path(source).is_dir():
        raise ExportError(f"exporter='optimum' takes the folder of a Hugging Face checkpoint, not {source!r}")
    folder = Path(source)
    config = read_object(folder / "config.json", ExportError)
    with tempfile.TemporaryDirectory(prefix="torchless-") as scratch:
        made = Path(scratch) / "optimum"
        tell(f"tracing the {config.get('model_type', 'model')} with optimum")
        _trace(folder, made, task or _task_of(config, folder))
        _complete(folder, made)
        traced = read_foreign(made, task=task)
        probe = Probe.make(traced.manifest, traced.manifest.segments or 1)
        found = run_probe(traced, traced.manifest.graphs[0], probe)
        tell("fusing its operators")
        fused = _fuse(traced, config, probe, found, tell)
        with new_bundle(out, overwrite=overwrite) as new:
            manifest = copy_into(fused, new)
            if check:
                tell("checking it")
                manifest = dataclasses.replace(manifest, parity=_parity(Bundle(new, manifest), folder, probe))
            seal(new, manifest)
    return Path(out)


def _task_of(config: dict[str, Any], folder: Path) -> str:
    """By the architecture: optimum infers it for models of the hub only."""
    named = config.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else ""
    if name.endswith("Model") and not name.endswith("LMHeadModel"):
        return "feature-extraction"
    found = next((task for suffix, task in HEADS.items() if name.endswith(suffix)), None)
    if found is None:
        raise ExportError(
            f"{folder}: the architecture {name or '(none)'} does not say its task: pass task= (--task)"
        )
    return found


def _trace(folder: Path, made: Path, task: str) -> None:
    try:
        from optimum.exporters.onnx import main_export
    except ImportError as error:
        raise ExportError(f"{MISSING} ({error})") from None
    head = TASKS[task].head if task in TASKS else task
    asked = WITH_PAST if head == "text-generation" else head
    try:
        with _quiet():
            main_export(str(folder), made, task=asked, do_validation=False)
    except Exception as error:  # of every kind that torch, transformers and optimum raise
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise ExportError(f"optimum cannot export {folder} as {asked}: {reason}") from error


def _complete(folder: Path, made: Path) -> None:
    """The checkpoint's small files that optimum has not written again."""
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "modules.json"):
        if (folder / name).is_file() and not (made / name).exists():
            (made / name).write_bytes((folder / name).read_bytes())
    for below in folder.glob("[0-9]_*"):
        if (below / "config.json").is_file():
            (made / below.name).mkdir(exist_ok=True)
            (made / below.name / "config.json").write_bytes((below / "config.json").read_bytes())


def _fuse(
    traced: Bundle, config: dict[str, Any], probe: Probe, found: list[Float], tell: Callable[[str], None]
) -> Bundle:
    """The same with onnxruntime's fused operators, if it then still computes the same; else as it was traced."""
    graph = traced.manifest.graphs[0]
    path = traced.file(graph.file)
    try:
        from onnxruntime.transformers.fusion_options import FusionOptions
        from onnxruntime.transformers.optimizer import optimize_model
    except ImportError as error:
        raise ExportError(f"{MISSING} ({error})") from None
    kind = FUSED_AS.get(str(config.get("model_type")), "bert")
    heads = next(
        (config[name] for name in ("num_attention_heads", "n_head", "n_heads", "num_heads") if name in config), 0
    )
    width = next((config[name] for name in ("hidden_size", "n_embd", "dim") if name in config), 0)
    options = FusionOptions(kind)
    options.enable_skip_layer_norm = False  # slower on the CPU than the two operators (docs/performance.md)
    options.enable_embed_layer_norm = False
    target = path.with_name("model_optimized.onnx")
    try:
        with _quiet():
            model = optimize_model(
                str(path), kind, num_heads=heads, hidden_size=width, optimization_options=options, opt_level=0,
                only_onnxruntime=False,
            )  # fmt: skip
            model.save_model_to_file(str(target), use_external_data_format=path.stat().st_size > 1 << 30)
        fused = read_foreign(path.parent, task=traced.manifest.task, file=target.name)
        moved = max_error(run_probe(fused, fused.manifest.graphs[0], probe), found)
    except Exception as reason:  # an optimizer of patterns fails in its own ways; the traced graph is sound
        tell(f"kept as traced: the optimizer failed ({type(reason).__name__})")
        return traced
    if not moved <= TOLERANCE * max(1.0, largest(found)):
        tell(f"kept as traced: the fused graph differs by {moved:.2g}")
        return traced
    kinds = Counter(node.op_type for node in model.model.graph.node if node.domain)
    tell(f"fused: {', '.join(f'{count} {name}' for name, count in kinds.most_common()) or 'nothing'}")
    return fused


def _parity(bundle: Bundle, folder: Path, probe: Probe) -> dict[str, Any]:
    """The manifest's record of how far the graph is from transformers' own model, or an ExportError."""
    import torch
    import transformers

    manifest = bundle.manifest
    name = str(read_object(folder / "config.json", ExportError).get("architectures", [""])[0])
    with _quiet():
        model = getattr(transformers, name, transformers.AutoModel).from_pretrained(str(folder)).eval()
        reference = []
        with torch.no_grad():
            for ids, types in zip(probe.input_ids, probe.token_type_ids, strict=True):
                given = {"input_ids": torch.tensor([ids])}
                if manifest.segments:
                    given["token_type_ids"] = torch.tensor([types])
                reference.append(_answer(model(**given), manifest))
    outputs = run_probe(bundle, manifest.graphs[0], probe)
    error = max_error(outputs, reference)
    against = f"torch {torch.__version__}, transformers {transformers.__version__}"
    if not error <= TOLERANCE * max(1.0, largest(reference)):
        raise ExportError(
            f"what optimum has traced differs from {against} by {error:.2g}: it cannot be exported so"
        )
    return record(against, probe, outputs, error)


def _answer(answer: Any, manifest: Manifest) -> Float:
    """One row's output, shaped as run_probe has it."""
    if "start_logits" in answer:
        found = np.stack([answer.start_logits[0].numpy(), answer.end_logits[0].numpy()], axis=-1)
    elif manifest.pooling is not None:
        states = answer.last_hidden_state.numpy()
        found = pool(states, np.ones(states.shape[:2], np.int64), manifest.pooling)[0]
    else:
        found = answer.logits[0].numpy()
    return np.asarray(found, np.float32)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tracing tells of every shape that it fixes, on every channel there is."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
