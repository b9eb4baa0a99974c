"""A session for providers that allow one thread at a time in it."""

from __future__ import annotations

import threading
from typing import Any


class Serial:
    """An InferenceSession whose runs wait for one another; all else is the session's own."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._running = threading.Lock()

    def run(self, *given: Any, **named: Any) -> Any:
        with self._running:
            return self._session.run(*given, **named)

    def run_with_iobinding(self, *given: Any, **named: Any) -> Any:
        with self._running:
            return self._session.run_with_iobinding(*given, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)
