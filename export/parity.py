"""A bundle against what it was made from: torch where it is installed, else the other dialect's graph."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import inspect
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchless.bundle import Bundle, read_bundle
from torchless.errors import ExportError
from torchless.export.carrying import EXACT
from torchless.manifest import Graph, Manifest, Pooling
from torchless.probe import TOLERANCE, Float, Probe, largest, max_error, record, run_probe
from torchless.writing import seal

if TYPE_CHECKING:
    from torchless.export import Plan
    from torchless.export.builder import Dialect
    from torchless.export.sources import Source


def check_export(folder: Path, source: Source, plan: Plan) -> dict[str, Any]:
    """Compare every graph in the sealed `folder` with its source; the parity record, or an ExportError."""
    bundle = read_bundle(folder)
    probe = Probe.make(bundle.manifest, segments=int(source.config.get("type_vocab_size") or 1))
    if has_torch():
        causal = bundle.manifest.cache is not None
        against, reference = _torch_name(), run_torch(source, plan, probe, causal=causal)
    else:
        against, reference = _other_dialect(bundle, source, plan, probe)
    worst, outputs = 0.0, reference
    exact: dict[str, float] = {}
    for graph in bundle.manifest.graphs:
        outputs = run_probe(bundle, graph, probe)
        error = max_error(outputs, reference)
        worst = max(worst, error)
        if graph.precision != "fp32" and source.level != EXACT:  # its own error says nothing of its weights
            error = max_error(_exactly(bundle, source, plan, probe), reference)
            exact = {"exact_max_abs_error": error}
        if not error <= TOLERANCE * max(1.0, largest(reference)):
            raise ExportError(f"{graph.file} differs from {against} by {error:.2g}: {_reason(source, plan)}")
    return record(against, probe, outputs, worst) | exact


def _exactly(bundle: Bundle, source: Source, plan: Plan, probe: Probe) -> list[Float]:
    """What the carried blocks give where nothing that they are multiplied by is rounded."""
    from torchless.export import FILES, write_graph

    with tempfile.TemporaryDirectory(prefix="torchless-") as scratch:
        folder = Path(scratch)
        write_graph(dataclasses.replace(source, level=EXACT), plan, "fused", folder)
        graph = Graph(FILES["fused"], "fused", source.precision, ("cpu",))
        seal(folder, dataclasses.replace(bundle.manifest, graphs=(graph,), files={}))
        return run_probe(read_bundle(folder), graph, probe)


def _reason(source: Source, plan: Plan) -> str:
    """Why a graph may compute something else than torch."""
    if source.module is None:
        return "this checkpoint is not exported as it stands, please report its config.json"
    kind = type(source.module).__name__
    own = "" if kind == plan.architecture else f" (or the forward of {kind}, if it has one of its own)"
    return (
        f"what this module computes{own} is not {plan.architecture}'s body and head, which were exported: only a "
        "last layer may differ, by its name (head=)"
    )


def compare(bundle: Bundle, checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """Run `bundle` and the checkpoint in torch on the probe; the parity record, whatever the error.

    Raises ExportError where torch and transformers are missing.
    """
    if not has_torch():
        raise ExportError("comparing with a checkpoint needs torch: pip install 'torchless[export,torch]'")
    from torchless.export import make_plan, with_head
    from torchless.export.sources import open_source

    manifest = bundle.manifest
    source = open_source(checkpoint, bundle.file("tokenizer.json") if bundle.has("tokenizer.json") else None)
    theirs = source.config.get("model_type"), source.config.get("vocab_size")
    if theirs != (manifest.family, manifest.vocab_size):
        raise ExportError(
            f"{source.where} is a {theirs[0]} with a vocabulary of {theirs[1]}, {bundle.path} a "
            f"{manifest.family} with {manifest.vocab_size}: give the checkpoint that it was made from"
        )
    probe = Probe.make(manifest, segments=int(source.config.get("type_vocab_size") or 1), seed=1)
    plan = dataclasses.replace(make_plan(source, manifest.task, layer=manifest.head), pooling=manifest.pooling)
    reference = run_torch(with_head(source, plan), plan, probe, causal=manifest.cache is not None)
    outputs = run_probe(bundle, bundle.manifest.graphs[0], probe)
    return record(_torch_name(), probe, outputs, max_error(outputs, reference))


def has_torch() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


def run_torch(source: Source, plan: Plan, probe: Probe, *, causal: bool) -> list[Float]:
    """What the original model computes for each row alone, in float32, shaped as run_probe has it."""
    import torch

    model = _torch_model(source, plan)
    outputs: list[Float] = []
    with torch.no_grad():
        for ids, types in zip(probe.input_ids, probe.token_type_ids, strict=True):
            row = torch.tensor([ids])
            if causal:
                outputs.append(_causal_answer(model, plan, row))
            else:
                outputs.append(_answer(model, plan, row, torch.tensor([types])))
    return outputs


def _causal_answer(model: Any, plan: Plan, ids: Any) -> Float:
    """One row's output of a decoder at each of its tokens: [S,V] of words, [S,L] of a text, [S,1] of a choice."""
    if plan.head.task == "text-generation":
        answer = _run(model, {"input_ids": ids})
        logits = _logits(answer, "logits")
        if logits is None:  # a bare GPT, with its own embedding for a head
            logits = answer.last_hidden_state @ model.get_input_embeddings().weight.T
        words: Float = logits[0].numpy()
        return words
    name = "mc_logits" if plan.head.task == "multiple-choice" else "logits"
    model.config.pad_token_id = None  # a last token is the last one here, whichever it is
    rows: list[Float] = []
    for length in range(1, ids.shape[1] + 1):  # it answers at a text's end, so the text ends at each of its tokens
        logits = _logits(_run(model, {"input_ids": ids[:, :length]}), name)
        if logits is None:
            raise ExportError(f"the forward of this {type(model).__name__} gives no {name}: {NOT_CHECKED}")
        rows.append(logits.reshape(-1).numpy())
    return np.stack(rows)


NOT_CHECKED = "it cannot be compared with its export; check=False exports it unchecked"


def _run(model: Any, given: dict[str, Any]) -> Any:
    try:
        return model(**given)
    except Exception as error:
        raise ExportError(
            f"the forward of this {type(model).__name__} fails with {' and '.join(given)} "
            f"({type(error).__name__}: {error}): {NOT_CHECKED}"
        ) from error


def _logits(answer: Any, name: str) -> Any:
    """The logits in what a forward gives: an output of transformers, a dict, a tuple that begins with them."""
    import torch

    if isinstance(answer, torch.Tensor):
        return answer
    if isinstance(answer, dict):  # an output of transformers is one, too
        return answer.get(name)
    return answer[0] if isinstance(answer, tuple) and answer and isinstance(answer[0], torch.Tensor) else None


def _answer(model: Any, plan: Plan, ids: Any, types: Any) -> Float:
    """One row's output of an encoder: [S,V] of words, [S,L] of tokens, [S,2] of spans, [L] of a text, [D]."""
    import torch

    given = {"input_ids": ids}
    if "token_type_ids" in inspect.signature(model.forward).parameters:
        given["token_type_ids"] = types
    if plan.head.task == "multiple-choice":
        given = {name: value[:, None] for name, value in given.items()}  # one choice
    answer = _run(model, given)
    if plan.head.task == "feature-extraction":
        return _pooled(answer.last_hidden_state[0].numpy(), plan.pooling)
    if plan.head.task == "question-answering":
        logits = torch.stack([answer.start_logits, answer.end_logits], dim=-1)
    elif hasattr(answer, "prediction_logits"):  # the masked-word head of two
        logits = answer.prediction_logits
    elif (logits := _logits(answer, "logits")) is None:
        raise ExportError(f"the forward of this {type(model).__name__} gives no logits: {NOT_CHECKED}")
    elif logits.ndim == 2 and plan.head.task == "token-classification":  # ELECTRA's: one score, of "replaced"
        logits = torch.stack([torch.zeros_like(logits), logits], dim=-1)
    result: Float = logits[0].numpy()
    return result


def _torch_model(source: Source, plan: Plan) -> Any:
    import torch
    import transformers

    if source.module is not None:
        model = copy.deepcopy(source.module).to("cpu", torch.float32)
        words = plan.head.task == "text-generation" and hasattr(model, "get_output_embeddings")
        if plan.head.task == "feature-extraction" or (words and model.get_output_embeddings() is None):
            model = getattr(model, "base_model", model)  # the module's own head is another
        return model.eval()
    quiet = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()  # a line for a load of milliseconds
    try:
        kind = getattr(transformers, plan.architecture)
        readable = source.folder is not None and any(source.folder.glob("model*.safetensors*"))
        if not readable or plan.layer is not None:
            return _filled(kind(transformers.AutoConfig.for_model(**source.config)), source, plan)
        return kind.from_pretrained(str(source.folder), dtype=torch.float32, local_files_only=True).eval()
    except ExportError:  # of a tensor
        raise
    except Exception as error:  # a config that contradicts itself or its weights, each in its own way
        said = next(iter(str(error).splitlines()), "")
        raise ExportError(
            f"{source.where}: transformers makes no {plan.architecture} of it ({type(error).__name__}: {said}): "
            "mend its config.json"
        ) from error
    finally:
        transformers.utils.logging.set_verbosity(quiet)
        transformers.utils.logging.enable_progress_bar()


def _filled(model: Any, source: Source, plan: Plan) -> Any:
    """The model with the tensors as they were read, for checkpoints that transformers itself cannot load."""
    import torch

    weights = source.weights.renamed([(r"\.gamma$", ".weight"), (r"\.beta$", ".bias")])
    state = {name: torch.from_numpy(array).float() for name, array in weights.everything().items()}
    bias = state.get(f"{plan.head.layer}.bias")
    if plan.layer is not None and bias is not None:  # one's own layer often has one where the family's has none
        model.get_submodule(plan.head.layer).bias = torch.nn.Parameter(bias)
    for target in (model, model.base_model):  # names come with the body's prefix, or without
        target.load_state_dict(state, strict=False)
    return model.float().eval()


def _pooled(tokens: Float, pooling: Pooling | None) -> Float:
    """[S,D] -> [D], the reference in numpy for pooling.pool."""
    assert pooling is not None
    modes = {"mean": tokens.mean(axis=0), "cls": tokens[0], "max": tokens.max(axis=0), "lasttoken": tokens[-1]}
    vector = modes[pooling.mode]
    length = max(float(np.linalg.norm(vector)), 1e-12) if pooling.normalize else 1.0
    result: Float = vector / np.float32(length)
    return result


def _torch_name() -> str:
    import torch
    import transformers

    return f"transformers {transformers.__version__} on torch {torch.__version__}"


def _other_dialect(bundle: Bundle, source: Source, plan: Plan, probe: Probe) -> tuple[str, list[Float]]:
    from torchless.export import FILES, write_graph

    have = {graph.dialect for graph in bundle.manifest.graphs}
    other: Dialect = "standard" if "fused" in have else "fused"
    with tempfile.TemporaryDirectory(prefix="torchless-") as scratch:
        folder = Path(scratch)
        facts = write_graph(source, plan, other, folder)
        graph = Graph(FILES[other], other, "fp32", ("cpu",))
        labels = tuple(f"LABEL_{i}" for i in range(facts.labels or 0))
        sizes = facts.context_length, facts.vocab_size
        seal(folder, Manifest(plan.family, plan.task, *sizes, (graph,), cache=facts.cache, labels=labels))
        # As it is written: onnxruntime would fuse the standard graph into the other one, which then checks itself.
        outputs = run_probe(read_bundle(folder), graph, probe, optimize=False)
    return f"the {other} dialect in onnxruntime (torch was not installed)", outputs
