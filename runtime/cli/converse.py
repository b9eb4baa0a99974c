"""`torchless run -i` with a GPT: a conversation, in which each answer knows what was said before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torchless.cli.answers import print_json
from torchless.cli.forms import Item
from torchless.cli.telling import tell
from torchless.errors import TorchlessError


def converse(model: Any, lines: Iterable[Item], settings: dict[str, Any], as_json: bool) -> None:
    """Answer each line as it comes. Ctrl-C ends an answer, of which the conversation keeps what was said."""
    messages: list[dict[str, str]] = []
    for line in lines:
        messages.append({"role": "user", "content": line["prompt"]})
        said: list[str] = []
        try:
            if as_json:
                answer = model.chat(messages, **settings)
                said.append(answer.text)
                print_json("text-generation", line, answer)
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
