"""The numbers of parity.py: what a graph computes, beside what torch computes for each row alone."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_models import Subject
from parity_tasks import LONG, PAIRS, TEXTS

from torchless.bundle import Bundle, read_bundle
from torchless.decoder import Decoder
from torchless.encoder import Encoder
from torchless.hosted import HostedSession
from torchless.providers import choose_provider
from torchless.session import open_session
from torchless.tasks import TASKS

DIALECTS = ("fused", "standard")
BATCH = 8  # rows of a ragged batch
STEPS = 32  # tokens that a batch of GPT rows goes on for, one by one

Row = tuple[list[int], list[int]]  # ids and segments
Measured = dict[str, Any]


def make_rows(subject: Subject) -> list[Row]:
    """Real texts of unlike length: one token, a sentence, a mail, a pair, and as many tokens as the model takes.

    Trained weights, whose outputs are larger, read many long texts: a few rows may miss the worst one.
    """
    pairs = subject.tokenizer("a", "b")["input_ids"] != subject.tokenizer("ab")["input_ids"]
    long = (" ".join(TEXTS * 4),)
    more = [(text,) for text in LONG] if subject.trained else []
    rows = []
    for text in ((TEXTS[0],), (TEXTS[-1],), PAIRS[0] if pairs else TEXTS[1:2], long, *more):
        given = subject.tokenizer(*text, truncation=True, max_length=subject.model.config.max_position_embeddings)
        limit = subject.tokenizer.model_max_length
        ids = given["input_ids"][:limit]
        rows.append((ids, given.get("token_type_ids", [0] * len(ids))[:limit]))
    return [(rows[0][0][:1], [0]), *rows]


def in_torch(subject: Subject, task: str, row: Row, *, normalized: bool) -> Any:
    """What the model computes for a row alone: [S,V], [S,L], [S,2], [L], [1], or [S+1,D] with the text's vector."""
    given = {"input_ids": torch.tensor([row[0]])}
    if "token_type_ids" in subject.tokenizer.model_input_names:
        given["token_type_ids"] = torch.tensor([row[1]])
    double = subject.cls.endswith("DoubleHeadsModel")
    if task == "multiple-choice":
        given = {name: value[None] for name, value in given.items()}
    answer = subject(given)
    if task == "question-answering":
        return torch.stack([answer.start_logits, answer.end_logits], -1)[0].numpy()
    if task == "feature-extraction":
        vector = answer.last_hidden_state[0].mean(0)
        vector = torch.nn.functional.normalize(vector, dim=0) if normalized else vector
        return torch.cat([answer.last_hidden_state[0], vector[None]]).numpy()
    if task == "text-generation" and "logits" not in answer:  # a bare GPT, whose head is its own embedding
        return (answer.last_hidden_state @ subject.model.get_input_embeddings().weight.detach().T)[0].numpy()
    name = "mc_logits" if double else "prediction_logits" if "prediction_logits" in answer else "logits"
    logits = answer[name].reshape(-1) if task == "multiple-choice" else answer[name][0]
    if subject.cls == "ElectraForPreTraining":  # one score a token, of its being replaced
        logits = torch.stack([torch.zeros_like(logits), logits], -1)
    return logits.numpy()


def in_graph(graph: Opened, rows: list[Row]) -> list[Any]:
    """The same for all rows as one batch."""
    if graph.bundle.manifest.task == "text-generation":
        return generated(Decoder(graph.session, graph.bundle), [ids for ids, _ in rows])
    shape = len(rows), max(len(ids) for ids, _ in rows)
    ids = np.full(
        shape, graph.bundle.manifest.vocab_size - 1
    )  # padding that would change the answer, if it were seen
    mask, types = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for i, (tokens, segments) in enumerate(rows):
        ids[i, : len(tokens)], types[i, : len(tokens)], mask[i, : len(tokens)] = tokens, segments, 1
    if graph.bundle.manifest.task == "feature-extraction":
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        given = {value.name: feeds[value.name] for value in graph.session.get_inputs()}
        states, vectors = graph.session.run(["last_hidden_state", "sentence_embedding"], given)
        lengths = [len(tokens) for tokens, _ in rows]
        return [np.concatenate([s[:n], v[None]]) for s, n, v in zip(states, lengths, vectors, strict=True)]
    outputs = Encoder(graph.session, graph.bundle, *TASKS[graph.bundle.manifest.task].outputs).run(ids, mask, types)
    return [one if outputs.ndim == 2 else one[: len(row[0])] for one, row in zip(outputs, rows, strict=True)]


def generated(decoder: Decoder, rows: list[list[int]]) -> list[Any]:
    """Logits [S,V] of each row: a single row is read at once, the last STEPS tokens of several one by one."""
    cache = decoder.new_cache(len(rows))
    heads = [len(row) if len(rows) == 1 else max(1, len(row) - STEPS) for row in rows]
    logits = [
        list(decoder.extend(cache, row[:head], row=i, keep=range(head)))
        for i, (row, head) in enumerate(zip(rows, heads, strict=True))
    ]
    step = decoder.stepper(cache)
    for ahead in range(max(len(row) - head for row, head in zip(rows, heads, strict=True))):
        scores = step([row[min(head + ahead, len(row) - 1)] for row, head in zip(rows, heads, strict=True)])
        for one, score in zip(logits, scores.copy(), strict=True):
            one.append(score)
    return [np.stack(one[: len(row)]) for one, row in zip(logits, rows, strict=True)]


def errors(path: Path, subject: Subject, task: str) -> Measured:
    """The largest absolute difference to torch, of the rows one by one and as batches, by dialect.

    For trained weights also how far torch itself is from float64, and the largest output.
    """
    bundle = read_bundle(path)
    pooling = bundle.manifest.pooling
    normalized = pooling is not None and pooling.normalize
    exact = dataclasses.replace(subject, model=copy.deepcopy(subject.model).double()) if subject.trained else None
    found: Measured = {kind: dict.fromkeys(DIALECTS, 0.0) for kind in ("single", "ragged")}
    graphs = {dialect: open_graphs(bundle, dialect, as_written=not subject.trained) for dialect in DIALECTS}
    rows = make_rows(subject)
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        expected = [in_torch(subject, task, row, normalized=normalized) for row in batch]
        for dialect, opened in graphs.items():
            for graph in opened:
                single = furthest([in_graph(graph, [row])[0] for row in batch], expected)
                ragged = furthest(in_graph(graph, batch), expected)
                found["single"][dialect] = max(found["single"][dialect], single)
                found["ragged"][dialect] = max(found["ragged"][dialect], ragged)
        if exact is not None:
            doubles = [in_torch(exact, task, row, normalized=normalized) for row in batch]
            found["torch"] = max(found.get("torch", 0.0), furthest(expected, doubles))
            found["largest"] = max(found.get("largest", 0.0), *(float(np.abs(one).max()) for one in expected))
    return found


@dataclasses.dataclass(frozen=True)
class Opened:
    """A graph of a bundle in a session."""

    bundle: Bundle
    session: HostedSession


def open_graphs(bundle: Bundle, dialect: str, *, as_written: bool) -> list[Opened]:
    """The graph as users run it; as_written: a standard one also without what onnxruntime makes of it.

    onnxruntime fuses what it recognizes: in RoBERTa's standard graph it finds the fused one's operators, so that
    running that alone would say little of the plain ones.
    """
    graph = next(graph for graph in bundle.manifest.graphs if graph.dialect == dialect)
    opened = [Opened(bundle, open_session(bundle, graph, choose_provider("cpu"), threads=1))]
    if as_written and dialect == "standard":
        plain = open_session(bundle, graph, choose_provider("cpu"), threads=1, optimize=False)
        opened.append(Opened(bundle, plain))
    return opened


def furthest(ours: list[Any], theirs: list[Any]) -> float:
    """Infinity for what has another shape or is no number."""
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if one.shape != other.shape or not np.isfinite(one).all():
            return float("inf")
        worst = max(worst, float(np.abs(one - other).max()))
    return worst
