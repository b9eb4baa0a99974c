"""The command line: what goes to which stream, and with which exit code."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

import torchless
from torchless.cli import main

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a command in this process: exit code, standard output, standard error."""

    def call(*arguments: object, given: bytes | None = None) -> tuple[int, str, str]:
        if given is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as left:  # argparse
            code = int(left.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_export_quantize_verify_and_run_lead_from_a_checkpoint_to_an_answer(
    cli: Cli, gpt_checkpoint: Path, tmp_path: Path
) -> None:
    out, small = tmp_path / "gpt", tmp_path / "gpt-int8"
    code, said, progress = cli("export", gpt_checkpoint, out)
    assert code == 0 and "text-generation" in said and "differs from transformers" in said
    assert "writing the fused graph" in progress
    code, said, _ = cli("quantize", out, small)
    assert code == 0 and "int8" in said and "->" in said
    code, said, _ = cli("verify", small)
    assert code == 0 and "allowed" in said
    code, said, _ = cli("verify", out, "--against", gpt_checkpoint, "--json")
    assert code == 0 and json.loads(said)["against"]["max_abs_error"] < 1e-4
    code, said, _ = cli("run", small, "The union", "--max-new-tokens", 5)
    assert code == 0 and said == torchless.load(small)("The union", max_new_tokens=5).text + "\n"


def test_export_refuses_to_overwrite_unless_told_to(cli: Cli, gpt_checkpoint: Path, tmp_path: Path) -> None:
    assert cli("export", gpt_checkpoint, tmp_path / "gpt", "--no-check")[0] == 0
    code, said, error = cli("export", gpt_checkpoint, tmp_path / "gpt", "--no-check")
    assert (code, said) == (1, "") and "exists" in error and "--overwrite" in error
    assert cli("export", gpt_checkpoint, tmp_path / "gpt", "--no-check", "--overwrite")[0] == 0


def test_an_unknown_recipe_is_one_line_and_leaves_nothing(cli: Cli, gpt_bundle: Path, tmp_path: Path) -> None:
    code, said, error = cli("quantize", gpt_bundle, tmp_path / "out", "--recipe", "int3")
    assert (code, said) == (1, "") and error.startswith("torchless: recipe='int3'") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_one_prompt_on_standard_input_may_have_several_lines(cli: Cli, gpt_bundle: Path) -> None:
    with torchless.load(gpt_bundle) as gpt:
        whole, first = gpt("The\nunion", max_new_tokens=4), gpt("The", max_new_tokens=4)
    given = b"\xef\xbb\xbfThe\r\nunion\r\n".replace(b"\r\n", b"\n")
    code, said, _ = cli("run", gpt_bundle, "-", "--max-new-tokens", 4, "--json", given=given)
    assert code == 0 and json.loads(said)["token_ids"] == whole.token_ids
    code, said, _ = cli("run", gpt_bundle, "--lines", "--max-new-tokens", 4, "--json", given=given)
    rows = [json.loads(line) for line in said.splitlines()]
    assert [row["prompt"] for row in rows] == ["The", "union"] and rows[0]["token_ids"] == first.token_ids


def test_json_gives_one_object_a_line_for_every_task(cli: Cli, bert_bundles: dict[str, Path]) -> None:
    def rows(task: str, *texts: str) -> list[dict[str, Any]]:
        code, said, _ = cli("run", bert_bundles[task], *texts, "--json")
        assert code == 0
        return [json.loads(line) for line in said.splitlines()]

    spam, ham = rows("text-classification", "free money now", "minutes of the meeting")
    assert spam["text"] == "free money now" and set(spam["scores"]) == {"ham", "spam", "unsure"}
    assert ham["label"] in ham["scores"]
    (vector,) = rows("feature-extraction", "the union")
    assert len(vector["embedding"]) == 32
    (filled,) = rows("fill-mask", "the [MASK] is strong")
    assert len(filled["candidates"]) == 5 and set(filled["candidates"][0]) >= {"token", "score", "sequence"}


def test_lines_of_standard_input_are_texts(cli: Cli, bert_bundles: dict[str, Path]) -> None:
    given = b"free money now\n\nminutes\x0cof the meeting\r\n"
    code, said, _ = cli("run", bert_bundles["text-classification"], given=given)
    assert code == 0 and len(said.splitlines()) == 2  # no line for the empty one, none for the form feed


def test_the_interactive_mode_answers_line_by_line_until_the_end(
    cli: Cli, bert_bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said, _ = cli("run", bert_bundles["text-classification"], "-i", given=b"free money\n\nminutes\n")
    assert code == 0 and len(said.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "COMMAND"),
        (("run", "{bundle}", "x", "--max-new-tokens", "many"), 2, "invalid int"),
        (("run", "{bundle}", "x", "-i"), 2, "leave TEXT out"),
        (("run", "{bundle}", "x", "--truncation"), 1, "--truncation is not for text-generation"),
        (("run", "{bundle}", ""), 1, "the prompt is empty"),
        (("run", "{bundle}", "x", "--temperature", "-1"), 1, "temperature=-1.0"),
        (("run", "{bundle}", "x", "--provider", "cuda"), 1, "provider='cuda': onnxruntime"),
        (("run", "{bundle}", "x", "--max-new-tokens", "1000"), 1, "do not fit the model's context"),
        (("run", "nowhere", "x"), 1, "nowhere is not a folder"),
        (("inspect", "nowhere"), 1, "nowhere is not a folder"),
        (("export", "nowhere", "out"), 1, "nowhere is not a folder"),
    ],
)
def test_mistakes_are_told_on_standard_error(
    cli: Cli, gpt_bundle: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    got, said, error = cli(*(argument.format(bundle=gpt_bundle) for argument in arguments))
    assert (got, said) == (code, "") and message in error and "Traceback" not in error


def test_standard_input_that_is_not_utf8_is_refused(cli: Cli, gpt_bundle: Path) -> None:
    code, said, error = cli("run", gpt_bundle, "-", given=b"caf\xe9")
    assert (code, said) == (1, "") and "not UTF-8" in error and "byte 3" in error


def test_inspect_shows_the_manifest(cli: Cli, gpt_bundle: Path) -> None:
    code, said, _ = cli("inspect", gpt_bundle, "--json")
    assert code == 0 and json.loads(said) == json.loads((gpt_bundle / "torchless.json").read_text("utf-8"))
    code, said, _ = cli("inspect", gpt_bundle)
    assert code == 0 and "model.standard.onnx" in said and "differs from" in said


def test_doctor_tells_what_is_here(cli: Cli) -> None:
    code, said, _ = cli("doctor", "--json")
    found = json.loads(said)
    assert code == 0 and found["torchless"] == torchless.__version__ and "cpu" in found["providers_usable"]
    assert cli("doctor")[0] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_while_generating_keeps_what_was_said_and_exits_with_130(gpt_bundle: Path) -> None:
    slow = "import sys, time, torchless.tasks.text_generation as t; from torchless.cli import main\n"
    slow += "decode = t.decode; t.decode = lambda *given: (time.sleep(1) or token for token in decode(*given))\n"
    slow += f"sys.exit(main(['run', {str(gpt_bundle)!r}, 'The', '--min-new-tokens', '60']))"
    process = subprocess.Popen(
        [sys.executable, "-c", slow], stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=tiny.hear_ctrl_c
    )
    assert process.stdout is not None
    first = process.stdout.read(1)  # it has begun
    process.send_signal(signal.SIGINT)
    rest, error = process.communicate(timeout=60)
    assert process.returncode == 130 and b"interrupted" in error and b"Traceback" not in error
    assert first and rest.endswith(b"\n")


@pytest.mark.skipif(sys.platform == "win32", reason="closes a pipe")
def test_a_reader_that_leaves_is_no_error(bert_bundles: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "torchless.cli", "run", str(bert_bundles["feature-extraction"])]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()
    process.stdin.write("the union\n" * 500)
    process.stdin.close()
    assert process.wait(timeout=60) == 0 and "Traceback" not in process.stderr.read()


def test_ctrl_c_before_the_command_is_there_exits_with_130_too() -> None:
    interrupt = "import sys\nclass Ctrl:\n    def find_spec(self, name, *more):\n"
    interrupt += "        if name == 'numpy': raise KeyboardInterrupt\n"
    interrupt += "sys.meta_path.insert(0, Ctrl())\nfrom torchless.cli import main\nsys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", interrupt], capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr.strip() == "torchless: interrupted"
