"""int8 products are exact on this processor, and where they would not be, the precise mode is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import tiny
from onnx import TensorProto, helper

from torchless import exactness
from torchless.bundle import read_bundle
from torchless.errors import ProviderError
from torchless.export import export
from torchless.probe import Probe, run_probe
from torchless.quantize import RECIPES, quantize

QEMU = "qemu-x86_64"
ASK = """
from torchless import exactness
print(exactness.signed_int8_saturates(), exactness.products_are_exact(precise=True))
"""
ANSWER = """
import sys
import numpy as np
from torchless.bundle import read_bundle
from torchless.probe import Probe, run_probe
out, *paths = sys.argv[1:]
answers = {}
for index, path in enumerate(paths):
    bundle = read_bundle(path)
    rows = run_probe(bundle, bundle.manifest.graphs[0], Probe.make(bundle.manifest))
    answers[str(index)] = np.concatenate([row.ravel() for row in rows])
np.savez(out, **answers)
"""


def probe() -> bytes:
    """The model inside exactness.py: the largest uint8 times large int8, 64 terms a sum."""
    nodes = [
        helper.make_node("Expand", ["row", "shape"], ["w"]),
        helper.make_node(
            "MatMulIntegerToFloat", ["a", "w", "one", "one", "zero", "none"], ["y"], domain="com.microsoft"
        ),
    ]
    constants = [
        helper.make_tensor("row", TensorProto.INT8, [1, 60], bytes(range(68, 128)), raw=True),
        helper.make_tensor("shape", TensorProto.INT64, [2], [64, 60]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("zero", TensorProto.UINT8, [], [128]),
        helper.make_tensor("none", TensorProto.INT8, [], [0]),
    ]
    a = helper.make_tensor_value_info("a", TensorProto.UINT8, ["M", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", 60])
    graph = helper.make_graph(nodes, "probe", [a], [y], constants)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString(deterministic=True)


def on_a_processor_without_vnni(script: str, *arguments: str) -> str:
    """What a script prints there: on this processor if it is one, else on an emulated Haswell (AVX2)."""
    command = [sys.executable, "-c", script, *arguments]
    if not exactness.signed_int8_saturates():
        if shutil.which(QEMU) is None:
            pytest.skip(f"int8 is exact on this processor and {QEMU} is missing: apt-get install qemu-user")
        command = [QEMU, "-cpu", "Haswell", *command]
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=quiet)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_embedded_probe_is_the_model_that_its_comment_describes():
    assert probe() == exactness._PROBE
    onnx.checker.check_model(onnx.load_model_from_string(exactness._PROBE))


def test_the_precise_mode_is_exact_on_this_processor():
    assert exactness.products_are_exact(precise=True)


def test_signed_weights_saturate_without_vnni_and_the_precise_mode_repairs_them():
    assert on_a_processor_without_vnni(ASK) == "True True"


def flat(path) -> np.ndarray:
    bundle = read_bundle(path)
    rows = run_probe(bundle, bundle.manifest.graphs[0], Probe.make(bundle.manifest))
    return np.concatenate([row.ravel() for row in rows])


def test_a_bundle_made_here_answers_the_same_on_a_processor_without_vnni(tmp_path):
    """Float sums end in another last bit there, which can turn a rounding; saturated sums would be far away."""
    export(tiny.gpt2(n_embd=64, n_head=4), tmp_path / "gpt", tokenizer=tiny.bpe(), dialect="all", check=False)
    export(tiny.bert("fill-mask"), tmp_path / "bert", tokenizer=tiny.wordpiece(), dialect="all", check=False)
    recipes = [name for name in RECIPES if not name.startswith("fp16")]
    made = [
        quantize(tmp_path / family, tmp_path / f"{family}-{name}", recipe=name)
        for family in ("gpt", "bert")
        for name in recipes
    ]
    on_a_processor_without_vnni(ANSWER, str(tmp_path / "there.npz"), *map(str, made))
    there = np.load(tmp_path / "there.npz")
    for index, path in enumerate(made):
        here, exact = flat(path), flat(path.with_name(path.name.partition("-")[0]))
        apart, cost = np.abs(there[str(index)] - here), np.abs(here - exact)
        assert apart.mean() < 0.1 * cost.mean(), path.name
        assert apart.max() < cost.max(), path.name


@pytest.mark.parametrize(
    ("plain", "precise", "saturates"), [(True, True, False), (True, False, False), (False, True, True)]
)
def test_the_precise_mode_is_asked_for_only_where_it_helps(plain, precise, saturates, monkeypatch):
    answers = {False: plain, True: precise}
    monkeypatch.setattr(exactness, "products_are_exact", lambda *, precise: answers[precise])
    assert exactness.signed_int8_saturates.__wrapped__() is saturates


def test_a_processor_that_is_exact_in_neither_mode_is_refused(monkeypatch):
    monkeypatch.setattr(exactness, "products_are_exact", lambda *, precise: False)
    with pytest.raises(ProviderError, match=r"onnxruntime \S+ multiplies int8 wrongly.*upgrade it"):
        exactness.signed_int8_saturates.__wrapped__()


def test_the_processor_is_asked_once():
    exactness.signed_int8_saturates()
    hits = exactness.signed_int8_saturates.cache_info().hits
    exactness.signed_int8_saturates()
    assert exactness.signed_int8_saturates.cache_info().hits == hits + 1
