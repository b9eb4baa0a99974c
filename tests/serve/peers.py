"""Who asks a server in the tests, and how they wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai

PATIENCE = 60  # seconds, the end of a hang: what is waited for comes much sooner


def client_of(running: Any, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(**{"base_url": f"{running.url}/v1", "api_key": "any", "max_retries": 0} | options)


def wait_until(true: Callable[[], bool], what: str, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.005)


@contextmanager
def answers_on(http: httpx.Client) -> Iterator[None]:
    """Whatever happens within, the server lives on, and nothing is left in it."""
    yield

    def empty() -> bool:
        return http.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}

    wait_until(empty, "something is left in the server")
    asked = {"model": "gpt", "prompt": "the union", "max_tokens": 2}
    assert http.post("/v1/completions", json=asked).status_code == 200
