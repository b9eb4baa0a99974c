"""The server: a port, connections that may not hold it up, and a way to its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from torchless.errors import InputError, TorchlessError
from torchless.model import Model
from torchless.serve.app import application
from torchless.serve.endpoints import dumps
from torchless.serve.house import House, house
from torchless.serve.options import Options
from torchless.serve.request_error import CLOSE, RETRY, RequestError

if TYPE_CHECKING:
    from typing_extensions import Self

HEADERS = 32 << 10  # bytes of a request's head
KEEP_ALIVE = 30  # seconds that an idle connection stays
BACKLOG = 128


class Server:
    """See torchless.serve.server."""

    def __init__(self, models: Mapping[str, Model], options: Options) -> None:
        if not models:
            raise InputError("there is no model to serve: give one at least")
        self.options = options
        self._socket = listen(options)
        self._address = self._socket.getsockname()[:2]
        self.houses: dict[str, House] = {}
        try:
            for name, model in models.items():
                self.houses[name] = house(name, model, options)
        except TorchlessError:
            self.close()
            raise
        kind = type("Connection", (Connection,), {"options": options})
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                application(self.houses, options),
                http=kind,
                ws="none",
                loop="asyncio",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=max(1, round(options.stop_timeout)),
                h11_max_incomplete_event_size=HEADERS,
            ),
            self.houses,
        )
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it listens, such as http://127.0.0.1:8000; clients of OpenAI want `/v1` after it."""
        host, port = self._address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self) -> None:
        """Answer until SIGTERM or `stop`. Raises KeyboardInterrupt after Ctrl-C, when all has come to its end."""
        try:
            self._uvicorn.run([self._socket])
        finally:
            self.close()
        if signal.SIGINT in self._uvicorn.signals:
            raise KeyboardInterrupt

    def stop(self) -> None:
        """End, from any thread: streams are told."""
        self._uvicorn.stop()

    def close(self) -> None:
        for each in self.houses.values():
            each.stop()
        self._socket.close()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.run, name="torchless-serve", daemon=True)
        self._thread.start()
        self._uvicorn.ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join()


def listen(options: Options) -> socket.socket:
    """A socket that is bound to the host and port. InputError where that cannot be."""
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        bound = socket.socket(family, kind, protocol)
        try:
            if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows: else another program could take the port, too
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            else:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(BACKLOG)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        told = error.strerror or str(error)
        raise InputError(f"cannot listen at {options.host} port {options.port}: {told}") from None
    bound.setblocking(False)
    return bound


class _Uvicorn(uvicorn.Server):
    """uvicorn without its clock, which would wake an idle process ten times a second; streams hear its end."""

    def __init__(self, config: uvicorn.Config, houses: Mapping[str, House]) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self.signals: list[int] = []
        self._houses = houses
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        assert self._end is not None
        await self.on_tick(0)
        if not self.should_exit:
            await self._end.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for each in self._houses.values():
            each.stop()
        await super().shutdown(sockets)

    def stop(self) -> None:
        self.should_exit = True
        if self._loop is not None and self._end is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: it has stopped
                self._loop.call_soon_threadsafe(self._end.set)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        names = [name for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
        before = {getattr(signal, name): signal.signal(getattr(signal, name), self.handle_exit) for name in names}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig in self.signals:  # again: wait for nobody
            self.force_exit = True
        self.signals.append(sig)
        self.stop()


class Connection(H11Protocol):
    """One connection. A peer that is slow with a request's head, or with reading an answer, is cut off."""

    options = Options()
    _timer: asyncio.TimerHandle | None = None  # until the head is here
    _stalled: asyncio.TimerHandle | None = None  # until the peer reads

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.options.max_connections:
            self._say(RequestError(503, "there are too many connections", code="overloaded", headers=RETRY))
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._unset()
        elif self._timer is None and not self.transport.is_closing():
            self._await_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._timer is None and self.conn.trailing_data[0] and not self.transport.is_closing():
            self._await_head()  # of a request whose beginning came with the one before

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(self.options.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def send_400_response(self, msg: str) -> None:
        self._say(RequestError(400, "this is no HTTP request, or its head is too long"))

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(self.options.header_timeout, self._late)

    def _late(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self._say(RequestError(408, f"the request did not come within {self.options.header_timeout:g} seconds"))

    def _unset(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _say(self, refusal: RequestError) -> None:
        """Answer without the application, and close."""
        content = dumps(refusal.body)
        own = {"content-type": "application/json", "content-length": str(len(content))}
        headers = [(name.encode(), value.encode()) for name, value in (own | refusal.headers | CLOSE).items()]
        with contextlib.suppress(h11.LocalProtocolError):  # in the middle of an answer: no other can follow
            parts: list[Any] = [
                h11.Response(status_code=refusal.status, headers=headers),
                h11.Data(data=content),
                h11.EndOfMessage(),
            ]
            self.transport.write(b"".join(self.conn.send(part) or b"" for part in parts))
        self.transport.close()
