"""A cache of float16, as a float16 graph has it: half the memory, and states that keep it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
import tiny
from onnx import TensorProto

import torchless
from torchless.bundle import Bundle
from torchless.decoder import Decoder
from torchless.errors import BundleError, InputError
from torchless.providers import choose_graph, choose_provider
from torchless.quantize import quantize
from torchless.session import open_session

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16


@pytest.fixture(scope="module")
def half_gpt(gpt_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> torchless.TextGeneration:
    return torchless.load(quantize(gpt_bundle, tmp_path_factory.mktemp("half") / "gpt", recipe="fp16"))


def test_the_cache_takes_half_the_memory(half_gpt: Any, gpt: Any) -> None:
    caches = [model.decoder.new_cache(3) for model in (half_gpt, gpt)]
    for model, cache in zip((half_gpt, gpt), caches, strict=True):
        model.decoder.extend(cache, [5, 1, 4], row=1)
    sizes = [sum(part.nbytes for layer in cache.layers(0, 3) for part in layer) for cache in caches]
    assert 0 < 2 * sizes[0] == sizes[1]
    assert [cache.dtype for cache in (*caches, caches[0].copy())] == [np.float16, np.float32, np.float16]
    assert tiny.furthest(*(cache.filled(1).astype(np.float32) for cache in caches)) < 0.01


def test_rows_beams_and_drafts_go_on_from_a_float16_cache(half_gpt: Any) -> None:
    prompts = [[5, 1, 4], [9], list(range(1, 30))]
    alone = [half_gpt(ids, max_new_tokens=8, num_beams=2).token_ids for ids in prompts]
    assert [one.token_ids for one in half_gpt(prompts, max_new_tokens=8, num_beams=2)] == alone


def test_a_state_in_float16_is_saved_loaded_and_forked(half_gpt: Any, tmp_path: Path) -> None:
    ids = list(range(1, 25))
    state = half_gpt.state(ids)
    state.save(tmp_path / "s.safetensors")
    kept = safetensors.numpy.load_file(tmp_path / "s.safetensors")
    assert kept["past"].dtype == np.float16 and np.abs(kept["past"]).max() > 0
    assert np.array_equal(kept["past"], state._cache.filled())
    expected = half_gpt([*ids, 7], max_new_tokens=6)
    for one in (half_gpt.load_state(tmp_path / "s.safetensors"), state.fork(), state):
        assert half_gpt([*ids, 7], max_new_tokens=6, state=one) == expected


def test_a_float32_state_does_not_fit_a_float16_bundle(half_gpt: Any, gpt: Any, tmp_path: Path) -> None:
    gpt.state([1, 2, 3]).save(tmp_path / "s.safetensors")
    with pytest.raises(InputError, match=r"is of another bundle, whose graph or weights differ"):
        half_gpt.load_state(tmp_path / "s.safetensors")
    with pytest.raises(InputError, match=r"the state is of another bundle"):
        half_gpt([1, 2, 3], state=gpt.state([1, 2]))


@pytest.mark.parametrize(
    ("name", "kind", "match"),
    [
        ("present.1.value", FLOAT, r"cache must be of float32 or float16.*tensor\(float\), tensor\(float16\) and"),
        ("logits", FLOAT16, r"its logits of float32 \(they are tensor\(float16\) and tensor\(float16\)\)"),
    ],
)
def test_a_graph_of_other_types_is_refused_when_it_is_loaded(
    name: str, kind: int, match: str, half_gpt: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(half_gpt.bundle.path, tmp_path / "copy"))
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    output = next(value for value in model.graph.output if value.name == name)
    output.type.tensor_type.elem_type = kind
    node = next(node for node in model.graph.node if name in node.output)
    if name == "logits":
        next(a for a in node.attribute if a.name == "to").i = kind
    else:
        node.output[list(node.output).index(name)] = "kept"
        model.graph.node.append(onnx.helper.make_node("Cast", ["kept"], [name], to=kind))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    bundle = Bundle(folder, half_gpt.bundle.manifest)
    provider = choose_provider("cpu")
    session = open_session(bundle, choose_graph(bundle, provider), provider)
    with pytest.raises(BundleError, match=match):
        Decoder(session, bundle)
