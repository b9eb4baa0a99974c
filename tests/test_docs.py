"""The pages keep to the code: their snippets and commands run, results have the form shown, tables are whole."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import transformers
from tokenizers import Tokenizer, processors

from torchless import Ranked
from torchless.cli import main
from torchless.cli.forms import FIT, FORMS
from torchless.export import export
from torchless.export.families import FAMILIES
from torchless.tasks import TASKS

ROOT = Path(__file__).parent.parent
PAGES = ("docs/tasks.md", "docs/embedding.md", "README.md")
LINKED = sorted(page for kind in ("*.md", "docs/*.md", "examples/**/*.md") for page in ROOT.glob(kind))
RESULT = re.compile(r"[\[({'\"\d-]|[A-Z]\w+\(|float32 \[")  # what a comment begins with that shows a result
ARRAY = re.compile(r"float32 \[([\d, ]+)\]")


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)


def sections(page: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", read(page), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


# What the snippets load


def with_template(tokenizer: Tokenizer) -> Tokenizer:
    """The GPT paper's sequences; its three tokens are ones that the vocabulary has."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="Ġ $A a", pair="Ġ $A b $B:1 a:1", special_tokens=[(one, tokenizer.token_to_id(one)) for one in "Ġab"]
    )
    return tokenizer


def wordpiece() -> Tokenizer:
    """With a word that the pages ask for as one token."""
    tokenizer = tiny.wordpiece()
    tokenizer.add_tokens(["there"])
    return tokenizer


def encoder(kind: str, *labels: str, width: int = 32) -> Any:
    """A tiny BERT of this class, with room for the texts of the pages."""
    config = transformers.BertConfig(
        vocab_size=wordpiece().get_vocab_size(), hidden_size=width, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=48, pad_token_id=0, **labelled(*labels),
    )  # fmt: skip
    model = tiny.uneven(getattr(transformers, f"Bert{kind}")(config), 7)
    if kind == "ForTokenClassification":
        model.classifier.bias.data[0] += 100  # so that there are entities to show
    return model


def labelled(*labels: str) -> dict[str, Any]:
    if not labels:
        return {}
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundles and files that the pages name."""
    folder = tmp_path_factory.mktemp("shop")
    gpt = tiny.gpt2(n_positions=128)
    pairs = transformers.GPT2Config(**gpt.config.to_dict() | labelled("same", "other"))
    similar = tiny.uneven(transformers.GPT2ForSequenceClassification(pairs), 7)
    for name, model, tokenizer, task in (
        ("gpt", gpt, tiny.bpe(), None),
        ("similar-gpt", similar, with_template(tiny.bpe()), None),
        ("spam", encoder("ForSequenceClassification", "ham", "spam"), wordpiece(), None),
        ("ner", encoder("ForTokenClassification", "B-PER", "I-PER", "LOC", "O"), wordpiece(), None),
        ("qa", encoder("ForQuestionAnswering"), wordpiece(), None),
        ("words", encoder("ForMaskedLM"), wordpiece(), None),
        ("nli", encoder("ForSequenceClassification", "contradiction", "entailment"), wordpiece(), None),
        ("minilm", encoder("Model", width=384), wordpiece(), None),
        ("ranker", encoder("ForSequenceClassification", "score"), wordpiece(), "text-ranking"),
        ("chooser", encoder("ForMultipleChoice"), wordpiece(), None),
        ("follows", encoder("ForNextSentencePrediction"), wordpiece(), None),
    ):
        export(model, folder / name, tokenizer=tokenizer, task=task, check=False)
    for given, name in (("gpt", "sotu-gpt-int8"), ("spam", "spam-bert-int8")):
        shutil.copytree(folder / given, folder / "examples" / "out" / name)
    tiny.save(gpt, folder / "path" / "to" / "checkpoint", tiny.bpe())
    tiny.save(gpt, folder / "checkpoint", tiny.bpe())
    for name in ("mails.txt", "texts.txt", "prompts.txt", "novel.txt"):
        (folder / name).write_text("You have won a prize!\nLunch on Monday?\n", encoding="utf-8")
    question = '{"id": 1, "question": "Who am I?", "context": "Call me Ishmael."}\n'
    (folder / "questions.jsonl").write_text(question * 2, encoding="utf-8")
    return folder


# Results


def shown(code: str) -> Iterator[tuple[ast.stmt, str]]:
    """Each statement of a snippet, and the comment beside it or on the lines below it."""
    lines = code.splitlines()
    for statement in ast.parse(code).body:
        assert statement.end_lineno is not None
        beside = lines[statement.end_lineno - 1][statement.end_col_offset or 0 :].strip()
        below = [*lines, ""][statement.end_lineno].strip()
        comment = beside or (below if below.startswith("#") else "")
        yield statement, comment.lstrip("# ")


def has_form(text: str, value: Any) -> bool:
    """Whether a result has the form that is shown: types, fields and nesting; `...` is whatever is left out."""
    if array := ARRAY.fullmatch(text):
        return (
            isinstance(value, np.ndarray) and value.dtype == np.float32 and value.ndim == len(array[1].split(","))
        )
    text = re.sub(r"([A-Z]\w+\()(\w+=[^()]*), \.\.\.\)", r"\1..., \2)", text)  # Python wants it at the front
    return agrees(ast.parse(text, mode="eval").body, value)


def agrees(node: ast.expr, value: Any) -> bool:
    match node:
        case ast.Constant(value=constant) if constant is ...:
            return True
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            names = [one.arg for one in keywords]
            known = [one.name for one in dataclasses.fields(value) if one.repr]
            whole = names == known or (bool(args) and set(names) <= set(known))
            return type(value).__name__ == name and whole and all(
                agrees(one.value, getattr(value, str(one.arg))) for one in keywords
            )  # fmt: skip
        case ast.List(elts=parts):
            named = [part for part in parts if not (isinstance(part, ast.Constant) and part.value is ...)]
            enough = len(value) >= len(named) if len(named) < len(parts) else len(value) == len(named)
            return type(value) is list and enough and all(map(agrees, named, value))
        case ast.Tuple(elts=parts):
            return type(value) is tuple and len(parts) == len(value) and all(map(agrees, parts, value))
        case ast.Dict(keys=keys, values=values):
            names = [ast.literal_eval(key) for key in keys if key is not None]
            return list(value) == names and all(map(agrees, values, value.values()))
    return type(value) is type(ast.literal_eval(node))


def test_a_form_that_is_not_that_of_the_result_is_seen() -> None:
    found = [Ranked(1, 0.5), Ranked(0, 0.25)]
    for text in ("[Ranked(index=0, score=0.1), ...]", "[Ranked(...), Ranked(index=2, ...)]", "...", "[...]"):
        assert has_form(text, found), text
    for text in (
        "[Ranked(index=0, score=0.1)]", "[Ranked(index=0), ...]", "[Ranked(index=0.5, score=0.1), ...]", "5",
        "[Match(index=0, score=0.1), ...]", "[Ranked(label=0, ...), ...]", "(Ranked(...), ...)", "float32 [2]",
    ):  # fmt: skip
        assert not has_form(text, found), text
    assert has_form("float32 [2, 384]", np.zeros((2, 3), np.float32))
    assert not has_form("float32 [384]", np.zeros((2, 3), np.float32))


@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_runs_and_gives_what_is_shown(page: str, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop)
    names: dict[str, Any] = {"__name__": page}
    results = 0
    for code in blocks(page, "python"):
        for statement, comment in shown(code):
            if isinstance(statement, ast.Expr):
                value = eval(compile(ast.Expression(statement.value), page, "eval"), names)
            else:
                exec(compile(ast.Module([statement], []), page, "exec"), names)
                value = names.get(ast.unparse(statement).split(" = ")[0])  # what was assigned, if anything
            if RESULT.match(comment):
                results += 1
                assert has_form(comment, value), f"{comment}\n{value!r}"
    assert results >= {"docs/tasks.md": 25, "docs/embedding.md": 6, "README.md": 5}[page]


# Commands


def commands(page: str) -> list[str]:
    return [line for code in blocks(page, "sh") for line in code.splitlines() if line.startswith("torchless ")]


@pytest.mark.parametrize("command", commands("docs/tasks.md"))
def test_every_command_answers(
    command: str, shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shop)
    assert main(shlex.split(command, comments=True)[1:]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.strip()


def test_the_readme_names_commands_and_options_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    forms = re.findall(
        r"torchless (export|quantize|run|serve|inspect|verify|doctor)\b(.*(?:\n {5,}.*)*)", read("README.md")
    )
    assert {command for command, _ in forms} == {
        "export",
        "quantize",
        "run",
        "serve",
        "inspect",
        "verify",
        "doctor",
    }
    for command, form in forms:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known = capsys.readouterr().out
        for flag in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", form.split("torchless ")[0]):
            assert re.search(rf"(?<![\w-]){flag}\b(?!-)", known), f"torchless {command} has no {flag}"


# Tables and links


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_section_that_names_its_class_and_options(task: str) -> None:
    text = sections("docs/tasks.md")[task]
    shared = sections("docs/tasks.md")["What the tasks share"]
    assert f"| [{task}](#{task}) | `{TASKS[task].cls}` |" in read("docs/tasks.md")
    if task == "text-generation":  # GenerationConfig lists its own
        return
    for option in FORMS[task].options:
        where = shared if option in FIT and task != "question-answering" else text
        assert f"`{option}`" in where or f"`{option}=" in where, option


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_class_of_a_family_is_in_the_table_of_the_graph_page(model_type: str) -> None:
    text = sections("docs/graph.md")["Families as built"]
    row = "".join(line for line in text.splitlines() if f"| `{model_type}` |" in line)
    prefix = FAMILIES[model_type].prefix
    heads = importlib.import_module(f"torchless.export.families.{FAMILIES[model_type].file}").HEADS
    assert f"`{prefix}…`" in row
    for kind, head in heads.items():
        shared = re.search(rf"^\| {head.task} \| `…{kind}` \|", text, re.MULTILINE)
        assert f"`…{kind}`" in row or ("the six" in row and shared), kind


def test_every_task_is_in_the_tables_of_the_graph_and_the_bundle() -> None:
    for task, row in TASKS.items():
        assert f"`{task}`" in read("docs/bundle.md"), task
        assert all(f"`{output}`" in sections("docs/graph.md")["Encoders"] for output in row.outputs), task
    for model_type in FAMILIES:
        assert f"`{model_type}`" in read("docs/bundle.md"), model_type


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            found = page.parent / target if target else page
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), f"{target}#{anchor}"


def anchors(page: Path) -> list[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
