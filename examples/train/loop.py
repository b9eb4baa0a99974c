"""The training loop that gpt.py and bert.py share: schedule, clipping, progress, and a state to resume from.

The state file holds weights, optimizer, random numbers, step and the best weights so far. It is written
beside its final name and renamed, so that a crash leaves the last whole one. Which samples a step sees
depends on the seed and the step alone, so a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

Loss = Callable[[int], Tensor]  # step -> the loss of that step's batch
Judge = Callable[[], float]  # -> a figure on held-out data; smaller is better


@dataclass(frozen=True)
class Plan:
    """How long and how fast to learn. With `minutes` the run ends at whichever limit comes first."""

    steps: int
    lr: float
    warmup: int = 200
    floor: float = 0.1  # the last learning rate as a share of the highest
    clip: float = 1.0
    minutes: float | None = None
    judge_every: int = 250
    save_every: int = 100
    average: float | None = None  # keep a moving average of the weights, this much of it from before each step


def keep_tokenizer(path: Path, make: Callable[[], Tokenizer]) -> Tokenizer:
    """The tokenizer in `path`, or else a new one, which is written there.

    A resumed run has to read the very same tokenizer. WordPiece trained twice on the same text breaks ties by
    chance: a few tokens differ, and hundreds get other numbers.
    """
    if path.exists():
        return Tokenizer.from_file(str(path))
    tokenizer = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer


def make_optimizer(model: nn.Module, lr: float, weight_decay: float, beta2: float) -> torch.optim.AdamW:
    """AdamW that decays the matrices and leaves biases and norms alone, as the papers do."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, beta2), eps=1e-8, fused=True)


def learning_rate(plan: Plan, step: int, done: float, shape: str) -> float:
    """Linear warm-up over plan.warmup steps, then down to plan.floor: a cosine (GPT) or a line (BERT).

    `done` is the share of the whole run that lies behind, in [0, 1].
    """
    down = 0.5 * (1 + math.cos(math.pi * done)) if shape == "cosine" else 1 - done
    return plan.lr * min(1.0, (step + 1) / plan.warmup) * (plan.floor + (1 - plan.floor) * down)


class Run:
    """A model in training: what `save` writes and `load` reads is all that a run needs to go on."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
        self.model, self.optimizer, self.path = model, optimizer, path
        self.step, self.seconds = 0, 0.0
        self.best, self.best_weights = math.inf, None
        self.average: dict[str, Tensor] | None = None

    def follow(self, keep: float) -> None:
        """Move the average of the weights towards the weights of now."""
        now = self.model.state_dict()
        if self.average is None:
            self.average = {name: tensor.detach().clone() for name, tensor in now.items()}
        for name, tensor in now.items():
            if tensor.is_floating_point():
                self.average[name].lerp_(tensor.detach(), 1 - keep)

    def save(self) -> None:
        """Write the state to a sibling and rename it into place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "best_weights": self.best_weights,
            "average": self.average,
        }
        torch.save(state, part)
        os.replace(part, self.path)

    def load(self) -> bool:
        """Go on from the state file; False if there is none."""
        if not self.path.exists():
            return False
        state = torch.load(self.path, weights_only=True)
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            sys.exit(f"{self.path} belongs to another model: start with --restart\n{error}")
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.best, self.best_weights = state["best"], state["best_weights"]
        self.average = state.get("average")
        return True

    def judge(self, judge: Judge) -> None:
        """Measure on held-out data and keep a copy of the weights if they are the best so far."""
        self.model.eval()
        with torch.no_grad():
            figure = judge()
        self.model.train()
        if figure < self.best:
            self.best = figure
            self.best_weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        print(f"step {self.step}: held-out {figure:.4f} (best {self.best:.4f})", flush=True)

    def use_average(self) -> None:
        """Put the averaged weights into the model and leave it ready to measure."""
        if self.average is not None:
            self.model.load_state_dict(self.average)
        self.model.eval()

    def use_best(self) -> None:
        """Put the best weights into the model and leave it ready to measure."""
        if self.best_weights is not None:
            self.model.load_state_dict(self.best_weights)
        self.model.eval()


def train(run: Run, loss_at: Loss, judge: Judge, plan: Plan, shape: str = "cosine") -> None:
    """Train up to the limits of the plan. Ctrl-C or kill saves the state and exits with 130."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts background jobs deaf to Ctrl-C
        signal.signal(number, signal.default_int_handler)
    if run.load():
        print(f"resumed {run.path} at step {run.step}", flush=True)
    run.model.train()
    start, spent, shown = time.monotonic() - run.seconds, run.seconds, run.step
    try:
        while (done := _done(plan, run)) < 1:
            lr = learning_rate(plan, run.step, done, shape)
            for group in run.optimizer.param_groups:
                group["lr"] = lr
            loss = loss_at(run.step)
            loss.backward()
            nn.utils.clip_grad_norm_(run.model.parameters(), plan.clip)
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
            run.step += 1
            if plan.average is not None:
                run.follow(plan.average)
            run.seconds = time.monotonic() - start
            if run.step % 20 == 0:
                pace = (run.seconds - spent) / (run.step - shown)
                spent, shown = run.seconds, run.step
                print(
                    f"step {run.step}/{plan.steps} ({done:.0%}) loss {loss.item():.3f} lr {lr:.1e} "
                    f"{pace:.2f} s/step {run.seconds / 60:.1f} min",
                    flush=True,
                )
            if run.step % plan.judge_every == 0:
                run.judge(judge)
            if run.step % plan.save_every == 0:
                run.save()
    except KeyboardInterrupt:
        run.save()
        print(f"stopped at step {run.step}; the same command goes on from {run.path}", file=sys.stderr)
        sys.exit(130)
    run.judge(judge)
    run.save()


def _done(plan: Plan, run: Run) -> float:
    """The share of the run that lies behind: of the steps or of the minutes, whichever is further."""
    share = run.step / plan.steps
    return share if plan.minutes is None else max(share, run.seconds / (60 * plan.minutes))
