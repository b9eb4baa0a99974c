"""Every error that torchless raises on purpose: what was wrong, where, and what to do."""

from __future__ import annotations

from typing import Any


class TorchlessError(Exception):
    """Parent of all of them: catch this one to catch whatever the library has to say."""


class BundleError(TorchlessError):
    """A bundle that is missing, damaged, hostile, too new, or not what the call needs."""


class ProviderError(TorchlessError):
    """An execution provider that was asked for and cannot run here, or a session that failed in it."""


class TokenizerError(TorchlessError):
    """A tokenizer that cannot be read, or text that it cannot encode."""


class ContextLengthError(TorchlessError):
    """More tokens than the model has positions for."""


class InputError(TorchlessError, ValueError):
    """An argument of the wrong type or outside its range."""


class GenerationError(TorchlessError):
    """A generation that cannot go on, such as logits that are not numbers."""


class MemoryLimitError(TorchlessError, MemoryError):
    """A call that needs more memory than `memory_limit`; the model is as it was, and the next call may fit."""


class CancelledError(TorchlessError):
    """A call over many texts that its `cancel` event has ended.

    results: the answers of the first texts, as many as were done in whole blocks (of 1,024), where a call gives one
    answer a text.
    """

    results: Any = ()


class ExportError(TorchlessError):
    """A checkpoint that cannot be exported as it stands."""


class QuantizationError(TorchlessError):
    """A bundle that cannot be quantized as asked."""
