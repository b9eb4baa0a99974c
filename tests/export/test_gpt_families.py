"""GPT-1 and GPT-2 with every head and option that changes their mathematics, against torch, in both dialects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file

import torchless
from torchless.bundle import read_bundle
from torchless.decoder import Decoder
from torchless.export import export
from torchless.providers import choose_provider
from torchless.quantize import quantize
from torchless.session import open_session

TOLERANCE = 1e-4
LM, TEXT, CHOICE = "LMHeadModel", "ForSequenceClassification", "DoubleHeadsModel"

# name: family, class without its prefix, config
CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "1": ("openai-gpt", LM, {}),
    "1, bare": ("openai-gpt", "Model", {}),
    "1, one head": ("openai-gpt", LM, {"n_head": 1}),
    "1, three heads of 12": ("openai-gpt", LM, {"n_embd": 36, "n_head": 3}),
    "1, seven heads of 5": ("openai-gpt", LM, {"n_embd": 35, "n_head": 7}),
    "1, five heads of 1": ("openai-gpt", LM, {"n_embd": 5, "n_head": 5}),
    "1, heads of 64": ("openai-gpt", LM, {"n_embd": 128, "n_head": 2}),
    "1, one layer": ("openai-gpt", LM, {"n_layer": 1}),
    "1, five layers": ("openai-gpt", LM, {"n_layer": 5}),
    "1, odd vocabulary": ("openai-gpt", LM, {"vocab_size": 101}),
    "1, few positions": ("openai-gpt", LM, {"n_positions": 7}),
    "1, one position": ("openai-gpt", LM, {"n_positions": 1}),
    "1, large epsilon": ("openai-gpt", LM, {"layer_norm_epsilon": 0.5}),
    "1, relu": ("openai-gpt", LM, {"afn": "relu"}),
    "1, silu": ("openai-gpt", LM, {"afn": "silu"}),
    "1, swish": ("openai-gpt", LM, {"afn": "swish"}),
    "1, untied": ("openai-gpt", LM, {"tie_word_embeddings": False}),
    "1, three labels": ("openai-gpt", TEXT, {"num_labels": 3}),
    "1, one label": ("openai-gpt", TEXT, {"num_labels": 1}),
    "1, choices": ("openai-gpt", CHOICE, {}),
    "1, choices, tanh": ("openai-gpt", CHOICE, {"summary_activation": "tanh"}),
    "1, choices, untied": ("openai-gpt", CHOICE, {"tie_word_embeddings": False}),
    "1, all at once": (
        "openai-gpt", TEXT,
        {"n_embd": 36, "n_head": 3, "n_layer": 3, "vocab_size": 59, "n_positions": 41, "afn": "relu",
         "layer_norm_epsilon": 0.01, "num_labels": 5},
    ),
    "2, two labels": ("gpt2", TEXT, {"num_labels": 2}),
    "2, one label": ("gpt2", TEXT, {"num_labels": 1}),
    "2, seven labels, seven heads of 5": ("gpt2", TEXT, {"num_labels": 7, "n_embd": 35, "n_head": 7}),
    "2, labels, few positions": ("gpt2", TEXT, {"num_labels": 3, "n_positions": 5}),
    "2, labels, scaled by layer": ("gpt2", TEXT, {"num_labels": 3, "scale_attn_by_inverse_layer_idx": True}),
    "2, choices": ("gpt2", CHOICE, {}),
    "2, choices, tanh": ("gpt2", CHOICE, {"summary_activation": "tanh"}),
    "2, choices, relu": ("gpt2", CHOICE, {"summary_activation": "relu"}),
    "2, choices, last": ("gpt2", CHOICE, {"summary_type": "last"}),
    "2, choices, untied": ("gpt2", CHOICE, {"tie_word_embeddings": False}),
}  # fmt: skip
PREFIX = {"openai-gpt": "OpenAIGPT", "gpt2": "GPT2"}


def gpt(family: str, kind: str, seed: int = 7, **config: Any) -> Any:
    """One of transformers' classes, of two layers of width 32; the vocabulary is that of `tiny.bpe`."""
    defaults = dict(vocab_size=320, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    extra = dict(bos_token_id=0, eos_token_id=0, attn_implementation="eager") if family == "gpt2" else {}
    made = getattr(transformers, f"{PREFIX[family]}Config")(**defaults | extra | config)
    return tiny.uneven(getattr(transformers, PREFIX[family] + kind)(made), seed)


def random_ids(model: Any, length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(length + seed).integers(0, model.config.vocab_size, length).tolist()


def open_decoder(path: Path, dialect: str) -> Decoder:
    bundle = read_bundle(path)
    graph = next(graph for graph in bundle.manifest.graphs if graph.dialect == dialect)
    return Decoder(open_session(bundle, graph, choose_provider("cpu")), bundle)


@dataclass(frozen=True)
class Case:
    model: Any  # of torch
    kind: str
    decoder: Decoder

    def torch_logits(self, ids: list[int]) -> Any:
        """[S,V] of words, [S,L] of a text, [S,1] of a choice: the head applied to every hidden state."""
        with torch.no_grad():
            hidden = self.model.base_model(torch.tensor([ids])).last_hidden_state[0]
            if self.kind == TEXT:
                logits = self.model.score(hidden)
            elif self.kind == CHOICE:
                logits = self.model.multiple_choice_head.activation(self.model.multiple_choice_head.summary(hidden))
            elif self.kind == LM:
                logits = self.model(torch.tensor([ids])).logits[0]
            else:
                logits = hidden @ self.model.get_input_embeddings().weight.T
        return logits.numpy()


@pytest.fixture(scope="module", params=CONFIGS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str, Path]:
    family, kind, config = CONFIGS[request.param]
    model = gpt(family, kind, seed=len(request.param), **config)
    return model, kind, export(model, tmp_path_factory.mktemp("gpt") / "out", dialect="all", check=False)


@pytest.fixture(scope="module", params=["fused", "standard"])
def case(request: pytest.FixtureRequest, exported: tuple[Any, str, Path]) -> Iterator[Case]:
    model, kind, bundle = exported
    yield Case(model, kind, open_decoder(bundle, request.param))


def test_the_logits_at_every_token_equal_torch(case: Case) -> None:
    context = case.decoder.context_length
    for length in sorted({1, min(10, context), context}):
        ids = random_ids(case.model, length)
        ours = case.decoder.extend(case.decoder.new_cache(), ids, keep=range(length))
        assert tiny.furthest(ours, case.torch_logits(ids)) < TOLERANCE, length


def test_rows_of_a_ragged_batch_answer_at_their_own_last_token(case: Case) -> None:
    lengths = np.array([min(length, case.decoder.context_length) for length in (3, 1, 17, 8)])
    rows = [random_ids(case.model, length, seed=i) for i, length in enumerate(lengths)]
    ids = np.full((len(rows), lengths.max()), 1, np.int64)  # padding that would change the answer
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    for ours, tokens in zip(case.decoder.last(ids, lengths), rows, strict=True):
        assert tiny.furthest(ours, case.torch_logits(tokens)[-1]) < TOLERANCE


def test_rows_continued_token_by_token_equal_torch(case: Case) -> None:
    context = case.decoder.context_length
    if context < 4:
        pytest.skip("no room for two tokens after a prompt of two")
    new = min(6, context - 2)
    rows = [random_ids(case.model, min(length, context - new) + new) for length in (1, 2, 12)]
    cache = case.decoder.new_cache(len(rows))
    for index, row in enumerate(rows):
        case.decoder.extend(cache, row[:-new], row=index)
    step = case.decoder.stepper(cache)
    for ahead in range(new, 0, -1):
        ours = step([row[-ahead] for row in rows])
        for logits, row in zip(ours, rows, strict=True):
            assert tiny.furthest(logits, case.torch_logits(row[: len(row) - ahead + 1])[-1]) < TOLERANCE


@pytest.mark.parametrize("kind", [LM, CHOICE])
@pytest.mark.parametrize("dialect", ["fused", "standard"])
def test_gpt1_generates_greedily_what_transformers_generates(kind: str, dialect: Any, tmp_path: Path) -> None:
    model = gpt("openai-gpt", kind, seed=3)
    words = transformers.OpenAIGPTLMHeadModel(model.config).eval()
    words.transformer = model.transformer
    words.tie_weights()
    out = export(model, tmp_path / "out", task="text-generation", dialect=dialect)
    with torchless.load(out) as ours:
        for length in (1, 2, 9, 30):
            ids = random_ids(model, length)
            theirs = words.generate(torch.tensor([ids]), max_new_tokens=25, do_sample=False, pad_token_id=0)
            assert list(ours(ids, max_new_tokens=25).token_ids) == theirs[0, length:].tolist()


PROBED = 261  # a token that the check ends a text with


def test_every_head_is_checked_at_every_token_from_a_folder_and_a_live_module(tmp_path: Path) -> None:
    for name in ("1", "1, three labels", "1, choices", "1, untied", "2, two labels", "2, choices, tanh"):
        family, kind, config = CONFIGS[name]
        model = gpt(family, kind, **config)
        model.config.pad_token_id = PROBED  # transformers would take the token before it for the last one
        folder = tiny.save(model, tmp_path / name, tiny.bpe())
        for source, out in ((folder, "folder"), (model, "live")):
            bundle = read_bundle(export(source, tmp_path / f"{name} {out}"))
            parity: Any = bundle.manifest.parity
            assert 0 < parity["max_abs_error"] < TOLERANCE
            assert any(PROBED in row for row in parity["input_ids"])
            assert bundle.manifest.task == {LM: "text-generation", TEXT: "text-classification"}.get(
                kind, "multiple-choice"
            )
        assert model.config.pad_token_id == PROBED  # the caller's own module is left as it was


def test_a_double_heads_checkpoint_has_one_table_whichever_of_the_tied_names_it_kept(tmp_path: Path) -> None:
    folder = tiny.save(gpt("openai-gpt", CHOICE), tmp_path / "checkpoint", tiny.bpe())
    names = set(load_file(folder / "model.safetensors"))
    assert "lm_head.weight" in names and "transformer.tokens_embed.weight" not in names
    for task in ("multiple-choice", "text-generation"):
        assert read_bundle(export(folder, tmp_path / task, task=task)).manifest.parity


CLASSIFIERS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "GPT-2": ("gpt2", 3, {}),
    "GPT-2 of one label": ("gpt2", 1, {}),
    "GPT-1 of several at once": ("openai-gpt", 3, {"problem_type": "multi_label_classification"}),
}
TEXTS = [*tiny.SENTENCES, "a", "prize 🎉", "naïve façades " * 3]


@pytest.fixture(scope="module", params=CLASSIFIERS)
def classifier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    family, labels, config = CLASSIFIERS[request.param]
    names = {i: f"label {i}" for i in range(labels)}
    model = gpt(family, TEXT, n_positions=128, pad_token_id=0, id2label=names, **config)
    out = tmp_path_factory.mktemp("classifier") / "out"
    return model, export(model, out, dialect="all", tokenizer=tiny.bpe())


@pytest.mark.parametrize("dialect", ["fused", "standard"])
def test_a_gpt_classifies_texts_as_the_pipeline_does_alone_and_in_ragged_batches(
    dialect: str, classifier: tuple[Any, Path]
) -> None:
    model, bundle = classifier
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tiny.bpe(), pad_token=tiny.END)
    theirs = transformers.pipeline(
        "text-classification", model=model, tokenizer=tokenizer, device="cpu", top_k=None
    )
    expected = [{one["label"]: one["score"] for one in wanted} for wanted in theirs(TEXTS, batch_size=4)]
    with torchless.load(bundle, dialect=dialect) as ours:
        for size in (1, 4, 16):
            for result, wanted in zip(ours(TEXTS, batch_size=size), expected, strict=True):
                assert result.scores == pytest.approx(wanted, abs=1e-5)
        for text, wanted in zip(TEXTS, expected, strict=True):
            assert ours(text).scores == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("recipe", ["int8", "int4"])
def test_a_quantized_gpt_classifier_stays_near_and_gives_each_text_of_a_batch_what_it_gives_alone(
    recipe: str, classifier: tuple[Any, Path], tmp_path: Path
) -> None:
    _, bundle = classifier
    with torchless.load(bundle) as full, torchless.load(quantize(bundle, tmp_path / "q", recipe=recipe)) as ours:
        near = 0.05 if recipe == "int8" else 0.5
        for together, text in zip(ours(TEXTS, batch_size=5), TEXTS, strict=True):
            assert together.scores == pytest.approx(ours(text).scores, abs=1e-5)
            assert together.scores == pytest.approx(full(text).scores, abs=near)


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("openai-gpt", LM, {"afn": "gelu_new"}, "afn='gelu_new' is not supported .supported: gelu, relu"),
    ("openai-gpt", LM, {"n_head": 5}, "n_embd=32 is not a multiple of n_head=5"),
    ("openai-gpt", LM, {"vocab_size": 321}, r"tokens_embed\.weight has shape \[320, 32\], config\.json makes it"),
    ("openai-gpt", LM, {"n_layer": 1}, "these tensors have no place in the graph: h.1"),
    ("openai-gpt", LM, {"quantization_config": {"bits": 4}}, "quantization_config=.* is not supported"),
    ("openai-gpt", LM, {"architectures": ["OpenAIGPTForX"]}, "the architecture OpenAIGPTForX is not supported"),
    ("gpt2", CHOICE, {"summary_type": "mean"}, "summary_type='mean' is not supported"),
    ("gpt2", CHOICE, {"summary_type": "attn"}, "summary_type='attn' is not supported"),
    ("gpt2", CHOICE, {"summary_use_proj": False}, "summary_use_proj=False is not supported"),
    ("openai-gpt", CHOICE, {"summary_proj_to_labels": False}, "summary_proj_to_labels=False is not supported"),
    ("gpt2", CHOICE, {"summary_activation": "snake"}, "the activation 'snake' is not supported"),
    ("gpt2", TEXT, {"id2label": {"0": "a", "1": "b", "2": "c"}}, "id2label names 3 labels, the classifier has 2"),
    ("gpt2", LM, {"architectures": ["GPT2ForSequenceClassification"]}, "has no layer score, in which a GPT2"),
]


@pytest.mark.parametrize(("family", "kind", "fields", "match"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_is_not_implemented_is_refused_by_field_and_value(
    family: str, kind: str, fields: dict[str, Any], match: str, tmp_path: Path
) -> None:
    folder = tiny.save(gpt(family, kind), tmp_path / "checkpoint", tiny.bpe())
    tiny.change_json(folder / "config.json", **fields)
    tiny.refused(folder, match, tmp_path)


def test_a_summary_that_only_choices_need_does_not_keep_words_from_being_exported(tmp_path: Path) -> None:
    model = gpt("gpt2", LM, summary_type="mean", summary_use_proj=False)
    assert read_bundle(export(model, tmp_path / "out")).manifest.task == "text-generation"
