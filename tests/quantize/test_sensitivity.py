"""What it does to a model to quantize one part alone, against the same computed from bundles that are loaded."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tiny

import torchless
from torchless.errors import InputError, QuantizationError
from torchless.export import export
from torchless.quantize import quantize
from torchless.quantize.job import Job
from torchless.quantize.questions import TOKENS, questions
from torchless.quantize.recipe_file import write_recipe
from torchless.quantize.recipes import RECIPES
from torchless.quantize.sensitivity import only, parts_of, sensitivity

TEXT = "\n\n".join(tiny.SENTENCES)
LABELLED = list(zip(tiny.SENTENCES, ["ham", "spam", "ham", "unsure", "ham", "spam"], strict=True))


@pytest.fixture
def text_file(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "text.txt"


@pytest.fixture
def mails(tmp_path):
    lines = [json.dumps({"text": text, "label": label}) for text, label in LABELLED]
    (tmp_path / "mails.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "mails.jsonl"


def alone(bundle, name, recipe, out, data):
    """The bundle with one matrix quantized, loaded."""
    job = Job(bundle, None, verify=False)
    fitted = job.fit(RECIPES[recipe])
    part = next(part for part in parts_of(job, fitted) if part.name == name)
    return torchless.load(quantize(bundle, out, recipe=only(fitted, [part]), data=data))


def log_softmax(logits):
    logits = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def records(found):
    return {one.name: one for one in found}


def test_a_generators_error_and_loss_are_those_of_the_bundle_with_that_matrix_quantized(
    gpt_bundle, text_file, tmp_path
):
    name = "h.1.mlp.c_fc.weight"
    found = records(sensitivity(gpt_bundle, recipe="int4", data=text_file))[name]
    first, other = torchless.load(gpt_bundle), alone(gpt_bundle, name, "int4", tmp_path / "one", text_file)
    ids = first.tokenizer.ids(TEXT)
    divergence, rise = [], []
    for start in range(0, len(ids), first.context_length):
        window = ids[start : start + first.context_length]
        if len(window) > 1:
            one, two = (
                log_softmax(m.decoder.extend(m.decoder.new_cache(), window, keep=range(len(window) - 1)))
                for m in (first, other)
            )
            divergence += (np.exp(one) * (one - two)).sum(axis=1).tolist()
            places = np.arange(len(window) - 1)
            rise += (one[places, window[1:]] - two[places, window[1:]]).tolist()
    assert (found.metric, found.layer, found.shape) == ("kl", "h.1", (32, 128))
    assert found.error == pytest.approx(np.mean(divergence), rel=1e-2) and found.error > 1e-4
    assert found.loss == pytest.approx(np.mean(rise), rel=1e-2, abs=1e-5) and abs(found.loss) > 1e-4


def test_a_classifiers_error_and_loss_are_those_of_the_bundle_with_that_matrix_quantized(
    bert_bundles, mails, tmp_path
):
    name, bundle = "encoder.layer.1.output.dense.weight", bert_bundles["text-classification"]
    found = records(sensitivity(bundle, recipe="int4", data=mails))[name]
    models = torchless.load(bundle), alone(bundle, name, "int4", tmp_path / "one", mails)
    one, two = (
        np.array([[answer.scores[label] for label in model.labels] for answer in model([t for t, _ in LABELLED])])
        for model in models
    )
    right = [models[0].labels.index(label) for _, label in LABELLED]
    rows = np.arange(len(right))
    assert found.error == pytest.approx((one * np.log(one / two)).sum(axis=1).mean(), rel=1e-2)
    assert found.loss == pytest.approx(np.log(one[rows, right] / two[rows, right]).mean(), rel=1e-2)
    assert found.metric == "kl" and found.error > 1e-6


def test_an_embeddings_error_is_the_cosine_error_of_its_vectors(bert_bundles, text_file, tmp_path):
    name, bundle = "encoder.layer.0.attention.self.qkv.weight", bert_bundles["feature-extraction"]
    found = records(sensitivity(bundle, recipe="int4", data=text_file))[name]
    one, two = (
        model(tiny.SENTENCES, truncation=True, normalize=True).astype(np.float64)
        for model in (torchless.load(bundle), alone(bundle, name, "int4", tmp_path / "one", text_file))
    )
    assert found.error == pytest.approx(1 - (one * two).sum(axis=1).mean(), rel=1e-2) and found.error > 1e-5
    assert (found.metric, found.loss) == ("cosine", None)


def test_a_masked_language_model_is_asked_for_hidden_tokens(bert_bundles, text_file):
    found = sensitivity(bert_bundles["fill-mask"], data=text_file)
    assert all(one.metric == "kl" and one.loss is not None and one.error > 0 for one in found)


def test_what_is_no_choice_is_judged_by_squares(mails, tmp_path):
    model = tiny.bert("text-classification", num_labels=1, problem_type="regression")
    bundle = export(model, tmp_path / "number", tokenizer=tiny.wordpiece(), check=False)
    text = [text for text, _ in LABELLED]
    name = "encoder.layer.0.attention.self.qkv.weight"
    found = records(sensitivity(bundle, recipe="int4", data=text))[name]
    one, two = (
        np.array([answer.score for answer in model(text, truncation=True, function_to_apply="none")])
        for model in (torchless.load(bundle), alone(bundle, name, "int4", tmp_path / "one", text))
    )
    assert found.error == pytest.approx(((one - two) ** 2).sum() / (one**2).sum(), rel=1e-2)
    assert (found.metric, found.loss) == ("squared", None)


def test_layers_come_first_and_with_what_stands_outside_they_are_the_model(gpt_bundle):
    found = sensitivity(gpt_bundle, recipe="int4")
    assert [one.name for one in found[:4]] == ["wte.weight", "wpe.weight", "h.0", "h.1"]
    assert [one.whole for one in found] == [True] * 4 + [False] * 8
    assert all(one.layer == one.name[:3] and len(one.shape) == 2 for one in found[4:])
    for layer in found[2:4]:
        inside = [one for one in found[4:] if one.layer == layer.name]
        assert len(inside) == 4 and layer.saved == sum(one.saved for one in inside)
        assert layer.shape == () and layer.error > max(one.error for one in inside) / 2
    assert all(one.loss is None for one in found)


def test_a_coarser_scheme_moves_every_matrix_further(gpt_bundle, text_file):
    coarse, fine = (sensitivity(gpt_bundle, recipe=recipe, data=text_file) for recipe in ("int4-all", "int8-block"))
    inner = [pair for pair in zip(coarse, fine, strict=True) if pair[0].name != "wpe.weight"]
    assert all(one.error > 10 * other.error > 0 for one, other in inner)


def test_a_recipe_file_and_its_kept_matrices_are_obeyed(gpt_bundle, tmp_path):
    write_recipe(only(RECIPES["int4"], []), tmp_path / "none.json")
    with pytest.raises(QuantizationError, match=r"int4 leaves every matrix of .* in float: nothing to measure"):
        sensitivity(gpt_bundle, recipe=tmp_path / "none.json")
    kept = RECIPES["int4"].record() | {"matrices": {"h.0.*": {"kind": "keep"}}}
    (tmp_path / "kept.json").write_text(json.dumps(kept))
    names = {one.name for one in sensitivity(gpt_bundle, recipe=tmp_path / "kept.json")}
    assert "h.1" in names and not any(name.startswith("h.0") for name in names)


def test_a_recipe_in_float16_is_judged_by_its_integers_alone(gpt_bundle, text_file):
    half = RECIPES["fp16-int4"]
    whole = dataclasses.replace(half, floats=32)
    pairs = zip(*(sensitivity(gpt_bundle, recipe=recipe, data=text_file) for recipe in (half, whole)), strict=True)
    assert all(one.error == other.error and one.saved > other.saved for one, other in pairs)


def test_progress_is_told_part_by_part(gpt_bundle):
    told = []
    found = sensitivity(gpt_bundle, progress=lambda *what: told.append(what))
    assert told == [("measuring sensitivity", done, len(found)) for done in range(len(found) + 1)]


def test_much_data_is_read_in_part_and_few_logits_are_kept(gpt_bundle, monkeypatch):
    job = Job(gpt_bundle, tiny.SENTENCES * 100, verify=False)
    asked = questions(job.source, job.graph, job.examples)
    assert TOKENS / 2 < sum(len(one.row.input_ids) for one in asked) <= TOKENS
    monkeypatch.setattr("torchless.quantize.questions.VALUES", 320 * 50)
    fewer = questions(job.source, job.graph, job.examples)
    assert len(fewer) == len(asked) and 50 <= sum(len(one.places) for one in fewer) <= 50 + len(asked)
    assert all(one.row.input_ids[place + 1] == right
               for one in fewer for place, right in zip(one.places, one.truth, strict=True))  # fmt: skip


@pytest.mark.parametrize("text", ["One line.", " ".join(tiny.SENTENCES * 20)])
def test_one_line_is_enough_and_a_long_one_is_cut_to_the_context(text, gpt_bundle, bert_bundles):
    for bundle in (gpt_bundle, bert_bundles["text-classification"]):
        assert all(np.isfinite(one.error) and one.error > 0 for one in sensitivity(bundle, data=[text]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"mails\.jsonl holds no text"),
        ('{"text": "A prize", "label": "junk"}', r"junk.*ham, spam, unsure"),
        ('{"txt": "A prize"}', r"line 1: text-classification needs 'text' \(there is: txt\)"),
    ],
)
def test_data_that_does_not_fit_is_refused(content, message, bert_bundles, mails):
    mails.write_text(content)
    with pytest.raises(InputError, match=message):
        sensitivity(bert_bundles["text-classification"], data=mails)


def test_data_that_is_none_and_a_bundle_that_is_quantized_are_refused(gpt_bundle, tmp_path):
    with pytest.raises(InputError, match=r"data: give a file of texts, or a list of them"):
        sensitivity(gpt_bundle, data=[])
    with pytest.raises(InputError, match=r"expected text, got int"):
        sensitivity(gpt_bundle, data=[7])
    with pytest.raises(InputError, match=r"no text of two tokens"):
        sensitivity(gpt_bundle, data=["a"])
    small = quantize(gpt_bundle, tmp_path / "int8")
    with pytest.raises(QuantizationError, match=r"int8 is quantized already \(int8\)"):
        sensitivity(small)
