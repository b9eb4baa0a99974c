"""`torchless run` for every task: arguments, files, standard input and JSON lines in, lines or JSON out."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import torchless
from torchless.cli.forms import CHOOSE, FORMS, SCORE
from torchless.cli.run import STRATEGIES, spell_out
from torchless.generation_config import GenerationConfig
from torchless.model import STRATEGIES as KNOWN_STRATEGIES
from torchless.tasks import TASKS

Shell = Callable[..., tuple[int, str, str]]
NLI = {0: "contradiction", 1: "entailment"}
CONTEXT = "Call me Ishmael. Some years ago the whale was strong."


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


# Options


def test_every_option_is_one_of_its_task() -> None:
    assert set(FORMS) == {*TASKS, CHOOSE, SCORE}
    assert STRATEGIES == KNOWN_STRATEGIES
    for task, form in FORMS.items():
        method = task if task in (CHOOSE, SCORE) else "__call__"
        kind = torchless.TextGeneration if task in (CHOOSE, SCORE) else getattr(torchless, TASKS[task].cls)
        call = inspect.signature(getattr(kind, method))
        known = {*call.parameters, *(GenerationConfig.__dataclass_fields__ if task == "text-generation" else ())}
        assert set(form.options) <= known, task


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("text-classification", ["--stride", 3]),
        ("text-classification", ["--targets", "a"]),
        ("text-classification", ["--question", "a"]),
        ("token-classification", ["--pair", "a", "b"]),
        ("fill-mask", ["--normalize"]),
        ("feature-extraction", ["--top-k", 2]),
        ("question-answering", ["--truncation"]),
        ("next-sentence-prediction", ["--both-orders"]),
    ],
    ids=str,
)
def test_an_option_of_another_task_is_refused_by_name(
    shell: Shell, bundles: dict[str, Path], task: str, options: list[Any]
) -> None:
    code, out, err = shell("run", bundles[task], "a", *options)
    assert (code, out) == (1, "") and f"{options[0]} is not for {task}, the task of" in err


def test_truncation_may_have_a_strategy_and_takes_no_text_for_one(
    shell: Shell, bundles: dict[str, Path], classifier: torchless.TextClassification
) -> None:
    assert spell_out(["--truncation", "a"]) == ["--truncation=true", "a"]
    assert spell_out(["a", "--truncation"]) == ["a", "--truncation=true"]
    assert spell_out(["--truncation", "only_first", "a"]) == ["--truncation=only_first", "a"]
    assert spell_out(["--", "--truncation", "a"]) == ["--", "--truncation", "a"]
    assert spell_out(["--truncation", "--", "only_first"]) == ["--truncation=true", "--", "only_first"]
    bundle, long = bundles["text-classification"], "the union is strong " * 20
    pair = ["--pair", long, "a prize"]
    for flags, value in ((["--truncation"], True), (["--truncation", "only_first"], "only_first")):
        code, out, _ = shell("run", bundle, *pair, *flags, "--max-length", 20, "--truncation-side", "left")
        expected = classifier((long, "a prize"), truncation=value, max_length=20, truncation_side="left")
        assert (code, out) == (0, f"{expected.label}\t{expected.score:.4f}\n")
    assert shell("run", bundle, "a", "--truncation=some")[0] == 2


def test_another_task_of_the_same_head_may_be_chosen(shell: Shell, bundles: dict[str, Path]) -> None:
    bundle = bundles["zero-shot-classification"]
    code, out, _ = shell(
        "run", bundle, "the union", "--task", "zero-shot-classification", "--candidate-labels", "money, a whale",
        "--json", "--hypothesis-template", "It is {}.", "--multi-label", "--batch-size", 1,
    )  # fmt: skip
    with torchless.load(bundle, task="zero-shot-classification") as model:
        expected = model(
            "the union", candidate_labels=["money", "a whale"], hypothesis_template="It is {}.", multi_label=True
        )
    assert code == 0 and rows(out)[0]["scores"] == pytest.approx(expected.scores, abs=1e-5)
    code, _, err = shell("run", bundle, "a", "--task", "fill-mask")
    assert code == 1 and "task='fill-mask'" in err
    code, _, err = shell("run", bundle, "a", "--task", "zero-shot-classification")
    assert code == 1 and "zero-shot-classification needs TEXT and --candidate-labels" in err


# Tasks


def test_classification_takes_pairs_and_gives_the_best_labels(
    shell: Shell, bundles: dict[str, Path], classifier: torchless.TextClassification
) -> None:
    bundle = bundles["text-classification"]
    code, out, _ = shell("run", bundle, "--pair", "a", "b", "--pair", "-5 degrees", "d", "--top-k", 2, "the union")
    results = classifier([("a", "b"), ("-5 degrees", "d"), "the union"], top_k=2)
    assert (code, out) == (0, "".join(f"{k}\t{v:.4f}\n" for one in results for k, v in one.scores.items()))
    out = shell("run", bundle, "--pair", "a", "b", "--both-orders", "--json")[1]
    (row,) = rows(out)
    assert (row["text"], row["text_pair"]) == ("a", "b")
    assert row["scores"] == pytest.approx(classifier(("a", "b"), both_orders=True).scores, abs=1e-6)


def test_entities_have_a_line_each(shell: Shell, bundles: dict[str, Path]) -> None:
    bundle, texts = bundles["token-classification"], ["Call me Ishmael.", ""]
    with torchless.load(bundle) as model:
        (other,) = {"LABEL_0", "LABEL_1"} - {model(texts[0])[0].label}
        expected = model(texts, aggregation_strategy="simple", ignore_labels=["O", other])
    flags = ["--aggregation-strategy", "simple", "--ignore-labels", f"O, {other}"]
    out = shell("run", bundle, *texts, *flags)[1]
    assert expected[0] and out == "".join(
        f"{one.label}\t{one.score:.4f}\t{one.word}\t{one.start}\t{one.end}\n" for part in expected for one in part
    )
    found = rows(shell("run", bundle, *texts, *flags, "--json")[1])
    assert [len(row["entities"]) for row in found] == [len(part) for part in expected]
    assert found[0]["entities"][0]["word"] == expected[0][0].word


def test_questions_are_answered_from_options_text_and_json(shell: Shell, bundles: dict[str, Path]) -> None:
    bundle, questions = bundles["question-answering"], ["Who?", "When?"]
    with torchless.load(bundle) as model:
        first, second = model(question=questions, context=CONTEXT, max_answer_len=4)
        best = model(question="Who?", context=CONTEXT, top_k=3, max_answer_len=4)
    line = f"{' '.join(first.answer.split())}\t{first.score:.4f}\t{first.start}\t{first.end}\n"
    short = ["--max-answer-len", 4]
    assert shell("run", bundle, "--question", "Who?", "--context", CONTEXT, *short)[:2] == (0, line)
    assert shell("run", bundle, "--question", "Who?", CONTEXT, *short)[1] == line
    both = shell("run", bundle, "--context", CONTEXT, *questions, *short)[1]
    assert both.startswith(line) and len(both.splitlines()) == 2
    assert shell("run", bundle, "--context", CONTEXT, "-i", *short, given="Who?\n\nWhen?\n")[1] == both
    given = "".join(json.dumps({"question": one, "context": CONTEXT, "id": one}) + "\n" for one in questions)
    found = rows(shell("run", bundle, "--json-lines", "--json", *short, given=given)[1])
    assert [(row["id"], row["answer"], row["start"]) for row in found] == [
        ("Who?", first.answer, first.start), ("When?", second.answer, second.start)
    ]  # fmt: skip
    (row,) = rows(shell("run", bundle, "--context", CONTEXT, "Who?", "--top-k", 3, "--json", *short)[1])
    assert [one["answer"] for one in row["answers"]] == [one.answer for one in best]
    code, _, err = shell("run", bundle, "Who?")
    assert (
        code == 1 and "question-answering needs --context and --question, one of them as TEXT; or --json-l" in err
    )
    code, _, err = shell("run", bundle, "--question", "Who?", "--context", CONTEXT, "more")
    assert code == 1 and "question-answering has all it needs from its options: leave TEXT out" in err


def test_masks_are_filled_with_targets(
    shell: Shell, bundles: dict[str, Path], fill_mask: torchless.FillMask
) -> None:
    expected = fill_mask("the [MASK] is", targets=["union", "people"])
    out = shell("run", bundles["fill-mask"], "the [MASK] is", "--targets", "union, people")[1]
    assert out == "".join(f"{one.score:.4f}\t{one.token}\t{one.sequence}\n" for one in expected)
    given = '{"text": "a [MASK]", "targets": ["prize"]}\n{"text": "a [MASK]"}\n'
    found = rows(shell("run", bundles["fill-mask"], "--json-lines", "--json", "--top-k", 2, given=given)[1])
    assert found[0]["candidates"][0]["token"] == "prize"
    assert [len(row["candidates"]) for row in found] == [1, 2]


def test_embeddings_are_normalized_and_truncated(
    shell: Shell, bundles: dict[str, Path], embedding: torchless.Embedding
) -> None:
    out = shell("run", bundles["feature-extraction"], "a", "b", "--normalize", "--truncate-dim", 4)[1]
    expected = embedding(["a", "b"], normalize=True, truncate_dim=4)
    assert tiny.furthest(np.float32([json.loads(line) for line in out.splitlines()]), expected) < 1e-6


def test_choices_follow_their_option_or_stand_as_texts(shell: Shell, bundles: dict[str, Path]) -> None:
    bundle, choices = bundles["multiple-choice"], ["a prize", "its people"]
    with torchless.load(bundle) as model:
        best = model(context="the union", choices=choices, question="is it?")
    line = f"{best.index}\t{best.score:.4f}\t{choices[best.index]}\n"
    asked = ["--question", "is it?"]
    assert shell("run", bundle, "the union", *asked, "--choices", *choices)[:2] == (0, line)
    assert shell("run", bundle, "--context", "the union", *asked, *choices)[1] == line
    given = json.dumps({"context": "the union", "question": "is it?", "choices": choices})
    given += "\n" + json.dumps({"context": "the union", "choices": choices})
    first, second = rows(shell("run", bundle, "--json-lines", "--json", given=given)[1])
    assert first["scores"] == pytest.approx(best.scores, abs=1e-5) != second["scores"]
    code, _, err = shell("run", bundle, "the union")
    assert code == 1 and "multiple-choice needs --context and --choices, one of them as TEXT" in err


def test_next_sentences_are_pairs(shell: Shell, bundles: dict[str, Path]) -> None:
    bundle = bundles["next-sentence-prediction"]
    with torchless.load(bundle) as model:
        expected = model(("a", "b"))
    assert shell("run", bundle, "--pair", "a", "b")[1] == f"{expected.label}\t{expected.score:.4f}\n"
    given = '{"text": "a", "text_pair": "b"}'
    assert rows(shell("run", bundle, "--json-lines", "--json", given=given)[1])[0]["label"] == expected.label
    code, _, err = shell("run", bundle, "a")
    assert (
        code == 1 and "next-sentence-prediction needs --pair A B, and no TEXT; or --json-lines with text, t" in err
    )
    assert shell("run", bundle, "--pair", "a", "b", "c")[2] == err


def test_passages_are_ranked(shell: Shell, bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle, passages = bundles["text-ranking"], tiny.SENTENCES
    with torchless.load(bundle, task="text-ranking") as model:
        ranked = model(query="the union", passages=passages, top_k=3)
    expected = "".join(f"{one.index}\t{one.score:.4f}\t{' '.join(passages[one.index].split())}\n" for one in ranked)
    command = ["run", bundle, "--task", "text-ranking", "--query", "the union", "--top-k", 3]
    assert shell(*command, *passages)[:2] == (0, expected)
    (tmp_path / "passages.txt").write_text("\n".join(passages), encoding="utf-8")
    assert shell(*command, "--file", tmp_path / "passages.txt")[1] == expected
    (row,) = rows(shell(*command, "--json", *passages)[1])
    assert row["ranking"] == [{"index": one.index, "score": pytest.approx(one.score, abs=1e-6)} for one in ranked]
    code, _, err = shell(*command, "-i", given="a\n")
    assert code == 1 and "passages are several: add --json-lines" in err


def test_prompts_come_as_json_lines(shell: Shell, gpt_bundle: Path, gpt: torchless.TextGeneration) -> None:
    given = '{"prompt": "The\\nunion", "id": 1}\n{"prompt": "A", "id": 2}\n'
    found = rows(shell("run", gpt_bundle, "--json-lines", "--json", "--max-new-tokens", 4, given=given)[1])
    assert [(row["id"], row["text"]) for row in found] == [
        (1, gpt("The\nunion", max_new_tokens=4).text), (2, gpt("A", max_new_tokens=4).text)
    ]  # fmt: skip


# What is read


def test_a_file_standard_input_and_texts_are_read_in_their_order(
    shell: Shell, bundles: dict[str, Path], tmp_path: Path
) -> None:
    bundle = bundles["text-classification"]
    (tmp_path / "texts.txt").write_bytes(b"\xef\xbb\xbfthe union\r\n\r\na prize\r\n")
    expected = shell("run", bundle, "x", "y", "z", "the union", "a prize", "--json")[1]
    assert shell("run", bundle, "x", "-", "--file", tmp_path / "texts.txt", "--json", given="y\nz\n")[1] == expected
    assert (
        shell("run", bundle, "the union", "a prize", "--json")[1]
        == (shell("run", bundle, "--json", "--file", tmp_path / "texts.txt")[1])
    )
    assert shell("run", bundle, "--file", "-", given="a\n") == shell("run", bundle, "a")
    code, out, err = shell("run", bundle, "-", "a", "-", given="a\n")
    assert (code, out) == (1, "") and "standard input can be read once only: give - once" in err
    assert shell("run", bundle, "--json-lines", given="\n")[:2] == (0, "")


@pytest.mark.parametrize("text", ["-5 degrees", "-5degrees", "-5", "- item", "--- a", "---", "-"])
def test_a_text_that_begins_with_a_dash_and_is_no_option_is_a_text(
    shell: Shell, bundles: dict[str, Path], text: str
) -> None:
    bundle = bundles["text-classification"]
    expected = shell("run", bundle, "--json", "--", "a", text, "b", given="in")
    assert expected[0] == 0 and rows(expected[1])[1]["text"] == (text if text != "-" else "in")
    assert shell("run", bundle, "--json", "a", text, "b", given="in") == expected
    assert shell("run", bundle, "--json", "--batch-size", 3, "a", text, "b", given="in") == expected
    assert shell("run", "--batch-size", 3, bundle, "a", text, "--json", "b", given="in") == expected


@pytest.mark.parametrize("option", ["--max-tokens", "-x", "--max-tokens=3"])
def test_a_misspelt_option_is_no_text(shell: Shell, bundles: dict[str, Path], option: str) -> None:
    code, out, err = shell("run", bundles["text-classification"], "a", option)
    assert (code, out) == (2, "") and f"unrecognized arguments: {option}" in err


def test_a_file_that_cannot_be_read_is_named(shell: Shell, bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = bundles["text-classification"]
    code, out, err = shell("run", bundle, "--file", tmp_path / "nowhere.txt")
    assert (code, out) == (1, "") and "nowhere.txt cannot be read" in err and err.count("\n") == 1
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    code, _, err = shell("run", bundle, "--file", tmp_path / "latin.txt")
    assert code == 1 and "latin.txt is not UTF-8" in err


# Streams that are closed or full


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("redirect", "message"),
    [
        (">/dev/full", "No space left on device"),
        (">&-", "standard output is closed"),
        ("<&-", "standard input is closed: give a TEXT or --file"),
    ],
)
@pytest.mark.parametrize("flags", ["", "--json"])
def test_streams_that_are_full_or_closed_give_one_line(
    bundles: dict[str, Path], redirect: str, message: str, flags: str
) -> None:
    text = "" if redirect.startswith("<") else "a"
    command = f"{sys.executable} -m torchless.cli run {bundles['feature-extraction']} {flags} {text} {redirect}"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and message in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
