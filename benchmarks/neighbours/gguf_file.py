"""A GPT-2 checkpoint as llama.cpp's GGUF file in float32, from its tensors as llama.cpp's converter writes it."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

TRANSPOSED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")  # transformers keeps them as [in, out]


def convert(source: str, out: str, form: str) -> int:
    folder = Path(source)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    Path(out).mkdir()
    writer = gguf.GGUFWriter(Path(out) / "model.gguf", "gpt2")
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    add_vocabulary(writer, folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config["n_layer"])
    read = 0
    for name, tensor in tensors_of(folder).items():
        given = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if given is None:
            raise SystemExit(f"GGUF has no name for {name}")
        writer.add_tensor(given, tensor)
        read += 0 if given.startswith("position_embd") else tensor.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    """The checkpoint's tensors, matrices as [out, in]; the head is the table of tokens and has none of its own."""
    return {
        name: np.ascontiguousarray(tensor.T) if name.endswith(TRANSPOSED) else tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }


def add_vocabulary(writer: gguf.GGUFWriter, folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    end = vocabulary["<|endoftext|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token == end else gguf.TokenType.NORMAL for token in range(len(tokens))]
    )
    writer.add_token_merges([line for line in merges if line and not line.startswith("#version")])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
