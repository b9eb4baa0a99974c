"""The recipe for a budget: candidates are written beside each other, weighed, judged on real text, and timed."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from torchless.bundle import Bundle
from torchless.errors import QuantizationError
from torchless.quantize.budget import Budget, Told
from torchless.quantize.job import Job
from torchless.quantize.loss import Loss, measure_losses, right_labels
from torchless.quantize.mixed import Rung, ladder, mixture, smallest
from torchless.quantize.pace import CHECKED, RANKED, mean_ratio, race, slower
from torchless.quantize.recipes import RECIPES, Keep, Recipe
from torchless.quantize.sensitivity import Part, measure, parts_of
from torchless.writing import seal


@dataclass
class Candidate:
    """A recipe as a bundle. rank: the lower, the faster. speed: over float32's, None if not timed."""

    recipe: Recipe
    bundle: Bundle
    rank: float
    loss: Loss | None = None
    speed: float | None = None
    outcome: str = ""
    checked: dict[str, float] = field(default_factory=dict)  # speed over float32's by batch x length

    @property
    def size(self) -> int:
        return self.bundle.size

    def facts(self) -> str:
        told = [] if self.loss is None else [f"{self.loss.kind.what} {self.loss}"]
        told.append(f"{self.size / 1e6:.1f} MB")
        if self.speed is not None:
            told.append(f"{self.speed:.2f} times float32's speed")
        return ", ".join(told)

    def record(self) -> dict[str, Any]:
        return {
            "name": self.recipe.name,
            "size": self.size,
            "loss": None if self.loss is None else dataclasses.asdict(self.loss.interval),
            "speed": self.speed,
            "checked": self.checked,
            "outcome": self.outcome,
        }


class Choice:
    """One search. folder: where the candidates lie; it is the caller's to remove.

    recipe: the only one to try, with mixtures of it; None for those of the budget's target. Only without one and
    without a target is speed measured: it then orders the candidates, and rules out what is slower than float32.
    """

    def __init__(self, job: Job, budget: Budget, recipe: Recipe | None, folder: Path, told: Told) -> None:
        self.job, self.budget, self.folder, self.told = job, budget, folder, told
        self.timed = recipe is None and budget.target is None
        self.named = recipe is not None
        tried = [recipe] if recipe is not None else budget.recipes(decodes=job.decodes)
        self.recipes = [job.fit(one) for one in tried]  # so that a mixture is one of what the model gets
        self.tried: list[Candidate] = []

    def find(self) -> Candidate:
        """The fastest that holds the budget. Raises QuantizationError, which names the nearest, if none does."""
        found = self._judged() if self.budget.max_loss is not None else self._unjudged()
        if found is None:
            raise QuantizationError(self._nearest())
        found.outcome = "chosen"
        self.told.line(f"chosen: {found.recipe.name}, {self._why()}")
        if found.loss is not None and found.loss.interval.high > (self.budget.max_loss or 0):
            self.told.line("its interval reaches beyond what may be lost: more data would tell")
        return found

    def record(self) -> dict[str, Any]:
        """What was asked for and found, for the manifest."""
        kind = next((one.loss.kind.what for one in self.tried if one.loss), None)
        return {
            **dataclasses.asdict(self.budget),
            "loss": kind,
            "examples": None if self.job.examples is None else len(self.job.examples),
            "why": self._why(),
            "tried": [one.record() for one in self.tried],
        }

    def _why(self) -> str:
        if self.named:
            return f"which holds {self.budget}"
        limits = f" of those that hold {self.budget}" if self.budget.limited else ""
        if self.budget.target is not None:
            return f"the first{limits} in the order for {self.budget.target}"
        if self.budget.max_loss is None:
            return f"the most faithful{limits} that is nowhere slower than float32 here"
        return f"the fastest{limits}, nowhere slower than float32 here"

    def _unjudged(self) -> Candidate | None:
        """The first of FAITHFUL that is small enough, and here not slower than float32."""
        for order, recipe in enumerate(self.recipes):
            candidate = self._write(recipe, recipe.name, order)
            if self._fits(candidate) and self._keeps_pace(candidate):
                return candidate
        return None

    def _judged(self) -> Candidate | None:
        right_labels(self.job.source.manifest, self.job.examples or ())  # before minutes of work
        written = [self._write(recipe, recipe.name, order) for order, recipe in enumerate(self.recipes)]
        fitting = [candidate for candidate in written if self._fits(candidate)]
        if not fitting:
            return None
        self._judge(fitting)
        self._time(fitting)
        for candidate in fitting:
            if self._holds(candidate):
                self.told.line(f"{candidate.recipe.name}: {candidate.facts()}")
            else:
                self._refuse(candidate, "loses too much")
        best: Candidate | None = None
        found: Candidate | None
        for base in sorted(fitting, key=lambda candidate: candidate.rank):
            if best is not None and best.rank <= base.rank:
                break
            found = base
            if not self._holds(base):
                found = self._mix(base, [one for one in fitting if not one.outcome])
            if found is not None and (best is None or found.rank < best.rank) and self._keeps_pace(found):
                best = found
        return best

    def _mix(self, base: Candidate, rivals: Sequence[Candidate]) -> Candidate | None:
        """The base with the fewest matrices in a finer scheme that holds the budget; rivals are timed beside it.

        Beside other recipes at most half of the matrices climb: then another one suits the model better.
        """
        parts = parts_of(self.job, base.recipe)
        single = measure(self.job, base.recipe, [(part.name, [part]) for part in parts], self.told.progress)
        rungs = ladder(parts, [one.error for one in single], decodes=self.job.decodes)
        if base.recipe.floats == 32 and sum(isinstance(scheme, Keep) for _, scheme in rungs) == len(parts):
            rungs = rungs[:-1]  # the last leaves nothing to quantize
        most = self._affordable(base, parts, rungs[: None if self.named else len(parts) // 2])
        made: dict[int, Candidate] = {}

        def climbed(count: int) -> str:
            return f"{len(dict(rungs[:count]))} of {len(parts)} matrices"

        def holds(count: int) -> bool:
            recipe = mixture(base.recipe, rungs[:count])
            candidate = self._write(recipe, f"{recipe.name}-{count}", base.rank)
            made[count] = candidate
            self._judge([candidate])
            if self._fits(candidate) and self._holds(candidate):
                return True
            self._drop(candidate)
            if not candidate.outcome:
                self._refuse(candidate, f"{climbed(count)} in a finer scheme, loses too much")
            return False

        count = smallest(most, holds) if most else None
        if count is None:
            return None
        for other in made.keys() - {count}:
            self._drop(made[other])
        found = made[count]
        if any(same_graph(found.bundle, rival.bundle) for rival in rivals):
            found.outcome = "the same as another recipe"
            return None
        self._time([found, *rivals])
        self.told.line(f"{found.recipe.name}: {found.facts()}, with {climbed(count)} in a finer scheme")
        return found

    def _affordable(self, base: Candidate, parts: Sequence[Part], rungs: Sequence[Rung]) -> int:
        """How many rungs max_size leaves room for."""
        if self.budget.max_size is None:
            return len(rungs)
        now = {part.name: part for part in parts}
        size = base.size
        for count, (name, scheme) in enumerate(rungs):
            part = now[name]
            now[name] = dataclasses.replace(part, scheme=scheme)
            size += part.saved - now[name].saved
            if size > self.budget.max_size:
                return count
        return len(rungs)

    def _write(self, recipe: Recipe, name: str, rank: float) -> Candidate:
        self.told.progress(f"quantizing ({name})", 0, 1)
        folder = self.folder / name
        folder.mkdir(parents=True)
        candidate = Candidate(recipe, self.job.write(folder, recipe), rank)
        self.tried.append(candidate)
        return candidate

    def _judge(self, candidates: Sequence[Candidate]) -> None:
        examples = self.job.examples
        assert examples is not None
        paths = [candidate.bundle.path for candidate in candidates]
        losses = measure_losses(self.job.source.path, paths, examples, self.told.progress)
        for candidate, loss in zip(candidates, losses, strict=True):
            candidate.loss = loss

    def _time(self, candidates: Sequence[Candidate]) -> None:
        if not self.timed:
            return
        paths = [candidate.bundle.path for candidate in candidates]
        shapes = RANKED[self.job.source.manifest.task == "text-generation"]
        for candidate, ratios in zip(candidates, race(self.job.source.path, paths, shapes, self.told.progress)):
            candidate.speed = mean_ratio(ratios)
            candidate.rank = -candidate.speed

    def _keeps_pace(self, candidate: Candidate) -> bool:
        """Whether it is nowhere slower than float32 on this machine, as far as that is asked."""
        if not self.timed:
            return True
        shapes = CHECKED[self.job.source.manifest.task == "text-generation"]
        (ratios,) = race(self.job.source.path, [candidate.bundle.path], shapes, self.told.progress)
        candidate.checked = {f"{s.kind} {s.batch}x{s.length}": median(one) for s, one in ratios.items()}
        if not (slow := slower(ratios)):
            return True
        shape, ratio = min(slow.items(), key=lambda pair: pair[1])
        where = f"{shape.kind}, {shape.batch} x {shape.length} tokens"
        self._refuse(candidate, f"slower than float32 here ({ratio:.2f} of its speed: {where})")
        return False

    def _fits(self, candidate: Candidate) -> bool:
        if self.budget.max_size is None or candidate.size <= self.budget.max_size:
            return True
        self._refuse(candidate, "too large")
        return False

    def _holds(self, candidate: Candidate) -> bool:
        allowed, loss = self.budget.max_loss, candidate.loss
        return allowed is None or (loss is not None and loss.interval.value <= allowed)

    def _refuse(self, candidate: Candidate, why: str) -> None:
        candidate.outcome = why
        self.told.line(f"{candidate.recipe.name}: {candidate.facts()}: {why}")

    def _drop(self, candidate: Candidate) -> None:
        shutil.rmtree(candidate.bundle.path, ignore_errors=True)

    def _nearest(self) -> str:
        """The error: the candidate that passes the budget by the least factor, and what has to give way for it."""
        nearest = min(self.tried, key=lambda one: (self._excess(one), one.size))
        if nearest.loss is None and self.budget.max_loss is not None:
            self._judge([nearest])
        ways = []
        if self.budget.max_size is not None and nearest.size > self.budget.max_size:
            ways.append(f"pass max_size={nearest.size}")
        if nearest.loss is not None and not self._holds(nearest):
            ways.append(f"pass max_loss={math.ceil(nearest.loss.interval.value * 1e4) / 1e4:g}")
        if ways and self.timed and nearest.recipe.name in RECIPES and not self._keeps_pace(nearest):
            ways.append(f"pass recipe='{nearest.recipe.name}', since it is {nearest.outcome}")
        if not ways:
            ways.append(f"{nearest.outcome}: keep the float32 bundle, or name the recipe")
        what = f"the recipe {self.recipes[0].name} does not hold" if self.named else "no recipe holds"
        return (
            f"{what} {self.budget}: the nearest is {nearest.recipe.name} ({nearest.facts()}): {' and '.join(ways)}"
        )

    def _excess(self, candidate: Candidate) -> float:
        """By which factor the budget is passed; 1 at most for a candidate that was refused for something else."""
        factors = [0.0]
        if self.budget.max_size is not None:
            factors.append(candidate.size / self.budget.max_size)
        if self.budget.max_loss is not None and candidate.loss is not None:
            loss = max(candidate.loss.interval.value, 0.0)
            factors.append(loss / self.budget.max_loss if self.budget.max_loss else math.inf if loss else 0.0)
        return max(factors)


def same_graph(one: Bundle, other: Bundle) -> bool:
    """Whether the two hold the same bytes, whatever their recipes are called."""
    return one.manifest.files == other.manifest.files


def choose(job: Job, budget: Budget, recipe: Recipe | None, folder: Path, told: Told) -> None:
    """Fill an empty folder with the bundle that `Choice` finds; its manifest's recipe tells of all in `auto`."""
    candidates = folder / "candidates"
    choice = Choice(job, budget, recipe, candidates, told)
    found = choice.find()
    for path in found.bundle.path.iterdir():
        path.rename(folder / path.name)
    shutil.rmtree(candidates)
    manifest = found.bundle.manifest
    seal(folder, dataclasses.replace(manifest, recipe={**(manifest.recipe or {}), "auto": choice.record()}))
