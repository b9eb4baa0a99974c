"""`torchless run` over lines of which some are wrong, what it says then, and the likelihood of texts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import torchless
from torchless.cli.forms import FORMS
from torchless.cli.items import only
from torchless.export import parity

Shell = Callable[..., tuple[int, str, str]]


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize(
    ("task", "line", "match"),
    [
        ("text-classification", "{", "standard input, line 2: not JSON"),
        ("text-classification", "5", "line 2: no JSON object: give one with text, text_pair, id"),
        (
            "text-classification",
            '{"txt": "a"}',
            "line 2: txt is no field of text-classification (known: text, text_p",
        ),
        ("text-classification", '{"text_pair": "a"}', "line 2: text is missing, which text-classification needs"),
        ("text-classification", '{"text": 5, "id": [7]}', "line 2 (id [7]): text: expected text, got int"),
        ("text-classification", '{"text": ["a", "b"]}', 'line 2: text: expected text, got list with ["a", "b"]'),
        ("text-classification", '{"text": null}', "line 2: text: expected text, got NoneType"),
        ("text-classification", '{"text": "a", "text_pair": 1}', "line 2: text_pair: expected text, got int"),
        ("text-classification", '{"text": "\\ud800", "id": 3}', "line 2 (id 3): "),
        ("text-ranking", '{"query": "a", "passages": "bc"}', "passages: expected a list of texts, got str"),
        (
            "text-ranking",
            '{"query": "a", "passages": ["b", 1]}',
            'expected a list of texts, got list with ["b", 1]',
        ),
        (
            "zero-shot-classification",
            '{"text": "a", "candidate_labels": {"k": 1}}',
            "a text or a list of texts, got",
        ),
        ("question-answering", '{"context": ["a"], "question": "b"}', "line 2: context: expected text, got list"),
        ("text-generation", '{"prompt": true}', "prompt: expected text, or a list of token ids, got bool"),
        ("text-generation", '{"prompt": ["a"]}', "prompt: expected text, or a list of token ids, got list"),
    ],
)
def test_a_line_that_is_wrong_is_named_and_the_others_are_answered(
    shell: Shell, bundles: dict[str, Path], gpt_bundle: Path, task: str, line: str, match: str
) -> None:
    bundle = {"text-generation": gpt_bundle, **bundles}[task]
    sound: dict[str, Any] = {
        "text": "a", "query": "a", "passages": ["b"], "candidate_labels": ["b"], "prompt": "a", "context": "a b",
        "question": "b", "id": 7,
    }  # fmt: skip
    sound = {name: value for name, value in sound.items() if name in (*FORMS[task].fields, "id")}
    given = json.dumps(sound) + "\n" + line + "\n" + json.dumps(sound)
    options = ["--max-new-tokens", 2] if task == "text-generation" else []
    command = ["run", bundle, "--task", task, "--json-lines", "--json", *options]
    code, out, err = shell(*command, given=given)
    assert code == 1 and [row["id"] for row in rows(out)] == [7, 7]
    assert match in err and err.startswith("torchless: standard input, line 2") and err.count("\n") == 1
    code, out, err = shell(*command, "-i", given=line + "\n" + json.dumps(sound))
    assert code == 0 and rows(out)[0]["id"] == 7 and err.count("torchless: ") == 1  # the others are answered


def test_a_line_that_the_model_refuses_is_named_and_the_others_are_answered(
    shell: Shell, bundles: dict[str, Path], fill_mask: torchless.FillMask, tmp_path: Path
) -> None:
    texts = [f"{word} [MASK]" for word in ("the", "a", "of", "and", "union", "is")]
    texts[1] = texts[4] = "no mask"
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    code, out, err = shell("run", bundles["fill-mask"], "--file", tmp_path / "texts.txt", "--top-k", 1)
    answers = [one for text in texts if "MASK" in text for one in fill_mask(text, top_k=1)]
    assert code == 1 and [line.split("\t")[1] for line in out.splitlines()] == [one.token for one in answers]
    first, second = err.splitlines()
    assert first.startswith(f"torchless: {tmp_path / 'texts.txt'}, line 2: no [MASK] in 'no mask'")
    assert "texts.txt, line 5: no [MASK]" in second
    assert shell("run", bundles["fill-mask"], *texts)[2].startswith("torchless: TEXT 2: no [MASK]")


def test_a_wrong_setting_is_told_once_for_all_lines(shell: Shell, bundles: dict[str, Path]) -> None:
    code, out, err = shell("run", bundles["text-classification"], "--batch-size", 0, given="a\nb\nc\n")
    assert (code, out) == (1, "")
    assert err.startswith("torchless: standard input, line 1 and 2 more: batch_size=0: ") and err.count("\n") == 1


def test_an_optional_field_that_is_null_is_left_out(shell: Shell, bundles: dict[str, Path]) -> None:
    code, out, _ = shell(
        "run", bundles["text-classification"], "--json-lines", "--json", given='{"text": "a", "text_pair": null}'
    )
    assert code == 0 and rows(out) == rows(shell("run", bundles["text-classification"], "a", "--json")[1])


@pytest.mark.parametrize("task", FORMS)
def test_what_a_task_needs_is_told_in_options_that_there_are(shell: Shell, task: str) -> None:
    form, known = FORMS[task], shell("run", "--help")[1]
    if len(form.fields) == 1:
        assert only(form.fields, task) == form.fields[0]
        return
    with pytest.raises(torchless.InputError, match=f"{task} needs .*; or --json-lines with ") as raised:
        only(form.fields, task)
    told = str(raised.value).split(";")[0]
    assert "TEXT" in told and all(flag in known for flag in re.findall(r"--[a-z-]+", told))
    assert told.count("--") == (1 if "TEXT and" in told or "and TEXT" in told or "--pair" in told else 2)


def test_the_remedies_of_an_error_are_options(shell: Shell, gpt_bundle: Path, bundles: dict[str, Path]) -> None:
    long = "the union is strong " * 20
    code, _, err = shell("run", gpt_bundle, long, "--score")
    assert code == 1 and "pass --stride (such as 32) to read them in windows" in err
    assert "pass --truncation" in shell("run", bundles["text-classification"], long)[2]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--return-full-text"], "--return-full-text is not for a conversation: .* add --json-lines"),
        (["--num-beams", 2, "--seed", 1], "--num-beams is not for a conversation"),
        (
            ["--num-return-sequences", 2, "--batch-size", 4],
            "--batch-size, --num-return-sequences is not for a conv",
        ),
        (["--prompt-lookup-num-tokens", 4], "--prompt-lookup-num-tokens is not for a conversation"),
        (["--assistant-model", "itself"], "--assistant-model is not for a conversation"),
        (["--temperature", -1], "temperature=-1.0: give 0 or more"),
        (["--regex", "("], "unclosed group"),
        (["--min-new-tokens", 5, "--max-new-tokens", 3], "contradict each other"),
        (["--max-new-tokens", 1000], "do not fit the model's context of 64: pass --max-new-tokens"),
    ],
    ids=str,
)
def test_a_conversation_says_at_once_and_once_which_settings_it_cannot_take(
    shell: Shell, gpt_bundle: Path, options: list[Any], match: str
) -> None:
    options = [gpt_bundle if option == "itself" else option for option in options]
    code, out, err = shell("run", gpt_bundle, "-i", *options, given="Who are you?\nThe union?\n")
    assert (code, out) == (1, "") and err.count("\n") == 1 and re.search(match, err)


def test_what_a_conversation_cannot_take_is_asked_prompt_by_prompt(
    shell: Shell, gpt_bundle: Path, gpt: torchless.TextGeneration
) -> None:
    given = '{"prompt": "The union"}\n{"prompt": "A"}\n'
    options = ["--json-lines", "--num-beams", 2, "--return-full-text", "--max-new-tokens", 5]
    code, out, err = shell("run", gpt_bundle, "-i", *options, given=given)
    texts = [gpt(text, num_beams=2, return_full_text=True, max_new_tokens=5).text for text in ("The union", "A")]
    assert (code, out, err) == (0, "".join(f"{text}\n" for text in texts), "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudoterminals of this kind")
def test_a_conversation_at_a_terminal_says_how_it_ends(gpt_bundle: Path) -> None:
    import pty

    ours, its = pty.openpty()
    command = [sys.executable, "-m", "torchless.cli", "run", gpt_bundle, "-i", "--max-new-tokens", "3"]
    with subprocess.Popen(command, stdin=its, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        os.write(ours, b"The union\n\x04")
        out, err = running.communicate(timeout=60)
    os.close(ours), os.close(its)
    assert running.returncode == 0 and out.startswith("> ") and out.count("> ") == 2
    assert err == "Ctrl-C ends an answer, Ctrl-D the conversation.\n"


def test_a_checkpoint_that_is_not_there_is_said_before_torch_is_asked_for(
    shell: Shell, gpt_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "has_torch", lambda: False)
    code, out, err = shell("verify", gpt_bundle, "--against", "nope")
    assert (code, out) == (1, "") and err == "torchless: --against nope: there is no such folder or file\n"
    code, _, err = shell("verify", gpt_bundle, "--against", gpt_bundle)
    assert code == 1 and "needs torch" in err


# How likely a text is


def test_a_choice_by_likelihood_has_a_command(
    shell: Shell, gpt_bundle: Path, gpt: torchless.TextGeneration, tmp_path: Path
) -> None:
    choices = [" union", " whale", "!"]
    best = gpt.choose("The future of the", choices)
    line = f"{best.index}\t{best.score:.4f}\t{choices[best.index].strip()}\n"
    asked = ["run", gpt_bundle, "--choices", *choices]
    assert shell(*asked, "--context", "The future of the") == (0, line, "")
    (row,) = rows(shell(*asked, "--context", "The future of the", "--json")[1])
    assert row["logprobs"] == pytest.approx(best.logprobs, abs=1e-4) and row["choices"] == choices
    given = json.dumps({"context": "The future of the", "choices": choices, "id": 1}) + '\n{"context": "a"}\n'
    code, out, err = shell("run", gpt_bundle, "--choose", "--json-lines", "--json", given=given)
    assert code == 1 and rows(out)[0]["index"] == best.index and "line 2: choices is missing" in err
    code, _, err = shell("run", gpt_bundle, "The", "--choose", "--seed", 1)
    assert code == 1 and "--seed is not for choose" in err


def test_the_likelihood_of_a_text_has_a_command(
    shell: Shell, gpt_bundle: Path, gpt: torchless.TextGeneration, tmp_path: Path
) -> None:
    text = "The future of the\nunion"
    score = gpt.score(text)
    (tmp_path / "text.txt").write_text(text + "\n", encoding="utf-8")
    code, out, err = shell("run", gpt_bundle, "--score", "--file", tmp_path / "text.txt")
    *tokens, last = [line.split("\t") for line in out.splitlines()]
    assert (code, err) == (0, "") and last == [f"{score.perplexity:.4f}", "perplexity"]
    assert [one for one, _ in tokens] == [f"{one:.4f}" for one in score.logprobs]
    assert [json.loads(one) for _, one in tokens] == [text[start:end] for start, end in score.offsets]
    (row,) = rows(shell("run", gpt_bundle, "--score", text, "--json")[1])
    assert row["logprobs"] == pytest.approx(score.logprobs, abs=1e-5)
    assert row["bits_per_byte"] == pytest.approx(score.bits_per_byte)
    (row,) = rows(shell("run", gpt_bundle, "--score", "T", "--json")[1])
    assert row["perplexity"] is None  # nothing to predict, and JSON has no NaN
    (row,) = rows(shell("run", gpt_bundle, "--score", text * 9, "--stride", 20, "--json")[1])
    assert row["logprobs"] == pytest.approx(gpt.score(text * 9, stride=20).logprobs, abs=1e-4)


def test_likelihood_is_for_gpts_and_one_thing_at_a_time(
    shell: Shell, gpt_bundle: Path, bundles: dict[str, Path]
) -> None:
    for flag in ("--score", "--choose"):
        code, out, err = shell("run", bundles["fill-mask"], "a", flag)
        assert (code, out) == (1, "") and f"{flag} is not for fill-mask" in err
    code, _, err = shell("run", gpt_bundle, "a", "--score", "--choose")
    assert code == 2 and "give one of them" in err
