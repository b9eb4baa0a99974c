"""Choices, regular expressions and JSON schemas: what comes has the form asked for, or the call says why not."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex as partial_regex
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

import torchless
from torchless import InputError, TextGeneration, TokenizerError
from torchless.cli import main
from torchless.constrain import Vocabulary
from torchless.export import export
from torchless.generation_config import GenerationConfig

PROMPT = "The union"
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "role": {"enum": ["author", "reader", None]},
        "tags": {"type": "array", "items": {"const": "é\n"}, "maxItems": 2},
    },
    "required": ["name", "age", "role", "tags"],
    "additionalProperties": False,
}


def is_person(value: Any) -> bool:
    name, age, role, tags = (value[key] for key in PERSON["required"])
    sound = set(value) == set(PERSON["required"]) and role in ("author", "reader", None)
    return (
        sound
        and 1 <= len(name) <= 6
        and type(age) is int
        and 0 <= age <= 120
        and tags in ([], ["é\n"], ["é\n"] * 2)
    )


SCHEMAS: list[tuple[Any, Callable[[Any], bool]]] = [
    (PERSON, is_person),
    ({"type": "string", "maxLength": 4}, lambda v: isinstance(v, str) and len(v) <= 4),
    ({"type": "number", "minimum": -1, "maximum": 1}, lambda v: -1 <= v <= 1),
    ({"type": ["boolean", "null"]}, lambda v: v in (True, False, None)),
    ({"type": "string", "pattern": "^[ab]{2,3}$"}, lambda v: re.fullmatch("[ab]{2,3}", v) is not None),
    ({"type": "string", "format": "date"}, lambda v: re.fullmatch(r"\d{4}-\d\d-\d\d", v) is not None),
    (
        {"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"c": {"$ref": "#/$defs/n"}},
         "additionalProperties": False}}},
        lambda v: set(v) <= {"c"},
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the shared one, with room for a JSON text in bytes."""
    folder = tmp_path_factory.mktemp("constrain")
    return export(tiny.gpt2(n_positions=256), folder / "gpt", tokenizer=tiny.bpe(), check=False)


@pytest.fixture(scope="module")
def model(bundle: Path) -> TextGeneration:
    made: TextGeneration = torchless.load(bundle)
    return made


def characters(alphabet: str) -> Tokenizer:
    """A vocabulary as nanoGPT's."""
    tokenizer = Tokenizer(models.WordLevel({one: i for i, one in enumerate(alphabet)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


@pytest.fixture(scope="module")
def spelled(tmp_path_factory: pytest.TempPathFactory) -> TextGeneration:
    """A model of characters, without an end token; it has no capitals but A, and no digits."""
    alphabet = 'abcdefghijklmnopqrstuvwxyzA {}[]":,é'
    made = tiny.gpt2(vocab_size=48, bos_token_id=None, eos_token_id=None)  # more columns than tokens
    folder = tmp_path_factory.mktemp("spelled")
    found: TextGeneration = torchless.load(
        export(made, folder / "gpt", tokenizer=characters(alphabet), check=False)
    )
    return found


# What comes has the form


@pytest.mark.parametrize("chosen", [{}, {"seed": 1, "temperature": 3.0}, {"repetition_penalty": 1.8}], ids=str)
@pytest.mark.parametrize(
    "text", ["no", "yes, sir", "é🎉\n\t\x00", "a\"b\\c/'", "<|endoftext|>", " | ", "#", "</s>"]
)
def test_a_text_of_any_characters_is_written_as_it_stands(
    model: TextGeneration, text: str, chosen: dict[str, Any]
) -> None:
    for form in ({"choices": [text]}, {"regex": re.escape(text)}, {"json_schema": {"const": text}}):
        done = model(PROMPT, max_new_tokens=80, **form, **chosen)
        assert done.text == (json.dumps(text) if "json_schema" in form else text) or json.loads(done.text) == text
        assert done.finish_reason == "stop"
        assert done.token_ids[-1] != 0  # nothing can follow: no end token is waited for


def test_each_choice_comes_as_often_as_the_model_says(model: TextGeneration) -> None:
    choices = ["a", "b", " ", "é"]
    ids = [model.tokenizer.ids(one) for one in choices]
    whole = model.decoder.extend(model.decoder.new_cache(), model.tokenizer.ids(PROMPT))[-1]
    firsts = np.exp(whole[[one[0] for one in ids]] - whole.max())
    count = 600
    texts = model(PROMPT, choices=choices, do_sample=True, seed=3, num_return_sequences=count)
    found = np.array([sum(done.text == one for done in texts) for one in choices])
    expected = firsts / firsts.sum() * count
    assert found.sum() == count and (expected > 5).all()
    assert ((found - expected) ** 2 / expected).sum() < 16.3  # chi-square, 3 degrees, one in a thousand


REGEXES = st.recursive(
    st.sampled_from(["a", "[b-d]", "x y", "é", r"\d", r"[\w-]", r"\S", ".", "☃|z", "[^a-z]"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        inner.map("({})".format),
        st.tuples(inner, st.sampled_from(["?", "*", "+", "{2}", "{1,3}"])).map(lambda one: f"({one[0]}){one[1]}"),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})"),
    ),
    max_leaves=5,
)


@settings(max_examples=120, deadline=None)
@given(regex=REGEXES, seed=st.integers(0, 99), budget=st.integers(1, 25))
def test_a_text_matches_the_whole_regex_or_ran_out_of_tokens(
    model: TextGeneration, regex: str, seed: int, budget: int
) -> None:
    done = model(PROMPT, regex=regex, seed=seed, temperature=2.0, max_new_tokens=budget)
    if done.finish_reason == "stop":
        assert re.fullmatch(regex, done.text, re.ASCII), (regex, done.text)
    else:
        assert (done.finish_reason, len(done.token_ids)) == ("length", budget)
        begun = done.text.rstrip("\N{REPLACEMENT CHARACTER}")  # half a character
        assert partial_regex.fullmatch(regex, begun, partial_regex.ASCII, partial=True), (regex, done.text)


@pytest.mark.parametrize("place", range(len(SCHEMAS)))
def test_json_is_of_the_schema(model: TextGeneration, place: int) -> None:
    schema, sound = SCHEMAS[place]
    ended = 0
    for seed in range(6):
        done = model(PROMPT, json_schema=schema, seed=seed, repetition_penalty=1.2, max_new_tokens=150)
        ended += done.finish_reason == "stop"
        if done.finish_reason == "stop":
            assert sound(json.loads(done.text)), done.text
        assert done.finish_reason in ("stop", "length")
        assert model(
            PROMPT, json_schema=json.dumps(schema), seed=seed, repetition_penalty=1.2, max_new_tokens=150
        ) == (done)
    assert ended >= 3


def test_any_budget_gives_a_whole_text_or_says_length(model: TextGeneration) -> None:
    whole = model(PROMPT, json_schema=PERSON, seed=5, max_new_tokens=200)
    assert whole.finish_reason == "stop"
    for budget in range(len(whole.token_ids) + 2):
        done = model(PROMPT, json_schema=PERSON, seed=5, max_new_tokens=budget)
        assert done.token_ids == whole.token_ids[:budget]
        assert done.finish_reason == ("stop" if budget >= len(whole.token_ids) else "length")


# Which tokens are allowed


@pytest.mark.parametrize(
    "pattern", [r"[a-z]+( [a-z]+)*\.", "(The|Their|a) people?", r"([0-9]{2}:)+x", "(?s).{3,99}"]
)
def test_the_allowed_tokens_are_those_that_a_text_of_the_form_can_go_on_with(
    model: TextGeneration, pattern: str
) -> None:
    vocabulary = model.vocabulary
    constraint = vocabulary.constraint(GenerationConfig(regex=pattern, eos_token_id=(0,)))
    whole = partial_regex.compile(pattern)
    generator = np.random.default_rng(7)
    ids: list[int] = []
    for _ in range(8):
        logits = constraint(np.zeros(320, np.float32), np.array([5, 5, *ids]), len(ids))
        allowed = np.flatnonzero(logits == 0)
        text = b"".join(vocabulary.written[token] for token in ids).decode()
        expected = []
        for token, written in enumerate(vocabulary.written):
            begun = written.decode(errors="ignore")  # of half a character, nothing
            fits = bool(written) and whole.fullmatch(text + begun, partial=True) is not None
            if fits and begun.encode() == written:
                expected.append(token)
        ends = whole.fullmatch(text) is not None
        assert (0 in allowed) == ends
        told = [
            t
            for t in allowed
            if t and vocabulary.written[t].decode(errors="ignore").encode() == vocabulary.written[t]
        ]
        assert told == expected if len(told) > 1 else set(told) <= set(expected)
        if not told:
            break
        ids.append(int(generator.choice(told)))
    assert len(ids) > 2


def test_a_constraint_goes_back_where_the_text_does(model: TextGeneration) -> None:
    config = GenerationConfig(regex="ab(c|d)e*", eos_token_id=(0,))
    a, b, c, d, e = (model.tokenizer.ids(one)[0] for one in "abcde")

    def allowed(constraint: Any, *ids: int) -> list[int]:
        return np.flatnonzero(constraint(np.zeros(320, np.float32), np.array([7, *ids]), len(ids)) == 0).tolist()

    constraint = model.vocabulary.constraint(config)
    for ids in [(a, b, c), (a, b), (a, b, d, e), (a, b, c, e, e), (), (a,), (a, b, c, e)]:
        assert allowed(constraint, *ids) == allowed(model.vocabulary.constraint(config), *ids), ids
    with pytest.raises(InputError, match="not one that the constraint allows"):
        allowed(constraint, a, c)
    assert allowed(constraint, a, b) == [c, d]


# In every way of generating


def test_a_batch_gives_what_each_prompt_gives_alone(model: TextGeneration) -> None:
    prompts = ["The union", "A", "people people people", "x"]
    for chosen in ({}, {"seed": 2, "temperature": 1.5}):
        settings = {"json_schema": PERSON, "max_new_tokens": 120, "frequency_penalty": 0.3, **chosen}
        alone = [model(prompt, **settings) for prompt in prompts]
        assert model(prompts, batch_size=3, **settings) == alone
        assert len({one.text for one in alone}) > 1
    several = model(prompts, json_schema=PERSON, seed=1, num_return_sequences=2, max_new_tokens=200)
    assert all(is_person(json.loads(done.text)) for two in several for done in two if done.finish_reason == "stop")


def test_a_stream_joined_equals_the_call(model: TextGeneration) -> None:
    stream = model.stream(PROMPT, json_schema=PERSON, seed=4, max_new_tokens=150)
    pieces = list(stream)
    assert stream.result == model(PROMPT, json_schema=PERSON, seed=4, max_new_tokens=150)
    assert len(pieces) > 5 and "".join(pieces) == stream.result.text
    full = model(PROMPT, choices=["yes"], return_full_text=True)
    assert full.text == PROMPT + "yes"


def test_guesses_at_the_text_change_nothing(model: TextGeneration) -> None:
    settings: dict[str, Any] = {"json_schema": {**PERSON, "minItems": 9}, "max_new_tokens": 150}
    plain = model(PROMPT + ' {"name": "', **settings)
    guessed = model(PROMPT + ' {"name": "', prompt_lookup_num_tokens=5, **settings)
    assert (guessed.text, guessed.finish_reason) == (plain.text, plain.finish_reason)
    assert model(PROMPT, assistant_model=model, **settings).text == model(PROMPT, **settings).text


def test_threads_share_a_model(model: TextGeneration) -> None:
    def ask(seed: int) -> Any:
        form: dict[str, Any] = {"json_schema": PERSON} if seed % 2 else {"regex": r"[a-z]{1,9}-[0-9]{4}"}
        return model(PROMPT, seed=seed, max_new_tokens=150, **form)

    alone = [ask(seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(12))) == alone


# Where it ends


def test_only_a_whole_text_may_end(model: TextGeneration) -> None:
    always = {0: 100.0}  # a model that would end at once
    assert model(PROMPT, regex="[a-z]{3}[0-9]*", logit_bias=always, max_new_tokens=9).token_ids[-1] == 0
    assert re.fullmatch("[a-z]{3}", model(PROMPT, regex="[a-z]{3}[0-9]*", logit_bias=always, max_new_tokens=9).text)
    longer = model(PROMPT, regex="[a-z]{3}[0-9]*", logit_bias=always, max_new_tokens=9, min_new_tokens=6)
    assert len(longer.token_ids) == 7 and longer.finish_reason == "stop"


def test_a_form_that_is_complete_before_min_new_tokens_says_so_once(
    model: TextGeneration, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"choices": ["yes"], "min_new_tokens": 9, "max_new_tokens": 20}
    told = ["choices: complete before min_new_tokens=9, which is ignored: nothing can follow"]
    with caplog.at_level(logging.WARNING, "torchless"):
        assert [done.text for done in model([PROMPT, "A"], **settings)] == ["yes", "yes"]
        assert caplog.messages == told
        assert "".join(model.stream(PROMPT, **settings)) == "yes" and caplog.messages == told * 2
        model(PROMPT, regex="[a-z]{3}[0-9]*", min_new_tokens=6, max_new_tokens=20)
        model(PROMPT, regex="[a-z]{9}", max_new_tokens=9)
    assert caplog.messages == told * 2


def test_an_end_token_with_a_text_of_its_own_is_text(model: TextGeneration) -> None:
    a = model.tokenizer.ids("a")[0]
    done = model(PROMPT, regex="a{5}", eos_token_id=[0, a])
    assert (done.text, done.finish_reason) == ("aaaaa", "stop")


def test_without_an_end_token_a_text_ends_where_nothing_can_follow(model: TextGeneration) -> None:
    done = model(PROMPT, regex="[0-9]{3}", eos_token_id=None, max_new_tokens=9)
    assert (len(done.text), done.finish_reason) == (3, "stop")
    open_end = model(PROMPT, regex="[0-9]+", eos_token_id=None, max_new_tokens=9)
    assert re.fullmatch("[0-9]+", open_end.text) and open_end.finish_reason == "length"


def test_a_stop_string_that_cuts_a_whole_text_is_the_reason(model: TextGeneration) -> None:
    done = model(PROMPT, choices=["yes}"], stop_strings=["}"])
    assert (done.text, done.finish_reason) == ("yes", "stop_string")


# Vocabularies


def test_a_vocabulary_of_characters_writes_what_it_can(spelled: TextGeneration) -> None:
    for seed in range(10):
        done = spelled("A", regex=".{2}(x|9)[A-Zé]", seed=seed, max_new_tokens=9)
        assert re.fullmatch(".{2}x[Aé]", done.text) and done.finish_reason == "stop"
        done = spelled("A", json_schema={"enum": ["é", "ab"]}, seed=seed, max_new_tokens=9)
        assert json.loads(done.text) in ("é", "ab") and done.finish_reason == "stop"
    assert spelled("A", choices=["abé"]).text == "abé"


@pytest.mark.parametrize(
    ("form", "match"),
    [
        ({"choices": ["ab", "aB"]}, "choices: the model's vocabulary has no 'B' for 'aB'"),
        ({"regex": "[0-9]"}, r"regex='\[0-9\]' cannot be used: no text of the model's tokens can have this form"),
        ({"regex": "abc☃"}, "no text of the model's tokens can have this form"),
        ({"json_schema": {"type": "integer"}}, "json_schema cannot be used: no text of the model's tokens"),
        ({"json_schema": {"const": "aB"}}, "no text of the model's tokens can have this form"),
    ],
    ids=str,
)
def test_what_a_vocabulary_cannot_write_is_refused(
    spelled: TextGeneration, form: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        spelled("A", **form)


def test_a_tokenizer_that_joins_words_is_refused(tmp_path: Path) -> None:
    words = tiny.wordpiece()
    gpt = tiny.gpt2(vocab_size=words.get_vocab_size(), n_layer=1)
    made = torchless.load(export(gpt, tmp_path / "out", tokenizer=words, check=False))
    with pytest.raises(InputError, match=r"need a tokenizer of bytes or characters, .* \(WordPiece\)"):
        made("the", choices=["a"])
    made = torchless.load(export(gpt, tmp_path / "none", check=False))
    with pytest.raises(TokenizerError, match="exported without a tokenizer"):
        made([5], choices=["a"])


# Mistakes

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"regex": "("}, r"regex='\(' cannot be used: unclosed group"),
    ({"regex": r"(a)\1"}, "backreferences are not supported"),
    ({"regex": "a(?=b)"}, "look-around"),
    ({"regex": ""}, "regex='' allows no text but the empty one"),
    ({"regex": "[^\\x00-\\x{10ffff}]"}, "no text of the model's tokens can have this form"),
    ({"regex": "a{1000000}"}, "the constraint is too complex"),
    ({"regex": "\ud800"}, "lone surrogate"),
    ({"regex": 5}, "regex=5: give a text"),
    ({"choices": "yes"}, "choices='yes': give texts"),
    ({"choices": []}, "choices=.*: give texts"),
    ({"choices": ["a", ""]}, "give texts, not empty"),
    ({"choices": [1]}, "give texts"),
    ({"json_schema": "{"}, "json_schema cannot be used: Expecting property name"),
    ({"json_schema": "[1]"}, "json_schema cannot be used: it is no object"),
    ({"json_schema": '{"const": NaN}'}, "json_schema cannot be used"),
    ({"json_schema": [1]}, r"json_schema=\[1\]: give a mapping"),
    ({"json_schema": {"a": {1}}}, "json_schema is not JSON"),
    ({"json_schema": {"type": "objekt"}}, "json_schema cannot be used: Invalid type: objekt"),
    ({"json_schema": {"not": {}}}, r'Unimplemented keys: \["not"\]'),
    ({"json_schema": {"$ref": "http://127.0.0.1:9/s.json"}}, "json_schema cannot be used"),
    ({"json_schema": {"type": "integer", "minimum": 2, "maximum": 1}}, "Unsatisfiable schema"),
    ({"json_schema": '{"a":' * 100_000}, "json_schema cannot be used"),
    ({"regex": "a", "choices": ["a"]}, "choices and regex: give one of them"),
    ({"regex": "a", "num_beams": 2}, "regex: not with num_beams"),
    ({"choices": ["a"], "forced_eos_token_id": 0}, "choices: not with num_beams, forced_bos_token_id"),
    ({"regex": "a", "bad_words_ids": [[66]]}, "leave no token to choose"),
]


@pytest.mark.parametrize(("chosen", "match"), WRONG, ids=lambda value: str(value)[:40])
def test_a_constraint_that_is_none_or_contradicts_another_setting_is_named(
    model: TextGeneration, chosen: dict[str, Any], match: str
) -> None:
    if "bad_words_ids" in chosen:
        chosen = chosen | {"bad_words_ids": [model.tokenizer.ids("a")]}
    with pytest.raises(InputError, match=match):
        model(PROMPT, max_new_tokens=30, **chosen)
    assert model(PROMPT, choices=["yes"]).text == "yes"


def test_without_the_extra_the_error_names_it(model: TextGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InputError, match=r'need llguidance: pip install "torchless\[constrain\]"'):
        Vocabulary(model.tokenizer, 320)


def test_the_command_line_takes_a_regex_and_a_schema(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(PERSON), encoding="utf-8")
    for form in ("--json-schema", str(schema)), ("--json-schema", json.dumps(PERSON)):
        assert main(["run", str(bundle), PROMPT, *form, "--seed", "1", "--max-new-tokens", "200"]) == 0
        assert is_person(json.loads(capsys.readouterr().out))
    assert main(["run", str(bundle), PROMPT, "--regex", "[0-9]{4}"]) == 0
    assert re.fullmatch("[0-9]{4}\n", capsys.readouterr().out)
    assert main(["run", str(bundle), PROMPT, "--regex", "("]) == 1
    assert "unclosed group" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["run", str(bundle), PROMPT, "--json-schema", str(tmp_path / "none.json")])
    assert "none.json cannot be read" in capsys.readouterr().err
