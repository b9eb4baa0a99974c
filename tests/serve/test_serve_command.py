"""`torchless serve` as another program starts and ends it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from peers import PATIENCE

from torchless.cli import main
from torchless.errors import InputError
from torchless.serve import Options, asking, server

# A shell starts background jobs deaf to Ctrl-C, and their children inherit it. Texts of thousands of tokens take a
# minute here: the signal comes before their end.
START = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from torchless.cli import main
from torchless.decoder import Stepper
step = Stepper.__call__
Stepper.__call__ = lambda self, tokens: time.sleep(0.02) or step(self, tokens)
sys.exit(main())
"""


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """A server of its own process, and its address; one that a test has left is killed."""
    made: list[subprocess.Popen[str]] = []

    def begin(*arguments: object) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-c", START, "serve", *map(str, arguments), "--port", "0"]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        made.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.fullmatch(r"torchless: serving (.+) at (http://127\.0\.0\.1:\d+)\n", line)
        assert found, line + process.stderr.read()
        return process, found[2]

    yield begin
    for process in made:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            stream.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals to one process")
@pytest.mark.parametrize(
    ("number", "code", "told"), [("SIGTERM", 0, ""), ("SIGINT", 130, "torchless: interrupted")]
)
def test_a_signal_ends_a_stream_with_a_word_and_the_process_with_its_code(
    start: Any, gpt_bundle: Path, long_gpt: Any, number: str, code: int, told: str
) -> None:
    process, url = start(f"small={gpt_bundle}", f"long={long_gpt.bundle.path}")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
    assert [model.id for model in client.models.list()] == ["small", "long"]
    stream = client.completions.create(
        model="long", prompt="a", max_tokens=4000, logit_bias={"0": -100}, stream=True
    )
    pieces = iter(stream)
    next(pieces)
    process.send_signal(getattr(signal, number))
    with pytest.raises(openai.APIError, match="the server is stopping"):
        for _ in pieces:
            pass
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err.strip()) == (code, "", told)


def test_it_ends_when_its_parent_closes_the_pipe(start: Any, gpt_bundle: Path) -> None:
    process, url = start(gpt_bundle, "--stop-at-eof", "--allow-origin", "null", "--api-key", "k")
    page = {"origin": "null", "authorization": "Bearer k"}
    assert httpx.get(f"{url}/v1/models", headers=page, timeout=PATIENCE).json()["data"][0]["id"] == "bundle"
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--host", "0.0.0.0"], "can be reached from other machines: pass --allow-remote"),
        (["--host", "::"], "--allow-remote"),
        (["--host", ""], "--allow-remote"),
        (["--host", "example.org"], "--allow-remote"),
        (["--port", "99999"], "from 0 (a free one) to 65535"),
        (["--batch-size", "0"], "batch_size=0: give a whole number of 1 or more"),
        (["--queue", "-1"], "queue=-1"),
        (["--api-key", " "], "api_key is empty"),
        (["--host", "192.0.2.1", "--allow-remote"], "cannot listen at 192.0.2.1 port"),
    ],
)
def test_what_it_does_not_listen_to_is_refused_in_a_line(
    gpt_bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert main(["serve", str(gpt_bundle), "--port", "0", *arguments]) == 1
    out, err = capsys.readouterr()
    assert told in err and err.count("\n") == 1 and out == ""


def test_a_port_that_is_taken_two_models_of_one_name_and_other_tasks_are_refused(
    gpt_bundle: Path, bert_bundles: dict[str, Path], gpt: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with server({"gpt": gpt}) as running:
        port = running.url.rpartition(":")[2]
        assert main(["serve", str(gpt_bundle), "--port", port]) == 1
        assert f"cannot listen at 127.0.0.1 port {port}: " in capsys.readouterr().err
    assert main(["serve", str(gpt_bundle), str(gpt_bundle)]) == 1
    assert "two bundles are called bundle: give one of them another name, NAME=" in capsys.readouterr().err
    assert main(["serve", f"words={bert_bundles['fill-mask']}", "--port", "0"]) == 1
    assert "words: no endpoint answers for fill-mask: give bundles for text-generation" in capsys.readouterr().err
    with pytest.raises(InputError, match="there is no model to serve"):
        server({})


def test_other_machines_may_ask_where_that_is_wanted(gpt: Any) -> None:
    with server({"gpt": gpt}, Options(host="0.0.0.0", allow_remote=True, allow_hosts=("box.lan",))) as running:
        url = running.url.replace("0.0.0.0", "127.0.0.1")
        for host, status in (("192.168.1.7:80", 200), ("box.lan", 200), ("BOX.lan:1", 200), ("evil.example", 403)):
            found = httpx.get(f"{url}/health", headers={"host": host}, timeout=PATIENCE)
            assert found.status_code == status, host


def test_without_the_extra_it_says_what_to_install(gpt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r'pip install "torchless\[serve\]"'):
        server({"gpt": gpt})


def test_the_page_names_every_field_and_option_that_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
    for name in (*asking.REFUSED, *asking.OWN, *asking.NAMES):
        assert f"`{name}`" in page, name
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    known = capsys.readouterr().out
    for option in set(re.findall(r"--[a-z][a-z-]+", re.sub(r"`benchmarks/[^`]+`", "", page))):
        assert option in known, option
