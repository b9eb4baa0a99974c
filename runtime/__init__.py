"""torchless: run GPT and BERT without torch. `load` opens a bundle and returns its task's class."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from torchless.errors import (
    BundleError,
    CancelledError,
    ContextLengthError,
    ExportError,
    GenerationError,
    InputError,
    MemoryLimitError,
    ProviderError,
    QuantizationError,
    TokenizerError,
    TorchlessError,
)
from torchless.tasks import TASKS
from torchless.version import __version__

if TYPE_CHECKING:
    from torchless.likelihood import Score
    from torchless.providers.choose import Asked
    from torchless.providers.options import CPU, CUDA, CoreML, DirectML, OpenVINO, TensorRT
    from torchless.reply import Generation
    from torchless.state import State
    from torchless.tasks.embedding import Embedding, Match
    from torchless.tasks.fill_mask import Candidate, FillMask
    from torchless.tasks.multiple_choice import Choice, MultipleChoice
    from torchless.tasks.next_sentence import NextSentencePrediction
    from torchless.tasks.question_answering import Answer, QuestionAnswering
    from torchless.tasks.text_classification import Classification, TextClassification
    from torchless.tasks.text_generation import TextGeneration
    from torchless.tasks.text_ranking import Ranked, TextRanking
    from torchless.tasks.token_classification import Entity, TokenClassification
    from torchless.tasks.zero_shot import ZeroShotClassification

# Where each public name lives: numpy and onnxruntime are imported with the first model, not before.
_NAMES = {
    "Answer": "tasks.question_answering",
    "CPU": "providers.options",
    "CUDA": "providers.options",
    "CoreML": "providers.options",
    "DirectML": "providers.options",
    "OpenVINO": "providers.options",
    "TensorRT": "providers.options",
    "Candidate": "tasks.fill_mask",
    "Choice": "tasks.multiple_choice",
    "Classification": "tasks.text_classification",
    "Entity": "tasks.token_classification",
    "Generation": "reply",
    "Match": "tasks.embedding",
    "Ranked": "tasks.text_ranking",
    "Score": "likelihood",
    "State": "state",
    **{task.cls: f"tasks.{task.module}" for task in TASKS.values()},
}

__all__ = [
    "CPU",
    "CUDA",
    "Answer",
    "BundleError",
    "CancelledError",
    "Candidate",
    "Choice",
    "Classification",
    "ContextLengthError",
    "CoreML",
    "DirectML",
    "Embedding",
    "Entity",
    "ExportError",
    "FillMask",
    "Generation",
    "GenerationError",
    "InputError",
    "Match",
    "MemoryLimitError",
    "MultipleChoice",
    "NextSentencePrediction",
    "OpenVINO",
    "ProviderError",
    "QuantizationError",
    "QuestionAnswering",
    "Ranked",
    "Score",
    "State",
    "TensorRT",
    "TextClassification",
    "TextGeneration",
    "TextRanking",
    "TokenClassification",
    "TokenizerError",
    "TorchlessError",
    "ZeroShotClassification",
    "__version__",
    "load",
]


def load(
    bundle: str | os.PathLike[str],
    *,
    task: str | None = None,
    provider: Asked = "cpu",
    threads: int | None = None,
    spin: bool = False,
    memory_limit: int | None = None,
    dialect: str | None = None,
    file: str | None = None,
    strict: bool = False,
    verify: bool = False,
    download: bool = False,
    revision: str | None = None,
) -> Any:
    """Open a bundle: a TextGeneration, TextClassification, FillMask, ..., by the bundle's task.

    task: another one that the same head can do, such as "zero-shot-classification" or "text-ranking" with a
    bundle for text-classification. provider: "cpu", "cuda", "tensorrt", "openvino", "directml" or "coreml", or its
    options (CUDA(device_id=1)), or a list of them of which the first that can run is taken, or "auto" for the best
    one that is here. strict: raise if that provider leaves any node to the CPU; `model.provider.placement` tells.
    threads: for one operator, by default one a physical core. spin: let idle threads busy-wait between calls.
    memory_limit: bytes that the model may take for its packed weights, for what calls compute with, and for texts'
    keys and values, on the CPU, CUDA and TensorRT; a call that needs more is a MemoryLimitError.
    dialect: "fused" or "standard", and file: that of one graph, by default the first that suits the provider.
    verify: hash the weights too, not only everything else. download: where `bundle` is no folder, it is a model of
    the Hugging Face hub, "org/name", whose files go into the hub's cache; revision: its branch, tag or commit.

    Raises BundleError for a folder that is not a sound bundle, InputError for a task that its head cannot do and
    for what is no path, ProviderError for a provider that cannot run, MemoryLimitError for a limit that is too low
    for a single token.
    """
    from torchless.arguments import check_flag
    from torchless.model import open_as
    from torchless.opening import open_folder
    from torchless.providers.first import Settings

    check_flag("download", download)
    if download or revision is not None:
        from torchless.download import located

        bundle = located(bundle, download_asked=download, revision=revision, file=file)
    opened = open_folder(bundle, task=task, file=file, verify=verify)
    own = opened.manifest.task
    if own not in TASKS:
        raise BundleError(
            f"{opened.path} is for the task {own!r}, which this torchless does not know: upgrade torchless"
        )
    able = [name for name, other in TASKS.items() if other.head == TASKS[own].head]
    if task is not None and not (isinstance(task, str) and task in able):
        raise InputError(f"task={task!r}: {opened.path} has a head for {own} (it can do: {', '.join(able)})")
    kind = __getattr__(TASKS[task or own].cls)
    return open_as(kind, opened, Settings(provider, threads, spin, dialect, file, strict, memory_limit))


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"torchless.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'torchless' has no attribute {name!r}")
