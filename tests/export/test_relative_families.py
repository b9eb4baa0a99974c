"""MPNet and DeBERTa-v2: every head and every kind of relative position against torch, in both dialects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from encoders import Row, furthest, our_outputs, random_rows, torch_output
from safetensors.numpy import load_file, save_file
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from torchless.bundle import Bundle, read_bundle
from torchless.export import export
from torchless.export.families import deberta_v2, mpnet
from torchless.quantize import quantize

TOLERANCE = 1e-4
MPNET, DEBERTA = "mpnet", "deberta-v2"
BODY, WORDS, TEXT, TOKENS = "Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"
CHOICE, SPANS = "ForMultipleChoice", "ForQuestionAnswering"
MEAN, FIRST = {"pooling": "mean", "normalize": False}, {"pooling": "cls", "normalize": True}

# name: class, config, options of export
Rows = dict[str, tuple[str, dict[str, Any], dict[str, Any]]]
COMMON: Rows = {
    "mean": (BODY, {}, MEAN),
    "first token, normalized": (BODY, {}, FIRST),
    "masked words": (WORDS, {}, {}),
    "masked words, untied": (WORDS, {"tie_word_embeddings": False}, {}),
    "masked words, relu": (WORDS, {"hidden_act": "relu"}, {}),
    "masked words, odd vocabulary": (WORDS, {"vocab_size": 101}, {}),
    "one label": (TEXT, {"num_labels": 1}, {}),
    "seven labels, tanh gelu": (TEXT, {"num_labels": 7, "hidden_act": "gelu_new"}, {}),
    "tokens": (TOKENS, {"num_labels": 5}, {}),
    "spans": (SPANS, {"num_labels": 2}, {}),
    "choices": (CHOICE, {}, {}),
    "one head": (BODY, {"num_attention_heads": 1}, {}),
    "three heads of 12": (WORDS, {"hidden_size": 36, "num_attention_heads": 3}, {}),
    "seven heads of 5": (BODY, {"hidden_size": 35, "num_attention_heads": 7}, {}),
    "three heads of 1": (BODY, {"hidden_size": 3, "num_attention_heads": 3}, {}),
    "heads of 64": (BODY, {"hidden_size": 128, "num_attention_heads": 2}, {}),
    "one layer": (BODY, {"num_hidden_layers": 1}, {}),
    "five layers": (BODY, {"num_hidden_layers": 5}, {}),
    "odd inner size, silu": (BODY, {"intermediate_size": 33, "hidden_act": "silu"}, {}),
    "large epsilon": (WORDS, {"layer_norm_eps": 0.5}, {}),
}
OWN: dict[str, Rows] = {
    MPNET: {
        "rows that no distance reaches": (BODY, {"relative_attention_num_buckets": 50}, {}),
        "distances beyond every bucket": (BODY, {"max_position_embeddings": 302}, {}),
        "few positions": (BODY, {"max_position_embeddings": 9}, {}),
        "one position": (BODY, {"max_position_embeddings": 3}, {}),
        "another padding in the config": (WORDS, {"pad_token_id": 5}, {}),
    },
    DEBERTA: {
        "the paper's head": (WORDS, {"legacy": False}, {}),
        "the paper's head, relu": (WORDS, {"legacy": False, "hidden_act": "relu"}, {}),
        "narrow embeddings": (WORDS, {"embedding_size": 20}, {}),
        "narrow embeddings with positions and segments": (
            WORDS, {"embedding_size": 9, "position_biased_input": True, "type_vocab_size": 2}, {}
        ),
        "absolute positions, too": (BODY, {"position_biased_input": True}, {}),
        "one segment": (TEXT, {"type_vocab_size": 1}, {}),
        "three segments": (BODY, {"type_vocab_size": 3}, {}),
        "a pooler with tanh": (TEXT, {"pooler_hidden_act": "tanh"}, {}),
        "choices by a pooler with relu": (CHOICE, {"pooler_hidden_act": "relu"}, {}),
        "contents to positions": (BODY, {"pos_att_type": ["c2p"]}, {}),
        "positions to contents": (BODY, {"pos_att_type": "P2C"}, {}),
        "both as text": (BODY, {"pos_att_type": "p2c|c2p"}, {}),
        "neither": (BODY, {"pos_att_type": []}, {}),
        "own projections": (BODY, {"share_att_key": False}, {}),
        "own projections, contents to positions": (BODY, {"share_att_key": False, "pos_att_type": ["c2p"]}, {}),
        "own projections, positions to contents": (BODY, {"share_att_key": False, "pos_att_type": ["p2c"]}, {}),
        "positions not normalized": (BODY, {"norm_rel_ebd": "none"}, {}),
        "absolute positions only": (BODY, {"relative_attention": False, "position_biased_input": True}, {}),
        "no positions at all": (BODY, {"relative_attention": False, "pos_att_type": None}, {}),
        "a row a distance": (BODY, {"position_buckets": -1}, {}),
        "fewer rows than distances": (BODY, {"position_buckets": -1, "max_relative_positions": 9}, {}),
        "an odd number of buckets": (BODY, {"position_buckets": 7}, {}),
        "buckets for farther texts": (BODY, {"position_buckets": 10, "max_relative_positions": 128}, {}),
        "buckets for shorter texts": (BODY, {"position_buckets": 8, "max_relative_positions": 20}, {}),
        "more buckets than distances": (BODY, {"position_buckets": 256, "max_relative_positions": 512}, {}),
        "v3's buckets over their whole reach": (
            BODY, {"position_buckets": 256, "max_position_embeddings": 512, "num_hidden_layers": 1}, {}
        ),
        "v2-xlarge's convolution": (WORDS, {"conv_kernel_size": 3, "conv_act": "gelu"}, {}),
        "a wide convolution in groups": (BODY, {"conv_kernel_size": 5, "conv_groups": 2}, {}),
        "a convolution of one": (BODY, {"conv_kernel_size": 1, "conv_act": "relu"}, {}),
        "few positions": (BODY, {"max_position_embeddings": 7}, {}),
        "one position": (BODY, {"max_position_embeddings": 1}, {}),
    },
}  # fmt: skip
CASES = [(family, name) for family in OWN for name in (*COMMON, *OWN[family])]


@dataclass(frozen=True)
class Case:
    model: Any  # of torch
    options: dict[str, Any]
    bundle: Bundle


@pytest.fixture(scope="module", params=CASES, ids=[f"{family}, {name}" for family, name in CASES])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family, name = request.param
    kind, config, options = (COMMON | OWN[family])[name]
    model = tiny.encoder(family, kind, seed=len(name), **config)
    out = export(model, tmp_path_factory.mktemp("out") / "out", dialect="all", check=False, **options)
    return Case(model, options, read_bundle(out))


def test_one_token_the_whole_context_and_a_ragged_batch_equal_torch(case: Case) -> None:
    rows = random_rows(case.model, case.bundle.manifest.context_length)
    expected = [torch_output(case.model, row, case.options) for row in rows]
    for dialect in ("fused", "standard"):
        assert furthest(case.bundle, dialect, rows, expected) < TOLERANCE


@pytest.mark.parametrize("dialect", ["fused", "standard"])
@pytest.mark.parametrize(
    ("family", "config"), [(MPNET, {}), (DEBERTA, {}), (DEBERTA, {"conv_kernel_size": 3})],
    ids=["mpnet", "deberta", "deberta with a convolution"],
)  # fmt: skip
def test_tokens_that_the_mask_hides_within_a_text_are_not_seen(
    family: str, config: dict[str, Any], dialect: str, tmp_path: Path
) -> None:
    model = tiny.encoder(family, WORDS, **config)
    bundle = read_bundle(export(model, tmp_path / "out", dialect="all", check=False))
    (row,), mask = random_rows(model, 40, (9,)), [1, 1, 1, 0, 0, 1, 1, 0, 1]
    (ours,) = our_outputs(bundle, dialect, [row], [mask])
    shown = np.array(mask, bool)
    assert tiny.furthest(ours[shown], torch_output(model, row, {}, mask)[shown]) < TOLERANCE
    assert np.abs(ours[shown] - our_outputs(bundle, dialect, [row])[0][shown]).max() > 100 * TOLERANCE


def test_the_buckets_of_mpnet_are_those_of_torch_for_every_distance() -> None:
    distance = np.arange(-9000, 9001)
    expected = MPNetEncoder.relative_position_bucket(torch.tensor(-distance)).numpy()
    assert (mpnet.buckets(distance) == expected).all()
    assert expected.max() == mpnet.BUCKETS - 1


@pytest.mark.parametrize(
    ("count", "reach"), [(256, 512), (256, 1024), (256, 300), (64, 512), (8, 40), (7, 40), (3, 9), (2, 10)]
)
def test_the_buckets_of_deberta_are_those_of_torch_for_every_distance(count: int, reach: int) -> None:
    c = deberta_v2.DebertaConfig(position_buckets=count, max_relative_positions=reach)
    distance = np.arange(-9000, 9001)
    expected = make_log_bucket_position(torch.tensor(distance), count, reach).long().numpy()
    assert (deberta_v2.buckets(c, distance) == expected).all()


@pytest.mark.parametrize("family", [MPNET, DEBERTA])
@pytest.mark.parametrize("kind", [BODY, WORDS, TEXT, CHOICE, TOKENS, SPANS])
def test_a_checkpoint_is_checked_against_torch_and_its_body_exported_alone(
    family: str, kind: str, tmp_path: Path
) -> None:
    model = tiny.encoder(family, kind)
    folder = tiny.save(model, tmp_path / "checkpoint", tiny.wordpiece())
    manifest = read_bundle(export(folder, tmp_path / "out")).manifest
    assert manifest.parity is not None and manifest.parity["max_abs_error"] < TOLERANCE
    assert manifest.parity["against"].startswith("transformers ") and manifest.parity["largest_output"] > 0.1
    assert (manifest.family, manifest.context_length) == (family, 40)
    bundle = read_bundle(export(folder, tmp_path / "body", task="feature-extraction", check=False))
    rows = random_rows(model, 40)
    expected = [torch_output(model.base_model, row, {}) for row in rows]
    assert furthest(bundle, "fused", rows, expected) < TOLERANCE


def test_mpnets_context_is_what_padding_leaves_of_the_positions(tmp_path: Path) -> None:
    model = tiny.encoder(MPNET, BODY, max_position_embeddings=20)
    assert read_bundle(export(model, tmp_path / "out", check=False)).manifest.context_length == 18
    with torch.no_grad():
        model(torch.full((1, 18), 9))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, 19), 9))


def test_mpnet_keeps_distances_not_pairs(tmp_path: Path) -> None:
    small, large = (
        export(tiny.encoder(MPNET, BODY, max_position_embeddings=size), tmp_path / f"{size}", check=False)
        for size in (102, 402)
    )
    grown = (large / "model.onnx.data").stat().st_size - (small / "model.onnx.data").stat().st_size
    rows = 300 * 4 * 32 + 600 * 4 * 4  # of positions, and of distances for four heads, in bytes
    assert abs(grown - rows) <= 2 * 4096  # a page at most between two tensors


Change = Callable[[dict[str, Any]], dict[str, Any]]
OLD: dict[str, Change] = {
    "gamma and beta": lambda w: {
        name.replace("orm.weight", "orm.gamma").replace("orm.bias", "orm.beta"): array for name, array in w.items()
    },
    "no prefix": lambda w: {
        name.split(".", 1)[1]: array for name, array in w.items() if name.startswith(("mpnet.", "deberta."))
    },
    "buffers and heads of pretraining": lambda w: w | {
        "embeddings.position_ids": np.arange(40)[None],
        "lm_predictions.lm_head.dense.weight": np.ones((32, 32), np.float32),
        "mask_predictions.classifier.weight": np.ones((1, 32), np.float32),
        "deberta.embeddings.position_embeddings.weight": np.ones((40, 32), np.float32),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "change"), [(DEBERTA, "gamma and beta"), (DEBERTA, "buffers and heads of pretraining"),
                           (MPNET, "gamma and beta"), (DEBERTA, "no prefix"), (MPNET, "no prefix")]
)  # fmt: skip
def test_checkpoints_of_old_days_are_understood(family: str, change: str, tmp_path: Path) -> None:
    model = tiny.encoder(family, WORDS)
    folder = tiny.save(model, tmp_path / "checkpoint", tiny.wordpiece())
    before = load_file(folder / "model.safetensors")
    after = OLD[change](before)
    assert set(after) != set(before)
    save_file({name: np.ascontiguousarray(array) for name, array in after.items()}, folder / "model.safetensors")
    bundle = read_bundle(export(folder, tmp_path / "out", task="feature-extraction", check=False))
    rows = random_rows(model, 40)
    assert furthest(bundle, "fused", rows, [torch_output(model.base_model, row, {}) for row in rows]) < TOLERANCE


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    (MPNET, {}, {"relative_attention_num_buckets": 16}, "num_buckets is 16, expected .* 32 or more"),
    (MPNET, {}, {"relative_attention_num_buckets": 33}, r"bias\.weight has shape \[32, 4\], .*33, 4"),
    (MPNET, {}, {"max_position_embeddings": 2}, "max_position_embeddings is 2, expected .* 3 or more"),
    (MPNET, {}, {"num_attention_heads": 5}, "hidden_size=32 is not a multiple of num_attention_heads=5"),
    (MPNET, {}, {"quantization_config": {"bits": 4}}, "quantization_config=.* is not supported"),
    (DEBERTA, {}, {"pos_att_type": ["c2p", "p2p"]}, r"pos_att_type=\['c2p', 'p2p'\] is not supported .*c2p, p2c"),
    (DEBERTA, {}, {"pos_att_type": "c2p|p2p"}, r"pos_att_type='c2p\|p2p' is not supported"),
    (DEBERTA, {}, {"pos_att_type": 3}, "pos_att_type=3 is not supported"),
    (DEBERTA, {}, {"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd='batch_norm' is not supported"),
    (DEBERTA, {}, {"norm_rel_ebd": "none"}, r"have no place in the graph: encoder\.LayerNorm\.bias"),
    (DEBERTA, {}, {"share_att_key": False}, r"lacks the tensor .*\.pos_key_proj\.weight"),
    (DEBERTA, {"share_att_key": False}, {"share_att_key": True}, r"no place in the graph: .*pos_key_proj\.bias"),
    (DEBERTA, {}, {"attention_head_size": 16}, "attention_head_size=16 is not supported"),
    (DEBERTA, {}, {"pooler_hidden_size": 16}, "pooler_hidden_size=16 is not supported"),
    (DEBERTA, {}, {"position_buckets": 1}, "position_buckets=1 with .*=40 gives distances up to 39"),
    (DEBERTA, {}, {"position_buckets": 60, "max_relative_positions": 31}, "=60 with .*=31 gives dist"),
    (DEBERTA, {}, {"position_buckets": 10}, r"rel_embeddings\.weight has shape \[16, 32\], .*\[20, 32\]"),
    (DEBERTA, {}, {"position_biased_input": True}, r"lacks the tensor embeddings\.position_embeddings\.weight"),
    (DEBERTA, {}, {"conv_kernel_size": 3}, r"lacks the tensor encoder\.conv\.conv\.weight"),
    (DEBERTA, {}, {"conv_kernel_size": 4}, "conv_kernel_size=4 with conv_groups=1 is not supported"),
    (DEBERTA, {}, {"conv_kernel_size": 3, "conv_groups": 5}, "conv_groups=5 is not .* divide hidden_size=32"),
    (DEBERTA, {"conv_kernel_size": 3}, {"conv_act": "snake"}, "the activation 'snake' is not supported"),
    (DEBERTA, {"legacy": False}, {"legacy": True}, "set legacy to false: the checkpoint holds the paper's head"),
    (DEBERTA, {}, {"legacy": False}, r"lacks the tensor lm_predictions\.lm_head\.dense\.weight"),
    (DEBERTA, {}, {"type_vocab_size": 2}, r"lacks the tensor embeddings\.token_type_embeddings\.weight"),
    (DEBERTA, {}, {"type_vocab_size": -1}, "type_vocab_size is -1, expected a whole number of 0 or more"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "made", "fields", "match"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_config_that_is_not_implemented_is_refused_by_field_and_value(
    family: str, made: dict[str, Any], fields: dict[str, Any], match: str, tmp_path: Path
) -> None:
    folder = tiny.save(tiny.encoder(family, WORDS, **made), tmp_path / "checkpoint", tiny.wordpiece())
    tiny.change_json(folder / "config.json", **fields)
    tiny.refused(folder, match, tmp_path)


@pytest.mark.parametrize("family", [MPNET, DEBERTA])
def test_a_quantized_model_answers_close_to_its_source(family: str, tmp_path: Path) -> None:
    model = tiny.encoder(family, TEXT, num_labels=3)
    source = export(model, tmp_path / "out", check=False)
    rows: list[Row] = random_rows(model, 40)
    before = np.stack(our_outputs(read_bundle(source), "fused", rows))
    for recipe, far in (("int8", 0.05), ("int4", 0.5)):
        bundle = read_bundle(quantize(source, tmp_path / recipe, recipe=recipe))
        error = np.abs(np.stack(our_outputs(bundle, "fused", rows)) - before).mean()
        assert 0 < error < far * np.abs(before).max()
        assert bundle.manifest.recipe is not None and bundle.manifest.recipe["quantized"] >= 8
