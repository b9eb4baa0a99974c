"""`torchless quantize`: budgets, their spelling, what is told while a recipe is chosen, and the recipe's file."""

from __future__ import annotations

import json

import pytest
import tiny

from torchless.bundle import read_bundle
from torchless.quantize import pace


@pytest.fixture
def text_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "text.txt"
    file.write_text("\n\n".join(tiny.SENTENCES * 3), encoding="utf-8")
    return file


@pytest.fixture
def at_once(monkeypatch):
    """Real timing of few rounds; a model of two layers of width 32 may be slower than its float32."""
    monkeypatch.setattr(pace, "SECONDS", 0.0)
    monkeypatch.setattr(pace, "SLOWER", 0.0)
    monkeypatch.setattr("torchless.quantize.speed.TURN", 0.0)


@pytest.mark.parametrize("family", ["gpt", "text-classification"])
def test_auto_tells_every_candidate_and_the_choice(
    family, shell, gpt_bundle, bert_bundles, text_file, tmp_path, at_once
):
    bundle = gpt_bundle if family == "gpt" else bert_bundles[family]
    code, said, told = shell(
        "quantize", bundle, tmp_path / "out", "--recipe", "auto", "--data", text_file, "--max-loss", "30%"
    )
    recipe = read_bundle(tmp_path / "out").manifest.recipe
    assert code == 0 and said.startswith(f"{tmp_path / 'out'}: {recipe['name']}, ")
    for name in ("int8", "int8-block", "int4", "int4-all"):
        (line,) = [line for line in told.splitlines() if line.startswith(f"{name}: ")]
        what = "relative rise of perplexity" if family == "gpt" else "share of changed answers"
        assert what in line and " MB, " in line and " times float32's speed" in line
    assert f"chosen: {recipe['name']}, the fastest of those that hold a loss of 30 %" in told
    assert recipe["auto"]["max_loss"] == 0.3


def test_a_named_recipe_with_a_budget_is_mixed_until_it_holds(shell, gpt_bundle, text_file, tmp_path):
    arguments = [
        "--recipe",
        "int4-all",
        "--data",
        text_file,
        "--max-loss",
        "0.01%",
        "--write-recipe",
        tmp_path / "r.json",
    ]
    code, said, told = shell("quantize", gpt_bundle, tmp_path / "out", *arguments)
    assert code == 0, told
    recipe = read_bundle(tmp_path / "out").manifest.recipe
    assert recipe["auto"]["tried"][0]["name"] == "int4-all"
    assert recipe["name"] in ("int4-all", "int4-all-mixed") and said.startswith(
        f"{tmp_path / 'out'}: {recipe['name']}"
    )


def test_the_recipe_that_was_written_can_be_edited_and_run_again(shell, gpt_bundle, tmp_path):
    file = tmp_path / "recipe.json"
    assert shell("quantize", gpt_bundle, tmp_path / "one", "--recipe", "int4", "--write-recipe", file)[0] == 0
    recipe = json.loads(file.read_text())
    assert recipe["name"] == "int4" and "left_in_float" not in recipe and "quantized" not in recipe
    assert shell("quantize", gpt_bundle, tmp_path / "two", "--recipe", file)[0] == 0
    one, two = (read_bundle(tmp_path / name).manifest for name in ("one", "two"))
    assert one.files == two.files and one.recipe == two.recipe
    recipe |= {"name": "mine", "matrices": {"h.1.*": {"kind": "keep"}}}
    file.write_text(json.dumps(recipe))
    assert shell("quantize", gpt_bundle, tmp_path / "mine", "--recipe", file)[0] == 0
    assert len(read_bundle(tmp_path / "mine").manifest.recipe["left_in_float"]) == 4


@pytest.mark.parametrize(
    ("file", "recipes", "message"),
    [
        ("r.json", ["int8", "int4"], "--write-recipe writes one recipe: give --recipe once"),
        ("nowhere/r.json", ["int8"], "nowhere: make it first"),
        (".", ["int8"], "is a folder: give a file"),
    ],
)
def test_a_recipe_that_cannot_be_written_is_told_before_the_work(
    file, recipes, message, shell, gpt_bundle, tmp_path
):
    options = [part for name in recipes for part in ("--recipe", name)]
    code, _, told = shell("quantize", gpt_bundle, tmp_path / "out", *options, "--write-recipe", tmp_path / file)
    assert code == 1 and message in told and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("spelled", "size"),
    [("20000", 20_000), ("20kB", 20_000), ("0.02MB", 20_000), ("20 KB", 20_000), ("20KiB", 20_480), ("1GB", 10**9)],
)
def test_sizes_are_spelled_with_units(spelled, size, shell, gpt_bundle, tmp_path):
    code, _, told = shell("quantize", gpt_bundle, tmp_path / "out", "--max-size", spelled)
    if size < 10**9:
        assert code == 1 and f"the recipe int8 does not hold {size:,} bytes: the nearest is int8 (" in told
        assert "pass --max-size " in told
    else:
        assert code == 0 and read_bundle(tmp_path / "out").manifest.recipe["auto"]["max_size"] == size


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--max-loss", "much"], 2, "'much': give a share such as 0.5% or 0.005"),
        (["--max-size", "20 tons"], 2, "'20 tons': give a size such as 20MB"),
        (["--max-size", "0"], 2, "'0': give a size such as 20MB"),
        (["--max-size", "1.2.3MB"], 2, "give a size such as 20MB"),
        (["--recipe", "auto", "--max-loss", "1%"], 1, "max_loss is measured on texts: pass --data as well"),
        (["--recipe", "auto", "--max-loss", "200%"], 1, "pass --data"),
        (["--recipe", "auto", "--target", "tpu"], 1, "target='tpu': give cpu"),
        (["--data", "nowhere.txt"], 1, "nowhere.txt cannot be read"),
    ],
)
def test_wrong_budgets_are_refused(arguments, code, message, shell, gpt_bundle, tmp_path):
    found, said, error = shell("quantize", gpt_bundle, tmp_path / "out", *arguments)
    assert (found, said) == (code, "") and message in error
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_a_recipe_is_chosen_leaves_nothing_behind(shell, gpt_bundle, text_file, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("torchless.quantize.auto.measure_losses", interrupted)
    code, _, error = shell("quantize", gpt_bundle, tmp_path / "out", "--recipe", "auto", "--data", text_file)
    assert code == 130 and "interrupted" in error
    assert list(tmp_path.iterdir()) == []
