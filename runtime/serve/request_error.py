"""Errors as OpenAI's clients know them: a status, and an object that says what, which parameter and which code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchless.errors import BundleError, ContextLengthError, GenerationError, ProviderError, TorchlessError

# What clients tell apart by `type`, by status.
TYPES = {401: "authentication_error", 403: "permission_error", 500: "server_error", 503: "server_error"}
RETRY = {"Retry-After": "1"}  # seconds
CLOSE = {"Connection": "close"}


class RequestError(Exception):
    """What a request is answered with instead of what it asked for."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """{"error": ...} of OpenAI's API."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def busy(waiting: int) -> RequestError:
    return RequestError(
        503, f"{waiting:,} texts are waiting already: ask again in a moment", code="overloaded", headers=RETRY
    )


def stopping() -> RequestError:
    return RequestError(503, "the server is stopping", code="stopping", headers=RETRY)


def of_error(error: Exception, param: str | None = None) -> RequestError:
    """What an error means to who has asked: the caller's mistakes are 400, the server's own 500."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ContextLengthError):
        return RequestError(400, str(error), param=param, code="context_length_exceeded")
    if isinstance(error, BundleError | GenerationError | ProviderError) or not isinstance(error, TorchlessError):
        told = (
            str(error)
            if isinstance(error, TorchlessError)
            else f"{type(error).__name__} in the server: see its log"
        )
        return RequestError(500, told, code="internal_error")
    return RequestError(400, str(error), param=param)
