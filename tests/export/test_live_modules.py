"""Modules of one's own: subclasses, and heads by other names; what the parity check must let through and stop."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from torch import nn

import torchless
from torchless.bundle import read_bundle
from torchless.cli import main
from torchless.export import export, parity
from torchless.export.weights import Weights

GPT = dict(vocab_size=320, n_positions=64, n_embd=32, n_layer=2, n_head=4, num_labels=3)
BERT = dict(
    vocab_size=tiny.wordpiece().get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=48, max_position_embeddings=40, num_labels=3,
)  # fmt: skip


class Sentiment(transformers.GPT2ForSequenceClassification):
    """A subclass that changes nothing."""


class Labelled(transformers.BertForTokenClassification):
    pass


class Words(transformers.GPT2LMHeadModel):
    pass


class Judge(transformers.GPT2PreTrainedModel):
    """A GPT-2 with a linear layer of its own, as projects write it; `gives` is what its forward returns."""

    gives = "dict"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.transformer = transformers.GPT2Model(config)
        self.verdict = nn.Linear(config.n_embd, config.num_labels)  # with a bias, which GPT-2's own has not

    def forward(self, input_ids: Any) -> Any:
        hidden = self.transformer(input_ids).last_hidden_state
        logits = self.verdict(hidden[:, -1])
        return {"dict": {"logits": logits}, "tuple": (logits, hidden), "tensor": logits}[self.gives]


class Tuple(Judge):
    gives = "tuple"


class Tensor(Judge):
    gives = "tensor"


class Mean(Judge):
    """Another computation over the same weights."""

    def forward(self, input_ids: Any) -> Any:
        return self.verdict(self.transformer(input_ids).last_hidden_state.mean(1))


class Silent(Judge):
    def forward(self, input_ids: Any) -> Any:
        return {"loss": self.transformer(input_ids).last_hidden_state.sum()}


class Demanding(Judge):
    def forward(self, input_ids: Any, prices: Any) -> Any:
        return super().forward(input_ids)


class Replaced(transformers.BertForSequenceClassification):
    """A second classifier beside the one that its parent has."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.my_head = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, input_ids: Any, token_type_ids: Any = None) -> Any:
        return self.my_head(self.bert(input_ids, token_type_ids=token_type_ids).pooler_output)


class Doubled(transformers.BertForSequenceClassification):
    """The same layers, another computation."""

    def forward(self, *args: Any, **given: Any) -> Any:
        answer = super().forward(*args, **given)
        answer.logits = answer.logits * 2
        return answer


class Tagger(transformers.BertPreTrainedModel):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.tags = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, input_ids: Any, token_type_ids: Any = None) -> Any:
        return {"logits": self.tags(self.bert(input_ids, token_type_ids=token_type_ids).last_hidden_state)}


def made(kind: Any, seed: int = 5) -> Any:
    config = transformers.GPT2Config(**GPT) if issubclass(kind, transformers.GPT2PreTrainedModel) else None
    return tiny.uneven(kind(config or transformers.BertConfig(**BERT)), seed)


@pytest.mark.parametrize(
    ("kind", "task"),
    [(Sentiment, "text-classification"), (Labelled, "token-classification"), (Words, "text-generation")],
)
def test_a_subclass_is_exported_as_the_class_that_it_derives_from(kind: Any, task: str, tmp_path: Path) -> None:
    manifest = read_bundle(export(made(kind), tmp_path / "out", dialect="all")).manifest
    assert manifest.task == task and manifest.head is None
    assert manifest.parity and 0 < manifest.parity["max_abs_error"] < 1e-4
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [kind.__name__]


@pytest.mark.parametrize(
    ("kind", "task", "head"),
    [
        (Judge, "text-classification", "verdict"),
        (Tuple, "text-classification", "verdict"),
        (Tensor, "text-classification", "verdict"),
        (Replaced, None, "my_head"),
        (Tagger, "token-classification", "tags"),
    ],
)
def test_a_last_layer_by_another_name_is_named_and_compared_with_the_modules_own_forward(
    kind: Any, task: str | None, head: str, tmp_path: Path
) -> None:
    module = made(kind)
    manifest = read_bundle(export(module, tmp_path / "out", task=task, head=head, dialect="all")).manifest
    assert manifest.head == head
    assert manifest.parity and 0 < manifest.parity["max_abs_error"] < 1e-4
    assert hasattr(module, head)  # the module is left as it was


@pytest.mark.parametrize("names", [("head", "classifier"), ("classifier", "head")])
def test_the_layer_that_is_named_takes_the_place_of_the_familys_own_whichever_comes_first(names: Any) -> None:
    tensors = {f"{name}.weight": functools.partial(np.full, 2, float(name == "head")) for name in names}
    found = Weights(tensors, "here").with_layer("head", "classifier")
    assert found["classifier.weight"].tolist() == [1, 1]
    assert list(found.everything()) == ["classifier.weight"]


def test_the_answers_are_those_of_the_module(tmp_path: Path) -> None:
    module = made(Judge)
    out = export(module, tmp_path / "out", task="text-classification", head="verdict", tokenizer=tiny.bpe())
    with torchless.load(out) as ours, torch.no_grad():
        for text in tiny.SENTENCES:
            scores = module(torch.tensor([ours.tokenizer.ids(text)]))["logits"][0].softmax(-1)
            assert list(ours(text).scores.values()) == pytest.approx(scores.tolist(), abs=1e-5)


def test_a_folder_that_a_module_of_ones_own_was_saved_to_takes_the_heads_name_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, task, head, tokenizer in (
        (Judge, "text-classification", "verdict", tiny.bpe()),
        (Tagger, "token-classification", "tags", tiny.wordpiece()),
    ):
        folder = tiny.save(made(kind), tmp_path / head, tokenizer)
        out = tmp_path / f"{head}.out"
        assert main(["export", str(folder), str(out), "--task", task, "--head", head]) == 0
        bundle = read_bundle(out)
        assert bundle.manifest.head == head
        assert parity.compare(bundle, folder)["max_abs_error"] < 1e-4
        assert main(["export", str(folder), str(tmp_path / "no"), "--task", task, "--head", "nothing"]) == 1
        assert "has no layer 'nothing' (it has: " in capsys.readouterr().err


def test_a_live_classifier_can_give_its_body_to_another_task(tmp_path: Path) -> None:
    for task in ("text-generation", "feature-extraction"):
        module = made(Sentiment if task == "text-generation" else Labelled)
        manifest = read_bundle(export(module, tmp_path / task, task=task)).manifest
        assert manifest.parity and 0 < manifest.parity["max_abs_error"] < 1e-4


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (Mean, {"head": "verdict"}, r"model\.onnx differs from transformers .* by [\d.e-]+"),
    (Silent, {"head": "verdict"}, "the forward of this Silent gives no logits: it cannot be compared"),
    (Demanding, {"head": "verdict"}, "the forward of this Demanding fails with input_ids .TypeError: .*prices"),
    (Judge, {}, "Judge has no layer score, in which a GPT2ForSequenceClassification ends .*verdict.* pass head="),
    (Replaced, {"task": None}, "no place in the graph: my_head.bias, my_head.weight: .* give its name as head="),
    (
        Doubled,
        {"task": None},
        r"differs from transformers .* what this module computes .or the forward of Doubled, i",
    ),
    (Judge, {"head": "score"}, "Judge has no layer 'score' .it has: transformer, verdict"),
    (Judge, {"head": "verd"}, "Judge has no layer 'verd'"),
    (Judge, {"head": 5}, "head=5 is a int, expected a str"),
    (Judge, {"head": "verdict", "task": "text-generation"}, r"ties lm_head\.weight to another tensor, but their"),
    (
        Judge,
        {"head": "verdict", "task": None},
        "the architecture Judge is not supported .* pass task= .* and head= ",
    ),
]


@pytest.mark.parametrize(("kind", "options", "match"), WRONG, ids=lambda value: str(value)[:40])
def test_a_module_that_computes_something_else_is_refused(
    kind: Any, options: dict[str, Any], match: str, tmp_path: Path
) -> None:
    tiny.refused(made(kind), match, tmp_path, **{"task": "text-classification"} | options)


def test_a_body_has_no_layer_that_could_be_named(tmp_path: Path) -> None:
    model = tiny.bert("feature-extraction")
    tiny.refused(model, "head='x': BertModel ends in no layer that could have another name", tmp_path, head="x")


ODD: list[tuple[dict[str, Any], str]] = [
    ({"task": 5}, "task=5 is a int, expected a str"),
    ({"task": ["fill-mask"]}, r"task=\['fill-mask'\] is a list, expected a str"),
    ({"pooling": 1}, "pooling=1 is a int, expected a str"),
    ({"normalize": "yes"}, "normalize='yes' is a str, expected a bool"),
    ({"dialect": None}, "dialect=None is unknown"),
    ({"dialect": ["fused"]}, r"dialect=\['fused'\] is unknown"),
    ({"tokenizer": b"x"}, "tokenizer= is a bytes: give a path, a tokenizers.Tokenizer"),
]


@pytest.mark.parametrize(("options", "match"), ODD, ids=str)
def test_an_option_of_an_odd_type_is_refused(
    options: dict[str, Any], match: str, gpt_checkpoint: Path, tmp_path: Path
) -> None:
    tiny.refused(gpt_checkpoint, match, tmp_path, **options)


@pytest.mark.parametrize("out", [None, 5, b"out", ["out"]])
def test_an_out_that_is_no_path_is_refused(out: Any, gpt_checkpoint: Path) -> None:
    with pytest.raises(torchless.ExportError, match=f"out is a {type(out).__name__}: give the path of the folder"):
        export(gpt_checkpoint, out)


@pytest.mark.parametrize("config", [None, SimpleNamespace(n_embd=32), {"model_type": "gpt2"}])
def test_a_module_with_a_config_that_is_not_of_transformers_is_refused(config: Any, tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    module.config = config
    kind = type(config).__name__
    tiny.refused(module, f"the .config of this Linear is a {kind}: give a module with a config of transf", tmp_path)
