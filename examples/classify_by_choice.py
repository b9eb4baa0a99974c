"""SmolLM2 as a classifier that nobody has trained: which of some answers is the likeliest. Needs no torch.

    python examples/classify_by_choice.py [--labels LABEL LABEL ...] [--question QUESTION] [TEXT ...]

`choose` compares how likely the model would give each answer, so there is no output to parse and always a score.
What has to be installed stands in smollm2.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from smollm2 import smollm2

import torchless

LABELS = ("positive", "negative")
QUESTION = "Is the sentiment of this review positive or negative?"
NEUTRAL = "N/A"  # a text that says nothing: what the model thinks of the labels by themselves
TEXTS = (
    "A wonderful film, I laughed and cried, and would see it again tomorrow.",
    "The soup was cold, the waiter rude, and the bill a bad joke.",
    "Best headphones I have ever owned.",
    "It broke after two days. Do not buy this.",
    "The plot makes no sense and the acting is terrible.",
    "Friendly staff, spotless rooms, great breakfast!",
)


def classify(
    model: torchless.TextGeneration, question: str, texts: Sequence[str], labels: Sequence[str]
) -> Iterator[list[float]]:
    """For each text the labels' shares of 1, beside what they get where there is nothing to read (Zhao, 2021)."""

    def logprobs(text: str) -> np.ndarray:
        asked = [{"role": "user", "content": f"{question}\n\n{text}"}]
        return np.array(model.choose(model.template.render(asked, True), labels).logprobs)

    by_themselves = logprobs(NEUTRAL)
    for text in texts:
        weights = np.exp(logprobs(text) - by_themselves)
        yield (weights / weights.sum()).tolist()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("texts", nargs="*", metavar="TEXT", default=TEXTS)
    arguments.add_argument("--labels", nargs="+", default=LABELS, metavar="LABEL")
    arguments.add_argument("--question", default=QUESTION, help="what is asked of each text")
    args = arguments.parse_args()
    try:
        with smollm2() as model:
            for text, shares in zip(
                args.texts, classify(model, args.question, args.texts, args.labels), strict=True
            ):
                print(f"{args.labels[shares.index(max(shares))]:12}{max(shares):6.1%}  {text}", flush=True)
    except torchless.TorchlessError as error:
        print(f"classify_by_choice.py: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
