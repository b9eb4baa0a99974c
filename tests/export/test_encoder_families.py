"""DistilBERT, RoBERTa, ELECTRA and ALBERT: every head and option against torch, in both dialects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from encoders import Row, furthest, our_outputs, random_rows, torch_output

from torchless.bundle import Bundle, read_bundle
from torchless.export import export
from torchless.providers import choose_provider
from torchless.quantize import quantize
from torchless.quantize.draft import Draft
from torchless.quantize.matrices import find_matrices
from torchless.session import open_session

TOLERANCE = 1e-4
MEAN, FIRST = {"pooling": "mean", "normalize": False}, {"pooling": "cls", "normalize": True}
WORDS, TEXT, TOKENS, CHOICE = (
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForMultipleChoice",
)
# name: class, config, options of export; the config's names are BERT's
COMMON: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mean": ("Model", {}, MEAN),
    "first token, normalized": ("Model", {}, FIRST),
    "masked words": (WORDS, {}, {}),
    "masked words, untied": (WORDS, {"tie_word_embeddings": False}, {}),
    "masked words, relu": (WORDS, {"hidden_act": "relu"}, {}),
    "masked words, odd vocabulary": (WORDS, {"vocab_size": 101}, {}),
    "one label": (TEXT, {"num_labels": 1}, {}),
    "two labels, tanh gelu": (TEXT, {"num_labels": 2, "hidden_act": "gelu_new"}, {}),
    "seven labels": (TEXT, {"num_labels": 7}, {}),
    "tokens": (TOKENS, {"num_labels": 5}, {}),
    "tokens, one label": (TOKENS, {"num_labels": 1}, {}),
    "spans": ("ForQuestionAnswering", {"num_labels": 2}, {}),
    "choices": (CHOICE, {}, {}),
    "choices, relu": (CHOICE, {"hidden_act": "relu"}, {}),
    "one head": ("Model", {"num_attention_heads": 1}, {}),
    "three heads of 12": ("Model", {"hidden_size": 36, "num_attention_heads": 3}, {}),
    "seven heads of 5": ("Model", {"hidden_size": 35, "num_attention_heads": 7}, {}),
    "one layer": ("Model", {"num_hidden_layers": 1}, {}),
    "five layers": ("Model", {"num_hidden_layers": 5}, {}),
    "inner size of 1": ("Model", {"intermediate_size": 1}, {}),
    "odd inner size, silu": ("Model", {"intermediate_size": 33, "hidden_act": "silu"}, {}),
    "few positions": ("Model", {"max_position_embeddings": 7}, {}),
}
NARROW: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # families with a size of the embeddings
    "embeddings as wide as the rest": (WORDS, {"embedding_size": 32}, {}),
    "embeddings that are wider": (WORDS, {"embedding_size": 40, "tie_word_embeddings": False}, {}),
    "odd embeddings": (TOKENS, {"embedding_size": 9}, {}),
}
SEGMENTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "one segment": (TEXT, {"type_vocab_size": 1}, {}),
    "two segments": (TEXT, {"type_vocab_size": 2}, {}),
    "three segments": ("Model", {"type_vocab_size": 3}, {}),
    "large epsilon": (WORDS, {"layer_norm_eps": 0.5}, {}),
}
FAMILY: dict[str, dict[str, tuple[str, dict[str, Any], dict[str, Any]]]] = {
    "distilbert": COMMON | {
        "sinusoids": ("Model", {"sinusoidal_pos_embds": True}, {}),
        "an epsilon that nobody reads": (WORDS, {"layer_norm_eps": 0.5}, {}),
    },
    "roberta": COMMON | SEGMENTS | {
        "padding is token 0": (WORDS, {"pad_token_id": 0}, {}),
        "padding is token 5": (TOKENS, {"pad_token_id": 5}, {}),
        "one position": ("Model", {"max_position_embeddings": 3}, {}),
    },
    "xlm-roberta": {name: COMMON[name] for name in ("mean", "masked words", "two labels, tanh gelu", "choices")},
    "camembert": {name: COMMON[name] for name in ("mean", "masked words", "tokens", "spans")},
    "electra": COMMON | SEGMENTS | NARROW | {
        "replaced tokens": ("ForPreTraining", {}, {}),
        "replaced tokens, relu": ("ForPreTraining", {"hidden_act": "relu"}, {}),
    },
    "albert": COMMON | SEGMENTS | NARROW | {
        "pretraining": ("ForPreTraining", {}, {}),
        "a group a layer": (WORDS, {"num_hidden_groups": 3}, {}),
        "two groups of five layers": (TEXT, {"num_hidden_layers": 5, "num_hidden_groups": 2}, {}),
        "three groups of seven layers": ("Model", {"num_hidden_layers": 7, "num_hidden_groups": 3}, {}),
        "groups whose division rounds down": ("Model", {"num_hidden_layers": 18, "num_hidden_groups": 14}, {}),
        "two blocks a layer": (TOKENS, {"inner_group_num": 2}, {}),
        "groups of blocks": ("Model", {"num_hidden_groups": 2, "inner_group_num": 3}, {}),
    },
}  # fmt: skip
CASES = [(family, name) for family, rows in FAMILY.items() for name in rows]
DISTILBERT = {
    "hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers",
    "intermediate_size": "hidden_dim", "hidden_act": "activation",
}  # fmt: skip


def made(family: str, name: str) -> Any:
    kind, config, _ = FAMILY[family][name]
    if family == "distilbert":
        config = {DISTILBERT.get(field, field): value for field, value in config.items()}
    return tiny.encoder(family, kind, seed=len(name), **config)


@dataclass(frozen=True)
class Case:
    bundle: Bundle
    rows: list[Row]
    expected: list[Any]


@pytest.fixture(scope="module", params=CASES, ids=[f"{family}, {name}" for family, name in CASES])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family, name = request.param
    model, options = made(family, name), FAMILY[family][name][2]
    out = export(model, tmp_path_factory.mktemp("out") / "out", dialect="all", check=False, **options)
    bundle = read_bundle(out)
    rows = random_rows(model, bundle.manifest.context_length)
    return Case(bundle, rows, [torch_output(model, row, options) for row in rows])


@pytest.mark.parametrize("dialect", ["fused", "standard"])
def test_one_token_the_whole_context_and_a_ragged_batch_equal_torch(case: Case, dialect: str) -> None:
    assert furthest(case.bundle, dialect, case.rows, case.expected) < TOLERANCE


HEADS = {
    "Model": "feature-extraction",
    WORDS: "fill-mask",
    TEXT: "text-classification",
    CHOICE: "multiple-choice",
    TOKENS: "token-classification",
    "ForQuestionAnswering": "question-answering",
}
CHECKPOINTS = [(family, kind, task) for family in FAMILY for kind, task in HEADS.items()]
CHECKPOINTS += [("electra", "ForPreTraining", "token-classification"), ("albert", "ForPreTraining", "fill-mask")]


@pytest.mark.parametrize(("family", "kind", "task"), CHECKPOINTS)
def test_a_checkpoint_is_checked_against_torch_and_bears_its_task(
    family: str, kind: str, task: str, tmp_path: Path
) -> None:
    folder = tiny.save(tiny.encoder(family, kind), tmp_path / "checkpoint", tiny.wordpiece())
    manifest = read_bundle(export(folder, tmp_path / "out")).manifest
    assert (manifest.family, manifest.task, manifest.context_length) == (family, task, 40)
    assert manifest.parity is not None and manifest.parity["max_abs_error"] < TOLERANCE
    assert manifest.parity["against"].startswith("transformers ") and manifest.parity["largest_output"] > 0.1


def test_electras_discriminator_labels_tokens_original_and_replaced(tmp_path: Path) -> None:
    model = tiny.encoder("electra", "ForPreTraining")
    bundle = read_bundle(export(model, tmp_path / "out"))
    assert (bundle.manifest.task, bundle.manifest.labels) == ("token-classification", ("original", "replaced"))
    (row,) = random_rows(model, 40, (9,))
    (ours,) = our_outputs(bundle, "fused", [row])  # [S,2]
    with torch.no_grad():
        replaced = torch.sigmoid(model(torch.tensor([row[0]]), token_type_ids=torch.tensor([row[1]])).logits[0])
    assert (ours[:, 0] == 0).all()
    assert tiny.furthest(torch.softmax(torch.tensor(ours), -1)[:, 1], replaced) < 1e-5


@pytest.mark.parametrize(("kind", "size"), [("one segment", 1), ("two segments", 2)])
def test_roberta_has_segments_only_where_there_are_several(kind: str, size: int, tmp_path: Path) -> None:
    bundle = read_bundle(export(made("roberta", kind), tmp_path / "out", check=False))
    session = open_session(bundle, bundle.manifest.graphs[0], choose_provider("cpu"))
    assert ("token_type_ids" in {value.name for value in session.get_inputs()}) == (size > 1)


@pytest.mark.parametrize("padding", [0, 1, 5])
def test_robertas_context_is_what_the_padding_leaves_of_the_positions(padding: int, tmp_path: Path) -> None:
    model = tiny.encoder("roberta", "Model", pad_token_id=padding)
    manifest = read_bundle(export(model, tmp_path / "out", check=False)).manifest
    assert manifest.context_length == 42 - padding - 1
    with torch.no_grad():
        model(torch.full((1, manifest.context_length), 9))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, manifest.context_length + 1), 9))


def test_layers_that_albert_shares_are_stored_once(tmp_path: Path) -> None:
    few, many = (
        export(tiny.encoder("albert", WORDS, num_hidden_layers=layers), tmp_path / f"{layers}", check=False)
        for layers in (1, 12)
    )
    size = (many / "model.onnx.data").stat().st_size
    assert size == (few / "model.onnx.data").stat().st_size
    parameters = sum(parameter.numel() for parameter in tiny.encoder("albert", WORDS).parameters())
    assert size < 4 * parameters + 20 * 4096  # a page at most between two tensors
    for recipe in ("int8", "int4"):
        sizes = [
            (quantize(path, tmp_path / f"{recipe}-{path.name}", recipe=recipe) / "model.onnx.data").stat().st_size
            for path in (few, many)
        ]
        assert sizes[0] == sizes[1]


def test_a_matrix_that_albert_shares_is_quantized_once_for_all_its_readers(tmp_path: Path) -> None:
    out = export(
        tiny.encoder("albert", "Model", num_hidden_layers=6, num_hidden_groups=2), tmp_path / "out", check=False
    )
    matrices, _ = find_matrices(Draft(out / "model.onnx", tmp_path / "draft.onnx"))
    shared = {matrix.name: len(matrix.readers) for matrix in matrices if "albert_layers" in matrix.name}
    assert len(shared) == 8 and set(shared.values()) == {3}
