"""Libraries of the extra `quantize`, imported where they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from torchless.errors import QuantizationError


def import_extra(module: str) -> Any:
    """The module, such as "sklearn.metrics". Raises QuantizationError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise QuantizationError(f"measuring needs {library}: pip install 'torchless[quantize]' ({error})") from None
