"""Every error that torchless raises on purpose: what was wrong, where, and what to do."""


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


class ExportError(TorchlessError):
    """A checkpoint that cannot be exported as it stands."""


class QuantizationError(TorchlessError):
    """A bundle that cannot be quantized as asked."""
