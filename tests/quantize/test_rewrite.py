"""The rewritten graph computes integer products exactly, and the report tells what was rewritten."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import product, rewritten, run, save, tied, uneven

from torchless.errors import QuantizationError
from torchless.export.builder import CONTRIB, Builder
from torchless.quantize.draft import Draft
from torchless.quantize.recipes import Blocks, Columns
from torchless.quantize.weights import blocks, int8_columns, unpack

ROWS = (1, 2, 7, 40)  # one row takes another kernel than many


def external(path, name):
    """Where an initializer lies: (offset, length) in the data file."""
    (tensor,) = [t for t in onnx.load(str(path), load_external_data=False).graph.initializer if t.name == name]
    where = {entry.key: entry.value for entry in tensor.external_data}
    return int(where["offset"]), int(where["length"])


def nodes(path):
    return onnx.load(str(path), load_external_data=False).graph.node


def rounded_rows(x):
    """What the int8 operators make of x, row by row, with numpy: whole numbers around 0, and the largest."""
    largest = np.abs(x).max(axis=-1, keepdims=True)
    return np.rint(x / largest / np.float32(1 / 127)).astype(np.int64), largest.astype(np.float64)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("length", "count"), [(64, 48), (100, 33), (13, 2), (768, 60)])
def test_int8_is_exact_integer_arithmetic(rows, length, count, tmp_path):
    weight = uneven(length, count)
    weight[:, 0] = np.abs(weight[:, 0]).max()  # every code 127: the sums that saturate first
    path, _ = rewritten(product(tmp_path, weight))
    x = uneven(rows, length, seed=rows)
    x[0] = np.abs(x[0]).max()
    codes, scale = int8_columns("w", weight)
    whole, largest = rounded_rows(x)
    exact = (whole @ codes.astype(np.int64)) * scale.astype(np.float64) / 127 * largest
    ours = run(path, x=x)["y"]
    span = np.abs(whole) @ np.abs(codes.astype(np.int64)) * scale / 127 * largest
    assert (np.abs(ours - exact) <= 5e-7 * span).all()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("recipe", "bits"), [("int8", 8), ("int4-all", 4)])
@pytest.mark.parametrize(("length", "count"), [(64, 48), (100, 33), (13, 2)])
def test_blocks_are_exact_integer_arithmetic(rows, recipe, bits, length, count, tmp_path):
    weight = uneven(length, count)
    path, report = rewritten(product(tmp_path, weight, last=True), recipe)
    ((_, scheme),) = report.done
    assert isinstance(scheme, Blocks) and scheme.bits == bits
    # Whole numbers with a largest of 127 in every block of 16 or more: no activation is rounded on the way.
    x = np.random.default_rng(rows).integers(-127, 128, (rows, length)).astype(np.float32)
    x[:, ::16], x[0] = -127, 127
    stands_for = unpack(*blocks("w", np.ascontiguousarray(weight.T), bits, scheme.size), bits, length)
    # The kernels multiply codes from 0 up and take the zero point's part away: float32 rounds at that size.
    span = np.abs(x) @ np.full((length, count), np.abs(stands_for).max() * 2)
    assert (np.abs(run(path, x=x)["y"] - x.astype(np.float64) @ stands_for.T) <= 2e-7 * span).all()


@pytest.mark.parametrize("recipe", ["int8", "int4-all"])
def test_blocks_round_activations_block_by_block(recipe, tmp_path):
    """On average; a value that lies between two codes may fall either way, by the kernel's own arithmetic."""
    weight, x = uneven(100, 33), uneven(40, 100)
    path, report = rewritten(product(tmp_path, weight, last=True), recipe)
    ((_, scheme),) = report.done
    in_blocks = np.pad(x, [(0, 0), (0, -100 % scheme.size)]).reshape(40, -1, scheme.size).astype(np.float64)
    step = np.abs(in_blocks).max(axis=-1, keepdims=True) / 127
    rounded = (np.rint(in_blocks / step) * step).reshape(40, -1)[:, :100]
    codes = blocks("w", np.ascontiguousarray(weight.T), scheme.bits, scheme.size)
    stands_for = unpack(*codes, scheme.bits, 100).T
    unrounded = np.abs((x - rounded) @ stands_for).mean()
    assert np.abs(run(path, x=x)["y"] - rounded @ stands_for).mean() < 0.01 * unrounded


def test_a_row_of_zeros_gives_zeros_and_a_broken_row_nothing_finite(tmp_path):
    path, _ = rewritten(product(tmp_path, uneven(64, 48)))
    x = uneven(5, 64)
    x[1], x[2], x[3, 5] = 0, np.nan, np.inf
    y = run(path, x=x)["y"]
    assert not y[1].any()
    assert not np.isfinite(y[[2, 3]]).any()
    sound = run(path, x=x[[0, 4]])["y"]
    assert np.array_equal(y[[0, 4]], sound)


@pytest.mark.parametrize("recipe", ["int8", "int4", "int4-all"])
@pytest.mark.parametrize("width", [20, 48, 100, 128])
def test_one_matrix_serves_the_embedding_and_the_tied_head(recipe, width, tmp_path):
    table = uneven(300, width)
    path, report = rewritten(tied(tmp_path, table), recipe)
    ((matrix, scheme),) = report.done
    assert matrix.role == "ends" and matrix.name == "wte"
    gather, head = (next(n for n in nodes(path) if n.op_type == k) for k in ("GatherBlockQuantized", "MatMulNBits"))
    for mine, its in ((gather.input[0], head.input[1]), (gather.input[2], head.input[2])):
        assert mine != its  # onnxruntime would keep what it packs for the product as it lies, too
        assert external(path, mine) == external(path, its)  # two names, one place
    assert (path.parent / "model.onnx.data").stat().st_size < table.size * scheme.bits / 8 * 1.5 + 3 * 4096
    ids, x = np.array([[0, 299, 5], [7, 7, 1]]), uneven(3, width)
    out = run(path, input_ids=ids, x=x)
    stands_for = unpack(*blocks("wte", table, scheme.bits, scheme.size), scheme.bits, width)
    assert np.allclose(out["e"], stands_for[ids], rtol=1e-6, atol=0)
    assert out["logits"].shape == (3, 300)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_no_rows_give_no_scores_and_no_vectors(shape, tmp_path):
    path, _ = rewritten(tied(tmp_path, uneven(67, 48)))
    out = run(path, input_ids=np.zeros(shape, np.int64), x=np.zeros((0, 48), np.float32))
    assert out["e"].shape == (*shape, 48) and out["logits"].shape == (0, 67)


def test_an_activation_that_two_matrices_read_is_quantized_once(tmp_path):
    b = Builder("fused")
    x = b.input("x", np.float32, ["M", 64])
    b.weight("k", uneven(64, 32, seed=2))  # stored before q, read after it
    for name, seed in (("q", 1), ("k", 2)):
        y = b.op("MatMul", x, b.weight(name, uneven(64, 32, seed=seed)))
        b.output(name + "_out", b.op("Tanh", y), np.float32, ["M", 32])
    path, report = rewritten(save(b, tmp_path))
    kinds = [node.op_type for node in nodes(path)]
    assert len(report.done) == 2
    assert (kinds.count("QuantizeLinear"), kinds.count("MatMulIntegerToFloat")) == (1, 2)


def test_the_report_says_which_part_of_the_recipe_each_matrix_follows(tmp_path):
    b = Builder("fused")
    ids, places = (b.input(name, np.int64, ["B", "S"]) for name in ("input_ids", "position_ids"))
    x = b.op(
        "Add", *(b.op("Gather", b.weight(n, uneven(16, 32)), i) for n, i in (("word", ids), ("place", places)))
    )
    h = b.op("Tanh", b.op("MatMul", x, b.weight("inner", uneven(32, 40))))
    y = b.op("MatMul", h, b.weight("last", uneven(40, 5)))
    b.output("logits", b.op("Add", y, b.weight("bias", uneven(5))), np.float32, ["B", "S", 5])
    _, report = rewritten(save(b, tmp_path))
    assert {matrix.name: (matrix.role, scheme) for matrix, scheme in report.done} == {
        "word": ("ends", Blocks(8, 32)),
        "place": ("tables", Blocks(8, 32)),
        "inner": ("body", Columns()),
        "last": ("ends", Blocks(8, 16)),
    }
    assert report.left == () and report.signed_int8


def test_what_stays_in_float_is_reported_with_its_reason(tmp_path):
    b = Builder("fused")
    x, column = b.input("x", np.float32, ["M", 32]), b.input("column", np.int64, ["C"])
    one = b.constant([1], np.int64)
    zero, w = b.constant([0], np.int64), b.weight("w", uneven(32, 5))
    left = [
        b.op("Slice", b.weight("sliced", uneven(8, 32)), zero, one, zero),
        b.op("Tanh", b.op("MatMul", b.weight("on_the_left", uneven(5, 5)), b.op("MatMul", x, w))),
        b.op("MatMul", x, b.weight("stacked", uneven(3, 32, 5))),
        b.op("FusedMatMul", x, b.weight("scaled", uneven(32, 5)), domain=CONTRIB, alpha=2.0),
        b.op("Gather", b.weight("by_column", uneven(6, 32)), column, axis=1),
        b.op("Gather", b.weight("by_constant", uneven(6, 32)), one, axis=0),
        b.op("MatMul", x, b.weight("both_ways", uneven(32, 32))),
        b.op("FusedMatMul", x, "both_ways", domain=CONTRIB, transB=1),
        b.op("Gather", b.weight("short", uneven(15, 32)), column),
    ]
    for i, value in enumerate(left):
        b.output(f"out{i}", value, np.float32, [f"d{i}{j}" for j in range((2, 2, 3, 2, 2, 2, 2, 2, 2)[i])])
    path, report = rewritten(save(b, tmp_path))
    assert [matrix.name for matrix, _ in report.done] == ["w"]
    assert {left.name: left.reason for left in report.left} == {
        "sliced": "Slice reads it, which has no quantized form",
        "on_the_left": "MatMul reads it, which has no quantized form",
        "stacked": "it has shape [3, 32, 5], not rows and columns",
        "scaled": "FusedMatMul reads it, which has no quantized form",
        "by_column": "Gather reads it, which has no quantized form",
        "by_constant": "Gather reads it, which has no quantized form",
        "both_ways": "it is read as it lies and transposed",
        "short": "it has 15 rows",
    }
    feeds = {"x": uneven(5, 32), "column": np.array([14, 0])}
    before, after = run(tmp_path / "model.onnx", **feeds), run(path, **feeds)
    assert all(before[name].shape == after[name].shape for name in before)
    assert np.array_equal(before["out2"], after["out2"])


def test_every_stored_weight_starts_a_page_so_that_it_can_be_mapped(tmp_path):
    path, _ = rewritten(product(tmp_path, uneven(100, 333)))
    tensors = onnx.load(str(path), load_external_data=False).graph.initializer
    stored = [external(path, tensor.name) for tensor in tensors if tensor.external_data]
    assert len(stored) == 2 and all(offset % 4096 == 0 for offset, _ in stored)
    assert (path.parent / "model.onnx.data").stat().st_size == max(offset + length for offset, length in stored)


def test_weights_that_lie_outside_the_folder_are_not_read(tmp_path):
    path = product(tmp_path / "bundle", uneven(64, 48))
    (tmp_path / "secret").write_bytes(bytes(64 * 48 * 4))
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(QuantizationError, match=r"w of .*model\.onnx lies in .*secret, outside"):
        rewritten(path)


def test_weights_behind_the_end_of_their_file_are_not_read(tmp_path):
    path = product(tmp_path, uneven(64, 48))
    data = tmp_path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(QuantizationError, match=r"w lies behind the end of .*model\.onnx\.data: export it again"):
        rewritten(path)


def test_a_file_that_is_no_graph_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a protobuf")
    with pytest.raises(QuantizationError, match=r"model\.onnx is not an ONNX graph"):
        Draft(tmp_path / "model.onnx", tmp_path / "out.onnx")
