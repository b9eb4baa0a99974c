"""An encoder's rows through torch and through our graph: each row alone there, all in one padded batch here."""

from __future__ import annotations

from typing import Any

import numpy as np
import tiny
import torch

from torchless.bundle import Bundle
from torchless.encoder import Encoder
from torchless.providers import choose_provider
from torchless.session import open_session
from torchless.tasks import TASKS

Row = tuple[list[int], list[int]]  # ids and segments


def random_rows(model: Any, context: int, lengths: tuple[int, ...] = (4, 1, 13, 10_000, 2)) -> list[Row]:
    """Random tokens, or fewer where the context ends, with a padding token within each that has room for it."""
    generator, rows = np.random.default_rng(3), []
    for length in (min(length, context) for length in lengths):
        ids = generator.integers(0, model.config.vocab_size, length)
        ids[2:3] = model.config.pad_token_id
        rows.append((ids.tolist(), np.sort(generator.integers(0, _segments(model), length)).tolist()))
    return rows


def _segments(model: Any) -> int:
    return getattr(model.config, "type_vocab_size", 0) or 1


def torch_output(model: Any, row: Row, options: dict[str, Any], mask: list[int] | None = None) -> Any:
    """[S,V], [S,L], [S,2], [L], [1] or [D], of one row without padding; options: of export."""
    given = {"input_ids": torch.tensor([row[0]])}
    if _segments(model) > 1:
        given["token_type_ids"] = torch.tensor([row[1]])
    if mask is not None:
        given["attention_mask"] = torch.tensor([mask])
    if type(model).__name__.endswith("ForMultipleChoice"):
        given = {name: value[None] for name, value in given.items()}
    with torch.no_grad():
        answer = model(**given)
    if "start_logits" in answer:
        return torch.stack([answer.start_logits, answer.end_logits], -1)[0].numpy()
    if "last_hidden_state" in answer:
        tokens = answer.last_hidden_state[0]
        vector = tokens[0] if options.get("pooling") == "cls" else tokens.mean(0)
        return (torch.nn.functional.normalize(vector, dim=0) if options.get("normalize") else vector).numpy()
    logits = answer["prediction_logits" if "prediction_logits" in answer else "logits"][0].numpy()
    if type(model).__name__ == "ElectraForPreTraining":  # one score a token, of its being replaced
        return np.stack([np.zeros_like(logits), logits], -1)
    return logits


def our_outputs(bundle: Bundle, dialect: str, rows: list[Row], masks: list[list[int]] | None = None) -> list[Any]:
    """All rows as one padded batch; the padding holds ids and segments that would change the answer."""
    graph = next(graph for graph in bundle.manifest.graphs if graph.dialect == dialect)
    session = open_session(bundle, graph, choose_provider("cpu"), threads=1)
    shape = len(rows), max(len(ids) for ids, _ in rows)
    ids, mask, types = np.full(shape, bundle.manifest.vocab_size - 1), np.zeros(shape, int), np.zeros(shape, int)
    for i, row in enumerate(rows):
        length = len(row[0])
        ids[i, :length], types[i, :length], mask[i, :length] = *row, masks[i] if masks else 1
    outputs = Encoder(session, bundle, *TASKS[bundle.manifest.task].outputs).run(ids, mask, types)
    return [one if outputs.ndim == 2 else one[: len(row)] for one, (row, _) in zip(outputs, rows, strict=True)]


def furthest(bundle: Bundle, dialect: str, rows: list[Row], expected: list[Any]) -> float:
    """The largest difference over the rows as one batch, and over the second and the fourth alone."""
    ours = our_outputs(bundle, dialect, rows) + [our_outputs(bundle, dialect, [row])[0] for row in rows[1:4:2]]
    pairs = zip(ours, [*expected, *expected[1:4:2]], strict=True)
    return max(tiny.furthest(one, other) for one, other in pairs)
