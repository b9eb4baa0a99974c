"""Folders that optimum, sentence-transformers and transformers.js have exported, as they lie (docs/foreign.md).

There is no manifest, so one is made: the task from the graph's own inputs and outputs and the architecture of
config.json, sizes from the graph, labels and special tokens from the JSON files. No file is hashed: there
is nothing to compare with.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from torchless.bundle import Bundle, lies_within
from torchless.errors import BundleError, InputError
from torchless.external import locations
from torchless.hub_config import labels_of, problem_type_of, read_object, read_pooling, special_tokens_of
from torchless.manifest import CacheLayout, FileEntry, Graph, Manifest, Pooling
from torchless.protobuf import mapped
from torchless.signature import FLOAT, FLOAT16, Signature, read_signature
from torchless.tasks import TASKS
from torchless.text import TOKENIZER

FOLDERS = ("", "onnx")  # where optimum and transformers.js put their graphs
# A graph's name is one of these, then what was done to it; the first that is there is taken.
STEMS = ("model", "decoder_model_merged", "decoder_with_past_model", "decoder_model")
PRECISIONS = {
    "": "fp32",
    "optimized": "fp32",
    "fp16": "fp16",
    "quantized": "int8",
    "int8": "int8",
    "uint8": "int8",
    "qint8": "int8",
    "quint8": "int8",
    "q8": "int8",
    "q4f16": "int4",
    "q4": "int4",
    "bnb4": "int4",
}
PROVIDERS = ("cpu", "cuda", "openvino", "directml", "coreml")
COMPANIONS = (".json", ".txt", ".model", ".jinja", ".md")
HEADS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForMultipleChoice": "multiple-choice",
    "ForNextSentencePrediction": "next-sentence-prediction",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
}
CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length", "max_seq_len")
# Their positions begin behind the padding token's, MPNet's behind 1.
AFTER_PADDING = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "roberta-prelayernorm",
    "xlm-roberta-xl",
    "xmod",
    "data2vec-text",
)
PAST = re.compile(r"past_key_values\.(\d+)\.(?:decoder\.)?key")
STATES = ("last_hidden_state", "token_embeddings")
LARGEST_CONTEXT = 1 << 24


def graphs_in(folder: Path) -> list[Graph]:
    """The graphs of a folder that has no manifest, the one to take by default first."""
    places = [folder / below for below in FOLDERS]
    return ranked(path.relative_to(folder).as_posix() for place in places for path in place.glob("*.onnx"))


def ranked(names: Iterable[str]) -> list[Graph]:
    """Those of a folder's files that are graphs of a text model, the one to take by default first."""
    found: list[tuple[tuple[int, int, int, str], Graph]] = []
    for name in names:
        path = PurePosixPath(name)
        below = "" if path.parent == PurePosixPath(".") else path.parent.as_posix()
        stem = next((one for one in STEMS if re.fullmatch(rf"{one}(?:_.+)?", path.stem)), None)
        if path.suffix != ".onnx" or below not in FOLDERS or stem is None:
            continue
        how = path.stem.removeprefix(stem).lstrip("_").lower()
        kind = how if how in PRECISIONS else how.partition("_")[0]
        precision = PRECISIONS.get(kind, "fp32" if re.fullmatch(r"o[1-4]", kind) else how)
        known = list(PRECISIONS).index(kind) if kind in PRECISIONS else len(PRECISIONS)
        rank = STEMS.index(stem), known, FOLDERS.index(below), name
        providers = PROVIDERS if precision in ("fp32", "fp16") else ("cpu",)
        found.append((rank, Graph(name, "foreign", precision, providers, signed_int8=precision == "int8")))
    return [graph for _, graph in sorted(found, key=lambda one: one[0])]


def read_foreign(folder: Path, *, task: str | None = None, file: str | None = None) -> Bundle:
    """Raises BundleError for what is missing or does not fit together, InputError for a wrong task or file."""
    graphs = _choose(folder, graphs_in(folder), file)
    config = read_object(folder / "config.json", BundleError)
    path = folder / graphs[0].file
    try:
        signature = read_signature(path)
        external = locations(mapped(path))
    except (OSError, ValueError, IndexError) as error:
        raise BundleError(f"{path} is not an ONNX graph ({error}): download it again") from None
    found = task_of(config, signature, folder)
    if task is not None and task != found:
        able = [name for name, other in TASKS.items() if other.head == TASKS[found].head]
        if task not in able:
            raise InputError(f"task={task!r}: {path} has a head for {found} (it can do: {', '.join(able)})")
        found = task
    files = _files(folder, [graph.file for graph in graphs], graphs[0].file, external)
    return Bundle(folder, _manifest(folder, config, signature, found, graphs, files))


def _choose(folder: Path, graphs: Sequence[Graph], file: str | None) -> list[Graph]:
    """The graphs, with the one that is meant first."""
    if file is None:
        return list(graphs)
    named = [
        one for one in graphs if file in (one.file, PurePosixPath(one.file).name, PurePosixPath(one.file).stem)
    ]
    if len(named) != 1:
        raise InputError(f"file={file!r}: {folder} has {', '.join(graph.file for graph in graphs)}")
    return [*named, *(one for one in graphs if one is not named[0])]


def task_of(config: Mapping[str, Any], signature: Signature, folder: Path) -> str:
    """What the graph is for: its own inputs and outputs decide, the architecture where they leave it open."""
    inputs, outputs = signature.inputs, signature.outputs
    named = config.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else ""
    by_name = next((task for suffix, task in HEADS.items() if name.endswith(suffix)), None)
    if any(PAST.fullmatch(one) for one in inputs):
        return "text-generation"
    if {"start_logits", "end_logits"} <= set(outputs):
        return "question-answering"
    if "sentence_embedding" in outputs or any(one in outputs for one in STATES):
        return "feature-extraction"
    if "logits" not in outputs:
        raise BundleError(
            f"{folder}: a graph with the outputs {', '.join(list(outputs)[:6])} is for no task that torchless knows"
        )
    if by_name == "text-generation":
        raise BundleError(
            f"{folder}: the decoder's graph takes no past_key_values, so every token would read the whole text "
            "again: export it with them (optimum's task text-generation-with-past), or the checkpoint with "
            "`torchless export`"
        )
    rank = len(outputs["logits"].shape)
    fits = {2: ("text-classification", "multiple-choice", "next-sentence-prediction"),
            3: ("token-classification", "fill-mask")}.get(rank, ())  # fmt: skip
    if by_name in fits:
        assert by_name is not None
        return by_name
    if rank == 2:
        return "text-classification"
    words = outputs["logits"].shape[-1:] == (config.get("vocab_size"),)
    return "fill-mask" if words else "token-classification"


def _manifest(
    folder: Path, config: Mapping[str, Any], signature: Signature, task: str, graphs: Sequence[Graph],
    files: Mapping[str, FileEntry],
) -> Manifest:  # fmt: skip
    head, logits = TASKS[task].head, signature.outputs.get("logits")
    columns = logits.shape[-1] if logits is not None and logits.shape else None
    vocab = config.get("vocab_size")
    if head in ("fill-mask", "text-generation") and isinstance(columns, int):
        vocab = columns  # some pad the table, and some configs are of before a token was added
    if type(vocab) is not int or vocab < 1:
        raise BundleError(f"{folder}/config.json: vocab_size is {vocab!r}, expected a whole number of 1 or more")
    labels = None
    if head in ("text-classification", "token-classification", "next-sentence-prediction"):
        wanted = columns if isinstance(columns, int) else len(config.get("id2label") or (0, 1))
        labels = labels_of(config, wanted, BundleError)
    pooled = read_pooling(folder, BundleError)
    stated, limit = pooled or (Pooling("mean", normalize=False), None)
    pooling = None
    if head == "feature-extraction":
        pooling = dataclasses.replace(stated, inside="sentence_embedding" in signature.outputs)
    tokenizer = folder / TOKENIZER
    try:
        text = tokenizer.read_text(encoding="utf-8") if tokenizer.is_file() else None
        special = special_tokens_of(
            config,
            _optional(folder, "generation_config.json"),
            _optional(folder, "tokenizer_config.json"),
            text,
            vocab,
        )
    except Exception as error:  # the tokenizers library raises bare Exception
        raise BundleError(f"{tokenizer} cannot be read ({error}): download it again") from None
    segments = config.get("type_vocab_size")
    return Manifest(
        family=str(config.get("model_type", "unknown")),
        task=task,
        context_length=_context(folder, config, limit),
        vocab_size=vocab,
        graphs=tuple(graphs),
        special_tokens=special,
        labels=labels,
        problem_type=problem_type_of(config, BundleError) if head == "text-classification" else None,
        cache=_cache(folder, signature) if head == "text-generation" else None,
        pooling=pooling,
        segments=segments
        if type(segments) is int and segments > 0 and "token_type_ids" in signature.inputs
        else None,
        files=files,
    )


def _cache(folder: Path, signature: Signature) -> CacheLayout:
    pasts = {int(found[1]): name for name in signature.inputs if (found := PAST.fullmatch(name))}
    shape = signature.inputs[pasts[min(pasts)]].shape
    if (
        len(shape) != 4
        or not isinstance(shape[1], int)
        or not isinstance(shape[3], int)
        or set(pasts) != {*range(len(pasts))}
    ):
        raise BundleError(
            f"{folder}: past_key_values are {list(shape)}, expected [batch, heads, length, size] with heads and "
            "size fixed: export the model again"
        )
    if signature.inputs[pasts[0]].type not in (FLOAT, FLOAT16):
        raise BundleError(f"{folder}: past_key_values are neither float32 nor float16: export the model again")
    return CacheLayout(len(pasts), shape[1], shape[3], shared=False)


def _context(folder: Path, config: Mapping[str, Any], limit: int | None) -> int:
    """The longest text in tokens: the least of what the config, the tokenizer and sentence-transformers say."""
    family = config.get("model_type")
    told = [config[name] for name in CONTEXT if name in config]
    if told and type(told[0]) is int and family in AFTER_PADDING:
        padding = config.get("pad_token_id")
        told = [told[0] - (padding if type(padding) is int else 1) - 1]
    elif told and type(told[0]) is int and family == "mpnet":
        told = [told[0] - 2]
    told += [limit, _optional(folder, "tokenizer_config.json").get("model_max_length")]
    sound = [one for one in told if type(one) is int and 0 < one <= LARGEST_CONTEXT]
    if not sound:
        raise BundleError(f"{folder}: neither config.json nor tokenizer_config.json says how long a text may be")
    return min(sound)


def _optional(folder: Path, name: str) -> dict[str, Any]:
    return read_object(folder / name, BundleError) if (folder / name).is_file() else {}


def _files(folder: Path, graphs: Sequence[str], chosen: str, external: set[str]) -> dict[str, FileEntry]:
    """What belongs to the model, by path: the graphs, the chosen one's weights, and the small files beside them."""
    names = {
        path.relative_to(folder).as_posix()
        for below in (folder, *(one for one in folder.glob("[0-9]*_*") if one.is_dir()))
        for path in below.iterdir()
        if path.suffix in COMPANIONS and path.is_file()
    } | set(graphs)
    for location in external:
        names.add(os.path.normpath((PurePosixPath(chosen).parent / location).as_posix()))
    return {name: FileEntry(_size(folder, name), "") for name in sorted(names)}


def _size(folder: Path, name: str) -> int:
    """Bytes of a file that lies in the folder, or, in a snapshot of the hub's cache, where its links lead."""
    path = folder / name
    try:
        real = path.resolve()
        if not lies_within(path, folder):
            raise BundleError(f"{path} leads out of the folder: do not trust this model")
        if not real.is_file():
            raise BundleError(f"{path} is missing: download it again")
        return real.stat().st_size
    except (OSError, RuntimeError, ValueError):
        raise BundleError(f"{path} is missing: download it again") from None
