"""Small GGUF files, written with the gguf package from models of transformers, and what they then hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tiny
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

STEMS = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
K_SCALES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}  # where a block keeps its half-precision numbers
TOKENS, TYPES, MERGES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges"))


def ggml_name(name: str) -> str:
    stem, end = name.rsplit(".", 1)
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    return f"blk.{found[1]}.{STEMS[found[2]]}.{end}" if found else f"{STEMS[stem]}.{end}"


def in_pairs(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as llama.cpp turns them: convert_hf_to_gguf's permutation."""
    return array.reshape(heads, 2, len(array) // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def in_halves(array: np.ndarray, heads: int) -> np.ndarray:
    """Its inverse."""
    return array.reshape(heads, len(array) // heads // 2, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def encode(array: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """As bytes of this type: rounded by gguf, or, for the K types that it cannot write, blocks of random bytes."""
    if kind not in K_SCALES:
        return quants.quantize(array, GGMLQuantizationType[kind])
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    generator = np.random.default_rng(seed)
    raw = generator.integers(0, 256, (len(array), array.shape[1] // block, size), dtype=np.uint8)
    for at in K_SCALES[kind]:
        halves = generator.uniform(2e-5, 1e-4, raw.shape[:2]).astype("<f2")
        raw[..., at : at + 2] = halves[..., None].view(np.uint8)
    return raw.reshape(len(array), -1)


def write(
    model: Any,
    path: Path,
    kind: str = "F32",
    *,
    kinds: dict[str, str] | None = None,
    without: tuple[str, ...] = (),
    tensors: dict[str, np.ndarray] | None = None,
    **metadata: Any,
) -> Any:
    """Write the model as a GGUF file with the tokenizer of `tiny.bpe`, and give the model that it then holds.

    kind: of every matrix; kinds: of those whose names match a pattern. without: keys left out. metadata: further
    keys, dots written as __, that replace those of the model's config. tensors: others besides.
    """
    config, family = model.config, model.config.model_type
    architecture = "llama" if family == "mistral" else family
    rope = config.rope_parameters
    own: dict[str, Any] = {
        "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads, "attention.key_length": head_size(config),
        "attention.value_length": head_size(config), "rope.dimension_count": head_size(config),
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps, "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": config.vocab_size,
    }  # fmt: skip
    entries = {f"{architecture}.{key}": value for key, value in own.items()} | vocabulary(tiny.bpe())
    entries |= {key.replace("__", "."): value for key, value in metadata.items()}
    writer = gguf.GGUFWriter(path, str(entries.pop("general.architecture", architecture)))
    add(writer, {key: value for key, value in entries.items() if key not in without})
    state = {}
    for index, (name, tensor) in enumerate(sorted(model.state_dict().items())):
        array = tensor.numpy()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        heads = 0
        if architecture == "llama" and re.search(r"[qk]_proj\.", name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        array = in_pairs(array, heads) if heads else array
        chosen = next((one for pattern, one in (kinds or {}).items() if re.search(pattern, name)), kind)
        if array.ndim < 2 or chosen == "F32":
            writer.add_tensor(ggml_name(name), np.ascontiguousarray(array))
        else:
            raw = encode(np.ascontiguousarray(array), chosen, index)
            bits = raw if raw.dtype == np.uint8 else raw.view(np.uint8).reshape(len(raw), -1)
            writer.add_tensor(ggml_name(name), bits, raw_dtype=GGMLQuantizationType[chosen])
            array = quants.dequantize(raw, GGMLQuantizationType[chosen])
        state[name] = torch.from_numpy(np.ascontiguousarray(in_halves(array, heads) if heads else array)).float()
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model


def head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def vocabulary(tokenizer: Any, pre: str = "gpt-2") -> dict[str, Any]:
    """The metadata of a byte-level BPE."""
    content = json.loads(tokenizer.to_str())
    words = content["model"]["vocab"]
    added = {token["content"]: 3 if token["special"] else 4 for token in content["added_tokens"]}
    tokens = sorted(words | {t["content"]: t["id"] for t in content["added_tokens"]}, key=tokenizer.token_to_id)
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in content["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, TOKENS: tokens,
        TYPES: np.array([added.get(token, 1) for token in tokens], np.int32), MERGES: merges,
        "tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.bos_token_id": 0,
    }  # fmt: skip


def add(writer: Any, entries: dict[str, Any]) -> None:
    for key, value in entries.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_array(key, value.tolist() if isinstance(value, np.ndarray) else value)
