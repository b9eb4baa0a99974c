"""Teach a GPT a multiple-choice question as in the GPT paper: which of four sentences goes on with a speech?

    python prepare.py && python choose.py --minutes 15

Each question is three sentences of an address and four sentences, one that really follows and three of other
addresses. Every choice becomes a sequence of its own (start, context, delimiter, choice, extract), a linear layer
scores it at the extract token, and a softmax runs over the four. Questions to learn from are made of
data/sotu-train.jsonl, those of the figures of ../data/heldout-sotu.txt, which the GPT has never seen. The same
questions are also put to the GPT as it was, by likelihood.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from checkpoint import write_checkpoint
from classify import tokenizer_settings
from finetune import choice_loss, encode, learn, open_base
from gpt import read_texts
from transformers import GPT2DoubleHeadsModel

import torchless
from torchless.bundle import read_bundle
from torchless.export import export
from torchless.quantize import quantize

HERE = Path(__file__).parent
CHOICES, CONTEXT, LONGEST = 4, 3, 60  # choices a question, sentences of context, words of a sentence


@dataclass(frozen=True)
class Question:
    context: str
    choices: list[str]
    answer: int


def sentences(text: str) -> list[str]:
    """Sentences of 5 to LONGEST words; others end a run of them: an empty string stands in their place."""
    found = re.split(r"(?<=[.?!])\s+(?=[A-Z])", text)
    return [one if 5 <= len(one.split()) <= LONGEST else "" for one in found]


def make_questions(texts: Sequence[str], seed: int, every: int = 2) -> list[Question]:
    """A question for every second (or so) sentence that follows CONTEXT others, beside sentences of other texts."""
    rng = np.random.default_rng(seed)
    speeches = [sentences(text) for text in texts]
    pool = [(number, one) for number, speech in enumerate(speeches) for one in speech if one]
    questions = []
    for number, speech in enumerate(speeches):
        for end in range(CONTEXT, len(speech), every):
            run = speech[end - CONTEXT : end + 1]
            if not all(run):
                continue
            choices = [run[-1]]
            while len(choices) < CHOICES:
                source, other = pool[rng.integers(len(pool))]
                if source != number and other not in choices:
                    choices.append(other)
            order = rng.permutation(CHOICES)
            questions.append(
                Question(" ".join(run[:-1]), [choices[i] for i in order], int(np.flatnonzero(order == 0)[0]))
            )
    return questions


def fine_tune(args: argparse.Namespace, questions: Sequence[Question]) -> Path:
    """Train, and write the checkpoint; its folder."""
    model, tokenizer = open_base(args.base, GPT2DoubleHeadsModel)
    limit = model.config.n_positions
    flat = encode(tokenizer, [(q.context, choice) for q in questions for choice in q.choices], limit)
    rows = [flat[i : i + CHOICES] for i in range(0, len(flat), CHOICES)]
    answers = torch.tensor([q.answer for q in questions])
    dtype = getattr(torch, args.dtype)

    def loss_of(batch: Sequence[int]) -> torch.Tensor:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            return choice_loss(model, [rows[i] for i in batch], answers[batch])

    shown = np.arange(0, len(rows), max(1, len(rows) // 100))

    def judge() -> float:
        return float(np.mean([loss_of(shown[i : i + 8]).item() for i in range(0, len(shown), 8)]))

    state = args.out / "training.state"
    learn(
        model, [[0] * sum(len(choice.ids) for choice in row) for row in rows], loss_of, judge, state=state,
        epochs=args.epochs, lr=args.lr, minutes=args.minutes, seed=args.seed,
    )  # fmt: skip
    write_checkpoint(model, tokenizer, tokenizer_settings(model, args.base, limit), args.out / "checkpoint")
    state.unlink()
    return args.out / "checkpoint"


def measure(name: str, answers: Sequence[int], questions: Sequence[Question]) -> None:
    right = sum(found == question.answer for found, question in zip(answers, questions, strict=True))
    print(f"{name:40} accuracy {right / len(questions):.2%} of {len(questions)} questions", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=HERE / "data", help="what prepare.py wrote")
    parser.add_argument("--base", type=Path, default=HERE.parent / "checkpoints" / "sotu-gpt")
    parser.add_argument("--out", type=Path, default=Path("chooser"), help="folder for all that is made")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--minutes", type=float, help="end the training after this long")
    parser.add_argument("--lr", type=float, default=2.5e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not (args.data / "sotu-train.jsonl").is_file():
        sys.exit(f"{args.data / 'sotu-train.jsonl'} is missing: run prepare.py first")

    learned = make_questions(read_texts(args.data / "sotu-train.jsonl"), args.seed)
    text = (HERE.parent / "data" / "heldout-sotu.txt").read_text(encoding="utf-8")
    held = make_questions(text.split("\n\n"), args.seed, every=1)
    print(f"{len(learned):,} questions to learn from, {len(held):,} held out", flush=True)

    before = export(args.base, args.out / "before", overwrite=True)
    with torchless.load(before) as gpt:
        for normalize in ("none", "tokens"):
            found = [
                gpt.choose(q.context, [f" {one}" for one in q.choices], normalize=normalize).index for q in held
            ]
            measure(f"by likelihood, untaught, normalize={normalize}", found, held)
    fp32 = export(fine_tune(args, learned), args.out / "fp32", overwrite=True)
    int8 = quantize(fp32, args.out / "int8", overwrite=True)
    for bundle in (fp32, int8):
        with torchless.load(bundle) as model:
            answers = [model(context=q.context, choices=q.choices).index for q in held]
        measure(f"fine-tuned, {bundle.name}, {read_bundle(bundle).size / 1e6:.1f} MB", answers, held)


if __name__ == "__main__":
    main()
