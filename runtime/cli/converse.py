"""`torchless run -i` with a GPT: a conversation, in which each answer knows what was said before."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from torchless.cli.answers import print_json
from torchless.cli.forms import Item
from torchless.cli.telling import tell
from torchless.errors import InputError, TorchlessError

# What a prompt can be asked with and a conversation, which has one answer and keeps a state, cannot.
PROMPTS_ONLY = ("assistant_model", "batch_size", "prompt_lookup_num_tokens", "return_full_text")


def converse(model: Any, lines: Iterable[Item], settings: dict[str, Any], as_json: bool) -> None:
    """Answer each line as it comes. Ctrl-C ends an answer, of which the conversation keeps what was said.

    Raises InputError at once for settings that allow no answer, whatever is asked.
    """
    one = dict.fromkeys(model.config.SEVERAL, 1)
    settings = one | settings  # whatever the bundle's defaults are
    refused = {*PROMPTS_ONLY, *(name for name in one if settings[name] != 1)}
    if wrong := sorted(refused & settings.keys()):
        flags = ", ".join("--" + name.replace("_", "-") for name in wrong)
        raise InputError(
            f"{flags} is not for a conversation: leave it out, or add --json-lines to ask prompt by prompt"
        )
    model.stream_chat([{"role": "user", "content": ""}], **settings).close()  # checks the settings, asks nothing
    if sys.stdin is not None and sys.stdin.isatty():
        leave = "Ctrl-Z and Enter" if sys.platform == "win32" else "Ctrl-D"
        print(f"Ctrl-C ends an answer, {leave} the conversation.", file=sys.stderr)
    messages: list[dict[str, str]] = []
    for line in lines:
        messages.append({"role": "user", "content": line["prompt"]})
        said: list[str] = []
        try:
            if as_json:
                with ctrl_c() as cancel:
                    answer = model.chat(messages, cancel=cancel, **settings)
                said.append(answer.text)
                print_json("text-generation", line, answer)
                if cancel.is_set():
                    tell("interrupted")
            else:
                say(model.stream_chat(messages, **settings), said)
        except TorchlessError as error:
            tell(error)
        except KeyboardInterrupt:
            tell("interrupted")
        if any(said):
            messages.append({"role": "assistant", "content": "".join(said)})
        else:  # nobody has answered it
            messages.pop()


def say(pieces: Iterable[str], said: list[str]) -> None:
    """Print pieces as they come, and keep them in `said`, also when the last one never comes."""
    try:
        for piece in pieces:
            said.append(piece)
            print(piece, end="", flush=True)
    finally:
        print(flush=True)


@contextlib.contextmanager
def ctrl_c() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, where it would raise KeyboardInterrupt and lose an answer that is not whole."""
    pressed = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
