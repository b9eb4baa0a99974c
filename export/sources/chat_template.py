"""The chat template that a checkpoint or a tokenizer brings, always handed on as a file of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torchless.errors import ExportError
from torchless.export.sources.source import TOKENIZER_CONFIG, read_json

CHAT_TEMPLATE = "chat_template.jinja"


def read_chat_template(given: object) -> dict[str, bytes]:
    """The bundle's file with the Jinja template; none where there is no template. Raises ExportError.

    given: a folder or a file in it, in which chat_template.jinja comes before tokenizer_config.json, as in
    transformers; or a tokenizer of transformers.
    """
    if not isinstance(given, str | os.PathLike):
        return _file(getattr(given, "chat_template", None), type(given).__name__)
    folder = Path(given) if Path(given).is_dir() else Path(given).parent
    if (folder / CHAT_TEMPLATE).is_file():
        return {CHAT_TEMPLATE: (folder / CHAT_TEMPLATE).read_bytes()}
    settings = folder / TOKENIZER_CONFIG
    return _file(read_json(settings).get("chat_template"), str(settings)) if settings.is_file() else {}


def _file(template: Any, where: str) -> dict[str, bytes]:
    """template: a text, or several by name, of which "default" is the one for conversations."""
    if isinstance(template, list):
        template = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
    if isinstance(template, dict):
        template = template.get("default")
    if template is None:
        return {}
    if not isinstance(template, str):
        raise ExportError(f"{where}: chat_template is a {type(template).__name__}, not a text")
    return {CHAT_TEMPLATE: template.encode()}
