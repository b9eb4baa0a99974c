"""One file a model family, named by the config's model_type; each reads like its paper's diagram.

A family file offers `HEADS`, the task of each Hugging Face class that it can export, and
`build(b, config, weights, task, pooling)`, which writes the graph and returns a Facts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torchless.bundle import CacheLayout


@dataclass(frozen=True)
class Facts:
    """What the manifest says of the model that a family has written."""

    context_length: int
    vocab_size: int
    cache: CacheLayout | None = None
    labels: int | None = None  # columns of a classifier
