"""The Llama layout by family, with every option that changes its mathematics: against torch, in both dialects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers

import torchless
from torchless.bundle import read_bundle
from torchless.decoder import Decoder
from torchless.export import export
from torchless.providers import choose_provider
from torchless.session import open_session

TOLERANCE, PROMPT = 1e-4, 9
THETA = {"rope_theta": 10000.0}
LLAMA3 = THETA | {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = THETA | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SLIDE = {"use_sliding_window": True, "sliding_window": 5}

# What every family is tried with; for each, what it has of its own comes on top.
COMMON: dict[str, dict[str, Any]] = {
    "grouped heads": {},
    "plain heads": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "three heads of 12": {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 12},
    "heads wider than the model": {"head_dim": 20},
    "heads of 16": {"head_dim": 16},
    "heads of 2": {"head_dim": 2},
    "linear scaling": {"rope_parameters": THETA | {"rope_type": "linear", "factor": 4.0}},
    "llama 3's scaling": {"rope_parameters": LLAMA3},
    "yarn": {"rope_parameters": YARN},
    "yarn with weights": {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False}},
    "another base": {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    "large epsilon": {"rms_norm_eps": 0.1},
    "another activation": {"hidden_act": "gelu_pytorch_tanh"},
    "all at once": {
        "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10, "vocab_size": 101,
        "num_hidden_layers": 3, "tie_word_embeddings": True, "rms_norm_eps": 0.01, "rope_parameters": LLAMA3,
        "intermediate_size": 51,
    },
}  # fmt: skip
OWN: dict[str, dict[str, dict[str, Any]]] = {
    "Llama": {
        "biases": {"attention_bias": True, "mlp_bias": True},
        "biases of attention": {"attention_bias": True, "head_dim": 12},
        "dynamic scaling, not yet needed": {"rope_parameters": THETA | {"rope_type": "dynamic", "factor": 2.0}},
    },
    "Mistral": {"a window of 7": {"sliding_window": 7}, "a window of 1": {"sliding_window": 1}},
    "Qwen2": {"a window in the second layer": SLIDE | {"max_window_layers": 1}},
    "Qwen3": {
        "biases": {"attention_bias": True},
        "windows by layer": SLIDE | {"layer_types": ["sliding_attention", "full_attention"]},
    },
}
CASES = [
    (family, name, config) for family, own in OWN.items() for name, config in {**COMMON, **own}.items()
]  # fmt: skip


def llama(family: str, kind: str = "ForCausalLM", seed: int = 7, **config: Any) -> Any:
    """One of transformers' classes, of two layers of width 32; the vocabulary is that of `tiny.bpe`."""
    defaults: dict[str, Any] = dict(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=None,
        attn_implementation="eager",
    )  # fmt: skip
    if family == "Mistral":
        defaults["sliding_window"] = None
    if family == "Qwen3":
        defaults["head_dim"] = 8
    made = getattr(transformers, f"{family}Config")(**defaults | config)
    return tiny.uneven(getattr(transformers, family + kind)(made), seed)


def random_ids(model: Any, length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(length + seed).integers(0, model.config.vocab_size, length).tolist()


@dataclass(frozen=True)
class Case:
    model: Any  # of torch
    decoder: Decoder
    greedy: list[int]  # what transformers' generate adds to a prompt of PROMPT tokens

    def torch_logits(self, ids: list[int]) -> Any:
        """[S,V]."""
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].numpy()


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """What transformers' generate adds."""
    cache = getattr(model.config, "sliding_window", None) != 1  # transformers' own differs from its forward there
    theirs = model.generate(
        torch.tensor([ids]), max_new_tokens=count, do_sample=False, pad_token_id=0, use_cache=cache
    )
    return theirs[0, len(ids) :].tolist()


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}, {case[1]}")
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path, list[int]]:
    family, name, config = request.param
    model = llama(family, seed=len(name), **config)
    out = export(model, tmp_path_factory.mktemp("llama") / "out", dialect="all", check=False)
    return model, out, greedy(model, random_ids(model, PROMPT), 12)


@pytest.fixture(scope="module", params=["fused", "standard"])
def case(request: pytest.FixtureRequest, exported: tuple[Any, Path, list[int]]) -> Iterator[Case]:
    model, path, ids = exported
    bundle = read_bundle(path)
    graph = next(graph for graph in bundle.manifest.graphs if graph.dialect == request.param)
    session = open_session(bundle, graph, choose_provider("cpu"), threads=1)
    yield Case(model, Decoder(session, bundle), ids)


def test_the_logits_at_every_token_equal_torch(case: Case) -> None:
    for length in (1, 10, 64):
        ids = random_ids(case.model, length)
        ours = case.decoder.extend(case.decoder.new_cache(), ids, keep=range(length))
        assert tiny.furthest(ours, case.torch_logits(ids)) < TOLERANCE, length


def test_rows_of_a_ragged_batch_continued_token_by_token_equal_torch(case: Case) -> None:
    rows = [random_ids(case.model, length + 6) for length in (1, 2, 12)]
    cache = case.decoder.new_cache(len(rows))
    for index, row in enumerate(rows):
        case.decoder.extend(cache, row[:-6], row=index)
    step = case.decoder.stepper(cache)
    wanted = [case.torch_logits(row) for row in rows]
    for ahead in range(6, 0, -1):
        ours = step([row[-ahead] for row in rows])
        for logits, want in zip(ours, wanted, strict=True):
            assert tiny.furthest(logits, want[-ahead]) < TOLERANCE


def test_a_text_read_in_pieces_equals_the_whole(case: Case) -> None:
    ids = random_ids(case.model, 30)
    cache = case.decoder.new_cache()
    pieces = [case.decoder.extend(cache, ids[a:b], keep=range(b - a)) for a, b in ((0, 7), (7, 8), (8, 30))]
    assert tiny.furthest(np.concatenate(pieces), case.torch_logits(ids)) < TOLERANCE


def test_the_greedy_ids_are_those_of_transformers(case: Case) -> None:
    cache = case.decoder.new_cache()
    ours = [int(case.decoder.extend(cache, random_ids(case.model, PROMPT))[-1].argmax())]
    step = case.decoder.stepper(cache)
    while len(ours) < len(case.greedy):
        ours.append(int(step(ours[-1:])[0].argmax()))
    assert ours == case.greedy


@pytest.mark.parametrize("family", OWN)
@pytest.mark.parametrize("dialect", ["fused", "standard"])
def test_greedy_texts_are_those_of_transformers(family: str, dialect: Any, tmp_path: Path) -> None:
    model = llama(family, seed=3, **({"sliding_window": 6} if family == "Mistral" else {}))
    with torchless.load(export(model, tmp_path / "out", dialect=dialect)) as ours:
        for length in (1, 2, 9, 30):
            ids = random_ids(model, length)
            assert list(ours(ids, max_new_tokens=25).token_ids) == greedy(model, ids, 25)


@pytest.mark.parametrize("family", OWN)
def test_a_classifier_answers_as_transformers_does(family: str, tmp_path: Path) -> None:
    model = llama(family, "ForSequenceClassification", num_labels=3, pad_token_id=0)
    folder = tiny.save(model, tmp_path / "checkpoint", tiny.bpe())
    with torchless.load(export(folder, tmp_path / "out")) as ours:
        for text in tiny.SENTENCES:
            ids = tiny.bpe().encode(text).ids
            if len(ids) <= 64:
                with torch.no_grad():
                    wanted = model(torch.tensor([ids])).logits[0].softmax(-1).numpy()
                assert tiny.furthest(np.array(list(ours(text).scores.values())), wanted) < TOLERANCE


# What the config.json of a release says beside its sizes; heads in its proportion, the context as it is.
RELEASED: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 2 7B": ("Llama", {
        "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "pretraining_tp": 1, "rope_scaling": None, "tie_word_embeddings": False, "attention_bias": False,
    }),
    "Llama 3 8B": ("Llama", {
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "rope_scaling": None, "tie_word_embeddings": False, "pretraining_tp": 1,
    }),
    "Llama 3.2 1B": ("Llama", {
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True, "mlp_bias": False,
        "eos_token_id": [128, 8, 9],
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
    }),
    "SmolLM2 135M": ("Llama", {
        "hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 100000, "rope_scaling": None, "rope_interleaved": False,
        "tie_word_embeddings": True, "is_llama_config": True, "pretraining_tp": 1,
    }),
    "TinyLlama 1.1B": ("Llama", {
        "hidden_size": 64, "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": False,
    }),
    "Llama 2 stretched, of old days": ("Llama", {
        "max_position_embeddings": 16384, "rope_scaling": {"type": "linear", "factor": 4.0},
    }),
    "Mistral 7B v0.1": ("Mistral", {
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 32768, "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5, "sliding_window": 4096, "tie_word_embeddings": False,
    }),
    "Mistral 7B v0.3": ("Mistral", {
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": None, "max_position_embeddings": 32768,
        "rope_theta": 1000000.0, "rms_norm_eps": 1e-5, "sliding_window": None, "tie_word_embeddings": False,
    }),
    "Qwen2.5 0.5B": ("Qwen2", {
        "hidden_size": 56, "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768,
        "max_window_layers": 24, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 32768,
        "tie_word_embeddings": True, "use_mrope": False, "use_sliding_window": False,
    }),
    "Qwen2.5 7B with yarn": ("Qwen2", {
        "hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 1, "max_position_embeddings": 32768,
        "max_window_layers": 28, "rope_theta": 1000000.0, "sliding_window": 131072, "use_sliding_window": False,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
    }),
    "Qwen3 0.6B": ("Qwen3", {
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 40960,
        "attention_bias": False, "max_window_layers": 28, "rms_norm_eps": 1e-6, "rope_scaling": None,
        "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False,
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_a_config_as_it_was_released_in_shards_of_safetensors(name: str, tmp_path: Path) -> None:
    family, fields = RELEASED[name]
    scaling = {name: value for name, value in fields.items() if name.startswith("rope_")}
    model = llama(family, seed=len(name), **{name: value for name, value in fields.items() if name not in scaling})
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    (folder / "tokenizer.json").write_text(tiny.bpe_json(), encoding="utf-8")
    own = {"rope_theta": ..., "rope_scaling": ...} | scaling
    tiny.change_json(folder / "config.json", rope_parameters=..., layer_types=..., **own)
    model = type(model).from_pretrained(folder, attn_implementation="eager").eval()
    with torchless.load(export(folder, tmp_path / "out", check=False)) as ours:
        for length in (1, 40):
            ids = random_ids(model, length)
            assert list(ours(ids, max_new_tokens=12).token_ids) == greedy(model, ids, 12)
    bundle = read_bundle(tmp_path / "out")
    assert bundle.manifest.context_length == fields["max_position_embeddings"]
    decoder = Decoder(open_session(bundle, bundle.manifest.graphs[0], choose_provider("cpu"), threads=1), bundle)
    for length in (1, 300):  # past the first chunk, and past the first step of the cache
        ids = random_ids(model, length)
        logits = decoder.extend(decoder.new_cache(), ids, keep=range(length))
        with torch.no_grad():
            assert tiny.furthest(logits, model(torch.tensor([ids])).logits[0].numpy()) < TOLERANCE


@pytest.mark.parametrize(
    ("family", "config", "said"),
    [
        ("Llama", {"rope_parameters": THETA | {"rope_type": "longrope"}}, "'longrope' is not supported"),
        ("Llama", {"rope_parameters": THETA | {"rope_type": "proportional"}}, "'proportional' is not supported"),
        ("Llama", {"rope_parameters": THETA | {"partial_rotary_factor": 0.25}}, "partial_rotary_factor=0.25"),
        ("Mistral", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("Mistral", {"sliding_window": 0}, "sliding_window is 0"),
        ("Llama", {"attention_bias": True}, "lacks the tensor layers.0.self_attn.q_proj.bias"),
        ("Qwen2", {"hidden_act": "swiglu"}, "'swiglu' is not supported"),
        ("Llama", {"num_key_value_heads": 3}, "not a multiple of num_key_value_heads=3"),
        ("Llama", {"head_dim": 5}, "no halves to turn"),
        ("Llama", {"pretraining_tp": 2}, "pretraining_tp=2"),
        ("Qwen2", SLIDE | {"layer_types": ["sliding_attention"]}, "layer_types must name 2"),
        ("Qwen3", {"rope_parameters": THETA | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        (
            "Llama",
            {"rope_parameters": THETA | {"rope_type": "dynamic", "original_max_position_embeddings": 32}},
            r"past 32 tokens: export with context_length=32",
        ),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(
    family: str, config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = tiny.save(llama(family), tmp_path / "checkpoint", tiny.bpe())
    tiny.change_json(folder / "config.json", **config)
    tiny.refused(folder, said, tmp_path)


def test_a_shorter_context_has_shorter_tables_and_the_same_numbers(tmp_path: Path) -> None:
    """Where a scaling or a window is read of the config's own context, that still counts."""
    for number, config in enumerate(({"rope_parameters": THETA | {"rope_type": "yarn", "factor": 4.0}}, {})):
        model = llama("Llama", max_position_embeddings=4096, **config)
        whole, short = (
            read_bundle(export(model, tmp_path / f"{length}-{number}", context_length=length))
            for length in (None, 48)
        )
        assert (whole.manifest.context_length, short.manifest.context_length) == (4096, 48)
        saved = whole.file("model.onnx.data").stat().st_size - short.file("model.onnx.data").stat().st_size
        assert saved >= 2 * (4096 - 48) * 4 * 4 - 4096  # rows of cosines and of sines, of four float32 each
        ids = random_ids(model, 48)
        ours = [
            Decoder(open_session(one, one.manifest.graphs[0], choose_provider("cpu"), threads=1), one)
            for one in (whole, short)
        ]
        logits = [one.extend(one.new_cache(), ids, keep=range(48)) for one in ours]
        assert np.array_equal(*logits)


def test_dynamic_scaling_is_exported_for_the_length_that_was_trained(tmp_path: Path) -> None:
    scaling = THETA | {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32}
    model = llama("Llama", rope_parameters=scaling)
    bundle = read_bundle(export(model, tmp_path / "out", context_length=32))
    assert bundle.manifest.context_length == 32


@pytest.mark.parametrize(
    ("length", "said"),
    [
        (65, "context_length=65 is more than the 64 tokens"),
        (0, "context_length is 0"),
        ("9", "context_length is '9'"),
    ],
)
def test_a_context_that_cannot_be_is_refused(length: Any, said: str, tmp_path: Path) -> None:
    tiny.refused(llama("Llama"), said, tmp_path, context_length=length)
    tiny.refused(tiny.bert("fill-mask"), said.replace("64", "40"), tmp_path, context_length=length)
