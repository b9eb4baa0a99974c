"""int8 products are exact on this processor, and where they would not be, the precise mode is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import onnx
import pytest
from onnx import TensorProto, helper

from torchless import exactness
from torchless.errors import ProviderError

QEMU = "qemu-x86_64"
ASK = """
from torchless import exactness
print(exactness.signed_int8_saturates(), exactness.products_are_exact(precise=True))
"""


def probe() -> bytes:
    """The model inside exactness.py: the largest uint8 times large int8, 64 terms a sum."""
    nodes = [
        helper.make_node("Expand", ["row", "shape"], ["w"]),
        helper.make_node("MatMulIntegerToFloat", ["a", "w", "one", "one", "zero"], ["y"], domain="com.microsoft"),
    ]
    constants = [
        helper.make_tensor("row", TensorProto.INT8, [1, 60], bytes(range(68, 128)), raw=True),
        helper.make_tensor("shape", TensorProto.INT64, [2], [64, 60]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("zero", TensorProto.UINT8, [], [128]),
    ]
    a = helper.make_tensor_value_info("a", TensorProto.UINT8, ["M", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", 60])
    graph = helper.make_graph(nodes, "probe", [a], [y], constants)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString(deterministic=True)


def ask_a_processor_without_vnni() -> str:
    """What exactness.py says there: on this processor if it is one, else on an emulated Haswell (AVX2)."""
    command = [sys.executable, "-c", ASK]
    if not exactness.signed_int8_saturates():
        if shutil.which(QEMU) is None:
            pytest.skip(f"int8 is exact on this processor and {QEMU} is missing: apt-get install qemu-user")
        command = [QEMU, "-cpu", "Haswell", *command]
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=quiet)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_embedded_probe_is_the_model_that_its_comment_describes():
    assert probe() == exactness._PROBE
    onnx.checker.check_model(onnx.load_model_from_string(exactness._PROBE))


def test_the_precise_mode_is_exact_on_this_processor():
    assert exactness.products_are_exact(precise=True)


def test_signed_weights_saturate_without_vnni_and_the_precise_mode_repairs_them():
    assert ask_a_processor_without_vnni() == "True True"


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
