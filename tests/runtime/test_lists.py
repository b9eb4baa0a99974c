"""Long lists: read in blocks, told of as they go, ended by an event, and the same answers whatever the blocks."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import torchless
from torchless import CancelledError, Embedding, InputError, TextClassification, batching
from torchless.export import export

TEXTS = ["the union is strong " * (1 + i % 7) for i in range(23)]


@pytest.fixture(scope="module")
def models(bert_bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model of each task that takes a list, and how it is asked for all of TEXTS."""
    folder = tmp_path_factory.mktemp("lists")

    def made(kind: str, **labels: Any) -> Any:
        return torchless.load(
            export(tiny.bert_for(kind, **labels), folder / str(len(labels)) / kind, tokenizer=tiny.wordpiece(),
                   check=False)
        )  # fmt: skip

    nli = {"id2label": {0: "contradiction", 1: "entailment"}, "label2id": {"contradiction": 0, "entailment": 1}}
    inference = export(
        tiny.bert_for("ForSequenceClassification", **nli), folder / "nli", tokenizer=tiny.wordpiece(),
        check=False,
    )  # fmt: skip
    zero = torchless.load(inference, task="zero-shot-classification")
    classifier = torchless.load(bert_bundles["text-classification"])
    embedding = torchless.load(bert_bundles["feature-extraction"])
    words = torchless.load(bert_bundles["fill-mask"])
    tokens, qa = made("ForTokenClassification"), made("ForQuestionAnswering")
    chooser, follows = made("ForMultipleChoice"), made("ForNextSentencePrediction")
    pairs = [(text, "a prize") for text in TEXTS]
    return {
        "text-classification": lambda **o: classifier(TEXTS, truncation=True, **o),
        "both orders": lambda **o: classifier(pairs, both_orders=True, truncation=True, **o),
        "zero-shot-classification": lambda **o: zero(TEXTS, candidate_labels=["a", "prize"], **o),
        "feature-extraction": lambda **o: embedding(TEXTS, truncation=True, **o),
        "tokens": lambda **o: embedding.tokens(TEXTS, truncation=True, **o),
        "fill-mask": lambda **o: words([f"[MASK] {t}" for t in TEXTS], truncation=True, **o),
        "token-classification": lambda **o: tokens(TEXTS, truncation=True, **o),
        "question-answering": lambda **o: qa("Who is strong?", TEXTS, **o),
        "multiple-choice": lambda **o: chooser(context=TEXTS, choices=[["a", "b"]] * 23, truncation=True, **o),
        "next-sentence-prediction": lambda **o: follows(pairs, truncation=True, **o),
    }


TASKS = (
    "text-classification", "both orders", "zero-shot-classification", "feature-extraction", "tokens", "fill-mask",
    "token-classification", "question-answering", "multiple-choice", "next-sentence-prediction",
)  # fmt: skip


def near(one: Any, other: Any) -> None:
    """The same but for float32's rounding, which differs with the neighbours of a batch."""
    if isinstance(one, np.ndarray):
        np.testing.assert_allclose(one, other, atol=1e-5)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            near(a, b)
    elif hasattr(one, "score"):
        assert one.score == pytest.approx(other.score, abs=1e-5)
        for name in ("label", "index", "answer", "token", "word"):
            assert getattr(one, name, None) == getattr(other, name, None)
    else:
        assert one == other


@pytest.mark.parametrize("task", TASKS)
def test_blocks_change_no_answer_and_progress_counts_texts_up_to_the_last(
    models: dict[str, Any], task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = models[task]()
    monkeypatch.setattr(batching, "BLOCK", 5)
    told: list[tuple[int, int]] = []
    near(list(models[task](batch_size=2, progress=lambda *counts: told.append(counts))), list(whole))
    done = [count for count, _ in told]
    assert {total for _, total in told} == {23} and done == sorted(set(done))
    assert {5, 10, 15, 20, 23} <= set(done) and len(done) > 5


@pytest.mark.parametrize("task", TASKS)
def test_an_event_ends_a_list_before_its_next_run(
    models: dict[str, Any], task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "BLOCK", 5)
    cancel, told = threading.Event(), []

    def progress(done: int, total: int) -> None:
        told.append(done)
        if done >= 10:
            cancel.set()

    with pytest.raises(CancelledError, match="cancelled when 10 of 23 texts were done") as caught:
        models[task](batch_size=2, progress=progress, cancel=cancel)
    assert told[-1] == 10
    if task != "feature-extraction":
        near(list(caught.value.results), list(models[task]())[:10])
    with pytest.raises(CancelledError, match="0 of 23 texts"):
        models[task](cancel=cancel)
    near(list(models[task](cancel=threading.Event())), list(models[task]()))


def test_a_ranking_counts_its_passages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.bert_for("ForSequenceClassification", num_labels=1)
    with torchless.load(export(model, tmp_path / "r", tokenizer=tiny.wordpiece(), task="text-ranking")) as ranker:
        whole = ranker(query="a prize", passages=TEXTS, truncation=True)
        monkeypatch.setattr(batching, "BLOCK", 5)
        told: list[tuple[int, int]] = []
        again = ranker(
            query="a prize", passages=TEXTS, truncation=True, progress=lambda *counts: told.append(counts)
        )
        assert {one.index for one in again} == {one.index for one in whole} and told[-1] == (23, 23)
        assert [one.score for one in again] == pytest.approx([one.score for one in whole], abs=1e-5)
        assert ranker(query="a prize", passages=[], progress=lambda *counts: told.append(counts)) == []


def test_what_is_no_event_and_no_function_is_refused(classifier: TextClassification, embedding: Embedding) -> None:
    for model in (classifier, embedding):
        with pytest.raises(InputError, match="progress is a int: give a function of two counts of texts"):
            model(["a"], progress=3)  # type: ignore[operator]
        with pytest.raises(InputError, match=r"cancel is a bool: give a threading\.Event"):
            model(["a"], cancel=True)  # type: ignore[operator]


def test_an_error_of_progress_ends_the_call_and_the_next_one_works(classifier: TextClassification) -> None:
    def fail(done: int, total: int) -> None:
        raise OSError("the window is gone")

    with pytest.raises(OSError, match="the window is gone"):
        classifier(["a", "b"], progress=fail)
    assert len(classifier(["a", "b"])) == 2


def test_ctrl_c_arrives_within_a_long_list_and_the_model_stays_usable(classifier: TextClassification) -> None:
    expected, begun = classifier("a prize"), threading.Event()

    def interrupt() -> None:
        begun.wait(60)
        _thread.interrupt_main()

    def told(done: int, total: int) -> None:
        begun.set()
        time.sleep(0.001)  # the other thread has its turn, however fast the list goes

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background is deaf to it
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            classifier(TEXTS * 2000, truncation=True, progress=told)
    finally:
        signal.signal(signal.SIGINT, before)
        thread.join()
    assert classifier("a prize") == expected
