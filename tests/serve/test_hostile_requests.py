"""Whatever a stranger sends gets a proper status and OpenAI's error object, and the server lives on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers import PATIENCE, answers_on, called, wait_until

from torchless.decoder import Stepper
from torchless.serve import endpoints
from torchless.serve.wire import Connection

JSON = {"content-type": "application/json"}
GOOD = {"model": "gpt", "prompt": "the union", "max_tokens": 2}


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error  # type: ignore[no-any-return]


def wire(running: Any, sent: bytes) -> bytes:
    """What comes back for these bytes until the connection is closed."""
    place = urlsplit(running.url)
    with socket.create_connection((place.hostname, place.port), timeout=PATIENCE) as peer:
        with contextlib.suppress(ConnectionError):  # it has heard enough, and closed
            peer.sendall(sent)
        found = b""
        with contextlib.suppress(ConnectionError):
            while part := peer.recv(1 << 16):
                found += part
        return found


BODIES = {
    "": "not JSON",
    "{": "not JSON",
    "[]": "an empty array",
    "3": "a number",
    '"a"': "a string",
    "null": "null",
    '{"model": "gpt", "prompt": "a", "temperature": NaN}': "NaN is not a number",
    '{"model": "gpt", "prompt": "a", "temperature": -Infinity}': "-Infinity",
    '{"model": "gpt", "prompt": "a", "temperature": 1e999}': "from 0 to 2",
    '{"model": "gpt", "prompt": "a", "max_tokens": ' + "9" * 5000 + "}": "not JSON",
    '{"model": "gpt", "prompt": "\\ud800"}': "lone surrogate",
    '{"model": "gpt\\ud800", "prompt": "a"}': "no model",
    '{"prompt": "a"}': "model: missing",
    '{"model": "gpt"}': "prompt: missing",
    '{"model": ["gpt"], "prompt": "a"}': "model is an array",
    '{"model": "gpt", "prompt": {"a": 1}}': "prompt is an object",
    '{"model": "gpt", "prompt": []}': "prompt is an empty array",
    '{"model": "gpt", "prompt": [[]]}': "prompt is an array",
    '{"model": "gpt", "prompt": [1, "a"]}': "prompt is an array",
    '{"model": "gpt", "prompt": [true]}': "prompt is an array",
    '{"model": "gpt", "prompt": [-1]}': "token ids must be from 0",
    '{"model": "gpt", "prompt": [' + "9" * 30 + "]}": "token ids",
    '{"model": "gpt", "prompt": "a", "max_tokens": "2"}': 'max_tokens is "2"',
    '{"model": "gpt", "prompt": "a", "max_tokens": 1.5}': "max_tokens is 1.5",
    '{"model": "gpt", "prompt": "a", "max_tokens": true}': "max_tokens is true",
    '{"model": "gpt", "prompt": "a", "max_tokens": -5}': "max_tokens is -5",
    '{"model": "gpt", "prompt": "a", "stop": ""}': "stop",
    '{"model": "gpt", "prompt": "a", "stop": [""]}': "stop",
    '{"model": "gpt", "prompt": "a", "stream": "yes"}': "stream",
    '{"model": "gpt", "prompt": "a", "logit_bias": {"1": 1e9}}': "logit_bias",
    '{"model": "gpt", "prompt": "a", "regex": "(a{9999}){9999}"}': "regex",
}


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_a_wrong_body_is_400_and_says_what_is_wrong(http: httpx.Client, body: str) -> None:
    wrong = error_of(
        http.post("/v1/completions", content=body.encode(), headers=JSON), 404 if "gpt\\" in body else 400
    )
    assert BODIES[body] in wrong["message"]


def test_bytes_that_are_no_text_and_nesting_without_end_are_400(http: httpx.Client) -> None:
    with answers_on(http):
        assert "UTF-8" in error_of(http.post("/v1/completions", content=b"\xff{}", headers=JSON), 400)["message"]
        for deep in (
            "[" * 200_000,
            '{"model":' * 100_000,
            json.dumps(GOOD)[:-1] + ',"stop":' + "[" * 900 + "]" * 900 + "}",
        ):
            error_of(http.post("/v1/completions", content=deep.encode(), headers=JSON), 400)


@pytest.mark.parametrize(
    "message", [[], [1], "hello", [{"role": "user"}], [{"content": "a"}], [{"role": "tool", "content": "a"}],
        [{"role": "user", "content": None}], [{"role": "user", "content": []}],
        [{"role": "user", "content": "a", "x": 1}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]}],
        [{"role": "assistant", "content": "a"}], [{"role": "user", "content": "a" * 9000}],
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_400_and_names_the_messages(http: httpx.Client, message: Any) -> None:
    answer = http.post("/v1/chat/completions", json={"model": "gpt", "messages": message})
    assert str(error_of(answer, 400)["param"]).startswith("messages")


@pytest.mark.parametrize("given", [[], [1, 2], [[1]], {}, 3, ["a"] * 2049, [["a", "b"]], "free money " * 100])
def test_inputs_that_cannot_be_embedded_are_400(http: httpx.Client, given: Any) -> None:
    assert error_of(http.post("/v1/embeddings", json={"model": "vectors", "input": given}), 400)["param"] == "input"


def test_unknown_paths_and_methods_have_their_status(http: httpx.Client) -> None:
    assert error_of(http.get("/"), 404)["code"] == "unknown_url"
    error_of(http.post("/v1/audio/speech", json={}), 404)
    error_of(http.get("/v1/models/../../etc/passwd"), 404)
    error_of(http.get("/v1/models/nope"), 404)
    for method, path in (("GET", "/v1/completions"), ("DELETE", "/v1/models"), ("PUT", "/v1/embeddings")):
        answer = http.request(method, path)
        error_of(answer, 405)
        assert answer.headers["allow"]


def test_a_body_has_to_say_that_it_is_json(http: httpx.Client) -> None:
    content = json.dumps(GOOD).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        error_of(http.post("/v1/completions", content=content, headers={"content-type": kind}), 415)
    error_of(http.post("/v1/completions", content=content, headers=JSON | {"content-encoding": "gzip"}), 415)
    spelled = {"content-type": "Application/JSON; charset=utf-8"}
    assert http.post("/v1/completions", content=content, headers=spelled).status_code == 200


def test_a_body_that_is_too_large_is_413_with_and_without_a_length(serve: Any) -> None:
    running = serve(max_body=10_000)
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as http, answers_on(http):
        large = json.dumps(GOOD | {"prompt": "a" * 60_000}).encode()
        error_of(http.post("/v1/completions", content=large, headers=JSON), 413)
        error_of(http.post("/v1/completions", content=iter([large[:30_000], large[30_000:]]), headers=JSON), 413)
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        told = wire(running, head + b"Expect: 100-continue\r\nContent-Length: 999999999999\r\n\r\n")
        assert told.startswith(b"HTTP/1.1 413")
        endless = wire(running, head + b"Content-Length: 99999999\r\n\r\n" + b"a" * 200_000)
        assert endless.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("where", ["parse", "prompt_ids"])
def test_a_prompt_of_a_hundred_thousand_words_is_refused_and_others_are_answered_meanwhile(
    http: httpx.Client, gpt: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """However long its JSON and its tokens take."""
    owner: Any = endpoints if where == "parse" else gpt
    work, begun, go = getattr(owner, where), threading.Event(), threading.Event()

    def slowly(given: Any) -> Any:
        if len(given) > 100_000:
            begun.set()
            assert go.wait(PATIENCE)
        return work(given)

    monkeypatch.setattr(owner, where, slowly)
    with answers_on(http), ThreadPoolExecutor(1) as pool:
        late = pool.submit(http.post, "/v1/completions", json=GOOD | {"prompt": "the union " * 30_000})
        try:
            assert begun.wait(PATIENCE)
            assert http.get("/health").status_code == 200
            assert http.post("/v1/completions", json=GOOD).status_code == 200
        finally:
            go.set()
        assert error_of(late.result(), 400)["code"] == "context_length_exceeded"


def test_slow_heads_and_bodies_are_408(serve: Any) -> None:
    running = serve(header_timeout=0.3, body_timeout=0.3)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for sent in (
        b"",
        b"GET /hea",
        head,
        head + b"Content-Length: 50\r\n\r\n",
        head + b"Content-Length: 9\r\n\r\n{",
    ):

        def late(sent: bytes = sent) -> bool:
            told = wire(running, sent)
            return told.startswith(b"HTTP/1.1 408") and b'"error"' in told

        wait_until(late, f"no 408 for {sent!r}")  # not always at once: our own bytes may come too late to be read
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as http:
        wait_until(lambda: http.post("/v1/completions", json=GOOD).status_code == 200, "it answers nobody")


def test_garbage_is_400(serve: Any) -> None:
    running = serve(header_timeout=PATIENCE)
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as http, answers_on(http):
        for sent in (
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"HELO\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET /" + b"a" * 99_999,
        ):
            told = wire(running, sent)
            assert told.startswith(b"HTTP/1.1 400") and b'"error"' in told, (sent[:20], told)


def test_the_second_request_of_a_connection_may_not_dawdle_either(serve: Any) -> None:
    running = serve(header_timeout=0.3)
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def late() -> bool:
        told = wire(running, whole + whole + b"GET /he")
        return told.count(b"200 OK") == 2 and b"408" in told.split(b'"waiting": 0}')[-1]

    wait_until(late, "no 408 after two answers")


def test_more_connections_than_there_may_be_are_503_and_make_room_again(serve: Any) -> None:
    running = serve(max_connections=20, header_timeout=PATIENCE)
    place = urlsplit(running.url)
    held = [socket.create_connection((place.hostname, place.port)) for _ in range(20)]
    told = wire(running, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 503") and b"overloaded" in told
    for one in held:
        one.close()
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as http:

        def room() -> bool:
            try:
                return http.get("/health").status_code == 200
            except httpx.TransportError:  # closed while we were speaking
                return False

        wait_until(room, "there is no room again")
        with answers_on(http):
            pass


def test_a_full_queue_is_503_with_a_time_to_come_again(serve: Any, hold: Any) -> None:
    running, held = serve(batch_size=1, queue=2), hold(1)
    asked = {"model": "long", "prompt": "the union", "max_tokens": 30}
    with (
        httpx.Client(base_url=running.url, timeout=PATIENCE) as http,
        answers_on(http),
        ThreadPoolExecutor(12) as pool,
    ):
        requests = [pool.submit(http.post, "/v1/completions", json=asked) for _ in range(12)]
        wait_until(lambda: sum(one.done() for one in requests) == 9, "nine are not refused at once")
        held.let_go()
        answers = [one.result() for one in requests]
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [503] * 9
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert error_of(refused, 503)["code"] == "overloaded" and refused.headers["retry-after"] == "1"
        assert error_of(http.post("/v1/completions", json=asked | {"n": 4}), 400)["param"] == "n"


def test_a_reader_who_does_not_read_is_cut_off(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model waits at the step in which the line is full, until it hears that its reader was given up."""
    running = serve(write_timeout=0.5)
    asked = {"model": "long", "prompt": "a", "max_tokens": 4000, "logprobs": 5, "n": 4, "stream": True}
    body = json.dumps(asked).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    place, engine = urlsplit(running.url), running.houses["long"].engine
    cut, full = called(monkeypatch, engine, "cancel"), threading.Event()
    made, pause, resume = Connection.connection_made, Connection.pause_writing, Connection.resume_writing
    step = Stepper.__call__

    def narrow(self: Connection, transport: asyncio.Transport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        made(self, transport)

    def pausing(self: Connection) -> None:
        full.set()
        pause(self)

    def resuming(self: Connection) -> None:
        full.clear()
        resume(self)

    def waiting(self: Stepper, tokens: Any) -> Any:
        if full.wait(0.001):  # and else the writer keeps up
            wait_until(lambda: cut.is_set() or not full.is_set(), "it was not cut off", 2 * PATIENCE)
        return step(self, tokens)

    monkeypatch.setattr(Connection, "connection_made", narrow)
    monkeypatch.setattr(Connection, "pause_writing", pausing)
    monkeypatch.setattr(Connection, "resume_writing", resuming)
    monkeypatch.setattr(Stepper, "__call__", waiting)
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect((place.hostname, place.port))
        peer.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert cut.wait(PATIENCE)
        wait_until(lambda: engine.running == 0, "it goes on for nobody")
        assert 0 < engine.steps < 4000  # its texts are not whole
        with httpx.Client(base_url=running.url, timeout=PATIENCE) as http, answers_on(http):
            pass


def test_only_names_of_this_machine_are_taken_for_its_own(running: Any, http: httpx.Client) -> None:
    port = urlsplit(running.url).port
    for host in ("localhost", f"127.0.0.1:{port}", "[::1]:1", "LOCALHOST:80"):
        assert http.get("/health", headers={"host": host}).status_code == 200, host
    for host in (
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "10.0.0.1",
        "127.0.0.1.evil.example",
        "",
    ):
        assert error_of(http.get("/v1/models", headers={"host": host}), 403)["code"] == "host", host


def test_a_web_page_is_answered_only_where_it_is_allowed(serve: Any, http: httpx.Client) -> None:
    page = {"origin": "https://app.example"}
    refused = http.post("/v1/completions", json=GOOD, headers=page)
    assert error_of(refused, 403)["code"] == "origin" and "access-control-allow-origin" not in refused.headers
    asks = page | {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    error_of(http.options("/v1/completions", headers=asks), 403)
    url = serve(allow_origins=("https://app.example",), api_key="k").url
    with httpx.Client(base_url=url, timeout=PATIENCE) as allowed:
        flight = allowed.options("/v1/completions", headers=asks)
        assert flight.status_code == 200
        assert flight.headers["access-control-allow-origin"] == "https://app.example"
        answer = allowed.post("/v1/completions", json=GOOD, headers=page | {"authorization": "Bearer k"})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        error_of(allowed.post("/v1/completions", json=GOOD, headers={"origin": "null"}), 403)
        error_of(allowed.post("/v1/completions", json=GOOD, headers=page), 401)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
NAMES = st.sampled_from([
    "prompt", "messages", "input", "n", "best_of", "max_tokens", "temperature", "top_p", "stop", "seed", "logprobs",
    "top_logprobs", "logit_bias", "stream", "stream_options", "response_format", "echo", "suffix", "user", "tools",
    "dimensions", "encoding_format", "choices", "regex", "top_k", "x",
])  # fmt: skip


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    path=st.sampled_from(["completions", "chat/completions", "embeddings", "classifications"]),
    fields=st.dictionaries(NAMES, VALUES, max_size=4),
)
def test_no_json_makes_the_server_fail(http: httpx.Client, path: str, fields: dict[str, Any]) -> None:
    model = {"embeddings": "vectors", "classifications": "spam"}.get(path, "gpt")
    base = {"prompt": "a", "max_tokens": 2} if path == "completions" else {"input": "a"}
    if path == "chat/completions":
        base = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}  # type: ignore[dict-item]
    answer = http.post(f"/v1/{path}", json={"model": model} | base | fields)
    if answer.status_code != 200:
        error_of(answer, 400)
