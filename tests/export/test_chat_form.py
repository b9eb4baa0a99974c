"""Chat templates that the runtime writes without jinja2: exactly what transformers writes, or not at all."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import transformers
from hypothesis import given
from hypothesis import strategies as st

import torchless
from torchless import InputError
from torchless.chat import CHAT_TEMPLATE, compile_template
from torchless.chat_form import ChatForm
from torchless.cli import main
from torchless.export import export
from torchless.export.chat_form import read_chat_form
from torchless.manifest import MANIFEST, Manifest

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
# The layouts of SmolLM2; of ChatML; of Zephyr and TinyLlama; of Llama 3 without its tools.
TURNS = {
    "smollm2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' "
        "}}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content | trim }}"
        "{% if m.role == 'assistant' %}{% generation %}{% endgeneration %}{% endif %}{{ '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "zephyr": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
        "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
        "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "llama3": (
        "{% for message in messages %}{% set content = '<|start|>' + message['role'] + '<|end|>\n\n' + "
        "message['content'] | trim + '<|eot|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
        "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt and not tools %}"
        "{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
    ),
    "numbers": "{% for m in messages %}{{ '[1,  2]' + m.content.strip() + '[ 3 ]' if true else '' }}{% endfor %}",
}
# What hangs on more than the cases that are tried, or writes no turns; each would pass one of the two steps.
OTHERS = {
    "a count of turns": "{% for m in messages %}{{ m.content }}{% if loop.index > 3 %}!{% endif %}{% endfor %}",
    "what is said": "{% for m in messages %}{{ m.content }}{% if m.content == 'x' %}!{% endif %}{% endfor %}",
    "what is said, by a name": (
        "{% for m in messages %}{% set c = m.content %}{{ c }}{% if c == 'x' %}!{% endif %}{% endfor %}"
    ),
    "its length": "{% for m in messages %}{{ m.content }}{{ m.content | length }}{% endfor %}",
    "a part of it": "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}",
    "a filter of more than it": "{% for m in messages %}{{ (m.content + ' ') | trim }}{% endfor %}",
    "or": "{% for m in messages %}{{ m.content or 'nothing' }}{% endfor %}",
    "another message": "{% for m in messages %}{{ m.content }}{{ messages[0].content }}{% endfor %}",
    "the last one's role": "{% for m in messages %}{{ m.content }}{{ messages[-1].role }}{% endfor %}",
    "a refusal": "{{ raise_exception('no') }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "a date": "{% for m in messages %}{{ strftime_now('%Y') }}{{ m.content }}{% endfor %}",
    "another end": "{% for m in messages %}{{ m.content }}{% if not loop.last %}|{% endif %}{% endfor %}",
    "another beginning": "{% for m in messages %}{% if not loop.first %}|{% endif %}{{ m.content }}{% endfor %}",
    "two loops": "{% for m in messages %}{{ m.content }}{% endfor %}{% for m in messages %}.{% endfor %}",
    "another list": "{% for m in messages[1:] %}{{ m.content }}{% endfor %}",
    "a name of its own for all": "{% set messages = [] %}{% for m in messages %}{{ m.content }}{% endfor %}",
    "the same for all": "{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}",
    "twice": "{% for m in messages %}{{ m.content + m.content }}{% endfor %}",
    "nothing": "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
    "no template": "{% for m in messages %}",
    "a text": "x",
}  # fmt: skip


def theirs(template: str) -> Any:
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tiny.bpe(), **SPECIAL)
    tokenizer.chat_template = template
    return tokenizer


REFERENCES = {name: theirs(template) for name, template in TURNS.items()}
FORMS = {name: read_chat_form(template, SPECIAL) for name, template in TURNS.items()}
messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant"]),
            "content": st.text(st.characters(codec="utf-8"))
            | st.sampled_from([" a\n", "\u2003b\u2003", "<|im_end|>"]),
        }
    ),
    min_size=1,
    max_size=9,
)


@pytest.mark.parametrize("name", TURNS)
@given(talk=messages, answer=st.booleans())
def test_a_form_writes_every_conversation_as_transformers_does(name: str, talk: Any, answer: bool) -> None:
    form = FORMS[name]
    assert form is not None
    expected = REFERENCES[name].apply_chat_template(talk, tokenize=False, add_generation_prompt=answer)
    assert form.render(talk, answer) == expected


def test_the_system_speaks_first_by_itself_where_nobody_else_speaks_for_it() -> None:
    form = FORMS["smollm2"]
    assert form is not None
    assert list(form.opening) == ["user", "assistant"] and "named SmolLM" in form.opening["user"]
    assert form.turns["user"] == ("<|im_start|>user\n", "<|im_end|>\n") and not form.trim
    assert form.answer == "<|im_start|>assistant\n"


@pytest.mark.parametrize("why", OTHERS)
def test_a_template_that_is_no_row_of_turns_is_left_to_jinja2(why: str) -> None:
    assert read_chat_form(OTHERS[why], SPECIAL) is None


@pytest.mark.parametrize("name", TURNS)
def test_the_manifest_keeps_a_form_to_the_letter(name: str) -> None:
    made = Manifest("gpt2", "text-generation", 8, 8, (), chat=FORMS[name], torchless="0")
    raw = json.loads(made.to_json())["chat"]
    again = ChatForm({role: tuple(pair) for role, pair in raw["turns"].items()}, raw["opening"], raw["answer"])
    assert (again.turns, again.opening, again.answer) == (made.chat.turns, made.chat.opening, made.chat.answer)


# In a bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny.bpe()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    given = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=tiny.END)
    given.chat_template = TURNS["smollm2"]
    out = tmp_path_factory.mktemp("form") / "bundle"
    return export(tiny.gpt2(n_positions=256, vocab_size=322), out, tokenizer=given, check=False)


@pytest.fixture
def no_jinja(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)


TALK = [{"role": "user", "content": "Who are you?"}]


@pytest.mark.usefixtures("no_jinja")
def test_a_bundle_with_a_form_talks_without_jinja2(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torchless.load(bundle)
    expected = theirs(TURNS["smollm2"]).apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert model.template.render(TALK, True) == expected
    assert model.template.ends == (model.tokenizer.fast.token_to_id("<|im_end|>"),)
    assert model.chat(TALK, max_new_tokens=2).prompt_tokens == len(model.tokenizer.ids(expected))
    monkeypatch.setattr("sys.stdin", io.StringIO("Who are you?\nThe union?\n"))
    assert main(["run", str(bundle), "-i", "--max-new-tokens", "2"]) == 0


def test_other_roles_are_the_templates_own_and_need_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = [{"role": "tool", "content": "42"}, *TALK]
    model = torchless.load(bundle)
    whole = compile_template((bundle / CHAT_TEMPLATE).read_text(), {})
    assert model.template.render(talk, True) == whole(talk, True)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(InputError, match=r'pip install "torchless\[chat\]"'):
        torchless.load(bundle).chat(talk)


def test_an_export_without_jinja2_keeps_the_template_alone(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    given = theirs(TURNS["smollm2"])
    out = export(tiny.gpt2(), tmp_path / "out", tokenizer=given, check=False)
    assert "chat" not in json.loads((out / MANIFEST).read_text()) and (out / CHAT_TEMPLATE).exists()


@pytest.mark.parametrize(
    ("chat", "match"),
    [
        (5, "holds int, not an object"),
        ({}, "lacks the field 'turns'"),
        ({"turns": {"user": ["a"]}}, "field 'turns': 1 texts around"),
        ({"turns": {"user": ["a", 5]}}, "field 'turns': expected text, found int"),
        ({"turns": {}, "answer": None}, "field 'answer': expected text"),
        ({"turns": {}, "trim": 1}, "field 'trim': expected true or false"),
    ],
)
def test_a_form_that_is_none_is_an_error_of_the_bundle(
    bundle: Path, copy_of: Any, chat: object, match: str
) -> None:
    folder = copy_of(bundle)
    tiny.change_json(folder / MANIFEST, chat=chat)
    with pytest.raises(torchless.BundleError, match=match):
        torchless.load(folder)
