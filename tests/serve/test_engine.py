"""Texts of several callers in one batch: they come and go, fail and are cancelled without the others noticing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from peers import PATIENCE, answers_on, called, client_of, wait_until

from torchless.decoder import Stepper
from torchless.encoder import Encoder
from torchless.errors import GenerationError
from torchless.generation import Batch
from torchless.serve import Options, server
from torchless.serve.engine import Engine, Job, Piece
from torchless.stopping import Patience

LONG: dict[str, Any] = {"model": "long", "prompt": "the union", "max_tokens": 4000, "temperature": 0}


def test_a_text_that_joins_late_and_needs_a_larger_cache_is_what_it_is_alone(long_gpt: Any) -> None:
    lengths = [(3, 40), (400, 9), (2, 3), (700, 20), (5, 5), (1100, 4)]
    prompts = [[(7 * i + place) % 300 + 1 for place in range(count)] for i, (count, _) in enumerate(lengths)]
    config = long_gpt.config.override({"max_new_tokens": 40})
    rows, replies = long_gpt.rows(prompts, config, Patience())
    for row, (_, budget) in zip(rows, lengths, strict=True):
        row.budget = budget
    batch, waiting = Batch(long_gpt.decoder, 3), list(range(len(rows)))
    while waiting or len(batch):
        if waiting and len(batch) < 3:  # one a step, so that rows come and go at every step
            batch.join(waiting[0], rows[waiting.pop(0)])
        for _ in batch.step():
            pass
    expected = [long_gpt(p, max_new_tokens=n).token_ids for p, (_, n) in zip(prompts, lengths, strict=True)]
    assert [reply.ids for reply in replies] == expected


def test_a_client_that_stops_reading_stops_the_model_within_a_step(
    serve: Any, hold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, held = serve(), hold(50)
    engine = running.houses["long"].engine
    gone = called(monkeypatch, engine, "cancel")
    stream = client_of(running).completions.create(**LONG, stream=True)
    for _, _chunk in zip(range(5), stream):
        pass
    held.reach()
    assert not gone.is_set()
    stream.close()
    assert gone.wait(PATIENCE)
    held.let_go()
    wait_until(lambda: engine.running == 0, "it goes on for nobody")
    assert engine.steps == len(held.steps) == 50


def test_a_client_that_gives_up_on_a_whole_answer_stops_the_model(
    serve: Any, hold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, held = serve(), hold(3)
    engine = running.houses["long"].engine
    gone = called(monkeypatch, engine, "cancel")
    asyncio.run(given_up(running, held.reach))
    assert gone.wait(PATIENCE)
    held.let_go()
    wait_until(lambda: engine.running == 0, "it goes on for nobody")
    assert engine.steps == 3


async def given_up(running: Any, waited: Callable[[], None]) -> None:
    """Ask for a long answer, and leave once it has been waited for."""
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as client:
        asked = asyncio.ensure_future(client.completions.create(**LONG))
        await asyncio.to_thread(waited)
        assert not asked.done()
        asked.cancel()
        await asyncio.wait([asked])


def test_what_waits_and_is_given_up_never_runs(serve: Any, hold: Any, read: list[int]) -> None:
    running, held = serve(batch_size=1), hold(5)
    engine = running.houses["long"].engine
    first = client_of(running).completions.create(**LONG, stream=True)
    held.reach()
    asyncio.run(given_up(running, lambda: wait_until(lambda: engine.waiting == 1, "it does not wait")))
    wait_until(lambda: engine.waiting == 0, "it waits for nobody")
    first.close()
    held.let_go()
    wait_until(lambda: engine.running == 0, "it goes on for nobody")
    assert len(read) == 1  # prompt
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as http, answers_on(http):
        pass


def test_the_step_in_which_a_job_is_cancelled_is_its_last(long_gpt: Any, hold: Any) -> None:
    """Counted where the graph is run."""
    held, engine = hold(3), Engine(long_gpt.decoder, 4, "test")

    async def ask() -> None:
        job = Job(streams=False)
        config = long_gpt.config.override({"max_new_tokens": 1000})
        job.write(*long_gpt.rows([[5, 6, 7]], config, Patience(cancel=job.cancelled)))
        engine.submit(job)
        await asyncio.to_thread(held.reach)
        engine.cancel(job)
        held.let_go()
        last = await asyncio.wait_for(job.news.get(), PATIENCE)
        assert isinstance(last, Piece) and last.finish_reason == "cancelled"

    asyncio.run(ask())
    engine.stop()
    engine.join(PATIENCE)
    assert held.steps == [1, 1, 1]


def test_a_text_that_fails_ends_alone(running: Any, monkeypatch: Any, gpt: Any, http: httpx.Client) -> None:
    from torchless.generation import Row

    choose = Row.choose

    def failing(self: Row, index: int, logits: Any, guess: Any = None) -> Any:
        if self.added == 3 and self.ids[0] == gpt.tokenizer.ids("Käse")[0]:
            logits = np.full_like(logits, np.nan)
        return choose(self, index, logits, guess)

    monkeypatch.setattr(Row, "choose", failing)
    found = list[Any]()

    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as client:
            settings: dict[str, Any] = {"model": "gpt", "max_tokens": 20, "temperature": 0}
            found.extend(
                await asyncio.gather(
                    *(
                        client.completions.create(prompt=one, **settings)
                        for one in ("the union", "Käse", "Call me")
                    ),
                    return_exceptions=True,
                )
            )

    with answers_on(http):
        asyncio.run(ask())
    assert isinstance(found[1], openai.InternalServerError) and "not numbers" in str(found[1])
    assert [found[i].choices[0].text for i in (0, 2)] == [
        gpt(prompt, max_new_tokens=20).text for prompt in ("the union", "Call me")
    ]


def test_a_step_that_fails_is_told_to_all_and_the_next_request_is_answered(
    running: Any, monkeypatch: Any, client: openai.OpenAI, http: httpx.Client
) -> None:
    step, calls = Stepper.__call__, list[int]()
    whole: dict[str, Any] = {"model": "gpt", "prompt": "a", "max_tokens": 20, "logit_bias": {"0": -100}}

    def failing(self: Stepper, tokens: Any) -> Any:
        calls.append(len(tokens))
        if len(calls) == 5:
            raise GenerationError("onnxruntime failed in a step: no memory")
        return step(self, tokens)

    monkeypatch.setattr(Stepper, "__call__", failing)
    with answers_on(http), pytest.raises(openai.APIError, match="no memory"):
        list(client.completions.create(**whole, stream=True))


def test_a_form_that_cannot_be_is_told_before_a_stream_begins(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="gpt", prompt="a", stream=True, extra_body={"choices": []})
    assert refused.value.param == "choices"


def test_streams_hear_that_the_server_stops(models: Any, hold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(models, Options(stop_timeout=PATIENCE)) as running:
        held, stopped = hold(50), called(monkeypatch, running.houses["long"], "stop")
        stream = client_of(running).completions.create(**LONG, stream=True)
        pieces = iter(stream)
        next(pieces)
        held.reach()
        running.stop()
        assert stopped.wait(PATIENCE)
        held.let_go()
        with pytest.raises(openai.APIError, match="the server is stopping"):
            for _ in pieces:
                pass
    with pytest.raises(openai.APIConnectionError):
        client_of(running).models.list()


def test_a_list_that_is_read_ends_with_the_server_and_its_caller_hears_of_it(
    models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told in the middle of the list, whose next batch waits until the model has heard of it."""
    run, runs = Encoder.run, list[int]()
    asked = {"model": "spam", "input": ["free money " * 40] * 2048, "truncation": True}
    options = Options(stop_timeout=PATIENCE)
    with server(models, options) as running, httpx.Client(base_url=running.url, timeout=PATIENCE) as http:
        stopped = called(monkeypatch, running.houses["spam"], "stop")

        def reading(self: Encoder, ids: Any, *given: Any, **more: Any) -> Any:
            runs.append(len(ids))
            if len(runs) == 2:
                running.stop()
                assert stopped.wait(PATIENCE)
            return run(self, ids, *given, **more)

        monkeypatch.setattr(Encoder, "run", reading)
        refused = http.post("/v1/classifications", json=asked)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
    assert runs == [16, 16]


def test_a_list_that_waits_for_another_hears_that_the_server_stops(
    models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = Encoder.run, {"model": "spam", "input": "free money"}
    options = Options(stop_timeout=PATIENCE)
    with server(models, options) as running, httpx.Client(base_url=running.url, timeout=PATIENCE) as http:
        house = running.houses["spam"]
        stopped = called(monkeypatch, house, "stop")

        def reading(self: Encoder, *given: Any, **more: Any) -> Any:
            wait_until(lambda: house.load == (1, 1), "nobody waits")
            running.stop()
            assert stopped.wait(PATIENCE)
            return run(self, *given, **more)

        monkeypatch.setattr(Encoder, "run", reading)
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda _: http.post("/v1/classifications", json=asked), range(2)))
    assert [answer.status_code for answer in answers] == [503, 503]
    assert {answer.json()["error"]["code"] for answer in answers} == {"stopping"}


def test_an_idle_server_takes_no_time_of_the_processor(serve: Any, client: openai.OpenAI) -> None:
    """In one second of many: what else is in this process may be at work in another."""
    serve()

    def idle() -> bool:
        before = time.process_time()
        time.sleep(1)
        return time.process_time() - before < 0.03

    wait_until(idle, "it is never idle", 20)
