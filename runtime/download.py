"""Models from the Hugging Face hub, into its own cache, when a download is asked for and never otherwise.

huggingface_hub comes with tokenizers. Its settings count here, too: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from torchless.bundle import looks_like_a_name
from torchless.errors import InputError, TorchlessError
from torchless.foreign import COMPANIONS, ranked
from torchless.manifest import MANIFEST

ADVICE = "check the name, the network, and HF_TOKEN for a model that asks for one"


def download(name: str, *, revision: str | None = None, file: str | None = None) -> Path:
    """The folder in the hub's cache that holds what `load` needs of the model "org/name".

    revision: a branch, a tag or a commit. file: which graph of several, by its name. Of a repository with many
    graphs only one is fetched, and no weights of torch. What is there already is not fetched again; without a
    network, or with HF_HUB_OFFLINE=1, the cache alone is asked.

    Raises InputError for a name that is none, TorchlessError for what cannot be had, with what to do.
    """
    if not looks_like_a_name(name):
        raise InputError(f"{name!r} is no model's name on the hub: give org/name, or the path of a folder")
    if revision is not None and (not isinstance(revision, str) or not revision):
        raise InputError(f"revision={revision!r}: give a branch, a tag or a commit")
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.utils
    except ImportError as error:
        raise TorchlessError(f"downloading needs huggingface_hub: pip install huggingface_hub ({error})") from None
    hub: Any = huggingface_hub
    if not sys.stderr.isatty():
        hub.utils.disable_progress_bars()
    try:
        there = [] if hub.constants.HF_HUB_OFFLINE else hub.HfApi().list_repo_files(name, revision=revision)
    except Exception as error:  # of the hub's own and of its HTTP client, which differ by version
        if not _unreachable(error):
            raise _told(name, revision, error) from None
        there = []
    try:
        if not there:
            return _cached(hub, name, revision)
        wanted = _wanted(hub, name, revision, file, there)
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=wanted))
    except TorchlessError:
        raise
    except Exception as error:
        raise _told(name, revision, error) from None


def hub_state() -> dict[str, str | None]:
    """For `torchless doctor`: what fetches, where to, how many models lie there, whether the hub may be asked."""
    try:
        import huggingface_hub
        from huggingface_hub import constants
    except ImportError:
        return {"huggingface_hub": None}
    cache = Path(constants.HF_HUB_CACHE)
    return {
        "huggingface_hub": huggingface_hub.__version__,
        "cache": str(cache),
        "models": str(len(list(cache.glob("models--*")))),
        "offline": "yes (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "no",
    }


def _cached(hub: Any, name: str, revision: str | None) -> Path:
    """The snapshot that was downloaded once. Not snapshot_download's, which wants every file of the repository."""
    for file in (MANIFEST, "config.json"):
        found = hub.try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    at = f" at {revision}" if revision else ""
    raise TorchlessError(
        f"{name}{at} is not in the cache, and the hub is not to be reached: connect to the network, unset "
        "HF_HUB_OFFLINE, or give the path of a folder"
    )


def _wanted(hub: Any, name: str, revision: str | None, file: str | None, there: Iterable[str]) -> list[str]:
    """The files of a repository that loading needs."""
    there = list(there)
    if MANIFEST in there:
        manifest = Path(hub.hf_hub_download(name, MANIFEST, revision=revision))
        listed = json.loads(manifest.read_text(encoding="utf-8")).get("files", {})
        return [MANIFEST, *(one for one in there if one in listed)]
    graphs = ranked(there)
    if not graphs:
        raise TorchlessError(
            f"{name} holds no ONNX graph that torchless knows: download its checkpoint and run `torchless export`"
        )
    names = [graph.file for graph in graphs]
    if file is None:
        chosen = names[0]
    else:
        fits = [one for one in names if file in (one, PurePosixPath(one).name, PurePosixPath(one).stem)]
        if len(fits) != 1:
            raise InputError(f"file={file!r}: {name} has {', '.join(names)}")
        chosen = fits[0]
    small = [
        one
        for one in there
        if one.endswith(COMPANIONS) and ("/" not in one or fnmatchcase(one, "[0-9]_*/config.json"))
    ]
    weights = [one for one in there if re.fullmatch(rf"{re.escape(chosen)}[._]data(_\d+)?", one)]
    return [chosen, *weights, *small]


def _unreachable(error: Exception) -> bool:
    """No answer at all, rather than a refusal."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"ConnectionError", "ConnectError", "TimeoutException", "Timeout", "OfflineModeIsEnabled"})


def _told(name: str, revision: str | None, error: Exception) -> TorchlessError:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    at = f" at {revision}" if revision else ""
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    if "RevisionNotFoundError" in kinds:
        return TorchlessError(f"{name} has no revision {revision!r}: give one of its branches, tags or commits")
    if "GatedRepoError" in kinds:
        return TorchlessError(f"{name} asks for its terms to be accepted: do so on its page, then set HF_TOKEN")
    if "RepositoryNotFoundError" in kinds:
        return TorchlessError(f"the hub has no model {name}, or it is private: check the name, or set HF_TOKEN")
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return TorchlessError(f"{name}{at} could not be stored ({error.strerror}): free space, or set HF_HOME")
    return TorchlessError(f"{name}{at} could not be downloaded ({reason}): {ADVICE}")


def located(path: Any, *, download_asked: bool, revision: str | None, file: str | None) -> Any:
    """The folder to open: `path` itself where it is one, else what the hub has of that name, if it may be asked."""
    if revision is not None and not download_asked:
        raise InputError(f"revision={revision!r} belongs to download=True")
    if not download_asked or not isinstance(path, str) or os.path.isdir(path):
        return path
    return download(path, revision=revision, file=file)
