"""torchless bench: the table on standard output, files as asked, progress on a terminal only."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from torchless.quantize.results import Results
from torchless.quantize.sensitivity import sensitivity

Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mails(tmp_path: Path) -> Path:
    file = tmp_path / "mails.csv"
    lines = [f'"{text}",{label}' for text, label in zip(tiny.SENTENCES, ["ham", "spam", "unsure"] * 2)]
    file.write_text("body,kind\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_bench_prints_a_table_and_writes_what_is_asked(
    shell: Shell, bert_bundles: dict[str, Path], mails: Path, tmp_path: Path
) -> None:
    bundle = bert_bundles["text-classification"]
    files = {form: tmp_path / f"out.{form}" for form in ("json", "csv", "html")}
    code, out, err = shell(
        "bench", bundle, bundle, "--data", mails, "--text-column", "body", "--label-column", "kind",
        "--lengths", "5,9", "--batches", 2, "--repeats", 2, "--threads", 1,
        *(part for form, path in files.items() for part in (f"--{form}", path)),
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert out.startswith("text-classification on mails.csv, 6 examples\n")
    assert "2 texts of 5 tokens" in out and "2 texts of 9 tokens" in out
    results = Results.from_json(files["json"].read_text(encoding="utf-8"))
    assert [(one.batch, one.length) for one in results.bundles[1].latencies] == [(2, 5), (2, 9)]
    accuracy = results.bundles[1].against["accuracy"]
    assert (accuracy.value, accuracy.low, accuracy.high) == (0, 0, 0)  # the same bundle
    assert files["csv"].read_text(encoding="utf-8").startswith("bundle,")
    assert files["html"].read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_bench_measures_only_what_is_asked(shell: Shell, bert_bundles: dict[str, Path], mails: Path) -> None:
    bundle = bert_bundles["text-classification"]
    columns = ("--text-column", "body", "--label-column", "kind")
    code, out, _ = shell("bench", bundle, "--data", mails, *columns, "--no-speed", "--examples", 4)
    assert code == 0 and "4 examples" in out and "tokens/s" not in out and "accuracy" in out
    assert shell("bench", bundle, "--no-speed")[0::2] == (
        1,
        "torchless: without data there is only speed to measure: give data, or let speed be measured\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lengths", "5,x"), "'5,x': give whole numbers, such as 16,128"),
        (("--lengths", "0"), "0: give a whole number of 1 or more"),
        (("--batches", "1,"), "give whole numbers"),
        (("--repeats", "few"), "'few': give a whole number of 1 or more"),
        ((), "the following arguments are required: BUNDLE"),
    ],
)
def test_bench_knows_wrong_usage(arguments: tuple[str, ...], message: str, shell: Shell) -> None:
    bundles = ("some-bundle",) if arguments else ()
    code, out, err = shell("bench", *bundles, *arguments)
    assert (code, out) == (2, "") and message in err


def test_bench_tells_mistakes_in_one_line(
    shell: Shell, bert_bundles: dict[str, Path], gpt_bundle: Path, mails: Path
) -> None:
    bundle = bert_bundles["text-classification"]
    for arguments, message in (
        ((bundle, gpt_bundle), "has the task text-classification"),
        ((bundle, "--data", mails), "there is: body, kind"),
        ((bundle, "--data", mails, "--json", mails), "is read as well"),
        ((bundle, "--repeats", 1), "repeats=1: give a whole number of 2 or more"),
        ((mails.parent / "none",), "is not a folder"),
    ):
        code, out, err = shell("bench", *arguments)
        assert (code, out) == (1, "") and err.startswith("torchless: ") and err.count("\n") == 1
        assert message in err


def test_the_view_by_layer_joins_the_results_when_asked(
    shell: Shell, bert_bundles: dict[str, Path], mails: Path, tmp_path: Path
) -> None:
    bundle, data = bert_bundles["text-classification"], tmp_path / "named.csv"
    data.write_text(mails.read_text(encoding="utf-8").replace("body,kind", "text,label", 1), encoding="utf-8")
    asked = (
        "--no-speed",
        "--sensitivity",
        "int4",
        "--json",
        tmp_path / "out.json",
        "--html",
        tmp_path / "out.html",
    )
    assert shell("bench", bundle, "--data", data, *asked)[0] == 0
    rows = Results.from_json((tmp_path / "out.json").read_text(encoding="utf-8")).sensitivity
    direct = sensitivity(bundle, recipe="int4", data=data)
    assert rows and [(row["name"], row["error"]) for row in rows] == [(one.name, one.error) for one in direct]
    assert "What is sensitive" in (tmp_path / "out.html").read_text(encoding="utf-8")
    code, _, err = shell("bench", bundle, "--data", mails, "--text-column", "body", *asked)
    assert code == 1 and "--sensitivity reads the columns text and label" in err


def test_bench_shows_progress_on_a_terminal_and_wipes_it_away(
    shell: Shell, bert_bundles: dict[str, Path], mails: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    columns = ("--text-column", "body", "--label-column", "kind")
    code, _, err = shell("bench", bert_bundles["text-classification"], "--data", mails, *columns, "--no-speed")
    assert code == 0 and "scoring " in err and err.endswith("\r\033[K")


def test_ctrl_c_ends_bench_with_130(
    shell: Shell, bert_bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torchless.quantize.bench.measure_speed", interrupt)
    target = tmp_path / "out.json"
    code, out, err = shell("bench", bert_bundles["text-classification"], "--json", target)
    assert (code, out) == (130, "") and "interrupted" in err and not target.exists()
    assert not list(tmp_path.iterdir())


def test_the_table_is_as_wide_as_the_terminal(
    shell: Shell, bert_bundles: dict[str, Path], mails: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((70, 24)))
    monkeypatch.setattr("torchless.cli.bench.sys", types.SimpleNamespace(stdout=Terminal(), stderr=None))
    bundle = bert_bundles["text-classification"]
    columns = ("--text-column", "body", "--label-column", "kind")
    code, out, _ = shell("bench", bundle, bundle, "--data", mails, *columns, "--no-speed")
    assert code == 0 and max(map(len, out.splitlines())) <= 70


class Terminal:
    def isatty(self) -> bool:
        return True
