"""ModernBERT: every head and option against torch, in both dialects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from encoders import Row, furthest, our_outputs, random_rows, torch_output
from safetensors.numpy import load_file, save_file

from torchless.bundle import Bundle, read_bundle
from torchless.export import export
from torchless.quantize import quantize

TOLERANCE = 1e-4
BODY, WORDS, TEXT, TOKENS = "Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"
CHOICE, SPANS = "ForMultipleChoice", "ForQuestionAnswering"
MEAN, FIRST = {"pooling": "mean", "normalize": False}, {"pooling": "cls", "normalize": True}
LOCAL, FULL = "sliding_attention", "full_attention"
BIASES = dict.fromkeys(["norm_bias", "attention_bias", "mlp_bias", "classifier_bias"], True)
LINEAR = {"rope_type": "linear", "factor": 3.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10}

# name: class, config, options of export
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mean": (BODY, {}, MEAN),
    "first token, normalized": (BODY, {}, FIRST),
    "masked words": (WORDS, {}, {}),
    "masked words, untied": (WORDS, {"tie_word_embeddings": False}, {}),
    "masked words, no bias": (WORDS, {"decoder_bias": False}, {}),
    "masked words, untied, no bias": (WORDS, {"decoder_bias": False, "tie_word_embeddings": False}, {}),
    "masked words, every bias": (WORDS, BIASES, {}),
    "masked words, odd vocabulary": (WORDS, {"vocab_size": 101}, {}),
    "masked words, relu head": (WORDS, {"classifier_activation": "relu"}, {}),
    "norms with a bias": (BODY, {"norm_bias": True}, {}),
    "attention with a bias": (BODY, {"attention_bias": True}, {}),
    "feed-forward with a bias": (TEXT, {"mlp_bias": True}, {}),
    "head with a bias": (TEXT, {"classifier_bias": True, "classifier_activation": "gelu_new"}, {}),
    "one label": (TEXT, {"num_labels": 1}, {}),
    "seven labels, silu": (TEXT, {"num_labels": 7, "hidden_activation": "silu"}, {}),
    "labels of the mean": (TEXT, {"num_labels": 3, "classifier_pooling": "mean"}, {}),
    "labels of the mean, every bias": (TEXT, {"num_labels": 2, "classifier_pooling": "mean"} | BIASES, {}),
    "tokens": (TOKENS, {"num_labels": 5}, {}),
    "tokens, one label, every bias": (TOKENS, {"num_labels": 1} | BIASES, {}),
    "spans": (SPANS, {"num_labels": 2}, {}),
    "spans, tanh gelu": (SPANS, {"num_labels": 2, "hidden_activation": "gelu_pytorch_tanh"}, {}),
    "choices": (CHOICE, {}, {}),
    "choices by the first token, relu": (CHOICE, {"classifier_pooling": "cls", "hidden_activation": "relu"}, {}),
    "one head": (BODY, {"num_attention_heads": 1}, {}),
    "three heads of 12": (WORDS, {"hidden_size": 36, "num_attention_heads": 3}, {}),
    "seven heads of 6": (BODY, {"hidden_size": 42, "num_attention_heads": 7}, {}),
    "five heads of 2": (BODY, {"hidden_size": 10, "num_attention_heads": 5}, {}),
    "heads of 64": (WORDS, {"hidden_size": 128, "num_attention_heads": 2}, {}),
    "one layer": (BODY, {"num_hidden_layers": 1}, {}),
    "seven layers": (BODY, {"num_hidden_layers": 7}, {}),
    "every second layer global": (BODY, {"global_attn_every_n_layers": 2}, {}),
    "every layer global": (BODY, {"global_attn_every_n_layers": 1}, {}),
    "a local layer first": (WORDS, {"layer_types": [LOCAL, FULL, LOCAL, LOCAL]}, {}),
    "every layer local": (BODY, {"layer_types": [LOCAL] * 4}, {}),
    "a window of one token": (BODY, {"local_attention": 1}, {}),
    "a window of three": (WORDS, {"local_attention": 2}, {}),
    "an odd window": (WORDS, {"local_attention": 7}, {}),
    "a window that ends with the context": (BODY, {"local_attention": 78}, {}),
    "a window one token short": (BODY, {"local_attention": 76}, {}),
    "a window wider than the context": (BODY, {"local_attention": 128}, {}),
    "two bases": (
        BODY, {"rope_parameters": {
            FULL: {"rope_type": "default", "rope_theta": 77.0}, LOCAL: {"rope_type": "default", "rope_theta": 5.0}
        }}, {},
    ),
    "a base for global layers only": (
        WORDS, {"rope_parameters": {FULL: {"rope_type": "default", "rope_theta": 50.0}}}, {}
    ),
    "stretched linearly": (
        BODY, {"rope_parameters": {FULL: LINEAR | {"rope_theta": 160000.0}, LOCAL: {"rope_type": "default"}}}, {}
    ),
    "yarn": (
        BODY, {"rope_parameters": {FULL: YARN | {"rope_theta": 900.0}, LOCAL: YARN | {"rope_theta": 30.0}}}, {}
    ),
    "odd inner size": (BODY, {"intermediate_size": 33}, {}),
    "inner size of 1": (BODY, {"intermediate_size": 1}, {}),
    "large epsilon": (WORDS, {"norm_eps": 0.5} | BIASES, {}),
    "few positions": (BODY, {"max_position_embeddings": 7}, {}),
    "one position": (BODY, {"max_position_embeddings": 1}, {}),
    "a long text": (WORDS, {"max_position_embeddings": 300, "local_attention": 128}, {}),
}  # fmt: skip


def made(name: str) -> Any:
    kind, config, _ = CASES[name]
    return tiny.encoder("modernbert", kind, seed=len(name), **config)


@dataclass(frozen=True)
class Case:
    bundle: Bundle
    rows: list[Row]
    expected: list[Any]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    model, options = made(request.param), CASES[request.param][2]
    out = export(model, tmp_path_factory.mktemp("out") / "out", dialect="all", check=False, **options)
    bundle = read_bundle(out)
    rows = random_rows(model, bundle.manifest.context_length)
    return Case(bundle, rows, [torch_output(model, row, options) for row in rows])


@pytest.mark.parametrize("dialect", ["fused", "standard"])
def test_one_token_the_whole_context_and_a_ragged_batch_equal_torch(case: Case, dialect: str) -> None:
    assert furthest(case.bundle, dialect, case.rows, case.expected) < TOLERANCE


@pytest.mark.parametrize("dialect", ["fused", "standard"])
def test_tokens_that_the_mask_hides_within_a_text_are_not_seen(dialect: str, tmp_path: Path) -> None:
    model = tiny.encoder("modernbert", WORDS, local_attention=6)
    bundle = read_bundle(export(model, tmp_path / "out", dialect="all", check=False))
    (row,), mask = random_rows(model, 40, (17,)), [1, 1, 1, 0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1]
    (ours,) = our_outputs(bundle, dialect, [row], [mask])
    shown = np.array(mask, bool)
    assert tiny.furthest(ours[shown], torch_output(model, row, {}, mask)[shown]) < TOLERANCE
    assert np.abs(ours[shown] - our_outputs(bundle, dialect, [row])[0][shown]).max() > 100 * TOLERANCE


def test_padding_far_from_every_token_spoils_nothing(tmp_path: Path) -> None:
    """A window that holds padding alone hides all that it sees, twice; no row may become NaN for it."""
    model = tiny.encoder("modernbert", TEXT, local_attention=2, classifier_pooling="mean")
    bundle = read_bundle(export(model, tmp_path / "out", dialect="all", check=False))
    rows = random_rows(model, 40, (1, 40))
    for dialect in ("fused", "standard"):
        ours = our_outputs(bundle, dialect, rows)
        for one, row in zip(ours, rows, strict=True):
            assert tiny.furthest(one, torch_output(model, row, {})) < TOLERANCE


def test_a_config_as_it_was_released_means_what_transformers_makes_of_it(tmp_path: Path) -> None:
    """answerdotai/ModernBERT-base's fields, which name windows and bases as transformers 4.48 did."""
    model = tiny.encoder("modernbert", WORDS, rope_parameters={
        FULL: {"rope_type": "default", "rope_theta": 123.0}, LOCAL: {"rope_type": "default", "rope_theta": 45.0},
    })  # fmt: skip
    folder = tiny.save(model, tmp_path / "checkpoint", tiny.wordpiece())
    tiny.change_json(
        folder / "config.json", layer_types=..., rope_parameters=..., global_attn_every_n_layers=3,
        global_rope_theta=123.0, local_rope_theta=45.0, position_embedding_type="absolute", layer_norm_eps=1e-5,
        deterministic_flash_attn=False, sparse_prediction=False, sparse_pred_ignore_index=-100,
        embedding_dropout=0.0, classifier_dropout=0.0, gradient_checkpointing=False, initializer_cutoff_factor=2.0,
    )  # fmt: skip
    out = export(folder, tmp_path / "out")  # which compares with from_pretrained's
    rows = random_rows(model, 40)
    expected = [torch_output(model, row, {}) for row in rows]
    assert furthest(read_bundle(out), "fused", rows, expected) < TOLERANCE


def test_a_copy_of_the_tied_table_may_lie_in_the_checkpoint_but_not_another_one(tmp_path: Path) -> None:
    folder = tiny.save(tiny.encoder("modernbert", WORDS), tmp_path / "checkpoint", tiny.wordpiece())
    tensors = load_file(folder / "model.safetensors")
    copy = tensors["model.embeddings.tok_embeddings.weight"].copy()
    save_file(tensors | {"decoder.weight": copy}, folder / "model.safetensors", {"format": "pt"})
    export(folder, tmp_path / "copied")
    save_file(tensors | {"decoder.weight": copy + 1}, folder / "model.safetensors", {"format": "pt"})
    tiny.refused(folder, "ties decoder.weight", tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_size": 35, "num_attention_heads": 7}, "heads of size 5 have no halves to turn"),
        ({"num_attention_heads": 3}, "not a multiple of num_attention_heads=3"),
        ({"head_dim": 16}, "head_dim=16"),
        ({"sliding_window": 3}, "sliding_window=3"),
        ({"classifier_pooling": "max"}, "classifier_pooling='max'"),
        ({"layer_types": [FULL]}, "layer_types must name 4"),
        ({"layer_types": [FULL, "chunked_attention", LOCAL, FULL]}, "layer_types must name 4"),
        ({"layer_types": None, "global_attn_every_n_layers": 0}, "global_attn_every_n_layers is 0"),
        ({"local_attention": -1}, "local_attention is -1"),
        ({"hidden_activation": "swiglu"}, "'swiglu' is not supported"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}}, "an object for each of full_attention"),
        ({"rope_parameters": {FULL: {"rope_type": "longrope"}}}, "'longrope' is not supported"),
        ({"rope_parameters": {FULL: {"partial_rotary_factor": 0.5}}}, "partial_rotary_factor=0.5"),
        ({"rope_scaling": 2}, "rope_scaling is 2"),
        ({"attention_bias": True}, "lacks the tensor model.layers.0.attn.Wqkv.bias|lacks the tensor layers.0"),
        ({"decoder_bias": False}, "no place in the graph: decoder.bias"),
        ({"norm_bias": True}, "lacks the tensor"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)  # fmt: skip
def test_what_is_not_implemented_is_refused_by_name(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = tiny.save(tiny.encoder("modernbert", WORDS), tmp_path / "checkpoint", tiny.wordpiece())
    tiny.change_json(folder / "config.json", **config)
    tiny.refused(folder, said, tmp_path)


@pytest.mark.parametrize(("recipe", "near"), [("int8", 0.06), ("int4", 0.3)])
def test_a_quantized_model_stays_near(recipe: str, near: float, tmp_path: Path) -> None:
    model = tiny.encoder("modernbert", WORDS, hidden_size=64, intermediate_size=96)
    with torch.no_grad():  # or it is chaotic: torch's own answers change by 0.8 where its weights are rounded
        for parameter in model.parameters():
            parameter.mul_(0.4 if parameter.ndim == 2 else 1)
    out = export(model, tmp_path / "out", check=False)
    rows = random_rows(model, 40)
    before = our_outputs(read_bundle(out), "fused", rows)
    bundle = read_bundle(quantize(out, tmp_path / recipe, recipe=recipe))
    after = our_outputs(bundle, "fused", rows)
    apart = np.concatenate([(one - other).ravel() for one, other in zip(before, after, strict=True)])
    size = np.concatenate([one.ravel() for one in before])
    assert 0 < np.sqrt((apart**2).mean() / (size**2).mean()) < near
    matrices = 4 * 4 + 2  # of four layers, the head's and the table
    assert bundle.manifest.recipe is not None and bundle.manifest.recipe["quantized"] >= matrices
