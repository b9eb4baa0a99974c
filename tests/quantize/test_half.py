"""fp16: every float of a graph is float16, and its answers are nearly those in float32."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from encoders import our_outputs, random_rows
from graphs import product, save, uneven
from onnx import TensorProto

import torchless
from torchless.bundle import read_bundle
from torchless.errors import QuantizationError
from torchless.export import export
from torchless.export.builder import Builder
from torchless.probe import Probe, run_probe
from torchless.quantize import quantize
from torchless.quantize.draft import Draft
from torchless.quantize.half import half
from torchless.quantize.job import Job
from torchless.quantize.judge import Judge
from torchless.quantize.recipe_file import find_recipe
from torchless.quantize.recipes import RECIPES, Blocks, Columns, Keep, Recipe, Static
from torchless.quantize.rewrite import rewrite

EXAMPLES = Path(__file__).parents[2] / "examples"
FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16
HALVES = ("fp16", "fp16-int8", "fp16-int4")
ROUNDING = 5e-3  # of the largest output: ten of float16's steps, over layers whose weights are large
NONE: Any = None


# Numbers


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6, 1e4])
def test_every_number_moves_by_at_most_half_a_step(scale: float) -> None:
    array = uneven(40, 30)
    array *= np.float32(scale / np.abs(array).max())
    apart = np.abs(array - half("w", array).astype(np.float32))
    assert (apart <= np.maximum(2.0**-11 * np.abs(array), 2.0**-25)).all() and apart.max() > 0


def test_the_score_of_what_is_masked_becomes_the_lowest_float16() -> None:
    lowest = np.finfo(np.float32).min
    assert half("sink", np.array([lowest, 1, -lowest], np.float32)).tolist() == [-65504, 1, 65504]
    assert half("sink", np.array(lowest)).tolist() == -65504


def test_a_number_that_keeps_a_quotient_finite_does_not_become_zero() -> None:
    for sign in (1, -1):
        assert half("least", np.array(sign * 1e-12, np.float32)) == sign * 2**-14
    assert half("zero", np.array(0, np.float32)) == 0
    assert half("weight", np.array([1e-12], np.float32)) == [0]  # a weight that small does nothing


def test_what_is_no_float_stays() -> None:
    codes = np.arange(5, dtype=np.uint8)
    assert half("codes", codes) is codes


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (70_000, r"h\.0\.weight holds 70,000, float16 ends at 65,504: use a recipe that computes in float32"),
        (-1e30, r"h\.0\.weight holds 1,0"),
        (np.nan, r"h\.0\.weight holds NaN or infinity"),
        (np.inf, r"h\.0\.weight holds NaN or infinity"),
    ],
)
def test_a_weight_that_float16_cannot_hold_is_named(value: float, match: str) -> None:
    with pytest.raises(QuantizationError, match=match):
        half("h.0.weight", np.array([1, value], np.float32))


# The graph


def floats(path: Path) -> tuple[Any, set[str]]:
    """The graph, and the names of its tensors, inputs and outputs in float32."""
    graph = onnx.load(str(path / "model.onnx"), load_external_data=False).graph
    found = {tensor.name for tensor in graph.initializer if tensor.data_type == FLOAT}
    values = (*graph.input, *graph.output)
    return graph, found | {value.name for value in values if value.type.tensor_type.elem_type == FLOAT}


@pytest.mark.parametrize("recipe", HALVES)
def test_only_the_logits_of_a_gpt_are_float32(recipe: str, gpt_bundle: Path, tmp_path: Path) -> None:
    out = quantize(gpt_bundle, tmp_path / "out", recipe=recipe)
    graph, single = floats(out)
    assert single == {"logits"}
    assert (graph.node[-1].op_type, list(graph.node[-1].output)) == ("Cast", ["logits"])
    assert [node.op_type for node in graph.node].count("Cast") == 1
    caches = [value for value in (*graph.input, *graph.output) if value.name.startswith(("past_key", "present."))]
    assert len(caches) == 8 and {value.type.tensor_type.elem_type for value in caches} == {FLOAT16}
    ids = {value.name: value.type.tensor_type.elem_type for value in graph.input if value not in caches}
    assert ids["input_ids"] == TensorProto.INT64 and ids["seqlens_k"] == TensorProto.INT32
    levels = {a.i for node in graph.node for a in node.attribute if a.name == "accuracy_level"}
    assert levels == (set() if recipe == "fp16" else {0})


@pytest.mark.parametrize("task", ["fill-mask", "text-classification", "feature-extraction"])
def test_only_the_outputs_of_a_bert_are_float32(task: str, bert_bundles: dict[str, Path], tmp_path: Path) -> None:
    out = quantize(bert_bundles[task], tmp_path / "out", recipe="fp16")
    graph, single = floats(out)
    assert single == {output.name for output in graph.output}
    masks = [a.f for node in graph.node for a in node.attribute if a.name == "mask_filter_value"]
    assert len(masks) == 2 and set(masks) == {-65504.0}


def test_the_manifest_says_what_became_of_it(gpt_bundle: Path, tmp_path: Path) -> None:
    fp16 = read_bundle(quantize(gpt_bundle, tmp_path / "fp16", recipe="fp16"))
    (graph,) = fp16.manifest.graphs
    assert (graph.precision, graph.providers, graph.signed_int8) == ("fp16", ("cuda", "directml", "cpu"), False)
    record: Any = fp16.manifest.recipe
    assert (record["name"], record["floats"], record["body"]) == ("fp16", 16, {"kind": "keep"})
    int8: Any = read_bundle(quantize(gpt_bundle, tmp_path / "int8")).manifest.recipe
    assert "floats" not in int8
    sizes = [(path / "model.onnx.data").stat().st_size for path in (tmp_path / "fp16", gpt_bundle)]
    assert sizes[0] < 0.6 * sizes[1]  # pages are not halved


def test_the_matrices_of_a_head_still_stand_at_the_end(gpt_bundle: Path, tmp_path: Path) -> None:
    """Their output is no longer the graph's own; the recipe treats them as it would in float32."""
    bundle = export(tiny.gpt2(tie_word_embeddings=False), tmp_path / "fp32", tokenizer=tiny.bpe(), check=False)
    out = quantize(bundle, tmp_path / "out", recipe="fp16-int4")
    nodes = floats(out)[0].node
    products = [node for node in nodes if node.op_type == "MatMulNBits"]
    bits = {node.output[0]: next(a.i for a in node.attribute if a.name == "bits") for node in products}
    assert bits.pop("logits.float16") == 8 and set(bits.values()) == {4}


def test_a_draft_in_memory_is_the_written_one(tmp_path: Path) -> None:
    source = product(tmp_path, uneven(32, 24), last=True)
    written, held = (Draft(source, target) for target in (tmp_path / "half.onnx", None))
    for draft in (written, held):
        rewrite(draft, RECIPES["fp16"], NONE)
    written.save()
    tensors = [onnx.load(str(tmp_path / "half.onnx")), onnx.load_model_from_string(held.in_memory())]
    one, other = ({t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer} for model in tensors)
    assert one["w"].dtype == np.float16 and np.array_equal(one["w"], other["w"])


def test_an_output_that_a_node_reads_is_read_before_its_cast(tmp_path: Path) -> None:
    b = Builder("fused")
    hidden = b.op("Relu", b.op("MatMul", b.input("x", np.float32, ["M", 4]), b.weight("w", uneven(4, 3))))
    b.output("y", hidden, np.float32, ["M", 3])
    b.output("z", b.op("Tanh", hidden), np.float32, ["M", 3])
    draft = Draft(save(b, tmp_path), tmp_path / "half.onnx")
    rewrite(draft, RECIPES["fp16"], NONE)
    draft.save()
    nodes = onnx.load(str(tmp_path / "half.onnx")).graph.node
    reads = [("Tanh", "y.float16"), ("Cast", "y.float16"), ("Cast", "z.float16")]
    assert [(node.op_type, node.input[0]) for node in nodes][2:] == reads


# Answers


def answers(path: Path) -> list[np.ndarray]:
    bundle = read_bundle(path)
    return run_probe(bundle, bundle.manifest.graphs[0], Probe.make(bundle.manifest))


def near(out: Path, source: Path, tolerance: float = ROUNDING) -> None:
    ours, expected = answers(out), answers(source)
    largest = max(np.abs(row).max() for row in expected)
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == np.float32
        assert tiny.furthest(one, other) < tolerance * max(1, largest)
    assert any((one != other).any() for one, other in zip(ours, expected, strict=True))


HEADS = {
    "fill-mask": "ForMaskedLM", "text-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification", "question-answering": "ForQuestionAnswering",
    "feature-extraction": "Model", "multiple-choice": "ForMultipleChoice",
}  # fmt: skip


@pytest.mark.parametrize("head", HEADS.values())
def test_every_head_of_an_encoder_answers_as_in_float32(head: str, tmp_path: Path) -> None:
    model = tiny.encoder("mpnet", head)
    options: dict[str, Any] = {"pooling": "mean", "normalize": True} if head == "Model" else {}
    source = export(model, tmp_path / "fp32", tokenizer=tiny.wordpiece(), check=False, **options)
    near(quantize(source, tmp_path / "fp16", recipe="fp16"), source)


@pytest.mark.parametrize("family", ["bert", *tiny.ENCODERS])
def test_every_family_answers_as_in_float32(family: str, tmp_path: Path) -> None:
    """Rows of unlike length in one batch, with a padding token inside a row."""
    model = tiny.bert("fill-mask") if family == "bert" else tiny.encoder(family, "ForMaskedLM")
    source = export(model, tmp_path / "fp32", tokenizer=tiny.wordpiece(), check=False)
    out = quantize(source, tmp_path / "fp16", recipe="fp16")
    bundles = [read_bundle(path) for path in (out, source)]
    rows = random_rows(model, bundles[0].manifest.context_length)
    ours, expected = (our_outputs(bundle, "fused", rows) for bundle in bundles)
    # ModernBERT's random weights are more sensitive: in float16 torch itself moves by 0.011 of the largest output.
    bound = (3 if family == "modernbert" else 1) * ROUNDING * max(np.abs(row).max() for row in expected)
    assert all(tiny.furthest(*pair) < bound for pair in zip(ours, expected, strict=True))


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
def test_embeddings_are_near_and_of_length_one(pooling: str, tmp_path: Path) -> None:
    model = tiny.bert("feature-extraction")
    source = export(
        model, tmp_path / "fp32", tokenizer=tiny.wordpiece(), check=False, pooling=pooling, normalize=True
    )
    models = [torchless.load(path) for path in (quantize(source, tmp_path / "fp16", recipe="fp16"), source)]
    ours, expected = (model(tiny.SENTENCES) for model in models)
    assert tiny.furthest(ours, expected) < 2e-3
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 2e-3


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": False}, {"n_embd": 20, "n_head": 2, "n_inner": 33}])
def test_a_gpt_answers_as_in_float32(config: dict[str, Any], tmp_path: Path) -> None:
    source = export(tiny.gpt2(**config), tmp_path / "fp32", tokenizer=tiny.bpe(), check=False)
    near(quantize(source, tmp_path / "fp16", recipe="fp16"), source)


@pytest.mark.parametrize("recipe", ["int8", "int4"])
def test_blocks_in_float16_are_as_near_as_blocks_in_float32(recipe: str, gpt_bundle: Path, tmp_path: Path) -> None:
    kept = RECIPES[f"fp16-{recipe}"]
    errors = [
        read_bundle(quantize(gpt_bundle, tmp_path / str(one.floats), recipe=one)).manifest.parity["mean_abs_error"]
        for one in (kept, dataclasses.replace(kept, floats=32))
    ]
    assert 0 < errors[0] < 1.05 * errors[1]


def test_a_graph_in_float16_can_be_judged(gpt_bundle: Path) -> None:
    """Which runs it from memory: its caches are not those of the float32 graph."""
    job = Job(gpt_bundle, ["The future of the union is strong.", "A whale-ship was my Yale College."], verify=False)
    judge = Judge.on(job.source, job.graph, job.examples)
    draft, _ = job.rewritten(RECIPES["fp16"])
    error, rise = judge(draft.in_memory(), signed_int8=False)
    assert 0 < error < 1e-5 and rise is not None and abs(rise) < 1e-3


# What was trained


@pytest.fixture(scope="module")
def sotu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torchless.TextGeneration]:
    folder = tmp_path_factory.mktemp("sotu")
    fp32 = export(EXAMPLES / "checkpoints" / "sotu-gpt", folder / "fp32", check=False)
    return {"fp32": torchless.load(fp32)} | {
        recipe: torchless.load(quantize(fp32, folder / recipe, recipe=recipe)) for recipe in HALVES
    }


@pytest.mark.parametrize(("recipe", "most"), [("fp16", 1e-3), ("fp16-int8", 5e-3), ("fp16-int4", 5e-2)])
def test_the_trained_gpt_keeps_its_perplexity(recipe: str, most: float, sotu: Any) -> None:
    lines = (EXAMPLES / "data" / "heldout-sotu.txt").read_text(encoding="utf-8").splitlines()
    texts = [line[:1500] for line in lines if len(line) > 200][:4]
    losses = [[score.logprobs for score in map(sotu[name].score, texts)] for name in (recipe, "fp32")]
    ours, expected = (np.concatenate([np.array(one, float) for one in found]).mean() for found in losses)
    assert abs(np.exp(expected - ours) - 1) < most


def test_the_trained_gpt_writes_the_same_text_in_float16(sotu: Any) -> None:
    prompts = ["The state of the Union", "I", "My fellow citizens, the war in", "In 1846 Congress", "Übermaß 🎉"]
    expected = [one.token_ids for one in sotu["fp32"](prompts, max_new_tokens=40)]
    assert [one.token_ids for one in sotu["fp16"](prompts, max_new_tokens=40)] == expected
    assert [sotu["fp16"](prompt, max_new_tokens=40).token_ids for prompt in prompts] == expected


def test_the_trained_classifier_gives_every_mail_the_same_label(tmp_path: Path) -> None:
    fp32 = export(EXAMPLES / "checkpoints" / "spam-bert", tmp_path / "fp32", check=False)
    lines = (EXAMPLES / "data" / "heldout-mails.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines[:: len(lines) // 100]][:100]
    models = [torchless.load(path) for path in (quantize(fp32, tmp_path / "fp16", recipe="fp16"), fp32)]
    ours, expected = (model(texts, truncation=True) for model in models)
    assert [one.label for one in ours] == [one.label for one in expected] and len({one.label for one in ours}) == 2
    assert all(abs(one.score - other.score) < 1e-3 for one, other in zip(ours, expected, strict=True))


# The recipe


@pytest.mark.parametrize("scheme", [Columns(), Static()])
def test_int8_products_are_not_for_float16(scheme: Any) -> None:
    for parts in ({"body": scheme}, {"matrices": {"h.*": scheme}}):
        given = {"body": Keep(), "ends": Blocks(8, 32), "tables": Keep(), **parts}
        with pytest.raises(QuantizationError, match=r"the recipe mine has int8 products with float16.*give blocks"):
            Recipe("mine", floats=16, **given)


@pytest.mark.parametrize("floats", [8, True, "16", None])
def test_a_recipe_file_with_other_floats_is_refused(floats: Any, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(RECIPES["fp16"].record() | {"floats": floats}))
    with pytest.raises(QuantizationError, match=rf"r\.json: floats={floats!r}: give one of 16, 32"):
        find_recipe(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        ("fp16", r"h\.1\.mlp\.c_fc\.weight holds 100,000, float16 ends at 65,504"),
        ("fp16-int4", r"gives NaN or infinity for random tokens as fp16-int4, not as float32: take another recipe"),
    ],
)
def test_what_is_too_large_for_float16_leaves_nothing_behind(recipe: str, match: str, tmp_path: Path) -> None:
    model = tiny.gpt2()
    model.transformer.h[1].mlp.c_fc.weight.data[3, 5] = 1e5
    source = export(model, tmp_path / "fp32", tokenizer=tiny.bpe(), check=False)
    with pytest.raises(QuantizationError, match=match):
        quantize(source, tmp_path / "out", recipe=recipe)
    assert not (tmp_path / "out").exists()
