"""A model inside a program that forks, sends it to other processes, uses threads, and ends when it likes."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import torchless
from torchless import GenerationError, TextClassification, TextGeneration
from torchless.export import export

CHECKPOINTS = Path(__file__).parents[2] / "examples" / "checkpoints"
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@pytest.fixture(scope="module")
def spam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that its threads take part."""
    return export(CHECKPOINTS / "spam-bert", tmp_path_factory.mktemp("hosted") / "spam", check=False)


@pytest.fixture(scope="module")
def sotu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(CHECKPOINTS / "sotu-gpt", tmp_path_factory.mktemp("hosted") / "sotu", check=False)


def python(code: str, *arguments: Any, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """A process of its own, which has to end by itself."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


FORK = """
import os, sys, torchless
model = torchless.load(sys.argv[1], threads=int(sys.argv[2]))
text = "You have won a prize! " * 40
before, parents = model(text), model.session._session
child = os.fork()
if not child:
    {child}
    sys.exit(7)  # with all that the interpreter does at its end
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), model(text) == before)
"""


@forks
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "child",
    [
        "pass",
        "del model, parents",
        "model.close()",
        "assert model(text) == before and model([text] * 40) == [before] * 40",
        "assert (model.session._opened is parents) == (sys.argv[2] == '1')",
        "grandchild = os.fork(); assert model(text) == before; grandchild and os.wait()",
    ],
)
def test_a_forked_child_computes_and_ends(spam: Path, threads: int, child: str) -> None:
    done = python(FORK.format(child=child), spam, threads)
    assert done.stdout.split() == ["7", "True"], done.stderr[-2000:]
    assert done.stderr == ""


STREAM = """
import os, sys, torchless
model = torchless.load(sys.argv[1], threads=2)
stream = model.stream("My fellow citizens", max_new_tokens=40, eos_token_id=None)
first = [next(stream) for _ in range(3)]
state = model.state("The people of the United")
child = os.fork()
if not child:
    try:
        next(stream)
    except torchless.GenerationError as error:
        print(error)
    print(model("The people of the United", state=state, max_new_tokens=3).text, flush=True)
    sys.exit(0)
os.wait()
print(model("The people of the United", max_new_tokens=3).text)
print(len("".join(stream)) > 20)
"""


@forks
def test_a_stream_begun_before_a_fork_goes_on_in_the_parent_and_says_so_in_the_child(sotu: Path) -> None:
    told, child, parent, went_on = python(STREAM, sotu).stdout.splitlines()
    assert told == "this text was begun before the process forked: begin it again in the child"
    assert child == parent and went_on == "True"
    assert issubclass(GenerationError, torchless.TorchlessError)


def label(model: TextClassification, text: str) -> str:
    return model(text).label


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_model_goes_to_processes_however_they_are_started(classifier: TextClassification, method: str) -> None:
    texts = ["a prize", "the union is strong", "you have won"]
    with multiprocessing.get_context(method).Pool(2) as pool:
        answers = pool.starmap(label, [(classifier, text) for text in texts])
    assert answers == [classifier(text).label for text in texts]


def test_a_deep_copy_is_a_model_of_its_own(spam: Path) -> None:
    with torchless.load(spam, threads=1) as model:
        other = copy.deepcopy(model)
        expected = model("a prize")
    assert other("a prize") == expected and other.settings == model.settings
    other.close()


def test_asyncio_hands_calls_to_threads(gpt: TextGeneration, classifier: TextClassification) -> None:
    async def both() -> list[Any]:
        return await asyncio.gather(
            *(asyncio.to_thread(classifier, text) for text in ("a prize", "the union")),
            asyncio.to_thread(gpt, "The union", max_new_tokens=5),
        )

    assert asyncio.run(both()) == [
        classifier("a prize"), classifier("the union"), gpt("The union", max_new_tokens=5)
    ]  # fmt: skip


def test_closing_while_another_thread_computes_lets_its_call_end(spam: Path) -> None:
    model = torchless.load(spam)
    texts = ["You have won a prize! " * 40] * 40
    expected, found, begun = model(texts), list[Any](), threading.Event()
    thread = threading.Thread(target=lambda: found.append(model(texts, progress=lambda *counts: begun.set())))
    thread.start()
    assert begun.wait(60)
    model.close()
    thread.join(60)
    assert found == [expected]
    with pytest.raises(torchless.TorchlessError, match="was closed: load it again"):
        model("a")


EXIT = """
import sys, threading, time, torchless
model = torchless.load(sys.argv[1], threads=2)
begun = threading.Event()

def work():
    while True:
        if isinstance(model, torchless.TextGeneration):
            for piece in model.stream("My fellow citizens", max_new_tokens=200, eos_token_id=None):
                begun.set()
        else:
            model(["You have won a prize! " * 40] * 64, batch_size=4, progress=lambda *counts: begun.set())

threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
assert begun.wait(60)
{end}
"""


@pytest.mark.parametrize("kind", ["spam", "sotu"])
@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("pass", 0),
        ("sys.exit(3)", 3),
        ("raise KeyboardInterrupt", 130),
        ("import atexit; atexit.register(model, 'a')", 0),
    ],
    ids=["end", "exit", "ctrl-c", "a call at exit"],
)
def test_the_interpreter_ends_while_daemon_threads_compute(
    request: pytest.FixtureRequest, kind: str, end: str, code: int
) -> None:
    done = python(EXIT.format(end=end), request.getfixturevalue(kind))
    told = done.stderr.replace("KeyboardInterrupt", "").replace("Traceback (most recent call last):", "")
    assert done.returncode in (code, -2 if code == 130 else code), done.stderr[-2000:]
    assert "terminate" not in told and "Exception" not in told and "Error" not in told, done.stderr[-2000:]


SILENT = """
import os, sys
os.environ["HOME"] = os.environ["XDG_CACHE_HOME"] = sys.argv[2]
import torchless
with torchless.load(sys.argv[1]) as model:
    model("a prize")
    threads = len(os.listdir("/proc/self/task"))
    try:
        model("a " * 5000)
    except torchless.ContextLengthError:
        pass
print(threads, os.environ["ORT_DISABLE_TELEMETRY"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_onnxruntimes_telemetry_is_off_before_it_is_imported_and_nothing_is_printed(
    gpt_bundle: Path, bert_bundles: dict[str, Path], tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    bundle = bert_bundles["text-classification"]
    command = [sys.executable, "-c", SILENT, str(bundle), str(tmp_path)]
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    # Its own thread and those of the pool; telemetry would have two more, and a database under the cache.
    threads, told = done.stdout.split()
    assert int(threads) <= (os.cpu_count() or 1) and told == "1" and done.stderr == ""
    assert list(tmp_path.iterdir()) == []


QUIET = """
import logging, sys, torchless
if sys.argv[1] == "listen":
    logging.basicConfig(format="%(name)s %(levelname)s: %(message)s")
from torchless.log import log
log.warning("something")
"""


def test_warnings_are_heard_by_who_listens_and_by_nobody_else() -> None:
    assert python(QUIET, "ignore").stderr == ""
    assert python(QUIET, "listen").stderr == "torchless WARNING: something\n"
