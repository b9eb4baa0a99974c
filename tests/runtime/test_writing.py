"""A bundle appears whole or not at all: a full disk, Ctrl-C or an error leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

import torchless
from torchless import BundleError, writing
from torchless.export import builder, export
from torchless.export import parity as parity_module

CopyOf = Callable[[Path], Path]


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_size for path in sorted(folder.rglob("*"))}


def test_an_out_that_exists_is_refused_and_left_as_it_is(gpt_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    before = tree(tmp_path)
    with pytest.raises(BundleError, match=r"out exists: choose another name, or pass overwrite=True \("):
        export(gpt_checkpoint, out)
    with pytest.raises(BundleError, match="out holds something other than a bundle, so it is not overwritten"):
        export(gpt_checkpoint, out, overwrite=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "link to a bundle", "broken link"])
def test_what_is_no_folder_is_never_overwritten(
    kind: str, gpt_checkpoint: Path, gpt_bundle: Path, copy_of: CopyOf, tmp_path: Path
) -> None:
    bundle, out = copy_of(gpt_bundle), tmp_path / "out"
    if kind == "file":
        out.write_text("dear")
    else:
        out.symlink_to(bundle if kind == "link to a bundle" else tmp_path / "nowhere")
    before = tree(tmp_path)
    with pytest.raises(BundleError, match="out is not a folder, so it is not overwritten: choose another name"):
        export(gpt_checkpoint, out, overwrite=True)
    assert tree(tmp_path) == before


def test_overwriting_replaces_a_bundle_whole_and_an_empty_folder(
    gpt_checkpoint: Path, bert_bundles: dict[str, Path], copy_of: CopyOf, tmp_path: Path
) -> None:
    old = copy_of(bert_bundles["fill-mask"])
    (old / "note.txt").write_text("not of the bundle")
    with pytest.raises(BundleError, match=r"holds note\.txt, which is of no bundle, so it is not overwritten"):
        export(gpt_checkpoint, old, overwrite=True)
    (old / "note.txt").unlink()
    assert export(gpt_checkpoint, old, overwrite=True) == old
    with torchless.load(old, verify=True) as model:
        assert isinstance(model, torchless.TextGeneration)
    (tmp_path / "empty").mkdir()
    torchless.load(export(gpt_checkpoint, tmp_path / "empty", overwrite=True)).close()
    assert sorted(os.listdir(tmp_path)) == sorted([old.name, "empty"])


def test_a_failed_overwrite_keeps_the_old_bundle(
    gpt_checkpoint: Path, bert_bundles: dict[str, Path], copy_of: CopyOf, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    old = copy_of(bert_bundles["fill-mask"])
    before = tree(tmp_path)
    monkeypatch.setattr(parity_module, "check_export", fails(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        export(gpt_checkpoint, old, overwrite=True)
    assert tree(tmp_path) == before


def test_a_new_bundle_that_cannot_take_the_name_gives_it_back_to_the_old_one(
    gpt_checkpoint: Path, bert_bundles: dict[str, Path], copy_of: CopyOf, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    old, rename = copy_of(bert_bundles["fill-mask"]), Path.rename
    before = tree(tmp_path)

    def only_the_old_one(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", only_the_old_one)
    with pytest.raises(BundleError, match=r"was not written \(Permission denied\)"):
        export(gpt_checkpoint, old, overwrite=True)
    assert tree(tmp_path) == before


def fails(error: BaseException) -> Callable[..., Any]:
    def call(*given: object, **named: object) -> Any:
        raise error

    return call


FAILURES = {
    "while weights are written": (builder.Builder, "_write_tensors"),
    "while the graph is checked": (builder.onnx.checker, "check_model"),
    "while files are hashed": (writing, "sha256_of"),
    "while it is compared": (parity_module, "check_export"),
    "while it is renamed": (writing, "_rename_into_place"),
}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("moment", FAILURES)
def test_a_failure_at_any_moment_leaves_nothing_behind(
    moment: str, error: BaseException, gpt_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, name = FAILURES[moment]
    monkeypatch.setattr(where, name, fails(error))
    if isinstance(error, OSError):
        message = r"out was not written \(No space left on device\): free space .*; nothing was left behind"
        expected: Any = pytest.raises(BundleError, match=message)
    else:
        expected = pytest.raises(KeyboardInterrupt)
    with expected:
        export(gpt_checkpoint, tmp_path / "deep" / "deeper" / "out")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB; the tiny bundle needs more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small tmpfs needs root on Linux; the same is tried with a made-up ENOSPC")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full_is_said_and_nothing_is_left(gpt_checkpoint: Path, small_disk: Path) -> None:
    with pytest.raises(BundleError, match=r"out was not written \(.*No space left on device.*\): free space"):
        export(gpt_checkpoint, small_disk / "new" / "out")
    assert os.listdir(small_disk) == []


INTERRUPTED = """
import sys, time
from torchless.export import export, builder
write = builder.Builder._write_tensors
def slowly(self, path):
    tensors = write(self, path)
    print("writing", flush=True)
    time.sleep(120)
    return tensors
builder.Builder._write_tensors = slowly
export(sys.argv[1], sys.argv[2])
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_a_real_ctrl_c_in_another_process_leaves_nothing_behind(gpt_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(gpt_checkpoint), str(tmp_path / "new" / "out")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=tiny.hear_ctrl_c
    )
    with process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        assert tree(tmp_path)  # it has begun
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_a_killed_export_leaves_no_half_bundle_under_the_final_name(gpt_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(gpt_checkpoint), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        process.kill()
    assert not (tmp_path / "out").exists()
    assert all(name.startswith(".out.") and name.endswith(".partial") for name in os.listdir(tmp_path))


def test_two_exports_to_one_name_at_once_end_with_one_bundle_and_one_refusal(
    gpt_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = parity_module.check_export

    def race(*given: Any) -> Any:
        monkeypatch.setattr(parity_module, "check_export", check)
        export(gpt_checkpoint, tmp_path / "out", check=False)  # the other one is faster
        return check(*given)

    monkeypatch.setattr(parity_module, "check_export", race)
    with pytest.raises(BundleError, match="out exists"):
        export(gpt_checkpoint, tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
    torchless.load(tmp_path / "out", verify=True).close()
    assert time.time() - (tmp_path / "out").stat().st_mtime < 600
