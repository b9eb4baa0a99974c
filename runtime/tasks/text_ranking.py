"""text-ranking: a query and passages in; the passages by how well they answer it out (a cross-encoder)."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchless.arguments import check_count
from torchless.batching import BATCH_SIZE
from torchless.bundle import Bundle
from torchless.classifier import Classifier
from torchless.errors import BundleError, InputError
from torchless.manifest import EXPORT_AGAIN
from torchless.model import Fit
from torchless.providers.first import Settings
from torchless.tasks import unfit
from torchless.tasks.text_classification import function_of
from torchless.text import check_text

# Where sentence-transformers has kept the activation, newest form first: a file, and fields one within the other.
CONFIGS = (
    ("config_sentence_transformers.json", ("activation_fn",)),
    ("config.json", ("sentence_transformers", "activation_fn")),
    ("config.json", ("sbert_ce_default_activation_function",)),
)
ACTIVATIONS = {"Identity": "none", "Sigmoid": "sigmoid"}  # torch's names, as sentence-transformers keeps them


@dataclass(frozen=True)
class Ranked:
    """A passage: its index in the list that was given, and its score."""

    index: int
    score: float


class TextRanking(Classifier):
    """Call it with query= and passages=. Raises InputError when opened for a head with several labels."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        super().__init__(bundle, settings)
        if lack := unfit("text-ranking", self.labels):
            raise InputError(f"{bundle.path}: {lack}")
        self.activation = activation_of(bundle)

    def __call__(
        self,
        *,
        query: str,
        passages: list[str],
        top_k: int | None = None,
        function_to_apply: str | None = None,
        batch_size: int = BATCH_SIZE,
        cancel: threading.Event | None = None,
        progress: Callable[[int, int], object] | None = None,
        truncation: bool | str = False,
        max_length: int | None = None,
        truncation_side: str = "right",
    ) -> list[Ranked]:
        """The passages, best first, or the top_k of them; of equals the first. No passages give an empty list.

        function_to_apply: sigmoid or none, instead of what the model was saved with, as in sentence-transformers'
        CrossEncoder: the sigmoid unless its config says otherwise. truncation, max_length, truncation_side: as in
        torchless.model.Fit.
        """
        if top_k is not None:
            top_k = check_count("top_k", top_k)
        name = self.activation if function_to_apply is None else function_to_apply
        squash = function_of(name)
        if name == "softmax":
            raise InputError("function_to_apply='softmax': of a single label it is always 1, give sigmoid or none")
        fit = Fit(truncation, max_length, truncation_side)
        if not isinstance(passages, list | tuple):
            raise InputError(f"passages: expected a list of texts, got {type(passages).__name__}")
        question = check_text(query, "query")
        pairs = [(question, check_text(passage, "passages")) for passage in passages]
        batching = self.batching(batch_size, cancel, progress)
        logits = [self.logits(part, fit, batching) for part in batching.blocks(pairs)]
        scores = squash(np.concatenate(logits))[:, 0] if logits else np.zeros(0, np.float32)
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [Ranked(int(index), float(scores[index])) for index in order]


def activation_of(bundle: Bundle) -> str:
    """What sentence-transformers would apply to the logit, by transformers' name for it: the sigmoid by default.

    Raises BundleError for a config that cannot be read or names another function.
    """
    for name, fields in CONFIGS:
        if not bundle.has(name):
            continue
        try:
            found: Any = json.loads(bundle.file(name).read_text(encoding="utf-8"))
            for field in fields:
                found = (found or {}).get(field)
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise BundleError(f"{bundle.file(name)} cannot be used ({error}): {EXPORT_AGAIN}") from None
        if found and (kind := str(found).rsplit(".", 1)[-1]) not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise BundleError(
                f"{bundle.file(name)}: the activation {found!r} is not supported (supported: {known})"
            )
        if found:
            return ACTIVATIONS[kind]
    return "sigmoid"
