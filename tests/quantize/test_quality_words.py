"""Quality of taggers, masked language models, and models that answer or choose: against seqeval, torch, SQuAD."""

from __future__ import annotations

import numpy as np
import pytest
import seqeval.metrics
import seqeval.scheme
import tiny
import torch
from pairs import examples, pair

import torchless
from torchless.errors import InputError
from torchless.export import export
from torchless.quantize.data import Example
from torchless.quantize.quality import measure_quality
from torchless.quantize.quality.answering import measure_answers, overlap, right
from torchless.quantize.quality.masked import hide
from torchless.quantize.quality.tagging import right as right_tags
from torchless.quantize.quality.tagging import word_tokens
from torchless.quantize.quality.watch import Watch

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
SENTENCES = [sentence.replace(",", " ,").replace(".", " .").split() for sentence in tiny.SENTENCES[:5]] * 3
GENERATOR = np.random.default_rng(4)


def values(scores):
    return {name: one.value for name, one in scores.quality.items()}


@pytest.fixture(scope="module")
def taggers(tmp_path_factory):
    model = tiny.bert("token-classification", id2label=dict(enumerate(TAGS)))
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.mul_(4)
        model.classifier.bias.sub_(model(torch.arange(5, 85).reshape(4, 20)).logits.mean((0, 1)))
    return pair(model, tiny.wordpiece(), tmp_path_factory.mktemp("taggers"), 0.1)


def torch_tags(model, words):
    """The tag of each word's first token, words given apart as transformers trains; and log-probabilities."""
    encoding = tiny.wordpiece().encode(words, is_pretokenized=True)
    with torch.no_grad():
        log_probs = model(torch.tensor([encoding.ids])).logits[0].double().log_softmax(-1)
    first = [encoding.word_ids.index(i) for i in range(len(words))]
    return [TAGS[i] for i in log_probs[first].argmax(-1)], log_probs


def test_a_tagger_is_measured_as_by_torch_and_seqeval(taggers):
    guesses = [[torch_tags(model, words)[0] for words in SENTENCES] for model in taggers.torch]
    truth = [[tag if GENERATOR.random() < 0.8 else "O" for tag in tags] for tags in guesses[0]]
    given = [
        Example("here", " ".join(w), words=tuple(w), tags=tuple(t)) for w, t in zip(SENTENCES, truth, strict=True)
    ]
    found = measure_quality(taggers.ours, given)
    for scores, guess in zip(found.scores, guesses, strict=True):
        assert values(scores)["entity_f1"] == pytest.approx(seqeval.metrics.f1_score(truth, guess))
        assert values(scores)["tag_accuracy"] == pytest.approx(seqeval.metrics.accuracy_score(truth, guess))
        assert scores.quality["entity_f1"].low < values(scores)["entity_f1"] < scores.quality["entity_f1"].high
    assert 0.1 < values(found.scores[1])["entity_f1"] < values(found.scores[0])["entity_f1"] < 1
    pairs = [[torch_tags(model, words)[1] for model in taggers.torch] for words in SENTENCES]
    tokens = sum(len(one) for one, _ in pairs)
    same = sum((one.argmax(-1) == other.argmax(-1)).sum() for one, other in pairs) / tokens
    kl = sum((one.exp() * (one - other)).sum() for one, other in pairs) / tokens
    assert values(found.scores[1])["tag_agreement"] == pytest.approx(float(same)) and 0.3 < same < 1
    assert values(found.scores[1])["kl"] == pytest.approx(float(kl), rel=1e-3)


@pytest.mark.parametrize("scheme", ["IOB2", "IOB1", "IOBES", "BILOU"])
def test_entities_are_those_of_the_models_scheme(scheme):
    prefixes = {"IOB2": "BI", "IOB1": "IB", "IOBES": "BIES", "BILOU": "BILU"}[scheme]
    labels = ["O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("PER", "LOC"))]
    truth, guess = ([list(GENERATOR.choice(labels, 12)) for _ in range(30)] for _ in range(2))
    guess = [[t if GENERATOR.random() < 0.7 else g for t, g in zip(*two, strict=True)] for two in zip(truth, guess)]
    strict = {"mode": "strict", "scheme": seqeval.scheme.BILOU} if scheme == "BILOU" else {}
    expected = seqeval.metrics.f1_score(truth, guess, **strict)
    measure = right_tags(guess, truth, labels)[0]
    assert measure.metric.name == "entity_f1" and 0.2 < expected < 0.9
    # By the library, and as the resamples count it.
    assert (measure.value, measure.of(np.ones((1, 30)))[0]) == pytest.approx((expected, expected))


def test_tags_without_prefixes_have_no_entities():
    (measure,) = right_tags([["NOUN", "VERB"], ["NOUN"]], [["NOUN", "NOUN"], ["NOUN"]], ["NOUN", "VERB"])
    assert (measure.metric.name, measure.of(np.ones((1, 2)))[0]) == ("tag_accuracy", pytest.approx(2 / 3))


@pytest.mark.parametrize("tokenizer", [tiny.wordpiece, tiny.bpe])
def test_each_word_has_its_first_token_until_the_text_is_cut(tokenizer):
    words = ["Ishmael,", "don't", "a", "\u200b", "stronger"]
    encoding = tokenizer().encode(" ".join(words))
    found = word_tokens(words, encoding)
    for word, place in zip(words, found, strict=True):
        if place is not None:
            start, end = encoding.offsets[place]
            assert " ".join(words)[start:end].strip() and word.startswith(" ".join(words)[start:end].strip())
    assert [place is None for place in found] == [False] * 3 + [tokenizer is tiny.wordpiece, False]
    encoding.truncate(encoding.ids.index(encoding.ids[found[2]]) + 1)
    assert word_tokens(words, encoding) == found[:3]


def test_words_that_are_cut_off_do_not_count(taggers):
    words = ("whale",) * 100
    found = measure_quality(taggers.ours, [Example("here", " ".join(words), words=words, tags=("O",) * 100)])
    assert "1 of 1 texts are longer than the context of 40 tokens" in found.notes[0]
    guesses = torch_tags(taggers.torch[0], words[:38])[0]
    assert values(found.scores[0])["tag_accuracy"] == pytest.approx(guesses.count("O") / 38)


def test_tags_that_the_model_lacks_are_named(taggers):
    with pytest.raises(
        InputError, match=r"here: labels that the model lacks: 'B-ORG' \(it has: 0 to 4 for O, B-PER"
    ):
        measure_quality(taggers.ours, [Example("here", "a b", words=("a", "b"), tags=("O", "B-ORG"))])


def test_masked_tokens_are_guessed_as_by_torch(tmp_path):
    made = pair(tiny.bert("fill-mask"), tiny.wordpiece(), tmp_path, 0.1)
    given = examples(*tiny.SENTENCES[:5])
    found = measure_quality(made.ours, given)
    generator, rows, truth = np.random.default_rng(0), [[], []], []
    for example in given:
        hidden, ids = hide(made.ours[0][1], example, generator, Watch(None))
        assert [hidden.ids[place] for place in hidden.masks] == [4] * len(ids)
        length = len(tiny.wordpiece().encode(example.text).ids)
        assert (
            len(ids) == max(1, round(0.15 * (length - 2)))
            and 0 < min(hidden.masks) <= max(hidden.masks) < length - 1
        )
        truth += ids
        for found_rows, model in zip(rows, made.torch, strict=True):
            with torch.no_grad():
                found_rows.append(
                    model(torch.tensor([hidden.ids])).logits[0, hidden.masks].double().log_softmax(-1)
                )
    one, other = (torch.cat(found_rows) for found_rows in rows)
    for scores, log_probs in zip(found.scores, (one, other), strict=True):
        loss = -log_probs.gather(1, torch.tensor(truth)[:, None]).mean()
        assert values(scores)["mask_loss"] == pytest.approx(float(loss), rel=1e-4)
    assert values(found.scores[1])["kl"] == pytest.approx(
        float((one.exp() * (one - other)).sum(1).mean()), rel=1e-3
    )
    same = (one.argmax(1) == other.argmax(1)).double().mean()
    assert values(found.scores[1])["mask_agreement"] == pytest.approx(float(same))


@pytest.mark.parametrize(
    ("answer", "other", "expected"),
    [
        ("The White Whale!", "white whale", 1), ("white whale", "a white ship", 0.5), ("whale", "ship", 0),
        ("", "", 1), ("the", "", 1), ("", "whale", 0), ("to be, to be", "to be", 2 / 3),
    ],
)  # fmt: skip
def test_answers_are_compared_as_in_squad(answer, other, expected):
    assert overlap(answer, other) == pytest.approx(expected)
    exact, f1 = right([answer], [Example("here", "?", "", answers=("something else", other))])
    assert f1.of(np.ones((1, 1)))[0] == pytest.approx(expected) and exact.of(np.ones((1, 1)))[0] == (expected == 1)


def test_questions_are_answered_by_both_models(tmp_path):
    made = pair(tiny.bert("question-answering"), tiny.wordpiece(), tmp_path, 0.05)
    context = tiny.SENTENCES[0]
    pairs = [(f"What is {word}?", context) for word in ("the future", "the union", "strong", "its people")]
    one, other = (model([q for q, _ in pairs], [c for _, c in pairs]) for _, model in made.ours)
    answers = [(one[0].answer, "x"), (other[1].answer,), (one[2].answer,), ("nothing of it",)]
    given = [Example("here", q, c, answers=a) for (q, c), a in zip(pairs, answers, strict=True)]
    found = measure_quality(made.ours, given)
    assert values(found.scores[0])["exact_match"] >= 0.5
    same = np.mean([a.answer == b.answer for a, b in zip(one, other, strict=True)])
    assert values(found.scores[1])["agreement"] == same
    assert values(found.scores[1])["distance"] == pytest.approx(
        np.mean([abs(a.score - b.score) for a, b in zip(one, other, strict=True)])
    )


@pytest.mark.parametrize(("answers", "impossible"), [(("a",), False), ((), True), (None, False)])
def test_a_question_without_an_answer_lets_models_give_none(answers, impossible):
    asked = []

    def model(questions, contexts, **options):
        asked.append(options)
        return [torchless.Answer("", 0.5, 0, 0)] * len(questions)

    given = [
        Example("here", "q", "c", answers=("c",) if answers else answers),
        Example("here", "q", "c", answers=answers),
    ]
    measures = measure_answers([model], given, Watch(None))[0]
    assert asked == [{"handle_impossible_answer": impossible}]
    if impossible:
        assert measures[0].of(np.ones((1, 2))).tolist() == [1]


def test_choices_and_next_sentences_are_right_or_wrong(tmp_path):
    make = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = tiny.transformers.BertConfig(
        vocab_size=tiny.wordpiece().get_vocab_size(), max_position_embeddings=40, pad_token_id=0, **make
    )
    chooser, follower = (
        torchless.load(export(tiny.uneven(kind(config), 3), tmp_path / kind.__name__, tokenizer=tiny.wordpiece()))
        for kind in (tiny.transformers.BertForMultipleChoice, tiny.transformers.BertForNextSentencePrediction)
    )
    choices = ("the ship", "a whale", "money")
    best = chooser(context="Call me", choices=choices).index
    given = [
        Example("here", "Call me", label=label, choices=choices) for label in (best, str(best), (best + 1) % 3)
    ]
    found = measure_quality([("one", chooser), ("same", chooser)], given)
    assert values(found.scores[0]) == {"accuracy": pytest.approx(2 / 3)}
    assert values(found.scores[1]) == {"accuracy": pytest.approx(2 / 3), "agreement": 1, "distance": 0}
    with pytest.raises(InputError, match="here: the label 3 is none of the 3 choices, counted from 0"):
        measure_quality([("one", chooser)], [Example("here", "a", label=3, choices=choices)])
    pairs = [("Call me Ishmael.", "Some years ago."), ("You have won", "the union"), ("a", "b")]
    answers = [follower(one) for one in pairs]
    given = [Example("here", *one, label=answer.label) for one, answer in zip(pairs, answers, strict=True)]
    assert values(measure_quality([("one", follower)], given).scores[0])["accuracy"] == 1


def test_a_task_that_cannot_be_measured_is_said(tmp_path):
    model = tiny.bert("text-classification", num_labels=1)
    bundle = export(model, tmp_path / "ranker", tokenizer=tiny.wordpiece())
    ranker = torchless.load(bundle, task="text-ranking")
    with pytest.raises(InputError, match="cannot measure the quality of text-ranking"):
        measure_quality([("ranker", ranker)], [Example("here", "a", "b")])
