"""A session inside a program that is not ours: which forks, ends when it likes, and wants its memory back."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torchless.errors import GenerationError
from torchless.limits import Allowance, exceeded
from torchless.memory import LARGE
from torchless.ort import onnxruntime

if TYPE_CHECKING:
    import onnxruntime as ort

SHRINK = "memory.enable_memory_arena_shrinkage"
GRAPH = "gpu_graph_id"
PATIENCE = 10.0  # seconds that the interpreter's end waits for runs, which stop at their next operator

_sessions: weakref.WeakSet[HostedSession] = weakref.WeakSet()
_running: set[int] = set()  # threads that are in onnxruntime
_ended = False


class HostedSession:
    """An InferenceSession that many threads may use; what is not here is the session's own.

    In a forked child it is opened anew by the first call, as the threads that it had stayed with the parent. With
    one thread it has none, and the child goes on with the parent's, whose memory it shares.

    make: opens the session. shrinks: it has an arena whose memory a call can give back. limit: bytes that it was
    opened with (limits.py), for the message; caches: those of them that are for keys and values. serial: its
    provider allows one run at a time.
    """

    def __init__(
        self,
        make: Callable[[], ort.InferenceSession],
        *,
        shrinks: bool = False,
        limit: int | None = None,
        caches: int | None = None,
        serial: bool = False,
    ) -> None:
        run_options = onnxruntime().RunOptions
        self._make, self._serial, self._limit = make, serial, limit
        self.allowance = None if limit is None or caches is None else Allowance(caches, limit)
        self._session: ort.InferenceSession | None = make()
        self._options, self._shrinking = run_options(), run_options()
        self._graphs: dict[int, ort.RunOptions] = {}  # by number
        if shrinks:
            self._shrinking.add_run_config_entry(SHRINK, "cpu:0")
        self._grown = False  # since the arena was shrunk
        self._new_locks()
        _sessions.add(self)

    def _new_locks(self) -> None:
        self._opening = threading.Lock()
        self._turn: Any = threading.Lock() if self._serial else contextlib.nullcontext()

    @property
    def _opened(self) -> ort.InferenceSession:
        session = self._session
        if session is None:
            with self._opening:
                session = self._session = self._session or self._make()
        return session

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)  # of one that is not initialized
        return getattr(self._opened, name)

    def run(
        self, outputs: Sequence[str], feeds: Mapping[str, Any], *, tokens: int = 0, more: bool = False
    ) -> list[Any]:
        """As InferenceSession.run. tokens: of the batch, padding counted. more: the call goes on with another run.

        After a call with a large batch, what the arena took for it is given back. Raises MemoryLimitError past the
        limit.
        """
        found: list[Any] = self._call(self._opened.run, (outputs, feeds), tokens, more)
        return found

    def io_binding(self) -> ort.IOBinding:
        session = self._opened
        binding = session.io_binding()
        binding.made_by = session
        return binding

    def run_with_iobinding(
        self, binding: ort.IOBinding, *, tokens: int = 0, more: bool = False, recorded: int | None = None
    ) -> None:
        """As InferenceSession.run_with_iobinding; see run. recorded: the number of a CUDA graph, to be recorded or
        replayed, where the provider records them. GenerationError for a text begun before a fork."""
        session = self._opened
        if binding.made_by is not session:
            raise GenerationError("this text was begun before the process forked: begin it again in the child")
        if recorded is None:
            self._call(session.run_with_iobinding, (binding,), tokens, more)
        else:
            self._run(session.run_with_iobinding, (binding,), self._replaying(recorded))

    def _call(self, run: Callable[..., Any], given: tuple[Any, ...], tokens: int, more: bool) -> Any:
        self._grown |= tokens > LARGE
        shrinks = self._grown and not more
        if shrinks:
            self._grown = False
        options = self._shrinking if shrinks else self._options
        try:
            return self._run(run, given, options)
        except Exception as error:
            if not exceeded(error):
                raise
        # An arena's free pieces may be too small, each for itself: what fails gives them back, and has another try.
        for last in (False, True):
            try:
                return self._run(run, given, self._shrinking)
            except Exception as error:
                if (beyond := exceeded(error, self._limit)) is None:
                    raise
                if last:
                    raise beyond from error

    def _run(self, run: Callable[..., Any], given: tuple[Any, ...], options: ort.RunOptions) -> Any:
        me = threading.get_ident()
        _running.add(me)
        try:
            if _ended:
                _stay(me)
            with self._turn:
                return run(*given, options)
        finally:
            if _ended:
                _stay(me)
            _running.discard(me)

    def _replaying(self, number: int) -> ort.RunOptions:
        if number not in self._graphs:
            options = self._graphs[number] = onnxruntime().RunOptions()
            options.add_run_config_entry(GRAPH, str(number))
        return self._graphs[number]

    def stop(self, now: bool) -> None:
        """Let runs end at their next operator, with an error; or no more."""
        for options in (self._options, self._shrinking, *self._graphs.values()):
            options.terminate = now

    def leave_to_parent(self) -> None:
        """In a forked child: never close the parent's session, which would wait for threads that are not here."""
        self._new_locks()
        if self._session is not None and self._session.get_session_options().intra_op_num_threads != 1:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
            self._session = None


def _stay(me: int) -> None:
    """Where the interpreter ends, its daemon threads must not come back: to end within C++ aborts the process."""
    if threading.current_thread().daemon:
        _running.discard(me)
        threading.Event().wait()


def _end() -> None:
    """The interpreter ends: threads that still compute are daemons; have them stop, and keep them."""
    global _ended
    _ended = True
    sessions = list(_sessions)
    for session in sessions:
        session.stop(True)
    deadline = time.monotonic() + PATIENCE
    while _running and time.monotonic() < deadline:
        time.sleep(0.001)
    for session in sessions:
        session.stop(False)  # what else the program does at its end may compute


def _fork() -> None:
    _running.clear()
    for session in list(_sessions):
        session.leave_to_parent()


atexit.register(_end)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_fork)
