"""One job that writes several recipes: what it remembers of one changes nothing for the next."""

from __future__ import annotations

import dataclasses

import tiny

from torchless.quantize.job import Job
from torchless.quantize.recipes import RECIPES


def test_what_is_remembered_of_one_recipe_does_not_change_the_next(bert_bundles, tmp_path):
    int8, static, int4 = RECIPES["int8"], RECIPES["int8-static"], RECIPES["int4"]
    recipes = [int8, dataclasses.replace(int8, migrate=0.2), static, int4,
               dataclasses.replace(int4.encoder, migrate=None), int8]  # fmt: skip
    bundle = bert_bundles["text-classification"]
    shared, files = Job(bundle, tiny.SENTENCES, verify=False), []
    for number, recipe in enumerate(recipes):
        made = []
        for name, job in (("shared", shared), ("own", Job(bundle, tiny.SENTENCES, verify=False))):
            folder = tmp_path / f"{number}-{name}"
            folder.mkdir()
            made.append(job.write(folder, job.fit(recipe)).manifest.files)
        assert made[0] == made[1], recipe
        files.append(made[0]["model.onnx"].sha256)
    assert len(set(files)) == 5  # the last is the first again


def test_figures_of_the_float32_graph_are_measured_once(gpt_bundle, tmp_path, monkeypatch):
    job = Job(gpt_bundle, tiny.SENTENCES, verify=False)
    job.rewritten(RECIPES["int8"])
    job.rewritten(RECIPES["int4"])
    monkeypatch.setattr("torchless.quantize.calibrate.observe", None)
    job.rewritten(RECIPES["int8"])
    job.rewritten(RECIPES["int4"])
