"""Who asks a server in the tests, and how they wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

PATIENCE = 60  # seconds, the end of a hang: what is waited for comes much sooner


def client_of(running: Any, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(**{"base_url": f"{running.url}/v1", "api_key": "any", "max_retries": 0} | options)


def wait_until(true: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def called(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> threading.Event:
    """Set once this method of an object has been called, and has returned."""
    method, done = getattr(owner, name), threading.Event()

    def telling(*given: Any) -> None:
        method(*given)
        done.set()

    monkeypatch.setattr(owner, name, telling)
    return done


class Held:
    """A model that waits before a step, so that nothing that happens meanwhile has to be quick.

    steps: the texts in each so far, that one included.
    """

    def __init__(self, at: int) -> None:
        self.steps: list[int] = []
        self._at = at
        self._reached, self._go = threading.Event(), threading.Event()

    def count(self, texts: int) -> None:
        self.steps.append(texts)
        if len(self.steps) == self._at:
            self._reached.set()
            assert self._go.wait(2 * PATIENCE), "nobody has let it go"  # who waits meanwhile gives up before

    def reach(self) -> None:
        """Wait until the model has come to the step."""
        assert self._reached.wait(PATIENCE), "the model does not come so far"

    def let_go(self) -> None:
        self._go.set()


@contextmanager
def answers_on(http: httpx.Client) -> Iterator[None]:
    """Whatever happens within, the server lives on, and nothing is left in it."""
    yield

    def empty() -> bool:
        return http.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}

    wait_until(empty, "something is left in the server")
    asked = {"model": "gpt", "prompt": "the union", "max_tokens": 2}
    assert http.post("/v1/completions", json=asked).status_code == 200
