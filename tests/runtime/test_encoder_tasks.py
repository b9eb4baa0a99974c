"""Classification, fill-mask and embeddings: what transformers' pipelines say, in any batch and order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import torchless
from torchless import ContextLengthError, Embedding, FillMask, GenerationError, InputError, TextClassification
from torchless.export import export
from torchless.tasks.text_classification import classify, sigmoid

CopyOf = Callable[[Path], Path]
TEXTS = [*tiny.SENTENCES[:4], "a", "", "prize 🎉"]
PAIRS = [("the union is strong", "a prize"), ("a", "Call me Ishmael. Some years ago"), ("", "x")]
WORDS = st.text("abc. 🎉", max_size=25) | st.sampled_from(tiny.SENTENCES[1:4])


def pipeline(task: str, model: Any, **options: Any) -> Any:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny.wordpiece(), pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=40,
    )  # fmt: skip
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu", **options)


CLASSIFIERS: dict[str, dict[str, Any]] = {
    "three labels": {"id2label": {0: "ham", 1: "spam", 2: "unsure"}},
    "two labels": {"num_labels": 2},
    "one label": {"num_labels": 1},
    "several at once": {"num_labels": 4, "problem_type": "multi_label_classification"},
    "a number": {"num_labels": 1, "problem_type": "regression"},
}


@pytest.mark.parametrize("config", CLASSIFIERS.values(), ids=list(CLASSIFIERS))
@pytest.mark.parametrize("function", [None, "softmax", "sigmoid", "none"])
def test_scores_equal_those_of_the_pipeline(config: dict[str, Any], function: str | None, tmp_path: Path) -> None:
    model = tiny.bert("text-classification", **config)
    options = {} if function is None else {"function_to_apply": function}
    theirs = pipeline("text-classification", model, top_k=None, **options)
    with torchless.load(export(model, tmp_path / "out", tokenizer=tiny.wordpiece())) as ours:
        pairs = [{"text": first, "text_pair": second} for first, second in PAIRS]
        expected = [theirs([text])[0] for text in TEXTS]
        expected += [theirs(pair) for pair in pairs]
        for result, wanted in zip(ours([*TEXTS, *PAIRS], **options), expected, strict=True):
            scores = {one["label"]: one["score"] for one in wanted}
            assert result.scores == pytest.approx(scores, abs=1e-5)
            assert (result.label, result.score) == (wanted[0]["label"], pytest.approx(wanted[0]["score"], abs=1e-5))
            assert list(result.scores) == list(model.config.id2label.values())


def test_a_single_text_or_pair_gives_one_result_and_a_list_gives_a_list(classifier: TextClassification) -> None:
    for text in (TEXTS[0], PAIRS[0]):
        (from_list,) = classifier([text])
        assert classifier(text) == from_list
    assert classifier([]) == []
    assert repr(classifier("a")).startswith("Classification(label=")


@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(WORDS | st.tuples(WORDS, WORDS), min_size=1, max_size=12), size=st.integers(1, 9), data=st.data()
)
def test_a_batch_of_any_size_and_order_gives_what_each_text_gives_alone(
    classifier: TextClassification, embedding: Embedding, texts: list[Any], size: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(texts))))
    shuffled = [texts[i] for i in order]
    got = classifier(shuffled, batch_size=size, truncation=True)
    vectors = embedding(shuffled, batch_size=size, truncation=True)
    for index, result, vector in zip(order, got, vectors, strict=True):
        alone = classifier(texts[index], truncation=True)
        assert result.scores == pytest.approx(alone.scores, abs=1e-5)
        assert tiny.furthest(vector, embedding(texts[index], truncation=True)) < 1e-4


@pytest.mark.parametrize("text", ["the [MASK] is strong", "a [MASK] of my [MASK]", "[MASK]"])
def test_candidates_equal_those_of_the_pipeline(
    fill_mask: FillMask, bert_models: dict[str, Any], text: str
) -> None:
    expected = pipeline("fill-mask", bert_models["fill-mask"], top_k=4)(text)
    ours = fill_mask(text, top_k=4)
    several = text.count("[MASK]") > 1
    for mine, theirs in zip(ours if several else [ours], expected if several else [expected], strict=True):
        assert [one.token_id for one in mine] == [one["token"] for one in theirs]
        assert [one.token for one in mine] == [one["token_str"] for one in theirs]
        assert [one.sequence for one in mine] == [one["sequence"] for one in theirs]
        np.testing.assert_allclose([one.score for one in mine], [one["score"] for one in theirs], atol=1e-5)
    assert fill_mask([text, "x [MASK]"], top_k=4, batch_size=1)[0] == ours


def test_embeddings_equal_the_mean_over_the_tokens_of_torch(
    embedding: Embedding, bert_models: dict[str, Any]
) -> None:
    vectors = embedding(TEXTS, batch_size=3)
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), embedding.dimension)
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            hidden = bert_models["feature-extraction"](torch.tensor([embedding.tokenizer.ids(text)]))
        assert tiny.furthest(vector, hidden.last_hidden_state[0].mean(0).numpy()) < 1e-4
    assert embedding("a").shape == (embedding.dimension,) == (32,)
    assert embedding([]).shape == (0, 32)


def test_a_text_past_the_context_is_refused_or_cut_when_asked_for(
    classifier: TextClassification, embedding: Embedding, fill_mask: FillMask, bert_models: dict[str, Any]
) -> None:
    long = "[MASK] strong " + "the union is strong " * 20
    length = len(classifier.tokenizer.ids(long))
    for model in (classifier, embedding, fill_mask):
        with pytest.raises(
            ContextLengthError, match=f"the text has {length} tokens, the model takes 40: shorten it, or pass trunc"
        ):
            model(long)
        with pytest.raises(ContextLengthError, match="the model takes 40"):
            model(["short [MASK]", long])
    expected = pipeline("text-classification", bert_models["text-classification"])(long, truncation=True)[0]
    assert classifier(long, truncation=True).score == pytest.approx(expected["score"], abs=1e-5)
    ids = classifier.tokenizer.ids(long)
    with torch.no_grad():
        hidden = bert_models["feature-extraction"](torch.tensor([[*ids[:39], 3]])).last_hidden_state[0]
    assert tiny.furthest(embedding(long, truncation=True), hidden.mean(0).numpy()) < 1e-4
    assert fill_mask(long, truncation=True, top_k=1)[0].score > 0
    assert len(classifier.tokenizer.ids(long)) == length  # the setting did not stick


@pytest.mark.parametrize("name", ["classifier", "embedding", "fill_mask"])
@pytest.mark.parametrize("value", [None, 5, b"text", {"text": "a"}, object()])
def test_what_is_no_text_is_named_by_its_type(request: pytest.FixtureRequest, name: str, value: Any) -> None:
    model = request.getfixturevalue(name)
    with pytest.raises(InputError, match=f"expected a text or a list of texts, got {type(value).__name__}"):
        model(value)
    with pytest.raises(InputError, match=f"expected text, got {type(value).__name__}"):
        model(["a [MASK]", value])
    with pytest.raises(InputError, match=r"a tuple of 3: give several texts as a list"):
        model(("a", "b", "c"))


@pytest.mark.parametrize("name", ["classifier", "embedding", "fill_mask"])
@pytest.mark.parametrize("size", [0, -1, 1.5, True, None, "2"])
def test_a_batch_size_below_one_is_refused(request: pytest.FixtureRequest, name: str, size: Any) -> None:
    with pytest.raises(InputError, match=r"batch_size=.*: give a whole number of 1 or more"):
        request.getfixturevalue(name)(["a [MASK]"], batch_size=size)


@pytest.mark.parametrize("top_k", [0, -1, 1.5, True, None])
def test_a_number_of_candidates_below_one_is_refused(fill_mask: FillMask, top_k: Any) -> None:
    with pytest.raises(InputError, match=r"top_k=.*: give a whole number of 1 or more"):
        fill_mask("a [MASK]", top_k=top_k)


def test_a_text_without_a_mask_and_an_unknown_function_are_refused(
    fill_mask: FillMask, classifier: TextClassification
) -> None:
    with pytest.raises(InputError, match=r"no \[MASK\] in 'the union': mark the word to fill in with it"):
        fill_mask(["a [MASK]", "the union"])
    with pytest.raises(InputError, match="function_to_apply='tanh': give softmax, sigmoid or none"):
        classifier("a", function_to_apply="tanh")


@pytest.mark.parametrize("task", list(tiny.BERTS))
def test_outputs_that_are_no_numbers_are_an_error(
    task: str, bert_bundles: dict[str, Path], copy_of: CopyOf
) -> None:
    bundle = copy_of(bert_bundles[task])
    data = np.fromfile(bundle / "model.onnx.data", np.float32)
    data[:] = np.nan
    data.tofile(bundle / "model.onnx.data")
    with (
        torchless.load(bundle) as model,
        pytest.raises(GenerationError, match="are not numbers: the bundle is damaged"),
    ):
        model("a [MASK]")


def test_a_tokenizer_with_more_tokens_than_the_model_is_said(
    bert_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    model = tiny.bert("feature-extraction", vocab_size=50)
    tokenizer = bert_checkpoints["feature-extraction"] / "tokenizer.json"
    with (
        torchless.load(export(model, tmp_path / "out", tokenizer=tokenizer)) as ours,
        pytest.raises(InputError, match="the tokenizer has more tokens than the model: they are not of one"),
    ):
        ours("the union is strong and its people are stronger")


def test_sigmoid_does_not_overflow_and_classify_needs_no_graph() -> None:
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        np.testing.assert_allclose(sigmoid(np.array([[-1e4, 0, 1e4]], np.float32)), [[0, 0.5, 1]])
    results = classify(np.array([[1, 3], [2, -1]], np.float32), ["ham", "spam"], lambda logits: logits)
    assert [(one.label, one.score) for one in results] == [("spam", 3.0), ("ham", 2.0)]
    assert classify(np.zeros((0, 2), np.float32), ["ham", "spam"], sigmoid) == []
