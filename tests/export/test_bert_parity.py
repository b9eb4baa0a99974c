"""BERT in every configuration and head that changes its mathematics, against torch, in both dialects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import torchless
from torchless.export import export
from torchless.export.parts import ACTIVATIONS

TOLERANCE = 1e-4
MASK, CLASSIFY, EMBED = "fill-mask", "text-classification", "feature-extraction"

# name: task, config, options of export
CONFIGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "masked words": (MASK, {}, {}),
    "masked words, untied head": (MASK, {"tie_word_embeddings": False}, {}),
    "masked words, odd vocabulary": (MASK, {"vocab_size": 101}, {}),
    "masked words, relu in the head too": (MASK, {"hidden_act": "relu"}, {}),
    "one label": (CLASSIFY, {"num_labels": 1}, {}),
    "two labels": (CLASSIFY, {"num_labels": 2}, {}),
    "seven labels": (CLASSIFY, {"num_labels": 7}, {}),
    "several labels at once": (CLASSIFY, {"num_labels": 3, "problem_type": "multi_label_classification"}, {}),
    "a number": (CLASSIFY, {"num_labels": 1, "problem_type": "regression"}, {}),
    "mean": (EMBED, {}, {"pooling": "mean", "normalize": False}),
    "mean, normalized": (EMBED, {}, {"pooling": "mean", "normalize": True}),
    "first token": (EMBED, {}, {"pooling": "cls", "normalize": False}),
    "first token, normalized": (EMBED, {}, {"pooling": "cls", "normalize": True}),
    "one head": (EMBED, {"num_attention_heads": 1}, {}),
    "three heads of 12": (EMBED, {"hidden_size": 36, "num_attention_heads": 3}, {}),
    "seven heads of 5": (EMBED, {"hidden_size": 35, "num_attention_heads": 7}, {}),
    "two heads of 20": (EMBED, {"hidden_size": 40, "num_attention_heads": 2}, {}),
    "three heads of 1": (EMBED, {"hidden_size": 3, "num_attention_heads": 3}, {}),
    "heads of 64": (EMBED, {"hidden_size": 128, "num_attention_heads": 2}, {}),
    "one layer": (EMBED, {"num_hidden_layers": 1}, {}),
    "five layers": (EMBED, {"num_hidden_layers": 5}, {}),
    "odd inner size": (EMBED, {"intermediate_size": 33}, {}),
    "inner size of 1": (EMBED, {"intermediate_size": 1}, {}),
    "one segment": (EMBED, {"type_vocab_size": 1}, {}),
    "three segments": (EMBED, {"type_vocab_size": 3}, {}),
    "few positions": (EMBED, {"max_position_embeddings": 7}, {}),
    "one position": (EMBED, {"max_position_embeddings": 1}, {}),
    "large epsilon": (EMBED, {"layer_norm_eps": 0.5}, {}),
    "middling epsilon": (EMBED, {"layer_norm_eps": 1e-5}, {}),
    "all at once": (
        CLASSIFY,
        {
            "hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 17, "num_hidden_layers": 3,
            "vocab_size": 59, "max_position_embeddings": 31, "type_vocab_size": 3, "num_labels": 5,
            "layer_norm_eps": 0.01, "hidden_act": "silu",
        },
        {},
    ),
    **{f"activation {name}": (EMBED, {"hidden_act": name}, {}) for name in sorted(ACTIVATIONS)},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    model: Any  # of torch
    task: str
    options: dict[str, Any]
    ours: Any

    def rows(self, lengths: list[int]) -> list[tuple[list[int], list[int]]]:
        """Random ids and segments of these lengths, or shorter where the positions end."""
        config, generator = self.model.config, np.random.default_rng(sum(lengths))
        lengths = [min(length, config.max_position_embeddings) for length in lengths]
        return [
            (
                generator.integers(0, config.vocab_size, length).tolist(),
                np.sort(generator.integers(0, config.type_vocab_size, length)).tolist(),
            )
            for length in lengths
        ]

    def torch_output(self, ids: list[int], types: list[int]) -> Any:
        """[S,V], [L] or [D], of one row without padding."""
        with torch.no_grad():
            answer = self.model(torch.tensor([ids]), token_type_ids=torch.tensor([types]))
        if self.task != EMBED:
            return answer.logits[0].numpy()
        tokens = answer.last_hidden_state[0]
        vector = tokens[0] if self.options.get("pooling") == "cls" else tokens.mean(0)
        return (torch.nn.functional.normalize(vector, dim=0) if self.options.get("normalize") else vector).numpy()

    def our_outputs(self, rows: list[tuple[list[int], list[int]]]) -> list[Any]:
        """All rows as one padded batch; the padding holds ids and segments that would change the answer."""
        config = self.model.config
        longest = max(len(ids) for ids, _ in rows)
        feeds = np.zeros((3, len(rows), longest), np.int64)
        feeds[0], feeds[2] = config.vocab_size - 1, config.type_vocab_size - 1
        for row, (ids, types) in enumerate(rows):
            feeds[0, row, : len(ids)], feeds[1, row, : len(ids)], feeds[2, row, : len(ids)] = ids, 1, types
        output = self.ours.runner.run(*feeds)
        return [one[: len(ids)] if self.task == MASK else one for one, (ids, _) in zip(output, rows, strict=True)]


@pytest.fixture(scope="module", params=CONFIGS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str, Path]:
    task, config, options = CONFIGS[request.param]
    model = tiny.bert(task, seed=len(request.param), **config)
    out = tmp_path_factory.mktemp("bert") / "out"
    return (
        model,
        request.param,
        export(model, out, dialect="all", check=False, tokenizer=tiny.wordpiece(), **options),
    )


@pytest.fixture(scope="module", params=["fused", "standard"])
def case(request: pytest.FixtureRequest, checkpoint: tuple[Any, str, Path]) -> Iterator[Case]:
    model, name, bundle = checkpoint
    task, _, options = CONFIGS[name]
    with torchless.load(bundle, dialect=request.param) as ours:
        yield Case(model, task, options, ours)


@pytest.mark.parametrize(
    "lengths",
    [[1], [9], [10_000], [4, 1, 13, 10_000, 2]],
    ids=["one token", "nine tokens", "every position", "a ragged batch"],
)
def test_outputs_equal_those_of_torch(case: Case, lengths: list[int]) -> None:
    rows = case.rows(lengths)
    for ours, (ids, types) in zip(case.our_outputs(rows), rows, strict=True):
        assert tiny.furthest(ours, case.torch_output(ids, types)) < TOLERANCE


def test_the_segments_of_a_row_count(case: Case) -> None:
    if case.model.config.type_vocab_size == 1 or case.model.config.max_position_embeddings == 1:
        pytest.skip("there is only one segment")
    ids = case.rows([7])[0][0]
    first, second = case.our_outputs([(ids, [0] * len(ids)), (ids, [0] + [1] * (len(ids) - 1))])
    assert np.abs(first - second).max() > 100 * TOLERANCE
