"""A request's body: no larger, and no slower, than it may be."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from torchless.serve.options import Options
from torchless.serve.request_error import CLOSE, RequestError

DROPPED = 8  # times the largest body: so much more is read and dropped, so that the client hears the refusal


async def read_body(request: Request, options: Options) -> bytes:
    """The body. RequestError for one that is no JSON by its headers, too large, or too slow."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what a web page may send without being allowed to
        raise RequestError(415, f"content-type is {kind or 'not given'!r}: send application/json", headers=CLOSE)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(415, "content-encoding: send the body as it is", headers=CLOSE)
    if request.headers.get("expect", "") and length(request) > options.max_body:
        raise too_large(options)  # it waits for leave to send
    try:
        return await asyncio.wait_for(collect(request, options), options.body_timeout)
    except asyncio.TimeoutError:
        raise RequestError(
            408, f"the body did not come within {options.body_timeout:g} seconds", headers=CLOSE
        ) from None
    except ClientDisconnect:
        raise RequestError(400, "the body has no end", headers=CLOSE) from None  # nobody reads it


async def collect(request: Request, options: Options) -> bytes:
    parts, size = list[bytes](), 0
    async for part in request.stream():
        size += len(part)
        if size > options.max_body * DROPPED:
            break
        if size > options.max_body:
            parts.clear()
        else:
            parts.append(part)
    if size > options.max_body:
        raise too_large(options)
    return b"".join(parts)


def too_large(options: Options) -> RequestError:
    return RequestError(413, f"the body has more than {options.max_body:,} bytes", headers=CLOSE)


def length(request: Request) -> int:
    told = request.headers.get("content-length", "")
    return int(told) if told.isascii() and told.isdecimal() else 0
