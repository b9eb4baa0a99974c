"""Migration changes no number before rounding, folds into a norm where it can, and takes error away."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import tiny
import torch

from torchless.bundle import Bundle, read_bundle
from torchless.export import export
from torchless.probe import Probe, max_error, run_probe
from torchless.quantize import quantize
from torchless.quantize.calibrate import Calibration
from torchless.quantize.draft import Draft
from torchless.quantize.migrate import PAYS, QUIETEST, gain, migrate, scales
from torchless.quantize.recipes import RECIPES, Columns, Keep

INT8 = RECIPES["int8"]
LOUD = 40.0  # one channel in ten is this much louder than the others, as in a trained model


def loud(model):
    """The model with a few channels of every layer norm turned up, and what reads them turned down."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and ("ln_" in name or "LayerNorm" in name) and "weight" in name:
                parameter[::10] *= LOUD
    return model


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("migrate")
    bert = loud(tiny.bert("fill-mask", hidden_size=60, num_attention_heads=3))
    export(bert, folder / "bert", tokenizer=tiny.wordpiece(), check=False)
    export(loud(tiny.gpt2(n_embd=60, n_head=3)), folder / "gpt", tokenizer=tiny.bpe(), check=False)
    return {name: read_bundle(folder / name) for name in ("bert", "gpt")}


def migrated(source: Bundle, folder, recipe=INT8) -> Bundle:
    """The float32 bundle after migration alone."""
    folder.mkdir()
    (graph,) = source.manifest.graphs
    draft = Draft(source.file(graph.file), folder / graph.file)
    migrate(draft, recipe, Calibration.random(source, graph))
    draft.save()
    return Bundle(folder, source.manifest)


@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_nothing_changes_before_it_is_rounded(name, bundles, tmp_path):
    source = bundles[name]
    moved = migrated(source, tmp_path / "moved")
    probe = Probe.make(source.manifest)
    before, after = (run_probe(one, one.manifest.graphs[0], probe) for one in (source, moved))
    # Attention to such loud channels is nearly a choice of one token, and magnifies the last bit.
    assert max_error(after, before) < 5e-4 * max(np.abs(row).max() for row in before)


def kinds_of(bundle: Bundle) -> list[str]:
    """The operators in order, with the one that hides a product as what it is taken apart into."""
    graph = onnx.load(str(bundle.file("model.onnx")), load_external_data=False).graph
    apart = {"Attention": ["MatMul", "Split", "MultiHeadAttention"]}
    return [kind for node in graph.node for kind in apart.get(node.op_type, [node.op_type])]


@pytest.mark.parametrize(("name", "products"), [("bert", 4), ("gpt", 0)])
def test_a_pre_norm_gpt_folds_and_a_post_norm_bert_multiplies(name, products, bundles, tmp_path):
    source = bundles[name]
    moved = migrated(source, tmp_path / "moved")
    old, new = kinds_of(source), kinds_of(moved)
    assert new.count("Mul") - old.count("Mul") == products  # QKV and the inner product of two layers
    assert [kind for kind in new if kind != "Mul"] == [kind for kind in old if kind != "Mul"]


def test_a_multiplication_that_does_not_pay_is_left_out_and_a_fold_costs_nothing(bundles, tmp_path, monkeypatch):
    monkeypatch.setattr("torchless.quantize.migrate.PAYS", np.inf)
    assert kinds_of(migrated(bundles["bert"], tmp_path / "bert")) == kinds_of(bundles["bert"])
    weights = [migrated(bundles["gpt"], tmp_path / "gpt"), bundles["gpt"]]
    assert len({one.file("model.onnx.data").read_bytes() for one in weights}) == 2


def test_the_gain_is_how_much_finer_the_loudest_channel_lets_the_others_be():
    even, loud = np.ones(8, np.float32), np.ones(8, np.float32)
    loud[3] = 64
    assert gain(even, even, np.ones(8, np.float32)) == 1
    assert np.isclose(gain(loud, even, np.ones(8, np.float32)), 1)
    assert gain(even, even, scales(even, even, 0.6)) < PAYS < gain(loud, even, scales(loud, even, 0.6))


@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_it_takes_most_of_the_error_of_loud_channels_away(name, bundles, tmp_path):
    errors = [
        read_bundle(quantize(bundles[name].path, tmp_path / str(migrate), recipe=recipe)).manifest.parity[
            "mean_abs_error"
        ]
        for migrate in (None, 0.6)
        for recipe in [dataclasses.replace(INT8, migrate=migrate)]
    ]
    assert errors[1] < 0.7 * errors[0]


def test_matrices_that_stay_in_float_are_left_alone(bundles, tmp_path):
    recipe = dataclasses.replace(INT8, body=Keep(), matrices={"*.1.*query_key*": Columns()})
    moved = migrated(bundles["bert"], tmp_path / "moved", recipe)
    assert kinds_of(moved) == kinds_of(bundles["bert"])


def test_scales_even_out_both_sides_and_keep_the_geometric_mean():
    x, w = np.array([1, 100, 4, 1], np.float32), np.array([1, 1, 1, 0.25], np.float32)
    s = scales(x, w, 0.5)
    assert np.isclose(np.exp(np.log(s).mean()), 1)
    assert np.allclose(s / s[0], np.sqrt([1, 100, 4, 4]))
    assert np.allclose(scales(x, w, 0.0) * w, (scales(x, w, 0.0) * w)[0])  # alpha 0: even weights
    assert np.allclose(x / scales(x, w, 1.0), (x / scales(x, w, 1.0))[0])  # alpha 1: even activations


def test_a_channel_that_was_silent_is_not_blown_up():
    s = scales(np.array([0, 2, 2, 2], np.float32), np.array([1, 1, 0, 1], np.float32), 0.5)
    assert np.isfinite(s).all() and s.max() / s.min() < (1 / QUIETEST) + 1e-3
    assert np.isfinite(scales(np.zeros(3, np.float32), np.zeros(3, np.float32), 0.5)).all()
