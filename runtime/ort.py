"""The module onnxruntime, imported when it is first needed."""

from __future__ import annotations

import os
from typing import Any

from torchless.errors import ProviderError

INSTALL = "onnxruntime is not installed: pip install 'torchless[cpu]' (or 'torchless[gpu]' for CUDA)"
# From 1.29 on importing onnxruntime is enough to keep a database in the user's cache, to tell its makers of the
# process, and to start threads for that, which a forked child waits for in vain at its end. Only this prevents it.
NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"


def onnxruntime() -> Any:
    """The module, or a ProviderError that says what to install."""
    os.environ.setdefault(NO_TELEMETRY, "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise ProviderError(f"{INSTALL} ({error})") from None
    onnxruntime.disable_telemetry_events()  # of Windows' builds, and where a program has imported it before
    return onnxruntime
