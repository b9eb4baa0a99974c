"""SmolLM2 as a classifier that nobody has trained: which of some answers is the likeliest. Needs no torch.

    python examples/classify_by_choice.py [--labels LABEL LABEL ...] [--question QUESTION] [TEXT ...]

`choose` reads the text once and compares what the model thinks of each answer, so there is no output to parse and
always a score. What has to be installed stands in smollm2.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from smollm2 import smollm2

import torchless

LABELS = ("positive", "negative")
QUESTION = "Is the sentiment of this review positive or negative?"
TEXTS = (
    "A wonderful film, I laughed and cried, and would see it again tomorrow.",
    "The soup was cold, the waiter rude, and the bill a bad joke.",
    "Best headphones I have ever owned.",
    "It broke after two days. Do not buy this.",
    "The plot makes no sense and the acting is terrible.",
    "Friendly staff, spotless rooms, great breakfast!",
)


def classify(model: torchless.TextGeneration, question: str, text: str, labels: Sequence[str]) -> torchless.Choice:
    """The label that the model would rather answer with; scores are a softmax over the labels."""
    asked = [{"role": "user", "content": f"{question}\n\n{text}"}]
    return model.choose(model.template.render(asked, True), labels)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("texts", nargs="*", metavar="TEXT", default=TEXTS)
    arguments.add_argument("--labels", nargs="+", default=LABELS, metavar="LABEL")
    arguments.add_argument("--question", default=QUESTION, help="what is asked of each text")
    args = arguments.parse_args()
    try:
        with smollm2() as model:
            for text in args.texts:
                found = classify(model, args.question, text, args.labels)
                print(f"{args.labels[found.index]:12}{found.score:6.1%}  {text}")
    except torchless.TorchlessError as error:
        print(f"classify_by_choice.py: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
