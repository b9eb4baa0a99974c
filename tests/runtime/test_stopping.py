"""Every way that a text can end before its budget, and what is told about its tokens."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from torchless import InputError, TextGeneration
from torchless.stopping import Patience, StopStrings

PROMPT = "The union"


def whole(gpt: TextGeneration, prompt: str = PROMPT, **options: Any) -> Any:
    return gpt(prompt, **{"max_new_tokens": 30, "eos_token_id": None} | options)


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),
    strings=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_pieces_end_before_the_first_stop_string_and_show_nothing_of_it(
    pieces: list[str], strings: list[str]
) -> None:
    text = "".join(pieces)
    ends = [text.find(one) for one in strings if one in text]
    stop, shown = StopStrings(strings), ""
    for end, piece in enumerate(pieces, 1):
        shown += stop.push(piece)
        so_far = "".join(pieces[:end])
        cut = min((so_far.find(one) for one in strings if one in so_far), default=len(so_far))
        assert so_far[:cut].startswith(shown)
        if stop.found:
            break
    assert stop.found == bool(ends)
    if stop.found:
        assert not any(one in shown for one in strings)
    else:
        assert shown + stop.flush() == text


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, 40), length=st.integers(1, 8), seed=st.integers(0, 5))
def test_a_stop_string_ends_the_text_before_itself_wherever_its_tokens_begin(
    gpt: TextGeneration, start: int, length: int, seed: int
) -> None:
    text = whole(gpt, seed=seed).text
    string = text[start : start + length]
    if not string or "\N{REPLACEMENT CHARACTER}" in string:
        return
    done = whole(gpt, seed=seed, stop_strings=string)
    assert done.text == text[: text.find(string)]
    assert done.finish_reason == "stop_string"
    stream = gpt.stream(PROMPT, max_new_tokens=30, eos_token_id=None, seed=seed, stop_strings=[string, "§§"])
    assert "".join(stream) == done.text
    assert stream.result == done


def test_what_could_have_become_a_stop_string_comes_at_the_end(gpt: TextGeneration) -> None:
    text = whole(gpt).text
    done = whole(gpt, stop_strings=text[-2:] + "zzz")
    assert (done.text, done.finish_reason) == (text, "length")


def test_a_batch_stops_each_text_by_itself(gpt: TextGeneration) -> None:
    prompts = ["The union", "people people", "A"]
    texts = [whole(gpt, prompt).text for prompt in prompts]
    string = texts[1][5:8]
    expected = [text.split(string)[0] for text in texts]
    assert [one.text for one in whole(gpt, prompts, stop_strings=[string])] == expected  # type: ignore[arg-type]


def test_a_callback_sees_all_ids_and_ends_the_text(gpt: TextGeneration) -> None:
    seen: list[list[int]] = []

    def enough(ids: Any) -> bool:
        seen.append(list(ids))
        return len(ids) == 4

    done = whole(gpt, callback=enough)
    ids = whole(gpt).token_ids
    assert (done.token_ids, done.finish_reason) == (ids[:4], "callback")
    assert seen == [ids[:n] for n in range(1, 5)]


@pytest.mark.parametrize("reason", ["callback", "cancelled", "deadline", "length"])
def test_a_text_that_ends_within_a_character_shows_what_transformers_decodes(
    gpt: TextGeneration, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=gpt.tokenizer.fast)
    ids = whole(gpt, seed=1).token_ids
    halves = 0
    for count in range(1, len(ids) + 1):

        def ends(self: Patience, so_far: Any, count: int = count) -> Any:
            return reason if len(so_far) == count and reason != "length" else None

        monkeypatch.setattr(Patience, "ends", ends)
        budget = count if reason == "length" else len(ids) + 1
        stream = gpt.stream(PROMPT, max_new_tokens=budget, eos_token_id=None, seed=1, stop_strings=["zzz"])
        text = "".join(stream)
        expected = theirs.decode(ids[:count], clean_up_tokenization_spaces=False)
        assert stream.result is not None and stream.result.text == text == expected
        assert (stream.result.finish_reason, stream.result.token_ids) == (reason, ids[:count])
        halves += expected.endswith("\N{REPLACEMENT CHARACTER}")
    assert halves > 3


def test_another_thread_ends_a_text_within_a_token(gpt: TextGeneration) -> None:
    cancel = threading.Event()
    stream = gpt.stream(PROMPT, max_new_tokens=50, eos_token_id=None, cancel=cancel)
    next(stream)
    before = cancel.is_set()
    threading.Thread(target=cancel.set).start()
    while not cancel.is_set():
        time.sleep(0.001)
    list(stream)
    assert stream.result is not None and not before
    assert stream.result.finish_reason == "cancelled"
    assert len(stream.result.token_ids) <= 4
    done = whole(gpt, [PROMPT, "A"], cancel=cancel)  # type: ignore[arg-type]
    assert [(one.token_ids, one.finish_reason) for one in done] == [([], "cancelled")] * 2


def test_a_deadline_ends_a_text(gpt: TextGeneration) -> None:
    done = whole(gpt, max_time=0.0)
    assert (done.token_ids, done.text, done.finish_reason) == ([], "", "deadline")
    assert whole(gpt, max_time=60).finish_reason == "length"


def test_logprobs_are_those_of_the_model_whatever_the_settings(gpt: TextGeneration) -> None:
    done = whole(gpt, logprobs=3, temperature=0.5, seed=1, repetition_penalty=1.5)
    prompt = gpt.tokenizer.ids(PROMPT)
    expected = gpt.score([*prompt, *done.token_ids]).logprobs[len(prompt) - 1 :]
    np.testing.assert_allclose(done.logprobs, expected, atol=1e-4)
    for token, logprob, top in zip(done.token_ids, done.logprobs, done.top_logprobs, strict=True):
        assert len(top) == 3 and top == sorted(top, key=lambda one: -one[1])
        assert logprob <= top[0][1] and (token not in dict(top) or dict(top)[token] == logprob)
    assert whole(gpt).logprobs is None
    assert whole(gpt, logprobs=0).top_logprobs == [[]] * 30


def test_several_texts_of_one_prompt_differ_and_repeat_with_their_seed(gpt: TextGeneration) -> None:
    options = {"num_return_sequences": 3, "seed": 4, "temperature": 1.5}
    texts = whole(gpt, **options)
    assert len({tuple(one.token_ids) for one in texts}) == 3
    assert texts[0] == whole(gpt, seed=4, temperature=1.5)
    assert whole(gpt, ["A", PROMPT], **options)[1] == texts  # type: ignore[arg-type]
    beams = whole(gpt, num_beams=3, num_return_sequences=2)
    assert [one.text for one in beams] == [gpt.tokenizer.decode(one.token_ids) for one in beams]
    assert whole(gpt, num_beams=3) == beams[0]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"stop_strings": [""]}, "stop_strings: '': give texts of one character or more"),
    ({"stop_strings": [5]}, "stop_strings: 5: give texts"),
    ({"stop_strings": 5}, "stop_strings=5: give a text or a list of texts"),
    ({"stop_strings": ""}, "stop_strings: '': give texts of one character or more"),
    ({"max_time": -1}, "max_time=-1: give seconds"),
    ({"logprobs": -1}, "logprobs=-1: give 0 or more"),
    ({"num_beams": 2, "stop_strings": ["a"]}, "not with num_beams"),
    ({"num_beams": 2, "logprobs": 1}, "not with num_beams"),
    ({"num_beams": 2, "num_return_sequences": 3}, "there are no more texts than beams"),
    ({"num_return_sequences": 2}, "the likeliest text is always the same one"),
    ({"num_beams": 0}, "num_beams=0: give 1"),
    ({"early_stopping": "soon"}, "early_stopping='soon': give True, False or 'never'"),
]


@pytest.mark.parametrize(("chosen", "match"), WRONG, ids=lambda value: str(value)[:40])
def test_a_setting_that_is_wrong_or_contradicts_another_is_named(
    gpt: TextGeneration, chosen: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        gpt(PROMPT, **chosen)


@pytest.mark.parametrize("chosen", [{"num_beams": 2}, {"num_return_sequences": 2, "seed": 1}], ids=str)
def test_a_stream_gives_one_text(gpt: TextGeneration, chosen: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="stream gives one text as it grows"):
        gpt.stream(PROMPT, **chosen)
