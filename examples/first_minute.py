"""From two trained checkpoints to answers, and what each quantization saves and costs. Needs no torch.

Exports the committed GPT and BERT, quantizes them, streams a text, classifies held-out mails, and measures:

    python examples/first_minute.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import torchless
from torchless.bundle import read_bundle
from torchless.export import export
from torchless.quantize import quantize

HERE = Path(__file__).parent
RECIPES = ("int8", "int4")
PROMPT = "The people of the United States"
WINDOWS = 24  # of the GPT's whole context, for the perplexity
LABELS = ("ham", "spam")  # what 0 and 1 mean in heldout-mails.jsonl
ROUNDS = 5  # interleaved, for the speed; the median counts


def make_bundles(checkpoint: str, out: Path) -> list[Path]:
    """The exported bundle and one of each recipe, in that order."""
    bundles = [export(HERE / "checkpoints" / checkpoint, out / checkpoint, overwrite=True)]
    for recipe in RECIPES:
        try:
            bundles.append(quantize(bundles[0], out / f"{checkpoint}-{recipe}", recipe=recipe, overwrite=True))
        except torchless.ProviderError as error:  # an onnxruntime that is too old for this processor
            print(f"no {recipe}: {error}", file=sys.stderr)
    return bundles


def show_stream(bundle: Path) -> None:
    print(f"\n{bundle.name} continues a prompt:\n\n{PROMPT}", end="")
    with torchless.load(bundle) as gpt:
        for piece in gpt.stream(PROMPT, max_new_tokens=80, temperature=0.8, top_p=0.95, seed=1):
            print(piece, end="", flush=True)
    print()


def show_mails(bundle: Path, mails: Sequence[dict[str, str]]) -> None:
    print(f"\n{bundle.name} reads mails that it has never seen:\n")
    chosen = [m for m in mails if m["label"] == "spam"][:3] + [m for m in mails if m["label"] == "ham"][:3]
    with torchless.load(bundle) as bert:
        for mail, answer in zip(chosen, bert([m["text"] for m in chosen], truncation=True), strict=True):
            subject = " ".join(mail["text"].split())[:64]
            print(f"  {answer.label:5}{answer.score:6.1%}   (it is {mail['label']:4})  {subject}")


def perplexity(gpt: torchless.TextGeneration, text: str) -> float:
    ids = gpt.tokenizer.ids(text)
    size = gpt.context_length
    windows = [ids[start : start + size] for start in range(0, len(ids) - size, size)][:WINDOWS]
    return float(np.exp(-np.mean([p for window in windows for p in gpt.score(window).logprobs])))


def measure_gpt(bundles: Sequence[Path], text: str) -> list[list[str]]:
    models = [torchless.load(bundle) for bundle in bundles]
    seconds: list[list[float]] = [[] for _ in models]
    for _ in range(ROUNDS):
        for model, times in zip(models, seconds, strict=True):
            start = time.perf_counter()
            model(PROMPT, max_new_tokens=64, do_sample=False, eos_token_id=None)
            times.append((time.perf_counter() - start) / 64)
    quality = [perplexity(model, text) for model in models]
    return [
        [b.name, m.graph.precision, megabytes(b), f"{1 / statistics.median(s):,.0f} tokens/s",
         f"perplexity {q:.2f}", "" if m is models[0] else f"{q / quality[0] - 1:+.2%}"]
        for b, m, s, q in zip(bundles, models, seconds, quality, strict=True)
    ]  # fmt: skip


def measure_bert(bundles: Sequence[Path], mails: Sequence[dict[str, str]]) -> list[list[str]]:
    models = [torchless.load(bundle) for bundle in bundles]
    seconds: list[float] = [0.0 for _ in models]
    right: list[int] = [0 for _ in models]
    same: list[int] = [0 for _ in models]
    for start in range(0, len(mails), 64):
        part = mails[start : start + 64]
        texts, labels = [m["text"] for m in part], [m["label"] for m in part]
        answers = []
        for index, model in enumerate(models):
            begin = time.perf_counter()
            answers.append([result.label for result in model(texts, truncation=True)])
            seconds[index] += time.perf_counter() - begin
            right[index] += sum(a == b for a, b in zip(answers[-1], labels, strict=True))
            same[index] += sum(a == b for a, b in zip(answers[-1], answers[0], strict=True))
    total = len(mails)
    return [
        [b.name, m.graph.precision, megabytes(b), f"{total / s:,.0f} texts/s", f"accuracy {r / total:.2%}",
         "" if m is models[0] else f"{(r - right[0]) / total:+.2%}, same label for {e / total:.1%}"]
        for b, m, s, r, e in zip(bundles, models, seconds, right, same, strict=True)
    ]  # fmt: skip


def megabytes(bundle: Path) -> str:
    return f"{read_bundle(bundle).size / 1e6:.1f} MB"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for index, row in enumerate(rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if index == 0:
            print("  ".join("-" * width for width in widths))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=HERE / "out", help="where the bundles go")
    out: Path = arguments.parse_args().out
    text = (HERE / "data" / "heldout-sotu.txt").read_text(encoding="utf-8")
    lines = (HERE / "data" / "heldout-mails.jsonl").read_text(encoding="utf-8").strip().split("\n")
    mails = [{"text": mail["text"], "label": LABELS[mail["label"]]} for mail in map(json.loads, lines)]

    print("exporting and quantizing ...", file=sys.stderr)
    gpts, berts = make_bundles("sotu-gpt", out), make_bundles("spam-bert", out)
    show_stream(gpts[1])
    show_mails(berts[1], mails)
    print("\nmeasuring ...", file=sys.stderr)
    head = ["bundle", "precision", "on disk", "speed here", "on held-out text", "against fp32"]
    print()
    print_table([head, *measure_gpt(gpts, text), *measure_bert(berts, mails)])
    command = f"{sys.executable} -m torchless.cli run {gpts[1]} 'My fellow citizens'"
    print(f"\nThe bundles are in {out}: try\n\n    {command}")


if __name__ == "__main__":
    main()
