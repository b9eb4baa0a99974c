"""The models of benchmarks/generation.py: one GPT-2 checkpoint, and what each contender makes of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import environments

ROOT = Path(__file__).parents[1]
NEIGHBOURS = Path(__file__).parent / "neighbours"
WORKER = NEIGHBOURS / "worker.py"
CONTEXT = 1024
VOCABULARY = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}  # OpenAI's names, and Hugging Face's


class ContenderError(Exception):
    """This contender cannot take part, and why."""


@dataclass(frozen=True)
class Contender:
    """One program with one kind of weights.

    module: the file in neighbours/ that runs it, in `environment`. form: what its converter makes, from `source`
    (another contender's model) or from the checkpoint; the converter is another module or environment where it
    says so, None being the environment that runs this. bits: of most weights.
    """

    name: str
    module: str
    environment: str
    form: str
    bits: int
    source: str | None = None
    converter: str = ""
    converts_in: str | None = ""
    batches: bool = True

    @property
    def is_ours(self) -> bool:
        return self.environment == environments.OURS


def _ours(form: str, bits: int, source: str | None = None) -> Contender:
    return Contender(f"torchless {form}", "ours", environments.OURS, form, bits, source, converts_in=None)


def _llama(form: str, bits: int, how: str = "", *, module: str = "llama", **conversion: Any) -> Contender:
    settings = {"source": "llama.cpp F32", "converter": "llama"} | conversion
    return Contender(f"llama.cpp {form}{how}", module, "llama.cpp", form, bits, batches=False, **settings)


CONTENDERS = {
    one.name: one
    for one in (
        _ours("fp32", 32),
        *(_ours(form, bits, "torchless fp32") for form, bits in (("int8", 8), ("int4", 4), ("int4-all", 4))),
        Contender("torch fp32", "pytorch", "torch", "fp32", 32),
        Contender("optimum-onnx fp32", "optimum_onnx", "optimum", "fp32", 32),
        Contender("optimum-onnx int8", "optimum_onnx", "optimum", "int8", 8, "optimum-onnx fp32"),
        Contender("CTranslate2 fp32", "ct2", "ctranslate2", "float32", 32, converts_in="ctranslate2-converter"),
        Contender("CTranslate2 int8", "ct2", "ctranslate2", "int8", 8, converts_in="ctranslate2-converter"),
        _llama("F32", 32, source=None, converter="gguf_file", converts_in="gguf"),
        _llama("Q8_0", 8),
        _llama("Q4_0", 4),
        _llama("Q8_0", 8, " no flash", module="llama_plain"),
        _llama("Q4_0", 4, " no flash", module="llama_plain"),
    )
}


@dataclass(frozen=True)
class Models:
    """Where the models lie, the environments that make and run them, and the script that does so there."""

    folder: Path
    environments: Path
    contenders: Mapping[str, Contender] = field(default_factory=lambda: CONTENDERS)
    worker: Path = WORKER

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def path(self, one: Contender) -> Path:
        return self.folder / one.name.replace(" ", "-")

    def python(self, environment: str | None) -> Path:
        """The interpreter of an environment. Raises ContenderError where there is none."""
        if environment is None:
            return Path(sys.executable)
        place = self.environments / environment
        if environments.record_of(place) is None:
            command = f"benchmarks/environments.py {self.environments} --only {environment}"
            raise ContenderError(f"the environment {environment} is missing: run {command}")
        return environments.python_of(place)

    def make(self, one: Contender) -> dict[str, Any]:
        """The model where it is missing, its sources first. Returns what its converter told."""
        path = self.path(one)
        told = path.with_name(f"{path.name}.json")
        changed = changed_at() if one.is_ours else 0.0
        if not told.is_file() or told.stat().st_mtime < changed:
            if one.source is not None:
                self.make(self.contenders[one.source])
            source = self.checkpoint if one.source is None else self.path(self.contenders[one.source])
            python = self.python(one.environment if one.converts_in == "" else one.converts_in)
            shutil.rmtree(path, ignore_errors=True)
            print(f"making {one.name} ...", file=sys.stderr)
            command = [python, self.worker, "convert", one.converter or one.module, source, path, one.form]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=clean())
            if done.returncode:
                raise ContenderError(f"it was not converted: {last_line(done.stderr)}")
            told.write_text(done.stdout.splitlines()[-1])
        found: dict[str, Any] = json.loads(told.read_text())
        return found


def changed_at() -> float:
    """When what converts our models was written last."""
    return max(file.stat().st_mtime for folder in ("export", "quantize") for file in (ROOT / folder).rglob("*.py"))


def clean() -> dict[str, str]:
    """The environment's variables without Python's: each contender sees its own packages only, and no network."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}


def last_line(told: str) -> str:
    lines = [line for line in told.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def write_checkpoint(models: Models, vocabulary: Path, quick: bool) -> None:
    """GPT-2 124M of random weights (or a little one of two layers) as a Hugging Face folder, with its tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    small: dict[str, Any] = {"n_layer": 2, "n_embd": 256, "n_head": 4} if quick else {}
    config = transformers.GPT2Config(**small)
    transformers.GPT2LMHeadModel(config).save_pretrained(models.checkpoint)
    for name, hugging_face in VOCABULARY.items():
        shutil.copy(vocabulary / name, models.checkpoint / hugging_face)
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": CONTEXT}
    (models.checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    fast = transformers.GPT2TokenizerFast.from_pretrained(models.checkpoint)
    fast.backend_tokenizer.save(str(models.checkpoint / "tokenizer.json"))


def tokenize(models: Models, text: str) -> tuple[list[int], Callable[[list[int]], str]]:
    """The text's tokens, and what turns tokens into text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(models.checkpoint / "tokenizer.json"))
    return tokenizer.encode(text).ids, tokenizer.decode
