"""The processes of the benchmarks: a contender that stays loaded, one that is started to be timed, all in turns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import environments
from generation_models import CONTEXT, Contender, ContenderError, Models, clean, last_line


def command(models: Models, one: Contender, how: str, threads: int, room: int, *more: str) -> list[str]:
    python, folder = models.python(one.environment), models.path(one)
    return [str(part) for part in (python, models.worker, how, one.module, folder, threads, room, *more)]


class Worker:
    """A contender that stays loaded. Stopped between two questions, so that it takes no time from the others."""

    def __init__(self, models: Models, one: Contender, threads: int) -> None:
        self._log = models.path(one).with_name(f"{models.path(one).name}.log")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command(models, one, "serve", threads, CONTEXT),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=clean(),
            )
        self._answer()

    def ask(self, **question: Any) -> dict[str, Any]:
        """Raises ContenderError if the process ends instead of answering."""
        assert self.process.stdin is not None
        if hasattr(signal, "SIGCONT"):
            self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: the missing answer says so
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ContenderError(f"it ended with {self.process.wait()}: {last_line(self._log.read_text())}")
        if hasattr(signal, "SIGSTOP"):  # not on Windows
            self.process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # until it has stopped
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class Turns:
    """The contenders that can take part, and what was found out about each: a figure a round."""

    def __init__(self, models: Models, threads: int, names: list[str]) -> None:
        self.models, self.threads = models, threads
        self.workers: dict[str, Worker] = {}
        self.found: dict[str, dict[str, Any]] = {}
        self.missing: dict[str, str] = {}
        for name in names:
            self._try(models.contenders[name], self._open)

    def _try(self, one: Contender, do: Callable[..., None], *given: Any) -> None:
        """Do this with a contender, or leave it out from now on."""
        try:
            do(one, *given)
        except ContenderError as error:
            print(f"{one.name}: left out ({error})", file=sys.stderr)
            self.missing[one.name] = str(error)
            self.found.pop(one.name, None)
            if one.name in self.workers:
                self.workers.pop(one.name).close()

    def everyone(self, do: Callable[..., None], *given: Any) -> None:
        for name in list(self.found):
            self._try(self.models.contenders[name], do, *given)

    def _open(self, one: Contender) -> None:
        told = self.models.make(one)
        record = environments.record_of(self.models.environments / one.environment)
        assert record is not None
        self.workers[one.name] = Worker(self.models, one, self.threads)
        files = self.models.path(one).rglob("*")
        self.found[one.name] = {
            "ours": one.is_ours,
            "bits": one.bits,
            "model_bytes": sum(file.stat().st_size for file in files if file.is_file()),
            "package_bytes": record["bytes"],
            "versions": record["versions"],
            "figures": {},
            **told,
        }

    def _note(self, one: Contender, what: str, figure: float) -> None:
        self.found[one.name]["figures"].setdefault(what, []).append(figure)

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


def fresh(
    models: Models, one: Contender, threads: int, room: int, text: str, whole: bool
) -> tuple[float, int | None]:
    """Seconds from here to the first token after `text` in a new process, its interpreter's start among them.

    If `whole` it goes on until the text has `room` tokens, and the most bytes that it has held are told, too.
    Raises ContenderError if it does not get there.
    """
    begin = time.perf_counter()
    with subprocess.Popen(
        command(models, one, "talk", threads, room, text),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean(),
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.readline()
        took = time.perf_counter() - begin
        if not whole:
            process.kill()
        rest = process.stdout.read()  # not communicate, which passes over what came along with the first line
        told = process.stderr.read()
    if not first or (whole and not rest):
        raise ContenderError(f"a fresh process ended with {process.returncode}: {last_line(told)}")
    return took, json.loads(rest)["peak"] if whole else None
