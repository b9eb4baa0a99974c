"""A conversation with SmolLM2, or an answer to one question, as it is written. Needs no torch.

    python examples/chat.py [QUESTION]

It is small enough to be wrong about much, and quick. `torchless run examples/out/SmolLM2 -i` is the same with all
settings. What has to be installed stands in smollm2.py.
"""

from __future__ import annotations

import argparse
import sys

from smollm2 import smollm2

import torchless

SETTINGS = {"max_new_tokens": 400}  # greedy: the same answer every time
PROMPT = "\n> "


def answer(model: torchless.TextGeneration, messages: list[dict[str, str]]) -> str:
    """Print the answer piece by piece; Ctrl-C ends it."""
    said = []
    try:
        for piece in model.stream_chat(messages, **SETTINGS):
            said.append(piece)
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" ...", end="")
    print()
    return "".join(said)


def converse(model: torchless.TextGeneration) -> None:
    """Until the end of input, or Ctrl-C at a prompt. What was said is not computed again."""
    print("Ask anything; Ctrl-C ends an answer, an empty line ends the conversation.", file=sys.stderr)
    messages: list[dict[str, str]] = []
    while question := input(PROMPT if sys.stdin.isatty() else "").strip():
        messages.append({"role": "user", "content": question})
        try:
            messages.append({"role": "assistant", "content": answer(model, messages)})
        except torchless.TorchlessError as error:  # a question that is longer than the context
            messages.pop()
            print(f"chat.py: {error}", file=sys.stderr)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("question", nargs="?", help="answered, and that is all")
    question: str | None = arguments.parse_args().question
    try:
        with smollm2() as model:
            if question is None:
                converse(model)
            else:
                answer(model, [{"role": "user", "content": question}])
    except torchless.TorchlessError as error:
        print(f"chat.py: {error}", file=sys.stderr)
        sys.exit(1)
    except (EOFError, KeyboardInterrupt):
        print()


if __name__ == "__main__":
    main()
