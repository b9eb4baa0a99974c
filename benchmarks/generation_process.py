"""The processes of benchmarks/generation.py: a contender that stays loaded, and one that is started to be timed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import Any

from generation_models import CONTEXT, WORKER, Contender, ContenderError, Models, clean, last_line


def command(models: Models, one: Contender, how: str, threads: int, room: int, *more: str) -> list[str]:
    python, folder = models.python(one.environment), models.path(one)
    return [str(part) for part in (python, WORKER, how, one.module, folder, threads, room, *more)]


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
        assert process.stdout is not None
        first = process.stdout.readline()
        took = time.perf_counter() - begin
        if not whole:
            process.kill()
        rest, told = process.communicate()
    if not first or (whole and not rest):
        raise ContenderError(f"a fresh process ended with {process.returncode}: {last_line(told)}")
    return took, json.loads(rest)["peak"] if whole else None
