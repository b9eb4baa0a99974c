"""Keys and values in the memory of a GPU, which they never leave; of the logits only the rows asked for do.

Buffers are bound by address, so a row of one is a view like numpy's, and a step writes where the next one reads.
With cuda_graph=True the step of one token is recorded and replayed: everything that it touches keeps its address,
and what the host would tell anew each time (total_sequence_length) is constant, the room of the cache.

Letters as in cache.py; K rows of logits asked for, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchless.cache import KVCache, Numbers
from torchless.ort import onnxruntime
from torchless.providers.options import CUDA, TensorRT
from torchless.session import bind
from torchless.step import Step

if TYPE_CHECKING:
    import onnxruntime as ort

    from torchless.decoder import Decoder
    from torchless.hosted import HostedSession

DEVICES = {kind.ort_name: kind.device for kind in (CUDA, TensorRT)}
MOVERS = {"cuda": CUDA.ort_name}  # who moves rows there; the CPU elsewhere
RECORDS = ("enable_cuda_graph", "trt_cuda_graph_enable")
MOST_RECORDS = 64  # each keeps memory as long as the session lives; further steps run unrecorded
UNRECORDED = -1
# moved[R,H,C,E] = given[B,H,C,E] by rows[R]: Gather, for float32. In bytes, because the runtime has no onnx;
# tests/runtime/test_device.py builds it anew.
_MOVE = (
    b'\x08\n\x12\x00:\x8d\x01\n)\n\x05given\n\x04rows\x12\x05moved"\x06Gather*\x0b\n\x04axis\x18\x00\xa0\x01\x02'
    b"\x12\x01gZ#\n\x05given\x12\x1a\n\x18\x08\x01\x12\x14\n\x03\x12\x01B\n\x03\x12\x01H\n\x03\x12\x01C\n\x03\x12\x01E"
    b"Z\x13\n\x04rows\x12\x0b\n\t\x08\x07\x12\x05\n\x03\x12\x01Rb#\n\x05moved\x12\x1a\n\x18\x08\x01\x12\x14"
    b"\n\x03\x12\x01R\n\x03\x12\x01H\n\x03\x12\x01C\n\x03\x12\x01EB\x04\n\x00\x10\x14"
)
_FLOAT32, _FLOAT16 = b"\x08\x01\x12\x14", b"\x08\x0a\x12\x14"

Key = tuple[Any, ...]


def move_graph(dtype: npt.DTypeLike) -> bytes:
    return _MOVE if dtype == np.float32 else _MOVE.replace(_FLOAT32, _FLOAT16)


def device_of(session: HostedSession) -> Device | None:
    """Where the session's provider has its memory; None where that is the host's."""
    name = session.get_providers()[0]
    if name not in DEVICES:
        return None
    told = session.get_provider_options()[name]
    records = any(told.get(option) in ("1", "True", "true") for option in RECORDS)
    return Device(DEVICES[name], int(told.get("device_id", 0)), records)


class Device:
    """Memory of one device, by onnxruntime's name ("cuda") and number.

    records: whether its session replays what it has recorded.
    """

    def __init__(self, kind: str, number: int = 0, records: bool = False) -> None:
        self.place = kind, number
        self.records = records
        self._numbers: dict[Key, int] = {}  # of what was recorded, by all addresses and sizes that it touches

    def room(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> ort.OrtValue:
        """Memory whose content is undefined."""
        return onnxruntime().OrtValue.ortvalue_from_shape_and_type(shape, dtype, *self.place)

    def put(self, array: npt.NDArray[Any]) -> ort.OrtValue:
        """A copy of the array."""
        value = self.room(array.shape, array.dtype)
        value.update_inplace(array)
        return value

    def record(self, key: Key, *, first: bool) -> int:
        """onnxruntime's number for what is recorded under the key, UNRECORDED where nothing is to be.

        A step that runs for the first time need not come again: it is recorded with its second run.
        """
        if key not in self._numbers:
            if first or len(self._numbers) >= MOST_RECORDS:
                return UNRECORDED
            self._numbers[key] = len(self._numbers) + 1
        return self._numbers[key]

    def move(self, given: View, rows: npt.NDArray[np.int64], moved: View) -> None:
        """Copy rows [R] of one buffer into all R of another, which may not overlap."""
        session = self._mover(given.dtype)
        binding = session.io_binding()
        given.bind_input(binding, "given", self)
        binding.bind_cpu_input("rows", rows)
        moved.bind_output(binding, "moved", self)
        session.run_with_iobinding(binding)

    @functools.lru_cache(maxsize=4)  # noqa: B019  (a device lives as long as its model)
    def _mover(self, dtype: np.dtype[Any]) -> ort.InferenceSession:
        ort = onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        kind, number = self.place
        name = MOVERS.get(kind)
        providers: list[Any] = ["CPUExecutionProvider"]
        if name is not None:
            providers = [(name, {"device_id": str(number)} if number else {})]
        return ort.InferenceSession(move_graph(dtype), options, enable_fallback=False, providers=providers)


class View:
    """Rows first..last of a buffer [B,H,C,E] on a device, by address."""

    def __init__(self, buffer: ort.OrtValue, dtype: np.dtype[Any], first: int, last: int) -> None:
        _, *row = buffer.shape()
        self.dtype = dtype
        self.shape = last - first, *row
        self.address = buffer.data_ptr() + first * math.prod(row) * dtype.itemsize
        self._buffer = buffer  # an address keeps nothing alive

    def bind_input(self, binding: ort.IOBinding, name: str, device: Device) -> None:
        binding.bind_input(name, *device.place, self.dtype.type, self.shape, self.address)

    def bind_output(self, binding: ort.IOBinding, name: str, device: Device) -> None:
        binding.bind_output(name, *device.place, self.dtype.type, self.shape, self.address)


class DeviceCache(KVCache):
    """A KVCache on a device: a buffer [B,H,C,E] for the keys and one for the values of each layer.

    Rows move on the device and stay in their buffers. Growing, forks and files go through the host: all are rare,
    since generation reserves what an answer can need.
    """

    def __init__(
        self, device: Device, layers: int, rows: int, heads: int, head_size: int, limit: int, joined: int,
        dtype: npt.DTypeLike,
    ) -> None:  # fmt: skip
        super().__init__(layers, rows, heads, head_size, limit, joined, dtype)
        self.device = device
        self.buffers: list[ort.OrtValue] = []  # key, value, key, ... by layer; none before the first `reserve`

    def views(self, first: int, last: int) -> list[View]:
        return [View(buffer, self.dtype, first, last) for buffer in self.buffers]

    def _grow(self, slots: int) -> None:
        layers, two, rows, heads, _, size = self._shape
        filled = int(self.lengths.max(initial=0))
        old, self.buffers = self.buffers, []
        try:
            for i in range(layers * two):
                content = np.zeros((rows, heads, slots, size), self.dtype)  # what is masked may not be NaN either
                if filled:
                    content[:, :, :filled] = old[i].numpy()[:, :, :filled]
                self.buffers.append(self.device.put(content))
        except Exception as error:  # onnxruntime's own, by version
            self.buffers = old
            raise MemoryError from error

    def _copy_row(self, source: int, target: int, filled: int) -> None:
        one = np.zeros(1, np.int64)
        for given, moved in zip(self.views(source, source + 1), self.views(target, target + 1), strict=True):
            self.device.move(given, one, moved)

    def share(self, slots: int) -> None:
        if self.rows > 1:
            firsts = np.zeros(self.rows - 1, np.int64)
            for given, moved in zip(self.views(0, 1), self.views(1, self.rows), strict=True):
                self.device.move(given, firsts, moved)
        self.lengths[:] = slots

    def reorder(self, parents: npt.NDArray[np.int64], start: int) -> None:
        same = np.arange(self.rows)
        if np.array_equal(parents, same):
            return
        views = self.views(0, self.rows)
        between = View(self.device.room(views[0].shape, self.dtype), self.dtype, 0, self.rows)
        for view in views:
            self.device.move(view, parents.astype(np.int64), between)
            self.device.move(between, same, view)

    def copy(self) -> DeviceCache:
        layers, _, rows, heads, _, size = self._shape
        made = DeviceCache(self.device, layers, rows, heads, size, self.limit, 0, self.dtype)
        filled = int(self.lengths.max(initial=0))
        made.reserve(filled)
        made.lengths = self.lengths.copy()
        for ours, theirs in zip(self.buffers, made.buffers, strict=bool(filled)):
            content = np.zeros(theirs.shape(), self.dtype)
            content[:, :, :filled] = ours.numpy()[:, :, :filled]
            theirs.update_inplace(content)
        return made

    def filled(self, row: int = 0) -> Numbers:
        """A copy [layers, 2, H, n, E] of what a row holds."""
        if not self.buffers:
            return super().filled(row)
        held: Numbers = np.stack([one.numpy()[row, :, : int(self.lengths[row])] for one in self.buffers])
        return held.reshape(self._shape[0], 2, *held.shape[1:])

    def fill(self, content: Numbers, row: int = 0) -> None:
        _, _, heads, slots, size = content.shape
        self.reserve(slots)
        one = np.zeros(1, np.int64)
        parts = content.reshape(-1, heads, slots, size)
        for part, view in zip(parts, self.views(row, row + 1), strict=bool(slots)):
            whole = np.zeros(view.shape, self.dtype)
            whole[0, :, :slots] = part
            self.device.move(View(self.device.put(whole), self.dtype, 0, 1), one, view)
        self.lengths[row] = slots

    def layers(self, first: int, last: int) -> list[tuple[Numbers, Numbers]]:
        raise NotImplementedError("keys and values on a device are bound by address: see views")


class DeviceStep(Step):
    """As Step: fill input_ids, then run. Its small inputs are written into memory that stays in its place."""

    _cache: DeviceCache

    def _bind(self, decoder: Decoder) -> None:
        device = self._cache.device
        on_host = host_inputs(decoder.session)
        arrays = {name: getattr(self, name) for name in self._takes}
        self._host = {n: bind(one) for n, one in arrays.items() if n in on_host or not one.size}
        self._sent = {name: one.copy() for name, one in arrays.items() if name not in self._host}
        self._values = {name: device.put(one) for name, one in self._sent.items()}
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        views = self._cache.views(self._first, self._last)
        for (past, present), view in zip(decoder.pasts, views, strict=True):
            view.bind_input(self._binding, past, device)  # one address as past and present: appended to in place
            view.bind_output(self._binding, present, device)
        self._logits = device.room(self.logits.shape, np.float32) if self.logits.size else bind(self.logits)
        self._binding.bind_ortvalue_output("logits", self._logits)
        touched = [*self._values.values(), self._logits]
        self._key = self.input_ids.shape, *(one.data_ptr() for one in touched), *(v.address for v in views)
        self._key += (self._cache.capacity,)
        self._runs = 0

    def _compute(self, more: bool) -> None:
        device, single = self._cache.device, self.input_ids.shape[1] == 1
        if device.records and single:
            self.total_sequence_length[...] = self._cache.capacity  # for one token any upper bound is right
        for name, value in self._values.items():
            now = getattr(self, name)
            if not np.array_equal(now, self._sent[name]):
                value.update_inplace(now)
                self._sent[name][...] = now
        for name, value in self._host.items():
            self._binding.bind_ortvalue_input(name, value)
        number = None
        if device.records:
            number = device.record(self._key, first=not self._runs) if single else UNRECORDED
        self._runs += 1
        self._session.run_with_iobinding(self._binding, recorded=number)
        if self.logits.size:
            self.logits = self._logits.numpy()


def host_inputs(session: HostedSession) -> set[str]:
    """Inputs that kernels read from the host's memory, as the attention's total_sequence_length."""
    try:
        places = [info.name for info in session.get_input_memory_infos()]
    except AttributeError:  # older onnxruntime
        places = []
    there = {one.name for one, place in zip(session.get_inputs(), places, strict=False) if place == "Cpu"}
    return there | {"total_sequence_length"}
