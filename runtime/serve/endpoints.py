"""What each endpoint does with a request: reads it, asks the model, and writes the answer."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from torchless.chat import check_messages
from torchless.errors import TorchlessError
from torchless.serve import asking
from torchless.serve.asking import Asked
from torchless.serve.body import read_body
from torchless.serve.engine import Job, Piece
from torchless.serve.fields import Fields, parse
from torchless.serve.formats import ChatWriter, CompletionWriter, Writer, used
from torchless.serve.house import Generating, House, Reading, prepare
from torchless.serve.options import Options
from torchless.serve.request_error import RequestError, of_error
from torchless.tasks.embedding import Embedding
from torchless.tasks.text_classification import TextClassification
from torchless.tasks.text_generation import TextGeneration

MOST_INPUTS = 2048  # texts of one request, as OpenAI's
LARGE = 1 << 16  # bytes of a body that is parsed beside the event loop

H = TypeVar("H", bound=House)


class JSON(Response):
    """A body in JSON; lone surrogates of a request that come back in an error are escaped."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumps(content)


def dumps(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")


def refusal(found: RequestError) -> Response:
    return JSON(found.body, found.status, found.headers)


class GoneError(Exception):
    """Who has asked is no longer there."""


class Endpoint:
    """An ASGI application for one path: `answer` does the work, its errors become OpenAI's."""

    def __init__(self, houses: Mapping[str, House], options: Options) -> None:
        self.houses, self.options = houses, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            body = await read_body(request, self.options)
            found = await asyncio.to_thread(parse, body) if len(body) > LARGE else parse(body)
            await self.answer(Fields(found), receive, lambda response: response(scope, receive, send), send)
        except GoneError:
            return
        except (RequestError, TorchlessError) as error:
            await refusal(of_error(error))(scope, receive, send)
        except RecursionError:
            await refusal(RequestError(400, "the body is nested too deeply"))(scope, receive, send)

    async def answer(
        self, fields: Fields, receive: Receive, respond: Callable[[Response], Awaitable[None]], send: Send
    ) -> None:
        raise NotImplementedError

    def pick(self, fields: Fields, kind: type[H], tasks: str, *models: type) -> H:
        """The model that a request names."""
        name = fields.text("model")
        if name is None:
            raise fields.wrong("model", f"missing: give one of {', '.join(self.houses)}")
        house = self.houses.get(name)
        if house is None:
            raise RequestError(
                404, f"there is no model {name!r:.80} (there are: {', '.join(self.houses)})", param="model",
                code="model_not_found",
            )  # fmt: skip
        if not isinstance(house, kind) or not isinstance(house.model, models):
            task = house.model.bundle.manifest.task
            raise RequestError(400, f"the model {name} is for {task}, this endpoint for {tasks}", param="model")
        return house


@asynccontextmanager
async def watching(receive: Receive, gone: Callable[[], None]) -> AsyncIterator[None]:
    """Within it, `gone` is called once the client has disconnected."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone()

    task = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        task.cancel()


class Completions(Endpoint):
    """POST /v1/completions"""

    ask = staticmethod(asking.completion)

    async def answer(
        self, fields: Fields, receive: Receive, respond: Callable[[Response], Awaitable[None]], send: Send
    ) -> None:
        house = self.pick(fields, Generating, "text-generation", TextGeneration)
        asked = self.ask(fields)
        with house.gate.hold(asked.texts, "n"):
            job = Job(streams=asked.stream)

            def gone() -> None:
                house.engine.cancel(job)
                job.news.put_nowait(RequestError(499, "the client has gone"))

            async with watching(receive, gone):
                try:
                    writer, tokens = await house.run(lambda: self.prepare(house, job, asked))
                    house.engine.submit(job)
                    if asked.stream:
                        await stream(job, writer, tokens, send)
                    else:
                        await respond(JSON(await whole(job, writer, tokens)))
                finally:
                    house.engine.cancel(job)

    def prepare(self, house: Generating, job: Job, asked: Asked) -> tuple[Writer, int]:
        """In a thread: the job's texts, who writes its answer, and how many tokens the prompts have."""
        model = house.model
        try:
            prompts = [model.prompt_ids(one) for one in asked.prompt]
        except TorchlessError as error:
            raise of_error(error, "prompt") from None
        config = prepare(house, job, asked, prompts)
        texts = [""] * len(prompts)
        if asked.echo:
            texts = [one if isinstance(one, str) else model.tokenizer.decode(one) for one in asked.prompt]
        writer = CompletionWriter(house.name, asked, house.names, config.eos_token_id, texts)
        return writer, sum(map(len, prompts))


class Chat(Completions):
    """POST /v1/chat/completions"""

    ask = staticmethod(asking.chat)

    def prepare(self, house: Generating, job: Job, asked: Asked) -> tuple[Writer, int]:
        model = house.model
        try:
            ids = model.prompt_ids(model.template.ids(model.tokenizer, check_messages(asked.prompt)))
        except TorchlessError as error:
            raise of_error(error, "messages") from None
        config = prepare(house, job, asked, [ids], model.template.end)
        trims = not model.template.own
        return ChatWriter(house.name, asked, house.names, config.eos_token_id, [""], trims=trims), len(ids)


async def whole(job: Job, writer: Writer, tokens: int) -> dict[str, Any]:
    """The answer, once all texts have ended."""
    pieces: list[Piece] = []
    while len(pieces) < len(job.texts):
        pieces.append(await hear(job))
    made = sum(len(piece.tokens) for piece in pieces)
    return writer.answer(sorted(pieces, key=lambda piece: piece.index), used(tokens, made))


async def stream(job: Job, writer: Writer, tokens: int, send: Send) -> None:
    """Server-sent events, as the texts grow. What fails before the first of them has a status of its own."""
    piece = await hear(job)
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    left, made = len(job.texts), 0
    end = b"data: [DONE]\n\n"
    try:
        while True:
            made += len(piece.tokens)
            if chunks := writer.chunks(piece):
                await send(body(b"".join(event(chunk) for chunk in chunks)))
            left -= piece.finish_reason is not None
            if not left:
                break
            piece = await hear(job)
        if writer.asked.usage:
            end = event(writer.usage(used(tokens, made))) + end
    except RequestError as error:
        end = b"event: error\n" + event(error.body)
    await send(body(end, more=False))


async def hear(job: Job) -> Piece:
    """The next piece. RequestError for a job that cannot go on, GoneError where nobody waits for it."""
    news = await job.news.get()
    if isinstance(news, RequestError):
        raise GoneError if news.status == 499 else news
    return news


def event(content: dict[str, Any]) -> bytes:
    return b"data: " + dumps(content) + b"\n\n"


def body(content: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}


class Encoding(Endpoint):
    """What the endpoints of encoders share: texts in, an answer for each."""

    async def read(self, house: Reading, texts: list[Any], receive: Receive, **settings: Any) -> Any:
        """(answers, tokens); GoneError where the client has gone meanwhile."""
        cancelled = threading.Event()
        with house.gate.hold(1):
            async with watching(receive, cancelled.set):
                try:
                    return await house.read(texts, cancelled, **settings)
                except TorchlessError as error:
                    raise of_error(error, "input") from None
                except RequestError:
                    if cancelled.is_set() and not house.stopped:
                        raise GoneError from None
                    raise


class Embeddings(Encoding):
    """POST /v1/embeddings"""

    async def answer(
        self, fields: Fields, receive: Receive, respond: Callable[[Response], Awaitable[None]], send: Send
    ) -> None:
        house = self.pick(fields, Reading, "feature-extraction", Embedding)
        texts = inputs(fields, pairs=False)
        coded = fields.text("encoding_format", "float", among=("float", "base64"))
        size = fields.count("dimensions", None, 1, house.model.dimension)  # type: ignore[attr-defined]
        fields.text("user")
        fields.end()
        vectors, tokens = await self.read(house, texts, receive, truncate_dim=size)
        data = [
            {"object": "embedding", "index": index, "embedding": written(vector, coded)}
            for index, vector in enumerate(vectors)
        ]
        await respond(listing(house, data, tokens))


class Classifications(Encoding):
    """POST /v1/classifications, which OpenAI does not have: each text's label, and the scores of all."""

    async def answer(
        self, fields: Fields, receive: Receive, respond: Callable[[Response], Awaitable[None]], send: Send
    ) -> None:
        house = self.pick(fields, Reading, "text-classification", TextClassification)
        texts = inputs(fields, pairs=True)
        cut = fields.flag("truncation")
        fields.text("user")
        fields.end()
        found, tokens = await self.read(house, texts, receive, truncation=cut)
        data = [
            {
                "object": "classification",
                "index": index,
                "label": one.label,
                "score": one.score,
                "scores": one.scores,
            }
            for index, one in enumerate(found)
        ]
        await respond(listing(house, data, tokens))


def listing(house: House, data: list[dict[str, Any]], tokens: int) -> Response:
    """An answer for each text."""
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSON({"object": "list", "data": data, "model": house.name, "usage": usage})


def inputs(fields: Fields, *, pairs: bool) -> list[Any]:
    """The texts of `input`: one, or a list of them, each a pair where the task takes pairs."""
    given = fields.take("input")
    if given is None:
        raise fields.wrong("input", "missing: give a text, or a list of texts")
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not listed or len(listed) > MOST_INPUTS:
        raise fields.wrong("input", f"give a text, or a list of up to {MOST_INPUTS:,} of them", given)
    found: list[Any] = []
    for one in listed:
        pair = pairs and isinstance(one, list) and len(one) == 2 and all(isinstance(text, str) for text in one)
        if not pair and not isinstance(one, str):
            also = (
                ", or pairs of texts"
                if pairs
                else ": token ids are not taken, the model has a tokenizer of its own"
            )
            raise fields.wrong("input", f"give texts{also}", given)
        found.append(tuple(one) if pair else one)
    return found


def written(vector: Any, coded: str) -> Any:
    """A vector as a list of numbers, or its float32 in base64."""
    if coded == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode("ascii")
    return [float(number) for number in vector]
