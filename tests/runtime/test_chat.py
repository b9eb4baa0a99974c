"""Conversations: prompts as transformers writes them, answers that end at the next speaker, turns that fit."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import transformers
from tokenizers import Tokenizer, processors

import torchless
from torchless import BundleError, ContextLengthError, ExportError, InputError, TextGeneration
from torchless.chat import CHAT_TEMPLATE, Template, compile_template, plain, turn_end
from torchless.cli import main
from torchless.decoder import Stepper
from torchless.export import export
from torchless.sampling import Sampler

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim }}"
    "{% if message.role == 'assistant' %}{% generation %}{% endgeneration %}{% endif %}{{ '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
STRICT = """
{%- if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}
{%- for message in messages %}
    {%- if loop.index0 is divisibleby 2 %}
[INST] {{ message.content }} [/INST]{{ '' }}
    {%- else %}
{{ message.content | tojson }}{{ eos_token }}
    {%- endif %}
{%- endfor %}"""
HASHES = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n{% endfor %}### assistant:\n"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be <short> & kind."}
MARKUP = [user("a"), said("<b> & 'ß'"), user("c")]
TALK = [user("Who are you?"), said("  A whale. "), user("The union?")]


def marked() -> Tokenizer:
    """The tiny tokenizer with ChatML's two tokens."""
    tokenizer = tiny.bpe()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT with room for a conversation and ChatML's template in its tokenizer_config.json."""
    folder = tmp_path_factory.mktemp("chat") / "checkpoint"
    tiny.save(tiny.gpt2(n_positions=128, vocab_size=322), folder, marked())
    (folder / "tokenizer_config.json").write_text("{}")
    tiny.change_json(folder / "tokenizer_config.json", chat_template=CHATML, eos_token=tiny.END)
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    return export(checkpoint, checkpoint.with_name("bundle"), check=False)


@pytest.fixture(scope="module")
def chatml(bundle: Path) -> TextGeneration:
    return torchless.load(bundle)


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> TextGeneration:
    """A GPT with room for a conversation, and no template."""
    out = tmp_path_factory.mktemp("plain") / "bundle"
    return torchless.load(export(tiny.gpt2(n_positions=128), out, tokenizer=tiny.bpe(), check=False))


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[[TextGeneration, str], None]:
    """Makes a model say a text, whatever its logits are."""

    def say(model: TextGeneration, text: str) -> None:
        ids = model.tokenizer.ids(text)
        monkeypatch.setattr(Sampler, "__call__", lambda self, logits, before, added, *guess: ids[added])

    return say


# How a conversation is written


@pytest.mark.parametrize("template", [CHATML, STRICT, HASHES], ids=["chatml", "strict", "hashes"])
@pytest.mark.parametrize(
    "messages", [TALK, TALK[:1], [SYSTEM, *TALK], MARKUP], ids=["talk", "one", "system", "markup"]
)
def test_a_prompt_is_that_of_transformers(template: str, messages: list[dict[str, str]]) -> None:
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=marked(), eos_token=tiny.END)
    theirs.chat_template = template
    ours = compile_template(template, {"eos_token": tiny.END})
    if template == STRICT and messages[0] is SYSTEM:
        with pytest.raises(InputError, match="the chat template refuses these messages: no system here"):
            ours(messages, True)
        return
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours(messages, True) == expected


def test_an_answer_is_the_text_after_the_prompt_of_transformers(chatml: TextGeneration) -> None:
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=marked(), eos_token=tiny.END)
    theirs.chat_template = CHATML
    ids = theirs.apply_chat_template([SYSTEM, *TALK], add_generation_prompt=True, return_dict=False)
    end = chatml.tokenizer.fast.token_to_id("<|im_end|>")
    options = {"max_new_tokens": 20, "logit_bias": {end: 2.0}}
    done = chatml.chat([SYSTEM, *TALK], **options)
    assert done == chatml(ids, eos_token_id=[0, end], **options)
    stream = chatml.stream_chat([SYSTEM, *TALK], **options)
    assert "".join(stream) == done.text and stream.result == done


def test_without_a_template_speakers_have_plain_names(talker: TextGeneration) -> None:
    text = "Be <short> & kind.\n\nUser: Who are you?\nAssistant: A whale.\nUser: The union?\nAssistant:"
    assert plain([SYSTEM, *TALK], True) == text
    done = talker.chat([SYSTEM, *TALK], max_new_tokens=20)
    alone = talker(text, max_new_tokens=20, stop_strings="\nUser:")
    assert done.token_ids == alone.token_ids and done.text == alone.text.lstrip()
    stream = talker.stream_chat([SYSTEM, *TALK], max_new_tokens=20)
    assert "".join(stream) == done.text and stream.result == done


@pytest.mark.parametrize(
    ("template", "ends", "stops"),
    [
        (CHATML, ("<|im_end|>",), ()),
        (STRICT, (tiny.END,), ()),
        (HASHES, (), ("\n### user:",)),
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", (tiny.END,), ()),
        ("{% for m in messages %}{{ m.content + '\n' }}{% endfor %}", (), ("\n",)),
        ("{% for m in messages %}{{ m.content + ' ' }}{% endfor %}", (), ()),
        ("{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}", (), ()),
    ],
)
def test_an_answer_ends_where_the_next_one_would_speak(
    chatml: TextGeneration, template: str, ends: tuple[str, ...], stops: tuple[str, ...]
) -> None:
    ids = tuple(chatml.tokenizer.fast.token_to_id(one) for one in ends)
    assert turn_end(compile_template(template, {"eos_token": tiny.END}), chatml.tokenizer) == (ids, stops)
    assert turn_end(plain, chatml.tokenizer) == ((), ("\nUser:",))


def test_the_next_speakers_turn_is_no_part_of_an_answer(
    chatml: TextGeneration, talker: TextGeneration, says: Callable[[TextGeneration, str], None]
) -> None:
    says(chatml, " A whale.<|im_end|> And")
    end = chatml.tokenizer.fast.token_to_id("<|im_end|>")
    done = chatml.chat(TALK, max_new_tokens=9)
    assert (done.text, done.token_ids[-1], done.finish_reason) == (" A whale.", end, "stop")
    says(talker, " A whale.\nUser: And")
    done = talker.chat(TALK)
    assert (done.text, done.finish_reason) == ("A whale.", "stop_string")
    assert "".join(talker.stream_chat(TALK)) == "A whale."
    done = talker.chat(TALK, stop_strings="wh")  # those of the caller count, too
    assert (done.text, done.finish_reason) == ("A ", "stop_string")


# What is kept between turns


def test_a_turn_computes_only_what_is_new(
    talker: TextGeneration, read: list[int], says: Callable[[TextGeneration, str], None]
) -> None:
    says(talker, " A whale.\nUser: And")
    asked = TALK[:1]
    done = talker.chat(asked)
    held = [*talker.tokenizer.ids(plain(asked, True)), *done.token_ids[:-1]]
    read.clear()
    talker.chat([*asked, said(done.text), user("The union?")])
    whole = talker.tokenizer.ids("User: Who are you?\nAssistant: A whale.\nUser: The union?\nAssistant:")
    shared = next(i for i, (one, other) in enumerate(zip(whole, [*held, None])) if one != other)
    assert shared > done.prompt_tokens + 5 and read == [len(whole) - shared]


def test_several_conversations_each_with_its_state_compute_only_what_is_new(
    talker: TextGeneration, read: list[int]
) -> None:
    one, other = talker.state(), talker.state()
    for _ in range(2):
        for text, state in (("Who are you?", one), ("The future of the union", other)):
            talker.chat([user(text)], state=state, max_new_tokens=3)
    assert read[2:] == [1, 1] and min(read[:2]) > 10


def test_conversations_in_many_threads_give_what_each_gives_alone(talker: TextGeneration) -> None:
    texts = ["Who are you?", "The union?", "A whale", "Who is strong?"]
    alone = [talker.chat([user(text)], max_new_tokens=12) for text in texts]
    found: list[Any] = [None] * len(texts)

    def talk(i: int) -> None:
        for _ in range(4):
            found[i] = talker.chat([user(texts[i])], max_new_tokens=12)

    threads = [threading.Thread(target=talk, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_a_stream_that_is_left_half_way_disturbs_no_one(talker: TextGeneration) -> None:
    stream = talker.stream_chat(TALK, max_new_tokens=20)
    next(stream)
    expected = talker.chat(TALK, max_new_tokens=20)
    stream.close()
    assert talker.chat(TALK, max_new_tokens=20) == expected


# Turns that do not fit


def test_the_oldest_turns_are_left_out_and_the_systems_words_stay(talker: TextGeneration, bundle: Path) -> None:
    turns = [one for i in range(30) for one in (user(f"Question {i}?"), said(f"Answer {i}."))]
    talk = [SYSTEM, *turns, user("And now?")]
    for wanted in (1, 20, 60):
        done = talker.chat(talk, max_new_tokens=wanted)
        fitting = [
            len(talker.tokenizer.ids(plain([SYSTEM, *talk[start:]], True))) for start in range(1, len(talk), 2)
        ]
        assert done.prompt_tokens == max(count for count in fitting if count + wanted <= 128)
    assert talker.chat(talk).prompt_tokens <= 128 - 32  # a quarter of the context is left for an answer
    prompt = talker.state()
    talker.chat(talk, max_new_tokens=20, state=prompt)
    text = talker.tokenizer.decode(prompt.ids)
    assert text.startswith("Be <short> & kind.\n\nUser: Question 2") and "User: And now?\nAssistant:" in text


def test_no_turn_more_than_needed_is_left_out(talker: TextGeneration) -> None:
    talk = [*TALK, said("Strong."), user("Who?")]
    counts = [len(talker.tokenizer.ids(plain(talk[start:], True))) for start in (0, 2, 4)]
    assert [talker.chat(talk, max_new_tokens=128 - count).prompt_tokens for count in counts] == counts


def test_a_template_writes_its_special_tokens_itself(talker: TextGeneration) -> None:
    fast = tiny.bpe()
    fast.post_processor = processors.TemplateProcessing(single=f"{tiny.END} $A", special_tokens=[(tiny.END, 0)])
    tokenizer = dataclasses.replace(talker.tokenizer, fast=fast)
    ids = talker.tokenizer.ids(plain(TALK, True))
    assert Template(plain, own=True).ids(tokenizer, TALK) == ids
    assert Template(plain).ids(tokenizer, TALK) == [0, *ids]


def test_what_alone_does_not_fit_is_an_error(talker: TextGeneration) -> None:
    long = user("union " * 100)
    for options in ({}, {"max_new_tokens": 5}):
        with pytest.raises(ContextLengthError, match="tokens"):
            talker.chat([user("A"), said("B"), long], **options)
    done = talker.chat([long], overflow="slide", max_new_tokens=5)
    assert done.prompt_tokens > 128 and len(done.token_ids) <= 5


WRONG: list[tuple[Any, str]] = [
    ([], "a conversation is a list of"),
    ("Hello", "a conversation is a list of"),
    ({"role": "user", "content": "Hello"}, "a conversation is a list of"),
    (["Hello"], "'Hello' is no message"),
    ([{"content": "Hello"}], "is no message: give"),
    ([{"role": "user"}], "expected text, got NoneType"),
    ([{"role": "user", "content": "\ud800"}], "lone surrogate"),
    ([user("A"), said("B")], "the assistant has said the last word"),
    ([{"role": "tool", "content": "A"}], "role 'tool': without a chat template there are system, user and"),
]


@pytest.mark.parametrize(("messages", "match"), WRONG, ids=lambda value: str(value)[:30])
def test_what_is_no_conversation_is_named(talker: TextGeneration, messages: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        talker.chat(messages)


@pytest.mark.parametrize("chosen", [{"num_beams": 2}, {"num_return_sequences": 2, "seed": 1}], ids=str)
def test_a_conversation_has_one_answer(talker: TextGeneration, chosen: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="a conversation has one answer"):
        talker.chat(TALK, **chosen)


# The template's file


def test_the_template_travels_with_the_bundle(checkpoint: Path, bundle: Path, copy_of: Any, tmp_path: Path) -> None:
    assert (bundle / CHAT_TEMPLATE).read_text() == CHATML
    folder = copy_of(checkpoint)
    named = [{"name": "tools", "template": "x"}, {"name": "default", "template": HASHES}]
    for template, expected in ((named, HASHES), ([], None), (None, None)):
        tiny.change_json(folder / "tokenizer_config.json", chat_template=template)
        out = export(folder, tmp_path / "out", check=False, overwrite=True)
        assert ((out / CHAT_TEMPLATE).read_text() if (out / CHAT_TEMPLATE).exists() else None) == expected
    (folder / CHAT_TEMPLATE).write_text(STRICT)
    out = export(folder, tmp_path / "out", check=False, overwrite=True)
    assert (out / CHAT_TEMPLATE).read_text() == STRICT
    assert torchless.load(out).chat(TALK, max_new_tokens=2).token_ids
    tiny.change_json(folder / "tokenizer_config.json", chat_template=5)
    (folder / CHAT_TEMPLATE).unlink()
    with pytest.raises(ExportError, match="chat_template is a int, not a text"):
        export(folder, tmp_path / "other", check=False)


def test_a_tokenizer_of_transformers_brings_its_template(tmp_path: Path) -> None:
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tiny.bpe(), eos_token=tiny.END)
    theirs.chat_template = HASHES
    out = export(tiny.gpt2(), tmp_path / "out", tokenizer=theirs, check=False)
    assert (out / CHAT_TEMPLATE).read_text() == HASHES


def test_a_template_that_is_none_is_an_error_of_the_bundle(checkpoint: Path, copy_of: Any, tmp_path: Path) -> None:
    folder = copy_of(checkpoint)
    (folder / CHAT_TEMPLATE).write_text("{% for m in messages %}")
    model = torchless.load(export(folder, tmp_path / "out", check=False))
    with pytest.raises(BundleError, match=r"chat_template\.jinja is not a chat template"):
        model.chat(TALK)
    assert model("A", max_new_tokens=1).token_ids


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_a_hostile_template_stays_in_its_sandbox(attack: str) -> None:
    with pytest.raises(InputError, match="the chat template refuses these messages"):
        compile_template(attack, {})(TALK, True)


@pytest.mark.parametrize("version", [None, "3.1.5"])
def test_a_template_without_a_safe_jinja2_says_what_to_install(
    checkpoint: Path, copy_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    folder = copy_of(checkpoint)
    (folder / CHAT_TEMPLATE).write_text(STRICT)  # a template that has no form of its own
    bundle = export(folder, tmp_path / "out", check=False)
    if version is None:
        monkeypatch.setitem(sys.modules, "jinja2", None)
    else:
        monkeypatch.setattr("jinja2.__version__", version)
    with pytest.raises(InputError, match=r'3.1.6 or newer: pip install "torchless\[chat\]"'):
        torchless.load(bundle).chat(TALK)


# examples/summarize.py


@pytest.fixture(scope="module")
def example() -> Any:
    path = Path(__file__).parents[2] / "examples" / "summarize.py"
    made: Any = importlib.util.module_from_spec(importlib.util.spec_from_file_location("summarize", path))  # type: ignore[arg-type]
    made.__spec__.loader.exec_module(made)
    return made


def test_a_long_text_is_summed_up_in_pieces_that_fit(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = export(tiny.gpt2(n_positions=160), tmp_path / "bundle", tokenizer=tiny.bpe(), check=False)
    text = " ".join([*tiny.SENTENCES * 3, "x" * 300, "ß" * 100, "The end?"])
    with torchless.load(bundle) as model:
        found = list(example.pieces(model, text))
        assert "".join("".join(found).split()) == "".join(text.split())
        assert all(len(model.tokenizer.ids(one + example.PROMPT)) + example.NEW <= 160 for one in found)
        assert found[0].endswith((".", "!")) and list(example.pieces(model, " ")) == []
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["summarize.py", str(tmp_path / "long.txt"), "--bundle", str(bundle)])
    example.main()
    shown = capsys.readouterr()
    assert shown.out.count(" ...\n") == len(found) and f"piece 1 of {len(found)}" in shown.err


@pytest.mark.parametrize(
    ("content", "options", "code", "match"),
    [
        (None, [], 1, r"summarize.py: .*text.txt cannot be read \(No such file or directory\)\n"),
        (b"\xff", [], 1, r"summarize.py: .*text.txt cannot be read \(.* can't decode byte 0xff .*\)\n"),
        (b" \n", [], 1, r"summarize.py: .*text.txt holds no text\n"),
        (b"A", ["--bundle", "nope"], 1, r"summarize.py: .*nope.*\n"),
        (b"A", [], 1, r"summarize.py: .*the context of 64 tokens has no room for a summary of 100\n"),
        (b"A", ["--pieces", "0"], 2, r"(?s).*error: --pieces 0: give 1 or more\n"),
    ],
    ids=["no file", "no text file", "empty", "no bundle", "a short context", "no pieces"],
)
def test_what_cannot_be_summed_up_is_told_in_a_line(
    example: Any, gpt_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], content: bytes | None, options: list[str], code: int, match: str,
) -> None:  # fmt: skip
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["summarize.py", str(path), "--bundle", str(gpt_bundle), *options])
    with pytest.raises(SystemExit) as stop:
        example.main()
    assert stop.value.code == code and re.fullmatch(match, capsys.readouterr().err)


# torchless run -i


def test_the_command_line_holds_a_conversation(
    talker: TextGeneration, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["Who are you?", "", "union " * 200, "The union?"])

    def typed(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    assert main(["run", str(talker.bundle.path), "-i", "--max-new-tokens", "8"]) == 0
    shown = capsys.readouterr()
    first = talker.chat([user("Who are you?")], max_new_tokens=8).text
    second = talker.chat([user("Who are you?"), said(first), user("The union?")], max_new_tokens=8).text
    assert shown.out == f"{first}\n{second}\n"
    assert shown.err.count("\n") == 1 and "the prompt has 1,0" in shown.err


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_ends_an_answer_and_not_the_conversation(talker: TextGeneration) -> None:
    command = [sys.executable, "-m", "torchless.cli", "run", str(talker.bundle.path), "-i"]
    child = subprocess.Popen(
        [*command, "--overflow", "slide", "--max-new-tokens", "1000000"], stdin=subprocess.PIPE, bufsize=0,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=tiny.hear_ctrl_c,
    )  # fmt: skip
    assert child.stdin and child.stdout and child.stderr
    for text in (b"Who are you?\n", b"The union?\n"):
        child.stdin.write(text)
        assert child.stdout.read(1)  # it speaks
        child.send_signal(signal.SIGINT)
        assert child.stderr.readline() == b"torchless: interrupted\n"
        os.set_blocking(child.stdout.fileno(), False)  # to read all that it has said until then
        while child.stdout.read():
            pass
        os.set_blocking(child.stdout.fileno(), True)
    _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (0, b"")


@pytest.fixture
def heard() -> Iterator[None]:
    """Python's own answer to Ctrl-C, which a process that was started in the background lacks."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_ctrl_c_prints_the_answer_so_far_as_json(
    talker: TextGeneration, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, calls = Stepper.__call__, []

    def interrupted(self: Stepper, tokens: Any) -> Any:
        calls.append(tokens)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return step(self, tokens)

    whole = talker.chat([user("Who are you?")], max_new_tokens=20)
    lines = iter(["Who are you?", "The union?"])
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Stepper, "__call__", interrupted)
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, None) or (_ for _ in ()).throw(EOFError()))
    assert main(["run", str(talker.bundle.path), "-i", "--json", "--max-new-tokens", "20"]) == 0
    shown = capsys.readouterr()
    first, second = map(json.loads, shown.out.splitlines())
    assert (first["token_ids"], first["finish_reason"]) == (whole.token_ids[:5], "cancelled")
    told = [user("Who are you?"), said(first["text"]), user("The union?")]
    assert second["text"] == talker.chat(told, max_new_tokens=20).text
    assert shown.err == "torchless: interrupted\n" and signal.getsignal(signal.SIGINT) is handler
