"""`torchless serve`: a local HTTP endpoint that speaks the OpenAI formats (docs/serve.md).

starlette and uvicorn (the extra `serve`) are imported when a server is made, not with this package: `wire` and
`app` and what they import need them, `engine`, `asking` and the rest do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torchless.errors import InputError
from torchless.model import Model
from torchless.serve.options import Options

if TYPE_CHECKING:
    from torchless.serve.wire import Server

__all__ = ["Options", "server"]


def server(models: Mapping[str, Model], options: Options | None = None) -> Server:
    """A server of these open models, by the names that requests give; its port is bound, and nothing answers yet.

    `run()` answers until Ctrl-C or SIGTERM; `with server(...) as running:` answers in a thread of its own, at
    `running.url`. Raises InputError without the extra `serve`, for a model of a task that no endpoint has, and for
    an address that cannot be bound.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise InputError('a server needs starlette and uvicorn: pip install "torchless[serve]"') from None
    from torchless.serve.wire import Server

    return Server(models, options or Options())
