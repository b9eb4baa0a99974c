"""An ONNX graph on its way to a new folder: nodes are replaced, weights go to a new data file at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from torchless.errors import QuantizationError

ALIGNMENT = 4096  # a page: what memory-mapping needs
INLINE = 1024  # bytes; smaller tensors stay in model.onnx, where shape inference can see them
CONTRIB = "com.microsoft"
EXPORT_AGAIN = "export it again"

Convert = Callable[[str, npt.NDArray[Any]], npt.NDArray[Any]]


class Draft:
    """The graph at `source`; its rewritten form is written to `target` by `save`, or given by `in_memory`.

    Weights are never loaded into the protobuf, which could not hold more than 2 GB: old ones are mapped, new
    ones written at once, and what no node reads any more is left out.
    """

    def __init__(self, source: Path, target: Path | None) -> None:
        self._source = source
        self._target = target
        if target is not None:
            self._data = target.with_name(f"{target.name}.data")
            self._data.touch(exist_ok=False)
        try:
            self.model: Any = onnx.load(str(source), load_external_data=False)
        except Exception as error:  # protobuf's own, which differs by version
            raise QuantizationError(f"{source} is not an ONNX graph ({error}): {EXPORT_AGAIN}") from error
        self.nodes: list[Any] = list(self.model.graph.node)
        self.outputs = {value.name for value in self.model.graph.output}
        self.input_ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in self.model.graph.input}
        self.tensors: dict[str, Any] = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.convert: Convert | None = None  # what every weight goes through on its way to the new file
        self._replaced: dict[int, list[Any]] = {}
        self._before: dict[str, dict[str, list[Any]]] = {}
        self._new: dict[str, Any] = {}
        self._factors: dict[str, npt.NDArray[np.float32]] = {}

    def readers(self) -> dict[str, list[Any]]:
        """The nodes that read each value, a node once for every input that does."""
        found: dict[str, list[Any]] = {}
        for node in self.nodes:
            for value in node.input:
                found.setdefault(value, []).append(node)
        return found

    def scale(self, name: str, factor: npt.NDArray[np.float32]) -> None:
        """Multiply a weight by a factor that broadcasts to it, whenever it is read from now on."""
        self._factors[name] = self._factors[name] * factor if name in self._factors else factor

    def array(self, name: str) -> npt.NDArray[Any]:
        """A weight: the source's own, mapped from its file and never to be written to, unless it was scaled."""
        return self._mapped(name) * self._factors[name] if name in self._factors else self._mapped(name)

    def add(self, name: str, array: npt.NDArray[Any]) -> str:
        """Store a new weight and return its name; a second array under one name is not stored again."""
        if name not in self._new:
            if self.convert is not None:
                array = self.convert(name, array)
            if array.nbytes < INLINE or self._target is None:
                self._new[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)  # 0-d stays so
            else:
                self._new[name] = self._external(name, array)
        return name

    def add_view(self, name: str, shape: tuple[int, ...], of: str) -> str:
        """The bytes of a new weight under a second name and shape, for operators that want it otherwise."""
        tensor = TensorProto()
        tensor.CopyFrom(self._new[of])
        tensor.name = name
        del tensor.dims[:]
        tensor.dims.extend(shape)
        self._new[name] = tensor
        return name

    def replace(self, node: Any, nodes: Iterable[Any]) -> None:
        self._replaced[id(node)] = list(nodes)

    def before_readers(self, value: str, nodes: Iterable[Any]) -> None:
        """Put nodes where the value is there and nothing has read it yet; those that are there stay alone."""
        made = list(nodes)
        self._before.setdefault(value, {}).setdefault(made[-1].output[0], made)

    def save(self) -> None:
        """Write the graph, with the weights that are still read."""
        assert self._target is not None
        self._finish()
        self._target.write_bytes(self.model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(self._target))

    def in_memory(self) -> bytes:
        """The graph with its new weights inside; the others stay in the source's data file."""
        self._finish()
        return bytes(self.model.SerializeToString())

    def _finish(self) -> None:
        self.nodes = list(self._new_nodes())
        read = {value for node in self.nodes for value in node.input}
        for name, tensor in self.tensors.items():
            as_it_is = name not in self._factors and self.convert is None
            if name in read and self._target is None and as_it_is:
                self._new.setdefault(name, tensor)
            elif name in read:
                self.add(name, self.array(name))
        old = self.model.graph  # its value_info is left out: some of those values are gone
        tensors = [tensor for name, tensor in self._new.items() if name in read]
        graph = helper.make_graph(self.nodes, old.name, list(old.input), list(old.output), tensors)
        self.model.graph.CopyFrom(graph)
        known = {opset.domain for opset in self.model.opset_import}
        if CONTRIB not in known and any(node.domain == CONTRIB for node in self.nodes):
            self.model.opset_import.append(helper.make_opsetid(CONTRIB, 1))

    def _mapped(self, name: str) -> npt.NDArray[Any]:
        tensor = self.tensors[name]
        if tensor.data_location != TensorProto.EXTERNAL:
            return np.asarray(numpy_helper.to_array(tensor))
        where = {entry.key: entry.value for entry in tensor.external_data}
        path = self._source.parent / where.get("location", "")
        if path.parent != self._source.parent or not path.is_file():
            raise QuantizationError(f"{name} of {self._source} lies in {path}, outside: {EXPORT_AGAIN}")
        dtype, shape = helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)
        offset, length = int(where.get("offset", 0)), int(np.prod(shape)) * dtype.itemsize
        if offset < 0 or offset + length > path.stat().st_size:
            raise QuantizationError(f"{name} lies behind the end of {path}: {EXPORT_AGAIN}")
        return np.memmap(path, dtype, "r", offset, shape) if length else np.empty(shape, dtype)

    def _new_nodes(self) -> Iterator[Any]:
        for node in self.nodes:
            for value in node.input:
                for made in self._before.pop(value, {}).values():
                    yield from made
            yield from self._replaced.get(id(node), [node])

    def _external(self, name: str, array: npt.NDArray[Any]) -> Any:
        with self._data.open("ab") as stream:
            stream.write(b"\0" * (-stream.tell() % ALIGNMENT))
            offset = stream.tell()
            stream.write(np.asarray(array, order="C").data)
        tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self._data.name), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor
