"""Why a provider cannot run on this machine: which wheel, library or device is missing, and what to do."""

from __future__ import annotations

from torchless.providers.options import Options


def why_not(options: Options) -> str | None:
    """The cause and the remedy, in a sentence; None where nothing is known to be in the way."""
    from torchless.session import onnxruntime

    ort = onnxruntime()
    if options.ort_name not in ort.get_available_providers():
        return f"onnxruntime {ort.__version__} was built without it"
    return None
