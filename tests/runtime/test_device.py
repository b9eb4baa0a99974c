"""A cache on a device: the whole path that a GPU takes, with the host's memory in the GPU's place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import torchless
from torchless import decoder as decoders
from torchless import device as devices
from torchless.device import MOST_RECORDS, UNRECORDED, Device, DeviceCache, move_graph
from torchless.quantize import quantize

LONG = list(range(1, 40))


class Recorder:
    """A session that notes the number under which every step is recorded."""

    def __init__(self, session: Any) -> None:
        self.session, self.numbers = session, list[int]()

    def run_with_iobinding(self, binding: Any, *, recorded: int) -> None:
        self.numbers.append(recorded)
        self.session.run_with_iobinding(binding, recorded=recorded)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


def on_device(monkeypatch: pytest.MonkeyPatch, bundle: Path, *, records: bool = False) -> Any:
    monkeypatch.setattr(decoders, "device_of", lambda session: Device("cpu", 0, records))
    return torchless.load(bundle)


@pytest.fixture(scope="module")
def half(gpt_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(gpt_bundle, tmp_path_factory.mktemp("half") / "gpt", recipe="fp16")


@pytest.fixture(params=["float32", "float32, recorded", "float16", "standard"])
def pair(request: Any, gpt_bundle: Path, half: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The same bundle with its cache on the host, and on a device."""
    bundle = half if request.param == "float16" else gpt_bundle
    dialect = "standard" if request.param == "standard" else None
    host = torchless.load(bundle, dialect=dialect)
    records = "recorded" in request.param
    monkeypatch.setattr(decoders, "device_of", lambda session: Device("cpu", 0, records))
    there = torchless.load(bundle, dialect=dialect)
    assert isinstance(there.decoder.new_cache(), DeviceCache)
    return host, there


def test_a_text_a_batch_and_beams_are_the_hosts(pair: Any) -> None:
    host, there = pair
    prompts = [[5, 1, 4], [9], LONG]
    for asked in (
        dict(max_new_tokens=20),
        dict(max_new_tokens=9, num_beams=3),
        dict(max_new_tokens=9, num_beams=4, do_sample=True, seed=3, num_return_sequences=2),
        dict(max_new_tokens=9, temperature=0.8, seed=1),
        dict(max_new_tokens=12, prompt_lookup_num_tokens=4),
    ):
        assert there(prompts, **asked) == host(prompts, **asked), asked


def test_rows_come_and_go_as_on_the_host(pair: Any) -> None:
    host, there = pair
    prompts = [LONG[:n] for n in (3, 1, 30, 7, 2, 12, 5)]
    assert there(prompts, max_new_tokens=11, batch_size=3) == host(prompts, max_new_tokens=11, batch_size=3)
    assert there.score(LONG) == host.score(LONG)


def test_states_fork_save_and_cross_over(pair: Any, tmp_path: Path) -> None:
    host, there = pair
    expected = host([*LONG, 7], max_new_tokens=6)
    state = there.state(LONG)
    state.save(tmp_path / "device.safetensors")
    host.state(LONG).save(tmp_path / "host.safetensors")
    for model in pair:  # a file is the same wherever it was written
        for name in ("device", "host"):
            loaded = model.load_state(tmp_path / f"{name}.safetensors")
            assert model([*LONG, 7], max_new_tokens=6, state=loaded) == expected
    fork = state.fork()
    assert there([*LONG, 7], max_new_tokens=6, state=state) == expected
    assert there([*LONG, 7], max_new_tokens=6, state=fork) == expected
    assert len(there.state([1]).fork()) == 1


def test_growing_keeps_what_every_row_holds(gpt_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchless.cache.GROWTH", 8)
    host = torchless.load(gpt_bundle)
    there = on_device(monkeypatch, gpt_bundle)
    caches = [model.decoder.new_cache(2) for model in (host, there)]
    found = []
    for model, cache in zip((host, there), caches, strict=True):
        model.decoder.extend(cache, [5, 1, 4], row=0)
        model.decoder.extend(cache, LONG[:7], row=1)
        step = model.decoder.stepper(cache)
        found.append(np.stack([step([token, token + 1]).copy() for token in range(20)]))
        assert cache.capacity == 32
    assert np.array_equal(*found)
    for row in (0, 1):
        assert np.array_equal(caches[0].filled(row), caches[1].filled(row)) and caches[0].filled(row).any()


def test_reordered_shared_and_dropped_rows_are_the_right_ones() -> None:
    device, content = Device("cpu"), np.arange(2 * 2 * 3 * 5 * 4, dtype=np.float32).reshape(2, 2, 3, 5, 4)
    cache = DeviceCache(device, 2, 3, 3, 4, 64, 3, np.float32)
    for row in range(3):
        cache.fill(content + 1000 * row, row)
    cache.reorder(np.array([2, 0, 2]), 0)
    assert [cache.filled(row)[0, 0, 0, 0, 0] for row in range(3)] == [2000, 0, 2000]
    cache.drop(0)
    cache.drop(0)
    assert cache.rows == 1 and np.array_equal(cache.filled(0), content)
    cache.join(), cache.join()
    cache.share(5)
    assert all(np.array_equal(cache.filled(row), content) for row in range(3))


def test_a_step_is_recorded_with_its_second_run_and_never_a_prompt(
    gpt_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt = on_device(monkeypatch, gpt_bundle, records=True)
    gpt.decoder.session = recorder = Recorder(gpt.decoder.session)
    cache = gpt.decoder.new_cache(2)
    for row in (0, 1):
        gpt.decoder.extend(cache, [5, 1, 4], row=row)
    step = gpt.decoder.stepper(cache)
    for token in range(4):
        step([token, token])
    assert recorder.numbers == [UNRECORDED, UNRECORDED, UNRECORDED, 1, 1, 1]
    cache.drop(1)  # another shape, another record
    for token in range(3):
        step([token])
    assert recorder.numbers[-3:] == [UNRECORDED, 2, 2]


def test_records_are_bounded() -> None:
    device = Device("cpu", 0, True)
    assert [device.record((i,), first=False) for i in range(MOST_RECORDS + 2)][-3:] == [64, UNRECORDED, UNRECORDED]
    assert device.record((3,), first=True) == 4


def test_a_device_without_room_is_our_error(gpt_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: Device, shape: Any, dtype: Any) -> Any:
        raise RuntimeError("Failed to allocate memory")

    gpt = on_device(monkeypatch, gpt_bundle)
    monkeypatch.setattr(devices.Device, "room", none)
    with pytest.raises(torchless.TorchlessError, match=r"no memory for the cache of 1 texts.*smaller batch_size"):
        gpt([5, 1, 4], max_new_tokens=2)


@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, TensorProto.FLOAT), (np.float16, TensorProto.FLOAT16)])
def test_the_graph_that_moves_rows_is_what_its_comment_says(dtype: Any, kind: int) -> None:
    made = onnx.helper.make_graph(
        [onnx.helper.make_node("Gather", ["given", "rows"], ["moved"], axis=0)],
        "g",
        [
            onnx.helper.make_tensor_value_info("given", kind, ["B", "H", "C", "E"]),
            onnx.helper.make_tensor_value_info("rows", TensorProto.INT64, ["R"]),
        ],
        [onnx.helper.make_tensor_value_info("moved", kind, ["R", "H", "C", "E"])],
    )
    assert onnx.load_from_string(move_graph(np.dtype(dtype))).graph == made
