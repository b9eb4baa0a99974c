"""Servers on a free port of this machine, and OpenAI's own client for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest
import tiny
from peers import PATIENCE, Held, client_of

import torchless
from torchless.decoder import Stepper
from torchless.export import export
from torchless.serve import Options, server

CONTEXT = 4096  # tokens of a text that is long enough to be ended early


@pytest.fixture(scope="session")
def long_gpt(tmp_path_factory: pytest.TempPathFactory) -> torchless.TextGeneration:
    """A tiny GPT whose texts go on for a second or two: it has no end token."""
    model = tiny.gpt2(n_positions=CONTEXT)
    folder = tmp_path_factory.mktemp("long") / "gpt"
    gpt = torchless.load(export(model, folder, tokenizer=tiny.bpe(), check=False))
    gpt.config = gpt.config.override({"eos_token_id": None})
    return gpt  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def models(gpt: Any, long_gpt: Any, classifier: Any, embedding: Any) -> dict[str, Any]:
    return {"gpt": gpt, "long": long_gpt, "spam": classifier, "vectors": embedding}


@pytest.fixture
def serve(models: dict[str, Any]) -> Iterator[Callable[..., Any]]:
    """A server with these options, which ends with the test."""
    with ExitStack() as running:
        yield lambda **options: running.enter_context(server(models, Options(**options)))


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Held]]:
    """From now on the models' steps are counted, and the one of this number waits."""
    made: list[Held] = []
    step = Stepper.__call__

    def begin(at: int) -> Held:
        held = Held(at)
        made.append(held)

        def holding(self: Stepper, tokens: Any) -> Any:
            held.count(len(tokens))
            return step(self, tokens)

        monkeypatch.setattr(Stepper, "__call__", holding)
        return held

    yield begin
    for held in made:
        held.let_go()


@pytest.fixture(scope="session")
def running(models: dict[str, Any]) -> Iterator[Any]:
    """A server as it is by default, for all tests that leave it as it is."""
    with server(models) as found:
        yield found


@pytest.fixture(scope="session")
def client(running: Any) -> Iterator[openai.OpenAI]:
    with client_of(running) as found:
        yield found


@pytest.fixture(scope="session")
def http(running: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, timeout=5 * PATIENCE) as found:
        yield found
