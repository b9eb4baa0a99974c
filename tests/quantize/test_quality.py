"""Quality of classifiers, language models and embeddings, against torch, scikit-learn and arithmetic by hand."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import scipy.stats
import tiny
import torch
from pairs import examples, pair
from sklearn.metrics import accuracy_score, f1_score

import torchless
from torchless.errors import InputError, QuantizationError
from torchless.export import export
from torchless.quantize.quality import measure_quality
from torchless.quantize.quality.embedding import nearest, retrieval
from torchless.quantize.quality.language import cut, greedy, shared_beginning
from torchless.quantize.results import Interval

WORDS = [
    "the",
    "future",
    "of",
    "union",
    "is",
    "strong",
    "whale",
    "ship",
    "money",
    "free",
    "prize",
    "Monday",
    "Ishmael",
]
GENERATOR = np.random.default_rng(2)
TEXTS = [" ".join(GENERATOR.choice(WORDS, count)) for count in GENERATOR.integers(2, 12, 40)]
LABELS = ["ham", "spam", "unsure"]


def values(scores):
    return {name: one.value for name, one in scores.quality.items()}


def torch_outputs(model, texts, output="logits", limit=40):
    """Each text alone, float64 [N,..]."""
    made = []
    for text in texts:
        encoding = tiny.wordpiece().encode(text)
        ids = encoding.ids if len(encoding.ids) <= limit else [*encoding.ids[: limit - 1], 3]
        with torch.no_grad():
            made.append(model(torch.tensor([ids]))[output][0].double().numpy())
    return made


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    model = tiny.bert("text-classification", id2label=dict(enumerate(LABELS)))
    with torch.no_grad():
        model.classifier.bias.sub_(torch.tensor(np.mean(torch_outputs(model, TEXTS), axis=0)))
        model.classifier.weight.mul_(3)
    return pair(model, tiny.wordpiece(), tmp_path_factory.mktemp("classifiers"), 0.1)


def test_a_classifier_is_measured_as_by_torch_and_scikit_learn(classifiers):
    logits = [np.array(torch_outputs(model, TEXTS)) for model in classifiers.torch]
    probs = [scipy.special.softmax(one, axis=1) for one in logits]
    guesses = [one.argmax(axis=1) for one in logits]
    truth = np.where(np.arange(40) % 3 == 0, guesses[1], guesses[0])
    found = measure_quality(classifiers.ours, examples(*TEXTS, label=[LABELS[i].upper() for i in truth]))
    for scores, guess in zip(found.scores, guesses, strict=True):
        assert values(scores)["accuracy"] == pytest.approx(accuracy_score(truth, guess))
        assert values(scores)["macro_f1"] == pytest.approx(f1_score(truth, guess, average="macro"))
    first, other = (values(scores) for scores in found.scores)
    assert {"agreement", "kl"}.isdisjoint(first) and 0.3 < other["agreement"] < 1 > first["accuracy"] > 0.6
    assert other["agreement"] == (guesses[0] == guesses[1]).mean()
    assert other["kl"] == pytest.approx(scipy.stats.entropy(*probs, axis=1).mean(), rel=1e-4)
    against = found.scores[1].against
    assert found.scores[0].against == {} and set(against) == {"accuracy", "macro_f1", "calibration_error"}
    assert against["accuracy"].value == pytest.approx(other["accuracy"] - first["accuracy"])
    assert [metric.name for metric in found.metrics][:3] == ["accuracy", "macro_f1", "calibration_error"]
    assert found.examples == 40 and found.notes == ()


def test_without_labels_only_closeness_to_the_first_is_measured(classifiers):
    found = measure_quality(classifiers.ours, examples(*TEXTS))
    assert found.scores[0].quality == {} and set(found.scores[1].quality) == {"agreement", "kl"}
    alone = measure_quality(classifiers.ours[:1], examples(*TEXTS))
    assert alone.metrics == () and "no labels" in alone.notes[0]


def test_a_model_beside_itself_differs_in_nothing(classifiers):
    found = measure_quality([classifiers.ours[0]] * 2, examples(*TEXTS, label=[0, 1] * 20))
    assert set(found.scores[1].against.values()) == {Interval(0, 0, 0)}
    assert found.scores[1].quality["kl"] == Interval(0, 0, 0)
    assert found.scores[1].quality["agreement"] == Interval(1, 1 - 3 / 40, 1)


def test_long_texts_are_cut_and_counted_once_and_progress_reaches_the_end(classifiers):
    steps = []
    texts = [*TEXTS[:3], "whale " * 100, "ship " * 100]
    found = measure_quality(
        classifiers.ours, examples(*texts), progress=lambda done, total: steps.append((done, total))
    )
    assert found.notes[0] == "2 of 5 texts are longer than the context of 40 tokens: they were cut."
    assert "5 examples are too few for intervals" in found.notes[1]
    assert steps[0] == (0, 10) and steps[-1] == (10, 10) and steps == sorted(steps)


def test_one_example_is_measured_and_said_to_be_too_few(classifiers):
    found = measure_quality(classifiers.ours, examples(TEXTS[0], label=["ham"]))
    assert found.examples == 1 and found.notes == (
        "One example is too few for intervals to rely on: give 30 or more.",
    )
    assert all(one.low <= one.value <= one.high for scores in found.scores for one in scores.quality.values())


def test_a_limit_takes_a_sample(classifiers):
    assert measure_quality(classifiers.ours, examples(*TEXTS), limit=7).examples == 7


def test_labels_that_the_model_lacks_are_named_with_the_models(classifiers):
    given = examples(*TEXTS[:4], label=["ham", "eggs", "Spam", 3])
    message = (
        r"data, line 2 and 1 more: labels that the model lacks: 'eggs', 3 \(it has: 0 to 2 for ham, spam, unsure\)"
    )
    with pytest.raises(InputError, match=message):
        measure_quality(classifiers.ours, given)


def test_a_model_with_several_labels_at_once_is_measured_as_by_scikit_learn(tmp_path):
    config = {"id2label": dict(enumerate(LABELS)), "problem_type": "multi_label_classification"}
    made = pair(tiny.bert("text-classification", **config), tiny.wordpiece(), tmp_path, 0.1)
    logits = [np.array(torch_outputs(model, TEXTS)) for model in made.torch]
    truth = (logits[0] + GENERATOR.normal(0, 1, logits[0].shape)) > 0
    label = [[LABELS[i] for i in np.flatnonzero(row)] for row in truth]
    found = measure_quality(made.ours, examples(*TEXTS, label=label))
    for scores, one in zip(found.scores, logits, strict=True):
        for average in ("micro", "macro"):
            expected = f1_score(truth, one >= 0, average=average, zero_division=0)
            assert values(scores)[f"{average}_f1"] == pytest.approx(expected)
    other, (p, q) = values(found.scores[1]), (scipy.special.expit(one) for one in logits)
    assert other["agreement"] == pytest.approx(((logits[0] >= 0) == (logits[1] >= 0)).mean())
    kl = (scipy.special.rel_entr(p, q) + scipy.special.rel_entr(1 - p, 1 - q)).sum(axis=1)
    assert other["kl"] == pytest.approx(kl.mean(), rel=1e-3) and other["kl"] > 0


def test_a_regression_is_measured_as_by_scipy(tmp_path):
    model = tiny.bert("text-classification", num_labels=1, problem_type="regression")
    made = pair(model, tiny.wordpiece(), tmp_path)
    one, other = (np.array(torch_outputs(model, TEXTS))[:, 0] for model in made.torch)
    truth = (one + GENERATOR.normal(0, one.std(), 40)).round(1)
    found = measure_quality(made.ours, examples(*TEXTS, label=[str(x) for x in truth]))
    assert values(found.scores[0])["pearson"] == pytest.approx(scipy.stats.pearsonr(one, truth)[0], abs=1e-5)
    assert values(found.scores[1])["spearman"] == pytest.approx(scipy.stats.spearmanr(other, truth)[0], abs=1e-5)
    assert values(found.scores[1])["distance"] == pytest.approx(np.abs(one - other).mean(), abs=1e-5)
    with pytest.raises(InputError, match="line 1: the label 'ham' is no number, and the model is a regression"):
        measure_quality(made.ours, examples("a", label=["ham"]))


@pytest.fixture(scope="module")
def gpts(tmp_path_factory):
    return pair(tiny.gpt2(), tiny.bpe(), tmp_path_factory.mktemp("gpts"), 0.05)


def torch_windows(models, texts, context=64):
    """Log-probabilities [T,V] of both models, and the tokens [T] that followed, for every window."""
    for text in texts:
        ids = tiny.bpe().encode(text).ids
        for start in range(0, len(ids), context):
            window = torch.tensor(ids[start : start + context])
            if len(window) > 1:
                with torch.no_grad():
                    yield [m(window[None]).logits[0, :-1].double().log_softmax(-1) for m in models], window[1:]


def test_perplexity_agreement_and_divergence_are_torchs_over_windows_that_do_not_overlap(gpts):
    texts = [" ".join(TEXTS), "x", TEXTS[0]]
    windows = list(torch_windows(gpts.torch, texts))
    found = measure_quality(gpts.ours, examples(*texts))
    tokens = sum(len(after) for _, after in windows)
    for i, scores in enumerate(found.scores):
        loss = -sum(both[i].gather(1, after[:, None]).sum() for both, after in windows) / tokens
        assert values(scores)["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-4)
    other = values(found.scores[1])
    kl = sum((p.exp() * (p - q)).sum() for (p, q), _ in windows) / tokens
    same = sum((p.argmax(1) == q.argmax(1)).sum() for (p, q), _ in windows) / tokens
    assert other["kl"] == pytest.approx(float(kl), rel=1e-3) and other["kl"] > 1e-3
    assert other["next_token_agreement"] == pytest.approx(float(same)) and 0.2 < same < 1
    assert found.examples == len(windows) > 2
    assert found.notes[0].startswith(f"{len(windows)} windows of at most 64 tokens that do not overlap")


def test_greedy_tokens_are_transformers_and_no_end_token_stops_them(gpts):
    prompts = [tiny.bpe().encode(text).ids[:length] for text, length in zip(TEXTS[:3], (5, 2, 9), strict=True)]
    found = greedy(gpts.ours[0][1].decoder, prompts, 20)
    for row, ids in zip(found, prompts, strict=True):
        given = torch.tensor([ids])
        made = gpts.torch[0].generate(given, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert row.tolist() == made[0, len(ids) :].tolist()


def test_greedy_agreement_ends_at_the_first_difference():
    one = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 3]])
    assert shared_beginning(one, np.array([[1, 2, 3], [1, 5, 3], [0, 2, 3]])).tolist() == [3, 1, 0]


def test_models_of_unlike_tokens_are_not_compared(gpts, tmp_path):
    model = tiny.gpt2(n_positions=32)
    vocabulary = tiny.bpe()
    vocabulary.pre_tokenizer = tiny.pre_tokenizers.ByteLevel(add_prefix_space=True)
    other = torchless.load(export(model, tmp_path / "other", tokenizer=vocabulary))
    with pytest.raises(
        InputError, match=r"other and .*fp32 split texts into other tokens: give bundles of one model"
    ):
        measure_quality([gpts.ours[0], ("other", other)], examples(TEXTS[0]))


def test_windows_are_of_two_tokens_at_least():
    assert cut([[1, 2, 3, 4, 5], [6], [7, 8]], 2) == [[1, 2], [3, 4], [7, 8]]
    assert cut([[1, 2, 3, 4, 5]], 3) == [[1, 2, 3], [4, 5]]


def test_a_text_without_two_tokens_cannot_be_foretold(gpts):
    with pytest.raises(InputError, match="no text of two tokens"):
        measure_quality(gpts.ours, examples("x"))


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    return pair(tiny.bert("feature-extraction"), tiny.wordpiece(), tmp_path_factory.mktemp("embeddings"), 0.1)


def cosines(model):
    vectors = np.array([rows.mean(axis=0) for rows in torch_outputs(model, TEXTS, "last_hidden_state")])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, vectors @ vectors.T


def test_embeddings_are_compared_as_by_torch_and_scipy(embeddings):
    found = measure_quality(embeddings.ours, examples(*TEXTS, label=[i % 4 for i in range(40)]))
    (one, left), (other, right) = (cosines(model) for model in embeddings.torch)
    scores, above = values(found.scores[1]), np.triu_indices(40, 1)
    assert scores["cosine_error"] == pytest.approx((1 - (one * other).sum(axis=1)).mean(), rel=1e-3)
    assert scores["similarity_rank"] == pytest.approx(scipy.stats.spearmanr(left[above], right[above])[0], abs=1e-3)
    tops = [[set(np.argsort(-np.delete(row, i))[:10]) for i, row in enumerate(m)] for m in (left, right)]
    overlap = np.mean([len(a & b) / 10 for a, b in zip(*tops, strict=True)])
    assert scores["neighbours"] == pytest.approx(overlap, abs=0.006) and 0.2 < overlap < 0.99
    ranks = []
    for i, row in enumerate(left):
        order = [j for j in np.argsort(-row) if j != i]
        ranks.append(next(place for place, j in enumerate(order, 1) if j % 4 == i % 4))
    assert values(found.scores[0])["retrieval"] == pytest.approx(np.mean(np.equal(ranks, 1)))
    assert values(found.scores[0])["mrr"] == pytest.approx(np.mean(1 / np.array(ranks)), abs=1e-3)
    assert "cosine_error" not in found.scores[0].quality


def test_a_text_is_never_its_own_neighbour_even_among_doubles():
    vectors = np.eye(4, dtype=np.float32)[[0] * 30 + [1] * 3]
    assert all(i not in row for i, row in enumerate(nearest(vectors)))


def test_a_text_that_is_alone_with_its_label_does_not_count():
    vectors = np.eye(3, dtype=np.float32)[[0, 0, 1]]
    assert [one.of(np.ones((1, 3)))[0] for one in retrieval(vectors, ["a", "a", "b"])] == [1, 1]
    assert retrieval(vectors, ["a", "b", "c"]) == []


def test_few_texts_have_no_ten_nearest(embeddings):
    found = measure_quality(embeddings.ours, examples(*TEXTS[:20]))
    assert "neighbours" not in found.scores[1].quality and "20 texts are too few" in found.notes[0]
    assert set(measure_quality(embeddings.ours, examples(*TEXTS[:2])).scores[1].quality) == {"cosine_error"}


def test_models_that_do_not_answer_the_same_question_are_refused(classifiers, embeddings, tmp_path):
    with pytest.raises(InputError, match="fp32 is for feature-extraction, fp32 for text-classification"):
        measure_quality([classifiers.ours[0], embeddings.ours[0]], examples("a"))
    with pytest.raises(InputError, match="there is no bundle"):
        measure_quality([], examples("a"))
    model = tiny.bert("text-classification", id2label={0: "a", 1: "b"})
    other = torchless.load(export(model, tmp_path / "other", tokenizer=tiny.wordpiece()))
    with pytest.raises(InputError, match=r"other labels \(a, b; ham, spam, unsure\)"):
        measure_quality([classifiers.ours[0], ("other", other)], examples("a"))
    short = export(tiny.bert("feature-extraction", hidden_size=16), tmp_path / "short", tokenizer=tiny.wordpiece())
    with pytest.raises(InputError, match="make vectors of 16 and 32 numbers"):
        measure_quality([embeddings.ours[0], ("short", torchless.load(short))], examples("a"))


def test_a_missing_library_is_named_with_its_extra(classifiers, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(QuantizationError, match=r"needs sklearn: pip install 'torchless\[quantize\]'"):
        measure_quality(classifiers.ours, examples(*TEXTS, label=[0, 1] * 20))
