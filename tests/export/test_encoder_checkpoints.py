"""Checkpoints of DistilBERT, RoBERTa, ELECTRA and ALBERT: old names, other heads, refusals, quantized ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from encoders import furthest, our_outputs, random_rows, torch_output
from safetensors.numpy import load_file, save_file

from torchless.bundle import read_bundle
from torchless.export import export
from torchless.quantize import quantize

TOLERANCE = 1e-4
FAMILIES = ["distilbert", "roberta", "xlm-roberta", "camembert", "electra", "albert"]
WORDS, TEXT, CHOICE = "ForMaskedLM", "ForSequenceClassification", "ForMultipleChoice"
KINDS = (WORDS, TEXT, CHOICE, "ForTokenClassification", "ForQuestionAnswering")
HEADED = [(family, kind) for family in FAMILIES for kind in KINDS]
HEADED += [("electra", "ForPreTraining"), ("albert", "ForPreTraining")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix", [True, False], ids=["with the body's prefix", "bare"])
def test_names_of_old_days_are_understood(family: str, prefix: bool, tmp_path: Path) -> None:
    model = tiny.encoder(family, "Model")
    folder = tiny.save(model, tmp_path / "checkpoint", tiny.wordpiece())
    tensors = load_file(folder / "model.safetensors")
    old = {
        model.base_model_prefix * prefix + "." * prefix
        + name.replace("orm.weight", "orm.gamma").replace("orm.bias", "orm.beta"): array
        for name, array in tensors.items()
    }  # fmt: skip
    old[f"{model.base_model_prefix}.embeddings.position_ids"] = np.arange(40)[None]
    assert sum(name.endswith((".gamma", ".beta")) for name in old) >= 6
    save_file(old, folder / "model.safetensors")
    bundle = read_bundle(export(folder, tmp_path / "out", check=False))
    rows = random_rows(model, 40)
    assert furthest(bundle, "fused", rows, [torch_output(model, row, {}) for row in rows]) < TOLERANCE


@pytest.mark.parametrize(("family", "kind"), HEADED)
def test_the_body_is_exported_from_a_checkpoint_with_any_head(family: str, kind: str, tmp_path: Path) -> None:
    model = tiny.encoder(family, kind)
    bundle = read_bundle(export(model, tmp_path / "out", task="feature-extraction", check=False))
    rows = random_rows(model, 40)
    expected = [torch_output(model.base_model, row, {}) for row in rows]
    assert furthest(bundle, "fused", rows, expected) < TOLERANCE


@pytest.mark.parametrize("family", ["roberta", "albert"])
def test_a_tied_head_may_come_with_equal_copies_only(family: str, tmp_path: Path) -> None:
    model = tiny.encoder(family, WORDS)
    folder = tiny.save(model, tmp_path / "checkpoint", tiny.wordpiece())
    decoder = {"roberta": "lm_head.decoder", "albert": "predictions.decoder"}[family]
    tensors = load_file(folder / "model.safetensors")
    table = tensors[f"{model.base_model_prefix}.embeddings.word_embeddings.weight"]
    save_file(tensors | {f"{decoder}.weight": table}, folder / "model.safetensors")
    export(folder, tmp_path / "same", check=False)
    save_file(tensors | {f"{decoder}.weight": table * 2}, folder / "model.safetensors")
    tiny.refused(folder, rf"ties {decoder}\.weight to another tensor, but their values differ", tmp_path)


@pytest.mark.parametrize("family", ["distilbert", "roberta", "electra", "albert"])
def test_a_quantized_model_answers_close_to_its_source(family: str, tmp_path: Path) -> None:
    model = tiny.encoder(family, TEXT, num_labels=3)
    source = export(model, tmp_path / "out", check=False)
    rows = random_rows(model, 40)
    before = np.stack(our_outputs(read_bundle(source), "fused", rows))
    for recipe, far in (("int8", 0.05), ("int4", 0.5)):
        bundle = read_bundle(quantize(source, tmp_path / recipe, recipe=recipe))
        error = np.abs(np.stack(our_outputs(bundle, "fused", rows)) - before).mean()
        assert 0 < error < far * np.abs(before).max()
        assert bundle.manifest.recipe is not None and bundle.manifest.recipe["quantized"] >= 8


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("roberta", TEXT, {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' is not"),
    ("roberta", TEXT, {"is_decoder": True}, "is_decoder=True is not supported"),
    ("roberta", TEXT, {"architectures": ["RobertaForCausalLM"]}, "RobertaForCausalLM is not supported"),
    ("roberta", TEXT, {"pad_token_id": 41}, "max_position_embeddings=42 leaves no position behind pad_token_id=41"),
    ("roberta", TEXT, {"pad_token_id": -1}, "pad_token_id is -1, expected a whole number of 0 or more"),
    ("roberta", TEXT, {"type_vocab_size": 2}, r"token_type_embeddings\.weight has shape \[1, 32\], .* \[2, 32\]"),
    ("roberta", TEXT, {"num_attention_heads": 5}, "hidden_size=32 is not a multiple of num_attention_heads=5"),
    ("roberta", TEXT, {"num_hidden_layers": 1}, r"have no place in the graph: encoder\.layer\.1\."),
    ("xlm-roberta", TEXT, {"architectures": ["RobertaModel"]}, "the architecture RobertaModel is not supported"),
    ("distilbert", TEXT, {"n_heads": 5}, "dim=32 is not a multiple of n_heads=5"),
    ("distilbert", TEXT, {"hidden_size": 32}, "hidden_size and dim, which are two names for one thing"),
    ("distilbert", TEXT, {"activation": "geglu"}, "the activation 'geglu' is not supported"),
    ("distilbert", TEXT, {"pruned_heads": {"0": [1]}}, "pruned_heads=.* is not supported"),
    ("distilbert", TEXT, {"hidden_dim": 0}, "hidden_dim is 0, expected a whole number of 1 or more"),
    ("electra", CHOICE, {"summary_type": "last"}, "summary_type='last' is not supported"),
    ("electra", CHOICE, {"summary_type": "cls_index"}, "summary_type='cls_index' is not supported"),
    ("electra", CHOICE, {"summary_use_proj": False}, "summary_use_proj=False is not supported"),
    ("electra", CHOICE, {"summary_activation": "tanh"}, "summary_activation='tanh' is not supported"),
    ("electra", CHOICE, {"summary_proj_to_labels": True}, "summary_proj_to_labels=True is not supported"),
    ("electra", TEXT, {"embedding_size": 32}, r"word_embeddings\.weight has shape \[\d+, 16\]"),
    ("electra", TEXT, {"quantization_config": {"bits": 4}}, "quantization_config=.* is not supported"),
    ("albert", TEXT, {"num_hidden_groups": 4}, "num_hidden_groups=4 is more than num_hidden_layers=3"),
    ("albert", TEXT, {"num_hidden_groups": 2}, r"lacks the tensor encoder\.albert_layer_groups\.1\."),
    ("albert", TEXT, {"inner_group_num": "2"}, "inner_group_num is '2', expected a whole number"),
    ("albert", TEXT, {"embedding_size": 8}, r"word_embeddings\.weight has shape \[\d+, 16\]"),
    ("albert", TEXT, {"hidden_act": "snake"}, "the activation 'snake' is not supported"),
]


@pytest.mark.parametrize(("family", "kind", "fields", "match"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_config_that_is_not_implemented_is_refused_by_field_and_value(
    family: str, kind: str, fields: dict[str, Any], match: str, tmp_path: Path
) -> None:
    folder = tiny.save(tiny.encoder(family, kind), tmp_path / "checkpoint", tiny.wordpiece())
    tiny.change_json(folder / "config.json", **fields)
    tiny.refused(folder, match, tmp_path)


def test_the_way_electra_sums_a_text_up_matters_to_choices_only(tmp_path: Path) -> None:
    export(tiny.encoder("electra", TEXT, summary_type="last", summary_use_proj=False), tmp_path / "out")
