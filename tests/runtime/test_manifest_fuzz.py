"""Whatever stands in torchless.json, reading it gives a bundle or a BundleError, never another exception."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchless import BundleError
from torchless.bundle import read_bundle
from torchless.manifest import MANIFEST, Manifest

numbers = st.integers() | st.floats() | st.integers(min_value=10**30, max_value=10**40)
texts = st.text(st.characters(), max_size=20) | st.sampled_from(["model.onnx", "fused", "fp32", "cpu", "../x"])
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from([field for field in Manifest.__dataclass_fields__] + ["unknown"])


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_bundle_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=r"torchless\.json"):
        read_bundle(folder)


@settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(changes=st.dictionaries(fields, json_values, min_size=1, max_size=3))
def test_any_value_in_any_field_is_read_or_refused(gpt_bundle: Path, changes: dict[str, Any]) -> None:
    raw = json.loads((gpt_bundle / MANIFEST).read_text(encoding="utf-8")) | changes
    with contextlib.suppress(BundleError):
        manifest = Manifest.from_json(json.dumps(raw))
        assert Manifest.from_json(manifest.to_json()) == manifest


places = st.sampled_from([("graphs", 0), ("cache",), ("pooling",), ("files", "model.onnx"), ("special_tokens",)])


@settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(place=places, name=texts, value=json_values, drop=st.booleans())
def test_any_value_further_inside_is_read_or_refused(
    gpt_bundle: Path, place: tuple[str | int, ...], name: str, value: Any, drop: bool
) -> None:
    raw = json.loads((gpt_bundle / MANIFEST).read_text(encoding="utf-8"))
    raw["pooling"] = {"mode": "mean", "normalize": True}
    inner: Any = raw
    for step in place:
        inner = inner[step]
    for key in list(inner) if drop else [name, *list(inner)[:1]]:
        inner[key] = value
    with contextlib.suppress(BundleError):
        Manifest.from_json(json.dumps(raw))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(name=st.text(st.characters(), max_size=30) | st.lists(texts, max_size=4).map("/".join))
def test_any_file_name_is_found_inside_the_folder_or_refused(gpt_bundle: Path, name: str) -> None:
    raw = json.loads((gpt_bundle / MANIFEST).read_text(encoding="utf-8"))
    raw["files"][name] = {"size": 1, "sha256": "0" * 64}
    folder = gpt_bundle.parent / "names"
    folder.mkdir(exist_ok=True)
    for path in gpt_bundle.iterdir():
        if path.name != MANIFEST and not (folder / path.name).exists():
            (folder / path.name).hardlink_to(path)
    (folder / MANIFEST).write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(BundleError):  # no such file is there, or its size is another
        read_bundle(folder)
