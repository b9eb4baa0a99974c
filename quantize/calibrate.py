"""What a graph computes inside on given tokens: the values that calibration looks at, a row at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from torchless.bundle import Bundle
from torchless.errors import InputError, QuantizationError
from torchless.exactness import PRECISE_MODE
from torchless.manifest import Graph
from torchless.ort import onnxruntime
from torchless.quantize.data import sample
from torchless.quantize.weights import Float
from torchless.text import TOKENIZER, Text, Tokenizer

MOST_ROWS = 128
LONGEST_ROW = 256
RANDOM_LENGTHS = (8, 32, 128) * 4
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class Row:
    """The tokens of one text, and an encoder's segment ids (zeros where the list is empty)."""

    input_ids: list[int]
    token_type_ids: list[int]


def rows_of(bundle: Bundle, texts: Sequence[Text]) -> list[Row]:
    """Texts as a model of the bundle reads them, cut to its context; a generator's long text in several windows.

    Raises InputError where no text holds a token.
    """
    manifest = bundle.manifest
    tokenizer = Tokenizer.read(bundle.file(TOKENIZER))
    encodings = [tokenizer.encode(text) for text in sample(texts, MOST_ROWS)]
    longest = min(manifest.context_length, LONGEST_ROW)
    rows = [Row(e.ids[:longest], e.type_ids[:longest]) for e in encodings if e.ids]
    if manifest.cache is not None:
        ids = [token for encoding in encodings for token in encoding.ids]
        windows = [Row(ids[start : start + longest], []) for start in range(0, len(ids), longest)]
        rows = sample(windows, MOST_ROWS)
    if not rows:
        raise InputError("the calibration data holds no token: give texts of the kind that the model will read")
    return rows


@dataclass(frozen=True)
class Span:
    """What a value was seen to be: its ends, with 0 between them, and its rows' largest magnitude (rms)."""

    low: float
    high: float
    row: float


class Calibration:
    """Rows of tokens, and what a float32 graph computes inside on them."""

    def __init__(self, bundle: Bundle, graph: Graph, rows: Sequence[Row], *, text: bool = True) -> None:
        self._bundle, self._graph, self.rows = bundle, graph, rows
        self.text = text  # rather than random tokens, which say little of what occurs together
        self._divided: dict[str, tuple[str, Float]] = {}

    @classmethod
    def random(cls, bundle: Bundle, graph: Graph, seed: int = 0) -> Calibration:
        """Random tokens: the same channels are large for them as for text (docs/quantization.md)."""
        generator = np.random.default_rng(seed)
        manifest = bundle.manifest
        lengths = [min(length, manifest.context_length) for length in RANDOM_LENGTHS]
        rows = [Row(generator.integers(0, manifest.vocab_size, length).tolist(), []) for length in lengths]
        return cls(bundle, graph, rows, text=False)

    def divide(self, name: str, value: str, by: Float) -> None:
        """From now on `name` stands for what the graph has as `value`, over a number a channel [D]."""
        self._divided[name] = (value, by)

    def __call__(self, values: Sequence[str]) -> Iterator[dict[str, Float]]:
        """For each row of S tokens, each of `values` by name, float32 [S,..]."""
        inside = {name: self._divided.get(name, (name, None)) for name in values}
        for found in observe(self._bundle, self._graph, [name for name, _ in inside.values()], self.rows):
            yield {name: found[value] if by is None else found[value] / by for name, (value, by) in inside.items()}

    def magnitudes(self, values: Sequence[str]) -> dict[str, Float]:
        """The largest magnitude of every channel [D] of each value."""
        largest: dict[str, Float] = {}
        for found in self(values):
            for name, array in found.items():
                seen = np.abs(array).max(axis=0)
                largest[name] = np.maximum(largest[name], seen) if name in largest else seen
        return largest

    def moments(self, values: Sequence[str]) -> dict[str, Float]:
        """The mean of x xᵀ [K,K] over all tokens, of each value x [S,K]."""
        sums: dict[str, Float] = {}
        for found in self(values):
            for name, array in found.items():
                tokens = array.reshape(-1, array.shape[-1])
                product: Float = tokens.T @ tokens
                sums[name] = sums[name] + product if name in sums else product
        count = sum(len(row.input_ids) for row in self.rows)
        return {name: total / np.float32(count) for name, total in sums.items()}

    def spans(self, values: Sequence[str]) -> dict[str, Span]:
        ends: dict[str, tuple[float, float]] = {}
        squares: dict[str, list[float]] = {}
        for found in self(values):
            for name, array in found.items():
                low, high = ends.get(name, (0.0, 0.0))
                ends[name] = min(low, float(array.min())), max(high, float(array.max()))
                squares.setdefault(name, []).extend(np.square(np.abs(array).max(axis=-1)).ravel().tolist())
        return {name: Span(*ends[name], float(np.sqrt(np.mean(squares[name])))) for name in ends}


def observe(bundle: Bundle, graph: Graph, values: Sequence[str], rows: Iterable[Row]) -> Iterator[dict[str, Float]]:
    """For each row of S tokens, each of `values` by name, float32 [S,..]: a value inside the graph, or an output.

    A decoder reads the row as a prompt on an empty cache. Raises QuantizationError where a value is not finite.
    """
    names = list(dict.fromkeys(values))
    session = open_model(_with_outputs(bundle, graph, names), bundle.file(graph.file).parent)
    for row in rows:
        found = session.run(names, feed(bundle, session, row, logits="logits" in names))
        for name, array in zip(names, found, strict=True):
            if not np.isfinite(array).all():
                raise QuantizationError(
                    f"{bundle.path} gives NaN or infinity for a text of {len(row.input_ids)} tokens ({name}): "
                    "export it again from a sound checkpoint"
                )
        yield {name: array[0] for name, array in zip(names, found, strict=True)}


def _with_outputs(bundle: Bundle, graph: Graph, values: Sequence[str]) -> bytes:
    """The graph, which also gives out the values inside."""
    model = onnx.load(str(bundle.file(graph.file)), load_external_data=False)
    outputs = {value.name for value in model.graph.output}
    for name in values:
        if name not in outputs:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    return bytes(model.SerializeToString())


def open_model(model: bytes, weights: Path, *, precise: bool = False) -> Any:
    """A session of a graph in memory whose other weights are mapped from a folder. precise: see exactness.py."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_mem_pattern = False
    options.add_session_config_entry(WEIGHTS_FOLDER, str(weights))
    if precise:
        options.add_session_config_entry(PRECISE_MODE, "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feed(bundle: Bundle, session: Any, row: Row, *, logits: bool) -> dict[str, Any]:
    """The inputs for one row; logits: of every token, or of none (decoders)."""
    length = len(row.input_ids)
    ids = np.array([row.input_ids], np.int64)
    cache = bundle.manifest.cache
    feeds: dict[str, Any] = {"input_ids": ids}
    if cache is None:
        types = np.array([row.token_type_ids or [0] * length], np.int64)
        feeds |= {"attention_mask": np.ones_like(ids), "token_type_ids": types}
    else:
        feeds |= {
            "position_ids": np.arange(length)[None],
            "seqlens_k": np.array([length - 1], np.int32),
            "total_sequence_length": np.array(length, np.int32),
            "logits_positions": np.arange(length if logits else 0)[None],
        }
    known = {value.name: value for value in session.get_inputs()}
    for name, value in known.items():
        if name.startswith("past_key_values."):
            _, heads, _, size = value.shape
            dtype = np.float16 if value.type == "tensor(float16)" else np.float32  # a graph that is being judged
            feeds[name] = np.zeros((1, heads, length, size), dtype)
    return {name: array for name, array in feeds.items() if name in known}
