"""One file a model family, named by the config's model_type; each reads like its paper's diagram.

A family file offers `HEADS`, what stands on the body in each Hugging Face class of the family, and
`build(b, config, weights, head, pooling)`, which writes the graph and returns a Facts. How to add one is in
docs/families.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from torchless.manifest import CacheLayout


@dataclass(frozen=True)
class Family:
    """The file of a model_type, and what the names of its Hugging Face classes begin with."""

    file: str
    prefix: str


FAMILIES = {
    "albert": Family("albert", "Albert"),
    "bert": Family("bert", "Bert"),
    "camembert": Family("roberta", "Camembert"),
    "deberta-v2": Family("deberta_v2", "DebertaV2"),
    "distilbert": Family("distilbert", "DistilBert"),
    "electra": Family("electra", "Electra"),
    "gpt2": Family("gpt2", "GPT2"),
    "llama": Family("llama", "Llama"),
    "mistral": Family("llama", "Mistral"),
    "modernbert": Family("modernbert", "ModernBert"),
    "mpnet": Family("mpnet", "MPNet"),
    "openai-gpt": Family("openai_gpt", "OpenAIGPT"),
    "qwen2": Family("llama", "Qwen2"),
    "qwen3": Family("llama", "Qwen3"),
    "roberta": Family("roberta", "Roberta"),
    "xlm-roberta": Family("roberta", "XLMRoberta"),
}


@dataclass(frozen=True)
class Facts:
    """What the manifest says of the model that a family has written."""

    context_length: int
    vocab_size: int
    cache: CacheLayout | None = None
    labels: int | None = None  # columns of a classifier
    segments: int | None = None  # kinds of segments, of an encoder that reads them
    carried: tuple[str, ...] = ()  # matrices that stayed in the source's own blocks
