"""What cannot be exported is refused by name, and nothing is left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

CopyOf = Callable[[Path], Path]


@pytest.fixture
def gpt2(gpt_checkpoint: Path, copy_of: CopyOf) -> Path:
    return copy_of(gpt_checkpoint)


@pytest.fixture
def classifier_folder(bert_checkpoints: dict[str, Path], copy_of: CopyOf) -> Path:
    return copy_of(bert_checkpoints["text-classification"])


GPT2_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"add_cross_attention": True}, "add_cross_attention=True is not supported"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder=True is not supported"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads=.* is not supported"),
    ({"quantization_config": {"bits": 4}}, "quantization_config=.* is not supported"),
    ({"activation_function": "snake"}, "the activation 'snake' is not supported .supported: .*gelu_new"),
    ({"activation_function": 3}, "activation_function is 3, expected text"),
    ({"model_type": "mamba"}, "model_type='mamba' is not supported .supported: albert, bert, .*gpt2"),
    ({"model_type": ["gpt2"]}, "model_type=.* is not supported"),
    ({"model_type": ...}, "model_type=None is not supported"),
    ({"architectures": ["GPT2ForTokenClassification"]}, "the architecture GPT2ForTokenClassification"),
    ({"architectures": []}, "the architecture .none. is not supported"),
    ({"architectures": "GPT2LMHeadModel"}, "the architecture .none. is not supported"),
    ({"architectures": 5}, "the architecture .none. is not supported"),
    ({"n_head": 5}, "n_embd=32 is not a multiple of n_head=5"),
    ({"n_head": 0}, "n_head is 0, expected a whole number of 1 or more"),
    ({"n_layer": "two"}, "n_layer is 'two', expected a whole number"),
    ({"n_layer": True}, "n_layer is True, expected a whole number"),
    ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon is '1e-5', expected a number"),
    ({"scale_attn_weights": 1}, "scale_attn_weights is 1, expected true or false"),
    ({"n_layer": 3}, r"lacks the tensor h\.2\.ln_1\.weight"),
    ({"n_layer": 1}, r"these tensors have no place in the graph: h\.1\..* and 8 more"),
    ({"vocab_size": 321}, r"wte\.weight has shape \[320, 32\], config\.json makes it \[321, 32\]"),
    ({"n_positions": 63}, r"wpe\.weight has shape \[64, 32\], config\.json makes it \[63, 32\]"),
    ({"n_inner": 100}, r"h\.0\.mlp\.c_fc\.weight has shape \[32, 128\], config\.json makes it \[32, 100\]"),
    ({"tie_word_embeddings": False}, r"lacks the tensor lm_head\.weight"),
]


@pytest.mark.parametrize(("fields", "match"), GPT2_CONFIGS, ids=lambda value: str(value)[:40])
def test_a_gpt2_config_that_is_not_implemented_is_refused_by_field_and_value(
    fields: dict[str, Any], match: str, gpt2: Path, tmp_path: Path
) -> None:
    tiny.change_json(gpt2 / "config.json", **fields)
    tiny.refused(gpt2, match, tmp_path)


BERT_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' is not supported"),
    ({"position_embedding_type": "relative_key_query"}, "position_embedding_type='relative_key_query'"),
    ({"is_decoder": True}, "is_decoder=True is not supported"),
    ({"add_cross_attention": True}, "add_cross_attention=True is not supported"),
    ({"quantization_config": {"quant_method": "awq"}}, "quantization_config=.*awq.* is not supported"),
    ({"hidden_act": "geglu"}, "the activation 'geglu' is not supported"),
    ({"num_attention_heads": 5}, "hidden_size=32 is not a multiple of num_attention_heads=5"),
    ({"architectures": ["BertForCausalLM"]}, "BertForCausalLM is not supported"),
    (
        {"architectures": ["BertForQuestionAnswering"]},
        "has no layer qa_outputs, in which a BertForQuestionAnswering ends",
    ),
    ({"type_vocab_size": 3}, r"token_type_embeddings\.weight has shape \[2, 32\], config\.json makes it \[3, 32\]"),
    ({"id2label": {"0": "ham", "1": "spam"}}, "id2label names 2 labels, the classifier has 3"),
    ({"id2label": {"1": "a", "2": "b", "3": "c"}}, "id2label does not number its labels 0, 1, 2"),
    ({"id2label": {"x": "a"}}, "id2label does not number its labels 0, 1, 2"),
    ({"id2label": ["a", "b", "c"]}, "id2label does not number its labels 0, 1, 2"),
    ({"id2label": {"0": "ham", "1": "ham", "2": "spam"}}, "id2label gives several labels the name 'ham'"),
    ({"problem_type": "ranking"}, "problem_type='ranking' is unknown .known: single_label"),
]


@pytest.mark.parametrize(("fields", "match"), BERT_CONFIGS, ids=lambda value: str(value)[:40])
def test_a_bert_config_that_is_not_implemented_is_refused_by_field_and_value(
    fields: dict[str, Any], match: str, classifier_folder: Path, tmp_path: Path
) -> None:
    tiny.change_json(classifier_folder / "config.json", **fields)
    tiny.refused(classifier_folder, match, tmp_path)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"task": "translation"}, "task='translation' is not supported for gpt2 .supported: .*text-generation"),
        ({"task": "fill-mask"}, "task='fill-mask' is not supported for gpt2"),
        ({"dialect": "fast"}, "dialect='fast' is unknown .known: fused, standard, all"),
        ({"pooling": "mean"}, "pooling and normalize belong to feature-extraction, not to text-generation"),
        ({"normalize": False}, "pooling and normalize belong to feature-extraction"),
        ({"tokenizer": 5}, "tokenizer= is a int: give a path"),
        ({"tokenizer": "nowhere"}, "the tokenizer nowhere is missing: give a tokenizer.json, vocab"),
        ({"tokenizer": "nope.pkl"}, "the tokenizer nope.pkl is missing: .* nanoGPT's meta.pkl"),
    ],
    ids=str,
)
def test_an_option_that_does_not_fit_is_refused(
    options: dict[str, Any], match: str, gpt_checkpoint: Path, tmp_path: Path
) -> None:
    tiny.refused(gpt_checkpoint, match, tmp_path, **options)


def test_an_unknown_pooling_is_refused(bert_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tiny.refused(
        bert_checkpoints["feature-extraction"], "the pooling 'median' is not supported", tmp_path, pooling="median"
    )


@pytest.mark.parametrize("source", [None, 5, object(), b"folder"])
def test_a_source_that_is_neither_a_folder_nor_a_model_is_refused(source: Any, tmp_path: Path) -> None:
    tiny.refused(source, f"cannot export a {type(source).__name__}: give a checkpoint's folder", tmp_path)


MODULES: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
    ([{"type": "sentence_transformers.models.Dense"}], {}, "the module 'Dense' is not supported"),
    ([{"type": "x.Pooling", "path": ""}], {"pooling_mode_weightedmean_tokens": True}, "weightedmean_tokens is not"),
    ([{"type": "x.Pooling", "path": ""}], {"pooling_mode": "weightedmean"}, "weightedmean is not supported"),
    (
        [{"type": "x.Pooling", "path": ""}],
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        "pooling by mean, cls is not supported",
    ),
    ([{"type": "x.Pooling", "path": ""}], {}, "no mode is not supported"),
]


@pytest.mark.parametrize(("modules", "pooling", "match"), MODULES, ids=lambda value: str(value)[:30])
def test_a_module_of_sentence_transformers_that_is_not_implemented_is_refused(
    modules: Any, pooling: dict[str, Any], match: str, bert_checkpoints: dict[str, Path], copy_of: CopyOf,
    tmp_path: Path,
) -> None:  # fmt: skip
    folder = copy_of(bert_checkpoints["feature-extraction"])
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "pooling").mkdir()
    (folder / "pooling" / "config.json").write_text(json.dumps(pooling))
    modules = [module | ({"path": "pooling"} if "path" in module else {}) for module in modules]
    (folder / "modules.json").write_text(json.dumps(modules))
    tiny.refused(folder, match, tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    tiny.refused(
        tmp_path / "nowhere", "nowhere is not a folder: give the folder that save_pretrained wrote", tmp_path
    )


MINILM = [
    {"idx": 0, "type": "sentence_transformers.models.Transformer", "path": ""},
    {"idx": 1, "type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
]
MODULES_JSON, LIMITS, POOLING = "modules.json", "sentence_bert_config.json", "1_Pooling/config.json"


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        (MODULES_JSON, {}, "modules.json is no list of modules"),
        (MODULES_JSON, [1], "modules.json is no list of modules"),
        (LIMITS, [1], "sentence_bert_config.json holds a list, not an object"),
        (LIMITS, {"max_seq_length": "512"}, "sentence_bert_config.json: max_seq_length is '512', expected a whole"),
        (LIMITS, {"max_seq_length": -3}, "max_seq_length is -3"),
        (LIMITS, {"max_seq_length": 0}, "max_seq_length is 0"),
        (LIMITS, {"max_seq_length": 1.5}, "max_seq_length is 1.5"),
        (LIMITS, {"max_seq_length": True}, "max_seq_length is True"),
        (POOLING, [1], "1_Pooling.config.json holds a list, not an object"),
    ],
    ids=str,
)
def test_files_of_sentence_transformers_that_hold_something_else_are_refused_by_name(
    file: str, content: Any, match: str, bert_checkpoints: dict[str, Path], copy_of: CopyOf, tmp_path: Path
) -> None:
    folder = copy_of(bert_checkpoints["feature-extraction"])
    (folder / "1_Pooling").mkdir()
    for name, sound in {MODULES_JSON: MINILM, POOLING: {"pooling_mode_cls_token": True}, file: content}.items():
        (folder / name).write_text(json.dumps(sound))
    tiny.refused(folder, match, tmp_path)


@pytest.mark.parametrize(
    "fields",
    [{"num_labels": 7}, {"hidden_act": None}, {"pad_token_id": 99_999}, {"initializer_range": "a"}],
    ids=str,
)
def test_a_config_that_transformers_refuses_is_told_in_its_words(
    fields: dict[str, Any], classifier_folder: Path, tmp_path: Path
) -> None:
    tiny.change_json(classifier_folder / "config.json", **fields)
    match = r"transformers makes no BertForSequenceClassification of it \(\w+: .+\): mend its config.json"
    tiny.refused(classifier_folder, match, tmp_path)


@pytest.mark.parametrize(
    ("task", "match"),
    [
        ("text-ranking", "text-ranking needs a head with one label, this one has ham, spam, unsure"),
        ("zero-shot-classification", 'with a label "entailment" and its opposite: this one has ham, spam, unsure'),
    ],
)
def test_a_head_that_cannot_do_the_task_is_refused(
    task: str, match: str, classifier_folder: Path, tmp_path: Path
) -> None:
    tiny.refused(classifier_folder, match, tmp_path, task=task)


def test_a_head_of_one_label_named_entailment_is_no_head_for_inference(tmp_path: Path) -> None:
    model = tiny.bert("text-classification", id2label={0: "entailment"}, label2id={"entailment": 0})
    tiny.refused(model, "this one has entailment", tmp_path, task="zero-shot-classification")


def test_a_precision_of_gguf_blocks_is_refused_where_there_are_none(
    classifier_folder: Path, tmp_path: Path
) -> None:
    tiny.refused(classifier_folder, "precision='exact' is for blocks of a GGUF file, and .* has none", tmp_path,
                 precision="exact")  # fmt: skip
    match = "precision is for the direct exporter: leave it out"
    tiny.refused(classifier_folder, match, tmp_path, precision="fp32", exporter="optimum")
