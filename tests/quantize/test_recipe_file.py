"""A recipe goes to a file and comes back, is obeyed matrix by matrix, and is refused field by field."""

from __future__ import annotations

import dataclasses
import json

import pytest

from torchless.bundle import read_bundle
from torchless.errors import QuantizationError
from torchless.quantize import quantize
from torchless.quantize.recipe_file import find_recipe, read_recipe, write_recipe
from torchless.quantize.recipes import RECIPES, Blocks, Columns, Keep, Recipe, Static

MIXED = Recipe(
    "mixed",
    body=Columns(),
    ends=Blocks(4, 32, "nearest"),
    tables=Keep(),
    migrate=0.5,
    matrices={"*.mlp.c_proj.weight": Blocks(8, 64), "h.0.*": Keep(), "h.1.attn.*": Static("entropy", True)},
)


@pytest.mark.parametrize("recipe", [*RECIPES.values(), MIXED], ids=lambda recipe: recipe.name)
def test_a_recipe_comes_back_from_its_file(recipe, tmp_path):
    write_recipe(recipe, tmp_path / "r.json")
    assert read_recipe(tmp_path / "r.json").record() == recipe.record()


def test_each_matrix_gets_the_scheme_of_the_first_pattern_that_fits(gpt_bundle, tmp_path):
    write_recipe(MIXED, tmp_path / "r.json")
    record = read_bundle(quantize(gpt_bundle, tmp_path / "out", recipe=tmp_path / "r.json")).manifest.recipe
    left = {one["name"]: one["reason"] for one in record["left_in_float"]}
    kept = [name for name in left if ".h.0." in name or name.startswith("h.0.")]
    assert record["name"] == "mixed" and record["migrate"] == 0.5
    assert len(kept) == 3 and not any("c_proj" in name and "mlp" in name for name in kept)
    assert set(left.values()) == {"the recipe says so"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"body": None}, r'body: expected an object with "kind": one of columns, static, blocks, keep'),
        ({"body": {"kind": "rows"}}, r'body: expected an object with "kind"'),
        ({"body": {"kind": "blocks", "bits": 3, "size": 32}}, r"body: bits=3: give one of 4, 8"),
        ({"body": {"kind": "blocks", "bits": True, "size": 32}}, r"body: bits=True: give one of 4, 8"),
        ({"body": {"kind": "blocks", "bits": 4}}, r"body: blocks lacks size: give one of 256, 128"),
        ({"body": {"kind": "columns", "bits": 8}}, r"body: columns has no field 'bits' \(it has steady\)"),
        ({"body": {"kind": "columns", "steady": -1}}, r"body: steady=-1: give a number from 0 to 1,000,000"),
        ({"body": {"kind": "columns", "steady": 10**400}}, r"body: steady=10+: give a number from 0"),
        ({"body": {"kind": "keep", "bits": 8}}, r"body: keep has no field 'bits' \(it has none\)"),
        ({"ends": {"kind": "columns"}}, r"ends: an embedding can be blocks or keep"),
        ({"migrate": 2}, r"migrate: expected a number from 0 to 1, found 2"),
        ({"migrate": True}, r"migrate: expected a number from 0 to 1, found True"),
        ({"name": 7}, r"name: expected text, found 7"),
        *(
            ({"name": name}, r"name=.*: give letters, digits, spaces and \. _ \+ -")
            for name in ("../out", "/tmp/x", "a/b", "a\\b", "..", " ", "a\0b", "x" * 51, "auto", "fp32")
        ),
        ({"matrices": []}, r"matrices: expected an object"),
        ({"matrices": {"h.*": {"kind": "static", "range": "all"}}}, r"matrices: h\.\*: range='all'"),
        ({"colour": 1}, r"unknown fields: colour \(known: name, body"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_refused_by_its_field(change, message, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(RECIPES["int8"].record() | change))
    with pytest.raises(QuantizationError, match=message):
        find_recipe(tmp_path / "r.json")


@pytest.mark.parametrize("content", ["", "[1]", "{", "\xff\xfe", '"int8"'])
def test_a_file_that_is_no_recipe_is_refused(content, tmp_path):
    (tmp_path / "r.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(QuantizationError, match=r"r\.json (cannot be read|holds)"):
        find_recipe(tmp_path / "r.json")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(QuantizationError, match=r"none\.json cannot be read"):
        find_recipe(str(tmp_path / "none.json"))
    with pytest.raises(QuantizationError, match=r"recipe=7: give a name \(int8, "):
        find_recipe(7)


def test_a_recipe_may_begin_with_the_mark_of_windows_editors(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(MIXED.record()), encoding="utf-8-sig")
    assert read_recipe(tmp_path / "r.json").record() == MIXED.record()


@pytest.mark.parametrize(
    ("pattern", "scheme", "message"),
    [
        ("encoder.layer.0.*", Keep(), r"a scheme for 'encoder\.layer\.0\.\*', and no matrix has such a name"),
        ("wte.*", Columns(), r"columns for wte\.weight: an embedding can be blocks or keep"),
        ("wpe.*", Static(), r"static for wpe\.weight: an embedding can be blocks or keep"),
    ],
)
def test_an_exception_that_does_not_fit_the_model_is_refused(pattern, scheme, message, gpt_bundle, tmp_path):
    recipe = dataclasses.replace(RECIPES["int8"], matrices={pattern: scheme})
    with pytest.raises(QuantizationError, match=message):
        quantize(gpt_bundle, tmp_path / "out", recipe=recipe)
    assert not list(tmp_path.iterdir())


def test_a_field_that_stands_twice_is_refused_and_not_half_forgotten(tmp_path):
    text = json.dumps(RECIPES["int8"].record())
    (tmp_path / "r.json").write_text(text[:-1] + ', "body": {"kind": "keep"}}')
    with pytest.raises(QuantizationError, match=r"r\.json cannot be read \('body' stands there twice: keep one\)"):
        find_recipe(tmp_path / "r.json")
