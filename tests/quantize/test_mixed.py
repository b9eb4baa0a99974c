"""Which matrices climb to a finer scheme, in which order, and how the fewest that do are found."""

from __future__ import annotations

import dataclasses
import math

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchless.bundle import read_bundle
from torchless.quantize import quantize
from torchless.quantize.job import Job
from torchless.quantize.mixed import finer, ladder, mixture, smallest
from torchless.quantize.recipes import RECIPES, Blocks, Columns, Keep, Static
from torchless.quantize.sensitivity import Part, parts_of

FOUR, EIGHT = Blocks(4, 32), Blocks(8, 128)


def part(name, scheme=FOUR, role="body"):
    return Part(name, (64, 32), 32, role, scheme)


@pytest.mark.parametrize(
    ("scheme", "role", "decodes", "next_one"),
    [
        (FOUR, "body", True, EIGHT),
        (FOUR, "body", False, Columns()),
        (FOUR, "ends", False, EIGHT),  # an embedding is read row by row
        (EIGHT, "body", True, Keep()),
        (Columns(), "body", False, Keep()),
        (Static(), "body", False, Keep()),
        (Keep(), "body", True, None),
    ],
)
def test_the_finer_scheme_of_4_bits_is_8_bits_as_suits_the_model_and_then_float(scheme, role, decodes, next_one):
    assert finer(scheme, role, decodes=decodes) == next_one


def test_the_worst_matrix_climbs_first_and_all_climb_once_before_one_climbs_twice():
    parts = [part("a"), part("b", EIGHT), part("c")]
    assert ladder(parts, [0.1, 0.2, 0.3], decodes=True) == [
        ("c", EIGHT), ("b", Keep()), ("a", EIGHT), ("c", Keep()), ("a", Keep()),
    ]  # fmt: skip


def test_a_mixture_is_its_recipe_with_the_climbed_matrices_before_its_own_exceptions():
    base = dataclasses.replace(RECIPES["int4"], matrices={"c": Keep(), "h.*": FOUR})
    made = mixture(base, [("h.1", EIGHT), ("c", EIGHT), ("h.1", Keep())])
    assert (made.name, made.body) == ("int4-mixed", base.body)
    assert [made.scheme(name, "body") for name in ("h.1", "c", "h.2", "other")] == [Keep(), EIGHT, FOUR, base.body]


@given(most=st.integers(1, 200), least=st.integers(1, 220))
def test_the_smallest_count_that_holds_is_found_in_few_questions(most, least):
    asked = []

    def holds(count):
        asked.append(count)
        return count >= least

    assert smallest(most, holds) == (least if least <= most else None)
    assert len(asked) == len(set(asked)) <= 2 * math.ceil(math.log2(most + 1))
    assert max(asked) <= most


@pytest.mark.parametrize(
    "recipe", [name for name, one in RECIPES.items() if one.dialect == "fused" and name != "fp16"]
)
def test_what_a_part_saves_is_what_the_graph_gets_smaller_by(recipe, gpt_bundle):
    job = Job(gpt_bundle, None, verify=False)
    draft, _ = job.rewritten(RECIPES[recipe])
    made = onnx.ModelProto.FromString(draft.in_memory()).graph.initializer
    parts = parts_of(job, RECIPES[recipe])
    assert [one.name for one in parts] == [name for name, tensor in draft.tensors.items() if len(tensor.dims) == 2]
    for one in parts:
        own = [tensor for tensor in made if tensor.name.startswith(f"{one.name}.")]
        sizes = {  # a lookup's view of a product's codes is the same bytes again
            tensor.name.removesuffix(".gather"): onnx.numpy_helper.to_array(tensor).nbytes
            for tensor in own
            if not tensor.name.endswith((".migration", ".zero.0"))  # a zero point is one byte
        }
        assert one.saved == 4 * math.prod(one.shape) - sum(sizes.values()) and sizes


def test_a_mixture_that_is_written_says_so_in_its_manifest(gpt_bundle, tmp_path):
    mixed = mixture(RECIPES["int4"], [("h.1.mlp.c_fc.weight", EIGHT), ("h.0.attn.qkv.weight", Keep())])
    record = read_bundle(quantize(gpt_bundle, tmp_path / "out", recipe=mixed)).manifest.recipe
    assert record["name"] == "int4-mixed" and record["quantized"] == 9
    assert record["matrices"]["h.1.mlp.c_fc.weight"] == {"kind": "blocks", **dataclasses.asdict(EIGHT)}
    assert [one["name"] for one in record["left_in_float"]] == ["h.0.attn.qkv.weight"]


@pytest.mark.parametrize(("looked_up", "saved"), [(False, 10_280), (True, 10_400)])
def test_a_head_of_its_own_has_zero_points_and_a_table_has_none(looked_up, saved):
    """80 x 40 floats: 1,600 bytes of codes, 800 of scales and, for five blocks a sum, 3 of zero points."""
    assert Part("head", (80, 40), 40, "ends", Blocks(4, 16, "hqq"), looked_up=looked_up).saved == saved
