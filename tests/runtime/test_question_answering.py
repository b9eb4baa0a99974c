"""Answers: those of transformers 4.57's pipeline, at characters of the context as given, through any windows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import answers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import torchless
from torchless import Answer, GenerationError, InputError, QuestionAnswering
from torchless.batching import Batching
from torchless.export import export
from torchless.spans import trim
from torchless.tasks.question_answering import best_spans, pairs_of, probabilities, trimmed
from torchless.windows import run_windows

CopyOf = Callable[[Path], Path]
CASES = {name: rest for name, *rest in answers.cases()}
QUESTION, LONG = answers.QUESTIONS[0], answers.CONTEXTS["long"]
UNICODE = st.text(
    st.sampled_from("aé 中文🎉\u200d\n\r\t .!ßÄe\u0301") | st.characters(exclude_categories=["Cs"]),
    min_size=1,
    max_size=60,
) | st.sampled_from(list(answers.CONTEXTS.values()))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, QuestionAnswering]:
    folder = tmp_path_factory.mktemp("answers")
    return {
        name: torchless.load(export(answers.model(), folder / name, tokenizer=make()))
        for name, make in answers.TOKENIZERS.items()
    }


@pytest.fixture(scope="module")
def qa(models: dict[str, QuestionAnswering]) -> QuestionAnswering:
    return models["wordpiece"]


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(answers.EXPECTED.read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("name", CASES)
def test_answers_equal_those_of_transformers_4_57(
    models: dict[str, QuestionAnswering], expected: dict[str, Any], name: str
) -> None:
    tokenizer, question, context, options = CASES[name]
    theirs = expected[name] if "top_k" in options else [expected[name]]
    found = models[tokenizer](question=question, context=context, **options)
    ours = found if isinstance(found, list) else [found]
    trimmed = [(one["answer"].strip(), *trim(context, one["start"], one["end"])) for one in theirs]
    assert [(one.answer, one.start, one.end) for one in ours] == trimmed
    kept = all(one["answer"] == one["answer"].strip() for one in theirs)  # else some of theirs are one of ours
    scores = [one["score"] for one in theirs]
    np.testing.assert_allclose([one.score for one in ours], scores, atol=1e-5 if kept else 1e-4)


@pytest.mark.slow
def test_the_file_of_answers_is_what_the_pipeline_says(expected: dict[str, Any]) -> None:
    pytest.importorskip("transformers.pipelines.question_answering")
    pipelines = answers.pipelines()
    assert list(expected) == list(CASES)
    for name, (tokenizer, question, context, options) in CASES.items():
        found = pipelines[tokenizer](question=question, context=context, **options)
        for ours, theirs in zip(*([one] if isinstance(one, dict) else one for one in (expected[name], found))):
            assert ours == theirs | {"score": pytest.approx(theirs["score"], abs=1e-5)}


@settings(max_examples=60, deadline=None)
@given(
    context=UNICODE, question=UNICODE, name=st.sampled_from(list(answers.TOKENIZERS)), align=st.booleans(),
    impossible=st.booleans(), top_k=st.integers(1, 5), size=st.integers(20, 48),
)  # fmt: skip
def test_offsets_slice_the_context_to_the_answer(
    models: dict[str, QuestionAnswering], context: str, question: str, name: str, align: bool, impossible: bool,
    top_k: int, size: int,
) -> None:  # fmt: skip
    found = models[name](
        question, context, align_to_words=align, handle_impossible_answer=impossible, top_k=top_k, max_seq_len=size,
        max_question_len=8 if name == "wordpiece" else 1,
    ) if models[name].tokenizer.ids(question, special_tokens=False) else []  # fmt: skip
    listed = found if isinstance(found, list) else [found]
    for one in listed:
        assert one.answer == context[one.start : one.end] and 0 <= one.start <= one.end <= len(context)
        assert one.answer.strip() == one.answer and (one.answer or (one.start, one.end) == (0, 0))
    assert len({one.answer.lower() for one in listed if one.answer}) == len([one for one in listed if one.answer])
    assert [one.score for one in listed] == sorted((one.score for one in listed), reverse=True)
    assert len(listed) <= top_k


@settings(max_examples=25, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.sampled_from(answers.QUESTIONS), UNICODE), min_size=1, max_size=6),
    size=st.integers(1, 9), name=st.sampled_from(list(answers.TOKENIZERS)), data=st.data(),
)  # fmt: skip
def test_a_batch_of_any_size_and_order_gives_what_each_pair_gives_alone(
    models: dict[str, QuestionAnswering], pairs: list[tuple[str, str]], size: int, name: str, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(pairs))))
    questions, contexts = zip(*(pairs[i] for i in order), strict=True)
    got = models[name](list(questions), list(contexts), top_k=2, batch_size=size, handle_impossible_answer=True)
    for index, found in zip(order, got, strict=True):
        alone = models[name](*pairs[index], top_k=2, handle_impossible_answer=True)
        assert [one.score for one in found] == pytest.approx([one.score for one in alone], abs=1e-5)
        gaps = np.diff([one.score for one in models[name](*pairs[index], top_k=3, handle_impossible_answer=True)])
        if (gaps < -1e-5).all():  # of equals either may come first
            assert [(one.answer, one.start) for one in found] == [(one.answer, one.start) for one in alone]


def test_one_question_goes_with_all_contexts_and_one_context_with_all_questions(qa: QuestionAnswering) -> None:
    contexts = list(answers.CONTEXTS.values())
    assert qa(QUESTION, contexts, batch_size=1) == [qa(QUESTION, context, batch_size=1) for context in contexts]
    assert qa(answers.QUESTIONS, LONG, batch_size=1) == [qa(one, LONG, batch_size=1) for one in answers.QUESTIONS]
    assert qa([], []) == qa([], LONG) == qa(QUESTION, []) == []
    assert isinstance(qa(QUESTION, LONG), Answer)
    assert isinstance(qa(QUESTION, LONG, top_k=2), list)
    assert pairs_of(["a"], "b") == ([("a", "b")], False)
    assert pairs_of("a", "b") == ([("a", "b")], True)


def test_windows_are_run_in_batches_and_cover_the_whole_context(
    qa: QuestionAnswering, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, run = [], qa.runner.run
    monkeypatch.setattr(qa.runner, "run", lambda *inputs, **more: rows.append(len(inputs[0])) or run(*inputs))
    long = f"Pequod. {LONG} Ahab"
    everywhere = qa(QUESTION, long, top_k=400, max_answer_len=1)
    assert len(rows) == 1 and rows[0] > 4
    assert {"pequod", "ahab", "façade", "white"} <= {one.answer.lower() for one in everywhere}


def test_an_answer_list_has_no_answers_that_cannot_be(qa: QuestionAnswering) -> None:
    found = qa(QUESTION, "Call me Ishmael.", top_k=50)
    assert {one.answer for one in found} == {
        "Call", "Call me", "Call me Ishmael", "Call me Ishmael.", "me", "me Ishmael", "me Ishmael.", "Ishmael",
        "Ishmael.", ".",
    }  # fmt: skip
    with_none = qa(QUESTION, "Call me Ishmael.", top_k=50, handle_impossible_answer=True)
    assert len(with_none) == len(found) + 1
    assert [(one.start, one.end) for one in with_none if not one.answer] == [(0, 0)]


def test_a_context_without_a_word_has_no_answer(qa: QuestionAnswering) -> None:
    assert qa(QUESTION, " \r\n") == Answer("", 0.0, 0, 0)
    assert qa(QUESTION, " ", top_k=3) == []
    (none,) = qa(QUESTION, " ", top_k=3, handle_impossible_answer=True)
    assert none == Answer("", pytest.approx(1.0), 0, 0)


def test_no_answer_is_as_likely_as_in_the_window_that_doubts_it_most(qa: QuestionAnswering) -> None:
    windows = qa.tokenizer.windows((QUESTION, LONG), 48, stride=24, strategy="only_second")
    (outputs,) = run_windows(qa.runner, [windows], Batching())
    doubts = []
    for window, logits in zip(windows, outputs, strict=True):
        seen = np.array(window.type_ids) == 1
        seen[[0, -1]] = True, False  # [CLS] and the context
        doubts.append(float(probabilities(logits, seen)[0].prod()))
    found = qa(QUESTION, LONG, top_k=900, handle_impossible_answer=True)
    assert [one.score for one in found if not one.answer] == [pytest.approx(min(doubts), rel=1e-4)]
    assert max(doubts) > 2 * min(doubts)


def test_a_question_is_cut_only_when_asked_for(qa: QuestionAnswering) -> None:
    question = "Who is the captain of the white ship?"
    assert qa(question, "Call me Ishmael.", max_question_len=4) == qa("Who is the captain", "Call me Ishmael.")
    assert qa(question, "Call me Ishmael.", max_question_len=99) == qa(question, "Call me Ishmael.")
    assert qa("the whale " * 20, "the ship", max_question_len=3).answer


def test_windows_share_less_where_the_question_leaves_little_room(qa: QuestionAnswering) -> None:
    question = "the whale " * 18  # 36 of 48 tokens: 9 are left, the usual half window is 24
    assert qa(question, LONG).answer
    assert qa(question, LONG) == qa(question, LONG, doc_stride=4)
    with pytest.raises(
        InputError, match="doc_stride=9: beside the question a window has 9 tokens of the context, and"
    ):
        qa(question, LONG, doc_stride=9)
    with pytest.raises(
        InputError, match=r"the question takes 53 of a window's 48 tokens.*shorten it, pass max_question_len="
    ):
        qa("the whale " * 25, "the ship")


@settings(max_examples=200, deadline=None)
@given(data=st.data(), longest=st.integers(1, 9))
def test_best_spans_are_the_best_of_all_pairs(data: st.DataObject, longest: int) -> None:
    size = data.draw(st.integers(1, 8))
    number = st.integers(0, 16).map(lambda i: np.float32(i / 16))
    start, end = (np.array(data.draw(st.lists(number, min_size=size, max_size=size))) for _ in range(2))
    inside = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    every = [
        (first, last, float(start[first] * end[last]))
        for first in range(size)
        for last in range(first, min(first + longest, size))
        if inside[first] and inside[last]
    ]
    every.sort(key=lambda span: -span[2])
    assert list(best_spans(start, end, inside, longest)) == every


def test_probabilities_are_over_the_tokens_that_are_seen() -> None:
    seen = np.array([True, False, True])
    result = probabilities(np.array([[1, 0], [9, 9], [1, 2]], np.float32), seen)
    np.testing.assert_allclose(result[:, 0], [0.5, 0, 0.5])
    np.testing.assert_allclose(result[:, 1], [1 / (1 + np.e**2), 0, np.e**2 / (1 + np.e**2)], rtol=1e-6)


def test_a_span_is_trimmed_to_what_can_be_read() -> None:
    assert trim(" Käse ", 0, 6) == (1, 5)
    assert trim("e\u0301te\u0301.", 0, 4) == (0, 5)
    assert trim("a \n b", 1, 4) == (1, 4)  # nothing but white space stays
    assert trim("ab", 1, 1) == (1, 1)


@pytest.mark.parametrize(
    "character",
    [
        "e\u0301\u0302",
        "\u0915\u0941",
        "a\u20dd",
        "1\ufe0f\u20e3",
        "🏳\ufe0f\u200d🌈",
        "👩🏽\u200d🚀",
        "👨\u200d👩\u200d👧",
    ],
    ids=ascii,
)
def test_no_part_of_a_character_is_cut_off_a_span(character: str) -> None:
    for end in range(1, len(character) + 1):
        assert trim(f"{character}b", 0, end) == (0, len(character))
    assert trim("x\u200dy", 0, 1) == (0, 1)  # joins nothing that is seen as one
    assert trim("x\u200d", 0, 1) == (0, 1)
    assert trim("🎉🎉", 0, 1) == (0, 1)


def test_answers_merge_by_their_raw_words_and_of_equal_trimmed_ones_the_best_stays() -> None:
    context = "an old ship, old"
    raw = [
        Answer(" old", 0.3, 2, 6),
        Answer("old", 0.5, 13, 16),
        Answer("ship", 0.4, 7, 11),
        Answer("Old ", 0.2, 3, 7),
    ]
    assert trimmed(context, raw) == [Answer("old", 0.5, 13, 16), Answer("ship", 0.4, 7, 11)]


@pytest.mark.parametrize("name", answers.TOKENIZERS)
def test_a_blank_is_no_answer_however_likely(
    models: dict[str, QuestionAnswering], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model, context = models[name], "old  \n  \n  ship"
    encoding = model.tokenizer.encode((QUESTION, context))
    blank = [
        part == 1 and not context[slice(*place)].strip()
        for part, place in zip(encoding.sequence_ids, encoding.offsets, strict=True)
    ]
    logits = (
        np.where(blank, 9, 0).astype(np.float32)[:, None] + np.linspace(0, 1, len(blank), dtype=np.float32)[:, None]
    )
    monkeypatch.setattr(model.runner, "run", lambda *inputs, **more: np.repeat(logits, 2, axis=1)[None])
    for align in (True, False):
        found = model(QUESTION, context, align_to_words=align, top_k=2, max_answer_len=9)
        assert len(found) == 2 and all(one.answer.strip() == one.answer != "" for one in found), found
        assert model(QUESTION, context, align_to_words=align).answer.strip()


WRONG: list[tuple[Any, Any, dict[str, Any], str]] = [
    (None, "a", {}, "question: expected text, got NoneType"),
    ("a", None, {}, "context: expected text, got NoneType"),
    ("a", ["b", 5], {}, "context: expected text, got int"),
    (("a",), "b", {}, "question: expected text, got tuple"),
    ("a\ud800", "b", {}, "question holds a lone surrogate"),
    ("", "b", {}, "the question is empty: give a text"),
    ("a", ["b", ""], {}, "the context is empty: give a text"),
    (["a"], ["b", "c"], {}, "1 questions and 2 contexts: give as many of each, or one"),
    ("a", "b", {"top_k": 0}, "top_k=0: give a whole number of 1 or more"),
    ("a", "b", {"max_answer_len": True}, "max_answer_len=True: give a whole number"),
    ("a", "b", {"doc_stride": -1}, "doc_stride=-1: give a whole number of 0 or more"),
    ("a", "b", {"max_question_len": 0}, "max_question_len=0: give a whole number of 1"),
    ("a", "b", {"max_seq_len": 49}, "max_seq_len=49: the model takes 48 tokens"),
    ("a", "b", {"max_seq_len": 3}, "the question takes 4 of a window's 3 tokens"),
    ("a", "b", {"handle_impossible_answer": None}, "handle_impossible_answer=None: give True or False"),
    ("a", "b", {"align_to_words": 1}, "align_to_words=1: give True or False"),
    ("a", "b", {"batch_size": 0}, "batch_size=0: give a whole number of 1 or more"),
]


@pytest.mark.parametrize(("question", "context", "options", "match"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_argument_is_named(
    qa: QuestionAnswering, question: Any, context: Any, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        qa(question, context, **options)


def test_outputs_that_are_no_numbers_are_an_error(qa: QuestionAnswering, copy_of: CopyOf) -> None:
    bundle = copy_of(qa.bundle.path)
    data = np.fromfile(bundle / "model.onnx.data", np.float32)
    np.full_like(data, np.nan).tofile(bundle / "model.onnx.data")
    with (
        torchless.load(bundle) as model,
        pytest.raises(GenerationError, match="are not numbers: the bundle is dam"),
    ):
        model(QUESTION, LONG)


def test_the_names_are_public_and_the_result_reads_well(qa: QuestionAnswering) -> None:
    assert torchless.Answer is Answer and torchless.QuestionAnswering is QuestionAnswering
    assert repr(qa(QUESTION, LONG)).startswith("Answer(answer=")


def test_words_with_a_space_and_without_are_not_added_up(
    models: dict[str, QuestionAnswering], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, context = models["unigram"], "ship old ship"
    encoding = model.tokenizer.encode((QUESTION, context))
    assert [context[slice(*place)] for place in encoding.offsets[-4:-1]] == ["ship", " old", " ship"]
    logits = np.zeros((1, len(encoding.ids), 2), np.float32)
    logits[:, [-4, -2]] = 9
    monkeypatch.setattr(model.runner, "run", lambda *inputs, **more: logits)
    scores = {one.answer: one.score for one in model(QUESTION, context, top_k=3)}
    assert scores["ship"] == pytest.approx(0.25, abs=1e-3)
