"""The module onnxruntime, imported when it is first needed."""

from __future__ import annotations

from typing import Any

from torchless.errors import ProviderError

INSTALL = "onnxruntime is not installed: pip install 'torchless[cpu]' (or 'torchless[gpu]' for CUDA)"


def onnxruntime() -> Any:
    """The module, or a ProviderError that says what to install."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ProviderError(f"{INSTALL} ({error})") from None
    onnxruntime.disable_telemetry_events()  # some builds send them; ours never do
    return onnxruntime
