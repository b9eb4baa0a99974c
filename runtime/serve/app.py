"""The application: its paths, and who may ask."""

from __future__ import annotations

import hmac
import logging
import socket
import time
from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from torchless.serve.endpoints import JSON, Chat, Classifications, Completions, Embeddings, refusal
from torchless.serve.house import House
from torchless.serve.options import Options, address_of, loopback
from torchless.serve.request_error import CLOSE, RequestError, of_error

log = logging.getLogger("torchless.serve")

POSTS = {
    "/v1/completions": Completions,
    "/v1/chat/completions": Chat,
    "/v1/embeddings": Embeddings,
    "/v1/classifications": Classifications,
}
HEALTH = "/health"


def application(houses: Mapping[str, House], options: Options) -> Starlette:
    """The ASGI application of these models."""
    started = int(time.time())

    def told(house: House) -> dict[str, Any]:
        model = house.model
        return {
            "id": house.name,
            "object": "model",
            "created": started,
            "owned_by": "torchless",
            "task": model.bundle.manifest.task,
            "context_length": model.context_length,
        }

    async def models(request: Request) -> Response:
        return JSON({"object": "list", "data": [told(house) for house in houses.values()]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in houses:
            raise RequestError(404, f"there is no model {name!r:.80}", param="model", code="model_not_found")
        return JSON(told(houses[name]))

    async def health(request: Request) -> Response:
        running, waiting = (sum(counts) for counts in zip(*(house.load for house in houses.values())))
        return JSON({"status": "ok", "running": running, "waiting": waiting})

    routes = [
        Route(HEALTH, health),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        *(Route(path, kind(houses, options), methods=["POST"]) for path, kind in POSTS.items()),
    ]
    middleware = [Middleware(Guard, options=options)]
    if options.allow_origins:
        allowed: dict[str, Any] = {"allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
        middleware.insert(0, Middleware(CORSMiddleware, allow_origins=list(options.allow_origins), **allowed))
    handlers: Any = {RequestError: refuse, HTTPException: not_here, Exception: failed}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


async def refuse(request: Request, error: RequestError) -> Response:
    return refusal(error)


async def not_here(request: Request, error: HTTPException) -> Response:
    """Unknown paths and methods."""
    what = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return refusal(RequestError(404, f"{what:.120}: there is nothing here", code="unknown_url", headers=CLOSE))
    if error.status_code == 405:
        allowed = dict(error.headers or {})
        return refusal(RequestError(405, f"{what:.120}: this path has other methods", headers=allowed | CLOSE))
    return refusal(RequestError(error.status_code, str(error.detail)))


async def failed(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return refusal(of_error(error))


class Guard:
    """Turns away who may not ask, before anything is read of a request.

    A web page can make a browser ask anything of this machine. By its own name for it (DNS rebinding) it would even
    be let read the answer: so Host has to be a name of ours. Pages of others have to be allowed, by Origin.
    """

    def __init__(self, app: ASGIApp, options: Options) -> None:
        self.app, self.options = app, options
        self._hosts = {"localhost", options.host.lower(), *(name.lower() for name in options.allow_hosts)}
        if options.allow_remote:
            self._hosts |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        status = 0

        async def sending(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            self.check(Request(scope))
        except RequestError as error:
            await refusal(error)(scope, receive, sending)
        else:
            await self.app(scope, receive, sending)
        # Neither texts nor keys: logs go to places that a user does not expect.
        log.info("%s %s: %d, %.3f s", scope["method"], scope["path"], status, time.perf_counter() - started)

    def check(self, request: Request) -> None:
        name = hostname(request.headers.get("host", ""))
        address = address_of(name)
        # An address is no name that somebody could point elsewhere.
        known = name in self._hosts or (address is not None and (self.options.allow_remote or loopback(name)))
        if not known:
            raise RequestError(
                403, f"Host is {name!r:.80}, which this server does not go by", code="host", headers=CLOSE
            )
        origin = request.headers.get("origin")
        if origin is not None and not {origin, "*"} & {*self.options.allow_origins}:
            raise RequestError(403, f"Origin {origin!r:.80} is not allowed", code="origin", headers=CLOSE)
        if self.options.api_key is None or request.url.path == HEALTH:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            key.strip().encode(), self.options.api_key.encode()
        ):
            raise RequestError(
                401, "Authorization: Bearer KEY is missing, or its key is another one", code="invalid_api_key",
                headers=CLOSE,
            )  # fmt: skip


def hostname(host: str) -> str:
    """Of a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0][1:].lower()
    return host.partition(":")[0].lower()
