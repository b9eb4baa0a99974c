"""What a measurement tells while it runs, and what it has to say of the data afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torchless.model import Fit, Model
from torchless.quantize.data import Example
from torchless.text import Text

if TYPE_CHECKING:
    from tokenizers import Encoding

T = TypeVar("T")

TOGETHER = 256  # examples between two reports: enough to sort them by length into batches


class Watch:
    """progress: called with how many texts were read, by all models, and how many there are."""

    def __init__(self, progress: Callable[[int, int], object] | None) -> None:
        self.notes: list[str] = []
        self._progress = progress
        self._done = self._total = 0
        self._cut = 0

    def begin(self, total: int) -> None:
        self._total = total
        self.step(0)

    def step(self, count: int = 1) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)

    def blocks(self, items: Sequence[T], size: int = TOGETHER) -> Iterator[Sequence[T]]:
        """Yield the items, some at a time, and count them when the caller comes back for more."""
        for start in range(0, len(items), size):
            block = items[start : start + size]
            yield block
            self.step(len(block))

    def encode(self, model: Model, text: Text, *, count: bool) -> Encoding:
        """Cut to the context where it is longer. count: whether to note that (not again for each model)."""
        encoding = model.encode(text, Fit(truncation=True))
        self._cut += bool(count and encoding.overflowing)
        return encoding

    def tell_cut(self, model: Model, examples: Sequence[Any]) -> None:
        if self._cut:
            self.notes.append(
                f"{self._cut:,} of {len(examples):,} texts are longer than the context of {model.context_length:,} "
                "tokens: they were cut."
            )


def labelled(examples: Sequence[Example]) -> bool:
    return examples[0].label is not None
