"""One activation grid on every path: a row's answer does not depend on its neighbours, padding, or chunks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny
from onnx import helper

from torchless.bundle import Bundle, read_bundle
from torchless.decoder import Decoder
from torchless.encoder import Encoder
from torchless.export import export
from torchless.providers import choose_provider
from torchless.quantize import quantize
from torchless.quantize.draft import CONTRIB, Draft
from torchless.quantize.matrices import find_matrices
from torchless.quantize.recipes import RECIPES
from torchless.quantize.weights import int8_columns
from torchless.session import open_session

CHUNKS = (5, 16, 2, 20)
LENGTHS = (43, 9, 28)
RECIPE_NAMES = tuple(name for name, recipe in RECIPES.items() if recipe.dialect == "fused")
TENTH = 0.1


def per_tensor(source: Bundle, folder: Path) -> Bundle:
    """The plain int8 that others ship: the same int8 weights, one scale for a whole activation."""
    folder.mkdir()
    draft = Draft(source.file("model.onnx"), folder / "model.onnx")
    for matrix in find_matrices(draft)[0]:
        if any(node.op_type != "MatMul" for node in matrix.readers):
            continue
        codes, scale = int8_columns(matrix.name, draft.array(matrix.name))
        weight, scales = draft.add(f"{matrix.name}.int8", codes), draft.add(f"{matrix.name}.scale", scale)
        for node in matrix.readers:
            inputs = [node.input[0], weight, scales]
            draft.replace(
                node, [helper.make_node("DynamicQuantizeMatMul", inputs, list(node.output), domain=CONTRIB)]
            )
    draft.save()
    graph = dataclasses.replace(source.manifest.graphs[0], signed_int8=True)
    return Bundle(folder, dataclasses.replace(source.manifest, graphs=(graph,)))


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    export(tiny.gpt2(n_embd=60, n_head=3), folder / "fp32", tokenizer=tiny.bpe(), check=False)
    return made(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    model = tiny.bert("fill-mask", hidden_size=60, num_attention_heads=3, max_position_embeddings=48)
    export(model, folder / "fp32", tokenizer=tiny.wordpiece(), check=False)
    return made(folder)


def made(folder: Path) -> dict[str, Bundle]:
    for recipe in RECIPE_NAMES:
        quantize(folder / "fp32", folder / recipe, recipe=recipe)
    bundles = {name: read_bundle(folder / name) for name in ("fp32", *RECIPE_NAMES)}
    return bundles | {"per tensor": per_tensor(bundles["fp32"], folder / "per-tensor")}


def rows_of(bundle: Bundle) -> list[list[int]]:
    generator = np.random.default_rng(5)
    return [generator.integers(5, bundle.manifest.vocab_size, length).tolist() for length in LENGTHS]


def session(bundle: Bundle):
    return open_session(bundle, bundle.manifest.graphs[0], choose_provider("cpu"), threads=1)


def at_once(bundle: Bundle) -> np.ndarray:
    """The first row alone, [S,V]."""
    decoder, ids = Decoder(session(bundle), bundle), rows_of(bundle)[0]
    return decoder.extend(decoder.new_cache(), ids, keep=range(len(ids))).copy()


def in_chunks(bundle: Bundle) -> np.ndarray:
    decoder, ids = Decoder(session(bundle), bundle), rows_of(bundle)[0]
    cache, ends = decoder.new_cache(), np.cumsum(CHUNKS)
    parts = [ids[end - size : end] for size, end in zip(CHUNKS, ends, strict=True)]
    assert ends[-1] == len(ids)
    return np.concatenate([decoder.extend(cache, part, keep=range(len(part))).copy() for part in parts])


def decoded(bundle: Bundle, together: int) -> np.ndarray:
    """The first row's logits [9,V] for nine further tokens, one at a time, beside the rows after it."""
    decoder, rows = Decoder(session(bundle), bundle), rows_of(bundle)[:together]
    cache = decoder.new_cache(together)
    for index, row in enumerate(rows):
        decoder.extend(cache, row[:20], row=index)
    step = decoder.stepper(cache)
    return np.stack([step([row[i] for row in rows])[0].copy() for i in range(9)])


def padded_batch(bundle: Bundle, together: int) -> list[np.ndarray]:
    """Each row's outputs [S,V], from batches of `together` rows padded to the longest."""
    encoder, rows = Encoder(session(bundle), bundle, "logits"), rows_of(bundle)
    answers = []
    for start in range(0, len(rows), together):
        batch = rows[start : start + together]
        ids = np.zeros((len(batch), max(map(len, batch))), np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(batch):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        answers += [answer[: len(row)] for answer, row in zip(encoder.run(ids, mask, mask * 0), batch, strict=True)]
    return answers


def apart(one, other) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


def chunks_against_one_piece(bundles, name):
    """How far chunks move the answer, in units of the quantized answer's distance from float32."""
    whole = at_once(bundles[name])
    return apart(in_chunks(bundles[name]), whole) / apart(whole, at_once(bundles["fp32"]))


def neighbours_against_alone(bundles, name):
    alone = decoded(bundles[name], 1)
    return apart(decoded(bundles[name], 3), alone) / apart(alone, decoded(bundles["fp32"], 1))


def padding_against_alone(bundles, name):
    alone = padded_batch(bundles[name], 1)
    return apart(padded_batch(bundles[name], 3), alone) / apart(alone, padded_batch(bundles["fp32"], 1))


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_a_prompt_in_chunks_gives_what_it_gives_in_one_piece(gpt, name):
    assert chunks_against_one_piece(gpt, name) <= TENTH


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_a_row_decoded_beside_others_gives_what_it_gives_alone(gpt, name):
    assert neighbours_against_alone(gpt, name) <= TENTH


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_a_text_in_a_padded_batch_gives_what_it_gives_alone(bert, name):
    assert padding_against_alone(bert, name) <= TENTH


def test_the_plain_operator_with_one_scale_for_a_tensor_fails_all_three(gpt, bert):
    assert chunks_against_one_piece(gpt, "per tensor") > TENTH
    assert neighbours_against_alone(gpt, "per tensor") > TENTH
    assert padding_against_alone(bert, "per tensor") > TENTH


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_one_row_takes_the_grid_of_many(gpt, bits):
    """A token decoded alone and the same token within a prompt differ only by a rare rounding: on average
    far less than a tenth, where two grids would differ by more than int8 does from float32."""
    bundle = gpt[bits]
    decoder, ids = Decoder(session(bundle), bundle), rows_of(bundle)[0]
    step = decoder.stepper(cache := decoder.new_cache())
    first = decoder.extend(cache, ids[:1]).copy()
    alone = np.concatenate([first, *(step([token]).copy() for token in ids[1:])])
    whole = at_once(bundle)
    assert np.abs(alone - whole).mean() <= TENTH * np.abs(whole - at_once(gpt["fp32"])).mean()
