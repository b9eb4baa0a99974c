"""torchless run BUNDLE [TEXT... | -] [-i]"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from torchless.cli.asking import answer
from torchless.cli.converse import converse
from torchless.cli.forms import CHOOSE, FORMS, SCORE, Item
from torchless.cli.items import read_items, type_items
from torchless.errors import BundleError, InputError

STRATEGIES = ("longest_first", "only_first", "only_second")
FIELDS = ("question", "context", "query", "choices", "candidate_labels", "targets")
BLOCK = 512  # items asked together: answers come as they are found, and memory stays bounded


def add(commands: Any) -> None:
    command = commands.add_parser(
        "run",
        help="answer from a bundle",
        description="Answer from a bundle, by its task: generate, classify, find entities or answers, fill masks, "
        "rank, choose, embed. TEXT may be given several times. Without TEXT, or for -, standard input is read: "
        "each line is a text; for text generation all of it is one prompt, unless --lines is given. What TEXT "
        "stands for depends on the task: with --question it is a context, with --context a question, with --query "
        "the passages to rank.",
    )
    command.add_argument("bundle", metavar="BUNDLE")
    command.add_argument("texts", metavar="TEXT", nargs="*", help="a text, or - for standard input")
    command.add_argument(
        "-i", "--interactive", action="store_true", help="answer line by line until end of file; a GPT converses"
    )
    command.add_argument("--file", metavar="PATH", help="read this file as standard input is read")
    command.add_argument("--lines", action="store_true", help="each line of the input is a prompt")
    command.add_argument(
        "--json-lines",
        action="store_true",
        help="each line of the input is a JSON object with the task's fields: text, text_pair, prompt, question, "
        "context, choices, query, passages, candidate_labels, targets; an id comes back with the answer",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object a line")
    command.add_argument("--task", help="another task of the same head: text-ranking, zero-shot-classification")
    command.add_argument(
        "--provider", default="cpu", help="cpu (default), cuda, tensorrt, openvino, directml, coreml or auto"
    )
    command.add_argument("--graph-file", metavar="NAME", help="which graph of several, by its file's name")
    command.add_argument("--strict", action="store_true", help="refuse a provider that leaves nodes to the CPU")
    command.add_argument(
        "--download", action="store_true", help="BUNDLE is a model of the Hugging Face hub, org/name: fetch it once"
    )
    command.add_argument("--revision", help="of a download: a branch, a tag or a commit")
    command.add_argument("--threads", type=int, help="threads of one operator (default: one a physical core)")
    command.add_argument("--top-k", type=int, metavar="K", help="draw among K tokens; or give the K best answers")
    _add_generation(command.add_argument_group("text generation"))
    _add_likelihood(command.add_argument_group("text generation: how likely is a text"))
    _add_inputs(command.add_argument_group("what is asked"))
    _add_texts(command.add_argument_group("all but text generation"))
    _add_tasks(command.add_argument_group("single tasks"))
    command.set_defaults(act=act, usage_error=command.error)


def _add_generation(group: Any) -> None:
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="at most N new tokens (default: 128)")
    group.add_argument("--do-sample", action="store_true", default=None, help="draw tokens, not the likeliest")
    group.add_argument("--temperature", type=float, metavar="T", help="below 1 sharper, above 1 flatter")
    group.add_argument("--top-p", type=float, metavar="P", help="draw among the likeliest P of probability")
    group.add_argument("--min-p", type=float, metavar="P", help="none below P times the likeliest's probability")
    group.add_argument("--typical-p", type=float, metavar="P", help="draw the least surprising P of probability")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    group.add_argument("--num-beams", type=int, metavar="N", help="search for the likeliest text with N beams")
    group.add_argument("--length-penalty", type=float, metavar="X", help="beams: above 0 favours longer texts")
    group.add_argument("--num-return-sequences", type=int, metavar="N", help="N texts, of beams or of draws")
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1: fewer words again")
    group.add_argument("--no-repeat-ngram-size", type=int, metavar="N", help="no run of N tokens occurs twice")
    group.add_argument("--min-new-tokens", type=int, metavar="N", help="no end before N new tokens")
    group.add_argument(
        "--stop-strings", "--stop", action="append", metavar="TEXT", help="end before TEXT; may be repeated"
    )
    group.add_argument(
        "--overflow",
        choices=("error", "slide"),
        help="past the context: refuse (default), or read the newest again",
    )
    group.add_argument(
        "--keep", type=int, metavar="N", help="--overflow slide: the first N tokens stay (default: 4)"
    )
    group.add_argument("--regex", metavar="PATTERN", help="the text matches PATTERN as a whole")
    group.add_argument(
        "--json-schema", type=_schema, metavar="FILE", help="JSON of this schema: a file, or the schema itself"
    )
    group.add_argument("--max-time", type=float, metavar="SECONDS", help="end after this long")
    group.add_argument("--logprobs", type=int, metavar="N", help="with --json: log-probabilities, and the best N")
    group.add_argument(
        "--prompt-lookup-num-tokens",
        type=int,
        metavar="N",
        help="faster where a text repeats itself: guess up to N",
    )
    group.add_argument(
        "--assistant-model", metavar="BUNDLE", help="faster: a smaller model of the same tokenizer guesses"
    )
    group.add_argument(
        "--return-full-text", action="store_true", default=None, help="the prompt and what follows it"
    )


def _add_likelihood(group: Any) -> None:
    group.add_argument("--score", action="store_true", help="log-probability of each token, and the perplexity")
    group.add_argument(
        "--choose",
        action="store_true",
        help="which of --choices most likely follows --context, spaces as given (implied by --choices)",
    )


def _add_inputs(group: Any) -> None:
    group.add_argument(
        "--pair", nargs=2, action="append", metavar=("A", "B"), help="a pair of texts; may be repeated"
    )
    group.add_argument("--question", metavar="Q", help="question-answering, multiple-choice: the question")
    group.add_argument("--context", metavar="C", help="question-answering, multiple-choice, --choose: the context")
    group.add_argument(
        "--choices", nargs="+", metavar="CHOICE", help="multiple-choice, --choose: what to choose from"
    )
    group.add_argument("--query", metavar="Q", help="text-ranking: what the passages are ranked by")
    group.add_argument("--candidate-labels", metavar="A,B", help="zero-shot-classification: the labels")
    group.add_argument("--hypothesis-template", metavar="TEXT", help="with {} for the label: This example is {}.")
    group.add_argument("--targets", type=_commas, metavar="A,B", help="fill-mask: score these words only")


def _add_texts(group: Any) -> None:
    group.add_argument("--batch-size", type=int, metavar="N", help="texts in one run (default: 16)")
    group.add_argument(
        "--truncation",
        type=_truncation,
        metavar="STRATEGY",
        help="cut texts that are too long; STRATEGY may be left out: longest_first, only_first, only_second",
    )
    group.add_argument(
        "--max-length", type=int, metavar="N", help="tokens of a text (default: what the model takes)"
    )
    group.add_argument("--truncation-side", choices=("right", "left"), help="which end is cut (default: right)")


def _add_tasks(group: Any) -> None:
    flag = {"action": "store_true", "default": None}
    group.add_argument("--function-to-apply", choices=("softmax", "sigmoid", "none"), help="for scores")
    group.add_argument("--both-orders", **flag, help="text-classification: read each pair both ways")
    group.add_argument("--multi-label", **flag, help="zero-shot-classification: each label by itself")
    group.add_argument("--multi-token", choices=("refuse", "score"), help="fill-mask: targets of several tokens")
    group.add_argument(
        "--aggregation-strategy",
        choices=("none", "simple", "first", "average", "max"),
        help="token-classification: how tokens become entities",
    )
    group.add_argument("--ignore-labels", type=_commas, metavar="A,B", help="token-classification (default: O)")
    group.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="token-classification: windows share N tokens; --score: they begin N apart",
    )
    group.add_argument("--doc-stride", type=int, metavar="N", help="question-answering: windows share N tokens")
    group.add_argument("--max-answer-len", type=int, metavar="N", help="question-answering: in tokens")
    group.add_argument("--max-question-len", type=int, metavar="N", help="question-answering: cut the question")
    group.add_argument("--max-seq-len", type=int, metavar="N", help="question-answering: tokens of a window")
    group.add_argument("--handle-impossible-answer", **flag, help="question-answering: there may be no answer")
    group.add_argument(
        "--align-to-words", action=argparse.BooleanOptionalAction, help="question-answering: whole words (default)"
    )
    group.add_argument("--normalize", **flag, help="feature-extraction: vectors of length 1")
    group.add_argument("--truncate-dim", type=int, metavar="N", help="feature-extraction: the first N numbers")


def spell_out(arguments: Sequence[str]) -> list[str]:
    """`--truncation` with its value, since argparse would take a TEXT that follows for it."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    options = arguments[:end]
    spelled: list[str] = []
    for before, argument, after in zip(["", *options], options, [*options[1:], ""]):
        if argument == "--truncation":
            spelled.append(f"{argument}={after if after in STRATEGIES else 'true'}")
        elif before != "--truncation" or argument not in STRATEGIES:
            spelled.append(argument)
    return [*spelled, *arguments[end:]]


def _truncation(value: str) -> bool | str:
    if value != "true" and value not in STRATEGIES:
        raise argparse.ArgumentTypeError(f"invalid choice: {value!r} (choose from {', '.join(STRATEGIES)})")
    return value == "true" or value


def _schema(value: str) -> str:
    if value.lstrip().startswith("{"):
        return value
    try:
        return Path(value).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{value} cannot be read ({error})") from None


def _commas(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def act(args: argparse.Namespace) -> int:
    import torchless

    if args.interactive and (args.texts or args.file is not None or args.pair):
        args.usage_error("-i asks for the texts itself: leave TEXT out, and --file and --pair")
    with torchless.load(
        args.bundle,
        task=args.task,
        provider=args.provider,
        threads=args.threads,
        file=args.graph_file,
        strict=args.strict,
        download=args.download,
        revision=args.revision,
    ) as model:
        task = args.task or model.bundle.manifest.task
        if task not in FORMS:
            raise BundleError(f"{args.bundle}: the command line does not know the task {task!r}")
        task = _likelihood(args, task)
        given, settings = _given(args, task)
        if args.assistant_model is not None:
            settings["assistant_model"] = torchless.load(
                args.assistant_model, provider=args.provider, threads=args.threads
            )
        if not args.interactive:
            asked, failed = read_items(args, task, given), 0
            while block := list(islice(asked, BLOCK)):
                failed += answer(model, task, block, settings, args.json)
            return int(failed > 0)
        if task == "text-generation" and not args.json_lines:
            converse(model, (one.item for one in type_items(args, task, given)), settings, args.json)
            return 0
        for one in type_items(args, task, given):  # one text that does not fit ends no conversation
            answer(model, task, [one], settings, args.json)
        return 0


def _likelihood(args: argparse.Namespace, task: str) -> str:
    """The form to fill in: the task's, or what else a GPT is asked."""
    if not args.score and not args.choose and (task != "text-generation" or args.choices is None):
        return task
    if task != "text-generation":
        raise InputError(f"--{'score' if args.score else 'choose'} is not for {task}, the task of {args.bundle}")
    if args.score and (args.choose or args.choices is not None):
        args.usage_error("--score is of one text, --choose of several: give one of them")
    return SCORE if args.score else CHOOSE


def _given(args: argparse.Namespace, task: str) -> tuple[Item, dict[str, Any]]:
    """The fields and the settings that options have given, or an InputError for those of other tasks."""
    form = FORMS[task]
    names = {*FIELDS, "pair", *(name for other in FORMS.values() for name in other.options)}
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    takes = {*form.options, *form.fields, *form.optional}
    if "text_pair" in takes:
        takes.add("pair")
    if wrong := sorted(set(given) - takes):
        flags = ", ".join("--" + name.replace("_", "-") for name in wrong)
        task_of = "the task of" if args.task is None else "the task chosen for"
        raise InputError(f"{flags} is not for {task}, {task_of} {args.bundle}")
    fields = {name: given.pop(name) for name in FIELDS if name in given}
    given.pop("pair", None)
    return fields, given
