"""From a checkpoint that torch trained to a bundle: `export(source, out)`."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import Tokenizer

from torchless.chat import CHAT_TEMPLATE, special_texts
from torchless.chat_form import ChatForm
from torchless.errors import ExportError, InputError
from torchless.export.builder import Builder, Dialect
from torchless.export.carrying import EXACT, CarryingBuilder
from torchless.export.chat_form import read_chat_form
from torchless.export.config import Config
from torchless.export.families import FAMILIES, Facts
from torchless.export.heads import LABELLED, Head
from torchless.export.sources import GENERATION, TOKENIZER, Source, open_source
from torchless.hub_config import labels_of, problem_type_of, read_pooling, special_tokens_of
from torchless.manifest import Graph, Manifest, Pooling
from torchless.tasks import TASKS, unfit
from torchless.writing import new_bundle, seal

if TYPE_CHECKING:
    import torch

__all__ = ["export"]

log = logging.getLogger("torchless")

FILES: dict[Dialect, str] = {"fused": "model.onnx", "standard": "model.standard.onnx"}


def export(
    source: str | os.PathLike[str] | torch.nn.Module,
    out: str | os.PathLike[str],
    *,
    task: str | None = None,
    dialect: Literal["fused", "standard", "all"] = "fused",
    head: str | None = None,
    tokenizer: object = None,
    pooling: str | None = None,
    normalize: bool | None = None,
    context_length: int | None = None,
    precision: Literal["carry", "exact", "fp32"] = "carry",
    check: bool = True,
    overwrite: bool = False,
    exporter: Literal["direct", "optimum"] = "direct",
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write the bundle `out` from a Hugging Face folder, a GGUF file, nanoGPT's ckpt.pt or a live torch
    module, and check it.

    task: one of Hugging Face's names; by default that of the checkpoint's architecture.
    dialect: "fused" for onnxruntime's fused operators, "standard" for plain ONNX, "all" for both.
    head: the name of the last layer, where a module of your own does not call it as its family does.
    tokenizer: for a source that brings none (read_tokenizer says what it may be).
    pooling ("mean", "cls", "max", "lasttoken") and normalize: for embeddings, by default as modules.json says, or
    else the mean, not normalized.
    context_length: the longest text that the bundle will be asked for, in tokens, by default as many as the model
    takes; tables of rotary positions (32 MB for Llama 3.2's 131,072) are written as far as that.
    precision: of a source that is quantized already (GGUF). "carry" keeps its own blocks in the fused graph, and
    rounds what they are multiplied by to 8 bits, as llama.cpp does; "exact" keeps them and multiplies in float32;
    "fp32" computes float32 weights of them, which can be quantized in another way.
    check: compare with torch where torch and transformers are installed, otherwise with the other dialect; the
    error goes into the manifest, and one above 1e-4 of the largest output (of 1 at least) is an ExportError.
    exporter: "optimum" traces the model with optimum-onnx and fuses it with onnxruntime's optimizer, for
    architectures that torchless has no file for (optimum.py); its graph concatenates keys and values.
    progress: called with a line for each stage.

    Returns the bundle's path. Raises ExportError for what cannot be exported and BundleError for what cannot
    be written; nothing is left behind then.
    """
    if dialect not in ("fused", "standard", "all"):
        raise ExportError(f"dialect={dialect!r} is unknown (known: fused, standard, all)")
    if not isinstance(out, str | os.PathLike):
        raise ExportError(f"out is a {type(out).__name__}: give the path of the folder to write")
    if exporter not in ("direct", "optimum"):
        raise ExportError(f"exporter={exporter!r} is unknown (known: direct, optimum)")
    if exporter == "optimum":
        from torchless.export.optimum import export_with_optimum

        own = {
            "head": head, "tokenizer": tokenizer, "pooling": pooling, "normalize": normalize,
            "context_length": context_length, "precision": None if precision == "carry" else precision,
        }  # fmt: skip
        if given := [name for name, value in own.items() if value is not None]:
            raise ExportError(
                f"{', '.join(given)} is for the direct exporter: leave it out with exporter='optimum'"
            )
        tell = progress or (lambda line: None)
        return export_with_optimum(source, out, task=task, check=check, overwrite=overwrite, tell=tell)
    if precision not in ("carry", "exact", "fp32"):
        raise ExportError(f"precision={precision!r} is unknown (known: carry, exact, fp32)")
    opened = open_source(source, tokenizer)
    if precision == "exact" and (opened.folder is not None or opened.module is not None):
        raise ExportError(
            f"precision='exact' is for blocks of a GGUF file, and {opened.where} has none: leave it out"
        )
    if precision == "fp32":
        opened = dataclasses.replace(opened, blocks={}, precision="fp32")
    elif precision == "exact":
        opened = dataclasses.replace(opened, level=EXACT)
    plan = make_plan(opened, task, pooling, normalize, head, context_length)
    opened, tell = with_head(opened, plan), progress or (lambda line: None)
    with new_bundle(out, overwrite=overwrite) as folder:
        manifest = _write(opened, plan, ["fused", "standard"] if dialect == "all" else [dialect], folder, tell)
        if check:
            from torchless.export.parity import check_export

            tell("checking it")
            seal(folder, dataclasses.replace(manifest, parity=check_export(folder, opened, plan)))
    return Path(out)


def _write(
    source: Source, plan: Plan, dialects: list[Dialect], folder: Path, tell: Callable[[str], None]
) -> Manifest:
    """The graphs, the files that go along, and the manifest."""
    made: dict[Dialect, Facts] = {}
    for one in dialects:
        tell(f"writing the {one} graph of {plan.family} for {plan.task}")
        made[one] = write_graph(source, plan, one, folder)
    for name, content in source.files.items():
        (folder / name).write_bytes(content)
    manifest = _manifest(source, plan, made)
    seal(folder, manifest)
    return manifest


@dataclasses.dataclass(frozen=True)
class Plan:
    """What will be written: the family's file, the Hugging Face class and its head, the task, the pooling."""

    family: str  # the config's model_type
    architecture: str  # the class whose head is written, which need not be the checkpoint's own
    head: Head
    task: str  # what the bundle is for; several tasks can share a head
    pooling: Pooling | None
    context_limit: int | None  # shorter than the positions, as sentence-transformers has it
    layer: str | None = None  # what the source calls the head's last layer, if not as its family does
    asked: int | None = None  # a context that the caller asked for

    @property
    def longest(self) -> int | None:
        """The shorter of the two limits."""
        return min((limit for limit in (self.context_limit, self.asked) if limit), default=None)


def with_head(source: Source, plan: Plan) -> Source:
    """The source with the last layer under its family's name."""
    if plan.layer is None:
        return source
    return dataclasses.replace(source, weights=source.weights.with_layer(plan.layer, plan.head.layer))


def write_graph(source: Source, plan: Plan, dialect: Dialect, folder: Path) -> Facts:
    """Write the graph of one dialect into `folder`. A fused one keeps the blocks of a source that has them."""
    module = _family_file(plan.family)
    builder = Builder(dialect)
    if source.blocks and dialect == "fused":
        builder = CarryingBuilder(source.blocks, level=source.level)
    facts: Facts = module.build(
        builder, Config(source.config, limit=plan.longest), source.weights, plan.head, plan.pooling
    )
    file = FILES[dialect]
    # Two dialects hold the same weights but not always in the same form, so each has a data file of its own.
    builder.save(folder, file, f"{file}.data")
    if isinstance(builder, CarryingBuilder):
        return dataclasses.replace(facts, carried=tuple(builder.carried))
    return facts


def _family_file(model_type: str) -> Any:
    return importlib.import_module(f"torchless.export.families.{FAMILIES[model_type].file}")


def make_plan(
    source: Source,
    task: str | None,
    pooling: str | None = None,
    normalize: bool | None = None,
    layer: str | None = None,
    context_length: int | None = None,
) -> Plan:
    """Which head of which class is written for `task`, by default the checkpoint's own."""
    _check_types(task=(task, str), pooling=(pooling, str), normalize=(normalize, bool), head=(layer, str))
    if context_length is not None:
        Config({"context_length": context_length}, "the export").whole("context_length")
    family = source.config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ExportError(
            f"{source.where}: model_type={family!r} is not supported (supported: {', '.join(sorted(FAMILIES))})"
        )
    prefix = FAMILIES[family].prefix
    heads: Mapping[str, Head] = {prefix + name: head for name, head in _family_file(family).HEADS.items()}
    architecture = next((name for name in source.architectures if name in heads), None)
    known = {name for name, other in TASKS.items() if other.head in {head.task for head in heads.values()}}
    if task is None:
        if architecture is None:
            raise ExportError(
                f"{source.where}: the architecture {next(iter(source.architectures), '(none)')} is not supported "
                f"(supported: {', '.join(heads)}); pass task= to export another head of it, and "
                "head= with the name of its last layer if that is one of its own"
            )
        task = heads[architecture].task
    elif task not in known:
        raise ExportError(f"task={task!r} is not supported for {family} (supported: {', '.join(sorted(known))})")
    if architecture is None or heads[architecture].task != TASKS[task].head:
        architecture = next(name for name, head in heads.items() if head.task == TASKS[task].head)
    head = heads[architecture]
    if layer is not None and not head.layer:
        raise ExportError(f"head={layer!r}: {architecture} ends in no layer that could have another name")
    if layer is None and head.task in ANSWERING and not source.weights.holds(head.layer):
        raise ExportError(
            f"{source.where} has no layer {head.layer}, in which a {architecture} ends (it has: "
            f"{', '.join(source.weights.layers)}): train one for {task}, or pass head= with its name"
        )
    if task != "feature-extraction":
        if pooling is not None or normalize is not None:
            raise ExportError(f"pooling and normalize belong to feature-extraction, not to {task}")
        return Plan(family, architecture, head, task, None, None, layer, context_length)
    found = read_pooling(source.folder, ExportError) if source.folder else None
    chosen, limit = found or (Pooling("mean", normalize=False), None)
    mode = chosen.mode if pooling is None else pooling
    chosen = Pooling(mode, chosen.normalize if normalize is None else normalize)
    return Plan(family, architecture, head, task, chosen, limit, asked=context_length)


# Tasks whose last layer is trained for them, and stands under its own name in every checkpoint.
ANSWERING = (*LABELLED, "question-answering", "multiple-choice")


def _check_types(**given: tuple[object, type]) -> None:
    """Each option is None or of its type."""
    for name, (value, kind) in given.items():
        if value is not None and not isinstance(value, kind):
            raise ExportError(f"{name}={value!r} is a {type(value).__name__}, expected a {kind.__name__}")


def _manifest(source: Source, plan: Plan, made: Mapping[Dialect, Facts]) -> Manifest:
    facts = next(iter(made.values()))
    labels, problem = plan.head.labels or None, None
    if facts.labels is not None and labels is None:
        labels = labels_of(source.config, facts.labels, ExportError)
    if plan.head.task == "text-classification":
        problem = problem_type_of(source.config, ExportError)
        if lack := unfit(plan.task, labels or ()):
            raise ExportError(f"{source.where}: {lack}")
    special = _special_tokens(source, facts.vocab_size)
    if plan.asked is not None and plan.asked > facts.context_length:
        raise ExportError(
            f"context_length={plan.asked:,} is more than the {facts.context_length:,} tokens that this model takes"
        )
    graphs = tuple(_graph(source, name, one) for name, one in made.items())
    recipe = graphs[0].recipe
    graphs = (dataclasses.replace(graphs[0], recipe=None), *graphs[1:])
    return Manifest(
        family=plan.family,
        task=plan.task,
        context_length=min(facts.context_length, plan.longest or facts.context_length),
        vocab_size=facts.vocab_size,
        graphs=graphs,
        special_tokens=special,
        labels=labels,
        problem_type=problem,
        cache=facts.cache,
        pooling=plan.pooling,
        token_types=False if facts.segments and source.token_types is False else None,
        segments=facts.segments,
        head=plan.layer,
        chat=_chat_form(source, special) if plan.task == "text-generation" else None,
        recipe=recipe,
    )


def _graph(source: Source, dialect: Dialect, facts: Facts) -> Graph:
    """The manifest's entry; with a recipe where matrices stayed in the source's own blocks."""
    if not facts.carried:
        return Graph(FILES[dialect], dialect, "fp32", providers_of(dialect, facts.cache is not None))
    activations = "float32" if source.level == EXACT else "int8, by block"
    recipe = {"name": f"gguf-{source.precision}", "activations": activations, "carried": list(facts.carried)}
    return Graph(FILES[dialect], dialect, source.precision, ("cpu",), recipe=recipe)


def _chat_form(source: Source, special: Mapping[str, int | list[int]]) -> ChatForm | None:
    """What the runtime needs no jinja2 for; nothing where the template has no such form, or jinja2 is not here."""
    if CHAT_TEMPLATE not in source.files or TOKENIZER not in source.files:
        return None
    texts = special_texts(special, Tokenizer.from_str(source.files[TOKENIZER].decode("utf-8")))
    try:
        return read_chat_form(source.files[CHAT_TEMPLATE].decode("utf-8"), texts)
    except InputError as missing:
        log.info("the chat template stays with jinja2: %s", missing)
        return None


def providers_of(dialect: Dialect, decodes: bool) -> tuple[str, ...]:
    """Those that take a float32 graph of this dialect whole, or all but some arithmetic of shapes.

    CUDA has kernels for a decoder's fused attention in float16 only. CoreML knows few operators, and none of them
    that others do not.
    """
    if dialect == "standard":
        return ("openvino", "tensorrt", "cuda", "directml", "coreml", "cpu")
    return ("cpu", "directml") if decodes else ("cpu", "cuda", "directml")


def _special_tokens(source: Source, vocab_size: int) -> dict[str, int | list[int]]:
    generation = json.loads(source.files.get(GENERATION, b"{}"))
    tokenizer = source.files[TOKENIZER].decode("utf-8") if TOKENIZER in source.files else None
    return special_tokens_of(source.config, generation, source.tokenizer_config, tokenizer, vocab_size)
