"""What a graph takes and gives, read from the protobuf itself, so that no session is opened to find out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchless.protobuf import fields, mapped, numbers

# onnx.proto: the graph of a model; inputs, outputs and initializers of a graph.
GRAPH, INITIALIZER, INPUT, OUTPUT = 7, 5, 11, 12
TENSOR_NAME = 8
FLOAT, FLOAT16, INT32, INT64, BOOL = 1, 10, 6, 7, 9
MOST_VALUES = 10_000  # a decoder of 100 layers has 200 pasts


@dataclass(frozen=True)
class Tensor:
    """An input or output: its element type by onnx's number, and its shape, with a name or "" for what varies."""

    name: str
    type: int
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Signature:
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def read_signature(path: Path) -> Signature:
    """Raises ValueError for what is no ONNX model."""
    try:
        return _signature(mapped(path))
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from None


def _signature(model: memoryview) -> Signature:
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    held: set[str] = set()
    for number, graph in fields(model):
        if number != GRAPH:
            continue
        for kind, content in fields(graph):
            if kind == INITIALIZER:
                held |= {str(value, "utf-8") for field, value in fields(content) if field == TENSOR_NAME}
            elif kind in (INPUT, OUTPUT):
                tensor = _tensor(content)
                (inputs if kind == INPUT else outputs)[tensor.name] = tensor
                if len(inputs) + len(outputs) > MOST_VALUES:
                    raise ValueError(f"more than {MOST_VALUES:,} inputs and outputs")
    if not outputs:
        raise ValueError("no graph with outputs")
    # Old files list the weights among the inputs.
    return Signature({name: one for name, one in inputs.items() if name not in held}, outputs)


def _tensor(value_info: memoryview) -> Tensor:
    name, kind, shape = "", 0, []
    for number, content in fields(value_info):
        if number == 1:
            name = str(content, "utf-8")
        for tensor_type in _inside(content, 1) if number == 2 else ():
            kind = dict(numbers(tensor_type)).get(1, 0)
            for dimensions in _inside(tensor_type, 2):
                shape = [_size(one) for one in _inside(dimensions, 1)]
    return Tensor(name, kind, tuple(shape))


def _size(dimension: memoryview) -> int | str:
    known = dict(numbers(dimension))
    return known[1] if 1 in known else str(dict(fields(dimension)).get(2, b""), "utf-8")


def _inside(content: memoryview, number: int) -> Iterator[memoryview]:
    return (value for field, value in fields(content) if field == number)
