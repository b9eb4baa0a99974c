"""What onnxruntime says when it refuses options or a graph, without the places in its own source."""

from __future__ import annotations

import re

UNKNOWN = re.compile(
    r"""(?:Unknown provider option: "|Invalid TensorRT EP option: |Invalid provider option: )(\w+)"""
)
BAD_VALUE = re.compile(
    r"""(?:Failed to parse provider option "(\w+)": |The value for the key '(\w+)' should be )(.*)""", re.DOTALL
)
NOT_A_NUMBER = re.compile(r"^(?:stoi|stoul|stoull|stoll|stod|stof)\b")
CAPTURE = "cannot use the graph capture feature"
PLACE = re.compile(
    r"^(?:\S*/[\w./-]+\.(?:cc|h|cpp):\d+ .*?\) |\[ONNXRuntimeError\] : \d+ : \w+ : "
    r"|[\w./-]+\.(?:cc|h):\d+ \w+(?:\(\))? )"
)


def of_options(error: Exception) -> str | None:
    """What is wrong with an option, if that is what onnxruntime says; else None."""
    text = str(error).strip()
    if found := UNKNOWN.search(text):
        return f"onnxruntime does not know the option {found[1]!r} of this provider"
    if found := BAD_VALUE.search(text):
        rest = " ".join(_plain(found[3]).split())
        return f"the option {found[1] or found[2]!r} has a value that onnxruntime refuses ({rest})"
    if NOT_A_NUMBER.search(text):
        return f"an option among `more` has to be a number ({text})"
    return None


def of_graph(error: Exception) -> str:
    """Why the graph was not taken, in one line."""
    text = str(error).strip()
    if CAPTURE in text:
        return (
            "cuda_graph=True needs every node on the device, and some are not: leave it off, or take another graph"
        )
    return (_plain(text).strip().splitlines() or [type(error).__name__])[0][:400]


def _plain(text: str) -> str:
    while (shorter := PLACE.sub("", text, count=1)) != text:
        text = shorter
    return text
