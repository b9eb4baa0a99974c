"""Writes an ONNX graph node by node, as its operators are called, with the weights in a file beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from torchless.errors import ExportError

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as missing:
    raise ExportError(
        f"exporting needs onnx and safetensors: pip install 'torchless[export]' ({missing})"
    ) from None

Dialect = Literal["fused", "standard"]
Value = str  # the name of a tensor in the graph; "" is an input that is left out

# Opset 20 is the newest that TensorRT, OpenVINO and the GPU wheel all take; IR 10 goes with it.
OPSET, IR_VERSION = 20, 10
CONTRIB = "com.microsoft"
ALIGNMENT = 4096  # a page: what memory-mapping needs
INLINE = 1024  # bytes; smaller tensors stay in model.onnx, where shape inference can see them


class Builder:
    """One graph in the making. `op` adds a node and returns the name of what it computes.

    >>> b = Builder("fused")
    >>> x = b.input("x", np.float32, ["B", 4])
    >>> b.output("y", b.op("MatMul", x, b.weight("w", np.eye(4, dtype=np.float32))), np.float32, ["B", 4])
    """

    def __init__(self, dialect: Dialect) -> None:
        self.dialect: Dialect = dialect
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._tensors: dict[str, npt.NDArray[Any]] = {}
        self._taken: dict[str, int] = {}
        self._renamed: dict[str, str] = {}
        self._once: dict[object, Value] = {}

    @property
    def fused(self) -> bool:
        return self.dialect == "fused"

    def input(self, name: str, dtype: npt.DTypeLike, shape: Sequence[int | str]) -> Value:
        self._inputs.append(_declare(name, dtype, shape))
        return name

    def output(self, name: str, value: Value, dtype: npt.DTypeLike, shape: Sequence[int | str]) -> None:
        """Publish `value` under `name`."""
        self._renamed[value] = name
        self._outputs.append(_declare(name, dtype, shape))

    def op(self, kind: str, *inputs: Value, domain: str = "", **attributes: Any) -> Value:
        """Add a node of one output and return its name."""
        return self.ops(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(self, kind: str, *inputs: Value, outputs: int, domain: str = "", **attributes: Any) -> list[Value]:
        """Add a node of several outputs and return their names."""
        count = self._taken.get(kind, 0)
        self._taken[kind] = count + 1
        name = f"{kind}_{count}"
        names = [name if index == 0 else f"{name}.{index}" for index in range(outputs)]
        last = max((i + 1 for i, value in enumerate(inputs) if value), default=0)  # no trailing ""
        self._nodes.append(
            helper.make_node(kind, list(inputs[:last]), names, name=name, domain=domain, **attributes)
        )
        return names

    def weight(self, name: str, array: npt.NDArray[Any]) -> Value:
        """Hold `array` as an initializer; the same name gives the same one, so tied weights are stored once."""
        if name not in self._tensors:
            # A transposed view would be written in memory order and read back wrong.
            self._tensors[name] = np.ascontiguousarray(array)
        return name

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike) -> Value:
        """A small number or shape, stored once for each value. A 0-d value stays 0-d."""
        array = np.array(value, dtype=dtype)
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()[:10]
        return self._once.setdefault(("constant", digest), self._keep(f"constant_{digest}", array))

    def once(self, key: object, value: Value | None = None) -> Value | None:
        """Remember (or recall) a value that several layers share, such as the attention mask."""
        if value is not None:
            self._once[key] = value
        return self._once.get(key)

    def _keep(self, name: str, array: npt.NDArray[Any]) -> Value:
        self._tensors.setdefault(name, array)
        return name

    def save(self, folder: Path, name: str, data_name: str) -> None:
        """Write `folder`/`name` and its weights `folder`/`data_name`, checked by onnx."""
        read = {value for node in self._nodes for value in node.input}
        graph = helper.make_graph(
            self._renamed_nodes(),
            "torchless",
            # OpenVINO drops an input that nothing reads, and takes the next one for it.
            [declared for declared in self._inputs if declared.name in read],
            self._outputs,
            self._write_tensors(folder / data_name),
        )
        opsets = [helper.make_opsetid("", OPSET)]
        if any(node.domain == CONTRIB for node in self._nodes):
            opsets.append(helper.make_opsetid(CONTRIB, 1))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="torchless")
        (folder / name).write_bytes(model.SerializeToString(deterministic=True))
        try:
            onnx.checker.check_model(str(folder / name))
        except onnx.checker.ValidationError as error:
            raise ExportError(f"the graph is not valid ONNX, please report this: {error}") from error

    def _renamed_nodes(self) -> list[onnx.NodeProto]:
        for node in self._nodes:
            for values in (node.input, node.output):
                for index, value in enumerate(values):
                    values[index] = self._renamed.get(value, value)
        return self._nodes

    def _write_tensors(self, path: Path) -> list[TensorProto]:
        protos: list[TensorProto] = []
        offset = 0
        used = {value for node in self._nodes for value in node.input}
        places: dict[tuple[int, int], int] = {}  # of one memory under two names, which is written once
        with path.open("wb") as stream:
            for name, array in self._tensors.items():
                if name not in used:
                    continue
                if array.nbytes < INLINE:
                    protos.append(numpy_helper.from_array(array, name))
                    continue
                memory = array.ctypes.data, array.nbytes
                if memory not in places:
                    padding = -offset % ALIGNMENT
                    stream.write(b"\0" * padding)
                    places[memory] = offset + padding
                    stream.write(array.data)
                    offset += padding + array.nbytes
                proto = TensorProto(
                    name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype)
                )
                proto.data_location = TensorProto.EXTERNAL
                for key, value in (("location", path.name), ("offset", places[memory]), ("length", array.nbytes)):
                    proto.external_data.add(key=key, value=str(value))
                protos.append(proto)
        return protos


def _declare(name: str, dtype: npt.DTypeLike, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape))
