"""`torchless bench`: several bundles of one model beside each other, by quality, speed, size, start and memory."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import torchless
from torchless.arguments import check_count, check_flag
from torchless.bundle import Bundle, read_bundle
from torchless.errors import InputError
from torchless.ort import onnxruntime
from torchless.providers import choose_graph, choose_provider
from torchless.quantize.data import Example, read_examples
from torchless.quantize.intervals import ENOUGH, repeats
from torchless.quantize.quality import Quality, Scores, measure_quality
from torchless.quantize.results import Measured, Results
from torchless.quantize.speed import Progress, Shape, Speed, measure_speed
from torchless.session import default_threads
from torchless.text import TOKENIZER, Tokenizer
from torchless.version import __version__

CPUINFO = Path("/proc/cpuinfo")
LONGEST_TEXT = 200_000  # characters of a text that are read for speed
# Tasks whose bundles are compared token by token, which only one tokenizer allows.
BY_TOKEN = ("text-generation", "fill-mask", "token-classification")


@dataclass(frozen=True)
class Options:
    """What is measured, and how.

    lengths: tokens of a text. batches: texts of a call. repeats: rounds in which every bundle is started and timed
    once. examples: score at most so many, by default all. threads: of one operator, by default one a physical
    core. text_column, label_column: of the data, where they have other names. speed, quality: whether they are.
    """

    lengths: Sequence[int] = (16, 128)
    batches: Sequence[int] = (1, 8)
    repeats: int = 7
    examples: int | None = None
    threads: int | None = None
    text_column: str | None = None
    label_column: str | None = None
    speed: bool = True
    quality: bool = True

    def __post_init__(self) -> None:
        for name in ("lengths", "batches"):
            given = getattr(self, name)
            if not isinstance(given, Sequence) or isinstance(given, str) or not given:
                raise InputError(f"{name}={given!r}: give a list of whole numbers")
            object.__setattr__(self, name, tuple(dict.fromkeys(check_count(name, one) for one in given)))
        check_count("repeats", self.repeats, least=2)  # one round has no interval
        for name, least in (("examples", 1), ("threads", 0)):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least=least)
        if not check_flag("speed", self.speed) and not check_flag("quality", self.quality):
            raise InputError("neither speed nor quality is left to measure: leave out one of the two refusals")


def bench(
    bundles: Sequence[str | os.PathLike[str]],
    data: str | os.PathLike[str] | None = None,
    options: Options | None = None,
    *,
    progress: Progress = lambda what, done, total: None,
) -> Results:
    """Measure the bundles beside each other; the first is what the others are compared with.

    data: a file of examples (torchless.quantize.data); without one, only speed, start, memory and size are
    measured, on random tokens. progress: called with what is done, how much of it so far, and of how much.

    Raises InputError for bundles of different tasks or labels, for data that does not fit and for nothing to
    measure; BundleError for what is no sound bundle; TorchlessError for one that cannot run.
    """
    options = options or Options()
    if data is None and not options.speed:
        raise InputError("without data there is only speed to measure: give data, or let speed be measured")
    opened = open_bundles(bundles)
    names = names_of(bundles)
    task = opened[0].manifest.task
    examples: list[Example] = []
    if data is not None:
        columns = {"text_column": options.text_column, "label_column": options.label_column}
        examples = read_examples(data, task, **columns)
    notes: list[str] = []
    quality = Quality((), tuple(Scores() for _ in opened), 0)
    if examples and options.quality:
        quality = _measure_quality(opened, names, examples, options, progress)
    elif options.quality:
        notes.append("Quality was not measured, for want of data.")
    speeds: Sequence[Speed | None] = [None] * len(opened)
    if options.speed:
        shapes = shapes_of(opened, options, notes)
        ids = [ids_of(bundle, examples, max((s.batch * s.length for s in shapes), default=1)) for bundle in opened]
        notes.extend(_about_speed(task, examples, opened, options.repeats))
        speeds = measure_speed(
            [bundle.path for bundle in opened],
            ids,
            shapes,
            rounds=options.repeats,
            threads=options.threads,
            progress=progress,
        )
    measured = tuple(
        _measured(name, bundle, scores, speed, speeds[0])
        for name, bundle, scores, speed in zip(names, opened, quality.scores, speeds, strict=True)
    )
    return Results(
        task,
        "" if data is None else Path(data).name,
        quality.examples,
        machine_facts(options.threads),
        quality.metrics,
        measured,
        notes=(*quality.notes, *notes),
    )


def open_bundles(paths: Sequence[str | os.PathLike[str]]) -> list[Bundle]:
    """Read the bundles; InputError unless they answer the same question."""
    if not isinstance(paths, Sequence) or isinstance(paths, str | os.PathLike) or not paths:
        raise InputError("give a list of bundles, one or more")
    opened = [read_bundle(path) for path in paths]
    first = opened[0]
    for other in opened[1:]:
        for what in ("task", "labels", "problem_type"):
            ours, theirs = getattr(first.manifest, what), getattr(other.manifest, what)
            if ours != theirs:
                raise InputError(
                    f"{first.path} has the {what.replace('_', ' ')} {_told(ours)}, {other.path} has "
                    f"{_told(theirs)}: measure them one by one"
                )
        if first.manifest.task in BY_TOKEN and _tokenizer_hash(first) != _tokenizer_hash(other):
            raise InputError(
                f"{first.path} and {other.path} have different tokenizers, so there is no comparing token by "
                "token: measure them one by one"
            )
    return opened


def _told(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value or "none")


def _tokenizer_hash(bundle: Bundle) -> str | None:
    return bundle.manifest.files[TOKENIZER].sha256 if bundle.has(TOKENIZER) else None


def names_of(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The folders' names; the paths as given where two have one name; numbered where one is given twice."""
    folders = [Path(os.path.abspath(path)) for path in paths]
    names = [folder.name for folder in folders]
    if len(set(names)) < len(set(folders)):
        names = [str(path) for path in paths]
    return [
        name if (before := names[:i].count(name)) == 0 else f"{name} ({before + 1})" for i, name in enumerate(names)
    ]


def shapes_of(bundles: Sequence[Bundle], options: Options, notes: list[str]) -> list[Shape]:
    """What every bundle has room for; a note says what was left out."""
    decodes = bundles[0].manifest.task == "text-generation"
    context = min(bundle.manifest.context_length for bundle in bundles)
    shapes = [
        Shape(kind, batch, length)
        for kind in (("prompt", "decode") if decodes else ("text",))
        for batch in options.batches
        for length in options.lengths
    ]
    for kind in dict.fromkeys(shape.kind for shape in shapes):
        out = [f"{one:,}" for one in options.lengths if not Shape(kind, 1, one).fits(context)]
        if out:
            doing = {"prompt": "a prompt", "decode": "decoding after a prompt", "text": "a text"}[kind]
            notes.append(f"Left out: {doing} of {', '.join(out)} tokens, for a context of {context:,}.")
    return [shape for shape in shapes if shape.fits(context)]


def ids_of(bundle: Bundle, examples: Sequence[Example], count: int) -> list[int]:
    """At most `count` token ids of the examples' texts, without special ones; random ones for want of texts."""
    if not examples or not bundle.has(TOKENIZER):
        return [int(one) for one in np.random.default_rng(0).integers(0, bundle.manifest.vocab_size, count)]
    tokenizer = Tokenizer.read(bundle.file(TOKENIZER))
    ids: list[int] = []
    for example in examples:
        if len(ids) >= count:
            break
        ids.extend(tokenizer.ids(example.text[:LONGEST_TEXT], special_tokens=False))
    return ids[:count] or [0]


def machine_facts(threads: int | None) -> dict[str, Any]:
    """What figures of speed depend on, for people."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads or default_threads() or "one a physical core",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": onnxruntime().__version__,
        "torchless": __version__,
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _measure_quality(
    bundles: Sequence[Bundle], names: Sequence[str], examples: list[Example], options: Options, progress: Progress
) -> Quality:
    with contextlib.ExitStack() as stack:
        models = [
            (name, stack.enter_context(torchless.load(bundle.path, threads=options.threads)))
            for name, bundle in zip(names, bundles, strict=True)
        ]
        return measure_quality(models, examples, limit=options.examples, progress=partial(progress, "scoring"))


def _about_speed(task: str, examples: Sequence[Example], bundles: Sequence[Bundle], rounds: int) -> list[str]:
    notes = []
    if rounds < ENOUGH:
        notes.append(f"{rounds} rounds are too few for an interval of 95 %: give {ENOUGH} or more.")
    if not examples:
        notes.append("Speed was measured on random tokens, for want of data.")
    elif not all(bundle.has(TOKENIZER) for bundle in bundles):
        notes.append("Speed was measured on random tokens, for want of a tokenizer.")
    if task == "text-generation":
        notes.append(
            "A prompt is read into an empty cache, text by text; decoding adds a token to all texts at once, and "
            "the time to choose it is not counted."
        )
    else:
        notes.append("A call is token ids in, the task's output out; the tokenizer's time is not counted.")
    return notes


def _measured(name: str, bundle: Bundle, scores: Scores, speed: Speed | None, first: Speed | None) -> Measured:
    recipe = bundle.manifest.recipe or {}
    return Measured(
        name,
        str(recipe.get("name", "")),
        choose_graph(bundle, choose_provider("cpu"), None).precision,
        bundle.size,
        load=repeats(speed.loads) if speed else None,
        start=repeats(speed.starts) if speed else None,
        peak_memory=speed.peak_memory if speed else None,
        quality=scores.quality,
        against=scores.against,
        latencies=speed.latencies(first) if speed and first else (),
    )
