"""A chat template that is a row of turns, each a text before and after what is said: it needs no jinja2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ChatForm:
    """What torchless.export found a chat template to write, for every conversation of these roles.

    turns: by role, what stands before and after its words. opening: what stands at the very beginning, by the role
    of the first message; nothing where a role is not named. answer: where the assistant is to speak. trim: words
    are written without the white space around them.
    """

    turns: Mapping[str, tuple[str, str]]
    opening: Mapping[str, str] = field(default_factory=dict)
    answer: str = ""
    trim: bool = False

    def knows(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the template was tried with all these roles."""
        return all(message["role"] in self.turns for message in messages)

    def render(self, messages: Sequence[Mapping[str, Any]], answer: bool) -> str:
        """The conversation as the template writes it; `answer`: the assistant begins to speak after it."""
        parts = [self.opening.get(messages[0]["role"], "")] if messages else []
        for message in messages:
            before, after = self.turns[message["role"]]
            words = message["content"]
            parts += [before, words.strip() if self.trim else words, after]
        return "".join([*parts, self.answer if answer else ""])
