"""torchless run BUNDLE [TEXT... | -] [-i]"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Any

from torchless.errors import InputError, TorchlessError

# Which options belong to which task; any other one is refused by name.
GENERATION = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "seed", "return_full_text")
OPTIONS = {
    "text-generation": GENERATION,
    "text-classification": ("batch_size", "truncation", "function_to_apply"),
    "fill-mask": ("batch_size", "truncation", "top_k"),
    "feature-extraction": ("batch_size", "truncation"),
}


def add(commands: Any) -> None:
    command = commands.add_parser(
        "run",
        help="answer from a bundle",
        description="Generate, classify, fill masks or embed, by the bundle's task. TEXT may be given several "
        "times. Without TEXT, or with -, standard input is read: each line is a text; for text generation all of "
        "it is one prompt, unless --lines is given.",
    )
    command.add_argument("bundle", metavar="BUNDLE")
    command.add_argument("texts", metavar="TEXT", nargs="*", help="a text, or - for standard input")
    command.add_argument("-i", "--interactive", action="store_true", help="ask for texts until end of file")
    command.add_argument("--lines", action="store_true", help="each line of standard input is a prompt")
    command.add_argument("--json", action="store_true", help="one JSON object a line")
    command.add_argument("--provider", default="cpu", help="cpu (default) or auto")
    command.add_argument("--threads", type=int, help="threads of one operator (default: one a physical core)")
    generation = command.add_argument_group("text generation")
    generation.add_argument("--max-new-tokens", type=int, metavar="N", help="at most N new tokens (default: 128)")
    generation.add_argument("--do-sample", action="store_true", default=None, help="draw tokens, not the likeliest")
    generation.add_argument("--temperature", type=float, metavar="T", help="below 1 sharper, above 1 flatter")
    generation.add_argument("--top-p", type=float, metavar="P", help="draw among the likeliest P of probability")
    generation.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    generation.add_argument(
        "--return-full-text", action="store_true", default=None, help="the prompt and what follows it"
    )
    command.add_argument("--top-k", type=int, metavar="K", help="draw among K tokens; or show K words for a mask")
    encoders = command.add_argument_group("the other tasks")
    encoders.add_argument("--batch-size", type=int, metavar="N", help="texts in one run (default: 16)")
    encoders.add_argument("--truncation", action="store_true", default=None, help="cut texts that are too long")
    encoders.add_argument("--function-to-apply", choices=("softmax", "sigmoid", "none"), help="for scores")
    command.set_defaults(act=act, usage_error=command.error)


def act(args: argparse.Namespace) -> None:
    import torchless

    read_input = not args.texts or args.texts == ["-"]
    if args.interactive and args.texts:
        args.usage_error("-i asks for the texts itself: leave TEXT out")
    if read_input and not args.interactive and not args.texts and sys.stdin.isatty():
        args.usage_error("give a TEXT, - to read standard input, or -i")
    with torchless.load(args.bundle, provider=args.provider, threads=args.threads) as model:
        settings = _settings(args, model.bundle.manifest.task)
        answer = generate if isinstance(model, torchless.TextGeneration) else answer_all
        if args.interactive:
            for line in _asked():
                try:
                    answer(model, [line], settings, args.json)
                except TorchlessError as error:  # one text that does not fit ends no conversation
                    print(f"torchless: {error}", file=sys.stderr)
        else:
            texts = _standard_input(answer is generate and not args.lines) if read_input else args.texts
            answer(model, texts, settings, args.json)


def _settings(args: argparse.Namespace, task: str) -> dict[str, Any]:
    names = {name for options in OPTIONS.values() for name in options}
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    wrong = sorted(set(given) - set(OPTIONS[task]))
    if wrong:
        flags = ", ".join("--" + name.replace("_", "-") for name in wrong)
        raise InputError(f"{flags} is not for {task}, the task of {args.bundle}")
    return given


def generate(model: Any, prompts: list[str], settings: dict[str, Any], as_json: bool) -> None:
    """One prompt is streamed as it comes; several are generated together."""
    if as_json or len(prompts) != 1:
        for prompt, generation in zip(prompts, model(prompts, **settings), strict=True):
            if as_json:
                _print_json({"prompt": prompt, **dataclasses.asdict(generation)})
            else:
                print(generation.text)
        return
    stream = model.stream(prompts[0], **settings)
    try:
        for piece in stream:
            print(piece, end="", flush=True)
    finally:
        print(flush=True)


def answer_all(model: Any, texts: list[str], settings: dict[str, Any], as_json: bool) -> None:
    for text, result in zip(texts, model(texts, **settings), strict=True):
        if as_json:
            _print_json({"text": text, **_fields(model, result)})
        else:
            print(*_lines(model, result), sep="\n")


def _fields(model: Any, result: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return dataclasses.asdict(result)
    if hasattr(result, "tolist"):
        return {"embedding": result.tolist()}
    return {"candidates": json.loads(json.dumps(result, default=dataclasses.asdict))}


def _lines(model: Any, result: Any) -> Iterator[str]:
    if hasattr(result, "label"):
        yield f"{result.label}\t{result.score:.4f}"
    elif hasattr(result, "tolist"):
        yield json.dumps(result.tolist())
    else:
        for candidate in result:
            if isinstance(candidate, list):  # several masks
                yield from _lines(model, candidate)
                continue
            yield f"{candidate.score:.4f}\t{candidate.token}\t{candidate.sequence}"


def _standard_input(whole: bool) -> list[str]:
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")  # Windows' editors begin files with a mark
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 ({error.reason} at byte {error.start:,})") from None
    if whole:
        return [text.rstrip("\r\n")]
    # Not splitlines, which also breaks at form feeds and Unicode's line separators.
    return [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]


def _asked() -> Iterator[str]:
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line


def _print_json(fields: dict[str, Any]) -> None:
    print(json.dumps(fields, ensure_ascii=False), flush=True)
