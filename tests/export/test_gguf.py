"""GGUF files of every tensor type and architecture: against torch on the same numbers, in both dialects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
import tiny
import torch
import transformers

import torchless
from torchless.bundle import read_bundle
from torchless.decoder import Decoder
from torchless.errors import ExportError, QuantizationError
from torchless.export import export
from torchless.providers import choose_provider
from torchless.quantize import quantize
from torchless.session import open_session
from torchless.verify import verify

TOLERANCE = 1e-4
WIDE = dict(hidden_size=256, intermediate_size=256, head_dim=64)  # rows of whole blocks of the K types
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


def model(family: str = "Llama", seed: int = 7, **config: Any) -> Any:
    defaults: dict[str, Any] = dict(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
        pad_token_id=None, attn_implementation="eager", tie_word_embeddings=True,
    )  # fmt: skip
    if family == "Mistral":
        defaults["sliding_window"] = None
    made = getattr(transformers, f"{family}Config")(**defaults | config)
    return tiny.uneven(getattr(transformers, f"{family}ForCausalLM")(made), seed)


def logits(path: Path, ids: list[int], dialect: str = "fused") -> Any:
    """[S,V]: half of the tokens read at once, the others one by one."""
    bundle = read_bundle(path)
    graph = next(graph for graph in bundle.manifest.graphs if graph.dialect == dialect)
    decoder = Decoder(open_session(bundle, graph, choose_provider("cpu"), threads=1), bundle)
    cache, half = decoder.new_cache(), len(ids) // 2
    rows = [*decoder.extend(cache, ids[:half], keep=range(half))]
    step = decoder.stepper(cache)
    return np.stack(rows + [step([token])[0].copy() for token in ids[half:]])


def torch_logits(model: Any, ids: list[int]) -> Any:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def some_ids(seed: int = 0, length: int = 30) -> list[int]:
    return np.random.default_rng(seed).integers(0, 320, length).tolist()


@pytest.mark.parametrize(
    "kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]
)
def test_every_tensor_type_gives_the_logits_of_its_numbers(kind: str, tmp_path: Path) -> None:
    sizes = WIDE if kind.endswith("_K") else {}
    held = gguf_files.write(model(**sizes), tmp_path / "model.gguf", kind)
    wanted = torch_logits(held, some_ids())
    out = export(tmp_path / "model.gguf", tmp_path / "exact", precision="exact", dialect="all")
    for dialect in ("fused", "standard"):
        assert tiny.furthest(logits(out, some_ids(), dialect), wanted) < TOLERANCE, dialect
    plain = export(tmp_path / "model.gguf", tmp_path / "plain", precision="fp32")
    assert tiny.furthest(logits(plain, some_ids()), wanted) < TOLERANCE
    manifest = read_bundle(out).manifest
    assert [graph.precision for graph in manifest.graphs] == [
        kind.lower() if kind not in ("F32", "F16", "BF16") else "fp32", "fp32"
    ]  # fmt: skip
    if kind not in ("F32", "F16", "BF16"):  # four products a layer, and the table that the head shares
        assert manifest.recipe is not None and len(manifest.recipe["carried"]) == 2 * 4 + 1


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama, untied": ("Llama", {"tie_word_embeddings": False}, {}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}, {}),
    "llama, wide heads": ("Llama", {"head_dim": 32}, {}),
    "llama, another base": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}, {}),
    "llama, no groups": ("Llama", {"num_key_value_heads": 4}, {}),
    "mistral": ("Mistral", {}, {}),
    "qwen2": ("Qwen2", {}, {}),
    "qwen3": ("Qwen3", {}, {}),
    "qwen3, untied": ("Qwen3", {"tie_word_embeddings": False, "head_dim": 32}, {}),
    "linear": (
        "Llama", {"rope_parameters": LINEAR},
        {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0},
    ),
    "linear, as it was called": ("Llama", {"rope_parameters": LINEAR}, {"llama__rope__scale_linear": 4.0}),
    "yarn": (
        "Qwen2", {"rope_parameters": YARN}, {
            "qwen2__rope__scaling__type": "yarn", "qwen2__rope__scaling__factor": 4.0,
            "qwen2__rope__scaling__original_context_length": 16,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["F32", "Q4_1"])
def test_every_architecture_gives_the_logits_of_torch(name: str, kind: str, tmp_path: Path) -> None:
    family, config, metadata = CASES[name]
    held = gguf_files.write(model(family, seed=len(name), **config), tmp_path / "model.gguf", kind, **metadata)
    out = export(tmp_path / "model.gguf", tmp_path / "out", precision="exact", dialect="all", check=False)
    for dialect in ("fused", "standard"):
        assert tiny.furthest(logits(out, some_ids(1), dialect), torch_logits(held, some_ids(1))) < TOLERANCE


def test_llama_3_scaling_is_found_in_the_factors_of_its_frequencies(tmp_path: Path) -> None:
    made = model(rope_parameters=LLAMA3)
    plain = 1 / 1e4 ** (np.arange(0, 16, 2) / 16)
    factors = (plain / made.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    held = gguf_files.write(made, tmp_path / "model.gguf", tensors={"rope_freqs.weight": factors})
    out = export(tmp_path / "model.gguf", tmp_path / "out")
    assert tiny.furthest(logits(out, some_ids()), torch_logits(held, some_ids())) < TOLERANCE
    config = json.loads((out / "config.json").read_text())
    assert config["rope_scaling"] == {name: value for name, value in LLAMA3.items() if name != "rope_theta"}
    gguf_files.write(made, tmp_path / "odd.gguf", tensors={"rope_freqs.weight": factors[::-1].copy()})
    tiny.refused(tmp_path / "odd.gguf", "does not scale as Llama 3.1 does", tmp_path)


def test_matrices_of_unlike_types_in_one_product_stay_exact(tmp_path: Path) -> None:
    kinds = {
        "v_proj": "Q6_K",
        "q_proj": "Q4_K",
        "k_proj": "Q8_0",
        "up_proj": "Q4_0",
        "gate_proj": "Q4_1",
        "o_proj": "F16",
    }
    held = gguf_files.write(model(**WIDE), tmp_path / "model.gguf", "Q5_1", kinds=kinds)
    out = export(tmp_path / "model.gguf", tmp_path / "out", precision="exact")
    assert tiny.furthest(logits(out, some_ids()), torch_logits(held, some_ids())) < TOLERANCE
    recipe = read_bundle(out).manifest.recipe
    assert recipe is not None
    assert "layers.0.self_attn.qkv.weight" in recipe["carried"]
    assert "layers.0.self_attn.output.weight" not in recipe["carried"]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_what_is_carried_rounds_only_activations_and_says_so(kind: str, tmp_path: Path) -> None:
    held = gguf_files.write(model(), tmp_path / "model.gguf", kind)
    out = export(tmp_path / "model.gguf", tmp_path / "out")
    manifest = read_bundle(out).manifest
    assert manifest.recipe is not None and manifest.parity is not None
    assert manifest.recipe["name"] == f"gguf-{kind.lower()}"
    assert manifest.recipe["activations"] == "int8, by block"
    assert manifest.parity["exact_max_abs_error"] < TOLERANCE < manifest.parity["max_abs_error"]
    ids = some_ids()
    away = tiny.furthest(logits(out, ids), torch_logits(held, ids))
    assert away < 0.1 * np.abs(torch_logits(held, ids)).max()
    verify(out)
    with pytest.raises(QuantizationError, match=r"is quantized already \(gguf-.*--precision fp32"):
        quantize(out, tmp_path / "again", recipe="int8")
    quantize(
        export(tmp_path / "model.gguf", tmp_path / "plain", precision="fp32"), tmp_path / "int8", recipe="int8"
    )


def test_the_table_and_the_head_share_one_matrix_in_the_file(tmp_path: Path) -> None:
    gguf_files.write(model(), tmp_path / "model.gguf", "Q8_0")
    out = export(tmp_path / "model.gguf", tmp_path / "out", check=False)
    numbers = 320 * 64 + 2 * (64 * (64 + 64) + 64 * 64 + 3 * 64 * 96)
    assert (out / "model.onnx.data").stat().st_size < numbers * (1 + 4 / 32) + 4096 * 40


def test_a_file_brings_tokenizer_template_and_special_tokens(tmp_path: Path) -> None:
    template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    gguf_files.write(
        model(), tmp_path / "model.gguf", tokenizer__chat_template=template, tokenizer__ggml__eot_token_id=5
    )
    out = export(tmp_path / "model.gguf", tmp_path / "out")
    assert (out / "chat_template.jinja").read_text() == template
    assert read_bundle(out).manifest.special_tokens == {"bos": 0, "eos": [0, 5]}
    with torchless.load(out) as bundle:
        for text in tiny.SENTENCES:
            assert list(bundle.tokenizer.ids(text)) == tiny.bpe().encode(text).ids
        assert bundle("The future", max_new_tokens=4).text


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"general__architecture": "gemma"}, "the architecture 'gemma' is not supported"),
        ({"llama__expert_count": 8}, "llama.expert_count=8 is not supported"),
        ({"llama__attention__sliding_window": 7}, "llama.attention.sliding_window=7 is not supported"),
        ({"llama__rope__dimension_count": 8}, "llama.rope.dimension_count=8 is not supported"),
        ({"llama__attention__value_length": 8}, "llama.attention.value_length=8 is not supported"),
        (
            {"llama__rope__scaling__type": "longrope", "llama__rope__scaling__factor": 2.0},
            "llama.rope.scaling.type='longrope' is not supported",
        ),
        ({"llama__attention__causal": False}, "llama.attention.causal=False is not supported"),
        ({"llama__something__new": 3}, "llama.something.new=3 is not supported"),
        ({"llama__feed_forward_length": [96, 96]}, "llama.feed_forward_length=.* is not supported"),
        ({"llama__final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0 is not supported"),
        ({"tokenizer__ggml__pre": "tekken"}, "tokenizer.ggml.pre='tekken', whose way to split texts is not known"),
        ({"tokenizer__ggml__pre": "default"}, "tokenizer.ggml.pre='default'"),
        ({"tokenizer__ggml__model": "bert"}, "tokenizer.ggml.model='bert' is not supported"),
        ({"tokenizer__ggml__eos_token_id": 999}, "eos_token_id=999, which is none of its 320 tokens"),
        ({gguf_files.MERGES.replace(".", "__"): ["a b c"]}, "'a b c' among its merges"),
        ({gguf_files.MERGES.replace(".", "__"): ["zzz yyy"]}, "words that make none"),
        ({gguf_files.TYPES.replace(".", "__"): [1, 2]}, "2 types for 320 tokens"),
        ({gguf_files.TOKENS.replace(".", "__"): ["a"] * 320}, "the token 'a' twice"),
    ],
)  # fmt: skip
def test_what_is_not_implemented_is_refused_by_name(metadata: dict[str, Any], said: str, tmp_path: Path) -> None:
    gguf_files.write(model(), tmp_path / "model.gguf", **metadata)
    tiny.refused(tmp_path / "model.gguf", said, tmp_path)


def test_tensors_that_have_no_place_are_refused(tmp_path: Path) -> None:
    extra = {"blk.0.ffn_gate_inp.weight": np.ones((4, 64), np.float32)}
    gguf_files.write(model(), tmp_path / "model.gguf", tensors=extra)
    tiny.refused(tmp_path / "model.gguf", "no place in the graph: blk.0.ffn_gate_inp.weight", tmp_path)


def test_another_tokenizer_may_be_given(tmp_path: Path) -> None:
    gguf_files.write(model(), tmp_path / "model.gguf", tokenizer__ggml__pre="tekken")
    out = export(tmp_path / "model.gguf", tmp_path / "out", tokenizer=tiny.bpe(), check=False)
    with torchless.load(out) as bundle:
        assert list(bundle.tokenizer.ids("The future")) == tiny.bpe().encode("The future").ids


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    gguf_files.write(model(), tmp_path / "model.gguf")
    with pytest.raises(ExportError, match="precision='int3' is unknown"):
        export(tmp_path / "model.gguf", tmp_path / "out", precision="int3")  # type: ignore[arg-type]
