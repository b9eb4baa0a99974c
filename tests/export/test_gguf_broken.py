"""GGUF files that lie about themselves: each is an ExportError that names the file, at once, in little memory."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf_files
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gguf import model

from torchless.errors import ExportError
from torchless.export.sources import open_source


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "model.gguf"
    gguf_files.write(model(num_hidden_layers=1), path, "Q4_1")
    return path.read_bytes()


def number(at: int, value: int, form: str = "<Q") -> Callable[[bytes], bytes]:
    """Another number at a place of the file."""
    return lambda content: content[:at] + struct.pack(form, value) + content[at + struct.calcsize(form) :]


def behind(text: bytes, more: int, value: int, form: str = "<Q") -> Callable[[bytes], bytes]:
    """Another number so many bytes behind the end of a text that the file holds."""
    return lambda content: number(content.index(text) + len(text) + more, value, form)(content)


def twice(content: bytes) -> bytes:
    return content.replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight")


KEY, TENSOR = b"llama.block_count", b"blk.0.ffn_down.weight"
BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "cannot be read"),
    "its magic alone": (lambda content: content[:4], "ends in its version"),
    "another magic": (lambda content: b"GGML" + content[4:], "does not begin with GGUF"),
    "an old version": (number(4, 1, "<I"), "has version 1"),
    "big-endian": (number(4, 3, ">I"), "is big-endian"),
    "countless tensors": (number(8, 2**63), "too short for the .* tensors that it announces"),
    "countless entries": (number(16, 2**64 - 1), "too short for the .* entries of metadata"),
    "a key of absurd length": (number(24, 2**40), "a text of 1,099,511,627,776 bytes"),
    "a key longer than the file": (number(24, 2**23), "ends in a key of its metadata"),
    "an unknown type of value": (behind(KEY, 0, 77, "<I"), "a value of an unknown type .77. in llama.block_count"),
    "a countless list": (behind(b"tokenizer.ggml.tokens", 8, 2**60), "texts in tokenizer.ggml.tokens"),
    "countless numbers": (behind(b"tokenizer.ggml.token_type", 8, 2**62), "numbers in tokenizer.ggml.token_type"),
    "lists in lists": (behind(b"tokenizer.ggml.tokens", 4, 9, "<I"), "a list of an unknown type .9. in tokenizer"),
    "bytes that are no text": (lambda content: content.replace(KEY, b"\xff" * len(KEY)), "no UTF-8"),
    "a key twice": (lambda content: content.replace(b"attention.key_length", b"attention.head_count"), "twice"),
    "no axes": (behind(TENSOR, 0, 0, "<I"), "gives the tensor blk.0.ffn_down.weight 0 axes"),
    "a million axes": (behind(TENSOR, 0, 10**6, "<I"), "gives the tensor blk.0.ffn_down.weight 1,000,000 axes"),
    "an axis of nothing": (behind(TENSOR, 4, 0), "has the shape|the shape"),
    "half a block": (behind(TENSOR, 4, 48), "which Q4_1 cannot have"),
    "axes whose product overflows": (behind(TENSOR, 12, 2**62), "ends before the tensor"),
    "a huge axis": (behind(TENSOR, 12, 2**40), "ends before the tensor blk.0.ffn_down.weight does"),
    "a type that nobody knows": (behind(TENSOR, 20, 999, "<I"), "is of type 999"),
    "a type that is not read": (behind(TENSOR, 20, 16, "<I"), "is IQ2_XXS|cannot have"),
    "a start between two places": (behind(TENSOR, 24, 33), "at 33, no multiple of 32"),
    "a start behind the end": (behind(TENSOR, 24, 2**50), "ends before the tensor"),
    "two tensors in one place": (behind(TENSOR, 24, 0), "in one place"),
    "a tensor twice": (twice, "has the tensor blk.0.attn_q.weight twice"),
    "a tail that is missing": (lambda content: content[:-100], "ends before the tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_at_once(name: str, sound: bytes, tmp_path: Path) -> None:
    change, said = BROKEN[name]
    (tmp_path / "model.gguf").write_bytes(change(sound))
    if change(sound) == sound:
        pytest.fail("the file was not changed")
    tracemalloc.start()
    try:
        tiny.refused(tmp_path / "model.gguf", said, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_a_missing_file_and_a_missing_package_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.refused(tmp_path / "none.gguf", "none.gguf is missing", tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    tiny.refused(tmp_path / "model.gguf", r"pip install 'torchless\[gguf\]'", tmp_path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_flipped_and_missing_bytes_give_a_source_or_an_export_error(
    data: st.DataObject, sound: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(sound)
    header = sound.rindex(b"output_norm.weight") + 200
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header))] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    path = tmp_path_factory.mktemp("fuzz") / "model.gguf"
    path.write_bytes(bytes(content))
    try:
        source = open_source(path)
        source.weights.everything()
        for read in source.blocks.values():
            read()
    except ExportError as error:
        assert str(path) in str(error)
