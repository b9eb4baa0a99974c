"""What a GGUF file says of its model, in the words of Hugging Face: config.json, and the tensors' names.

What would change the mathematics and is not implemented is refused by its key and value; so is a key that is not
known here, since nothing says what it changes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from torchless.errors import ExportError
from torchless.export.weights import Float

CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
EMBEDDING, HEAD, FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Keys of the architecture that are read below, or say nothing about what is computed.
READ = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base", "rope.scale_linear",
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "attention.sliding_window", "tensor_data_layout",
)  # fmt: skip
# Others, with the values that change nothing.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "pooling_type": (0,),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "use_parallel_residual": (False,),
}


def _same(value: object, neutral: object) -> bool:
    return isinstance(value, bool | int | float) and value == neutral


class Keys:
    """The metadata of one architecture; a wrong type is an ExportError that names the key."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self._where = where
        self.architecture = metadata.get("general.architecture")
        if not isinstance(self.architecture, str) or self.architecture not in CLASSES:
            raise ExportError(
                f"{where}: the architecture {self.architecture!r} is not supported (supported: "
                f"{', '.join(CLASSES)})"
            )
        prefix = f"{self.architecture}."
        self._of = {key[len(prefix) :]: value for key, value in metadata.items() if key.startswith(prefix)}
        for key, value in self._of.items():
            if key not in READ and not any(_same(value, one) for one in NEUTRAL.get(key, ())):
                raise self.refusal(key)

    def refusal(self, key: str) -> ExportError:
        shown = repr(self._of.get(key))
        return ExportError(
            f"{self._where}: {self.architecture}.{key}={shown[:60]} is not supported: torchless cannot export it"
        )

    def whole(self, key: str, default: int | None = None) -> int:
        value = self._of.get(key, default)
        if value is None:
            raise ExportError(f"{self._where} lacks {self.architecture}.{key}: is it a whole model?")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refusal(key)
        return value

    def number(self, key: str, default: float) -> float:
        """As it was before it was stored in 32 bits: the shortest decimal that gives the same."""
        value = self._of.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.refusal(key)
        return float(str(np.float32(value)))

    def get(self, key: str) -> Any:
        return self._of.get(key)


def config_of(
    metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Float], where: str
) -> dict[str, Any]:
    """config.json in transformers' terms. shapes: of the tensors; read: gives one as float32.

    Raises ExportError for an architecture or a value that is not supported.
    """
    keys = Keys(metadata, where)
    width, heads = keys.whole("embedding_length"), keys.whole("attention.head_count")
    context = keys.whole("context_length")
    size = keys.whole("attention.key_length", max(1, width // heads))
    for key in ("attention.value_length", "rope.dimension_count"):  # other values, or a part that does not turn
        if keys.whole(key, size) != size:
            raise keys.refusal(key)
    window = keys.get("attention.sliding_window")
    if window is not None and window != 0 and (not isinstance(window, int) or window < context):
        raise keys.refusal("attention.sliding_window")
    if len(shapes.get(EMBEDDING, ())) != 2:
        raise ExportError(f"{where} has no matrix {EMBEDDING}: is it a whole model?")
    config: dict[str, Any] = {
        "model_type": keys.architecture,
        "architectures": [CLASSES[str(keys.architecture)]],
        "vocab_size": shapes[EMBEDDING][0],
        "hidden_size": width,
        "intermediate_size": keys.whole("feed_forward_length"),
        "num_hidden_layers": keys.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.whole("attention.head_count_kv", heads),
        "head_dim": size,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon", 0),
        "rope_theta": keys.number("rope.freq_base", 10000),
        "rope_scaling": None,
        "tie_word_embeddings": HEAD not in shapes,
        "attention_bias": "blk.0.attn_q.bias" in shapes,
    }
    if keys.architecture == "llama":
        config["mlp_bias"] = "blk.0.ffn_down.bias" in shapes
    config["rope_scaling"] = _scaling(keys, config, read(FACTORS) if FACTORS in shapes else None, where)
    return config


def _scaling(keys: Keys, config: Mapping[str, Any], factors: Float | None, where: str) -> dict[str, Any] | None:
    """rope_scaling, or None for plain rotary positions."""
    kind = keys.get("rope.scaling.type")
    old = keys.get("rope.scale_linear")
    factor = keys.number("rope.scaling.factor", 0 if old is None else keys.number("rope.scale_linear", 1))
    if factors is not None:
        if kind not in (None, "none") or factor not in (0, 1):
            raise ExportError(f"{where} has {FACTORS} and rope.scaling besides: only one can be exported")
        return _llama3(factors, config, where)
    if kind == "none" or (kind in (None, "linear") and factor in (0, 1)):
        return None
    if factor <= 0:
        raise keys.refusal("rope.scaling.factor")
    if kind in (None, "linear"):
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise keys.refusal("rope.scaling.type")
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.whole(
            "rope.scaling.original_context_length", config["max_position_embeddings"]
        ),
        "beta_fast": keys.number("rope.scaling.yarn_beta_fast", 32),
        "beta_slow": keys.number("rope.scaling.yarn_beta_slow", 1),
    }


def _llama3(factors: Float, config: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """Llama 3.1's scaling, of which a GGUF keeps only what every frequency is divided by [E/2].

    The four numbers behind it are found again by trying those that Meta's models have, with any power of two for
    the length that was trained; what none of them gives is refused.
    """
    size = config["head_dim"]
    if factors.shape != (size // 2,):
        raise ExportError(f"{where}: {FACTORS} has shape {list(factors.shape)}, not [{size // 2}]")
    if np.array_equal(factors, np.ones_like(factors)):
        return None
    frequencies = 1 / np.float64(config["rope_theta"]) ** (np.arange(0, size, 2) / size)
    factor = float(factors.max())
    for trained in (1 << power for power in range(4, 21)):
        turns = trained * frequencies / (2 * math.pi)
        share = np.clip((turns - 1) / (4 - 1), 0, 1)
        if np.allclose(1 / ((1 - share) / factor + share), factors, rtol=1e-5):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": trained,
            }
    raise ExportError(f"{where}: {FACTORS} does not scale as Llama 3.1 does: torchless cannot export it")


def hugging_face_name(name: str) -> str:
    """A tensor's name in the checkpoint that the file was made from; one that is not known stays as it is."""
    stem, _, end = name.rpartition(".")
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if found and found[2] in BLOCK:
        return f"model.layers.{found[1]}.{BLOCK[found[2]]}.{end}"
    return f"{NAMES[stem]}.{end}" if stem in NAMES else name
