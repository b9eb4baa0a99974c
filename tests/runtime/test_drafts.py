"""Speculative decoding: texts, or their distribution, are those of plain decoding, however they were guessed."""

from __future__ import annotations

import itertools
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from tokenizers import Tokenizer

import torchless
from torchless import InputError, TextClassification, TextGeneration
from torchless import cache as cache_module
from torchless.cli import main
from torchless.drafts import Pace
from torchless.export import export
from torchless.generation import Speculation
from torchless.quantize import quantize
from torchless.sampling import Guess, Sampler, softmax

ROOT = Path(__file__).parents[2]
TEXTS = ["The union", "A", "Call me Ishmael. Some years ago", "ß 🎉", "people people people people"]
LOOKUP: dict[str, Any] = {"prompt_lookup_num_tokens": 6}


def noisy(model: Any, spread: float) -> Any:
    """A model that mostly agrees with another one."""
    other = transformers.GPT2LMHeadModel(model.config)
    other.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return other.eval()


def load(model: Any, folder: Path, tokenizer: Any = None) -> TextGeneration:
    return torchless.load(export(model, folder, tokenizer=tokenizer, check=False))


@pytest.fixture(scope="module")
def ways(
    gpt: TextGeneration, gpt_model: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Settings of every way to guess."""
    folder = tmp_path_factory.mktemp("assistants")
    short = tiny.gpt2(seed=8, n_positions=16)
    return {
        "lookup": LOOKUP,
        "lookup of long runs": {"prompt_lookup_num_tokens": 30, "max_matching_ngram_size": 5},
        "itself": {"assistant_model": gpt, "num_assistant_tokens": 4},
        "much like it": {"assistant_model": load(noisy(gpt_model, 0.02), folder / "noisy", tiny.bpe())},
        "another, with less context": {"assistant_model": load(short, folder / "short", tiny.bpe())},
    }


WAYS = ["lookup", "lookup of long runs", "itself", "much like it", "another, with less context"]


@pytest.fixture(scope="module")
def sotu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TextGeneration, TextGeneration]]:
    """The trained GPT in float32, and in int8 as its assistant."""
    folder = tmp_path_factory.mktemp("sotu")
    bundle = export(ROOT / "examples" / "checkpoints" / "sotu-gpt", folder / "fp32", check=False)
    with torchless.load(bundle) as model, torchless.load(quantize(bundle, folder / "int8")) as small:
        yield model, small


def plain_and_guessed(gpt: TextGeneration, prompt: Any, way: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    options = {"max_new_tokens": 30, "eos_token_id": None} | options
    return gpt(prompt, **options), gpt(prompt, **options, **way)


# The same text


@pytest.mark.parametrize("way", WAYS)
def test_greedy_text_is_that_of_plain_decoding(
    gpt: TextGeneration, ways: dict[str, Any], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "GROWTH", 8)  # the cache moves again and again
    generator = np.random.default_rng(0)
    prompts = [generator.integers(0, 320, size).tolist() for size in generator.integers(1, 34, 25)]
    plain, guessed = plain_and_guessed(gpt, [*prompts, *map(gpt.tokenizer.ids, TEXTS)], ways[way])
    assert guessed == plain
    for one in guessed:
        assert len(one.token_ids) == 1 + one.speculation.steps + one.speculation.accepted
    drafted, accepted = (sum(getattr(one.speculation, name) for one in guessed) for name in ("drafted", "accepted"))
    assert drafted > 0
    if way != "another, with less context":
        assert accepted > 10
    assert (drafted == accepted) == (way == "itself")


def test_greedy_text_of_a_trained_model_is_that_of_plain_decoding(sotu: tuple[TextGeneration, ...]) -> None:
    model, small = sotu
    ids = model.tokenizer.ids((ROOT / "examples" / "data" / "heldout-sotu.txt").read_text()[:20_000])
    prompts = [ids[start : start + 60] for start in range(0, 3_500, 700)]
    for way in (LOOKUP, {"assistant_model": small}):
        plain, guessed = plain_and_guessed(model, prompts, way, max_new_tokens=40)
        assert guessed == plain
        assert sum(one.speculation.accepted for one in guessed) > 20


SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3}, {"presence_penalty": 9.0, "frequency_penalty": 0.5}, {"no_repeat_ngram_size": 2},
    {"logit_bias": {5: 9.0, 6: 9.0}}, {"forced_bos_token_id": 7, "forced_eos_token_id": 9},
    {"eos_token_id": list(range(0, 320, 6)), "min_new_tokens": 9}, {"eos_token_id": list(range(0, 320, 4))},
    {"stop_strings": ["e", "on"]}, {"logprobs": 2}, {"max_new_tokens": 1}, {"max_new_tokens": 2},
    {"max_new_tokens": 0},
]  # fmt: skip
DRAWS: list[dict[str, Any]] = [
    {"seed": 1, "temperature": 0.2}, {"seed": 2, "top_k": 3}, {"seed": 3, "top_p": 0.3, "presence_penalty": -1.0},
]  # fmt: skip


@pytest.mark.parametrize("chosen", SETTINGS, ids=str)
@pytest.mark.parametrize("way", ["lookup", "itself", "much like it"])
def test_every_setting_acts_token_by_token_as_in_plain_decoding(
    gpt: TextGeneration, ways: dict[str, Any], way: str, chosen: dict[str, Any]
) -> None:
    plain, guessed = plain_and_guessed(gpt, TEXTS, ways[way], **chosen)
    for one, other in zip(plain, guessed, strict=True):
        assert (one.text, one.token_ids, one.finish_reason) == (other.text, other.token_ids, other.finish_reason)
        if way == "itself" and one.finish_reason == "length":  # with the same filters it guesses the same
            assert other.speculation.accepted == other.speculation.drafted
        if "logprobs" in chosen:
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
            assert [[i for i, _ in top] for top in one.top_logprobs] == [
                [i for i, _ in top] for top in other.top_logprobs
            ]


@pytest.mark.parametrize("way", ["lookup", "itself", "much like it"])
def test_bad_words_that_the_text_would_hold_are_forbidden_at_every_guess(
    gpt: TextGeneration, ways: dict[str, Any], way: str
) -> None:
    whole = gpt("people people people", max_new_tokens=30, eos_token_id=None).token_ids
    words = [whole[4:6], [whole[9]]]
    plain, guessed = plain_and_guessed(gpt, "people people people", ways[way], bad_words_ids=words)
    assert guessed == plain and plain.token_ids != whole


@pytest.mark.parametrize("chosen", DRAWS, ids=str)
def test_a_seed_gives_the_same_text_with_prompt_lookup_and_without(
    gpt: TextGeneration, chosen: dict[str, Any]
) -> None:
    plain, guessed = plain_and_guessed(gpt, TEXTS, LOOKUP, num_return_sequences=3, **chosen)
    assert guessed == plain
    assert sum(one.speculation.drafted for texts in guessed for one in texts) > 0


def test_a_seed_repeats_its_text_with_an_assistant(gpt: TextGeneration, ways: dict[str, Any]) -> None:
    options = {"max_new_tokens": 20, "temperature": 2.0} | ways["much like it"]
    first, again, other = (gpt("The union", seed=seed, **options) for seed in (3, 3, 4))
    assert first == again != other


def test_a_prompt_gives_the_same_in_a_list_and_up_to_the_last_position(gpt: TextGeneration) -> None:
    alone = [gpt(text, max_new_tokens=20, **LOOKUP) for text in TEXTS]
    assert gpt(TEXTS, max_new_tokens=20, **LOOKUP) == alone
    assert gpt([5] * 40, eos_token_id=None, **LOOKUP) == gpt([5] * 40, eos_token_id=None)
    assert gpt([7] * 64, **LOOKUP).token_ids == []
    assert gpt([], **LOOKUP) == []


# Ends


@pytest.mark.parametrize("way", ["lookup", "itself"])
def test_a_callback_and_a_stream_see_token_by_token(gpt: TextGeneration, ways: dict[str, Any], way: str) -> None:
    seen: list[list[int]] = []

    def enough(ids: Any) -> bool:
        seen.append(list(ids))
        return len(ids) == 13

    whole = gpt("people people people", max_new_tokens=30, eos_token_id=None)
    done = gpt("people people people", max_new_tokens=30, eos_token_id=None, callback=enough, **ways[way])
    assert (done.token_ids, done.finish_reason) == (whole.token_ids[:13], "callback")
    assert seen == [whole.token_ids[:n] for n in range(1, 14)]
    stream = gpt.stream("people people people", max_new_tokens=30, eos_token_id=None, **ways[way])
    assert "".join(stream) == whole.text
    assert stream.result == whole and stream.result is not None
    assert stream.result.speculation is not None and stream.result.speculation.accepted > 0


def test_cancelling_ends_within_a_token_and_a_deadline_before_the_first(
    gpt: TextGeneration, ways: dict[str, Any]
) -> None:
    cancel = threading.Event()
    done = gpt(
        "people", max_new_tokens=30, eos_token_id=None, cancel=cancel, **ways["itself"],
        callback=lambda ids: cancel.set() if len(ids) == 3 else False,
    )  # fmt: skip
    assert (len(done.token_ids), done.finish_reason) == (4, "cancelled")
    assert gpt("people", max_time=0, **LOOKUP).finish_reason == "deadline"
    assert gpt("people", max_time=0, **LOOKUP).speculation == Speculation(0, 0, 0)


# The same distribution


@pytest.mark.parametrize("seed", range(4))
def test_a_guess_that_was_drawn_leaves_the_distribution_as_it_is(seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits, other = generator.normal(0, 1.5, (2, 8)).astype(np.float32)
    logits[2] = -np.inf
    guesses = softmax(other.astype(np.float64))
    guesses[5] = 0  # neither needs to hold what the other holds
    guesses /= guesses.sum()
    sampler, count = Sampler(generator=generator), 20_000
    drawn = [Guess(int(token), guesses) for token in generator.choice(8, count, p=guesses)]
    chosen = np.array([sampler(logits, np.zeros(0, np.int64), 0, guess) for guess in drawn])
    expected = softmax(logits.astype(np.float64))
    assert chi_square(np.bincount(chosen, minlength=8), expected) < 27  # 6 degrees: once in 7,000 seeds
    taken = np.mean(chosen == [guess.token for guess in drawn])
    assert taken == pytest.approx(np.minimum(expected, guesses).sum(), abs=0.015)  # as often as can be


def chi_square(seen: Any, probabilities: Any) -> float:
    """Of counts over outcomes; those too rare for it count as one. An impossible one is an error."""
    wanted = probabilities * seen.sum()
    assert not seen[wanted == 0].any()
    rare = wanted < 5
    seen, wanted = (np.append(one[~rare], one[rare].sum()) for one in (seen, wanted))
    return float(((seen - wanted)[wanted > 0] ** 2 / wanted[wanted > 0]).sum())


FACES, THROWS = 3, 4


@pytest.fixture(scope="module")
def dice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, TextGeneration, TextGeneration]:
    """A model of three tokens, and one much like it."""
    folder = tmp_path_factory.mktemp("dice")
    model = tiny.gpt2(vocab_size=FACES, n_layer=1, n_embd=16, n_head=2)
    return model, load(model, folder / "dice"), load(noisy(model, 0.15), folder / "noisy")


@pytest.mark.parametrize("chosen", [{}, {"temperature": 0.6, "repetition_penalty": 1.5}, {"top_k": 2}], ids=str)
@pytest.mark.parametrize("way", ["lookup", "assistant"])
def test_whole_texts_are_drawn_as_often_as_the_model_says(
    dice: tuple[Any, TextGeneration, TextGeneration], way: str, chosen: dict[str, Any]
) -> None:
    model, throw, other = dice
    prompt, count = [0, 1, 0, 1, 0, 1, 2, 0, 1, 0], 600
    guess = LOOKUP if way == "lookup" else {"assistant_model": other}
    options = {"do_sample": True, "seed": 5, "num_return_sequences": count} | chosen | guess
    made = throw(prompt, max_new_tokens=THROWS, eos_token_id=None, **options)
    texts = list(itertools.product(range(FACES), repeat=THROWS))
    place = {text: i for i, text in enumerate(texts)}
    seen = np.bincount([place[tuple(one.token_ids)] for one in made], minlength=len(texts))
    found = chi_square(seen, np.array(likelihoods(model, prompt, texts, chosen)))
    assert found < 118, found  # at most 80 degrees of freedom: beyond it once in 280 seeds, and the seed is fixed
    drafted, accepted = (sum(getattr(one.speculation, name) for one in made) for name in ("drafted", "accepted"))
    assert drafted > count / 2 and 0.2 < accepted / drafted < 0.98


def likelihoods(model: Any, prompt: list[int], texts: Any, chosen: dict[str, Any]) -> list[float]:
    """By torch, with transformers' own processors."""
    steps: list[Any] = []
    if "repetition_penalty" in chosen:
        steps.append(transformers.RepetitionPenaltyLogitsProcessor(chosen["repetition_penalty"]))
    if "temperature" in chosen:
        steps.append(transformers.TemperatureLogitsWarper(chosen["temperature"]))
    if "top_k" in chosen:
        steps.append(transformers.TopKLogitsWarper(chosen["top_k"]))
    totals = {(): 1.0}
    for _ in range(THROWS):
        longer = {}
        given = torch.tensor([[*prompt, *text] for text in totals])
        with torch.no_grad():
            scores = model(given).logits[:, -1]
        for step in steps:
            scores = step(given, scores)
        for text, row in zip(totals, scores.double().softmax(-1).tolist(), strict=True):
            longer |= {(*text, face): totals[text] * chance for face, chance in enumerate(row)}
        totals = longer
    return [totals[text] for text in texts]


# Pace


def test_the_pace_follows_what_was_right_lately() -> None:
    pace = Pace(10, cost=0.2, rate=0.0)
    lengths = []
    for right in [True] * 12 + [False] * 8:
        lengths.append(pace.length())
        pace.learn(right)
    assert lengths[0] == 0 and lengths[:13] == sorted(lengths[:13]) and lengths[12] == 10
    assert lengths[12:] == sorted(lengths[12:], reverse=True) and pace.length() == 0


def test_where_nothing_repeats_nothing_is_guessed_and_where_all_does_many_at_once(gpt: TextGeneration) -> None:
    generator = np.random.default_rng(3)
    ids = generator.permutation(320)[:40].tolist()
    bias = {"logit_bias": {token: 0.0 for token in ids}, "no_repeat_ngram_size": 1}
    done = gpt(ids, max_new_tokens=20, eos_token_id=None, **bias, **LOOKUP)
    assert done.speculation == Speculation(19, 0, 0)
    again = gpt([*range(10, 20)] * 3, max_new_tokens=20, eos_token_id=None, logit_bias={5: 50.0}, **LOOKUP)
    assert again.speculation is not None and again.speculation.accepted_per_step > 1.5
    assert gpt("A", max_new_tokens=3).speculation is None


# Mistakes


@pytest.mark.parametrize(
    ("chosen", "match"),
    [
        ({"prompt_lookup_num_tokens": 0}, "prompt_lookup_num_tokens=0: give 1 or more, or None"),
        ({**LOOKUP, "max_matching_ngram_size": 0}, "max_matching_ngram_size=0: give 1 or more"),
        ({"num_assistant_tokens": True}, "num_assistant_tokens=True: give 1 or more"),
        ({**LOOKUP, "num_beams": 2}, "prompt_lookup_num_tokens: not with num_beams"),
        ({**LOOKUP, "overflow": "slide"}, "not with num_beams or overflow='slide'"),
        ({"assistant_model": "itself", "num_beams": 2}, "assistant_model: not with num_beams"),
        ({"assistant_model": "itself", "overflow": "slide"}, "not with num_beams or overflow='slide'"),
        ({"assistant_model": "itself", **LOOKUP}, "both guess: give one of them"),
        ({"assistant_model": "spam"}, "assistant_model is a TextClassification: give what torchless.load returns"),
        ({"assistant_model": "folder"}, "assistant_model is a str: give what"),
    ],
    ids=str,
)
def test_contradictions_are_named(
    gpt: TextGeneration, classifier: TextClassification, chosen: dict[str, Any], match: str
) -> None:
    models = {"itself": gpt, "spam": classifier}
    if "assistant_model" in chosen:
        chosen = chosen | {"assistant_model": models.get(chosen["assistant_model"], "folder")}
    with pytest.raises(InputError, match=match):
        gpt("The union", **chosen)
    if "num_beams" not in chosen:
        with pytest.raises(InputError, match=match):
            gpt.stream("The union", **chosen)


def test_an_assistant_needs_the_same_vocabulary(gpt: TextGeneration, tmp_path: Path) -> None:
    swapped = json.loads(tiny.bpe_json())
    vocabulary = swapped["model"]["vocab"]
    vocabulary["e"], vocabulary["f"] = vocabulary["f"], vocabulary["e"]
    more, names, none = (
        load(model, tmp_path / name, tokenizer)
        for name, model, tokenizer in (
            ("more", tiny.gpt2(vocab_size=330), tiny.bpe()),
            ("names", tiny.gpt2(), Tokenizer.from_str(json.dumps(swapped))),
            ("none", tiny.gpt2(), None),
        )
    )
    for assistant in (more, names, none):
        with pytest.raises(InputError, match=r"has another vocabulary than .* needs the same tokenizer"):
            gpt("The union", assistant_model=assistant)
    assert none([5, 6], max_new_tokens=5, assistant_model=none) == none([5, 6], max_new_tokens=5)


def test_settings_without_effect_are_told(gpt: TextGeneration, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "torchless"):
        gpt("A", max_new_tokens=1, max_matching_ngram_size=3)
    assert "max_matching_ngram_size ignored" in caplog.text


def test_the_command_line_guesses_by_either_way(gpt_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for options in ([], ["--prompt-lookup-num-tokens", "5"], ["--assistant-model", str(gpt_bundle)]):
        assert main(["run", str(gpt_bundle), "people people people", "--max-new-tokens", "12", *options]) == 0
        told.append(capsys.readouterr().out)
    assert told[0].strip() and told[0] == told[1] == told[2]
