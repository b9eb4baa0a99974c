"""Uses the window as a user would, inside one process, and prints what was seen as JSON. Run by test_desktop.py.

python drive.py BUNDLES CASE: the display is that of $DISPLAY, examples/desktop is on the path.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import tkinter as tk
from collections.abc import Callable
from pathlib import Path
from typing import Any

from window import Window
from worker import Done, Piece, Worker

LONG = 200  # tokens: none of these completions is done before it is cancelled
TICK = 10  # ms
PATIENCE = 60  # seconds, the end of a hang


class Recorder(Worker):
    """The real one, whose answers are noted.

    It waits in the middle of the newest text, after its first piece, until it is cancelled: no machine is so fast
    that the text is whole before. muted: it waits before each answer as long as this is set.
    """

    def __init__(self, bundles: Path) -> None:
        super().__init__(bundles, LONG)
        self.noted: list[Any] = []
        self.muted = threading.Event()
        put, worker = self.answers.put, self

        class Noting:
            def put(self, answer: Any) -> None:
                while worker.muted.is_set():
                    time.sleep(0.001)
                worker.noted.append(answer)
                put(answer)
                while isinstance(answer, Piece) and worker.awaits(answer.request):
                    time.sleep(0.001)

            get_nowait = self.answers.get_nowait

        self.answers = Noting()  # type: ignore[assignment]

    def awaits(self, request: int) -> bool:
        """Whether anybody still wants the rest of it."""
        with self._changed:
            return request == self._request and not self._cancel.is_set()

    def done(self, request: int) -> Done | None:
        return next((a for a in self.noted if isinstance(a, Done) and a.request == request), None)


class Driver:
    def __init__(self, bundles: Path) -> None:
        self.worker = Recorder(bundles)
        self.root = tk.Tk()
        self.window = Window(self.root, self.worker)
        self.root.update()
        self.window.text.focus_force()
        self.ticks = 0
        self.worker.start()

    def tick(self) -> None:
        self.ticks += 1
        self.root.after(TICK, self.tick)

    def until(self, what: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """Let the window run until this is so; what it was."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.root.update()
            if found := what():
                return found
            time.sleep(0.001)
        raise SystemExit(f"not within {seconds} s: {what.__code__.co_names}")

    def type(self, text: str) -> None:
        names = {" ": "space", ",": "comma", "!": "exclam", ".": "period"}
        for letter in text:
            self.window.text.event_generate(f"<KeyPress-{names.get(letter, letter)}>")
            self.root.update()


def cancelled(driver: Driver) -> dict[str, Any]:
    """A completion appears; one more key, and the model has stopped writing it."""
    driver.type("The people of the United States")
    driver.until(driver.window.completion)
    old, seen, ghost = driver.window._awaited, driver.window.typed(), driver.window.completion()
    driver.worker.muted.set()  # the next completion could be there already
    driver.type(" ")
    gone = driver.window.completion()
    driver.worker.muted.clear()
    done = driver.until(lambda: driver.worker.done(old))
    new = driver.window._awaited
    driver.until(lambda: driver.window.completion())
    return {
        "typed": seen, "ghost": ghost, "gone": gone, "reason": done.reason, "tokens": done.tokens, "old": old,
        "new": new, "typed_on": driver.window.typed(),
    }  # fmt: skip


def taken(driver: Driver) -> dict[str, Any]:
    """Tab makes the completion the user's text, Escape drops the next one, undo takes back what Tab did."""
    driver.type("The people of the United States")
    driver.until(driver.window.completion)
    ghost = driver.window.completion()
    driver.window.text.event_generate("<Tab>")
    driver.root.update()
    after = driver.window.typed()
    driver.until(driver.window.completion)
    driver.window.text.event_generate("<Escape>")
    driver.root.update()
    dropped, kept = driver.window.completion(), driver.window.typed()
    driver.window.text.event_generate("<<Undo>>")
    driver.root.update()
    return {"ghost": ghost, "after": after, "dropped": dropped, "kept": kept, "undone": driver.window.typed()}


def flagged(driver: Driver) -> dict[str, Any]:
    flag = driver.window.flag
    driver.type("Congratulations! You have won a free prize, click here now!")
    driver.until(lambda: flag.cget("text") == "SPAM")
    driver.window.text.delete("1.0", "end")
    driver.until(lambda: not flag.cget("text"))
    ham = sys.stdin.read()
    driver.window.text.insert("end", ham)
    return {"ham": driver.until(lambda: flag.cget("text"))}


def responsive(driver: Driver) -> dict[str, Any]:
    """Typing, and a timer of the window, while the models give no answer, and in the middle of a text."""
    driver.until(lambda: not driver.window._loading)
    driver.root.after(TICK, driver.tick)
    words, seen = "The people of the United States have the right to be proud of the work of the Congress", []
    driver.worker.muted.set()
    for part in (words, " and"):
        driver.type(part)
        enough = driver.ticks + 20
        driver.until(lambda enough=enough: driver.ticks > enough)  # type: ignore[misc]
        seen.append(driver.window.completion())
        driver.worker.muted.clear()
        driver.until(driver.window.completion)
    return {"seen": seen, "typed": driver.window.typed(), "requests": driver.worker._request}


def closed(driver: Driver) -> dict[str, Any]:
    """The window's own button while a text is written."""
    driver.type("The people of the United States")
    driver.until(driver.window.completion)
    request = driver.window._awaited
    driver.root.tk.call(driver.root.protocol("WM_DELETE_WINDOW"))
    driver.worker.join(PATIENCE)
    done = driver.worker.done(request)
    return {
        "alive": driver.worker.is_alive(), "threads": threading.active_count(),
        "reason": done and done.reason, "tokens": done and done.tokens,
    }  # fmt: skip


def problems(driver: Driver) -> dict[str, Any]:
    """Bundles are missing or damaged: the window says so, and takes text all the same."""
    driver.until(lambda: not driver.window._loading)
    driver.type("My fellow citizens")
    driver.until(lambda: driver.window._awaited == 0)
    shown = driver.window.problem
    return {"shown": shown.cget("text"), "visible": shown.winfo_ismapped(), "typed": driver.window.typed(),
            "ghost": driver.window.completion(), "flag": driver.window.flag.cget("text")}  # fmt: skip


def main() -> None:
    driver = Driver(Path(sys.argv[1]))
    case = {f.__name__: f for f in (cancelled, taken, flagged, responsive, closed, problems)}[sys.argv[2]]
    try:
        print(json.dumps(case(driver)))
    finally:
        driver.worker.close()
        driver.worker.join(PATIENCE)


if __name__ == "__main__":
    main()
