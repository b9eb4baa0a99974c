"""The runtime imports numpy, tokenizers and onnxruntime only, and the arrows between rooms point one way."""

from __future__ import annotations

import ast
import importlib.util
import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import torchless
from torchless._pyinstaller import hook_dirs

RUNTIME = Path(torchless.__file__).parent
ROOMS = {
    "runtime": RUNTIME,
    "export": Path(str(importlib.util.find_spec("torchless.export").origin)).parent,  # type: ignore[union-attr]
    "quantize": Path(str(importlib.util.find_spec("torchless.quantize").origin)).parent,  # type: ignore[union-attr]
}
THREE = {"numpy", "tokenizers", "onnxruntime"}
EXTRAS = {"jinja2", "llguidance", "huggingface_hub"}  # only inside the functions that need them
FORBIDDEN = (
    "torch",
    "transformers",
    "onnx",
    "scipy",
    "safetensors",
    "huggingface_hub",
    "sklearn",
    "pandas",
    "jinja2",
    "starlette",
    "uvicorn",
    "h11",
)
SERVER = {"starlette", "uvicorn", "h11"}  # of the extra `serve`: in the files that only a server imports


def files(room: str) -> list[Path]:
    others = [folder for name, folder in ROOMS.items() if name != room and folder.is_relative_to(ROOMS[room])]
    found = [path for path in sorted(ROOMS[room].rglob("*.py")) if not any(path.is_relative_to(o) for o in others)]
    assert len(found) > 5
    return found


def imports(path: Path) -> Iterator[tuple[str, bool, bool]]:
    """(module, inside a function, only for the type checker) of every import in a file."""

    def walk(node: ast.AST, inside: bool, types: bool) -> Iterator[tuple[str, bool, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((name.name, inside, types) for name in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: imports here are absolute"
                yield child.module or "", inside, types
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
                yield from walk(child, inside or function, types or checking)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False, False)


def test_the_runtime_imports_only_its_three_dependencies_and_itself() -> None:
    for path in files("runtime"):
        for module, inside, types in imports(path):
            top = module.split(".")[0]
            if types or top in THREE or top in sys.stdlib_module_names or (inside and top in EXTRAS):
                continue
            if top in SERVER and path.parent.name == "serve":
                continue
            makes = module.startswith(("torchless.export", "torchless.quantize"))
            command = path.parent.name == "cli" and inside  # only the commands that make bundles, when they run
            assert top == "torchless" and (command or not makes), f"{path} imports {module}"


def test_the_server_is_imported_by_nobody_but_its_command_and_itself() -> None:
    for path in files("runtime"):
        for module, inside, types in imports(path):
            if module.startswith("torchless.serve") and path.parent.name != "serve" and not types:
                assert path.name == "serve.py" and inside, f"{path} imports {module}"
    code = "import sys, torchless.serve.options; print(sorted({name.split('.')[0] for name in sys.modules}))"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not SERVER & set(
        ast.literal_eval(seen)
    )  # the package says which extra is missing, so it must do without


def test_a_frozen_application_holds_every_public_name_and_no_download() -> None:
    (folder,) = hook_dirs()
    hook = runpy.run_path(str(Path(folder) / "hook-torchless.py"))
    lazy = {getattr(torchless, name).__module__ for name in torchless.__all__ if name not in vars(torchless)}
    assert lazy and lazy <= set(hook["hiddenimports"])
    assert all(importlib.util.find_spec(name) for name in hook["hiddenimports"])
    assert hook["excludedimports"] == ["huggingface_hub"]


@pytest.mark.parametrize(("room", "other"), [("export", "torchless.quantize"), ("quantize", "torchless.export")])
def test_export_and_quantize_do_not_know_of_each_other(room: str, other: str) -> None:
    for path in files(room):
        assert not [module for module, _, types in imports(path) if module.startswith(other) and not types], path


def test_torch_and_transformers_are_imported_only_inside_the_functions_that_need_them() -> None:
    for room in ("export", "quantize"):
        for path in files(room):
            for module, inside, types in imports(path):
                assert module.split(".")[0] not in ("torch", "transformers") or inside or types, path


RUN = """
import json, sys
forbidden, bundles = set(sys.argv[1].split(",")), sys.argv[2:]
asked, events = [], []

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in forbidden:
            asked.append(name)
            raise ImportError(name + " is not to be imported here")

sys.meta_path.insert(0, Refuse())
import torchless
light = [name for name in ("numpy", "onnxruntime", "tokenizers") if name in sys.modules]

def watch(event, given):
    if event in ("socket.connect", "socket.getaddrinfo", "pickle.find_class", "subprocess.Popen"):
        events.append(event)
    if event == "open" and isinstance(given[1], str) and set(given[1]) & set("wax+"):
        events.append("open " + str(given[0]))

sys.dont_write_bytecode = True
sys.addaudithook(watch)
answers = []
for bundle in bundles:
    with torchless.load(bundle, verify=True) as model:
        options = {"max_new_tokens": 8} if "generation" in model.bundle.manifest.task else {}
        answers.append(repr(model("the [MASK] is strong", **options)))
        if options:
            answers.append("".join(model.stream("the union", temperature=0.8, top_p=0.9, seed=1, **options)))
present = sorted({name.split(".")[0] for name in sys.modules} & forbidden)
print(json.dumps({"light": light, "asked": asked, "present": present, "events": events, "answers": answers}))
"""


def test_import_and_whole_answers_touch_no_torch_no_network_no_pickle_and_no_file(
    gpt_bundle: Path, bert_bundles: dict[str, Path], gpt: torchless.TextGeneration
) -> None:
    command = [sys.executable, "-c", RUN, ",".join(FORBIDDEN), str(gpt_bundle), *map(str, bert_bundles.values())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["light"] == []  # `import torchless` alone is free; numpy comes with the first model
    assert seen["present"] == []
    assert seen["asked"] == []  # nobody even tried, behind an `except ImportError`
    assert seen["events"] == []
    assert seen["answers"][0] == repr(gpt("the [MASK] is strong", max_new_tokens=8))
    assert len(seen["answers"]) == 5
